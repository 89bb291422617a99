"""Ctrl-C and SIGTERM: a run is told, and ends where nothing is lost."""
from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import Interrupted
from . import dist
from .log import logger

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the command has been asked to stop; true once it has.

    Attributes:
        signal: the one that asked, or None.
    """

    signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def raise_if_set(self, message: str) -> None:
        """Raise Interrupted, with the message, if the command has been asked to stop."""
        if self.signal is not None:
            raise Interrupted(f"stopped by {self.signal.name}: {message}", self.signal)


@contextmanager
def on_first_signal(request: StopRequest, act: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM sets the request and calls `act()`; the next one acts as before.

    A signal that was ignored stays ignored: a shell script starts commands with `&` so. In threads beside the main one,
    which Python never interrupts, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        request.signal = signal.Signals(number)
        restore()
        act()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, the first Ctrl-C or SIGTERM only sets the request that is yielded. In a run of several processes, whose
    steps must stay together, a signal acts as usual."""
    request = StopRequest()
    if dist.world_size() > 1:
        yield request
        return

    def announce() -> None:
        assert request.signal is not None
        logger.info("%s: stopping after this step with a checkpoint; a second one stops at once", request.signal.name)

    with on_first_signal(request, announce):
        yield request


@contextmanager
def keyboard_interrupt(request: StopRequest) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM sets the request and raises KeyboardInterrupt, so that temporary files are
    removed."""
    def act() -> None:
        raise KeyboardInterrupt

    with on_first_signal(request, act):
        yield


@contextmanager
def block_signals() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait: while Paddle is imported or traces a model, they make it hang or crash."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reset_in_worker() -> None:
    """In a loader's process: Ctrl-C on the terminal is for the main process, which ends its workers; SIGTERM ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
