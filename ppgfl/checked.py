"""The check of a config that does without Paddle where the same config has passed it before: the classes that say which
keys there are, and of which kind, are layers of Paddle, whose import takes longer than all else of a first detection.
"""
from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

from .config.check import transforms_in, warn_of_ignored
from .config.load import is_own
from .make import Config
from .system import framework, runtime

REMEMBERED = 100  # configs, each an empty file of the cache


def check(cfg: Config) -> None:
    """As `build.check`, in no time where this very config has passed that of this very code, and Paddle is not imported
    yet. Raises ConfigError."""
    warn_of_ignored(cfg)  # each time
    passed = _mark(cfg)
    needs_paddle = "paddle" in sys.modules or framework.can_use_gpus()  # whose device decides what runs
    if not needs_paddle and os.path.isfile(passed) and not any(map(is_own, transforms_in(cfg))):
        return
    framework.import_paddle()
    from . import build

    build.check(cfg)
    with suppress(OSError):  # a cache that cannot be written
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
        for old in sorted(passed.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-REMEMBERED]:
            old.unlink()


def _mark(cfg: Config) -> Path:
    """The file that says that a config has passed."""
    known_by = repr([cfg, runtime.code_digest(), framework.version()])
    return runtime.cache_folder() / "checked" / hashlib.sha256(known_by.encode()).hexdigest()[:32]
