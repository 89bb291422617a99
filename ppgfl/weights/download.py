"""Files from the network in one cache: whole or absent, fetched once however many processes ask, and compared with what
was fetched the first time."""
from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ..errors import CheckpointError
from ..system import runtime
from ..system.log import logger
from ..system.text import without_password

ATTEMPTS = 3
TIMEOUT = 30.0  # seconds without a byte
WINDOW, LEAST_BYTES = 60.0, 1 << 16  # seconds, and what has to arrive in them
MOST_BYTES = 8 << 30


def is_address(text: str | os.PathLike[str]) -> bool:
    return str(text).startswith(("http://", "https://"))


def cached_path(url: str) -> Path:
    """Where the copy of an address is kept: CACHE/weights/HOST/PATH, whether it is there or not; without user and
    password."""
    parts = urlsplit(url)
    names = [quote(unquote(name), safe="") for name in (parts.netloc.rpartition("@")[2], *parts.path.split("/"))
             if unquote(name) not in ("", ".", "..")]
    if parts.query:
        names[-1] = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{names[-1]}"
    return runtime.cache_folder() / "weights" / Path(*names)


def fetch(url: str, *, verify: Callable[[Path], Any] | None = None) -> Path:
    """The local copy of a file, downloaded if it is not there or not whole.

    The SHA-256 of the first download stands in a file beside it. A copy that was put there by hand is taken as it is.

    Args:
        url: http:// or https://.
        verify: called with the path of a new copy; what it raises is passed on, and the copy is removed.

    Raises: CheckpointError: the server cannot be reached, has no such file, cuts the connection, sends too
        slowly or too much, or has another file than the first time.
    """
    from filelock import FileLock

    path = cached_path(url)
    record = path.with_name(f"{path.name}.sha256")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            expected = record.read_text().strip() if record.is_file() else None
            if path.is_file():
                found = sha256(path)
                if expected in (None, found):
                    record.write_text(found)
                    return path
                logger.warning("%s: damaged since it was downloaded; fetching it again", path)
            _download(url, path, expected)
            if verify is not None:
                _verified(verify, path)
            record.write_text(sha256(path))
    except OSError as error:  # a disk that is full, a folder that cannot be written
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}; set PPGFL_HOME to a folder that "
                              "can, with room") from error
    return path


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, path: Path, expected: str | None) -> None:
    """Put the file at `path`, whole or not at all."""
    import requests

    shown_url = without_password(url)
    logger.info("downloading %s to %s", shown_url, path)
    by_hand = (f"without a network, put the file at {path}, or set weights= or pretrain_weights= (of train --data: "
               "--weights) to where you have it")
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            found, _ = stream(url, part, MOST_BYTES)
            if expected not in (None, found):
                raise CheckpointError(f"{shown_url}: is not the file that was downloaded the first time; if it was "
                                      f"changed on purpose, delete {path}.sha256 and try again")
            os.replace(part, path)
            return
        except requests.RequestException as error:
            answer = getattr(error, "response", None)
            if attempt == ATTEMPTS or (answer is not None and answer.status_code < 500):
                what = type(error).__name__ if answer is None else f"{answer.status_code} {answer.reason}"
                raise CheckpointError(f"{shown_url}: cannot be downloaded: {what}; {by_hand}") from error
        except TooLarge as error:
            raise CheckpointError(f"{shown_url}: is larger than {MOST_BYTES >> 20} MiB, which no weights are; "
                                  f"{by_hand}") from error
        finally:
            part.unlink(missing_ok=True)
        logger.info("the download failed; attempt %d of %d", attempt + 1, ATTEMPTS)
        time.sleep(attempt)


class TooLarge(Exception):
    """A server that sends more than was allowed."""


def stream(url: str, part: Path, most_bytes: int) -> tuple[str, str]:
    """Write what an address has to a file -> its SHA-256 and the type that the server says. Raises RequestException,
    also of a connection that is cut or too slow; TooLarge; OSError of the disk."""
    import requests
    from tqdm import tqdm

    digest, size = hashlib.sha256(), 0
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file, as many as are promised
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer, open(part, "wb") as file:
        answer.raise_for_status()
        length = answer.headers.get("Content-Length", "")
        promised = int(length) if length.isdecimal() else 0
        window_end, window_bytes = time.monotonic() + WINDOW, 0
        with tqdm(total=promised or None, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            while promised <= most_bytes and (chunk := _read(answer)):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                size, window_bytes = size + len(chunk), window_bytes + len(chunk)
                if size > most_bytes:
                    break
                if time.monotonic() > window_end:
                    if window_bytes < LEAST_BYTES:
                        raise requests.Timeout("hardly a byte arrives")
                    window_end, window_bytes = time.monotonic() + WINDOW, 0
    if max(size, promised) > most_bytes:
        raise TooLarge
    if size < promised:
        raise requests.ConnectionError("the connection was cut")
    return digest.hexdigest(), answer.headers.get("Content-Type", "")


def _read(answer: Any) -> bytes:
    """What has arrived, at least one byte, b"" at the end. Raises RequestException."""
    from http.client import HTTPException

    import requests
    import urllib3

    try:
        return bytes(getattr(answer.raw, "read1", answer.raw.read)(1 << 16))  # urllib3 1 waits for all of them
    except (urllib3.exceptions.HTTPError, HTTPException) as error:
        raise requests.ConnectionError(error) from error


def _verified(verify: Callable[[Path], Any], path: Path) -> None:
    try:
        verify(path)
    except BaseException:
        os.unlink(path)
        raise
