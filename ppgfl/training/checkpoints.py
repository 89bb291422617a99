"""The checkpoints of a training run: everything that is needed to go on as if nothing had happened."""
from __future__ import annotations

import io
import os
import pickle
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..optim import schedule_of
from ..system.atomic_write import temporary_of, write_temporary
from ..system.log import logger
from ..weights import class_names, safe_pickle
from ..weights.checkpoint import NAME_TABLE, match, read

if TYPE_CHECKING:
    from paddle import Tensor
    from paddle.optimizer import Optimizer

    from ..model.gfl import GFL
    from ..optim import EMA

SUFFIXES = (".pdparams", ".pdopt", ".pdema")
MASTERS = "master_weights"  # of an optimizer's state: the float32 copies of parameters in half precision
MASTER_NAME = re.compile(r"_fp32_master_\d+")  # what Paddle appends to a parameter's name for such a copy


def save_training(folder: Path, name: str, *, weights: Mapping[str, Tensor], optimizer: Optimizer,
                  parameter_names: Mapping[str, str], progress: Mapping[str, Any], ema: EMA | None = None,
                  raw_weights: Mapping[str, Tensor] | None = None,
                  names: Sequence[str] | None = None) -> None:
    """Write `name`.pdparams, .pdopt and, with an EMA, .pdema: the names and contents that PaddleDetection gives them.

    Args:
        weights: {name: tensor} to evaluate with; the EMA's where there is one.
        optimizer: the paddle optimizer.
        parameter_names: {entry: paddle's name of the parameter}: the optimizer's state is filed under the latter, in
            the file as `counted_anew`.
        progress: plain values: "epoch" (finished ones), "step", and whatever else training goes on from.
        ema, raw_weights: the `optim.EMA`, and the model's own weights, for `.pdema`.
        names: of the classes, for `.pdparams`.

    Of a model in half precision `weights` and `raw_weights` are its float32 copies: a checkpoint says nothing of the
    precision that it was trained in. A kill leaves the old file or the new one; which files belong together is in
    `.pdopt` as checksums.
    Raises OSError, on a full disk for example, and leaves what was there.
    """
    parts = {".pdparams": _dump(weights, names)}
    counted = counted_anew(parameter_names)
    state = {key: value for key, value in optimizer.state_dict().items() if key != MASTERS}
    state = _rename(_to_numpy(state), parameter_names, counted)
    resume = {**progress, "parameter_names": counted, "class_names": names and list(names)}
    if ema is not None and raw_weights is not None:
        parts[".pdema"] = _dump(raw_weights)
        resume["ema_step"] = ema.step
        resume["ema_average"] = {key: value.numpy() for key, value in ema.average.items()}
    resume["checksums"] = {suffix: zlib.crc32(data) for suffix, data in parts.items()}
    parts[".pdopt"] = _pickle({**state, "last_epoch": progress["epoch"], "ppgfl": resume})
    try:
        for suffix, data in parts.items():
            write_temporary(folder / f"{name}{suffix}", data, sync=True)
    except OSError:
        for suffix in parts:
            temporary_of(folder / f"{name}{suffix}").unlink(missing_ok=True)
        raise
    for suffix in parts:
        os.replace(temporary_of(folder / f"{name}{suffix}"), folder / f"{name}{suffix}")


def _dump(state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> bytes:
    arrays = {key: (value.astype("float32") if value.is_floating_point() else value).numpy()
              for key, value in state.items()}
    if names is not None:
        arrays[class_names.ENTRY] = class_names.to_array(names)
    return _pickle({**arrays, NAME_TABLE: {key: value.name for key, value in state.items()}})


_PythonPickler: Any = pickle._Pickler  # the one written in Python, whose steps can be changed


class _Pickler(_PythonPickler):
    """Spells numpy's functions as every numpy can read them; numpy 2 would write names that 1.23 does not have."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None) or ""
        if not module.startswith("numpy._core"):
            super().save_global(obj, name)
            return
        self.save(module.replace("numpy._core", "numpy.core"))
        self.save(name or obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _pickle(content: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=4).dump(content)
    return file.getvalue()


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_numpy(each) for key, each in value.items()}
    return value.numpy() if hasattr(value, "numpy") else value


def counted_anew(parameter_names: Mapping[str, str]) -> dict[str, str]:
    """{entry: paddle's name} as in a process whose first layers are the model's, which is what PaddleDetection's are:
    conv2d_0.w_0 for conv2d_75.w_0. Paddle numbers the layers of each kind in the order in which they are made."""
    numbers: dict[str, list[int]] = {}  # of the layers, by kind
    for layer in {name.partition(".")[0] for name in parameter_names.values() if "." in name}:
        kind, _, number = layer.rpartition("_")
        numbers.setdefault(kind, []).append(int(number))
    ranks = {f"{kind}_{number}": f"{kind}_{rank}" for kind, found in numbers.items()
             for rank, number in enumerate(sorted(found))}

    def rename(name: str) -> str:
        layer, dot, parameter = name.partition(".")
        return ranks.get(layer, layer) + dot + parameter

    return {entry: rename(name) for entry, name in parameter_names.items()}


def find_training(path: str | os.PathLike[str] | None, folder: Path) -> Path | None:
    """The checkpoint to resume from, as a path without ending.

    Args:
        path: such a path, one of its files, a folder, or None for the newest complete one in `folder`.

    Returns: None when no path was given and `folder` holds no complete checkpoint.
    Raises: CheckpointError: what `path` names is not there or is not complete.
    """
    if path and not Path(path).is_dir():
        stem = Path(str(path)[:-len(Path(path).suffix)] if Path(path).suffix in SUFFIXES else path)
        _check_complete(stem)
        return stem
    folder = Path(path or folder)
    candidates = sorted(folder.glob("*.pdopt"), key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
    for stem in (file.with_suffix("") for file in candidates if file.stem != "best_model"):
        try:
            _check_complete(stem)
            return stem
        except CheckpointError as error:
            logger.warning("not resumed from: %s", error)
    if path:
        raise CheckpointError(f"{folder}: no complete checkpoint (NAME.pdparams with NAME.pdopt) to resume from")
    return None


def _check_complete(stem: Path) -> None:
    resume = _read_optimizer(stem)[1]
    for suffix, checksum in resume["checksums"].items():
        file = Path(f"{stem}{suffix}")
        if not file.is_file() or zlib.crc32(file.read_bytes()) != checksum:
            raise CheckpointError(f"{file}: absent, or not of the same moment as {stem}.pdopt; resume from another one")


def _read_optimizer(stem: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = Path(f"{stem}.pdopt")
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; --resume needs NAME.pdparams and NAME.pdopt of a training run")
    state = safe_pickle.load(file)
    resume = state.pop("ppgfl", None) if isinstance(state, dict) else None
    if isinstance(resume, dict) and "checksums" in resume:
        return state, resume
    schedule = state.get("LR_Scheduler") if isinstance(state, dict) else None
    if isinstance(schedule, dict) and isinstance(schedule.get("last_epoch"), int) and isinstance(
            state.get("last_epoch"), int):
        return _read_paddledetection(stem, state)
    raise CheckpointError(f"{file}: was written by neither ppgfl nor PaddleDetection; start from its weights with "
                          f"-o pretrain_weights={stem}.pdparams instead")


def _read_paddledetection(stem: Path, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimizer's state of a checkpoint of PaddleDetection, and what else it says of the run, in our words.

    Its releases make the layers in different orders (a bottleneck's shortcut is the first up to 2.6.0, the last since),
    but the file of the model's own weights holds the name of each parameter.
    """
    arrays = {key: value[1] if isinstance(value, tuple) and len(value) == 2 else value for key, value in state.items()
              if key not in (NAME_TABLE, "LR_Scheduler")}
    files = [Path(f"{stem}{suffix}") for suffix in (".pdparams", ".pdema")]
    average = files[1].is_file()
    keys = [key for key, value in arrays.items() if isinstance(value, np.ndarray)]
    names = next((table for table in map(_name_table, files if average else files[:1])
                  if all(_owner(key, table.values()) for key in keys)), None)
    if not names:
        raise CheckpointError(f"{files[0]}: does not name the parameters as {stem}.pdopt does ({NAME_TABLE}), so which "
                              "layer a part of the optimizer's state belongs to is unknown; start from its weights "
                              f"with -o pretrain_weights={files[0]} instead")
    step = state["LR_Scheduler"]["last_epoch"]
    resume = {"epoch": state["last_epoch"], "step": step, "checksums": {}, "parameter_names": names}
    if average:
        # PaddleDetection: it goes on from the corrected average, as if that had been the running one
        resume.update(ema_step=step, ema_average=read(files[0]))
    return arrays, resume


def _name_table(file: Path) -> dict[str, str]:
    """{entry: paddle's name} in a file of weights; for a copy of a model, which PaddleDetection may save, its names."""
    content = safe_pickle.load(file)
    table = content.get(NAME_TABLE) if isinstance(content, dict) else None
    table = table if isinstance(table, dict) else {}
    return {entry: str(name).partition("_deepcopy_")[0] for entry, name in table.items()}


def load_training(stem: Path, *, model: GFL, optimizer: Optimizer, ema: EMA | None,
                  parameter_names: Mapping[str, str]) -> dict[str, Any]:
    """Put everything of a checkpoint back. Returns the `progress` that was saved; of PaddleDetection's the epoch and
    the step. Raises CheckpointError; the model is unchanged then."""
    state, resume = _read_optimizer(stem)
    if (ema is not None) != ("ema_average" in resume):
        raise CheckpointError(f"{stem}.pdopt: was saved {'with' if ema is None else 'without'} an EMA; set use_ema to "
                              f"{str(ema is None).lower()} to resume")
    trained, listed = resume.get("class_names"), model.class_names
    if trained and listed and trained != listed:
        raise CheckpointError(f"{stem}: was trained with the classes {', '.join(trained)}, the training set lists "
                              f"{', '.join(listed)}; resume with the annotations of that run, or start from its "
                              f"weights with -o pretrain_weights={stem}.pdparams")
    targets = model.state_dict()
    raw = f"{stem}{'.pdparams' if ema is None else '.pdema'}"
    values = _fitting(targets, read(raw), raw)
    averages = _fitting(ema.average, resume["ema_average"], f"{stem}: EMA") if ema is not None else {}
    names = resume["parameter_names"]
    # PaddleDetection: with O2 the weights are rounded, and the copies stand here under names of their own
    masters = state.pop(MASTERS, {})
    values.update({entry: masters[names[entry]] for entry in values if names.get(entry) in masters})
    state = {MASTER_NAME.sub("", key): value for key, value in state.items()}
    _check_owners(state, {names[entry]: target for entry, target in targets.items() if entry in names}, f"{stem}.pdopt")
    state = _rename(state, names, parameter_names)

    for name, value in values.items():
        targets[name].set_value(value)
    if "LR_Scheduler" not in state:
        schedule = schedule_of(optimizer)
        schedule.step(resume["step"])
        state["LR_Scheduler"] = schedule.state_dict()
    optimizer.set_state_dict(_to_tensors(state))
    if ema is not None:
        ema.step = resume["ema_step"]
        for name, value in averages.items():
            ema.average[name].set_value(value)
    skipped = ("parameter_names", "class_names", "checksums", "ema_step", "ema_average")
    return {key: value for key, value in resume.items() if key not in skipped}


def _fitting(targets: Mapping[str, Tensor], entries: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    report, values = match(targets, entries, where)
    if not report.complete:
        raise CheckpointError(f"{where}: does not fit the model: {report.summary()}; resume with the config of that "
                              "run", report)
    return values


def _rename(state: Mapping[str, Any], old_names: Mapping[str, str], new_names: Mapping[str, str]) -> dict[str, Any]:
    """The optimizer's state with each parameter's part under another name of it; the rest, as the schedule's, stays."""
    new_of = {old: new_names[entry] for entry, old in old_names.items() if entry in new_names}
    renamed = {}
    for key, value in state.items():
        owner = _owner(key, new_of)
        renamed[key if owner is None else new_of[owner] + key[len(owner):]] = value
    return renamed


def _owner(key: str, names: Iterable[str]) -> str | None:
    """The parameter that a part of an optimizer's state belongs to: "conv2d_0.w_0" of "conv2d_0.w_0_velocity_0"."""
    return max((name for name in names if key == name or key.startswith(f"{name}_")), key=len, default=None)


def _check_owners(state: Mapping[str, Any], parameters: Mapping[str, Tensor], file: str) -> None:
    """Raise a CheckpointError unless each array belongs to a parameter of its shape, and each that learns has one."""
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    owners = {key: _owner(key, parameters) for key in arrays}
    wrong = [key for key, owner in owners.items()
             if owner is None or (arrays[key].size > 1 and list(arrays[key].shape) != list(parameters[owner].shape))]
    without = [name for name, value in parameters.items() if not value.stop_gradient and name not in owners.values()]
    if wrong or (arrays and without):
        raise CheckpointError(f"{file}: its state of the optimizer is not that of this model's layers ({len(wrong)} of "
                              f"{len(arrays)} parts fit no layer, {len(without)} layers that learn have none); resume "
                              "with the config of that run")


def _to_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    import paddle

    return {key: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
