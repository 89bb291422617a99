"""The part of the model that an export holds."""
from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.vision.ops import DeformConv2D

from ..model.gfl import GFL
from ..model.layers import fold_norm


class Graph(paddle.nn.Layer):
    """What is exported: the model up to the point that `export` of the config names."""

    def __init__(self, model: GFL, *, post_process: bool = True, nms: bool = True, benchmark: bool = False) -> None:
        super().__init__()
        self.model = model
        self.bare = benchmark or not post_process
        self.nms = nms
        self.inputs = ["image", *([] if self.bare else model.decoder.inputs)]  # the names of its arguments

    def forward(self, image: Tensor, scale_factor: Tensor | None = None,
                im_shape: Tensor | None = None) -> tuple[Tensor, ...]:
        features = self.model.features(image)
        if self.bare:
            return (*features.cls, *features.reg)
        decoder, integral = self.model.decoder, self.model.head.distribution_project
        if not self.nms:
            return decoder.decode(features, integral, scale_factor, im_shape)
        found = decoder(features, integral, scale_factor, im_shape)
        return found["bbox"], found["bbox_num"]


def is_deformable(model: paddle.nn.Layer) -> bool:
    """Whether any convolution of the model is deformable."""
    return any(isinstance(layer, DeformConv2D) for layer in model.sublayers())


def fuse_conv_bn(model: GFL) -> None:
    """Fold every BatchNorm behind a plain convolution into its weights; the outputs stay the same."""
    for layer in model.sublayers():
        norm = getattr(layer, "norm", None)
        conv = getattr(layer, "conv", None)
        if not isinstance(norm, paddle.nn.BatchNorm2D) or not isinstance(conv, paddle.nn.Conv2D):
            continue
        weight, bias = fold_norm(conv, norm)
        conv.weight.set_value(weight)
        if conv.bias is None:
            conv.bias = conv.create_parameter([conv.weight.shape[0]], is_bias=True)
        conv.bias.set_value(bias)
        layer.norm = paddle.nn.Identity()
