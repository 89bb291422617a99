"""How far a long piece of work is, in the terminal or the log."""
from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

from .log import logger

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], *, total: int | None, unit: str = "image", what: str = "") -> Iterator[T]:
    """Yield from `items` while showing how many a second: a bar on a terminal, else a line every ten seconds.
    A total of None is unknown."""
    if not _is_shown():
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with _lines_above_bar():
            yield from tqdm(items, total=total, unit=unit, desc=what)
    else:
        yield from _progress_lines(items, total, unit, what)


@contextmanager
def training_bar(steps: int, what: str) -> Iterator[tqdm]:
    """A bar over the steps of an epoch, shown on a terminal only."""
    from tqdm import tqdm

    with _lines_above_bar(), tqdm(total=steps, desc=what, unit="step", leave=False,
                                  disable=not (sys.stderr.isatty() and _is_shown())) as bar:
        yield bar


class _AboveBar:
    """A terminal's stream whose text stands above the bar, which is cleared for it and drawn again below."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            self.stream.write(text)
            self.stream.flush()

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def _lines_above_bar() -> Iterator[None]:
    """Inside, lines that any logger sends to the terminal do not run into the bar."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler: handler.stream for each in loggers for handler in getattr(each, "handlers", ())
                if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)}
    for handler, stream in handlers.items():
        handler.setStream(_AboveBar(stream))
    try:
        yield
    finally:
        for handler, stream in handlers.items():
            handler.setStream(stream)


def _is_shown() -> bool:
    return logger.isEnabledFor(logging.INFO) and bool(logger.handlers)


def _progress_lines(items: Iterable[T], total: int | None, unit: str, what: str, every: float = 10.0) -> Iterator[T]:
    start = last = time.perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - last >= every or done == total:
            rate = done / (now - start)
            logger.info("%s: %d%s %ss, %.2f %ss/s%s", what, done, f" of {total}" if total else "", unit, rate, unit,
                        f", {max(0, total - done) / rate:.0f} s left" if total else "")
            last = now
