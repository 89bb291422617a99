"""Pascal VOC, YOLO and labelme annotations -> one COCO JSON, with a count of what could not be used."""
from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, Optional
from xml.etree import ElementTree

import yaml

from ..errors import DataError
from ..system import runtime
from ..system.atomic_write import write_json
from ..system.log import logger
from ..system.progress import progress
from .image import SUFFIXES, read_image

LEAST_SIDE = 0.5  # pixels of a box

Pair = tuple[Optional[Path], Path]  # an image, and the file of its labels
Object = tuple[Optional[str], Any]  # the name of a class; a box x1 y1 x2 y2, or the reason why there is none
Labelled = tuple[Path, Path, tuple[int, int], list[Object]]  # image, file of labels, height and width, objects
Rejections = dict[str, list[str]]  # {reason: examples}


class Rejected(Exception):
    """A file or an object that cannot be used, and why."""


def convert(kind: str, source: str | PathLike[str], output: str | PathLike[str], *,
            classes: str | PathLike[str] | None = None) -> tuple[dict[str, Any], Rejections]:
    """Write a COCO annotation file.

    Args:
        kind: of `READERS`: "voc", "yolo", "labelme".
        source: the folder of the data set:
            voc: *.xml anywhere below, images beside them or in JPEGImages;
            yolo: labels/**/*.txt and images/**, or texts beside images; names in data.yaml or classes.txt;
            labelme: *.json, images beside them.
        output: the JSON file; `file_name` in it is relative to `source`, which is the `image_dir` of the data set.
        classes: a text file with one name per line; their order is that of the categories. None: the data set's own
            (yolo), or the names that occur, sorted.

    Returns: (the content, {reason: [example, ...]} of what was left out).
    Raises: DataError: no such folder, nothing in it, an output that exists.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if not source.is_dir():
        raise DataError(f"{source.absolute()}: no such folder")
    if output.exists():
        raise DataError(f"{output.absolute()}: is there already and is not written over; give another name")
    find, read, names_of = READERS[kind]
    pairs = find(source)
    if not pairs:
        raise DataError(f"{source.absolute()}: holds nothing that looks like {kind}; see ppgfl data convert --help")
    names = _lines(Path(classes).expanduser()) if classes else names_of(source)

    def work(pair: Pair) -> tuple[Any, Any, list[Object] | None]:
        try:
            return pair, *_read_pair(pair, read, names)
        except (Rejected, DataError) as error:
            return pair, str(error), None

    samples: list[Labelled] = []
    rejected: Rejections = {}
    with ThreadPoolExecutor(runtime.physical_cores()) as pool:
        for (image, label), size, objects in progress(pool.map(work, pairs), total=len(pairs), what="convert"):
            if objects is None:
                rejected.setdefault("file that cannot be used", []).append(f"{label}: {size}")
            else:
                samples.append((image, label, size, objects))
    content = _coco(source, samples, names, rejected)
    write_json(output, content)
    _summarize(content, rejected, output)
    return content, rejected


def _read_pair(pair: Pair, read: Callable[..., Iterator[Object]],
               names: Sequence[str] | None) -> tuple[tuple[int, int], list[Object]]:
    """((height, width), [(name, box or the reason why there is none)])."""
    image, label = pair
    if image is None:
        raise Rejected("its image was not found")
    height, width = read_image(str(image)).shape[:2]
    return (height, width), list(read(label, height, width, names))


def _coco(source: Path, samples: Sequence[Labelled], names: Sequence[str] | None,
          rejected: Rejections) -> dict[str, Any]:
    if names is None:
        names = sorted({name for _, _, _, objects in samples for name, _ in objects if name is not None})
    category_of: dict[str | None, int] = {name: i + 1 for i, name in enumerate(names)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (image, label, (height, width), objects) in enumerate(samples, start=1):
        images.append({"id": image_id, "file_name": image.relative_to(source).as_posix(), "height": height,
                       "width": width})
        for name, box in objects:
            reason = box if isinstance(box, str) else None
            if reason is None and name not in category_of:
                reason = f"object of a class that is not listed ({name})"
            if reason is None:
                box = _clip(box, height, width)
                reason = None if min(box[2:]) >= LEAST_SIDE else "box without a size, or outside of its image"
            if reason is not None:
                rejected.setdefault(reason, []).append(str(label))
                continue
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category_of[name],
                                "bbox": [round(n, 3) for n in box], "area": round(box[2] * box[3], 3), "iscrowd": 0})
    return {"images": images, "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in category_of.items()]}


def _clip(box: Sequence[float], height: int, width: int) -> list[float]:
    """x1 y1 x2 y2 -> x y width height inside the image."""
    x1, y1, x2, y2 = box
    x1, x2 = (min(max(x, 0.0), width) for x in (min(x1, x2), max(x1, x2)))
    y1, y2 = (min(max(y, 0.0), height) for y in (min(y1, y2), max(y1, y2)))
    return [x1, y1, x2 - x1, y2 - y1]


def _summarize(content: Mapping[str, Any], rejected: Rejections, output: Path) -> None:
    counts = Counter(a["category_id"] for a in content["annotations"])
    with_boxes = len({a["image_id"] for a in content["annotations"]})
    logger.info("%s: %d images, %d of them without a box, %d boxes", output.resolve(), len(content["images"]),
                len(content["images"]) - with_boxes, len(content["annotations"]))
    for category in content["categories"]:
        logger.info("  %6d  %s", counts[category["id"]], category["name"])
    for reason, examples in rejected.items():
        logger.warning("left out: %d x %s: %s", len(examples), reason,
                       ", ".join(examples[:3]) + (", ..." if len(examples) > 3 else ""))


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path.absolute()}: no such file; it lists one class name per line")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _number(text: Any, what: str) -> float:
    """A finite number of a file's, or Rejected."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise Rejected(f"{what} is {text!r}, not a number")
    return value


def _image_named(folders: Sequence[Path], stem: str, names: Sequence[str] = ()) -> Path | None:
    """The image of a label file: by the name that it gives, else by its own stem; None when there is none."""
    candidates = [folder / name for folder in folders for name in names if name]
    candidates += [folder / f"{stem}{suffix}" for folder in folders for s in SUFFIXES for suffix in (s, s.upper())]
    return next((path for path in candidates if path.is_file()), None)


# --- Pascal VOC


def _find_voc(source: Path) -> list[Pair]:
    images = [source, *(folder for folder in source.rglob("JPEGImages") if folder.is_dir())]
    return [(_image_named([path.parent, *images], path.stem), path) for path in sorted(source.rglob("*.xml"))]


def _read_voc(path: Path, height: int, width: int, names: Sequence[str] | None) -> Iterator[Object]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Rejected("declares entities, which annotations never need")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Rejected(f"is not XML ({error})") from error
    for item in root.iter("object"):
        name = (item.findtext("name") or "").strip()
        try:
            x1, y1, x2, y2 = (_number(item.findtext(f"bndbox/{key}"), key) for key in ("xmin", "ymin", "xmax", "ymax"))
        except Rejected as error:
            yield name, f"object without a box ({error})"
            continue
        yield name, (x1 - 1, y1 - 1, x2, y2)  # VOC counts pixels from 1, and the last one is inside


# --- YOLO


def _find_yolo(source: Path) -> list[Pair]:
    labels = [path for path in sorted(source.rglob("*.txt")) if path.name != "classes.txt"]
    pairs: list[Pair] = []
    for path in labels:
        folder = Path(*("images" if part == "labels" else part for part in path.parent.parts))
        pairs.append((_image_named([folder, path.parent], path.stem), path))
    listed = {image for image, _ in pairs}
    empty = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES and path not in listed]
    return pairs + [(path, path) for path in empty] if pairs else []  # an image without a text has no objects


def _read_yolo(path: Path, height: int, width: int, names: Sequence[str] | None) -> Iterator[Object]:
    if path.suffix != ".txt":
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            index, values = int(words[0]), [_number(word, f"line {number}") for word in words[1:]]
        except (ValueError, Rejected):
            yield None, "line that is not five numbers"
            continue
        if names is None or not 0 <= index < len(names):
            yield None, f"object of a class that is not listed ({index})"
        elif len(values) == 4:
            x, y, w, h = values
            yield names[index], ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        elif len(values) >= 6 and len(values) % 2 == 0:  # a polygon
            yield names[index], (min(values[::2]) * width, min(values[1::2]) * height, max(values[::2]) * width,
                                 max(values[1::2]) * height)
        else:
            yield None, "line that is not five numbers"


def _yolo_names(source: Path) -> list[str]:
    for path in [*sorted(source.glob("*.yaml")), *sorted(source.glob("*.yml"))]:
        try:
            names = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("names")
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            continue
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names)]
        if isinstance(names, list):
            return [str(name) for name in names]
    for path in sorted(source.rglob("classes.txt")):
        return _lines(path)
    raise DataError(f"{source}: has neither a data.yaml with `names` nor a classes.txt; give --classes FILE")


# --- labelme


def _find_labelme(source: Path) -> list[Pair]:
    pairs: list[Pair] = []
    for path in sorted(source.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            pairs.append((None, path))
            continue
        if isinstance(content, dict) and "shapes" in content:
            name = str(content.get("imagePath") or "").replace("\\", "/").rsplit("/", 1)[-1]
            pairs.append((_image_named([path.parent], path.stem, [name]), path))
    return pairs


def _read_labelme(path: Path, height: int, width: int, names: Sequence[str] | None) -> Iterator[Object]:
    shapes = json.loads(path.read_text(encoding="utf-8"))["shapes"]
    if not isinstance(shapes, list):
        raise Rejected("'shapes' is not a list")
    for shape in shapes:
        fields: Any = shape if isinstance(shape, dict) else {}
        name, kind, points = str(fields.get("label")), fields.get("shape_type", "polygon"), fields.get("points")
        try:
            xs, ys = zip(*((_number(x, "x"), _number(y, "y")) for x, y in points))
        except (Rejected, TypeError, ValueError):
            yield name, "shape without points"
            continue
        if kind == "circle" and len(xs) == 2:  # its centre, and a point on it
            radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
            yield name, (xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius)
        elif kind in ("rectangle", "polygon", "mask") and len(xs) >= 2:
            yield name, (min(xs), min(ys), max(xs), max(ys))
        else:
            yield name, f"shape that has no box ({kind})"


# Kind -> what finds the pairs in a folder, what reads one, and what names the classes (None: the names that occur).
Reading = tuple[Callable[[Path], list[Pair]], Callable[..., Iterator[Object]], Callable[[Path], Optional[list[str]]]]
READERS: dict[str, Reading] = {
    "voc": (_find_voc, _read_voc, lambda source: None), "yolo": (_find_yolo, _read_yolo, _yolo_names),
    "labelme": (_find_labelme, _read_labelme, lambda source: None)}
