"""Talking to the other processes of a run started with `python -m paddle.distributed.launch`. Only this file does."""
import contextlib
import os
import threading
import time
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
def failing_together(folder):
    """Show the traceback of whichever process fails, and end this one too.

    The launcher ends the others, but leaves the cause in a log file of its own. Here the failing process leaves it in
    `folder`, where process 0 looks once a second, also while it waits inside a collective operation.
    """
    if world_size() == 1:
        yield
        return
    mark = Path(folder) / "failed_rank.txt"
    if is_main():
        mark.unlink(missing_ok=True)
        threading.Thread(target=_watch, args=(mark,), daemon=True).start()
    try:
        yield
    except BaseException:
        if not is_main():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(f"process {rank()} failed:\n{traceback.format_exc()}", encoding="utf-8")
            time.sleep(3)  # until process 0 has read it
        raise


def _watch(mark):
    while not mark.exists():
        time.sleep(1)
    time.sleep(0.5)
    os.write(2, mark.read_bytes())
    os._exit(1)
