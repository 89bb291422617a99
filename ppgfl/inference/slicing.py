"""Small objects in large images: detect on overlapping slices, and put the findings together.

PaddleDetection: looks at slices alone, so `full` is off by default; SAHI looks at the whole image besides.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError

COMBINE_METHODS = ("nms", "nmm", "concat")
MATCH_METRICS = ("iou", "ios")
Place = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the image


@dataclass
class Slicing:
    """PaddleDetection's settings of sliced inference.

    Attributes:
        slice_size: (height, width) of a slice, in pixels of the image.
        overlap_ratio: share of a slice that the next one repeats, (down, across).
        combine_method: of findings of one class that overlap: "nms" keeps the best, "nmm" gives the best the box around
            all of them, "concat" keeps everything.
        full: look at the whole image besides its slices, for objects that are larger than these; one that fits into a
            slice is looked at once.
        match_threshold: from which overlap on they are one object.
        match_metric: "iou", or "ios": the share of the smaller box, which also joins an object with a cut part of it.

    Raises: ConfigError.
    """

    slice_size: Sequence[int] = (640, 640)
    overlap_ratio: Sequence[float] = (0.25, 0.25)
    combine_method: str = "nms"
    match_threshold: float = 0.6
    match_metric: str = "ios"
    full: bool = False

    def __post_init__(self) -> None:
        self.slice_size, self.overlap_ratio = _pair(self.slice_size), _pair(self.overlap_ratio)
        if min(self.slice_size) < 32:
            raise ConfigError(f"slice_size: {list(self.slice_size)}; height and width are at least 32 pixels")
        if not all(0 <= ratio <= 0.9 for ratio in self.overlap_ratio):
            raise ConfigError(f"overlap_ratio: {list(self.overlap_ratio)}; allowed: 0 to 0.9")
        for name, allowed in (("combine_method", COMBINE_METHODS), ("match_metric", MATCH_METRICS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not 0 < self.match_threshold <= 1:
            raise ConfigError(f"match_threshold: {self.match_threshold}; allowed: above 0, up to 1")


def _pair(values: Iterable[Any]) -> tuple[Any, Any]:
    values = tuple(values)
    return (values * 2)[:2]


def slices(height: int, width: int, slicing: Slicing) -> list[Place]:
    """(x1, y1, x2, y2) of the slices of an image: row by row, all of full size unless the image is smaller; the last of
    a row or column is moved back into the image."""
    ys, xs = (_starts(side, size, ratio) for side, size, ratio in
              zip((height, width), slicing.slice_size, slicing.overlap_ratio))
    slice_height, slice_width = slicing.slice_size
    return [(x, y, min(x + slice_width, width), min(y + slice_height, height)) for y in ys for x in xs]


def _starts(side: int, size: int, ratio: float) -> list[int]:
    starts, step = [0], size - int(ratio * size)
    while starts[-1] + size < side:
        starts.append(min(starts[-1] + step, side - size))
    return starts


def groups_of_slices(image: np.ndarray, slicing: Slicing | None, batch_size: int = 1) -> list[list[Place]]:
    """The places of an image [H, W, 3] that are looked at together: of its slices, or without slicing all of it."""
    height, width = image.shape[:2]
    places = slices(height, width, slicing) if slicing else [(0, 0, width, height)]
    groups = [places[start:start + batch_size] for start in range(0, len(places), batch_size)]
    if slicing and slicing.full and len(places) > 1:
        groups.append([(0, 0, width, height)])  # for itself: in a batch the slices would be padded to its size
    return groups


def cut(image: np.ndarray, places: Sequence[Place]) -> list[np.ndarray]:
    """The parts of an image at these places."""
    return [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in places]


def moved(found: Iterable[np.ndarray], places: Sequence[Place]) -> list[np.ndarray]:
    """Detections in the parts of an image -> in its own pixels."""
    return [np.concatenate([rows[:, :6] + np.array([0, 0, x1, y1, x1, y1], rows.dtype), rows[:, 6:]], axis=1)
            for rows, (x1, y1, _, _) in zip(found, places)]


def detect_sliced(run: Callable[[Sequence[np.ndarray]], list[np.ndarray]], image: np.ndarray, slicing: Slicing,
                  batch_size: int = 1) -> np.ndarray:
    """Detections [M, 6] (class, score, x1, y1, x2, y2; best score first) of one image [H, W, 3], slice by slice.

    Args:
        run: a list of images -> a list of detections, as `detector.RowDetector`.
        image: as `run` takes it.
        slicing: a `Slicing`.
        batch_size: slices at a time.
    """
    parts = [rows for places in groups_of_slices(image, slicing, batch_size)
             for rows in moved(run(cut(image, places)), places)]
    return combine(np.concatenate(parts), slicing)


def combine(rows: np.ndarray, slicing: Slicing) -> np.ndarray:
    """Join what several slices found of one object: rows [M, 6 or 14] -> [K, 6 or 14], best score first. What stands
    behind a box is that of the best one, also where nmm makes a larger box."""
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    if slicing.combine_method == "concat":
        return rows
    kept, alive = [], np.ones(len(rows), bool)
    for i in range(len(rows)):
        if not alive[i]:
            continue
        rivals = np.flatnonzero(alive & (rows[:, 0] == rows[i, 0]))
        rivals = rivals[rivals >= i]
        same = rivals[(rivals == i) | (overlap(rows[i, 2:6], rows[rivals, 2:6], slicing.match_metric)
                                       >= slicing.match_threshold)]
        alive[same] = False
        row = rows[i].copy()
        if slicing.combine_method == "nmm":
            row[2:6] = [*rows[same, 2:4].min(axis=0), *rows[same, 4:6].max(axis=0)]
        kept.append(row)
    return np.array(kept, rows.dtype).reshape(-1, rows.shape[1])


def overlap(box: np.ndarray, boxes: np.ndarray, metric: str) -> np.ndarray:
    """Overlap of one box [4] with boxes [M, 4]: intersection over union, or over the smaller area.

    PaddleDetection: counts the last pixel of a box as inside, so that a side is x2 - x1 + 1 long.
    """
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
    common = sides.clip(0).prod(axis=1)
    area, areas = (box[2:] - box[:2] + 1).prod(), (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    return common / (area + areas - common if metric == "iou" else np.minimum(area, areas))
