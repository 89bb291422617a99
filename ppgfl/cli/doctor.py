"""What this machine has, what is wrong with it, and how to mend it."""
from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..system import framework, gpu, runtime
from ..system.runtime import version_of
from . import doctor_gpu
from .doctor_gpu import BAD, OK, WARN, Finding

GIB = 2**30
PACKAGES = ("numpy", "opencv-python", "pycocotools", "faster-coco-eval", "pyyaml", "visualdl", "pillow")
EXTRAS = ("onnx", "onnxruntime", "openvino", "starlette")


def examine() -> bool:
    """Print one line per finding: ok, warn or bad, what it is about, what was found, and the mend.

    Returns: whether nothing is bad.
    """
    levels = []
    for check in (software, pairs, device, processor, folders, self_test):
        for level, topic, text in check():
            levels.append(level)
            print(f"{level:<5} {topic:<15} {text}", flush=True)
            if level == BAD and topic == "paddle":
                print("\nnothing runs without Paddle")
                return False
    print("\nall green" if set(levels) == {OK} else f"\n{levels.count(BAD)} bad, {levels.count(WARN)} to look at")
    return BAD not in levels


def software() -> Iterator[Finding]:
    yield OK, "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    try:
        runtime.silence_paddle()
        framework.import_paddle()
        import paddle
    except Exception as error:  # a missing package, or one that was built for another numpy: anything
        yield BAD, "paddle", str(error)
        return
    yield OK, "paddle", f"{paddle.__version__}, {'GPU' if paddle.is_compiled_with_cuda() else 'CPU'} build"
    for name in PACKAGES:
        found = version_of(name) or (version_of("opencv-python-headless") if name == "opencv-python" else None)
        yield (OK, name, found) if found else (BAD, name, f"is not installed: pip install {name}")
    yield OK, "extras", ", ".join(f"{name} {version_of(name) or 'not installed'}" for name in EXTRAS)


def pairs() -> Iterator[Finding]:
    """Findings about versions that do not go together."""
    import cv2
    import numpy
    import paddle

    found = list(bad_pairs(paddle.__version__, numpy.__version__, cv2.__version__))
    yield from found or [(OK, "versions", "go together")]


def bad_pairs(paddle: str, numpy: str, cv2: str) -> Iterator[Finding]:
    """(level, topic, text) of each known fault among versions, as "3.3.1"."""
    def number(text: str) -> tuple[int, ...]:
        return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:2])

    if number(numpy) < (2, 0) and number(cv2) >= (4, 12):
        yield WARN, "versions", f"OpenCV {cv2} is built for numpy 2, found {numpy}: pip install 'opencv-python<4.12'"
    if (3, 0) <= number(paddle) <= (3, 3):
        yield OK, "versions", ("oneDNN fails at random with a model.json and images of changing sizes; exports and "
                               "runner avoid it (docs/deployment.md)")
    if number(paddle) < (2, 6):
        yield BAD, "versions", f"Paddle {paddle}: ppgfl is tested with 2.6 and 3.3: pip install -U paddlepaddle"


def device() -> Iterator[Finding]:
    import paddle

    if paddle.is_compiled_with_cuda():
        yield from doctor_gpu.cards()
    else:
        yield OK, "device", "CPU"
    threads, cores = runtime.cpu_threads(), runtime.physical_cores()
    if threads < cores:
        yield WARN, "threads", f"{threads} of {cores} physical cores: unset OMP_NUM_THREADS"
    elif threads > cores:
        yield WARN, "threads", f"{threads} on {cores} physical cores is slower than {cores}: unset OMP_NUM_THREADS"
    else:
        yield OK, "threads", f"{threads}, the physical cores"


def processor() -> Iterator[Finding]:
    from paddle import inference

    flags = runtime.processor().get("flags", "").split()
    yield OK, "processor", runtime.processor_name()
    if runtime.mkl_is_slow():
        yield WARN, "MKL", "takes its slow path on AMD: unset MKL_DEBUG_CPU_TYPE, ppgfl sets it"
    fast = [name for name, flag in (("AVX2", "avx2"), ("AVX-512", "avx512f"), ("bfloat16", "avx512_bf16"),
                                    ("AMX", "amx_bf16")) if flag in flags]
    yield OK, "instructions", ", ".join(fast) or "none of AVX2, AVX-512, bfloat16 is listed"
    engines = ["oneDNN"] + (["OpenVINO"] if hasattr(inference.Config, "enable_openvino_engine") else [])
    yield OK, "engines", f"{', '.join(engines)} for exported models on the CPU"


def folders() -> Iterator[Finding]:
    for topic, folder in (("this folder", Path.cwd()), ("cache", runtime.cache_folder())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                free = shutil.disk_usage(folder).free
        except OSError as error:
            mend = "set PPGFL_HOME to a folder that can" if topic == "cache" else "go to a folder that can"
            yield BAD, topic, f"{folder} cannot be written ({error.strerror}): {mend}"
            continue
        level, note = (OK, "") if free > 2 * GIB else (WARN, ", which a training run may fill")
        yield level, topic, f"{folder}, {free / GIB:.1f} GiB free{note}"


def self_test() -> Iterator[Finding]:
    """On each device a convolution against numpy, and R18vd from an image to its detections."""
    import paddle

    before = paddle.device.get_device()
    places = [f"gpu:{i}" for i in range(gpu.cards())] or ["cpu"]
    try:
        for place in places:
            topics = [f"{what}{f' {place}' if len(places) > 1 else ''}" for what in ("convolution", "detection")]
            for topic, test in zip(topics, (_convolution, _detection)):
                try:
                    paddle.set_device(place)
                    level, text = test()
                except Exception as error:  # Paddle raises many kinds
                    level, _, text = doctor_gpu.failed(topic, error)
                yield level, topic, text
                if level == BAD:
                    break
    finally:
        paddle.set_device(before)


def _convolution() -> tuple[str, str]:
    import numpy as np
    import paddle

    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(5, 5)).astype("float32"), rng.normal(size=(3, 3)).astype("float32")
    wanted = sum(kernel[i, j] * image[i:i + 3, j:j + 3] for i in range(3) for j in range(3))
    found = paddle.nn.functional.conv2d(paddle.to_tensor(image[None, None]), paddle.to_tensor(kernel[None, None]))
    error = float(np.abs(found.numpy()[0, 0] - wanted).max())
    if not error <= (2e-2 if framework.on_gpu() else 1e-4):  # TF32 has three digits
        return BAD, f"is off by {error:.1g}: install another version of Paddle"
    layer, x = paddle.nn.Conv2D(256, 256, 3, padding=1), paddle.randn([1, 256, 80, 80])
    with paddle.no_grad():
        layer(x)
        gpu.synchronize()
        start = time.perf_counter()
        for _ in range(3):
            layer(x)
        gpu.synchronize()
        seconds = (time.perf_counter() - start) / 3
    return OK, f"{2 * 256 * 256 * 9 * 6400 / seconds / 1e9:.0f} GFLOP/s (256 channels, 80x80, 3x3)"


def _detection() -> tuple[str, str]:
    import numpy as np
    import paddle

    from ..build import build_model
    from ..config.load import load_config

    model = build_model(load_config("gfl_r18vd_1x_coco"))
    model.eval()
    gpu.synchronize()
    start = time.perf_counter()
    with paddle.no_grad():
        result = model({"image": paddle.zeros([1, 3, 320, 320]), "scale_factor": paddle.ones([1, 2])})
    if not np.isfinite(result["bbox"].numpy()).all():
        return BAD, "gives numbers that are not finite: install another version of Paddle"
    gpu.synchronize()
    return OK, f"R18vd, 320x320, first call: {time.perf_counter() - start:.2f} s"
