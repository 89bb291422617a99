"""Boxes on pictures."""
from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_boxes(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
               names: Sequence[str]) -> np.ndarray:
    """A copy of an image [H, W, 3] uint8 BGR with boxes [M, 4], their names and scores; best first, drawn last."""
    picture = np.ascontiguousarray(image).copy()
    height, width = picture.shape[:2]
    thickness = max(1, round((height + width) / 700))
    for box, score, label, name in reversed(list(zip(boxes, scores, labels, names))):
        color = class_color(int(label))
        x1, y1, x2, y2 = (int(n) for n in np.clip(np.round(box), -10_000, 100_000))
        cv2.rectangle(picture, (x1, y1), (x2, y2), color, thickness)
        text = f"{name if name.isascii() else f'class {label}'} {score:.2f}"  # OpenCV's font has ASCII only
        _draw_label(picture, text, x1, y1, color)
    return picture


def class_color(label: int) -> tuple[int, int, int]:
    """One bright colour (B, G, R) per class index, the same in every picture, neighbours far apart."""
    hue = (label * 0.618033988749895) % 1.0  # golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95 - 0.2 * (label % 2))
    return int(blue * 255), int(green * 255), int(red * 255)


def _draw_label(picture: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    """Text on a plate above the corner (x, y), moved so that it stays inside the picture."""
    height, width = picture.shape[:2]
    scale = max(0.4, (height + width) / 2800)
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, 1)
    x = max(0, min(x, width - text_width - 2))
    top = max(0, y - text_height - baseline - 2)
    bottom = top + text_height + baseline + 2
    cv2.rectangle(picture, (x, top), (x + text_width + 2, bottom), color, cv2.FILLED)
    bright = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(picture, text, (x + 1, bottom - baseline), FONT, scale, ink, 1, cv2.LINE_AA)
