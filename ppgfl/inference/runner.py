"""Exported models inside ppgfl: the very runners of `deploy/`, which know nothing of ppgfl."""
from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ExportError


def load_runner(kind: str = "python") -> Any:
    """The module `deploy/KIND/infer.py`: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent.parent
    path = next(p for p in (here.parent / f"deploy/{kind}/infer.py", here / f"deploy/{kind}/infer.py") if p.is_file())
    spec = importlib.util.spec_from_file_location(f"ppgfl_deploy_{kind}", path)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an exported folder, a model file in it, or an ONNX file."""
    return Path(path).is_dir() or Path(path).suffix in (".pdmodel", ".json", ".onnx")


def make_runner(path: str | os.PathLike[str], **settings: Any) -> Any:
    """A `Runner` of an exported model (see `is_exported`). It raises ExportError, now and when it is called."""
    module: Any
    try:
        module = load_runner("onnxruntime" if Path(path).suffix == ".onnx" else "python")
    except ImportError as error:
        raise ExportError(f"{path}: {error}; pip install onnxruntime") from error

    class Exported(module.Runner):
        def __call__(self, images: Any) -> Any:
            with _as_export_error(module):
                return super().__call__(images)

    known = list(inspect.signature(module.Runner.__init__).parameters)[2:]
    for name in settings:
        if name not in known:
            raise ExportError(f"{path}: its runner has no setting '{name}'; it has {', '.join(known)}")
    with _as_export_error(module):
        return Exported(path, **settings)


@contextmanager
def _as_export_error(module: Any) -> Iterator[None]:
    try:
        yield
    except module.RunnerError as error:
        raise ExportError(str(error)) from error
