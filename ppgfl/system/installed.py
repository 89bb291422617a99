"""What is installed: this very code, and which Paddle, told without importing it, which takes most of a second."""
from __future__ import annotations

import functools
import hashlib
import sys
from importlib import metadata
from pathlib import Path

from .runtime import import_paddle


@functools.cache
def code_digest() -> str:
    """Changes with each line of ppgfl."""
    files = sorted(Path(__file__).resolve().parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@functools.cache
def paddle_version() -> str:
    """As "3.3.1"."""
    known = _version_of("paddlepaddle-gpu") or _version_of("paddlepaddle")
    if known:
        return known
    import_paddle()
    import paddle

    return str(paddle.__version__)


def paddle_can_use_gpus() -> bool:
    """Whether Paddle is a build for GPUs. It is imported where its package does not say that it is none."""
    if "paddle" not in sys.modules and _version_of("paddlepaddle") and not _version_of("paddlepaddle-gpu"):
        return False
    import_paddle()
    import paddle

    return bool(paddle.is_compiled_with_cuda())


@functools.cache
def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
