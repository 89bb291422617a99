"""Records -> batches, made ahead in worker processes or in threads of this one: the same batches either way."""
from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, Union

import cv2
import numpy as np

from ..errors import DataError
from ..system import framework, interrupt, runtime
from ..system.log import logger
from .batch import Batch, Reader, Sample, no_memory
from .device import to_device
from .failure import Failure
from .image import count_skipped, is_out_of_memory
from .shared_memory import SharedBatch, remove_shared

AHEAD = 2  # batches of each worker that wait to be used
MAX_THREADS = 8  # more get into each other's way
POLL_SECONDS = 0.5  # how often a request to stop is looked at while waiting for a batch
# A batch and messages about images that were left out, or why there is none.
Made = Union[tuple[Union[Batch, SharedBatch], list[str]], Failure]
_numbers = itertools.count()  # of the rounds of this process


@dataclass(frozen=True)
class Batches:
    """Which images each batch of an epoch holds.

    With several processes (`world_size`), each takes its part of every step's images, and all take equally many steps;
    unless `drop_last`, the last step is filled up with images from the front.

    Attributes:
        length: images in all.
        batch_size: of one process.
        shuffle: a new order in every epoch, which depends on `seed` and the epoch alone.
        drop_last: leave the last batch out when it is not full.
        rank, world_size: of the processes.
    """

    length: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def indices(self, epoch: int = 0) -> Iterator[list[int]]:
        """Yield the places of the images of each batch."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        step_size = self.batch_size * self.world_size
        if self.world_size > 1:
            order = np.resize(order, len(self) * step_size)  # repeats from the front
        for step in range(len(self)):
            start = step * step_size + self.rank * self.batch_size
            yield [int(index) for index in order[start:start + self.batch_size]]

    def __len__(self) -> int:
        step_size = self.batch_size * self.world_size
        return self.length // step_size if self.drop_last else -(-self.length // step_size)


@dataclass(frozen=True)
class BatchMaker:
    """(epoch, places of records) -> a batch. Its randomness depends on the seed, the epoch and the places alone, so
    that a batch comes out the same in whichever process it is made.

    Attributes:
        records: see `ppgfl.data`.
        reader: what is done to them.
        seed: of all randomness.
        skip: what becomes of an image that cannot be read: False: a DataError; True: it is left out.
        replace: in the place of one that is left out comes the next that can be read, so that batches stay full.
    """

    records: Sequence[Sample]
    reader: Reader
    seed: int = 0
    skip: bool = False
    replace: bool = False

    def __call__(self, epoch: int, places: list[int]) -> tuple[Batch, list[str]]:
        """Returns: the batch, {} when all of its images were left out; a message about each of these."""
        skipped: list[str] = []
        samples = [sample for place in places if (sample := self._sample(epoch, place, skipped)) is not None]
        # The last number keeps it apart from the generators of the samples.
        rng = np.random.default_rng([self.seed, epoch, *places, len(places)])
        return self.reader.batch(samples, rng) if samples else {}, skipped

    def _sample(self, epoch: int, place: int, skipped: list[str]) -> Sample | None:
        for tried in range(len(self.records) if self.replace else 1):
            chosen = (place + tried) % len(self.records)
            try:
                return self._transformed(epoch, chosen)
            except DataError as error:
                if not self.skip:
                    raise
                skipped.append(" ".join(str(error).split()))
        if self.replace:
            raise DataError(f"not one of the {len(self.records)} images can be read; the last one: {skipped[-1]}")
        return None

    def _transformed(self, epoch: int, place: int) -> Sample:
        """A record, or that and those it is mixed with, as a sample. It knows how many images came before its epoch."""
        rng = np.random.default_rng([self.seed, epoch, place])
        mixer = self.reader.mixer(epoch)
        places = [place, *(int(rng.integers(len(self.records))) for _ in range(mixer.others if mixer else 0))]
        first, *others = ({**self.records[each], "curr_iter": epoch * len(self.records)} for each in places)
        return self.reader.sample(first, rng, others=others, mixer=mixer)


class Loader:
    """The batches of a data set, prepared ahead.

    Args:
        maker: makes a batch.
        batches: which images are in each.
        workers: processes that work ahead; 0: threads.
        threads: without workers, how many; None: one, for a GPU up to `MAX_THREADS`.

    `len(loader)` is the number of batches of an epoch.
    """

    def __init__(self, maker: BatchMaker, batches: Batches, workers: int = 0,
                 threads: int | None = None) -> None:
        self.maker = maker
        self.batches = batches
        self.workers = min(workers, len(batches))
        self.threads = threads or (min(MAX_THREADS, runtime.physical_cores()) if framework.on_gpu() else 1)
        self.ahead = AHEAD * (self.workers or self.threads)
        if not self.workers:
            runtime.keep_freed_memory()

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0, *, first: int = 0, stop: interrupt.StopRequest | None = None,
              arrays: bool = False) -> Generator[dict[str, Any], None, None]:
        """Yield the batches of one round through the data.

        Args:
            epoch: its number, on which order and augmentation depend.
            first: batches to leave out at the front.
            stop: ends the round when it is set, also while a batch is waited for.
            arrays: as they are made, for who does not compute in Paddle; else tensors on the device.

        Raises: DataError; whatever else fails while a batch is made, with the traceback of the worker (as a
            RuntimeError where that exception could not be raised here).
        """
        places = self.batches.indices(epoch)
        others = set(multiprocessing.active_children())
        prefix = f"ppgfl_{os.getpid()}_{next(_numbers)}_"
        pool = self._pool(prefix)
        waiting: deque[tuple[list[int], Future[Made]]] = deque()
        workers: set[BaseProcess] = set()
        skipped = 0
        try:
            places = islice(places, first, None)
            waiting.extend(self._submit(pool, epoch, some) for some in islice(places, self.ahead))
            while waiting:
                workers |= set(multiprocessing.active_children()) - others
                received = self._receive(*waiting[0], stop, arrays)
                if received is None:
                    return
                waiting.popleft()
                waiting.extend(self._submit(pool, epoch, some) for some in islice(places, 1))
                batch, messages = received
                for message in messages:
                    logger.warning("skipped: %s", message)
                skipped += len(messages)
                if batch:
                    yield batch
            count_skipped(skipped)
        except BrokenProcessPool as error:
            if not stop:  # else the signal was for the workers too
                raise DataError(f"a worker process of the data loader {_end_of(workers)}; set worker_num or the "
                                "reader's batch_size lower") from error
        finally:
            if waiting and isinstance(pool, ProcessPoolExecutor):  # its workers make what nobody wants any more
                results: Any = pool._result_queue  # private: half a batch in the pipe must not be waited for
                results._writer.close()
                for worker in set(multiprocessing.active_children()) - others:
                    worker.kill()  # SIGTERM may find it forked just now, where Paddle's handler can hang
                    worker.join(5)
            # What the pool has of this process is closed before it may end; a thread cannot be ended.
            pool.shutdown(wait=bool(self.workers), cancel_futures=True)
            remove_shared(prefix)

    def _pool(self, prefix: str) -> Executor:
        if not self.workers:
            return ThreadPoolExecutor(self.threads)
        methods = multiprocessing.get_all_start_methods()
        return ProcessPoolExecutor(
            self.workers, mp_context=multiprocessing.get_context("fork" if "fork" in methods else None),
            initializer=_start_worker, initargs=(self.maker, prefix, os.getpid()))

    def _submit(self, pool: Executor, epoch: int, places: list[int]) -> tuple[list[int], Future[Made]]:
        make: Callable[[int, list[int]], Made] = _make_in_worker if self.workers else self._make_in_thread
        try:
            return places, pool.submit(make, epoch, places)
        except (OSError, RuntimeError) as error:
            if isinstance(error, BrokenProcessPool):
                raise
            raise DataError(f"worker_num: {self.workers} processes cannot be started: {error}; set it lower, or raise "
                            "the limits of memory, processes and open files (ulimit)") from error

    def _make_in_thread(self, epoch: int, places: list[int]) -> Made:
        try:
            return self.maker(epoch, places)
        except BaseException as error:
            return Failure.of(error, to_another_process=False)

    def _receive(self, places: list[int], future: Future[Made], stop: interrupt.StopRequest | None,
                 arrays: bool) -> tuple[dict[str, Any], list[str]] | None:
        """A batch and messages about images that were left out, or None once `stop` is set."""
        try:
            made = _result(future, stop)
            if made is None:
                return None
            if isinstance(made, Failure):
                made.raise_again()
            batch, messages = made
            given = batch.take() if isinstance(batch, SharedBatch) else batch
            return given if arrays else to_device(given, self.maker.reader), messages
        except (MemoryError, OSError) as error:  # on its way here
            if not is_out_of_memory(error):
                raise
            raise no_memory([self.maker.records[place] for place in places], error) from error


def _result(future: Future[Made], stop: interrupt.StopRequest | None) -> Made | None:
    """What a future gives, or None once `stop` is set."""
    while not stop:
        if wait([future], timeout=POLL_SECONDS).done:
            return future.result()
    return None


def _end_of(workers: set[BaseProcess]) -> str:
    """How the worker that broke the pool has ended; the pool itself ends the others with SIGTERM."""
    for worker in workers:
        worker.join(1)
    codes = {worker.exitcode for worker in workers} - {None, 0, -signal.SIGTERM}
    if not codes or -signal.SIGKILL in codes:
        return "was ended from outside, most often by the system because memory ran out"
    return f"has crashed (exit code {', '.join(map(str, codes))}), by a fault of a library or for lack of memory"


# --- in a worker process

_maker: BatchMaker | None = None
_prefix = ""  # of the names of its files in shared memory


def _start_worker(maker: BatchMaker, prefix: str, main_process: int) -> None:
    global _maker, _prefix  # noqa: PLW0603  they reach the worker once, not with each batch
    _maker, _prefix = maker, prefix
    cv2.setNumThreads(0)  # the workers share the cores already
    runtime.keep_freed_memory()
    interrupt.reset_in_worker()
    threading.Thread(target=_exit_with, args=(main_process,), daemon=True).start()


def _make_in_worker(epoch: int, places: list[int]) -> Made:
    try:
        assert _maker is not None
        batch, skipped = _maker(epoch, places)
        return SharedBatch.put(batch, f"{_prefix}{os.getpid()}_"), skipped
    except BaseException as error:
        return Failure.of(error, to_another_process=True)


def _exit_with(main_process: int) -> None:
    """End when the main process was killed: a worker would wait for it for ever."""
    while os.getppid() == main_process:
        time.sleep(1)
    remove_shared(_prefix)
    os._exit(1)


# --- without preparation
