"""VOC's number: the mean AP at IoU 0.5, as PaddleDetection computes it."""
from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from . import curves

IOU = 0.5  # that a detection must exceed


class VOCeval(COCOeval):
    """pycocotools' evaluator with VOC's rules, so that curves and pages are read from it as from COCO's.

    * The last pixel of a box is inside: sides are one pixel longer. One IoU, all areas, any number of detections.
    * A detection, best score first, takes the box of its class and image that it overlaps most. Where another has taken
      that one, it is wrong, even if it overlaps a second one enough.
    * One whose box is a crowd (for VOC: difficult) is neither right nor wrong.

    Args:
        truth, found: the objects and the detections.
        map_type: "11point" or "integral".

    Attributes:
        eval: as COCOeval's, and "AP": [K] of each class, -1 where there is nothing to find.
    """

    def __init__(self, truth: COCO, found: COCO, map_type: str) -> None:
        super().__init__(truth, found, "bbox")
        self.map_type = map_type
        self.params.iouThrs = np.array([IOU])
        self.params.areaRng, self.params.areaRngLbl = [[0.0, np.inf]], ["all"]
        self.params.maxDets = [np.iinfo(np.int32).max]

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        """[D, G] overlaps of the detections of a class on an image, best score first, with its objects."""
        truth, found = self._gts[imgId, catId], self._ranked(imgId, catId)
        return overlaps(*(np.array([one["bbox"] for one in each], float).reshape(-1, 4) for each in (found, truth)))

    def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> dict[str, Any] | None:
        """What each detection of a class on an image found; None where there is neither detection nor object."""
        truth, found = self._gts[imgId, catId], self._ranked(imgId, catId)
        if not truth and not found:
            return None
        ignored = np.array([one["ignore"] for one in truth], bool)
        matches, ignores, taken = np.zeros((1, len(found))), np.zeros((1, len(found)), bool), set()
        for d, overlap in enumerate(self.ious[imgId, catId]):
            best = int(overlap.argmax()) if len(truth) else -1
            if best < 0 or not overlap[best] > IOU:
                continue
            if ignored[best]:
                ignores[0, d] = True
            elif best not in taken:
                taken.add(best)
                matches[0, d] = truth[best]["id"]
        return {"image_id": imgId, "category_id": catId, "aRng": aRng, "maxDet": maxDet, "dtMatches": matches,
                "dtIgnore": ignores, "gtIgnore": ignored, "dtScores": [one["score"] for one in found],
                "dtIds": [one["id"] for one in found]}

    def accumulate(self, p: Any = None) -> None:
        super().accumulate(p)
        self.eval["AP"] = np.array([average_precision(one, self.map_type) for one in curves.rankings(self, IOU)])

    def _ranked(self, imgId: int, catId: int) -> list[dict[str, Any]]:
        return sorted(self._dts[imgId, catId], key=lambda one: -one["score"])


def overlaps(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[D, 4] and [G, 4] x y width height in pixels -> [D, G] IoU of the boxes with their last pixels.

    Boxes that only touch do not overlap, though their last pixels do.
    """
    low, high = found[:, None, :2], found[:, None, :2] + found[:, None, 2:]
    low_of, high_of = truth[None, :, :2], truth[None, :, :2] + truth[None, :, 2:]
    apart = ((low >= high_of) | (high <= low_of)).any(axis=2)
    inner = np.prod(np.minimum(high, high_of) - np.maximum(low, low_of) + 1, axis=2)
    areas, areas_of = np.prod(high - low + 1, axis=2), np.prod(high_of - low_of + 1, axis=2)
    return np.where(apart, 0.0, inner / np.where(apart, 1.0, areas + areas_of - inner))


def average_precision(ranking: curves.Ranking, map_type: str) -> float:
    """The AP of one class; -1 where there is nothing to find.

    11point: the mean, over the recalls 0, 0.1, ..., 1, of the best precision from that recall on. integral: the
    precision at each hit, each with the same share of the recall.
    """
    if not ranking.positives:
        return -1.0
    hits = np.cumsum(ranking.hits)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / ranking.positives
    if map_type == "integral":
        return float(precision[ranking.hits].sum() / ranking.positives)
    return float(np.mean([precision[recall >= point / 10].max(initial=0.0) for point in range(11)]))
