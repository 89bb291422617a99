"""Mosaic: four images around a point, turned, scaled and sheared as one, and a fifth laid over them (YOLOX,
https://arxiv.org/abs/2107.08430)."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ...errors import ConfigError
from ...kinds import PositiveSpan, Share, Span
from ..batch import Sample
from .base import PER_BOX, Mixer, as_bytes, between, boxes_of, check_span, set_image
from .geometry import Size

GREY = 114
LARGEST = 100  # of scales


class Mosaic(Mixer):
    """Four images as one, and a fifth laid over it.

    Args:
        prob: of an image to become a mosaic.
        input_dim: its size, one number, or height and width. PaddleDetection: width and height are mixed up in parts
            where they differ; here they are not.
        degrees: smallest and largest turn.
        translate: smallest and largest shift, in sizes.
        scale: smallest and largest scale.
        shear: smallest and largest shear, in degrees.
        enable_mixup: lay the fifth image over it.
        mixup_prob: of a mosaic with boxes to get the fifth.
        mixup_scale: smallest and largest scale of the fifth.
        remove_outside_box: leave boxes outside of the canvas out, and let others reach over its edge; false: all are
            cut at the edge, also to nothing, which no cell learns from.
    """

    others = 4

    def __init__(self, prob: Share = 1.0, input_dim: Size = (640, 640), degrees: Span = (-10, 10),
                 translate: Span = (-0.1, 0.1), scale: PositiveSpan = (0.1, 2), shear: Span = (-2, 2),
                 enable_mixup: bool = True, mixup_prob: Share = 1.0, mixup_scale: PositiveSpan = (0.5, 1.5),
                 remove_outside_box: bool = False) -> None:
        for name, span in (("degrees", degrees), ("translate", translate), ("scale", scale), ("shear", shear),
                           ("mixup_scale", mixup_scale)):
            check_span(f"Mosaic.{name}", span)
            if name.endswith("scale") and span[1] > LARGEST:
                raise ConfigError(f"Mosaic.{name}: {list(span)!r}; they are at most {LARGEST}")
        self.prob = prob
        self.height, self.width = [input_dim] * 2 if isinstance(input_dim, int) else input_dim
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.enable_mixup = enable_mixup
        self.mixup_prob = mixup_prob
        self.mixup_scale = mixup_scale
        self.remove_outside_box = remove_outside_box

    def draw(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """The point x, y; degrees, scale, shear, shift; and of the fifth image None, or scale, whether it is mirrored,
        and x, y of its part."""
        if rng.uniform(0.0, 1.0) > self.prob:
            return None
        y, x = (int(rng.uniform(0.5 * side, 1.5 * side)) for side in (self.height, self.width))
        affine = [between(rng, span) for span in (self.degrees, self.scale, self.shear, self.translate)]
        fifth = None
        if self.enable_mixup and len(self._boxes(samples[:4], x, y)[0]) and rng.random() < self.mixup_prob:
            scale = between(rng, self.mixup_scale)
            mirrored = bool(rng.uniform(0, 1) > 0.5)
            over = [max(1, int(side * scale)) - side for side in (self.height, self.width)]
            top, left = (int(rng.integers(0, each)) if each > 0 else 0 for each in over)
            fifth = scale, mirrored, left, top
        return (x, y), affine, fifth

    def apply(self, samples: Sequence[Sample], drawn: Any) -> Sample:
        (x, y), affine, fifth = drawn
        boxes, entries = self._boxes(samples[:4], x, y)
        image, boxes = self._turned(self._image(samples[:4], x, y), boxes, *affine)
        if fifth is not None:
            image, new, kept = self._laid_over(image, samples[4], *fifth)
            boxes = np.concatenate([boxes, new])
            entries = {key: np.concatenate([values, samples[4][key][kept]]) for key, values in entries.items()
                       if key in samples[4]}
        mixed = {key: value for key, value in samples[0].items() if key not in PER_BOX}
        set_image(mixed, image)
        if "gt_bbox" in mixed:
            mixed.update(entries, gt_bbox=boxes.astype(np.float32))
        return mixed

    def _placed(self, samples: Sequence[Sample], x: int, y: int) -> list[tuple[float, int, int, int, int]]:
        """For each of four: its scale, its height and width there, and x, y of its left upper corner on a canvas of
        twice the size."""
        places = []
        for i, sample in enumerate(samples):
            height, width = sample["image"].shape[:2]
            scale = min(self.height / height, self.width / width)
            h, w = max(1, int(height * scale)), max(1, int(width * scale))
            places.append((scale, h, w, x if i % 2 else x - w, y if i > 1 else y - h))
        return places

    def _image(self, samples: Sequence[Sample], x: int, y: int) -> np.ndarray:
        canvas = np.full((2 * self.height, 2 * self.width, 3), GREY, np.uint8)
        for sample, (_, h, w, left, top) in zip(samples, self._placed(samples, x, y)):
            image = cv2.resize(as_bytes(sample["image"]), (w, h), interpolation=cv2.INTER_LINEAR)
            rows = slice(max(0, top), min(canvas.shape[0], top + h))
            columns = slice(max(0, left), min(canvas.shape[1], left + w))
            canvas[rows, columns] = image[rows.start - top:rows.stop - top, columns.start - left:columns.stop - left]
        return canvas

    def _boxes(self, samples: Sequence[Sample], x: int, y: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Boxes on the canvas of twice the size, and what belongs to each."""
        boxes = np.concatenate([boxes_of(sample) * np.float32(scale) + np.array([left, top] * 2, np.float32)
                                for sample, (scale, _, _, left, top) in zip(samples, self._placed(samples, x, y))])
        entries = {key: np.concatenate([sample[key] for sample in samples]) for key in PER_BOX
                   if all(key in sample for sample in samples)}
        size = np.array([2 * self.width, 2 * self.height] * 2, np.float32)
        if not self.remove_outside_box:
            return boxes.clip(0, size), entries
        kept = _on_canvas(boxes, size[:2])
        return boxes[kept], {key: values[kept] for key, values in entries.items()}

    def _turned(self, image: np.ndarray, boxes: np.ndarray, degrees: float, scale: float, shear: float,
                shift: float) -> tuple[np.ndarray, np.ndarray]:
        turn = cv2.getRotationMatrix2D((0, 0), degrees, scale)
        tangent = math.tan(shear * math.pi / 180)
        matrix = np.stack([turn[0] + tangent * turn[1], turn[1] + tangent * turn[0]])
        matrix[:, 2] = shift * self.width, shift * self.height
        image = cv2.warpAffine(image, matrix, (self.width, self.height), borderValue=(GREY,) * 3)
        corners = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        return image, boxes.clip(0, [self.width, self.height] * 2)

    def _laid_over(self, image: np.ndarray, sample: Sample, factor: float, mirrored: bool, left: int,
                   top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image with half of a fifth, that one's boxes, and which of all it has these are."""
        height, width = sample["image"].shape[:2]
        scale = min(self.height / height, self.width / width)
        h, w = max(1, int(height * scale)), max(1, int(width * scale))
        fifth = np.full((self.height, self.width, 3), GREY, np.uint8)
        fifth[:h, :w] = cv2.resize(as_bytes(sample["image"]), (w, h), interpolation=cv2.INTER_LINEAR)
        fifth = cv2.resize(fifth, (max(1, int(self.width * factor)), max(1, int(self.height * factor))))
        h, w = fifth.shape[:2]
        part = np.zeros_like(image)
        seen = (fifth[:, ::-1] if mirrored else fifth)[top:top + self.height, left:left + self.width]
        part[:seen.shape[0], :seen.shape[1]] = seen
        boxes = (boxes_of(sample) * np.float32(scale * factor)).clip(0, np.array([w, h] * 2, np.float32))
        if mirrored:
            boxes[:, [0, 2]] = w - boxes[:, [2, 0]]
        boxes -= np.array([left, top] * 2, np.float32)
        size = np.array([self.width, self.height] * 2, np.float32)
        kept = _on_canvas(boxes, size[:2]) if self.remove_outside_box else np.ones(len(boxes), bool)
        boxes = boxes[kept] if self.remove_outside_box else boxes.clip(0, size)
        return (0.5 * image.astype(np.float32) + 0.5 * part.astype(np.float32)).astype(np.uint8), boxes, kept


def _on_canvas(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which boxes have a part on a canvas of that width and height."""
    return np.asarray(np.concatenate([boxes[:, :2] < size, boxes[:, 2:] > 0], axis=1).all(axis=1))
