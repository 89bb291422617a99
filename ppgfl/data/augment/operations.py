"""The operations of AutoAugment on pixels and on boxes: pure functions.

Boxes are y1 x1 y2 x2 in shares of the image, as in the paper's code; pixels [H, W, 3] uint8 RGB. What an operation
leaves empty becomes grey.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from .colour import CONTRAST, distort

GREY = 128
LEAST = 0.05  # side of a box that has come to lie outside of the image


# --- pixels


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel to 0 to 255."""
    tables = []
    for channel in cv2.split(image):
        low, high = float(channel.min()), float(channel.max())
        scale = 255.0 / (high - low) if high > low else 1.0
        values = np.arange(256, dtype=np.float32) * np.float32(scale) + np.float32(-low * scale)
        tables.append(values.clip(0, 255).astype(np.uint8) if high > low else np.arange(256, dtype=np.uint8))
    return cv2.LUT(image, np.stack(tables, -1)[None])


def equalize(image: np.ndarray) -> np.ndarray:
    """Give each channel as flat a histogram as it can have."""
    tables = []
    for channel in cv2.split(image):
        counts = np.bincount(channel.ravel(), minlength=256)
        step = (counts.sum() - counts[np.nonzero(counts)[0][-1]]) // 255
        table = np.arange(256) if step == 0 else np.concatenate(
            [[0], ((np.cumsum(counts) + step // 2) // step)[:-1]])
        tables.append(table.clip(0, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, -1)[None])


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep only the highest bits; with 0 of them the image is black."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Invert what is as bright as that."""
    return np.where(image < threshold, image, 255 - image)


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Make darker pixels brighter."""
    return np.where(image < 128, cv2.add(image, np.full_like(image, addition)), image)


def blend(one: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """From one image (0) to the other (1) and beyond; fractions are cut off."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    return (one + np.float32(factor) * (other - one)).clip(0, 255).astype(np.uint8)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Less or more colour. PaddleDetection: red and blue change places in the weights of grey."""
    return blend(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Less or more contrast."""
    return distort(image, CONTRAST, factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Darker or brighter."""
    return blend(np.zeros_like(image), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Softer or sharper."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13.0
    return blend(cv2.filter2D(image.astype(np.float32), -1, kernel).astype(np.uint8), image, factor)


def cover(image: np.ndarray, y: int, x: int, half_height: int, half_width: int) -> np.ndarray:
    """Make a rectangle around a point grey."""
    image = image.copy()
    image[max(0, y - half_height):y + half_height, max(0, x - half_width):x + half_width] = GREY
    return image


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turn around the middle, counterclockwise."""
    return np.asarray(Image.fromarray(image).rotate(degrees, fillcolor=(GREY,) * 3))


def affine(image: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Each pixel (x, y) from (a x + b y + c, d x + e y + f)."""
    picture = Image.fromarray(image)
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=(GREY,) * 3))


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    """Shear along x."""
    return affine(image, (1, level, 0, 0, 1, 0))


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    """Shear along y."""
    return affine(image, (1, 0, 0, level, 1, 0))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Move to the left."""
    return affine(image, (1, 0, pixels, 0, 1, 0))


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Move up."""
    return affine(image, (1, 0, 0, 0, 1, pixels))


def in_box(image: np.ndarray, box: np.ndarray, operation: Callable[..., np.ndarray], *args: float) -> np.ndarray:
    """An operation on what is in a box alone.

    PaddleDetection adds 1 to all pixels outside of the box besides, which makes black of white, and fails on a box
    whose left or upper side is the image's right or lower one.
    """
    height, width = image.shape[:2]
    y1, x1, y2, x2 = corners(box, height, width)
    y2, x2 = min(y2, height - 1), min(x2, width - 1)
    if y1 > y2 or x1 > x2:
        return image
    image = image.copy()
    image[y1:y2 + 1, x1:x2 + 1] = operation(np.ascontiguousarray(image[y1:y2 + 1, x1:x2 + 1]), *args)
    return image


# --- boxes


def corners(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """y1 x1 y2 x2 in whole pixels."""
    y1, x1, y2, x2 = box.tolist()  # in float64, whatever numpy makes of a float32 and a number
    return int(height * y1), int(width * x1), int(height * y2), int(width * x2)


def _within(y1: float, x1: float, y2: float, x2: float) -> np.ndarray:
    """Shares, cut at the image. PaddleDetection: a box that is no longer in it stays, at its border."""
    box = np.clip([y1, x1, y2, x2], 0.0, 1.0)
    for low, high in ((0, 2), (1, 3)):
        if abs(box[high] - box[low]) <= 1e-8:
            box[low], box[high] = min(box[low], 1.0 - LEAST), max(box[high], LEAST)
    return box


def rotated_box(box: np.ndarray, height: int, width: int, degrees: float) -> np.ndarray:
    """Where `rotate` takes a box."""
    y1, x1, y2, x2 = (int(side * (share - 0.5)) for side, share in zip((height, width) * 2, box.tolist()))
    points = np.array([[-y1, -y1, -y2, -y2], [x1, x2, x1, x2]], np.float32)
    angle = degrees * (math.pi / 180.0)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    up, right = np.matmul(turn, points).astype(np.int32)
    return _within(-(up.max() / height - 0.5), right.min() / width + 0.5,
                   -(up.min() / height - 0.5), right.max() / width + 0.5)


def sheared_box(box: np.ndarray, height: int, width: int, level: float, *, along_x: bool) -> np.ndarray:
    """Where `shear_x` or `shear_y` takes a box."""
    y1, x1, y2, x2 = corners(box, height, width)
    points = np.array([[y1, y1, y2, y2], [x1, x2, x1, x2]], np.float32)
    shear = np.array([[1, 0], [-level, 1]] if along_x else [[1, -level], [0, 1]], np.float32)
    down, right = np.matmul(shear, points).astype(np.int32)
    return _within(down.min() / height, right.min() / width, down.max() / height, right.max() / width)


def shifted_box(box: np.ndarray, height: int, width: int, pixels: float, *, along_x: bool) -> np.ndarray:
    """Where `translate_x` or `translate_y` takes a box."""
    y1, x1, y2, x2 = corners(box, height, width)
    by = int(pixels)
    if along_x:
        x1, x2 = max(0, x1 - by), min(width, x2 - by)
    else:
        y1, y2 = max(0, y1 - by), min(height, y2 - by)
    return _within(y1 / height, x1 / width, y2 / height, x2 / width)
