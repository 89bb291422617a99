"""Detect on folders of photographs: drawn pictures, and the numbers if asked for."""
from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..build import build_dataset, check
from ..classes import with_weights
from ..data.batch import Sample
from ..data.image import write_image
from ..errors import ConfigError, DataError
from ..system import dist
from ..system.atomic_write import write_json
from ..system.log import logger
from ..system.progress import progress
from .detections import Detections, coco_records, write_csv
from .detector import open_detector
from .json_lines import JsonLines
from .slicing import Slicing

RESULT_FILES = {"json": "results.json", "csv": "results.csv", "coco": "bbox.json"}


def infer(cfg: dict[str, Any], images: str | os.PathLike[str] | Sequence[str], *,
          weights: str | os.PathLike[str] | None = None, output_dir: str | os.PathLike[str] = "output",
          draw_threshold: float = 0.5, save_results: str | None = None, save_threshold: float = 0.0,
          slicing: Slicing | None = None, pictures: bool = True, resume: bool = False) -> list[Detections]:
    """Detect on files, save drawn pictures and, if asked, the numbers.

    Args:
        cfg: the dict of `load_config`.
        images: a folder (searched recursively), a file, or a list of them.
        weights: a .pdparams file; without it the config's `weights`.
        output_dir: pictures keep their names below it, and their sub-folders where the images come from several.
        draw_threshold: boxes that score at least this much are drawn.
        save_results: None, or "json", "csv", "coco": `results.json`, `results.csv`, `bbox.json` in `output_dir`; or
            "jsonl": shards of one line per image, written as they come, for folders that do not fit into memory.
        save_threshold: smallest score of a saved result.
        slicing: a `slicing.Slicing`, to look at images slice by slice.
        pictures: whether to draw any.
        resume: with "jsonl": leave out what an earlier run has done.

    Returns: a list of `Detections`, one per image; with "jsonl" an empty one.
    Raises: ConfigError, DataError, CheckpointError.
    """
    if resume and save_results != "jsonl":
        raise ConfigError("--resume goes with --save_results jsonl, whose shards say what is done")
    check(cfg)
    dist.start()
    cfg = with_weights(cfg, weights)
    cfg = {**cfg, "TestDataset": {**(cfg.get("TestDataset") or {"name": "ImageFolder"}), "image_dir": images}}
    dataset = build_dataset(cfg, "TestDataset")
    files = [record["im_file"] for record in dataset.records]
    folder = Path(output_dir)
    paths = _picture_paths(files, folder) if pictures else None
    lines = JsonLines(folder, resume=resume) if save_results == "jsonl" else None
    records = _share(dataset.records, lines)
    detector = open_detector(cfg, weights=weights, slicing=slicing, images=len(records))
    names, category_ids = dataset.classes_of(detector.class_names)
    found: list[Detections] = []
    coco: list[dict[str, Any]] = []
    count = 0
    for index, rows in progress(detector.detect_records(records), total=len(records), what="infer"):
        count += 1
        one = Detections.from_rows(rows, names, path=files[index])
        if paths:
            paths[index].parent.mkdir(parents=True, exist_ok=True)
            write_image(str(paths[index]), one.draw(draw_threshold))
        if lines:
            lines.write(one.above(save_threshold).to_dict())
            continue
        found.append(one.above(save_threshold))
        coco += coco_records(rows[rows[:, 1] >= save_threshold], index, category_ids)
    what = f"{count} {'pictures' if pictures else 'images'}"
    logger.info("%s in %s%s", what, folder.resolve(), ", results-*.jsonl beside them" if lines and pictures else "")
    if lines:
        lines.close()
    elif save_results:
        _save(save_results, folder, found, coco)
    return found


def _share(records: list[Sample], lines: JsonLines | None) -> list[Sample]:
    """Of the images those that this process has to do: its share of what an earlier run has not done."""
    if lines is None:
        return records
    left = [record for record in records if record["im_file"] not in lines.done]
    if len(left) < len(records):
        logger.info("%d of %d images were done by an earlier run", len(records) - len(left), len(records))
    return left[dist.rank()::dist.world_size()]


def _save(kind: str, folder: Path, found: Sequence[Detections], coco: list[dict[str, Any]]) -> None:
    path = folder / RESULT_FILES[kind]
    if kind == "csv":
        write_csv(path, found)
    else:
        write_json(path, coco if kind == "coco" else [one.to_dict() for one in found])
    logger.info("%d detections in %s", sum(map(len, found)), path.resolve())


def _picture_paths(files: Iterable[str], folder: Path) -> list[Path]:
    """Where each picture goes; raises a DataError rather than write over an image it was made from."""
    absolute = [Path(file).resolve() for file in files]
    root = os.path.commonpath([path.parent for path in absolute])
    pictures = [folder / path.relative_to(root) for path in absolute]
    sources = set(absolute)
    for picture in pictures:
        if picture.resolve() in sources:
            raise DataError(f"{picture.resolve()}: the drawn picture would replace the image; "
                            "give another --output_dir")
    return pictures
