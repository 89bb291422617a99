"""What was found on one image as other tools take it: supervision, COCO, and the labels of YOLO, labelme and VOC.

The functions behind the methods `Detections.to_...`. Labels lie inside their image, which detections need not: boxes
are cut at its borders, and one of which nothing is left (less than half a pixel) is left out.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from ..data.image import read_image
from ..data.labelled import Box, Rejected, box_inside
from ..errors import ConfigError

if TYPE_CHECKING:
    from .detections import Detections

NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # letters that XML has no way to write


def to_supervision(found: Detections) -> Any:
    """`supervision.Detections` with xyxy, confidence, class_id and data["class_name"]. Raises ConfigError without the
    package."""
    try:
        import supervision
    except ImportError as error:
        raise ConfigError(f"to_supervision: {error}; pip install \"ppgfl[supervision]\"") from error
    return supervision.Detections(xyxy=found.boxes.reshape(-1, 4).astype(np.float32),
                                  confidence=found.scores.astype(np.float32), class_id=found.labels.astype(int),
                                  data={"class_name": np.array(found.names, dtype=str)})


def size_of(found: Detections) -> tuple[int, int]:
    """Height and width of the image, which is read where it was given as a path. Raises DataError, ValueError."""
    if found.image is None and found.path is None:
        raise ValueError("these detections know neither the path nor the pixels of their image")
    height, width = (found.image if found.image is not None else read_image(str(found.path))).shape[:2]
    return height, width


def inside(found: Detections, size: tuple[int, int]) -> Iterator[tuple[int, Box]]:
    """The place in `found` of each detection of which something lies in the image, and that part: x1 y1 x2 y2."""
    for i, box in enumerate(found.boxes.astype(np.float64).tolist()):
        try:
            x, y, width, height = box_inside((box[0], box[1], box[2], box[3]), size)
        except Rejected:
            continue
        yield i, (x, y, x + width, y + height)


def to_yolo(found: Detections, *, with_scores: bool = False) -> str:
    """A line for each label: class index, then centre x, y, width and height as shares of the image's, with six digits
    behind the point, and the score if asked for, which labels have none of. Raises DataError, ValueError."""
    height, width = size = size_of(found)
    lines = []
    for i, (x1, y1, x2, y2) in inside(found, size):
        shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        numbers = [*shares, float(found.scores[i])] if with_scores else shares
        lines.append(" ".join([str(int(found.labels[i])), *(f"{number:.6f}" for number in numbers)]) + "\n")
    return "".join(lines)


def to_labelme(found: Detections, image_path: str | None = None) -> dict[str, Any]:
    """The content of a labelme file: rectangles in hundredths of pixels, each with its score, too.

    Args:
        image_path: where the image is, seen from that file; None: beside it.

    Raises: DataError, ValueError.
    """
    height, width = size = size_of(found)
    shapes: list[dict[str, Any]] = [
        {"label": found.names[i], "points": [[round(x1, 2), round(y1, 2)], [round(x2, 2), round(y2, 2)]],
         "group_id": None, "description": "", "shape_type": "rectangle", "flags": {}, "mask": None,
         "score": round(float(found.scores[i]), 5)} for i, (x1, y1, x2, y2) in inside(found, size)]
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": _image_path(found, image_path),
            "imageData": None, "imageHeight": height, "imageWidth": width}


def to_voc(found: Detections, image_path: str | None = None) -> str:
    """The text of a Pascal VOC file, whose boxes are whole pixels, counted from 1, the last one inside. Letters of
    names that XML has no way to write become question marks. See `to_labelme`."""
    height, width = size = size_of(found)
    root = ElementTree.Element("annotation")
    _add(root, {"filename": os.path.basename(_image_path(found, image_path)), "segmented": 0})
    _add(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    for i, box in inside(found, size):
        x1, y1, x2, y2 = (int(value + 0.5) for value in box)
        x1, y1 = min(x1, width - 1), min(y1, height - 1)
        item = ElementTree.SubElement(root, "object")
        _add(item, {"name": found.names[i], "pose": "Unspecified", "truncated": 0, "difficult": 0})
        _add(ElementTree.SubElement(item, "bndbox"), {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": max(x2, x1 + 1),
                                                      "ymax": max(y2, y1 + 1)})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _image_path(found: Detections, given: str | None) -> str:
    return given if given is not None else os.path.basename(found.path or "")


def _add(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for key, value in values.items():
        ElementTree.SubElement(parent, key).text = NOT_XML.sub("?", str(value))
