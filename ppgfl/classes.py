"""How many classes a config means where it does not say: as its annotation file lists, or as its weights have."""
from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from .config.keys import setting
from .data.sources import VOC_CLASSES, class_list, listed_classes
from .errors import CheckpointError
from .system.log import logger
from .weights import checkpoint

Config = dict[str, Any]


def number_of_classes(cfg: Config) -> int | None:
    """C: the config's `num_classes`; where that is null, as many as the annotation file of TrainDataset lists (VOC's
    list of classes, YOLO's data.yaml), or where that is absent as the weights have; None where there are neither.

    Raises: ConfigError, DataError.
    """
    given = setting(cfg, "num_classes")
    if given is not None:
        return int(given)
    train = cfg.get("TrainDataset") or {}
    if train.get("name") == "VOCDataSet" and not train.get("label_list"):
        return len(VOC_CLASSES)
    path = class_list(train)
    if path.is_file():
        return _classes_listed(path, path.stat().st_mtime_ns, str(train.get("name")))
    try:
        path = checkpoint.find(setting(cfg, "weights") or "")
    except CheckpointError:
        return None
    return _classes_of_weights(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _classes_listed(path: Path, _: int, kind: str) -> int:
    """Of a file as it was at a time: it may have hundreds of megabytes, and several parts ask."""
    count = len(listed_classes(path, kind, "TrainDataset"))
    logger.info("num_classes: %d, from %s", count, path)
    return count


@functools.lru_cache(maxsize=8)
def _classes_of_weights(path: Path, _: int) -> int | None:
    """Of a file of weights as it was at a time; None when it is not one of a whole detector."""
    state = checkpoint.read(path)
    bias = state.get(checkpoint.CLASS_LAYER[1])
    if bias is None:
        return None
    count = len(bias) - any(name.startswith("head.dgqp") for name in state)  # GFLv2 has one channel more
    logger.info("num_classes: %d, from %s", count, path)
    return count
