"""A run to look at: curves, confusion, classes, best and worst images, in one page that opens without a network."""
from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .. import __version__
from ..data.batch import Reader
from ..data.dataset import DetectionDataSet
from ..data.image import read_image
from ..data.transforms import NormalizeImage
from ..errors import DataError
from ..inference.detections import Detections, rows_of_coco
from ..system.atomic_write import write_csv, write_text
from ..system.fonts import chart_fonts
from ..system.log import logger
from ..system.text import without_password
from . import calibration, curves
from .charts import draw_confusion, draw_f1, draw_precision_recall, draw_sizes, draw_training
from .coco import Results
from .page import page
from .trust import trust

if TYPE_CHECKING:
    from paddle import Tensor
    from pycocotools.cocoeval import COCOeval

IOU = 0.5  # of the threshold, the confusion and the images
SHOWN_IMAGES = 6
SHOWN_OF_A_BATCH = 4
SHOWN_PREDICTIONS = 4
PHOTO_SIDE = 480
USABLE_F1 = 0.1  # a model whose best F1 over all classes is lower gets no threshold


def write(folder: str | PathLike[str], evaluator: COCOeval, dataset: DetectionDataSet, metrics: Mapping[str, Any], *,
          title: str, weights: str = "", command: str = "", training: Sequence[Mapping[str, Any]] = (),
          batches: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
    """Write report.html, per_class.csv and confusion.csv.

    Args:
        folder: where to.
        evaluator: an accumulated `COCOeval` (see `evaluate.coco_evaluator`).
        dataset: the `DetectionDataSet` of its images.
        metrics: the numbers of `metric.Measured`.
        title: of the page.
        weights: what was evaluated, as the page is to name it.
        command: that did it.
        training: rows of results.csv, for the curves of losses and AP.
        batches: pictures of `draw_batch`.

    Returns: {name: picture [H, W, 3] uint8 BGR}, the charts of the page, for a dashboard.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranked = curves.rankings(evaluator, IOU)
    together = curves.pool(ranked)
    best, f1 = curves.best_threshold(together)
    usable = f1 >= USABLE_F1
    threshold = best if f1 else 0.5  # of what is shown
    matrix = curves.confusion(evaluator, threshold, IOU)
    rows = per_class(evaluator, dataset.class_names, ranked)
    write_csv(folder / "per_class.csv", [rows[0].keys(), *(row.values() for row in rows)])
    names = [*dataset.class_names, curves.BACKGROUND]
    write_csv(folder / "confusion.csv", [["is \\ found as", *names],
                                         *([name, *line] for name, line in zip(names, matrix.tolist()))])
    with chart_fonts(names):
        charts = {"precision_recall": draw_precision_recall(evaluator, dataset.class_names, ranked, IOU),
                  "f1_over_score": draw_f1(ranked, dataset.class_names, best if usable else None),
                  "confusion": draw_confusion(matrix, names)}
    if "APs" in metrics:
        charts["ap_by_size"] = draw_sizes(metrics)
    trusted, lines = trust(calibration.judge(evaluator, IOU))
    charts.update(trusted)
    if training:
        charts["training"] = draw_training(training)
    kept = f"a score of at least {threshold:.3f}"
    sentence = f"Left what is there, right what was found with {kept}."
    worst, well = extremes(curves.image_scores(evaluator, threshold, IOU))
    photos = {headline: (sentence, list(_photos(evaluator, dataset, chosen, threshold)))
              for headline, chosen in (("Worst images", worst), ("Best images", well))}
    photos["First training batches"] = ("As the network sees them, with the boxes that are its targets.",
                                        [(f"batch {i}", picture) for i, picture in enumerate(batches)])
    interval = curves.ap_interval(evaluator, metrics["AP"]) if "AP" in metrics else None
    facts = {"Date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
             "Weights": without_password(weights),
             "Data": str(dataset.anno_path), "Images": f"{len(evaluator.params.imgIds)}",
             "Objects": f"{together.positives} of {len(names) - 1} classes", "Command": without_password(command),
             "Made by": f"ppgfl {__version__}",
             "Interval": f"bootstrap: {curves.RESAMPLES} draws of as many of these images, with replacement"
             if interval else "",
             "Confusion and images": f"at IoU {IOU}, with {kept}", **lines}
    write_text(folder / "report.html", page(
        title, verdict=_verdict(together.positives, best, f1), metrics=metrics, interval=interval, facts=facts,
        rows=rows, charts=charts, photos=photos))
    logger.info("report: %s", (folder / "report.html").resolve())
    return charts


def titled(what: str, metrics: Mapping[str, float]) -> str:
    """A title with the number that models are called better by."""
    name, value = next(iter(metrics.items()))
    return f"{what}, {name} {value:.3f}"


def _verdict(positives: int, threshold: float, f1: float) -> str:
    """HTML: the threshold to keep detections by, where there is one."""
    if not positives:
        text = "Nothing can be said: these images have no object to be found."
    elif f1 < USABLE_F1:
        found = f"even with the best threshold F1 is {f1:.3f}" if f1 else "no detection is right"
        text = f"<b>Not usable yet</b>: {found} over all classes at IoU {IOU}, so there is no minimum score to advise."
    else:
        text = (f'Keep detections that score at least <b id="threshold">{threshold:.3f}</b>: the best F1 over all '
                f"classes, {f1:.3f} at IoU {IOU}.")
    return f'<p id="verdict">{text}</p>'


def per_class(evaluator: COCOeval, class_names: Sequence[str],
              ranked: Sequence[curves.Ranking]) -> list[dict[str, Any]]:
    """One dict per class: class, boxes, AP, COCO's AP50, and the best threshold with its F1, precision and recall."""
    aps = {"AP": curves.class_ap(evaluator)}
    if len(evaluator.params.iouThrs) > 1:
        aps["AP50"] = curves.class_ap(evaluator, IOU)
    rows = []
    for i, (name, ranking) in enumerate(zip(class_names, ranked)):
        threshold, f1 = curves.best_threshold(ranking)
        precision, recall, _ = (float(values[0]) for values in ranking.at([threshold]))
        numbers = {**{key: float(values[i]) for key, values in aps.items()}, "best threshold": threshold, "F1": f1,
                   "precision": precision, "recall": recall}
        unknown = set() if f1 else {"best threshold", "precision"}  # where nothing is right
        rows.append({"class": name, "boxes": ranking.positives, **{
            key: round(value, 4) if ranking.positives and key not in unknown else ""
            for key, value in numbers.items()}})
    return rows


def extremes(scores: Mapping[int, tuple[float, int, int, int]]) -> tuple[list[int], list[int]]:
    """Ids of the worst and of the best images: by F1, the fuller image first among equals."""
    scores = {image_id: row for image_id, row in scores.items() if row[1] or row[2]}
    worst = sorted(scores, key=lambda i: (scores[i][0], -scores[i][2] - scores[i][3]))[:SHOWN_IMAGES]
    best = sorted(scores, key=lambda i: (-scores[i][0], -scores[i][1]))
    return worst, [i for i in best if i not in worst][:SHOWN_IMAGES]


# --- pictures of images


def draw_batch(batch: Mapping[str, Tensor], reader: Reader, class_names: Sequence[str]) -> np.ndarray:
    """The first images of a training batch side by side, as the network sees them: flipped, resized and padded, with
    the boxes that cells have as their targets. -> [H, W, 3] uint8 BGR."""
    normalize = next(t for t in reader.steps() if isinstance(t, NormalizeImage))
    seen = []
    for image, labels, boxes in list(zip(batch["image"], batch["labels"], batch["bbox_targets"]))[:SHOWN_OF_A_BATCH]:
        image, scale = _shrink(normalize.undo(image.numpy()))
        rows = np.column_stack([labels.numpy(), np.ones(len(labels)), boxes.numpy() * scale])
        rows = np.unique(rows[rows[:, 0] < len(class_names)], axis=0)  # one of the many cells of a box
        seen.append(Detections.from_rows(rows, class_names, image=image).draw(with_scores=False))
    return _side_by_side(seen)


def _photos(evaluator: COCOeval, dataset: DetectionDataSet, image_ids: Iterable[int],
            threshold: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (caption, picture): what is there beside what was found."""
    for image_id in image_ids:
        try:
            image = read_image(dataset.files[image_id])
        except DataError:  # evaluation has said so, and gone on
            continue
        image, scale = _shrink(image)
        halves = []
        for truth, records in ((True, evaluator.cocoGt.imgToAnns[image_id]),
                               (False, evaluator.cocoDt.imgToAnns[image_id])):
            rows = rows_of_coco([r for r in records if r.get("score", 1.0) >= threshold and not r.get("iscrowd")],
                                range(len(dataset.class_names)))
            rows[:, 2:] *= scale
            found = Detections.from_rows(rows, dataset.class_names, image=image)
            halves.append(found.draw(with_scores=not truth))
        yield Path(dataset.files[image_id]).name, _side_by_side(halves)


def prediction_pictures(dataset: DetectionDataSet, results: Results,
                        threshold: float = 0.3) -> dict[str, np.ndarray]:
    """{name: picture [H, W, 3] uint8 BGR} of a data set's first images with the COCO results on them."""
    pictures = {}
    for record in dataset.records[:SHOWN_PREDICTIONS]:
        rows = rows_of_coco((r for r in results if r["image_id"] == record["im_id"]), dataset.category_ids)
        found = Detections.from_rows(rows, dataset.class_names, path=record["im_file"])
        with suppress(DataError):  # evaluation has said so, and gone on
            pictures[f"eval/image_{record['im_id']}"] = found.draw(threshold)
    return pictures


def _shrink(image: np.ndarray) -> tuple[np.ndarray, float]:
    """An image [H, W, 3] with its longer side as `PHOTO_SIDE`, and the factor."""
    scale = PHOTO_SIDE / max(image.shape[:2])
    return cv2.resize(np.ascontiguousarray(image), None, fx=scale, fy=scale,
                      interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST), scale


def _side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one height in a row, a white line between them."""
    gap = np.full((len(images[0]), 6, 3), 255, np.uint8)
    return np.hstack([part for image in images for part in (gap, image)][1:])
