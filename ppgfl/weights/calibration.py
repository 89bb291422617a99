"""What makes scores and sigmas of a model fit the errors that it makes: a small JSON file beside its weights.

It is fitted on a validation set (`evaluation.calibration`), belongs to one file of weights, whose checksum it holds,
and goes into their exports. `calibrate` of deploy/python/infer.py applies it.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..system.atomic_write import write_json
from ..system.log import logger
from . import checkpoint, download

NUMBERS = ("sigma_scale", "temperature", "bias")


def path_of(weights: str | os.PathLike[str]) -> Path:
    """Of the calibration of weights: NAME.calibration.json beside NAME.pdparams. Raises CheckpointError."""
    return checkpoint.find(weights).with_suffix(".calibration.json")


def write(weights: str | os.PathLike[str], numbers: Mapping[str, float], *, upstream_scores: bool,
          fitted_on: Mapping[str, Any]) -> Path:
    """Write the calibration of weights; returns its path.

    Args:
        numbers: those of `NUMBERS`.
        upstream_scores: of which scores it is (see `model.decode.Decoder.scores`).
        fitted_on: {what: value}, for a reader.
    """
    path = path_of(weights)
    write_json(path, {**{name: numbers[name] for name in NUMBERS}, "upstream_scores": upstream_scores,
                      "weights_sha256": download.sha256(checkpoint.find(weights)), "fitted_on": dict(fitted_on)})
    return path


def read(weights: str | os.PathLike[str], upstream_scores: bool) -> dict[str, float] | None:
    """The `NUMBERS` of weights; None where there are none, or, with a line, those of other weights or other scores.

    Raises: CheckpointError for a file of another kind.
    """
    path = path_of(weights)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        numbers = {name: float(content[name]) for name in NUMBERS}
        belongs = content["weights_sha256"], content["upstream_scores"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a calibration ({error}); remove it, or fit it again with eval --calibrate"
                              ) from error
    if not all(map(math.isfinite, numbers.values())) or min(numbers["sigma_scale"], numbers["temperature"]) <= 0:
        raise CheckpointError(f"{path}: {numbers}; scale and temperature are above 0; fit it again with eval "
                              "--calibrate")
    if belongs != (download.sha256(checkpoint.find(weights)), upstream_scores):
        logger.warning("%s: left out, since it was fitted to other weights, or to scores with another upstream_scores; "
                       "eval --calibrate fits it again", path)
        return None
    return numbers


def needed(weights: str | os.PathLike[str], upstream_scores: bool) -> dict[str, float]:
    """As `read`. Raises ConfigError where there is none."""
    numbers = read(weights, upstream_scores)
    if numbers is None:
        raise ConfigError(f"calibrated: {path_of(weights)} is not there, or not of these weights; eval --calibrate "
                          "writes it")
    return numbers
