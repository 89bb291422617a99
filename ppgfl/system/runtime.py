"""The process and the machine: set-up that must happen before `import paddle`, memory, the processor, the cache.

With `dist`, which reads the launcher's, this is the only file that touches environment variables.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

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


def silence_paddle() -> None:
    """Before paddle is imported: keep its C++ from warning, as about each library of CUDA that is not there."""
    os.environ.update(GLOG_minloglevel="2")


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


@functools.cache
def code_digest() -> str:
    """Changes with each line of ppgfl."""
    files = sorted(Path(__file__).resolve().parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@functools.cache
def version_of(package: str) -> str | None:
    """As pip knows it, without importing it; None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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
