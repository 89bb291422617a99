"""A student learns from a teacher: what the teacher says about a batch, and the losses of the differences.

LD: Zheng et al., Localization Distillation for Dense Object Detection, https://arxiv.org/abs/2102.12252.
CWD: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, https://arxiv.org/abs/2011.13256.

Student and teacher are compared by their `gfl.Features`: the neck's levels and the head's maps.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ..errors import ConfigError
from ..kinds import Channels, NotNegative, Positive
from .gfl import GFL, Features
from .losses import by_cell


class Teacher:
    """A trained detector that adds what it finds to a batch. It is part of no model: it gets no gradients, its
    BatchNorm stays as it is, and no checkpoint of the student holds it.

    Args:
        model: a `GFL` with its weights.
    """

    def __init__(self, model: GFL) -> None:
        model.eval()
        for parameter in model.parameters():
            parameter.stop_gradient = True
        self.model = model

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with `teacher`: its `gfl.Features` of the images."""
        with paddle.no_grad():
            return {**batch, "teacher": self.model.features(batch["image"])}


def check_fit(teacher: GFL, student: GFL) -> None:
    """Raise a ConfigError unless all maps of two `GFL` that their distillation compares have the same shapes."""
    facts: dict[str, Callable[[GFL], Any]] = {
        "num_classes": lambda model: model.head.num_classes,
        "reg_max": lambda model: model.head.distribution_project.reg_max,
        "fpn_stride": lambda model: model.head.fpn_stride,
        "quality_branch": lambda model: model.head.quality_branch,
        "dgqp_module": lambda model: "DGQP" if model.head.dgqp_module is not None else None}
    if isinstance(student.criterion.distillation, ChannelWiseDistillation):
        facts["FPN.out_channel"] = lambda model: model.neck.out_channel
    if student.head.dgqp_module is not None:
        raise ConfigError("dgqp_module: distillation compares class logits, which GFLv2 lacks; set it to null")
    if student.head.quality_branch is not None or student.head.distribution_project.reg_max == 0:
        raise ConfigError("distillation compares the logits of classes and of distributions; set quality_branch to "
                          "null, and reg_max to 1 or more")
    for name, of in facts.items():
        if of(teacher) != of(student):
            raise ConfigError(f"teacher: its {name} is {of(teacher)}, that of the student {of(student)}; distillation "
                              "needs the same: change one of the two (-o teacher.KEY=VALUE reaches the teacher)")


@dataclass(eq=False)
class KnowledgeDistillationKLDivLoss:
    """KL divergence of softened distributions, divided by the number of their entries (LD, section 3.2).

    Attributes:
        loss_weight: factor of the result.
        T: temperature, which softens both distributions; 1 or more.
    """

    loss_weight: NotNegative = 1.0
    T: float = 10

    def __post_init__(self) -> None:
        if not isinstance(self.T, (int, float)) or self.T < 1:
            raise ConfigError(f"KnowledgeDistillationKLDivLoss.T: {self.T!r}; it must be 1 or more")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits [..., K] of both -> [...]."""
        log_student = F.log_softmax(student / self.T, axis=-1)
        log_teacher = F.log_softmax(teacher / self.T, axis=-1)
        return self.loss_weight * self.T**2 * (log_teacher.exp() * (log_teacher - log_student)).mean(axis=-1)


@dataclass(eq=False)
class CWDFeatureLoss:
    """KL divergence between the spatial distributions of each channel in student and teacher (CWD, section 3.2).

    Attributes:
        student_channels, teacher_channels: must be equal; otherwise without effect.
        normalize: give every channel mean 0 and deviation 1 over the batch first.
        tau: temperature.
        weight: factor of the result.
    """

    student_channels: Channels | None = None
    teacher_channels: Channels | None = None
    normalize: bool = False
    tau: Positive = 1.0
    weight: NotNegative = 1.0

    def __post_init__(self) -> None:
        if self.student_channels != self.teacher_channels:
            raise ConfigError(f"CWDFeatureLoss: student_channels {self.student_channels}, teacher_channels "
                              f"{self.teacher_channels}; they must be equal")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps [N, K, H, W] of both -> the mean over images and channels."""
        eps = 1e-5
        student, teacher = (F.softmax((_normalized(x) if self.normalize else x).flatten(2) / self.tau, axis=-1)
                            for x in (student, teacher))
        difference = teacher * (paddle.log(eps + teacher) - paddle.log(eps + student))
        return self.weight * difference.sum(axis=-1).mean()


def _normalized(x: Tensor) -> Tensor:
    centered = x - x.mean(axis=[0, 2, 3], keepdim=True)
    return centered / (x.std(axis=[0, 2, 3], keepdim=True) + 1e-6)


@dataclass(eq=False)
class LocalizationDistillation:
    """The losses of LD: the distributions of the positive cells and of the region around objects, and the classes of
    the positive cells.

    Attributes:
        loss_ld, loss_ld_vlr, loss_kd: a `KnowledgeDistillationKLDivLoss` for each of the three.
    """

    loss_ld: KnowledgeDistillationKLDivLoss
    loss_ld_vlr: KnowledgeDistillationKLDivLoss
    loss_kd: KnowledgeDistillationKLDivLoss

    def __call__(self, student: Features, teacher: Features, batch: Mapping[str, Any], positive: Tensor,
                 weight: Tensor) -> dict[str, Tensor]:
        """Args:
            student, teacher: their `gfl.Features`.
            batch: with `vlr_regions` and `label_weights` [N, A].
            positive: [N, A] 1 where a cell is responsible for a box.
            weight: [N, A] what such a cell counts in the losses of boxes.

        Returns: {"loss_ld", "loss_ld_vlr", "loss_kd"}.
        """
        cls, sides = self._by_cell(student)
        soft_cls, soft_sides = self._by_cell(teacher)
        # PaddleDetection: divided by 4 and 16, not by the number or the weight of the cells
        loss_ld = (self.loss_ld(sides, soft_sides).sum(axis=-1) * weight).sum() / 4
        loss_ld_vlr = (self.loss_ld_vlr(sides, soft_sides).sum(axis=-1) * batch["vlr_regions"]).sum() / 16
        # PaddleDetection: the mean over the positive cells of each level, all levels added up
        kd = self.loss_kd(cls, soft_cls) * batch["label_weights"] * positive
        sizes = [level.shape[2] * level.shape[3] for level in student.cls]
        loss_kd = sum(of_level.sum() / count.sum().clip(min=1.0)
                      for of_level, count in zip(kd.split(sizes, axis=1), positive.split(sizes, axis=1)))
        return {"loss_ld": loss_ld, "loss_ld_vlr": loss_ld_vlr, "loss_kd": loss_kd}

    @staticmethod
    def _by_cell(features: Features) -> tuple[Tensor, Tensor]:
        """Class logits [N, A, C], distribution logits [N, A, 4, R]."""
        cls, reg = (by_cell(maps).astype("float32") for maps in (features.cls, features.reg))
        return cls, reg.reshape([0, 0, 4, -1])


@dataclass(eq=False)
class ChannelWiseDistillation:
    """CWD on the class maps and on the neck's maps, one loss per level for either.

    Attributes:
        loss: the `CWDFeatureLoss`.
        strides: of the levels, which give the losses their names: 8 is P3.
    """

    loss: CWDFeatureLoss
    strides: tuple[int, ...]

    def __call__(self, student: Features, teacher: Features, batch: Mapping[str, Any], positive: Tensor,
                 weight: Tensor) -> dict[str, Tensor]:
        """As `LocalizationDistillation`; returns {"loss_cwd_cls_p3", "loss_cwd_neck_p3", ...}."""
        losses = {}
        for kind, ours, theirs in (("cls", student.cls, teacher.cls), ("neck", student.levels, teacher.levels)):
            for stride, a, b in zip(self.strides, ours, theirs):
                name = f"loss_cwd_{kind}_p{int(stride).bit_length() - 1}"
                losses[name] = self.loss(a.astype("float32"), b.astype("float32"))
        return losses
