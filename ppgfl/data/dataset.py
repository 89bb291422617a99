"""Which images there are, and what is on them: a COCO annotation file, or a folder of images."""
from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..errors import DataError
from ..kinds import Classes, File, Range
from ..system.log import logger
from .batch import Sample
from .coco_classes import COCO_CLASSES, NUM_CLASSES
from .image import SUFFIXES, files_below, is_image


class COCODataSet:
    """Images and boxes of a COCO annotation file.

    Args:
        dataset_dir: the folder that the two paths below start from.
        image_dir: folder of the images.
        anno_path: annotation file (JSON).
        data_fields: PaddleDetection's list of what a sample holds; boxes are left out unless it names `gt_bbox`.
        sample_num: only the first so many images; -1: all.
        load_crowd: keep crowd regions as boxes.
        allow_empty: keep images without a box.
        empty_ratio: with `allow_empty`, at most this share of all images may be empty ones (outside of [0, 1): all).
        repeat: list every image so many times.
        name: the section's name, for messages.

    Attributes:
        records: one dict per image: im_id, im_file, h, w, and gt_bbox, gt_class, is_crowd (see `ppgfl.data`).
        class_names, category_ids: by class index, in the order of the file's `categories`.
        annotations: the annotation file's content, for `evaluate`.

    Raises:
        DataError: a missing folder or file, a file that is not COCO, a box of an unknown category.
    """

    def __init__(self, dataset_dir: File | None = "", image_dir: File | None = "", anno_path: File | None = "",
                 data_fields: Sequence[str] = ("image",), sample_num: Annotated[int, Range(-1)] = -1,
                 load_crowd: bool = False, allow_empty: bool = False, empty_ratio: float = 1.0,
                 repeat: Annotated[int, Range(1, 10_000)] = 1,
                 section: str = "EvalDataset") -> None:
        self.section = section
        self.load_crowd = load_crowd
        self.anno_path = Path(dataset_dir or "", anno_path or "").expanduser()
        self.image_dir = Path(dataset_dir or "", image_dir or "").expanduser()
        self.annotations = read_annotations(self.anno_path, section)
        self._check_ids()
        categories = self.annotations["categories"]
        self.class_names = [str(category["name"]) for category in categories]
        self.category_ids = [category["id"] for category in categories]
        records, empty, self.rejected = self._read_records(sample_num)
        keep = _share_of_empty(empty, len(records), empty_ratio) if allow_empty else []
        self.with_boxes, self.kept_empty, self.dropped_empty = len(records), len(keep), len(empty) - len(keep)
        self.records = (records + keep) * repeat
        if "gt_bbox" not in data_fields:
            for record in self.records:
                for key in ("gt_bbox", "gt_class", "is_crowd"):
                    record.pop(key, None)
        logger.info("%s: %s", self.anno_path, self.summary())
        if not self.records:
            raise DataError(f"{self.anno_path}: no image to use ({self.summary()}); key {section}.anno_path")

    def _check_ids(self) -> None:
        for key, what in (("images", "image"), ("categories", "category")):
            counts = collections.Counter(str(entry["id"]) for entry in self.annotations[key])
            number, count = counts.most_common(1)[0] if counts else ("", 1)
            if count > 1:
                raise DataError(f"{self.anno_path}: {what} id {number} stands {count} times in '{key}'; number them "
                                f"anew (`ppgfl data check` lists all); key {self.section}.anno_path")

    def summary(self) -> str:
        """One line: images with boxes, empty ones, and boxes that were rejected with the reasons."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items() if count)
        return (f"{self.with_boxes} images with boxes, {self.kept_empty} empty ones kept, {self.dropped_empty} empty "
                f"ones left out, boxes rejected: {reasons or 'none'}; {len(self.class_names)} classes")

    def _read_records(self, sample_num: int) -> tuple[list[Sample], list[Sample], dict[str, int]]:
        boxes_of: dict[Any, list[dict[str, Any]]] = {}
        for annotation in self.annotations.get("annotations", []):
            boxes_of.setdefault(annotation.get("image_id"), []).append(annotation)
        class_of = {category: index for index, category in enumerate(self.category_ids)}
        rejected = {"crowd": 0, "without a size": 0, "marked ignore": 0, "without a bbox": 0}
        images = sorted(self.annotations["images"], key=lambda image: image["id"])
        records: list[Sample] = []
        empty: list[Sample] = []
        for image in images[:sample_num] if sample_num > 0 else images:
            record = {"im_id": image["id"], "im_file": str(self.image_dir / image["file_name"]),
                      "h": image.get("height"), "w": image.get("width"),
                      **self._read_boxes(boxes_of.get(image["id"], []), class_of, rejected)}
            (records if len(record["gt_bbox"]) else empty).append(record)
        self._check_images_exist(records + empty)
        return records, empty, rejected

    def _read_boxes(self, annotations: Iterable[Mapping[str, Any]], class_of: Mapping[int, int],
                    rejected: dict[str, int]) -> dict[str, np.ndarray]:
        boxes, classes, crowd = [], [], []
        for annotation in annotations:
            reason = reason_to_reject(annotation, load_crowd=self.load_crowd)
            if reason:
                rejected[reason] += 1
                continue
            if annotation.get("category_id") not in class_of:
                raise DataError(f"{self.anno_path}: annotation {annotation.get('id')} has category_id "
                                f"{annotation.get('category_id')!r}, which `categories` does not list; "
                                f"allowed: {list(class_of)[:100]}")
            x, y, width, height = (float(n) for n in annotation["bbox"])
            boxes.append([round(n, 3) for n in (x, y, x + width, y + height)])
            classes.append(class_of[annotation["category_id"]])
            crowd.append(int(annotation.get("iscrowd", 0)))
        return {"gt_bbox": np.array(boxes, np.float32).reshape(-1, 4), "gt_class": np.array(classes, np.int64),
                "is_crowd": np.array(crowd, np.int64)}

    def _check_images_exist(self, records: Sequence[Sample]) -> None:
        missing = [record["im_file"] for record in records if not os.path.isfile(record["im_file"])]
        if missing:
            raise DataError(
                f"{os.path.abspath(missing[0])}: no such image ({len(missing)} of the {len(records)} that "
                f"{self.anno_path} lists are missing); set {self.section}.dataset_dir and "
                f"{self.section}.image_dir, or restore the files")


def reason_to_reject(annotation: Mapping[str, Any], *, load_crowd: bool = False) -> str | None:
    """Why a COCO annotation is no box to train on, in a few words, or None."""
    if annotation.get("iscrowd") and not load_crowd:
        return "crowd"
    if annotation.get("ignore"):
        return "marked ignore"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return "without a bbox"
    numbers = all(isinstance(n, (int, float)) and np.isfinite(n) for n in box)
    if not numbers or box[2] <= 1e-5 or box[3] <= 1e-5 or annotation.get("area", 1) <= 0:
        return "without a size"
    return None


def read_annotations(path: Path, section: str) -> dict[str, Any]:
    """The content of a COCO annotation file, checked for its three lists. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path.absolute()}: no such annotation file; set {section}.dataset_dir to the folder of the "
                        f"data set and {section}.anno_path to the file inside it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}; key {section}.anno_path") from error
    for key, entry_keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(
                isinstance(e, dict) and all(k in e for k in entry_keys) for e in entries):
            raise DataError(f"{path}: not a COCO annotation file: it needs a list '{key}' whose entries have "
                            f"{' and '.join(entry_keys)}; key {section}.anno_path")
    strange = next((image["id"] for image in content["images"] if not isinstance(image["id"], int)), None)
    if strange is not None:
        raise DataError(f"{path}: image id {strange!r} is not a whole number; number the images; "
                        f"key {section}.anno_path")
    nameless = next((image["id"] for image in content["images"] if not isinstance(image["file_name"], str)), None)
    if nameless is not None:
        raise DataError(f"{path}: the file_name of image {nameless} is not text; key {section}.anno_path")
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise DataError(f"{path}: not a COCO annotation file: 'annotations' must be a list of "
                        f"objects; key {section}.anno_path")
    return content


def _share_of_empty(empty: list[Sample], others: int, ratio: float) -> list[Sample]:
    if not 0 <= ratio < 1:
        return empty
    count = min(len(empty), int(others * ratio / (1 - ratio)))
    chosen = np.random.default_rng(0).choice(len(empty), count, replace=False)
    return [empty[i] for i in sorted(chosen)]


class ImageFolder:
    """Images without annotations: a folder (searched recursively), a list, or one file.

    Args:
        dataset_dir, anno_path: where the class names are: a COCO file, or a text file with one name per line.
        num_classes: C. When there is no such file, 80 classes get COCO's names, others are called "class 0", ...
        image_dir: the folder, the file, or the list of them.
        sample_num: only the first so many; -1: all.

    Attributes:
        records: one dict per image: im_id (place in the list), im_file.
        class_names, category_ids: by class index.

    Raises:
        DataError: a path that does not exist, a folder without images.
    """

    def __init__(self, dataset_dir: File | None = "", anno_path: File | None = "",
                 image_dir: File | Sequence[File] | None = (), sample_num: Annotated[int, Range(-1)] = -1,
                 num_classes: Classes = NUM_CLASSES, section: str = "TestDataset") -> None:
        paths = [image_dir] if isinstance(image_dir, (str, os.PathLike)) else list(image_dir or ())
        files = [file for path in paths for file in _images_at(Path(path).expanduser())]
        files = files[:sample_num] if sample_num > 0 else files
        self.records: list[Sample] = [{"im_id": index, "im_file": str(file)} for index, file in enumerate(files)]
        self.class_names, self.category_ids = read_class_names(
            Path(dataset_dir or "", anno_path or "").expanduser(), num_classes, section)


def _images_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path.absolute()}: no such image or folder")
    files = [file for file in files_below(path) if is_image(file) and file.is_file()]
    if not files:
        raise DataError(f"{path.absolute()}: the folder holds no image; looked for {', '.join(SUFFIXES)}")
    return files


def read_class_names(path: Path, num_classes: int, section: str) -> tuple[list[str], list[int]]:
    """Class names and category ids: see `ImageFolder`. Raises DataError when the file lists another number of them."""
    if not path.is_file():
        if num_classes == len(COCO_CLASSES):
            return list(COCO_CLASSES.values()), list(COCO_CLASSES)
        logger.info("no file %s, so the %d classes have no names; set %s.anno_path", path, num_classes, section)
        return [f"class {i}" for i in range(num_classes)], list(range(1, num_classes + 1))
    if path.suffix == ".json":
        categories = read_annotations(path, section)["categories"]
        names, ids = [str(c["name"]) for c in categories], [c["id"] for c in categories]
    else:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = list(range(1, len(names) + 1))
    if len(names) != num_classes:
        raise DataError(f"{path}: lists {len(names)} classes, but num_classes is {num_classes}; set "
                        f"{section}.anno_path to the file that belongs to the model, or num_classes")
    return names, ids
