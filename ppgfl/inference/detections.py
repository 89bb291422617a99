"""What was found on one image, and the formats it is written in."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.image import read_image
from ..system import atomic_write
from ..system.text import shown
from . import formats
from .bands import draw_bands
from .draw import draw_boxes

SPREADS = ("sigma", "top2")


@dataclass(repr=False)
class Detections:
    """The objects found on one image, best score first.

    Attributes:
        boxes: [M, 4] float32 x1 y1 x2 y2 in pixels of the original image; not clipped to it.
        scores: [M] float32, 0 to 1.
        labels: [M] int64 class indices.
        names: their M class names.
        path: the image file, or None when the image was given as an array.
        image: [H, W, 3] uint8 BGR when it was given as an array, else None.
        frame, time: of a video the frame's index, from 0, and its seconds; else None.
        sigma: [M, 4] float32 standard deviations of x1 y1 x2 y2 in pixels of the original image; None: not asked for.
        top2: [M, 4] float32 shares of the two greatest bins of each side's distribution; below 1 the less certain.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    path: str | None = None
    image: np.ndarray | None = None
    frame: int | None = None
    time: float | None = None
    sigma: np.ndarray | None = None
    top2: np.ndarray | None = None

    @classmethod
    def from_rows(cls, rows: np.ndarray, class_names: Sequence[str], path: str | None = None,
                  image: np.ndarray | None = None) -> Detections:
        """rows: [M, 6] class, score, x1, y1, x2, y2 of one image, or [M, 14] with sigma and top2 of each side behind
        them, as the model returns them."""
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        labels = rows[:, 0].astype(np.int64)
        sigma, top2 = (rows[:, 6:10], rows[:, 10:14]) if rows.shape[1] == 14 else (None, None)
        return cls(rows[:, 2:6], rows[:, 1], labels, [name_of(label, class_names) for label in labels], path, image,
                   sigma=sigma, top2=top2)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        """One line: how many objects, the best of them, and of which image."""
        best = ", ".join(f"{name} {score:.2f}" for name, score in list(zip(self.names, self.scores))[:3])
        more = ", ..." if len(self) > 3 else ""
        where = self.path if self.path is not None else "an array"
        return shown(f"<Detections: {len(self)} on {where}{': ' if best else ''}{best}{more}>")

    def above(self, threshold: float) -> Detections:
        """The detections that score at least `threshold`."""
        keep = self.scores >= threshold
        names = [name for name, kept in zip(self.names, keep) if kept]
        spreads = {name: getattr(self, name)[keep] for name in SPREADS if getattr(self, name) is not None}
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], names=names,
                       **spreads)

    def draw(self, threshold: float = 0.5, *, with_scores: bool = True, with_sigma: bool = False) -> np.ndarray:
        """The image [H, W, 3] uint8 BGR with the boxes that score at least `threshold`, and, if asked for, a band of
        one `sigma` to both sides of each of their lines."""
        if self.image is None and self.path is None:
            raise ValueError("these detections know neither the path nor the pixels of their image")
        image, found = self.image if self.image is not None else read_image(str(self.path)), self.above(threshold)
        if with_sigma and found.sigma is not None:
            image = draw_bands(image, found.boxes, found.sigma, found.labels)
        return draw_boxes(image, found.boxes, found.scores if with_scores else None, found.labels, found.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: {"file", "detections": [{"label", "name", "score", "box": [x1, y1, x2, y2]}]}; of a video with
        "frame" and "time"; with `sigma` each detection has it, and "top2", as four numbers."""
        place = {} if self.frame is None else {"frame": self.frame, "time": self.time}
        return {"file": self.path, **place, "detections": [
            {"label": int(label), "name": name, "score": round(float(score), 5),
             "box": [round(float(n), 2) for n in box],
             **{key: [round(float(n), 4) for n in getattr(self, key)[i]] for key in SPREADS
                if getattr(self, key) is not None}}
            for i, (box, score, label, name) in enumerate(zip(self.boxes, self.scores, self.labels, self.names))]}

    def to_json(self) -> str:
        """`to_dict` as a JSON string, which can be printed and written whatever the names are."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()

    def to_supervision(self) -> Any:
        """As `supervision.Detections`: xyxy, confidence, class_id, data["class_name"]; see `formats`."""
        return formats.to_supervision(self)

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """As COCO's results, see `coco_records`; category_ids: by class index."""
        return coco_records(np.column_stack([self.labels, self.scores, self.boxes]), image_id, category_ids)

    def to_yolo(self, *, with_scores: bool = False) -> str:
        """As the lines of a YOLO label file; see `formats`."""
        return formats.to_yolo(self, with_scores=with_scores)

    def to_labelme(self, image_path: str | None = None) -> dict[str, Any]:
        """As the content of a labelme file; see `formats`."""
        return formats.to_labelme(self, image_path)

    def to_voc(self, image_path: str | None = None) -> str:
        """As the text of a Pascal VOC file; see `formats`."""
        return formats.to_voc(self, image_path)


def name_of(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def split_batch(output: Mapping[str, Any]) -> list[np.ndarray]:
    """The model's {"bbox", "bbox_num"}, tensors or arrays -> one array [M, 6 or 14] per image: class by class, best
    score first within a class, which is a CPU's order; a GPU's is by score alone."""
    rows = np.asarray(output["bbox"])
    rows = rows.reshape(-1, rows.shape[-1])
    images = np.split(rows, np.cumsum(np.asarray(output["bbox_num"]))[:-1])
    return [image[np.argsort(image[:, 0], kind="stable")] for image in images]


def coco_records(rows: np.ndarray, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """[M, 6] of one image -> COCO results: x, y, width, height in pixels of the original image; of [M, 14] also
    `sigma`, of x1, y1, x2, y2.

    PaddleDetection: with `upstream_scores` GFLv2's last channel comes out as a class that does not exist; it is left
    out here.
    """
    return [{"image_id": image_id, "category_id": category_ids[int(label)],
             "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)], "score": float(score),
             **({"sigma": [float(n) for n in spread[:4]]} if spread else {})}
            for label, score, x1, y1, x2, y2, *spread in rows if label < len(category_ids)]


def rows_of_coco(records: Iterable[Mapping[str, Any]], category_ids: Sequence[int]) -> np.ndarray:
    """COCO results or annotations of one image -> [M, 6] class, score (1 without one), x1, y1, x2, y2."""
    class_of = {category: index for index, category in enumerate(category_ids)}
    rows = np.array([[class_of[record["category_id"]], record.get("score", 1.0), *record["bbox"]]
                     for record in records], np.float32).reshape(-1, 6)
    rows[:, 4:] += rows[:, 2:4]  # width and height -> the other corner
    return rows


def write_csv(path: str | os.PathLike[str], found: Iterable[Detections]) -> None:
    """One row per detection of a list of `Detections`."""
    found = list(found)
    spreads = [key for key in SPREADS if any(getattr(one, key) is not None for one in found)]
    rows = [[one.path, row["label"], row["name"], row["score"], *row["box"], *(n for key in spreads for n in row[key])]
            for one in found for row in one.to_dict()["detections"]]
    sides = ("x1", "y1", "x2", "y2")
    atomic_write.write_csv(path, [["file", "label", "name", "score", *sides,
                                   *(f"{key}_{side}" for key in spreads for side in sides)], *rows])
