"""Raw maps -> boxes in the original image -> NMS -> detections."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor

from ..kinds import CountOrAll, Share, ShareAboveZero, per_level
from . import operators
from .boxes import cell_centers, clip_boxes, distances_to_boxes
from .gfl import Features

# From so many candidates on, NMS over the best of them first takes less time than NMS over all (measured).
LAZY_FROM = 20_000
LAZY_TOP_K = 4_000
# Paddle's kernel for GPUs takes a nms_top_k up to this one, and leaves others to the CPU's. It refuses one above the
# number of cells, or below keep_top_k.
GPU_TOP_K = 4096
NEVER = -1e4  # a score below every threshold


@dataclass(eq=False)
class MultiClassNMS:
    """Per-class NMS, with the settings and the arithmetic of PaddleDetection's section of that name.

    Attributes:
        score_threshold: candidates must score above it.
        nms_top_k: best candidates per class that enter NMS; -1: all.
        keep_top_k: detections kept per image; -1: all.
        nms_threshold: a candidate that overlaps a better one by more than this IoU is dropped.
        normalized: False when x2, y2 are the last pixel inside the box.
        nms_eta: below 1, the threshold shrinks as NMS goes on.
    """

    score_threshold: Share = 0.05
    nms_top_k: CountOrAll = -1
    keep_top_k: CountOrAll = 100
    nms_threshold: Share = 0.5
    normalized: bool = True
    nms_eta: ShareAboveZero = 1.0

    def __call__(self, boxes: Tensor, scores: Tensor, score_threshold: float | None = None) -> tuple[Tensor, Tensor]:
        """boxes [N, A, 4], scores [N, C, A] -> bbox [M, 6] (class, score, x1, y1, x2, y2), bbox_num [N] int32.

        What stands behind the four numbers of a box, [N, A, 4 + K], goes with it: bbox is [M, 6 + K].

        The detections of an image stand together: on a CPU class by class, on a GPU of all classes in one row; in both
        a better score comes first.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if paddle.in_dynamic_mode() and self.keep_top_k > 0 and self._most(scores, threshold) > LAZY_FROM:
            return self._suppress_many(boxes, scores, threshold)
        return self._suppress(boxes, scores, threshold)

    def _suppress_many(self, boxes: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """The same result without NMS over all candidates: whether NMS keeps one does not depend on worse ones, so
        when the best LAZY_TOP_K of every image leave keep_top_k detections, those are the result."""
        least = paddle.topk(scores.flatten(1), LAZY_TOP_K)[0][:, -1].reshape([-1, 1, 1])
        best = paddle.where(scores >= least, scores, paddle.full([1], threshold, scores.dtype))  # others: no candidates
        bbox, bbox_num = self._suppress(boxes, best, threshold)
        enough = int(bbox_num.min()) >= self.keep_top_k
        return (bbox, bbox_num) if enough else self._suppress(boxes, scores, threshold)

    @staticmethod
    def _most(scores: Tensor, threshold: float) -> int:
        """The most candidates that an image has."""
        return int((scores > threshold).sum([1, 2]).max())

    def _suppress(self, boxes: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        settings = dict(score_threshold=float(threshold), nms_top_k=self.nms_top_k, keep_top_k=self.keep_top_k,
                        nms_threshold=float(self.nms_threshold), normalized=self.normalized,
                        nms_eta=float(self.nms_eta), background_label=-1)
        if 0 < self.nms_top_k <= GPU_TOP_K:
            boxes, scores = _with_more_cells(boxes, scores, max(self.nms_top_k, min(self.keep_top_k, GPU_TOP_K)))
            if self.nms_top_k < self.keep_top_k:
                best = paddle.topk(scores, self.nms_top_k, axis=2)[0][:, :, -1:]
                scores = paddle.where(scores >= best, scores, paddle.full([1], NEVER))
                settings["nms_top_k"] = self.keep_top_k
        if boxes.shape[2] == 4:
            return operators.multiclass_nms(boxes, scores, settings)
        bbox, bbox_num, index = operators.multiclass_nms_with_index(boxes[:, :, :4], scores, settings)
        # With a row behind them that goes again, in a type that oneDNN leaves to Paddle: both may find nothing, and
        # Paddle 2.6 dies of nothing beside nothing, oneDNN of nothing above something.
        bbox = paddle.concat([bbox.astype("float64"), paddle.zeros([1, 6], "float64")])
        index = paddle.concat([index.flatten(), paddle.zeros([1], index.dtype)])
        behind = paddle.gather(boxes[:, :, 4:].flatten(0, 1), index).astype("float64")
        return paddle.concat([bbox, behind], axis=1)[:-1].astype("float32"), bbox_num


@dataclass(eq=False)
class Decoder:
    """Maps of the head -> detections in pixels of the original image.

    Attributes:
        strides: of the levels.
        num_classes: C.
        nms: the `MultiClassNMS`.
        joint_scores: the class maps hold probabilities already (GFLv2).
        separate_quality: the last class map is the logit of the quality (`head.GFLHead.quality_branch`).
        upstream_scores: GFLv2 only: score as PaddleDetection does (see `scores`).
        cell_offset: see `boxes.cell_centers`; one number, or one for each level.
        clip_boxes: cut boxes at the borders of the image before NMS, as MMDetection does, for which a call needs
            `im_shape`; PaddleDetection lets them stick out.
        sigma: boxes have eight numbers more: how uncertain their sides are (see `spreads`).

    Raises: ConfigError for a list of offsets that has another length than `strides`.
    """

    strides: tuple[int, ...]
    num_classes: int
    nms: MultiClassNMS
    joint_scores: bool = False
    upstream_scores: bool = False
    cell_offset: float | Sequence[float] = 0.0
    clip_boxes: bool = False
    separate_quality: bool = False
    sigma: bool = False

    def __post_init__(self) -> None:
        self.cell_offsets = per_level("cell_offset", self.cell_offset, len(self.strides))

    @property
    def inputs(self) -> list[str]:
        """The names of a batch's arrays that a call takes beside the maps, in order."""
        return ["scale_factor", "im_shape"] if self.clip_boxes else ["scale_factor"]

    @paddle.jit.not_to_static  # see `GFL.features`
    def __call__(self, features: Features, integral: Callable[[Tensor], Tensor], scale_factor: Tensor,
                 im_shape: Tensor | None = None) -> dict[str, Tensor]:
        """Args:
            features: the `gfl.Features` of the images.
            integral: its `Integral`.
            scale_factor: [N, 2] input size / original size, height first.
            im_shape: [N, 2] input size without padding, height first, for `clip_boxes`.

        Returns: {"bbox": [M, 6], "bbox_num": [N]} as `MultiClassNMS`; with `sigma` bbox is [M, 14].
        """
        bbox, bbox_num = self.nms(*self._cells(features, integral, scale_factor, im_shape), self.threshold())
        return {"bbox": bbox, "bbox_num": bbox_num}

    @paddle.jit.not_to_static
    def decode(self, features: Features, integral: Callable[[Tensor], Tensor], scale_factor: Tensor,
               im_shape: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes [N, A, 4] in pixels of the original image, with `sigma` [N, A, 12], and scores [N, A, C] of all cells.
        """
        boxes, scores = self._cells(features, integral, scale_factor, im_shape)
        return boxes, scores.transpose([0, 2, 1])

    def _cells(self, features: Features, integral: Callable[[Tensor], Tensor], scale_factor: Tensor,
               im_shape: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes [N, A, 4 or 12] and scores [N, C, A]."""
        with operators.without_amp():  # it would compute the integral, a matmul, in half precision
            cls_maps, reg_maps = ([operators.float32(x) for x in maps] for maps in (features.cls, features.reg))
            boxes = self.boxes(reg_maps, integral)
            if self.clip_boxes:
                boxes = clip_boxes(boxes, im_shape)
            scale = paddle.concat([scale_factor.flip([1])] * 2, axis=1).unsqueeze(1)  # PaddleDetection: (y, x)
            boxes = boxes / scale
            if self.sigma:
                sigma, top2 = self.spreads(reg_maps, integral)
                boxes = paddle.concat([boxes, sigma / scale, top2], axis=2)
            return boxes, self.scores(cls_maps)

    def boxes(self, reg_maps: Sequence[Tensor], integral: Callable[[Tensor], Tensor]) -> Tensor:
        """L maps [N, 4 R, H, W] -> [N, A, 4] in pixels of the padded input."""
        levels = []
        for reg, stride, offset in zip(reg_maps, self.strides, self.cell_offsets):
            # An exported graph learns the size of its input when it runs.
            height, width = reg.shape[2:] if paddle.in_dynamic_mode() else paddle.shape(reg)[2:]
            centers = cell_centers(height, width, 1.0, offset=offset)
            distances = integral(reg.flatten(2).transpose([0, 2, 1]))
            # Scaled last: Paddle 2.6's predictor moves a factor after a matmul into its weight, which levels share.
            levels.append(distances_to_boxes(centers, distances) * stride)
        return paddle.concat(levels, axis=1)

    def spreads(self, reg_maps: Sequence[Tensor], integral: Any) -> tuple[Tensor, Tensor]:
        """L maps [N, 4 R, H, W] -> of the distributions that the sides x1, y1, x2, y2 are the means of, each [N, A, 4]:
        the standard deviations in pixels of the padded input, and the share of the two greatest bins together."""
        levels = [integral.spread(reg.flatten(2).transpose([0, 2, 1])) for reg in reg_maps]
        return (paddle.concat([level[:, :, :4] * stride for level, stride in zip(levels, self.strides)], axis=1),
                paddle.concat([level[:, :, 4:] for level in levels], axis=1))

    def scores(self, cls_maps: Sequence[Tensor]) -> Tensor:
        """L maps [N, C, H, W] -> [N, C, A] in 0..1.

        GFLv2's maps are the joint score itself, the paper's confidence; its last channel is never a class.
        PaddleDetection: takes a second sigmoid of it, over all channels (`upstream_scores`).
        """
        scores = paddle.concat([x.flatten(2) for x in cls_maps], axis=2)
        if self.joint_scores and not self.upstream_scores:
            return scores[:, :self.num_classes]
        scores = operators.sigmoid(scores)
        return scores[:, :-1] * scores[:, -1:] if self.separate_quality else scores

    def threshold(self) -> float:
        """The YAML's threshold t on our scale: PaddleDetection keeps sigmoid(joint score) > t."""
        threshold = self.nms.score_threshold
        if not self.joint_scores or self.upstream_scores:
            return threshold
        return math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else (-1.0 if threshold <= 0 else 1.0)


def _with_more_cells(boxes: Tensor, scores: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Boxes [N, A, 4] and scores [N, C, A] with cells behind them that are never candidates, so that there are at least
    `least`. A graph that is exported learns A when it runs, and gets that many.

    They are concatenated, since the kernel of oneDNN that pads reads beyond its memory (Paddle 3.3.1).
    """
    images, classes, cells = scores.shape if paddle.in_dynamic_mode() else (paddle.shape(scores)[0], scores.shape[1], 0)
    if cells >= least:
        return boxes, scores
    return (paddle.concat([boxes, paddle.full([images, least - cells, boxes.shape[2]], 0.0)], axis=1),
            paddle.concat([scores, paddle.full([images, classes, least - cells], NEVER)], axis=2))
