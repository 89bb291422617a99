"""Find, read, check and load .pdparams files; say what did not match."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ..system.log import logger
from ..system.text import Lines
from . import class_names, download, safe_pickle, zoo

if TYPE_CHECKING:
    from paddle import Tensor, nn

NAME_TABLE = "StructuredToParameterName@@"  # paddle.save adds it; loading by structure does not need it
CLASS_LAYER = ("head.gfl_head_cls.weight", "head.gfl_head_cls.bias")


@dataclass
class Report:
    """What happened to every entry. Names are those of the model's `state_dict` or of the file."""

    path: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model, not in the file
    unused: list[str] = field(default_factory=list)  # in the file, not in the model
    # (name, shape in the file, shape in the model)
    misshapen: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    class_names: list[str] | None = None  # that the file was trained with; None: it does not say

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unused or self.misshapen)

    def summary(self) -> str:
        """One line."""
        return (f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unused)} unused, "
                f"{len(self.misshapen)} of another shape")

    def table(self, limit: int = 20) -> str:
        """All that did not match, one line each, at most `limit` of a kind."""
        rows = [("missing in the file", name) for name in self.missing[:limit]]
        rows += [("unused", name) for name in self.unused[:limit]]
        rows += [("other shape", f"{name}: {file} in the file, {model} in the model")
                 for name, file, model in self.misshapen[:limit]]
        kinds: tuple[Sequence[Any], ...] = (self.missing, self.unused, self.misshapen)
        hidden = sum(max(0, len(kind) - limit) for kind in kinds)
        lines = [f"  {what:<20} {name}" for what, name in rows]
        return "\n".join(lines + ([f"  ... and {hidden} more"] if hidden else []))


def find(path: str | os.PathLike[str]) -> Path:
    """The file of a checkpoint: a path, with or without .pdparams; an address; or the name of a released model or
    backbone (see `zoo`), which are downloaded once. Raises CheckpointError."""
    text = os.path.expanduser(str(path))
    if download.is_address(text) and text.endswith((".pth", ".pt")):
        raise CheckpointError(f"{text}: is a file of PyTorch; `ppgfl convert {text} NAME.pdparams` makes a .pdparams "
                              "of it, with its config")
    if download.is_address(text):
        return download.fetch(text, verify=safe_pickle.load)
    for candidate in (Path(text), Path(text + ".pdparams")):
        if candidate.is_file():
            return candidate
    address = zoo.address(text)
    if address:
        return download.fetch(address, verify=safe_pickle.load)
    if text in zoo.MODELS:
        model = zoo.MODELS[text]
        raise CheckpointError(f"{text}: a file of {model.source}; ppgfl zoo {text} evaluates it, and ppgfl convert "
                              f"'{model.weights}' {text}.pdparams makes one of ours of it")
    raise CheckpointError(f"{text}: no such weights file (looked for {Path(text).absolute()} and for the same "
                          "with .pdparams added), and no released model of that name "
                          f"({', '.join(model.name for model in zoo.of_paddle())}); set weights=PATH")


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The entries {name: array} of a .pdparams file; see `read_named`."""
    return read_named(path)[0]


def read_named(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The entries {name: array} of a .pdparams file (pickle protocols 2 to 5, with or without a name table), and the
    names of the classes it was trained with, where it has them.

    Raises CheckpointError: see `safe_pickle.load`; also when the file holds anything but named arrays.
    """
    path = find(path)
    state = safe_pickle.load(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not named arrays; is it a .pdparams file?")
    state.pop(NAME_TABLE, None)
    state = {name: _value(entry) for name, entry in state.items()}
    strange = next((name for name, entry in state.items() if not isinstance(entry, np.ndarray)), None)
    if strange is not None:
        raise CheckpointError(f"{path}: entry {strange!r} is a {type(state[strange]).__name__}, not an array; "
                              "is it a .pdparams file?")
    names = state.pop(class_names.ENTRY, None)
    if not state:
        raise CheckpointError(f"{path}: holds no entries")
    return state, None if names is None else class_names.from_array(names, path)


def _value(entry: Any) -> Any:
    """A tensor that paddle pickled inside a container is the pair (name, array)."""
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], np.ndarray):
        return entry[1]
    return entry


def load_weights(model: nn.Layer, path: str | os.PathLike[str], *, strict: bool = True) -> Report:
    """Load a .pdparams file into a model.

    Args:
        model: a paddle Layer.
        path: the file, with or without its ending.
        strict: refuse a file that does not match the model entry for entry; else load what fits.

    Returns:
        A `Report`. With `strict` its lists are empty, or CheckpointError is raised and the model is unchanged.
    """
    path = find(path)
    targets = model.state_dict()
    state, names = read_named(path)
    report, values = match(targets, state, str(path))
    report.class_names = names
    if strict and not report.complete:
        raise CheckpointError(f"{path}: does not fit the model: {report.summary()}; {_likely_cause(report)}", report)
    for name, value in values.items():
        targets[name].set_value(value)
    if not report.complete:
        logger.warning("%s: %s\n%s", path, report.summary(), Lines(report.table()))
    return report


def match(targets: Mapping[str, Tensor], state: Mapping[str, np.ndarray],
          path: str = "") -> tuple[Report, dict[str, np.ndarray]]:
    """Pair a model's `state_dict` with a file's entries.

    Returns: the `Report`, and {name: array of the model's dtype} for every entry that fits.
    Raises: CheckpointError: an entry holds NaN or infinite values, also after float64 became float32.
    """
    report = Report(path)
    state = _fill_aliases(targets, state)
    values = {}
    for name, target in targets.items():
        if name not in state:
            report.missing.append(name)
        elif tuple(state[name].shape) != tuple(target.shape):
            report.misshapen.append((name, list(state[name].shape), list(target.shape)))
        else:
            values[name] = as_float32(state[name]) if "float" in str(target.dtype) else state[name]
            bad = values[name].size - np.count_nonzero(np.isfinite(values[name]))
            if bad:
                raise CheckpointError(f"{path}: entry {name!r}: {bad} of {values[name].size} values are NaN or "
                                      "infinite, so its training diverged; take an earlier checkpoint")
            report.loaded.append(name)
    report.unused = [name for name in state if name not in targets]
    return report, values


def _fill_aliases(targets: Mapping[str, Tensor], state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Let one name of a shared parameter stand for all: GFLv2 stores each DGQP convolution under two."""
    names_of: dict[int, list[str]] = {}
    for name, target in targets.items():
        names_of.setdefault(id(target), []).append(name)
    state = dict(state)
    for names in names_of.values():
        present = [name for name in names if name in state]
        for name in names if present else ():
            state.setdefault(name, state[present[0]])
    return state


def as_float32(array: np.ndarray) -> np.ndarray:
    """float16 and float64 by value; uint16 is how paddle stores bfloat16: the upper half of a float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _likely_cause(report: Report) -> str:
    """What most often leads to such a mismatch, and how to mend it."""
    classes = next((row for row in report.misshapen if row[0] == "head.gfl_head_cls.bias"), None)
    backbone = [n for n in (*report.missing, *report.unused, *(r[0] for r in report.misshapen)) if "backbone." in n]
    if classes and not backbone:
        return (f"the file was trained for {classes[1][0]} class channels, the config has {classes[2][0]}: "
                "set num_classes, or take the file that belongs to this config")
    if not report.loaded or not any(name.startswith("head.") for name in report.loaded):
        return ("the file is no GFL detector (a backbone alone, or another model); take the one that belongs to this "
                "config")
    if backbone:
        return ("the backbones differ (ResNet depth or variant); take the config, or with train --data the --model, "
                "that belongs to this file")
    return "take the config, or with train --data the --model, that belongs to this file"


def load_pretrained(model: nn.Layer, path: str | os.PathLike[str], *, names: Sequence[str] | None = None) -> Report:
    """Load the weights that training starts from: an ImageNet backbone, or a detector.

    A backbone file has no `backbone.` prefix, and its classifier is not used. A detector of other classes fills all
    but the classification layer, which keeps its fresh initialisation; where only their order is another, that layer
    is put into the order of `names`. Anything else must match.

    Args:
        names: of the classes that are to be learnt; None: unknown.

    Returns: the `Report`. Raises: CheckpointError.
    """
    path = find(path)
    state, trained = read_named(path)
    targets = model.state_dict()
    whole = any(name.startswith(("backbone.", "neck.", "head.")) for name in state)
    other_classes = None not in (names, trained) and sorted(names or ()) != sorted(trained or ())
    if whole and names and trained and not other_classes and list(names) != trained:
        for name in CLASS_LAYER:
            state[name] = state[name][[trained.index(each) for each in names]]
        logger.warning("%s: its classes stand in another order; they are matched by name", path)
    if not whole:
        state = {f"backbone.{name}": array for name, array in state.items()}
        targets = {name: target for name, target in targets.items() if name.startswith("backbone.")}
    report, values = match(targets, state, str(path))
    classes = [name for name, _, _ in report.misshapen if name in CLASS_LAYER]
    if other_classes and not classes:
        classes = [name for name in CLASS_LAYER if values.pop(name, None) is not None]
    other = [row for row in report.misshapen if row[0] not in CLASS_LAYER]
    if report.missing or other or (whole and report.unused):
        raise CheckpointError(f"{path}: does not fit the model to be trained: {report.summary()}; "
                              f"{_likely_cause(report)}", report)
    for name, value in values.items():
        targets[name].set_value(value)
    logger.info("%s: %d entries loaded%s%s", path, len(report.loaded),
                f", {len(report.unused)} not used ({', '.join(report.unused[:4])})" if report.unused else "",
                f"; other classes, so these start anew: {', '.join(classes)}" if classes else "")
    return report
