"""Which images of a data set are for training and which for validation."""
from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from .image import files_below, is_image
from .labelled import Labelled, Names, Rejected, Report, absolute, place_of, read_text, split_named


def parse_split(split: Sequence[str]) -> tuple[float | None, dict[str, list[Path]]]:
    """The share of --split 0.8, or the lists of --split train.txt --split val.txt by the name of what they list."""
    lists: dict[str, list[Path]] = defaultdict(list)
    for text in split:
        try:
            share = float(text)
        except ValueError:
            path = absolute(text)
            lists[split_named(path.stem) or path.stem].append(path)
            if path.is_file():
                continue
            raise DataError(f"--split {path}: no such file; give a share as 0.8, or a file that lists images") from None
        if len(split) > 1 or not 0 < share < 1:
            raise DataError(f"--split {' '.join(split)}: give one number between 0 and 1, as 0.8, or text files")
        return share, {}
    return None, dict(lists)


def folder_splits(images: Iterable[Path], source: Path) -> dict[str, list[Path]]:
    """The folders below `source` that are called train, val or test and hold images."""
    folders: dict[str, set[Path]] = defaultdict(set)
    for parent in {image.parent for image in images if source in image.parents}:
        below = [parent, *parent.parents][:len(parent.parts) - len(source.parts)]
        for folder in below[::-1]:
            split = split_named(folder.name)
            if split:
                folders[split].add(folder)
                break
    return {split: sorted(found) for split, found in folders.items()}


def divide(samples: Sequence[Labelled], share: float, source: Path) -> dict[str, list[Labelled]]:
    """So large a share for training; see `held_out`."""
    if len(samples) < 2:
        raise DataError(f"{source}: {len(samples)} image cannot be divided; give a .json file as OUTPUT")
    val = held_out([{one.name for one in sample.objects} for sample in samples], share)
    return {"train": [one for i, one in enumerate(samples) if i not in val],
            "val": [one for i, one in enumerate(samples) if i in val]}


def held_out(classes: Sequence[Collection[str]], share: float) -> set[int]:
    """Of images, with the classes that are on each, the places of those for validation: what `share` leaves, and of
    each class as much: images are sorted by their rarest class, and every so many-th is taken."""
    counts = Counter(name for each in classes for name in each)
    order = list(range(len(classes)))
    random.Random(0).shuffle(order)
    order.sort(key=lambda i: min(((counts[name], name) for name in classes[i]), default=(0, "")))
    held = min(max(round(len(classes) * (1 - share)), 1), len(classes) - 1)
    return {i for n, i in enumerate(order) if (n + 1) * held // len(order) > n * held // len(order)}


def listed(paths: Sequence[Path], samples: Sequence[Labelled], source: Path, report: Report) -> list[Labelled]:
    """The images in folders, and those that text files list: by path, by name, or by that of the annotation file."""
    places = {place_of(sample.image) for sample in samples}
    names = Names((name, sample.image) for sample in samples for name in
                  (sample.image.name, sample.image.stem, sample.file.name, sample.file.stem))
    chosen: set[tuple[str, str]] = set()
    for path in paths:
        if path.is_dir():
            chosen.update(place_of(image) for image in files_below(path) if is_image(image))
            continue
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            place = _find_listed(line.replace("\\", "/").replace("\0", "?"), path, source, places, names)
            if place is None:
                report.rejected["line of a list that names no image that could be used"].append(f"{path}: {line}")
            else:
                chosen.add(place)
    return [sample for sample in samples if place_of(sample.image) in chosen]


def _find_listed(line: str, path: Path, source: Path, places: set[tuple[str, str]],
                 names: Names) -> tuple[str, str] | None:
    """The image that a line means, as one of `places`. It may go on, as in PaddleDetection's `images/1.png 1.xml`."""
    for text in (line, line.split(maxsplit=1)[0]):
        for folder in (path.parent, source):
            place = place_of(Path(os.path.normpath(folder / text)))
            if place in places:
                return place
        try:
            image = names.find(Path(text).name, near=path)
        except Rejected:  # it may be one of several
            continue
        if image is not None:
            return place_of(image)
    return None


def report_on_splits(parts: Mapping[str, Sequence[Labelled]], samples: Sequence[Labelled], report: Report) -> None:
    names_of: dict[Path, list[str]] = {sample.image: [] for sample in samples}
    for name, part in parts.items():
        for sample in part:
            names_of[sample.image].append(name)
    for image, names in names_of.items():
        if not names:
            report.rejected[f"image that is in none of {', '.join(parts)}"].append(str(image))
        elif len(names) > 1:
            report.notes[f"image that is in {' and '.join(names)}"].append(str(image))
