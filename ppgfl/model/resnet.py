"""ResNet and ResNet-vd backbones (He et al., https://arxiv.org/abs/1512.03385; vd: https://arxiv.org/abs/1812.01187).

Every name here is the name of an entry in PaddleDetection's checkpoints: "res3.res3a.branch2b.conv.weight".
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.vision.ops import DeformConv2D

from ..errors import ConfigError
from ..kinds import NotNegative, Range
from .layers import ConvNorm, normalization, offset_conv

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STAGE_WIDTHS = (64, 128, 256, 512)
STAGE_STRIDES = (4, 8, 16, 32)


class ResNet(nn.Layer):
    """Image -> the feature maps of the stages in `return_idx`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        ch_in: channels of the stem.
        variant: "a" strides in the first 1x1 convolution of a bottleneck, "b" in the 3x3; "c" has a stem of three 3x3
            convolutions besides; "d" also average-pools before the shortcut's convolution.
        lr_mult_list: learning-rate factor of each of the four stages.
        norm_type: "bn" or "sync_bn".
        norm_decay: weight decay of the normalisation's parameters.
        freeze_norm: keep the normalisation's parameters and statistics.
        freeze_at: keep the stem and the stages up to this index (-1 keeps nothing).
        return_idx: indices (0 to 3) of the stages whose maps are returned.
        dcn_v2_stages: indices of the stages whose 3x3 convolutions are deformable.
        num_stages: stages that exist at all.

    Attributes:
        depth: as given.
        channels, strides: of the returned maps.

    Raises:
        ConfigError: a value outside of what is listed above.
    """

    def __init__(self, depth: int = 50, ch_in: Annotated[int, Range(2, 4096)] = 64, variant: str = "b",
                 lr_mult_list: Sequence[NotNegative] = (1.0, 1.0, 1.0, 1.0), norm_type: str = "bn",
                 norm_decay: NotNegative = 0.0, freeze_norm: bool = True,
                 freeze_at: Annotated[int, Range(-1, 3)] = 0, return_idx: int | Sequence[int] = (0, 1, 2, 3),
                 dcn_v2_stages: int | Sequence[int] = (-1,), num_stages: int = 4) -> None:
        super().__init__()
        return_idx = _as_list(return_idx)
        dcn_v2_stages = _as_list(dcn_v2_stages)
        _check(depth, variant, norm_type, lr_mult_list, num_stages, return_idx, dcn_v2_stages)
        self.depth = depth
        self.return_idx = return_idx
        block = Bottleneck if depth >= 50 else BasicBlock
        self.channels = [STAGE_WIDTHS[i] * block.expansion for i in return_idx]
        self.strides = [STAGE_STRIDES[i] for i in return_idx]

        norm: dict[str, Any] = dict(norm_type=norm_type, norm_decay=norm_decay, frozen=freeze_norm)
        self.conv1 = _stem(ch_in, variant, norm)
        self.stages: list[nn.Sequential] = []
        in_channels = ch_in
        for i in range(num_stages):
            blocks = nn.Sequential()
            for j in range(BLOCKS_PER_STAGE[depth][i]):
                blocks.add_sublayer(_block_name(i + 2, j, BLOCKS_PER_STAGE[depth][i]), block(
                    in_channels, STAGE_WIDTHS[i], stride=2 if i > 0 and j == 0 else 1, project=j == 0,
                    variant=variant, deformable=i in dcn_v2_stages, learning_rate=lr_mult_list[i], norm=norm))
                in_channels = STAGE_WIDTHS[i] * block.expansion
            self.stages.append(self.add_sublayer(f"res{i + 2}", blocks))
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at < 0:
            return
        for layer in (self.conv1, *self.stages[:freeze_at + 1]):  # PaddleDetection: 0 freezes stem and res2
            for parameter in layer.parameters():
                parameter.stop_gradient = True

    def forward(self, image: Tensor) -> list[Tensor]:
        """image [N, 3, H, W] -> list of [N, channels[i], H / strides[i], W / strides[i]]."""
        x = F.max_pool2d(self.conv1(image), kernel_size=3, stride=2, padding=1)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.return_idx:
                maps.append(x)
        return maps


def _as_list(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _check(depth: int, variant: str, norm_type: str, lr_mult_list: Sequence[float], num_stages: int,
           return_idx: Sequence[int], dcn_v2_stages: Sequence[int]) -> None:
    if depth not in BLOCKS_PER_STAGE:
        raise ConfigError(f"ResNet.depth: {depth!r}; allowed: {', '.join(map(str, BLOCKS_PER_STAGE))}")
    if variant not in ("a", "b", "c", "d"):
        raise ConfigError(f"ResNet.variant: {variant!r}; allowed: a, b, c, d")
    if norm_type not in ("bn", "sync_bn"):
        raise ConfigError(f"ResNet.norm_type: {norm_type!r}; allowed: bn, sync_bn")
    if num_stages not in (1, 2, 3, 4):
        raise ConfigError(f"ResNet.num_stages: {num_stages!r}; allowed: 1 to 4")
    if len(lr_mult_list) != 4:
        raise ConfigError(f"ResNet.lr_mult_list: {lr_mult_list!r}; it needs one factor for each of the 4 stages")
    if not return_idx or not all(i in range(num_stages) for i in return_idx):
        raise ConfigError(f"ResNet.return_idx: {return_idx!r}; allowed: stage indices 0 to {num_stages - 1}")
    if list(return_idx) != sorted(set(return_idx)):
        raise ConfigError(f"ResNet.return_idx: {return_idx!r}; the maps come in order, once each, as in [1, 2, 3]")
    if not all(i in range(-1, num_stages) for i in dcn_v2_stages):
        raise ConfigError(f"ResNet.dcn_v2_stages: {dcn_v2_stages!r}; allowed: stage indices up to {num_stages - 1}")


def _block_name(stage: int, index: int, count: int) -> str:
    """res2a, res2b, ...; in a stage of more than ten blocks res4a, res4b1, res4b2, ..."""
    if count > 10 and index > 0:
        return f"res{stage}b{index}"
    return f"res{stage}{chr(ord('a') + index)}"


def _stem(out_channels: int, variant: str, norm: dict[str, Any]) -> nn.Sequential:
    if variant in ("c", "d"):
        half = out_channels // 2
        plan = [("conv1_1", 3, half, 3, 2), ("conv1_2", half, half, 3, 1), ("conv1_3", half, out_channels, 3, 1)]
    else:
        plan = [("conv1", 3, out_channels, 7, 2)]
    stem = nn.Sequential()
    for name, c_in, c_out, kernel_size, stride in plan:
        stem.add_sublayer(name, _conv_norm(c_in, c_out, kernel_size, stride=stride, relu=True, norm=norm))
    return stem


def _conv_norm(c_in: int, c_out: int, kernel_size: int, *, stride: int = 1, relu: bool = False, norm: dict[str, Any],
               learning_rate: float = 1.0, deformable: bool = False) -> ConvNorm:
    make_conv = DeformConv2D if deformable else nn.Conv2D
    conv = make_conv(c_in, c_out, kernel_size, stride=stride, padding=kernel_size // 2,
                     weight_attr=ParamAttr(learning_rate=learning_rate), bias_attr=False)
    offset = offset_conv(c_in, kernel_size, stride=stride) if deformable else None
    return ConvNorm(conv, normalization(channels=c_out, learning_rate=learning_rate, **norm),
                    relu=relu, conv_offset=offset)


def _shortcut(c_in: int, c_out: int, stride: int, variant: str, **options: Any) -> nn.Layer:
    """The projection on the shortcut; the vd one pools first, so that no pixel is skipped."""
    if variant == "d" and stride == 2:
        return nn.Sequential(
            ("pool", nn.AvgPool2D(kernel_size=2, stride=2, ceil_mode=True)),
            ("conv", _conv_norm(c_in, c_out, 1, **options)))
    return _conv_norm(c_in, c_out, 1, stride=stride, **options)


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions and a shortcut (ResNet-18, -34)."""

    expansion = 1

    def __init__(self, c_in: int, width: int, *, stride: int, project: bool, variant: str, deformable: bool,
                 learning_rate: float, norm: dict[str, Any]) -> None:
        super().__init__()
        options: dict[str, Any] = dict(learning_rate=learning_rate, norm=norm)
        self.short = _shortcut(c_in, width, stride, variant, **options) if project else nn.Identity()
        self.branch2a = _conv_norm(c_in, width, 3, stride=stride, relu=True, **options)
        self.branch2b = _conv_norm(width, width, 3, deformable=deformable, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch2b(self.branch2a(x)) + self.short(x))


class Bottleneck(nn.Layer):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, c_in: int, width: int, *, stride: int, project: bool, variant: str, deformable: bool,
                 learning_rate: float, norm: dict[str, Any]) -> None:
        super().__init__()
        options: dict[str, Any] = dict(learning_rate=learning_rate, norm=norm)
        stride_1x1, stride_3x3 = (stride, 1) if variant == "a" else (1, stride)
        c_out = width * self.expansion
        self.branch2a = _conv_norm(c_in, width, 1, stride=stride_1x1, relu=True, **options)
        self.branch2b = _conv_norm(width, width, 3, stride=stride_3x3, relu=True, deformable=deformable, **options)
        self.branch2c = _conv_norm(width, c_out, 1, **options)
        # PaddleDetection: last here and first in BasicBlock; a .pdopt names layers by the order in which they are made
        self.short = _shortcut(c_in, c_out, stride, variant, **options) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))
