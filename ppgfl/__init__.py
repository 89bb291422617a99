"""ppgfl: the Generalized Focal Loss detector (GFL, GFLv2) on PaddlePaddle.

The public names load on first use, so that `import ppgfl` costs milliseconds:

    cfg = ppgfl.load_config("configs/gfl/gfl_r50_fpn_1x_coco.yml", overrides=["TestReader.batch_size=4"])
    model = ppgfl.build_model(cfg)
    report = ppgfl.load_weights(model, "gfl_r50_fpn_1x_coco.pdparams")
    metrics = ppgfl.evaluate(cfg, weights="gfl_r50_fpn_1x_coco.pdparams")
    found = ppgfl.Detector("gfl_r50_fpn_1x_coco", weights="gfl_r50_fpn_1x_coco.pdparams")("photo.jpg")
"""
import importlib

from . import runtime

__version__ = "0.1.0"

runtime.prepare_cpu()  # before anything below can import paddle

_HOMES = {
    "load_config": "config",
    "build_model": "build",
    "load_weights": "checkpoint",
    "evaluate": "evaluate",
    "Detector": "predict",
    "Detections": "detections",
    "ConfigError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
_MODULES = {
    "boxes", "build", "checkpoint", "config", "data", "decode", "detections", "draw", "errors", "model", "predict",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if _HOMES.get(name, name) not in ("config", "errors") and name in {*_HOMES, *_MODULES}:
        runtime.import_paddle()
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'ppgfl' has no attribute '{name}'")
    # Importing ppgfl.evaluate also binds the module to the name `evaluate`: the public function wins.
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOMES) | _MODULES)
