"""Transforms of one sample, with PaddleDetection's names, arguments and arithmetic.

Each is called as `transform(sample, rng)` and changes the sample it is given; `rng` is a numpy Generator, the only
source of randomness, so that a sample comes out the same in whichever worker it is made.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError
from ..kinds import Pixels, Positive, Share
from .batch import Sample
from .image import read_image

# What `random_interp` draws from, in PaddleDetection's order.
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def pixels_of(sample: Sample) -> np.ndarray:
    """The image [H, W, 3] of the type that it has in PaddleDetection: float32 once `Resize` was there. Here it stays
    uint8, which holds the same values, until a transform asks that makes fractions of them."""
    image: np.ndarray = sample["image"]
    return image.astype(np.float32) if sample.get("resized") and image.dtype == np.uint8 else image


def interpolate(sample: Sample, width: int, height: int, interp: int) -> np.ndarray:
    """A sample's image in another size."""
    return cv2.resize(pixels_of(sample), (width, height), interpolation=interp)


def resize_to(sample: Sample, height: int, width: int, interp: int) -> None:
    """Give image and boxes of a sample another size."""
    scale = np.array([height, width]) / sample["image"].shape[:2]
    sample["image"] = interpolate(sample, width, height, interp)
    sample["im_shape"] = np.array([height, width], np.float32)
    sample["scale_factor"] = (sample["scale_factor"] * scale).astype(np.float32)
    if "gt_bbox" in sample:
        boxes = (sample["gt_bbox"] * np.tile(scale[::-1], 2)).astype(np.float32)
        sample["gt_bbox"] = boxes.clip(0, np.array([width, height] * 2, np.float32))


class Decode:
    """Read `im_file`, unless the sample has its `image` (BGR) already; turn it to RGB and note the original size."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None:
        image = sample["image"] if "image" in sample else read_image(sample["im_file"])
        sample["image"] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        height, width = sample["image"].shape[:2]
        sample["h"], sample["w"] = height, width  # of the pixels: an annotation file may be wrong
        sample["im_shape"] = np.array([height, width], np.float32)
        sample["scale_factor"] = np.ones(2, np.float32)


class Resize:
    """Resize to fit `target_size`.

    Args:
        target_size: one number, or two (height, width).
        keep_ratio: scale so that the short side is at most the smaller and the long side at most the larger of the
            two numbers; else stretch to exactly that height and width.
        interp: OpenCV's number of the interpolation: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos.
    """

    def __init__(self, target_size: Pixels | Sequence[Pixels], keep_ratio: bool,
                 interp: int = cv2.INTER_LINEAR) -> None:
        size = [target_size] * 2 if isinstance(target_size, int) else list(target_size)
        if len(size) != 2 or not all(isinstance(n, (int, float)) and n > 0 for n in size):
            raise ConfigError(f"Resize.target_size: {target_size!r}; it is one positive number, or height and width")
        if interp not in range(5):
            raise ConfigError(f"Resize.interp: {interp!r}; allowed: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos")
        self.target_size = size
        self.keep_ratio = keep_ratio
        self.interp = interp

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None:
        resize_to(sample, *self.size_for(*sample["image"].shape[:2]), self.interp)
        sample["resized"] = True

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """New height and width of an image of that size; at least 1 pixel each."""
        if not self.keep_ratio:
            return int(self.target_size[0]), int(self.target_size[1])
        scale = min(min(self.target_size) / min(height, width), max(self.target_size) / max(height, width))
        return max(1, int(scale * height + 0.5)), max(1, int(scale * width + 0.5))


class RandomResize:
    """Resize to a size drawn at random.

    Args:
        target_size: the sizes to draw from; with `random_range` two sizes [[short, long], [short, long]] between
            which the short side is drawn.
        keep_ratio, interp: as in `Resize`.
        random_range: draw the short side between two sizes.
        random_size: draw one of `target_size`; else `target_size` is the one size.
        random_interp: draw the interpolation as well.
    """

    def __init__(self, target_size: Pixels | Sequence[Pixels] | Sequence[Sequence[Pixels]],
                 keep_ratio: bool = True, interp: int = cv2.INTER_LINEAR, random_range: bool = False,
                 random_size: bool = True, random_interp: bool = False) -> None:
        if (random_range or random_size) and not isinstance(target_size, (list, tuple)):
            raise ConfigError(f"RandomResize.target_size: {target_size!r}; it must be a list of sizes")
        sizes: Any = target_size if random_range or random_size else [target_size]
        if random_range and (len(sizes) != 2 or not all(isinstance(size, (list, tuple)) and len(size) == 2
                                                        for size in sizes) or sizes[0][0] > sizes[1][0]):
            raise ConfigError(f"RandomResize.target_size: {target_size!r}; random_range needs a smallest and a "
                              "largest [short, long]")
        if not sizes:
            raise ConfigError("RandomResize.target_size: it must have a size")
        try:
            for size in sizes:
                Resize(size, keep_ratio, interp)
        except ConfigError as error:
            raise ConfigError(f"RandomResize.target_size or interp: {error}") from error
        self.target_size: Any = target_size
        self.keep_ratio = keep_ratio
        self.interp = interp
        self.random_range = random_range
        self.random_size = random_size
        self.random_interp = random_interp

    def __call__(self, sample: Sample, rng: np.random.Generator) -> None:
        if self.random_range:
            (low, long_low), (high, long_high) = self.target_size
            size = [int(rng.integers(low, high + 1)), max(long_low, long_high)]
        elif self.random_size:
            size = self.target_size[int(rng.integers(len(self.target_size)))]
        else:
            size = self.target_size
        interp = int(rng.integers(5)) if self.random_interp else self.interp
        Resize(size, self.keep_ratio, interp)(sample)


class RandomFlip:
    """Mirror image and boxes left to right.

    Args:
        prob: of an image to be mirrored.
    """

    def __init__(self, prob: Share = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ConfigError(f"RandomFlip.prob: {prob!r}; it is a probability, 0 to 1")
        self.prob = prob

    def __call__(self, sample: Sample, rng: np.random.Generator) -> None:
        if rng.random() >= self.prob:
            return
        sample["image"] = cv2.flip(sample["image"], 1)
        if "gt_bbox" in sample:
            x1, y1, x2, y2 = sample["gt_bbox"].T
            width = sample["image"].shape[1]
            sample["gt_bbox"] = np.stack([width - x2, y1, width - x1, y2], axis=1)


class NormalizeImage:
    """Pixels -> float32 (x / 255 - mean) / std. Also a transform of a batch.

    Args:
        mean, std: per channel, RGB.
        is_scale: divide by 255 first.
        norm_type: "mean_std", or "none" to leave mean and std out.
    """

    def __init__(self, mean: Sequence[float] = (0.485, 0.456, 0.406), std: Sequence[Positive] = (0.229, 0.224, 0.225),
                 is_scale: bool = True, norm_type: str = "mean_std") -> None:
        if norm_type not in ("mean_std", "none"):
            raise ConfigError(f"NormalizeImage.norm_type: {norm_type!r}; allowed: mean_std, none")
        if len(mean) != 3 or len(std) != 3 or not all(std):
            raise ConfigError(f"NormalizeImage: mean {mean!r}, std {std!r}; both need 3 numbers, std none of them 0")
        self.is_scale = is_scale
        self.mean = np.array(mean if norm_type == "mean_std" else [0.0] * 3)
        self.std = np.array(std if norm_type == "mean_std" else [1.0] * 3)
        # 256 values per channel: looking up is exact and several times faster than arithmetic on every pixel.
        table = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
        self.table = self._normalized(table).reshape(1, 256, 3)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None:
        image = sample["image"]
        if image.dtype != np.uint8 and not _are_bytes(image):
            sample["image"] = self._normalized(image)
        else:
            sample["image"] = cv2.LUT(image.astype(np.uint8, copy=False), self.table)

    def _normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [..., 3] float32. Each step is rounded to float32, as in PaddleDetection."""
        pixels = np.multiply(pixels, np.float32(1.0 / 255.0 if self.is_scale else 1.0), order="C")
        rows = pixels.reshape(len(pixels), -1)
        pixels_in_row = rows.shape[1] // 3  # numpy is slow at rows of three numbers
        rows -= np.tile(self.mean, pixels_in_row)
        rows /= np.tile(self.std, pixels_in_row)
        return pixels

    def undo(self, image: np.ndarray) -> np.ndarray:
        """Normalised RGB [3, H, W] -> a picture [H, W, 3] uint8 BGR."""
        image = image.transpose(1, 2, 0)
        low, high = self.table[0, 0], self.table[0, 255]
        rgb = np.round((image - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def _are_bytes(image: np.ndarray) -> bool:
    """Whether all values of a float32 image are whole numbers from 0 to 255, which most augmentations leave."""
    with np.errstate(invalid="ignore"):
        return all(np.array_equal(part.astype(np.uint8), part) for part in (image[:1], image))


class Permute:
    """[H, W, 3] -> [3, H, W]. Also a transform of a batch."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> None:
        sample["image"] = sample["image"].transpose(2, 0, 1)
