"""COCO evaluation: a data set through a model, and pycocotools over the result."""
import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import paddle

from ..build import build_dataset, build_loader, skips_corrupt_images
from ..data.loader import iterate, read_images, worker_losses_explained
from ..errors import ConfigError, DataError
from ..inference.detections import coco_records, split_batch
from ..inference.infer import detection_function
from ..inference.runner import make_runner
from ..inference.slicing import sliced
from ..inference.static_model import load_detector
from ..system import dist
from ..system.atomic_write import write_json
from ..system.log import logger
from ..system.progress import progress
from . import report

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(cfg, *, weights=None, model=None, exported=None, runner=None, slicing=None, output_dir=".",
             json_eval=False, classwise=False, save_prediction_only=False, report_dir=None):
    """Evaluate a model on the config's `EvalDataset`.

    Args:
        cfg: the dict of `load_config`.
        weights: a .pdparams file; without it the config's `weights`.
        model: a model that has its weights already; it comes back in evaluation mode.
        exported: an exported model (its folder, or a model.onnx) instead: what is deployed, prepared as it does there.
        runner: with `exported`: arguments of its `Runner`, as {"run_mode": "bf16"}.
        slicing: a `slicing.Slicing`, to look at images slice by slice.
        output_dir: where `bbox.json` is written (COCO results: image_id, category_id, bbox x y w h, score).
        json_eval: evaluate the `bbox.json` that is there already; the model is not run.
        classwise: also the AP of each class.
        save_prediction_only: write `bbox.json` and stop; for data sets without annotations.
        report_dir: where to write report.html with its CSV files (see `report`); None: nowhere.

    Returns:
        {"AP": ..., "AP50", "AP75", "APs", "APm", "APl", "AR1", ...}, 0 to 1, -1 where there is nothing to find;
        with `classwise` also {"per_class": {name: AP}}; {} with `save_prediction_only`.

    Raises: ConfigError, DataError, CheckpointError.
    """
    dist.start()
    dataset = build_dataset(cfg, "EvalDataset")
    check_classes(cfg, dataset.class_names, f"{dataset.anno_path}")
    result_file = Path(output_dir) / "bbox.json"
    if json_eval:
        results = read_results(result_file, dataset)
    else:
        if exported is not None:
            detect = _runner(make_runner(exported, **(runner or {})), dataset)
            results = run_images(sliced(detect, slicing), dataset, skip=skips_corrupt_images(cfg))
        elif slicing is not None:
            model = model or load_detector(cfg, weights)
            detect = detection_function(cfg, model, "EvalReader")
            results = run_images(sliced(detect, slicing), dataset, skip=skips_corrupt_images(cfg))
        else:
            model = model or load_detector(cfg, weights, images=len(dataset.records) // dist.world_size())
            results = run(model, cfg, dataset)
        if dist.is_main():
            result_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(result_file, results)
            logger.info("%d detections written to %s", len(results), result_file.resolve())
    if save_prediction_only:
        return {}
    evaluator = coco_evaluator(dataset, results)
    metrics = summarize(evaluator, dataset, classwise=classwise)
    if report_dir and dist.is_main():
        report.write(report_dir, evaluator, dataset, metrics, title=f"{dataset.anno_path.stem}, AP {metrics['AP']:.3f}")
    for name, ap in metrics.get("per_class", {}).items():
        logger.info("AP %6.3f  %s", ap, name)
    return metrics


def check_classes(cfg, class_names, source):
    """Raise a ConfigError unless the config has as many classes as `source` lists, and its metric is COCO's."""
    if cfg.get("metric", "COCO") != "COCO":
        raise ConfigError(f"metric: {cfg['metric']!r}; ppgfl evaluates with COCO only")
    expected = cfg.get("num_classes", 80)
    if len(class_names) != expected:
        listed = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        raise ConfigError(f"num_classes: {expected}, but {source} lists {len(class_names)} ({listed}); "
                          f"set num_classes to {len(class_names)}, or take the annotations that belong to the model")


@worker_losses_explained()
def run(model, cfg, dataset):
    """All images of a data set through a model -> COCO results. Leaves the model in evaluation mode.

    Several processes take a share of the images each; all return all results.
    """
    model.eval()
    found = []
    share = copy.copy(dataset)
    share.records = dataset.records[dist.rank()::dist.world_size()]
    loader = build_loader(cfg, "EvalReader", share) if share.records else ()
    batches = progress(iterate(loader), total=len(share.records), what="evaluate",
                       size=lambda batch: len(batch["im_id"]))
    with paddle.no_grad():
        for batch in batches:
            found += zip(batch["im_id"].numpy().tolist(), split_batch(model(batch)))
    return _as_coco(found, dataset)


def _runner(runner, dataset):
    """The runner of an exported model. Raises ConfigError when it has another number of classes than the data set."""
    names, listed = runner.class_names, dataset.class_names
    if len(names) != len(listed):
        raise ConfigError(f"the exported model has {len(names)} classes ({', '.join(names[:3])}, ...), "
                          f"{dataset.anno_path} lists {len(listed)} ({', '.join(listed[:3])}, ...); evaluate it on the "
                          "data it was made for")
    if names != listed:
        a, b = next(pair for pair in zip(names, listed) if pair[0] != pair[1])
        logger.warning("the classes have other names: %r in the model, %r in %s, and they count as the same", a, b,
                       dataset.anno_path)
    logger.info("running %s", runner.description)
    return runner


def run_images(detect, dataset, *, skip=False):
    """As `run`, one image at a time, through a function: images [H, W, 3] uint8 BGR -> their detections; `skip`: see
    `read_images`."""
    share = dataset.records[dist.rank()::dist.world_size()]
    images = progress(read_images(share, skip=skip), total=len(share), what="evaluate", size=lambda _: 1)
    return _as_coco([(record["im_id"], detect([image[..., ::-1]])[0]) for record, image in images], dataset)


def _as_coco(found, dataset):
    """(image id, rows) of this process's images -> the COCO results of all. Rows are kept until then since a result
    takes eighteen times their memory: half a gigabyte for a million."""
    return [result for image_id, rows in dist.gather(found)
            for result in coco_records(rows, image_id, dataset.category_ids)]


def read_results(path, dataset):
    """A `bbox.json` of an earlier run over the same images. Raises DataError."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.absolute()}: --json_eval needs the results of an earlier run there: {error}") from error
    keys = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list) or not all(isinstance(r, dict) and keys <= set(r) for r in results):
        raise DataError(f"{path.absolute()}: not a list of COCO results with {', '.join(sorted(keys))}")
    foreign = {r["image_id"] for r in results} - {record["im_id"] for record in dataset.records}
    if foreign:
        raise DataError(f"{path.absolute()}: has results of image {min(foreign)!r} and {len(foreign) - 1} more, which "
                        f"{dataset.anno_path} does not list; evaluate it with the annotations it was made for")
    return results


def coco_metrics(dataset, results, *, classwise=False):
    """The twelve COCO numbers of results (see `coco_records`) over the images of a `COCODataSet`."""
    return summarize(coco_evaluator(dataset, results), dataset, classwise=classwise)


def coco_evaluator(dataset, results):
    """pycocotools' `COCOeval` of results over the images of a `COCODataSet`, accumulated."""
    from pycocotools.cocoeval import COCOeval

    truth = _truth(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, _results(truth, results), "bbox")
        evaluator.params.imgIds = sorted({record["im_id"] for record in dataset.records})
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def summarize(evaluator, dataset, *, classwise=False):
    """The twelve COCO numbers of an accumulated `COCOeval`, also logged."""
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        evaluator.summarize()
    for line in table.getvalue().splitlines():
        logger.info(line.strip())
    metrics = dict(zip(METRICS, (float(n) for n in evaluator.stats)))
    if classwise:
        metrics["per_class"] = _per_class(evaluator, dataset)
    return metrics


def _truth(dataset):
    """The annotations as pycocotools wants them: `area`, `iscrowd` and `id` filled in where they are missing."""
    annotations = []
    for index, annotation in enumerate(dataset.annotations.get("annotations", [])):
        box = annotation.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            annotations.append({"area": box[2] * box[3], "iscrowd": 0, **annotation, "id": index + 1})
    return _index({**dataset.annotations, "annotations": annotations})


def _results(truth, results):
    if results:
        return truth.loadRes(results)
    return _index({**truth.dataset, "annotations": []})  # pycocotools cannot load an empty list


def _index(content):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _per_class(evaluator, dataset):
    """Class name -> AP over all areas, 100 detections; -1 for a class without a box."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    names = dict(zip(dataset.category_ids, dataset.class_names))
    per_class = {}
    for index, category in enumerate(evaluator.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        per_class[names[category]] = float(np.mean(values)) if values.size else -1.0
    return per_class
