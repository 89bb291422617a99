"""Detect on folders of photographs: drawn pictures, and the numbers if asked for."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checked import check
from ..config.keys import setting, with_weights
from ..data.batch import Sample
from ..data.image import SUFFIXES, find_images, read_image, write_image
from ..errors import CheckpointError, ConfigError, DataError
from ..readers import build_dataset
from ..system import dist
from ..system.atomic_write import with_ending, write_json
from ..system.log import logger
from ..system.progress import progress
from ..weights import checkpoint, download
from .detections import Detections, coco_records, write_csv
from .detector import RowDetector, Rows, open_detector
from .json_lines import JsonLines
from .label_folder import LAYOUTS, LabelFolder, check_place
from .parquet import ParquetFile
from .runner import ahead
from .slicing import Slicing
from .static_model import in_dygraph

if TYPE_CHECKING:
    from ..model.gfl import GFL
    from .distributions import Distributions

RESULT_FILES = {"json": "results.json", "csv": "results.csv", "coco": "bbox.json"}
IMAGE_IDS = "images.json"  # beside bbox.json: which image each image_id is


def infer(cfg: dict[str, Any], images: str | os.PathLike[str] | Sequence[str], *,
          weights: str | os.PathLike[str] | None = None, output_dir: str | os.PathLike[str] = "output",
          draw_threshold: float = 0.5, save_results: str | None = None, save_threshold: float = 0.0,
          slicing: Slicing | None = None, pictures: bool = True, resume: bool = False,
          tta: str | None = None, show_distributions: bool = False, sigma: bool = False, draw_sigma: bool = False,
          calibrated: bool = False, copies: Mapping[str, str] | None = None,
          exported: str | os.PathLike[str] | None = None,
          runner: dict[str, Any] | None = None) -> list[Detections]:
    """Detect on files, save drawn pictures and, if asked, the numbers.

    Args:
        cfg: the dict of `load_config`.
        images: a folder (searched recursively, but for `output_dir`), a file, or a list of them. Results carry the
            names as they are given here; links are not resolved into them.
        weights: a .pdparams file; without it the config's `weights`.
        output_dir: pictures keep their names below it, and their sub-folders where the images come from several; a name
            without the ending of an image gets .png behind it.
        draw_threshold: boxes that score at least this much are drawn.
        save_results: None, or "json", "csv", "coco": `results.json`, `results.csv`, `bbox.json` in `output_dir`, the
            last with `images.json`, which says which image each id is; "yolo", "labelme", "voc": a folder of labels
            of that name, see `LabelFolder`; or for folders that do not fit into memory, written as they come: "jsonl",
            shards of one line per image, or "parquet", a table, see `ParquetFile`.
        save_threshold: smallest score of a saved result.
        slicing: a `slicing.Slicing`, to look at images slice by slice.
        pictures: whether to draw any.
        resume: with "jsonl": leave out what an earlier run has done.
        tta: test-time augmentation, as "flip,0.8"; see `open_detector`.
        show_distributions: beside each picture another of its best boxes' distributions, see `distribution_figure`;
            the model runs in dygraph then.
        copies: {file: what it is a copy of, whose name its results carry}, as of `video.local_copies`; its picture is
            called as though it lay in the current folder.
        sigma: also how uncertain the sides of boxes are, see `Detections`; in all results but COCO's with `top2`.
        draw_sigma: draw it, too.
        calibrated: scores, which thresholds are compared with, and sigma as the calibration of the weights makes them.
        exported, runner: an exported model instead of weights, and how it runs; see `open_detector`.

    Returns: a list of `Detections`, one per image; with "jsonl" and "parquet" an empty one.
    Raises: ConfigError, DataError, CheckpointError.
    """
    _check_results(save_results, resume, sigma)
    check_scores(draw_threshold=draw_threshold, save_threshold=save_threshold)
    check(cfg)
    if show_distributions:
        _check_distributions(cfg, slicing, tta, pictures, calibrated, exported)
    dist.start()
    cfg = cfg if exported else with_weights(cfg, weights)
    folder = Path(output_dir)
    dataset = images_to_look_at(cfg, images, folder)
    files = [record["im_file"] for record in dataset.records]
    copies = copies or {}
    here = [os.path.basename(file) if file in copies else file for file in files]
    paths = _picture_paths(here, folder) if pictures else None
    if save_results in LAYOUTS:
        check_place(save_results, folder, paths or ())
    shown_as = [copies.get(file, file) for file in files]
    sigma = sigma or draw_sigma
    made_by = {"save_threshold": save_threshold, "slicing": str(slicing), "tta": str(tta),
               **{name: True for name, is_on in (("sigma", sigma), ("calibrated", calibrated)) if is_on},
               **({"exported": str(exported), **(runner or {})} if exported else {})}
    lines = _open_lines(save_results, folder, resume, cfg, made_by)
    records = _share(dataset.records, lines)
    model = in_dygraph(cfg, weights, sigma) if show_distributions else None
    detector = open_detector(cfg, weights=weights, model=model, slicing=slicing, images=len(records), tta=tta,
                             sigma=sigma, calibrated=calibrated, exported=exported, runner=runner)
    names, category_ids = dataset.classes_of(detector.class_names, by_place=setting(cfg, "match_classes") == "place")
    results = _Results(folder, shown_as, category_ids, draw_threshold, save_threshold, lines)
    figures = figure_paths(files, paths) if paths and model is not None else None
    labels = (LabelFolder(save_results, folder, files, picture_names(here), names, copied=copies)
              if save_results in LAYOUTS else None)

    def draw(each: tuple[int, Rows, Distributions | None]) -> tuple[int, Rows, Detections]:
        index, rows, distributions = each
        one = Detections.from_rows(rows, names, path=files[index])
        if paths:
            paths[index].parent.mkdir(parents=True, exist_ok=True)
            write_image(str(paths[index]), one.draw(draw_threshold, with_sigma=draw_sigma))
        if figures and distributions:
            from .distribution_figure import draw_distributions

            figure = draw_distributions(read_image(files[index]), one.above(draw_threshold), distributions)
            write_image(str(figures[index]), figure)
        if labels:
            labels.write(index, one.above(save_threshold))
        one.path = shown_as[index]
        return index, rows, one

    detected = progress(_seen(cfg, model, detector, records), total=len(records), what="infer")
    with closing(ahead(draw, detected)) if paths or labels else nullcontext(map(draw, detected)) as done:
        for index, rows, one in done:
            results.add(index, rows, one)
    results.say(pictures)
    writer = lines or labels
    if writer:
        writer.close()
    elif save_results:
        _save(save_results, folder, results.found, results.coco, shown_as)
    return results.found


def _seen(cfg: dict[str, Any], model: GFL | None, detector: RowDetector,
          records: Sequence[Sample]) -> Iterator[tuple[int, Rows, Distributions | None]]:
    """The detections of each record by its place, with their distributions where there is a model to ask."""
    if model is None:
        return ((index, rows, None) for index, rows in detector.detect_records(records))
    from .distributions import detect_records

    return detect_records(cfg, model, records)


def _check_results(kind: str | None, resume: bool, sigma: bool) -> None:
    """Raises ConfigError for what results of this kind cannot hold."""
    if resume and kind != "jsonl":
        raise ConfigError("--resume goes with --save_results jsonl, whose shards say what is done")
    if sigma and kind in LAYOUTS:
        raise ConfigError(f"--sigma: labels of {kind} have no place for it; save json, csv, jsonl or parquet")


def check_scores(**scores: float) -> None:
    """Raises a ConfigError for a threshold that is none."""
    for name, value in scores.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"--{name}: {value}; it is a score, 0 to 1")


def _open_lines(kind: str | None, folder: Path, resume: bool, cfg: dict[str, Any],
                made_by: dict[str, Any]) -> JsonLines | ParquetFile | None:
    """What results are written to at once; None: they are kept. The shards of JSON lines come about as `made_by` says,
    with the weights of the config or of the export in it."""
    if kind == "parquet":
        return ParquetFile(folder, sigma="sigma" in made_by)
    if kind != "jsonl":
        return None
    return JsonLines(folder, resume=resume, settings={"weights": _told_apart(made_by.get("exported"), cfg), **made_by})


def _told_apart(exported: str | None, cfg: dict[str, Any]) -> str:
    """What computes, by what is in its files."""
    if exported and os.path.exists(exported):
        files = sorted(Path(exported).glob("model*")) if os.path.isdir(exported) else [Path(exported)]
    else:
        weights = str(setting(cfg, "weights"))
        try:
            files = [checkpoint.find(weights)]
        except CheckpointError:  # which whoever loads them says
            return weights
    return ", ".join(f"{path.name} (SHA-256 {download.sha256(path)[:8]})" for path in files)


def _check_distributions(cfg: dict[str, Any], slicing: Slicing | None, tta: str | None, pictures: bool,
                         calibrated: bool, exported: object) -> None:
    """Raises ConfigError where a box has no distributions of its own, or nothing is drawn."""
    several = "a box may come from several looks at an image, or of several boxes"
    for is_given, what in ((slicing is not None, f"with --slice_infer {several}; leave one of the two out"),
                           (tta is not None, f"with --tta {several}; leave one of the two out"),
                           (calibrated, "with --calibrated a score is not what the network makes of the distributions; "
                                        "leave one of the two out"),
                           (exported is not None, "an exported model gives boxes alone; leave one of the two out"),
                           (not pictures, "with --no_pictures nothing is drawn; leave one of the two out"),
                           (setting(cfg, "engine") == "static", "with engine: static the graph gives boxes alone; set "
                                                                "engine to auto or dygraph")):
        if is_given:
            raise ConfigError(f"--show_distributions: {what}")


def images_to_look_at(cfg: dict[str, Any], images: str | os.PathLike[str] | Sequence[str], folder: Path) -> Any:
    """The config's TestDataset of these images, but for those in `folder`. Raises ConfigError, DataError."""
    places = [images] if isinstance(images, (str, os.PathLike)) else images
    files = [file for place in places for file in find_images(place, leave_out=folder)]
    section = {**(cfg.get("TestDataset") or {"name": "ImageFolder"}), "image_dir": files}
    return build_dataset({**cfg, "TestDataset": section}, "TestDataset")


@dataclass
class _Results:
    """What is kept of detections as they come, or written at once where there are `lines`."""

    folder: Path
    files: list[str]
    category_ids: Sequence[Any]
    draw_threshold: float
    save_threshold: float
    lines: JsonLines | ParquetFile | None
    found: list[Detections] = field(default_factory=list)
    coco: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    drawn: int = 0
    best: float = 0.0  # score

    def add(self, index: int, rows: Rows, one: Detections) -> None:
        """Those of the image at a place of `files`."""
        self.count += 1
        self.drawn += len(one.above(self.draw_threshold))
        self.best = max(self.best, float(one.scores.max(initial=0)))
        saved = one.above(self.save_threshold)
        if self.lines:  # the folder is for a --resume from elsewhere
            self.lines.write({**saved.to_dict(),
                              **({} if os.path.isabs(self.files[index]) else {"folder": os.getcwd()})})
            return
        self.found.append(saved)
        self.coco += coco_records(rows[rows[:, 1] >= self.save_threshold], index, self.category_ids)

    def say(self, pictures: bool) -> None:
        """Where they are, and why no box was drawn."""
        logger.info("%d %s in %s%s", self.count, "pictures" if pictures else "images", self.folder.resolve(),
                    ", results-*.jsonl beside them" if isinstance(self.lines, JsonLines) and pictures else "")
        if pictures:
            logger.info("%d boxes drawn%s", self.drawn, "" if self.drawn or not self.count else
                        f": the best score is {self.best:.3f}, and --draw_threshold is {self.draw_threshold:g}"
                        if self.best else ": nothing was found")


def _share(records: list[Sample], lines: JsonLines | ParquetFile | None) -> list[Sample]:
    """Of the images those that this process has to do: its share of what an earlier run has not done."""
    if lines is None:
        return records
    done = {_place(file) for file in lines.done}
    left = [record for record in records if _place(record["im_file"]) not in done]
    if len(left) < len(records):
        logger.info("%d of %d images were done by an earlier run", len(records) - len(left), len(records))
    return left[dist.rank()::dist.world_size()]


def _save(kind: str, folder: Path, found: Sequence[Detections], coco: list[dict[str, Any]], files: list[str]) -> None:
    path = folder / RESULT_FILES[kind]
    if kind == "csv":
        write_csv(path, found)
    else:
        write_json(path, coco if kind == "coco" else [one.to_dict() for one in found])
    if kind == "coco":
        write_json(folder / IMAGE_IDS, [{"id": index, "file_name": file} for index, file in enumerate(files)])
    logger.info("%d detections in %s", sum(map(len, found)), path.resolve())


def _picture_paths(files: Sequence[str], folder: Path) -> list[Path]:
    """Where each picture goes; raises a DataError rather than write over an image it was made from."""
    pictures = picture_names(files)
    sources = {os.path.realpath(file) for file in files}
    for name in pictures:
        picture = os.path.realpath(folder / name)
        if picture in sources:
            raise DataError(f"{picture}: the drawn picture would replace the image; give another --output_dir")
    return [folder / name for name in pictures]


def picture_names(files: Sequence[str]) -> list[str]:
    """For each image the path of its picture below the output folder: its name, in its sub-folder where the images come
    from several. A name that OpenCV cannot write by its ending, or that another image has taken, gets .png behind it.
    """
    paths = [os.path.abspath(file) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = [os.path.relpath(path, root) for path in paths]
    owners: dict[str, str] = {}
    places = [_place(file) for file in files]
    has_ending = [os.path.splitext(name)[1].lower() in SUFFIXES for name in names]
    for i in sorted(range(len(names)), key=lambda i: not has_ending[i]):  # those that can keep their names come first
        keeps = has_ending[i]
        while not keeps or owners.setdefault(names[i], places[i]) != places[i]:
            parent, name = os.path.split(names[i])
            names[i], keeps = os.path.join(parent, with_ending(name, ".png")), True
    return names


def figure_paths(files: Sequence[str], pictures: Sequence[Path]) -> list[Path]:
    """For each picture where that of its distributions goes, beside it: its name without ending and _distributions.png;
    where an image, a picture or another of these has that name, with another .png behind it."""
    taken = {os.path.realpath(path) for path in [*files, *map(str, pictures)]}
    figures = []
    for picture in pictures:
        figure = picture.with_name(with_ending(picture.stem, "_distributions.png"))
        while os.path.realpath(figure) in taken:
            figure = figure.with_name(with_ending(figure.name, ".png"))
        taken.add(os.path.realpath(figure))
        figures.append(figure)
    return figures


def _place(file: str) -> str:
    """One path of a file, however it is spelled; a link is a file of its own."""
    folder, name = os.path.split(file)
    return os.path.join(os.path.realpath(folder), name)
