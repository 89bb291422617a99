"""Augmentations that make one image of two: Mixup (https://arxiv.org/abs/1710.09412, and for detection
https://arxiv.org/abs/1902.04103) and CutMix (https://arxiv.org/abs/1905.04899).

`gt_score` is each image's share. PaddleDetection: GFL's targets take no notice of it, there as here.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from ...kinds import Range
from ..batch import Sample
from .base import PER_BOX, Mixer, boxes_of, set_image

Beta = Annotated[float, Range(0, 10_000, without=(0,))]


class Mixup(Mixer):
    """Lay two images over each other, each with a share of the colours, and take the boxes of both.

    Args:
        alpha: of the Beta distribution that the first image's share is drawn from.
        beta: of the same.
    """

    def __init__(self, alpha: Beta = 1.5, beta: Beta = 1.5) -> None:
        self.alpha = alpha
        self.beta = beta

    def draw(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """The first image's share."""
        return min(1.0, max(0.0, float(rng.beta(self.alpha, self.beta))))

    def apply(self, samples: Sequence[Sample], drawn: Any) -> Sample:
        if drawn in (0.0, 1.0):
            return samples[0 if drawn else 1]
        height, width = _size_of_both(samples)
        image = np.zeros((height, width, 3), np.float32)
        for sample, share in zip(samples, (drawn, 1.0 - drawn)):
            h, w = sample["image"].shape[:2]
            image[:h, :w] += sample["image"].astype(np.float32) * np.float32(share)
        return _both(samples, drawn, image.astype(np.uint8))


class Cutmix(Mixer):
    """Put a rectangle of the second image into the first, and take the boxes of both.

    PaddleDetection: boxes are not cut, although the rectangle covers some of them or shows only a part.

    Args:
        alpha: of the Beta distribution that the first image's share of the area is drawn from.
        beta: of the same.
    """

    def __init__(self, alpha: Beta = 1.5, beta: Beta = 1.5) -> None:
        self.alpha = alpha
        self.beta = beta

    def draw(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """The first image's share, and the middle x, y of the rectangle."""
        share = min(1.0, max(0.0, float(rng.beta(self.alpha, self.beta))))
        if share in (0.0, 1.0):
            return share, 0, 0
        height, width = _size_of_both(samples)
        return share, int(rng.integers(width)), int(rng.integers(height))

    def apply(self, samples: Sequence[Sample], drawn: Any) -> Sample:
        share, x, y = drawn
        if share in (0.0, 1.0):
            return samples[0 if share else 1]
        height, width = _size_of_both(samples)
        first, second = np.zeros((2, height, width, 3), np.float32)
        for canvas, sample in zip((first, second), samples):
            h, w = sample["image"].shape[:2]
            canvas[:h, :w] = sample["image"]
        half_w, half_h = (int(side * np.sqrt(1.0 - share)) // 2 for side in (width, height))
        columns = slice(max(0, x - half_w), min(width - 1, x + half_w))
        rows = slice(max(0, y - half_h), min(height - 1, y + half_h))
        first[rows, columns] = second[rows, columns]
        return _both(samples, share, first)


def _size_of_both(samples: Sequence[Sample]) -> tuple[int, int]:
    height, width = np.max([sample["image"].shape[:2] for sample in samples], axis=0)
    return int(height), int(width)


def _both(samples: Sequence[Sample], share: float, image: np.ndarray) -> Sample:
    """The first sample with this image and the boxes of both."""
    mixed = dict(samples[0])
    set_image(mixed, image)
    if "gt_bbox" in mixed:
        shares = [np.full(len(boxes_of(sample)), each, np.float32)
                  for sample, each in zip(samples, (share, 1.0 - share))]
        mixed["gt_bbox"] = np.concatenate([boxes_of(sample) for sample in samples])
        mixed.update({key: np.concatenate([sample[key] for sample in samples]) for key in PER_BOX
                      if all(key in sample for sample in samples)})
        mixed["gt_score"] = np.concatenate(shares)
    return mixed
