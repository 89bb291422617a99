"""Several processes behind one port, and the one that looks after them."""
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import connections

READY = b"R"
LONGEST_PAUSE = 30.0  # seconds before a worker is started again that fails again and again
log = logging.getLogger("serving")


@dataclass
class Worker:
    """A process, and our end of the channel that it says through that it is ready."""

    process: subprocess.Popen
    channel: socket.socket
    ready: bool = False

    def look(self) -> bool:
        """Whether it has become ready since the last look."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if not self.ready and self.channel.recv(1) == READY:
                self.ready = True
                return True
        return False


class Supervisor:
    """Keeps `count` workers running.

    All accept from one listening socket: who has connected is not lost when a worker dies, another takes him. The
    first one is started alone, so that a model that cannot be opened is one line; the others once it is ready.

    Args:
        command: what runs a worker, which gets the numbers of two inherited sockets behind `--inherited`.
        count: of workers.
        listener: a bound socket.
        grace: seconds that workers have to end.
    """

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket, grace: float) -> None:
        from prometheus_client import CollectorRegistry, Counter  # by now its folder is set

        self.command, self.count, self.listener, self.grace = command, count, listener, grace
        self.workers: list[Worker] = []
        self.signals: list[int] = []
        self.began = False  # whether a worker has ever been ready
        self.failures, self.start_at = 0, 0.0  # of workers that were never ready, one after the other; when to try
        self.restarts = Counter("ppgfl_worker_restarts", "Workers that ended and were replaced.",
                                registry=CollectorRegistry())

    def run(self) -> int:
        """Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self.signals.append(number))
        self.start()
        while not self.signals:
            for worker in list(self.workers):
                if worker.look():
                    self.failures = 0
                    log.info("worker %d is ready", worker.process.pid)
                    if not self.began:
                        self.began = True
                        print(f"serving on {connections.url(self.listener)} (Ctrl-C ends it)", flush=True)
                code = worker.process.poll()
                if code is not None:
                    self.forget(worker, code)
                    if not self.began:
                        return code if code == 2 else 1
            if self.began and len(self.workers) < self.count and time.monotonic() >= self.start_at:
                self.start()
            time.sleep(0.02)
        return self.end()

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        numbers = self.listener.fileno(), theirs.fileno()
        with theirs:
            process = subprocess.Popen([*self.command, "--inherited", *map(str, numbers)], pass_fds=numbers)
        self.workers.append(Worker(process, ours))

    def forget(self, worker: Worker, code: int) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        self.workers.remove(worker)
        worker.channel.close()
        mark_process_dead(worker.process.pid)
        if self.began:
            self.restarts.inc()
            self.failures += not worker.ready
            pause = min(LONGEST_PAUSE, 2.0 ** self.failures - 1)
            self.start_at = time.monotonic() + pause
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            log.error("worker %d ended with %s; another is started%s", worker.process.pid, how,
                      f" in {pause:.0f} s" if pause else "")

    def end(self) -> int:
        """Let every worker answer what was asked; a second signal does not wait for it."""
        self.listener.close()  # who closes it last has accepted all; as long as somebody has it, others connect
        start = time.monotonic()
        for ready in (False, True):  # those that still open their model accept nobody
            ending = [worker.process for worker in self.workers if worker.ready is ready]
            for worker in [worker for worker in self.workers if worker.ready is ready]:
                worker.channel.close()  # which ends it, see `report_ready`
                if not ready:
                    worker.process.terminate()
            while any(process.poll() is None for process in ending):
                if len(self.signals) > 1 or time.monotonic() - start > self.grace:
                    log.error("workers that have not ended are killed")
                    self.kill()
                time.sleep(0.02)
        return 0 if len(self.signals) == 1 else 128 + self.signals[-1]

    def kill(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.wait()


def supervise(command: Sequence[str], count: int, listener: socket.socket, grace: float) -> int:
    """Run `Supervisor` with a folder in which the workers share their metrics. Returns the exit code."""
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="ppgfl_metrics_")
    try:
        supervisor = Supervisor(command, count, listener, grace)
        try:
            return supervisor.run()
        finally:
            supervisor.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report_ready(channel: socket.socket, loop: asyncio.AbstractEventLoop, then: Callable[[], Any]) -> None:
    """Tell the supervisor that this worker is ready, and call `then` when the supervisor closes the channel or is gone,
    however it went: a worker that lives on would keep the port. Signals do not end it, since all processes of a group
    may get them: while the supervisor still has the socket, clients could connect that no worker accepts any more."""
    def look() -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                gone = not channel.recv(1)
            except ConnectionError:
                gone = True
            if gone:
                loop.remove_reader(channel)
                then()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel.setblocking(False)
    loop.add_reader(channel, look)
    with contextlib.suppress(ConnectionError):
        channel.send(READY)
