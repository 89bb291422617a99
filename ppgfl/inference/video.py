"""Frames of videos, cameras, streams and images, one after another in constant memory."""
from __future__ import annotations

import glob
import math
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Union
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from ..data.image import SUFFIXES, find_images, read_image
from ..errors import DataError
from ..system.log import logger
from ..system.text import without_password
from ..weights import download
from .detections import Detections
from .runner import load_runner

Source = Union[str, int, "os.PathLike[str]"]
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".m2ts", ".mts",
          ".3gp", ".ogv")
RECONNECTS = 5
WAIT = 1.0  # seconds before the first attempt to reconnect; twice as many before each next one, ten at most
STEADY = 60.0  # seconds of frames after which a stream that breaks again has all its attempts again
TIMEOUT = 15_000  # milliseconds without a frame after which a stream counts as broken
READ_AHEAD = 4  # frames
MOST_BYTES = 100 << 20  # of an image with an address
RATE = 25.0  # frames a second of a drawn video where the source does not say its own


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video, or an image.

    Attributes:
        image: [H, W, 3] uint8 BGR.
        source: what it is of, without a password; None: of an array.
        index: in its video, from 0; None: an image.
        time: seconds from the start of its video; of a camera or a stream without end since its first frame.
    """

    image: np.ndarray
    source: str | None
    index: int | None = None
    time: float | None = None

    def detections(self, rows: np.ndarray, class_names: Sequence[str]) -> Detections:
        """What was found on it, [M, 6] class, score, x1, y1, x2, y2."""
        found = Detections.from_rows(rows, class_names, path=self.source, image=self.image)
        return replace(found, frame=self.index, time=self.time)


def frames(source: Any, every: int = 1, reconnects: int = RECONNECTS, *,
           read: Callable[[Any], np.ndarray] = read_image) -> Generator[Frame, None, None]:
    """Yield the frames of a source, read ahead in a thread of its own.

    Args:
        source: a file of a video; the index of a camera, 0 or "0"; the address of a stream (rtsp://, http://) or of an
            image; an image, a folder of images, a pattern (*.mp4); or a list of all these.
        every: take every n-th frame of a video, beginning with the first.
        reconnects: attempts to open a stream again that broke off, until it has been steady for a minute.
        read: image of a path, or of what else the list holds.

    Raises: DataError: nothing is there, no video, a stream that stays broken.
    """
    if every < 1 or reconnects < 0:
        raise DataError(f"every: {every}, reconnects: {reconnects}; the first must be at least 1, the other 0")
    with closing(in_thread(_frames(source, every, reconnects, read))) as found:
        yield from found


def in_thread(items: Iterable[Frame]) -> Generator[Frame, None, None]:
    """The same, a few of them made ahead in a thread."""
    found = iter(items)
    with closing(load_runner().ahead(lambda _: next(found, None), repeat(None), 1, READ_AHEAD)) as ready:
        yield from iter(lambda: next(ready), None)


def _frames(source: Any, every: int, reconnects: int, read: Callable[[Any], np.ndarray]) -> Iterator[Frame]:
    for one in source if isinstance(source, (list, tuple)) else [source]:
        if isinstance(one, (int, str, os.PathLike)) and not isinstance(one, bool):
            for place in expand(one):
                if is_video(place) or is_stream(place):
                    yield from Video(place, every, reconnects)
                else:
                    with local_copies([str(place)]) as (files, names):
                        yield Frame(read(files[0]), names.get(files[0], files[0]))
        else:
            yield Frame(read(one), None)


def is_camera(source: Source) -> bool:
    return isinstance(source, int) or str(source).isdecimal()


def is_address(source: Source) -> bool:
    return "://" in str(source)


def ending_of(source: Source) -> str:
    return os.path.splitext(urlsplit(str(source)).path if is_address(source) else str(source))[1].lower()


def is_video(source: Source) -> bool:
    """Whether the name of a file is that of a video."""
    return not is_address(source) and ending_of(source) in VIDEOS


def is_stream(source: Source) -> bool:
    """Whether it is a camera, or an address of frames: one of HTTP counts as an image by its ending or by its type."""
    if is_camera(source) or not is_address(source):
        return is_camera(source)
    if not download.is_address(str(source)) or ending_of(source) in VIDEOS:
        return True
    return ending_of(source) not in SUFFIXES and not _content_type(str(source)).startswith("image/")


def _content_type(address: str) -> str:
    import requests

    try:
        with requests.get(address, stream=True, timeout=download.TIMEOUT) as answer:
            return answer.headers.get("Content-Type", "").lower()
    except requests.RequestException:
        return ""  # whoever opens it says what is wrong


def expand(source: Source, leave_out: str | os.PathLike[str] | None = None) -> list[Source]:
    """A camera, an address, "-" or a file of a video as it is; of all else the images at it, and of a pattern all that
    it matches."""
    if is_camera(source) or is_address(source) or str(source) == "-" and not os.path.lexists("-"):
        return [source]
    path = str(source) if os.path.lexists(str(source)) else os.path.expanduser(str(source))
    if is_video(path) and os.path.isfile(path):
        return [path]
    if not os.path.lexists(path) and glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        found = [file for file in matches if is_video(file) or ending_of(file) in SUFFIXES]
        if not found:
            raise DataError(f"{os.path.abspath(path)}: no such image or folder, and of the {len(matches)} files that "
                            "match it as a pattern none has the name of an image or a video")
        return [*found]
    if is_video(path):
        raise DataError(f"{os.path.abspath(path)}: no such video")
    return [*find_images(path, leave_out=leave_out)]


@contextmanager
def local_copies(places: Sequence[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Files for the images among which are addresses and "-", the one at standard input; and what each copy is of.
    Raises DataError: it cannot be fetched, is too large, or no image."""
    names: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ppgfl-") as folder:
        files = [_local_copy(place, Path(folder, str(number)), names) if is_address(place) or place == "-" else place
                 for number, place in enumerate(places)]
        yield files, names


def _local_copy(place: str, folder: Path, names: dict[str, str]) -> str:
    import requests

    folder.mkdir()
    name = "stdin" if place == "-" else unquote(urlsplit(place).path).replace("/", " ").split(" ")[-1] or "image"
    path, shown = folder / name[-100:].lstrip("."), "standard input" if place == "-" else without_password(place)
    kind = ""
    try:
        if place == "-":
            path.write_bytes(os.fdopen(0, "rb", closefd=False).read(MOST_BYTES + 1))
        elif download.is_address(place):
            kind = download.stream(place, path, MOST_BYTES)[1]
        else:
            raise DataError(f"{shown}: images are fetched from http:// and https://; of a stream or a video give "
                            "--video_file")
        if path.stat().st_size > MOST_BYTES:
            raise download.TooLarge
        read_image(path)
    except requests.RequestException as error:
        answer = getattr(error, "response", None)
        what = type(error).__name__ if answer is None else f"{answer.status_code} {answer.reason}"
        raise DataError(f"{shown}: cannot be downloaded: {what}") from error
    except download.TooLarge as error:
        raise DataError(f"{shown}: is larger than {MOST_BYTES >> 20} MiB; save it and give the file") from error
    except DataError as error:
        said = str(error).rpartition(f"{path.name}: ")[2]
        raise DataError(f"{shown}: {said}" + (f"; the server calls it {kind}" if kind else "")) from error
    names[str(path)] = place if place == "-" else shown
    return str(path)


class Video:
    """The frames of a video file, a camera or a stream, to be looped over once.

    Attributes:
        rate: frames a second that are yielded; RATE where the source does not say.
        promised: how many will be yielded, as the container says; None: unknown, or without end.

    Raises: DataError: it cannot be opened, or a stream broke off for good.
    """

    def __init__(self, source: Source, every: int = 1, reconnects: int = RECONNECTS) -> None:
        self.source, self.every, self.reconnects = source, every, reconnects
        self.shown = f"camera {source}" if is_camera(source) else without_password(str(source))
        self.is_file = not is_camera(source) and not is_address(source)
        if self.is_file and not os.path.isfile(source):
            raise DataError(f"{os.path.abspath(str(source))}: no such video")
        capture = self._open()
        if capture is None:
            raise DataError(f"{self.shown}: " + (
                "not a video that can be read; it may be cut off, or in a format that this OpenCV does not know"
                if self.is_file else "cannot be opened; is it there, and does no other program hold it?"))
        self.capture: Any = capture
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = (rate if math.isfinite(rate) and 0 < rate <= 1000 else RATE) / every
        self.frames = int(count) if math.isfinite(count) and count > 0 and not is_camera(source) else None
        self.promised = None if self.frames is None else -(-self.frames // every)

    def _open(self) -> Any:
        """The source at its start, or None."""
        try:
            if is_camera(self.source):
                capture = cv2.VideoCapture(int(str(self.source)))
            else:
                has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends()
                limits = [] if self.is_file else [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT,
                                                  cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
                str(self.source).encode()  # OpenCV takes no other names
                capture = cv2.VideoCapture(str(self.source), cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY, limits)
        except (cv2.error, UnicodeError) as error:
            raise DataError(f"{self.shown}: cannot be opened by OpenCV: {' '.join(str(error).split())}") from error
        return capture if capture.isOpened() else None

    def __iter__(self) -> Iterator[Frame]:
        index, unreadable, failures, opened = 0, 0, 0, time.monotonic()
        start = opened
        try:
            while True:
                if self.capture is not None and self.capture.grab():
                    if index % self.every == 0:
                        seconds = (self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if self.frames is not None
                                   else time.monotonic() - start)
                        ok, image = self.capture.retrieve()
                        unreadable += not ok
                        if ok:
                            yield Frame(image, self.shown, index, round(seconds, 3))
                    index += 1
                    continue
                if self.is_file or self.frames is not None and index >= self.frames:
                    break
                failures = 1 if time.monotonic() - opened > STEADY else failures + 1
                if self._reconnect(index, failures):
                    opened = time.monotonic()
        finally:
            if self.capture is not None:
                self.capture.release()
        if unreadable or index < (self.frames or 0):
            logger.warning("%s: %d frames were read of the %d that it promises%s; it is damaged, or was cut off",
                           self.shown, index - unreadable, self.frames or index,
                           f", {unreadable} could not be decoded" if unreadable else "")

    def _reconnect(self, index: int, failures: int) -> bool:
        """Open a stream again that broke off behind `index` frames; of a video those are passed over."""
        if failures > self.reconnects:
            raise DataError(f"{self.shown}: the stream broke off after {index} frames, and {self.reconnects} attempts "
                            "to reconnect did not mend it")
        logger.warning("%s: the stream broke off after %d frames; reconnecting, attempt %d of %d", self.shown, index,
                       failures, self.reconnects)
        if self.capture is not None:
            self.capture.release()
        time.sleep(min(WAIT * 2 ** (failures - 1), 10))
        self.capture = self._open()
        if self.capture is None or self.frames is not None and not all(self.capture.grab() for _ in range(index)):
            self.capture = None
            return False
        return True
