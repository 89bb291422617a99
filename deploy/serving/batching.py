"""Requests of many clients -> batches of one size -> one predictor."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

Arrays = dict[str, np.ndarray]


class Batcher:
    """Runs prepared images on one thread, several at a time.

    Only images of the same prepared size share a batch: another size would pad them, and the detections of an image
    must not depend on who else asks.

    Args:
        detect: the arrays of a batch -> list of detections, one per image (`BaseRunner.detect`).
        max_batch: images at a time.
        max_pixels: of a batch of several, since large images gain nothing by it on a CPU and need the memory.
        max_wait: seconds that an image waits for others of its size.
        observe: called with the size of every batch.
    """

    def __init__(self, detect: Callable[[Arrays], list[np.ndarray]], *, max_batch: int = 8, max_pixels: int = 10**9,
                 max_wait: float = 0.005, observe: Callable[[int], object] = lambda size: None) -> None:
        self.detect, self.max_batch, self.max_pixels = detect, max_batch, max_pixels
        self.max_wait, self.observe = max_wait, observe
        # (shape, arrays, future, time of arrival), oldest first
        self.waiting: list[tuple[tuple[int, ...], Arrays, Future, float]] = []
        self.changed = threading.Condition()
        self.stopping = False
        self.thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self.thread.start()

    def submit(self, arrays: Arrays) -> Future:
        """The arrays of one prepared image -> a Future of its detections [M, 6]."""
        future: Future = Future()
        with self.changed:
            if self.stopping:
                raise RuntimeError("the service is stopping")
            self.waiting.append((arrays["image"].shape[1:], arrays, future, time.monotonic()))
            self.changed.notify()
        return future

    def stop(self) -> None:
        """Finish what is waiting, then end the thread."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            batch = [item for item in batch if item[1].set_running_or_notify_cancel()]
            if not batch:
                continue
            self.observe(len(batch))
            try:
                arrays = batch[0][0] if len(batch) == 1 else {
                    name: np.concatenate([arrays[name] for arrays, _ in batch]) for name in batch[0][0]}
                for rows, (_, future) in zip(self.detect(arrays), batch):
                    future.set_result(rows)
            except Exception as error:  # whatever fails belongs to those who asked, and the next batch is served
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _next_batch(self) -> list[tuple[Arrays, Future]] | None:
        """Images of the oldest one's size, [(arrays, future)]; None when nothing is left to do."""
        with self.changed:
            while not self.waiting and not self.stopping:
                self.changed.wait()
            while self.waiting:
                shape, _, _, arrival = self.waiting[0]
                room = max(1, min(self.max_batch, self.max_pixels // (shape[1] * shape[2])))
                same = [item for item in self.waiting if item[0] == shape][:room]
                left = arrival + self.max_wait - time.monotonic()
                if len(same) == room or left <= 0 or self.stopping:
                    taken = {id(item) for item in same}
                    self.waiting = [item for item in self.waiting if id(item) not in taken]
                    return [(arrays, future) for _, arrays, future, _ in same]
                self.changed.wait(left)
            return None
