"""Images of any origin as arrays."""
from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Union

import cv2
import numpy as np

from ..data.image import read_image
from ..errors import DataError

if TYPE_CHECKING:
    import PIL.Image

Image = Union[str, os.PathLike[str], np.ndarray, "PIL.Image.Image"]  # a file, [H, W, 3] uint8 BGR, or Pillow's
PILLOW_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # 8 bits
CHANNELS = {"BGR": None, "RGB": cv2.COLOR_RGB2BGR, "BGRA": cv2.COLOR_BGRA2BGR, "RGBA": cv2.COLOR_RGBA2BGR,
            "GRAY": cv2.COLOR_GRAY2BGR}  # -> BGR


def as_array(image: Image, channels: str = "BGR") -> np.ndarray:
    """[H, W, 3] uint8 BGR of what `Detector` is called with. Raises DataError."""
    if channels not in CHANNELS:
        raise DataError(f"channels: {channels!r}; allowed: {', '.join(CHANNELS)}")
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    pillow = sys.modules.get("PIL.Image")  # loaded by whoever has an image of it
    if pillow is not None and isinstance(image, pillow.Image):
        if image.mode not in PILLOW_MODES:
            raise DataError(f"cannot detect on a Pillow image of mode {image.mode!r}, whose values may pass 255; scale "
                            "them to 0 to 255, then image.convert('L')")
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    if not isinstance(image, np.ndarray):
        raise DataError(f"cannot detect on a {type(image).__name__}; give a path, an image of Pillow, or a uint8 array "
                        "[H, W, 3], BGR")
    kind = f"cannot detect on a {image.dtype} array of shape {image.shape}"
    if image.dtype != np.uint8:
        raise DataError(f"{kind}; give uint8, 0 to 255: (255 * image).astype('uint8') where its values are 0 to 1")
    if image.ndim == 2 and image.size and channels in ("BGR", "GRAY"):
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    depth = 1 if channels == "GRAY" else len(channels)
    if image.ndim != 3 or image.shape[2] != depth or not image.size:
        raise DataError(f"{kind} as {channels}; give [H, W, {depth}], channels='BGRA' or 'RGBA' with four of them, and "
                        "image.transpose(1, 2, 0) of [3, H, W]")
    code = CHANNELS[channels]
    return image if code is None else cv2.cvtColor(np.ascontiguousarray(image), code)
