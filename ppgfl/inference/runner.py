"""Exported models inside ppgfl: the very runners of deploy/python/infer.py, which know nothing of ppgfl."""
from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ..errors import ExportError
from ..system import framework, runtime

T = TypeVar("T")
R = TypeVar("R")


@functools.cache
def load_runner() -> ModuleType:
    """The module deploy/python/infer.py: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent.parent
    path = next(p for p in (here.parent / "deploy/python/infer.py", here / "deploy/python/infer.py") if p.is_file())
    module = ModuleType("ppgfl_deploy_python_infer")
    module.__file__ = str(path)
    SourceFileLoader(module.__name__, str(path)).exec_module(module)
    return module


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an exported folder, a model file in it, or an ONNX file."""
    return Path(path).is_dir() or Path(path).suffix in (".pdmodel", ".json", ".onnx")


class ExportedModel:
    """A runner of deploy/python/infer.py that raises ExportError. Its methods are explained there.

    Args:
        path, settings: see `make_runner`.

    Attributes:
        class_names: by class index.
        inputs: the names of the arrays that it takes.
        engine: what really computes: "onednn", "openvino", "native", "gpu" or "onnxruntime".
        description: the file and the settings it really runs with.
        sigma: whether it gives rows [M, 14].
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self.opened = path, settings
        self.runner = runner = _checked(load_runner().open_runner, path, **settings)
        self.class_names: list[str] = runner.class_names
        self.inputs: list[str] = runner.inputs
        self.engine: str = runner.engine
        self.description: str = runner.description
        self.sigma: bool = runner.sigma

    def __reduce__(self) -> tuple[type[ExportedModel], tuple[Any, ...]]:
        return ExportedModel, self.opened

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        return _checked(self.runner, images)

    def prepare(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return _checked(self.runner.prepare, images)

    def detect(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return _checked(self.runner.detect, arrays)

    def run(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return _checked(self.runner.run, arrays)


def make_runner(path: str | os.PathLike[str], **settings: Any) -> ExportedModel:
    """Open an exported model (see `is_exported`).

    Args:
        settings: of `BaseRunner` in deploy/python/infer.py; cpu_threads are the physical cores by default.

    Raises: ExportError.
    """
    infer = load_runner()
    known = list(inspect.signature(infer.BaseRunner).parameters)[1:]
    for name in settings:
        if name not in known:
            raise ExportError(f"{path}: its runner has no setting '{name}'; it has {', '.join(known)}")
    return ExportedModel(path, {"cpu_threads": runtime.physical_cores(), **settings})


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """Yield `function(item)` of each item, in order, made in threads while the caller works on those before; see
    `ahead` of deploy/python/infer.py."""
    infer = load_runner()
    threads = infer.helpers("GPU" if framework.on_gpu() else "CPU", runtime.physical_cores())
    results: Generator[R, None, None] = infer.ahead(function, items, threads, 2 * threads)
    return results


def onnx_runs_on_gpu() -> bool:
    """Whether ONNX Runtime, if it is there, is a build for CUDA."""
    with contextlib.suppress(ImportError):
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return False


def new_lock() -> Any:
    """The lock with which the runners let one thread at a time to a model."""
    return load_runner().ProcessLock()


def _checked(call: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Call, with an ExportError in place of a RunnerError."""
    try:
        return call(*args, **settings)
    except load_runner().RunnerError as error:
        raise ExportError(str(error)) from error
