"""How far a long piece of work is, in the terminal or the log."""
from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from .log import logger

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], *, total: int, unit: str = "image", what: str = "") -> Iterator[T]:
    """Yield from `items` while showing how many a second: a bar on a terminal, else a line every ten seconds."""
    if not _is_shown():
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=unit, desc=what)
    else:
        yield from _progress_lines(items, total, unit, what)


def training_bar(steps: int, what: str) -> tqdm:
    """A bar over the steps of an epoch, shown on a terminal only; use it in a `with`."""
    from tqdm import tqdm

    return tqdm(total=steps, desc=what, unit="step", disable=not (sys.stderr.isatty() and _is_shown()), leave=False)


def _is_shown() -> bool:
    return logger.isEnabledFor(logging.INFO) and bool(logger.handlers)


def _progress_lines(items: Iterable[T], total: int, unit: str, what: str, every: float = 10.0) -> Iterator[T]:
    start = last = time.perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - last >= every or done == total:
            rate = done / (now - start)
            logger.info("%s: %d of %d %ss, %.2f %ss/s, %.0f s left", what, done, total, unit, rate, unit,
                        (total - done) / rate)
            last = now
