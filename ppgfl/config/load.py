"""YAML files -> one plain dict. Knows the format of PaddleDetection's configs, and no class of ours."""
from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..system.log import logger
from .keys import OPTIMIZERS

LARGEST = 100_000  # values in a config
RUN_CONFIG = "config.yml"  # in the folder of a run: its whole config
# What PyYAML raises, with Python's own errors for a date or a tagged value that is none: `2026-13-45`, `!!bool x`.
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError)
DATASETS = ("TrainDataset", "EvalDataset", "TestDataset")
# What a slim config says about the training of the student; all else in it is about the teacher.
OF_TRAINING = ("epoch", "TrainReader", "LearningRate", "OptimizerBuilder", "use_ema", "ema_decay", "ema_decay_type")


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = (), *,
                slim_config: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Read a config with its `_BASE_` files and apply overrides.

    Args:
        path: a .yml file, the bare name of one shipped with ppgfl ("gfl_r50_fpn_1x_coco"), or the folder of a training
            run, whose best weights become `weights`.
        overrides: strings "a.b.c=value"; the value is read as YAML, siblings are kept. A number steps into a list.
        slim_config: a second one, of a teacher and how to learn from it. What it says about training is merged into
            the first, as PaddleDetection does, and the whole of it becomes the section `teacher`.

    Returns:
        A plain dict. Files (or shipped configs) named under `_BASE_` are merged in order, then the file itself: dicts
        merge deeply, everything else is replaced. `!Name {a: 1}` reads as `{name: Name, a: 1}`. Where another optimizer
        is chosen, what only the inherited one takes stays behind, with one line, and where another kind of data set is,
        the inherited `image_dir`.

    Raises:
        ConfigError: a missing file, bad YAML, a duplicate key, a loop of `_BASE_`, an override that fits nowhere.
    """
    file = find_config(path)
    trusted = _trusts(overrides)
    cfg = _load_with_bases(file, (), trusted=trusted)
    if file == _config_of_run(path) and best_weights(path):
        cfg["weights"] = str(best_weights(path))
    if slim_config is not None:
        _add_slim_config(cfg, slim_config, trusted=trusted)
    apply_overrides(cfg, overrides, file)
    return cfg


def apply_overrides(cfg: dict[str, Any], overrides: Sequence[str], file: Path) -> None:
    """Change a config, which was read from a file, as `load_config` does. Raises ConfigError."""
    for override in overrides:
        _apply_override(cfg, override, file, trusted=_trusts(overrides))
    if isinstance(cfg.get("trust"), bool):
        del cfg["trust"]  # it was about the files of this call; a saved config must not carry it on


def _trusts(overrides: Sequence[str]) -> bool:
    return any(re.fullmatch(r"\s*trust\s*=\s*true\s*", override) for override in overrides)


def _add_slim_config(cfg: dict[str, Any], path: str | os.PathLike[str], *, trusted: bool) -> None:
    slim = _load_with_bases(find_config(path), (), trusted=trusted)
    if slim.get("slim") != "Distill":
        raise ConfigError(f"{path}: slim is {slim.get('slim')!r}; ppgfl knows slim: Distill only (neither pruning nor "
                          "training with quantised weights)")
    _merge_whole(cfg, copy.deepcopy({key: slim[key] for key in OF_TRAINING if key in slim}))
    cfg["teacher"] = slim


def find_config(path: str | os.PathLike[str]) -> Path:
    """The file of a config: the path itself, that of a run's folder, or the shipped config of that name. Raises
    ConfigError."""
    path = Path(os.path.expanduser(str(path)))
    if path.is_file():
        return path.resolve()
    shipped = _shipped(path)
    if shipped or is_run(path):
        return shipped or _config_of_run(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder without a {RUN_CONFIG}, so not one of a training; give that, or a .yml "
                          "file")
    known = sorted({p.stem for folder in shipped_configs() for p in (folder / "gfl").glob("*.yml")})
    raise ConfigError(f"{path}: no such config (looked at {path.absolute()}); shipped ones: {', '.join(known)}")


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a training run."""
    return _config_of_run(path).is_file()


def _config_of_run(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(str(path)), RUN_CONFIG).resolve()


def best_weights(run: str | os.PathLike[str]) -> Path | None:
    """The weights that a run's folder has, without their ending: the best, else the last. None without any."""
    stems = [Path(os.path.expanduser(str(run)), name) for name in ("best_model", "model_final")]
    return next((stem for stem in stems if stem.with_suffix(".pdparams").is_file()), None)


def config_name(path: str | os.PathLike[str]) -> str:
    """What a config is called, and with it what is made from it: its file without the ending, or a run's folder."""
    path = Path(os.path.abspath(os.path.expanduser(str(path))))
    return path.name if path.is_dir() else path.stem


def _shipped(name: str | Path) -> Path | None:
    """The shipped config of a bare name, or None."""
    found = [path for folder in shipped_configs() for path in sorted(folder.rglob("*.yml")) if path.stem == str(name)]
    return found[0] if found else None


def shipped_configs() -> list[Path]:
    """Folders that hold ppgfl's own configs: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent.parent
    return [folder for folder in (here.parent / "configs", here / "configs") if (folder / "gfl").is_dir()]


def _load_with_bases(path: Path, chain: tuple[Path, ...], *, trusted: bool) -> dict[str, Any]:
    if path in chain:
        loop = " -> ".join(p.name for p in (*chain[chain.index(path):], path))
        raise ConfigError(f"{path}: _BASE_ runs in a loop: {loop}; remove one of them")
    own = _read(path)
    if "trust" in own:
        raise ConfigError(f"{path}: trust: a file cannot say whether it is trusted; set -o trust=true")
    own = {key: _found(value, path, trusted=trusted) if str(key).endswith("Reader") else value
           for key, value in own.items()}
    bases = own.pop("_BASE_", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _BASE_ is {bases!r}; it must be a list of files")
    cfg: dict[str, Any] = {}
    for base in bases:
        beside = (path.parent / os.path.expanduser(base)).resolve()
        base_path = beside if beside.is_file() else _shipped(base)
        if base_path is None:
            raise ConfigError(f"{path}: _BASE_ names {base}, but there is no {path.parent / base}, and no shipped "
                              "config of that name")
        _merge_whole(cfg, _load_with_bases(base_path, (*chain, path), trusted=trusted))
    return _merge_whole(cfg, own)


def _merge_whole(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`merge` of two whole configs."""
    _leave_behind(into, other)
    return merge(into, other)


def is_own(kind: object) -> bool:
    """Whether the name of a transform is that of a user's own, as in `my_ops.py:Blur`."""
    return isinstance(kind, str) and re.fullmatch(r".+\.py:\w+", kind) is not None


def _found(value: Any, file: Path, *, trusted: bool) -> Any:
    """Part of a reader with whole paths for the transforms of a user's own that `file` names: `my_ops.py:Blur` lies
    beside it.

    Raises: ConfigError: it lies elsewhere, where a stranger's config could name any file of this machine.
    """
    if isinstance(value, list):
        return [_found(each, file, trusted=trusted) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, each in value.items():
        name = key
        if is_own(key):
            path, _, kind = key.rpartition(":")
            path = os.path.realpath(file.parent / os.path.expanduser(path))
            if os.path.dirname(path) != os.path.realpath(file.parent) and not trusted:
                raise ConfigError(f"{file}: {key}: lies in another folder than the config that names it; put it there, "
                                  "or, if you trust it, set -o trust=true")
            name = f"{path}:{kind}"
        found[name] = _found(each, file, trusted=trusted)
    return found


def _leave_behind(into: dict[str, Any], other: dict[str, Any]) -> None:
    """Take out of `into` what belongs to something that `other` replaces, and say so."""
    _leave_optimizer_behind(into, other)
    for section in DATASETS:
        inherited, chosen = into.get(section), other.get(section)
        if isinstance(inherited, dict) and isinstance(chosen, dict) and inherited.get("image_dir") is not None and (
                chosen.get("name", inherited.get("name")) != inherited.get("name") and "image_dir" not in chosen):
            logger.info("%s.name: %s instead of %s, so that this stays behind: image_dir %s", section, chosen["name"],
                        inherited.get("name"), inherited.pop("image_dir"))


def _leave_optimizer_behind(into: dict[str, Any], other: dict[str, Any]) -> None:
    """Where `other` chooses another optimizer than `into`, take out of `into` what the new one does not take: arguments
    of the old one, and the regularizer where the new one decays weights itself."""
    inherited, chosen = (cfg.get("OptimizerBuilder") for cfg in (into, other))
    if not isinstance(inherited, dict) or not isinstance(chosen, dict):
        return
    old, new = inherited.get("optimizer"), chosen.get("optimizer")
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("type") in (None, old.get("type", "Momentum")):
        return
    kind = str(new["type"])
    left = [key for key in old if key != "type" and key not in new and key not in OPTIMIZERS.get(kind, old)]
    for key in left:
        del old[key]
    if kind == "AdamW" and "regularizer" not in chosen and inherited.get("regularizer"):
        inherited["regularizer"] = None
        left.append("regularizer")
    if left:
        logger.info("OptimizerBuilder.optimizer.type: %s instead of %s, so that these stay behind: %s", kind,
                    old.get("type", "Momentum"), ", ".join(left))


def merge(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge dict `other` into dict `into`, deeply where both hold a dict; else `other` wins. Returns `into`."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        cfg = yaml.load(text, Loader=_Loader)  # a SafeLoader: see below
    except (*UNREADABLE, OSError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    if cfg is None:
        return {}
    if not isinstance(cfg, dict):
        raise ConfigError(f"{path}: holds a {type(cfg).__name__}; a config is a mapping of keys")
    if _size(cfg, {}) > LARGEST:
        raise ConfigError(f"{path}: its aliases (*name) make more than {LARGEST:,} values, or a loop; write them out")
    return {key: _unshared(value) for key, value in cfg.items()}


def _unshared(value: Any) -> Any:
    """A copy in which each place of an alias (*name) has its own value, so that a change stays where it is made."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _size(value: Any, known: dict[int, float]) -> float:
    """How many values there are when every alias is written out: a few lines of YAML can make billions, or a loop."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is counted: it contains itself
        known[id(value)] = 1 + sum(_size(item, known) for item in (
            value.values() if isinstance(value, dict) else value))
    return known[id(value)]


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(str(getattr(error, "problem", None) or error).split())


def _apply_override(cfg: dict[str, Any], override: str, file: Path, *, trusted: bool) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"-o {override}: must read key=value, as in -o TestReader.batch_size=4")
    try:
        value = _unshared(yaml.load(text, Loader=_Loader))
    except UNREADABLE as error:
        raise ConfigError(f"-o {override}: the value is not YAML: {_one_line(error)}") from error
    if keys[0].endswith("Reader"):
        value = _found(value, file, trusted=trusted)
    whole: Any = value
    for key in reversed(keys):
        whole = {key: whole}
    _leave_behind(cfg, whole)
    parent: Any = cfg
    for depth, key in enumerate(keys[:-1]):
        if isinstance(parent, dict) and parent.get(key) is None:
            parent[key] = {}
        parent = _step(parent, key, override, keys[:depth + 1])
    last = keys[-1]
    if isinstance(parent, dict):
        merge(parent, {last: value})
    else:
        _step(parent, last, override, keys)  # the item must exist
        parent[int(last)] = value


def _step(parent: Any, key: str, override: str, keys: Sequence[str]) -> Any:
    where = ".".join(keys)
    if isinstance(parent, dict):
        child = parent.get(key)
    elif isinstance(parent, list) and key.isdigit() and int(key) < len(parent):
        child = parent[int(key)]
    else:
        found = f"a list of {len(parent)}" if isinstance(parent, list) else repr(parent)
        raise ConfigError(f"-o {override}: '{where}' leads nowhere, '{'.'.join(keys[:-1])}' is {found}")
    return child


class _Loader(yaml.SafeLoader):
    """SafeLoader plus: `!Name {..}` as `{name: Name, ..}`, duplicate keys refused, 1e-3 read as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<, which the SafeLoader merges below
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' stands twice; keep one", key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep=deep)


def _construct_named(loader: _Loader, name: str, node: yaml.Node) -> dict[Any, Any]:
    if isinstance(node, yaml.MappingNode):
        return {"name": name, **loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return {"name": name}
    raise yaml.constructor.ConstructorError(
        None, None, f"!{name} must be followed by a mapping, as in !{name} {{a: 1}}", node.start_mark)


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """YAML 1.1 reads 012 as 10 and 1:30 as 90: nobody who writes that means it."""
    kind = node.tag.rpartition(":")[2]
    value = loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)
    digits = node.value.lstrip("+-")
    if ":" in digits or (kind == "int" and digits.isdigit() and digits[0] == "0" and len(digits) > 1):
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value} is {value} in YAML; write it so, or in quotes if it is text", node.start_mark)
    return int(value) if kind == "int" else float(value)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct_number)
_Loader.add_multi_constructor("!", _construct_named)
# YAML 1.1 reads 1e-3 as a string, since it has no dot: a trap for learning rates.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
