"""The proof at the end of an export: what was written predicts what the model predicts."""
from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import paddle

from ..data.batch import Batch
from ..data.image import read_image
from ..errors import DataError, ExportError
from ..readers import build_reader
from ..system.log import logger
from .graph import Graph, is_deformable
from .runner import ExportedModel, make_runner

Arrays = Sequence[np.ndarray]
Paths = Sequence[Union[str, "os.PathLike[str]"]]
Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]

BOX_TOLERANCE = 1e-2  # pixels; float32 alone makes 1e-3 in images of a thousand pixels
SCORE_TOLERANCE = 1e-4
ROUNDING = 1e-5  # scores that are nearer than this may change places
DEFORMABLE_SINCE = (1, 25)  # ONNX Runtime


def compare(cfg: dict[str, Any], folder: Path, graphs: Mapping[str, Graph], images: Paths | None,
            image_shape: Sequence[int | None]) -> dict[str, dict[str, float]]:
    """Compare exported files with the layers they were made from.

    Args:
        cfg: for its TestReader.
        folder: of the export.
        graphs: {file name: `graph.Graph`}.
        images: paths, or None for three drawn images.
        image_shape: [N, 3, H, W] that the graphs take, None for what is free.

    Returns: {file name: {"largest_box_difference": pixels, "largest_score_difference"}}.
    Raises: ExportError over the tolerance; DataError for images that the graphs do not take.
    """
    pictures = [image if isinstance(image, np.ndarray) else read_image(image)
                for image in (_drawn_images() if images is None else images)]
    samples = _samples(cfg, pictures, images, image_shape)
    pixels = sum(sample["image"].size for sample in samples)
    logger.info("comparing %s with the model on %d images%s", ", ".join(graphs), len(samples),
                ": up to a minute on a CPU" if pixels > 3_000_000 else "")
    wanted: dict[Graph, list[Arrays]] = {}
    differences = {}
    for name, graph in graphs.items():
        if name.endswith(".onnx") and (package := _missing_package(graph)):
            logger.info("%s was not run: pip install %s to have it checked", name, package)
            continue
        # Paddle 3's oneDNN fails at random with a .json; the proof must not.
        runner = make_runner(folder / name, engine="native" if name.endswith(".json") else "auto")
        inputs = [_prepared(runner, *pair) for pair in zip(pictures, samples)]
        if graph not in wanted:
            wanted[graph] = [_outputs(graph, each) for each in inputs]
        boxes, scores = _largest_differences(graph, runner.run, inputs, wanted[graph])
        logger.info("checked %s on %d images: largest difference %.2g pixels in boxes, %.2g in %s", runner.description,
                    len(samples), boxes, scores, "raw maps" if graph.bare else "scores")
        if not (boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE):
            raise ExportError(f"{name} differs from the model by {boxes:.2g} pixels (allowed {BOX_TOLERANCE}) or "
                              f"{scores:.2g} in scores (allowed {SCORE_TOLERANCE}); nothing was written")
        differences[name] = {"largest_box_difference": boxes, "largest_score_difference": scores}
    return differences


def _missing_package(graph: Graph) -> str | None:
    """What has to be installed before an ONNX file of the graph runs here."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime"
    import onnxruntime

    version = tuple(int(number) for number in onnxruntime.__version__.split(".")[:2])
    if is_deformable(graph) and version < DEFORMABLE_SINCE:
        return "-U 'onnxruntime>=1.25', for the deformable convolutions,"
    return None


def _prepared(runner: ExportedModel, picture: np.ndarray, sample: Batch) -> Batch:
    """What the runner makes of a picture by what it reads in the export. Raises ExportError unless it is the sample."""
    made = runner.prepare([picture])
    for name, array in made.items():
        if array.shape != sample[name].shape or not np.allclose(array, sample[name], rtol=1e-6, atol=1e-6):
            raise ExportError(f"{runner.description.split()[0]}: the runner makes {name} {_shown(array)} of an image "
                              f"where TestReader makes {_shown(sample[name])}; height and width must be multiples of "
                              "32: add PadBatch: {pad_to_stride: 32} to its batch_transforms; nothing was written")
    return made


def _shown(array: np.ndarray) -> str:
    return str(array.tolist()) if array.size <= 4 else f"of shape {list(array.shape)}, mean {array.mean():.4g}"


def _inputs(graph: Graph, sample: Batch) -> Batch:
    return {name: sample[name] for name in graph.inputs}


def _outputs(graph: Graph, sample: Batch) -> list[np.ndarray]:
    with paddle.no_grad():
        return [value.numpy() for value in graph(*map(paddle.to_tensor, _inputs(graph, sample).values()))]


def _largest_differences(graph: Graph, run: Run, samples: Sequence[Batch],
                         wanted: Sequence[Arrays]) -> tuple[float, float]:
    """The largest differences in boxes (pixels), and in scores or raw maps."""
    boxes = scores = 0.0
    for sample, outputs in zip(samples, wanted):
        got = run(_inputs(graph, sample))
        box, score = _differences(graph, outputs, got)
        if graph.nms and not (box <= BOX_TOLERANCE and score <= SCORE_TOLERANCE):
            outputs = _with_ties_decided(graph, sample, got[0])
            box, score = _differences(graph, outputs, got)
        if [w.shape for w in outputs] != [g.shape for g in got]:
            raise ExportError(f"the exported graph gives {[g.shape for g in got]} where the model gives "
                              f"{[w.shape for w in outputs]}; nothing was written")
        boxes, scores = max(boxes, box), max(scores, score)
    return boxes, scores


def _differences(graph: Graph, wanted: Arrays, got: Arrays) -> tuple[float, float]:
    """The largest difference in boxes (pixels), and in scores or raw maps; infinite for those of other shapes."""
    if [w.shape for w in wanted] != [g.shape for g in got]:
        return float("inf"), float("inf")
    if graph.bare:
        return 0.0, max(_difference(w, g) for w, g in zip(wanted, got))
    if not graph.nms:
        return _difference(wanted[0], got[0]), _difference(wanted[1], got[1])
    # Detections whose scores are equal but for rounding may change places: each is compared with its nearest.
    boxes = scores = 0.0
    for row in wanted[0]:
        same_class = got[0][got[0][:, 0] == row[0]]
        if not len(same_class):
            return float("inf"), float("inf")
        nearest = same_class[np.abs(same_class[:, 1:] - row[1:]).max(axis=1).argmin()]
        boxes = max(boxes, _difference(row[2:], nearest[2:]))
        scores = max(scores, _difference(row[1:2], nearest[1:2]))
    return boxes, scores


def _with_ties_decided(graph: Graph, sample: Batch, rows: np.ndarray) -> list[np.ndarray]:
    """The outputs of the model's NMS where rounding decides ties as it did in the export that gave these rows [M, 6 or
    14]. Of two boxes that overlap, whose scores are equal but for rounding, either may go; a model that has hardly
    learned has many such."""
    decoder = graph.model.decoder
    with paddle.no_grad():
        inputs = _inputs(graph, sample)
        boxes, scores = decoder.decode(graph.model.features(paddle.to_tensor(inputs.pop("image"))),
                                       graph.model.head.distribution_project,
                                       *map(paddle.to_tensor, inputs.values()))
        cells, shares = boxes[0].numpy(), scores[0].numpy()
        nudged = shares - ROUNDING
        for row in rows:
            label = int(row[0])
            off = np.maximum(np.abs(cells - row[2:]).max(axis=1) / BOX_TOLERANCE,
                             np.abs(shares[:, label] - row[1]) / SCORE_TOLERANCE)
            if off.min() <= 1:  # else it is none of the model's, and the comparison will find it missing
                nudged[off.argmin(), label] = shares[off.argmin(), label] + ROUNDING
        found = decoder.nms(boxes, paddle.to_tensor(nudged.T[None]), decoder.threshold())
    return [each.numpy() for each in found]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max()) if a.size else 0.0


def _samples(cfg: dict[str, Any], pictures: Sequence[np.ndarray], images: Paths | None,
             image_shape: Sequence[int | None]) -> list[Batch]:
    """Batches of one picture, prepared as TestReader says."""
    reader = build_reader(cfg, "TestReader")
    batches = []
    for i, picture in enumerate(pictures):
        batch = reader([picture])
        wanted = [n if n is not None else m for n, m in zip(image_shape, batch["image"].shape)]
        if list(batch["image"].shape) != wanted:
            raise DataError(f"the graph takes images of {wanted}, but TestReader makes {list(batch['image'].shape)} of "
                            f"{'a drawn image' if images is None else images[i]}; let Resize make that "
                            "size (keep_ratio: false), or set TestReader.inputs_def.image_shape to [3, -1, -1]")
        batches.append(batch)
    return batches


def _drawn_images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = ((240, 320), (331, 200), (64, 640))
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8)[..., ::-1] for size in sizes]
