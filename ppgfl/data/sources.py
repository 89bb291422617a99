"""The files of a data set, whatever their format -> `Annotations`.

COCO's are read by `annotations`. VOC's are a list with an image and its XML file in each line, as PaddleDetection has
it, and YOLO's a data.yaml that names folders or lists of images; a text belongs to each.
"""
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import DataError
from ..kinds import File
from . import yolo
from .annotations import LARGEST, LEAST_SIDE, WORDS, Annotations, Entry, read_annotations
from .image import SUFFIXES, files_below, is_image, read_size
from .labelled import SPLITS, UNLISTED, Rejected, box_inside, number, read_class_list, read_text
from .voc import parse_xml

# The classes of PASCAL VOC, in PaddleDetection's order.
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
PAIR = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, SUFFIXES))}))\s+(\S.*\.xml)", re.IGNORECASE)


def read_source(keys: Mapping[str, Any], section: str) -> Annotations:
    """What the files of a config's data set list; keys: of its section. Raises DataError."""
    dataset_dir, anno_path = keys.get("dataset_dir"), keys.get("anno_path")
    if keys.get("name") == "VOCDataSet":
        return read_voc(dataset_dir, keys.get("image_dir"), anno_path, keys.get("label_list"), section)
    if keys.get("name") == "YOLODataSet":
        return read_yolo(dataset_dir, anno_path, keys.get("split"), section)
    return read_annotations(annotation_files(dataset_dir, anno_path), section)


def class_list(keys: Mapping[str, Any]) -> Path:
    """The file that lists the classes of a config's data set; it need not be there."""
    key = "label_list" if keys.get("name") == "VOCDataSet" else "anno_path"
    return annotation_files(keys.get("dataset_dir"), keys.get(key))[0]


def listed_classes(path: Path, kind: str, section: str) -> list[str]:
    """The class names in the file of `class_list`, of a data set that the config calls `kind`. Raises DataError."""
    if kind == "VOCDataSet":
        return read_class_list(path)
    if kind == "YOLODataSet":
        return list(_data_yaml(path, section)[1].values())
    return [category["name"] for category in read_annotations(path, section).categories]


def annotation_files(dataset_dir: File | None, anno_path: File | Sequence[File] | None) -> list[Path]:
    """The files that the two keys name."""
    paths = [anno_path] if isinstance(anno_path, (str, os.PathLike)) else anno_path
    return [Path(dataset_dir or "", path or "").expanduser() for path in paths or [""]]


def locate(found: Annotations, dataset_dir: File | None, image_dir: File | None, section: str, *,
           allow_outside: bool = False) -> list[str]:
    """The path of each listed image. A backslash parts folders where no file has one in its name.

    Raises: DataError: a file name that leads out of the data set's folder (or `image_dir` where there is none), so
        that a stranger's annotations cannot show any picture of this machine; unless `allow_outside`.
    """
    dataset_dir = dataset_dir or found.folder
    folder = Path(dataset_dir or "", image_dir or "").expanduser()
    roots = [os.path.join(os.path.abspath(each), "") for each in (Path(dataset_dir or folder).expanduser(), folder)]
    files = []
    for image in found.images:
        name = _with_slashes(image["file_name"], folder, found.mended)
        file = str(folder / name)
        if not allow_outside and not os.path.abspath(file).startswith(tuple(roots)):
            raise DataError(f"{found.path}: file_name {name!r} of image {image['id']} leads out of {roots[0]}; put the "
                            f"images there, or, if you trust this file, set {section}.allow_outside=true")
        files.append(file)
    return files


def _with_slashes(name: str, folder: Path, mended: Counter[str]) -> str:
    if "\\" not in name or os.path.lexists(folder / name):
        return name
    mended["file_name with \\ as one with /"] += 1
    return name.replace("\\", "/")


def _start(path: Path, names: Iterable[str], listed_in: str, folder: Path | None = None) -> Annotations:
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return Annotations(path, [], categories, [], [], [], Counter(), listed_in, folder)


def _add(found: Annotations, category: int, box: Sequence[float] | None = None, reason: str | None = None,
         **more: int) -> None:
    """Add an object to the image that was added last. box: x y width height."""
    found.objects.append({
        "id": len(found.objects) + 1, "image": len(found.images) - 1, "category": category, "iscrowd": 0,
        "difficult": 0, "bbox": None if box is None else list(box), "reason": reason,
        **({"area": box[2] * box[3]} if box and not reason else {}), **more})


def _no_file(path: Path, what: str, section: str) -> DataError:
    return DataError(f"{path.absolute()}: no such {what}; set {section}.dataset_dir to the folder of the data set and "
                     f"{section}.anno_path to the file inside it")


# --- VOC


def read_voc(dataset_dir: File | None, image_dir: File | None, anno_path: File | Sequence[File] | None,
             label_list: File | None, section: str) -> Annotations:
    """A list of images and their XML files, or several lists as one; see `dataset.VOCDataSet`.

    Where no line names an XML file, the images have no annotations. The numbers of a box are taken as they are and cut
    at the image's edges, whose last pixel is width - 1, as PaddleDetection does.

    Raises: DataError: a list, a file of it, or the list of classes that is absent or cannot be read.
    """
    paths = annotation_files(dataset_dir, anno_path)
    names, listed_in = _voc_classes(dataset_dir, label_list, section)
    found = _start(paths[0], names, listed_in)
    folder = Path(dataset_dir or "", image_dir or "").expanduser()
    lines = [line for path in paths for line in _voc_lines(path, section)]
    xmls = [folder / _with_slashes(xml, folder, found.mended) for _, xml, _ in lines if xml]
    if xmls and len(xmls) < len(lines):
        where = next(where for _, xml, where in lines if not xml)
        raise DataError(f"{where} names no annotation file ({len(lines) - len(xmls)} of {len(lines)} lines do not), so "
                        "that nobody knows what is on the image; take it out, or name the file")
    missing = [path for path in xmls if not os.path.isfile(path)]
    if missing:
        raise DataError(f"{missing[0].absolute()}: no such annotation file ({len(missing)} of the {len(xmls)} that "
                        f"{paths[0]} lists are missing); set {section}.dataset_dir and {section}.image_dir, or restore "
                        "the files")
    classes = {name: place for place, name in enumerate(names)}
    for place, (image, _, _) in enumerate(lines):
        found.images.append({"id": place, "file_name": image, "width": None, "height": None})
        if xmls:
            _read_xml(xmls[place], folder, classes, found)
    return found


def _voc_classes(dataset_dir: File | None, label_list: File | None, section: str) -> tuple[list[str], str]:
    if not label_list:
        return list(VOC_CLASSES), f"VOC ({section}.label_list names no file of other classes)"
    path = annotation_files(dataset_dir, label_list)[0]
    if not path.is_file():
        raise DataError(f"{path.absolute()}: no such list of classes; set {section}.label_list to the file inside of "
                        f"{section}.dataset_dir that has one name per line, or to null for the 20 classes of VOC")
    return read_class_list(path), str(path)


def _voc_lines(path: Path, section: str) -> list[tuple[str, str, str]]:
    """Of each line the image, the XML file or "", and where it stands. Names may have blanks in them."""
    if not path.is_file():
        raise _no_file(path, "list of images and annotation files", section)
    lines = []
    for row, line in enumerate(read_text(path).splitlines(), 1):
        text = line.strip()
        pair = PAIR.fullmatch(text)
        words = list(pair.groups()) if pair else [text] if is_image(Path(text)) else text.split()[:2]
        if not words:
            continue
        if not is_image(Path(words[0])) or "\0" in text:
            raise DataError(f"{path}: line {row} is {text[:80]!r}; a line names an image and its annotation file, "
                            "as images/1.jpg annotations/1.xml")
        lines.append((words[0], "".join(words[1:]), f"{path}: line {row}"))
    if not lines:
        raise DataError(f"{path}: the list is empty; key {section}.anno_path")
    return lines


def _read_xml(path: Path, folder: Path, classes: Mapping[str, int], found: Annotations) -> None:
    """Add what an XML file says about the image that was added last."""
    try:
        root = parse_xml(path)
        if root.tag != "annotation" and root.find("object") is None:
            raise Rejected(f"is no annotation of VOC (it is a <{root.tag[:40]}>)")
    except (Rejected, OSError) as error:
        raise DataError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from error
    image = found.images[-1]
    image["width"], image["height"] = _size(root, folder / image["file_name"].replace("\\", "/"), found.mended)
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if name in classes:
            _add_object(item, classes[name], image, found)
        else:
            found.unlisted.append(f"{name!r} in {path.name}")


def _size(root: ElementTree.Element, image: Path, mended: Counter[str]) -> tuple[int | None, int | None]:
    """Width and height that the file gives, else those of the image; None where that cannot be read either. Where a box
    leaves the image its own are taken: of photographs that were turned, files have them swapped."""
    width, height = (_whole(root.findtext(f"size/{key}")) for key in ("width", "height"))
    right, bottom = (max((_whole(item.findtext(f"bndbox/{key}")) for item in root.findall("object")), default=0)
                     for key in ("xmax", "ymax"))
    known = width > 0 and height > 0
    if known and right <= width and bottom <= height:
        return width, height
    try:
        actual_height, actual_width = read_size(image)
    except DataError:  # whoever reads the image says so
        return (width, height) if known else (None, None)
    if (actual_width, actual_height) != (width, height):
        mended[f"annotation file with{' another' if known else 'out a'} size, for which its image's is taken"] += 1
    return actual_width, actual_height


def _whole(text: str | None) -> int:
    """A number of pixels, rounded; 0 for all else."""
    try:
        value = number(text, "number")
    except Rejected:
        return 0
    return round(value) if abs(value) < LARGEST else 0


def _add_object(item: ElementTree.Element, category: int, image: Entry, found: Annotations) -> None:
    difficult = _flag(item.findtext("difficult"), found.mended)
    try:
        corners = [number(item.findtext(f"bndbox/{key}"), key) for key in ("xmin", "ymin", "xmax", "ymax")]
    except Rejected:
        _add(found, category, reason="without a bbox", difficult=difficult)
        return
    width, height = (image[key] or float("inf") for key in ("width", "height"))
    x1, y1 = (max(0.0, n) for n in corners[:2])
    x2, y2 = (min(side - 1, n) for side, n in zip((width, height), corners[2:]))
    if not (x2 - x1 > LEAST_SIDE and y2 - y1 > LEAST_SIDE):
        _add(found, category, [0.0] * 4, "without a size", difficult=difficult)
        return
    found.mended["box that stands out of its image as what lies inside"] += (
        min(corners[:2]) < 0 or corners[2] > width or corners[3] > height)
    _add(found, category, (x1, y1, x2 - x1, y2 - y1), difficult=difficult)


def _flag(text: str | None, mended: Counter[str]) -> int:
    """Whether <difficult> says yes; what is neither yes nor no, as `Unspecified`, is no."""
    word = (text or "").strip().lower()
    if word in WORDS:
        return WORDS[word]
    try:
        return int(number(word, "difficult") != 0)
    except Rejected:
        mended["difficult that is neither 0 nor 1 as 0"] += 1
        return 0


# --- YOLO


def read_yolo(dataset_dir: File | None, anno_path: File | None, split: str | None, section: str) -> Annotations:
    """The images that a data.yaml lists under `train`, `val` or `test`, with their texts; see `dataset.YOLODataSet`.

    Raises: DataError: a file or a folder that is absent, or one that is not what it should be.
    """
    path = annotation_files(dataset_dir, anno_path)[0]
    content, names = _data_yaml(path, section)
    folder = Path(dataset_dir or path.parent).expanduser()
    found = _start(path, names.values(), f"`names` of {path}", folder)
    places = {name: place for place, name in enumerate(names.values())}
    images = list(dict.fromkeys(_yolo_images(path, content, split or ("val" if section == "EvalDataset" else "train"))))
    labels = [yolo.label_of(image) for image in images]
    rules = yolo.Rules(names, *yolo.layout_of(path, content, list(filter(None, labels))))
    for place, (image, label) in enumerate(zip(images, labels)):
        size = _size_or_one(image)
        try:
            read = yolo.read_labels(image, label, rules, size)
        except OSError as error:
            raise DataError(f"{label}: {error.strerror}") from error
        found.images.append({"id": place, "file_name": os.path.relpath(os.path.abspath(image), os.path.abspath(folder)),
                             "width": size[1], "height": size[0]})
        for one in read.objects:
            try:
                box = [round(n, 3) for n in box_inside(one.box, size)]
                _add(found, places[one.name], box)
            except Rejected:
                _add(found, places[one.name], [0.0] * 4, "without a size")
        for reason in read.rejected:
            if reason.startswith(UNLISTED):
                found.unlisted.append(f"class{reason[len(UNLISTED):]} in {read.file.name}")
            else:
                _add(found, -1, reason=reason)
    return found


def _size_or_one(image: Path) -> tuple[int, int]:
    """Height and width. Of an image that cannot be read 1 and 1: its boxes stay, and whoever reads it says so."""
    try:
        return read_size(image)
    except DataError:
        return 1, 1


def _data_yaml(path: Path, section: str) -> tuple[Mapping[str, Any], dict[int, str]]:
    """The content of a data.yaml, and its class names by their numbers, in that order."""
    if not path.is_file():
        raise _no_file(path, "data.yaml", section)
    content = yolo.load_yaml(path)
    if "names" not in content:
        raise DataError(f"{path}: has no key `names`, which lists the classes; key {section}.anno_path")
    names = yolo.names_of(path, content["names"])
    return content, {key: names[key] for key in sorted(names)}


def _yolo_images(path: Path, content: Mapping[str, Any], split: str) -> Iterator[Path]:
    """The images of one split: those of folders, or those that text files list, in the order of the lists."""
    given = {key: content[key] for key, name in SPLITS.items() if name == split and content.get(key)}
    if not given:
        listed = ", ".join(key for key in SPLITS if content.get(key)) or "no split"
        raise DataError(f"{path}: has no key `{split}`, which names the images (it has {listed})")
    for key, value in given.items():
        for text in value if isinstance(value, list) else [value]:
            place = yolo.resolve(path, content, str(text).replace("\\", "/"))
            if place is None:
                raise DataError(f"{path}: key `{key}`: {text} is not there")
            if place.is_dir():
                images = [image for image in files_below(place) if is_image(image)]
            elif place.suffix.lower() == ".txt":
                images = list(_listed(place, path, content))
            else:
                images = [place] if is_image(place) else []
            if not images:
                raise DataError(f"{path}: key `{key}`: {text} holds no image; it is a folder of images, a text file "
                                "that lists them, or a list of these")
            yield from images


def _listed(listing: Path, yaml_file: Path, content: Mapping[str, Any]) -> Iterator[Path]:
    """The images of a text file. Their paths start at its folder, else where those of data.yaml do."""
    for row, line in enumerate(read_text(listing).splitlines(), 1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        if not is_image(Path(name)) or "\0" in name:
            raise DataError(f"{listing}: line {row} is {line[:80]!r}; each line is the path of an image")
        beside = listing.parent / name
        yield beside if os.path.lexists(beside) else yolo.resolve(yaml_file, content, name) or beside
