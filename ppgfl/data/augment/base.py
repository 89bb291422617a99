"""What all augmentations share: two pure parts, and the keys of a sample that go with its boxes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..batch import Sample

PER_BOX = ("gt_class", "gt_score", "is_crowd", "difficult")  # one entry for each box, beside `gt_bbox`


class Augmentation:
    """A transform in two parts. `draw` takes numbers from the generator and changes nothing; `apply` changes the sample
    by these numbers alone, so that the same numbers always give the same pixels and boxes."""

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """The numbers for this sample, or None: it stays as it is."""
        raise NotImplementedError

    def apply(self, sample: Sample, drawn: Any) -> None:
        """Change the sample."""
        raise NotImplementedError

    def __call__(self, sample: Sample, rng: np.random.Generator) -> None:
        drawn = self.draw(sample, rng)
        if drawn is not None:
            self.apply(sample, drawn)


class Mixer:
    """An augmentation of several samples, in two parts like `Augmentation`. Where there is only one, it stays as it is.

    Attributes:
        others: how many samples it needs beside the first.
    """

    others = 1

    def draw(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """The numbers for these samples, or None: the first one stays as it is."""
        raise NotImplementedError

    def apply(self, samples: Sequence[Sample], drawn: Any) -> Sample:
        """One sample of them all, with what the first has beside image and boxes."""
        raise NotImplementedError

    def mix(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """One sample of several."""
        drawn = self.draw(samples, rng)
        return samples[0] if drawn is None else self.apply(samples, drawn)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None:
        """Nothing: after its last epoch the samples come one by one."""


def boxes_of(sample: Sample) -> np.ndarray:
    """[k, 4] float32; none where the sample has no boxes."""
    return np.asarray(sample.get("gt_bbox", ()), np.float32).reshape(-1, 4)


def set_boxes(sample: Sample, boxes: np.ndarray, kept: np.ndarray | None = None) -> None:
    """Give a sample other boxes, where it has some. `kept`, a mask or indices: only these, with all that belongs to
    them."""
    if "gt_bbox" not in sample:
        return
    sample["gt_bbox"] = np.asarray(boxes if kept is None else boxes[kept], np.float32)
    if kept is not None:
        sample.update({key: sample[key][kept] for key in PER_BOX if key in sample})


def set_image(sample: Sample, image: np.ndarray) -> None:
    """Give a sample an image of another size."""
    sample["image"] = image
    sample["im_shape"] = np.array(image.shape[:2], np.float32)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8, for what works on whole numbers only; fractions are cut off."""
    return image if image.dtype == np.uint8 else image.clip(0, 255).astype(np.uint8)


def between(rng: np.random.Generator, span: Sequence[float]) -> float:
    """A number from the smaller of two to the larger."""
    return float(rng.uniform(span[0], span[1]))


def check_span(where: str, span: Sequence[float]) -> None:
    """Raise a ConfigError unless the smaller number stands first."""
    if span[0] > span[1]:
        raise ConfigError(f"{where}: {list(span)!r}; the smaller number must come first")
