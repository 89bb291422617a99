"""Where the time of `infer` and `evaluate` goes: seconds in each stage, beside those that the whole took.

    python benchmarks/stages.py [--images 24] [--model gfl_r18vd_1x_coco] [--exported]

Drawn photographs of 640x480, stand-in weights with 1,900 candidates an image, 800 pixels. A stage is timed where it is
called, in whatever thread that is: preparation that hides behind the network counts as preparation all the same, so
shares may add up to more than 1. What is left over is Python between the stages, waiting, and the start of threads.
"""
from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import cv2  # noqa: E402
from compare import MODEL  # noqa: E402
from drawn import FEW, draw_coco, write_weights  # noqa: E402

import ppgfl  # noqa: E402
from ppgfl.evaluation import evaluate as evaluation  # noqa: E402
from ppgfl.inference import detections, infer, runner, static_model  # noqa: E402

spent: dict[str, float] = defaultdict(float)
lock = threading.Lock()


def timed(owner: Any, name: str, stage: str) -> None:
    """Let a function of a module or class add the seconds that it takes to a stage."""
    function: Callable[..., Any] = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            with lock:
                spent[stage] += time.perf_counter() - start

    setattr(owner, name, run)


def watch() -> None:
    for name, stage in (("imdecode", "decode"), ("resize", "resize"), ("LUT", "normalise")):
        timed(cv2, name, stage)
    module = runner.load_runner()
    for kind in (module.Runner, module.OnnxRunner):
        timed(kind, "load", "open the model")
        timed(kind, "run", "network")
        timed(kind, "rows_of", "NMS and sorting")
    timed(static_model, "_make", "make the graph, or find it")
    timed(detections.Detections, "draw", "draw")
    timed(infer, "write_image", "write pictures")
    timed(infer, "_save", "write results")
    timed(evaluation, "write_json", "write results")
    timed(evaluation, "measure", "COCO's numbers")


def show(title: str, run: Callable[[], Any]) -> None:
    spent.clear()
    start = time.perf_counter()
    run()
    whole = time.perf_counter() - start
    print(f"\n| {title} | seconds | share |\n| --- | --- | --- |")
    for stage, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {stage} | {seconds:.2f} | {seconds / whole:.3f} |")
    print(f"| the whole | {whole:.2f} | 1 |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--exported", action="store_true", help="infer with an exported folder, too")
    args = parser.parse_args()
    logging.getLogger("ppgfl").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        data = draw_coco(Path(scratch, "coco"), args.images)
        weights = write_weights(args.model, Path(scratch))
        cfg = ppgfl.load_config(args.model, ["use_gpu=false", "worker_num=0", *FEW, f"EvalDataset.dataset_dir={data}",
                                             f"EvalDataset.sample_num={args.images}"])
        files = sorted(map(str, (data / "val2017").iterdir()))[:args.images]
        ppgfl.evaluate(cfg, weights=weights, output_dir=scratch)  # makes the graph
        watch()
        show("evaluate", lambda: ppgfl.evaluate(cfg, weights=weights, output_dir=scratch))
        for pictures in (False, True):
            show("infer with pictures" if pictures else "infer", lambda pictures=pictures: infer.infer(
                cfg, files, weights=weights, output_dir="found", save_results="json", pictures=pictures))
        if args.exported:
            ppgfl.export(cfg, weights=weights, output_dir="exported", verify=())
            show("infer --exported", lambda: infer.infer(cfg, files, exported="exported", output_dir="found",
                                                         save_results="json", pictures=False))


if __name__ == "__main__":
    main()
