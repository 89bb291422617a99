"""How uncertain the sides of boxes are, on pictures: soft bands around their lines."""
from __future__ import annotations

import numpy as np

from .draw import class_color

OPACITY = 0.55  # of a band at its line; it fades to nothing at one sigma


def draw_bands(image: np.ndarray, boxes: np.ndarray, sigma: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A copy of an image [H, W, 3] uint8 BGR with the sides of boxes [M, 4] as bands of the class's colour.

    A band is as long as its side and reaches one sigma [M, 4], in pixels, to both sides of it; best first, drawn last.
    """
    picture = np.ascontiguousarray(image).copy()
    for box, spread, label in reversed(list(zip(boxes, sigma, labels))):
        if not np.isfinite([*box, *spread]).all():
            continue
        for side in range(4):
            _draw_band(picture, box, side, float(spread[side]), class_color(int(label)))
    return picture


def _draw_band(picture: np.ndarray, box: np.ndarray, side: int, sigma: float, color: tuple[int, int, int]) -> None:
    """Blend the band of one side (0 to 3: x1, y1, x2, y2) into a picture."""
    across, along = side % 2, 1 - side % 2  # the axis that the side is a coordinate of (0: x), and that of its length
    size = picture.shape[1], picture.shape[0]
    reach = max(sigma, 0.5)
    low, high = (round(float(np.clip(n, 0, size[across]))) for n in (box[side] - reach, box[side] + reach + 1))
    start, end = (round(float(np.clip(n, 0, size[along]))) for n in (box[along], box[along + 2] + 1))
    if low >= high or start >= end:
        return
    opacity = OPACITY * np.clip(1 - np.abs(np.arange(low, high) - float(box[side])) / (reach + 0.5), 0, 1)
    places = slice(start, end), slice(low, high)
    region = picture[places if across == 0 else places[::-1]]
    opacity = opacity[None, :, None] if across == 0 else opacity[:, None, None]
    region[:] = np.round(region + opacity * (np.array(color) - region)).astype(np.uint8)
