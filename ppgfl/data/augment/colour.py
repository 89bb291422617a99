"""Augmentations that change colours; boxes stay as they are."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageStat

from ...errors import ConfigError
from ...kinds import Length, NotNegative, Range, Share
from ..batch import Sample
from .base import Augmentation, as_bytes, check_span

Setting = Annotated[Sequence[float], Length(3, 3), "lowest, highest, share of images that stay as they are"]
BRIGHTNESS, CONTRAST, SATURATION, HUE = "brightness", "contrast", "saturation", "hue"


class RandomDistort(Augmentation):
    """Change brightness, contrast, saturation and hue.

    PaddleDetection: the third number of each is the share of images in which it stays as it is.

    Args:
        hue: lowest and highest shift, of 256 that are a full turn, and the share that stays as it is.
        saturation: lowest and highest factor, 1 for no change, and the share that stays as it is.
        contrast: as `saturation`.
        brightness: as `saturation`.
        random_apply: in a random order; false: brightness first, contrast second or last.
        count: with `random_apply`, so many of the four are tried.
        random_channel: without `random_apply`, change the order of red, green and blue in half of the images.
        prob: of an image to be changed at all.
    """

    def __init__(self, hue: Setting = (-18, 18, 0.5), saturation: Setting = (0.5, 1.5, 0.5),
                 contrast: Setting = (0.5, 1.5, 0.5), brightness: Setting = (0.5, 1.5, 0.5), random_apply: bool = True,
                 count: Annotated[int, Range(0, 4)] = 4, random_channel: bool = False, prob: Share = 1.0) -> None:
        self.settings = {BRIGHTNESS: brightness, CONTRAST: contrast, SATURATION: saturation, HUE: hue}
        for name, (low, high, share) in self.settings.items():
            check_span(f"RandomDistort.{name}", (low, high))
            if not 0 <= share <= 1 or (name != HUE and low < 0):
                raise ConfigError(f"RandomDistort.{name}: {list(self.settings[name])!r}; the third number is a share, "
                                  "0 to 1, and a factor is 0 or more")
        self.random_apply = random_apply
        self.count = count
        self.random_channel = random_channel
        self.prob = prob

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """[(what, how much), ...] in their order, and the order of the channels or None."""
        if rng.random() > self.prob:
            return None
        if self.random_apply:
            names = list(self.settings)
            return [step for i in rng.permutation(4)[:self.count] for step in self._step(names[i], rng)], None
        steps = self._step(BRIGHTNESS, rng)
        contrast_second = rng.integers(0, 2)
        for name in (CONTRAST, SATURATION, HUE) if contrast_second else (SATURATION, HUE, CONTRAST):
            steps += self._step(name, rng)
        swap = self.random_channel and rng.integers(0, 2)
        return steps, [int(i) for i in rng.permutation(3)] if swap else None

    def _step(self, name: str, rng: np.random.Generator) -> list[tuple[str, float]]:
        low, high, share_left = self.settings[name]
        if rng.uniform(0.0, 1.0) < share_left:
            return []
        return [(name, float(rng.uniform(low, high)))]

    def apply(self, sample: Sample, drawn: Any) -> None:
        steps, channels = drawn
        image = as_bytes(sample["image"])
        for name, amount in steps:
            image = distort(image, name, amount)
        image = image.astype(np.float32)
        sample["image"] = image if channels is None else np.ascontiguousarray(image[..., channels])


def distort(image: np.ndarray, name: str, amount: float) -> np.ndarray:
    """One change of colours as Pillow makes it, [H, W, 3] uint8 RGB -> the same."""
    if name == BRIGHTNESS:
        return cv2.LUT(image, _blended(0, amount))
    picture = Image.fromarray(image)
    if name == CONTRAST:
        return cv2.LUT(image, _blended(int(ImageStat.Stat(picture.convert("L")).mean[0] + 0.5), amount))
    if name == SATURATION:
        return np.asarray(ImageEnhance.Color(picture).enhance(amount))
    # A turn of the colour wheel is 256; what comes out below 0 or above 255 goes on from the other end.
    hue, *others = picture.convert("HSV").split()
    turned = np.trunc(np.arange(256) + amount).astype(np.int64) % 256
    return np.asarray(Image.merge("HSV", [hue.point(turned.tolist()), *others]).convert("RGB"))


def _blended(grey: int, factor: float) -> np.ndarray:
    """[256] uint8: what Pillow makes of each value between a grey and itself."""
    values = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return np.asarray(Image.blend(Image.new("L", (256, 1), grey), values, factor))[0]


class AugmentHSV(Augmentation):
    """Change saturation and brightness, and with `hgain` the hue too.

    Args:
        fraction: factors of saturation and brightness lie within 1 - fraction and 1 + fraction; without `hgain`.
        is_bgr: the first channel is taken for blue. PaddleDetection: true by default although images are RGB there
            too, which matters for the hue alone.
        hgain: largest shift of the hue, of 180 that are a full turn; null: `fraction` counts.
        sgain: largest shift of the saturation, with `hgain`.
        vgain: largest shift of the brightness, with `hgain`.
    """

    def __init__(self, fraction: Share = 0.5, is_bgr: bool = True, hgain: NotNegative | None = None,
                 sgain: NotNegative | None = None, vgain: NotNegative | None = None) -> None:
        gains = [hgain, sgain, vgain]
        if None in gains and gains != [None] * 3:
            raise ConfigError(f"AugmentHSV.hgain, sgain, vgain: {gains!r}; give all three, or none of them")
        self.fraction = fraction
        self.to_hsv, self.from_hsv = ((cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR) if is_bgr
                                      else (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB))
        self.gains = None if None in gains else gains

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """Shifts of hue, saturation and brightness, or factors of the last two."""
        if self.gains is not None:
            shifts = rng.uniform(-1, 1, 3) * self.gains
            return shifts * rng.integers(0, 2, 3)
        return np.array([(rng.random() * 2 - 1) * self.fraction + 1 for _ in range(2)])

    def apply(self, sample: Sample, drawn: Any) -> None:
        values = np.arange(256)
        if len(drawn) == 3:
            tables = [(values + drawn[0]) % 180, *(np.clip(values + shift, 0, 255) for shift in drawn[1:])]
        else:
            tables = [values, *(np.clip(values.astype(np.float32) * np.float32(factor), 0, 255) for factor in drawn)]
        hsv = cv2.cvtColor(as_bytes(sample["image"]), self.to_hsv)
        hsv = cv2.LUT(hsv, np.stack(tables, -1).astype(np.uint8)[None])
        sample["image"] = cv2.cvtColor(hsv, self.from_hsv).astype(np.float32)


class Lighting(Augmentation):
    """Shift all pixels along the axes in which the colours of a data set vary (AlexNet's way).

    PaddleDetection: it fails on an image as it comes from Decode, whose whole numbers take no fractions; here it works.

    Args:
        eigval: three eigenvalues of the colours' covariance.
        eigvec: its eigenvectors, three rows of three.
        alphastd: standard deviation of the shift, in eigenvalues.
    """

    def __init__(self, eigval: Annotated[Sequence[float], Length(3, 3)],
                 eigvec: Annotated[Sequence[Annotated[Sequence[float], Length(3, 3)]], Length(3, 3)],
                 alphastd: NotNegative = 0.1) -> None:
        self.eigval = np.array(eigval, np.float32)
        self.eigvec = np.array(eigvec, np.float32)
        self.alphastd = alphastd

    def draw(self, sample: Sample, rng: np.random.Generator) -> Any:
        """How far along each axis [3]."""
        return rng.normal(0.0, self.alphastd, 3)

    def apply(self, sample: Sample, drawn: Any) -> None:
        image = sample["image"]
        height, width = image.shape[:2]
        shift = np.tile(np.dot(self.eigvec, self.eigval * drawn), width)  # of a row: numpy is slow at rows of three
        sample["image"] = np.add(image.reshape(height, -1), shift, out=np.empty((height, 3 * width), np.float32),
                                 casting="same_kind").reshape(image.shape)
