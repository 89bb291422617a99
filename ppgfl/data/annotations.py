"""COCO annotation files as exporters write them -> one form, in which a number is a number and a box a box.

Training, evaluation and `data check` all use that form, so that they agree on what counts; `sources` makes it of VOC's
and YOLO's files.
"""
from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from ..errors import DataError

Id = Union[int, str]
Entry = dict[str, Any]
Files = Union[str, os.PathLike[str], Sequence[Union[str, os.PathLike[str]]]]

LISTED = 5  # examples in a message
LEAST_SIDE = 1e-5  # pixels; PaddleDetection's
LARGEST = 1e9  # a coordinate above it is no pixel
REASONS = ("crowd", "marked ignore", "without a bbox", "without a size")  # why an object is no box
SAME_NAME = "categories of one name, told apart by their ids"
WORDS = {"": 0, "false": 0, "no": 0, "true": 1, "yes": 1}  # for a flag


@dataclass(frozen=True)
class Annotations:
    """What annotation files list.

    Attributes:
        path: of the first file, for messages.
        images: `id`, `file_name`, `width` and `height` in pixels or None; in the order of ids.
        categories: `id`, `name`; a name that stands twice has its id behind it.
        objects: of listed images and categories: `id`, `image` and `category` (places in the lists above), `bbox`
            [x, y, width, height] and `area` in pixels, `iscrowd` and `difficult` (0 or 1; what is difficult is learnt,
            but need not be found), and `reason`: why it is no box, one of `REASONS` or another, or None. Where it is
            "without" something there is no `area`.
        strays: the annotations whose image is not listed, in words.
        unlisted: those whose category is not listed, in words.
        mended: {what was read as what it means: how often}.
        listed_in: what lists the categories, for messages.
        folder: where the file names start when the config has no `dataset_dir`.
    """

    path: Path
    images: list[Entry]
    categories: list[Entry]
    objects: list[Entry]
    strays: list[str]
    unlisted: list[str]
    mended: Counter[str]
    listed_in: str = "`categories`"
    folder: Path | None = None

    def image_places(self) -> Places:
        return Places(image["id"] for image in self.images)

    def category_places(self) -> Places:
        return Places(category["id"] for category in self.categories)

    def allowed(self) -> list[Id]:
        """What an annotation may name as its category: COCO's the ids of a few, others the names."""
        key = "id" if self.listed_in == "`categories`" else "name"
        return [category[key] for category in self.categories[:100]]

    def mendings(self) -> str:
        """One line of what was read as what it means, or nothing."""
        return ", ".join(f"{count} {what}" for what, count in self.mended.items() if count)


class Places:
    """Where ids stand in a list. An id is found by what it means: 7, 7.0 and "7" are one, unless the ids are texts
    that numbers cannot tell apart, as "007" beside "7"."""

    def __init__(self, ids: Iterable[Id]) -> None:
        ids = list(ids)
        numbers = {whole(value) for value in ids}
        self._as_numbers = None not in numbers and len(numbers) == len(set(map(str, ids)))
        self._place_of: dict[Any, int] = {}
        for place, value in enumerate(ids):
            self._place_of.setdefault(self._key(value), place)

    def __call__(self, value: Any) -> int | None:
        """The place of an id, or None."""
        return self._place_of.get(self._key(value))

    def _key(self, value: Any) -> Any:
        if self._as_numbers:
            return whole(value)
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def some(values: Iterable[Any]) -> str:
    """The first few of them, for a message."""
    words = [str(value) for value, _ in zip(values, range(LISTED + 1))]
    return ", ".join([*words[:LISTED], "..."][:len(words)]) or "nothing"


def twice(ids: Iterable[Id]) -> list[str]:
    """The ids that stand more than once in a list, as text."""
    return [value for value, count in Counter(map(str, ids)).items() if count > 1]


def number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for all else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


def whole(value: Any) -> int | None:
    """A whole number of any size, also one that is written as text or as 7.0; None for all else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def fits_int64(value: Id) -> bool:
    """Whether an id is a number that numpy and Paddle can hold."""
    return isinstance(value, int) and -2**63 <= value < 2**63


def read_annotations(files: Files, section: str) -> Annotations:
    """Read a COCO annotation file, or several as one.

    Of several files, each lists the same categories; image ids that two files share are numbered anew.

    Args:
        section: of the config, for messages.

    Raises: DataError: a file that is absent or is not COCO, or one with an id or a name that is none.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise DataError(f"{section}.anno_path: an empty list; name at least one annotation file")
    parts = [_Reading(path, f"key {section}.anno_path").annotations(section) for path in paths]
    return parts[0] if len(parts) == 1 else _join(parts, section)


def _join(parts: Sequence[Annotations], section: str) -> Annotations:
    first = parts[0]
    images: list[Entry] = []
    objects: list[Entry] = []
    places = first.category_places()
    for part in parts:
        order = [places(category["id"]) for category in part.categories]
        same = None not in order and [first.categories[place or 0]["name"] for place in order] == [
            category["name"] for category in part.categories]
        if not same or len(order) != len(first.categories):
            raise DataError(f"{part.path}: lists other categories than {first.path}, or other ids for them; the files "
                            f"of one data set need the same; key {section}.anno_path")
        objects += [{**one, "image": one["image"] + len(images), "category": order[one["category"]]}
                    for one in part.objects]
        images += part.images
    mended = sum((part.mended for part in parts), Counter[str]())
    if twice(image["id"] for image in images) and not any(twice(i["id"] for i in part.images) for part in parts):
        images = [{**image, "id": index} for index, image in enumerate(images, 1)]
        mended["images numbered anew, since two files use the same ids"] = len(images)
    return Annotations(first.path, images, first.categories, objects, [s for part in parts for s in part.strays],
                       [u for part in parts for u in part.unlisted], mended)


class _Reading:
    """One file on its way into `Annotations`; counts what it mends."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        self.mended: Counter[str] = Counter()

    def annotations(self, section: str) -> Annotations:
        content = self._content(section)
        categories = self._named([{"id": self._id(entry["id"], "category"), "name": self._name(entry)}
                                  for entry in content["categories"]])
        images = self._sorted([self._image(entry) for entry in content["images"]])
        found = Annotations(self.path, images, categories, [], [], [], self.mended)
        image_place, category_place = found.image_places(), found.category_places()
        for index, entry in enumerate(content.get("annotations") or []):
            entry = {"id": index, **entry}
            image, category = image_place(entry.get("image_id")), category_place(entry.get("category_id"))
            if image is None:
                found.strays.append(f"annotation {entry['id']} (image_id {entry.get('image_id')!r})")
            elif category is None:
                found.unlisted.append(f"annotation {entry['id']} (category_id {entry.get('category_id')!r})")
            else:
                for key, place, listed in (("image_id", image, images), ("category_id", category, categories)):
                    if type(entry[key]) is not type(listed[place]["id"]):
                        self.mended[f"{key} of another type than the id"] += 1
                found.objects.append(self._object(entry, image, category))
        return found

    def _fail(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}; {self.where}")

    def _content(self, section: str) -> dict[str, Any]:
        if not self.path.is_file():
            raise DataError(f"{self.path.absolute()}: no such annotation file; set {section}.dataset_dir to the folder "
                            f"of the data set and {section}.anno_path to the file inside it")
        try:
            content = json.loads(self.path.read_bytes())  # bytes: json knows byte order marks and UTF-16
        except (ValueError, RecursionError) as error:
            raise self._fail(f"not a JSON file: {error}") from error
        except OSError as error:
            raise self._fail(f"cannot be read: {error.strerror or error}") from error
        for key, entry_keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
            entries = content.get(key) if isinstance(content, dict) else None
            if not isinstance(entries, list) or not all(
                    isinstance(e, dict) and all(k in e for k in entry_keys) for e in entries):
                raise self._fail(f"not a COCO annotation file: it needs a list '{key}' whose entries have "
                                 f"{' and '.join(entry_keys)}")
        annotations = content.get("annotations") or []
        if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
            raise self._fail("not a COCO annotation file: 'annotations' must be a list of objects")
        return content

    def _id(self, value: Any, what: str) -> Id:
        if isinstance(value, float) and value.is_integer():
            self.mended[f"{what} id with a point as a whole number"] += 1
            return int(value)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise self._fail(f"{what} id {value!r} is neither a whole number nor text; give it one")
        return value

    def _name(self, entry: Mapping[str, Any]) -> str:
        name = entry["name"]
        if name is None or isinstance(name, (dict, list)):
            raise self._fail(f"the name of category {entry['id']} is {name!r}; it must be text")
        return str(name)

    def _named(self, categories: list[Entry]) -> list[Entry]:
        count = Counter(category["name"] for category in categories)
        for category in categories:
            if count[category["name"]] > 1:
                self.mended[SAME_NAME] += 1
                category["name"] += f" (id {category['id']})"
        return categories

    def _sorted(self, images: list[Entry]) -> list[Entry]:
        numbers = [whole(image["id"]) for image in images]
        keys: list[Any] = [str(image["id"]) for image in images] if None in numbers else numbers
        return [images[place] for place in sorted(range(len(images)), key=keys.__getitem__)]

    def _image(self, entry: Mapping[str, Any]) -> Entry:
        name = entry["file_name"]
        if not isinstance(name, str) or not name or "\0" in name:
            raise self._fail(f"the file_name of image {entry['id']} is {name!r}; it must be the path of a file")
        return {"id": self._id(entry["id"], "image"), "file_name": name,
                **{key: self._side(entry.get(key)) for key in ("width", "height")}}

    def _side(self, value: Any) -> int | None:
        side = number(value)
        if isinstance(value, str) and side is not None:
            self.mended["width or height in text as a number"] += 1
        return round(side) if side is not None and side > 0 else None

    def _object(self, entry: Mapping[str, Any], image: int, category: int) -> Entry:
        box = self._box(entry)
        crowd, ignore = (self._flag(entry, key) for key in ("iscrowd", "ignore"))
        made: Entry = {"id": entry["id"], "image": image, "category": category, "bbox": box,
                       "iscrowd": crowd, "difficult": 0, "reason": None}
        if box is None:
            return {**made, "reason": "without a bbox"}
        if not (box[2] > LEAST_SIDE and box[3] > LEAST_SIDE):
            return {**made, "reason": "without a size"}
        made["area"] = self._area(entry, box)
        made["reason"] = "crowd" if crowd else "marked ignore" if ignore else None
        return made

    def _box(self, entry: Mapping[str, Any]) -> list[float] | None:
        """The box, else the one around the outline. [0, 0, 0, 0] stands for one whose numbers are none."""
        box = entry.get("bbox")
        if not (isinstance(box, list) and any(box)) and entry.get("segmentation"):
            box = _box_of_outline(entry["segmentation"])
            self.mended["box around its outline, since there is no bbox"] += box is not None
        if not isinstance(box, list) or len(box) != 4:
            return None
        self.mended["bbox in text as numbers"] += any(isinstance(n, str) for n in box)
        numbers = [found for found in map(number, box) if found is not None and abs(found) < LARGEST]
        return numbers if len(numbers) == 4 else [0.0] * 4

    def _flag(self, entry: Mapping[str, Any], key: str) -> int:
        value = entry.get(key, 0)
        if type(value) is int:
            return int(value != 0)
        flag = WORDS.get(value.strip().lower()) if isinstance(value, str) else 0 if value is None else None
        if flag is None:
            found = float(value) if isinstance(value, bool) else number(value)
            if found is None:
                raise self._fail(f"annotation {entry['id']} has {key} {value!r}; it must be 0 or 1")
            flag = int(found != 0)
        if not isinstance(value, (bool, float)):
            self.mended[f"{key} {'null as 0' if value is None else 'in text as a number'}"] += 1
        return flag

    def _area(self, entry: Mapping[str, Any], box: Sequence[float]) -> float:
        value = entry.get("area")
        area = number(value)
        if area is not None and area > 0:
            self.mended["area in text as a number"] += isinstance(value, str)
            return area
        self.mended["area that is no positive number as width x height"] += "area" in entry
        return box[2] * box[3]


def _box_of_outline(outline: Any) -> list[float] | None:
    """[x, y, width, height] around polygons, or around the pixels of a run-length code; None when it is neither."""
    if isinstance(outline, dict):
        return _box_of_mask(outline)
    polygons = outline if isinstance(outline, list) and all(isinstance(each, list) for each in outline) else [outline]
    values = [[number(n) for n in polygon] for polygon in polygons if isinstance(polygon, list)]
    if not any(values) or any(None in each or len(each) % 2 for each in values):
        return None
    x = [n for each in values for n in each[::2] if n is not None]
    y = [n for each in values for n in each[1::2] if n is not None]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _box_of_mask(code: Mapping[str, Any]) -> list[float] | None:
    from pycocotools import mask  # takes half a second

    try:
        height, width = (int(n) for n in code["size"])
        coded = mask.frPyObjects(dict(code), height, width) if isinstance(code["counts"], list) else dict(code)
        return [float(n) for n in mask.toBbox(coded)]
    except (KeyError, TypeError, ValueError):
        return None
