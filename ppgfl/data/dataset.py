"""Which images there are, and what is on them: files of COCO, VOC or YOLO, or a folder of images."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from ..errors import DataError
from ..kinds import Classes, File, Range
from ..system.log import logger
from . import class_names
from .annotations import REASONS, Annotations, Entry, Id, read_annotations, some, twice
from .batch import Sample
from .coco_classes import COCO_CLASSES, NUM_CLASSES
from .image import find_images
from .sources import annotation_files, locate, read_voc, read_yolo

MOST_STRAYS = 0.1  # share of all annotations that may be of images that are not listed


class DetectionDataSet:
    """Images and their boxes, whatever the files; `COCODataSet`, `VOCDataSet` and `YOLODataSet` differ in these alone.

    Args:
        annotations: all that the files list.
        dataset_dir, image_dir: where the images are.
        section and the others: as those of `COCODataSet`.

    Attributes:
        records: one dict per image: im_id, im_file, h, w, and gt_bbox, gt_class, is_crowd (see `ppgfl.data`).
        class_names, category_ids: by class index, in the order in which the files list them.
        annotations: as given.
        files: the paths of the images, in their order.
        anno_path: the file, for messages.

    Raises:
        DataError: a box of an unknown category or too many of unknown images, an image that is missing or lies outside.
    """

    def __init__(self, annotations: Annotations, dataset_dir: File | None, image_dir: File | None, section: str, *,
                 data_fields: Sequence[str], sample_num: int, allow_empty: bool, empty_ratio: float, repeat: int,
                 allow_outside: bool, load_crowd: bool = False) -> None:
        self.section = section
        self.load_crowd = load_crowd
        self.annotations = found = annotations
        self.files = locate(found, dataset_dir, image_dir, section, allow_outside=allow_outside)
        self.anno_path = found.path
        self.class_names = [category["name"] for category in found.categories]
        self.category_ids = [category["id"] for category in found.categories]
        self._check_ids()
        records, empty = self._read_records(sample_num)
        keep = _share_of_empty(empty, len(records), empty_ratio) if allow_empty else []
        self.with_boxes, self.kept_empty, self.dropped_empty = len(records), len(keep), len(empty) - len(keep)
        self.records = (records + keep) * repeat
        if "gt_bbox" not in data_fields:
            for record in self.records:
                for key in ("gt_bbox", "gt_class", "is_crowd"):
                    record.pop(key, None)
        logger.info("%s: %s", self.anno_path, self.summary())
        if found.mendings():
            logger.warning("%s: read as what it means: %s", self.anno_path, found.mendings())
        if not self.records:
            raise DataError(f"{self.anno_path}: no image to use ({self.summary()}); key {section}.anno_path"
                            + (f"; {section}.load_crowd=true takes crowd regions as boxes" if self.rejected["crowd"]
                               else f"; {section}.allow_empty=true keeps images without a box" if empty else ""))

    def is_box(self, one: Entry) -> bool:
        """Whether an object of `annotations` is a box to train on and to be found."""
        return one["reason"] is None or (self.load_crowd and one["reason"] == "crowd")

    def is_to_be_found(self, one: Entry) -> bool:
        """Whether an object of `annotations` counts as missed where it is not found."""
        return self.is_box(one) and not one["difficult"]

    def summary(self) -> str:
        """One line: images with boxes, empty ones, and boxes that were rejected with the reasons."""
        difficult = f", {self.difficult} boxes marked difficult, which need not be found" if self.difficult else ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items() if count)
        return (f"{self.with_boxes} images with boxes, {self.kept_empty} empty ones kept, {self.dropped_empty} empty "
                f"ones left out, boxes rejected: {reasons or 'none'}{difficult}; {len(self.class_names)} classes")

    def _check_ids(self) -> None:
        found = self.annotations
        for key, entries, what in (("images", found.images, "image"), ("categories", found.categories, "category")):
            repeated = twice(entry["id"] for entry in entries)
            if repeated:
                count = sum(str(entry["id"]) == repeated[0] for entry in entries)
                raise DataError(f"{self.anno_path}: {what} id {repeated[0]} stands {count} times in '{key}'; number "
                                f"them anew (`ppgfl data check` lists all); key {self.section}.anno_path")
        if found.unlisted:
            raise DataError(f"{self.anno_path}: {len(found.unlisted)} annotations have a category that "
                            f"{found.listed_in} does not list: {some(found.unlisted)}; allowed: {found.allowed()}; key "
                            f"{self.section}.anno_path")
        lost, total = len(found.strays), len(found.strays) + len(found.objects)
        if lost > MOST_STRAYS * total:
            raise DataError(f"{self.anno_path}: {lost} of {total} annotations have an image that `images` does not "
                            f"list, so their boxes would be lost: {some(found.strays)}; take them out, or number "
                            f"images and annotations alike; key {self.section}.anno_path")

    def _read_records(self, sample_num: int) -> tuple[list[Sample], list[Sample]]:
        count = min(sample_num, len(self.files)) if sample_num > 0 else len(self.files)
        boxes_of: list[list[Entry]] = [[] for _ in range(count)]
        self.rejected = dict.fromkeys((*REASONS, "of an image that is not listed"), 0)
        self.rejected["of an image that is not listed"] = len(self.annotations.strays)
        self.difficult = 0
        for one in self.annotations.objects:
            if one["image"] >= count:
                continue
            if self.is_box(one):
                boxes_of[one["image"]].append(one)
                self.difficult += one["difficult"]
            else:
                self.rejected[one["reason"]] = self.rejected.get(one["reason"], 0) + 1
        records: list[Sample] = []
        empty: list[Sample] = []
        for image, file, boxes in zip(self.annotations.images, self.files, boxes_of):
            record = {"im_id": image["id"], "im_file": file, "h": image["height"], "w": image["width"],
                      **_arrays(boxes)}
            (records if boxes else empty).append(record)
        self._check_images_exist(records + empty)
        return records, empty

    def _check_images_exist(self, records: Sequence[Sample]) -> None:
        missing = [record["im_file"] for record in records if not os.path.isfile(record["im_file"])]
        if missing:
            raise DataError(
                f"{os.path.abspath(missing[0])}: no such image ({len(missing)} of the {len(records)} that "
                f"{self.anno_path} lists are missing); set {self.section}.dataset_dir and "
                f"{self.section}.image_dir, or restore the files")


class COCODataSet(DetectionDataSet):
    """Images and boxes of a COCO annotation file.

    Args:
        dataset_dir: the folder that the two paths below start from.
        image_dir: folder of the images.
        anno_path: annotation file (JSON), or a list of them that are read as one.
        data_fields: PaddleDetection's list of what a sample holds; boxes are left out unless it names `gt_bbox`.
        sample_num: only the first so many images; -1: all.
        load_crowd: crowd regions are boxes like all others, to train on and to be found.
        allow_empty: keep images without a box.
        empty_ratio: with `allow_empty`, at most this share of all images may be empty ones (outside of [0, 1): all).
        repeat: list every image so many times.
        allow_outside: also take images whose `file_name` leads out of the data set's folder.
        section: the section's name, for messages.

    Raises:
        DataError: as `DetectionDataSet`; a missing folder or file, a file that is not COCO, an image outside of the
            data set.
    """

    def __init__(self, dataset_dir: File | None = "", image_dir: File | None = "",
                 anno_path: File | Sequence[File] | None = "", data_fields: Sequence[str] = ("image",),
                 sample_num: Annotated[int, Range(-1)] = -1, load_crowd: bool = False, allow_empty: bool = False,
                 empty_ratio: float = 1.0, repeat: Annotated[int, Range(1, 10_000)] = 1, allow_outside: bool = False,
                 section: str = "EvalDataset") -> None:
        found = read_annotations(annotation_files(dataset_dir, anno_path), section)
        super().__init__(found, dataset_dir, image_dir, section, data_fields=data_fields, sample_num=sample_num,
                         load_crowd=load_crowd, allow_empty=allow_empty, empty_ratio=empty_ratio, repeat=repeat,
                         allow_outside=allow_outside)


class VOCDataSet(DetectionDataSet):
    """Images and boxes of Pascal VOC's XML files, which a text file lists: `image.jpg annotation.xml` in each line.

    The numbers of a box are taken as they are and cut at width - 1 and height - 1, as PaddleDetection does. An object
    marked `difficult` is learnt; it need not be found, and finding it is no mistake.

    Args:
        dataset_dir: the folder that the paths below start from.
        image_dir: folder inside of it that the paths of the list start from.
        anno_path: the list, or several lists that are read as one. If none of its lines names an XML file, the images
            have no annotations: with `allow_empty` they can be detected on.
        label_list: file with one class name per line; null: the 20 classes of VOC.
        data_fields: PaddleDetection's list of what a sample holds; boxes are left out unless it names `gt_bbox`. Which
            are difficult is known without `difficult` too.
        sample_num: only the first so many images; -1: all.
        allow_empty: keep images without a box.
        empty_ratio: with `allow_empty`, at most this share of all images may be empty ones (outside of [0, 1): all).
        repeat: list every image so many times.
        allow_outside: also take images that lie outside of `dataset_dir`.
        section: the section's name, for messages.

    Raises:
        DataError: as `DetectionDataSet`; a list or an XML file that is missing or cannot be read, an image outside of
            the data set.
    """

    def __init__(self, dataset_dir: File | None = "", image_dir: File | None = "",
                 anno_path: File | Sequence[File] | None = "", label_list: File | None = None,
                 data_fields: Sequence[str] = ("image",), sample_num: Annotated[int, Range(-1)] = -1,
                 allow_empty: bool = False, empty_ratio: float = 1.0, repeat: Annotated[int, Range(1, 10_000)] = 1,
                 allow_outside: bool = False, section: str = "EvalDataset") -> None:
        found = read_voc(dataset_dir, image_dir, anno_path, label_list, section)
        super().__init__(found, dataset_dir, image_dir, section, data_fields=data_fields, sample_num=sample_num,
                         allow_empty=allow_empty, empty_ratio=empty_ratio, repeat=repeat, allow_outside=allow_outside)


class YOLODataSet(DetectionDataSet):
    """Images and boxes of YOLO's texts, which a data.yaml of Ultralytics or Roboflow leads to.

    Args:
        dataset_dir: the folder of the data set; by default that of the data.yaml.
        anno_path: the data.yaml, from `dataset_dir`. Its `train` and `val` are folders of images, text files that list
            images, or lists of these; an image's text is looked for in `labels` instead of `images`, or beside it.
        split: which of the data.yaml's images; null: those of `val` for EvalDataset, of `train` otherwise.
        data_fields: PaddleDetection's list of what a sample holds; boxes are left out unless it names `gt_bbox`.
        sample_num: only the first so many images; -1: all.
        allow_empty: keep images without a box.
        empty_ratio: with `allow_empty`, at most this share of all images may be empty ones (outside of [0, 1): all).
        repeat: list every image so many times.
        allow_outside: also take images that lie outside of `dataset_dir`.
        section: the section's name, for messages.

    Raises:
        DataError: as `DetectionDataSet`; a data.yaml, a folder or a list that is missing or cannot be read, an image
            outside of the data set.
    """

    def __init__(self, dataset_dir: File | None = "", anno_path: File | None = "data.yaml",
                 split: Literal["train", "val", "test"] | None = None,
                 data_fields: Sequence[str] = ("image", "gt_bbox", "gt_class"),
                 sample_num: Annotated[int, Range(-1)] = -1, allow_empty: bool = False, empty_ratio: float = 1.0,
                 repeat: Annotated[int, Range(1, 10_000)] = 1, allow_outside: bool = False,
                 section: str = "EvalDataset") -> None:
        found = read_yolo(dataset_dir, anno_path, split, section)
        super().__init__(found, dataset_dir, "", section, data_fields=data_fields, sample_num=sample_num,
                         allow_empty=allow_empty, empty_ratio=empty_ratio, repeat=repeat, allow_outside=allow_outside)


def _arrays(objects: Sequence[Entry]) -> dict[str, np.ndarray]:
    """The boxes of one image as a sample has them."""
    corners = [(x, y, x + width, y + height) for x, y, width, height in (one["bbox"] for one in objects)]
    return {"gt_bbox": np.array([[round(float(n), 3) for n in box] for box in corners], np.float32).reshape(-1, 4),
            "gt_class": np.array([one["category"] for one in objects], np.int64),
            "is_crowd": np.array([one["iscrowd"] for one in objects], np.int64)}


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
        files = [file for path in paths for file in find_images(path)]
        files = files[:sample_num] if sample_num > 0 else files
        self.records: list[Sample] = [{"im_id": index, "im_file": file} for index, file in enumerate(files)]
        self.anno_path = Path(dataset_dir or "", anno_path or "").expanduser()
        self.class_names, self.category_ids = read_class_names(self.anno_path, num_classes, section)

    def classes_of(self, trained: list[str] | None, *, by_place: bool = False) -> tuple[list[str], list[Id]]:
        """Names and category ids in the order of a model that was trained with the classes `trained` (None: unknown).

        Raises: ConfigError: `anno_path` names others. Where there is no such file, the model's names stand.
        """
        if trained and trained != self.class_names and not self.anno_path.is_file():
            return trained, list(range(1, len(trained) + 1))
        places = class_names.order(trained, self.class_names, self.anno_path, by_place=by_place)
        return [self.class_names[place] for place in places], [self.category_ids[place] for place in places]


def read_class_names(path: Path, num_classes: int, section: str) -> tuple[list[str], list[Id]]:
    """Class names and category ids: see `ImageFolder`. Raises DataError when the file lists another number of them."""
    if not path.is_file():
        if num_classes == len(COCO_CLASSES):
            return list(COCO_CLASSES.values()), list(COCO_CLASSES)
        logger.info("no file %s, so the %d classes have no names; set %s.anno_path", path, num_classes, section)
        return class_names.placeholders(num_classes), list(range(1, num_classes + 1))
    if path.suffix == ".json":
        categories = read_annotations(path, section).categories
        names, ids = [category["name"] for category in categories], [category["id"] for category in categories]
    else:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = list(range(1, len(names) + 1))
    if len(names) != num_classes:
        raise DataError(f"{path}: lists {len(names)} classes, but num_classes is {num_classes}; set "
                        f"{section}.anno_path to the file that belongs to the model, or num_classes")
    return names, ids
