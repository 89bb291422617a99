"""How the service holds up: many clients at once, every answer compared with the runner's, memory watched.

    python benchmarks/serving.py --model_dir output_inference/gfl_r18vd_1x_coco --image_dir photos
"""
import argparse
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "deploy" / "python"))
import infer  # noqa: E402


def start(arguments):
    """The service on a free port -> (process, address)."""
    process = subprocess.Popen([sys.executable, str(ROOT / "deploy/serving/server.py"), "--port", "0", *arguments],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"Uvicorn running on (\S+)", line)
        if found:
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, found.group(1)
    raise SystemExit("".join(lines))


def megabytes(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


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


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--image_dir", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--max_batch", help="of the service (its default)")
    parser.add_argument("--images", type=int, default=20, help="of the folder that are asked about (20)")
    args = parser.parse_args()

    files = infer.find_images(args.image_dir)[:args.images]
    runner = infer.open_runner(args.model_dir)
    photos = [(Path(path).read_bytes(), runner([infer.read_image(path)])[0]) for path in files]
    options = ["--max_batch", args.max_batch] if args.max_batch else []
    process, address = start(["--model_dir", args.model_dir, *options])
    memory, latencies, errors, differences = [], [], [], []
    end = time.monotonic() + args.seconds

    def ask(client):
        with httpx.Client(timeout=300) as connection:
            for i in range(client, 10**9):
                if time.monotonic() > end:
                    return
                data, wanted = photos[i % len(photos)]
                began = time.monotonic()
                answer = connection.post(f"{address}/predict?threshold=0", content=data)
                latencies.append(time.monotonic() - began)
                if answer.status_code == 200:
                    differences.append(difference(answer.json()["results"][0], wanted))
                else:
                    errors.append(answer.text)

    def watch():
        while time.monotonic() < end:
            memory.append(megabytes(process))
            time.sleep(1)

    began = time.monotonic()
    with ThreadPoolExecutor(args.clients + 1) as pool:
        for future in [pool.submit(watch), *[pool.submit(ask, i) for i in range(args.clients)]]:
            future.result()
    seconds = time.monotonic() - began
    process.terminate()
    process.wait()

    print(f"{runner.description}\n{args.clients} clients for {seconds:.0f} s on {len(photos)} images\n")
    latencies.sort()
    slow, third = latencies[int(0.95 * len(latencies))], len(memory) // 3
    scores, boxes = (max(column) for column in zip(*differences))
    before, after = max(memory[third:2 * third]), max(memory[2 * third:])
    for name, value in (
            ("answers", f"{len(latencies)} ({len(latencies) / seconds:.2f} a second)"),
            ("errors", f"{len(errors)} {errors[:1] or ''}"),
            ("latency", f"median {statistics.median(latencies):.2f} s, 95 % below {slow:.2f} s"),
            ("largest difference", f"{scores:.1e} in scores, {boxes:.1e} pixels in boxes"),
            ("memory", f"{before:.0f} MiB in the second third, {after:.0f} MiB in the last")):
        print(f"{name:<20}{value}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
