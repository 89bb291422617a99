"""ResNet backbones (He et al., https://arxiv.org/abs/1512.03385), ResNet-vd (https://arxiv.org/abs/1812.01187), ResNeXt
(https://arxiv.org/abs/1611.05431) and SENet (https://arxiv.org/abs/1709.01507).

Every name here is the name of an entry in PaddleDetection's checkpoints: "res3.res3a.branch2b.conv.weight".
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.vision.ops import DeformConv2D

from ..errors import ConfigError
from ..kinds import Channels, NotNegative, Range
from .layers import ConvNorm, SqueezeExcitation, normalization, offset_conv

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
        groups: of the 3x3 convolutions of a bottleneck; more than 1 makes a ResNeXt.
        base_width: channels of each group in res2, twice as many in each next stage; 64 and 1 group are ResNet, 4 and
            32 ResNeXt 32x4d, 4 and 64 ResNeXt 64x4d.
        norm_type: "bn" or "sync_bn".
        norm_decay: weight decay of the normalisation's parameters.
        freeze_norm: keep the normalisation's parameters and statistics.
        freeze_at: keep the stem and the stages up to this index (-1 keeps nothing).
        return_idx: indices (0 to 3) of the stages whose maps are returned.
        dcn_v2_stages: indices of the stages whose 3x3 convolutions are deformable.
        num_stages: stages that exist at all.
        std_senet: squeeze and excitation at the end of each block; PaddleDetection's SENet is this with ch_in 128.
        freeze_stem_only: of what `freeze_at` keeps, keep the stem alone.

    Attributes:
        depth: as given.
        channels, strides: of the returned maps.

    Raises:
        ConfigError: a value outside of what is listed above.
    """

    def __init__(self, depth: int = 50, ch_in: Annotated[int, Range(2, 4096)] = 64, variant: str = "b",
                 lr_mult_list: Sequence[NotNegative] = (1.0, 1.0, 1.0, 1.0), groups: Channels = 1,
                 base_width: Channels = 64, norm_type: str = "bn", norm_decay: NotNegative = 0.0,
                 freeze_norm: bool = True, freeze_at: Annotated[int, Range(-1, 3)] = 0,
                 return_idx: int | Sequence[int] = (0, 1, 2, 3), dcn_v2_stages: int | Sequence[int] = (-1,),
                 num_stages: int = 4, std_senet: bool = False, freeze_stem_only: bool = False) -> None:
        super().__init__()
        return_idx = as_list(return_idx)
        dcn_v2_stages = as_list(dcn_v2_stages)
        check_stages("ResNet", depth, BLOCKS_PER_STAGE, variant, norm_type, lr_mult_list, num_stages, return_idx,
                     dcn_v2_stages)
        if depth < 50 and (groups != 1 or base_width != 64):
            raise ConfigError(f"ResNet.groups: {groups} with base_width {base_width}, but depth {depth} has no "
                              "bottlenecks to divide into groups; it needs groups 1 and base_width 64, or depth 50 or "
                              "more")
        self.depth = depth
        self.return_idx = return_idx
        block: Any = Bottleneck if depth >= 50 else BasicBlock
        grouped = {"groups": groups, "base_width": base_width} if depth >= 50 else {}
        self.channels = [STAGE_WIDTHS[i] * block.expansion for i in return_idx]
        self.strides = [STAGE_STRIDES[i] for i in return_idx]

        norm: dict[str, Any] = dict(norm_type=norm_type, norm_decay=norm_decay, frozen=freeze_norm)
        # PaddleDetection: the 7x7 convolution has another name in a ResNeXt
        self.conv1 = make_stem(ch_in, variant, norm, name_7x7="res_conv1" if groups > 1 else "conv1")
        self.stages: list[nn.Sequential] = []
        in_channels = ch_in
        for i in range(num_stages):
            blocks = nn.Sequential()
            for j in range(BLOCKS_PER_STAGE[depth][i]):
                blocks.add_sublayer(_block_name(i + 2, j, BLOCKS_PER_STAGE[depth][i]), block(
                    in_channels, STAGE_WIDTHS[i], stride=2 if i > 0 and j == 0 else 1, project=j == 0,
                    variant=variant, deformable=i in dcn_v2_stages, std_senet=std_senet,
                    learning_rate=lr_mult_list[i], norm=norm, **grouped))
                in_channels = STAGE_WIDTHS[i] * block.expansion
            self.stages.append(self.add_sublayer(f"res{i + 2}", blocks))
        if freeze_at >= 0:  # PaddleDetection: 0 freezes stem and res2
            freeze([self.conv1] if freeze_stem_only else [self.conv1, *self.stages[:freeze_at + 1]])

    def forward(self, image: Tensor) -> list[Tensor]:
        """image [N, 3, H, W] -> list of [N, channels[i], H / strides[i], W / strides[i]]."""
        return run_stages(self.conv1, self.stages, self.return_idx, image)


def run_stages(stem: nn.Layer, stages: Sequence[nn.Layer], return_idx: Sequence[int], image: Tensor, *,
               cut: int = -1) -> list[Tensor]:
    """image [N, 3, H, W] -> the maps of the stages in `return_idx`; gradients end at that of stage `cut`."""
    x = F.max_pool2d(stem(image), kernel_size=3, stride=2, padding=1)
    maps = []
    for i, stage in enumerate(stages):
        x = stage(x).detach() if i == cut and stage.training else stage(x)
        if i in return_idx:
            maps.append(x)
    return maps


def freeze(layers: Sequence[nn.Layer]) -> None:
    """Keep all parameters of the layers as they are."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.stop_gradient = True


def as_list(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def check_stages(name: str, depth: int, depths: Iterable[int], variant: str, norm_type: str,
                 lr_mult_list: Sequence[float], num_stages: int, return_idx: Sequence[int],
                 dcn_v2_stages: Sequence[int]) -> None:
    """Raise a ConfigError for arguments of the backbone `name` that do not make sense; `depths` are all that it has."""
    if depth not in depths:
        raise ConfigError(f"{name}.depth: {depth!r}; allowed: {', '.join(map(str, depths))}")
    if variant not in ("a", "b", "c", "d"):
        raise ConfigError(f"{name}.variant: {variant!r}; allowed: a, b, c, d")
    if norm_type not in ("bn", "sync_bn"):
        raise ConfigError(f"{name}.norm_type: {norm_type!r}; allowed: bn, sync_bn")
    if num_stages not in (1, 2, 3, 4):
        raise ConfigError(f"{name}.num_stages: {num_stages!r}; allowed: 1 to 4")
    if len(lr_mult_list) != 4:
        raise ConfigError(f"{name}.lr_mult_list: {lr_mult_list!r}; it needs one factor for each of the 4 stages")
    if not return_idx or not all(i in range(num_stages) for i in return_idx):
        raise ConfigError(f"{name}.return_idx: {return_idx!r}; allowed: stage indices 0 to {num_stages - 1}")
    if list(return_idx) != sorted(set(return_idx)):
        raise ConfigError(f"{name}.return_idx: {return_idx!r}; the maps come in order, once each, as in [1, 2, 3]")
    if not all(i in range(-1, num_stages) for i in dcn_v2_stages):
        raise ConfigError(f"{name}.dcn_v2_stages: {dcn_v2_stages!r}; allowed: stage indices up to {num_stages - 1}")


def _block_name(stage: int, index: int, count: int) -> str:
    """res2a, res2b, ...; in a stage of more than ten blocks res4a, res4b1, res4b2, ..."""
    if count > 10 and index > 0:
        return f"res{stage}b{index}"
    return f"res{stage}{chr(ord('a') + index)}"


def make_stem(out_channels: int, variant: str, norm: dict[str, Any], *, name_7x7: str = "conv1") -> nn.Sequential:
    """The convolutions before max-pooling: one of 7x7, or three of 3x3 (variants c and d)."""
    if variant in ("c", "d"):
        half = out_channels // 2
        plan = [("conv1_1", 3, half, 3, 2), ("conv1_2", half, half, 3, 1), ("conv1_3", half, out_channels, 3, 1)]
    else:
        plan = [(name_7x7, 3, out_channels, 7, 2)]
    stem = nn.Sequential()
    for name, c_in, c_out, kernel_size, stride in plan:
        stem.add_sublayer(name, conv_norm(c_in, c_out, kernel_size, stride=stride, relu=True, norm=norm))
    return stem


def conv_norm(c_in: int, c_out: int, kernel_size: int, *, stride: int = 1, groups: int = 1, relu: bool = False,
              norm: dict[str, Any], learning_rate: float = 1.0, deformable: bool = False) -> ConvNorm:
    """Convolution, normalisation, ReLU. A deformable one has one set of offsets, for all groups."""
    make_conv = DeformConv2D if deformable else nn.Conv2D
    conv = make_conv(c_in, c_out, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups,
                     weight_attr=ParamAttr(learning_rate=learning_rate), bias_attr=False)
    offset = offset_conv(c_in, kernel_size, stride=stride) if deformable else None
    return ConvNorm(conv, normalization(channels=c_out, learning_rate=learning_rate, **norm),
                    relu=relu, conv_offset=offset)


def make_shortcut(c_in: int, c_out: int, stride: int, *, pooled: bool, **options: Any) -> nn.Layer:
    """The projection on the shortcut; a pooled one, as in ResNet-vd, skips no pixel."""
    if pooled and stride == 2:
        return nn.Sequential(
            ("pool", nn.AvgPool2D(kernel_size=2, stride=2, ceil_mode=True)),
            ("conv", conv_norm(c_in, c_out, 1, **options)))
    return conv_norm(c_in, c_out, 1, stride=stride, **options)


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions and a shortcut (ResNet-18, -34)."""

    expansion = 1

    def __init__(self, c_in: int, channels: int, *, stride: int, project: bool, variant: str, deformable: bool,
                 std_senet: bool, learning_rate: float, norm: dict[str, Any]) -> None:
        super().__init__()
        options: dict[str, Any] = dict(learning_rate=learning_rate, norm=norm)
        self.short = (make_shortcut(c_in, channels, stride, pooled=variant == "d", **options) if project
                      else nn.Identity())
        self.branch2a = conv_norm(c_in, channels, 3, stride=stride, relu=True, **options)
        self.branch2b = conv_norm(channels, channels, 3, deformable=deformable, **options)
        self.se = SqueezeExcitation(channels) if std_senet else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se(self.branch2b(self.branch2a(x))) + self.short(x))


class Bottleneck(nn.Layer):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, c_in: int, channels: int, *, stride: int, project: bool, variant: str, groups: int,
                 base_width: int, deformable: bool, std_senet: bool, learning_rate: float,
                 norm: dict[str, Any]) -> None:
        super().__init__()
        options: dict[str, Any] = dict(learning_rate=learning_rate, norm=norm)
        stride_1x1, stride_3x3 = (stride, 1) if variant == "a" else (1, stride)
        width, c_out = channels * base_width // 64 * groups, channels * self.expansion
        self.branch2a = conv_norm(c_in, width, 1, stride=stride_1x1, relu=True, **options)
        self.branch2b = conv_norm(width, width, 3, stride=stride_3x3, groups=groups, relu=True, deformable=deformable,
                                  **options)
        self.branch2c = conv_norm(width, c_out, 1, **options)
        # PaddleDetection: last here and first in BasicBlock; a .pdopt names layers by the order in which they are made
        self.short = make_shortcut(c_in, c_out, stride, pooled=variant == "d", **options) if project else nn.Identity()
        self.se = SqueezeExcitation(c_out) if std_senet else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se(self.branch2c(self.branch2b(self.branch2a(x)))) + self.short(x))
