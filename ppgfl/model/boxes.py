"""Box geometry, and nothing else. Boxes are x1 y1 x2 y2."""
from __future__ import annotations

import paddle
from paddle import Tensor

from . import operators


def cell_centers(height: int | Tensor, width: int | Tensor, stride: float, *, offset: float = 0.0) -> Tensor:
    """Centres [height * width, 2] (x, y) of a level's cells, row by row, in pixels of the padded input.

    PaddleDetection: the cell at column i sits at i * stride, without half a cell added (`cell_offset: 0`).
    """
    x = (paddle.arange(width, dtype="float32") + offset) * stride
    y = (paddle.arange(height, dtype="float32") + offset) * stride
    y, x = paddle.meshgrid(y, x)
    return paddle.stack([x.flatten(), y.flatten()], axis=-1)


def clip_boxes(boxes: Tensor, im_shape: Tensor) -> Tensor:
    """Boxes [N, A, 4] in pixels of the padded input, cut at the borders of their images [N, 2] (height, width)."""
    low, high = paddle.zeros([1], boxes.dtype), paddle.concat([im_shape.flip([1])] * 2, axis=1).unsqueeze(1)
    return operators.minimum(operators.maximum(boxes, low), high)


def distances_to_boxes(centers: Tensor, distances: Tensor) -> Tensor:
    """centers [..., 2] and distances [..., 4] to the left, top, right, bottom side -> boxes [..., 4]."""
    return paddle.concat([centers - distances[..., :2], centers + distances[..., 2:]], axis=-1)


def iou(a: Tensor, b: Tensor, *, eps: float = 1e-6) -> Tensor:
    """IoU of aligned boxes: a, b [..., 4] -> [...]. The union counts as at least `eps`."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clip(min=eps)


def giou(a: Tensor, b: Tensor, *, eps: float = 1e-10) -> Tensor:
    """Generalized IoU of aligned boxes: a, b [..., 4] -> [...] (Rezatofighi et al., arXiv 1902.09630, algorithm 1)."""
    overlap, union = _overlap_and_union(a, b)
    union = union + eps
    low = paddle.minimum(a[..., :2], b[..., :2])
    high = paddle.maximum(a[..., 2:], b[..., 2:])
    sides = high - low
    hull = sides[..., 0] * sides[..., 1] + eps
    return overlap / union - (hull - union) / hull


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low = paddle.maximum(a[..., :2], b[..., :2])
    high = paddle.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clip(min=0)
    overlap = size[..., 0] * size[..., 1]
    return overlap, _area(a) + _area(b) - overlap


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def boxes_to_distances(centers: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `distances_to_boxes`: centers [..., 2], boxes [..., 4] -> distances [..., 4]."""
    return paddle.concat([centers - boxes[..., :2], boxes[..., 2:] - centers], axis=-1)
