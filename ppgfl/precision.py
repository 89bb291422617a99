"""Mixed precision: what `--amp` and the keys of a config say of it, for training and for evaluation.

O1 computes convolutions and matmuls in float16, O2 keeps the parameters in float16 too. Whatever the level, float32 are
the integral over distributions, the boxes, the scores, the losses, the moving average and the optimizer's copies of the
weights, which are what a checkpoint holds.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.amp import amp_lists
from paddle.base.framework import OpProtoHolder
from paddle.optimizer import Optimizer

from .config.keys import setting
from .errors import ConfigError, suggestion
from .model.gfl import GFL
from .model.head import Integral
from .optim import masters_of
from .system import framework
from .system.log import logger

SCALING = ("scale", "incr_count", "decr_count")  # what changes of a GradScaler's state


@dataclass(frozen=True)
class Precision:
    """How a network computes.

    Attributes:
        level: O1 or O2; None: in float32.
        white, black: operators that are computed in float16, or are not, beside Paddle's own lists.
        master_grad: with O2: gradients are turned into float32 before they are clipped and used.
        init_loss_scaling: factor of the loss at first.
    """

    level: str | None = None
    white: Sequence[str] = ()
    black: Sequence[str] = ()
    master_grad: bool = False
    init_loss_scaling: float = 1024.0

    def auto_cast(self) -> AbstractContextManager[Any]:
        """Inside, the network computes so."""
        return paddle.amp.auto_cast(enable=self.level is not None, level=self.level or "O1",
                                    custom_white_list=set(self.white), custom_black_list=set(self.black))

    def scaler(self, saved: Mapping[str, float]) -> paddle.amp.GradScaler:
        """The scaler of the loss, as it stood when `scaling_of` gave `saved`; {}: a new one."""
        scaler = paddle.amp.GradScaler(enable=self.level is not None, init_loss_scaling=self.init_loss_scaling)
        if saved and scaler.is_enable():
            scaler.load_state_dict({**scaler.state_dict(), **saved, "scale": [saved["scale"]]})
        return scaler

    def apply(self, model: GFL, optimizer: Optimizer | None = None) -> None:
        """With O2: turn a model's parameters into float16. Its optimizer goes on with float32 copies, taken before, and
        files its state under the same names as without."""
        if self.level != "O2":
            return
        learning = [] if optimizer is None else optimizer._parameter_list  # Paddle, private: no public name
        full = {parameter.name: parameter.detach().clone() for parameter in learning}
        paddle.amp.decorate(models=model, optimizers=optimizer, level="O2", master_grad=self.master_grad,
                            excluded_layers=[Integral])
        for parameter in learning:
            if parameter.dtype != paddle.float32:
                master = full[parameter.name]
                master.name = parameter.name
                masters_of(optimizer)[parameter.name] = master


def precision_of(cfg: Mapping[str, Any], amp: str | None = None) -> Precision:
    """The `Precision` of a config.

    Args:
        amp: None: what the config's `amp` says; else "O1" or "O2".

    Raises: ConfigError: a list names no operator of this Paddle, or the same as the other.
    """
    level = amp or (setting(cfg, "amp_level") if setting(cfg, "amp") else None)
    white, black = _operators(cfg, "custom_white_list"), _operators(cfg, "custom_black_list")
    both = sorted(set(white).intersection(black))
    if both:
        raise ConfigError(f"custom_white_list: {', '.join(both)} is in custom_black_list too; it can be in one of them")
    if level and not framework.on_gpu():
        logger.info("--amp has no effect on a CPU")
        level = None
    return Precision(level, white, black, setting(cfg, "master_grad"), setting(cfg, "init_loss_scaling"))


def scaling_of(scaler: paddle.amp.GradScaler | None) -> dict[str, float]:
    """What a resume needs of a scaler, as plain numbers; {} where there is none. Waits for the device."""
    state = scaler.state_dict() if scaler is not None else {}
    return {key: float(state[key][0]) if key == "scale" else state[key] for key in SCALING if key in state}


def _operators(cfg: Mapping[str, Any], key: str) -> Sequence[str]:
    names: Sequence[str] = setting(cfg, key) or ()
    for name in names:
        _check_operator(key, name)
    return names


def _check_operator(key: str, name: str) -> None:
    """Raise a ConfigError unless mixed precision knows an operator by this name: that of a program, not of a function
    of Python ("elementwise_add", not "add")."""
    registered = paddle.base.core._get_all_register_op_kernels("all")  # Paddle, private: no public name
    known = {*registered, *OpProtoHolder.instance().op_proto_map}.union(
        *(found["float16"]["O1"] for found in (amp_lists.white_list(), amp_lists.black_list())))
    if name in known:
        return
    new = (paddle.base.core._get_phi_kernel_name(other) for other in registered)  # Paddle, private
    others = [other for other, function in zip(registered, new) if function == name]
    if others:
        raise ConfigError(f"{key}: '{name}' is called {' or '.join(sorted(others)[:3])} in mixed precision; write that")
    if not any(hasattr(paddle._C_ops, name + end) for end in ("", "_")):  # Paddle, private: the newest are only there
        raise ConfigError(f"{key}: this Paddle has no operator '{name}'; {suggestion(name, known)}"
                          "operators have the names that a program holds, as elementwise_add")
