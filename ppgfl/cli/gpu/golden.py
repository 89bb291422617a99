"""PaddleDetection's recorded values, with the weights and inputs that they belong to (tests/golden/README.md)."""
from __future__ import annotations

import pickle
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ...data.batch import collate
from ...data.targets import Gt2GFLTarget
from ...model.gfl import GFL


def folder() -> Path:
    """Beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[2]
    return next(path for path in (package.parent / "tests/golden", package / "tests/golden")
                if (path / "manifest.json").is_file())


def recorded(name: str) -> Mapping[str, np.ndarray]:
    """The arrays of values/NAME.npz."""
    with np.load(folder() / "values" / f"{name}.npz") as arrays:
        return dict(arrays)


def weights(name: str) -> dict[str, np.ndarray]:
    """The stand-in weights of a released model, drawn from a seed."""
    return runpy.run_path(str(folder() / "make_weights.py"))["make"](name)


def write_weights(name: str, file: Path) -> None:
    """The same as a .pdparams file."""
    file.write_bytes(pickle.dumps(weights(name), protocol=4))


def put_weights(model: GFL, name: str) -> None:
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in weights(name).items()})


def inputs(seed: int) -> dict[str, Any]:
    """A padded batch of two images as cases.py draws it."""
    return runpy.run_path(str(folder() / "cases.py"))["batch"](seed)


def sample(array: np.ndarray, count: int) -> np.ndarray:
    """What is recorded of a large array: its mean, deviation and largest value, then `count` of its values."""
    return runpy.run_path(str(folder() / "cases.py"))["sample"](array, count)


def training_batch(seed: int) -> dict[str, Any]:
    """The same images with their targets, as tensors."""
    drawn = inputs(seed)
    samples = [{"image": image, "gt_bbox": boxes, "gt_class": classes}
               for image, boxes, classes in zip(drawn["image"], drawn["boxes"], drawn["classes"])]
    batch = collate(Gt2GFLTarget(num_classes=80, grid_cell_scale=8)(samples))
    return {key: paddle.to_tensor(value) for key, value in batch.items()}
