"""COCO's numbers: faster-coco-eval, which is pycocotools in C++, over the results of a data set."""
from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.annotations import Id, Places, number, some
from ..data.dataset import DetectionDataSet
from ..errors import DataError
from ..system.log import logger
from . import curves

if TYPE_CHECKING:  # imported where it is used, since it takes half a second
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZES = {"s": "small ", "m": "medium ", "l": "large "}
IGNORED = ("crowd", "marked ignore")  # reasons of objects that need not be found
Results = list[dict[str, Any]]  # COCO results: image_id, category_id, bbox x y w h, score, and maybe sigma


def read_results(path: Path, dataset: DetectionDataSet) -> Results:
    """A `bbox.json` of an earlier run over the same images and categories. Raises DataError."""
    try:
        results = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path.absolute()}: --json_eval needs the results of an earlier run there: {error}") from error
    keys = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list) or not all(isinstance(r, dict) and keys <= set(r) for r in results):
        raise DataError(f"{path.absolute()}: not a list of COCO results with {', '.join(sorted(keys))}")
    for index, result in enumerate(results):
        box, score = result["bbox"], number(result["score"])
        numbers = [number(n) for n in box] if isinstance(box, list) else []
        if len(numbers) != 4 or None in numbers or score is None:
            raise DataError(f"{path.absolute()}: result {index} has bbox {box!r} and score {result['score']!r}; they "
                            "must be four numbers, x, y, width, height, and a number")
        result.update(bbox=numbers, score=score)
        sigma = result.get("sigma", [0] * 4)
        if not isinstance(sigma, list) or len(sigma) != 4 or None in map(number, sigma):
            raise DataError(f"{path.absolute()}: result {index} has sigma {sigma!r}; it must be four numbers")
    for key, ids in (("image_id", [image["id"] for image in dataset.annotations.images]),
                     ("category_id", dataset.category_ids)):
        _match_ids(path, results, key, ids, dataset)
    return results


def _match_ids(path: Path, results: Results, key: str, ids: Sequence[Id], dataset: DetectionDataSet) -> None:
    """Put the annotations' own ids into results. Raises DataError when one is not theirs."""
    place_of = Places(ids)
    places = [place_of(result[key]) for result in results]
    foreign = {str(result[key]): 0 for result, place in zip(results, places) if place is None}
    if foreign:
        raise DataError(f"{path.absolute()}: has {places.count(None)} of {len(results)} results with {key} "
                        f"{some(foreign)}, which {dataset.anno_path} does not list (it has {some(ids)}); evaluate it "
                        "with the annotations it was made for")
    for result, place in zip(results, places):
        result[key] = ids[place or 0]


def coco_evaluator(dataset: DetectionDataSet, results: Results) -> COCOeval:
    """The `COCOeval` of results over the images of a data set, accumulated; see `accumulated`. Its numbers are those of
    pycocotools, which takes ten times as long and twice the memory (benchmarks/NOTES.md)."""
    from faster_coco_eval import COCOeval_faster

    return accumulated(dataset, results, lambda truth, found: COCOeval_faster(
        truth, found, "bbox", print_function=lambda *_: None))


def accumulated(dataset: DetectionDataSet, results: Results, make: Callable[[COCO, COCO], COCOeval]) -> COCOeval:
    """The evaluator that `make` makes of objects and results, accumulated.

    Its image and category ids are places in `dataset.annotations`: pycocotools puts ids into numpy arrays, which lose
    some, and sorts categories, which are to stand in the order of the classes.
    """
    place_of = dataset.annotations.image_places()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = make(_index(dataset, _truth(dataset)), _index(dataset, _found(dataset, results)))
        evaluator.params.imgIds = sorted({place_of(record["im_id"]) for record in dataset.records})
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def summarize(evaluator: COCOeval, dataset: DetectionDataSet, *, classwise: bool = False) -> dict[str, Any]:
    """The twelve COCO numbers of an accumulated `COCOeval`, also logged; see `evaluate.evaluate`."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    metrics: dict[str, Any] = dict(zip(METRICS, (float(n) for n in evaluator.stats)))
    for line in table(metrics):
        logger.info(line)
    if classwise:
        metrics["per_class"] = dict(zip(dataset.class_names, map(float, curves.class_ap(evaluator))))
    return metrics


def table(metrics: Mapping[str, float]) -> list[str]:
    """The twelve numbers in four lines that fit a terminal."""
    def shown(name: str) -> str:
        if metrics[name] >= 0:
            return f"{name} {metrics[name]:.3f}"
        return f"no {SIZES.get(name[-1], '')}objects"

    lines = []
    for kind, name, others in (("Precision", "AP", METRICS[1:6]),
                               ("Recall   ", "AR100", [*METRICS[6:8], *METRICS[9:]])):
        main = f"{metrics[name]:.3f}" if metrics[name] >= 0 else "no objects"
        lines += [f"Average {kind}  IoU=0.50:0.95  area=all  maxDets=100   {main}", "  ".join(map(shown, others))]
    return lines


def _truth(dataset: DetectionDataSet) -> Results:
    """The objects to be found. What detections shall not be blamed for, COCO knows as a crowd."""
    objects = [one for one in dataset.annotations.objects if dataset.is_box(one) or one["reason"] in IGNORED]
    return [{"id": index, "image_id": one["image"], "category_id": one["category"], "bbox": one["bbox"],
             "area": one["area"], "iscrowd": int(not dataset.is_to_be_found(one))}
            for index, one in enumerate(objects, 1)]


def _found(dataset: DetectionDataSet, results: Results) -> Results:
    image, category = dataset.annotations.image_places(), dataset.annotations.category_places()
    return [{"id": index, "image_id": image(one["image_id"]), "category_id": category(one["category_id"]),
             "bbox": one["bbox"], "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0, "score": one["score"],
             **({"sigma": one["sigma"]} if "sigma" in one else {})}
            for index, one in enumerate(results, 1)]


def _index(dataset: DetectionDataSet, objects: Results) -> COCO:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": [{"id": place} for place in range(len(dataset.annotations.images))],
                    "categories": [{"id": place} for place in range(len(dataset.class_names))], "annotations": objects}
    coco.createIndex()
    return coco
