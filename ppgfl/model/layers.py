"""Convolution and normalisation as the backbone, the neck and the towers share them."""
from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, Uniform
from paddle.regularizer import L2Decay
from paddle.vision.ops import DeformConv2D

from ..errors import ConfigError
from . import operators

GROUPS = 32  # of GroupNorm


def normalization(norm_type: str, channels: int, *, norm_decay: float = 0.0, frozen: bool = False,
                  learning_rate: float = 1.0) -> nn.Layer:
    """The layer that a YAML `norm_type` names: "bn", "sync_bn" or "gn" (32 groups).

    "sync_bn" is a plain BatchNorm here: training on several processes converts it, and its entries in a checkpoint
    are the same. A frozen one uses its stored statistics in training too, and its parameters get no gradient.
    """
    if norm_type not in ("bn", "sync_bn", "gn"):
        raise ConfigError(f"norm_type: {norm_type!r}; allowed: bn, sync_bn, gn")

    def attr() -> ParamAttr:
        rate = 0.0 if frozen else learning_rate
        return ParamAttr(learning_rate=rate, regularizer=L2Decay(norm_decay), trainable=not frozen)

    if norm_type == "gn":
        if channels % GROUPS:
            raise ConfigError(f"norm_type: gn has {GROUPS} groups, and {channels} channels are no multiple of that; "
                              "change FPN.out_channel or FCOSFeat.feat_out, or take bn")
        return nn.GroupNorm(GROUPS, channels, weight_attr=attr(), bias_attr=attr())
    use_global_stats = True if frozen else None  # PaddleDetection: frozen statistics are used in training too
    norm = nn.BatchNorm2D(channels, weight_attr=attr(), bias_attr=attr(), use_global_stats=use_global_stats)
    norm.is_shared = norm_type == "sync_bn"
    return norm


def share_statistics(model: nn.Layer, *, all_layers: bool) -> None:
    """Let the BatchNorm layers with `norm_type: sync_bn`, or all, take their statistics from all processes.

    Frozen ones, whose statistics stand, stay as they are: Paddle's own conversion of a model would thaw them.
    """
    for parent in model.sublayers(include_self=True):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2D) and not norm._use_global_stats and (all_layers or norm.is_shared):
                parent.add_sublayer(name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))


def fold_norm(conv: nn.Conv2D, norm: nn.BatchNorm2D) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals `conv` followed by the BatchNorm `norm` in evaluation."""
    scale = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
    shift = norm.bias - norm._mean * scale
    bias = shift if conv.bias is None else conv.bias * scale + shift
    return conv.weight * scale.reshape([-1, 1, 1, 1]), bias


class ConvNorm(nn.Layer):
    """Convolution, normalisation, ReLU; its children have the names of a checkpoint's entries.

    Args:
        conv: the convolution.
        norm: the normalisation.
        relu: whether ReLU follows.
        conv_offset: predicts offsets and masks when `conv` is deformable.
    """

    def __init__(self, conv: nn.Layer, norm: nn.Layer, *, relu: bool = False,
                 conv_offset: nn.Conv2D | None = None) -> None:
        super().__init__()
        if conv_offset is not None:
            self.conv_offset = conv_offset
        self.conv = conv
        self.norm = norm
        self.relu = relu
        self.deformable = conv_offset is not None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W']."""
        x = deform(x, self.conv_offset, self.conv) if self.deformable else self.conv(x)
        x = self.norm(x)
        return F.relu(x) if self.relu else x


class SqueezeExcitation(nn.Layer):
    """One factor for each channel, from the means of all (Hu et al., Squeeze-and-Excitation Networks)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = _even_linear(channels, channels // reduction)
        self.extract = _even_linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        means = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return operators.sigmoid(self.extract(F.relu(self.squeeze(means)))).unsqueeze([2, 3]) * x


def _even_linear(c_in: int, c_out: int) -> nn.Linear:
    """PaddleDetection: its weights start even in +-1 / sqrt(c_in)."""
    bound = c_in ** -0.5
    return nn.Linear(c_in, c_out, weight_attr=ParamAttr(initializer=Uniform(-bound, bound)))


class DeformConv(nn.Layer):
    """Modulated deformable convolution with its offset predictor (Zhu et al., Deformable ConvNets v2).

    Used by towers with `use_dcn`; the names of its children are those of PaddleDetection's checkpoints.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *,
                 weight_attr: ParamAttr | None = None) -> None:
        super().__init__()
        # PaddleDetection: in towers both biases learn at twice the rate and do not decay
        biases = [ParamAttr(initializer=Constant(0.0), regularizer=L2Decay(0.0), learning_rate=2.0) for _ in range(2)]
        self.conv_offset = offset_conv(in_channels, kernel_size, bias_attr=biases[0])
        self.conv_dcn = DeformConv2D(in_channels, out_channels, kernel_size, padding=kernel_size // 2,
                                     weight_attr=weight_attr, bias_attr=biases[1])

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W]."""
        return deform(x, self.conv_offset, self.conv_dcn)


def offset_conv(in_channels: int, kernel_size: int, *, stride: int = 1,
                bias_attr: ParamAttr | None = None) -> nn.Conv2D:
    """The convolution that predicts 2 offsets and 1 mask per kernel position; it starts as all zeros."""
    return nn.Conv2D(
        in_channels, 3 * kernel_size**2, kernel_size, stride=stride, padding=kernel_size // 2,
        weight_attr=ParamAttr(initializer=Constant(0.0)), bias_attr=bias_attr or ParamAttr(initializer=Constant(0.0)))


def deform(x: Tensor, conv_offset: nn.Conv2D, conv: DeformConv2D) -> Tensor:
    """Apply the deformable `conv` at the offsets and with the masks that `conv_offset` predicts."""
    predicted = conv_offset(x)
    points = predicted.shape[1] // 3
    offset, mask = paddle.split(predicted, [2 * points, points], axis=1)
    return conv(x, offset, mask=operators.sigmoid(mask))
