"""Exported folders inside ppgfl: the very runner of `deploy/python/infer.py`, which knows nothing of ppgfl."""
import importlib.util
from pathlib import Path

from .errors import ExportError


def load_runner():
    """The module `deploy/python/infer.py`: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent
    path = next(p for p in (here.parent / "deploy/python/infer.py", here / "deploy/python/infer.py") if p.is_file())
    spec = importlib.util.spec_from_file_location("ppgfl_deploy_infer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_runner(folder, **settings):
    """A `Runner` of an exported folder; its errors become ExportError."""
    module = load_runner()
    try:
        return module.Runner(folder, **settings)
    except module.RunnerError as error:
        raise ExportError(str(error)) from error
