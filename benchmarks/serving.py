"""How the service holds up: many clients at once, every answer compared with the runner's, memory watched; the end by
SIGTERM comes while they still ask, and with --kill_after a worker dies in between.

    python benchmarks/serving.py --model_dir output_inference/gfl_r18vd_1x_coco --image_dir photos
    python benchmarks/serving.py --model_dir output_inference/gfl_r18vd_1x_coco --image_dir photos \\
        --workers 2 --clients 64 --seconds 120 --kill_after 30
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "deploy" / "python"))
import infer  # noqa: E402


class Service:
    """The service on a free port, as a user starts it, and the lines that it has printed."""

    def __init__(self, arguments):
        self.process = subprocess.Popen([sys.executable, str(ROOT / "deploy/serving/server.py"), "--port", "0",
                                         *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self.until(r"serving on http://(\S+)", 1)[0]

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def until(self, pattern, count):
        """What a pattern has found, once it has so often."""
        while len(found := re.findall(pattern, "".join(self.lines))) < count:
            if self.process.poll() is not None:
                raise SystemExit("".join(self.lines))
            time.sleep(0.05)
        return found

    def workers(self, count):
        """The numbers of all processes that were ever ready, in their order."""
        return [int(number) for number in self.until(r"worker (\d+) is ready", count)]

    def megabytes(self):
        """Of the service's process and its workers, each with the pages that it shares."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sum(megabytes(number) for number in [self.process.pid, *children])


def megabytes(number):
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{number}/status").read_text()).group(1)) / 1024
    except (OSError, AttributeError):  # it has just ended
        return 0.0


def difference(result, wanted):
    """The largest difference of scores and boxes (pixels) of one answer; infinite when the counts differ."""
    if len(result["detections"]) != len(wanted):
        return float("inf"), float("inf")
    scores = boxes = 0.0
    for d in result["detections"]:  # equal scores may change places: each is compared with its nearest
        row = np.array([d["label"], d["score"], *d["box"]])
        nearest = wanted[np.abs(wanted - row).max(axis=1).argmin()]
        scores, boxes = max(scores, abs(nearest[1] - row[1])), max(boxes, np.abs(nearest[2:] - row[2:]).max())
    return scores, boxes


class Load:
    """Clients that ask until nobody listens any more, each on a connection that it keeps."""

    def __init__(self, address, photos):
        self.address, self.photos = address, photos
        self.answers = []  # (time, seconds, differences of scores and of boxes)
        self.told = []  # (time, what was wrong) of those that got no answer, or another one than 200
        self.refused = 0  # clients that found nobody at the end

    def ask(self, client):
        connection = HTTPConnection(self.address, timeout=300)
        for i in range(client, 10**9):
            data, wanted = self.photos[i % len(self.photos)]
            began = time.monotonic()
            try:
                connection.request("POST", "/predict?threshold=0", body=data)
                answer = connection.getresponse()
                body = answer.read()
            except ConnectionRefusedError:
                self.refused += 1
                return
            except (OSError, HTTPException) as error:
                connection.close()
                self.told.append((time.monotonic(), type(error).__name__))
                continue
            now = time.monotonic()
            if answer.status == 200:
                self.answers.append((now, now - began, *difference(json.loads(body)["results"][0], wanted)))
            else:
                self.told.append((now, answer.status))


def run(service, load, args):
    """The load for so many seconds, then SIGTERM amid it -> (memory each second, time of the kill, of the SIGTERM)."""
    memory, killed, began = [], None, time.monotonic()
    with ThreadPoolExecutor(args.clients) as pool:
        clients = [pool.submit(load.ask, i) for i in range(args.clients)]
        while time.monotonic() - began < args.seconds:
            memory.append(service.megabytes())
            if args.kill_after and not killed and time.monotonic() - began > args.kill_after:
                killed = time.monotonic()
                os.kill(service.workers(args.workers)[0], signal.SIGKILL)
            time.sleep(1)
        ended = time.monotonic()
        service.process.terminate()
        code = service.process.wait()
        for client in clients:
            client.result()
    print(f"exit code {code} after {time.monotonic() - ended:.1f} s, {load.refused} clients found nobody then")
    return memory, killed, ended


def rate_of(runner, prepared, seconds=10.0):
    """Images a second of the runner alone, on inputs that are prepared."""
    began, done = time.monotonic(), 0
    while done < len(prepared) or time.monotonic() - began < seconds:
        runner.detect(prepared[done % len(prepared)])
        done += 1
    return done / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--image_dir", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kill_after", type=float, metavar="SECONDS", help="kill a worker then (no)")
    parser.add_argument("--max_batch", help="of the service (its default)")
    parser.add_argument("--images", type=int, default=20, help="of the folder that are asked about (20)")
    args = parser.parse_args()
    if args.kill_after and args.workers < 2:
        parser.error("--kill_after: with one worker nobody would be left; give --workers 2")

    files = infer.find_images(args.image_dir)[:args.images]
    runner = infer.open_runner(args.model_dir)
    prepared = [runner.prepare([infer.read_image(path)]) for path in files]
    photos = [(Path(path).read_bytes(), runner.detect(arrays)[0]) for path, arrays in zip(files, prepared)]
    bare = rate_of(runner, prepared)
    options = ["--max_batch", args.max_batch] if args.max_batch else []
    service = Service(["--model_dir", args.model_dir, "--workers", str(args.workers), *options])
    if args.workers > 1:
        service.workers(args.workers)
    load = Load(service.address, photos)
    memory, killed, ended = run(service, load, args)

    print(f"{runner.description}, {args.workers} workers\n{args.clients} clients for {args.seconds:.0f} s on "
          f"{len(photos)} images\n")
    lost = [what for when, what in load.told if when >= ended]
    told = [what for when, what in load.told if when < ended]
    latencies = sorted(seconds for when, seconds, *_ in load.answers if when < ended)
    p50, p95, p99 = (latencies[int(share * len(latencies))] for share in (0.5, 0.95, 0.99))
    scores, boxes = (max(row[column] for row in load.answers) for column in (2, 3))
    third = len(memory) // 3
    wrong = sum(row[2] > 1e-4 or row[3] > 0.02 for row in load.answers)
    # From the first answer on: before it nothing can have been answered, however fast the service is.
    times = sorted(when for when, *_ in load.answers if when < ended)
    rate = (len(times) - 1) / (times[-1] - times[0])
    lines = [
        ("answers", f"{len(latencies)}, {len(load.answers) - len(latencies)} more after SIGTERM"),
        ("rate", f"{rate:.2f} a second; the runner alone, just before, {bare:.2f}: {rate / bare:.2f}"),
        ("wrong answers", f"{wrong}; largest difference {scores:.1e} in scores, {boxes:.1e} pixels in boxes"),
        ("not answered", f"{len(told)} {dict(Counter(told)) or ''}"),
        ("lost at the end", f"{len(lost)} {dict(Counter(lost)) or ''}"),
        ("latency", f"p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s"),
        ("memory", f"{max(memory[third:2 * third]):.0f} MiB in the second third, {max(memory[2 * third:]):.0f} MiB in "
                   "the last")]
    if killed:
        after = [when - killed for when, _ in load.told if killed <= when < ended]
        ready = len(service.workers(0)) - args.workers
        lines.append(("killed", f"worker {service.workers(0)[0]}, {ready} took its place; those not answered were told "
                                f"within {max(after, default=0):.2f} s"))
    for name, value in lines:
        print(f"{name:<20}{value}")
    return 1 if wrong or lost or len(told) > (args.clients if killed else 0) else 0


if __name__ == "__main__":
    sys.exit(main())
