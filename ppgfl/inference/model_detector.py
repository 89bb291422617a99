"""The detector of a config with weights. Paddle is imported where it is needed: its import takes longer than all the
rest, and a graph of the cache in ONNX Runtime does without it."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ..config.keys import section, setting, skips_corrupt_images, with_weights
from ..data.batch import Sample
from ..data.device import for_device, to_device
from ..errors import ConfigError
from ..readers import build_loader, build_reader
from ..system import framework
from ..weights import calibration
from .detections import split_batch
from .detector import Images, RowDetector, Rows, Stages, prepare_ahead, read_ahead
from .runner import load_runner, new_lock
from .static_model import StaticModel, in_dygraph, load_detection_model

if TYPE_CHECKING:
    from ..precision import Precision
    from .tta import Looks, Views


def of_weights(cfg: dict[str, Any], weights: str | os.PathLike[str] | None, model: Any, reader: str, images: int | None,
               precision: Precision | None, tta: str | None, sigma: bool,
               calibrated: bool) -> tuple[RowDetector, Stages]:
    """The detector of a config with weights and its halves; see `detector.open_detector`."""
    source = "" if model else str(weights or setting(cfg, "weights"))
    views = None if tta is None else _views_of(cfg, tta, reader)
    if model is None:
        model = _load_model(cfg, weights, images, precision, views is None, sigma)
    cfg = with_weights(cfg, weights)
    numbers = _calibration_of(cfg) if calibrated else None
    return _of_model(cfg, model, reader, source, precision, views, numbers)


def _views_of(cfg: dict[str, Any], tta: str, reader: str) -> Views:
    framework.import_paddle()
    from .tta import views_of

    return views_of(tta, build_reader(cfg, reader), reader)


def _calibration_of(cfg: dict[str, Any]) -> dict[str, float]:
    framework.import_paddle()
    from ..build import upstream_scores

    return calibration.needed(setting(cfg, "weights"), upstream_scores(cfg))


def _load_model(cfg: dict[str, Any], weights: str | os.PathLike[str] | None, images: int | None,
                precision: Precision | None, nms: bool, sigma: bool) -> Any:
    if precision is None or precision.level is None:
        return load_detection_model(cfg, weights, images=images, nms=nms, sigma=sigma)
    if setting(cfg, "engine") == "static":
        raise ConfigError("engine: static; a graph computes as it was made, whatever --amp says; set engine to dygraph")
    model = in_dygraph(cfg, weights, sigma)
    precision.apply(model)
    return model


def _of_model(cfg: dict[str, Any], model: Any, reader_name: str, source: str, precision: Precision | None,
              views: Views | None, numbers: dict[str, float] | None) -> tuple[RowDetector, Stages]:
    reader = for_device(build_reader(cfg, reader_name))
    lock = new_lock()
    model.eval()
    is_graph = isinstance(model, StaticModel)
    called = model if is_graph and views is None else _in_paddle(cfg, model, views, precision)

    def run(batch: Any) -> list[Rows]:
        with lock:
            found = split_batch(called(batch))
        return [load_runner().calibrate(rows, **numbers) for rows in found] if numbers else found

    # A graph takes arrays; a reader that leaves something out leaves it to Paddle.
    arrays = is_graph and reader.left_out is None
    stages = Stages(views, run) if views else Stages(
        reader, run if arrays else lambda batch: run(to_device(batch, reader)))

    def detect(images: Images) -> list[Rows]:
        return stages.detect(stages.prepare(images))

    def detect_records(records: Sequence[Sample]) -> Iterator[tuple[Any, Rows]]:
        for batch in build_loader(cfg, reader_name, records).epoch(arrays=arrays):
            yield from zip((records[place]["im_id"] for place in batch["place"].tolist()), run(batch))

    batch_size = section(cfg, reader_name)["batch_size"]
    records = read_ahead(prepare_ahead(stages), skips_corrupt_images(cfg)) if views else detect_records
    return RowDetector(detect, records, batch_size, model.class_names, source), stages


def _in_paddle(cfg: dict[str, Any], model: Any, views: Views | None,
               precision: Precision | None) -> Callable[[Any], dict[str, Any]]:
    """What is called in place of a model: without gradients, in a precision, with the looks of all views."""
    import paddle

    called = model if views is None else _on_looks(cfg, model, views)

    def call(batch: Any) -> dict[str, Any]:
        with paddle.no_grad(), precision.auto_cast() if precision else nullcontext():
            found: dict[str, Any] = called(batch)
        return found

    return call


def _on_looks(cfg: dict[str, Any], model: Any, views: Views) -> Callable[[Looks], dict[str, Any]]:
    """A model (of graphs one that ends before its NMS) called with the looks of all views."""
    import paddle

    from ..build import make_model
    from .graph import Graph

    if isinstance(model, StaticModel):
        decoder = make_model(cfg).decoder
        return lambda looks: views.detect(looks, lambda batch: list(map(paddle.to_tensor, model.run(batch))), decoder)
    graph = Graph(model, nms=False)
    return lambda looks: views.detect(looks, lambda batch: graph(*[batch[key] for key in graph.inputs]), model.decoder)
