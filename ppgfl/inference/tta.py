"""Test-time augmentation: an image is also looked at mirrored and in other sizes, and the candidates of all these views
go through one NMS, as in MMDetection's `aug_test`."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ..data.batch import Batch, PadBatch, Reader
from ..data.device import for_device, to_device
from ..data.transforms import RandomFlip, Resize
from ..errors import ConfigError
from ..kinds import Range
from ..model import operators
from ..model.decode import Decoder

FACTORS = Range(0.25, 4)
MIRRORED = (2, 1, 0, 3, 6, 5, 4, 7)  # left, top, right, bottom of what has four numbers, and of the next
Looks = tuple[list[int], list[Batch]]  # the widths of images in pixels, and what each view sees of them


@dataclass(frozen=True)
class Views:
    """The ways in which images are looked at: called with images [H, W, 3] uint8 BGR, it prepares them for each.

    Attributes:
        readers: one for each view, the first that of the config.
        flip: every second one mirrors images left to right.
    """

    readers: Sequence[Reader]
    flip: bool

    def __call__(self, images: Sequence[np.ndarray]) -> Looks:
        return [image.shape[1] for image in images], [reader(images) for reader in self.readers]

    def detect(self, looks: Looks, network: Callable[[Mapping[str, Tensor]], Sequence[Tensor]],
               decoder: Decoder) -> dict[str, Tensor]:
        """The candidates of all views through one NMS.

        Args:
            network: a batch -> boxes [N, A, 4 or 12] in pixels of the original image and scores [N, A, C].
            decoder: has the NMS.

        Returns: {"bbox": [M, 6], "bbox_num": [N]} as `MultiClassNMS`.
        """
        boxes, scores = map(list, zip(*(network(to_device(*pair)) for pair in zip(looks[1], self.readers))))
        nms, widths = decoder.nms, paddle.to_tensor(looks[0], "float32").unsqueeze(1)
        with operators.without_amp():
            for number in range(1, len(boxes), 2) if self.flip else ():
                x1, y1, x2, y2, *spread = boxes[number].unbind(2)  # sigma and top2 change sides, too
                boxes[number] = paddle.stack([widths - x2, y1, widths - x1, y2,
                                              *[spread[i] for i in MIRRORED[:len(spread)]]], axis=2)
            if nms.nms_top_k > 0:  # of each view as many as of an image that is looked at once
                nms = replace(nms, nms_top_k=nms.nms_top_k * len(boxes))
            bbox, bbox_num = nms(paddle.concat(boxes, axis=1), paddle.concat(scores, axis=1).transpose([0, 2, 1]),
                                 decoder.threshold())
        return {"bbox": bbox, "bbox_num": bbox_num}


def views_of(tta: str, reader: Reader, name: str) -> Views:
    """The views that `tta` asks for ("flip,0.8"), of the reader of the config's section `name`. Raises ConfigError."""
    factors, flip = _read(tta)
    kinds = [kind for kind in (type(step).__name__ for step in reader.steps()) if kind == "Pad" or "Resize" in kind]
    in_samples = sum(isinstance(each, Resize) for each in reader.sample_transforms)
    if factors and (len(kinds) > 1 or len(kinds) != in_samples):
        raise ConfigError(f"tta: {tta}; a factor scales what Resize of {name}.sample_transforms makes, and nothing "
                          f"else may set a size ({name} has {', '.join(kinds)}); leave factors out")
    if factors and not any(isinstance(each, PadBatch) and each.stride % 32 == 0 for each in reader.batch_transforms):
        raise ConfigError(f"tta: {tta}; images of all sizes come out, and the network takes multiples of 32: add "
                          f"PadBatch: {{pad_to_stride: 32}} to {name}.batch_transforms, or leave factors out")
    sizes = [reader, *(_scaled(reader, factor) for factor in factors)]
    views = [view for each in sizes for view in ([each, _mirrored(each)] if flip else [each])]
    return Views([for_device(view) for view in views], flip)


def _read(tta: Any) -> tuple[list[float], bool]:
    """The factors but 1, and whether there is a flip."""
    words = [word.strip() for word in tta.split(",")] if isinstance(tta, str) else [""]
    try:
        factors = [float(word) for word in words if word != "flip"]
    except ValueError:
        factors = [0.0]
    if len({*words}) < len(words) or len({*factors}) < len(factors) or not all(each in FACTORS for each in factors):
        raise ConfigError(f"tta: {tta!r}; allowed: flip and factors of the reader's size, {FACTORS}, each once, with "
                          "commas between them, as in flip,0.8,1.25")
    return [factor for factor in factors if factor != 1], "flip" in words


def _scaled(reader: Reader, factor: float) -> Reader:
    steps = [Resize([max(1, round(side * factor)) for side in each.target_size], each.keep_ratio, each.interp)
             if isinstance(each, Resize) else each for each in reader.sample_transforms]
    if not any(isinstance(each, Resize) for each in steps):
        steps.insert(1, _Scale(factor))  # of the decoded image
    return replace(reader, sample_transforms=steps)


def _mirrored(reader: Reader) -> Reader:
    """The reader that mirrors images before anything pads them; where Decode and Resize come first, behind these, as
    MMDetection does, since interpolation is not the same from both sides."""
    steps: list[Any] = list(reader.sample_transforms)
    steps.insert(2 if any(isinstance(each, Resize) for each in steps[1:2]) else 1, RandomFlip(1.0))
    return replace(reader, sample_transforms=steps)


class _Scale(Resize):
    """Resize by a factor, where images keep their size otherwise."""

    def __init__(self, factor: float) -> None:
        super().__init__(1, keep_ratio=True)
        self.factor = factor

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        return max(1, round(height * self.factor)), max(1, round(width * self.factor))
