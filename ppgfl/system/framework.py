"""Paddle itself: its import, which takes most of a second and is done where something needs it; which build it is, told
without importing it where that can be; and the device that it computes on.
"""
from __future__ import annotations

import contextlib
import functools
import io
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

from ..errors import ConfigError
from . import gpu, runtime
from .log import logger
from .runtime import version_of
from .signals import SIGNALS, block_signals


def import_paddle() -> None:
    """Import paddle without the advice that 2.6 prints about OMP_NUM_THREADS, which the MKL builds do not need, and
    without a GPU build's that there is no GPU, which `select_device` says. Handlers of signals stay as they are: Paddle
    puts one of its own in the place of SIGTERM's.

    Raises: ConfigError with what to install, where it cannot be imported.
    """
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


@functools.cache
def version() -> str:
    """As "3.3.1"."""
    known = version_of("paddlepaddle-gpu") or version_of("paddlepaddle")
    if known:
        return known
    import_paddle()
    import paddle

    return str(paddle.__version__)


def can_use_gpus() -> bool:
    """Whether Paddle is a build for GPUs. It is imported where its package does not say that it is none."""
    if "paddle" not in sys.modules and version_of("paddlepaddle") and not version_of("paddlepaddle-gpu"):
        return False
    import_paddle()
    import paddle

    return bool(paddle.is_compiled_with_cuda())


def select_device(use_gpu: bool) -> str:
    """Make the GPU paddle's device when `use_gpu` and there is one, else the CPU, saying so in one line.

    Returns: "gpu:<index>" or "cpu".
    """
    reason = "use_gpu is false"
    if not can_use_gpus():  # nor has it another device to choose
        reason = "this paddlepaddle is a CPU build" if use_gpu else reason
    else:
        import paddle

        if use_gpu and paddle.device.cuda.device_count():
            return str(paddle.set_device("gpu")).replace("Place(", "").rstrip(")")
        reason = "no GPU is visible" if use_gpu else reason
        paddle.set_device("cpu")
    count = runtime.cpu_threads()
    logger.info("running on the CPU with %d thread%s (%s)", count, "s" * (count > 1), reason)
    return "cpu"


def device() -> str:
    """The device that `select_device` chose: "gpu:<index>" or "cpu"."""
    if not can_use_gpus():
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
