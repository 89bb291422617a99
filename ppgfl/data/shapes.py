"""A small data set that can be learnt in minutes: coloured shapes on clutter, in COCO's format, drawn from a seed."""
from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle")


def make_shapes(folder: str | PathLike[str], *, train: int = 200, val: int = 60, size: tuple[int, int] = (128, 160),
                seed: int = 0) -> Path:
    """Draw the data set, unless it is there already.

    Args:
        folder: gets train2017/, val2017/ and annotations/instances_{train,val}2017.json.
        train, val: number of images.
        size: height and width in pixels.
        seed: of everything that is drawn.

    Returns: the folder.
    """
    folder = Path(folder)
    for split, count, offset in (("train2017", train, 0), ("val2017", val, 1)):
        annotations = folder / "annotations" / f"instances_{split}.json"
        if not annotations.exists():
            _draw_split(folder, split, count, size, np.random.default_rng([seed, offset]))
    return folder


def _draw_split(folder: Path, split: str, count: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        picture, boxes, classes = draw_scene(rng, *size)
        name = f"{index:06d}.png"
        cv2.imwrite(str(folder / split / name), picture)
        images.append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
        for box, label in zip(boxes, classes):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, "category_id": int(label) + 1,
                                "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """One picture [height, width, 3] uint8 BGR; its boxes x y w h, of what is visible; its classes.

    A shape that later ones cover by more than 60 % is not annotated.
    """
    picture = _clutter(rng, height, width)
    owner = np.zeros((height, width), np.int32)
    drawn = []
    for number in range(1, int(rng.integers(1, 6)) + 1):
        label = int(rng.integers(len(CLASSES)))
        mask = _mask(rng, label, height, width)
        color = rng.integers(90, 256, 3) * rng.permutation([1.0, 0.6, 0.25])
        picture[mask] = (0.85 * color + 0.15 * picture[mask]).astype(np.uint8)
        owner[mask] = number
        drawn.append((number, label, int(mask.sum())))
    boxes, classes = [], []
    for number, label, area in drawn:
        rows, columns = np.nonzero(owner == number)
        if len(rows) > 0.4 * area:
            x, y = int(columns.min()), int(rows.min())
            boxes.append([x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y])
            classes.append(label)
    return picture, boxes, classes


def _clutter(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dim noise with lines across."""
    coarse = rng.integers(0, 90, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(6):
        ends = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(2)]
        cv2.line(picture, *ends, [int(n) for n in rng.integers(0, 140, 3)], 1)
    return picture


def _mask(rng: np.random.Generator, label: int, height: int, width: int) -> np.ndarray:
    """Which pixels a shape covers; its size is a tenth to a half of the height."""
    half = int(rng.integers(height // 20, height // 4))
    x, y = int(rng.integers(half, width - half)), int(rng.integers(half, height - half))
    mask = np.zeros((height, width), np.uint8)
    if CLASSES[label] == "circle":
        cv2.circle(mask, (x, y), half, 1, cv2.FILLED)
    elif CLASSES[label] == "square":
        cv2.rectangle(mask, (x - half, y - half), (x + half, y + half), 1, cv2.FILLED)
    else:
        corners = np.array([[x, y - half], [x - half, y + half], [x + half, y + half]])
        cv2.fillPoly(mask, [corners], 1)
    return mask.astype(bool)
