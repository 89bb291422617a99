"""Feature pyramid (Lin et al., https://arxiv.org/abs/1612.03144) with extra levels on top."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import XavierUniform

from ..errors import ConfigError
from ..kinds import Channels, NotNegative, Positive, Range
from .layers import ConvNorm, normalization


class FPN(nn.Layer):
    """Backbone maps -> maps of `out_channel` channels at every level.

    Args:
        in_channels: channels of the backbone's maps, finest first; the last map is res5.
        out_channel: channels of every level.
        spatial_scales: 1 / stride of the backbone's maps.
        has_extra_convs: make the extra levels with 3x3 convolutions of stride 2, else one level by subsampling.
        extra_stage: number of extra levels.
        use_c5: feed the first extra convolution with the backbone's last map instead of the last level.
        norm_type: None for plain convolutions with bias, or "bn", "sync_bn", "gn".
        norm_decay, freeze_norm: of that normalisation.
        relu_before_extra_convs: ReLU before the second and later extra convolutions.

    Attributes:
        strides: of the levels.
    """

    def __init__(self, in_channels: Sequence[Channels], out_channel: Channels = 256,
                 spatial_scales: Sequence[Positive] = (0.25, 0.125, 0.0625, 0.03125), has_extra_convs: bool = False,
                 extra_stage: Annotated[int, Range(0, 6)] = 1, use_c5: bool = True,
                 norm_type: Literal["bn", "sync_bn", "gn"] | None = None, norm_decay: NotNegative = 0.0,
                 freeze_norm: bool = False, relu_before_extra_convs: bool = True) -> None:
        super().__init__()
        self.out_channel = out_channel
        if not has_extra_convs and extra_stage > 1:
            raise ConfigError(f"FPN.extra_stage: {extra_stage}; without has_extra_convs it is 0 or 1")
        self.extra_stage = extra_stage
        self.has_extra_convs = has_extra_convs
        self.use_c5 = use_c5
        self.relu_before_extra_convs = relu_before_extra_convs  # PaddleDetection: on by default, before P7
        last_stride = round(1 / spatial_scales[-1])
        self.strides = [round(1 / scale) for scale in spatial_scales]
        self.strides += [last_stride * 2 ** (i + 1) for i in range(extra_stage)]

        norm: dict[str, Any] = dict(norm_type=norm_type, norm_decay=norm_decay, frozen=freeze_norm)
        first = 6 - len(in_channels)  # res5 is the last: its number and those before it name the layers
        self.lateral_convs, self.fpn_convs = [], []
        for res, c_in in enumerate(in_channels, start=first):
            name = "fpn_inner_res5_sum" if res == 5 else f"fpn_inner_res{res}_sum_lateral"
            lateral = _conv(c_in, out_channel, 1, fan_out=c_in, **norm)
            self.lateral_convs.append(self.add_sublayer(name, lateral))
            output = _conv(out_channel, out_channel, 3, fan_out=out_channel * 9, **norm)
            self.fpn_convs.append(self.add_sublayer(f"fpn_res{res}_sum", output))
        self.extra_convs = []
        for i in range(extra_stage if has_extra_convs else 0):
            c_in = in_channels[-1] if use_c5 and i == 0 else out_channel
            extra = _conv(c_in, out_channel, 3, stride=2, fan_out=out_channel * 9, **norm)
            self.extra_convs.append(self.add_sublayer(f"fpn_{6 + i}", extra))

    def forward(self, backbone_maps: Sequence[Tensor]) -> list[Tensor]:
        """List of backbone maps, finest first -> list of [N, out_channel, H_l, W_l], one per level."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, backbone_maps)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + upsample_nearest(laterals[i])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        if self.extra_stage and not self.has_extra_convs:
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        source = backbone_maps[-1] if self.use_c5 else levels[-1]
        for i, conv in enumerate(self.extra_convs):
            levels.append(conv(F.relu(source) if i > 0 and self.relu_before_extra_convs else source))
            source = levels[-1]
        return levels


def upsample_nearest(x: Tensor) -> Tensor:
    """Double height and width by repeating every value.

    Written with stack and flatten, bit for bit equal to F.interpolate: the saved program of the latter crashes in
    the predictor of Paddle 3.3 with its default settings (oneDNN).
    """
    x = paddle.flatten(paddle.stack([x, x], axis=3), 2, 3)
    return paddle.flatten(paddle.stack([x, x], axis=4), 3, 4)


def _conv(c_in: int, c_out: int, kernel_size: int, *, fan_out: int, stride: int = 1, norm_type: str | None,
          norm_decay: float, frozen: bool) -> nn.Layer:
    weight_attr = ParamAttr(initializer=XavierUniform(fan_out=fan_out))
    conv = nn.Conv2D(c_in, c_out, kernel_size, stride=stride, padding=kernel_size // 2, weight_attr=weight_attr,
                     bias_attr=None if norm_type is None else False)
    if norm_type is None:
        return conv
    return ConvNorm(conv, normalization(norm_type, c_out, norm_decay=norm_decay, frozen=frozen))
