"""Part 5: exported models on the GPU, in every way that the runner has, against the same files on the CPU."""
from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ... import load_config
from ...data.shapes import draw_scene
from ...evaluation.evaluate import evaluate
from ...inference.detector import open_detector
from ...inference.export import export
from ...inference.runner import ExportedModel, make_runner
from .finding import Finding, Limits, Place, skipped, unlike, within
from .training import trained

LEAST, LEAST_DRY = 0.1, 0.0  # the score from which on detections are compared; a dry run's model has learnt nothing
# float16 has 11 bits, 5e-4 of a value: of a box of 100 pixels 0.05, and more where layers add it up.
HALF = Limits(pixels=1.0, score=0.02, share=0.03, ap=0.01)
MODES = {"paddle": Limits(pixels=0.05, score=1e-3, share=0.01, ap=2e-3), "fp16": HALF,
         "trt_fp32": Limits(pixels=0.1, score=2e-3, share=0.01, ap=5e-3), "trt_fp16": HALF}
SIZES = ((128, 160), (96, 224), (320, 416), (32, 64))  # height and width; the last has fewer cells than nms_top_k
BATCHES = (1, 4)
Inputs = list[list[np.ndarray]]


def exports(place: Place) -> Iterator[Finding]:
    """Each file and run mode: detections on drawn pictures of several sizes, alone and together, and the AP."""
    trained(place)
    cfg, least = _config(place), LEAST_DRY if place.dry else LEAST
    folder = place.folder / "export"
    export(cfg, output_dir=folder, verify=() if place.dry else None)
    inputs = drawn(SIZES[::3] if place.dry else SIZES)
    for file in (path for path in (folder / "model.pdmodel", folder / "model.json") if path.exists()):
        reference = found_by(make_runner(file), inputs)
        ap = _ap(cfg, place, file, {})
        count = sum(int((rows[:, 1] >= least).sum()) for rows in reference)
        yield Finding(count > 0, f"{file.name}, CPU", f"{count} detections to compare with, AP {ap:.3f}")
        for mode, limits in MODES.items():
            what = f"{file.name}, {mode}"
            why = _left_out(place, file, mode)
            if why:
                yield skipped(what, why)
                continue
            settings = {"device": "GPU", "run_mode": mode} if not place.dry else {"engine": "native"}
            yield from _compared(what, file, settings, inputs, reference, limits, least)
            yield within(f"{what}: AP", abs(_ap(cfg, place, file, settings) - ap), limits.ap, f" from {ap:.3f}")


def _config(place: Place) -> dict[str, Any]:
    data = place.folder / "output/shapes"
    return load_config("shapes_gfl", [
        f"weights={place.folder / 'output/demo/shapes_gfl/best_model'}", f"use_gpu={place.device == 'gpu'}".lower(),
        *(f"{section}.dataset_dir={data}" for section in ("TrainDataset", "EvalDataset", "TestDataset")),
        *(["GFLHead.nms.score_threshold=0.0"] if place.dry else [])])


def drawn(sizes: Sequence[tuple[int, int]]) -> Inputs:
    """Calls of a runner: pictures of one size, one or several."""
    rng = np.random.default_rng(1)
    return [[draw_scene(rng, *size)[0] for _ in range(count)] for size in sizes for count in BATCHES]


def _left_out(place: Place, file: Path, mode: str) -> str:
    """Why a way of running is not looked at, or nothing."""
    if place.dry:
        return "" if mode == "paddle" else "--dry: it works on a GPU only"
    if mode.startswith("trt") and paddle.inference.get_trt_compile_version() == (0, 0, 0):
        return "this Paddle was built without TensorRT"
    if mode.startswith("trt") and file.suffix == ".json":
        return "TensorRT takes model.pdmodel"
    return ""


def _compared(what: str, file: Path, settings: dict[str, Any], inputs: Inputs, reference: list[np.ndarray],
              limits: Limits, least: float) -> Iterator[Finding]:
    if "trt" in settings.get("run_mode", ""):
        found_by(make_runner(file, **settings), inputs)  # TensorRT learns the sizes from a first run
        gc.collect()
    runner = make_runner(file, **settings)
    found = found_by(runner, inputs)
    yield within(what, unlike(reference, found, limits, least), limits.share,
                 f" of the detections not within {limits.pixels:g} pixels and {limits.score:g} in score "
                 f"({runner.description})")
    again = found_by(runner, inputs)
    yield within(f"{what}: once more", unlike(found, again, limits, least), limits.share, " of them changed")


def found_by(runner: ExportedModel, inputs: Inputs) -> list[np.ndarray]:
    """The detections [M, 6] of all pictures, call by call."""
    return [rows for pictures in inputs for rows in runner(pictures)]


def _ap(cfg: dict[str, Any], place: Place, file: Path, settings: dict[str, Any]) -> float:
    detector = open_detector(cfg, exported=file, runner=settings)
    return float(evaluate(cfg, detector=detector, output_dir=place.folder / "evaluated")["AP"])
