"""How a model runs for detection: in dygraph, or on a CPU several times as fast as a static graph kept in the cache."""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.check import DATASET_SECTIONS
from ..config.keys import IGNORED, OWN, SECTIONS, TOP_LEVEL, setting
from ..errors import ConfigError, ExportError
from ..system import framework, runtime
from ..system.atomic_write import write_json
from ..system.log import logger
from ..weights import checkpoint, download
from .runner import make_runner

if TYPE_CHECKING:
    from ..model.gfl import GFL

MIN_IMAGES_FOR_GRAPH = 3  # from so many on, making a graph takes less time than it saves
MAX_CACHED_GRAPHS = 4
OF_MODEL = ("architecture", "GFL", "norm_type", "num_classes", "upstream_scores")  # beside the sections of classes
CLASS_NAMES = "class_names.json"  # those of the weights, null where they have none


def load_detection_model(cfg: dict[str, Any], weights: str | os.PathLike[str] | None = None, *,
                         images: int | None = None, nms: bool = True, sigma: bool = False) -> GFL | StaticModel:
    """The model of a config with its weights, to be called as a `model.gfl.GFL` in evaluation mode is.

    `engine` of the config: "dygraph"; "static", a graph in ONNX Runtime or, without it and on a GPU, in Paddle
    Inference with the fastest safe engine (see deploy/python/infer.py), the same detections but for rounding; "auto":
    static on a CPU.

    Args:
        cfg: the dict of `load_config`.
        weights: a .pdparams file; without it the config's `weights`.
        images: how many will be looked at; None: unknown. Few are not worth the making of a graph.
        nms: False: a graph ends with the candidates, which only its `run` gives.
        sigma: with the uncertainty of the sides, see `model.decode.Decoder`.

    Raises: ConfigError, CheckpointError; ExportError when "static" is asked for and cannot be had.
    """
    engine = setting(cfg, "engine")
    if engine == "dygraph" or (engine == "auto" and framework.on_gpu()):
        return in_dygraph(cfg, weights, sigma)
    weights = checkpoint.find(weights or setting(cfg, "weights") or "")
    options = {"nms": nms, **({"sigma": True} if sigma else {})}
    few = images is not None and images < MIN_IMAGES_FOR_GRAPH
    failed: Exception | None = None
    for kind in _kinds():
        folder = runtime.cache_folder() / "graphs" / _key(cfg, weights, {**options, "kind": kind})
        if engine == "auto" and few and not folder.is_dir():
            return in_dygraph(cfg, weights, sigma)
        try:
            return _open(_make(cfg, weights, folder, options, kind), kind)
        except (ExportError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one is made anew the next time
            failed = error
            logger.info("the graph cannot run as model.%s: %s", kind, error)
    if engine == "static":
        raise ExportError(f"engine: static: {failed}; engine=dygraph always works") from failed
    logger.info("running in dygraph, since there is no static graph: %s", failed)
    return in_dygraph(cfg, weights, sigma)


def in_dygraph(cfg: dict[str, Any], weights: str | os.PathLike[str] | None, sigma: bool) -> GFL:
    """The model of a config with its weights. Raises as `load_detection_model`."""
    framework.import_paddle()
    from ..build import load_model

    model = load_model(cfg, weights)
    model.decoder.sigma = sigma
    return model


def _kinds() -> list[str]:
    """The kinds of graph that may be kept, the best first. ONNX Runtime is as quick as OpenVINO inside Paddle, opens a
    model in a tenth of the time and takes little more than half of the memory (benchmarks/NOTES.md), but is not always
    there, and old ones know no deformable convolution."""
    can_onnx = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))
    return [*(["onnx"] if can_onnx and not framework.on_gpu() else []), "pdmodel"]


class StaticModel:
    """A graph of the cache that is called like a model: batch -> {"bbox": [M, 6], "bbox_num": [N]}, of tensors or, with
    nothing copied, of arrays.

    Args:
        folder: of the graph.
        kind: "onnx" or "pdmodel".
        engine: of a .pdmodel on a CPU: see deploy/python/infer.py.
    """

    def __init__(self, folder: Path, kind: str, engine: str = "auto") -> None:
        self.runner = make_runner(folder / f"model.{kind}", device=framework.device().upper(), engine=engine)
        self.class_names: list[str] | None = json.loads((folder / CLASS_NAMES).read_text(encoding="utf-8"))
        logger.info("running %s", self.runner.description)

    def eval(self) -> None:
        """It always is in evaluation mode."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = self.runner.detect(self._inputs(batch))
        return {"bbox": np.concatenate(found), "bbox_num": np.array([len(rows) for rows in found])}

    def run(self, batch: Mapping[str, Any]) -> list[np.ndarray]:
        """What the graph gives, see `export.export`."""
        return self.runner.run(self._inputs(batch))

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(batch[name]) for name in self.runner.inputs}


_on_openvino: dict[Path, StaticModel] = {}  # folder -> its StaticModel, at most one


def _open(folder: Path, kind: str) -> StaticModel:
    """OpenVINO inside Paddle keeps a model's memory until the process ends (measured: 600 MiB for R18vd), so the first
    model of a process gets it, and stays; others run on oneDNN, a fifth slower, which gives its memory back."""
    if kind == "onnx":
        return StaticModel(folder, kind)
    framework.import_paddle()
    if folder not in _on_openvino:
        model = StaticModel(folder, kind, engine="onednn" if _on_openvino else "auto")
        if _on_openvino or model.runner.engine != "openvino":
            return model
        _on_openvino[folder] = model
    return _on_openvino[folder]


def _make(cfg: dict[str, Any], weights: Path, folder: Path, options: dict[str, bool], kind: str) -> Path:
    """The folder of the graph, written unless it is there; several processes write it once."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            logger.info("making a static graph, a few seconds, kept in %s", folder)
            framework.import_paddle()
            from .export import formats_for, onnx_writer, write_graphs

            # The reader is that of the check at the end: small drawn images.
            reader = {"sample_transforms": [{"Decode": {}}, {"Resize": {"target_size": [96, 128], "keep_ratio": True}},
                                            {"NormalizeImage": {}}, {"Permute": {}}],
                      "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}]}
            try:
                formats, write_onnx = ({}, onnx_writer()) if kind == "onnx" else (formats_for(kind), None)
            except ConfigError as error:  # the package is there, and cannot be imported
                raise ExportError(str(error)) from error
            write_graphs({**cfg, "TestReader": reader, "export": options}, weights, folder, formats,
                         write_onnx=write_onnx)
            write_json(folder / CLASS_NAMES, checkpoint.read_named(weights)[1])
        (folder / "infer_cfg.yml").touch()  # the newest are kept
    _remove_oldest(folder.parent)
    return folder


def _key(cfg: dict[str, Any], weights: Path, options: dict[str, Any]) -> str:
    """Names a graph: it changes with the weights, with what the config says of the model, with what is asked of the
    export, with Paddle and our code."""
    others = {*TOP_LEVEL, *SECTIONS, *DATASET_SECTIONS, *IGNORED} - {*OF_MODEL}
    model = {key: value for key, value in cfg.items() if key not in others and not key.startswith(OWN)}
    parts = [download.sha256(weights), model, runtime.code_digest(), framework.version(), options]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _remove_oldest(graphs: Path) -> None:
    """Keep the graphs that were used last."""
    folders = sorted((path for path in graphs.iterdir() if (path / "infer_cfg.yml").is_file()),
                     key=lambda path: (path / "infer_cfg.yml").stat().st_mtime)
    for folder in folders[:-MAX_CACHED_GRAPHS]:
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.lock").unlink(missing_ok=True)
