"""Evaluation: the images of a data set through a detector, and COCO's or VOC's numbers of what it finds."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..build import check, upstream_scores
from ..classes import number_of_classes
from ..config.check import check_classes
from ..config.keys import setting, with_weights
from ..data import class_names
from ..data.annotations import SAME_NAME
from ..data.dataset import DetectionDataSet
from ..errors import ConfigError, DataError
from ..inference.detections import coco_records
from ..inference.detector import RowDetector, open_detector
from ..precision import precision_of
from ..readers import build_dataset
from ..system import dist
from ..system.atomic_write import write_json
from ..system.log import logger
from ..system.progress import progress
from ..weights import calibration as stored
from . import calibration, report
from .coco import Results, read_results
from .metric import measure

RESULT_FILE = "bbox.json"


def evaluate(cfg: dict[str, Any], *, weights: str | os.PathLike[str] | None = None,
             detector: RowDetector | None = None, output_dir: str | os.PathLike[str] = ".", classwise: bool = False,
             save_prediction_only: bool = False, report_dir: str | os.PathLike[str] | None = None,
             amp: str | None = None, command: str = "", sigma: bool = False,
             calibrate: bool = False) -> dict[str, Any]:
    """Evaluate a detector on the config's `EvalDataset`.

    Args:
        cfg: the dict of `load_config`.
        weights: a .pdparams file; without it the config's `weights`.
        detector: of `open_detector`, instead of the config's model with weights; the config counts as checked then.
        output_dir: where `bbox.json` is written (COCO results: image_id, category_id, bbox x y w h, score).
        classwise: also the AP of each class.
        save_prediction_only: write `bbox.json` and stop; for data sets without annotations.
        report_dir: where to write report.html with its CSV files (see `report`); None: nowhere.
        amp: "O1" or "O2": let the network compute in mixed precision on a GPU; None: what the config's `amp` says.
        command: the command line, for the report.
        sigma: also find how uncertain the sides of boxes are, for `bbox.json` and the report; of a `detector` it is
            known already.
        calibrate: fit scores and sigma to these images, and write that beside the weights (`weights.calibration`).

    Returns:
        {"AP": ..., "AP50", "AP75", "APs", "APm", "APl", "AR1", ...}, or {"mAP": ...} with `metric: VOC`, 0 to 1, -1
        where there is nothing to find; with `classwise` also {"per_class": {name: AP}}; {} with `save_prediction_only`.
        The same in each of several processes.

    Raises: ConfigError, DataError, CheckpointError.
    """
    cfg = with_weights(cfg, weights)
    if detector is None:
        check(cfg)
    elif calibrate:
        raise ConfigError("calibrate: belongs to weights as they are; leave detector out")
    elif amp:
        raise ConfigError("amp: belongs to a model with weights; open the detector with its `precision` instead")
    dataset = _eval_dataset(cfg)
    if detector is None:
        images = len(dataset.records) // dist.world_size()
        detector = open_detector(cfg, weights=weights, reader="EvalReader", images=images,
                                 precision=precision_of(cfg, amp), sigma=sigma or calibrate)
    results = detect_on(dataset, detector, by_place=setting(cfg, "match_classes") == "place")
    if dist.is_main():
        file = Path(output_dir) / RESULT_FILE
        write_json(file, results)
        logger.info("%d detections written to %s", len(results), file.resolve())
    return {} if save_prediction_only else _numbers(cfg, dataset, results, classwise, report_dir, detector.source,
                                                    command, calibrate)


def evaluate_results(cfg: dict[str, Any], *, output_dir: str | os.PathLike[str] = ".", classwise: bool = False,
                     report_dir: str | os.PathLike[str] | None = None, command: str = "") -> dict[str, Any]:
    """As `evaluate`, of the `bbox.json` that an earlier run has written; no model is run."""
    check(cfg)
    dataset = _eval_dataset(cfg)
    file = Path(output_dir) / RESULT_FILE
    return _numbers(cfg, dataset, read_results(file, dataset), classwise, report_dir, f"those that wrote {file}",
                    command)


def detect_on(dataset: DetectionDataSet, detector: RowDetector, *, by_place: bool = False) -> Results:
    """All images of a data set through a detector. Raises ConfigError when it has other classes than the data set.

    Several processes take a share of the images each; process 0 returns all results, the others none.
    """
    category_ids = [dataset.category_ids[place] for place in
                    class_names.order(detector.class_names, dataset.class_names, dataset.anno_path,
                                      by_place=by_place or bool(dataset.annotations.mended[SAME_NAME]))]
    share = dataset.records[dist.rank()::dist.world_size()]
    found = list(progress(detector.detect_records(share), total=len(share), what="evaluate"))
    # Rows are kept until here since a result takes eighteen times their memory: half a gigabyte for a million.
    found = dist.gather(found)
    return [result for image_id, rows in found if dist.is_main()
            for result in coco_records(rows, image_id, category_ids)]


def _eval_dataset(cfg: dict[str, Any]) -> DetectionDataSet:
    dist.start()
    dataset = build_dataset(cfg, "EvalDataset")
    check_classes({**cfg, "num_classes": number_of_classes(cfg)}, dataset.class_names, dataset.anno_path)
    return dataset


def _numbers(cfg: dict[str, Any], dataset: DetectionDataSet, results: Results, classwise: bool,
             report_dir: str | os.PathLike[str] | None, weights: str, command: str,
             calibrate: bool = False) -> dict[str, Any]:
    """The numbers of results, logged and, if wished, on a page."""
    evaluator, metrics, per_class = measure(cfg, dataset, results)
    if calibrate and dist.is_main():
        _calibrate(cfg, dataset, evaluator)
    if report_dir and dist.is_main():
        report.write(report_dir, evaluator, dataset, metrics, title=report.titled(dataset.anno_path.stem, metrics),
                     weights=weights, command=command)
    if not classwise:
        return dict(metrics)
    for name, ap in per_class.items():
        logger.info("AP %6s  %s", f"{ap:.3f}" if ap >= 0 else "none", name)
    return {**metrics, "per_class": per_class}


def _calibrate(cfg: dict[str, Any], dataset: DetectionDataSet, evaluator: Any) -> None:
    """Write the calibration of the config's weights. Raises DataError where it would mean nothing."""
    judged = calibration.judge(evaluator)
    numbers = calibration.fit(judged)
    if numbers is None or numbers.sigma_scale is None:
        raise DataError(f"{dataset.anno_path}: no calibration comes of {len(judged.hits)} detections, of which "
                        f"{judged.hits.sum()} are right: some must be and some not, the better scored sooner; take "
                        "more images, or a model that is trained")
    path = stored.write(setting(cfg, "weights"), vars(numbers), upstream_scores=upstream_scores(cfg), fitted_on={
        "annotations": str(dataset.anno_path), "images": len(dataset.records), "detections": len(judged.hits)})
    logger.info("calibration: temperature %.3f, bias %.3f, sigma times %.3f, in %s", numbers.temperature, numbers.bias,
                numbers.sigma_scale, path.resolve())
