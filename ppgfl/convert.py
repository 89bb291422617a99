"""`ppgfl convert`: weights of other programs and formats -> .pdparams with a config, and .pdparams <-> .safetensors."""
from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from . import build
from .config import load_config
from .errors import CheckpointError
from .system import atomic_write, runtime
from .system.log import logger
from .system.text import Lines
from .weights import checkpoint, class_names, download, mmdet, mmdet_config, safe_pickle, torch_file

ENDINGS = (".pdparams", ".safetensors")
TORCH_ENDINGS = (".pth", ".pt")
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
               "I8": "i1", "U8": "u1", "BOOL": "?"}  # its dtypes -> numpy's


def convert(source: str, output: str) -> None:
    """Write the weights of a file as `output`, and beside those of a detector of MMDetection its config, OUTPUT.yml.

    Args:
        source: a file of torch.save, a .safetensors, or what `checkpoint.find` takes.
        output: a .pdparams or a .safetensors, which is not there yet.

    Raises:
        CheckpointError: an output that exists or has another ending; a source that is damaged, dangerous or of another
            network. Nothing is written then.
    """
    target = Path(os.path.expanduser(output))
    if target.suffix not in ENDINGS:
        raise CheckpointError(f"{output}: its ending says what is to be written; allowed: {', '.join(ENDINGS)}")
    _must_be_new(target)
    path, content, array = _read(source)
    converted = mmdet.Converted(dict(content))
    if array is not _as_it_is or mmdet.is_mmdet(content):
        converted = mmdet.convert(path, content, array)
    if converted.config and target.suffix != ".pdparams":
        raise CheckpointError(f"{output}: the config of {path} needs a .pdparams; make that, and {target.suffix} of it")
    if converted.config:
        _must_be_new(target.with_suffix(".yml"))
        _write_with_config(converted, target, target.with_suffix(".yml"), path)
    else:
        atomic_write.write_bytes(target, _dump(converted.weights, target))
    logger.info("%s -> %s: %d entries%s", path, target, len(converted.weights), Lines(_table(converted)))


def into_cache(source: Path, name: str) -> Path:
    """The config of a model that was made of a PyTorch file in the cache, converted once; its `weights` are the file's.

    Raises: CheckpointError: see `convert`; also where the file is no detector.
    """
    from filelock import FileLock

    code = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in (mmdet, mmdet_config)))
    target = (runtime.cache_folder() / "converted"
              / f"{name}-{download.sha256(source)[:8]}-{code.hexdigest()[:8]}.pdparams")
    config = target.with_suffix(".yml")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target.is_file() and config.is_file()):
            target.unlink(missing_ok=True)
            config.unlink(missing_ok=True)
            convert(str(source), str(target))
    if not config.is_file():
        raise CheckpointError(f"{source}: is a backbone, not a detector")
    return config


def _must_be_new(path: Path) -> None:
    if os.path.lexists(path):
        raise CheckpointError(f"{path}: is there already; take another name, or move it away")


def _as_it_is(name: str, value: Any) -> np.ndarray:
    return value


def _read(source: str) -> tuple[Path, Mapping[Any, Any], Any]:
    """The file, what is in it, and the function that makes an array of an entry."""
    path, start = Path(os.path.expanduser(source)), b""
    if download.is_address(source) and not source.endswith(ENDINGS):
        path = download.fetch(source, verify=torch_file.read)
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(32)
    kind = safe_pickle.other_format(start)
    if kind == "PyTorch" or (path.suffix in TORCH_ENDINGS and path.is_file()):
        return path, *torch_file.read(path)
    if kind == "safetensors":
        return path, _read_safetensors(path), _as_it_is
    state, names = checkpoint.read_named(source)
    if names:
        state[class_names.ENTRY] = class_names.to_array(names)
    return checkpoint.find(source), state, _as_it_is


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        entries = _safetensors().deserialize(path.read_bytes())
    except (ValueError, _safetensors().SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, or no .safetensors ({error}); download or copy it again") from error
    strange = next((f"entry {name!r} is of {entry['dtype']}" for name, entry in entries
                    if entry["dtype"] not in SAFETENSORS), None)
    if strange:
        raise CheckpointError(f"{path}: {strange}; read are {', '.join(SAFETENSORS)}")
    state = {}
    for name, entry in entries:
        value = np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
        state[name] = checkpoint.as_float32(value) if entry["dtype"] == "BF16" else value
    return state


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise CheckpointError("the package safetensors is missing; pip install ppgfl[safetensors]") from error
    return safetensors


def _dump(weights: Mapping[str, np.ndarray], target: Path) -> bytes:
    if target.suffix == ".pdparams":
        return pickle.dumps(dict(weights), protocol=2)  # as paddle.save, which PaddleDetection calls
    arrays = {name: checkpoint.as_float32(value) if value.dtype == np.uint16 else value
              for name, value in weights.items()}
    return _safetensors().numpy.save({name: np.array(value, order="C") for name, value in arrays.items()})


def _write_with_config(converted: mmdet.Converted, target: Path, config: Path, source: Path) -> None:
    """Both files, after a model of the config has taken all entries."""
    weights = str(target.absolute())
    sections = json.loads(json.dumps(converted.config))  # a list that stands twice is written twice
    text = (f"# Made by ppgfl convert of {json.dumps(source.name)}\n"
            + yaml.safe_dump({**sections, "weights": weights, "pretrain_weights": weights}, sort_keys=False,
                             default_flow_style=None, width=120, allow_unicode=True))
    try:
        atomic_write.write_temporary(target, _dump(converted.weights, target))
        atomic_write.write_temporary(config, text.encode())
        model = build.build_model(load_config(atomic_write.temporary_of(config)))
        arrays = {name: value for name, value in converted.weights.items() if name != class_names.ENTRY}
        report, _ = checkpoint.match(model.state_dict(), arrays, str(source))
        if not report.complete:
            raise CheckpointError(f"{source}: does not fit the model that its entries describe: {report.summary()}",
                                  report)
        os.replace(atomic_write.temporary_of(config), config)
        os.replace(atomic_write.temporary_of(target), target)
    finally:
        for each in (target, config):
            atomic_write.temporary_of(each).unlink(missing_ok=True)


def _table(converted: mmdet.Converted) -> str:
    """What became of the entries, one line each kind; "" of a file whose names stay."""
    if not converted.mapped:
        return ""
    rows = [f"  {len(converted.mapped):>5} mapped"]
    for what, entries in (("dropped", converted.dropped), ("added", converted.added)):
        for why in dict.fromkeys(entries.values()):
            names = [name for name, reason in entries.items() if reason == why]
            rows.append(f"  {len(names):>5} {what}: {why} ({', '.join(names[:2])}{', ...' if names[2:] else ''})")
    return "\n" + "\n".join(rows)
