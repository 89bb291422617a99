"""Detect on folders of photographs: drawn pictures, and the numbers if asked for."""
from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..build import build_dataset, check
from ..classes import with_weights
from ..config.keys import setting
from ..data.batch import Sample
from ..data.image import SUFFIXES, find_images, write_image
from ..errors import ConfigError, DataError
from ..system import dist
from ..system.atomic_write import with_ending, write_json
from ..system.log import logger
from ..system.progress import progress
from .detections import Detections, coco_records, write_csv
from .detector import Rows, open_detector
from .json_lines import JsonLines
from .runner import ahead
from .slicing import Slicing

RESULT_FILES = {"json": "results.json", "csv": "results.csv", "coco": "bbox.json"}
IMAGE_IDS = "images.json"  # beside bbox.json: which image each image_id is


def infer(cfg: dict[str, Any], images: str | os.PathLike[str] | Sequence[str], *,
          weights: str | os.PathLike[str] | None = None, output_dir: str | os.PathLike[str] = "output",
          draw_threshold: float = 0.5, save_results: str | None = None, save_threshold: float = 0.0,
          slicing: Slicing | None = None, pictures: bool = True, resume: bool = False) -> list[Detections]:
    """Detect on files, save drawn pictures and, if asked, the numbers.

    Args:
        cfg: the dict of `load_config`.
        images: a folder (searched recursively, but for `output_dir`), a file, or a list of them. Results carry the
            names as they are given here; links are not resolved into them.
        weights: a .pdparams file; without it the config's `weights`.
        output_dir: pictures keep their names below it, and their sub-folders where the images come from several; a name
            without the ending of an image gets .png behind it.
        draw_threshold: boxes that score at least this much are drawn.
        save_results: None, or "json", "csv", "coco": `results.json`, `results.csv`, `bbox.json` in `output_dir`, the
            last with `images.json`, which says which image each id is; or "jsonl": shards of one line per
            image, written as they come, for folders that do not fit into memory.
        save_threshold: smallest score of a saved result.
        slicing: a `slicing.Slicing`, to look at images slice by slice.
        pictures: whether to draw any.
        resume: with "jsonl": leave out what an earlier run has done.

    Returns: a list of `Detections`, one per image; with "jsonl" an empty one.
    Raises: ConfigError, DataError, CheckpointError.
    """
    if resume and save_results != "jsonl":
        raise ConfigError("--resume goes with --save_results jsonl, whose shards say what is done")
    for name, value in (("draw_threshold", draw_threshold), ("save_threshold", save_threshold)):
        if not 0 <= value <= 1:
            raise ConfigError(f"--{name}: {value}; it is a score, 0 to 1")
    check(cfg)
    dist.start()
    cfg = with_weights(cfg, weights)
    folder = Path(output_dir)
    dataset = _images_to_look_at(cfg, images, folder)
    files = [record["im_file"] for record in dataset.records]
    paths = _picture_paths(files, folder) if pictures else None
    lines = JsonLines(folder, resume=resume) if save_results == "jsonl" else None
    records = _share(dataset.records, lines)
    detector = open_detector(cfg, weights=weights, slicing=slicing, images=len(records))
    names, category_ids = dataset.classes_of(detector.class_names, by_place=setting(cfg, "match_classes") == "place")
    results = _Results(folder, files, category_ids, draw_threshold, save_threshold, lines)

    def draw(each: tuple[int, Rows]) -> tuple[int, Rows, Detections]:
        index, rows = each
        one = Detections.from_rows(rows, names, path=files[index])
        if paths:
            paths[index].parent.mkdir(parents=True, exist_ok=True)
            write_image(str(paths[index]), one.draw(draw_threshold))
        return index, rows, one

    detected = progress(detector.detect_records(records), total=len(records), what="infer")
    with closing(ahead(draw, detected)) if paths else nullcontext(map(draw, detected)) as done:
        for index, rows, one in done:
            results.add(index, rows, one)
    results.say(pictures)
    if lines:
        lines.close()
    elif save_results:
        _save(save_results, folder, results.found, results.coco, files)
    return results.found


def _images_to_look_at(cfg: dict[str, Any], images: str | os.PathLike[str] | Sequence[str], folder: Path) -> Any:
    """The config's TestDataset of these images, but for those in `folder`. Raises ConfigError, DataError."""
    places = [images] if isinstance(images, (str, os.PathLike)) else images
    files = [file for place in places for file in find_images(place, leave_out=folder)]
    section = {**(cfg.get("TestDataset") or {"name": "ImageFolder"}), "image_dir": files}
    return build_dataset({**cfg, "TestDataset": section}, "TestDataset")


@dataclass
class _Results:
    """What is kept of detections as they come, or written at once where there are `lines`."""

    folder: Path
    files: list[str]
    category_ids: Sequence[Any]
    draw_threshold: float
    save_threshold: float
    lines: JsonLines | None
    found: list[Detections] = field(default_factory=list)
    coco: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    drawn: int = 0
    best: float = 0.0  # score

    def add(self, index: int, rows: Rows, one: Detections) -> None:
        """Those of the image at a place of `files`."""
        self.count += 1
        self.drawn += len(one.above(self.draw_threshold))
        self.best = max(self.best, float(one.scores.max(initial=0)))
        saved = one.above(self.save_threshold)
        if self.lines:  # the folder is for a --resume from elsewhere
            self.lines.write({**saved.to_dict(),
                              **({} if os.path.isabs(self.files[index]) else {"folder": os.getcwd()})})
            return
        self.found.append(saved)
        self.coco += coco_records(rows[rows[:, 1] >= self.save_threshold], index, self.category_ids)

    def say(self, pictures: bool) -> None:
        """Where they are, and why no box was drawn."""
        logger.info("%d %s in %s%s", self.count, "pictures" if pictures else "images", self.folder.resolve(),
                    ", results-*.jsonl beside them" if self.lines and pictures else "")
        if pictures:
            logger.info("%d boxes drawn%s", self.drawn, "" if self.drawn or not self.count else
                        f": the best score is {self.best:.3f}, and --draw_threshold is {self.draw_threshold:g}"
                        if self.best else ": nothing was found")


def _share(records: list[Sample], lines: JsonLines | None) -> list[Sample]:
    """Of the images those that this process has to do: its share of what an earlier run has not done."""
    if lines is None:
        return records
    done = {_place(file) for file in lines.done}
    left = [record for record in records if _place(record["im_file"]) not in done]
    if len(left) < len(records):
        logger.info("%d of %d images were done by an earlier run", len(records) - len(left), len(records))
    return left[dist.rank()::dist.world_size()]


def _save(kind: str, folder: Path, found: Sequence[Detections], coco: list[dict[str, Any]], files: list[str]) -> None:
    path = folder / RESULT_FILES[kind]
    if kind == "csv":
        write_csv(path, found)
    else:
        write_json(path, coco if kind == "coco" else [one.to_dict() for one in found])
    if kind == "coco":
        write_json(folder / IMAGE_IDS, [{"id": index, "file_name": file} for index, file in enumerate(files)])
    logger.info("%d detections in %s", sum(map(len, found)), path.resolve())


def _picture_paths(files: Sequence[str], folder: Path) -> list[Path]:
    """Where each picture goes; raises a DataError rather than write over an image it was made from."""
    pictures = picture_names(files)
    sources = {os.path.realpath(file) for file in files}
    for name in pictures:
        picture = os.path.realpath(folder / name)
        if picture in sources:
            raise DataError(f"{picture}: the drawn picture would replace the image; give another --output_dir")
    return [folder / name for name in pictures]


def picture_names(files: Sequence[str]) -> list[str]:
    """For each image the path of its picture below the output folder: its name, in its sub-folder where the images come
    from several. A name that OpenCV cannot write by its ending, or that another image has taken, gets .png behind it.
    """
    paths = [os.path.abspath(file) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = [os.path.relpath(path, root) for path in paths]
    owners: dict[str, str] = {}
    places = [_place(file) for file in files]
    has_ending = [os.path.splitext(name)[1].lower() in SUFFIXES for name in names]
    for i in sorted(range(len(names)), key=lambda i: not has_ending[i]):  # those that can keep their names come first
        keeps = has_ending[i]
        while not keeps or owners.setdefault(names[i], places[i]) != places[i]:
            parent, name = os.path.split(names[i])
            names[i], keeps = os.path.join(parent, with_ending(name, ".png")), True
    return names


def _place(file: str) -> str:
    """One path of a file, however it is spelled; a link is a file of its own."""
    folder, name = os.path.split(file)
    return os.path.join(os.path.realpath(folder), name)
