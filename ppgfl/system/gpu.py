"""What there is of NVIDIA GPUs and their libraries, and what is to be done when one of them fails.

Each function asks one thing, so that a test can answer in its place on a machine without a card.
"""
from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence

Capability = tuple[int, int]

INDEX = "https://www.paddlepaddle.org.cn/packages/stable/cu126/"
PADDLE3 = f"pip install paddlepaddle-gpu -i {INDEX} (or cu118, ...; docs/getting_started.md)"
# The newest build on PyPI has kernels for these. One for 8.0 runs on 8.0 and 8.9, but not on 9.0.
PYPI_BUILD = ("2.6.2", "11.8")
PYPI_KERNELS: Sequence[Capability] = ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6))
LEAST_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580"}  # NVIDIA's table of CUDA's compatibility
# Words of an error -> what mends it. They choose the advice only; that something failed is known without them.
ON_PATH = "and put its folder into LD_LIBRARY_PATH"
MENDS = (
    (("libcuda.so", "insufficient", "nvml"), "install a newer driver of NVIDIA (nvidia-smi names yours)"),
    (("no kernel image", "invalid device function", "unsupported gpu arch"),
     f"this build has no kernels for the card: {PADDLE3}"),
    (("out of memory", "resourceexhausted", "cudaerrormemoryallocation", "alloc_failed"),
     "other programs fill the card (nvidia-smi lists them): stop them, or choose another by CUDA_VISIBLE_DEVICES"),
    (("cudnn",), f"install this build's cuDNN, for Paddle 2.6 pip install 'nvidia-cudnn-cu11<9', {ON_PATH}"),
    (("nccl",), f"install NCCL, for Paddle 2.6 pip install nvidia-nccl-cu11, {ON_PATH}"),
    (("libcudart", "libcublas", "libcurand", "libcusolver", "libcusparse", "libcufft", "libnvrtc", "cublas"),
     f"install the libraries of this build's CUDA, 11.8 for Paddle 2.6, {ON_PATH}"),
    (("glibcxx", "libstdc++"), "install a newer libstdc++ (GCC 8 or newer)"),
)


def mend(error: BaseException) -> str:
    """What the user can do about an error of Paddle, or of its import."""
    if isinstance(error, ModuleNotFoundError):
        missing = "paddlepaddle, or paddlepaddle-gpu" if error.name == "paddle" else error.name
        return f"pip install {missing}"
    text = str(error).lower()
    for words, advice in MENDS:
        if any(word in text for word in words):
            return advice
    return "install another version of Paddle"


def reason(error: BaseException) -> str:
    """An error of Paddle in one line: what follows the stack of its C++, or all of it."""
    text = str(error).rpartition("Error Message Summary:")[2]
    return " ".join(text.replace("-" * 22, " ").split())[:240] or type(error).__name__


def cards() -> int:
    """Cards that Paddle sees."""
    import paddle

    return int(paddle.device.cuda.device_count()) if paddle.is_compiled_with_cuda() else 0


def name(card: int) -> str:
    import paddle

    return str(paddle.device.cuda.get_device_name(card))


def capability(card: int) -> Capability:
    """As (8, 6)."""
    import paddle

    major, minor = paddle.device.cuda.get_device_capability(card)
    return int(major), int(minor)


def kernels() -> Sequence[Capability]:
    """The capabilities that this build of Paddle has kernels for; () where they are not known."""
    import paddle

    return PYPI_KERNELS if (paddle.__version__, built_for()[0]) == PYPI_BUILD else ()


def fits(card: Capability, built: Sequence[Capability]) -> bool:
    """Whether kernels for one of these capabilities run on a card; unknown ones are taken to."""
    return not built or any(major == card[0] and minor <= card[1] for major, minor in built)


def built_for() -> tuple[str, str]:
    """Versions of CUDA and cuDNN that this Paddle is built for, as ("11.8", "8.6.0")."""
    import paddle

    return str(paddle.version.cuda()), str(paddle.version.cudnn())


def drivers() -> list[tuple[str, int, int]]:
    """Of all cards of the machine: version of the driver, free and whole memory in MiB; [] without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        rows = [line.split(",") for line in done.stdout.splitlines() if line.strip()]
        return [(driver.strip(), int(free), int(total)) for driver, free, total in rows]
    except (OSError, ValueError, subprocess.SubprocessError):  # also where a card does not say its memory
        return []


def library(names: Sequence[str], function: str) -> int | None:
    """The version that the first of these libraries gives of itself, or None where none can be loaded."""
    for each in names:
        try:
            loaded, found = ctypes.CDLL(each), ctypes.c_int(0)
            if function == "ncclGetVersion":
                loaded.ncclGetVersion(ctypes.byref(found))
                return found.value
            ask = getattr(loaded, function)
            ask.restype = ctypes.c_size_t
            return int(ask())
        except (OSError, AttributeError):
            continue
    return None


def cudnn() -> int | None:
    """As 8600."""
    return library(("libcudnn.so", "libcudnn.so.9", "libcudnn.so.8"), "cudnnGetVersion")


def nccl() -> int | None:
    """As 21703."""
    return library(("libnccl.so", "libnccl.so.2"), "ncclGetVersion")


def tensorrt() -> int | None:
    """As 8503."""
    return library(("libnvinfer.so", "libnvinfer.so.8", "libnvinfer.so.10"), "getInferLibVersion")


def synchronize() -> None:
    """Wait for what the present device was asked to compute."""
    import paddle

    if str(paddle.device.get_device()).startswith("gpu"):
        paddle.device.cuda.synchronize()
