"""Talking to the other processes of a run started with `python -m paddle.distributed.launch`. Only this file does.

Tensors go over NCCL, on a CPU over gloo. What a process may wait long for goes over the store in which the processes
have found each other: gloo gives up after 30 seconds, and neither the network nor a GPU is kept busy meanwhile.
"""
from __future__ import annotations

import functools
import itertools
import json
import os
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .signals import block_signals

if TYPE_CHECKING:
    from paddle import Tensor

T = TypeVar("T")
STORE_SECONDS = 24 * 3600  # the longest that a process waits there
LAUNCHER = os.getppid() if "PADDLE_RANK_IN_NODE" in os.environ else None  # the process of Paddle's launcher
_shared = itertools.count()  # of this process's calls of `from_main`, the same in all


def world_size() -> int:
    """Processes of this run."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def rank() -> int:
    """The number of this process; 0 writes the files and the log."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def launcher_is_gone() -> bool:
    """Whether Paddle's launcher has ended without this process: SIGTERM ends the one for gloo at once."""
    return LAUNCHER not in (None, os.getppid())


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


def from_main(value: T) -> T:
    """The value, as JSON knows them, that process 0 calls this with. The others wait for it as long as it takes."""
    if world_size() == 1:
        return value
    key = f"ppgfl/from_main/{next(_shared)}"
    with block_signals():  # one would cut the answer off
        if is_main():
            _own_store().set(key, json.dumps(value))
            return value
        return cast(T, json.loads(_own_store().get(key)))


def connect() -> Any:
    """A new connection to the store, with `set`, `get`, which waits for the key, and `add`. Each thread needs its own:
    answers would be mixed up."""
    from paddle.base import core

    # Where Paddle has opened it. Its own connection to it is private, and in use while groups are made.
    address = os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
    host, _, port = address.rpartition(":")
    return core.TCPStore(host, int(port), False, world_size(), STORE_SECONDS)


@functools.cache
def _own_store() -> Any:
    return connect()
