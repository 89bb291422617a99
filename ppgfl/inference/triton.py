"""A model repository for NVIDIA's Triton Inference Server.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md

It holds one model of the Python backend, which prepares images and runs model.onnx by deploy/python/infer.py, so that
its rows are the runner's by construction. An ensemble with an ONNX model of its own would need the same Python before
and behind it, and gains where a batcher joins requests: which Triton does only for images of one size.
"""
from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from ..errors import ConfigError
from ..system.log import logger
from .runner import load_runner, make_runner

MARK = "# Written by ppgfl export --triton; another one replaces it."
OUTPUTS = (("boxes", "TYPE_FP32", "-1, 4"), ("scores", "TYPE_FP32", "-1"), ("labels", "TYPE_INT64", "-1"),
           ("names", "TYPE_STRING", "-1"), ("bbox_num", "TYPE_INT64", "-1"))
SIGMA = (("sigma", "TYPE_FP32", "-1, 4"), ("top2", "TYPE_FP32", "-1, 4"))


def check(repository: str | os.PathLike[str], name: str) -> None:
    """Whether a model of that name may be written there, now rather than after the export. Raises ConfigError."""
    folder = Path(repository)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ConfigError(f"--triton: the model would be called {name!r}, after its config; Triton's names have "
                          "letters, digits, `.`, `_` and `-`: rename the config")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--triton {folder}: it is a file; give a folder")
    config = folder / name / "config.pbtxt"
    if (folder / name).exists() and not (config.is_file() and
                                         config.read_text(encoding="utf-8", errors="replace").startswith(MARK)):
        raise ConfigError(f"--triton {folder}: {folder / name} is there and was not written by this command; move it, "
                          "or give another folder")


def write(repository: str | os.PathLike[str], onnx: str | os.PathLike[str], name: str) -> Path:
    """Write REPOSITORY/NAME: config.pbtxt, and 1/ with model.py, infer.py and model.onnx; an earlier one's place is
    taken at once. Returns the folder of the model.

    Args:
        repository: the folder that `tritonserver --model-repository` gets.
        onnx: a model.onnx of an export.
        name: what clients call the model.

    Raises: ConfigError; ExportError for a file that the runner cannot open.
    """
    check(repository, name)
    sigma = make_runner(onnx, device="CPU").sigma
    Path(repository).mkdir(parents=True, exist_ok=True)
    target = Path(repository) / name
    with tempfile.TemporaryDirectory(prefix=".export_", dir=repository) as temporary:
        model = Path(temporary) / "new"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(config_of(name, sigma), encoding="utf-8")
        infer = Path(str(load_runner().__file__))
        shutil.copyfile(infer, model / "1" / "infer.py")
        shutil.copyfile(infer.parent.parent / "serving" / "triton_model.py", model / "1" / "model.py")
        shutil.copyfile(onnx, model / "1" / "model.onnx")
        if target.exists():
            os.rename(target, Path(temporary) / "old")
        os.rename(model, target)
    logger.info("model repository for Triton: %s", target.resolve())
    return target


def config_of(name: str, sigma: bool) -> str:
    """The text of config.pbtxt, a ModelConfig of Triton's model_config.proto."""
    outputs = ",\n".join(f'  {{ name: "{output}" data_type: {kind} dims: [ {dims} ] }}'
                         for output, kind, dims in (*OUTPUTS, *(SIGMA if sigma else ())))
    return f"""{MARK}
name: "{name}"
backend: "python"
max_batch_size: 0  # a request has any number of images, and images any size

# Files (JPEG, PNG, ...) of N images -> the detections of all of them, one image after the other, best score first:
# boxes x1 y1 x2 y2 in pixels of the image; bbox_num [N] says how many of them each image has.
input [
  {{ name: "image" data_type: TYPE_STRING dims: [ -1 ] }}
]
output [
{outputs}
]

# More instances answer side by side: give each its share of the cores. KIND_GPU takes onnxruntime-gpu.
instance_group [
  {{ count: 1 kind: KIND_CPU }}
]
parameters [
  {{ key: "threshold" value: {{ string_value: "0" }} }},  # lower scores are left out; a request may give its own
  {{ key: "cpu_threads" value: {{ string_value: "0" }} }}  # of an instance; 0: the physical cores
]
"""
