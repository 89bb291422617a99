"""Photographs through a model: `Detector` in a program, `infer` for the command line."""
import os
from pathlib import Path

import numpy as np
import paddle

from ..build import build_dataset, build_loader, build_transforms, skips_corrupt_images
from ..config.load import load_config
from ..data import transforms
from ..data.batch import collate
from ..data.image import read_image, write_image
from ..data.loader import iterate, read_images, worker_losses_explained
from ..errors import ConfigError, DataError
from ..system import dist, runtime
from ..system.atomic_write import write_json
from ..system.log import logger
from ..system.progress import progress
from .detections import Detections, coco_records, split_batch, write_csv
from .json_lines import JsonLines
from .runner import is_exported, make_runner
from .slicing import sliced
from .static_model import load_detector


class Detector:
    """A detector to call.

        found = Detector("gfl_r50_fpn_1x_coco", weights="gfl_r50_fpn_1x_coco.pdparams")("photo.jpg")
        found.boxes, found.scores, found.labels, found.names

    Args:
        config: a config file, the name of one shipped with ppgfl, or an exported model: its folder, or a model.onnx.
        weights: a .pdparams file; without it the config's `weights`.
        overrides: as in `load_config`.
        runner: of an exported model: settings of its runner in deploy/python/infer.py, as {"run_mode": "bf16"}.
        slicing: a `slicing.Slicing`, to look at images slice by slice.

    Raises: ConfigError, CheckpointError, ExportError.
    """

    def __init__(self, config, weights=None, overrides=(), runner=None, slicing=None):
        if is_exported(config):
            exported = make_runner(config, **(runner or {}))
            self.detect = sliced(exported, slicing)
            self.class_names, self.batch_size = exported.class_names, 1
            return
        cfg = load_config(config, overrides)
        runtime.select_device(cfg.get("use_gpu", False))
        self.batch_size = cfg["TestReader"].get("batch_size", 1)
        detect = detection_function(cfg, load_detector(cfg, weights), "TestReader")
        self.detect = sliced(detect, slicing, self.batch_size)
        self.class_names = build_dataset(cfg, "TestDataset").class_names

    def __call__(self, images):
        """An image, or a list of them -> `Detections`, or a list of them.

        An image is a path, or an array [H, W, 3] uint8 BGR (as cv2 reads it; [H, W] for grey).
        Raises: DataError: a file that cannot be read, an array of another kind.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        found = []
        for start in range(0, len(images), self.batch_size):
            found += self._detect(images[start:start + self.batch_size])
        return found

    def _detect(self, images):
        all_rows = self.detect([_as_array(image) for image in images])
        return [Detections.from_rows(rows, self.class_names, image=image) if isinstance(image, np.ndarray)
                else Detections.from_rows(rows, self.class_names, path=str(image))
                for image, rows in zip(images, all_rows)]


def detection_function(cfg, model, reader):
    """A function: a list of images [H, W, 3] uint8 BGR -> a list of detections [M, 6] (class, score, x1, y1, x2, y2),
    prepared as `reader` ("TestReader", "EvalReader") says. The model is put into evaluation mode."""
    sample_transforms, batch_transforms = build_transforms(cfg, reader)
    model.eval()

    def detect(images):
        samples = [transforms.apply(sample_transforms, {"im_id": 0, "image": np.ascontiguousarray(image[..., ::-1])})
                   for image in images]
        for transform in batch_transforms:
            samples = transform(samples)
        batch = {key: paddle.to_tensor(value) for key, value in collate(samples).items()}
        with paddle.no_grad():
            return split_batch(model(batch))

    return detect


def _as_array(image):
    """[H, W, 3] uint8 BGR of what `Detector` is called with. Raises DataError."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(str(image))[..., ::-1]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        kind = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"cannot detect on a {kind}; give a path or a uint8 array [H, W, 3], BGR")
    image = np.stack([image] * 3, -1) if image.ndim == 2 else image
    if image.shape[2] != 3:
        raise DataError(f"cannot detect on an array of shape {image.shape}; give [H, W, 3] uint8, BGR")
    return image


@worker_losses_explained()
def infer(cfg, images, *, weights=None, output_dir="output", draw_threshold=0.5, save_results=None,
          save_threshold=0.0, slicing=None, pictures=True, resume=False):
    """Detect on files, save drawn pictures and, if asked, the numbers.

    Args:
        cfg: the dict of `load_config`.
        images: a folder (searched recursively), a file, or a list of them.
        weights: a .pdparams file; without it the config's `weights`.
        output_dir: pictures keep their names below it, and their sub-folders where the images come from several.
        draw_threshold: boxes that score at least this much are drawn.
        save_results: None, or "json", "csv", "coco": `results.json`, `results.csv`, `bbox.json` in `output_dir`; or
            "jsonl": shards of one line per image, written as they come, for folders that do not fit into memory.
        save_threshold: least score of a saved result.
        slicing: a `slicing.Slicing`, to look at images slice by slice.
        pictures: whether to draw any.
        resume: with "jsonl": leave out what an earlier run has done.

    Returns: a list of `Detections`, one per image; with "jsonl" an empty one.
    Raises: ConfigError, DataError, CheckpointError.
    """
    if resume and save_results != "jsonl":
        raise ConfigError("--resume goes with --save_results jsonl, whose shards say what is done")
    dist.start()
    cfg = {**cfg, "TestDataset": {**cfg.get("TestDataset", {"name": "ImageFolder"}), "image_dir": images}}
    dataset = build_dataset(cfg, "TestDataset")
    files = [record["im_file"] for record in dataset.records]
    folder = Path(output_dir)
    paths = _picture_paths(files, folder) if pictures else None
    lines = JsonLines(folder, resume=resume) if save_results == "jsonl" else None
    dataset.records = _share(dataset.records, lines)
    model = load_detector(cfg, weights, images=len(dataset.records))
    found, coco, count = [], [], 0
    for index, rows in progress(_all_rows(cfg, model, dataset, slicing), total=len(dataset.records), what="infer",
                                size=lambda _: 1):
        count += 1
        one = Detections.from_rows(rows, dataset.class_names, path=files[index])
        if pictures:
            paths[index].parent.mkdir(parents=True, exist_ok=True)
            write_image(str(paths[index]), one.draw(draw_threshold))
        if lines:
            lines.write(one.above(save_threshold).to_dict())
            continue
        found.append(one.above(save_threshold))
        coco += coco_records(rows[rows[:, 1] >= save_threshold], index, dataset.category_ids)
    what = f"{count} {'pictures' if pictures else 'images'}"
    logger.info("%s in %s%s", what, folder.resolve(), ", results-*.jsonl beside them" if lines and pictures else "")
    if lines:
        lines.close()
    elif save_results:
        _save(save_results, folder, found, coco)
    return found


def _share(records, lines):
    """Of the images those that this process has to do: its share of what an earlier run has not done."""
    left = records if lines is None else [record for record in records if record["im_file"] not in lines.done]
    if len(left) < len(records):
        logger.info("%d of %d images were done by an earlier run", len(records) - len(left), len(records))
    return left if lines is None else left[dist.rank()::dist.world_size()]


def _all_rows(cfg, model, dataset, slicing):
    """Yield (place of the image, its detections)."""
    if slicing is not None:
        detect = sliced(detection_function(cfg, model, "TestReader"), slicing, cfg["TestReader"].get("batch_size", 1))
        for record, image in read_images(dataset.records, skip=skips_corrupt_images(cfg)):
            yield record["im_id"], detect([image[..., ::-1]])[0]
        return
    loader = build_loader(cfg, "TestReader", dataset) if dataset.records else ()
    with paddle.no_grad():
        for batch in iterate(loader):
            yield from zip(batch["im_id"].numpy().tolist(), split_batch(model(batch)))


def _save(kind, folder, found, coco):
    path = folder / {"json": "results.json", "csv": "results.csv", "coco": "bbox.json"}[kind]
    if kind == "csv":
        write_csv(path, found)
    else:
        write_json(path, coco if kind == "coco" else [one.to_dict() for one in found])
    logger.info("%d detections in %s", sum(map(len, found)), path.resolve())


def _picture_paths(files, folder):
    """Where each picture goes; raises a DataError rather than write over an image it was made from."""
    absolute = [Path(file).resolve() for file in files]
    root = os.path.commonpath([path.parent for path in absolute])
    pictures = [folder / path.relative_to(root) for path in absolute]
    sources = set(absolute)
    for picture in pictures:
        if picture.resolve() in sources:
            raise DataError(f"{picture.resolve()}: the drawn picture would replace the image; "
                            "give another --output_dir")
    return pictures
