"""The GFL head: towers, class map, box distributions, and GFLv2's quality predictor.

GFL: Li et al., https://arxiv.org/abs/2006.04388. GFLv2: Li et al., https://arxiv.org/abs/2011.12885.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, Normal

from ..errors import ConfigError
from ..kinds import Bins, Channels, Classes, LastBin, Layers, ShareInside, Strides
from . import operators
from .layers import ConvNorm, DeformConv, normalization


class FCOSFeat(nn.Layer):
    """Two towers of 3x3 convolutions, shared by all levels: one for classes, one for boxes.

    Args:
        feat_in, feat_out: channels going in and coming out.
        num_convs: convolutions per tower.
        norm_type: "gn", "bn" or "sync_bn".
        use_dcn: deformable convolutions.
    """

    def __init__(self, feat_in: Channels = 256, feat_out: Channels = 256, num_convs: Layers = 4,
                 norm_type: Literal["bn", "sync_bn", "gn"] = "bn", use_dcn: bool = False) -> None:
        super().__init__()
        self.feat_in, self.feat_out = feat_in, feat_out
        self.cls_tower: list[ConvNorm] = []
        self.reg_tower: list[ConvNorm] = []
        for i in range(num_convs):
            c_in = feat_in if i == 0 else feat_out
            for kind, tower in (("cls", self.cls_tower), ("reg", self.reg_tower)):
                layer = ConvNorm(_tower_conv(c_in, feat_out, use_dcn), normalization(norm_type, feat_out), relu=True)
                tower.append(self.add_sublayer(f"fcos_head_{kind}_tower_conv_{i}", layer))

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """[N, feat_in, H, W] -> class features, box features, both [N, feat_out, H, W]."""
        cls = reg = level
        for cls_layer, reg_layer in zip(self.cls_tower, self.reg_tower):
            cls, reg = cls_layer(cls), reg_layer(reg)
        return cls, reg


def _tower_conv(c_in: int, c_out: int, use_dcn: bool) -> nn.Layer:
    weight_attr = ParamAttr(initializer=Normal(0.0, 0.01))
    if use_dcn:
        return DeformConv(c_in, c_out, 3, weight_attr=weight_attr)
    # PaddleDetection: the biases of tower convolutions learn at twice the rate
    bias_attr = ParamAttr(initializer=Constant(0.0), learning_rate=2.0)
    return nn.Conv2D(c_in, c_out, 3, padding=1, weight_attr=weight_attr, bias_attr=bias_attr)


class DGQP(nn.Layer):
    """Distribution-guided quality predictor (GFLv2, section 3.2): how sharp the four distributions are -> quality.

    Args:
        reg_topk: the largest probabilities of each side that are looked at.
        reg_channels: hidden channels.
        add_mean: look at their mean as well.
    """

    def __init__(self, reg_topk: Bins = 4, reg_channels: Channels = 64, add_mean: bool = True) -> None:
        super().__init__()
        self.reg_topk = reg_topk
        self.add_mean = add_mean
        conv1 = nn.Conv2D(4 * (reg_topk + add_mean), reg_channels, 1,
                          weight_attr=ParamAttr(initializer=Normal(0.0, 0.01)))
        conv2 = nn.Conv2D(reg_channels, 1, 1, weight_attr=ParamAttr(initializer=Normal(0.0, 0.01)))
        # PaddleDetection: each convolution stands in its checkpoints under two names
        self.reg_conv1 = self.add_sublayer("dgqp_reg_conv1", conv1)
        self.reg_conv2 = self.add_sublayer("dgqp_reg_conv2", conv2)

    def forward(self, distribution: Tensor) -> Tensor:
        """Logits [N, 4 R, H, W] of the four sides -> quality [N, 1, H, W] in 0..1."""
        # 0 keeps a dimension as it is, which an exported graph of any size needs.
        per_side = distribution.transpose([0, 2, 3, 1]).reshape([0, 0, 0, 4, -1])
        statistics = paddle.topk(F.softmax(per_side, axis=-1), self.reg_topk, axis=-1)[0]
        if self.add_mean:
            statistics = paddle.concat([statistics, statistics.mean(axis=-1, keepdim=True)], axis=-1)
        hidden = F.relu(self.reg_conv1(statistics.flatten(3).transpose([0, 3, 1, 2])))
        return operators.sigmoid(operators.float32(self.reg_conv2(hidden)))


class Integral(nn.Layer):
    """Distribution over 0..reg_max -> its expectation (GFL, equation 6). With a reg_max of 0 there is none (a Dirac
    delta): the exponential of the one number of a side (FCOS, https://arxiv.org/abs/1904.01355, section 3.1)."""

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.register_buffer("project", paddle.linspace(0, reg_max, reg_max + 1))

    def forward(self, logits: Tensor) -> Tensor:
        """[..., 4 R] -> [..., 4] in units of the level's stride."""
        if self.reg_max == 0:
            return operators.exp(logits)
        per_side = logits.reshape([0] * (logits.ndim - 1) + [4, self.reg_max + 1])
        return operators.matmul(F.softmax(per_side, axis=-1), self.project)

    def spread(self, logits: Tensor) -> Tensor:
        """[..., 4 R] -> [..., 8]: the standard deviations of the four sides in units of the level's stride, and the
        shares of the two greatest bins of each, together."""
        if self.reg_max == 0:
            raise ConfigError("sigma: with reg_max 0 a side is one number, without a distribution to read it from")
        per_side = logits.reshape([0] * (logits.ndim - 1) + [4, self.reg_max + 1])
        shares = F.softmax(per_side, axis=-1)
        off = self.project - operators.matmul(shares, self.project).unsqueeze(-1)  # E[x²] - E[x]² would lose digits
        variance = (shares * off * off).mean(axis=-1) * (self.reg_max + 1)  # a sum, see `operators`
        return paddle.concat([operators.sqrt(variance), paddle.topk(shares, 2, axis=-1)[0].mean(axis=-1) * 2], axis=-1)


class ScaleReg(nn.Layer):
    """One learnable factor for the box map of a level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale_reg = self.create_parameter([1], attr=ParamAttr(initializer=Constant(1.0)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_reg


class GFLHead(nn.Layer):
    """Level features -> raw class and box maps, the same in training and in evaluation.

    Args:
        conv_feat: the towers (FCOSFeat).
        dgqp_module: GFLv2's quality predictor (DGQP), or None for GFL.
        num_classes: C.
        fpn_stride: the level's strides, powers of two.
        prior_prob: class probability that the class map starts with.
        reg_max: largest distance, in strides; R = reg_max + 1. 0: a side is one number, not a distribution.
        feat_in_chan: channels of the towers' output.
        quality_branch: what GFL does without: one more convolution that predicts the IoU of the box ("iou") or the
            centerness of the cell ("centerness", FCOS), by which class scores are multiplied in evaluation.
    """

    def __init__(self, conv_feat: FCOSFeat, dgqp_module: DGQP | None = None, *, num_classes: Classes,
                 fpn_stride: Strides = (8, 16, 32, 64, 128), prior_prob: ShareInside = 0.01,
                 reg_max: LastBin = 16, feat_in_chan: Channels = 256,
                 quality_branch: Literal["iou", "centerness"] | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fpn_stride = list(fpn_stride)
        self.conv_feat = conv_feat
        self.feat_in_chan = feat_in_chan
        if dgqp_module is not None and dgqp_module.reg_topk > reg_max + 1:
            raise ConfigError(f"DGQP.reg_topk: {dgqp_module.reg_topk}; of reg_max {reg_max} there are {reg_max + 1}")
        if dgqp_module is not None and quality_branch is not None:
            raise ConfigError("quality_branch: GFLv2's dgqp_module predicts the quality already; set one to null")
        self.dgqp_module = dgqp_module
        self.quality_branch = quality_branch
        # PaddleDetection: GFLv2 has one channel more, which is never a class
        cls_channels = num_classes if dgqp_module is None else num_classes + 1
        self.gfl_head_cls = _prediction_conv(feat_in_chan, cls_channels, -math.log((1 - prior_prob) / prior_prob))
        self.gfl_head_reg = _prediction_conv(feat_in_chan, 4 * (reg_max + 1), 0.0)
        if quality_branch is not None:
            self.gfl_head_quality = _prediction_conv(feat_in_chan, 1, 0.0)
        self.scales_regs = [self.add_sublayer(f"p{_level(stride)}_feat", ScaleReg()) for stride in self.fpn_stride]
        self.distribution_project = Integral(reg_max)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """levels: L maps [N, feat_in, H_l, W_l].

        Returns:
            cls: L maps [N, C, H_l, W_l] of logits; for GFLv2 [N, C + 1, H_l, W_l] of sigmoid(logit) * quality; with a
                quality branch [N, C + 1, H_l, W_l], of which the last is the logit of the quality.
            reg: L maps [N, 4 R, H_l, W_l] of distribution logits; sides in the order left, top, right, bottom.
        """
        cls_maps, reg_maps = [], []
        for level, scale in zip(levels, self.scales_regs):
            cls_feat, reg_feat = self.conv_feat(level)
            cls, reg = self.gfl_head_cls(cls_feat), scale(self.gfl_head_reg(reg_feat))
            if self.dgqp_module is not None:
                # In half precision all above 0.9998 would be 1, where the gradient of cross entropy has no end.
                cls = operators.sigmoid(operators.float32(cls)) * self.dgqp_module(reg)
            if self.quality_branch is not None:
                cls = paddle.concat([cls, self.gfl_head_quality(reg_feat)], axis=1)
            cls_maps.append(cls)
            reg_maps.append(reg)
        return cls_maps, reg_maps


def _level(stride: int) -> int:
    level = int(stride).bit_length() - 1
    if 2**level != stride:
        raise ConfigError(f"GFLHead.fpn_stride: {stride!r} is not a power of two")
    return level


def _prediction_conv(c_in: int, c_out: int, bias: float) -> nn.Conv2D:
    return nn.Conv2D(c_in, c_out, 3, padding=1, weight_attr=ParamAttr(initializer=Normal(0.0, 0.01)),
                     bias_attr=ParamAttr(initializer=Constant(bias)))
