"""ppgfl: the Generalized Focal Loss detector (GFL, GFLv2) on PaddlePaddle.

The public names load on first use, so that `import ppgfl` takes hundredths of a second:

    cfg = ppgfl.load_config("configs/gfl/gfl_r50_fpn_1x_coco.yml", overrides=["TestReader.batch_size=4"])
    model = ppgfl.build_model(cfg)
    report = ppgfl.load_weights(model, "gfl_r50_fpn_1x_coco.pdparams")
    metrics = ppgfl.evaluate(cfg, weights="gfl_r50_fpn_1x_coco.pdparams")
    found = ppgfl.Detector("gfl_r50_fpn_1x_coco", weights="gfl_r50_fpn_1x_coco.pdparams")("photo.jpg")
"""
import importlib
import sys
import types

from . import runtime

__version__ = "0.1.0"

runtime.prepare_for_paddle()  # before anything below can import it

_HOMES = {
    "load_config": "config",
    "build_model": "build",
    "load_weights": "checkpoint",
    "evaluate": "evaluate",
    "train": "train",
    "export": "export",
    "Detector": "predict",
    "Detections": "detections",
    "ConfigError": "errors",
    "TrainingError": "errors",
    "ExportError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
_MODULES = {
    "boxes", "build", "checkpoint", "config", "data", "decode", "detections", "draw", "errors", "losses", "model",
    "optim", "predict", "resume", "targets",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in {*_HOMES, *_MODULES}:
        raise AttributeError(f"module 'ppgfl' has no attribute '{name}'")
    home = _HOMES.get(name, name)
    if home not in ("config", "errors"):
        runtime.import_paddle()
    module = importlib.import_module(f".{home}", __name__)
    return getattr(module, name) if name in _HOMES else module


def __dir__():
    return sorted(set(globals()) | set(_HOMES) | _MODULES)


class _Package(types.ModuleType):
    """`ppgfl.evaluate` and `ppgfl.train` are the functions, though importing their modules binds those names too."""

    def __setattr__(self, name, value):
        same_name = _HOMES.get(name) == name and isinstance(value, types.ModuleType)
        super().__setattr__(name, getattr(value, name) if same_name else value)


sys.modules[__name__].__class__ = _Package
