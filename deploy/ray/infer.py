"""Detect on a folder or a bucket with Ray Data: a pool of workers, each with the exported model in its own runner.

    pip install "ppgfl[ray]"
    python deploy/ray/infer.py --model_dir output_inference/gfl_r18vd_1x_coco --image_dir photos --workers 2 --resume
    python deploy/ray/infer.py --model_dir model.onnx --image_dir s3://bucket/photos --output_dir s3://bucket/found

Each worker takes a shard of the images at a time and writes its results when all are there, as `ppgfl infer
--save_results jsonl` or `parquet` has them, to results-NAME.jsonl or .parquet. The name comes from the images of the
shard, so that a shard which is done again, because a worker died, takes the place of itself. Images that cannot be read
have no row; failed.jsonl lists them, the exit code is 2, and --resume tries them again.

`--gpus 1` gives each worker a card of its own; `--gpus 0.25` lets four share one. On a cluster this checkout,
`--model_dir` and the folders have the same paths on all machines.
"""
from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
RETRIES = 4  # of a shard over which a worker died
BAD_SHARDS = 10  # given up so, before the run is


def load_results() -> ModuleType:
    """The module results.py beside this one, which has deploy/python/infer.py as `infer`. A worker gets this script as
    pickled objects, which cannot import it by name."""
    name = "deploy_ray_results"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "results.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Detect:
    """A worker: {"files": [bytes]}, a shard's names with zeros between them -> {"files", "images": [how many have a row
    now], "failed": [a JSON list of {"file", "error"}], "fatal": [why nothing can go on, or ""]}."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.fatal = args, ""
        self.results = load_results()
        self.infer = self.results.infer
        try:
            self.runner = self.infer.open_runner(args.model_dir, device="GPU" if args.gpus else "CPU",
                                                 cpu_threads=args.threads, calibrated=args.calibrated)
        except (self.infer.RunnerError, OSError) as error:
            self.fatal = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        records: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        files = names_of(batch["files"][0])
        try:
            if not self.fatal:
                self.detect(files, records, failed)
                if records:
                    name = "results-" + hashlib.sha256(batch["files"][0]).hexdigest()[:16]
                    name += self.results.ENDINGS[self.args.format]
                    data = self.results.encode(records, self.args.format, self.runner.sigma)
                    self.results.Storage(self.args.output_dir, self.args.storage_options).write(name, data)
        except (self.infer.RunnerError, OSError) as error:
            self.fatal = str(error)
        return {"files": batch["files"], "images": [len(records)], "failed": [json.dumps(failed)],
                "fatal": [self.fatal]}

    def detect(self, files: list[str], records: list[dict[str, Any]], failed: list[dict[str, str]]) -> None:
        """Append what is found, and what cannot be read; images are read and prepared in threads beside the network."""
        size, threads = self.args.batch_size, self.infer.helpers("GPU" if self.args.gpus else "CPU", self.args.threads)
        storage = self.results.Storage(self.args.image_dir, self.args.storage_options)

        def load(batch: list[str]) -> tuple[list[str], Any]:
            images = {}
            for file in batch:
                try:
                    images[file] = storage.read_image(file)
                except (self.infer.RunnerError, OSError) as error:
                    failed.append({"file": file, "error": str(error)})
            return list(images), images and self.runner.prepare(list(images.values()))

        batches = (files[start:start + size] for start in range(0, len(files), size))
        for names, arrays in self.infer.ahead(load, batches, threads, 2 * threads):
            for name, rows in zip(names, self.runner.detect(arrays) if names else ()):
                rows = rows[rows[:, 1] >= self.args.threshold]
                records.append({"file": name, "detections": self.infer.detections_of(rows, self.runner.class_names)})


def names_of(shard: bytes) -> list[str]:
    return os.fsdecode(shard).split("\0")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", required=True, help="an exported folder, or a .onnx")
    parser.add_argument("--image_dir", required=True, help="searched recursively; also s3://bucket/folder and the like")
    parser.add_argument("--output_dir", default="found", help="gets the results; also s3://bucket/folder (found)")
    parser.add_argument("--format", choices=("json", "parquet"), default="json", help="JSON lines or tables (json)")
    parser.add_argument("--resume", action="store_true", help="go on with the results that are in --output_dir")
    parser.add_argument("--storage_options", type=json.loads, default={}, metavar="JSON",
                        help="arguments of fsspec's file system, as '{\"endpoint_url\": \"http://...\"}'; without, the "
                             "environment says them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...")
    parser.add_argument("--workers", type=int, default=2, help="(2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker (1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="cards of each worker, also a share of one (0: a CPU)")
    parser.add_argument("--batch_size", type=int, default=1, help="images padded to one size and computed together (1)")
    parser.add_argument("--shard", type=int, default=500, help="images of a file, done anew after a kill (500)")
    parser.add_argument("--threshold", type=float, default=0.05, help="least score written (0.05)")
    parser.add_argument("--calibrated", action="store_true", help="as the export's calibration makes scores and sigmas")
    args = parser.parse_args(argv)
    for name in ("workers", "threads", "batch_size", "shard"):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: {getattr(args, name)}: it must be at least 1")
    for name in ("gpus", "threshold"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"argument --{name}: {getattr(args, name)}: allowed: 0 to 1")
    if not isinstance(args.storage_options, dict):
        parser.error("argument --storage_options: it is a JSON object: {...}")
    for name in ("model_dir", "image_dir", "output_dir"):
        if "://" not in getattr(args, name):
            setattr(args, name, os.path.abspath(os.path.expanduser(getattr(args, name))))
    return args


def detect(args: argparse.Namespace) -> int:
    """The exit code. Raises RunnerError, OSError."""
    results, start = load_results(), time.time()
    infer, output = results.infer, results.Storage(args.output_dir, args.storage_options)
    files = results.Storage(args.image_dir, args.storage_options).images(output)
    done = results.done_by_earlier(output, args)
    # Cut before what is done is left out: what a worker of a killed run still writes is then a shard of this one, too.
    cut = ([file for file in files[i:i + args.shard] if results.place_of(file) not in done]
           for i in range(0, len(files), args.shard))
    shards = [{"files": os.fsencode("\0".join(shard))} for shard in cut if shard]
    left = sum(shard["files"].count(b"\0") + 1 for shard in shards)
    print(f"{left:,} of {len(files):,} images in {len(shards):,} shards, {args.workers} workers", flush=True)
    rows, failed, waiting = 0, [], {shard["files"] for shard in shards}
    for row in run(shards, args) if shards else ():
        if row["fatal"]:
            raise infer.RunnerError(f"{row['fatal']}; --resume goes on with what is there")
        waiting.discard(row["files"])
        rows, failed = rows + row["images"], failed + json.loads(row["failed"])
        print(f"{rows + len(failed):,} of {left:,} images, {time.time() - start:.0f} s", flush=True)
    failed += [{"file": file, "error": f"{file}: its shard was given up, after {RETRIES + 1} deaths of its worker or "
                                       "an error that Ray shows; --resume --shard 1 finds the image that it was"}
               for shard in waiting for file in names_of(shard)]
    output.write("failed.jsonl", "".join(json.dumps(one) + "\n" for one in failed).encode())
    print(f"{rows:,} images in {time.time() - start:.0f} s, in {infer.shown(args.output_dir)}")
    if failed:
        raise infer.RunnerError(f"{failed[0]['error']} ({len(failed):,} of {left:,} images have no row; "
                                f"{args.output_dir}/failed.jsonl lists them, and --resume tries them again)")
    return 0


def run(shards: list[dict[str, bytes]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The workers' answers, as they come. Raises RunnerError."""
    infer = load_results().infer
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = infer.needed("ray", '"ppgfl[ray]"')
    data = infer.needed("ray.data", '"ppgfl[ray]"')
    try:  # the cluster of RAY_ADDRESS or `ray start`, else a new one; "auto" would join another run's, and end with it
        ray.init(logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise infer.RunnerError(f"no Ray cluster answers: {infer.end_of(error)}; mend or unset RAY_ADDRESS") from error
    for kind, each in (("CPU", args.threads), ("GPU", args.gpus)):
        there = ray.cluster_resources().get(kind, 0)
        if args.workers * each > there and "RAY_ADDRESS" not in os.environ:  # a cluster may grow
            raise infer.RunnerError(f"{args.workers} workers with {each:g} {kind} each: there are {there:g}; "
                                    "set --workers, --threads or --gpus lower, or RAY_ADDRESS to a growing cluster")
    warnings.filterwarnings("ignore", message="`ray_remote_args")  # there until Ray 2.64, and nothing in its place
    data.DataContext.get_current().enable_progress_bars = False
    data.DataContext.get_current().max_errored_blocks = BAD_SHARDS
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    pool = data.ActorPoolStrategy(size=min(args.workers, len(shards)))
    answers = data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        Detect, batch_size=1, compute=pool, fn_constructor_args=[args], num_cpus=args.threads,
        num_gpus=args.gpus or None, ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES})
    try:
        yield from answers.iter_rows()
    except ray.exceptions.RayActorError as error:
        raise infer.RunnerError(f"workers died {RETRIES + 1} times over each of {BAD_SHARDS + 1} shards "
                                f"({infer.end_of(error)}); --resume goes on with what is there") from error


def main(argv: Sequence[str] | None = None) -> int:
    infer = load_results().infer
    try:
        return detect(parse_arguments(argv))
    except infer.RunnerError as error:
        print(f"error: {infer.shown(error)}", file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {infer.shown(error.filename)}: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped by SIGINT; --resume goes on with what is there", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
