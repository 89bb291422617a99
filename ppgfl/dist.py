"""Talking to the other processes of a data-parallel run. Only this file does."""
import os


def world_size():
    """Processes of this run; 1 without `python -m paddle.distributed.launch`."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def mean(tensor):
    """The average of a tensor over all processes."""
    if world_size() == 1:
        return tensor
    import paddle

    paddle.distributed.all_reduce(tensor)
    return tensor / world_size()
