"""Files from the network in one cache: whole or absent, fetched once however many processes ask, and compared with what
was fetched the first time."""
from __future__ import annotations

import hashlib
import logging
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

ATTEMPTS = 3
TIMEOUT = 30.0  # seconds without a byte


def is_address(text: str | os.PathLike[str]) -> bool:
    return str(text).startswith(("http://", "https://"))


def cached_path(url: str) -> Path:
    """Where the copy of an address is kept: CACHE/weights/HOST/PATH, whether it is there or not."""
    parts = urlsplit(url)
    names = [quote(unquote(name), safe="") for name in (parts.netloc, *parts.path.split("/"))
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

    Raises: CheckpointError: the server cannot be reached, has no such file, cuts the connection, or has another file
        than the first time.
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
    import pooch
    import requests

    logger.info("downloading %s to %s", url, path)
    pooch.get_logger().setLevel(logging.WARNING)  # its lines about hashes
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    by_hand = (f"without a network, put the file at {path}, or set weights= or pretrain_weights= to where you "
               "have it")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            # It writes beside the path, compares the length that the server promised and the hash, then renames.
            pooch.retrieve(url, f"sha256:{expected}" if expected else None, path.name, path.parent,
                           downloader=downloader)
            return
        except requests.RequestException as error:
            answer = getattr(error, "response", None)
            if attempt == ATTEMPTS or (answer is not None and answer.status_code < 500):
                what = type(error).__name__ if answer is None else f"{answer.status_code} {answer.reason}"
                raise CheckpointError(f"{url}: cannot be downloaded: {what}; {by_hand}") from error
        except ValueError as error:  # pooch: another hash
            raise CheckpointError(f"{url}: is not the file that was downloaded the first time; if it was changed on "
                                  f"purpose, delete {path}.sha256 and try again") from error
        logger.info("the download failed; attempt %d of %d", attempt + 1, ATTEMPTS)
        time.sleep(attempt)


def _verified(verify: Callable[[Path], Any], path: Path) -> None:
    try:
        verify(path)
    except BaseException:
        os.unlink(path)
        raise
