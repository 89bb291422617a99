"""What a part of the kit is told, what it finds, and how detections are compared."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where and how a part runs.

    Attributes:
        device: "gpu"; or "cpu", which takes the GPU's place to try the kit itself, with small models and few steps.
        folder: for all that it writes; the parts of one run share it, and it is removed in the end.
        way: which of its ways of running, as "TF32 off".
    """

    device: str
    folder: Path
    way: str = ""

    @property
    def dry(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        ok: whether it is as it should be; None: skipped.
        what: was looked at.
        text: what was found, and the limit.
        figures: of a measurement: a row of the table of speeds.
    """

    ok: bool | None
    what: str
    text: str
    figures: Figures = field(default_factory=dict)


def within(what: str, found: float, limit: float, of: str = "") -> Finding:
    """A number that must not be above its limit; one that is not finite is a miss."""
    return Finding(bool(found <= limit), what, f"{found:.3g}{of}, at most {limit:g}")


def skipped(what: str, why: str) -> Finding:
    return Finding(None, what, why)


@dataclass(frozen=True)
class Limits:
    """How far detections may be from those that they are compared with.

    Attributes:
        pixels, score: of a detection, in pixels of the original image.
        share: of detections that may lack a partner, since a box at the edge of a threshold falls to either side.
        ap: difference of the AP.
    """

    pixels: float
    score: float
    share: float = 0.0
    ap: float = 0.0


def without_partner(rows: np.ndarray, others: np.ndarray, limits: Limits) -> float:
    """The share of the rows [M, 6] (class, score, x1, y1, x2, y2) for which no other is of the same class and within
    the limits, 0 to 1."""
    if not len(rows):
        return 0.0
    distance = np.abs(rows[:, None].astype(np.float64) - others[None])
    near = (distance[..., 0] == 0) & (distance[..., 1] <= limits.score) & (
        distance[..., 2:].max(axis=-1, initial=0.0) <= limits.pixels)
    return float(1 - near.any(axis=1).mean())


def unlike(wanted: Iterable[np.ndarray], found: Iterable[np.ndarray], limits: Limits, least: float = 0.0) -> float:
    """The larger share, of the detections of several images that score at least `least`, that have no partner on the
    other side, whatever their order."""
    def share(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> float:
        counted = [(without_partner(a[a[:, 1] >= least], b, limits), int((a[:, 1] >= least).sum())) for a, b in pairs]
        total = sum(count for _, count in counted)
        return sum(part * count for part, count in counted) / total if total else 0.0

    wanted, found = list(wanted), list(found)
    if len(wanted) != len(found):
        return 1.0
    return max(share(zip(wanted, found)), share(zip(found, wanted)))
