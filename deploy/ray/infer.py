"""Detect on a folder with Ray Data: a pool of workers, each with the exported model in its own runner.

    pip install "ray[data]"
    python deploy/ray/infer.py --model_dir output_inference/gfl_r18vd_1x_coco --image_dir photos --workers 2
    python deploy/ray/infer.py --model_dir output_inference/gfl_r18vd_1x_coco --image_dir photos --workers 2 --gpus 1

`--gpus 1` gives each worker a card of its own; `--gpus 0.25` lets four share one, so that some prepare their images
while others compute. On a cluster `--model_dir` and `--image_dir` are folders that all machines see; `ray.init` finds
the cluster by itself. An image that cannot be read has an `error` in its line, and no boxes.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

RUNNER = Path(__file__).resolve().parent.parent / "python"


class Detect:
    """A worker: {"file"} -> a line of the result."""

    def __init__(self, model_dir: str, threshold: float, threads: int, device: str = "CPU") -> None:
        self.infer = load_infer()
        self.runner = self.infer.open_runner(model_dir, device=device, cpu_threads=threads)
        self.threshold = threshold

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            found = self.runner([self.infer.read_image(row["file"])])[0]
        except (self.infer.RunnerError, OSError) as error:
            return {**row, "labels": [], "scores": [], "boxes": [], "error": str(error)}
        found = found[found[:, 1] >= self.threshold]
        return {**row, "labels": [self.infer.name_of(int(label), self.runner.class_names) for label in found[:, 0]],
                "scores": found[:, 1].tolist(), "boxes": found[:, 2:].tolist(), "error": ""}


def load_infer() -> ModuleType:
    """The module deploy/python/infer.py."""
    sys.path.insert(0, str(RUNNER))
    import infer

    return infer


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", required=True, help="an exported folder, or a .onnx")
    parser.add_argument("--image_dir", required=True, help="searched recursively")
    parser.add_argument("--output_dir", default="found", help="gets JSON lines, one shard per block (found)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker (1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="cards of each worker, also a share of one (0: a CPU)")
    parser.add_argument("--threshold", type=float, default=0.05, help="least score written (0.05)")
    args = parser.parse_args()
    if not (0 <= args.gpus <= 1):
        parser.error(f"argument --gpus: {args.gpus}: a worker uses one card, or a share of it: 0 to 1")

    import ray

    infer = load_infer()
    try:
        files = [{"file": os.path.abspath(path)} for path in infer.find_images(args.image_dir)]
    except infer.RunnerError as error:
        parser.error(str(error))
    output = Path(args.output_dir).resolve()
    if any(output.glob("*.json")):
        parser.error(f"{output} holds results already, and Ray would add to them; give another --output_dir")
    print(f"{len(files)} images, {args.workers} workers")
    start = time.time()
    ray.data.from_items(files).map(
        Detect, concurrency=args.workers, num_cpus=args.threads, num_gpus=args.gpus or None,
        fn_constructor_args=[str(Path(args.model_dir).resolve()), args.threshold, args.threads,
                             "GPU" if args.gpus else "CPU"]).write_json(str(output))
    print(f"{len(files)} images in {time.time() - start:.0f} s, in {output}")


if __name__ == "__main__":
    main()
