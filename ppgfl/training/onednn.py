"""Training on a CPU with oneDNN's convolutions, which use the processor's widest vectors: half the time of a step.

Dygraph has no way to them, so each convolution becomes a static graph of its own; all else stays as it is. Paddle keeps
what it made for a size of input until the process ends, 1 GiB for two images of 640x640, and mixes up sizes whose
digits read the same (1x23 and 12x3). So only batches of the first one's size run this way.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor
from paddle.static import InputSpec

from ..errors import ConfigError
from ..model.gfl import GFL
from ..system import dist, runtime
from ..system.log import logger


@contextmanager
def switched_on(wanted: bool) -> Iterator[None]:
    """Inside, oneDNN is there for static graphs, if wanted. Raises: ConfigError where it cannot be."""
    if not wanted:
        yield
        return
    reason = _impossible()
    if reason:
        raise ConfigError(f"onednn_training: {reason}; leave it out")
    before = paddle.get_flags(["FLAGS_use_mkldnn"])
    paddle.set_flags({"FLAGS_use_mkldnn": True})
    try:
        yield
    finally:
        paddle.set_flags(before)


def replace_convolutions(model: GFL) -> None:
    """Let a model's convolutions run through oneDNN in training, with the same values but for rounding."""
    size: list[int] = []
    fits = [False]

    def look_at_size(_: Any, inputs: Any) -> None:
        if model.training and not size:
            size.extend(inputs[0]["image"].shape)
            logger.info("convolutions of oneDNN for batches of %s", size)
        fits[0] = model.training and list(inputs[0]["image"].shape) == size

    model.register_forward_pre_hook(look_at_size)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.Conv2D) and layer._groups == 1:  # Paddle, private: no public name
            layer.forward = _either(layer, fits)


def _either(layer: paddle.nn.Conv2D, fits: list[bool]) -> Callable[[Tensor], Tensor]:
    """A forward function: oneDNN's, or the layer's own while the batch does not fit."""
    plain = layer.forward
    shape = [None, layer.weight.shape[1], None, None]
    fast = paddle.jit.to_static(plain, input_spec=[InputSpec(shape, "float32", "x")], full_graph=True)

    def forward(x: Tensor) -> Tensor:
        if not fits[0]:
            return plain(x)
        with paddle.pir_utils.DygraphOldIrGuard():
            return fast(x)

    return forward


def _impossible() -> str | None:
    """Why there are no such convolutions, or None."""
    if runtime.on_gpu():
        return "it is for training on a CPU"
    if dist.world_size() > 1:
        return "it is for training in one process"
    version = tuple(int(part) for part in paddle.__version__.split(".")[:2])
    if version < (3, 3) or not paddle.base.core.is_compiled_with_mkldnn():
        return f"it needs Paddle 3.3 or newer with oneDNN; this is {paddle.__version__}"
    return None
