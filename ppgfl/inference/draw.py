"""Boxes on pictures: a line and a plate of the class's colour, labels that avoid each other.

deploy/python/infer.py has a copy of all functions, since it is one file; a test compares them.
"""
from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from ..system.fonts import open_font, split_by_font
from ..system.text import shown


def draw_boxes(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray | None, labels: np.ndarray,
               names: Sequence[str]) -> np.ndarray:
    """A copy of an image [H, W, 3] uint8 BGR with boxes [M, 4], their names and scores; best first, drawn last.

    Annotated objects have no scores: None.
    """
    picture = np.ascontiguousarray(image).copy()
    height, width = picture.shape[:2]
    line = max(1, round((height + width) / 700))
    size = max(8, min(12, width // 8), round((height + width) / 100))  # of the letters, in pixels
    corners = np.nan_to_num(np.clip(np.round(boxes), -10_000, 100_000)).astype(int).reshape(-1, 4)
    for box, label in reversed(list(zip(corners, labels))):
        cv2.rectangle(picture, box[:2].tolist(), box[2:].tolist(), class_color(int(label)), line)
    plates: list[tuple[np.ndarray, int, int, int]] = []
    taken = np.zeros((len(corners), 4), int)
    numbers = [" "] * len(corners) if scores is None else [f"{score:.2f} " for score in scores]
    for i, (box, shown_score, label, name) in enumerate(zip(corners, numbers, labels, names)):
        number = text_mask(shown_score, size)
        text = np.hstack([name_mask(name, size, width - number.shape[1]), number])
        x, y = place_label(box, text.shape, picture.shape, taken[:i])
        taken[i] = x, y, x + text.shape[1], y + text.shape[0]
        plates.append((text, x, y, int(label)))
    for text, x, y, label in reversed(plates):
        region = picture[y:y + text.shape[0], x:x + text.shape[1]]  # less than the plate in a picture that is less
        region[:] = cv2.LUT(cv2.merge([text[:region.shape[0], :region.shape[1]]] * 3), plate_shades(label))
    return picture


def class_color(label: int) -> tuple[int, int, int]:
    """One bright colour (B, G, R) per class index, the same in every picture, neighbours far apart."""
    hue = (label * 0.618033988749895) % 1.0  # golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95 - 0.2 * (label % 2))
    return int(blue * 255), int(green * 255), int(red * 255)


def text_color(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white (B, G, R), whichever has more contrast with a colour, as WCAG defines it."""
    linear = [(n / 255 / 12.92 if n <= 10 else ((n / 255 + 0.055) / 1.055) ** 2.4) for n in color]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@functools.lru_cache(maxsize=1024)
def name_mask(name: str, size: int, room: int) -> np.ndarray:
    """`text_mask` of a name, at most `room` pixels wide: of the name what fits."""
    text = name = shown(name, limit=40)
    while (mask := text_mask(text, size)).shape[1] > room and name:
        name = name[:max(0, min(len(name) - 1, len(name) * room // mask.shape[1] - 1))]
        text = name and f"{name}..."
    return mask


@functools.lru_cache(maxsize=1024)
def text_mask(text: str, size: int) -> np.ndarray:
    """A line of text, a space before it: [H, W] uint8, 255 where ink is. All of a size, in pixels, are equally high."""
    parts = [(part, open_font(path, size) or open_font(path, 16)) for part, path in split_by_font(text)]
    edge, ascent, height = max(2, size // 4), math.ceil(1.05 * size), math.ceil(1.4 * size)
    if not parts:
        return ascii_mask(text, size, edge, ascent, height)
    from PIL import Image, ImageDraw

    widths = [font.getlength(part) for part, font in parts]
    canvas = Image.new("L", (edge + math.ceil(sum(widths)), height))
    for i, (part, font) in enumerate(parts):
        ImageDraw.Draw(canvas).text((edge + sum(widths[:i]), ascent), part, 255, font, anchor="ls")
    return np.asarray(canvas)


def ascii_mask(text: str, size: int, edge: int, ascent: int, height: int) -> np.ndarray:
    """`text_mask` with OpenCV's own letters: all but ASCII as escapes."""
    text, font, scale = text.encode("ascii", "backslashreplace").decode(), cv2.FONT_HERSHEY_SIMPLEX, size / 30
    mask = np.zeros((height, edge + cv2.getTextSize(text, font, scale, 1)[0][0]), np.uint8)
    return cv2.putText(mask, text, (edge, ascent), font, scale, 255, 1, cv2.LINE_AA)


def place_label(box: np.ndarray, label: Sequence[int], picture: Sequence[int], taken: np.ndarray) -> tuple[int, int]:
    """x, y of a label [h, w] of a box [4] inside a picture [H, W, ...]: above its corner, or near it where that covers
    least of the labels that are there, [M, 4]."""
    (x1, y1, x2, y2), (height, width) = box.tolist(), label
    spots = np.array([(x, y) for x in (x1, x2 - width) for y in (y1 - height, y1, y2, y2 - height)]
                     + [(x1, y1 + i * height) for i in (1, 2, 3)] + [(x1, y1 - i * height) for i in (2, 3)])
    spots = spots.clip(0, [max(0, picture[1] - width), max(0, picture[0] - height)])
    low = np.maximum(spots[:, None], taken[:, :2])
    high = np.minimum(spots[:, None] + (width, height), taken[:, 2:])
    x, y = spots[(high - low).clip(0).prod(axis=2).sum(axis=1).argmin()].tolist()
    return x, y


@functools.lru_cache(maxsize=256)
def plate_shades(label: int) -> np.ndarray:
    """[1, 256, 3]: the colours of a class's plate from no ink to all."""
    plate = np.array(class_color(label))
    ink = np.array(text_color(class_color(label)))
    return (plate + (ink - plate) * np.arange(256)[:, None] // 255).astype(np.uint8)[None]
