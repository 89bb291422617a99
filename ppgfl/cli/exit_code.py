"""One command from its start to its exit code: what a user can mend or wished for is one line, a bug is a traceback."""
from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ..errors import CheckpointError, Interrupted, UserError
from ..system import atomic_write, framework, interrupt
from ..system.log import logger
from ..system.signals import block_signals
from ..system.text import Lines, shown


def exit_code(run: Callable[..., int | None], *args: Any, with_paddle: bool = True) -> int:
    """Call a function and return the exit code of a command: 0 or what it returned; 2 after one line on stderr about a
    mistake, a disk or a folder; 130 after Ctrl-C, 143 after SIGTERM."""
    stop = interrupt.StopRequest()
    try:
        with ExitStack() as stack:
            with block_signals():
                if with_paddle:
                    framework.import_paddle()
                stack.enter_context(interrupt.keyboard_interrupt(stop))  # after Paddle has set a handler of its own
            return run(*args) or 0
    except Interrupted as error:  # it says what was saved
        return _say(error, 128 + error.signal)
    except (Exception, KeyboardInterrupt) as error:
        if stop.signal is not None:  # whatever has become of its exception: C++ that calls Python makes others of it
            return _say(f"stopped by {stop.signal.name}", 128 + stop.signal)
        line = _mistake(error)
        if line is None:
            raise
        return _say(f"error: {line}", 2)


def _mistake(error: BaseException) -> str | None:
    """What the user can mend, in one line, or None for a bug."""
    if isinstance(error, OSError):
        return atomic_write.explain(error)
    if isinstance(error, MemoryError):
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
        return ": ".join(["there is no memory for this", *reason]) + "; set batch_size or worker_num lower, or take " \
            "smaller pictures"
    if not isinstance(error, UserError):
        return None
    if isinstance(error, CheckpointError) and error.report is not None:
        logger.info("%s: entries that do not match\n%s", error.report.path,
                    Lines(error.report.table()))
    return str(error)


def _say(line: object, code: int) -> int:
    print(shown(line), file=sys.stderr)
    return code
