"""YOLO annotations: one text file per image, and a data.yaml as Ultralytics and Roboflow write it."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import DataError
from .image import files_below, is_image
from .labelled import (
    SPLITS,
    UNLISTED,
    Box,
    Found,
    Labelled,
    Object,
    Rejected,
    box_around,
    check_names,
    image_size,
    number,
    other_half,
    read_class_list,
    read_objects,
    read_text,
    swap_folder,
)

ABOVE = 3  # folders above the given one, in which its data.yaml is looked for
SLACK = 0.05  # of a side of the image, by which a box that somebody drew may leave it
NOT_FIVE = "line that is not five numbers"
UNCLEAR = ("line of more than five numbers, an outline or key points? write `task: segment`, `task: obb` or "
           "`kpt_shape: [NUMBER, 2 or 3]` into data.yaml")

Splits = dict[str, list[Path]]
Notes = list[tuple[str, Path]]


class Rules(NamedTuple):
    """How lines are read: class names by their numbers, and what the numbers after the class's are."""
    names: Mapping[int, str]
    layout: str  # "box"; "points": also outlines and corners; "keypoints": also boxes before key points; "unclear"
    length: int | None  # of a line with key points; None: any


def find_yolo(source: Path, files: Sequence[Path], yaml_file: Path | None, classes: Sequence[str] | None) -> Found:
    """labels/**/*.txt and images/**, or texts beside their images; one of the two folders finds the other.

    Class names are `classes`, else those of data.yaml, which may be above `source`, else those of classes.txt.
    """
    texts, images = ([path for path in files if wanted(path)] for wanted in (_is_text, is_image))
    texts = texts or [path for path in other_half(source, ("images",), ("labels",)) if _is_text(path)]
    images = images or [path for path in other_half(source, ("labels",), ("images",)) if is_image(path)]
    yaml_file, content = _find_yaml(source, yaml_file)
    splits, notes = _splits(yaml_file, content) if yaml_file and yaml_file.parent == source else ({}, [])
    for path in (path for paths in splits.values() for path in paths):
        folder = path if path.is_dir() else path.parent
        if source not in (folder, *folder.parents):
            images += [image for image in files_below(folder) if is_image(image)]
    labels = {image: label_of(image) for image in images}
    known = {label for label in labels.values() if label}
    others = [path for path in texts if path not in known and path.name != "classes.txt"]
    orphans = [path for path in others if _looks_like_labels(path)]
    listing = {*orphans, *(path for paths in splits.values() for path in paths)}
    notes += [("text that belongs to no image and was not read", path) for path in others if path not in listing]
    if yaml_file and yaml_file.parent != source:
        notes.append(("file above the folder, which was read for its classes and keys", yaml_file))
    if not known and not orphans:
        return Found([], lambda path: None, [], notes=notes)
    names = dict(enumerate(classes)) if classes else _names(source, texts, yaml_file, content)
    rules = Rules(names, *layout_of(yaml_file, content, [*known, *orphans]))

    def read(path: Path) -> Labelled:
        if path not in labels:
            raise Rejected("its image was not found")
        return read_labels(path, labels[path], rules, image_size(path))

    return Found([*labels, *orphans], read, images, [names[key] for key in sorted(names)], splits, notes)


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def label_of(image: Path) -> Path | None:
    """The text of an image, as Ultralytics looks for it, else beside it or in labels/ there; None: there is none."""
    name = f"{image.stem}.txt"
    folders = (swap_folder(image.parent, ("images",), "labels"), image.parent, image.parent / "labels")
    return next((folder / name for folder in folders if folder and os.path.lexists(folder / name)), None)


def _looks_like_labels(path: Path) -> bool:
    words = next(_lines(path), [])
    try:
        return len([number(word, "") for word in words]) >= 5
    except Rejected:
        return False


def _lines(path: Path) -> Iterator[list[str]]:
    """The words of each line; nothing of a file that cannot be read, which `read_labels` says."""
    try:
        yield from (line.split() for line in read_text(path).splitlines() if line.split())
    except (DataError, OSError):
        return


# --- lines


def read_labels(image: Path, label: Path | None, rules: Rules, size: tuple[int, int]) -> Labelled:
    """What the text of an image, or none, says about it; size: its height and width. Raises DataError, OSError."""
    notes: list[str] = []

    def read(words: Sequence[str]) -> Object:
        found = _object(words, size, rules)
        if rules.layout == "points" and len(words) > 5:
            notes.append("outline or oriented box, of which the upright box around it is kept")
        return found

    lines = read_text(label).splitlines() if label else []  # an image without a text has no objects
    objects, rejected = read_objects(read, filter(None, map(str.split, lines)))
    return Labelled(image, label or image, size, objects, rejected, notes)


def _object(words: Sequence[str], size: tuple[int, int], rules: Rules) -> Object:
    try:
        index, *values = (number(word, "") for word in words)
    except Rejected as error:
        raise Rejected(NOT_FIVE) from error
    if not index.is_integer():  # 0.0, as numpy writes it, is 0
        raise Rejected(NOT_FIVE)
    name = rules.names.get(int(index))
    if name is None:
        raise Rejected(f"{UNLISTED} ({index:g})")
    x1, y1, x2, y2 = _box(values, rules)
    if max(x1, y1, x2, y2) > 2:
        raise Rejected("line whose numbers are not shares of the image's width and height (0 to 1)")
    height, width = size
    return Object(name, (x1 * width, y1 * height, x2 * width, y2 * height))


def _box(values: Sequence[float], rules: Rules) -> Box:
    """The box of one line in shares of the image. Only data.yaml tells key points from outlines, never their number."""
    if len(values) == 4:
        return _upright(values)
    if rules.layout == "keypoints" and len(values) > 4:
        if rules.length not in (None, len(values) + 1):
            raise Rejected(f"line of {len(values) + 1} numbers, while kpt_shape makes it {rules.length}")
        return _upright(values)
    if rules.layout == "points" and len(values) >= 6 and len(values) % 2 == 0:
        return box_around(zip(values[::2], values[1::2]))
    raise Rejected(UNCLEAR if rules.layout == "unclear" and len(values) >= 6 else NOT_FIVE)


def _upright(values: Sequence[float]) -> Box:
    x, y, width, height = values[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def layout_of(yaml_file: Path | None, content: Mapping[str, Any], labels: Sequence[Path]) -> tuple[str, int | None]:
    """What data.yaml says the lines to be: Ultralytics writes kpt_shape for key points, and some tools write `task`.

    Where it says nothing, lines are outlines when one of them cannot be anything else.
    """
    task, shape = content.get("task"), content.get("kpt_shape")
    if task in ("detect", "segment", "obb"):
        return "box" if task == "detect" else "points", None
    if shape:
        numbers = [int(n) for n in shape if _is_index(n)] if isinstance(shape, list) else []
        if len(numbers) != 2 or numbers[1] not in (2, 3):
            raise DataError(f"{yaml_file}: key kpt_shape is {shape!r}; it is [NUMBER OF KEY POINTS, 2 or 3]")
        return "keypoints", 5 + numbers[0] * numbers[1]
    if task == "pose":
        return "keypoints", None
    return "points" if any(map(_has_outline, labels)) else "unclear", None


def _has_outline(path: Path) -> bool:
    """Whether some line cannot be a box with key points, since that box would leave the image."""
    for words in _lines(path):
        try:
            values = [number(word, "") for word in words[1:]]
        except Rejected:
            continue
        if len(values) > 5 and (min(_upright(values)) < -SLACK or max(_upright(values)) > 1 + SLACK):
            return True
    return False


# --- data.yaml


def _find_yaml(source: Path, given: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    """The YAML file with the names, and its content: the given one, or that in the folder, or one above that is about
    the folder; (None, {}) when there is none."""
    if given:
        content = load_yaml(given)
        if "names" not in content:
            raise DataError(f"{given}: has no key `names`, which lists the classes")
        return given, content
    for folder in (source, *source.parents[:ABOVE]):
        found, broken = {}, []
        for path in sorted(path for path in folder.glob("*.y*ml") if not path.name.startswith(".")):
            try:
                content = load_yaml(path)
            except (DataError, OSError) as error:
                broken.append(error)
                continue
            if "names" in content and (folder == source or _is_about(source, path, content)):
                found[path] = content
        names = [path for path in found if path.stem == "data"] or list(found)
        if len(names) > 1:
            raise DataError(f"{folder}: which of {', '.join(path.name for path in names)} is meant? Give that file as "
                            f"SOURCE")
        if names:
            return names[0], found[names[0]]
        if broken and folder == source:
            raise broken[0]
    return None, {}


def load_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping of a YAML file, {} where it holds something else. Raises DataError, OSError."""
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)  # all values as text: a class may be called `no` or 1
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _is_about(source: Path, path: Path, content: Mapping[str, Any]) -> bool:
    """Whether a YAML file above a folder lists images of that folder, or is a data.yaml that lists none."""
    paths = [path for paths in _splits(path, content)[0].values() for path in paths]
    folders = [path if path.is_dir() else path.parent for path in paths]
    folders += [folder for folder in (swap_folder(one, ("images",), "labels") for one in folders) if folder]
    return any(folder in (source, *source.parents) or source in folder.parents for folder in folders) or (
        not paths and path.stem == "data")


def _splits(yaml_file: Path, content: Mapping[str, Any]) -> tuple[Splits, Notes]:
    """The folders and lists of images that the keys train, val and test name, and what is to be said about them."""
    splits: Splits = {}
    notes: Notes = []
    for key, split in SPLITS.items():
        value = content.get(key) or []
        for text in value if isinstance(value, list) else [value]:
            path = resolve(yaml_file, content, str(text).replace("\\", "/"))
            if path:
                splits.setdefault(split, []).append(path)
            elif text not in ("", "null", "~"):
                notes.append((f"key `{key}`: {text} is not there", yaml_file))
                if split != "test":  # Roboflow names it even where there is none
                    splits.setdefault(split, [])
    return splits, notes


def resolve(yaml_file: Path, content: Mapping[str, Any], text: str) -> Path | None:
    """Where a path of data.yaml leads, from `path` or else from its own folder. Roboflow writes one ../ too many."""
    for folder in (yaml_file.parent / str(content.get("path") or ""), yaml_file.parent):
        for name in (text, text[3:] if text.startswith("../") else text):
            path = Path(os.path.normpath(folder / name))
            if name and os.path.exists(path) and path not in yaml_file.parent.parents:
                return path
    return None


def _names(source: Path, texts: Sequence[Path], yaml_file: Path | None, content: Mapping[str, Any]) -> dict[int, str]:
    """Class names by their numbers. Raises DataError."""
    if yaml_file:
        return names_of(yaml_file, content["names"])
    lists = [path for path in texts if path.name == "classes.txt"]
    lists = lists or [folder / "classes.txt" for folder in source.parents[:ABOVE] if (folder / "classes.txt").is_file()]
    if not lists:
        raise DataError(f"{source}: has neither a data.yaml with `names` nor a classes.txt; give --classes FILE")
    names = read_class_list(lists[0])
    for path in lists[1:]:
        if read_class_list(path) != names:
            raise DataError(f"{lists[0]} and {path} list different classes; give --classes FILE")
    return dict(enumerate(names))


def _is_index(text: Any) -> bool:
    return isinstance(text, str) and text.isdecimal() and len(text) < 6


def names_of(path: Path, names: Any) -> dict[int, str]:
    """The key `names` of data.yaml, a list or a mapping -> class names by their numbers. Raises DataError."""
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict):
        raise DataError(f"{path}: key names is {names!r}; write a list of the classes, or `0: NAME` for each")
    for key, name in names.items():
        if not _is_index(key):
            raise DataError(f"{path}: key {key!r} of names is no number of a class; write `0: NAME`, `1: NAME`, ...")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: class {key} of names is {name!r}; give it a name")
    check_names(list(names.values()), f"{path}: key names")
    return {int(key): name for key, name in names.items()}
