"""From records to a batch (see the package's contract): the one way there, for training, evaluation, detection and the
proof of an export."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Optional, Protocol

import numpy as np

from ..errors import ConfigError, DataError
from ..kinds import Range
from .image import is_out_of_memory

Sample = dict[str, Any]
Batch = dict[str, np.ndarray]
SampleTransform = Callable[[Sample, Optional[np.random.Generator]], None]
BatchTransform = Callable[[list[Sample], np.random.Generator], list[Sample]]

BATCH_KEYS = ("image", "unpadded", "im_shape", "scale_factor", "im_id", "place", "labels", "label_weights",
              "bbox_targets", "pos_num", "vlr_regions")


class Mixes(Protocol):
    """A transform that makes one sample of several; of one alone, it makes nothing else."""

    others: int  # samples that it needs beside the first

    def mix(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample: ...

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None: ...


@dataclass(frozen=True)
class Reader:
    """What a reader's section of a config does to images.

    Attributes:
        sample_transforms: of one image, in order (see `transforms`).
        batch_transforms: of all images of a batch together, in order.
        mixing: (transform, epochs) of those that make one image of several, in the order in which their epochs follow
            one another: each mixes until that epoch, with 0 in all of them, with -1 never.
        left_out: the one of the sample transforms that is left to the device (see `device`).
    """

    sample_transforms: Sequence[SampleTransform]
    batch_transforms: Sequence[BatchTransform]
    mixing: Sequence[tuple[Mixes, int]] = ()
    left_out: SampleTransform | None = None

    def steps(self) -> list[SampleTransform | BatchTransform]:
        """All transforms in order, also those of single images that stand among the batch's."""
        return [*self.sample_transforms, *(each.transform if isinstance(each, EachOf) else each
                                           for each in self.batch_transforms)]

    def mixer(self, epoch: int) -> Mixes | None:
        """The transform that mixes images in an epoch, which counts from 0."""
        return next((mixer for mixer, epochs in self.mixing if epochs == 0 or epoch < epochs), None)

    def sample(self, record: Sample, rng: np.random.Generator | None = None, *, others: Sequence[Sample] = (),
               mixer: Mixes | None = None) -> Sample:
        """One record, {"im_id", "im_file" or "image", ...}, transformed; the record stays as it is.

        Args:
            rng: the source of randomness; None: always the same numbers.
            others: as many other records as `mixer` needs; all are transformed alike up to there.

        Raises: DataError.
        """
        rng = np.random.default_rng(0) if rng is None else rng
        samples = [dict(each) for each in (record, *others)]
        try:
            for transform in self.sample_transforms:
                if transform is self.left_out:
                    continue
                if mixer is not None and transform is mixer:
                    samples = [mixer.mix(samples, rng)]
                for sample in samples:
                    transform(sample, rng)
        except Exception as error:
            if is_out_of_memory(error):
                raise DataError(f"{_described(sample)}: there is no memory to prepare it ({_reason(error)}); make it "
                                "smaller, leave it out, or set worker_num lower if it is not 0") from error
            raise
        return samples[0]

    def batch(self, samples: list[Sample], rng: np.random.Generator | None = None) -> Batch:
        """Transformed samples -> a batch. Raises DataError where there is no memory for it."""
        given, rng = samples, np.random.default_rng(0) if rng is None else rng
        try:
            for transform in self.batch_transforms:
                samples = transform(samples, rng)
            return collate(samples)
        except Exception as error:
            if is_out_of_memory(error):
                raise no_memory(given, error) from error
            raise

    def __call__(self, images: Iterable[np.ndarray | str | os.PathLike[str]]) -> Batch:
        """Images, each [H, W, 3] uint8 BGR or the path of a file -> a batch. Raises DataError."""
        return self.batch([self.sample({"im_id": 0, "image" if isinstance(image, np.ndarray) else "im_file": image})
                           for image in images])


class EachOf:
    """Transform of a batch: one of a sample, for each of its images.

    Args:
        transform: of a sample.
    """

    def __init__(self, transform: SampleTransform) -> None:
        self.transform = transform

    def __call__(self, samples: list[Sample], rng: np.random.Generator | None = None) -> list[Sample]:
        """Changes and returns the samples."""
        for sample in samples:
            self.transform(sample, rng)
        return samples


class PadBatch:
    """Pad the images of a batch with zeros, right and bottom, to one size.

    Args:
        pad_to_stride: height and width become multiples of it; 0 or 1: only as large as the largest image.
    """

    def __init__(self, pad_to_stride: Annotated[int, Range(0, 4096)] = 0) -> None:
        if not isinstance(pad_to_stride, int) or pad_to_stride < 0:
            raise ConfigError(f"PadBatch.pad_to_stride: {pad_to_stride!r}; it is a whole number, 32 for GFL")
        self.stride = max(1, pad_to_stride)

    def __call__(self, samples: list[Sample], rng: np.random.Generator | None = None) -> list[Sample]:
        """Samples with `image` [3, H, W]; changes and returns them. Images in bytes, whose values the device looks up,
        get `unpadded`, since 0 is black there."""
        height, width = np.max([sample["image"].shape[1:] for sample in samples], axis=0)
        height, width = (-(-size // self.stride) * self.stride for size in (height, width))
        in_bytes = samples[0]["image"].dtype == np.uint8
        padded = np.zeros((len(samples), 3, height, width), np.uint8 if in_bytes else np.float32)
        for target, sample in zip(padded, samples):
            _, h, w = sample["image"].shape
            target[:, :h, :w] = sample["image"]
            sample["image"] = target
            if in_bytes:
                sample["unpadded"] = np.array([h, w], np.int32)
        return samples


def no_memory(samples: Sequence[Sample], error: BaseException) -> DataError:
    """What is said of a batch that memory was refused for, wherever that happens."""
    largest = max(samples, key=lambda sample: (sample.get("w") or 0) * (sample.get("h") or 0))
    mend = "set the reader's batch_size lower, or " if len(samples) > 1 else ""
    return DataError(f"there is no memory for a batch of {len(samples)}, of which the largest is {_described(largest)} "
                     f"({_reason(error)}); {mend}let Resize make pictures smaller, or leave that one out")


def _described(sample: Sample) -> str:
    """A picture by its file, and its size where that is known."""
    name = sample.get("im_file") or f"image {sample.get('im_id')}"
    return f"{name} ({sample['w']} x {sample['h']} pixels)" if sample.get("w") and sample.get("h") else str(name)


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def collate(samples: list[Sample]) -> Batch:
    """Samples of equal image sizes -> a batch of numpy arrays. Raises a ConfigError for images of other sizes."""
    sizes = {sample["image"].shape[1:] for sample in samples}
    if len(sizes) > 1:
        raise ConfigError(f"batch_transforms: the images of a batch have the sizes {sorted(sizes)}; add PadBatch, "
                          "which makes them one")
    return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in BATCH_KEYS if key in samples[0]}
