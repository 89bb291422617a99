"""The detector on one page."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn


class Features(NamedTuple):
    """What the network makes of a batch of images, before any decoding; L levels, finest first.

    Attributes:
        levels: the neck's maps, L tensors [N, K, H_l, W_l].
        cls: the head's class maps, L tensors [N, C, H_l, W_l] (see `head.GFLHead`).
        reg: the head's box maps, L tensors [N, 4 R, H_l, W_l].
    """

    levels: list[Tensor]
    cls: list[Tensor]
    reg: list[Tensor]


class GFL(nn.Layer):
    """backbone -> neck -> head, then the loss in training or the decoder in evaluation.

    Args:
        backbone, neck, head: the three layers; `head` returns raw maps (see `head.GFLHead`).
        decoder: (features, integral, scale_factor, im_shape) -> {"bbox", "bbox_num"} (see `decode.Decoder`).
        criterion: (features, integral, batch) -> {"loss", ...}, or None for a model that is never trained.

    Attributes:
        class_names: of the classes that its weights were trained with; None: unknown.
    """

    def __init__(self, backbone: nn.Layer, neck: nn.Layer, head: nn.Layer, *, decoder: Any,
                 criterion: Callable[..., dict[str, Tensor]] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.decoder = decoder
        self.criterion: Any = criterion
        self.class_names: list[str] | None = None

    @paddle.jit.not_to_static  # nothing of it depends on values: Paddle takes as long to look for that as to trace it
    def features(self, image: Tensor) -> Features:
        """image [N, 3, H, W] -> the neck's levels and the head's maps."""
        levels = self.neck(self.backbone(image))
        return Features(levels, *self.head(levels))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: see `ppgfl.data`.

        Returns:
            In training {"loss", "loss_qfl", ...} (see `losses.GFLCriterion`); in evaluation {"bbox": [M, 6] class,
            score, x1, y1, x2, y2 in pixels of the original image, "bbox_num": [N] detections per image}.
        """
        features = self.features(batch["image"])
        integral = self.head.distribution_project
        if self.training:
            return self.criterion(features, integral, batch)
        return self.decoder(features, integral, *[batch[name] for name in self.decoder.inputs])
