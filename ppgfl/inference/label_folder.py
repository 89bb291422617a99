"""Detections as a data set that labelling tools open and `ppgfl data convert` reads: a label file for each image."""
from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import yaml

from ..data.image import read_image
from ..data.labelled import check_names, swap_folder
from ..errors import ConfigError, DataError
from ..system import dist
from ..system.atomic_write import with_ending, write_json, write_text
from ..system.log import logger
from .detections import Detections
from .formats import inside, size_of

# Folders of images and of labels, ending of a label, list of the classes.
LAYOUTS = {"yolo": ("images", "labels", ".txt", "classes.txt"),
           "voc": ("JPEGImages", "Annotations", ".xml", "labels.txt"),
           "labelme": ("", "", ".json", "labels.txt")}


class LabelFolder:
    """Writes the labels of images to a new folder that is called like their format, with links to the images (copies
    where the system allows none), both in sub-folders as the images, and the list of the classes. Several threads may
    call `write`.

    Args:
        kind: one of `LAYOUTS`.
        output_dir: the folder is made in it.
        files: the images.
        names: of each the path that it gets below the folder of images.
        class_names: by class index; a detection of any other class is left out.
        copied: of the files those that are temporary, so that links to them would lead nowhere.

    Raises: what `check_place` does; DataError: a name of a class cannot stand in label files.
    """

    def __init__(self, kind: str, output_dir: Path, files: Sequence[str], names: Sequence[str],
                 class_names: Sequence[str], copied: Container[str] = ()) -> None:
        self.folder, self.kind, self.files, self.class_names = output_dir / kind, kind, files, class_names
        self.copied = copied
        check_place(kind, output_dir)
        self.images, self.labels, self.ending, self.list = LAYOUTS[kind]
        check_names(class_names, "the classes of the model")
        bad = next((name for name in class_names if name != name.strip() or not name
                    or any(unicodedata.category(letter) == "Cc" for letter in name)), None)
        if bad is not None:
            raise DataError(f"the class name {bad!r} cannot stand in label files: it has blanks around it, or letters "
                            "that act on a terminal; rename it in the data set of the config")
        self.names = _with_own_stems(names)
        self.counts: list[tuple[int, int]] = []  # of each image: labels, and what was left out

    def write(self, index: int, found: Detections) -> None:
        """Those of the image at a place of `files`. Raises OSError, DataError."""
        image = self.folder / self.images / self.names[index]
        image.parent.mkdir(parents=True, exist_ok=True)
        if self.files[index] in self.copied:
            shutil.copyfile(self.files[index], image)
        else:
            _link(self.files[index], image)
        rows = np.column_stack([found.labels, found.scores, found.boxes])[found.labels < len(self.class_names)]
        one = Detections.from_rows(rows, self.class_names, image=read_image(self.files[index]))
        folder = swap_folder(image.parent, (self.images,), self.labels) if self.images else image.parent
        label = (folder or image.parent) / with_ending(image.stem, self.ending)
        if self.kind == "labelme":
            write_json(label, one.to_labelme(image.name))
        else:
            write_text(label, one.to_yolo() if self.kind == "yolo" else one.to_voc(image.name))
        written = sum(1 for _ in inside(one, size_of(one)))
        self.counts.append((written, len(found) - written))

    def close(self) -> None:
        """Write the list of the classes, and say what is where."""
        write_text(self.folder / self.list, "".join(f"{name}\n" for name in self.class_names))
        if self.kind == "yolo":
            content = {"train": self.images, "names": dict(enumerate(self.class_names))}
            write_text(self.folder / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        labels, left_out = (sum(column) for column in zip(*self.counts)) if self.counts else (0, 0)
        logger.info("%d labels of %d images in %s", labels, len(self.counts), self.folder.resolve())
        if left_out:
            logger.warning("%d detections have no label: they lie outside of their image, or their class has no name",
                           left_out)


def check_place(kind: str, output_dir: Path, pictures: Sequence[Path] = ()) -> None:
    """Raises DataError where a `LabelFolder` is there and not empty, as its labels may be a person's work by now, or
    one of the pictures would lie in it; ConfigError where there are several processes."""
    folder = output_dir / kind
    if dist.world_size() > 1:
        raise ConfigError(f"--save_results {kind}: one process writes labels; start a single one, or take jsonl")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder.absolute()}: is there already and is not written over, since somebody may have "
                        "corrected its labels; move it away, or give another --output_dir")
    picture = next((path for path in pictures if folder in path.parents), None)
    if picture is not None:
        raise DataError(f"{picture.absolute()}: this picture would lie among the labels; give --no_pictures, or rename "
                        f"the folder {kind} of the images")


def _with_own_stems(names: Sequence[str]) -> list[str]:
    """The paths, of which no two differ by their ending alone: the second of a.jpg and a.png is a.png.png."""
    taken: set[str] = set()
    own = []
    for name in names:
        while os.path.splitext(name)[0].casefold() in taken:
            folder, last = os.path.split(name)
            name = os.path.join(folder, with_ending(last, os.path.splitext(last)[1]))
        taken.add(os.path.splitext(name)[0].casefold())
        own.append(name)
    return own


def _link(file: str, link: Path) -> None:
    with suppress(OSError):  # as on Windows, where it takes a right of its own
        os.symlink(os.path.abspath(file), link)
        return
    shutil.copyfile(file, link)
