"""Ctrl-C and SIGTERM: a run is told, and ends where nothing is lost."""
from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import Interrupted
from . import dist
from .log import logger
from .signals import SIGNALS, block_signals

POLL_SECONDS = 0.5  # how often a process looks whether another one was asked to stop
STORE_SECONDS = 5.0  # more than an answer of the store takes
_numbers = itertools.count()  # of the shared requests of this process, the same in all


class StopRequest:
    """Whether the command has been asked to stop; true once it has.

    Attributes:
        signal: the one that asked, or None.
    """

    signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def before_step(self) -> bool:
        """Whether to stop instead of beginning the next step."""
        return bool(self)

    def raise_if_set(self, message: str) -> None:
        """Raise Interrupted, with the message, if the command has been asked to stop."""
        if self.signal is not None:
            raise Interrupted(f"stopped by {self.signal.name}: {message}", self.signal)


class SharedStopRequest(StopRequest):
    """That of a run of several processes, of which any may be asked, and which all stop after the same step.

    A thread of each process looks in the store of `dist` whether one was asked, by a signal or by the end of the
    launcher. Then it says in the store which step its main thread has begun, and from then on the main thread begins
    no other until all have said so. The largest of these numbers is the last step: nobody has begun a later one, and
    whoever is behind catches up. A process in the middle of a step may wait for one that stands still, but its thread
    answers all the same, and the other then goes on. Until a process is asked, a step costs nothing: no message to the
    others and no wait for the device.

    It is true once the last step is done.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None  # this process
        self.begun, self.last = 0, -1
        self.standing = False
        self.lock, self.agreed, self.over = threading.Lock(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._agree, args=(f"ppgfl/stop/{next(_numbers)}",), daemon=True)
        with block_signals():  # the thread too: one would cut an answer of the store off
            self.thread.start()

    def before_step(self) -> bool:
        with self.lock:
            if not self.standing:
                self.begun += 1
                return False
        self.agreed.wait()
        if self.begun < self.last:
            self.begun += 1
            return False
        self.signal = self.by
        return True

    def end(self) -> None:
        """Look no more. A thread that is inside the store when Python ends would abort the process, whose run counts as
        failed then; but one may wait there for a process that has died."""
        self.over.set()
        self.thread.join(STORE_SECONDS)

    def _agree(self, key: str) -> None:
        store, told = dist.connect(), False
        while not self.over.wait(POLL_SECONDS):
            if dist.launcher_is_gone():
                self.asked = self.asked or signal.SIGTERM
            if self.asked is not None and not told:
                store.set(f"{key}/signal", self.asked.name)
                told = bool(store.add(key, 1))
            if store.add(key, 0):
                with self.lock:
                    self.standing = True
                store.set(f"{key}/begun/{dist.rank()}", str(self.begun))
                self.last = max(int(store.get(f"{key}/begun/{rank}")) for rank in range(dist.world_size()))
                self.by = signal.Signals[store.get(f"{key}/signal").decode()]
                self.agreed.set()
                return


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
    """Inside, the first Ctrl-C or SIGTERM only sets the request that is yielded. In a run of several processes so does
    each later one: the launcher sends SIGTERM three times, and kills after 30 seconds."""
    if dist.world_size() > 1:
        with _shared_stop_requests() as shared:
            yield shared
        return
    request = StopRequest()

    def announce() -> None:
        assert request.signal is not None
        logger.info("%s: stopping after this step with a checkpoint; a second one stops at once", request.signal.name)

    with on_first_signal(request, announce):
        yield request


@contextmanager
def _shared_stop_requests() -> Iterator[SharedStopRequest]:
    request = SharedStopRequest()

    def handle(number: int, _: object) -> None:
        if request.asked is None:
            request.asked = signal.Signals(number)
            logger.info("%s: all processes stop after the same step, with a checkpoint", request.asked.name)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in SIGNALS if in_main}
    try:
        yield request
    finally:
        request.end()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keyboard_interrupt(request: StopRequest) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM sets the request and raises KeyboardInterrupt, so that temporary files are
    removed."""
    def act() -> None:
        raise KeyboardInterrupt

    with on_first_signal(request, act):
        yield


def reset_in_worker() -> None:
    """In a loader's process: Ctrl-C on the terminal is for the main process, which ends its workers; SIGTERM ends. Of
    several processes the launcher sends SIGTERM to the whole group, of which this process is none then, and a scheduler
    to all processes there are: they ignore it, since their batches are needed up to the step at which all stop."""
    if dist.world_size() > 1 and hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if dist.world_size() > 1 else signal.SIG_DFL)
