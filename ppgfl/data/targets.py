"""Ground truth -> targets of every cell. In numpy: it runs in the loader's worker processes.

ATSS: Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection, https://arxiv.org/abs/1912.02424.
Valuable localization region: Zheng et al., Localization Distillation for Dense Object Detection,
https://arxiv.org/abs/2102.12252, section 3.3.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from ..kinds import CellOffset, Classes, Range, Strides, per_level
from .batch import Sample
from .coco_classes import NUM_CLASSES

CANDIDATES = 9  # per level and box (ATSS, k)
BOXES_AT_ONCE = 256  # bounds the memory for images with thousands of boxes
REGION_BOXES_AT_ONCE = 16  # the same where every cell of the image is looked at
REGION_FROM = 0.25  # of the ATSS threshold (the paper's gamma)

Levels = Sequence[tuple[int, int, int]]  # (rows, columns, stride) of each


class Gt2GFLTarget:
    """Batch transform: boxes and classes of every sample -> labels, label_weights, bbox_targets, pos_num, and
    vlr_regions for distillation.

    Args:
        num_classes: C; also the label of background.
        downsample_ratios: the levels' strides.
        grid_cell_scale: side of the square that stands for a cell, in strides.
        cell_offset: the cell at column i sits at (i + cell_offset) * stride; one number, or one for each level.
        compute_vlr_region: also the region around objects where localization distillation teaches (see
            `valuable_region`).
    """

    def __init__(self, num_classes: Classes = NUM_CLASSES, downsample_ratios: Strides = (8, 16, 32, 64, 128),
                 grid_cell_scale: Annotated[float, Range(0, 1000, without=(0,))] = 4, cell_offset: CellOffset = 0,
                 compute_vlr_region: bool = False) -> None:
        self.num_classes = num_classes
        self.strides = list(downsample_ratios)
        self.grid_cell_scale = grid_cell_scale
        self.cell_offsets = per_level("Gt2GFLTarget.cell_offset", cell_offset, len(self.strides))
        self.compute_vlr_region = compute_vlr_region

    def __call__(self, samples: list[Sample], rng: np.random.Generator | None = None) -> list[Sample]:
        """Samples of one image size with `image` [3, H, W], `gt_bbox`, `gt_class`; changes and returns them.

        PaddleDetection: crowd regions that `load_crowd` lets through are targets as all others, and the `gt_score` of
        Mixup and Cutmix has no effect.
        """
        height, width = samples[0]["image"].shape[1:]
        levels = [(-(-height // stride), -(-width // stride), stride) for stride in self.strides]
        for sample in samples:
            boxes = np.asarray(sample.pop("gt_bbox"), np.float32).reshape(-1, 4)
            classes = np.asarray(sample.pop("gt_class"), np.int64).reshape(-1)
            for key in ("is_crowd", "gt_score", "difficult"):
                sample.pop(key, None)
            sample.update(self._targets(levels, boxes, classes))
        return samples

    def _targets(self, levels: Levels, boxes: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
        owner = assign(levels, boxes, self.grid_cell_scale, self.cell_offsets)
        positive = owner >= 0
        labels = np.full(len(owner), self.num_classes, np.int64)
        labels[positive] = classes[owner[positive]]
        bbox_targets = np.zeros((len(owner), 4), np.float32)
        bbox_targets[positive] = boxes[owner[positive]]
        targets = {"labels": labels, "label_weights": np.ones(len(owner), np.float32), "bbox_targets": bbox_targets,
                   "pos_num": max(int(positive.sum()), 1)}
        if self.compute_vlr_region:
            targets["vlr_regions"] = valuable_region(levels, boxes, self.grid_cell_scale, self.cell_offsets)
        return targets


def assign(levels: Levels, boxes: np.ndarray, cell_scale: float,
           cell_offset: float | Sequence[float] = 0.0) -> np.ndarray:
    """ATSS: which box each cell is responsible for.

    Args:
        levels: (rows, columns, stride) of each level.
        boxes: [G, 4] in pixels of the padded input.
        cell_scale: side of the square that stands for a cell, in strides.
        cell_offset: as of `Gt2GFLTarget`.

    Returns:
        [A] int64: index of the box, -1 for background. A cell claimed by several boxes goes to the one with the
        highest IoU, the first of equals.
    """
    offsets = per_level("cell_offset", cell_offset, len(levels))
    num_cells = sum(rows * columns for rows, columns, _ in levels)
    owner = np.full(num_cells, -1, np.int64)
    best = np.full(num_cells, -np.inf)
    for start in range(0, len(boxes), BOXES_AT_ONCE):
        some = boxes[start:start + BOXES_AT_ONCE]
        cells, overlaps, inside = _candidates(levels, some, cell_scale, offsets)
        positive = (overlaps >= _threshold(overlaps)) & inside
        box_index, column = np.nonzero(positive)
        cells, overlaps, box_index = cells[box_index, column], overlaps[box_index, column], box_index + start
        # Weakest first, and of equals the later box first: what is written last stays.
        order = np.lexsort((-box_index, overlaps))
        order = order[overlaps[order] > best[cells[order]]]
        owner[cells[order]] = box_index[order]
        best[cells[order]] = overlaps[order]
    return owner


def valuable_region(levels: Levels, boxes: np.ndarray, cell_scale: float,
                    cell_offset: float | Sequence[float] = 0.0) -> np.ndarray:
    """How much localization each cell can teach, also where it is not responsible for a box: the cells whose squares
    have a DIoU with a box from a quarter of the box's ATSS threshold up to just below it.

    PaddleDetection: in this DIoU, the overlap is divided by the area of the square instead of that of the union; and
    this threshold takes the deviation of a sample, that of `assign` the deviation of a population.

    Arguments as of `assign`. Returns: [A] float32: the largest IoU with a box whose region the cell is in, else 0.
    """
    offsets = per_level("cell_offset", cell_offset, len(levels))
    region = np.zeros(sum(rows * columns for rows, columns, _ in levels), np.float32)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None, None]
    for start in range(0, len(boxes), REGION_BOXES_AT_ONCE):
        some = slice(start, start + REGION_BOXES_AT_ONCE)
        _, overlaps, _ = _candidates(levels, boxes[some], cell_scale, offsets)
        threshold = _threshold(overlaps, ddof=1)[..., None]
        first = 0
        for (rows, columns, stride), offset in zip(levels, offsets):
            square = (stride * cell_scale) ** 2
            overlap, distance = _overlap_with_all(boxes[some], rows, columns, stride, cell_scale, offset)
            diou = overlap / square - distance
            inside = (diou >= REGION_FROM * threshold) & (diou < threshold)
            iou = overlap / np.maximum(areas[some] + square - overlap, 1e-6)
            cells = slice(first, first + rows * columns)
            region[cells] = np.maximum(region[cells], (iou * inside).max(axis=0).ravel())
            first += rows * columns
    return region


def _overlap_with_all(boxes: np.ndarray, rows: int, columns: int, stride: int, cell_scale: float,
                      cell_offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [G, 4] and the squares of all cells of a level: the area that they share, in pixels, and the squared
    distance of their centres, in units of the diagonal of the box around both; each [G, rows, columns]. Most of the
    work is done along rows and columns, before they meet."""
    half = stride * cell_scale / 2

    def along(low: np.ndarray, high: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        center = (np.arange(count, dtype=np.float32) + cell_offset) * stride
        common = np.minimum(center + half, high) - np.maximum(center - half, low)
        around = np.maximum(center + half, high) - np.minimum(center - half, low)
        return common.clip(min=0), ((low + high) / 2 - center) ** 2, around**2

    left, top, right, bottom = boxes.T[..., None]
    common_x, apart_x, around_x = (x[:, None, :] for x in along(left, right, columns))
    common_y, apart_y, around_y = (y[:, :, None] for y in along(top, bottom, rows))
    return common_x * common_y, (apart_x + apart_y) / (around_x + around_y)


def _candidates(levels: Levels, boxes: np.ndarray, cell_scale: float,
                offsets: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cells nearest to each box's centre, on every level.

    Returns: cells [G, K] (index over all levels), their IoU with the box [G, K], and whether their centres lie inside
        of the box [G, K].
    """
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells_of, centers_of, sides_of = [], [], []
    first = 0
    for (rows, columns, stride), offset in zip(levels, offsets):
        level_cells, level_centers = _nearest_cells(box_centers, rows, columns, stride, offset)
        cells_of.append(level_cells + first)
        centers_of.append(level_centers)
        sides_of.append(np.full(level_cells.shape[1], stride * cell_scale, np.float32))
        first += rows * columns
    cells, centers, sides = np.concatenate(cells_of, 1), np.concatenate(centers_of, 1), np.concatenate(sides_of)

    half = (sides / 2)[None, :, None]
    overlaps = _iou(np.concatenate([centers - half, centers + half], -1), boxes[:, None])
    inside = np.concatenate([centers - boxes[:, None, :2], boxes[:, None, 2:] - centers], -1).min(-1) > 0.01
    return cells, overlaps, inside


def _threshold(overlaps: np.ndarray, ddof: int = 0) -> np.ndarray:
    """ATSS: the IoU [G, 1] from which on the candidates of a box are positive."""
    return overlaps.mean(1, keepdims=True) + overlaps.std(1, keepdims=True, ddof=ddof)


def _nearest_cells(points: np.ndarray, rows: int, columns: int, stride: int,
                   cell_offset: float) -> tuple[np.ndarray, np.ndarray]:
    """The `CANDIDATES` cells of one level nearest to each point [G, 2]; of equally near ones the first.

    Only a window around the point is looked at: the nearest k points of a grid lie within k steps of the nearest.
    Returns: cells [G, k] (row * columns + column), their centres [G, k, 2] in pixels.
    """
    k = min(CANDIDATES, rows * columns)
    x, column = _window(points[:, 0], columns, stride, cell_offset)
    y, row = _window(points[:, 1], rows, stride, cell_offset)
    distance = np.sqrt(((x - points[:, :1]) ** 2)[:, None, :] + ((y - points[:, 1:]) ** 2)[:, :, None])
    distance = distance.reshape(len(points), -1)
    chosen = np.argsort(distance, axis=1, kind="stable")[:, :k]
    i, j = np.divmod(chosen, x.shape[1])
    centers = np.stack([np.take_along_axis(x, j, 1), np.take_along_axis(y, i, 1)], -1)
    return np.take_along_axis(row, i, 1) * columns + np.take_along_axis(column, j, 1), centers


def _window(coordinate: np.ndarray, count: int, stride: int, cell_offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Up to 2 * CANDIDATES + 1 grid positions around each coordinate [G] -> positions, indices [G, W]."""
    width = min(count, 2 * CANDIDATES + 1)
    nearest = np.round(coordinate / stride - cell_offset).astype(np.int64)
    start = np.clip(nearest - CANDIDATES, 0, count - width)
    index = start[:, None] + np.arange(width)
    return ((index + cell_offset) * stride).astype(np.float32), index


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    return overlap / np.maximum(union, 1e-6)
