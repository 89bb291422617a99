"""Records -> samples -> batches, in worker processes or in this one. The batches are the same either way."""
import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import paddle

from ..errors import DataError
from ..system import interrupt
from ..system.log import logger
from . import transforms
from .batch import collate
from .image import read_image

ERROR = "error"  # key of a batch that could not be made: its message, as bytes
SKIPPED = "skipped"  # key of the messages about images that were left out, as bytes, one per line
POLICIES = ("error", "skip")
SHARED_MEMORY_NEEDED = 1 << 30  # bytes in /dev/shm under which workers send their batches through pipes instead


class Samples(paddle.io.Dataset):
    """(epoch, index) -> a transformed sample; its randomness depends on the seed, the epoch and the index alone.

    Args:
        skip: what becomes of an image that cannot be read: False: an error; True: it is left out.
        replace: in the place of one that is left out comes the next that can be read, so that batches stay full.
    """

    def __init__(self, records, sample_transforms, seed=0, *, skip=False, replace=False):
        super().__init__()
        self.records = records
        self.transforms = sample_transforms
        self.seed = seed
        self.skip = skip
        self.replace = replace

    def __getitem__(self, key):
        epoch, index = key
        skipped = []
        for tried in range(len(self.records) if self.replace else 1):
            place = (index + tried) % len(self.records)
            rng = np.random.default_rng([self.seed, epoch, place])
            try:
                sample = transforms.apply(self.transforms, dict(self.records[place]), rng)
            except DataError as error:  # a worker would print a traceback: hand it to the main process instead
                if not self.skip:
                    return {ERROR: str(error)}
                skipped.append(" ".join(str(error).split()))
                continue
            return {**sample, SKIPPED: skipped} if skipped else sample
        if self.replace:
            return {ERROR: f"not one of the {len(self.records)} images can be read; the last one: {skipped[-1]}"}
        return {SKIPPED: skipped}

    def __len__(self):
        return len(self.records)


class Batches(paddle.io.BatchSampler):
    """Lists of (epoch, index). Set `epoch` before each round through the data, and `skip` to leave out its first
    batches.

    With several processes (`world_size`), each takes its part of every step's images, and all take equally many steps;
    unless `drop_last`, the last step is filled up with images from the front.
    """

    def __init__(self, length, batch_size, *, shuffle=False, drop_last=False, seed=0, rank=0, world_size=1):
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0

    def __iter__(self):
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        step_size = self.batch_size * self.world_size
        if self.world_size > 1:
            order = np.resize(order, len(self) * step_size)  # repeats from the front
        for step in range(self.skip, len(self)):
            start = step * step_size + self.rank * self.batch_size
            yield [(self.epoch, int(index)) for index in order[start:start + self.batch_size]]

    def __len__(self):
        step_size = self.batch_size * self.world_size
        return self.length // step_size if self.drop_last else -(-self.length // step_size)


def make_batch(samples, batch_transforms):
    """Samples -> a batch, or the error of a sample that could not be made. Without those that were left out."""
    for sample in samples:
        if ERROR in sample:
            return {ERROR: _as_bytes(sample[ERROR])}
    skipped = [message for sample in samples for message in sample.pop(SKIPPED, ())]
    samples = [sample for sample in samples if sample]
    for transform in batch_transforms if samples else ():
        samples = transform(samples)
    return {**(collate(samples) if samples else {}), **({SKIPPED: _as_bytes("\n".join(skipped))} if skipped else {})}


def _as_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


def _as_text(value):
    return np.asarray(value).tobytes().decode()


def make_loader(dataset, batches, batch_transforms, num_workers):
    """A paddle DataLoader that yields batches of tensors; use it through `iterate`."""
    num_workers = min(num_workers, len(batches))
    shared_memory = num_workers > 0 and _enough_shared_memory()
    main_process = os.getpid()

    def collate_fn(samples):
        return make_batch(samples, batch_transforms)

    def worker_init_fn(_):
        cv2.setNumThreads(0)  # the workers share the cores already
        interrupt.in_worker()
        threading.Thread(target=_end_with, args=(main_process,), daemon=True).start()

    return paddle.io.DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate_fn, num_workers=num_workers,
        use_shared_memory=shared_memory, worker_init_fn=worker_init_fn, return_list=True)


def _end_with(main_process):
    """In a worker: end when the main process was killed, and take the batches along that it did not fetch from shared
    memory. Paddle's would wait for it for ever."""
    while os.getppid() == main_process:
        time.sleep(1)
    for segment in Path("/dev/shm").glob(f"paddle_{os.getpid()}_*"):
        segment.unlink(missing_ok=True)
    os._exit(1)


def iterate(loader):
    """Yield the loader's batches; raises the DataError of a sample that could not be made."""
    skipped = []
    batches = iter(loader)
    try:
        for batch in batches:
            if ERROR in batch:
                raise DataError(_as_text(batch[ERROR]))
            for message in _as_text(batch.pop(SKIPPED)).split("\n") if SKIPPED in batch else ():
                skipped.append(message)
                logger.warning("skipped: %s", message)
            if batch:
                yield batch
    finally:  # a thread of Paddle's keeps the iterator alive, and with it its workers, unless it is read to the end
        getattr(batches, "_try_shutdown_all", lambda: None)()
    _count(skipped)


@contextmanager
def worker_losses_explained():
    """Inside, Paddle's error about a worker process that was ended, which comes in the midst of anything, is a
    DataError."""
    try:
        yield
    except (RuntimeError, SystemError) as error:
        if not any(words in str(error) for words in ("DataLoader process", "Blocking queue is killed")):
            raise
        raise DataError("a worker process of the data loader was ended from outside, most often by the system because "
                        "memory ran out; set worker_num or the reader's batch_size lower") from error


def read_images(records, *, skip=False):
    """Yield (record, image [H, W, 3] uint8 RGB). An image that cannot be read is left out (`skip`) or a DataError."""
    skipped = []
    for record in records:
        try:
            image = read_image(record["im_file"])
        except DataError as error:
            if not skip:
                raise
            skipped.append(record["im_file"])
            logger.warning("skipped: %s", error)
            continue
        yield record, image
    _count(skipped)


def _count(skipped):
    if skipped:
        logger.warning("%d image%s could not be read and %s left out", len(skipped), *(
            ("s", "were") if len(skipped) > 1 else ("", "was")))


def _enough_shared_memory():
    if not os.path.isdir("/dev/shm"):
        return True  # not Linux: paddle knows what to do
    free = shutil.disk_usage("/dev/shm").free
    if free < SHARED_MEMORY_NEEDED:
        logger.warning("/dev/shm has only %d MB free: worker processes send their batches through pipes, which is "
                       "slower (in a container, start it with --shm-size=2g)", free >> 20)
    return free >= SHARED_MEMORY_NEEDED
