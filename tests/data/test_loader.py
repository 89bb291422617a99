"""Batches made ahead: whatever goes wrong reaches the caller with its cause, and a stop works at any moment."""
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
import pytest
from helpers import ROOT

from ppgfl import DataError
from ppgfl.data import shared_memory
from ppgfl.data.batch import Reader
from ppgfl.data.loader import Batches, BatchMaker, Loader
from ppgfl.system.interrupt import StopRequest

RECORDS = [{"im_id": i, "image": np.full((4, 4, 3), i, np.uint8)} for i in range(12)]


def broken(sample, rng=None):
    if sample["im_id"] == 5:
        raise KeyError("a transform's mistake")


class CannotBePickled(Exception):
    def __init__(self):
        super().__init__("a transform's mistake")
        self.lock = threading.Lock()


class CannotBeUnpickled(Exception):
    def __init__(self, one, two):
        super().__init__("a transform's mistake")


class CannotBeShown(Exception):
    def __str__(self):
        raise RuntimeError("no text")


MISTAKES = {kind.__name__: kind("a transform's mistake") for kind in (
    ValueError, RuntimeError, AssertionError, RecursionError, EOFError, StopIteration, GeneratorExit,
    SystemExit, KeyboardInterrupt, BaseException, BrokenProcessPool)}
MISTAKES |= {"ENOSPC": OSError(28, "a transform's mistake"), "cv2": cv2.error("a transform's mistake"),
             "text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a transform's mistake"),
             "pickle": CannotBePickled(), "unpickle": CannotBeUnpickled(1, 2), "show": CannotBeShown()}


def endless(sample, rng=None):
    if sample["im_id"] == 5:
        time.sleep(600)


def killed(sample, rng=None):
    if sample["im_id"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def loader(transform, workers, batch_size=2):
    return Loader(BatchMaker(RECORDS, Reader([transform], [])), Batches(len(RECORDS), batch_size), workers)


def workers_left():
    for _ in range(50):
        if not multiprocessing.active_children():
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("workers", [0, 2])
def test_any_exception_reaches_the_caller_with_its_cause(workers):
    seen = []
    with pytest.raises(KeyError, match="a transform's mistake"):
        for batch in loader(broken, workers).epoch():
            seen += batch["im_id"].numpy().tolist()
    assert seen == [0, 1, 2, 3]
    assert not workers_left()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_exception_ends_the_round_with_its_cause(workers):
    for kind, mistake in MISTAKES.items():
        def transform(sample, rng, mistake=mistake):
            if sample["im_id"] == 3:
                raise mistake

        seen = []
        with pytest.raises(Exception) as caught:  # noqa: PT011  of many kinds
            for batch in loader(transform, workers).epoch():
                seen += batch["im_id"].numpy().tolist()
        name = type(mistake).__name__
        shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
        assert seen == [0, 1], kind
        assert name in shown, kind
        assert "test_loader.py" in shown, kind
        assert "in transform" in shown, kind  # the traceback of where it arose
        assert kind == "show" or "a transform's mistake" in shown, kind
        assert not issubclass(caught.type, DataError), kind
        if workers == 0 and isinstance(mistake, Exception) and kind not in ("StopIteration", "BrokenProcessPool"):
            assert caught.value is mistake
    assert not workers_left()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("error", "found"), [
    (MemoryError("no 9 GiB"), "3.png .50 x 40 pixels.: there is no memory to prepare it .no 9 GiB.; make it smaller"),
    (OSError(12, "Cannot allocate memory"), "3.png .50 x 40 pixels.: there is no memory")])
def test_a_picture_that_memory_is_refused_for_is_named(workers, error, found):
    def transform(sample, rng):
        sample.update(im_file=f"{sample['im_id']}.png", w=50, h=40)
        if sample["im_id"] == 3:
            raise error

    with pytest.raises(DataError, match=found):
        list(loader(transform, workers).epoch())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["batch transform", "stack", "hand-over"])
def test_a_batch_that_memory_is_refused_for_is_described(workers, place, monkeypatch):
    records = [{**record, "im_file": f"{i}.png", "w": 10 * i, "h": 10} for i, record in enumerate(RECORDS)]

    def refuse(*args):
        raise MemoryError("no 9 GiB")

    if place == "stack":
        monkeypatch.setattr("ppgfl.data.batch.np.stack", refuse)
    elif place == "hand-over":
        monkeypatch.setattr("paddle.to_tensor", refuse)
    reader = Reader([], [refuse] if place == "batch transform" else [])
    for size, mend in ((3, "set the reader's batch_size lower, or let Resize"), (1, ".no 9 GiB.; let Resize")):
        with pytest.raises(DataError, match=rf"memory for a batch of {size}, .* {size - 1}.png .*{mend}"):
            list(Loader(BatchMaker(records, reader), Batches(12, size), workers).epoch())


def test_a_worker_that_crashes_is_not_blamed_on_memory_alone():
    def crash(sample, rng):
        if sample["im_id"] == 5:
            os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(DataError, match="has crashed .exit code -11., by a fault of a library"):
        list(loader(crash, 2).epoch())


def test_a_worker_that_cannot_be_started_is_one_line(monkeypatch):
    def refuse(*args):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(DataError, match="worker_num: 2 processes cannot be started.*unavailable; set it lower"):
        list(loader(broken, 2).epoch())


def test_an_exception_in_the_order_of_batches():
    class Wrong(Batches):
        def indices(self, epoch=0):
            yield [0]
            raise KeyError("order")

    with pytest.raises(KeyError, match="order"):
        list(Loader(BatchMaker(RECORDS, Reader([], [])), Wrong(12, 1), 2).epoch())
    assert not workers_left()


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(DataError, match="ended from outside.*memory ran out"):
        list(loader(killed, 2).epoch())
    assert not workers_left()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_works_while_a_batch_is_waited_for(workers):
    code = f"""
import sys, threading; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "data")!r}, {str(ROOT / "tests")!r}]
import test_loader
from ppgfl.system.interrupt import StopRequest
import signal, os
stop = StopRequest()
batches = test_loader.loader(test_loader.endless, {workers}).epoch(stop=stop)
first = [next(batches), next(batches)]
threading.Timer(0.5, lambda: setattr(stop, "signal", signal.SIGTERM)).start()
print([batch["im_id"].numpy().tolist() for batch in [*first, *batches]], flush=True)
os._exit(0)  # a thread cannot be ended: that of this test sleeps
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[[0, 1], [2, 3]]"
    assert time.monotonic() - start < 90


def test_a_round_that_is_left_early_leaves_no_worker():
    batches = loader(lambda sample, rng: None, 2).epoch()
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not workers_left()


def test_a_round_that_is_left_amid_a_batch_in_a_pipe_ends():
    """Half a batch would be waited for for ever."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "data")!r}, {str(ROOT / "tests")!r}]
import test_loader, time
from pathlib import Path
import numpy as np
test_loader.shared_memory.SHARED_MEMORY = Path("none")
test_loader.RECORDS[:] = [{{"im_id": i, "image": np.zeros((3, 500, 900), np.float32)}} for i in range(12)]
for milliseconds in (0, 5, 20):
    batches = test_loader.loader(lambda sample, rng: None, 2).epoch()
    next(batches)
    time.sleep(milliseconds / 1000)
    batches.close()
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "closed\n"


def test_a_round_starts_where_it_is_told_to():
    rounds = [[batch["im_id"].numpy().tolist() for batch in loader(lambda sample, rng: None, 0).epoch(first=first)]
              for first in (0, 4, 6)]
    assert rounds[0][4:] == rounds[1]
    assert rounds[2] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_arrays_are_what_tensors_are_made_of(workers):
    made = loader(lambda sample, rng=None: None, workers)
    for batch, tensors in zip(made.epoch(arrays=True), made.epoch()):
        assert batch.keys() == tensors.keys()
        for key, value in batch.items():
            assert isinstance(value, np.ndarray)
            np.testing.assert_array_equal(value, tensors[key].numpy())


def test_a_stop_before_the_first_batch():
    stop = StopRequest()
    stop.signal = signal.SIGINT
    assert list(loader(endless, 0).epoch(stop=stop)) == []
    assert threading.active_count() < 50


def test_batches_go_through_pipes_where_there_is_no_shared_memory(monkeypatch, tmp_path):
    def images(folder):
        monkeypatch.setattr(shared_memory, "SHARED_MEMORY", folder)
        return [batch["image"].numpy() for batch in loader(lambda sample, rng: None, 2).epoch()]

    (tmp_path / "full").mkdir()
    plain, shared = images(tmp_path / "none"), images(tmp_path / "full")
    assert len(plain) == 6
    for a, b in zip(plain, shared):
        np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "full").iterdir())


def test_a_full_shared_memory_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    batch = {"image": np.zeros((2, 3), np.float32), "im_id": np.arange(2)}
    shared = shared_memory.SharedBatch.put(batch, "some_")
    taken = shared.take()
    assert [taken[key].tolist() for key in batch] == [batch[key].tolist() for key in batch]

    def full(value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.np, "ascontiguousarray", full)
    assert shared_memory.SharedBatch.put(batch, "some_") is batch
    assert not list(tmp_path.iterdir())
