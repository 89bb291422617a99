"""One command from its start to its exit code: what a user can mend or wished for is one line, a bug is a traceback."""
import sys
from contextlib import ExitStack

from . import files, interrupt, runtime
from .errors import Interrupted, UserError
from .log import logger


def exit_code(run, *args, with_paddle=True):
    """Call a function and return the exit code of a command: 0 or what it returned; 2 after one line on stderr about a
    mistake, a disk or a folder; 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        with ExitStack() as stack:
            with interrupt.held_back():
                if with_paddle:
                    runtime.import_paddle()
                stack.enter_context(interrupt.sigterm_raises())  # after Paddle has set a handler of its own
            return run(*args) or 0
    except UserError as error:
        report = getattr(error, "report", None)
        if report is not None:
            logger.info("%s: entries that do not match\n%s", report.path, report.table())
        return _say(f"error: {error}", 2)
    except Interrupted as error:
        return _say(error, 128 + error.signal)
    except KeyboardInterrupt:
        return _say("stopped by the user", 130)
    except OSError as error:
        line = files.explain(error)
        if line is None:
            raise
        return _say(f"error: {line}", 2)


def _say(line, code):
    print(line, file=sys.stderr)
    return code
