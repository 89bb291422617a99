"""queue_simulation.py against a real service on this machine.

What the simulation is told is measured without the load that it is compared with: batches with the runner, the event
loop with a service whose model answers at once. Both take turns with the load, as other programs may slow the machine
down.
"""
from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import serving  # which finds `infer`
from queue_simulation import Service, Simulation, quantile

sys.path.insert(0, str(serving.ROOT / "deploy" / "python"))
import infer  # noqa: E402

TURNS = 16
ROUNDS = 2  # of each batch in a turn
CLIENTS = 8
# The service, whose model has been asked once and gives the same answer ever after.
AT_ONCE = f"""
import sys
sys.path[:0] = [{str(serving.ROOT / 'deploy/serving')!r}, {str(serving.ROOT / 'deploy/python')!r}]
import infer, server
opened = infer.open_runner
def open_runner(*arguments, **settings):
    runner = opened(*arguments, **settings)
    rows = runner([server.BLANK])[0]
    runner.detect = lambda arrays: [rows] * len(arrays["image"])
    return runner
infer.open_runner = open_runner
sys.exit(server.main())
"""


def compare(args: argparse.Namespace) -> int:
    """Print what was measured beside what was simulated. Returns 0."""
    clients, file = args.clients or CLIENTS, Path(infer.find_images(args.image_dir)[0])
    options = [str(word) for word in (
        "--model_dir", args.check, "--cpu_threads", args.cpu_threads, "--max_batch", args.max_batch,
        "--max_batch_megapixels", args.max_batch_megapixels, "--max_queue", args.max_queue)]
    runner, data = infer.open_runner(args.check, cpu_threads=args.cpu_threads), file.read_bytes()
    service, address = serving.start([*options, "--max_wait_ms", str(args.max_wait_ms)])
    at_once, empty = started(["-c", AT_ONCE, *options, "--max_wait_ms", "0", "--port", "0"])
    samples: dict[str, list[Any]] = {"batches": [], "prepare": [], "loop": [], "rate": [], "seconds": [], "images": []}
    try:
        for _ in range(TURNS):
            batches, prepare = timed(runner, data, args)
            rate, _, _ = load(empty, data, clients, args.seconds / TURNS / 4)
            samples["batches"].append(batches)
            samples["prepare"] += prepare
            samples["loop"].append(1 / rate)
            rate, seconds, images = load(address, data, clients, args.seconds / TURNS)
            samples["rate"].append(rate)
            samples["seconds"] += seconds
            samples["images"].append(images)
    finally:
        for process in (service, at_once):
            process.terminate()
            process.wait()
    told = service_from(samples, runner, data, args)
    print(f"batches of 1, 2, ...: {', '.join(f'{1000 * each:.1f}' for each in told.batch_seconds)} ms; prepare "
          f"{1000 * told.prepare:.2f} ms, event loop {1000 * told.loop:.2f} ms for a request\n")
    played = Simulation(told, seed=args.seed)
    played.clients(clients)
    played.run(10 * args.seconds)
    taken = [each for _, each in played.answers]
    mean = sum(size * number for size, number in played.batches.items()) / sum(played.batches.values())
    print(f"{f'{clients} clients':<22}{'measured':>10}{'simulated':>11}{'ratio':>8}   "
          f"(turns: {min(samples['rate']):.1f} to {max(samples['rate']):.1f} a second)")
    for name, real, simulated in (
            ("answers a second", statistics.mean(samples["rate"]), len(taken) / played.now),
            *((f"p{share}, ms", *(1000 * quantile(each, share / 100) for each in (samples["seconds"], taken)))
              for share in (50, 95)),
            ("images a batch", statistics.mean(samples["images"]), mean)):
        print(f"{name:<22}{real:>10.2f}{simulated:>11.2f}{simulated / real:>8.2f}")
    return 0


def timed(runner: infer.BaseRunner, data: bytes, args: argparse.Namespace) -> tuple[list[list[float]], list[float]]:
    """([seconds of some batches of 1, of 2, ...], [seconds of preparing an image])."""
    arrays = prepared(runner, data)
    most = infer_room(arrays, args)
    batches = []
    for count in range(1, most + 1):
        batch = {name: infer.np.concatenate([array] * count) for name, array in arrays.items()}
        batches.append(seconds_of(lambda: runner.detect(batch)))  # noqa: B023  called at once
    return batches, seconds_of(lambda: prepared(runner, data))


def prepared(runner: infer.BaseRunner, data: bytes) -> dict[str, Any]:
    return runner.prepare([infer.cv2.imdecode(infer.np.frombuffer(data, infer.np.uint8), 1)])


def infer_room(arrays: dict[str, Any], args: argparse.Namespace) -> int:
    """Images that a batch holds."""
    height, width = arrays["image"].shape[2:]
    return max(1, min(args.max_batch, int(args.max_batch_megapixels * 1e6) // (height * width)))


def seconds_of(what: Callable[[], object]) -> list[float]:
    """Of some rounds, after one that warms up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def service_from(samples: dict[str, list[Any]], runner: infer.BaseRunner, data: bytes,
                 args: argparse.Namespace) -> Service:
    """The means of what was measured, and how much batches vary."""
    by_size = [[each for turn in samples["batches"] for each in turn[i]] for i in range(len(samples["batches"][0]))]
    means = [statistics.mean(seconds) for seconds in by_size]
    factors = [each / mean for seconds, mean in zip(by_size, means) for each in seconds]
    shape = prepared(runner, data)["image"].shape
    return Service(means, factors, (((shape[2], shape[3]), 1.0),), statistics.median(samples["prepare"]),
                   args.cpu_threads, statistics.mean(samples["loop"]), args.max_batch,
                   int(args.max_batch_megapixels * 1e6), args.max_wait_ms / 1000, args.max_queue)


def started(command: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    """A service -> (process, address); see `serving.start`."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        found = re.search(r"Uvicorn running on (\S+)", line)
        if found:
            threading.Thread(target=process.stdout.read, daemon=True).start()  # type: ignore[union-attr]
            return process, found.group(1)
    raise SystemExit("".join(lines))


def load(address: str, data: bytes, clients: int, seconds: float) -> tuple[float, list[float], float]:
    """Closed-loop clients, each with a connection -> (answers a second, seconds of each, mean images a batch)."""
    taken: list[float] = []
    failed: list[str] = []
    before, began = counted(address), time.monotonic()

    def client() -> None:
        connection = http.client.HTTPConnection(urlparse(address).netloc, timeout=300)
        while (sent := time.monotonic()) - began < seconds and not failed:
            connection.request("POST", "/predict?threshold=0.9", body=data)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                failed.append(json.loads(content)["error"])
            taken.append(time.monotonic() - sent)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"error: the service says: {failed[0]}")
    passed, after = time.monotonic() - began, counted(address)
    return len(taken) / passed, taken, (after[0] - before[0]) / (after[1] - before[1])


def counted(address: str) -> tuple[float, float]:
    """(images, batches) so far, from /metrics."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        text = answer.read().decode()
    images, batches = (float(re.findall(rf"^ppgfl_batch_images_{name} (\S+)", text, re.MULTILINE)[0])
                       for name in ("sum", "count"))
    return images, batches
