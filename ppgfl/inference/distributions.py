"""The distributions that boxes are the means of (GFL, section 3.2), and GFLv2's quality, which is read from them."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ..data.batch import Sample
from ..errors import CheckpointError, ConfigError
from ..model.boxes import cell_centers
from ..model.gfl import GFL
from ..readers import build_loader
from .detections import split_batch

SHOWN = 6  # boxes of an image whose distributions are looked at, the best
TOLERANCE = 1e-3  # between a detection and its cell's box and score, which are copies of each other


@dataclass(frozen=True)
class Distributions:
    """How far the sides of M boxes are from the cells that found them; sides in the order left, top, right, bottom.

    Attributes:
        probabilities: [M, 4, R] of the distances 0, 1, ..., R - 1 steps.
        steps: [M, 4] pixels of the original image: the level's stride over the image's scale.
        centers: [M, 2] x, y of the cells in pixels of the original image.
        class_scores, qualities: [M] GFLv2's two factors of a joint score; None for GFL.
    """

    probabilities: np.ndarray
    steps: np.ndarray
    centers: np.ndarray
    class_scores: np.ndarray | None = None
    qualities: np.ndarray | None = None

    def means(self) -> np.ndarray:
        """[M, 4] the distances in pixels of the original image."""
        return self.steps * (self.probabilities @ np.arange(self.probabilities.shape[2]))

    def sigmas(self) -> np.ndarray:
        """[M, 4] standard deviations in pixels of the original image."""
        bins = self.steps[..., None] * np.arange(self.probabilities.shape[2])
        return np.sqrt((self.probabilities * (bins - self.means()[..., None]) ** 2).sum(axis=2))


def detect_records(cfg: dict[str, Any], model: GFL,
                   records: Sequence[Sample]) -> Iterator[tuple[Any, np.ndarray, Distributions]]:
    """As `RowDetector.detect_records`, with the distributions of the `SHOWN` best detections, best first."""
    if model.head.distribution_project.reg_max == 0:
        raise ConfigError("--show_distributions: with reg_max 0 a side is one number, and there are no distributions")
    for batch in build_loader(cfg, "TestReader", records).epoch():
        yield from ((records[place]["im_id"], *each)
                    for place, each in zip(batch["place"].tolist(), detect(model, batch)))


def detect(model: GFL, batch: Mapping[str, Tensor]) -> list[tuple[np.ndarray, Distributions]]:
    """A batch -> of each image its detections [M, 6] as `split_batch` gives them, and the distributions of the `SHOWN`
    best of them, best first. Raises CheckpointError where a box is not made of numbers."""
    decoder, found = model.decoder, []
    with paddle.no_grad():
        features = model.features(batch["image"])
        boxes, scores = decoder.decode(features, model.head.distribution_project,
                                       *[batch[name] for name in decoder.inputs])
        bbox, bbox_num = decoder.nms(boxes, scores.transpose([0, 2, 1]), decoder.threshold())
        logits, joint = _by_cell(features.reg), _by_cell(features.cls)
        quality = _by_cell([model.head.dgqp_module(reg) for reg in features.reg]) if decoder.joint_scores else None
    logits = logits.reshape(*logits.shape[:2], 4, -1)
    sizes = [reg.shape[2:] for reg in features.reg]
    centers = np.concatenate([
        cell_centers(height, width, stride, offset=offset).numpy()
        for (height, width), stride, offset in zip(sizes, decoder.strides, decoder.cell_offsets)])
    strides = np.repeat(decoder.strides, [height * width for height, width in sizes])
    for image, rows in enumerate(split_batch({"bbox": bbox, "bbox_num": bbox_num})):
        best = rows[np.argsort(-rows[:, 1], kind="stable")[:SHOWN]]
        cells = _cells_of(best, boxes[image].numpy(), scores[image].numpy())
        scale = batch["scale_factor"][image].numpy()[::-1]  # PaddleDetection: (y, x)
        factors = {}
        if quality is not None:
            q = quality[image, cells, 0]
            products = joint[image, cells, best[:, 0].astype(int)]
            factors = {"class_scores": products / np.maximum(q, np.finfo(np.float32).tiny), "qualities": q}
        found.append((rows, Distributions(_softmax(logits[image, cells]),
                                          strides[cells, None] / np.tile(scale, 2), centers[cells] / scale, **factors)))
    return found


def _by_cell(maps: Sequence[Tensor]) -> np.ndarray:
    """L maps [N, K, H, W] -> [N, A, K]."""
    return np.concatenate([x.flatten(2).numpy() for x in maps], axis=2).transpose(0, 2, 1)


def _cells_of(rows: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[M] the cells whose boxes [A, 4] and scores [A, C] the detections [M, 6] are."""
    cells = np.zeros(len(rows), int)
    for i, row in enumerate(rows):
        error = np.abs(boxes - row[2:]).max(axis=1) + np.abs(scores[:, int(row[0])] - row[1])
        cells[i] = np.where(np.isnan(error), np.inf, error).argmin()
        if not error[cells[i]] <= TOLERANCE:
            raise CheckpointError(f"the box {row[2:].tolist()} comes from no cell; where it is not made of numbers, "
                                  "the weights are damaged")
    return cells


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
