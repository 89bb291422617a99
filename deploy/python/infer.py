#!/usr/bin/env python3
"""Run an exported GFL detector: a folder with Paddle Inference, a .onnx with ONNX Runtime. One file to copy.

    python infer.py --model_dir output_inference/gfl_r50_fpn_1x_coco --image_dir photos --output_dir output
    python infer.py --model_dir model.onnx --image_file photo.jpg --run_benchmark
    python infer.py --model_dir model.onnx --video_file clip.mp4

It needs numpy and OpenCV; for a folder Paddle and PyYAML, for a .onnx ONNX Runtime; for names beyond ASCII Pillow;
neither ppgfl nor PaddleDetection, whose folders it reads too. In a program: `open_runner("model.onnx")([image])`.
"""
from __future__ import annotations

import argparse
import colorsys
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2  # before paddle: Paddle 2.6 brings a zlib that breaks an OpenCV loaded after it
import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# A small file can claim far more pixels than an image of 16,384 x 16,384; OpenCV looks at this with its first image.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
warnings.filterwarnings("ignore", message="No ccache found")  # Paddle looks for it; running a model never needs it
DEVICES = ("CPU", "GPU")
NO_INT8 = "there is no model_int8.onnx beside it: export with --int8 FOLDER_OF_PHOTOGRAPHS"
RUN_MODES = ("paddle", "fp16", "bf16", "int8", "trt_fp32", "trt_fp16")
ENGINES = ("auto", "onednn", "openvino", "native")
RECONNECTS = 5  # attempts to open a stream again that broke off, until it has been steady for STEADY_SECONDS
WAIT_SECONDS, STEADY_SECONDS = 1.0, 60.0  # before the first attempt; twice as long before each next one, ten at most
NMS = {"score_threshold", "nms_top_k", "keep_top_k", "nms_threshold"}  # in the metadata of a .onnx
Arrays = dict[str, np.ndarray]


class RunnerError(ValueError):
    """A model, an image or a setting that cannot be used; the message is one line with the mend."""


# --- the two runners


def open_runner(model: str | Path, **settings: Any) -> Runner | OnnxRunner:
    """An `OnnxRunner` of a .onnx file, a `Runner` of all else; the settings are those of `BaseRunner`. In run_mode
    "int8" it is the model_int8.onnx in the folder, or beside the file, where there is one."""
    path = Path(model)
    quantised = (path if path.is_dir() else path.parent) / "model_int8.onnx"
    if settings.get("run_mode") == "int8" and quantised.is_file():
        model, settings = quantised, {**settings, "run_mode": "paddle"}
    return (OnnxRunner if Path(model).suffix.lower() == ".onnx" else Runner)(model, **settings)


class ProcessLock:
    """A lock that a forked child finds free, also when a thread of its parent held it at the fork."""

    def __init__(self) -> None:
        self.process, self.lock = os.getpid(), threading.Lock()

    def __enter__(self) -> None:
        if self.process != os.getpid():
            self.process, self.lock = os.getpid(), threading.Lock()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class PerProcess:
    """What a function makes, made once in each process: the threads of a session do not live on in a forked child,
    which would wait for them if the fork came while one held a lock."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.lock = make, ProcessLock()
        self.made: dict[int, Any] = {}  # the parent's stays in a child: its end would wait for its threads

    def get(self) -> Any:
        with self.lock:
            process = os.getpid()
            if process not in self.made:
                self.made[process] = self.make()
            return self.made[process]


class BaseRunner:
    """What both runners share: images in, detections out. Several threads may call it: images are prepared side by
    side, the model runs for one at a time. It can be pickled, and opens its model anew where it is unpickled.

    Args:
        model: a folder with model.pdmodel or .json (or inference.*), its .pdiparams, and infer_cfg.yml; or one of these
            model files itself; or a .onnx.
        device: "CPU", "GPU", or "GPU:1" for the second card.
        run_mode: "paddle" float32; of a folder also "bf16" on a processor or card that has it; "fp16" on a card; "int8"
            for one that PaddleSlim has quantised (of a model_int8.onnx see `open_runner`); "trt_fp32", "trt_fp16"
            TensorRT.
        cpu_threads: None: the physical cores.
        engine: "auto", the fastest that is safe (see `choose_engine`); of a folder on a CPU also "onednn", "openvino",
            "native".
        provider: of a .onnx what ONNX Runtime computes with, as "TensorrtExecutionProvider" or just "Tensorrt"; None:
            "CPU" or "CUDA", as the device says.
        calibrated: scores, and sigma, as the calibration in the export makes them (see `calibrate`).
    """

    model_file: Path
    class_names: list[str]  # by class index
    preprocess: list[dict]  # how images are prepared
    inputs: list[str]  # the names of the arrays that the model takes
    engine: str  # what really computes: "onednn", "openvino", "native", "gpu" or "onnxruntime"
    description: str  # the file and the settings it really runs with
    sigma: bool  # whether rows are [M, 14]: sigma and top2 of x1, y1, x2, y2 behind the box
    calibration: dict | None  # arguments of `calibrate`
    allowed = {"run_mode": RUN_MODES, "engine": ENGINES}

    def __init__(self, model: str | Path, device: str = "CPU", run_mode: str = "paddle", cpu_threads: int | None = None,
                 engine: str = "auto", provider: str | None = None, calibrated: bool = False) -> None:
        for name, value in (("run_mode", run_mode), ("engine", engine)):
            if value not in self.allowed[name]:
                mend = f"; {NO_INT8}" if value == "int8" else ""
                raise RunnerError(f"{name}: {value!r}; allowed for {model}: {', '.join(self.allowed[name])}{mend}")
        self.settings = {"device": device, "run_mode": run_mode, "cpu_threads": cpu_threads, "engine": engine,
                         "provider": provider, "calibrated": calibrated}
        self.device, self.card = split_device(device)
        self.model = model
        self.lock, self.counting = ProcessLock(), ProcessLock()
        self.threads = cpu_threads or physical_cores()
        self.times = {"preprocess": 0.0, "inference": 0.0, "postprocess": 0.0}  # seconds so far
        self.load(Path(model), run_mode, engine, provider)
        if calibrated and not self.calibration:
            raise RunnerError(f"{model}: holds no calibration; fit one with eval.py --calibrate, export the model "
                              "again, or leave --calibrated out")

    def __reduce__(self) -> tuple:
        return functools.partial(type(self), self.model, **self.settings), ()

    def load(self, path: Path, run_mode: str, engine: str, provider: str | None) -> None:
        """Set what is not set yet of the attributes, and all that `run` needs."""
        raise NotImplementedError

    def run(self, arrays: Arrays) -> list[np.ndarray]:
        """{"image": [N, 3, H, W], "scale_factor": [N, 2], ...} -> the outputs; arrays it does not take are ignored."""
        raise NotImplementedError

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Images [H, W, 3] uint8 BGR of any sizes -> per image [M, 6] class, score, x1, y1, x2, y2 in its own pixels,
        best score first."""
        return self.detect(self.prepare(images))

    def prepare(self, images: Sequence[np.ndarray]) -> Arrays:
        """Images -> the input arrays of `detect` (see the function `prepare`)."""
        start = time.perf_counter()
        arrays = prepare(images, self.preprocess)
        self.count(preprocess=time.perf_counter() - start)
        return arrays

    def detect(self, arrays: Arrays) -> list[np.ndarray]:
        """What `prepare` made, or several of it of one size stacked -> detections as `__call__`."""
        start = time.perf_counter()
        outputs = self.run(arrays)
        finished = time.perf_counter()
        found = self.rows_of(outputs)
        if self.settings["calibrated"]:
            found = [calibrate(rows, **self.calibration) for rows in found]
        self.count(inference=finished - start, postprocess=time.perf_counter() - finished)
        return found

    def count(self, **seconds: float) -> None:
        with self.counting:  # not `lock`: images are prepared while the model runs
            for stage, spent in seconds.items():
                self.times[stage] += spent

    def rows_of(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        """bbox [M, 6] and bbox_num [N] -> the rows of each image. TensorRT's NMS gives every image equally many, those
        of class -1 stand for nothing, and bbox may be [N, M / N, 6]. With sigma there are 14 columns."""
        if len(outputs) != 2 or outputs[0].ndim not in (2, 3) or outputs[0].shape[-1] not in (6, 14):
            raise RunnerError(f"{self.model_file}: gives outputs of shapes {[o.shape for o in outputs]}; this runner "
                              "needs an export with post-processing and NMS")
        rows, counts = outputs[0].reshape(-1, outputs[0].shape[-1]), outputs[1].ravel()
        if len(rows) == counts.sum():
            found = np.split(rows, np.cumsum(counts)[:-1])
        elif len(rows) % len(counts) == 0:
            found = [r[r[:, 0] >= 0] for r in np.split(rows, len(counts))]
        else:
            raise RunnerError(f"{self.model_file}: gives {len(rows)} rows for images with {counts.tolist()} objects; "
                              "export it again")
        return [r[np.argsort(-r[:, 1], kind="stable")] for r in found]


class Runner(BaseRunner):
    """An exported folder in Paddle Inference."""

    def load(self, path: Path, run_mode: str, engine: str, provider: str | None) -> None:
        self.model_file, params_file = find_model(path)
        settings = read_settings(params_file)
        self.class_names, self.preprocess = settings["label_list"], settings["Preprocess"]
        self.sigma, self.calibration = settings.get("sigma", False), settings.get("calibration")
        if self.sigma and run_mode.startswith("trt"):
            raise RunnerError(f"--run_mode {run_mode}: {path} gives sigma, which asks NMS which cells it keeps, and "
                              "TensorRT's was not tried; use --run_mode paddle or fp16, or export without sigma")
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # both are read while paddle is imported
        if processor_has("AuthenticAMD"):
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
        inference = needed("paddle", "paddlepaddle").inference
        config = inference.Config(str(self.model_file), str(params_file))
        config.disable_glog_info()
        config.switch_ir_optim(True)
        # It moves the stride behind the distances into a weight that all levels share: PaddleDetection's exports give
        # boxes of 1e8 pixels with it.
        config.delete_pass("matmul_v2_scale_fuse_pass")
        if run_mode == "int8" and not re.search(b"quantize_linear|fake_quantize", self.model_file.read_bytes()):
            raise RunnerError(f"--run_mode int8: {self.model_file} holds no quantisation, and {NO_INT8}; or use "
                              "--run_mode bf16 or paddle")
        if provider is not None:
            raise RunnerError(f"provider: {provider!r}: {path} runs in Paddle, and only a .onnx has one; leave it out")
        with tempfile.TemporaryDirectory() as folder, kept_signal_stack():
            config.set_optim_cache_dir(folder)  # OpenVINO leaves a compiled copy: not in the user's folder
            if self.device == "GPU":
                self.engine, notes = "gpu", use_gpu(config, run_mode, self.card, settings.get("min_subgraph_size", 3))
            else:
                any_size = settings.get("use_dynamic_shape", True)
                self.engine, notes = use_cpu(config, run_mode, engine, self.threads, any_size)
            self.description = f"{self.model_file.name} on {self.settings['device']}, {notes}"
            try:
                self.predictor = inference.create_predictor(config)
            except Exception as error:  # Paddle raises many kinds
                raise RunnerError(f"{self.model_file}: Paddle cannot load it ({self.description}): ...{end_of(error)}; "
                                  "export it again, or try --engine native") from error
        self.inputs = self.predictor.get_input_names()

    def run(self, arrays: Arrays) -> list[np.ndarray]:
        for name in self.inputs:
            if name not in arrays:
                raise RunnerError(f"{self.model_file}: wants an input '{name}', which this runner does not make")
        with self.lock, kept_signal_stack():  # a predictor has one set of inputs and outputs, whoever calls
            for name in self.inputs:
                self.predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(arrays[name]))
            self.predictor.run()
            return [self.predictor.get_output_handle(name).copy_to_cpu() for name in self.predictor.get_output_names()]


class OnnxRunner(BaseRunner):
    """A .onnx file that `tools/export_model.py --onnx` of ppgfl wrote, with or without the NMS inside, in ONNX Runtime.
    Its metadata hold class names, preparation and the settings of the NMS."""

    allowed = {"run_mode": ("paddle",), "engine": ("auto",)}

    def load(self, path: Path, run_mode: str, engine: str, provider: str | None) -> None:
        self.model_file = path
        if not path.is_file():
            raise RunnerError(f"{path.absolute()}: no such file")
        onnxruntime = needed("onnxruntime", "onnxruntime")
        name = provider_name(provider or {"CPU": "CPU", "GPU": "CUDA"}[self.device])
        available = onnxruntime.get_available_providers()
        if name not in available:
            mend = "pip install onnxruntime-gpu in its place, or use --device CPU" if provider is None else \
                f"it has {', '.join(available)}"
            asked = f"--device {self.settings['device']}" if provider is None else f"--provider {provider}"
            raise RunnerError(f"{asked}: this onnxruntime has no {name}; {mend}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.enable_mem_pattern = False  # it plans the memory of one size, and keeps a plan for each
        self.sessions = PerProcess(functools.partial(onnxruntime.InferenceSession, str(path), options,
                                                     providers=providers_of(name, available, self.card, path)))
        try:
            session = self.sessions.get()
        except Exception as error:  # ONNX Runtime raises kinds of its own
            said, mend = end_of(error), "export it again"
            if "implementation for DeformConv" in said or "Unsupported model IR version" in said:
                mend = (f"pip install -U onnxruntime: this is {onnxruntime.__version__}, deformable convolutions need "
                        "1.25 (for Python 3.11 and newer)")
            raise RunnerError(f"{path}: ONNX Runtime cannot load it: {said}; {mend}") from error
        if name not in session.get_providers():
            raise RunnerError(f"--device {self.settings['device']}: ONNX Runtime cannot start its {name} (its lines "
                              "above say why); mend that, or use --device CPU")
        about, keys = session.get_modelmeta().custom_metadata_map, ("class_names", "preprocess", "nms")
        missing = [key for key in keys if key not in about]
        if missing:
            raise RunnerError(f"{path}: has no {', '.join(missing)} in its metadata; write it with "
                              "tools/export_model.py --onnx")
        try:
            self.class_names, self.preprocess, self.nms = (json.loads(about[key]) for key in keys)
        except ValueError as error:
            raise RunnerError(f"{path}: its metadata are not JSON: {end_of(error)}; export it again") from error
        check_settings(path, self.class_names, self.preprocess)
        if not isinstance(self.nms, dict) or set(self.nms) != NMS or not all(is_number(n, -1e9, 1e9)
                                                                             for n in self.nms.values()):
            raise RunnerError(f"{path}: nms: {str(self.nms)[:80]}: it has to be numbers for {', '.join(sorted(NMS))}; "
                              "export it again")
        self.inputs = [node.name for node in session.get_inputs()]
        self.engine = "onnxruntime"
        first = session.get_outputs()[0]
        self.has_nms, self.sigma = first.name == "bbox", first.shape[-1] in (12, 14)
        self.calibration = read_calibration(path, about.get("calibration"))
        classes = None if self.has_nms else session.get_outputs()[-1].shape[-1]
        if isinstance(classes, int) and classes != len(self.class_names):
            raise RunnerError(f"{path}: its metadata name {len(self.class_names)} classes, the model has {classes}; "
                              "export it again")
        place = f"{self.settings['device']}, {self.threads} threads" if provider is None else name
        self.description = f"{path.name} in ONNX Runtime {onnxruntime.__version__} on {place}"

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As `Runner`'s, but each image by itself: what is found in it does not depend on the others."""
        return [self.detect(self.prepare([image]))[0] for image in images]

    def run(self, arrays: Arrays) -> list[np.ndarray]:
        session = self.sessions.get()
        takes, made = session.get_inputs()[0].shape, arrays["image"].shape
        if any(isinstance(n, int) and n != m for n, m in zip(takes, made)):
            raise RunnerError(f"{self.model_file}: takes images of {takes}, and was given {list(made)}; export it with "
                              "keep_ratio: false in Resize, or with image_shape: [3, -1, -1]")
        return session.run(None, {name: arrays[name] for name in self.inputs})

    def rows_of(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        if self.has_nms:
            return super().rows_of(outputs)
        return [suppress(boxes, scores, **self.nms) for boxes, scores in zip(*outputs)]


def calibrate(rows: np.ndarray, *, sigma_scale: float, temperature: float, bias: float) -> np.ndarray:
    """Rows [M, 6 or 14] with scores that are shares: of the detections with such a score so many are right; and with
    sigmas that cover as much as those of a normal distribution. The order stays."""
    rows = rows.copy()
    score = rows[:, 1].astype(np.float64).clip(1e-12, 1 - 1e-12)
    rows[:, 1] = 1 / (1 + np.exp(-(np.log(score / (1 - score)) / temperature + bias)))
    rows[:, 6:10] *= sigma_scale
    return rows


def is_calibration(value: object) -> bool:
    """Whether they are arguments of `calibrate`."""
    least = {"sigma_scale": 1e-6, "temperature": 1e-6, "bias": -1e6}
    return isinstance(value, dict) and set(value) == set(least) and all(
        is_number(value[key], least[key], 1e6) for key in least)


def read_calibration(path: Path, text: str | None) -> dict | None:
    """Of the metadata of a .onnx."""
    with contextlib.suppress(ValueError):
        value = None if text is None else json.loads(text)
        if value is None or is_calibration(value):
            return value
    raise RunnerError(f"{path}: calibration: {text!r:.80}: it has to be {CALIBRATION}; export it again")


def needed(package: str, install: str) -> Any:
    """Import a package that not every model needs."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RunnerError(f"this model needs {package}: {error}; pip install {install}") from error


def end_of(error: Exception) -> str:
    """The end of a library's message, in one line."""
    return " ".join(str(error).split())[-300:]


# --- the exported folder


def find_model(path: Path) -> tuple[Path, Path]:
    """(model file, parameter file) of a folder, by what exists, whatever Paddle wrote it."""
    folder, names = path, [f"{name}{suffix}" for suffix in (".pdmodel", ".json") for name in ("model", "inference")]
    if path.is_file() and path.suffix in (".pdmodel", ".json"):
        folder, names = path.parent, [path.name]
    if not folder.is_dir():
        raise RunnerError(f"{folder.absolute()}: no such folder; --model_dir is what the export wrote")
    for name in names:
        model, params = folder / name, (folder / name).with_suffix(".pdiparams")
        if model.is_file() and params.is_file():
            return model, params
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise RunnerError(f"{folder}: needs model.pdmodel or model.json (or inference.*) with its .pdiparams; "
                      f"found {found}")


def read_settings(params_file: Path) -> dict:
    """The infer_cfg.yml beside a parameter file, both checked."""
    path, yaml = params_file.with_name("infer_cfg.yml"), needed("yaml", "pyyaml")
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in path.parent.iterdir()))
        raise RunnerError(f"{path}: no such file; the export writes it beside the model; found {found}")
    try:
        text = path.read_text(encoding="utf-8")
        # A few lines of aliases of aliases can stand for a list of billions.
        aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        settings = yaml.safe_load(text) if aliases <= MAX_ALIASES else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date without such a day
        raise RunnerError(f"{path}: not YAML: {end_of(error)}") from error
    if aliases > MAX_ALIASES:
        raise RunnerError(f"{path}: has {aliases} aliases (*name), at most {MAX_ALIASES} are read; write values out")
    arch = settings.get("arch") if isinstance(settings, dict) else settings
    if arch != "GFL":
        raise RunnerError(f"{path}: arch is {arch!r:.80}; this runner runs GFL only")
    for key in ("Preprocess", "label_list"):
        if not isinstance(settings.get(key), list):
            raise RunnerError(f"{path}: has no list '{key}'; export the model again")
    check_settings(path, settings["label_list"], settings["Preprocess"])
    for key, (is_good, allowed) in OTHERS.items():
        if key in settings and not is_good(settings[key]):
            raise RunnerError(f"{path}: {key}: {settings[key]!r:.80}: it has to be {allowed}; export the model again")
    # Paddle reads past the end of a cut file and says nothing. PaddleDetection's exports hold no sum to compare with.
    expected = settings.get("params_sha256")
    if expected is not None and hashlib.sha256(params_file.read_bytes()).hexdigest() != expected:
        raise RunnerError(f"{params_file}: damaged or replaced: it is not the file that belongs to infer_cfg.yml "
                          "there; copy the whole exported folder again")
    return settings


def check_settings(source: Path, class_names: Any, steps: Any) -> None:
    """Raise a RunnerError about class names or a preparation that would fail with the first image, or later."""
    def check(good: bool, place: str, value: object, allowed: str) -> None:
        if not good:
            raise RunnerError(f"{source}: {place}: {str(value)[:80]}: it has to be {allowed}; mend it, or export again")

    check(isinstance(class_names, list) and bool(class_names), "label_list", class_names, "a list of names")
    for i, name in enumerate(class_names):
        check(isinstance(name, str), f"label_list[{i}]", name, "text (in YAML with quotes around it)")
    check(isinstance(steps, list), "Preprocess", steps, "a list of steps")
    for i, step in enumerate(steps):
        kind = step.get("type") if isinstance(step, dict) else None
        check(isinstance(kind, str) and kind in STEPS, f"Preprocess[{i}]", step,
              f"a step {{type: ...}} of {', '.join(STEPS)}")
        for key, (is_good, allowed) in STEPS[kind].items():
            needed = key == "target_size" or key in ("mean", "std") and step.get("norm_type") != "none"
            check(is_good(step.get(key)) if key in step or needed else True, f"Preprocess[{i}].{key}", step.get(key),
                  allowed)
    kinds = [step["type"] for step in steps if step["type"] != "PadStride"]
    in_order = kinds[-1:] == ["Permute"] and kinds.count("Permute") == 1 and kinds.count("NormalizeImage") <= 1
    check(in_order, "Preprocess", kinds, "steps with one Permute, behind Resize and one NormalizeImage")


def is_number(value: object, least: float, most: float, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most


def are_numbers(value: object, count: int, least: float, most: float,
                kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, list) and len(value) == count and all(is_number(n, least, most, kind) for n in value)


MAX_ALIASES = 10  # in infer_cfg.yml: those that are lists of each other stand for 40 times the text
MAX_SIDE = 8192  # pixels of a prepared image; more is a mistake, or fills the memory
FLAG = lambda value: isinstance(value, bool), "true or false"
# The steps of Preprocess: of each key whether a value is good, and what it may be.
STEPS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "Resize": {
        "target_size": (lambda value: is_number(value, 1, MAX_SIDE, int) or are_numbers(value, 2, 1, MAX_SIDE, int),
                        f"a whole number of pixels up to {MAX_SIDE}, or two of them, [height, width]"),
        "keep_ratio": FLAG, "interp": (lambda value: is_number(value, 0, 4, int), "0 to 4, as OpenCV counts them")},
    "NormalizeImage": {
        "mean": (lambda value: are_numbers(value, 3, -1e6, 1e6), "three numbers"),
        "std": (lambda value: are_numbers(value, 3, 1e-6, 1e6), "three numbers above 0"),
        "is_scale": FLAG, "norm_type": (lambda value: value in ("mean_std", "none"), "mean_std or none")},
    "Permute": {},
    "PadStride": {"stride": (lambda value: is_number(value, 0, 1024, int), "a whole number up to 1024")},
}
CALIBRATION = "numbers for sigma_scale, temperature and bias"
OTHERS = {"use_dynamic_shape": FLAG, "sigma": FLAG, "calibration": (is_calibration, CALIBRATION),
          "min_subgraph_size": (lambda value: is_number(value, 1, 10**6, int), "a whole number from 1 up")}


# --- preparation, with the arithmetic of training


def prepare(images: Sequence[np.ndarray], ops: Sequence[dict]) -> Arrays:
    """BGR images of any sizes, and Preprocess of the export -> {"image": [N, 3, H, W], "scale_factor": [N, 2],
    "im_shape": [N, 2]}; H and W are multiples of the stride, padded with zeros."""
    ready, scales = zip(*[prepare_one(image, ops) for image in images])
    stride = max([32, *(op.get("stride", 32) for op in ops if op["type"] == "PadStride")])
    shapes = np.array([image.shape[1:] for image in ready])
    height, width = -(-shapes.max(axis=0) // stride) * stride
    batch = np.zeros((len(ready), 3, height, width), np.float32)
    for target, image in zip(batch, ready):
        target[:, :image.shape[1], :image.shape[2]] = image
    return {"image": batch, "scale_factor": np.array(scales, np.float32), "im_shape": shapes.astype(np.float32)}


def prepare_one(image: np.ndarray, ops: Sequence[dict]) -> tuple[np.ndarray, tuple[float, float]]:
    """[H, W, 3] BGR -> ([3, H, W] RGB, its height and width in relation to the image's)."""
    height, width = image.shape[:2]
    image = np.ascontiguousarray(image[..., ::-1])
    for op in ops:
        if op["type"] == "Resize":
            size = new_size(image, op["target_size"], op.get("keep_ratio", True))
            image = cv2.resize(image, size[::-1], interpolation=op.get("interp", cv2.INTER_LINEAR))
        elif op["type"] == "NormalizeImage":
            image = cv2.LUT(image, normalization_table(op))
        elif op["type"] == "Permute":
            image = image.transpose(2, 0, 1)
        elif op["type"] != "PadStride":
            raise RunnerError(f"Preprocess of the export has a step {op['type']!r}, which this runner does not know")
    return image, (image.shape[1] / height, image.shape[2] / width)


def new_size(image: np.ndarray, target: int | Sequence[int], keep_ratio: bool) -> tuple[int, int]:
    """Height and width after Resize."""
    target = [target] * 2 if isinstance(target, int) else target
    if not keep_ratio:
        return int(target[0]), int(target[1])
    height, width = image.shape[:2]
    ratio = min(min(target) / min(height, width), max(target) / max(height, width))
    return max(1, int(ratio * height + 0.5)), max(1, int(ratio * width + 0.5))


def normalization_table(op: dict) -> np.ndarray:
    """The 256 values that a pixel of each channel can become, [1, 256, 3] float32."""
    table = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    if op.get("is_scale", True):
        table *= np.float32(1.0 / 255.0)
    if op.get("norm_type", "mean_std") == "mean_std":
        table -= np.array(op["mean"])
        table /= np.array(op["std"])
    return table.reshape(1, 256, 3)


# --- the NMS of a .onnx that has none inside


def suppress(boxes: np.ndarray, scores: np.ndarray, *, score_threshold: float, nms_top_k: int, keep_top_k: int,
             nms_threshold: float) -> np.ndarray:
    """Per-class NMS: boxes [A, 4], scores [A, C] -> [M, 6] class, score, x1, y1, x2, y2, best score first. What stands
    behind the four numbers of a box goes with it."""
    classes, enters = scores.shape[1], scores > score_threshold
    if 0 < nms_top_k < np.count_nonzero(enters):
        many = np.count_nonzero(enters, axis=0) > nms_top_k
        if many.any():  # of such a class only the best cells enter
            theirs = scores[:, many]
            enters[:, many] &= theirs >= np.partition(theirs, -nms_top_k, axis=0)[-nms_top_k]
    places = np.flatnonzero(enters)  # a few thousand of millions: what follows looks at these alone
    best = scores.ravel()[places]
    order = np.argsort(-best, kind="stable")
    places, best = places[order], best[order]
    labels, boxes = places % classes, boxes[places // classes]
    rivals = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=classes))[:-1])
    alive, kept = np.ones(len(places), bool), []
    for i, label in enumerate(labels.tolist()):
        if len(kept) == keep_top_k:
            break
        if alive[i]:
            kept.append(i)
            others = rivals[label]
            is_near = overlap(boxes[i, :4], boxes[others, :4]) > nms_threshold
            alive[others[is_near]] = False
            rivals[label] = others[~is_near]
    return np.column_stack([labels[kept], best[kept], boxes[kept]]).astype(np.float32)


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box [4] with boxes [M, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = sides.clip(0).prod(axis=1)
    return common / np.maximum((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common, 1e-9)


# --- slices, for small objects in large images


def slice_places(height: int, width: int, sizes: Sequence[int], ratios: Sequence[float]) -> list[tuple[int, ...]]:
    """x1, y1, x2, y2 of the slices of an image, row by row; the last of a row or column is moved back into it."""
    starts: list[list[int]] = []
    for side, size, ratio in zip((height, width), sizes, ratios):
        starts.append([0])
        while starts[-1][-1] + size < side:
            starts[-1].append(min(starts[-1][-1] + size - int(ratio * size), side - size))
    return [(x, y, min(x + sizes[1], width), min(y + sizes[0], height)) for y in starts[0] for x in starts[1]]


def detect_slices(runner: BaseRunner, image: np.ndarray, args: argparse.Namespace,
                  check: Callable[[], None] = lambda: None) -> np.ndarray:
    """Detections [M, 6] of an image [H, W, 3] by the options of slices; `check` stops between two batches of them."""
    height, width = image.shape[:2]
    places = slice_places(height, width, args.slice_size, args.overlap_ratio)
    groups = [places[start:start + args.batch_size] for start in range(0, len(places), args.batch_size)]
    if args.slice_full and len(places) > 1:
        groups.append([(0, 0, width, height)])
    found = []
    for group in groups:
        check()
        rows_of_each = runner([np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in group])
        for rows, (x, y, _, _) in zip(rows_of_each, group):
            found.append(rows.copy())
            found[-1][:, 2:6] += np.array([x, y, x, y], rows.dtype)
    return combine_slices(np.concatenate(found), args.combine_method, args.match_threshold, args.match_metric)


def combine_slices(rows: np.ndarray, method: str, threshold: float, metric: str) -> np.ndarray:
    """Join what several slices found of one object of a class, [M, 6] -> [K, 6], best first. As in PaddleDetection, the
    last pixel of a box is inside, so that a side is x2 - x1 + 1 long."""
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    if method == "concat":
        return rows
    areas = (rows[:, 4:6] - rows[:, 2:4] + 1).prod(axis=1)
    kept, left = [], np.arange(len(rows))
    while len(left):
        best, others = left[0], left[1:]
        sides = np.minimum(rows[best, 4:6], rows[others, 4:6]) - np.maximum(rows[best, 2:4], rows[others, 2:4]) + 1
        common = sides.clip(0).prod(axis=1)
        whole = areas[best] + areas[others] - common if metric == "iou" else np.minimum(areas[best], areas[others])
        same = (rows[others, 0] == rows[best, 0]) & (common / whole >= threshold)
        row, joined = rows[best].copy(), rows[[best, *others[same]]]
        if method == "nmm":
            row[2:6] = [*joined[:, 2:4].min(axis=0), *joined[:, 4:6].max(axis=0)]
        kept.append(row)
        left = others[~same]
    return np.array(kept, rows.dtype).reshape(-1, rows.shape[1])


# --- Paddle's settings


def use_cpu(config: Any, run_mode: str, engine: str, threads: int, any_size: bool) -> tuple[str, str]:
    """Set Paddle's `Config` up for a CPU -> the engine, and all that it really runs with."""
    if run_mode.startswith("trt"):
        raise RunnerError(f"--run_mode {run_mode}: TensorRT needs --device GPU")
    if run_mode == "fp16":
        raise RunnerError("--run_mode fp16: needs --device GPU; on a CPU use bf16")
    if run_mode == "bf16" and not processor_has("avx512_bf16", "amx_bf16"):
        print("this processor has no bfloat16: running in float32", file=sys.stderr)
        run_mode = "paddle"
    model_file = Path(config.prog_file())
    engine, note = choose_engine(engine, run_mode, model_file.suffix,
                                 has_openvino=hasattr(config, "enable_openvino_engine"), any_size=any_size)
    if note:
        print(f"{model_file.name}: {note}", file=sys.stderr)
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(threads)
    if engine == "onednn":
        config.enable_mkldnn()
        if run_mode == "bf16":
            config.enable_mkldnn_bfloat16()
            if model_file.suffix == ".pdmodel":  # those of Paddle 3 fail with every operator in bfloat16
                config.set_bfloat16_op({"conv2d", "fused_conv2d", "relu", "pool2d"})
        if run_mode == "int8":
            config.enable_mkldnn_int8()
    elif hasattr(config, "disable_mkldnn"):  # where it is on by default
        config.disable_mkldnn()
    if engine == "openvino":
        from paddle.inference import PrecisionType

        config.enable_openvino_engine(PrecisionType.Bfloat16 if run_mode == "bf16" else PrecisionType.Float32)
    elif model_file.suffix == ".pdmodel":
        config.enable_memory_optim()  # a third of the memory, and all of it back in the end
    name = {"onednn": "oneDNN", "openvino": "OpenVINO", "native": "native kernels"}[engine]
    kind = {"paddle": "float32", "bf16": "bfloat16", "int8": "int8"}[run_mode]
    return engine, f"{name}, {kind}, {threads} threads"


def use_gpu(config: Any, run_mode: str, card: int, min_subgraph_size: int) -> str:
    """Set it up for a GPU -> what it really runs with."""
    import paddle

    precision = paddle.inference.PrecisionType
    if not paddle.is_compiled_with_cuda():
        raise RunnerError("--device GPU: this paddlepaddle is a CPU build; install paddlepaddle-gpu or use "
                          "--device CPU")
    cards = paddle.device.cuda.device_count()
    if card >= cards:
        raise RunnerError(f"--device GPU:{card}: this process sees {cards} cards, counted from 0; choose another, or "
                          "use --device CPU")
    if run_mode == "int8":
        raise RunnerError("--run_mode int8: it is for a CPU; on a GPU use fp16, bf16 or trt_fp16")
    if run_mode == "bf16" and paddle.device.cuda.get_device_capability(card) < (8, 0):
        print("this card has no bfloat16: running in float32", file=sys.stderr)
        run_mode = "paddle"
    kinds = {"fp16": (precision.Half, "float16"), "bf16": (precision.Bfloat16, "bfloat16")}
    kind, name = kinds.get(run_mode, (precision.Float32, "float32"))
    config.enable_use_gpu(256, card, kind)
    if run_mode in kinds:  # pixels beyond 1,024 have no fractions in float16, and go by eights in bfloat16
        config.exp_disable_mixed_precision_ops({*DECODING_OPS, *(f"pd_op.{op}" for op in DECODING_OPS)})
    if Path(config.prog_file()).suffix == ".pdmodel":  # a .json refuses it
        config.enable_memory_optim()
    if not run_mode.startswith("trt"):
        return name
    if paddle.inference.get_trt_compile_version() == (0, 0, 0):
        raise RunnerError(f"--run_mode {run_mode}: this Paddle was built without TensorRT; use --run_mode paddle")
    half = run_mode == "trt_fp16"
    files = [Path(config.prog_file()), Path(config.params_file())]
    folder = kept_folder(files, run_mode, min_subgraph_size, paddle.__version__,
                         paddle.device.cuda.get_device_name(card))
    shapes = folder / "shapes.pbtxt"
    if not shapes.exists():
        config.collect_shape_range_info(str(shapes))
        return "float32, collecting the shapes for TensorRT; run again to use it"
    config.set_optim_cache_dir(str(folder))
    config.enable_tensorrt_engine(workspace_size=1 << 30, max_batch_size=8, min_subgraph_size=min_subgraph_size,
                                  precision_mode=precision.Half if half else precision.Float32, use_static=True,
                                  use_calib_mode=False)
    config.enable_tuned_tensorrt_dynamic_shape(str(shapes), True)
    return f"TensorRT {'float16' if half else 'float32'}"


# Of the decoder and the NMS, by the names of Paddle 2 and of Paddle 3.
DECODING_OPS = ("softmax", "matmul", "matmul_v2", "scale", "elementwise_add", "add", "elementwise_sub", "subtract",
                "elementwise_mul", "multiply", "elementwise_div", "divide", "slice", "concat", "stack", "flip",
                "sigmoid", "multiclass_nms3", "sqrt", "gather")


def kept_folder(files: Sequence[Path], *settings: object) -> Path:
    """Where what TensorRT makes of a model is kept for the next start; another model, or another setting, has another
    folder. Raises OSError."""
    key = hashlib.sha256(repr(settings).encode())
    for file in files:
        key.update(file.read_bytes())
    home = os.environ.get("PPGFL_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ppgfl")
    folder = Path(home).expanduser() / "tensorrt" / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def split_device(device: str) -> tuple[str, int]:
    """"CPU", "GPU" or "GPU:1" -> which of the two, and the number of the card."""
    kind, colon, card = device.upper().partition(":")
    if kind not in DEVICES or colon and not (kind == "GPU" and re.fullmatch("[0-9]{1,4}", card)):
        raise RunnerError(f"--device {device}: allowed are CPU, GPU, and GPU:1 for the second card")
    return kind, int(card or 0)


# --- ONNX Runtime's settings


def provider_name(name: str) -> str:
    """The whole name of a provider, of which the front is enough."""
    return name if name.endswith("ExecutionProvider") else f"{name}ExecutionProvider"


def providers_of(name: str, available: Sequence[str], card: int, model: Path) -> list[Any]:
    """A provider, with its settings, and who does what it cannot: ONNX Runtime itself adds the CPU."""
    if name not in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        return [name]
    cuda = ("CUDAExecutionProvider", {"device_id": card})
    if name == cuda[0]:
        return [cuda]
    kept = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(kept_folder([model], "onnxruntime"))}
    return [(name, {"device_id": card, **kept}), *([cuda] if cuda[0] in available else [])]


def choose_engine(wanted: str, run_mode: str, suffix: str, *, has_openvino: bool,
                  any_size: bool) -> tuple[str, str | None]:
    """The engine that runs on a CPU, and a line on why when it is not the fastest or not the one that was wanted.

    .pdmodel: OpenVINO where Paddle has it, else oneDNN.
    .json: oneDNN for a fixed size of input. With images of changing sizes oneDNN threw or corrupted memory in one of
        150 runs of Paddle 3.3.1, so native kernels, unless bfloat16 needs it.
    """
    can_openvino = has_openvino and suffix == ".pdmodel" and run_mode in ("paddle", "bf16")
    risky = suffix == ".json" and any_size
    if wanted == "native" and run_mode != "paddle":
        raise RunnerError(f"--run_mode {run_mode}: the native kernels are float32 only; leave --engine native out")
    if wanted == "openvino" and not can_openvino:
        return "onednn", "OpenVINO needs a Paddle that has it, a .pdmodel, and float32 or bf16: using oneDNN"
    if wanted != "auto":
        return wanted, None
    if can_openvino:
        return "openvino", None
    if risky and run_mode == "paddle":
        return "native", ("using native kernels, since Paddle 3's oneDNN fails at random with a .json and images of "
                          "changing sizes; a .pdmodel beside it (export with --format both) is several times faster, "
                          "--engine onednn insists")
    return "onednn", "oneDNN may fail with a .json and images of changing sizes; a .pdmodel does not" if risky else None


# --- the machine


def physical_cores() -> int:
    """Physical cores this process may use: its affinity and its container's quota are respected."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return max(1, (os.cpu_count() or 2) // 2)
    folders = [f"/sys/devices/system/cpu/cpu{cpu}/topology" for cpu in cpus]
    cores = {text_of(f"{folder}/physical_package_id") + text_of(f"{folder}/core_id") or folder for folder in folders}
    return min(len(cores), container_quota() or len(cores))


def container_quota() -> int | None:
    """Whole CPUs that the container's quota allows, or None where there is no quota."""
    v1 = "/sys/fs/cgroup/cpu/cpu.cfs_"
    for words in (text_of("/sys/fs/cgroup/cpu.max").split(), [text_of(f"{v1}quota_us"), text_of(f"{v1}period_us")]):
        with contextlib.suppress(ValueError):
            quota, period = words
            return None if quota == "max" or int(quota) <= 0 else max(1, int(quota) // int(period))
    return None


def text_of(path: str) -> str:
    """The content of a file, "" where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def processor_has(*words: str) -> bool:
    """Whether Linux says one of the words of the processor."""
    return any(word in text_of("/proc/cpuinfo") for word in words)


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Undo what OpenVINO does to the process: it moves the signal handlers of this thread to a stack of its own and
    frees that with the model, after which the next signal (Ctrl-C, a child that ends) would crash."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # room for a `stack_t` of <signal.h>
    libc.sigaltstack(None, before)
    try:
        yield
    finally:
        libc.sigaltstack(before, None)


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[Callable[[], None]]:
    """Give a function to call between batches, which raises KeyboardInterrupt once Ctrl-C was pressed: in the midst of
    a C++ library it may hang, crash or turn up as another error. The second Ctrl-C acts at once. Where the parent
    ignores it, as a shell script does for what it starts with `&`, it stays ignored."""
    pressed: list[bool] = []

    def press(*_: object) -> None:
        pressed.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) != signal.default_int_handler
    if not ignored:
        signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        if not ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# --- work beside the model


def ahead(function: Callable[[Any], Any], items: Iterable[Any], threads: int, limit: int) -> Iterator[Any]:
    """Yield `function(item)` of each item, in order, made in threads while the caller works on those before.

    The items themselves are taken in the caller's thread. An error of the function or of the items is raised in its
    place, behind the results before it. When the caller stops, by an exception or by closing this generator, nothing
    more is begun, and what has begun is waited for, so that no file is left half written.

    Args:
        limit: results at most that are being made or wait for the caller, beside the one that it works on.
    """
    pool, waiting = ThreadPoolExecutor(threads, thread_name_prefix="ahead"), deque[Future]()

    def begun() -> Iterator[Future]:
        try:
            for item in items:
                yield pool.submit(function, item)
        except Exception as error:
            failed: Future = Future()
            failed.set_exception(error)
            yield failed

    try:
        for future in begun():
            waiting.append(future)
            if len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def helpers(device: str, cores: int) -> int:
    """Threads that prepare images, and as many that write pictures: one prepares about 70 images a second, and models
    on a CPU are not faster than two of them."""
    return min(cores, 8 if device.upper().startswith("GPU") else 2)


# --- drawing, as ppgfl does it: the functions up to `font_setting` are copies of its own

# Control characters, marks that turn the direction of a line or are not seen, halves of a letter, ends of lines.
ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji are spelled with them
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
                "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",
                "C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts")
# The second is that of `ppgfl[fonts]`.
FONT_PACKAGES = {"matplotlib": "mpl-data/fonts/ttf/DejaVuSans.ttf", "pylopdf_fonts_zh_cn": "NotoSansSC-Regular.otf"}
# Asked first; then the others by name, those of another style than upright and regular last.
FONTS = ("DejaVuSans", "NotoSans-Regular", "Arial", "segoeui", "Helvetica", "NotoSansCJK-Regular",
         "NotoSansCJKsc-Regular", "NotoSansSC-Regular", "SourceHanSansSC-Regular", "msyh", "PingFang", "wqy-microhei",
         "DroidSansFallbackFull", "simhei")
OTHER_STYLES = re.compile("bold|black|heavy|italic|oblique|thin|light|mono|serif|condensed|display|symbol|math", re.I)
FONT_HINT = "set PPGFL_FONT to a font file that has them, or pip install 'ppgfl[fonts]' for Chinese"


def draw_boxes(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray | None, labels: np.ndarray,
               names: Sequence[str]) -> np.ndarray:
    """A copy of an image [H, W, 3] uint8 BGR with boxes [M, 4], their names and scores; best first, drawn last.

    Annotated objects have no scores: None.
    """
    picture = np.ascontiguousarray(image).copy()
    height, width = picture.shape[:2]
    line = max(1, round((height + width) / 700))
    size = max(8, min(12, width // 8), round((height + width) / 100))  # of the letters, in pixels
    corners = np.nan_to_num(np.clip(np.round(boxes), -10_000, 100_000)).astype(int).reshape(-1, 4)
    for box, label in reversed(list(zip(corners, labels))):
        cv2.rectangle(picture, box[:2].tolist(), box[2:].tolist(), class_color(int(label)), line)
    plates: list[tuple[np.ndarray, int, int, int]] = []
    taken = np.zeros((len(corners), 4), int)
    numbers = [" "] * len(corners) if scores is None else [f"{score:.2f} " for score in scores]
    for i, (box, shown_score, label, name) in enumerate(zip(corners, numbers, labels, names)):
        number = text_mask(shown_score, size)
        text = np.hstack([name_mask(name, size, width - number.shape[1]), number])
        x, y = place_label(box, text.shape, picture.shape, taken[:i])
        taken[i] = x, y, x + text.shape[1], y + text.shape[0]
        plates.append((text, x, y, int(label)))
    for text, x, y, label in reversed(plates):
        region = picture[y:y + text.shape[0], x:x + text.shape[1]]  # less than the plate in a picture that is less
        region[:] = cv2.LUT(cv2.merge([text[:region.shape[0], :region.shape[1]]] * 3), plate_shades(label))
    return picture


def class_color(label: int) -> tuple[int, int, int]:
    """One bright colour (B, G, R) per class index, the same in every picture, neighbours far apart."""
    hue = (label * 0.618033988749895) % 1.0  # golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95 - 0.2 * (label % 2))
    return int(blue * 255), int(green * 255), int(red * 255)


def text_color(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white (B, G, R), whichever has more contrast with a colour, as WCAG defines it."""
    linear = [(n / 255 / 12.92 if n <= 10 else ((n / 255 + 0.055) / 1.055) ** 2.4) for n in color]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@functools.lru_cache(maxsize=256)
def plate_shades(label: int) -> np.ndarray:
    """[1, 256, 3]: the colours of a class's plate from no ink to all."""
    plate = np.array(class_color(label))
    ink = np.array(text_color(class_color(label)))
    return (plate + (ink - plate) * np.arange(256)[:, None] // 255).astype(np.uint8)[None]


@functools.lru_cache(maxsize=1024)
def name_mask(name: str, size: int, room: int) -> np.ndarray:
    """`text_mask` of a name, at most `room` pixels wide: of the name what fits."""
    text = name = shown(name, limit=40)
    while (mask := text_mask(text, size)).shape[1] > room and name:
        name = name[:max(0, min(len(name) - 1, len(name) * room // mask.shape[1] - 1))]
        text = name and f"{name}..."
    return mask


@functools.lru_cache(maxsize=1024)
def text_mask(text: str, size: int) -> np.ndarray:
    """A line of text, a space before it: [H, W] uint8, 255 where ink is. All of a size, in pixels, are equally high."""
    parts = [(part, open_font(path, size) or open_font(path, 16)) for part, path in split_by_font(text)]
    edge, ascent, height = max(2, size // 4), math.ceil(1.05 * size), math.ceil(1.4 * size)
    if not parts:
        return ascii_mask(text, size, edge, ascent, height)
    from PIL import Image, ImageDraw

    widths = [font.getlength(part) for part, font in parts]
    canvas = Image.new("L", (edge + math.ceil(sum(widths)), height))
    for i, (part, font) in enumerate(parts):
        ImageDraw.Draw(canvas).text((edge + sum(widths[:i]), ascent), part, 255, font, anchor="ls")
    return np.asarray(canvas)


def ascii_mask(text: str, size: int, edge: int, ascent: int, height: int) -> np.ndarray:
    """`text_mask` with OpenCV's own letters: all but ASCII as escapes."""
    text, font, scale = text.encode("ascii", "backslashreplace").decode(), cv2.FONT_HERSHEY_SIMPLEX, size / 30
    mask = np.zeros((height, edge + cv2.getTextSize(text, font, scale, 1)[0][0]), np.uint8)
    return cv2.putText(mask, text, (edge, ascent), font, scale, 255, 1, cv2.LINE_AA)


def place_label(box: np.ndarray, label: Sequence[int], picture: Sequence[int], taken: np.ndarray) -> tuple[int, int]:
    """x, y of a label [h, w] of a box [4] inside a picture [H, W, ...]: above its corner, or near it where that covers
    least of the labels that are there, [M, 4]."""
    (x1, y1, x2, y2), (height, width) = box.tolist(), label
    spots = np.array([(x, y) for x in (x1, x2 - width) for y in (y1 - height, y1, y2, y2 - height)]
                     + [(x1, y1 + i * height) for i in (1, 2, 3)] + [(x1, y1 - i * height) for i in (2, 3)])
    spots = spots.clip(0, [max(0, picture[1] - width), max(0, picture[0] - height)])
    low = np.maximum(spots[:, None], taken[:, :2])
    high = np.minimum(spots[:, None] + (width, height), taken[:, 2:])
    x, y = spots[(high - low).clip(0).prod(axis=2).sum(axis=1).argmin()].tolist()
    return x, y


@functools.cache
def font_files() -> tuple[str, ...]:
    """The fonts of this machine in the order in which they are asked for a letter; none without Pillow."""
    if importlib.util.find_spec("PIL") is None:
        note("Pillow is not installed: names are drawn in ASCII; pip install pillow")
        return ()
    files = {os.path.join(folder, name) for start in FONT_FOLDERS
             for folder, _, names in os.walk(os.path.expanduser(start)) for name in names
             if name.lower().endswith((".ttf", ".otf", ".ttc")) and not name.startswith("LastResort")}
    for package, name in FONT_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        paths = [os.path.join(folder, name) for folder in (spec and spec.submodule_search_locations) or ()]
        files.update(path for path in paths if os.path.isfile(path))

    def place(path: str) -> tuple[int, bool, str]:
        stem = Path(path).stem
        return FONTS.index(stem) if stem in FONTS else len(FONTS), bool(OTHER_STYLES.search(stem)), path

    own = font_setting()
    if own and open_font(own, 16) is None:
        note(f"PPGFL_FONT: {shown(own)}: not a font that can be opened; using the installed ones")
    found = ([own] if own and open_font(own, 16) else []) + sorted(files, key=place)
    if not found:
        note(f"no TrueType font is installed: names are drawn in ASCII; {FONT_HINT}")
    return tuple(found)


@functools.lru_cache(maxsize=256)
def open_font(path: str, size: int, layout: Any = None) -> Any:
    """Pillow's font of a file in pixels, or None if it has none. layout: 0 basic, 1 Raqm, None the best there is."""
    from PIL import ImageFont

    try:
        index = 2 if re.search(r"Noto\w+CJK[^/]*\.ttc$", path) else 0  # of the five in it that with Chinese forms
        return ImageFont.truetype(path, size, index, layout_engine=layout)
    except (OSError, ValueError):  # damaged, a bitmap font without this size, not of five
        return None


@functools.lru_cache(maxsize=1 << 16)
def has_letter(path: str, letter: str) -> bool:
    """Whether a font draws a letter, neither nothing nor the sign of what it has not."""
    font = open_font(path, 16, 0)  # Raqm puts a circle below a mark that stands alone
    if font is None:
        return False
    seen, unknown = (font.getmask(one) for one in (letter, "\U0010ffff"))
    return any(seen) and (seen.size, bytes(seen)) != (unknown.size, bytes(unknown))


@functools.lru_cache(maxsize=1 << 12)
def split_by_font(text: str) -> tuple[tuple[str, str], ...]:
    """(part, font file): one part if a font has all letters, else as few as there are; a letter of no font as its
    escape. Nothing where there is no font."""
    files = font_files()
    letters = [letter for letter in dict.fromkeys(text) if not letter.isspace() and letter not in "\u200c\u200d\ufe0f"]
    for path in files:
        if all(has_letter(path, letter) for letter in letters):
            return ((text, path),)
    parts: list[tuple[str, str]] = []
    for letter in text if files else "":
        path = parts[-1][1] if parts else files[0]  # of a space the font before it
        if letter in letters:
            path = next((path for path in files if has_letter(path, letter)), "")
        if not path:
            say_missing_letters()
            path, letter = files[0], letter.encode("unicode_escape").decode("ascii")
        if parts and parts[-1][1] == path:
            letter = parts.pop()[0] + letter
        parts.append((letter, path))
    return tuple(parts)


@functools.cache
def say_missing_letters() -> None:
    """Once in a process."""
    note(f"no font of this machine has some letters of the names, which are drawn like \\u732b; {FONT_HINT}")


def shown(text: object, *, limit: int | None = None, keep: str = "") -> str:
    r"""Text with all that would act on a terminal or a page written as its escape, and no password of an address.

    Args:
        limit: cut to so many characters, the last of them an ellipsis.
        keep: control characters that stay, as "\n".

    >>> shown("\x1b[31mred\n")
    '\\x1b[31mred\\n'
    """
    line = without_password(str(text))
    if not line.isprintable():
        line = "".join(escape(letter) if unicodedata.category(letter) in ESCAPED and letter not in keep + JOINERS
                       else letter for letter in line)
    return line if limit is None or len(line) <= limit else line[:limit - 1] + "…"


def escape(letter: str) -> str:
    r"""As Python writes it: \n, \x1b, \u202e, \ud800."""
    return letter.encode("unicode_escape").decode("ascii")


def without_password(text: str) -> str:
    """Addresses in a text with *** in place of their user and password."""
    return re.sub(r"(://)[^/\s]*@", r"\1***@", text) if "@" in text else text


def font_setting() -> str:
    """PPGFL_FONT: the font file for names, or ""."""
    return os.path.expanduser(os.environ.get("PPGFL_FONT", ""))


def note(line: str) -> None:
    """What a user should know, on standard error."""
    print(line, file=sys.stderr)


# --- the command line


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may have bytes that are no text
    try:
        with delayed_interrupt() as check_interrupt:
            runner = open_runner(args.model_dir, device=args.device, run_mode=args.run_mode,
                                 cpu_threads=args.cpu_threads, engine=args.engine, provider=args.provider,
                                 calibrated=args.calibrated)
            print(f"running {runner.description}")
            if args.video_file or args.camera_id >= 0:
                detect_video(runner, args, check_interrupt)
                return 0
            files = find_images(args.image_file or args.image_dir, leave_out=args.output_dir)
            (benchmark if args.run_benchmark else detect_files)(runner, files, args, check_interrupt)
    except RunnerError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {shown(error.filename)}: {error.strerror}; mend that, or choose another path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 130
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model_dir", "--model", required=True,
                        help="the exported folder, or a model file in it, as model.onnx")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image_file")
    images.add_argument("--image_dir", help="searched recursively")
    images.add_argument("--video_file", help="a video, or the address of a stream; drawn as a .webm")
    images.add_argument("--camera_id", type=int, default=-1, help="0 is the first camera; Ctrl-C ends it")
    parser.add_argument("--device", default="CPU", help="CPU, GPU, or GPU:1 for the second card (CPU)")
    parser.add_argument("--run_mode", default="paddle", choices=RUN_MODES, help="of a folder")
    parser.add_argument("--engine", default="auto", choices=ENGINES,
                        help="of a folder on a CPU (auto: the fastest that is safe for the file)")
    parser.add_argument("--provider", help="of a .onnx: CUDA, Tensorrt, OpenVINO or another that ONNX Runtime has "
                        "(CPU or CUDA, as --device says)")
    parser.add_argument("--batch_size", type=int, default=1, help="images padded to one size and computed together (1)")
    parser.add_argument("--cpu_threads", "--threads", type=int, default=0, help="0: the physical cores (0)")
    parser.add_argument("--calibrated", action="store_true",
                        help="scores and sigmas as the calibration in the export makes them")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score drawn and saved (0.5)")
    parser.add_argument("--output_dir", default="output", help="pictures keep their names below it (output)")
    parser.add_argument("--save_results", action="store_true", help="also write results.json to the output folder")
    slices = parser.add_argument_group("slices", "for small objects in large images, --batch_size of them at a time")
    slices.add_argument("--slice_infer", action="store_true", help="look at images slice by slice")
    slices.add_argument("--slice_full", action="store_true", help="as --slice_infer, and at the whole image besides")
    slices.add_argument("--slice_size", nargs="+", type=int, default=[640, 640], help="height width (640 640)")
    slices.add_argument("--overlap_ratio", nargs="+", type=float, default=[0.25, 0.25],
                        help="share of a slice that the next one repeats, down and across (0.25 0.25)")
    slices.add_argument("--combine_method", default="nms", choices=("nms", "nmm", "concat"),
                        help="of findings that overlap: keep the best, the box around all, or all of them (nms)")
    slices.add_argument("--match_threshold", type=float, default=0.6, help="overlap of one object's findings (0.6)")
    slices.add_argument("--match_metric", default="ios", choices=("iou", "ios"), help="over the smaller box (ios)")
    parser.add_argument("--run_benchmark", action="store_true", help="print milliseconds per stage, write nothing")
    parser.add_argument("--benchmark_seconds", type=float, default=10.0)
    args = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("cpu_threads", 0), ("benchmark_seconds", 0.001)):
        if not getattr(args, name) >= least:
            parser.error(f"argument --{name}: {getattr(args, name)}: it must be at least {least}")
    if args.run_benchmark and not (args.image_file or args.image_dir):
        parser.error("argument --run_benchmark: it measures on images; give --image_file or --image_dir")
    if not 0 <= args.threshold <= 1:
        parser.error(f"argument --threshold: {args.threshold}: it is a score, 0 to 1")
    args.slice_infer |= args.slice_full
    args.slice_size, args.overlap_ratio = (args.slice_size * 2)[:2], (args.overlap_ratio * 2)[:2]
    for name, good, allowed in (
            ("slice_size", min(args.slice_size) >= 32, "height and width are at least 32 pixels"),
            ("overlap_ratio", all(0 <= ratio <= 0.9 for ratio in args.overlap_ratio), "allowed: 0 to 0.9"),
            ("match_threshold", 0 < args.match_threshold <= 1, "allowed: above 0, up to 1"),
            ("slice_infer", not (args.slice_infer and args.run_benchmark), "--run_benchmark measures whole images")):
        if not good:
            parser.error(f"argument --{name}: {getattr(args, name)}: {allowed}")
    return args


def find_images(path: str | Path, leave_out: str | None = None) -> list[str]:
    """The images at a file or below a folder, sorted. Links to folders are followed, but each folder is entered once
    and `leave_out` never. A link that leads nowhere is listed: whoever reads it says so. Names with a dot at the front
    are what macOS and notebooks leave behind."""
    path = os.fspath(path)
    path = path if os.path.lexists(path) else os.path.expanduser(path)
    if os.path.isfile(path) or is_broken_link(path):
        return [path]
    folders, links, files, entered = [path] if os.path.isdir(path) else [], [], [], set()
    if leave_out is not None and os.path.realpath(leave_out) != os.path.realpath(path):
        entered.add(os.path.realpath(leave_out))
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if os.path.realpath(folder) in entered:
            continue
        entered.add(os.path.realpath(folder))
        for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
            file = os.path.join(folder, name)
            if os.path.isdir(file):
                (links if os.path.islink(file) else folders).append(file)
            elif has_image_ending(name) and (os.path.isfile(file) or is_broken_link(file)):
                files.append(file)
    if not files:
        raise RunnerError(f"{os.path.abspath(path)}: no image there")
    return sorted(files, key=lambda file: file.split(os.sep))


def is_broken_link(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def has_image_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read_image(path: str | Path) -> np.ndarray:
    """[H, W, 3] uint8 BGR; also from paths that OpenCV cannot open by itself on Windows."""
    try:
        data, image = np.fromfile(path, np.uint8), None
    except OSError as error:
        reason = f"it is a link to {os.readlink(path)}, which is not there" if is_broken_link(path) else error.strerror
        raise RunnerError(f"{os.path.abspath(path)}: cannot be read: {reason}") from error
    if is_truncated(data.tobytes()):
        raise RunnerError(f"{path}: not an image that can be decoded: it is truncated (it ends after {data.size:,} "
                          "bytes); copy it again")
    with contextlib.suppress(cv2.error):  # as of more pixels than allowed, or of an empty file
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise RunnerError(f"{path}: not an image that can be decoded; replace or remove it")
    return image


def is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end. OpenCV fills the missing part with grey and says nothing."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data
    place = 2
    while data[:2] == b"\xff\xd8" and place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        # over the segments before the pixels, whose thumbnails have ends of their own
        place += 1 if data[place + 1] == 0xFF else 2 + int.from_bytes(data[place + 2:place + 4], "big")
    return data[:2] == b"\xff\xd8" and data.find(b"\xff\xd9", place) < 0


def picture_names(files: Sequence[str]) -> list[str]:
    """For each image the path of its picture below the output folder: its name, in its sub-folder where the images come
    from several. A name that OpenCV cannot write by its ending, or that another image has, gets .png behind it."""
    paths = [os.path.abspath(file) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names, owners = [os.path.relpath(path, root) for path in paths], {}
    for i in sorted(range(len(names)), key=lambda i: not has_image_ending(names[i])):  # who can keep a name comes first
        folder, name = os.path.split(files[i])
        place, keeps = os.path.join(os.path.realpath(folder), name), has_image_ending(names[i])  # a link has its own
        while not keeps or owners.setdefault(names[i], place) != place:
            folder, name = os.path.split(names[i])
            names[i], keeps = os.path.join(folder, with_ending(name, ".png")), True
    return names


def with_ending(name: str, ending: str) -> str:
    """A file's name with an ending; of one that gets longer than file systems take, the front and a sum of it all."""
    raw = os.fsencode(name)
    if len(raw) + len(ending) <= 255:
        return name + ending
    return f"{raw[:238 - len(ending)].decode('utf-8', 'ignore')}-{hashlib.sha256(raw).hexdigest()[:16]}{ending}"


def detect_files(runner: BaseRunner, files: list[str], args: argparse.Namespace, check: Callable[[], None]) -> None:
    """Draw and save what is found; `check` stops between two batches."""
    targets = [os.path.join(args.output_dir, name) for name in picture_names(files)]
    sources = {os.path.realpath(path) for path in files}
    for target in targets:
        if os.path.realpath(target) in sources:
            raise RunnerError(f"{target}: the drawn picture would replace the image; give another --output_dir")
    threads = helpers(args.device, args.cpu_threads or physical_cores())
    pairs, best = list(zip(files, targets)), 0.0
    batches = (pairs[start:start + args.batch_size] for start in range(0, len(files), args.batch_size))

    def load(batch: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[np.ndarray], Arrays]:
        images = [read_image(path) for path, _ in batch]
        return batch, images, {} if args.slice_infer else runner.prepare(images)

    def found() -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        nonlocal best
        with contextlib.closing(ahead(load, batches, threads, 2 * threads)) as loaded:
            for batch, images, arrays in loaded:
                check()
                rows_of_each = ([detect_slices(runner, image, args, check) for image in images] if args.slice_infer
                                else runner.detect(arrays))
                for (path, target), image, rows in zip(batch, images, rows_of_each):
                    best = max(best, float(rows[:, 1].max(initial=0)))
                    yield path, target, image, rows[rows[:, 1] >= args.threshold]

    def save(one: tuple[str, str, np.ndarray, np.ndarray]) -> dict[str, Any]:
        path, target, image, rows = one
        write(target, encode(target, draw(image, rows, runner.class_names)))
        return {"file": path, "detections": detections_of(rows, runner.class_names)}

    results = list(ahead(save, found(), threads, 2 * threads))
    if args.save_results:  # bytes that are no UTF-8 are \udc80 to \udcff, which json.loads and os.fsencode turn back
        content = json.dumps(results, ensure_ascii=False).encode("utf-8", "backslashreplace")
        write(os.path.join(args.output_dir, "results.json"), content)
    print(f"{len(files)} pictures{' and results.json' if args.save_results else ''} in "
          f"{shown(os.path.abspath(args.output_dir))}")
    if files and not any(one["detections"] for one in results):
        print(f"no box is drawn: the best score is {best:.3f}, and --threshold is {args.threshold:g}")


def detect_video(runner: BaseRunner, args: argparse.Namespace, check: Callable[[], None]) -> None:
    """Draw what is found on each frame to NAME.webm (VP8, which OpenCV writes everywhere and browsers play), of the
    source's size, to the even pixel, and rate; with --save_results also NAME.jsonl, a line per frame. A camera or a
    stream that breaks off is opened again."""
    source = args.video_file or args.camera_id
    shown_as = without_password(str(args.video_file or f"camera_{source}"))
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise RunnerError(f"{shown_as}: cannot be opened as a video; is it there, and whole?")
    rate, promised = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = rate if 0 < rate <= 1000 else 25.0
    stem = os.path.join(args.output_dir, os.path.splitext(os.path.basename(shown_as.split("?")[0]))[0] or "stream")
    if args.video_file and os.path.realpath(f"{stem}.webm") == os.path.realpath(args.video_file):
        raise RunnerError(f"{stem}.webm: the drawn video would replace its source; give another --output_dir")
    os.makedirs(args.output_dir, exist_ok=True)

    threads, writer, count = helpers(args.device, args.cpu_threads or physical_cores()), None, 0
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        lines = stack.enter_context(open(f"{stem}.jsonl", "w", encoding="utf-8")) if args.save_results else None
        prepare = (lambda images: {}) if args.slice_infer else runner.prepare
        frames = read_frames(capture, source, shown_as, check)
        loaded = ahead(lambda one: (*one, prepare(one[1:])), frames, threads, 2 * threads)
        for seconds, image, arrays in stack.enter_context(contextlib.closing(loaded)):
            rows = detect_slices(runner, image, args, check) if args.slice_infer else runner.detect(arrays)[0]
            rows = rows[rows[:, 1] >= args.threshold]
            picture = draw(image, rows, runner.class_names)
            picture = cv2.copyMakeBorder(picture, 0, len(picture) % 2, 0, picture.shape[1] % 2, cv2.BORDER_REPLICATE)
            if writer is None:
                size = picture.shape[1::-1]
                writer = cv2.VideoWriter(f"{stem}.webm", cv2.VideoWriter_fourcc(*"VP80"), rate, size)
                stack.callback(writer.release)
                if not writer.isOpened():
                    raise RunnerError(f"{stem}.webm: this OpenCV writes no VP8; pip install -U opencv-python")
            writer.write(picture if picture.shape[1::-1] == size else cv2.resize(picture, size))
            if lines:
                lines.write(json.dumps({"file": shown_as, "frame": count, "time": seconds,
                                        "detections": detections_of(rows, runner.class_names)}) + "\n")
            count += 1
    if count < promised:
        note(f"{shown_as}: {count} frames were read of the {promised} that it promises; it is damaged, or was cut off")
    print(f"{count} frames in {shown(os.path.abspath(stem))}.webm")


def read_frames(capture: Any, source: str | int, shown_as: str,
                check: Callable[[], None]) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds from the start and image of each frame; of a camera or a stream without end also of those that come after
    it broke off. Raises RunnerError: it stays broken."""
    start = opened = time.monotonic()
    has_end = capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
    count = failures = 0
    while True:
        check()
        if capture.grab():
            count += 1
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if has_end else time.monotonic() - start
            ok, image = capture.retrieve()
            if ok:
                yield round(seconds, 3), image
            continue
        if has_end:
            return
        failures = 1 if time.monotonic() - opened > STEADY_SECONDS else failures + 1
        broke = f"{shown_as}: the stream broke off after {count} frames"
        if failures > RECONNECTS:
            raise RunnerError(f"{broke}, and {RECONNECTS} attempts to reconnect did not mend it")
        note(f"{broke}; reconnecting, attempt {failures} of {RECONNECTS}")
        time.sleep(min(WAIT_SECONDS * 2 ** (failures - 1), 10))
        capture.open(source)
        opened = time.monotonic()


def detections_of(rows: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Plain values of rows [M, 6 or 14]."""
    return [{"label": int(r[0]), "name": name_of(int(r[0]), class_names), "score": round(float(r[1]), 5),
             "box": [round(float(n), 2) for n in r[2:6]],
             **({"sigma": [round(float(n), 4) for n in r[6:10]], "top2": [round(float(n), 4) for n in r[10:14]]}
                if len(r) > 6 else {})} for r in rows]


def name_of(label: int, class_names: Sequence[str]) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def encode(path: str, image: np.ndarray) -> bytes:
    """The bytes of a picture in the format of its path."""
    with contextlib.suppress(cv2.error):
        ok, data = cv2.imencode(os.path.splitext(path)[1], image)
        if ok:
            return data.tobytes()
    height, width = image.shape[:2]  # a .webp has 16,383 at most
    raise RunnerError(f"{path}: OpenCV cannot write {width} x {height} pixels to such a file; make it a .png")


def write(path: str, data: bytes) -> None:
    """Write all of a file, or raise OSError with the path and leave what was there."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, with_ending(name, ".tmp"))
    try:
        os.makedirs(folder or ".", exist_ok=True)
        Path(temporary).write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, path) from error


def draw(image: np.ndarray, rows: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """A copy of an image [H, W, 3] BGR with what was found on it, [M, 6 or 14]."""
    labels = rows[:, 0].astype(int)
    names = [name_of(i, class_names) for i in labels]
    return draw_boxes(image, rows[:, 2:6], rows[:, 1], labels, names)


def benchmark(runner: BaseRunner, files: list[str], args: argparse.Namespace, check: Callable[[], None]) -> None:
    """Milliseconds per image and stage, after one batch of warm-up."""
    images = [read_image(path) for path in (files * args.batch_size)[:args.batch_size]]
    runner.detect(runner.prepare(images))
    runner.times = dict.fromkeys(runner.times, 0.0)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.benchmark_seconds:
        check()
        runner.detect(runner.prepare(images))
        count += args.batch_size
    for stage, total in runner.times.items():
        print(f"{stage:<12} {1000 * total / count:9.2f} ms per image")
    print(f"{'all':<12} {1000 * sum(runner.times.values()) / count:9.2f} ms per image, "
          f"{count / sum(runner.times.values()):.2f} images/s, batch {args.batch_size}")


if __name__ == "__main__":
    sys.exit(main())
