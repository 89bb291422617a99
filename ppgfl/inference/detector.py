"""The one way from images to detections, whatever runs the model: dygraph, a static graph, an exported folder, an ONNX
file, all of them also slice by slice."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from ..config import load_config
from ..config.keys import setting, skips_corrupt_images, with_weights
from ..config.load import is_run
from ..data.image import Record, read_images
from ..errors import ConfigError
from ..system import framework
from ..system.log import logger
from .arrays import Image, as_array
from .detections import Detections
from .runner import ahead, is_exported, make_runner, onnx_runs_on_gpu
from .slicing import Place, Slicing, combine, cut, detect_sliced, groups_of_slices, moved
from .video import RECONNECTS, frames

if TYPE_CHECKING:
    from ..precision import Precision

Images = Sequence[np.ndarray]
Rows = np.ndarray
Pairs = Iterable[tuple[Any, np.ndarray]]
Prepared = Any  # a batch, or the `tta.Looks` of all views


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
        ahead: what `stream` calls, with images that are prepared ahead; None: `stream` prepares each in its turn.
    """

    detect: Callable[[Images], list[Rows]]
    detect_records: Callable[[Sequence[Record]], Iterator[tuple[Any, Rows]]]
    batch_size: int = 1
    class_names: list[str] | None = None
    source: str = ""
    ahead: Callable[[Pairs], Iterator[tuple[Any, Rows]]] | None = None

    def __call__(self, images: Images) -> list[Rows]:
        return self.detect(images)

    def stream(self, pairs: Pairs) -> Iterator[tuple[Any, Rows]]:
        """Pairs (anything, image [H, W, 3] uint8 BGR), as many as come -> yields (that, detections [M, 6])."""
        return self.ahead(pairs) if self.ahead else ((key, self.detect([image])[0]) for key, image in pairs)

    def __reduce__(self) -> Any:
        raise TypeError("what open_detector returns holds an open model, which cannot be pickled or copied; call "
                        "open_detector in each process, or use ppgfl.Detector, which opens its model anew")


def open_detector(cfg: dict[str, Any], *, weights: str | os.PathLike[str] | None = None, model: Any = None,
                  exported: str | os.PathLike[str] | None = None, runner: dict[str, Any] | None = None,
                  slicing: Slicing | None = None, reader: str = "TestReader", images: int | None = None,
                  precision: Precision | None = None, tta: str | None = None, sigma: bool = False,
                  calibrated: bool = False) -> RowDetector:
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
        tta: test-time augmentation, as "flip,0.8,1.25": look at images mirrored, too, and in sizes that are the
            reader's by these factors, beside its own. Not of an exported model.
        sigma: rows are [M, 14]: behind the box the standard deviations of x1, y1, x2, y2 in pixels of the image, and
            top2 of each (see `detections.Detections`). A `model` and an export say themselves whether they are.
        calibrated: scores and sigmas as the calibration of the weights, or in the export, makes them.

    Raises: ConfigError, CheckpointError, ExportError.
    """
    skip = skips_corrupt_images(cfg)
    if exported is not None:
        if tta is not None:
            raise ConfigError(f"tta: {exported} is an exported model and gives what its NMS has left; NMS has to come "
                              "after all views; use the weights it was made from, with their config")
        run = make_runner(exported, **{"device": _device_for(exported), "calibrated": calibrated, **(runner or {})})
        if sigma and not run.sigma:
            raise ConfigError(f"sigma: {exported} gives boxes alone; export it again with -o export.sigma=true")
        logger.info("running %s", run.description)
        stages = Stages(run.prepare, run.detect)
        detector = RowDetector(run, read_ahead(prepare_ahead(stages), skip), class_names=run.class_names,
                               source=run.description)
    else:
        if framework.can_use_gpus():  # its device decides what runs
            framework.import_paddle()
        from .model_detector import of_weights

        detector, stages = of_weights(cfg, weights, model, reader, images, precision, tta, sigma, calibrated)
    if slicing is None:
        return replace(detector, ahead=prepare_ahead(stages))
    whole, batch_size = detector.detect, detector.batch_size

    def detect(images: Images) -> list[Rows]:
        return [detect_sliced(whole, image, slicing, batch_size) for image in images]

    ahead_of = prepare_ahead(stages, slicing, batch_size)
    return replace(detector, detect=detect, detect_records=read_ahead(ahead_of, skip), ahead=ahead_of)


class Stages(NamedTuple):
    """The two halves of detection: `detect(prepare(images))`. Threads may prepare while another detects."""

    prepare: Callable[[Images], Prepared]
    detect: Callable[[Any], list[Rows]]


def _device_for(exported: str | os.PathLike[str]) -> str:
    """Paddle's device, as a runner names it; for an ONNX file only where ONNX Runtime can use it too."""
    if Path(exported).suffix != ".onnx":
        framework.import_paddle()
    elif not onnx_runs_on_gpu():
        if framework.on_gpu():
            logger.info("%s runs on the CPU: this onnxruntime has no CUDAExecutionProvider (pip install "
                        "onnxruntime-gpu in its place)", exported)
        return "CPU"
    return framework.device().upper()


def read_ahead(detect_pairs: Callable[[Pairs], Iterator[tuple[Any, Rows]]],
               skip: bool) -> Callable[[Sequence[Record]], Iterator[tuple[Any, Rows]]]:
    """The `detect_records` that reads images in threads, too."""
    return lambda records: detect_pairs((record["im_id"], image) for record, image in
                                        read_images(records, skip=skip, read_all=ahead))


def prepare_ahead(stages: Stages, slicing: Slicing | None = None,
                  batch_size: int = 1) -> Callable[[Pairs], Iterator[tuple[Any, Rows]]]:
    """The `RowDetector.stream` that prepares images, or their slices, in threads while the model runs."""
    def parts(pairs: Pairs) -> Iterator[Part]:
        for key, image in pairs:
            groups = groups_of_slices(image, slicing, batch_size)
            for number, places in enumerate(groups, start=1):
                yield Part(key, image, places, number == len(groups))

    def prepared(part: Part) -> tuple[Part, Prepared]:
        return part._replace(image=None), stages.prepare(cut(part.image, part.places))

    def detect_pairs(pairs: Pairs) -> Iterator[tuple[Any, Rows]]:
        found: list[Rows] = []
        with closing(ahead(prepared, parts(pairs))) as ready:
            for part, arrays in ready:
                rows = stages.detect(arrays)
                found += moved(rows, part.places) if slicing else rows
                if part.is_last:
                    yield part.key, combine(np.concatenate(found), slicing) if slicing else found[0]
                    found = []

    return detect_pairs


class Part(NamedTuple):
    """What of an image is looked at together: its whole, or some of its slices."""

    key: Any
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
        tta: test-time augmentation, as "flip,0.8"; see `open_detector`.
        sigma, calibrated: see `open_detector`.

    Raises: ConfigError, CheckpointError, ExportError.
    """

    def __init__(self, config: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None,
                 overrides: Sequence[str] = (), runner: dict[str, Any] | None = None,
                 slicing: Slicing | None = None, tta: str | None = None, sigma: bool = False,
                 calibrated: bool = False) -> None:
        self.made_of = config, weights, tuple(overrides), runner, slicing, tta, sigma, calibrated
        if is_exported(config) and not is_run(config):
            self.detect = open_detector({}, exported=config, runner=runner, slicing=slicing, tta=tta,
                                        sigma=sigma, calibrated=calibrated)
            self.class_names = self.detect.class_names or []
            return
        from ..checked import check
        from ..readers import build_dataset

        cfg = with_weights(load_config(config, overrides), weights)
        check(cfg)
        framework.select_device(setting(cfg, "use_gpu"))
        self.detect = open_detector(cfg, weights=weights, slicing=slicing, tta=tta, sigma=sigma, calibrated=calibrated)
        self.class_names = self.detect.class_names or build_dataset(cfg, "TestDataset").class_names

    def __reduce__(self) -> tuple[type[Detector], tuple[Any, ...]]:
        return type(self), self.made_of

    @overload
    def __call__(self, images: Image, channels: str = "BGR") -> Detections: ...

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], channels: str = "BGR") -> list[Detections]: ...

    def __call__(self, images: Image | list[Any] | tuple[Any, ...],
                 channels: str = "BGR") -> Detections | list[Detections]:
        """An image, or a list of them -> `Detections`, or a list of them.

        An image is a path, an array [H, W, 3] uint8 BGR (as cv2 reads it; [H, W] for grey), or one of Pillow, as it is:
        a rotation in its EXIF data is applied to paths only. `channels` says what an array's are instead: "RGB",
        "BGRA", "RGBA", "GRAY" ([H, W] or [H, W, 1]). Boxes are in pixels of the image, not clipped to it.
        Raises: DataError: a file that cannot be read, an array of another kind.
        """
        if not isinstance(images, (list, tuple)):
            return self([images], channels)[0]
        found = []
        for start in range(0, len(images), self.detect.batch_size):
            some = images[start:start + self.detect.batch_size]
            arrays = [as_array(image, channels) for image in some]
            for image, array, rows in zip(some, arrays, self.detect(arrays)):
                is_path = isinstance(image, (str, os.PathLike))
                given = {"path": os.fsdecode(image)} if is_path else {"image": array}
                found.append(Detections.from_rows(rows, self.class_names, **given))
        return found


    def stream(self, source: Any, every: int = 1, *, reconnects: int = RECONNECTS,
               channels: str = "BGR") -> Iterator[tuple[np.ndarray, Detections]]:
        """Yield (frame [H, W, 3] uint8 BGR, its `Detections`, with `frame` and `time` of a video), in constant memory;
        frames are read and prepared ahead.

        Args:
            source, every, reconnects: see `video.frames`: the file of a video, a camera's index, the address of a
                stream or an image, an image, a folder, a pattern, a list; and every how many frames of a video to take.
            channels: of arrays in a list, as of `__call__`.

        Raises: DataError: nothing is there, a stream that stays broken.
        """
        with closing(frames(source, every, reconnects, read=lambda image: as_array(image, channels))) as found:
            for frame, rows in self.detect.stream((frame, frame.image) for frame in found):
                yield frame.image, frame.detections(rows, self.class_names)
