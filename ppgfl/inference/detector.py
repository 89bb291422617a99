"""The one way from images to detections, whatever runs the model: dygraph, a static graph, an exported folder, an ONNX
file, all of them also slice by slice."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union, overload

import cv2
import numpy as np
import paddle

from ..build import build_dataset, build_loader, build_reader, check, load_model, skips_corrupt_images
from ..classes import with_weights
from ..config import load_config
from ..config.keys import section, setting
from ..config.load import is_run
from ..data.batch import Batch, Sample
from ..data.device import for_device, to_device
from ..data.image import read_image
from ..data.loader import read_images
from ..errors import ConfigError, DataError
from ..precision import Precision
from ..system import runtime
from ..system.log import logger
from .detections import Detections, split_batch
from .runner import ahead, is_exported, make_runner, new_lock, onnx_runs_on_gpu
from .slicing import Place, Slicing, combine, cut, detect_sliced, groups_of_slices, moved
from .static_model import load_detection_model

if TYPE_CHECKING:
    import PIL.Image

Image = Union[str, os.PathLike[str], np.ndarray, "PIL.Image.Image"]  # a file, [H, W, 3] uint8 BGR, or Pillow's
PILLOW_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # 8 bits
Images = Sequence[np.ndarray]
Rows = np.ndarray


@dataclass(frozen=True)
class RowDetector:
    """A detector of whatever kind; see `open_detector`. Several threads may call it.

    Attributes:
        detect: images [H, W, 3] uint8 BGR -> of each its detections [M, 6]: class index, score, x1, y1, x2, y2 in
            pixels of the image.
        detect_records: records with `im_id` and `im_file` (see `ppgfl.data`) -> yields (im_id, detections [M, 6]);
            images are read and prepared ahead, while the model runs.
        batch_size: images that `detect` should be called with at a time.
        class_names: by class index; None: unknown, so those of the config's data set.
        source: what it was opened from, for a report: a file of weights, an exported model with its settings.
    """

    detect: Callable[[Images], list[Rows]]
    detect_records: Callable[[Sequence[Sample]], Iterator[tuple[Any, Rows]]]
    batch_size: int = 1
    class_names: list[str] | None = None
    source: str = ""

    def __call__(self, images: Images) -> list[Rows]:
        return self.detect(images)

    def __reduce__(self) -> Any:
        raise TypeError("what open_detector returns holds an open model, which cannot be pickled or copied; call "
                        "open_detector in each process, or use ppgfl.Detector, which opens its model anew")


def open_detector(cfg: dict[str, Any], *, weights: str | os.PathLike[str] | None = None, model: Any = None,
                  exported: str | os.PathLike[str] | None = None, runner: dict[str, Any] | None = None,
                  slicing: Slicing | None = None, reader: str = "TestReader", images: int | None = None,
                  precision: Precision | None = None) -> RowDetector:
    """The detector of a config with weights, or of an exported model.

    Args:
        cfg: the dict of `load_config`, checked; of an exported model only `corrupt_images` counts.
        weights: a .pdparams file; without it the config's `weights`.
        model: a model that has its weights already, instead; it is put into evaluation mode.
        exported: an exported folder, a model file in it or a model.onnx, instead: what is deployed, prepared as it does
            there.
        runner: with `exported`: arguments of its runner in deploy/python/infer.py, as {"run_mode": "bf16"}; the device
            is Paddle's by default.
        slicing: look at images slice by slice.
        reader: "TestReader" or "EvalReader": what prepares images for the model.
        images: how many will be looked at; None: unknown. Few are not worth the making of a static graph.
        precision: how the network computes; a `model` is in that precision already. None: in float32.

    Raises: ConfigError, CheckpointError, ExportError.
    """
    skip = skips_corrupt_images(cfg)
    if exported is not None:
        run = make_runner(exported, **{"device": _device_for(exported), **(runner or {})})
        logger.info("running %s", run.description)
        stages = Stages(run.prepare, run.detect)
        detector = RowDetector(run, _read_ahead(stages, skip), class_names=run.class_names, source=run.description)
    else:
        source = "" if model else str(weights or setting(cfg, "weights"))
        if model is None:
            model = _load_model(cfg, weights, images, precision)
        detector, stages = _of_model(cfg, model, reader, source, precision)
    if slicing is None:
        return detector
    whole, batch_size = detector.detect, detector.batch_size

    def detect(images: Images) -> list[Rows]:
        return [detect_sliced(whole, image, slicing, batch_size) for image in images]

    return replace(detector, detect=detect, detect_records=_read_ahead(stages, skip, slicing, batch_size))


class Stages(NamedTuple):
    """The two halves of detection: `detect(prepare(images))`. Threads may prepare while another detects."""

    prepare: Callable[[Images], Batch]
    detect: Callable[[Batch], list[Rows]]


def _device_for(exported: str | os.PathLike[str]) -> str:
    """Paddle's device, as a runner names it; for an ONNX file only where ONNX Runtime can use it too."""
    device = runtime.device().upper()
    if device.startswith("GPU") and Path(exported).suffix == ".onnx" and not onnx_runs_on_gpu():
        logger.info("%s runs on the CPU: this onnxruntime has no CUDAExecutionProvider (pip install onnxruntime-gpu in "
                    "its place)", exported)
        return "CPU"
    return device


def _load_model(cfg: dict[str, Any], weights: str | os.PathLike[str] | None, images: int | None,
                precision: Precision | None) -> Any:
    if precision is None or precision.level is None:
        return load_detection_model(cfg, weights, images=images)
    if setting(cfg, "engine") == "static":
        raise ConfigError("engine: static; a graph computes as it was made, whatever --amp says; set engine to dygraph")
    model = load_model(cfg, weights)
    precision.apply(model)
    return model


def _of_model(cfg: dict[str, Any], model: Any, reader_name: str, source: str,
              precision: Precision | None) -> tuple[RowDetector, Stages]:
    reader = for_device(build_reader(cfg, reader_name))
    lock = new_lock()
    model.eval()

    def run(batch: Mapping[str, Any]) -> list[Rows]:
        with lock, paddle.no_grad(), precision.auto_cast() if precision else nullcontext():
            return split_batch(model(batch))

    stages = Stages(reader, lambda batch: run(to_device(batch, reader)))

    def detect(images: Images) -> list[Rows]:
        return stages.detect(stages.prepare(images))

    def detect_records(records: Sequence[Sample]) -> Iterator[tuple[Any, Rows]]:
        for batch in build_loader(cfg, reader_name, records).epoch():
            yield from zip((records[place]["im_id"] for place in batch["place"].tolist()), run(batch))

    batch_size = section(cfg, reader_name)["batch_size"]
    return RowDetector(detect, detect_records, batch_size, model.class_names, source), stages


def _read_ahead(stages: Stages, skip: bool, slicing: Slicing | None = None,
                batch_size: int = 1) -> Callable[[Sequence[Sample]], Iterator[tuple[Any, Rows]]]:
    """The `detect_records` that reads images and prepares them, or their slices, in threads while the model runs."""
    def parts(records: Sequence[Sample]) -> Iterator[Part]:
        for record, image in read_images(records, skip=skip, read_all=ahead):
            groups = groups_of_slices(image, slicing, batch_size)
            for number, places in enumerate(groups, start=1):
                yield Part(record["im_id"], image, places, number == len(groups))

    def prepared(part: Part) -> tuple[Part, Batch]:
        return part._replace(image=None), stages.prepare(cut(part.image, part.places))

    def detect_records(records: Sequence[Sample]) -> Iterator[tuple[Any, Rows]]:
        found: list[Rows] = []
        with closing(ahead(prepared, parts(records))) as ready:
            for part, arrays in ready:
                rows = stages.detect(arrays)
                found += moved(rows, part.places) if slicing else rows
                if part.is_last:
                    yield part.im_id, combine(np.concatenate(found), slicing) if slicing else found[0]
                    found = []

    return detect_records


class Part(NamedTuple):
    """What of an image is looked at together: its whole, or some of its slices."""

    im_id: Any
    image: Any  # [H, W, 3]; None once it is prepared
    places: list[Place]
    is_last: bool


class Detector:
    """A detector to call, also from several threads. Pickled, it opens its model anew where it is unpickled.

        found = Detector("gfl_r50_fpn_1x_coco", weights="gfl_r50_fpn_1x_coco.pdparams")("photo.jpg")
        found.boxes, found.scores, found.labels, found.names

    Args:
        config: a config file, the name of one shipped with ppgfl, the folder of a training run, whose best weights are
            taken, or an exported model: its folder, or a model.onnx.
        weights: a .pdparams file; without it the config's `weights`.
        overrides: as in `load_config`.
        runner: of an exported model: arguments of its runner in deploy/python/infer.py, as {"run_mode": "bf16"}.
        slicing: a `slicing.Slicing`, to look at images slice by slice.

    Raises: ConfigError, CheckpointError, ExportError.
    """

    def __init__(self, config: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None,
                 overrides: Sequence[str] = (), runner: dict[str, Any] | None = None,
                 slicing: Slicing | None = None) -> None:
        self.made_of = config, weights, tuple(overrides), runner, slicing
        if is_exported(config) and not is_run(config):
            self.detect = open_detector({}, exported=config, runner=runner, slicing=slicing)
            self.class_names = self.detect.class_names or []
            return
        cfg = with_weights(load_config(config, overrides), weights)
        check(cfg)
        runtime.select_device(setting(cfg, "use_gpu"))
        self.detect = open_detector(cfg, weights=weights, slicing=slicing)
        self.class_names = self.detect.class_names or build_dataset(cfg, "TestDataset").class_names

    def __reduce__(self) -> tuple[type[Detector], tuple[Any, ...]]:
        return type(self), self.made_of

    @overload
    def __call__(self, images: Image) -> Detections: ...

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Detections]: ...

    def __call__(self, images: Image | list[Any] | tuple[Any, ...]) -> Detections | list[Detections]:
        """An image, or a list of them -> `Detections`, or a list of them.

        An image is a path, an array [H, W, 3] uint8 BGR (as cv2 reads it; [H, W] for grey), or one of Pillow, as it is:
        a rotation in its EXIF data is applied to paths only. Boxes are in pixels of the image, not clipped to it.
        Raises: DataError: a file that cannot be read, an array of another kind.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        found = []
        for start in range(0, len(images), self.detect.batch_size):
            some = images[start:start + self.detect.batch_size]
            arrays = [_as_array(image) for image in some]
            for image, array, rows in zip(some, arrays, self.detect(arrays)):
                is_path = isinstance(image, (str, os.PathLike))
                given = {"path": os.fsdecode(image)} if is_path else {"image": array}
                found.append(Detections.from_rows(rows, self.class_names, **given))
        return found


def _as_array(image: Image) -> np.ndarray:
    """[H, W, 3] uint8 BGR of what `Detector` is called with. Raises DataError."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    pillow = sys.modules.get("PIL.Image")  # loaded by whoever has an image of it
    if pillow is not None and isinstance(image, pillow.Image):
        if image.mode not in PILLOW_MODES:
            raise DataError(f"cannot detect on a Pillow image of mode {image.mode!r}, whose values may pass 255; scale "
                            "them to 0 to 255, then image.convert('L')")
        image = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    if not isinstance(image, np.ndarray):
        raise DataError(f"cannot detect on a {type(image).__name__}; give a path, an image of Pillow, or a uint8 array "
                        "[H, W, 3], BGR")
    kind = f"cannot detect on a {image.dtype} array of shape {image.shape}"
    if image.dtype != np.uint8:
        raise DataError(f"{kind}; give uint8, 0 to 255: (255 * image).astype('uint8') where its values are 0 to 1")
    if image.ndim == 2 and image.size:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"{kind}; give [H, W, 3] BGR: image[..., :3] of BGRA, image.transpose(1, 2, 0) of [3, H, W]")
    return image
