"""Maps + targets -> losses. Dense tensor maths throughout: masks instead of indices, so that nothing in a training
step makes the device wait for the host.

GFL: Li et al., https://arxiv.org/abs/2006.04388; GIoU: Rezatofighi et al., https://arxiv.org/abs/1902.09630.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ..kinds import NotNegative, Positive, Share, per_level
from ..system import dist
from .boxes import boxes_to_distances, cell_centers, distances_to_boxes, giou, iou
from .gfl import Features

EPSILON_TO_LAST_BIN = 0.1  # PaddleDetection: DFL targets end at reg_max - 0.1, so that a right neighbour exists


@dataclass(eq=False)
class QualityFocalLoss:
    """Focal loss towards the IoU of the predicted box (GFL, equation 5).

    Attributes:
        use_sigmoid: the prediction is a logit; else a probability (GFLv2).
        beta: exponent of the modulating factor.
        loss_weight: factor of the result.
    """

    use_sigmoid: bool = True
    beta: NotNegative = 2.0
    loss_weight: NotNegative = 1.0

    def __call__(self, prediction: Tensor, quality: Tensor) -> Tensor:
        """prediction and quality [..., C] -> [..., C]; quality is the IoU at the true class and 0 elsewhere."""
        if self.use_sigmoid:
            probability = F.sigmoid(prediction)
            entropy = F.binary_cross_entropy_with_logits(prediction, quality, reduction="none")
        else:
            probability = prediction
            # NaN goes round binary_cross_entropy, which stops the process then, on a GPU without a word.
            bad = paddle.isnan(prediction)
            entropy = F.binary_cross_entropy(paddle.where(bad, paddle.full_like(prediction, 0.5), prediction), quality,
                                             reduction="none")
            entropy = paddle.where(bad, prediction, entropy)
        return self.loss_weight * entropy * (quality - probability).abs().pow(self.beta)


@dataclass(eq=False)
class FocalLoss:
    """Focal loss towards 1 at the true class, whatever the box (Lin et al., https://arxiv.org/abs/1708.02002, equation
    5): what GFL's quality focal loss stands in for.

    Attributes:
        alpha: weight of a true class; others have 1 - alpha.
        gamma: exponent of the modulating factor.
        loss_weight: factor of the result.
    """

    alpha: Share = 0.25
    gamma: NotNegative = 2.0
    loss_weight: NotNegative = 1.0
    use_sigmoid: ClassVar[bool] = True  # as that of QualityFocalLoss

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits [..., C] and target [..., C] of 0 and 1 -> [..., C]."""
        entropy = F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        weight = self.alpha * target + (1 - self.alpha) * (1 - target)
        return self.loss_weight * weight * entropy * (target - F.sigmoid(prediction)).abs().pow(self.gamma)


@dataclass(eq=False)
class DistributionFocalLoss:
    """Cross entropy towards the two bins around a distance, weighted by nearness (GFL, equation 6).

    Attributes:
        loss_weight: factor of the result.
    """

    loss_weight: NotNegative = 1.0

    def __call__(self, logits: Tensor, distance: Tensor) -> Tensor:
        """logits [..., R], distance [...] from 0 to below R - 1 -> [...]."""
        bins = paddle.arange(logits.shape[-1], dtype="float32")
        # The two bins around the distance get 1 - |distance - bin|, all others 0: no index that NaN could break.
        target = (1 - (distance.unsqueeze(-1) - bins).abs()).clip(min=0)
        return -self.loss_weight * (target * F.log_softmax(logits, axis=-1)).sum(axis=-1)


@dataclass(eq=False)
class GIoULoss:
    """1 - GIoU (Rezatofighi et al., Generalized Intersection over Union, equation 4).

    Attributes:
        loss_weight: factor of the result.
        eps: added to divisors.
    """

    loss_weight: NotNegative = 1.0
    eps: Positive = 1e-10

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Boxes [..., 4] -> [...]."""
        return self.loss_weight * (1 - giou(prediction, target, eps=self.eps))


@dataclass(eq=False)
class GFLCriterion:
    """The three losses of GFL with PaddleDetection's weights and normalisers.

    Attributes:
        strides, cell_offset, num_classes: as in `decode.Decoder`.
        reg_max: largest distance, in strides.
        loss_class, loss_dfl, loss_bbox: the terms. Without distributions (reg_max 0) loss_dfl counts nothing.
        quality_branch: "iou" or "centerness": one more term, the cross entropy of the branch at the positive cells.
        distillation: more terms, from what a teacher says about the batch (see `distill`), or None.
    """

    strides: tuple[int, ...]
    num_classes: int
    reg_max: int
    loss_class: QualityFocalLoss | FocalLoss
    loss_dfl: DistributionFocalLoss
    loss_bbox: GIoULoss
    cell_offset: float | Sequence[float] = 0.0
    distillation: Callable[..., dict[str, Tensor]] | None = None
    quality_branch: str | None = None

    def __post_init__(self) -> None:
        self.cell_offsets = per_level("cell_offset", self.cell_offset, len(self.strides))

    def __call__(self, features: Features, integral: Callable[[Tensor], Tensor],
                 batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Args:
            features: the `gfl.Features` of the images.
            integral: the head's `Integral`.
            batch: `labels`, `label_weights`, `bbox_targets`, `pos_num` (see `ppgfl.data`); `teacher` for distillation.

        Returns: {"loss", their sum, "loss_qfl", "loss_bbox", "loss_dfl", "loss_quality" with a branch for it, and those
            of the distillation}, float32 tensors without dimensions.
        """
        with paddle.amp.auto_cast(enable=False):
            cls, reg = (by_cell(maps).astype("float32") for maps in (features.cls, features.reg))
            if self.quality_branch is not None:
                cls, quality_logits = cls[..., :-1], cls[..., -1]
            centers, strides = self._cells(features.reg)
            labels = batch["labels"]
            positive = (labels < self.num_classes).astype("float32")

            predicted = distances_to_boxes(centers, integral(reg))  # in strides, as all boxes below
            target = batch["bbox_targets"] / strides
            # Background cells have no box: their own prediction stands in, for which every term is finite.
            target = paddle.where(positive.unsqueeze(-1) > 0, target, predicted.detach())

            overlap = iou(predicted.detach(), target) * positive
            quality = F.one_hot(labels, self.num_classes + 1)[..., :cls.shape[-1]]
            if not isinstance(self.loss_class, FocalLoss):
                quality = quality * overlap.unsqueeze(-1)
            # PaddleDetection: sigmoid here too where the maps hold probabilities already (GFLv2)
            weight = F.sigmoid(cls.detach()).max(axis=-1) * positive

            sides = boxes_to_distances(centers, target)
            num_positive = dist.mean(batch["pos_num"].astype("float32").sum()).clip(min=1.0)
            weight_sum = dist.mean(weight.sum()).clip(min=1.0)
            qfl = self.loss_class(cls, quality).sum(axis=-1) * batch["label_weights"]
            loss_qfl = qfl.sum() / num_positive
            loss_bbox = (self.loss_bbox(predicted, target) * weight).sum() / weight_sum
            loss_dfl = (self._dfl(reg, sides) * weight).sum() / weight_sum
            terms = {"loss_qfl": loss_qfl, "loss_bbox": loss_bbox, "loss_dfl": loss_dfl}
            if self.quality_branch is not None:
                wanted = overlap if self.quality_branch == "iou" else centerness(sides) * positive
                entropy = F.binary_cross_entropy_with_logits(quality_logits, wanted, reduction="none")
                terms["loss_quality"] = (entropy * positive).sum() / num_positive
            if self.distillation is not None:
                teacher = Features(*batch["teacher"])  # in a compiled graph it has become a list
                terms.update(self.distillation(features, teacher, batch, positive, weight))
        return {"loss": sum(terms.values()), **terms}

    def _dfl(self, reg: Tensor, sides: Tensor) -> Tensor:
        """Logits [N, A, 4 R] and true distances [N, A, 4] in strides -> [N, A]."""
        if self.reg_max == 0:
            return paddle.zeros(sides.shape[:-1])
        logits = reg.reshape([*reg.shape[:-1], 4, self.reg_max + 1])
        return self.loss_dfl(logits, sides.clip(0, self.reg_max - EPSILON_TO_LAST_BIN)).mean(axis=-1)

    def _cells(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Centres [A, 2] in strides and strides [A, 1] of all cells."""
        centers, strides = [], []
        for level, stride, offset in zip(maps, self.strides, self.cell_offsets):
            center = cell_centers(level.shape[2], level.shape[3], 1.0, offset=offset)
            centers.append(center)
            strides.append(paddle.full([center.shape[0], 1], float(stride)))
        return paddle.concat(centers), paddle.concat(strides)


def centerness(distances: Tensor) -> Tensor:
    """Left, top, right, bottom [..., 4] -> [...] from 1 in the middle of a box to 0 at its border and outside (FCOS,
    equation 3)."""
    left, top, right, bottom = (distances[..., side].clip(min=0) for side in range(4))
    across, down = (paddle.minimum(a, b) / paddle.maximum(a, b).clip(min=1e-6)
                    for a, b in ((left, right), (top, bottom)))
    return (across * down).sqrt()


def by_cell(maps: Sequence[Tensor]) -> Tensor:
    """L maps [N, K, H, W] -> [N, A, K]."""
    return paddle.concat([x.flatten(2).transpose([0, 2, 1]) for x in maps], axis=1)
