"""Whether scores and sigmas mean what they say, and the three numbers that make them: arrays only.

A score is calibrated when, of the detections that have it, so many are right; sigma, when as many sides are within it
of where they should be as a normal distribution has within one standard deviation.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import curves

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

BINS = 15  # of scores, equally wide
ONE_SIGMA, TWO_SIGMA = 0.6827, 0.9545  # shares of a normal distribution within
SIDES = ("left", "top", "right", "bottom")
LEAST_SIGMA = 1e-6  # pixels: a distribution may be one bin alone


@dataclass(frozen=True)
class Judged:
    """Detections, and whether they are right: matched at an IoU, best score first, to an object of their class.

    Attributes:
        scores: [M].
        hits: [M] bool.
        images: [M] the place of each one's image.
        errors: [M, 4] of the sides x1, y1, x2, y2 in pixels, found less true; of those that are not right NaN.
        sigma: [M, 4] in pixels; None where the detections have none.
    """

    scores: np.ndarray
    hits: np.ndarray
    images: np.ndarray
    errors: np.ndarray
    sigma: np.ndarray | None

    def of(self, chosen: np.ndarray) -> Judged:
        """Those where `chosen` [M] is true."""
        return Judged(self.scores[chosen], self.hits[chosen], self.images[chosen], self.errors[chosen],
                      None if self.sigma is None else self.sigma[chosen])


@dataclass(frozen=True)
class Fit:
    """The numbers of a calibration, see `calibrate` of deploy/python/infer.py; `sigma_scale` is None without sigma."""

    temperature: float
    bias: float
    sigma_scale: float | None

    def scores(self, scores: np.ndarray) -> np.ndarray:
        """[M] calibrated."""
        return 1 / (1 + np.exp(-(_logit(scores) / self.temperature + self.bias)))


def judge(evaluator: COCOeval, iou: float = 0.5) -> Judged:
    """The detections of an accumulated `COCOeval`; those on crowd regions are left out."""
    level = curves.place_of_iou(evaluator, iou)
    truth, found = evaluator.cocoGt.anns, evaluator.cocoDt.anns
    rows, sigma = [], []
    for entry in (entry for entries in curves.entries_of_classes(evaluator) for entry in entries):
        for d, one in enumerate(map(found.__getitem__, entry["dtIds"])):
            if entry["dtIgnore"][level][d]:
                continue
            match = int(entry["dtMatches"][level][d])
            errors = _corners(one["bbox"]) - _corners(truth[match]["bbox"]) if match else [np.nan] * 4
            rows.append([one["score"], match > 0, entry["image_id"], *errors])
            sigma.append(one.get("sigma"))
    array = np.array(rows, float).reshape(-1, 7)
    known = bool(sigma) and None not in sigma
    return Judged(array[:, 0], array[:, 1].astype(bool), array[:, 2].astype(int), array[:, 3:],
                  np.array(sigma, float) if known else None)


def _corners(box: list[float]) -> np.ndarray:
    x, y, width, height = box
    return np.array([x, y, x + width, y + height])


def fit(judged: Judged) -> Fit | None:
    """The calibration of detections: `temperature` and `bias` by the least cross entropy (Platt, 1999, with his
    targets, which are never quite 0 and 1); `sigma_scale` so that one sigma covers as much as of a normal distribution.

    A scale by maximum likelihood would be the root of the mean of (error / sigma)², which the few sides that are far
    off rule; the quantile says what it is for, and what two sigmas cover is then a test.

    None where it means nothing: none or all are right, or a higher score is no better.
    """
    if judged.hits.all() or not judged.hits.any():
        return None
    slope, bias = _logistic(_logit(judged.scores), judged.hits)
    if slope <= 1e-3:
        return None
    scale = None if judged.sigma is None else max(float(np.quantile(ratios(judged), ONE_SIGMA)), LEAST_SIGMA)
    return Fit(1 / slope, bias, scale)


def cross_fitted(judged: Judged) -> tuple[np.ndarray, np.ndarray] | None:
    """Calibrated scores [M] and the scale of sigma of each detection [M], by what was fitted on the other half of the
    images: what the numbers are worth on images that they have not seen. None where a half cannot be fitted."""
    half = np.searchsorted(np.unique(judged.images), judged.images) % 2 == 1
    scores, scales = np.zeros(len(half)), np.ones(len(half))
    for chosen in (half, ~half):
        other = fit(judged.of(~chosen))
        if other is None:
            return None
        scores[chosen], scales[chosen] = other.scores(judged.scores[chosen]), other.sigma_scale or 1.0
    return scores, scales


def ratios(judged: Judged) -> np.ndarray:
    """[K, 4] |error| / sigma of the detections that are right."""
    assert judged.sigma is not None
    return np.asarray(np.abs(judged.errors[judged.hits]) / np.maximum(judged.sigma[judged.hits], LEAST_SIGMA))


def reliability(scores: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, share that is right, and number of the detections in each of `BINS` ranges that has any."""
    place = np.minimum((np.asarray(scores) * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    some = count > 0
    means = [np.bincount(place, values, BINS)[some] / count[some] for values in (scores, hits.astype(float))]
    return means[0], means[1], count[some]


def calibration_error(scores: np.ndarray, hits: np.ndarray) -> float:
    """The expected calibration error: how far scores are from the share that is right, 0 to 1, the mean over all."""
    mean, share, count = reliability(scores, hits)
    return float((count * np.abs(mean - share)).sum() / max(count.sum(), 1))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: Pearson's of the ranks, equals with the mean of theirs; NaN where all of one are equal."""
    ranks = [_ranks(values) - (len(values) + 1) / 2 for values in (a, b)]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place])


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.asarray(scores, float).clip(1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _logistic(x: np.ndarray, hits: np.ndarray) -> tuple[float, float]:
    """Slope and bias of the logistic regression of hits [M] over x [M], by Newton's method with halved steps."""
    positive, negative = int(hits.sum()), int((~hits).sum())
    target = np.where(hits, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(values: np.ndarray) -> float:
        z = design @ values
        return float((np.logaddexp(0, z) - target * z).sum())

    values = np.array([1.0, 0.0])
    for _ in range(100):
        share = 1 / (1 + np.exp(-(design @ values)))
        gradient = design.T @ (share - target)
        curvature = (design * (share * (1 - share))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(values - step) > loss(values) and np.abs(step).max() > 1e-12:
            step = step / 2
        values = values - step
        if np.abs(step).max() < 1e-9:
            break
    return float(values[0]), float(values[1])
