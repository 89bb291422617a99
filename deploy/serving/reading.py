"""Requests from strangers -> files, thresholds, pixels; a 4xx for all that is not right about them."""
from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))  # a second guard behind `decode`; read by OpenCV once

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from middleware import check_size  # noqa: E402
from PIL import Image  # noqa: E402
from starlette.datastructures import UploadFile  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import ClientDisconnect, Request  # noqa: E402

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
BODY_SECONDS = 30.0  # a client that takes longer to send its request is refused
SEND = ("send a form with the files as `images` (curl -F images=@photo.jpg), one file as the body "
        "(curl --data-binary @photo.jpg), or JSON, {\"image\": \"<base64 of the file>\"}")
T = TypeVar("T")


class Limits(NamedTuple):
    """Of a request: images, bytes; of an image: pixels."""

    images: int
    bytes: int
    pixels: int


async def in_time(request: Request, reading: Awaitable[T], limits: Limits) -> T:
    """What `reading` a body gives, unless it is too large or does not arrive."""
    try:
        if request.headers.get("content-length", "0").isdecimal():
            check_size(int(request.headers.get("content-length", "0")), limits.bytes)
        return await asyncio.wait_for(reading, BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:  # nobody reads the answer, but it is counted, and not a traceback in the log
        raise HTTPException(400, "the connection ended in the midst of the request") from None
    finally:
        if asyncio.iscoroutine(reading):
            reading.close()  # where it was refused before it began


async def read(request: Request, limits: Limits) -> tuple[list[bytes], float]:
    """(the bytes of each file, threshold) of a POST /predict."""
    files, threshold = await in_time(request, read_body(request, limits), limits)
    try:
        threshold = float(threshold)
    except (TypeError, ValueError, OverflowError):
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise HTTPException(422, "threshold: it is a number from 0 to 1")
    if not files:
        raise HTTPException(400, f"the request is empty: {SEND}")
    return files, threshold


async def read_body(request: Request, limits: Limits) -> tuple[list[bytes], Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        body, threshold = await request.body(), request.query_params.get("threshold", "0.5")
        if kind == "application/json" or body.lstrip()[:1] == b"{":
            return unpack_json(body, threshold)
        if body.isascii() and 0 not in body and body:
            raise HTTPException(415, f"the body is text, not an image: {SEND}")
        return [body] if body else [], threshold
    async with request.form(max_files=limits.images, max_fields=16) as form:
        files = [await value.read() for name, value in form.multi_items()
                 if name == "images" and isinstance(value, UploadFile)]
        if not files:
            names = ", ".join(sorted({ascii(name)[:40] for name in form})[:5]) or "nothing"
            raise HTTPException(400, f"the form has {names}, but no file named `images`: {SEND}")
        return files, form.get("threshold", request.query_params.get("threshold", "0.5"))


def unpack_json(body: bytes, threshold: Any) -> tuple[list[bytes], Any]:
    """([the bytes of the image], threshold) of {"image": "<base64>", "threshold": 0.5}; "data:...;base64," may lead."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body is not valid JSON: {SEND}") from None
    if not isinstance(content, dict) or not isinstance(content.get("image"), str):
        raise HTTPException(400, f"the JSON has no text `image`: {SEND}")
    try:
        return [from_base64(content["image"])], content.get("threshold", threshold)
    except ValueError:
        raise HTTPException(400, f"`image` of the JSON is not base64: {SEND}") from None


def from_base64(text: str) -> bytes:
    """Lines may be broken, as they often are, and "data:...;base64," may lead. Raises ValueError."""
    return base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True)


def check_pixels(width: int, height: int, number: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise HTTPException(413, f"image {number}: {width} x {height} pixels; at most {limits.pixels} are taken")


def decode(data: bytes, number: int, limits: Limits) -> np.ndarray:
    """Bytes -> [H, W, 3] uint8 BGR; the size is read from the header before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
    except Exception as error:  # Pillow raises many kinds, also for a decompression bomb
        raise HTTPException(415, f"image {number}: not a {', '.join(FORMATS)} image that can be read") from error
    check_pixels(width, height, number, limits)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise HTTPException(415, f"image {number}: damaged, it cannot be decoded")
    return image
