"""Pascal VOC annotations: one XML file per image."""
from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

from .image import is_image
from .labelled import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    Found,
    Labelled,
    Names,
    Object,
    Rejected,
    image_size,
    number,
    other_half,
    read_objects,
    split_named,
)

DECLARATION = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")


def find_voc(source: Path, files: Sequence[Path]) -> Found:
    """*.xml anywhere, and images anywhere: beside them, in JPEGImages, in images, ..."""
    xmls, images = ([path for path in files if wanted(path)] for wanted in (_is_xml, is_image))
    xmls = xmls or [path for path in other_half(source, IMAGE_FOLDERS, LABEL_FOLDERS) if _is_xml(path)]
    images = images or [path for path in other_half(source, LABEL_FOLDERS, IMAGE_FOLDERS) if is_image(path)]
    return Found(xmls, partial(_read, images=Names.of(images)), images, splits=_splits(files))


def _is_xml(path: Path) -> bool:
    return path.suffix.lower() == ".xml"


def _splits(files: Sequence[Path]) -> dict[str, list[Path]]:
    """ImageSets/Main/train.txt and the like, or PaddleDetection's train.txt, valid.txt, PaddleX's train_list.txt."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        split = split_named(path.stem[:-len("_list")] if path.stem.endswith("_list") else path.stem)
        of_detection = path.parent.parent.name != "ImageSets" or path.parent.name == "Main"  # not Segmentation, Layout
        if split and path.suffix == ".txt" and of_detection:
            splits.setdefault(split, []).append(path)
    if "train" in splits and "val" in splits:
        splits.pop("trainval", None)  # the two together
    return splits


def _read(path: Path, images: Names) -> Labelled | None:
    root = parse_xml(path)
    if root.tag != "annotation" and root.find("object") is None:
        return None
    # A path of the machine where it was written is of no use here, only its last part.
    name = PureWindowsPath((root.findtext("filename") or "").strip()).name
    image = _find_image(path, name, images)
    size = image_size(image)
    notes = ["object marked difficult, which is kept like any other" for item in root.iter("object")
             if (item.findtext("difficult") or "").strip() == "1"]
    given = tuple((root.findtext(f"size/{key}") or "").strip() for key in ("height", "width"))
    if all(text.isdecimal() and text.strip("0") for text in given) and given != tuple(map(str, size)):
        notes.append("file that gives another size than its image has: its boxes may be wrong")
    return Labelled(image, path, size, *read_objects(_object, root.iter("object")), notes)


def _find_image(path: Path, name: str, images: Names) -> Path:
    """The image that <filename> names, else the one that is called like the XML file."""
    stem = name[:-len(Path(name).suffix)] if is_image(Path(name)) else name
    for wanted in (name, stem, path.stem):
        image = images.find(wanted, near=path) if wanted else None
        if image is not None:
            return image
    raise Rejected(f"its image was not found ({name or path.stem})")


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an annotation file. Raises Rejected, OSError."""
    text = _decode(path.read_bytes())
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Rejected("declares entities, which annotations never need")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Rejected(f"is not XML ({error})") from error


def _decode(data: bytes) -> str:
    """The text in the encoding that its head declares: the XML parser itself knows none of several bytes per letter."""
    declared = DECLARATION.match(data)
    name = declared.group(1).decode().lower() if declared else "utf-8"
    if data.startswith(codecs.BOM_UTF8) or name.startswith(("utf-16", "utf-32")):  # .NET declares it and writes UTF-8
        name = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "utf-16"
    try:
        return data.decode("gb18030" if name in ("gb2312", "gbk") else name)  # which holds both
    except LookupError as error:
        raise Rejected(f"declares the encoding {name}, which is not known; save it as UTF-8") from error
    except UnicodeError as error:
        raise Rejected(f"is not {name}, the encoding that {'its head declares' if declared else 'XML has by default'}; "
                       f"save it as UTF-8, or declare the right one") from error


def _object(item: ElementTree.Element) -> Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise Rejected("object without a name")
    try:
        x1, y1, x2, y2 = (number(item.findtext(f"bndbox/{key}"), key) for key in ("xmin", "ymin", "xmax", "ymax"))
    except Rejected as error:
        raise Rejected(f"object without a box ({error})") from error
    return Object(name, (x1 - 1, y1 - 1, x2, y2))  # VOC counts pixels from 1, and the last one is inside
