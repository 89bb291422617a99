"""From weights to a static graph that Paddle Inference or an ONNX runtime runs."""
from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import paddle
import yaml
from paddle.static import InputSpec

from ..build import check, load_model, upstream_scores
from ..config.keys import section, setting, with_weights
from ..data.batch import PadBatch
from ..data.transforms import NormalizeImage, Resize
from ..errors import ConfigError, ExportError
from ..readers import build_dataset, build_reader
from ..system import framework
from ..system.atomic_write import write_text
from ..system.log import logger
from ..system.signals import block_signals
from ..weights import calibration
from .graph import Graph, fuse_conv_bn
from .verify import compare

Context = Callable[[], AbstractContextManager[Any]]

FORMATS = ("json", "pdmodel", "both")
MODEL_FILES = ("model.json", "model.pdmodel", "model.pdiparams", "model.pdiparams.info", "model.onnx",
               "model_int8.onnx")


def export(cfg: dict[str, Any], *, weights: str | os.PathLike[str] | None = None,
           output_dir: str | os.PathLike[str] = "output_inference/model", format: str | None = None, onnx: bool = False,
           with_nms: bool = False, int8: str | Sequence[str] | None = None,
           verify: Sequence[str | os.PathLike[str]] | None = None) -> dict[str, dict[str, float]]:
    """Write `model.pdmodel`, `model.json`, `model.pdiparams` and `infer_cfg.yml`, PaddleDetection's layout, on the CPU.

    The graph takes `image` [N, 3, H, W] and, unless only the bare network is exported, `scale_factor` [N, 2], and with
    `clip_boxes` also `im_shape` [N, 2], the size of the image without padding; what comes out follows the config's
    section `export`:

        post_process and nms     bbox [M, 6] class, score, x1, y1, x2, y2 and bbox_num [N]
        post_process             boxes [N, A, 4] and scores [N, A, C], for an NMS of your own
        neither, or benchmark    the raw maps of the head

    With its `sigma`, bbox is [M, 14] and boxes [N, A, 12]: behind each box the standard deviations of its four sides in
    pixels of the original image, and the shares of their two greatest bins (`model.decode.Decoder.spreads`).

    Args:
        cfg: the dict of `load_config`; height, width and batch are free unless TestReader.inputs_def.image_shape
            ([3, H, W] or [N, 3, H, W], -1 for free) fixes them.
        weights: a .pdparams file; without it the config's `weights`.
        output_dir: the folder to write.
        format: "pdmodel" for Paddle 2 and 3, "json" for Paddle 3, "both"; None: all that this Paddle can write.
        onnx: also write `model.onnx`, always with decoded boxes and scores (see `onnx_graph`).
        with_nms: put the NMS into `model.onnx`.
        int8: photographs (a folder, or a list of files) to also write `model_int8.onnx` with (see `quantize`).
        verify: images to compare the exported graphs with the model on: paths; None: three drawn ones; (): none.

    Returns: {file name: {"largest_box_difference": pixels, "largest_score_difference"}}, or {} without a check.
    Raises: ConfigError, CheckpointError; ExportError when an exported graph predicts something else.
    """
    check(cfg)
    write_onnx = onnx_writer() if onnx or with_nms or int8 else None
    return write_graphs(cfg, weights, Path(output_dir), formats_for(format), write_onnx=write_onnx, with_nms=with_nms,
                        int8=int8, verify=verify)


@framework.on_cpu()
def write_graphs(cfg: dict[str, Any], weights: str | os.PathLike[str] | None, folder: Path,
                 formats: Mapping[str, Context], *, write_onnx: Callable[..., None] | None = None,
                 with_nms: bool = False, int8: str | Sequence[str] | None = None,
                 verify: Sequence[str | os.PathLike[str]] | None = None) -> dict[str, dict[str, float]]:
    """What `export` does once its arguments are known to be right; `formats` are of `formats_for`.

    All of it is done on the CPU, as PaddleDetection exports: a GPU rounds what goes into a convolution to TF32, from
    Ampere on, and the check at the end would compare that with float32.
    """
    cfg = with_weights(cfg, weights)
    image_shape = _image_shape(cfg)
    model = load_model(cfg)
    options = section(cfg, "export")
    model.decoder.sigma = options["sigma"]
    if options["fuse_conv_bn"]:
        fuse_conv_bn(model)
    graph = Graph(model, **{key: options[key] for key in ("post_process", "nms", "benchmark")})
    graph.eval()
    settings = describe(cfg, image_shape, model.class_names)
    if numbers := calibration.read(setting(cfg, "weights"), upstream_scores(cfg)):
        settings["calibration"] = numbers
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export_", dir=folder.parent) as temporary:
        unproven = Path(temporary)
        for kind, writing in formats.items():
            _save(graph, image_shape, unproven, kind, writing)
        if formats:
            settings["params_sha256"] = hashlib.sha256((unproven / "model.pdiparams").read_bytes()).hexdigest()
        write_text(unproven / "infer_cfg.yml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        graphs = {f"model.{kind}": graph for kind in formats}
        if write_onnx:
            write_onnx(unproven / "model.onnx", model, image_shape=image_shape, settings=settings, with_nms=with_nms)
            graphs["model.onnx"] = Graph(model, nms=with_nms)
            if int8:
                _quantize(unproven / "model.onnx", int8)
        differences = {} if verify == () else compare(cfg, unproven, graphs, verify, image_shape)
        names = _move(unproven, folder)
    logger.info("exported to %s: %s", folder.resolve(), ", ".join(names))
    return differences


# --- the files


def _image_shape(cfg: dict[str, Any]) -> list[int | None]:
    """[N, 3, H, W] with None for what is free."""
    shape = (section(cfg, "TestReader")["inputs_def"] or {}).get("image_shape") or [3, -1, -1]
    shape = [-1, *shape] if len(shape) == 3 else list(shape)
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(n, int) and (n == -1 or n > 0) for n in shape):
        raise ConfigError(f"TestReader.inputs_def.image_shape: {shape}; it is [3, height, width], -1 for any size")
    if any(n > 0 and n % 32 for n in shape[2:]):
        raise ConfigError(f"TestReader.inputs_def.image_shape: {shape}; height and width must be multiples of 32")
    return [n if n > 0 else None for n in shape]


def formats_for(wanted: str | None) -> dict[str, Context]:
    """{"json" or "pdmodel": the context in which this Paddle writes it}, of what is wanted. Raises ConfigError."""
    if wanted not in (None, *FORMATS):
        raise ConfigError(f"--format: {wanted!r}; allowed: {', '.join(FORMATS)}")
    if hasattr(paddle.pir_utils, "DygraphOldIrGuard"):
        can: dict[str, Context] = {"json": paddle.pir_utils.DygraphPirGuard,
                                   "pdmodel": paddle.pir_utils.DygraphOldIrGuard}
    else:
        can = {"pdmodel": nullcontext}
    if wanted is None or (wanted == "both" and len(can) == 2):
        return can
    if wanted not in can:
        raise ConfigError(f"--format {wanted}: Paddle {paddle.__version__} writes pdmodel only, which every Paddle "
                          "reads; for .json export with Paddle 3")
    return {wanted: can[wanted]}


def onnx_writer() -> Callable[..., None]:
    """The function that writes ONNX. Raises ConfigError without the package."""
    try:
        from . import onnx_graph
    except ImportError as error:
        raise ConfigError(f"--onnx: {error}; pip install onnx onnxruntime (or ppgfl[onnx])") from error
    return onnx_graph.write


def _quantize(path: Path, images: str | Sequence[str]) -> None:
    try:
        from .int8 import quantize

        quantize(path, path.with_name("model_int8.onnx"), images)
    except ImportError as error:
        raise ConfigError(f"--int8: {error}; pip install onnx onnxruntime (or ppgfl[onnx])") from error
    logger.info("model_int8.onnx is an approximation: compare its AP with tools/eval.py --exported")


def _save(graph: Graph, image_shape: Sequence[int | None], folder: Path, kind: str, writing: Context) -> None:
    """Write the graph as "json" or "pdmodel"; the parameter files of both are the same."""
    specs = [InputSpec(list(image_shape), "float32", "image")]  # a copy, since it is changed
    specs += [InputSpec([image_shape[0], 2], "float32", name) for name in graph.inputs[1:]]
    with warnings.catch_warnings(), writing(), block_signals():
        warnings.simplefilter("ignore")  # paddle's advice about its own internals
        static = paddle.jit.to_static(graph.forward, input_spec=specs, full_graph=True)
        try:
            paddle.jit.save(static, str(folder / "model"))
        except OSError as error:  # Paddle's, which does not say where
            raise OSError(error.errno, error.strerror, str(folder / "model")) from error
    if not (folder / f"model.{kind}").is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir()))
        raise ExportError(f"Paddle {paddle.__version__} wrote no model.{kind} but {found}; leave --format out")


def _move(source: Path, folder: Path) -> list[str]:
    """Put the files of an export into its folder, in place of an earlier one's. Returns their names."""
    folder.mkdir(exist_ok=True)
    names = sorted(path.name for path in source.iterdir())
    for name in names:
        os.replace(source / name, folder / name)
    for name in MODEL_FILES:
        if name not in names:
            (folder / name).unlink(missing_ok=True)  # of another format: the runner must not find it
    return names


def describe(cfg: dict[str, Any], image_shape: Sequence[int | None],
             class_names: list[str] | None = None) -> dict[str, Any]:
    """The content of infer_cfg.yml, with PaddleDetection's keys; class names that weights lack are TestDataset's.

    Raises: ConfigError.
    """
    reader = build_reader(cfg, "TestReader")
    keys = section(cfg, "TestReader")
    entries = [*keys["sample_transforms"], *(keys["batch_transforms"] or [])]
    steps = [_step_of(cfg, *pair) for pair in zip(reader.steps(), entries)]
    return {
        "mode": "paddle", "draw_threshold": 0.5, "metric": setting(cfg, "metric"),
        "use_dynamic_shape": None in image_shape[2:], "arch": "GFL", "min_subgraph_size": 16,
        "Preprocess": [step for step in steps if step],
        "label_list": class_names or build_dataset(cfg, "TestDataset").class_names,
        **({"sigma": True} if section(cfg, "export")["sigma"] else {}),
    }


def _step_of(cfg: Mapping[str, Any], transform: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A transform of TestReader, and its entry there, as a step of Preprocess; {} for Decode, which is no step.

    Every value is written out, since programs that read it know no defaults; a size is two whole numbers.
    """
    (kind, args), = entry.items()
    if isinstance(transform, Resize):
        return {"type": kind, "target_size": list(transform.target_size), "keep_ratio": transform.keep_ratio,
                "interp": transform.interp}
    if isinstance(transform, NormalizeImage):
        known = inspect.signature(NormalizeImage).parameters
        defaults = {key: known[key].default for key in ("is_scale", "mean", "std")}
        values = {**defaults, **(cfg.get(kind) or {}), **(args or {})}
        return {"type": kind, **{key: list(value) if isinstance(value, tuple) else value
                                 for key, value in values.items()}}
    if isinstance(transform, PadBatch):
        return {"type": "PadStride", "stride": transform.stride}
    if kind in ("Decode", "Permute"):
        return {"type": kind} if kind == "Permute" else {}
    raise ConfigError(f"TestReader: {kind} cannot be exported; what runs an export knows Resize, NormalizeImage, "
                      "Permute and PadBatch")
