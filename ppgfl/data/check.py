"""What is in a data set, and what is wrong with it, before hours are spent on it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, UserError
from ..system import runtime
from ..system.fonts import chart_fonts, chart_text
from ..system.log import logger
from ..system.progress import progress
from .annotations import SAME_NAME, Annotations, Entry, some, twice
from .image import read_image
from .sources import locate, read_source

SECTIONS = ("TrainDataset", "EvalDataset")
KINDS = ("COCODataSet", "VOCDataSet", "YOLODataSet")
DIFFICULT = "box marked difficult, which is learnt and need not be found"
SLACK = 2.0  # pixels that a box may stand out of its image
MOST_LOST = 0.1  # share of the boxes, from which on a data set is bad
NO_IMAGE, NO_CATEGORY = "box of an image that is not listed", "box of a category that is not listed"
ON_PURPOSE = ("box left out: crowd", "box left out: marked ignore")  # someone wanted it so
SWAPPED = "image whose width and height are swapped, which does no harm here"

Size = tuple[float, float]


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
    images: int = 0
    files: set[str] = field(default_factory=set)
    empty: int = 0
    faults: dict[str, list[Any]] = field(default_factory=dict)
    remarks: dict[str, list[Any]] = field(default_factory=dict)
    boxes_of: Counter[str] = field(default_factory=Counter)
    sides: list[float] = field(default_factory=list)


def check(cfg: Mapping[str, Any], *, output_dir: str | PathLike[str] = "output/data_check", decode: bool = True,
          rehearse: Callable[[], Iterable[str]] | None = None) -> bool:
    """Look through the data sets of a config, print what was found, and draw classes and sizes.

    Args:
        cfg: the dict of `load_config`, checked.
        output_dir: for a picture of each data set.
        decode: also decode every image.
        rehearse: called when nothing is wrong: gives advice on the training, or raises what it would stop with.

    Returns: whether nothing is wrong.
    Raises: ConfigError, DataError: a section or an annotation file that cannot be read at all.
    """
    sections = [name for name in SECTIONS if (cfg.get(name) or {}).get("name") in KINDS]
    if not sections:
        raise ConfigError(f"the config has no {', '.join(KINDS[:-1])} or {KINDS[-1]} under {' or '.join(SECTIONS)}")
    reports = [look_through(cfg, section, decode) for section in sections]
    well = True
    for report in reports:
        _print(report)
        with chart_fonts(report.boxes_of):
            _draw(report, Path(output_dir) / f"{report.section}.png")
        well = well and not report.faults
    for line in compare(reports, cfg.get("num_classes", 80)):
        well = False
        logger.warning("bad   %s", line)
    if well and rehearse:
        try:
            for line in rehearse():
                logger.warning("note  %s", line)
        except UserError as error:
            well = False
            logger.warning("bad   training would stop: %s", error)
    logger.info("pictures of classes and box sizes in %s", Path(output_dir).resolve())
    logger.info("nothing is wrong" if well else "something is wrong: see the lines that begin with bad")
    return well


def look_through(cfg: Mapping[str, Any], section: str, decode: bool = True) -> Report:
    """The `Report` of a section. Raises: DataError: an annotation file that cannot be read at all."""
    keys = cfg[section]
    dataset_dir, image_dir = keys.get("dataset_dir") or "", keys.get("image_dir") or ""
    found = read_source(keys, section)
    report = Report(section, found.path, [category["name"] for category in found.categories], len(found.images))
    _twice(report, "image id listed twice", [image["id"] for image in found.images])
    _twice(report, "file listed twice", [image["file_name"] for image in found.images])
    _twice(report, "category id listed twice", [category["id"] for category in found.categories])
    try:
        paths = locate(found, dataset_dir, image_dir, section, allow_outside=bool(keys.get("allow_outside")))
    except DataError as error:
        report.faults["file outside of the data set"] = [str(error)]
        paths = []
    report.files = {str(Path(path).resolve()) for path in paths}
    sizes = _look_at_files(report, found.images, paths, decode)
    _look_at_boxes(report, found, sizes, load_crowd=bool(keys.get("load_crowd")))
    for what, count in found.mended.items():
        if count:
            (report.faults if what == SAME_NAME else report.remarks)[what] = [f"{count} times"]
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
            if only_a or only_b:
                yield (f"{a.path} and {b.path} do not list the same classes: only the first has {some(only_a)}, only "
                       f"the second {some(only_b)}")
            else:
                logger.info("note  %s and %s list the classes in different orders; they are matched by name", a.path,
                            b.path)
        both = a.files & b.files
        if both:
            yield (f"{len(both)} images are in {a.section} and in {b.section}, so the AP comes out too high: "
                   f"{some(sorted(both))}")


def _twice(report: Report, what: str, values: Iterable[Any]) -> None:
    repeated = twice(values)
    if repeated:
        report.faults[what] = repeated


def _look_at_boxes(report: Report, found: Annotations, sizes: Sequence[Size], *, load_crowd: bool) -> None:
    left_out: dict[str, list[Any]] = {NO_IMAGE: found.strays, NO_CATEGORY: found.unlisted}
    difficult = []
    with_boxes = set()
    for one in found.objects:
        label, reason = f"annotation {one['id']}", one["reason"]
        if reason and not (load_crowd and reason == "crowd"):
            left_out.setdefault(f"box left out: {reason}", []).append(label)
            continue
        if one["difficult"]:
            difficult.append(label)
        with_boxes.add(one["image"])
        report.boxes_of[report.class_names[one["category"]]] += 1
        x, y, width, height = one["bbox"]
        report.sides.append(float(np.sqrt(width * height)))
        image_width, image_height = sizes[one["image"]]
        if min(x, y) < -SLACK or x + width > image_width + SLACK or y + height > image_height + SLACK:
            report.faults.setdefault("box that stands out of its image", []).append(label)
    report.empty = report.images - len(with_boxes)
    damaged = sum(len(examples) for what, examples in left_out.items() if what not in ON_PURPOSE)
    bad = not report.sides or damaged > MOST_LOST * (damaged + len(report.sides))
    for what, examples in left_out.items():
        if examples:
            (report.faults if bad or what == NO_CATEGORY else report.remarks)[what] = examples
    if not report.sides:
        report.faults["reason to stop"] = ["there is no box to learn from or to find"]
    if difficult:
        report.remarks[DIFFICULT] = difficult
    without = [name for name in report.class_names if not report.boxes_of[name]]
    if without:
        report.remarks["class without a box"] = without


def _look_at_files(report: Report, images: Sequence[Entry], paths: Sequence[str], decode: bool) -> list[Size]:
    """Width and height of each image: its own, else what the file lists, else endless."""
    listed = [(image["width"] or np.inf, image["height"] or np.inf) for image in images]

    def look(path: str, listed: Size) -> tuple[Size, str, str]:
        if not Path(path).is_file():
            return listed, "missing file", path
        if not decode:
            return listed, "", ""
        try:
            height, width = read_image(path).shape[:2]
        except DataError as error:
            return listed, "image that cannot be decoded", str(error)
        if np.inf in listed or listed == (width, height):
            return (width, height), "", ""
        what = SWAPPED if listed == (height, width) else "image of another size than listed"
        return (width, height), what, f"{path}: {width}x{height}, listed {listed[0]}x{listed[1]}"

    with ThreadPoolExecutor(runtime.physical_cores()) as pool:  # OpenCV decodes without Python's lock
        seen = list(progress(pool.map(look, paths, listed), total=len(paths), what=report.section))
    for _, what, example in seen:
        if what:
            kind = report.remarks if what == SWAPPED else report.faults
            kind.setdefault(what, []).append(example)
    return [size for size, _, _ in seen] or listed


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
            log("%-5s %d x %s: %s", level, len(examples), what, some(examples))


def _draw(report: Report, path: Path) -> None:
    """Boxes per class (the 40 largest) and box sizes."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    common = report.boxes_of.most_common(40)
    figure = Figure(figsize=(max(9, 3 + 0.25 * len(common)), 4), layout="constrained")
    classes, sizes = figure.subplots(1, 2, width_ratios=(max(2, len(common) / 12), 2))
    classes.bar(range(len(common)), [count for _, count in common])
    classes.set_xticks(range(len(common)), [chart_text(name) for name, _ in common])
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
