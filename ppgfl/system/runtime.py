"""Set-up that must happen before `import paddle`, and the choice of the device.

With `dist`, which reads the launcher's, this is the only file that touches environment variables.
"""
from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError
from . import gpu
from .log import logger
from .signals import SIGNALS, block_signals

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def prepare_for_paddle() -> None:
    """What must happen before paddle is imported: OpenCV will be loaded first, and the CPU path is made fast.

    Without ``OMP_NUM_THREADS`` the wheel falls back to one thread. The MKL it carries takes its slowest path on
    AMD processors unless ``MKL_DEBUG_CPU_TYPE`` is 5. Together they made a 3x3 convolution four times as fast on two
    cores of an AMD EPYC. A value that the user has set is respected.
    """
    # An image of 16,384 x 16,384 takes 0.8 GB; a small file can claim far more.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # of a damaged image our own line says enough
    os.environ.setdefault("GLOG_minloglevel", "1")  # Paddle's notes about its own executors; warnings stay
    sys.meta_path.insert(0, _OpenCVBeforePaddle)
    os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
    if is_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    # Paddle looks for a compiler cache that running a detector never needs, and explains BatchNorm at every training.
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")


def keep_freed_memory() -> None:
    """Let glibc keep what arrays of images leave, up to 128 MiB, and give it to the next ones of up to 32 MiB.

    By default they go back to the system, and each page of each image is asked for and cleared anew: up to two thirds
    of a loader's time in a virtual machine (benchmarks/NOTES.md). Limits that the user has set are respected.
    """
    import ctypes

    set_by_user = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform == "linux" and not any(name in os.environ for name in set_by_user):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, 128 << 20)
            mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that all versions take


class _OpenCVBeforePaddle:
    """Paddle 2.6 exports its own zlib to the whole process; an OpenCV loaded after it crashes on the first PNG file.

    A finder of Python's import system that finds nothing, but loads OpenCV when paddle is about to be imported, by
    whomever: loaded at once, it would be nearly all that `import ppgfl` takes.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "paddle":
            import cv2  # noqa: F401


def child_variables(**variables: str) -> dict[str, str]:
    """The environment, with these variables, for a Python process that imports this very package."""
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}


def mkl_is_slow() -> bool:
    """Whether MKL takes its slowest path, because the user has set it so."""
    return is_amd() and os.environ.get("MKL_DEBUG_CPU_TYPE") != "5"


def cpu_threads() -> int:
    """The number of CPU threads paddle was told to use."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def cache_folder() -> Path:
    """Where downloads are kept: PPGFL_HOME, or `ppgfl` in the user's cache folder."""
    home = os.environ.get("PPGFL_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppgfl"


def tf32_is_off() -> bool:
    """Whether GPUs are told to compute convolutions in float32 whole."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"


def font_setting() -> str:
    """PPGFL_FONT: the font file for names on pictures and charts, or ""."""
    return os.path.expanduser(os.environ.get("PPGFL_FONT", ""))


def physical_cores() -> int:
    """Physical cores this process may use: its affinity and its container's quota are respected."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return max(1, (os.cpu_count() or 2) // 2)
    cores = {_core_of(cpu) for cpu in cpus}
    quota = _container_quota()
    return max(1, min(len(cores), quota) if quota else len(cores))


def _core_of(cpu: int) -> object:
    try:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return cpu


def _container_quota() -> int | None:
    """Whole CPUs that the container's quota allows, or None where there is no quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")  # cgroup v1
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit <= 0 else max(1, limit // int((folder / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None


@functools.cache
def processor() -> dict[str, str]:
    """What the system says of the first processor, as {"vendor_id", "model name", "flags", ...}; empty but on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def processor_name() -> str:
    """As "AMD EPYC 9454"."""
    return processor().get("model name") or platform.processor() or platform.machine() or "unknown"


def is_amd() -> bool:
    """Whether the processor is made by AMD."""
    return "AMD" in processor().get("vendor_id", platform.processor())


def select_device(use_gpu: bool) -> str:
    """Make the GPU paddle's device when `use_gpu` and there is one, else the CPU, saying so in one line.

    Returns: "gpu:<index>" or "cpu".
    """
    from . import installed

    reason = "use_gpu is false"
    if not installed.paddle_can_use_gpus():  # nor has it another device to choose
        reason = "this paddlepaddle is a CPU build" if use_gpu else reason
    else:
        import paddle

        if use_gpu and paddle.device.cuda.device_count():
            return str(paddle.set_device("gpu")).replace("Place(", "").rstrip(")")
        reason = "no GPU is visible" if use_gpu else reason
        paddle.set_device("cpu")
    count = cpu_threads()
    logger.info("running on the CPU with %d thread%s (%s)", count, "s" * (count > 1), reason)
    return "cpu"


def device() -> str:
    """The device that `select_device` chose: "gpu:<index>" or "cpu"."""
    from . import installed

    if not installed.paddle_can_use_gpus():
        return "cpu"
    import paddle

    return str(paddle.device.get_device())


def on_gpu() -> bool:
    """Whether that is a GPU. Where nothing has imported Paddle yet, it is none."""
    return "paddle" in sys.modules and device().startswith("gpu")


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Make the CPU paddle's device for a while; also a decorator."""
    import paddle

    before = paddle.device.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(before)


def import_paddle(quiet: bool = False) -> None:
    """Import paddle without the advice that 2.6 prints about OMP_NUM_THREADS, which the MKL builds do not need, and
    without a GPU build's that there is no GPU, which `select_device` says. Handlers of signals stay as they are: Paddle
    puts one of its own in the place of SIGTERM's.

    Args:
        quiet: also without the warnings of its C++, as about each library of CUDA that is not there.

    Raises: ConfigError with what to install, where it cannot be imported.
    """
    if quiet:
        os.environ.update(GLOG_minloglevel="2")
    captured = io.StringIO()
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    if "paddle" in sys.modules or threading.current_thread() is not threading.main_thread():
        handlers = {}
    try:
        with block_signals(), contextlib.redirect_stderr(captured), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using GPU version Paddle")
            import paddle  # noqa: F401

            for number, handler in handlers.items():
                signal.signal(number, handler)
    except Exception as error:  # what a broken installation raises is of any kind
        raise ConfigError(f"Paddle cannot be imported ({gpu.reason(error)}): {gpu.mend(error)}") from error
    finally:  # also what it says before it fails
        advice = ("WARNING: OMP_NUM_THREADS set to", "PLEASE USE OMP_NUM_THREADS")
        for line in captured.getvalue().splitlines():
            if not line.startswith(advice):
                sys.stderr.write(line + "\n")
        for each in (logging.root, *logging.Logger.manager.loggerDict.values()):
            for handler in getattr(each, "handlers", ()):  # made by the import, and would write to `captured` for ever
                if getattr(handler, "stream", None) is captured:
                    handler.setStream(sys.stderr)
