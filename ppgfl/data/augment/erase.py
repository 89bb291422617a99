"""Augmentations that cover parts of an image; boxes stay as they are."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image

from ...kinds import Colour, Count, Length, PositiveSpan, Share
from ..batch import Sample
from ..transforms import pixels_of
from .base import Augmentation, between, check_span


class GridMask(Augmentation):
    """Cover an image with a grid of black squares (https://arxiv.org/abs/2001.04086), more often from epoch to epoch.

    Args:
        use_h: the grid has horizontal stripes.
        use_w: the grid has vertical stripes.
        rotate: the grid is turned by less than so many degrees.
        offset: noise instead of black.
        ratio: width of a stripe, as a share of the distance of two.
        mode: 1: the stripes stay and the rest is covered; 0: the stripes are covered.
        prob: of an image to be covered, at the end.
        upper_iter: images after which `prob` is reached; before, the share grows from epoch to epoch.
    """

    def __init__(self, use_h: bool = True, use_w: bool = True, rotate: Annotated[Count, "degrees"] = 1,
                 offset: bool = False, ratio: Share = 0.5, mode: Literal[0, 1] = 1, prob: Share = 0.7,
                 upper_iter: Count = 360000) -> None:
        self.use_h, self.use_w = use_h, use_w
        self.rotate = rotate
        self.offset = offset
        self.ratio = ratio
        self.mode = mode
        self.prob = prob
        self.upper_iter = upper_iter

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """Distance of the stripes, place of the first ones, angle in degrees, noise [H, W] or None."""
        # PaddleDetection counts in each worker process by itself and begins anew in each epoch, so that its share never
        # grows with worker_num above 0; here it is the images of all epochs before.
        if rng.random() > self.prob * min(1.0, sample.get("curr_iter", 0) / self.upper_iter):
            return None
        height, width = sample["image"].shape[:2]
        if height <= 2:
            return None
        distance = int(rng.integers(2, height))
        top, left, angle = int(rng.integers(distance)), int(rng.integers(distance)), int(rng.integers(self.rotate))
        return distance, top, left, angle, rng.random((height, width)) if self.offset else None

    def apply(self, sample: Sample, drawn: Any) -> None:
        distance, top, left, angle, noise = drawn
        image = pixels_of(sample)
        height, width = image.shape[:2]
        large = int(1.5 * height), int(1.5 * width)
        stripe = min(max(int(distance * self.ratio + 0.5), 1), distance - 1)
        mask = np.ones(large, np.uint8)
        for i in range(large[0] // distance if self.use_h else 0):
            mask[distance * i + top:distance * i + top + stripe] = 0
        for i in range(large[1] // distance if self.use_w else 0):
            mask[:, distance * i + left:distance * i + left + stripe] = 0
        mask = np.asarray(Image.fromarray(mask).rotate(angle))
        y, x = (large[0] - height) // 2, (large[1] - width) // 2
        mask = mask[y:y + height, x:x + width, None]
        seen = 1 - mask if self.mode == 1 else mask
        if noise is None:
            sample["image"] = image * seen
        else:
            covered = (2 * (noise - 0.5)).astype(np.float32)[..., None] * (1 - seen.astype(np.float32))
            sample["image"] = (image * seen.astype(np.float32) + covered).astype(np.int64).astype(
                np.uint8) if image.dtype == np.uint8 else image * seen + covered


class RandomErasing(Augmentation):
    """Cover a rectangle of an image (https://arxiv.org/abs/1708.04896).

    Args:
        prob: of an image to be tried; a rectangle that does not fit is left out.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest height / width.
        value: its colour, one number or RGB; random: noise.
        inplace: no effect.
    """

    def __init__(self, prob: Share = 0.5, scale: Annotated[Sequence[Share], Length(2, 2), "the smaller first"] =
                 (0.02, 0.33), ratio: PositiveSpan = (0.3, 3.3), value: Colour | Literal["random"] = 0,
                 inplace: bool = False) -> None:
        check_span("RandomErasing.scale", scale)
        check_span("RandomErasing.ratio", ratio)
        self.prob = prob
        self.scale = scale
        self.ratio = ratio
        self.value = value

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """Top, left, and the rectangle's pixels [h, w, 3] or its colour, with its height and width."""
        if rng.random() >= self.prob:
            return None
        height, width = sample["image"].shape[:2]
        area = between(rng, self.scale) * (height * width)
        ratio = np.exp(between(rng, [np.log(each) for each in self.ratio]))
        h, w = int(round(np.sqrt(area * ratio))), int(round(np.sqrt(area / ratio)))
        if h >= height or w >= width:
            return None
        value = rng.normal(size=(h, w, 3)) * 255 if self.value == "random" else np.array(self.value, np.float64)
        return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w, value

    def apply(self, sample: Sample, drawn: Any) -> None:
        top, left, h, w, value = drawn
        image = pixels_of(sample).copy()
        if image.dtype == np.uint8:  # noise below 0 or above 255 goes on from the other end, on any processor
            value = value.astype(np.int64).astype(np.uint8)
        image[top:top + h, left:left + w] = value
        sample["image"] = image


class RandomErasingCrop(Augmentation):
    """Cover up to three rectangles with noise, of a twentieth to a fifth of the image each, ever narrower ones."""

    def __init__(self) -> None:
        self.rectangles = [RandomErasing(prob, (0.05, 0.2), ratio, "random")
                           for prob, ratio in ((0.7, (0.3, 3.3)), (0.5, (0.1, 6)), (0.3, (0.05, 8)))]

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """What each of the three draws."""
        return [rectangle.draw(sample, rng) for rectangle in self.rectangles]

    def apply(self, sample: Sample, drawn: Any) -> None:
        for rectangle, one in zip(self.rectangles, drawn):
            if one is not None:
                rectangle.apply(sample, one)
