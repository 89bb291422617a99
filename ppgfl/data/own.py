"""Transforms that a user has written: a class in a file of their own, named in a config as `my_ops.py:Blur`."""
from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, nearest
from .augment.base import PER_BOX
from .batch import Sample
from .image import is_out_of_memory


class OwnTransform:
    """A user's transform, made from its file wherever a worker process needs it, and checked after each call.

    Args:
        name: "FILE.py:Class".
        args: of the class.

    Raises: ConfigError: the file cannot be read, has no such class, or the class does not take these arguments.
    """

    def __init__(self, name: str, args: Mapping[str, Any]) -> None:
        self.name = name
        self.args = dict(args)
        cls = class_of(name)
        try:
            self.transform: Callable[..., None] = cls(**self.args)
        except Exception as error:
            raise ConfigError(_told(name, error)) from error
        if not callable(self.transform):
            raise ConfigError(f"{name}: has no __call__(self, sample, rng); it must change the sample there")

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnTransform, (self.name, self.args)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None:
        try:
            returned: object = self.transform(sample, rng)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise DataError(_told(self.name, error)) from error
        wrong = "it returned something; it must change the sample instead" if returned is not None else _fault(sample)
        if wrong:
            raise DataError(f"{self.name}: after it, {sample.get('im_file', 'a sample')} is no sample: {wrong}")


def class_of(name: str) -> type:
    """The class of "FILE.py:Class". Raises ConfigError."""
    path, _, wanted = name.rpartition(":")
    module = _module(name, path)
    found = getattr(module, wanted, None)
    if not isinstance(found, type):
        known = [key for key, value in vars(module).items() if isinstance(value, type)
                 and value.__module__ == module.__name__]
        raise ConfigError(f"{name}: {path} has no class {wanted}, {nearest(wanted, known)}")
    return found


def _module(name: str, path: str) -> ModuleType:
    """The module of a file, read once in each process."""
    known = f"ppgfl_own_{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    if known not in sys.modules:
        specification = importlib.util.spec_from_file_location(known, path)
        assert specification is not None
        assert specification.loader is not None
        module = sys.modules[known] = importlib.util.module_from_spec(specification)
        try:
            specification.loader.exec_module(module)
        except Exception as error:
            del sys.modules[known]
            raise ConfigError(_told(name, error)) from error
    return sys.modules[known]


def _told(name: str, error: Exception) -> str:
    """What failed in a user's file, and in which line."""
    path = name.rpartition(":")[0]
    if isinstance(error, OSError) and error.filename == path:
        return f"{name}: {error.strerror}; it is searched beside the config that names it"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    lines = [error.lineno] if isinstance(error, SyntaxError) and error.filename == path else lines
    where = f", line {lines[-1]}" if lines else ""
    return f"{path}{where}, in {name.rpartition(':')[2]}: {type(error).__name__}: {' '.join(str(error).split())}"


def _fault(sample: Sample) -> str:
    """What is wrong with a sample; empty for nothing."""
    image, boxes = sample.get("image"), sample.get("gt_bbox", np.zeros((0, 4)))
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.float32):
        return f"image is {getattr(image, 'dtype', type(image).__name__)}; it must be an array, uint8 or float32"
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]) or not image.size:
        return f"image has the shape {list(image.shape)}; it must be [H, W, 3]"
    if not isinstance(boxes, np.ndarray) or boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        return "gt_bbox is no array [k, 4] of finite numbers"
    counts = {key: len(sample[key]) for key in PER_BOX if key in sample and len(sample[key]) != len(boxes)}
    return "".join(f"gt_bbox has {len(boxes)} boxes, but {key} has {count}" for key, count in list(counts.items())[:1])
