"""Talking to the other processes of a run started with `python -m paddle.distributed.launch`. Only this file does."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from paddle import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Processes of this run."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def rank() -> int:
    """The number of this process; 0 writes the files and the log."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def is_main() -> bool:
    """Whether this is process 0."""
    return rank() == 0


def start() -> None:
    """Join the other processes, if there are any."""
    if world_size() > 1:
        import paddle

        if not paddle.distributed.is_initialized():
            paddle.distributed.init_parallel_env()


def mean(tensor: Tensor) -> Tensor:
    """The average of a tensor over all processes."""
    if world_size() == 1:
        return tensor
    import paddle

    paddle.distributed.all_reduce(tensor)
    return tensor / world_size()


def gather(items: list[T]) -> list[T]:
    """The concatenation of every process's list, in the order of the ranks."""
    if world_size() == 1:
        return items
    import paddle

    lists: list[list[T]] = []
    paddle.distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        import paddle

        paddle.distributed.barrier()
