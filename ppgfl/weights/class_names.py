"""Class names inside a .pdparams file, so that no evaluation has to trust the order of another file."""
from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ..errors import CheckpointError

ENTRY = "class_names@@"  # an array, as all entries are, and of no layer: PaddleDetection passes over it


def to_array(names: Sequence[str]) -> np.ndarray:
    """The names as JSON, byte by byte: [n] uint8."""
    return np.frombuffer(json.dumps(list(names)).encode(), np.uint8)


def from_array(array: np.ndarray, path: object) -> list[str]:
    """What `to_array` made. Raises CheckpointError."""
    try:
        names = json.loads(array.tobytes())
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: entry {ENTRY!r} holds no class names; copy the file again")
    return names
