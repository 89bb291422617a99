"""Talking to the other processes of a run started with `python -m paddle.distributed.launch`. Only this file does."""
import contextlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path

HANG_TIMEOUT = {"gpu": 45, "cpu": 25}  # seconds; on a CPU gloo gives up after 30, without a reason
PATIENCE = 5  # times the longest wait so far, before a process counts as hanging
LAST_WORDS = 2.0  # seconds that the others get to say over what they hang


def world_size():
    """Processes of this run."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def rank():
    """The number of this process; 0 writes the files and the log."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def is_main():
    return rank() == 0


def start():
    """Join the other processes, if there are any."""
    if world_size() > 1:
        import paddle

        if not paddle.distributed.is_initialized():
            paddle.distributed.init_parallel_env()


def mean(tensor):
    """The average of a tensor over all processes."""
    if world_size() == 1:
        return tensor
    import paddle

    paddle.distributed.all_reduce(tensor)
    return tensor / world_size()


def gather(items):
    """The concatenation of every process's list, in the order of the ranks."""
    if world_size() == 1:
        return items
    import paddle

    lists = []
    paddle.distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def barrier():
    """Wait for the other processes."""
    if world_size() > 1:
        import paddle

        paddle.distributed.barrier()


@contextlib.contextmanager
def failing_aloud():
    """Show the traceback of whichever process fails on the terminal of the launcher.

    The launcher ends the other processes, but of those after the first it shows nothing: their output is in log files.
    """
    try:
        yield
    except BaseException:
        if not is_main():
            _tell(f"process {rank()} failed:\n{traceback.format_exc()}")
        raise


def _tell(text):
    """Write to the launcher's terminal from whichever process."""
    if is_main():
        print(text, file=sys.stderr, flush=True)
        return
    with contextlib.suppress(OSError):  # there is no such file but on Linux
        Path(f"/proc/{os.getppid()}/fd/2").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def hanging_aloud(seconds):
    """Inside, a process that hangs says over what and ends, and the launcher ends the others.

    Yields a function to be called with what comes next, "reading a batch"; hanging is to take longer over it than
    `seconds` (None: `HANG_TIMEOUT`), and than `PATIENCE` times the longest one so far. A run of one process may hang,
    and so may all where `seconds` is 0.
    """
    if world_size() == 1 or seconds == 0:
        yield lambda doing: None
        return
    if seconds is None:
        import paddle

        seconds = HANG_TIMEOUT["gpu" if str(paddle.device.get_device()).startswith("gpu") else "cpu"]
    begun, longest, what = time.monotonic(), 0.0, "starting"
    main_thread, over = threading.get_ident(), threading.Event()

    def next_is(doing):
        nonlocal begun, longest, what
        now = time.monotonic()
        begun, longest, what = now, max(longest, now - begun), doing

    def watch():
        while not over.wait(1.0):
            waited = time.monotonic() - begun
            if waited > max(seconds, PATIENCE * longest):
                stack = "".join(traceback.format_stack(sys._current_frames()[main_thread]))
                _tell(f"process {rank()} has hung for {waited:.0f} s while {what}; the run ends. Of several processes "
                      "the one that was not waiting for the others is the cause (hang_timeout=0 waits for ever):\n"
                      f"{stack}")
                time.sleep(LAST_WORDS)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield next_is
    finally:
        over.set()
