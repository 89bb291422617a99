"""Reproduce the table of the model zoo: fetch, evaluate, measure, compare."""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import Tensor, nn

from ..build import build_dataset, load_model
from ..config import load_config
from ..config.keys import setting
from ..data.image import read_image
from ..errors import ConfigError, UserError, nearest
from ..inference.detector import open_detector
from ..inference.export import export
from ..inference.graph import Graph
from ..model.gfl import GFL
from ..system import runtime
from ..system.atomic_write import write_csv, write_json, write_text
from ..system.log import logger
from ..system.text import Lines
from ..weights import checkpoint, download, zoo
from .evaluate import evaluate

TOLERANCE = 0.1  # AP, in percent
WARM_UP = 2  # images
COLUMNS = ("model", "schedule", "released AP", "measured AP", "difference", "FPS", "FPS exported", "parameters (M)",
           "GFLOPs", "remark")
Row = dict[str, Any]  # {column: value}


def reproduce(names: Sequence[str] = (), *, overrides: Sequence[str] = (),
              output_dir: str | PathLike[str] = "output/model_zoo", mirror: str | None = None,
              fps_images: int = 20) -> list[Row]:
    """Evaluate released models and write the table as model_zoo.md, .json and .csv.

    Finished rows of an earlier call are kept unless weights, data, Paddle or device are others.

    Args:
        names: of `zoo.MODELS`; none: all.
        overrides: of every config, as in `load_config`: EvalDataset.dataset_dir=/data/coco.
        output_dir: where the tables, and a folder for each model, are written.
        mirror: an address with the same files as `zoo.ADDRESS`.
        fps_images: images that speed is measured on.

    Returns: the rows, {column: value} of `COLUMNS`; a model that failed has the reason as its remark and no numbers.
    Raises: ConfigError for a name that does not exist.
    """
    for name in names:
        if name not in zoo.MODELS:
            raise ConfigError(f"{name}: no released model; {nearest(name, zoo.MODELS)}")
    folder = Path(output_dir)
    finished = _read(folder / "model_zoo.json")
    rows: dict[str, Row] = {}
    for name in names or zoo.MODELS:
        try:
            rows[name] = _row(zoo.MODELS[name], overrides, folder, mirror, fps_images, finished.get(name))
        except UserError as error:
            logger.warning("%s: %s", name, error)
            rows[name] = {"model": name, "remark": str(error)}
        _write(folder, {**finished, **rows})
    text = markdown(rows.values())
    write_text(folder / "model_zoo.md", text)
    logger.info("%s\nwritten to %s: model_zoo.md, .json, .csv", Lines(text), folder.resolve())
    return list(rows.values())


def failed(rows: Iterable[Row]) -> list[Row]:
    """The rows that miss the released AP by more than `TOLERANCE`, or have no number."""
    return [row for row in rows if abs(row.get("difference", np.inf)) > TOLERANCE + 1e-9]


def _row(entry: zoo.Model, overrides: Sequence[str], folder: Path, mirror: str | None, fps_images: int,
         finished: Row | None) -> Row:
    address = entry.weights.replace(zoo.ADDRESS, mirror.rstrip("/")) if mirror else entry.weights
    weights = checkpoint.find(address)
    cfg = load_config(entry.name, overrides)
    device = runtime.select_device(setting(cfg, "use_gpu"))
    dataset = build_dataset(cfg, "EvalDataset")
    made_from = {"weights": download.sha256(weights), "annotations": download.sha256(dataset.anno_path),
                 "images": len(dataset.records), "paddle": paddle.__version__, "device": device,
                 "overrides": list(overrides)}
    if finished and finished.get("made from") == made_from:
        logger.info("%s: kept from an earlier run", entry.name)
        return finished
    logger.info("%s: evaluating on %d images", entry.name, len(dataset.records))
    model = load_model(cfg, weights)
    parameters = sum(int(np.prod(p.shape)) for p in model.parameters()) / 1e6
    operations = gflops(model)
    ap = 100 * evaluate({**cfg, "metric": "COCO"}, weights=weights, output_dir=folder / entry.name)["AP"]
    images = [read_image(record["im_file"]) for record in dataset.records[:fps_images]]
    logger.info("%s: measuring speed on %d images", entry.name, len(images))
    speed = fps(open_detector(cfg, model=model), images)
    export(cfg, weights=weights, output_dir=folder / entry.name / "exported", verify=())
    runner = {"device": "GPU" if device.startswith("gpu") else "CPU"}
    exported = fps(open_detector(cfg, exported=folder / entry.name / "exported", runner=runner), images)
    difference = round(ap - entry.ap, 3)
    return {"model": entry.name, "schedule": entry.schedule, "released AP": entry.ap, "measured AP": round(ap, 3),
            "difference": difference, "FPS": round(speed, 3), "FPS exported": round(exported, 3),
            "parameters (M)": round(parameters, 2), "GFLOPs": round(operations, 1),
            "remark": "" if abs(difference) <= TOLERANCE else "differs", "made from": made_from}


def fps(detect: Callable[[Sequence[np.ndarray]], Any], images: Sequence[np.ndarray]) -> float:
    """Images a second, one at a time, from the decoded image to its detections; warm-up excluded."""
    for image in images[:WARM_UP]:
        detect([image])
    start = time.perf_counter()
    for image in images:
        detect([image])
    return len(images) / (time.perf_counter() - start)


def gflops(model: GFL, height: int = 800, width: int = 1344) -> float:
    """1e9 operations (a multiply-add counts as two) of all convolutions, for one image of the usual size."""
    total = 0

    def count(layer: nn.Layer, inputs: Any, output: Tensor) -> None:
        nonlocal total
        kernel = int(np.prod(layer.weight.shape[1:]))  # [C_out, C_in / groups, kH, kW]
        total += 2 * kernel * int(np.prod(output.shape))

    hooks = [layer.register_forward_post_hook(count) for layer in model.sublayers()
             if isinstance(layer, (paddle.nn.Conv2D, paddle.vision.ops.DeformConv2D))]
    with paddle.no_grad():
        Graph(model, post_process=False)(paddle.zeros([1, 3, height, width]))
    for hook in hooks:
        hook.remove()
    return total / 1e9


# --- the files


def markdown(rows: Iterable[Row]) -> str:
    """The table with its header."""
    threads = f", {runtime.cpu_threads()} threads" if not runtime.on_gpu() else ""
    lines = [
        f"Paddle {paddle.__version__} on {paddle.device.get_device()}{threads}, OpenCV {cv2.__version__}. AP on the "
        "images of EvalDataset; FPS with batch 1, from the decoded image to its detections; GFLOPs of convolutions at "
        "800x1344.", "", f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
    lines += ["| " + " | ".join(_cell(column, row.get(column, "")) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(column: str, value: Any) -> str:
    if value == "" or isinstance(value, str):
        return value
    return {"difference": f"{value:+.2f}", "released AP": f"{value:.1f}", "GFLOPs": f"{value:.1f}"}.get(
        column, f"{value:.2f}")


def _read(path: Path) -> dict[str, Row]:
    """The rows of an earlier run by model, or none."""
    try:
        return {row["model"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _write(folder: Path, row_of: Mapping[str, Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row_of[name] for name in zoo.MODELS if name in row_of]
    write_json(folder / "model_zoo.json", rows)
    write_csv(folder / "model_zoo.csv", [COLUMNS, *([row.get(name, "") for name in COLUMNS] for row in rows)])
