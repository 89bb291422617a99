"""AutoAugment: a policy of operations on pixels and boxes, drawn for each image."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

from ..batch import Sample
from . import operations
from .base import Augmentation, as_bytes, boxes_of, set_boxes
from .policies import EACH_BOX, POLICIES, Policy

STRONGEST = 10.0
SHIFT, SHIFT_IN_BOX, COVER, COVER_IN_BOX = 250, 120, 100, 50  # pixels at the greatest strength

# Of the whole image. Of `strength`, 0 to 1, each makes what it needs.
PIXELS: dict[str, Callable[..., np.ndarray]] = {
    "AutoContrast": operations.auto_contrast, "Equalize": operations.equalize, "Posterize": operations.posterize,
    "Solarize": operations.solarize, "SolarizeAdd": operations.solarize_add, "Color": operations.color,
    "Contrast": operations.contrast, "Brightness": operations.brightness, "Sharpness": operations.sharpness,
    "Cutout": operations.cover, "BBox_Cutout": operations.cover, "Rotate": operations.rotate,
    "ShearX": operations.shear_x, "ShearY": operations.shear_y, "TranslateX": operations.translate_x,
    "TranslateY": operations.translate_y, "Flip": np.fliplr}
# Of each box, where the operation moves pixels of the whole image.
BOXES: dict[str, Callable[..., np.ndarray]] = {
    "Rotate_BBox": operations.rotated_box, "ShearX_BBox": partial(operations.sheared_box, along_x=True),
    "ShearY_BBox": partial(operations.sheared_box, along_x=False),
    "TranslateX_BBox": partial(operations.shifted_box, along_x=True),
    "TranslateY_BBox": partial(operations.shifted_box, along_x=False)}
SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": float(SHIFT), "TranslateY": float(SHIFT)}

Step = tuple[str, tuple[float, ...], list[np.ndarray]]  # operation, what it takes, and the boxes that it changes inside


class AutoAugment(Augmentation):
    """Two or three operations on pixels and boxes, of a policy that is drawn for each image with boxes.

    Args:
        autoaug_type: the policies to draw from: v0, of the paper; v1 to v3, of its authors' code; test.
    """

    def __init__(self, autoaug_type: Literal["v0", "v1", "v2", "v3", "test"] = "v1") -> None:
        self.policies: list[Policy] = POLICIES[autoaug_type]

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """The steps, and all boxes [k, 4] y1 x1 y2 x2, in shares of the image, after them."""
        height, width = sample["image"].shape[:2]
        boxes = boxes_of(sample)
        if not len(boxes):
            return None
        boxes = boxes[:, [1, 0, 3, 2]] / np.array([height, width] * 2, np.float32)
        policy = self.policies[int(rng.integers(0, len(self.policies)))]
        signs = [1.0 if rng.random() >= 0.5 else -1.0 for name, _, _ in policy if name.split("_")[0] in SIGNED]
        steps: list[Step] = []
        for name, share, strength in policy:
            kind = name.split("_")[0]
            sign = signs.pop(0) if kind in SIGNED else 1.0
            if rng.random() < 0.5:  # PaddleDetection: not `share`, see `policies`
                continue
            args = arguments(name, strength / STRONGEST, sign)
            if name in EACH_BOX:
                steps += self._in_boxes(name, share / 3.0, args, boxes, (height, width), rng)
            elif name == "Cutout":
                y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
                steps.append((name, (y, x, *args, *args), []))
            elif name == "BBox_Cutout":
                steps.append((name, _cover_in(boxes, args[0], (height, width), rng), []))
            else:
                steps.append((kind, args, []))
            if name in BOXES:
                boxes = np.array([BOXES[name](box, height, width, *args) for box in boxes], boxes.dtype)
        return steps, boxes

    def _in_boxes(self, name: str, share: float, args: tuple[float, ...], boxes: np.ndarray,
                  size: tuple[int, int], rng: np.random.Generator) -> list[Step]:
        kind, found = name.split("_", maxsplit=1)[0], []
        for box in boxes:
            if rng.random() + share < 1:
                continue
            place: tuple[float, ...] = ()
            if kind == "Cutout":
                y1, x1, y2, x2 = operations.corners(box, *size)
                inside = min(y2, size[0] - 1) - y1 + 1, min(x2, size[1] - 1) - x1 + 1
                if min(inside) < 1:
                    continue
                place = int(rng.integers(0, inside[0])), int(rng.integers(0, inside[1]))
            found.append((kind, (*place, *args, *(args if place else ())), [box]))
        return found

    def apply(self, sample: Sample, drawn: Any) -> None:
        steps, boxes = drawn
        image = as_bytes(sample["image"])
        for kind, args, inside in steps:
            for box in inside:
                image = operations.in_box(image, box, PIXELS[kind], *args)
            if not inside:
                image = PIXELS[kind](image, *args)
        height, width = image.shape[:2]
        sample["image"] = image
        set_boxes(sample, (boxes * np.array([height, width] * 2, np.float32))[:, [1, 0, 3, 2]])


def arguments(name: str, strength: float, sign: float) -> tuple[float, ...]:
    """What an operation takes for a strength from 0 to 1."""
    kind = name.split("_", maxsplit=1)[0]
    if kind in SIGNED:
        return (sign * strength * (SHIFT_IN_BOX if name in EACH_BOX and kind.startswith("Translate")
                                   else SIGNED[kind]),)
    if kind in ("Color", "Contrast", "Brightness", "Sharpness"):
        return (strength * 1.8 + 0.1,)
    most = {"Posterize": 4, "Solarize": 256, "SolarizeAdd": 110, "Cutout": COVER}.get(kind)
    if name == "Cutout_Only_BBoxes":
        most = COVER_IN_BOX
    if name == "BBox_Cutout":
        return (strength * 0.75,)
    return () if most is None else (int(strength * most),)


def _cover_in(boxes: np.ndarray, share: float, size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
    """A rectangle in one of the boxes, with that share of its sides: y, x, half height, half width."""
    box = boxes[int(rng.integers(0, len(boxes)))]
    y1, x1, y2, x2 = operations.corners(box, *size)
    half = int(share * ((y2 - y1 + 1) / 2)), int(share * ((x2 - x1 + 1) / 2))
    return int(rng.integers(y1, y2 + 1)), int(rng.integers(x1, x2 + 1)), *half
