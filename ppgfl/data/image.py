"""Read one image file, or say what is wrong with it. Pictures are BGR everywhere in ppgfl, as OpenCV has them; only the
network's input is RGB, which `transforms.Decode` makes of it."""
from __future__ import annotations

import codecs
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import DataError
from ..system.atomic_write import write_bytes
from ..system.log import logger

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
Record = dict[str, Any]  # a sample of which nothing is read yet


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image."""
    return path.suffix.lower() in SUFFIXES


def find_images(place: str | os.PathLike[str], leave_out: str | os.PathLike[str] | None = None) -> list[str]:
    """The images at a place, which is a file of any name or a folder: `files_below` it those with the name of an image.
    Each is spelled as the place is. A `~` at the front is the home folder, unless there is a file of that name.

    Args:
        leave_out: a folder below the place that is not looked into, such as the one that results go to.

    Raises: DataError: nothing is there, or a folder without images.
    """
    path = os.fsdecode(place)
    path = path if os.path.lexists(path) else os.path.expanduser(path)
    if not os.path.isdir(path):
        if os.path.isfile(path) or os.path.islink(path) and not os.path.exists(path):
            return [path]
        where = path if "://" in path else os.path.abspath(path)
        raise DataError(f"{where}: no such image or folder; download what has an address, and give a folder for a "
                        "pattern (*.png)")
    hidden: list[Path] = []
    if leave_out and os.path.isdir(leave_out) and Path(path).resolve() in Path(leave_out).resolve().parents:
        logger.info("%s: not searched for images, since results go there", os.path.abspath(leave_out))
    found = [file for file in paths_below(path, hidden, leave_out) if is_image(Path(file))]
    unseen = sum(map(is_image, hidden))
    if unseen:
        logger.info("%s: %d images with a dot at the front of their names are left out", os.path.abspath(path), unseen)
    if not found:
        raise DataError(f"{os.path.abspath(path)}: the folder holds no image; looked for {', '.join(SUFFIXES)}"
                        + (f" outside of {leave_out}" if leave_out else ""))
    return found


def read_list(path: str | os.PathLike[str], folder: str = "") -> list[str]:
    """The images that a text file lists, one a line, each below `folder`. It is UTF-8 (other bytes stay as they are,
    for names of files that have such) or UTF-16 with its mark. Lines that begin with # are comments, and blanks around
    a name do not count, unless there is a file that is called so.

    Raises: DataError: no such file, no image in it, another encoding.
    """
    where = f"--infer_list {os.path.abspath(path)}"
    if not os.path.isfile(path):
        raise DataError(f"{where}: no such file")
    data, images = Path(path).read_bytes(), []
    try:
        text = data.decode("utf-16") if data[:2] in UTF16_MARKS else os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{where}: neither UTF-8 nor UTF-16 with a mark at its front; save it as UTF-8")
    for line in text.split("\n"):
        spelled = [os.path.join(folder, name) for name in (line, line.rstrip("\r"), line.strip()) if name.strip()]
        there = [file for file in spelled if os.path.lexists(file)]
        if there or spelled and not line.lstrip().startswith("#"):
            images.append((there or spelled[-1:])[0])
    if not images:
        raise DataError(f"{where}: the list is empty")
    return images


def files_below(folder: str | os.PathLike[str], hidden: list[Path] | None = None,
                leave_out: str | os.PathLike[str] | None = None) -> list[Path]:
    """See `paths_below`."""
    return [Path(path) for path in paths_below(folder, hidden, leave_out)]


def paths_below(folder: str | os.PathLike[str], hidden: list[Path] | None = None,
                leave_out: str | os.PathLike[str] | None = None) -> list[str]:
    """Every file below a folder, sorted. Links to folders are followed, but each folder is entered once, and by its own
    name rather than by a link to it. Links that lead nowhere are listed, so that whoever reads them can say so.

    Names with a dot at the front, which notebooks (.ipynb_checkpoints) and macOS (._1.png) leave behind, are left out;
    they are appended to `hidden`. The folder `leave_out` is not entered.
    """
    folders = [os.fspath(folder)]
    links: list[str] = []
    files: list[str] = []
    entered: set[str] = set()
    if leave_out is not None and os.path.realpath(leave_out) != os.path.realpath(folder):
        entered.add(os.path.realpath(leave_out))
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(place)
        if real in entered:
            continue
        entered.add(real)
        for name in sorted(os.listdir(place)):
            path = os.path.join(place, name)
            if name.startswith("."):
                if hidden is not None:
                    hidden.append(Path(path))
            elif os.path.isdir(path):
                (links if os.path.islink(path) else folders).append(path)
            elif os.path.isfile(path) or os.path.islink(path) and not os.path.exists(path):
                files.append(path)
    return sorted(files, key=lambda path: path.split(os.sep))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode an image file as PaddleDetection does.

    Grey, 16-bit and transparent images become 8-bit colour (alpha is dropped), and the rotation in a photograph's
    EXIF data is applied.

    Returns: [H, W, 3] uint8, BGR.
    Raises: DataError: no such file, no image, or a file that ends too early.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)  # cv2.imread fails on non-ASCII paths under Windows
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        if os.path.islink(path) and not os.path.exists(path):
            reason = f"it is a link to {os.readlink(path)}, which is not there ({reason})"
        raise DataError(f"{os.path.abspath(path)}: cannot be read: {reason}") from error
    if _is_truncated(data):
        raise DataError(f"{path}: the image is truncated (it ends after {data.size:,} bytes); copy it again")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        reason = " ".join(str(error).split())
        if "CV_IO_MAX_IMAGE" in reason:
            reason = ("it has, or claims, more pixels than OPENCV_IO_MAX_IMAGE_PIXELS allows (268,435,456 unless that "
                      "variable says otherwise); cut it into pieces, or set the variable higher")
        elif is_out_of_memory(error):
            reason = f"there is no memory for its pixels; make it smaller, or leave it out ({reason})"
        raise DataError(f"{path}: the image cannot be decoded: {reason}") from error
    if image is None:
        raise DataError(f"{path}: not an image that can be decoded ({data.size:,} bytes); replace or remove it")
    return image


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image as `read_image` gives it; it is decoded only where its head does not say them.

    Raises: DataError, as `read_image`.
    """
    from PIL import Image

    try:
        with Image.open(path) as head:
            turned = "exif" in head.info and head.getexif().get(0x0112, 1) != 1  # Orientation
            if head.format in ("JPEG", "PNG", "BMP") and not turned:
                return head.height, head.width
    except Exception:  # whatever Pillow raises of a file that is no image
        logger.debug("%s: has no head that Pillow can read", path)
    height, width = read_image(path).shape[:2]
    return height, width


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, numpy or Paddle, by OpenCV, or by the system."""
    return (isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM
            or getattr(error, "code", None) == cv2.Error.StsNoMem)


def write_image(path: str, image: np.ndarray) -> None:
    """Write [H, W, 3] uint8 BGR to a path of any characters. Raises DataError, OSError."""
    suffix = os.path.splitext(path)[1]
    try:
        ok, data = cv2.imencode(suffix, image)
    except cv2.error:
        ok = False
    if not ok:
        raise DataError(f"{path}: cannot be written as {suffix or 'a file without ending'}; allowed: {SUFFIXES}")
    write_bytes(path, data.tobytes())


def _is_truncated(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG lacks its end. OpenCV fills the missing part with grey and says nothing."""
    if data[:2].tobytes() == b"\xff\xd8":
        raw = data.tobytes()
        return raw.find(b"\xff\xd9", _start_of_scan(raw)) < 0
    if data[:8].tobytes() == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data[-64:].tobytes() and b"IEND" not in data.tobytes()
    return False


def _start_of_scan(raw: bytes) -> int:
    """Where a JPEG's pixels begin: the end markers of thumbnails in the segments before do not count."""
    position = 2
    while position + 4 <= len(raw) and raw[position] == 0xFF and raw[position + 1] != 0xDA:
        if raw[position + 1] == 0xFF:  # fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(raw[position + 2:position + 4], "big")
    return position


def read_images(records: Sequence[Record], *, skip: bool = False,
                read_all: Callable[..., Iterable[np.ndarray | DataError]] = map) -> Iterator[tuple[Record, np.ndarray]]:
    """Yield (record, image [H, W, 3] uint8 BGR). An image that cannot be read is left out (`skip`) or a DataError.

    Args:
        read_all: calls a function with each record, as `map`; in threads perhaps.
    """
    skipped = 0
    for record, image in zip(records, read_all(_image_or_error, records)):
        if not isinstance(image, DataError):
            yield record, image
        elif skip:
            skipped += 1
            logger.warning("skipped: %s", image)
        else:
            raise image
    count_skipped(skipped)


def _image_or_error(record: Record) -> np.ndarray | DataError:
    try:
        return read_image(record["im_file"])
    except DataError as error:
        return error


def count_skipped(skipped: int) -> None:
    """Say how many images were left out, if any."""
    if skipped:
        logger.warning("%d image%s could not be read and %s left out", skipped, *(
            ("s", "were") if skipped > 1 else ("", "was")))
