"""Work in threads beside the model: order, errors in their places, a quick end, and no more at a time than allowed."""
import threading
import time
from contextlib import closing

import pytest

from ppgfl.inference.runner import load_runner

LONG = 30.0  # seconds that no test takes


@pytest.fixture
def ahead():
    return load_runner().ahead


def threads_left():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize(("threads", "limit"), [(1, 1), (1, 4), (3, 3), (4, 9)])
def test_results_come_in_order_whoever_is_first(ahead, threads, limit):
    def square(n):
        time.sleep(0.002 * (7 * n % 5))
        return n * n

    assert list(ahead(square, iter(range(30)), threads, limit)) == [n * n for n in range(30)]
    assert list(ahead(square, [], threads, limit)) == []
    assert not threads_left()


@pytest.mark.parametrize("wrong", [0, 3, 9])
@pytest.mark.parametrize("error", [ValueError("mine"), MemoryError(), KeyError(5)])
def test_an_error_comes_behind_the_results_before_it(ahead, wrong, error):
    def work(n):
        if n >= wrong:
            raise error
        time.sleep(0.01)
        return n

    got = []
    with pytest.raises(type(error)) as raised:
        collect(ahead(work, range(10), 4, 8), got)
    assert raised.value is error
    assert got == list(range(wrong))
    assert not threads_left()


def collect(results, got):
    for each in results:
        got.append(each)  # one by one, so that those before an error are kept


def test_an_error_of_the_items_comes_behind_the_results_too(ahead):
    def items():
        yield from range(5)
        raise OSError("no more")

    got = []
    with pytest.raises(OSError, match="no more"):
        collect(ahead(lambda n: n, items(), 2, 4), got)
    assert got == list(range(5))


def test_no_more_at_a_time_than_allowed(ahead):
    taken, made = [], []

    def items():
        for n in range(40):
            taken.append(n)
            yield n

    for n in ahead(lambda n: made.append(n) or n, items(), 3, 5):
        assert len(taken) <= n + 1 + 5  # those before, this one, those that wait
        time.sleep(0.002)
    assert sorted(made) == list(range(40))


@pytest.mark.parametrize("leave", ["close", "error", "interrupt"])
def test_nothing_is_begun_when_the_caller_stops(ahead, leave):
    begun = []

    def work(n):
        begun.append(n)
        time.sleep(0.05)
        return n

    def use():
        with closing(ahead(work, iter(range(10**9)), 2, 50)) as results:
            for n in results:
                if n == 1:
                    if leave == "close":
                        return
                    raise {"error": RuntimeError, "interrupt": KeyboardInterrupt}[leave]

    start = time.monotonic()
    try:
        use()
    except (RuntimeError, KeyboardInterrupt):
        assert leave != "close"
    assert time.monotonic() - start < LONG
    assert len(begun) < 12
    assert not threads_left()


def test_ctrl_c_in_the_items_ends_at_once(ahead):
    """It is raised in the caller's thread, where the model runs."""
    made = []

    def items():
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ahead(made.append, items(), 1, 10))
    assert not threads_left()
