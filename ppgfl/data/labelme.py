"""labelme annotations: one JSON file per image."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from .image import is_image
from .labelled import Found, Labelled, Names, Object, Rejected, box_around, image_size, number, read_objects, read_text

OUTLINES = ("rectangle", "polygon", "mask", "rotation", "oriented_rectangle")


def find_labelme(source: Path, files: Sequence[Path]) -> Found:
    """*.json anywhere; each names its image."""
    images = [path for path in files if is_image(path)]
    items = [path for path in files if path.suffix.lower() == ".json"]
    return Found(items, partial(_read, images=Names.of(images)), images)


def _read(path: Path, images: Names) -> Labelled | None:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"is not JSON ({error})") from error
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    if not isinstance(content["shapes"], list):
        raise Rejected("'shapes' is not a list")
    image = _find_image(path, content.get("imagePath"), images)
    size, notes = image_size(image), []
    given = content.get("imageHeight"), content.get("imageWidth")
    if all(isinstance(side, int) and side > 0 for side in given) and given != size:
        notes.append("file that gives another size than its image has: its boxes may be wrong")
    return Labelled(image, path, size, *read_objects(_object, content["shapes"]), notes)


def _find_image(path: Path, name: Any, images: Names) -> Path:
    """The image that imagePath names, seen from the JSON file; else one of that name, else one called like the file."""
    name = name.replace("\\", "/") if isinstance(name, str) and "\0" not in name else ""
    for folder in (path.parent, path.parent.resolve()) if name else ():  # the second when a part of it is a link
        image = Path(os.path.normpath(folder / name))
        if image.is_file():
            return image
    for wanted in (PureWindowsPath(name).name, path.stem):
        found = images.find(wanted, near=path) if wanted else None
        if found is not None:
            return found
    raise Rejected(f"its image was not found ({name or path.stem})")


def _object(shape: Any) -> Object:
    shape = shape if isinstance(shape, dict) else {}
    name, kind = str(shape.get("label") or ""), shape.get("shape_type") or "polygon"
    try:
        points = [(number(x, "x"), number(y, "y")) for x, y in shape.get("points")]
    except (Rejected, TypeError, ValueError):
        points = []
    if not points:
        raise Rejected("shape without points")
    if not name.strip():
        raise Rejected("shape without a label")
    if kind == "circle" and len(points) == 2:  # its centre, and a point on it
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return Object(name, (x - radius, y - radius, x + radius, y + radius))
    if kind in OUTLINES and len(points) >= 2:
        return Object(name, box_around(points))
    raise Rejected(f"shape that has no box ({kind})")
