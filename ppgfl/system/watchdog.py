"""A run of several processes ends at once when one of them fails or hangs, and says which and why."""
from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from ..errors import Interrupted
from . import framework
from .dist import is_main, rank, world_size

HANG_TIMEOUT = {"gpu": 45.0, "cpu": 25.0}  # seconds; on a CPU gloo gives up after 30, without a reason
FIRST_STEP_TIMEOUT = 300.0  # seconds on a GPU, where the first step looks for fast kernels and connects the cards
HANG_FACTOR = 5  # times the longest wait so far, before a process counts as hanging
FIRST_STEP_PARTS = 2  # reading its batch, and the step itself
GRACE_SECONDS = 2.0  # that the other processes get to report what they hang in


@contextlib.contextmanager
def report_failures() -> Iterator[None]:
    """Show the traceback of whichever process fails on the terminal of the launcher.

    The launcher ends the other processes, but of those after the first it shows nothing: their output is in log files.
    """
    try:
        yield
    except Interrupted:  # a signal that asked for the end of all is no failure
        raise
    except BaseException:
        if not is_main():
            _print_on_launcher(f"process {rank()} failed:\n{traceback.format_exc()}")
        raise


def _print_on_launcher(text: str) -> None:
    """Write to the launcher's terminal from whichever process."""
    if is_main():
        print(text, file=sys.stderr, flush=True)
        return
    with contextlib.suppress(OSError), open(f"/proc/{os.getppid()}/fd/2", "a", encoding="utf-8") as terminal:
        terminal.write(text)  # behind what a log has already; there is no such file but on Linux


@contextlib.contextmanager
def watch_for_hangs(seconds: float | None, *, first_step: bool = False) -> Iterator[Callable[[str], None]]:
    """Inside, a process that hangs reports what it hangs in and exits, and the launcher ends the others.

    Yields a function to be called with what comes next, "reading a batch". A process hangs when that takes longer than
    `seconds` (None: `HANG_TIMEOUT`) and longer than `HANG_FACTOR` times the longest one so far. A run of one process is
    not watched, nor is any where `seconds` is 0. On a GPU the first step inside may take FIRST_STEP_TIMEOUT if that is
    the `first_step` of the run.
    """
    if world_size() == 1 or seconds == 0:
        yield lambda what: None
        return
    limit = HANG_TIMEOUT["gpu" if framework.on_gpu() else "cpu"] if seconds is None else seconds
    slow_start = first_step and framework.on_gpu()
    first_limit = max(limit, FIRST_STEP_TIMEOUT) if slow_start else limit
    begun, longest, doing = time.monotonic(), 0.0, "starting"
    parts = 0  # of steps: reading, computing
    main_thread, over = threading.get_ident(), threading.Event()

    def next_is(what: str) -> None:
        nonlocal begun, longest, doing, parts
        now = time.monotonic()
        if not (slow_start and parts == FIRST_STEP_PARTS):  # how long that one took says nothing about others
            longest = max(longest, now - begun)
        begun, doing, parts = now, what, parts + 1

    def watch() -> None:
        while not over.wait(1.0):
            waited = time.monotonic() - begun
            if waited > max(first_limit if parts <= FIRST_STEP_PARTS else limit, HANG_FACTOR * longest):
                stack = "".join(traceback.format_stack(sys._current_frames()[main_thread]))
                _print_on_launcher(
                    f"process {rank()} has hung for {waited:.0f} s while {doing}; the run ends. Of several processes "
                    "the one that was not waiting for the others is the cause (hang_timeout=0 waits for ever):\n"
                    f"{stack}")
                time.sleep(GRACE_SECONDS)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield next_is
    finally:
        over.set()
