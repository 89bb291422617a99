"""Ctrl-C and SIGTERM: a run is told, and ends where nothing is lost."""
import signal
import threading
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import Interrupted
from . import dist
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
def first_signal(request, act):
    """Inside, the first Ctrl-C or SIGTERM sets the `Request` and calls `act()`; the next one acts as before.

    A signal that was ignored stays so: what a shell script starts with `&` is deaf to Ctrl-C. In threads beside the
    main one, which Python never interrupts, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(number, _):
        request.signal = signal.Signals(number)
        restore()
        act()

    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        restore()


@contextmanager
def requests():
    """Inside, the first Ctrl-C or SIGTERM only sets the `Request` that is yielded. In a run of several processes, whose
    steps must stay together, it acts as usual."""
    request = Request()
    if dist.world_size() > 1:
        yield request
        return

    def act():
        # A signal to the whole group ends the loader's workers, and Paddle would raise an error in the midst of a step.
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        logger.info("%s: stopping after this step with a checkpoint; once more stops at once", request.signal.name)

    with first_signal(request, act):
        yield request


_command = ContextVar("the Request of the command that runs", default=None)


@contextmanager
def raised(request):
    """Inside, the first Ctrl-C or SIGTERM sets the `Request` and raises KeyboardInterrupt, so that what was begun is
    tidied up."""
    def act():
        raise KeyboardInterrupt

    token = _command.set(request)
    try:
        with first_signal(request, act):
            yield
    finally:
        _command.reset(token)


def stoppable(items):
    """Yield from `items`, unless the command was asked to stop and still goes on: then raise KeyboardInterrupt. That of
    `raised` gets lost where the signal comes inside of a `__del__`, a weak reference's callback, or C code that drops
    errors."""
    for item in items:
        if _command.get():
            raise KeyboardInterrupt
        yield item


@contextmanager
def held_back():
    """Inside, Ctrl-C and SIGTERM wait: while Paddle is imported or traces a model, they make it hang or crash."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_worker():
    """In a loader's process: a Ctrl-C on the terminal is for the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
