"""An exported GFL detector in Triton's Python backend: files of images in, detections out.

`ppgfl export --triton DIR` copies this file to DIR/NAME/1/model.py, beside infer.py, which prepares the images and runs
model.onnx in ONNX Runtime: Triton needs numpy, opencv-python-headless and onnxruntime (onnxruntime-gpu for KIND_GPU) in
its Python. The tensors are those of deploy/serving/protocol_v2.py.
"""
from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cv2  # noqa: E402
import infer  # noqa: E402
import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """What Triton calls, from one thread of a process that each instance has for itself."""

    def initialize(self, args: dict[str, str]) -> None:
        """`args` is Triton's: the configuration of config.pbtxt as JSON, and where this instance computes."""
        parameters = {name: value["string_value"] for name, value in
                      json.loads(args["model_config"]).get("parameters", {}).items()}
        gpu = args["model_instance_kind"] == "GPU"
        self.threshold = float(parameters.get("threshold", 0))
        self.runner = infer.open_runner(
            HERE / "model.onnx", device=f"GPU:{args['model_instance_device_id']}" if gpu else "CPU",
            cpu_threads=int(parameters.get("cpu_threads", 0)) or None)
        self.runner([np.zeros((64, 64, 3), np.uint8)])  # before Triton calls it ready

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """The response to one request; what is wrong with it is its own."""
        try:
            threshold = float(json.loads(request.parameters() or "{}").get("threshold", self.threshold))
            files = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
            found = [self.runner([decode(data, number)])[0] for number, data in enumerate(files)]
            outputs = tensors([rows[rows[:, 1] >= threshold] for rows in found], self.runner)
        except Exception as error:  # Triton tells it to the client
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(infer.end_of(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in outputs
                                           if name in request.requested_output_names()])


def decode(data: bytes, number: int) -> np.ndarray:
    """The bytes of a file -> [H, W, 3] uint8 BGR. Raises ValueError."""
    image = None
    with contextlib.suppress(cv2.error):  # of more pixels than allowed, or of nothing
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None or infer.is_truncated(data):
        raise ValueError(f"image {number}: not an image that can be decoded")
    return image


def tensors(found: list[np.ndarray], runner: infer.BaseRunner) -> dict[str, np.ndarray]:
    """Rows [M, 6 or 14] of each image -> the outputs by name."""
    width = 14 if runner.sigma else 6
    rows = np.concatenate([np.zeros((0, width)), *found]).astype(np.float32)
    labels = rows[:, 0].astype(np.int64)
    names = [infer.name_of(int(label), runner.class_names).encode("utf-8", "surrogatepass") for label in labels]
    outputs = {"boxes": rows[:, 2:6], "scores": rows[:, 1], "labels": labels, "names": np.array(names, object),
               "bbox_num": np.array([len(one) for one in found], np.int64)}
    outputs.update({"sigma": rows[:, 6:10], "top2": rows[:, 10:14]} if runner.sigma else {})
    return {name: np.ascontiguousarray(values) for name, values in outputs.items()}
