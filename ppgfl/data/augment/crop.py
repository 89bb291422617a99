"""Augmentations that cut a part out of an image; a box that is not in it goes, with all that belongs to it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from ...errors import ConfigError
from ...kinds import Colour, Count, Interpolation, Length, Pixels, Positive, PositiveSpan, Share, ShareAboveZero
from ..batch import Sample
from ..transforms import interpolate
from .base import Augmentation, between, boxes_of, check_span, set_boxes, set_image
from .geometry import Size, on_canvas


class RandomCrop(Augmentation):
    """Cut out a part that overlaps with a box by at least a share drawn at random, as SSD does. A box stays where its
    centre is inside.

    Args:
        aspect_ratio: smallest and largest width / height of the part, in those of the image; null: width and height
            are drawn independently.
        thresholds: the shares to draw from.
        scaling: smallest and largest side of the part, in sides of the image.
        num_attempts: tries for each share.
        allow_no_crop: the whole image is one more choice.
        cover_all_box: all boxes must overlap by that share, not only one.
        is_mask_crop: no effect.
        ioumode: what the share is of: iou, of box and part together; iof, of the box.
        prob: of an image to be tried.
    """

    def __init__(self, aspect_ratio: PositiveSpan | None = (0.5, 2.0),
                 thresholds: Sequence[Share] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
                 scaling: Annotated[Sequence[ShareAboveZero], Length(2, 2), "the smaller first"] = (0.3, 1.0),
                 num_attempts: Count = 50, allow_no_crop: bool = True, cover_all_box: bool = False,
                 is_mask_crop: bool = False, ioumode: Literal["iou", "iof"] = "iou", prob: Share = 1.0) -> None:
        check_span("RandomCrop.scaling", scaling)
        if aspect_ratio is not None:
            check_span("RandomCrop.aspect_ratio", aspect_ratio)
        self.aspect_ratio = aspect_ratio
        self.thresholds: list[float | None] = [*thresholds, *([None] if allow_no_crop else [])]
        self.scaling = scaling
        self.num_attempts = num_attempts
        self.cover_all_box = cover_all_box
        self.ioumode = ioumode
        self.prob = prob

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """x1, y1, x2, y2 of the part."""
        boxes = boxes_of(sample)
        if rng.random() > self.prob or not len(boxes):
            return None
        height, width = sample["image"].shape[:2]
        for i in rng.permutation(len(self.thresholds)):
            threshold = self.thresholds[int(i)]
            if threshold is None:
                return None
            for _ in range(self.num_attempts):
                part = self._part(height, width, rng)
                if part is not None and self._fits(boxes, part, threshold):
                    return part
        return None

    def _part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        scale = between(rng, self.scaling)
        if self.aspect_ratio is not None:
            low, high = max(self.aspect_ratio[0], scale**2), min(self.aspect_ratio[1], scale**-2)
            ratio = between(rng, sorted((low, high)))
            h, w = height * (scale / np.sqrt(ratio)), width * (scale * np.sqrt(ratio))
        else:
            h_scale, w_scale = between(rng, self.scaling), between(rng, self.scaling)
            h, w = height * h_scale, width * w_scale
            if h / w < 0.5 or h / w > 2.0:
                return None
        # A part as high as the image has one place: PaddleDetection fails where it comes out.
        h, w = min(int(h), height), min(int(w), width)
        y, x = int(rng.integers(0, max(1, height - h))), int(rng.integers(0, max(1, width - w)))
        return x, y, x + w, y + h

    def _fits(self, boxes: np.ndarray, part: tuple[int, int, int, int], threshold: float) -> bool:
        crop = np.array(part, np.float32)
        low, high = np.maximum(boxes[:, :2], crop[:2]), np.minimum(boxes[:, 2:], crop[2:])
        common = (high - low).prod(1) * (low < high).all(1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        share = common / ((area if self.ioumode == "iof" else area + (crop[2:] - crop[:2]).prod() - common) + 1e-10)
        if share.max() < threshold or (self.cover_all_box and share.min() < threshold):
            return False
        return bool(_inside(boxes, crop)[1].any())

    def apply(self, sample: Sample, drawn: Any) -> None:
        x1, y1, x2, y2 = drawn
        boxes, kept = _inside(boxes_of(sample), np.array(drawn, np.float32))
        set_image(sample, sample["image"][y1:y2, x1:x2])
        set_boxes(sample, boxes, kept)


def _inside(boxes: np.ndarray, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All boxes as they are in a part, and which of them have their centre and some area in it."""
    cut = np.concatenate([np.maximum(boxes[:, :2], crop[:2]), np.minimum(boxes[:, 2:], crop[2:])], 1) - np.tile(
        crop[:2], 2)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    kept = ((crop[:2] <= centers) & (centers < crop[2:]) & (cut[:, :2] < cut[:, 2:])).all(1)
    return cut, kept


class RandomSizeCrop(Augmentation):
    """Cut out a part of a size drawn at random, as DETR does. Boxes are cut with it.

    Args:
        min_size: smallest height and width; of an image that is smaller, its whole side.
        max_size: largest height and width.
        keep_empty: also take a part without a box; false: the image stays whole then.
    """

    def __init__(self, min_size: Pixels, max_size: Pixels, keep_empty: bool = True) -> None:
        if min_size > max_size:
            raise ConfigError(f"RandomSizeCrop.min_size: {min_size}; it must be at most max_size, {max_size}")
        self.min_size = min_size
        self.max_size = max_size
        self.keep_empty = keep_empty

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """x1, y1, x2, y2 of the part."""
        height, width = sample["image"].shape[:2]
        # PaddleDetection fails on an image smaller than min_size.
        h, w = (int(rng.integers(min(self.min_size, side), min(side, self.max_size) + 1)) for side in (height, width))
        if (h, w) == (height, width):
            return 0, 0, w, h
        # PaddleDetection draws one place too many, where a row or column of the part lies outside of the image.
        y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        part = x, y, x + w, y + h
        found = len(boxes_of(sample)) and not self.keep_empty
        return None if found and not self._boxes(sample, part)[1].any() else part

    def _boxes(self, sample: Sample, part: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        x1, y1, x2, y2 = part
        boxes = (boxes_of(sample) - np.array([x1, y1] * 2)).clip(0, np.array([x2 - x1, y2 - y1] * 2))
        return boxes, (boxes[:, 2:] - boxes[:, :2]).prod(1) > 0

    def apply(self, sample: Sample, drawn: Any) -> None:
        x1, y1, x2, y2 = drawn
        boxes, kept = self._boxes(sample, drawn)
        set_image(sample, sample["image"][y1:y2, x1:x2])
        set_boxes(sample, boxes, kept)


class RandomScaledCrop(Augmentation):
    """Scale an image by a factor drawn at random, then cut or pad it to a size.

    Args:
        target_size: one number, or height and width.
        scale_range: smallest and largest size of the whole image, in sizes of the target.
        interp: OpenCV's number of the interpolation: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos.
        fill_value: colour of the rest, one number or RGB.
    """

    def __init__(self, target_size: Size = 512, scale_range: Annotated[Sequence[Positive], Length(2, 2)] = (0.1, 2.0),
                 interp: Interpolation = cv2.INTER_LINEAR, fill_value: Colour = (123.675, 116.28, 103.53)) -> None:
        check_span("RandomScaledCrop.scale_range", scale_range)
        if scale_range[1] > 100:
            raise ConfigError(f"RandomScaledCrop.scale_range: {list(scale_range)!r}; they are at most 100")
        self.height, self.width = [target_size] * 2 if isinstance(target_size, int) else target_size
        self.scale_range = scale_range
        self.interp = interp
        self.fill_value = fill_value

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """The scale, and x and y of the part in the scaled image."""
        height, width = sample["image"].shape[:2]
        factor = between(rng, self.scale_range)
        scale = min(self.height * factor / height, self.width * factor / width)
        over_x, over_y = int(round(width * scale)) - self.width, int(round(height * scale)) - self.height
        x, y = (int(max(0.0, rng.uniform(0.0, max(0.0, over)))) for over in (over_x, over_y))
        return scale, x, y

    def apply(self, sample: Sample, drawn: Any) -> None:
        scale, x, y = drawn
        # PaddleDetection fails where a side comes out as 0.
        height, width = (max(1, int(round(side * scale))) for side in sample["image"].shape[:2])
        image = interpolate(sample, width, height, self.interp)
        part = image[y:y + self.height, x:x + self.width]
        set_image(sample, on_canvas(part, self.height, self.width, 0, 0, self.fill_value))
        sample["scale_factor"] = (sample["scale_factor"] * scale).astype(np.float32)
        boxes = boxes_of(sample) * np.float32(scale) - np.array([x, y] * 2, np.float32)
        boxes = boxes.clip(0, np.array([self.width, self.height] * 2, np.float32))
        # PaddleDetection leaves the scores and crowd flags of the boxes that go.
        set_boxes(sample, boxes, (boxes[:, 2:] - boxes[:, :2]).prod(1) > 1)
