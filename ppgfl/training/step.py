"""One step of training: mixed precision, several batches, several processes, a compiled graph, a teacher."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor
from paddle.optimizer import Optimizer

from ..config.keys import setting
from ..errors import ConfigError
from ..model.distill import Teacher
from ..model.layers import share_statistics
from ..optim import EMA, masters_of, schedule_of
from ..precision import Precision
from ..system import dist, framework
from .state import TrainingState


def make_step(cfg: dict[str, Any], state: TrainingState, teacher: Teacher | None = None, *,
              precision: Precision, accumulate: int = 1, to_static: bool = False) -> Step:
    """The `Step` of a config.

    Args:
        state: what it trains.
        teacher: a `distill.Teacher`, or None.
        precision: how the network computes.
        accumulate: batches per step.
        to_static: compile the model into a static graph.
    """
    if precision.level and precision.master_grad and accumulate > 1:
        raise ConfigError(f"--accumulate: {accumulate}; it does not go with master_grad: true, since gradients in "
                          "float32 and in float16 cannot be added up; set master_grad to false")
    model: Any = state.model
    if dist.world_size() > 1 and framework.on_gpu():
        share_statistics(model, all_layers=setting(cfg, "norm_type") == "sync_bn")
    precision.apply(model, state.optimizer)
    if teacher is not None:
        precision.apply(teacher.model)
    state.scaler = precision.scaler(state.progress.loss_scaling)
    if to_static:
        model = paddle.jit.to_static(model, full_graph=True)
    if dist.world_size() > 1:
        model = paddle.DataParallel(model, find_unused_parameters=setting(cfg, "find_unused_parameters"))
    return Step(model, state.optimizer, state.ema, teacher, state.scaler, precision, accumulate)


@dataclass
class Step:
    """One optimizer step over the model as it is called: wrapped, compiled, in mixed precision.

    Attributes:
        precision: how the network computes.
        accumulate: batches of a step.
    """

    model: Any
    optimizer: Optimizer
    ema: EMA | None
    teacher: Teacher | None
    scaler: paddle.amp.GradScaler
    precision: Precision
    accumulate: int

    def __call__(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """`accumulate` batches -> the mean of their losses, {name: tensor}. Never waits for the device."""
        self.optimizer.clear_grad()
        total: dict[str, Any] = {}
        for i, batch in enumerate(batches, 1):
            with self._reduced(last=i == len(batches)):
                with self.precision.auto_cast():
                    losses = self.model(batch if self.teacher is None else self.teacher(batch))
                self.scaler.scale(losses["loss"] / self.accumulate).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / self.accumulate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        schedule_of(self.optimizer).step()
        if self.ema is not None:
            self.ema.update(masters_of(self.optimizer))
        return total

    def _reduced(self, *, last: bool) -> AbstractContextManager[Any]:
        """Inside, gradients are added up over the processes, but for those of a batch that is not the last one."""
        parallel = isinstance(self.model, paddle.DataParallel)
        return self.model.no_sync() if parallel and not last else nullcontext()
