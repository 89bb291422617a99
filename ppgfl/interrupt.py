"""Ctrl-C and SIGTERM: a run is told, and ends where nothing is lost."""
import signal
import threading
from contextlib import contextmanager

from . import dist
from .errors import Interrupted
from .log import logger

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Request:
    """Whether the run has been asked to stop."""

    signal = None

    def __bool__(self):
        return self.signal is not None

    def obey(self, message):
        """Raise Interrupted if it has been asked."""
        if self:
            raise Interrupted(f"stopped by {self.signal.name}: {message}", self.signal)


@contextmanager
def requests():
    """Inside, the first Ctrl-C or SIGTERM only sets the `Request` that is yielded; the next one acts as usual.

    A run of several processes, whose steps must stay together, and threads beside the main one get a `Request` that is
    never set.
    """
    request = Request()
    if dist.world_size() > 1 or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(number, _):
        request.signal = signal.Signals(number)
        restore()
        # A signal to the whole group ends the loader's workers, and Paddle would raise an error in the midst of a step.
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        logger.info("%s: stopping after this step with a checkpoint; once more stops at once", request.signal.name)

    for number in SIGNALS:
        signal.signal(number, asked)
    try:
        yield request
    finally:
        restore()


@contextmanager
def held_back():
    """Inside, Ctrl-C and SIGTERM wait: while Paddle is imported, they make it hang or fail in its own words."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class _Terminated(Interrupted):
    """Takes no notice of its arguments: Paddle rebuilds what is raised within its tracing from a message of its own."""

    def __init__(self, *_):
        super().__init__("stopped by SIGTERM", signal.SIGTERM)


@contextmanager
def sigterm_raises():
    """Inside, SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt, so that what was begun is tidied up. The
    next one acts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def raise_it(number, _):
        signal.signal(number, before)
        raise _Terminated

    signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_worker():
    """In a loader's process: a Ctrl-C on the terminal is for the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
