"""What a COCO evaluation knows beyond its twelve numbers: curves, the best threshold, confusion, images. Numbers only.

Everything here is read from a `COCOeval` that has been accumulated; "hit" means matched at the IoU asked for.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

BACKGROUND = "background"
RESAMPLES = 200  # for 5,000 images with 100 detections each they take 8 seconds
RESAMPLES_AT_A_TIME = 20  # which bounds the memory


@dataclass
class Ranking:
    """The detections of one class over all images, best score first.

    Attributes:
        scores: [M].
        hits: [M] bool.
        positives: number of boxes to be found; crowd regions are not counted, nor are detections on them.
    """

    scores: np.ndarray
    hits: np.ndarray
    positives: int

    def at(self, thresholds: np.ndarray | Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """precision, recall, F1, each [T], when what scores at least a threshold counts; precision of nothing is 1."""
        count = np.searchsorted(-self.scores, -np.asarray(thresholds, float), side="right")
        hits = np.concatenate([[0], np.cumsum(self.hits)])[count]
        precision = np.where(count > 0, hits / np.maximum(count, 1), 1.0)
        recall = hits / max(self.positives, 1)
        return precision, recall, 2 * hits / np.maximum(count + self.positives, 1)


def rankings(evaluator: COCOeval, iou: float = 0.5) -> list[Ranking]:
    """One `Ranking` per class, in the order of the categories."""
    per_image = entries_of_classes(evaluator)
    level = place_of_iou(evaluator, iou)
    found = []
    for entries in per_image:
        scores = np.concatenate([np.asarray(e["dtScores"], float) for e in entries] or [np.zeros(0)])
        hits = np.concatenate([e["dtMatches"][level] > 0 for e in entries] or [np.zeros(0, bool)])
        ignored = np.concatenate([e["dtIgnore"][level].astype(bool) for e in entries] or [np.zeros(0, bool)])
        positives = sum(int((np.asarray(e["gtIgnore"]) == 0).sum()) for e in entries)
        order = np.argsort(-scores[~ignored], kind="mergesort")
        found.append(Ranking(scores[~ignored][order], hits[~ignored][order], positives))
    return found


def pool(parts: Sequence[Ranking]) -> Ranking:
    """The `Ranking` of several classes together."""
    scores, hits = (np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0)])
                    for name in ("scores", "hits"))
    order = np.argsort(-scores, kind="mergesort")
    return Ranking(scores[order], hits[order].astype(bool), sum(part.positives for part in parts))


def best_threshold(ranking: Ranking) -> tuple[float, float]:
    """(threshold, F1): the score from which on detections should be kept; (1.0, 0.0) when nothing is right."""
    thresholds = np.unique(ranking.scores)
    if not len(thresholds) or not ranking.hits.any():
        return 1.0, 0.0
    f1 = ranking.at(thresholds)[2]
    best = int(f1.argmax())
    return float(thresholds[best]), float(f1[best])


def precision_recall(evaluator: COCOeval, iou: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(recall [R], precision [K, R] per class) over all areas, -1 for a class without a box: pycocotools' own array at
    one IoU, or its mean over all of them."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    chosen = precision.mean(axis=0) if iou is None else precision[place_of_iou(evaluator, iou)]
    return evaluator.params.recThrs, chosen.T


def class_ap(evaluator: COCOeval, iou: float | None = None) -> np.ndarray:
    """[K] the AP of each class over all areas, -1 for a class without a box: COCO's, at one IoU or their mean; VOC's
    where the evaluator has it."""
    if "AP" in evaluator.eval:
        return np.asarray(evaluator.eval["AP"])
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    chosen = precision if iou is None else precision[[place_of_iou(evaluator, iou)]]
    known = [values[values > -1] for values in np.moveaxis(chosen, 2, 0)]
    return np.array([values.mean() if values.size else -1.0 for values in known])


def confusion(evaluator: COCOeval, threshold: float, iou: float = 0.5) -> np.ndarray:
    """[C + 1, C + 1] counts: rows are what is there, columns what was found; the last of either is background.

    Image by image the detections that score at least `threshold`, best first, take the box of any class that they
    overlap most, at least by `iou`. What is left found nothing, or was not found. Crowd regions, and detections
    without a box that lie on one, are left out.
    """
    from pycocotools import mask

    class_of = {category: i for i, category in enumerate(evaluator.params.catIds)}
    size = len(class_of)
    matrix = np.zeros((size + 1, size + 1), np.int64)
    for image_id in evaluator.params.imgIds:
        truth = evaluator.cocoGt.imgToAnns[image_id]
        found = [d for d in evaluator.cocoDt.imgToAnns[image_id] if d["score"] >= threshold]
        found.sort(key=lambda d: -d["score"])
        crowd = np.array([bool(t.get("iscrowd")) for t in truth], bool)
        overlaps = (np.asarray(mask.iou([d["bbox"] for d in found], [t["bbox"] for t in truth], crowd.astype("uint8")))
                    if found and truth else np.zeros((len(found), len(truth))))
        free = ~crowd
        for d, overlap in zip(found, overlaps.reshape(len(found), len(truth))):
            candidates = np.where(free, overlap, -1.0)
            best = int(candidates.argmax()) if len(truth) else -1
            if best >= 0 and candidates[best] >= iou:
                free[best] = False
                matrix[class_of[truth[best]["category_id"]], class_of[d["category_id"]]] += 1
            elif not (overlap[crowd] >= iou).any():
                matrix[size, class_of[d["category_id"]]] += 1
        for t in (t for t, is_free in zip(truth, free) if is_free):
            matrix[class_of[t["category_id"]], size] += 1
    return matrix


def image_scores(evaluator: COCOeval, threshold: float,
                 iou: float = 0.5) -> dict[int, tuple[float, int, int, int]]:
    """{image id: (F1, boxes to be found, false detections, missed boxes)} with what scores at least `threshold`."""
    level = place_of_iou(evaluator, iou)
    counts = {image_id: np.zeros(3, int) for image_id in evaluator.params.imgIds}  # hits, kept, positives
    for entries in entries_of_classes(evaluator):
        for e in entries:
            kept = (np.asarray(e["dtScores"]) >= threshold) & ~e["dtIgnore"][level].astype(bool)
            counts[e["image_id"]] += [int((e["dtMatches"][level][kept] > 0).sum()), int(kept.sum()),
                                      int((np.asarray(e["gtIgnore"]) == 0).sum())]
    return {image_id: (2 * hits / max(kept + positives, 1), int(positives), int(kept - hits), int(positives - hits))
            for image_id, (hits, kept, positives) in counts.items()}


def ap_interval(evaluator: COCOeval, ap: float, *, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the AP: 1.96 standard deviations to either side, of the APs of as many images that are drawn
    with replacement again and again, from a seed (bootstrap over images).

    It says how far the AP may lie off for other images of the same kind. The deviation is taken rather than
    percentiles, since the APs of images that occur twice are a little too high. None with fewer than two images, or
    nothing to find or found.
    """
    rng, images = np.random.default_rng(seed), len(evaluator.params.imgIds)
    if images < 2 or ap <= 0:
        return None
    counts = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    aps = resampled_ap(evaluator, counts)
    deviation = 1.96 * float(aps[aps >= 0].std())
    return max(0.0, ap - deviation), min(1.0, ap + deviation)


def resampled_ap(evaluator: COCOeval, counts: np.ndarray) -> np.ndarray:
    """The AP (all areas, all IoUs) when image n counts `counts[b, n]` times, as pycocotools computes it: with every
    count 1 it is its AP, bit for bit.

    Args:
        counts: [B, N] whole numbers, of the N images of `evaluator.params.imgIds`.

    Returns: [B] APs, -1 where there is nothing to find.
    """
    matches = _matches(evaluator)
    recalls, levels = np.asarray(evaluator.params.recThrs), len(evaluator.params.iouThrs)
    aps = np.full(len(counts), -1.0)
    for start in range(0, len(counts), RESAMPLES_AT_A_TIME):
        some = counts[start:start + RESAMPLES_AT_A_TIME]
        precision = np.full((len(some), levels, len(recalls), len(matches)), -1.0)
        for k, one in enumerate(matches):
            present = np.flatnonzero(some @ one.boxes)
            precision[present, :, :, k] = _precision(one, some[present], recalls)
        for i, values in enumerate(precision):
            if (values > -1).any():
                aps[start + i] = values[values > -1].mean()
    return aps


@dataclass
class _Matches:
    """The detections of one class, best score first, as they were matched at each of T IoUs.

    Attributes:
        images: [M] the place of each one's image.
        hit, ignored: [T, M] bool; ignored ones lie on a crowd region, or count for nothing.
        boxes: [N] per image, how many are to be found.
    """

    images: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    boxes: np.ndarray


def _matches(evaluator: COCOeval) -> list[_Matches]:
    places = {image_id: place for place, image_id in enumerate(evaluator.params.imgIds)}
    levels = len(evaluator.params.iouThrs)
    found = []
    for entries in entries_of_classes(evaluator):
        images = np.array([places[e["image_id"]] for e in entries], int)
        scores = np.array([score for e in entries for score in e["dtScores"]], float)
        order = np.argsort(-scores, kind="mergesort")
        matched, ignored = (np.concatenate([e[name] for e in entries] or [np.zeros((levels, 0))], axis=1)
                            [:, order].astype(bool) for name in ("dtMatches", "dtIgnore"))
        positive = np.concatenate([e["gtIgnore"] for e in entries] or [np.zeros(0)]) == 0
        boxes = np.bincount(np.repeat(images, [len(e["gtIgnore"]) for e in entries])[positive], minlength=len(places))
        found.append(_Matches(np.repeat(images, [len(e["dtScores"]) for e in entries])[order], matched & ~ignored,
                              ignored, boxes))
    return found


def _precision(one: _Matches, counts: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """[B, T, R] the best precision from each recall on, when images count `counts` [B, N] times."""
    weights, positives = counts[:, one.images], (counts @ one.boxes)[:, None]
    found, nothing = np.cumsum(weights, axis=1), np.zeros((len(counts), 1))
    levels = []
    for is_hit, is_ignored in zip(one.hit, one.ignored):
        # Precision can only be best where a detection is a hit, so nothing else has to be looked at.
        hit, ignored = np.flatnonzero(is_hit), np.flatnonzero(is_ignored)
        hits = np.cumsum(weights[:, hit], axis=1)
        before = np.concatenate([nothing, np.cumsum(weights[:, ignored], axis=1)], axis=1)
        kept = found[:, hit] - before[:, np.searchsorted(ignored, hit)]
        best = np.maximum.accumulate((hits / (kept + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
        # How many of the recalls each hit is the first to reach; what none reaches has precision 0.
        reached = np.searchsorted(recalls, hits / positives, side="right")
        steps = np.diff(reached, axis=1, prepend=0, append=len(recalls))
        levels.append(np.repeat(np.concatenate([best, nothing], axis=1).ravel(), steps.ravel()).reshape(
            len(counts), len(recalls)))
    return np.stack(levels, axis=1)


def entries_of_classes(evaluator: COCOeval) -> list[list[dict[str, Any]]]:
    """Per class the entries of `evalImgs` over all areas, one for each image that has something of that class."""
    if not evaluator.evalImgs:
        evaluator.evalImgs = _entries(evaluator)
    images = len(evaluator.params.imgIds)
    return [[e for e in evaluator.evalImgs[k * images:(k + 1) * images] if e is not None]
            for k in range(len(evaluator.params.catIds))]


def _entries(evaluator: COCOeval) -> list[dict[str, Any] | None]:
    """What pycocotools matches over all areas; faster-coco-eval keeps no entries."""
    from pycocotools.cocoeval import COCOeval

    again = COCOeval(evaluator.cocoGt, evaluator.cocoDt, "bbox")
    again.params.imgIds = evaluator.params.imgIds
    again.params.areaRng, again.params.areaRngLbl = again.params.areaRng[:1], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        again.evaluate()
    entries: list[dict[str, Any] | None] = again.evalImgs
    return entries


def place_of_iou(evaluator: COCOeval, iou: float) -> int:
    return int(np.flatnonzero(np.isclose(evaluator.params.iouThrs, iou))[0])
