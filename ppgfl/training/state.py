"""All that a checkpoint holds of a training run, and the only ways to a checkpoint and back."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paddle import Tensor
from paddle.amp import GradScaler
from paddle.optimizer import Optimizer

from ..build import build_ema, build_optimizer, make_model
from ..errors import ConfigError
from ..model.gfl import GFL
from ..optim import EMA, full_state, masters_of, schedule_of
from ..precision import scaling_of
from ..system.log import logger
from . import checkpoints


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: finished ones.
        step: optimizer steps since the run began.
        done: steps of the epoch under way, after an interruption.
        sums: of their losses, {name: number}.
        seed: of everything that is random. Order and augmentation depend on it and on the epoch alone, so that there is
            no other random state to keep.
        loss_scaling: of mixed precision, as `precision.scaling_of`.
        steps_per_epoch: of the run that saved it; 0 in checkpoints of ppgfl 0.1.
        best, best_epoch: the best evaluation so far.
        rows: of results.csv.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    loss_scaling: dict[str, float] = field(default_factory=dict)
    steps_per_epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class TrainingState:
    """The model, what trains it, and how far it is.

    Attributes:
        model: the `GFL` as it is built, neither wrapped nor compiled.
        optimizer: over its parameters, with the learning-rate schedule inside.
        ema: the moving average of its weights, or None.
        progress: how far the run is.
        parameter_names: {entry of the model's state: paddle's name of the parameter}, under which an optimizer files
            its state; another process may count parameters differently.
        scaler: of the loss, in mixed precision.
    """

    model: GFL
    optimizer: Optimizer
    ema: EMA | None
    progress: Progress
    parameter_names: dict[str, str]
    scaler: GradScaler | None = None

    def save(self, folder: Path, name: str) -> None:
        """Write `name`.pdparams, .pdopt and, with a moving average, .pdema. Raises OSError; what was there stays."""
        self.progress.loss_scaling = scaling_of(self.scaler)
        checkpoints.save_training(
            folder, name, weights=self.weights(), optimizer=self.optimizer, parameter_names=self.parameter_names,
            progress=asdict(self.progress), ema=self.ema,
            raw_weights=None if self.ema is None else self._own_weights(), names=self.model.class_names)

    def load(self, stem: Path) -> None:
        """Put back what `save` wrote to `stem`.*. Raises CheckpointError; ConfigError when it had another seed."""
        saved = Progress(**{"seed": self.progress.seed, **checkpoints.load_training(
            stem, model=self.model, optimizer=self.optimizer, ema=self.ema, parameter_names=self.parameter_names)})
        if saved.seed != self.progress.seed:
            raise ConfigError(f"--seed: {self.progress.seed}, but {stem} was trained with {saved.seed}; give that one")
        self.progress = saved
        logger.info("resumed from %s: epoch %d, step %d, best %.4f", stem, saved.epoch, saved.step, saved.best)
        self._rebase()

    def _rebase(self) -> None:
        """Put the schedule where this run, with its rate and its steps per epoch, is at the epochs that are done; what
        is done of an epoch under way is rounded down to whole steps, so that some images may come twice."""
        progress, schedule = self.progress, schedule_of(self.optimizer)
        steps = schedule.steps_per_epoch
        before = progress.steps_per_epoch or (progress.step - progress.done) // max(1, progress.epoch) or steps
        done = progress.done * steps // before
        schedule.step(progress.epoch * steps + done)
        if before != steps:
            logger.warning("an epoch had %d steps before and has %d now (another batch size, number of images or of "
                           "processes): the schedule goes on at epoch %d, step %d of %d, with a rate of %g", before,
                           steps, progress.epoch + 1, done + 1, steps, schedule.get_lr())
        if done != progress.done:
            share = done / progress.done
            progress.sums = {name: value * share for name, value in progress.sums.items() if done}
            progress.done = done
        progress.steps_per_epoch = steps

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to deploy: the moving average's where there is one."""
        return self._own_weights() if self.ema is None or not self.ema.step else self.ema.weights()

    def _own_weights(self) -> dict[str, Tensor]:
        """The model's, in float32 where it holds them in half precision."""
        return full_state(self.model, masters_of(self.optimizer))

    @contextmanager
    def evaluated_weights(self) -> Iterator[GFL]:
        """Inside, the model holds these weights; then its own again, in training mode."""
        own = {} if self.ema is None else {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            self._set(self.ema.weights())
        try:
            yield self.model
        finally:
            self._set(own)
            self.model.train()

    def _set(self, weights: dict[str, Tensor]) -> None:
        targets = self.model.state_dict()
        for name, value in weights.items():
            targets[name].set_value(value.astype(targets[name].dtype))  # half precision under --amp O2


def new_state(cfg: dict[str, Any], *, steps_per_epoch: int, total_batch_size: int | None, seed: int) -> TrainingState:
    """The state before the first step, with fresh weights; see `build.build_optimizer` for `total_batch_size`."""
    model = make_model(cfg)
    optimizer = build_optimizer(cfg, model, steps_per_epoch=steps_per_epoch, total_batch_size=total_batch_size)
    names = {name: value.name for name, value in model.state_dict().items()}
    progress = Progress(seed=seed, steps_per_epoch=steps_per_epoch)
    return TrainingState(model, optimizer, build_ema(cfg, model), progress, names)
