"""A picture of the distributions of an image's best boxes: a row for each box, as the figures of GFL and GFLv2."""
from __future__ import annotations

import cv2
import numpy as np

from .detections import Detections
from .distributions import Distributions
from .draw import class_color, name_mask, text_mask

SIDES = {"left": (180, 119, 31), "top": (14, 127, 255), "right": (44, 160, 44), "bottom": (189, 103, 148)}  # B, G, R
CROP, CHART, GAP, TITLE = 200, (150, 220), 20, 34  # pixels; a chart's height and width
LETTERS, SMALL = 15, 12  # pixels
INK, FAINT = (60, 60, 60), (225, 225, 225)


def draw_distributions(image: np.ndarray, found: Detections, shown: Distributions) -> np.ndarray:
    """[H, W, 3] uint8 BGR of an image [H, W, 3] uint8 BGR: of each box the part of the image around it, with the cell
    that found it, and a chart for each side: how likely each distance from that cell is, in pixels of the image.

    A triangle is at the mean, where the box ends; the band around it is one standard deviation wide to both sides.

    Args:
        found: the boxes, best first, of which the first as many as `shown` has are drawn.
        shown: their distributions.
    """
    count = min(len(found), len(shown.steps))
    height, width = GAP + TITLE + CROP, GAP + CROP + 4 * (GAP + CHART[1]) + GAP
    picture = np.full((max(1, count) * height + GAP, width, 3), 255, np.uint8)
    if not count:
        _write(picture, "no box scores enough to be drawn", GAP, GAP, LETTERS, INK)
    peak = shown.probabilities[:count].max(initial=1e-9)
    for i in range(count):
        row = picture[i * height + GAP:(i + 1) * height]
        _write_title(row, found, i, shown)
        means, sigmas = shown.means()[i], shown.sigmas()[i]
        row[TITLE:, GAP:GAP + CROP] = _crop(image, found.boxes[i], shown.centers[i], sigmas)
        for side, (name, color) in enumerate(SIDES.items()):
            x = GAP + CROP + GAP + side * (CHART[1] + GAP)
            chart = row[TITLE:, x:x + CHART[1]]
            _write(chart, f"{name} {means[side]:.1f} \u00b1 {sigmas[side]:.1f} px", 0, 0, LETTERS, color)
            _draw_chart(chart[26:26 + CHART[0]], shown.probabilities[i, side], shown.steps[i, side], means[side],
                        sigmas[side], color, peak)
    return picture


def _write_title(row: np.ndarray, found: Detections, i: int, shown: Distributions) -> None:
    text = f"{found.scores[i]:.2f}"
    if shown.class_scores is not None and shown.qualities is not None:
        text += f"  (class {shown.class_scores[i]:.2f} \u00d7 quality {shown.qualities[i]:.2f})"
    cv2.rectangle(row, (GAP, 3), (GAP + 12, 15), class_color(int(found.labels[i])), cv2.FILLED)
    x = _put(row, name_mask(found.names[i], LETTERS + 2, row.shape[1] // 2), GAP + 16, -2, (0, 0, 0))
    _write(row, text, x, -2, LETTERS + 2, (0, 0, 0))


def _crop(image: np.ndarray, box: np.ndarray, center: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """[CROP, CROP, 3]: the image around a box [4], which may reach beyond it, its sides and its cell on it."""
    side = 1.3 * max(box[2] - box[0], box[3] - box[1]) + 4
    start, scale = (box[:2] + box[2:]) / 2 - side / 2, CROP / side
    canvas = np.full((CROP, CROP, 3), 240, np.uint8)
    low = np.floor(start).clip(0, image.shape[1::-1]).astype(int)
    high = np.ceil(start + side).clip(0, image.shape[1::-1]).astype(int)
    if (low < high).all():
        part = image[low[1]:high[1], low[0]:high[0]]
        size = np.maximum(1, np.round((high - low) * scale)).astype(int).tolist()
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        (x, y), rest = (place := np.round((low - start) * scale).astype(int)), (-place).clip(0)
        part = part[rest[1]:, rest[0]:][:CROP - max(0, y), :CROP - max(0, x)]
        canvas[max(0, y):, max(0, x):][:part.shape[0], :part.shape[1]] = part
    ends = np.round((box - np.tile(start, 2)) * scale).astype(int)
    spreads = np.maximum(1, np.round(sigmas * scale)).astype(int)
    for halves, share in ((spreads, 0.35), ([1] * 4, 1.0)):  # the bands, then the lines on them
        for i, (half, color) in enumerate(zip(halves, SIDES.values())):
            across = slice(max(0, ends[i] - half), max(0, ends[i] + half + 1))
            along = slice(max(0, ends[1 - i % 2]), max(0, ends[3 - i % 2] + 1))
            region = canvas[along, across] if i % 2 == 0 else canvas[across, along]
            region[:] = (1 - share) * region + share * np.array(color)
    x, y = np.round((center - start) * scale).clip(-99, 2 * CROP).astype(int).tolist()
    cv2.circle(canvas, (x, y), 5, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, (x, y), 3, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)
    return canvas


def _draw_chart(canvas: np.ndarray, probabilities: np.ndarray, step: float, mean: float, sigma: float,
                color: tuple[int, int, int], peak: float) -> None:
    """Bars [R] on a white canvas; the highest of all charts has all of its height."""
    top, floor, last = SMALL + 6, canvas.shape[0] - 26, len(probabilities) - 1
    bar = canvas.shape[1] / len(probabilities)

    def x_of(distance: float) -> int:
        return round(bar * (distance / step + 0.5))

    band = canvas[top:floor, max(0, x_of(mean - sigma)):x_of(mean + sigma) + 1]
    band[:] = 0.8 * band + 0.2 * np.array(color)
    for i, probability in enumerate(probabilities):
        y = floor - round(float(probability / peak) * (floor - top))
        cv2.rectangle(canvas, (round(bar * i) + 1, y), (round(bar * (i + 1)) - 1, floor), color, cv2.FILLED)
    cv2.line(canvas, (0, floor), (canvas.shape[1], floor), INK, 1)
    corners = np.array([(0, 2), (-5, 9), (5, 9)]) + (x_of(mean), floor)
    cv2.fillPoly(canvas, [corners.astype(np.int32)], (0, 0, 0), cv2.LINE_AA)
    best = int(probabilities.argmax())
    for text, x, y in ((f"{probabilities[best]:.2f}", x_of(best * step), floor - round(
            float(probabilities[best] / peak) * (floor - top)) - SMALL - 5),
                       ("0", x_of(0), floor + 9), (f"{last * step:.0f}", x_of(last * step), floor + 9)):
        _write(canvas, text, x - text_mask(text, SMALL).shape[1] // 2, y, SMALL, INK)


def _write(canvas: np.ndarray, text: str, x: int, y: int, size: int, color: tuple[int, int, int]) -> int:
    return _put(canvas, text_mask(text, size), x, y, color)


def _put(canvas: np.ndarray, mask: np.ndarray, x: int, y: int, color: tuple[int, int, int]) -> int:
    """Lay ink [h, w] on a canvas, inside it; returns the x behind it."""
    x, y = max(0, min(x, canvas.shape[1] - mask.shape[1])), max(0, y)
    region = canvas[y:y + mask.shape[0], x:x + mask.shape[1]]
    ink = mask[:region.shape[0], :region.shape[1], None] / 255
    region[:] = (1 - ink) * region + ink * np.array(color)
    return x + mask.shape[1]
