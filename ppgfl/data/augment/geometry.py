"""Augmentations that move or scale an image as a whole, and its boxes with it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union

import cv2
import numpy as np

from ...errors import ConfigError
from ...kinds import Colour, Interpolation, Length, NotNegative, Pixels, Range, Share, Stride, Whole
from ..batch import Sample
from ..transforms import INTERPOLATIONS, interpolate, resize_to
from .base import Augmentation, boxes_of, set_boxes, set_image

Size = Union[Pixels, Annotated[Sequence[Pixels], Length(2, 2), "height, width"]]
Offsets = Annotated[Sequence[Whole], Length(2, 2), "x, y"]


def pad(sample: Sample, height: int, width: int, x: int, y: int, colour: Colour) -> None:
    """Put an image on a larger canvas, its left upper corner at (x, y)."""
    set_image(sample, on_canvas(sample["image"], height, width, x, y, colour))
    set_boxes(sample, boxes_of(sample) + np.array([x, y] * 2, np.float32))


def on_canvas(image: np.ndarray, height: int, width: int, x: int, y: int, colour: Colour) -> np.ndarray:
    """The image on a canvas [height, width, 3] float32: several times as fast as broadcasting three numbers to it."""
    below, right = height - y - image.shape[0], width - x - image.shape[1]
    return cv2.copyMakeBorder(image.astype(np.float32, copy=False), y, below, x, right, cv2.BORDER_CONSTANT,
                              value=np.broadcast_to(np.asarray(colour, float), 3).tolist())


class _OnCanvas(Augmentation):
    """One that draws height and width of a canvas, and x and y of the image on it."""

    fill_value: Colour

    def apply(self, sample: Sample, drawn: Any) -> None:
        height, width, x, y = drawn
        pad(sample, height, width, x, y, self.fill_value)


class RandomExpand(_OnCanvas):
    """Put an image on a larger canvas, so that its objects are smaller in it.

    Args:
        ratio: largest side of the canvas, in sides of the image.
        prob: PaddleDetection: of an image to stay as it is.
        fill_value: colour of the canvas, one number or RGB.
    """

    def __init__(self, ratio: Annotated[float, Range(1.01, 100, without=(1.01,))] = 4.0, prob: Share = 0.5,
                 fill_value: Colour = (127.5, 127.5, 127.5)) -> None:
        self.ratio = ratio
        self.prob = prob
        self.fill_value = fill_value

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """Height and width of the canvas, and x and y of the image on it."""
        if rng.uniform(0.0, 1.0) < self.prob:
            return None
        height, width = sample["image"].shape[:2]
        ratio = rng.uniform(1.0, self.ratio)
        h, w = int(height * ratio), int(width * ratio)
        if h <= height or w <= width:
            return None
        y, x = int(rng.integers(0, h - height)), int(rng.integers(0, w - width))
        return h, w, x, y


class Pad(_OnCanvas):
    """Pad an image to a size.

    Args:
        size: one number, or height and width; null: the next multiple of `size_divisor`. PaddleDetection: null is its
            default too, which it then refuses.
        size_divisor: height and width become multiples of it, where there is no `size`.
        pad_mode: where the image comes to lie: 0 left upper corner, 1 middle, 2 right lower corner, -1 at `offsets`.
        offsets: x, y of its left upper corner, with `pad_mode: -1`.
        fill_value: colour of the rest, one number or RGB.
    """

    def __init__(self, size: Size | None = None, size_divisor: Stride = 32,
                 pad_mode: Annotated[int, Range(-1, 2)] = 0, offsets: Offsets | None = None,
                 fill_value: Colour = (127.5, 127.5, 127.5)) -> None:
        if pad_mode == -1 and offsets is None:
            raise ConfigError("Pad.offsets: missing; pad_mode: -1 needs [x, y]")
        self.size = [size] * 2 if isinstance(size, int) else size
        self.size_divisor = size_divisor
        self.pad_mode = pad_mode
        self.offsets = offsets
        self.fill_value = fill_value

    def draw(self, sample: Sample, rng: np.random.Generator | None = None) -> Any:
        """Height and width of the canvas, and x and y of the image on it: nothing is random. Raises ConfigError."""
        height, width = sample["image"].shape[:2]
        h, w = self.size or (-(-side // self.size_divisor) * self.size_divisor for side in (height, width))
        room = w - width, h - height
        x, y = self.offsets or (0, 0) if self.pad_mode == -1 else {
            0: (0, 0), 1: (room[0] // 2, room[1] // 2), 2: room}[self.pad_mode]
        if x > room[0] or y > room[1] or min(room) < 0:
            raise ConfigError(f"Pad.size: {h} x {w}, at {x}, {y}; an image has {height} x {width} pixels and does not "
                              "fit in; put Resize before Pad, or set size higher")
        return h, w, x, y


class PadResize(Augmentation):
    """Scale an image to fit a size and pad it there, right and bottom.

    Args:
        target_size: one number, or height and width.
        fill_value: grey of the rest.
    """

    def __init__(self, target_size: Size, fill_value: Annotated[float, Range(0, 255)] = 114) -> None:
        self.height, self.width = [target_size] * 2 if isinstance(target_size, int) else target_size
        self.fill_value = int(fill_value)

    def draw(self, sample: Sample, rng: np.random.Generator | None = None) -> Any:
        """The scale: nothing is random."""
        height, width = sample["image"].shape[:2]
        return min(self.height / height, self.width / width)

    def apply(self, sample: Sample, drawn: Any) -> None:
        height, width = (max(1, int(side * drawn)) for side in sample["image"].shape[:2])
        canvas = np.full((self.height, self.width, 3), self.fill_value, np.float32)
        # PaddleDetection: what was scaled is whole numbers again where anything is padded, and float32 at the end.
        scaled = interpolate(sample, width, height, cv2.INTER_LINEAR)
        canvas[:height, :width] = scaled if (height, width) == canvas.shape[:2] else scaled.astype(np.uint8)
        set_image(sample, canvas)
        sample["scale_factor"] = (sample["scale_factor"] * drawn).astype(np.float32)
        boxes = boxes_of(sample) * np.float32(drawn)
        set_boxes(sample, boxes, np.minimum(*(boxes[:, 2:] - boxes[:, :2]).T) > 1)


class RandomShift(Augmentation):
    """Move what is on an image; what comes in is black.

    Args:
        prob: of an image to be moved.
        max_shift: pixels, in both directions.
        filter_thr: boxes whose part in the image is not wider and higher than so many pixels are left out; where none
            remains, the image stays as it is.
    """

    def __init__(self, prob: Share = 0.5, max_shift: Annotated[int, Range(0, 32768)] = 32,
                 filter_thr: NotNegative = 1) -> None:
        self.prob = prob
        self.max_shift = max_shift
        self.filter_thr = filter_thr

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """Pixels down and to the right."""
        if rng.random() > self.prob:
            return None
        down, right = (int(rng.integers(-self.max_shift, self.max_shift + 1)) for _ in range(2))
        return (down, right) if self._boxes(sample, down, right)[1].any() else None

    def _boxes(self, sample: Sample, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
        """All boxes after the move, and which of them are large enough."""
        height, width = sample["image"].shape[:2]
        boxes = boxes_of(sample) + np.array([right, down] * 2, np.float32)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        return boxes, (boxes[:, 2:] - boxes[:, :2] > self.filter_thr).all(1)

    def apply(self, sample: Sample, drawn: Any) -> None:
        down, right = drawn
        boxes, kept = self._boxes(sample, down, right)
        image = sample["image"]
        height, width = image.shape[:2]
        moved = np.zeros_like(image)
        moved[max(0, down):height + min(0, down), max(0, right):width + min(0, right)] = image[
            max(0, -down):height - max(0, down), max(0, -right):width - max(0, right)]
        sample["image"] = moved
        set_boxes(sample, boxes, kept)


class RandomShortSideResize(Augmentation):
    """Scale an image so that its short side has a length drawn at random.

    Args:
        short_side_sizes: the lengths, in pixels.
        max_size: the long side becomes no longer than that; null: as long as it comes.
        interp: OpenCV's number of the interpolation: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos.
        random_interp: draw the interpolation as well.
    """

    def __init__(self, short_side_sizes: Annotated[Sequence[Pixels], Length(1, 1000)],
                 max_size: Pixels | None = None, interp: Interpolation = cv2.INTER_LINEAR,
                 random_interp: bool = False) -> None:
        self.short_side_sizes = short_side_sizes
        self.max_size = max_size
        self.interp = interp
        self.random_interp = random_interp

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """New height, new width, interpolation."""
        short = self.short_side_sizes[int(rng.integers(len(self.short_side_sizes)))]
        interp = INTERPOLATIONS[int(rng.integers(5))] if self.random_interp else self.interp
        height, width = sample["image"].shape[:2]
        long = None
        if self.max_size is not None and max(height, width) / min(height, width) * short > self.max_size:
            short = int(self.max_size * float(min(height, width)) / max(height, width))
            long = self.max_size
        if short == min(height, width):
            return height, width, interp
        if width < height:
            new = (long or round(short * height / width), short)
        else:
            new = (short, long or round(short * width / height))
        return max(1, new[0]), max(1, new[1]), interp

    def apply(self, sample: Sample, drawn: Any) -> None:
        resize_to(sample, *drawn)
