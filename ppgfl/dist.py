"""Talking to the other processes of a run started with `python -m paddle.distributed.launch`. Only this file does."""
import contextlib
import os
import traceback
from pathlib import Path


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
            terminal = Path(f"/proc/{os.getppid()}/fd/2")
            with contextlib.suppress(OSError):  # there is no such file but on Linux
                terminal.write_text(f"process {rank()} failed:\n{traceback.format_exc()}", encoding="utf-8")
        raise
