"""benchmarks/queue_simulation.py against pencil numbers, and its batcher against that of deploy/serving."""
import importlib.util
import random
import re
import shlex
import statistics
import sys
import threading

import numpy as np
import pytest
from helpers import ROOT


def load(folder, name):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def queue():
    return load("benchmarks", "queue_simulation")


SMALL = (32, 32)


def service(queue, seconds=(0.1,), **more):
    return queue.Service(seconds, **{"sizes": ((SMALL, 1.0),), "max_wait": 0.0, **more})


def run(queue, simulation, seconds, *, rate=None, clients=None):
    if clients:
        simulation.clients(clients)
    else:
        simulation.poisson(rate if isinstance(rate, list) else [(0.0, rate)])
    simulation.run(seconds)
    return simulation


def test_batches_are_those_of_the_service(queue):
    """A hundred images of three sizes that wait already, under limits of images and pixels."""
    draw = random.Random(5)
    sizes = [draw.choice([(32, 32), (64, 32), (96, 64)]) for _ in range(100)]
    limits = {"max_batch": 5, "max_wait": 60.0}
    gate, real = threading.Event(), []

    def detect(arrays):
        real.append((len(arrays["image"]), arrays["image"].shape[2:]))
        gate.wait(10)
        return [np.zeros((0, 6))] * len(arrays["image"])

    batcher = load("deploy/serving", "batching").Batcher(detect, max_pixels=3 * 64 * 96, **limits)
    batcher.submit({"image": np.zeros((1, 3, 200, 200))})  # it is busy with a large one while the others come
    futures = [batcher.submit({"image": np.zeros((1, 3, *size))}) for size in sizes]
    gate.set()
    batcher.stop()  # what is left need not wait
    assert all(future.done() for future in futures)

    played, found = queue.Simulation(service(queue, max_batch_pixels=3 * 64 * 96, **limits)), []
    process, = played.processes
    played.end = 1.0
    process.busy = True
    for size in sizes:
        played.submit(process, queue.Request(size, 0.0, lambda *_: None))
    played.now = 60.0  # nobody waits for more any longer
    while process.waiting:
        process.busy, before = False, [item[0] for item in process.waiting]
        played.next_batch(process)
        found.append((len(before) - len(process.waiting), before[0]))
    assert found == real[1:]
    assert {count for count, _ in found} >= {3, 5}


def test_an_image_waits_for_others_as_long_as_it_may(queue):
    played = run(queue, queue.Simulation(service(queue, [0.1] * 8, max_wait=0.05)), 10.0, clients=1)
    assert {round(taken, 9) for _, taken in played.answers} == {0.15}
    played = run(queue, queue.Simulation(service(queue, [0.1] * 8, max_wait=0.05)), 10.0, clients=8)
    assert {round(taken, 9) for _, taken in played.answers} == {0.1}  # a full batch does not wait
    assert set(played.batches) == {8}


def test_the_wait_of_a_queue_with_random_arrivals_is_that_of_the_formula(queue):
    """Pollaczek and Khinchine, for a fixed time of service: rho * S / (2 * (1 - rho)) before it begins."""
    played = run(queue, queue.Simulation(service(queue, max_batch=1, max_queue=10**6)), 5_000, rate=7.0)
    assert statistics.mean(taken for _, taken in played.answers) == pytest.approx(0.1 + 0.7 * 0.1 / 0.6, rel=0.05)
    assert not played.refused


def test_closed_loops_keep_a_process_busy(queue):
    played = run(queue, queue.Simulation(service(queue, max_batch=1)), 100.0, clients=5)
    assert len(played.answers) / 100 == pytest.approx(10.0, rel=0.02)
    assert queue.quantile([taken for _, taken in played.answers], 0.5) == pytest.approx(0.5)
    played = run(queue, queue.Simulation(service(queue, [0.1, 0.12, 0.14, 0.16], max_batch=4)), 100.0, clients=8)
    assert len(played.answers) / 100 == pytest.approx(4 / 0.16, rel=0.02)


def test_the_event_loop_and_the_threads_bound_what_goes_through(queue):
    fast = {"seconds": [0.001], "max_batch": 1}
    played = run(queue, queue.Simulation(service(queue, **fast, loop=0.02)), 50.0, clients=8)
    assert len(played.answers) / 50 == pytest.approx(50, rel=0.05)
    played = run(queue, queue.Simulation(service(queue, **fast, prepare=0.02, threads=2)), 50.0, clients=8)
    assert len(played.answers) / 50 == pytest.approx(100, rel=0.05)


def test_who_finds_the_queue_full_is_refused(queue):
    played = run(queue, queue.Simulation(service(queue, max_batch=1, max_queue=3)), 300.0, rate=20.0)
    sent = len(played.answers) + len(played.refused)
    assert sent == pytest.approx(300 * 20, rel=0.05)
    assert len(played.answers) / 300 == pytest.approx(10, rel=0.05)  # as many as it can
    assert max(taken for _, taken in played.answers) <= 3 * 0.1 + 1e-9


def test_an_emptier_process_is_better_than_a_random_one(queue):
    def slowest(balance):
        played = queue.Simulation(service(queue, max_batch=1), machines=4, workers=2, balance=balance)
        run(queue, played, 300.0, rate=56.0)
        return queue.quantile([taken for _, taken in played.answers], 0.99)

    assert slowest("least") < slowest("two") < slowest("random")


def test_a_fleet_grows_after_the_start_of_its_machines_and_shrinks_late(queue):
    scaling = queue.Scaling(target=2.0, least=2, most=12, start_seconds=40.0)
    played = queue.Simulation(service(queue, max_batch=1), machines=2, scaling=scaling)
    run(queue, played, 1500.0, rate=[(0.0, 5.0), (300.0, 60.0), (600.0, 5.0)])
    asked = next(when for when, _, starting in played.machines if starting)
    came = next(when for when, ready, _ in played.machines if ready > 2)
    assert 300 < asked < 340
    assert came == pytest.approx(asked + 40.0)
    assert max(ready + starting for _, ready, starting in played.machines) <= 12
    changes = zip(played.machines, played.machines[1:])
    shrunk = next(after[0] for before, after in changes if after[1] < before[1])
    assert shrunk > asked + queue.DOWN_SECONDS
    assert played.machines[-1][1] == 2
    hours = sum((b[0] - a[0]) * (a[1] + a[2]) for a, b in zip(played.machines, [*played.machines[1:], (1500.0,)]))
    assert played.machine_seconds == pytest.approx(hours, rel=0.01)


def test_the_command(queue, monkeypatch, capsys):
    load("benchmarks", "queue_arguments")

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["queue_simulation.py", *arguments])
        return queue.main()

    assert main("--rate", "0:2,30:20", "--seconds", "60", "--price", "10", "--sizes", "32x32:3,64x64") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["until", "s", "sent/s", "refused"]
    assert [line.split()[0] for line in lines[1:4]] == ["30", "60", "all"]
    assert "in your money" in lines[-1]
    for wrong in (["--rate", "5:1"], ["--rate", "0:0"], ["--machines", "0"], ["--check", "model"], ["--sizes", "9"]):
        with pytest.raises(SystemExit) as ended:
            main(*wrong)
        assert ended.value.code == 2


def test_the_lines_of_the_page_are_ones_that_it_takes(queue, monkeypatch):
    arguments = load("benchmarks", "queue_arguments")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python benchmarks/queue_simulation.py (.+)$", page, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["queue_simulation.py", *shlex.split(line)])
        args = arguments.parse("")
        assert arguments.service_of(args).room((800, 1088)) == 1
