"""One step of training: mixed precision, several batches, several processes, a compiled graph, a teacher."""
from dataclasses import dataclass

import paddle

from ..system import dist, runtime
from ..system.log import logger
from . import onednn


def make_step(cfg, model, optimizer, ema, teacher=None, *, amp=None, accumulate=1, to_static=False):
    """The `Step` of a config.

    Args:
        model, optimizer, ema: of `build`; `ema` may be None.
        teacher: a `distill.Teacher`, or None.
        amp: None, "O1" or "O2": automatic mixed precision on a GPU.
        accumulate: batches per step.
        to_static: compile the model into a static graph.
    """
    on_gpu = runtime.on_gpu()
    half = bool(amp) and on_gpu
    if amp and not on_gpu:
        logger.info("--amp has no effect on a CPU")
    if cfg.get("norm_type") == "sync_bn" and dist.world_size() > 1 and on_gpu:
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if half and amp == "O2":
        model, optimizer = paddle.amp.decorate(models=model, optimizers=optimizer, level="O2")
        if teacher is not None:
            teacher.model = paddle.amp.decorate(models=teacher.model, level="O2")
    if cfg.get("onednn_training"):
        onednn.replace_convolutions(model)
    elif to_static:
        model = paddle.jit.to_static(model, full_graph=True)
    if dist.world_size() > 1:
        model = paddle.DataParallel(model, find_unused_parameters=cfg.get("find_unused_parameters", False))
    return Step(model, optimizer, ema, teacher, paddle.amp.GradScaler(enable=half, init_loss_scaling=1024.0),
                dict(enable=half, level=amp or "O1"), accumulate)


@dataclass
class Step:
    """One optimizer step over the model as it is called: wrapped, compiled, in mixed precision."""

    model: object
    optimizer: object
    ema: object
    teacher: object
    scaler: object
    amp: dict
    accumulate: int

    def __call__(self, batches):
        """`accumulate` batches -> the mean of their losses, {name: tensor}. Never waits for the device."""
        self.optimizer.clear_grad()
        total = {}
        for batch in batches:
            with paddle.amp.auto_cast(**self.amp):
                losses = self.model(batch if self.teacher is None else self.teacher(batch))
            self.scaler.scale(losses["loss"] / self.accumulate).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / self.accumulate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer._learning_rate.step()
        if self.ema is not None:
            self.ema.update()
        return total
