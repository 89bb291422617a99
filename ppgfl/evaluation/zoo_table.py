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

from .. import convert
from ..build import load_model, make_model
from ..config import load_config
from ..config.keys import setting
from ..data.image import read_image
from ..errors import CheckpointError, ConfigError, UserError, nearest
from ..inference.detector import open_detector
from ..inference.export import export
from ..inference.graph import Graph
from ..model.gfl import GFL
from ..readers import build_dataset
from ..system import framework, runtime
from ..system.atomic_write import write_csv, write_json, write_text
from ..system.log import logger
from ..system.text import Lines
from ..weights import checkpoint, download, safe_pickle, torch_file, zoo
from .evaluate import evaluate

TOLERANCE = 0.1  # AP, in percent
WARM_UP = 2  # images
COLUMNS = ("model", "trained by", "schedule", "released AP", "measured AP", "difference", "FPS", "FPS exported",
           "parameters (M)", "GFLOPs", "remark")
Row = dict[str, Any]  # {column: value}


def reproduce(names: Sequence[str] = (), *, overrides: Sequence[str] = (),
              output_dir: str | PathLike[str] = "output/model_zoo", mirror: str | None = None,
              fps_images: int = 20) -> list[Row]:
    """Evaluate released models and write the table as model_zoo.md, .json and .csv.

    Finished rows of an earlier call are kept unless weights, data, Paddle or device are others.

    Args:
        names: of `zoo.MODELS`, or who trained them ("MMDetection"), or "all"; none: those of PaddleDetection.
        overrides: of every config, as in `load_config`: EvalDataset.dataset_dir=/data/coco.
        output_dir: where the tables, and a folder for each model, are written.
        mirror: an address with the files of `zoo.Model.file`, instead of those of who released them.
        fps_images: images that speed is measured on.

    Returns: the rows, {column: value} of `COLUMNS`; a model that failed has the reason as its remark and no numbers.
    Raises: ConfigError for a name that does not exist.
    """
    chosen = _chosen(names)
    folder = Path(output_dir)
    finished = _read(folder / "model_zoo.json")
    rows: dict[str, Row] = {}
    for name in chosen:
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


def _chosen(names: Sequence[str]) -> list[str]:
    """The models that words name, in the order of the zoo. Raises ConfigError."""
    sources = {model.source for model in zoo.MODELS.values()}
    for word in names:
        if word not in {*zoo.MODELS, *sources, "all"}:
            raise ConfigError(f"{word}: no released model; {nearest(word, [*zoo.MODELS, *sources])}")
    wanted = set(names) or {"PaddleDetection"}
    return [model.name for model in zoo.MODELS.values() if wanted & {model.name, model.source, "all"}]


def failed(rows: Iterable[Row]) -> list[Row]:
    """The rows that miss the released AP by more than `TOLERANCE`, or have no number."""
    return [row for row in rows if abs(row.get("difference", np.inf)) > TOLERANCE + 1e-9]


def _row(entry: zoo.Model, overrides: Sequence[str], folder: Path, mirror: str | None, fps_images: int,
         finished: Row | None) -> Row:
    source = _fetch(entry, mirror)
    cfg = load_config(convert.into_cache(source, entry.name) if entry.is_of_pytorch else entry.config, overrides)
    weights = checkpoint.find(cfg["weights"]) if entry.is_of_pytorch else source
    device = framework.select_device(setting(cfg, "use_gpu"))
    dataset = build_dataset(cfg, "EvalDataset")
    made_from = {"weights": download.sha256(source), "annotations": download.sha256(dataset.anno_path),
                 "images": len(dataset.records), "paddle": paddle.__version__, "device": device,
                 "overrides": list(overrides)}
    if finished and finished.get("made from") == made_from:
        logger.info("%s: kept from an earlier run", entry.name)
        return finished
    if entry.is_of_pytorch:  # its config is that of the file; another one is compared when the model is loaded
        _check_kind(entry, weights)
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
    return {"model": entry.name, "trained by": entry.source, "schedule": entry.schedule, "released AP": entry.ap,
            "measured AP": round(ap, 3), "difference": difference, "FPS": round(speed, 3),
            "FPS exported": round(exported, 3), "parameters (M)": round(parameters, 2), "GFLOPs": round(operations, 1),
            "remark": "" if abs(difference) <= TOLERANCE else "differs", "made from": made_from}


def _fetch(entry: zoo.Model, mirror: str | None) -> Path:
    """The released file. Raises CheckpointError where it is none, or another one."""
    address = f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.weights
    read = torch_file.read if entry.is_of_pytorch else safe_pickle.load
    path = download.fetch(address, verify=read)
    if not download.sha256(path).startswith(entry.sha256):
        text = f"{path}: is not the file that {entry.source} released, whose SHA-256 begins with {entry.sha256}"
        if not mirror:
            raise CheckpointError(f"{text}; delete it and try again")
        logger.warning("%s", text)
    return path


def _check_kind(entry: zoo.Model, weights: Path) -> None:
    """Raise CheckpointError where the weights are of another network than the row says. Which stages are deformable
    counts by the file: what the authors' pages and their configs say of it differs."""
    arrays = checkpoint.read(weights)
    report, _ = checkpoint.match(make_model(load_config(entry.config)).state_dict(), arrays, str(weights))
    wrong = [name for name in (*report.missing, *report.unused) if ".conv_offset." not in name]
    if wrong or report.misshapen:
        raise CheckpointError(f"{weights}: is no {entry.title}: {report.summary()}", report)


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
    threads = f", {runtime.cpu_threads()} threads" if not framework.on_gpu() else ""
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
