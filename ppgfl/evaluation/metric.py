"""What `metric` of a config measures of results: COCO's twelve numbers, or VOC's one."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config.keys import setting
from ..data.dataset import DetectionDataSet
from ..system import dist
from ..system.log import logger
from . import coco, curves

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

NAMES = {"COCO": coco.METRICS, "VOC": ("mAP",)}
ALL_NAMES = [name for names in NAMES.values() for name in names]


class Measured(NamedTuple):
    """The numbers of results.

    Attributes:
        evaluator: an accumulated `COCOeval`, of which `curves` and `report` are made; None but in process 0.
        metrics: {name: number}, 0 to 1, -1 where there is nothing to find; the first is the one that models are called
            better by.
        per_class: class name -> AP; -1 for a class without a box.
    """

    evaluator: COCOeval | None
    metrics: dict[str, float]
    per_class: dict[str, float]


def names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the numbers that a config asks for; see `Measured.metrics`. Raises ConfigError."""
    return NAMES[setting(cfg, "metric")]


def measure(cfg: Mapping[str, Any], dataset: DetectionDataSet, results: coco.Results) -> Measured:
    """The numbers of results over the images of a data set, also logged. Of several processes only process 0 computes
    them, with its results, and has the evaluator; the others wait for the numbers."""
    if not dist.is_main():
        return Measured(None, *dist.from_main(({}, {})))
    if setting(cfg, "metric") == "VOC":
        found = _voc(dataset, results, setting(cfg, "map_type"))
    else:
        evaluator = coco.coco_evaluator(dataset, results)
        metrics = coco.summarize(evaluator, dataset, classwise=True)
        found = Measured(evaluator, metrics, metrics.pop("per_class"))
    dist.from_main((found.metrics, found.per_class))
    return found


def _voc(dataset: DetectionDataSet, results: coco.Results, map_type: str) -> Measured:
    from .voc import IOU, VOCeval  # takes half a second

    evaluator = coco.accumulated(dataset, results, lambda truth, found: VOCeval(truth, found, map_type))
    per_class = dict(zip(dataset.class_names, map(float, curves.class_ap(evaluator))))
    known = [ap for ap in per_class.values() if ap >= 0]
    value = sum(known) / len(known) if known else -1.0
    logger.info("mean Average Precision  IoU>%.2f  %s   %s", IOU, map_type, f"{value:.3f}" if known else "no objects")
    return Measured(evaluator, {"mAP": value}, per_class)
