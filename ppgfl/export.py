"""From weights to a static graph that Paddle Inference runs, and the proof that it predicts the same."""
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
import yaml
from paddle.static import InputSpec

from .build import build_dataset, build_transforms, load_model
from .data import transforms
from .data.batch import collate
from .detections import write_text
from .errors import ConfigError, DataError, ExportError
from .log import logger
from .predictor import make_runner

FORMATS = ("json", "pdmodel", "both")
MODEL_FILES = ("model.json", "model.pdmodel", "model.pdiparams", "model.pdiparams.info")
BOX_TOLERANCE = 1e-2  # pixels; float32 alone makes 1e-3 in images of a thousand pixels
SCORE_TOLERANCE = 1e-4


def export(cfg, *, weights=None, output_dir="output_inference/model", format=None, verify=None):
    """Write `model.json` or `model.pdmodel`, `model.pdiparams` and `infer_cfg.yml`, PaddleDetection's layout.

    The graph takes `image` [N, 3, H, W] and, unless only the bare network is exported, `scale_factor` [N, 2]; what
    comes out follows the config's section `export`:

        post_process and nms     bbox [M, 6] class, score, x1, y1, x2, y2 and bbox_num [N]
        post_process             boxes [N, A, 4] and scores [N, A, C], for an NMS of your own
        neither, or benchmark    the raw maps of the head

    Args:
        cfg: the dict of `load_config`; height, width and batch are free unless TestReader.inputs_def.image_shape
            ([3, H, W] or [N, 3, H, W], -1 for free) fixes them.
        weights: a .pdparams file; without it the config's `weights`.
        output_dir: the folder to write.
        format: "json", "pdmodel" or "both"; None: what this Paddle writes by default.
        verify: images to compare the predictor with the model on: paths; None: three drawn ones; (): none.

    Returns: {"largest_box_difference": pixels, "largest_score_difference"}, or {} without a check.
    Raises: ConfigError, CheckpointError; ExportError when the exported graph predicts something else.
    """
    folder = Path(output_dir)
    image_shape = _image_shape(cfg)
    _check_format(format)
    model = load_model(cfg, weights)
    options = {"post_process": True, "nms": True, "benchmark": False, "fuse_conv_bn": False, **cfg.get("export", {})}
    if options["fuse_conv_bn"]:
        fuse_conv_bn(model)
    graph = Graph(model, **{key: options[key] for key in ("post_process", "nms", "benchmark")})
    graph.eval()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export_", dir=folder.parent) as unproven:
        _save(graph, image_shape, Path(unproven))
        settings = yaml.safe_dump(describe(cfg, image_shape), sort_keys=False, allow_unicode=True)
        write_text(Path(unproven) / "infer_cfg.yml", settings)
        differences = {} if verify == () else check(cfg, graph, Path(unproven), verify, image_shape)
        names = _move(Path(unproven), folder)
    logger.info("exported to %s: %s", folder.resolve(), ", ".join(names))
    return differences


class Graph(paddle.nn.Layer):
    """What is exported: the model up to the point that `export` of the config names."""

    def __init__(self, model, *, post_process=True, nms=True, benchmark=False):
        super().__init__()
        self.model = model
        self.bare = benchmark or not post_process
        self.nms = nms

    def forward(self, image, scale_factor=None):
        maps = self.model.head(self.model.neck(self.model.backbone(image)))
        if self.bare:
            return (*maps[0], *maps[1])
        boxes, scores = self.model.decoder.decode(maps, self.model.head.distribution_project, scale_factor)
        return self.model.decoder.suppress(boxes, scores) if self.nms else (boxes, scores)


# --- the files


def _image_shape(cfg):
    """[N, 3, H, W] with None for what is free."""
    shape = (cfg.get("TestReader", {}).get("inputs_def") or {}).get("image_shape") or [3, -1, -1]
    shape = [-1, *shape] if len(shape) == 3 else list(shape)
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(n, int) for n in shape):
        raise ConfigError(f"TestReader.inputs_def.image_shape: {shape}; it is [3, height, width], -1 for any size")
    if any(n > 0 and n % 32 for n in shape[2:]):
        raise ConfigError(f"TestReader.inputs_def.image_shape: {shape}; height and width must be multiples of 32")
    return [n if n > 0 else None for n in shape]


def _check_format(wanted):
    """Raise a ConfigError unless this Paddle, which writes one format, writes the one that is wanted."""
    if wanted is None:
        return
    if wanted not in FORMATS:
        raise ConfigError(f"--format: {wanted!r}; allowed: {', '.join(FORMATS)}")
    can, other = ("pdmodel", "json") if _writes_pdmodel() else ("json", "pdmodel")
    if wanted != can:
        version = "2.6" if other == "pdmodel" else "3"
        raise ConfigError(f"--format {wanted}: Paddle {paddle.__version__} writes {can} only; for .{other} export with "
                          f"Paddle {version}. Every Paddle 3 reads both")


def _writes_pdmodel():
    """Whether this Paddle saves programs of the old kind: ask it to save a small one."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        layer = paddle.jit.to_static(paddle.nn.Linear(1, 1), input_spec=[InputSpec([1, 1])], full_graph=True)
        paddle.jit.save(layer, os.path.join(folder, "probe"))
        return os.path.exists(os.path.join(folder, "probe.pdmodel"))


def _save(graph, image_shape, folder):
    specs = [InputSpec(list(image_shape), "float32", "image")]  # a copy, since it is changed
    if not graph.bare:
        specs.append(InputSpec([image_shape[0], 2], "float32", "scale_factor"))
    with _quiet():
        static = paddle.jit.to_static(graph.forward, input_spec=specs, full_graph=True)
        paddle.jit.save(static, str(folder / "model"))


def _move(source, folder):
    """Put the files of an export into its folder, in place of an earlier one's. Returns their names."""
    folder.mkdir(exist_ok=True)
    names = sorted(path.name for path in source.iterdir())
    for name in names:
        os.replace(source / name, folder / name)
    for name in MODEL_FILES:
        if name not in names:
            (folder / name).unlink(missing_ok=True)  # of another format: the runner must not find it
    return names


@contextmanager
def _quiet():
    """Without paddle's advice about its own internals while a program is saved."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def describe(cfg, image_shape):
    """The content of infer_cfg.yml, with PaddleDetection's keys."""
    preprocess = []
    for entry in cfg["TestReader"]["sample_transforms"] + (cfg["TestReader"].get("batch_transforms") or []):
        (name, args), = entry.items()
        if name == "PadBatch":
            preprocess.append({"type": "PadStride", "stride": args["pad_to_stride"]})
        elif name != "Decode":
            preprocess.append({"type": name, **(args or {})})
    return {
        "mode": "paddle", "draw_threshold": 0.5, "metric": cfg.get("metric", "COCO"),
        "use_dynamic_shape": None in image_shape[2:], "arch": "GFL", "min_subgraph_size": 3, "Preprocess": preprocess,
        "label_list": build_dataset(cfg, "TestDataset").class_names,
    }


def fuse_conv_bn(model):
    """Fold every BatchNorm behind a plain convolution into its weights; the outputs stay the same."""
    for layer in model.sublayers():
        norm = getattr(layer, "norm", None)
        conv = getattr(layer, "conv", None)
        if not isinstance(norm, paddle.nn.BatchNorm2D) or not isinstance(conv, paddle.nn.Conv2D):
            continue
        scale = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
        shift = norm.bias - norm._mean * scale
        conv.weight.set_value(conv.weight * scale.reshape([-1, 1, 1, 1]))
        if conv.bias is None:
            conv.bias = conv.create_parameter([conv.weight.shape[0]], is_bias=True)
            conv.bias.set_value(shift)
        else:
            conv.bias.set_value(conv.bias * scale + shift)
        layer.norm = paddle.nn.Identity()


# --- the proof


def check(cfg, graph, folder, images, image_shape):
    """Compare the predictor with the model. Returns the largest differences; raises ExportError over the tolerance."""
    predictor = make_runner(folder, engine="native")  # the proof must not hang on oneDNN's faults in Paddle 3.3
    boxes = scores = 0.0
    samples = _samples(cfg, images, image_shape)
    for sample in samples:
        arrays = [sample["image"]] if graph.bare else [sample["image"], sample["scale_factor"]]
        with paddle.no_grad():
            wanted = [value.numpy() for value in graph(*map(paddle.to_tensor, arrays))]
        got = predictor.run(dict(zip(("image", "scale_factor"), arrays)))
        if [w.shape for w in wanted] != [g.shape for g in got]:
            raise ExportError(f"the exported graph gives {[g.shape for g in got]} where the model gives "
                              f"{[w.shape for w in wanted]}; nothing was written")
        box, score = _differences(graph, wanted, got)
        boxes, scores = max(boxes, box), max(scores, score)
    logger.info("checked on %d images with %s: largest difference %.2g pixels in boxes, %.2g in %s", len(samples),
                predictor.description, boxes, scores, "raw maps" if graph.bare else "scores")
    if not (boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE):
        raise ExportError(f"the exported graph differs by {boxes:.2g} pixels (allowed {BOX_TOLERANCE}) or "
                          f"{scores:.2g} in scores (allowed {SCORE_TOLERANCE}); nothing was written")
    return {"largest_box_difference": boxes, "largest_score_difference": scores}


def _differences(graph, wanted, got):
    """The largest difference in boxes (pixels), and in scores or raw maps."""
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


def _difference(a, b):
    return float(np.abs(a - b).max()) if a.size else 0.0


def _samples(cfg, images, image_shape):
    """Batches of one image, prepared as TestReader says; drawn ones where none are given."""
    if images is None:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((240, 320), (331, 200), (64, 640))]
    sample_transforms, batch_transforms = build_transforms(cfg, "TestReader")
    batches = []
    for image in images:
        sample = {"im_id": 0, "image": image} if isinstance(image, np.ndarray) else {"im_id": 0, "im_file": image}
        samples = [transforms.apply(sample_transforms, sample)]
        for transform in batch_transforms:
            samples = transform(samples)
        batch = collate(samples)
        wanted = [n if n is not None else m for n, m in zip(image_shape, batch["image"].shape)]
        if list(batch["image"].shape) != wanted:
            raise DataError(f"the graph takes images of {wanted}, but TestReader makes {list(batch['image'].shape)} of "
                            f"{image if not isinstance(image, np.ndarray) else 'a drawn image'}; let Resize make that "
                            "size (keep_ratio: false), or set TestReader.inputs_def.image_shape to [3, -1, -1]")
        batches.append(batch)
    return batches
