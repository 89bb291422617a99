"""What `doctor` finds out about NVIDIA GPUs."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ..system import gpu, runtime

OK, WARN, BAD = "ok", "warn", "bad"
Finding = tuple[str, str, str]  # level, topic, text
LEAST_FREE = 2048  # MiB


def cards() -> Iterator[Finding]:
    """Findings about each card, the driver and the libraries."""
    count, (cuda, cudnn) = gpu.cards(), gpu.built_for()
    yield OK, "GPU build", f"for CUDA {cuda}, cuDNN {cudnn}"
    if not count:
        yield WARN, "device", ("CPU: a GPU build of Paddle and no GPU to see: look at nvidia-smi and "
                               "CUDA_VISIBLE_DEVICES, or pip install paddlepaddle in its place")
        return
    for i in range(count):
        yield from _guarded(f"gpu:{i}", partial(_card, i))
    yield from _guarded("driver", partial(_driver, cuda))
    yield from _libraries(cudnn, count)


def _guarded(topic: str, find: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What it finds, or its failure as a finding."""
    try:
        yield from find()
    except Exception as error:  # Paddle raises many kinds
        yield failed(topic, error)


def failed(topic: str, error: BaseException) -> Finding:
    return BAD, topic, f"fails ({gpu.reason(error)}): {gpu.mend(error)}"


def _card(i: int) -> Iterator[Finding]:
    capability, built = gpu.capability(i), gpu.kernels()
    text = f"{gpu.name(i)}, compute capability {capability[0]}.{capability[1]}"
    if gpu.fits(capability, built):
        yield OK, f"gpu:{i}", text
    else:
        has = ", ".join(f"{major}.{minor}" for major, minor in built)
        yield BAD, f"gpu:{i}", f"{text}: this build has kernels for {has} alone: {gpu.PADDLE3}"


def _driver(cuda: str) -> Iterator[Finding]:
    found = gpu.drivers()
    if not found:
        yield WARN, "driver", "nvidia-smi does not say: see whether it runs"
        return
    version, least = found[0][0], gpu.LEAST_DRIVER.get(cuda.partition(".")[0], "0")
    if _numbers(version) < _numbers(least):
        yield BAD, "driver", f"{version} is too old for CUDA {cuda}: install {least} or newer"
    else:
        yield OK, "driver", version
    for i, (_, free, total) in enumerate(found):  # of all cards of the machine, whichever Paddle sees
        level, note = (OK, "") if free >= LEAST_FREE else (WARN, ": other programs fill it, nvidia-smi lists them")
        yield level, "GPU memory", f"{free} of {total} MiB are free on card {i} of the machine{note}"


def _numbers(version: str) -> list[int]:
    return [int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")]


def _libraries(built_for: str, count: int) -> Iterator[Finding]:
    found, wanted = gpu.cudnn(), built_for.partition(".")[0]
    major = found // (10_000 if found >= 90_000 else 1_000) if found else None  # 8600 is 8.6.0, 90100 is 9.1.0
    if found is None:  # a convolution will tell whether Paddle finds one that lies elsewhere
        yield WARN, "cuDNN", f"libcudnn.so is not on the path of libraries: {gpu.mend(OSError('cudnn'))}"
    elif wanted.isdecimal() and str(major) != wanted:
        yield BAD, "cuDNN", f"{found} is not version {wanted}, which this build needs: {gpu.mend(OSError('cudnn'))}"
    else:
        yield OK, "cuDNN", str(found)
    nccl, tensorrt = gpu.nccl(), gpu.tensorrt()
    level, note = (WARN, f": {gpu.mend(OSError('nccl'))}") if nccl is None and count > 1 else (OK, "")
    yield level, "NCCL", f"{nccl or 'not found, which training on several GPUs needs'}{note}"
    yield OK, "TensorRT", str(tensorrt or "not found, which only --run_mode trt_* needs")
    yield OK, "TF32", ("off (NVIDIA_TF32_OVERRIDE=0)" if runtime.tf32_is_off() else
                       "on from Ampere on: convolutions are off by up to 2e-3; NVIDIA_TF32_OVERRIDE=0 turns it off")
