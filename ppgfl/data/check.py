"""What is in a data set, and what is wrong with it, before hours are spent on it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..system import runtime
from ..system.log import logger
from ..system.progress import progress
from .dataset import read_annotations, reason_to_reject
from .image import read_image

SECTIONS = ("TrainDataset", "EvalDataset")
LISTED = 5  # examples of a fault
SLACK = 2.0  # pixels that a box may stand out of its image


@dataclass
class Report:
    """One section's data set.

    Attributes:
        faults: {what: list of examples}: training or evaluating on it would stop, or learn something wrong.
        remarks: {what: list of examples}: handled, but worth knowing.
        boxes_of: class name -> number of boxes.
        sides: square roots of the boxes' areas, in pixels.
    """

    section: str
    path: Path
    class_names: list[str]
    files: set[str]
    images: int = 0
    empty: int = 0
    faults: dict[str, list[Any]] = field(default_factory=dict)
    remarks: dict[str, list[Any]] = field(default_factory=dict)
    boxes_of: Counter[str] = field(default_factory=Counter)
    sides: list[float] = field(default_factory=list)


def check(cfg: Mapping[str, Any], *, output_dir: str | PathLike[str] = "output/data_check",
          decode: bool = True) -> bool:
    """Look through the data sets of a config, print what was found, and draw classes and sizes.

    Args:
        cfg: the dict of `load_config`, checked.
        output_dir: for a picture of each data set.
        decode: also decode every image.

    Returns: whether nothing is wrong.
    Raises: ConfigError, DataError: a section or an annotation file that cannot be read at all.
    """
    sections = [name for name in SECTIONS if cfg.get(name, {}).get("name") == "COCODataSet"]
    if not sections:
        raise ConfigError(f"the config has no COCODataSet under {' or '.join(SECTIONS)}")
    reports = [look_through(cfg, section, decode) for section in sections]
    well = True
    for report in reports:
        _print(report)
        _draw(report, Path(output_dir) / f"{report.section}.png")
        well = well and not report.faults
    for line in compare(reports, cfg.get("num_classes", 80)):
        well = False
        logger.warning("bad   %s", line)
    logger.info("pictures of classes and box sizes in %s", Path(output_dir).resolve())
    logger.info("nothing is wrong" if well else "something is wrong: see the lines that begin with bad")
    return well


def look_through(cfg: Mapping[str, Any], section: str, decode: bool = True) -> Report:
    """The `Report` of a section."""
    entry = cfg[section]
    folder = Path(entry.get("dataset_dir") or "", entry.get("image_dir") or "").expanduser()
    path = Path(entry.get("dataset_dir") or "", entry.get("anno_path") or "").expanduser()
    content = read_annotations(path, section)
    images = {image["id"]: image for image in content["images"]}
    report = Report(section, path, [str(c["name"]) for c in content["categories"]],
                    {str((folder / image["file_name"]).resolve()) for image in images.values()}, len(images))
    _twice(report, "image id listed twice", [image["id"] for image in content["images"]])
    _twice(report, "file listed twice", [image["file_name"] for image in content["images"]])
    _twice(report, "category id listed twice", [category["id"] for category in content["categories"]])
    _twice(report, "class name listed twice", report.class_names)
    _look_at_boxes(report, content, images)
    _look_at_files(report, folder, images, decode)
    return report


def compare(reports: Sequence[Report], num_classes: int) -> Iterator[str]:
    """Lines about data sets that do not belong together, or not to the config."""
    for report in reports:
        if len(report.class_names) != num_classes:
            yield (f"num_classes is {num_classes}, {report.path} lists {len(report.class_names)}: set num_classes to "
                   f"{len(report.class_names)}")
    for a, b in zip(reports, reports[1:]):
        if a.class_names != b.class_names:
            only_a, only_b = set(a.class_names) - set(b.class_names), set(b.class_names) - set(a.class_names)
            what = (f"only the first has {_some(only_a)}, only the second {_some(only_b)}" if only_a or only_b
                    else "they stand in another order, so that a class has another number")
            yield f"{a.path} and {b.path} do not list the same classes: {what}"
        both = a.files & b.files
        if both:
            yield (f"{len(both)} images are in {a.section} and in {b.section}, so the AP comes out too high: "
                   f"{_some(both)}")


def _some(values: Iterable[Any]) -> str:
    words = sorted(map(str, values))
    return ", ".join(words[:LISTED]) + (", ..." if len(words) > LISTED else "") if words else "nothing more"


def _twice(report: Report, what: str, values: Iterable[Any]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        report.faults[what] = repeated


def _look_at_boxes(report: Report, content: Mapping[str, Any], images: Mapping[Any, Mapping[str, Any]]) -> None:
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    with_boxes = set()
    for annotation in content.get("annotations", []):
        label = f"annotation {annotation.get('id')}"
        image = images.get(annotation.get("image_id"))
        reason = reason_to_reject(annotation)
        if image is None:
            report.remarks.setdefault("box of an image that is not listed", []).append(label)
        elif annotation.get("category_id") not in names:
            report.faults.setdefault("box of a category that is not listed", []).append(label)
        elif reason:
            report.remarks.setdefault(f"box left out: {reason}", []).append(label)
        else:
            with_boxes.add(image["id"])
            report.boxes_of[names[annotation["category_id"]]] += 1
            x, y, width, height = annotation["bbox"]
            report.sides.append(float(np.sqrt(width * height)))
            if image.get("width") and (min(x, y) < -SLACK or x + width > image["width"] + SLACK
                                       or y + height > image.get("height", np.inf) + SLACK):
                report.faults.setdefault("box that stands out of its image", []).append(label)
    report.empty = report.images - len(with_boxes)
    without = [name for name in report.class_names if not report.boxes_of[name]]
    if without:
        report.remarks["class without a box"] = without


def _look_at_files(report: Report, folder: Path, images: Mapping[Any, Mapping[str, Any]], decode: bool) -> None:
    def look(image: Mapping[str, Any]) -> tuple[str, str] | None:
        path = folder / image["file_name"]
        if not path.is_file():
            return "missing file", str(path)
        if not decode:
            return None
        try:
            height, width = read_image(str(path)).shape[:2]
        except DataError as error:
            return "image that cannot be decoded", str(error)
        listed = image.get("height"), image.get("width")
        if None not in listed and listed != (height, width):
            return "image of another size than listed", f"{path}: {width}x{height}, listed {listed[1]}x{listed[0]}"
        return None

    with ThreadPoolExecutor(runtime.physical_cores()) as pool:  # OpenCV decodes without Python's lock
        found = progress(pool.map(look, images.values()), total=len(images), what=report.section)
        for fault in found:
            if fault:
                report.faults.setdefault(fault[0], []).append(fault[1])


def _print(report: Report) -> None:
    boxes = sum(report.boxes_of.values())
    logger.info("%s %s: %d images, %d of them without a box, %d boxes, %d classes", report.section, report.path,
                report.images, report.empty, boxes, len(report.class_names))
    if boxes:
        most, least = report.boxes_of.most_common()[0], report.boxes_of.most_common()[-1]
        quarter, half, most_of = np.percentile(report.sides, (25, 50, 75))
        logger.info("  boxes per class from %d (%s) to %d (%s); side %.0f / %.0f / %.0f pixels (quartiles)", least[1],
                    least[0], most[1], most[0], quarter, half, most_of)
    for level, found in (("bad", report.faults), ("note", report.remarks)):
        for what, examples in found.items():
            log = logger.warning if level == "bad" else logger.info
            log("%-5s %d x %s: %s", level, len(examples), what, _some(examples))


def _draw(report: Report, path: Path) -> None:
    """Boxes per class (the 40 largest) and box sizes."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    common = report.boxes_of.most_common(40)
    figure = Figure(figsize=(max(9, 3 + 0.25 * len(common)), 4), layout="constrained")
    classes, sizes = figure.subplots(1, 2, width_ratios=(max(2, len(common) / 12), 2))
    classes.bar([name for name, _ in common], [count for _, count in common])
    classes.tick_params(axis="x", rotation=90)
    classes.set_title(f"boxes per class ({report.section})")
    if report.sides:
        sizes.hist(report.sides, bins=np.geomspace(max(1, min(report.sides)), max(report.sides) + 1, 40))
        sizes.set_xscale("log")
    for side, name in ((32, "small | medium"), (96, "medium | large")):
        sizes.axvline(side, color="black", linestyle=":")
        sizes.text(side, 1.0, name, transform=sizes.get_xaxis_transform(), ha="center", va="bottom", fontsize=7)
    sizes.set_xlabel("square root of the area, pixels")
    sizes.set_title("box sizes", pad=16)
    figure.savefig(path, dpi=100)
