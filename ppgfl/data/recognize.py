"""A data set as people have it, COCO, YOLO, VOC or labelme, divided or not -> the sections of a config."""
from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..system.atomic_write import write_json
from ..system.log import logger
from .annotations import Annotations, read_annotations, some
from .convert import convert_for_training
from .image import files_below, is_image
from .labelled import absolute, split_named
from .splits import held_out

TRAIN_SHARE = 0.8  # of the images, where nothing says which are for training
PEEK = 1 << 20  # bytes at either end of a file that tell COCO from labelme
COCO_KEYS = re.compile(rb'"(images|categories)"\s*:\s*\[')
LOOKED_AT = 20  # images that say where all are
Sections = dict[str, dict[str, Any]]


def sections_of(source: str | os.PathLike[str], output: Path, share: float = TRAIN_SHARE, *,
                leave_out: Path | None = None) -> Sections:
    """The sections TrainDataset and EvalDataset of a config for a data set.

    Args:
        source: a folder, a data.yaml of YOLO, or an annotation file of COCO.
        output: the folder for annotation files that have to be written, of other formats than COCO and of a data set
            that is not divided yet; over those of an earlier call.
        share: of the images for training, where the data set has none for validation; each class is divided alike, the
            same way each time.
        leave_out: a folder that is not looked into, where runs leave pictures and annotations of their own.

    Raises: DataError: nothing there that looks like a data set, or one that cannot be read.
    """
    path = absolute(source)
    if not path.exists():
        raise DataError(f"--data {path}: no such file or folder; give the folder of a data set, a data.yaml, or a COCO "
                        "annotation file")
    files = files_below(path, leave_out=leave_out) if path.is_dir() else [path]
    coco = _by_split([file for file in files if _is_coco(file)], path)
    if not coco:
        kind = _kind_of(path, files)
        logger.info("--data %s: %s; its boxes are converted to COCO, in %s", path, kind, output)
        converted, root = convert_for_training(kind, path, output, share, leave_out)
        return _sections({split: (file, root) for split, file in converted.items()})
    logger.info("--data %s: COCO, %s", path, " and ".join(str(file) for file in coco.values()))
    found = {split: read_annotations(file, f"--data {path}") for split, file in coco.items()}
    folders = {split: _image_folder(annotations, path) for split, annotations in found.items()}
    if "val" not in coco:
        coco = _divide(found["train"], output, share)
        folders["val"] = folders["train"]
    return _sections({split: (file, folders[split]) for split, file in coco.items()})


def _sections(parts: Mapping[str, tuple[Path, Path]]) -> Sections:
    """Of (annotation file, folder of the images) of "train" and "val"."""
    fields = ["image", "gt_bbox", "gt_class", "is_crowd"]
    return {section: {"name": "COCODataSet", "dataset_dir": str(parts[split][1]), "image_dir": "",
                      "anno_path": str(parts[split][0]), "data_fields": fields, "allow_empty": True}
            for section, split in (("TrainDataset", "train"), ("EvalDataset", "val"))}


# --- COCO


def _is_coco(file: Path) -> bool:
    """Whether a file lists images and categories, by its first and last bytes: it may have gigabytes."""
    if file.suffix.lower() != ".json":
        return False
    with open(file, "rb") as opened:
        head = opened.read(PEEK)
        opened.seek(max(0, os.path.getsize(file) - PEEK))
        return bool(COCO_KEYS.search(head) or COCO_KEYS.search(opened.read()))


def _by_split(files: list[Path], source: Path) -> dict[str, Path]:
    """The annotation files for "train" and "val", by their names or those of their folders; one file alone is for
    both. Raises DataError where it could be several."""
    if len(files) == 1:
        return {"train": files[0]}
    named: dict[str, list[Path]] = {}
    for file in files:
        words = [*re.findall("[a-z]+", file.stem.lower()), file.parent.name]
        split = next(filter(None, map(split_named, words)), None)
        if split is not None:
            named.setdefault(split, []).append(file)
    if files and "train" not in named:
        raise DataError(f"--data {source}: holds several COCO files, none of them called train: {some(files)}; give "
                        "one of them")
    chosen = {}
    for split in {"train", "val"} & set(named):
        # COCO's own folder has captions_ and person_keypoints_ beside them.
        instances = [file for file in named[split] if "instances" in file.stem] or named[split]
        if len(instances) > 1:
            raise DataError(f"--data {source}: several COCO files are for {split}: {some(instances)}; give one of "
                            "them, or write a config whose anno_path lists them")
        chosen[split] = instances[0]
    return chosen


def _image_folder(annotations: Annotations, source: Path) -> Path:
    """The folder that the file names of annotations start from. Raises DataError."""
    names = [image["file_name"].replace("\\", "/") for image in annotations.images[:LOOKED_AT]]
    there = {folder: sum((folder / name).is_file() for name in names) for folder in _places(annotations.path, source)}
    best = max(there, key=lambda folder: there[folder])  # some may be missing, which `data check` lists
    if there[best]:
        return best
    raise DataError(f"{annotations.path}: its images, as {names[0] if names else 'none'}, are in none of "
                    f"{some(there)}; give --data a folder that holds both, or write a config with dataset_dir and "
                    "image_dir")


def _places(file: Path, source: Path) -> Iterator[Path]:
    """Folders in which the images of an annotation file may lie, the likeliest first."""
    above = [file.parent, file.parent.parent] + ([source] if source.is_dir() else [])
    yield from above
    stem = file.stem.rpartition("_")[2]  # instances_train2017
    for folder in above:
        yield from (folder / name for name in (stem, "images", f"images/{stem}"))
    for folder in above[1:] if file.parent.parent != file.parent else []:
        yield from sorted({path.parent for path in files_below(folder) if is_image(path)})


def _divide(annotations: Annotations, output: Path, share: float) -> dict[str, Path]:
    """Write the file's content in two."""
    if len(annotations.images) < 2:
        raise DataError(f"{annotations.path}: lists {len(annotations.images)} image, which cannot be divided into some "
                        "for training and some for validation; add images")
    classes: list[set[str]] = [set() for _ in annotations.images]
    for one in annotations.objects:
        classes[one["image"]].add(annotations.categories[one["category"]]["name"])
    val = held_out(classes, share)
    content = json.loads(annotations.path.read_bytes())
    place = annotations.image_places()
    files = {}
    for split, is_in in (("train", lambda at: at not in val), ("val", lambda at: at in val)):
        files[split] = output / f"instances_{split}.json"
        write_json(files[split], {
            **content, "images": [image for image in content["images"] if is_in(place(image["id"]))],
            "annotations": [one for one in content.get("annotations") or [] if is_in(place(one.get("image_id")))]})
    logger.info("%d images for training, %d for validation, of every class as many: %s", len(classes) - len(val),
                len(val), ", ".join(map(str, files.values())))
    return files


# --- others


def _kind_of(source: Path, files: list[Path]) -> str:
    """"yolo", "voc" or "labelme", by the files that are there. Raises DataError."""
    suffixes = {file.suffix.lower() for file in files}
    if source.is_file():
        if suffixes & {".yaml", ".yml"}:
            return "yolo"
        raise DataError(f"--data {source}: is neither a data.yaml nor a COCO annotation file; give one of these, or a "
                        "folder")
    if ".xml" in suffixes:
        return "voc"
    if suffixes & {".yaml", ".yml"} or any("labels" in file.parts for file in files):
        return "yolo"
    if ".json" in suffixes:
        return "labelme"
    if ".txt" in suffixes:
        return "yolo"
    images = sum(map(is_image, files))
    raise DataError(f"--data {source}: no annotations beside {images} images; ppgfl reads COCO (.json), YOLO (.txt), "
                    "VOC (.xml) and labelme (.json)")
