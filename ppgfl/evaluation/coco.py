"""COCO's numbers: pycocotools over the results of a data set."""
from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.dataset import COCODataSet
from ..errors import DataError
from ..system.log import logger

if TYPE_CHECKING:  # imported where it is used, since it takes half a second
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
Results = list[dict[str, Any]]  # COCO results: image_id, category_id, bbox x y w h, score


def read_results(path: Path, dataset: COCODataSet) -> Results:
    """A `bbox.json` of an earlier run over the same images. Raises DataError."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.absolute()}: --json_eval needs the results of an earlier run there: {error}") from error
    keys = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list) or not all(isinstance(r, dict) and keys <= set(r) for r in results):
        raise DataError(f"{path.absolute()}: not a list of COCO results with {', '.join(sorted(keys))}")
    foreign = {r["image_id"] for r in results} - {record["im_id"] for record in dataset.records}
    if foreign:
        raise DataError(f"{path.absolute()}: has results of image {min(foreign)!r} and {len(foreign) - 1} more, which "
                        f"{dataset.anno_path} does not list; evaluate it with the annotations it was made for")
    return results


def coco_evaluator(dataset: COCODataSet, results: Results) -> COCOeval:
    """pycocotools' `COCOeval` of results over the images of a data set, accumulated."""
    from pycocotools.cocoeval import COCOeval

    truth = _truth(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, _results(truth, results), "bbox")
        evaluator.params.imgIds = sorted({record["im_id"] for record in dataset.records})
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def summarize(evaluator: COCOeval, dataset: COCODataSet, *, classwise: bool = False) -> dict[str, Any]:
    """The twelve COCO numbers of an accumulated `COCOeval`, also logged; see `evaluate.evaluate`."""
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        evaluator.summarize()
    for line in table.getvalue().splitlines():
        logger.info(line.strip())
    metrics: dict[str, Any] = dict(zip(METRICS, (float(n) for n in evaluator.stats)))
    if classwise:
        metrics["per_class"] = _per_class(evaluator, dataset)
    return metrics


def _truth(dataset: COCODataSet) -> COCO:
    """The annotations as pycocotools wants them: `area`, `iscrowd` and `id` filled in where they are missing."""
    annotations = []
    for index, annotation in enumerate(dataset.annotations.get("annotations", [])):
        box = annotation.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            annotations.append({"area": box[2] * box[3], "iscrowd": 0, **annotation, "id": index + 1})
    return _index({**dataset.annotations, "annotations": annotations})


def _results(truth: COCO, results: Sequence[dict[str, Any]]) -> COCO:
    if results:
        return truth.loadRes(results)
    return _index({**truth.dataset, "annotations": []})  # pycocotools cannot load an empty list


def _index(content: dict[str, Any]) -> COCO:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _per_class(evaluator: COCOeval, dataset: COCODataSet) -> dict[str, float]:
    """Class name -> AP over all areas, 100 detections; -1 for a class without a box."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    names = dict(zip(dataset.category_ids, dataset.class_names))
    per_class = {}
    for index, category in enumerate(evaluator.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        per_class[names[category]] = float(np.mean(values)) if values.size else -1.0
    return per_class
