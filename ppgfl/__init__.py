"""ppgfl: the Generalized Focal Loss detector (GFL, GFLv2) on PaddlePaddle.

The public names load on first use, so that `import ppgfl` takes hundredths of a second:

    cfg = ppgfl.load_config("configs/gfl/gfl_r50_fpn_1x_coco.yml", overrides=["TestReader.batch_size=4"])
    model = ppgfl.build_model(cfg)
    report = ppgfl.load_weights(model, "gfl_r50_fpn_1x_coco.pdparams")
    metrics = ppgfl.evaluate(cfg, weights="gfl_r50_fpn_1x_coco.pdparams")
    found = ppgfl.Detector("gfl_r50_fpn_1x_coco", weights="gfl_r50_fpn_1x_coco.pdparams")("photo.jpg")
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .system import framework, runtime

if TYPE_CHECKING:  # the names below, for editors and type checkers
    from . import build, config, data, errors, model, optim, targets
    from .build import build_model
    from .config import load_config
    from .errors import CheckpointError, ConfigError, DataError, ExportError, TrainingError
    from .evaluation.evaluate import evaluate
    from .inference.detections import Detections
    from .inference.detector import Detector, open_detector
    from .inference.export import export
    from .training.train import train
    from .weights.checkpoint import load_weights

__version__ = "0.1.0"

runtime.prepare_for_paddle()  # before anything below can import it

# Public name -> the module that holds it.
_NAMES = {
    "load_config": "config",
    "build_model": "build",
    "load_weights": "weights.checkpoint",
    "evaluate": "evaluation.evaluate",
    "train": "training.train",
    "export": "inference.export",
    "Detector": "inference.detector",
    "open_detector": "inference.detector",
    "Detections": "inference.detections",
    "ConfigError": "errors",
    "TrainingError": "errors",
    "ExportError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
_MODULES = {"build", "config", "data", "errors", "model", "optim", "targets"}
# The names of _NAMES, written out for type checkers.
__all__ = ["CheckpointError", "ConfigError", "DataError", "Detections", "Detector", "ExportError", "TrainingError",
           "build_model", "evaluate", "export", "load_config", "load_weights", "open_detector", "train"]


if not TYPE_CHECKING:  # to a type checker it would make every misspelt name a known one
    def __getattr__(name: str) -> Any:
        if name not in {*_NAMES, *_MODULES}:
            raise AttributeError(f"module 'ppgfl' has no attribute '{name}'")
        home = _NAMES.get(name, name)
        if home not in ("config", "errors", "inference.detections", "inference.detector"):  # they need no Paddle
            framework.import_paddle()
        module = importlib.import_module(f".{home}", __name__)
        return getattr(module, name) if name in _NAMES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
