"""The checkpoints of a training run: everything that is needed to go on as if nothing had happened."""
from __future__ import annotations

import io
import os
import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
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


def save_training(folder: Path, name: str, *, weights: Mapping[str, Tensor], optimizer: Optimizer,
                  parameter_names: Mapping[str, str], progress: Mapping[str, Any], ema: EMA | None = None,
                  raw_weights: Mapping[str, Tensor] | None = None,
                  names: Sequence[str] | None = None) -> None:
    """Write `name`.pdparams, .pdopt and, with an EMA, .pdema: the names and contents that PaddleDetection gives them.

    Args:
        weights: {name: tensor} to evaluate with; the EMA's where there is one.
        optimizer: the paddle optimizer.
        parameter_names: {entry: paddle's name of the parameter}: the optimizer's state is filed under the latter, which
            another process may count differently.
        progress: plain values: "epoch" (finished ones), "step", and whatever else training goes on from.
        ema, raw_weights: the `optim.EMA`, and the model's own weights, for `.pdema`.
        names: of the classes, for `.pdparams`.

    A kill leaves the old file or the new one; which files belong together is in `.pdopt` as checksums.
    Raises OSError, on a full disk for example, and leaves what was there.
    """
    parts = {".pdparams": _dump(weights, names)}
    state = {key: _to_numpy(value) for key, value in optimizer.state_dict().items()}
    resume = {**progress, "parameter_names": dict(parameter_names), "class_names": names and list(names)}
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
    return value.numpy() if hasattr(value, "numpy") else value


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
    if not isinstance(resume, dict) or "checksums" not in resume:
        raise CheckpointError(f"{file}: was not written by ppgfl; start from its weights with "
                              f"-o pretrain_weights={stem}.pdparams instead")
    return state, resume


def load_training(stem: Path, *, model: GFL, optimizer: Optimizer, ema: EMA | None,
                  parameter_names: Mapping[str, str]) -> dict[str, Any]:
    """Put everything of a checkpoint back. Returns the `progress` that was saved. Raises CheckpointError."""
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
    suffix = ".pdparams" if ema is None else ".pdema"
    report, values = match(targets, read(f"{stem}{suffix}"), f"{stem}{suffix}")
    if not report.complete:
        raise CheckpointError(f"{stem}{suffix}: does not fit the model: {report.summary()}; resume with the config of "
                              "that run", report)
    for name, value in values.items():
        targets[name].set_value(value)
    optimizer.set_state_dict(_rename(state, resume["parameter_names"], parameter_names))
    if ema is not None:
        ema.step = resume["ema_step"]
        for name, value in resume["ema_average"].items():
            ema.average[name].set_value(value)
    skipped = ("parameter_names", "class_names", "checksums", "ema_step", "ema_average")
    return {key: value for key, value in resume.items() if key not in skipped}


def _rename(state: Mapping[str, Any], old_names: Mapping[str, str], new_names: Mapping[str, str]) -> dict[str, Any]:
    """The optimizer's state under the names that the parameters have in this process."""
    import paddle

    new_of = {old: new_names[entry] for entry, old in old_names.items() if entry in new_names}
    renamed = {}
    for key, value in state.items():
        owner = max((old for old in new_of if key.startswith(f"{old}_")), key=len, default=None)
        name = key if owner is None else new_of[owner] + key[len(owner):]
        renamed[name] = paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
    return renamed
