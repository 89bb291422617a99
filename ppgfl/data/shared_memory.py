"""A batch from a worker process to the main one, through a file of shared memory."""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .batch import Batch

SHARED_MEMORY = Path("/dev/shm")  # of Linux; elsewhere, and where it is full, batches go through pipes

_numbers = itertools.count()  # of the files of this process


@dataclass(frozen=True)
class SharedBatch:
    """A batch in a file of shared memory, which costs the main process a third of what a pipe does.

    Attributes:
        path: of the file.
        layout: (key, dtype, shape, place in the file) of each array.
    """

    path: Path
    layout: list[tuple[str, np.dtype, tuple[int, ...], int]]

    @classmethod
    def put(cls, batch: Batch, prefix: str) -> SharedBatch | Batch:
        """Write the file, or return the batch itself where there is no room for it."""
        if not batch or not SHARED_MEMORY.is_dir():
            return batch
        path = SHARED_MEMORY / f"{prefix}{next(_numbers)}"
        layout = []
        try:
            with open(path, "wb") as file:
                for key, value in batch.items():
                    file.seek(-(-file.tell() // 64) * 64)  # aligned for every dtype
                    layout.append((key, value.dtype, value.shape, file.tell()))
                    file.write(np.ascontiguousarray(value).data)
        except OSError:
            path.unlink(missing_ok=True)
            return batch
        return cls(path, layout)

    def take(self) -> Batch:
        """The batch, whose memory is free again as soon as nobody holds it."""
        data = np.memmap(self.path, np.uint8, "r")
        self.path.unlink()
        return {key: np.ndarray(shape, dtype, data, place) for key, dtype, shape, place in self.layout}


def remove_shared(prefix: str) -> None:
    """Remove what workers had put there and nobody took."""
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)
