"""model.onnx -> model_int8.onnx: post-training quantisation of the convolutions, calibrated on photographs."""
from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.dataset import ImageFolder
from ..data.image import read_image
from ..system.log import logger
from ..system.progress import progress
from .runner import make_runner

MOST_IMAGES = 100


def quantize(source: str | os.PathLike[str], target: str | os.PathLike[str],
             images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
    """Write the quantised copy of an ONNX file.

    Weights become int8 with a scale per channel, what goes into a convolution uint8 with the range that it had over the
    images (ONNX Runtime's static quantisation, QDQ format); decoding stays in float32.

    Args:
        source: a `model.onnx` of `onnx_graph.write`.
        target: the file to write.
        images: a folder (searched recursively), a file, or a list of them, like those the model will see; 100 of them,
            evenly chosen, are used.

    Raises: DataError; ImportError without onnxruntime.
    """
    from onnxruntime import quantization

    runner = make_runner(source)
    files = [record["im_file"] for record in ImageFolder(image_dir=images).records]
    files = files[::-(-len(files) // MOST_IMAGES)]
    logger.info("calibrating on %d images", len(files))

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.files = progress(files, total=len(files), what="calibrate")

        def get_next(self) -> dict[str, Any] | None:
            file = next(self.files, None)
            if file is None:
                return None
            arrays = runner.prepare([read_image(file)])
            return {name: arrays[name] for name in runner.inputs}

    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder, _quiet():
        unproven = Path(folder, "model_int8.onnx")
        quantization.quantize_static(
            str(source), str(unproven), Reader(), op_types_to_quantize=["Conv"], per_channel=True,
            quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8, calibrate_method=quantization.CalibrationMethod.MinMax)
        unproven.replace(Path(target))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's advice to preprocess the graph, which is folded already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
