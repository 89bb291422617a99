"""Box geometry, and nothing else. Boxes are x1 y1 x2 y2."""
import paddle


def cell_centers(height, width, stride, *, offset=0.0):
    """Centres [height * width, 2] (x, y) of a level's cells, row by row, in pixels of the padded input.

    PaddleDetection: the cell at column i sits at i * stride, without half a cell added (`cell_offset: 0`).
    """
    x = (paddle.arange(width, dtype="float32") + offset) * stride
    y = (paddle.arange(height, dtype="float32") + offset) * stride
    y, x = paddle.meshgrid(y, x)
    return paddle.stack([x.flatten(), y.flatten()], axis=-1)


def distances_to_boxes(centers, distances):
    """centers [..., 2] and distances [..., 4] to the left, top, right, bottom side -> boxes [..., 4]."""
    return paddle.concat([centers - distances[..., :2], centers + distances[..., 2:]], axis=-1)


def iou(a, b, *, eps=1e-6):
    """IoU of aligned boxes: a, b [..., 4] -> [...]. The union counts as at least `eps`."""
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clip(min=eps)


def giou(a, b, *, eps=1e-10):
    """Generalized IoU of aligned boxes: a, b [..., 4] -> [...] (Rezatofighi et al., arXiv 1902.09630, algorithm 1)."""
    overlap, union = _overlap_and_union(a, b)
    union = union + eps
    low = paddle.minimum(a[..., :2], b[..., :2])
    high = paddle.maximum(a[..., 2:], b[..., 2:])
    sides = high - low
    hull = sides[..., 0] * sides[..., 1] + eps
    return overlap / union - (hull - union) / hull


def _overlap_and_union(a, b):
    low = paddle.maximum(a[..., :2], b[..., :2])
    high = paddle.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clip(min=0)
    overlap = size[..., 0] * size[..., 1]
    return overlap, _area(a) + _area(b) - overlap


def _area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def boxes_to_distances(centers, boxes):
    """The inverse of `distances_to_boxes`: centers [..., 2], boxes [..., 4] -> distances [..., 4]."""
    return paddle.concat([centers - boxes[..., :2], boxes[..., 2:] - centers], axis=-1)
