"""One step of training: mixed precision, several batches, several processes, a compiled graph, a teacher."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer

from ..config.keys import setting
from ..model.distill import Teacher
from ..optim import EMA, schedule_of
from ..system import dist, runtime
from ..system.log import logger
from . import onednn
from .state import TrainingState


def make_step(cfg: dict[str, Any], state: TrainingState, teacher: Teacher | None = None, *, amp: str | None = None,
              accumulate: int = 1, to_static: bool = False) -> Step:
    """The `Step` of a config.

    Args:
        state: what it trains.
        teacher: a `distill.Teacher`, or None.
        amp: None, "O1" or "O2": automatic mixed precision on a GPU.
        accumulate: batches per step.
        to_static: compile the model into a static graph.
    """
    model, optimizer = state.model, state.optimizer
    on_gpu = runtime.on_gpu()
    half = bool(amp) and on_gpu
    if amp and not on_gpu:
        logger.info("--amp has no effect on a CPU")
    if setting(cfg, "norm_type") == "sync_bn" and dist.world_size() > 1 and on_gpu:
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if half and amp == "O2":
        model, optimizer = paddle.amp.decorate(models=model, optimizers=optimizer, level="O2")
        if teacher is not None:
            teacher.model = paddle.amp.decorate(models=teacher.model, level="O2")
    if setting(cfg, "onednn_training"):
        onednn.replace_convolutions(model)
    elif to_static:
        model = paddle.jit.to_static(model, full_graph=True)
    if dist.world_size() > 1:
        model = paddle.DataParallel(model, find_unused_parameters=setting(cfg, "find_unused_parameters"))
    return Step(model, optimizer, state.ema, teacher, paddle.amp.GradScaler(enable=half, init_loss_scaling=1024.0),
                dict(enable=half, level=amp or "O1"), accumulate)


@dataclass
class Step:
    """One optimizer step over the model as it is called: wrapped, compiled, in mixed precision.

    Attributes:
        amp: arguments of `paddle.amp.auto_cast`.
        accumulate: batches of a step.
    """

    model: Callable[..., dict[str, Tensor]]
    optimizer: Optimizer
    ema: EMA | None
    teacher: Teacher | None
    scaler: paddle.amp.GradScaler
    amp: dict[str, Any]
    accumulate: int

    def __call__(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """`accumulate` batches -> the mean of their losses, {name: tensor}. Never waits for the device."""
        self.optimizer.clear_grad()
        total: dict[str, Any] = {}
        for batch in batches:
            with paddle.amp.auto_cast(**self.amp):
                losses = self.model(batch if self.teacher is None else self.teacher(batch))
            self.scaler.scale(losses["loss"] / self.accumulate).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / self.accumulate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        schedule_of(self.optimizer).step()
        if self.ema is not None:
            self.ema.update()
        return total
