"""How fast something is, against something else: taking turns in one run, since machines speed up and slow down."""
from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExportError
from ..inference.runner import load_runner, make_runner
from ..system import runtime
from ..system.log import logger
from ..system.progress import progress

Subjects = dict[str, Callable[[], Any]]  # {name: what is measured}


def benchmark(model_dir: str | os.PathLike[str], *, against: str | os.PathLike[str] | None = None,
              size: Sequence[int] = (800, 1088), batch_size: int = 1, threads: int | None = None,
              rounds: int = 10) -> dict[str, list[float]]:
    """Measure an exported model on this machine's CPU and print a table.

    Every engine of ppgfl's runner in float32 and bfloat16, decoding and NMS included; and, where they are installed
    and the export has a model.onnx or model_int8.onnx, ONNX Runtime and OpenVINO up to decoded boxes and scores,
    without NMS.

    Args:
        model_dir: an exported folder.
        against: another one, as PaddleDetection's of the same model.
        size: height and width of the input, after preparation.
        batch_size: images computed together.
        threads: of every subject; None: the physical cores.
        rounds: how often each subject runs, taking turns.

    Returns: {subject: its seconds}.
    Raises: ExportError.
    """
    threads = threads or runtime.physical_cores()
    arrays = {"image": np.random.default_rng(0).normal(size=(batch_size, 3, *size)).astype("float32"),
              "scale_factor": np.ones((batch_size, 2), np.float32),
              "im_shape": np.array([size] * batch_size, np.float32)}
    subjects: Subjects = {}
    for settings in ({}, {"engine": "onednn"}, {"run_mode": "bf16"}, {"run_mode": "bf16", "engine": "onednn"}):
        subjects.update(_runner(model_dir, arrays, cpu_threads=threads, **settings))
    for name, kinds in (("model.onnx", ("f32", "bf16")), ("model_int8.onnx", ("int8",))):
        subjects.update(_onnx(Path(model_dir) / name, arrays, threads, kinds))
    if against:
        for settings in ({}, {"engine": "onednn"}):
            subjects.update(_runner(against, arrays, label="--against: ", cpu_threads=threads, **settings))
    times = take_turns(subjects, rounds)
    print(f"\n{Path(model_dir).name}, {batch_size} x {size[0]} x {size[1]}, {threads} threads, median of {rounds} "
          f"rounds taking turns\n{machine()}\n\n{table(times)}")
    return times


def take_turns(subjects: Subjects, rounds: int) -> dict[str, list[float]]:
    """{name: function} -> {name: seconds of each round}; each runs once before, unmeasured."""
    for run in subjects.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in progress(range(rounds), total=rounds, unit="round", what="measure"):
        for name, run in subjects.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def table(times: Mapping[str, Sequence[float]]) -> str:
    """{name: seconds of each round} -> a Markdown table with the median, the spread, and the ratio to the first."""
    lines = ["| | seconds | least to most | against the first |", "| --- | --- | --- | --- |"]
    first = statistics.median(next(iter(times.values())))
    for name, taken in times.items():
        middle = statistics.median(taken)
        lines.append(f"| {name} | {middle:.4g} | {min(taken):.4g} to {max(taken):.4g} | {middle / first:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, its vectors, cores and versions in one line."""
    import paddle

    flags = runtime.processor().get("flags", "").split()
    vectors = next((f" with {name}" for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return (f"{runtime.processor_name()}{vectors}, {os.cpu_count()} logical cores; Paddle {paddle.__version__}, "
            f"numpy {np.__version__}, Python {platform.python_version()}")


def _runner(model_dir: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], label: str = "",
            **settings: Any) -> Subjects:
    """{description: function} of ppgfl's runner, none when it cannot run so and another has taken its place."""
    try:
        runner = make_runner(model_dir, **settings)
    except ExportError as error:
        if len(settings) > 1:  # this way of running is not there, as bfloat16 on an old processor
            logger.info("left out: %s", error)
            return {}
        raise
    return {label + runner.description: lambda: runner.detect(arrays)}


def _onnx(path: Path, arrays: Mapping[str, np.ndarray], threads: int, kinds: Sequence[str]) -> Subjects:
    """{description: function} of an ONNX file in ONNX Runtime, and in OpenVINO in each of the kinds."""
    subjects: Subjects = {}
    if path.is_file() and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        name = f"ONNX Runtime {onnxruntime.__version__}, {kinds[0]}, no NMS"
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            arrays = {node.name: arrays[node.name] for node in session.get_inputs()}
            subjects[name] = lambda: session.run(None, arrays)
        except Exception as error:  # kinds of its own, as for an operator that came later
            _left_out(name, error)
    if path.is_file() and importlib.util.find_spec("openvino"):
        import openvino

        for kind in kinds:  # what is not quantised in an int8 file is computed in float32
            settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": kind.replace("int8", "f32")}
            name = f"OpenVINO {openvino.__version__.split('-')[0]}, {kind}, no NMS"
            try:
                with load_runner().kept_signal_stack():
                    model = openvino.Core().compile_model(str(path), "CPU", settings)
                    request = model.create_infer_request()
            except RuntimeError as error:  # its ONNX reader knows no deformable convolution
                _left_out(name, error)
                continue
            subjects[name] = partial(request.infer, {node.any_name: arrays[node.any_name] for node in model.inputs})
    return subjects


def _left_out(name: str, error: Exception) -> None:
    logger.info("left out: %s: %s", name, load_runner().end_of(error))
