"""Chosen at random: one of several lists of transforms for each image, one size for a whole batch."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union

import cv2
import numpy as np

from ...errors import ConfigError
from ...kinds import Interpolation, Length, Pixels, Share, TransformLists, Transforms
from ..batch import Sample
from ..transforms import INTERPOLATIONS, Resize

Sizes = Union[Pixels, Annotated[Sequence[Union[Pixels, Annotated[Sequence[Pixels], Length(2, 2)]]], Length(1, 1000)]]


class RandomSelect:
    """One of two lists of transforms.

    Args:
        transforms1: the first list.
        transforms2: the other.
        p: of the first list.
    """

    def __init__(self, transforms1: Transforms, transforms2: Transforms, p: Share = 0.5) -> None:
        self.lists: Sequence[Sequence[Any]] = (transforms1, transforms2)
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> None:
        for transform in self.lists[0 if rng.random() < self.p else 1]:
            transform(sample, rng)


class RandomSelects:
    """One of several lists of transforms.

    Args:
        transforms_list: the lists.
        p: for each list, the share up to which it is taken, growing to 1: [0.2, 1.0] takes the first for a fifth of
            the images; null: all are as likely. PaddleDetection: an image above the last share is lost; here the last
            list is taken.
    """

    def __init__(self, transforms_list: TransformLists,
                 p: Sequence[Share] | None = None) -> None:
        if p is not None and (len(p) != len(transforms_list) or sorted(p) != list(p)):
            raise ConfigError(f"RandomSelects.p: {list(p)!r}; one share for each of the {len(transforms_list)} lists, "
                              "growing, as in [0.2, 1.0]")
        self.lists: Sequence[Sequence[Any]] = transforms_list
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> None:
        if self.p is None:
            chosen = int(rng.integers(len(self.lists)))
        else:
            chosen = min(int(np.searchsorted(self.p, rng.random())), len(self.lists) - 1)
        for transform in self.lists[chosen]:
            transform(sample, rng)


class BatchRandomResize:
    """Transform of a batch: all its images to one size, drawn at random for each batch.

    Args:
        target_size: the sizes to draw from, each one number or height and width; without `random_size` the one size.
        keep_ratio: as in `Resize`; the images of a batch need PadBatch then.
        interp: OpenCV's number of the interpolation: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos.
        random_size: draw one of `target_size`.
        random_interp: draw the interpolation as well.
    """

    def __init__(self, target_size: Sizes, keep_ratio: bool, interp: Interpolation = cv2.INTER_NEAREST,
                 random_size: bool = True, random_interp: bool = False) -> None:
        if random_size and isinstance(target_size, int):
            raise ConfigError(f"BatchRandomResize.target_size: {target_size!r}; random_size needs a list of sizes")
        sizes: Any = target_size if random_size else [target_size]
        try:
            self.resizes = [[Resize(size, keep_ratio, each) for size in sizes]
                            for each in (INTERPOLATIONS if random_interp else [interp])]
        except ConfigError as error:
            raise ConfigError(f"BatchRandomResize.target_size: {error}") from error

    def draw(self, rng: np.random.Generator) -> Resize:
        """One of the ways to resize."""
        size = int(rng.integers(len(self.resizes[0]))) if len(self.resizes[0]) > 1 else 0
        interp = int(rng.integers(len(self.resizes))) if len(self.resizes) > 1 else 0
        return self.resizes[interp][size]

    def __call__(self, samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
        """Samples with `image` [H, W, 3]; changes and returns them."""
        resize = self.draw(rng)
        for sample in samples:
            resize(sample)
        return samples
