"""The charts of a run, for its page and for the dashboard: [H, W, 3] uint8 BGR, narrow enough for a phone."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..system.fonts import chart_text
from . import calibration, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pycocotools.cocoeval import COCOeval

SHOWN_CLASSES = 12  # lines in a chart
NUMBERED_CLASSES = 20  # above it the confusion has colours only,
NAMED_CLASSES = 100  # and above this no names
SIZE = (5.6, 3.5)  # of one chart, inches
DOTS_PER_INCH = 150
NORMAL_MEDIAN = 0.6745  # of |error| / sigma of a normal distribution


def largest_classes(ranked: Sequence[curves.Ranking]) -> list[int]:
    """Places of the classes with most boxes, at most as many as a chart can show."""
    return sorted((i for i, r in enumerate(ranked) if r.positives), key=lambda i: -ranked[i].positives)[:SHOWN_CLASSES]


def draw_precision_recall(evaluator: COCOeval, class_names: Sequence[str],
                          ranked: Sequence[curves.Ranking], iou: float) -> np.ndarray:
    """Precision over recall: the mean over classes at each IoU (VOC: at its one), and the largest classes at one."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    figure, (by_iou, by_class) = _figure(2)
    ious = np.asarray(evaluator.params.iouThrs)
    step = ious[1] - ious[0] if len(ious) > 1 else 0.05
    palette = ListedColormap(colormaps["viridis"](np.linspace(0, 0.8, len(ious))))  # without its yellow, on white faint
    colors = ScalarMappable(BoundaryNorm([*(ious - step / 2), ious[-1] + step / 2], len(ious)), palette)
    for level in ious:
        recall, precision = curves.precision_recall(evaluator, level)
        present = precision[(precision > -1).all(axis=1)]
        if len(present):
            by_iou.plot(recall, present.mean(axis=0), color=colors.to_rgba(level), clip_on=False)
    figure.colorbar(colors, ax=by_iou, ticks=ious, format="%.2f", label="IoU")
    recall, precision = curves.precision_recall(evaluator, iou)
    for place, i in enumerate(largest_classes(ranked)):
        by_class.plot(recall, precision[i], _style(place), label=chart_text(class_names[i]), clip_on=False)
    _finish(by_iou, "Mean over classes", "recall", "precision", unit=True)
    _finish(by_class, f"Classes with most boxes, at IoU {iou}", "recall", "precision", unit=True)
    return _picture(figure)


def draw_f1(ranked: Sequence[curves.Ranking], class_names: Sequence[str], threshold: float | None) -> np.ndarray:
    """Precision, recall and F1 over the minimum score, of all classes together; F1 of the largest classes.

    threshold: the best one, or None when there is none worth a line.
    """
    figure, (together, by_class) = _figure(2)
    scores = np.linspace(0, 1, 201)
    for name, style, values in zip(("precision", "recall", "F1"), ("--", ":", "-"), curves.pool(ranked).at(scores)):
        together.plot(scores, values, style, color="black", label=name, clip_on=False)
    if threshold is not None:
        together.axvline(threshold, color="tab:red", linewidth=1, label=f"best threshold: {threshold:.3f}")
    for place, i in enumerate(largest_classes(ranked)):
        by_class.plot(scores, ranked[i].at(scores)[2], _style(place), label=chart_text(class_names[i]), clip_on=False)
    _finish(together, "All classes", "minimum score", "", unit=True)
    _finish(by_class, "F1 of the classes with most boxes", "minimum score", "F1", unit=True)
    return _picture(figure)


def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """What is there by rows, what was found by columns; colours are shares of a row."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 3.6 + 0.25 * len(names))
    figure, (axes,) = _figure(1, (side + 1, side))
    figure.colorbar(axes.imshow(share, cmap="Blues", vmin=0, vmax=1), ax=axes, shrink=0.7, label="share of the row")
    if len(names) <= NAMED_CLASSES:
        size = 8 if len(names) < 40 else 5
        shown = [chart_text(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), shown, fontsize=size)
    if len(names) <= NUMBERED_CLASSES:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=7,
                          color="white" if share[i, j] > 0.5 else "black")
    axes.set_xlabel("found as")
    axes.set_ylabel("is")
    return _picture(figure)


def draw_sizes(metrics: Mapping[str, Any]) -> np.ndarray:
    """AP of small, medium and large objects."""
    figure, (axes,) = _figure(1)
    names = {"all": "AP", "small\n< 32²": "APs", "medium": "APm", "large\n> 96²": "APl"}
    for x, key in enumerate(names.values()):
        value = max(0.0, metrics[key])
        axes.bar(x, value, color="tab:blue")
        axes.annotate("none" if metrics[key] < 0 else f"{value:.3f}", (x, value), (0, 2), ha="center",
                      textcoords="offset points", annotation_clip=False)
    axes.set_xticks(range(len(names)), list(names))
    axes.set_ylim(0, 1)
    axes.set_title("AP by area in pixels", pad=16)
    return _picture(figure)


def draw_training(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Losses and AP, or VOC's mAP, over the epochs."""
    figure, (losses, scores) = _figure(2)
    terms = list(dict.fromkeys(name for row in rows for name in row if name.startswith("loss")))
    metrics = ["AP", "AP50", "AP75", "mAP"]
    for place, name in enumerate([*terms, *metrics]):
        axes = losses if name in terms else scores
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None and row[name] >= 0]
        if points:
            axes.plot(*zip(*points), marker="o", markersize=3, label=name, color=f"C{place % 10}", clip_on=False)
    losses.set_ylim(bottom=0)
    scores.set_ylim(0, 1)
    _finish(losses, "Training loss", "epoch", "")
    _finish(scores, "Validation", "epoch", "")
    return _picture(figure)


def draw_reliability(judged: calibration.Judged, after: np.ndarray | None) -> np.ndarray:
    """The share of detections that are right over their score, before and after, and how many have which score."""
    figure, (curve, counts) = _figure(2)
    curve.plot([0, 1], [0, 1], color="tab:gray", linestyle=":", label="calibrated: so many are right")
    for label, scores, color in (("as the model scores", judged.scores, "tab:blue"),
                                 ("after calibration", after, "tab:orange")):
        if scores is None:
            continue
        mean, share, _ = calibration.reliability(scores, judged.hits)
        error = calibration.calibration_error(scores, judged.hits)
        curve.plot(mean, share, marker="o", markersize=4, color=color, label=f"{label}: error {error:.3f}",
                   clip_on=False)
        counts.hist(scores, bins=np.linspace(0, 1, calibration.BINS + 1), histtype="step", color=color, linewidth=1.5)
    counts.set_yscale("log")
    _finish(curve, "Right at IoU 0.5", "score", "share that is right", unit=True)
    _finish(counts, "How many", "score", "detections")
    counts.set_xlim(0, 1)
    return _picture(figure)


def draw_sigma(judged: calibration.Judged, scale: float | None) -> np.ndarray:
    """The median error of each side over its sigma, in ten groups of equally many, and where a normal distribution of
    that sigma has it, before and after."""
    from matplotlib.ticker import LogLocator

    assert judged.sigma is not None
    figure, (axes,) = _figure(1)
    errors, sigma = np.abs(judged.errors[judged.hits]), np.maximum(judged.sigma[judged.hits], calibration.LEAST_SIGMA)
    for i, side in enumerate(calibration.SIDES):
        groups = np.array_split(np.argsort(sigma[:, i], kind="stable"), min(10, len(sigma) // 5))
        axes.plot(*zip(*((np.median(sigma[group, i]), np.median(errors[group, i])) for group in groups)), marker="o",
                  markersize=4, color=f"C{i}", label=side)
    ends = np.array([sigma.min(), sigma.max()])
    axes.plot(ends, NORMAL_MEDIAN * ends, ":", color="black", label="a normal distribution")
    if scale is not None:
        axes.plot(ends, NORMAL_MEDIAN * scale * ends, "--", color="black", label=f"of {scale:.2f} sigma")
    axes.set_xscale("log", subs=[])
    axes.set_yscale("log", subs=[])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    _finish(axes, "Error of sides that are right", "sigma, pixels", "median error, pixels")
    return _picture(figure)


def _style(place: int) -> str:
    """Lines of one colour differ: there are ten colours."""
    return ("-", "--")[place // 10]


def _figure(count: int, size: tuple[float, float] = SIZE) -> tuple[Figure, np.ndarray]:
    """`count` charts below each other, so that a phone shows them at a legible size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0], size[1] * count), dpi=DOTS_PER_INCH, layout="constrained")
    return figure, np.atleast_1d(figure.subplots(count, 1))


def _finish(axes: Axes, title: str, x: str, y: str, *, unit: bool = False) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if unit:
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)


def _picture(figure: Figure) -> np.ndarray:
    """The figure with one legend for all of its charts, below them, where it covers nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    lines = [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
    if lines:
        figure.set_figheight(figure.get_figheight() + 0.2 * (2 + len(lines) // 2))
        figure.legend(lines, [line.get_label() for line in lines], loc="outside lower center", ncols=2, fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig draws twice, and its PNG would have to be read again
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)
