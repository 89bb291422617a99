"""A run to look at: curves, confusion, classes, best and worst images, in one page that opens without a network."""
from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..data.batch import Reader
from ..data.dataset import COCODataSet
from ..data.image import read_image
from ..data.transforms import NormalizeImage
from ..errors import DataError
from ..inference.detections import Detections, rows_of_coco
from ..system.atomic_write import write_csv, write_text
from ..system.fonts import chart_fonts, chart_text
from ..system.log import logger
from ..system.text import shown
from . import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from paddle import Tensor
    from pycocotools.cocoeval import COCOeval

IOU = 0.5  # of the threshold, the confusion and the images
SHOWN_CLASSES = 12  # lines in a picture
SHOWN_IMAGES = 6
SHOWN_OF_A_BATCH = 4
NUMBERED_CLASSES = 20  # above it the confusion has colours only
PHOTO_SIDE = 480


def write(folder: str | PathLike[str], evaluator: COCOeval, dataset: COCODataSet, metrics: Mapping[str, Any], *,
          title: str, training: Sequence[Mapping[str, Any]] = (),
          batches: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
    """Write report.html, per_class.csv and confusion.csv.

    Args:
        folder: where to.
        evaluator: an accumulated `COCOeval` (see `evaluate.coco_evaluator`).
        dataset: the `COCODataSet` of its images.
        metrics: the twelve COCO numbers.
        title: of the page.
        training: rows of results.csv, for the curves of losses and AP.
        batches: pictures of `draw_batch`.

    Returns: {name: picture [H, W, 3] uint8 BGR}, those of the page, for a dashboard.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranked = curves.rankings(evaluator, IOU)
    threshold, f1 = curves.best_threshold(curves.pool(ranked))
    matrix = curves.confusion(evaluator, threshold, IOU)
    rows = per_class(evaluator, dataset.class_names, ranked)
    write_csv(folder / "per_class.csv", [rows[0].keys(), *(row.values() for row in rows)])
    names = [*dataset.class_names, curves.BACKGROUND]
    write_csv(folder / "confusion.csv", [["is \\ found as", *names],
                                         *([name, *line] for name, line in zip(names, matrix.tolist()))])
    shown_names = [chart_text(name) for name in names]
    with chart_fonts(names):
        pictures = {"precision_recall": draw_precision_recall(evaluator, shown_names, ranked),
                    "f1_over_score": draw_f1(ranked, shown_names, threshold),
                    "confusion": draw_confusion(matrix, shown_names), "ap_by_size": draw_sizes(metrics)}
    if training:
        pictures["training"] = draw_training(training)
    worst, best = extremes(curves.image_scores(evaluator, threshold, IOU))
    photos = {kind: list(_photos(evaluator, dataset, chosen, threshold)) for kind, chosen in
              (("Worst images", worst), ("Best images", best))}
    write_text(folder / "report.html", _page(title, metrics, threshold, f1, rows, pictures, photos, batches))
    logger.info("report: %s", (folder / "report.html").resolve())
    return pictures


def per_class(evaluator: COCOeval, class_names: Sequence[str],
              ranked: Sequence[curves.Ranking]) -> list[dict[str, Any]]:
    """One dict per class: class, boxes, AP, AP50, and the best threshold with its F1, precision and recall."""
    _, mean = curves.precision_recall(evaluator)
    _, at_half = curves.precision_recall(evaluator, IOU)
    rows = []
    for i, (name, ranking) in enumerate(zip(class_names, ranked)):
        threshold, f1 = curves.best_threshold(ranking)
        precision, recall, _ = (float(values[0]) for values in ranking.at([threshold]))
        numbers = (float(mean[i].mean()), float(at_half[i].mean()), threshold, f1, precision, recall)
        rows.append({"class": name, "boxes": ranking.positives, **{
            key: round(value, 4) if ranking.positives else "" for key, value in
            zip(("AP", "AP50", "best threshold", "F1", "precision", "recall"), numbers)}})
    return rows


def extremes(scores: Mapping[int, tuple[float, int, int, int]]) -> tuple[list[int], list[int]]:
    """Ids of the worst and of the best images: by F1, the fuller image first among equals."""
    scores = {image_id: row for image_id, row in scores.items() if row[1] or row[2]}
    worst = sorted(scores, key=lambda i: (scores[i][0], -scores[i][2] - scores[i][3]))[:SHOWN_IMAGES]
    best = sorted(scores, key=lambda i: (-scores[i][0], -scores[i][1]))
    return worst, [i for i in best if i not in worst][:SHOWN_IMAGES]


def largest_classes(ranked: Sequence[curves.Ranking]) -> list[int]:
    """Places of the classes with most boxes, at most as many as a picture can show."""
    return sorted((i for i, r in enumerate(ranked) if r.positives), key=lambda i: -ranked[i].positives)[:SHOWN_CLASSES]


# --- pictures


def draw_precision_recall(evaluator: COCOeval, class_names: Sequence[str],
                          ranked: Sequence[curves.Ranking]) -> np.ndarray:
    figure, (by_iou, by_class) = _figure(2)
    for iou in evaluator.params.iouThrs:
        recall, precision = curves.precision_recall(evaluator, iou)
        present = precision[(precision > -1).all(axis=1)]
        if len(present):
            by_iou.plot(recall, present.mean(axis=0), label=f"IoU {iou:.2f}", color=str(0.85 * (iou - 0.5) / 0.45))
    by_iou.set_title("mean over classes")
    recall, precision = curves.precision_recall(evaluator, IOU)
    for i in largest_classes(ranked):
        by_class.plot(recall, precision[i], label=class_names[i])
    by_class.set_title(f"at IoU {IOU}, the largest classes")
    for axes in (by_iou, by_class):
        _finish(axes, "recall", "precision")
    return _picture(figure)


def draw_f1(ranked: Sequence[curves.Ranking], class_names: Sequence[str], threshold: float) -> np.ndarray:
    figure, (together, by_class) = _figure(2)
    scores = np.linspace(0, 1, 201)
    for name, values in zip(("precision", "recall", "F1"), curves.pool(ranked).at(scores)):
        together.plot(scores, values, label=name)
    together.axvline(threshold, color="black", linestyle=":", label=f"best: {threshold:.2f}")
    together.set_title("all classes")
    for i in largest_classes(ranked):
        by_class.plot(scores, ranked[i].at(scores)[2], label=class_names[i])
    by_class.set_title("F1 of the largest classes")
    _finish(together, "least score", "")
    _finish(by_class, "least score", "F1")
    return _picture(figure)


def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(14, 3.5 + 0.25 * len(names))
    figure, (axes,) = _figure(1, (side + 1, side))
    axes.figure.colorbar(axes.imshow(share, cmap="Blues", vmin=0, vmax=1), ax=axes, shrink=0.7)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8 if len(names) < 40 else 5)
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) < 40 else 5)
    if len(names) <= NUMBERED_CLASSES:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=7,
                          color="white" if share[i, j] > 0.5 else "black")
    axes.set_xlabel("found as")
    axes.set_ylabel("is")
    axes.set_title("confusion, colours by row")
    return _picture(figure)


def draw_sizes(metrics: Mapping[str, Any]) -> np.ndarray:
    figure, (axes,) = _figure(1, (5, 3.5))
    names = {"all": "AP", "small\n< 32²": "APs", "medium": "APm", "large\n> 96²": "APl"}
    values = [max(0.0, metrics[key]) for key in names.values()]
    for x, (value, key) in enumerate(zip(values, names.values())):
        axes.text(x, value, "none" if metrics[key] < 0 else f"{value:.3f}", ha="center", va="bottom")
    axes.bar(list(names), values)
    axes.set_ylim(0, max(0.05, 1.15 * max(values)))
    axes.set_title("AP by object size (pixels)")
    return _picture(figure)


def draw_training(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Losses and AP over the epochs."""
    figure, (losses, scores) = _figure(2)
    terms = dict.fromkeys(name for row in rows for name in row if name.startswith("loss"))
    for axes, names in ((losses, terms), (scores, ("AP", "AP50", "AP75"))):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None and row[name] >= 0]
            if points:
                axes.plot(*zip(*points), marker="o", markersize=3, label=name)
        axes.set_ylim(bottom=0)
        _finish(axes, "epoch", "")
    losses.set_title("training loss")
    scores.set_title("validation")
    return _picture(figure)


def draw_batch(batch: Mapping[str, Tensor], reader: Reader, class_names: Sequence[str]) -> np.ndarray:
    """The first images of a training batch side by side, as the network sees them: flipped, resized and padded, with
    the boxes that cells have as their targets. -> [H, W, 3] uint8 BGR."""
    normalize = next(t for t in reader.sample_transforms if isinstance(t, NormalizeImage))
    seen = []
    for image, labels, boxes in list(zip(batch["image"], batch["labels"], batch["bbox_targets"]))[:SHOWN_OF_A_BATCH]:
        image, scale = _shrink(normalize.undo(image.numpy()))
        rows = np.column_stack([labels.numpy(), np.ones(len(labels)), boxes.numpy() * scale])
        rows = np.unique(rows[rows[:, 0] < len(class_names)], axis=0)  # one of the many cells of a box
        seen.append(Detections.from_rows(rows, class_names, image=image).draw())
    return _side_by_side(seen)


def _figure(count: int, size: tuple[float, float] = (11, 4)) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, count))


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _picture(figure: Figure) -> np.ndarray:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR)


def _photos(evaluator: COCOeval, dataset: COCODataSet, image_ids: Iterable[int],
            threshold: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (caption, picture): what is there beside what was found."""
    for image_id in image_ids:
        try:
            image = read_image(dataset.files[image_id])
        except DataError:  # evaluation has said so, and gone on
            continue
        image, scale = _shrink(image)
        halves = []
        for records in (evaluator.cocoGt.imgToAnns[image_id], evaluator.cocoDt.imgToAnns[image_id]):
            rows = rows_of_coco([r for r in records if r.get("score", 1.0) >= threshold and not r.get("iscrowd")],
                                range(len(dataset.class_names)))
            rows[:, 2:] *= scale
            halves.append(Detections.from_rows(rows, dataset.class_names, image=image).draw())
        yield Path(dataset.files[image_id]).name, _side_by_side(halves)


def _shrink(image: np.ndarray) -> tuple[np.ndarray, float]:
    """An image [H, W, 3] with its longer side as `PHOTO_SIDE`, and the factor."""
    scale = PHOTO_SIDE / max(image.shape[:2])
    return cv2.resize(np.ascontiguousarray(image), None, fx=scale, fy=scale,
                      interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST), scale


def _side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one height in a row, a white line between them."""
    gap = np.full((len(images[0]), 6, 3), 255, np.uint8)
    return np.hstack([part for image in images for part in (gap, image)][1:])


# --- files


def _page(title: str, metrics: Mapping[str, Any], threshold: float, f1: float, rows: Sequence[Mapping[str, Any]],
          pictures: Mapping[str, np.ndarray], photos: Mapping[str, Sequence[tuple[str, np.ndarray]]],
          batches: Sequence[np.ndarray]) -> str:
    captions = {"precision_recall": "Precision over recall", "f1_over_score": "F1 over score", "training": "Training",
                "confusion": f"Confusion (score ≥ {threshold:.2f}, IoU ≥ {IOU})", "ap_by_size": "AP by size"}
    numbers = "".join(f"<div><b>{value:.3f}</b>{name}</div>" for name, value in metrics.items()
                      if isinstance(value, float) and value >= 0)
    table = "".join("<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in row.values()) + "</tr>"
                    for row in rows)
    figures = "".join(f"<h2>{captions[name]}</h2>{_embed(picture, '.png')}" for name, picture in pictures.items())
    images = "".join(f"<h2>{kind}</h2><p>Left what is there, right what was found with a score of at least "
                     f"{threshold:.2f}.</p><div class='photos'>" + "".join(
                         f"<figure>{_embed(picture, '.jpg')}"
                         f"<figcaption>{html.escape(shown(name))}</figcaption></figure>"
                         for name, picture in group) + "</div>" for kind, group in photos.items() if group)
    seen = ("<h2>First training batches</h2><p>As the network sees them, with the boxes that are its targets.</p>"
            + "".join(f"<p>{_embed(picture, '.jpg')}</p>" for picture in batches) if batches else "")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 0 auto; padding: 24px; }}
img {{ max-width: 100%; }} .photos {{ display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }}
figure {{ margin: 0 0 16px; }} figcaption {{ color: #666; }}
#numbers {{ display: flex; flex-wrap: wrap; gap: 12px; }} #numbers div {{ border: 1px solid #ddd; padding: 8px 14px;
border-radius: 8px; }} #numbers b {{ display: block; font-size: 1.3em; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 3px 12px; border-bottom: 1px solid #ddd; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
</style></head><body><h1>{html.escape(title)}</h1><div id="numbers">{numbers}</div>
<p>Keep detections that score at least <b id="threshold">{threshold:.3f}</b>: the best F1 over all classes, {f1:.3f} at
IoU {IOU}.</p>{figures}
<h2>Classes</h2><table><tr>{"".join(f"<th>{html.escape(key)}</th>" for key in rows[0])}</tr>{table}</table>
{images}{seen}
</body></html>
"""


def _embed(picture: np.ndarray, suffix: str) -> str:
    data = base64.b64encode(cv2.imencode(suffix, picture)[1].tobytes()).decode()
    return f'<img alt="" src="data:image/{"png" if suffix == ".png" else "jpeg"};base64,{data}">'
