"""How far a long piece of work is, in the terminal or the log."""
import logging
import sys
import time

from .interrupt import stoppable
from .log import logger


def progress(batches, *, total, unit="image", what="", size=len):
    """Yield from `batches` while showing images/s: a bar on a terminal, else a line every ten seconds.

    `size(batch)` is the number of units in one batch; `total` the number in all.
    """
    batches = stoppable(batches)
    if not logger.isEnabledFor(logging.INFO) or not logger.handlers:
        yield from batches
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit=unit, desc=what) as bar:
            for batch in batches:
                yield batch
                bar.update(size(batch))
    else:
        yield from _progress_lines(batches, total, unit, what, size)


def training_bar(steps, what):
    """A bar over the steps of an epoch, shown on a terminal only; use it in a `with`."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO) and bool(logger.handlers)
    return tqdm(total=steps, desc=what, unit="step", disable=not shown, leave=False)


def _progress_lines(batches, total, unit, what, size, every=10.0):
    done, start = 0, time.perf_counter()
    last = start
    for batch in batches:
        yield batch
        done += size(batch)
        now = time.perf_counter()
        if now - last >= every or done == total:
            rate = done / (now - start)
            left = (total - done) / rate
            logger.info("%s: %d of %d %ss, %.2f %ss/s, %.0f s left", what, done, total, unit, rate, unit, left)
            last = now
