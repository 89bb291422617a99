"""Res2Net backbones (Gao et al., https://arxiv.org/abs/1904.01169).

Every name here is the name of an entry in PaddleDetection's checkpoints: "res3.blocks.0.branch2b.1.conv.weight".
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ..errors import ConfigError
from ..kinds import Channels, NotNegative, Range
from .resnet import STAGE_STRIDES, as_list, check_stages, conv_norm, freeze, make_shortcut, make_stem, run_stages

BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 12, 48, 3)}
STAGE_CHANNELS = (256, 512, 1024, 2048)


class Res2Net(nn.Layer):
    """Image -> the feature maps of the stages in `return_idx`.

    PaddleDetection's network is another one than that of the paper's authors, which MMDetection and GFocalV2 have too.
    The last three arguments make theirs, with variant "d": "res2net101_v1d_26w_4s".

    Args:
        depth: 50, 101, 152 or 200.
        width: channels of a split in res2, twice as many in each next stage.
        scales: splits of a block.
        variant: "a" and "b" have a stem of one 7x7 convolution, "c" and "d" one of three 3x3. PaddleDetection: the
            blocks are the same in all of them.
        lr_mult_list, groups, norm_type, norm_decay, freeze_norm, return_idx, num_stages: as of ResNet.
        freeze_at: gradients end at the map of this stage, so that it, those before it and the stem stay as they are,
            except where a map that is returned comes from a stage before it (-1 keeps nothing).
        dcn_v2_stages: indices of the stages whose 3x3 convolutions are deformable, each split with offsets of its own.
        pooled_shortcut: average-pool before the convolution of a strided shortcut, as the authors do, instead of
            striding in it.
        separate_res2_splits: in the first block of res2, too, no split adds the result of the one before, as the
            authors have it in the first block of every stage; PaddleDetection only in the strided ones.
        pool_counts_padding: the average pooling of the last split in strided blocks counts the padding in its mean, as
            the authors' does.

    Attributes:
        depth: as given.
        channels, strides: of the returned maps.

    Raises:
        ConfigError: a value outside of what is listed above.
    """

    def __init__(self, depth: int = 50, width: Channels = 26, scales: Annotated[int, Range(2, 64)] = 4,
                 variant: str = "b", lr_mult_list: Sequence[NotNegative] = (1.0, 1.0, 1.0, 1.0), groups: Channels = 1,
                 norm_type: str = "bn", norm_decay: NotNegative = 0.0, freeze_norm: bool = True,
                 freeze_at: Annotated[int, Range(-1, 3)] = 0, return_idx: int | Sequence[int] = (0, 1, 2, 3),
                 dcn_v2_stages: int | Sequence[int] = (-1,), num_stages: int = 4, pooled_shortcut: bool = False,
                 separate_res2_splits: bool = False, pool_counts_padding: bool = False) -> None:
        super().__init__()
        return_idx = as_list(return_idx)
        dcn_v2_stages = as_list(dcn_v2_stages)
        check_stages("Res2Net", depth, BLOCKS_PER_STAGE, variant, norm_type, lr_mult_list, num_stages, return_idx,
                     dcn_v2_stages)
        if width % groups:
            raise ConfigError(f"Res2Net.groups: {groups}; width {width} is no multiple of that")
        self.depth = depth
        self.return_idx = return_idx
        self.channels = [STAGE_CHANNELS[i] for i in return_idx]
        self.strides = [STAGE_STRIDES[i] for i in return_idx]

        norm: dict[str, Any] = dict(norm_type=norm_type, norm_decay=norm_decay, frozen=freeze_norm)
        self.res1 = make_stem(64, variant, norm)
        self.stages: list[Stage] = []
        in_channels = 64
        for i in range(num_stages):
            blocks = [Res2Block(
                in_channels if j == 0 else STAGE_CHANNELS[i], STAGE_CHANNELS[i], width=width * 2**i, scales=scales,
                stride=2 if i > 0 and j == 0 else 1, project=j == 0, pooled_shortcut=pooled_shortcut,
                separate=j == 0 and (i > 0 or separate_res2_splits), pool_counts_padding=pool_counts_padding,
                groups=groups, deformable=i in dcn_v2_stages, learning_rate=lr_mult_list[i], norm=norm)
                for j in range(BLOCKS_PER_STAGE[depth][i])]
            in_channels = STAGE_CHANNELS[i]
            self.stages.append(self.add_sublayer(f"res{i + 2}", Stage(blocks)))
        # PaddleDetection: gradients end at the map of stage `freeze_at`; what an earlier map needs goes on learning
        learning = max((i for i in return_idx if i < freeze_at), default=-1)
        self.cut = freeze_at if learning >= 0 else -1
        if freeze_at >= 0:
            freeze([*([self.res1] if learning < 0 else []), *self.stages[learning + 1:freeze_at + 1]])

    def forward(self, image: Tensor) -> list[Tensor]:
        """image [N, 3, H, W] -> list of [N, channels[i], H / strides[i], W / strides[i]]."""
        return run_stages(self.res1, self.stages, self.return_idx, image, cut=self.cut)


class Stage(nn.Layer):
    """Blocks one after the other."""

    def __init__(self, blocks: Sequence[nn.Layer]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Res2Block(nn.Layer):
    """A 1x1 convolution, its result split into `scales`, a 3x3 convolution for each split but the last, and a 1x1 over
    all of them; a shortcut. Each 3x3 takes its split plus the result before, or with `separate` its split alone."""

    def __init__(self, c_in: int, c_out: int, *, width: int, scales: int, stride: int, project: bool,
                 pooled_shortcut: bool, separate: bool, pool_counts_padding: bool, groups: int, deformable: bool,
                 learning_rate: float, norm: dict[str, Any]) -> None:
        super().__init__()
        options: dict[str, Any] = dict(learning_rate=learning_rate, norm=norm)
        self.scales = scales
        self.separate = separate
        # PaddleDetection: first; a .pdopt names layers by the order in which they are made
        self.branch1 = (make_shortcut(c_in, c_out, stride, pooled=pooled_shortcut, **options) if project
                        else nn.Identity())
        self.branch2a = conv_norm(c_in, width * scales, 1, relu=True, **options)
        self.branch2b = nn.LayerList([
            conv_norm(width, width, 3, stride=stride, groups=groups, relu=True, deformable=deformable, **options)
            for _ in range(scales - 1)])
        self.branch2c = conv_norm(width * scales, c_out, 1, **options)
        self.last = (nn.AvgPool2D(3, stride=stride, padding=1, exclusive=not pool_counts_padding) if stride > 1
                     else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        splits = paddle.split(self.branch2a(x), self.scales, axis=1)
        results: list[Tensor] = []
        for split, conv in zip(splits, self.branch2b):
            results.append(conv(split + results[-1] if results and not self.separate else split))
        results.append(self.last(splits[-1]))
        return F.relu(self.branch2c(paddle.concat(results, axis=1)) + self.branch1(x))
