"""What the readers of other annotation formats share (voc.py, yolo.py, labelme.py): what they give, and how an image
and its annotation file find each other."""
from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import DataError
from .image import files_below, read_image

T = TypeVar("T")
Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the image
IMAGE_FOLDERS, LABEL_FOLDERS = ("JPEGImages", "images", "Images"), ("Annotations", "annotations", "labels")
UNLISTED = "object of a class that is not listed"
LEAST_SIDE = 0.5  # pixels of a box
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "trainval": "trainval"}


class Rejected(Exception):
    """A file or an object that cannot be used, and why."""


@dataclass
class Report:
    """What was left out, and what else a user should know: {reason: files}."""
    rejected: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class Object(NamedTuple):
    """One object of an annotation file."""
    name: str
    box: Box


class Labelled(NamedTuple):
    """What one annotation file says about its image.

    size: height and width of the image itself.
    rejected: why some of its objects cannot be used, a reason for each.
    notes: what a user should know about the others.
    """
    image: Path
    file: Path
    size: tuple[int, int]
    objects: list[Object]
    rejected: list[str]
    notes: list[str]


class Found(NamedTuple):
    """The files of a data set, before they are read.

    items: what `read` takes one by one. It returns None for a file that is none of this format; it raises Rejected,
        DataError, OSError.
    images: those of the data set, so that the ones that no annotation file belongs to can be named.
    names: the classes in the order of their categories; None: those that occur.
    splits: for "train", "val", ... folders of images, or text files that list them, as the data set itself says.
    notes: what a user should know, and about which file.
    """
    items: Sequence[Path]
    read: Callable[[Path], Labelled | None]
    images: Sequence[Path]
    names: Sequence[str] | None = None
    splits: Mapping[str, list[Path]] | None = None
    notes: Sequence[tuple[str, Path]] = ()


class Names:
    """Paths by their name or stem. Of several with the same name it gives the nearest to a place."""

    def __init__(self, paths: Iterable[tuple[str, Path]]) -> None:
        self._paths: dict[str, list[Path]] = defaultdict(list)
        for name, path in paths:
            self._paths[name.casefold()].append(path)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Names:
        return cls((name, path) for path in paths for name in {path.name, path.stem})

    def find(self, name: str, near: Path) -> Path | None:
        """The path of that name, or None. Raises Rejected: two are equally near."""
        paths = {path for path in self._paths.get(name.casefold(), ()) if not _of_another_split(path, near)}
        ranked = sorted(((_nearness(path, near), (path.name == name, path.stem == name), path) for path in paths),
                        reverse=True)
        if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
            raise Rejected(f"{name} may be {ranked[0][2]} or {ranked[1][2]}")
        return ranked[0][2] if ranked else None


def _apart(path: Path, near: Path) -> tuple[int, list[str], list[str]]:
    """How many folders two paths share from the front, and the other folders of each."""
    one, other = path.parent.parts, near.parent.parts
    shared = _equal(one, other)
    return shared, list(one[shared:]), list(other[shared:])


def _equal(one: Sequence[str], other: Sequence[str]) -> int:
    """How many of their first entries are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _nearness(path: Path, near: Path) -> tuple[int, int, bool, bool]:
    """An image whose folders are those of the annotation file but for the names of the halves is the one meant."""
    shared, one, other = _apart(path, near)
    mirrored = [part for part in one if part not in IMAGE_FOLDERS] == [part for part in other
                                                                       if part not in LABEL_FOLDERS]
    return shared, _equal(one[::-1], other[::-1]), not set(one).isdisjoint(IMAGE_FOLDERS), mirrored


def _of_another_split(path: Path, near: Path) -> bool:
    """Whether one lies in train/ and the other in val/, say: then they never belong together."""
    first, second = (set(filter(None, map(split_named, parts))) for parts in _apart(path, near)[1:])
    return bool(first and second and first.isdisjoint(second))


def split_named(name: str) -> str | None:
    """train, val, test or trainval, when a folder, a list or a key of this name is about it."""
    return SPLITS.get(name.lower())


def swap_folder(path: Path, names: Sequence[str], other: str) -> Path | None:
    """The path with `other` in place of the right-most part that has one of these names; None when none has."""
    at = max((i for i, part in enumerate(path.parts) if part in names), default=None)
    return None if at is None else Path(*path.parts[:at], other, *path.parts[at + 1:])


def other_half(source: Path, own: Sequence[str], others: Sequence[str]) -> list[Path]:
    """The files of the folder that belongs to this one: of images/train for labels/train. [] when there is none."""
    halves = (swap_folder(source, own, other) for other in others)
    return next((files_below(half) for half in halves if half is not None and half.is_dir()), [])


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without its byte order mark. Raises DataError, OSError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (at byte {error.start}); save it as UTF-8, in an editor or by "
                        f"`iconv -f GBK -t UTF-8` if it is GBK") from error


def read_class_list(path: Path) -> list[str]:
    """The class names of a text file, one per line. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it lists one class name per line")
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    check_names(names, str(path))
    return names


def check_names(names: Sequence[str], where: str) -> None:
    """Raise DataError unless every class has a name of its own."""
    if not names:
        raise DataError(f"{where}: lists no class; write one name per line")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the class {twice!r} stands there twice; give each class a name of its own")
    bad = next((name for name in names if not is_text(name)), None)
    if bad is not None:
        raise DataError(f"{where}: the class name {bad!r} has characters that cannot be written as UTF-8; rename it")


def is_text(name: str) -> bool:
    """Whether it can be written as UTF-8: halves of characters, as in "\\ud800", cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that the user gave, as one from the root; ~ is the home folder."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def place_of(path: Path) -> tuple[str, str]:
    """What two paths have in common that lead to one file by way of different links to folders."""
    return os.path.realpath(path.parent), path.name


def image_size(image: Path) -> tuple[int, int]:
    """Height and width of an image that was decoded. Raises DataError."""
    height, width = read_image(image).shape[:2]
    return height, width


def read_objects(read: Callable[[T], Object], items: Iterable[T]) -> tuple[list[Object], list[str]]:
    """The objects that `read` makes of some items, and why it made none of the others."""
    objects, rejected = [], []
    for item in items:
        try:
            objects.append(read(item))
        except Rejected as error:
            rejected.append(str(error))
    return objects, rejected


def number(text: Any, what: str) -> float:
    """A finite number of a file's, or Rejected."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise Rejected(f"{what} is {repr(text)[:60]}, not a number")
    return value


def box_inside(box: Box, size: tuple[int, int]) -> Box:
    """x1 y1 x2 y2 -> x y width height of what lies inside an image of that height and width. Raises Rejected."""
    (x1, y1, x2, y2), (height, width) = box, size
    x1, x2 = (min(max(x, 0.0), width) for x in (min(x1, x2), max(x1, x2)))
    y1, y2 = (min(max(y, 0.0), height) for y in (min(y1, y2), max(y1, y2)))
    if min(x2 - x1, y2 - y1) < LEAST_SIDE:
        raise Rejected("box without a size, or outside of its image")
    return x1, y1, x2 - x1, y2 - y1


def box_around(points: Iterable[tuple[float, float]]) -> Box:
    """The box around points x y."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)
