"""Pascal VOC, YOLO and labelme annotations -> COCO JSON, with a count of what could not be used."""
from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..system import runtime
from ..system.atomic_write import write_json
from ..system.log import logger
from ..system.progress import progress
from .image import files_below
from .labelled import (
    UNLISTED,
    Found,
    Labelled,
    Object,
    Rejected,
    Report,
    absolute,
    box_inside,
    is_text,
    place_of,
    read_class_list,
    read_objects,
)
from .labelme import find_labelme
from .splits import divide, folder_splits, listed, parse_split, report_on_splits
from .voc import find_voc
from .yolo import find_yolo

KINDS = ("voc", "yolo", "labelme")
SECTIONS = {"val": "EvalDataset", "test": "TestDataset"}  # of a config; else TrainDataset

Content = dict[str, Any]  # of a COCO file


def convert(kind: str, source: str | PathLike[str], output: str | PathLike[str], *,
            classes: str | PathLike[str] | None = None) -> tuple[Content, dict[str, list[str]]]:
    """Write one COCO annotation file of a whole data set.

    Args:
        kind: one of `KINDS`.
        source: the folder of the data set, or for "yolo" its data.yaml: see `find_voc`, `find_yolo`, `find_labelme`.
            Links to folders are followed; names with a dot at the front are left out.
        output: the JSON file. `file_name` in it is relative to `source`, or to the folder of the images where these lie
            outside of it; a line says which.
        classes: a text file with one name per line; their order is that of the categories. None: the data set's own
            (yolo), or the names that occur, sorted.

    Returns: (the content, {reason: [example, ...]} of what was left out). It is not written when it has no image.
    Raises: DataError: no such folder, nothing in it, an output that exists.
    """
    output = absolute(output)
    _refuse_to_overwrite([output])
    report = Report()
    folder, found = _find(kind, source, classes, report)
    own = sorted(found.splits or folder_splits(found.images, folder))
    if own:
        report.notes[f"data set that divides its images into {', '.join(own)}: a folder as OUTPUT gets a file of each"
                     ].append(str(folder))
    samples, names = _read(found, kind, folder, report)
    contents = _write({"": samples}, {"": output}, folder, names, report)
    return contents[""], dict(report.rejected)


def convert_splits(kind: str, source: str | PathLike[str], folder: str | PathLike[str], *,
                   classes: str | PathLike[str] | None = None,
                   split: Sequence[str] = ()) -> tuple[dict[str, Content], dict[str, list[str]]]:
    """Write instances_train.json, instances_val.json, ... into a folder; see `convert`.

    Args:
        split: one number: that share of the images for training and the others for validation, every class divided
            alike, the same ones each time. Or text files, train.txt and val.txt, that list images. Empty: as the data
            set says: by data.yaml, by lists (ImageSets/Main/train.txt), or by folders called train and val.

    Returns: ({"train": content, ...}, {reason: [example, ...]} of what was left out).
    Raises: DataError: as `convert`; also when nothing says how to divide the images.
    """
    outputs = absolute(folder)
    if outputs.exists() and not outputs.is_dir():
        raise DataError(f"{outputs}: is a file; give the name of a folder, or of a .json file for all images together")
    share, lists = parse_split(split)
    report = Report()
    source, found = _find(kind, source, classes, report)
    splits = lists or found.splits or folder_splits(found.images, source)
    if not splits and share is None:
        raise DataError(f"{source}: nothing says which images are for training; give --split 0.8, or lists as --split "
                        f"train.txt --split val.txt, or a .json file as OUTPUT for all images together")
    files = {name: outputs / f"instances_{name}.json" for name in sorted(splits if share is None else ("train", "val"))}
    _refuse_to_overwrite(files.values())
    samples, names = _read(found, kind, source, report)
    if share is None:
        parts = {name: listed(splits[name], samples, source, report) for name in files}
    else:
        parts = divide(samples, share, source)
    report_on_splits(parts, samples, report)
    return _write(parts, files, source, names, report), dict(report.rejected)


def convert_for_training(kind: str, source: str | PathLike[str], folder: Path, share: float,
                         leave_out: Path | None) -> tuple[dict[str, Path], Path]:
    """Write instances_train.json and instances_val.json into a folder, over those of an earlier call.

    Args:
        kind, source: as of `convert`.
        share: of the images for training, where the data set has none for validation: of those for training if it says
            which, else of all.
        leave_out: a folder that is not looked into.

    Returns: ({"train": file, "val": file}, the folder that `file_name` in them starts from).
    Raises: DataError: as `convert`.
    """
    report = Report()
    source, found = _find(kind, source, None, report, leave_out)
    splits = found.splits or folder_splits(found.images, source)
    samples, names = _read(found, kind, source, report)
    parts = {name: listed(paths, samples, source, report) for name, paths in splits.items()}
    train = parts.get("train") or parts.get("trainval") or samples
    parts = {"train": train, "val": parts["val"]} if parts.get("val") else divide(train, share, source)
    files = {name: folder / f"instances_{name}.json" for name in parts}
    _write(parts, files, source, names, report, with_keys=False)
    return files, _root(parts, source)


# --- reading


def _find(kind: str, source: str | PathLike[str], classes: str | PathLike[str] | None, report: Report,
          leave_out: Path | None = None) -> tuple[Path, Found]:
    """The data set's folder, and its files."""
    folder, yaml_file = absolute(source), None
    if kind == "yolo" and folder.is_file() and folder.suffix.lower() in (".yaml", ".yml"):
        folder, yaml_file = folder.parent, folder
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = read_class_list(absolute(classes)) if classes else None
    hidden: list[Path] = []
    files = files_below(folder, hidden, leave_out)
    if kind == "yolo":
        found = find_yolo(folder, files, yaml_file, names)
    else:
        found = {"voc": find_voc, "labelme": find_labelme}[kind](folder, files)._replace(names=names)
    for text, path in [*found.notes, *(("name with a dot at the front, which was not read", path) for path in hidden)]:
        report.notes[text].append(str(path))
    if not found.items:
        raise _nothing(folder, kind, report)
    return folder, found


def _nothing(folder: Path, kind: str, report: Report) -> DataError:
    besides = "".join(f"; {note}" for note in report.notes)
    return DataError(f"{folder}: holds nothing that looks like {kind}{besides}; see ppgfl data convert --help")


def _read(found: Found, kind: str, folder: Path, report: Report) -> tuple[list[Labelled], list[str]]:
    """All images with their objects, whose boxes lie inside, and the class names."""
    def work(item: Path) -> Labelled | str | None:
        try:
            return found.read(item)
        except OSError as error:
            return f"{item}: {error.filename}: {error.strerror}"
        except (Rejected, DataError) as error:
            return str(error) if str(error).startswith(str(item)) else f"{item}: {error}"

    samples: dict[tuple[str, str], Labelled] = {}
    with ThreadPoolExecutor(runtime.physical_cores()) as pool:
        for item, sample in zip(found.items, progress(pool.map(work, found.items), total=len(found.items),
                                                      what="convert")):
            if sample is None:
                report.notes[f"file that is not {kind}'s and was not read"].append(str(item))
            elif isinstance(sample, str):
                report.rejected["file that cannot be used"].append(sample)
            elif not is_text(str(sample.image)):
                report.rejected["image whose name is not UTF-8"].append(str(sample.image))
            else:
                place = place_of(sample.image)
                samples[place] = _join(samples[place], sample, report) if place in samples else sample
    if not samples and not report.rejected:
        raise _nothing(folder, kind, report)
    stems = {item.stem for item in found.items}
    for image in found.images:
        if place_of(image) not in samples and image.stem not in stems:
            report.rejected["image without an annotation file"].append(str(image))
    names = found.names
    if names is None:
        names = sorted({one.name for sample in samples.values() for one in sample.objects if is_text(one.name)})
    checked = [_checked(sample, set(names), report) for sample in samples.values()]
    return sorted(checked, key=lambda sample: sample.image), list(names)


def _join(first: Labelled, second: Labelled, report: Report) -> Labelled:
    """Two annotation files about one image: the objects of both, those that are the same once."""
    report.notes["file about an image that has another one: their objects are put together"].append(str(second.file))
    new = [one for one in second.objects if one not in first.objects]
    return first._replace(objects=first.objects + new, rejected=first.rejected + second.rejected,
                          notes=first.notes + second.notes)


def _checked(sample: Labelled, names: set[str], report: Report) -> Labelled:
    """The same with boxes x y width height inside the image; the other objects go to the report."""
    def check(one: Object) -> Object:
        if one.name not in names:
            raise Rejected(f"{UNLISTED} ({one.name})")
        return Object(one.name, box_inside(one.box, sample.size))

    objects, rejected = read_objects(check, sample.objects)
    for reason in sample.rejected + rejected:
        report.rejected[reason].append(str(sample.file))
    for note in sample.notes:
        report.notes[note].append(str(sample.file))
    return sample._replace(objects=objects)


# --- writing


def _refuse_to_overwrite(paths: Iterable[Path]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise DataError(f"{path}: is there already and is not written over; remove it, or give another name")


def _write(parts: Mapping[str, Sequence[Labelled]], files: Mapping[str, Path], source: Path, names: Sequence[str],
           report: Report, *, with_keys: bool = True) -> dict[str, Content]:
    """Write the files, and say what is in them and what is not; with_keys: also the keys of a config that uses them.
    """
    root = _root(parts, source)
    contents = {name: _coco(part, root, names) for name, part in parts.items()}
    for name, content in contents.items():
        if content["images"]:
            write_json(files[name], content)
            _summarize(content, files[name])
        if content["images"] and with_keys:
            keys = {"dataset_dir": str(root), "image_dir": ".", "anno_path": str(files[name])}
            listed = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items())
            logger.info("in a config: %s: {%s}", SECTIONS.get(name, "TrainDataset"), listed)
    if with_keys:
        logger.info("in a config: num_classes: %d", len(names))
    for note, examples in report.notes.items():
        logger.info("note: %d x %s: %s", len(examples), note, _some(examples))
    for reason, examples in report.rejected.items():
        logger.warning("left out: %d x %s: %s", len(examples), reason, _some(examples))
    for name, content in contents.items():
        if not content["images"]:
            logger.warning("%s: not written, since there is no image for it", files[name])
        elif not content["annotations"]:
            logger.warning("%s: none of its images has a box", files[name])
    return contents


def _root(parts: Mapping[str, Sequence[Labelled]], source: Path) -> Path:
    """The folder of the data set, or that of the images where these lie outside of it."""
    images = [sample.image for part in parts.values() for sample in part]
    inside = all(source in image.parents for image in images)
    return source if inside else Path(os.path.commonpath([image.parent for image in images]))


def _coco(samples: Sequence[Labelled], root: Path, names: Sequence[str]) -> Content:
    category_of = {name: i for i, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, sample in enumerate(samples, start=1):
        height, width = sample.size
        images.append({"id": image_id, "file_name": sample.image.relative_to(root).as_posix(), "height": height,
                       "width": width})
        for name, box in sample.objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category_of[name],
                                "bbox": [round(n, 3) for n in box], "area": round(box[2] * box[3], 3), "iscrowd": 0})
    return {"images": images, "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in category_of.items()]}


def _summarize(content: Content, output: Path) -> None:
    counts = Counter(a["category_id"] for a in content["annotations"])
    with_boxes = len({a["image_id"] for a in content["annotations"]})
    logger.info("%s: %d images, %d of them without a box, %d boxes", output, len(content["images"]),
                len(content["images"]) - with_boxes, len(content["annotations"]))
    for category in content["categories"]:
        logger.info("  %6d  %s", counts[category["id"]], category["name"])


def _some(examples: Sequence[str]) -> str:
    return ", ".join(examples[:3]) + (", ..." if len(examples) > 3 else "")
