"""Learning-rate schedule, optimizer, and the moving average of the weights."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler

from .errors import ConfigError
from .kinds import Count, NotNegative, Positive, Share, Whole


@dataclass(frozen=True)
class PiecewiseDecay:
    """Steps down at each milestone.

    Attributes:
        gamma: factors of the base rate, one per milestone; PaddleDetection: one number g means g, g/10, g/100, ...
        milestones: epochs.
        values: the rates themselves, one more than milestones, instead of `gamma`.
        use_warmup: let the warm-up come first.
    """

    gamma: Positive | Sequence[Positive] = (0.1, 0.01)
    milestones: Sequence[Count] = (8, 11)
    values: Sequence[Positive] | None = None
    use_warmup: bool = True

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"PiecewiseDecay.milestones: {self.milestones!r}; they must rise, as in [8, 11]")
        factors = len(self.values) - 1 if self.values else len(self.factors())
        if factors != len(self.milestones):
            raise ConfigError(f"PiecewiseDecay: {len(self.milestones)} milestones need as many factors in gamma, or "
                              "one value more than milestones")

    def factors(self) -> list[float]:
        if isinstance(self.gamma, (int, float)):
            return [self.gamma / 10**i for i in range(len(self.milestones))]
        return list(self.gamma)

    def factor(self, step: int, steps_per_epoch: int, base_lr: float, warmup_steps: int) -> float:
        passed = sum(step >= int(steps_per_epoch) * milestone for milestone in self.milestones)
        if self.values:
            return self.values[passed] / base_lr
        return [1.0, *self.factors()][passed]


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine from the end of the warm-up to `max_epochs`.

    Attributes:
        max_epochs: where it ends.
        min_lr_ratio: what is left of the base rate at the end.
        last_plateau_epochs: the last epochs stay at that.
        use_warmup: let the warm-up come first; the cosine starts where it ends.
    """

    max_epochs: Count = 1000
    use_warmup: bool = True
    min_lr_ratio: Share = 0.0
    last_plateau_epochs: Whole = 0

    def factor(self, step: int, steps_per_epoch: int, base_lr: float, warmup_steps: int) -> float:
        start = warmup_steps if self.use_warmup else 0
        length = self.max_epochs * steps_per_epoch - start - self.last_plateau_epochs * steps_per_epoch
        done = min(1.0, max(0.0, (step - start) / max(1, length)))
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class LinearWarmup:
    """From `start_factor` times the base rate to the base rate, in a straight line.

    Attributes:
        steps: how long it takes.
        start_factor: where it starts.
        epochs: how long it takes, instead of `steps`.
        epochs_first: false: `steps` is meant, also where `epochs` is given.
    """

    steps: Whole = 500
    start_factor: NotNegative = 1 / 3
    epochs: Whole | None = None
    epochs_first: bool = True

    @property
    def in_epochs(self) -> bool:
        return bool(self.epochs and self.epochs_first)

    def length(self, steps_per_epoch: int) -> int:
        return max(1, (self.epochs or 0) * steps_per_epoch if self.in_epochs else self.steps)

    def factor(self, done: float) -> float:
        return self.start_factor * (1 - done) + done


@dataclass(frozen=True)
class ExpWarmup:
    """From 0 to the base rate along done ** `power`.

    Attributes:
        steps: how long it takes.
        epochs: how long it takes, instead of `steps`.
        power: of the share of it that is done.
    """

    steps: Whole = 1000
    epochs: Whole | None = None
    power: Count = 2

    @property
    def in_epochs(self) -> bool:
        return self.epochs is not None

    def length(self, steps_per_epoch: int) -> int:
        return max(1, (self.epochs or 0) * steps_per_epoch if self.in_epochs else self.steps)

    def factor(self, done: float) -> float:
        return done**self.power


class Schedule(LRScheduler):
    """The rate of each step: `decay` after `warmup` (may be None); call step() once per iteration.

    Its `last_epoch`, which is Paddle's name and stands in checkpoints, counts steps: a run that is in epoch e (from 0)
    with d steps of it done is at e * steps_per_epoch + d.
    """

    def __init__(self, base_lr: float, decay: PiecewiseDecay | CosineDecay, warmup: LinearWarmup | ExpWarmup | None,
                 steps_per_epoch: int) -> None:
        self.decay = decay
        self.warmup = warmup if decay.use_warmup else None
        self.steps_per_epoch = steps_per_epoch
        self.warmup_steps = self.warmup.length(steps_per_epoch) if self.warmup else 0
        super().__init__(base_lr)

    def factor(self, step: int) -> float:
        """The share of the base rate in a step, from 0."""
        if self.warmup is not None and step < self.warmup_steps:
            return self.warmup.factor(step / self.warmup_steps)
        return self.decay.factor(step, self.steps_per_epoch, self.base_lr, self.warmup_steps)

    def get_lr(self) -> float:
        """The rate of the step that comes next."""
        return self.base_lr * self.factor(self.last_epoch)


def make_schedule(base_lr: float, decay: PiecewiseDecay | CosineDecay, warmup: LinearWarmup | ExpWarmup | None,
                  steps_per_epoch: int) -> Schedule:
    """A `Schedule`, as it stands before the first step."""
    return Schedule(base_lr, decay, warmup, steps_per_epoch)


OPTIMIZERS = {"Momentum": paddle.optimizer.Momentum, "SGD": paddle.optimizer.SGD, "Adam": paddle.optimizer.Adam,
              "AdamW": paddle.optimizer.AdamW}
REGULARIZERS = {"L1": paddle.regularizer.L1Decay, "L2": paddle.regularizer.L2Decay}


def make_optimizer(model: nn.Layer, schedule: LRScheduler, *, optimizer: Mapping[str, Any],
                   regularizer: Mapping[str, Any] | None = None, clip_grad_by_norm: float | None = None,
                   clip_grad_by_value: float | None = None) -> Optimizer:
    """The paddle optimizer of an OptimizerBuilder section, over the parameters that learn.

    Args:
        optimizer: {"type": "Momentum" | "SGD" | "Adam" | "AdamW", and arguments of that paddle class}, as
            `config.keys.optimizer_section` gives it.
        regularizer: {"type": "L1" | "L2", "factor": number} or None.
        clip_grad_by_norm, clip_grad_by_value: limit of the norm over all gradients, or of each value.
    """
    kind = optimizer.get("type", "Momentum")
    arguments: dict[str, Any] = {key: float(value) if type(value) is int else value  # of paddle, some are picky
                                 for key, value in optimizer.items() if key != "type"}
    if regularizer is not None:
        decay = REGULARIZERS[regularizer.get("type", "L2")]
        arguments["weight_decay"] = decay(float(regularizer.get("factor", 1e-4)))
    clip = None
    if clip_grad_by_norm is not None:
        clip = paddle.nn.ClipGradByGlobalNorm(clip_norm=float(clip_grad_by_norm))
    elif clip_grad_by_value is not None:
        clip = paddle.nn.ClipGradByValue(max=float(clip_grad_by_value))
    learning = [p for p in model.parameters() if not p.stop_gradient]
    try:
        return OPTIMIZERS[kind](learning_rate=schedule, parameters=learning, grad_clip=clip, **arguments)
    except TypeError as error:  # an argument that this version of Paddle lacks
        raise ConfigError(f"OptimizerBuilder.optimizer: {error}; paddle.optimizer.{kind} takes no such argument") \
            from error


def schedule_of(optimizer: Optimizer) -> Schedule:
    """The schedule that an optimizer of `make_optimizer` was given."""
    return optimizer._learning_rate  # Paddle, private: no public name


def masters_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """{paddle's name of a parameter: the float32 copy that the optimizer changes}, of those in half precision."""
    return optimizer._master_weights  # Paddle, private: no public name


def full_state(model: nn.Layer, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with these copies (see `masters_of`) in place of parameters in half precision."""
    return {name: masters.get(value.name, value) for name, value in model.state_dict().items()}


class EMA:
    """Moving average of every float entry of a model's state, in float32 (PaddleDetection's ModelEMA).

    Args:
        model: a paddle Layer.
        decay: the largest share of the old average that is kept.
        decay_type: how the share d grows with the step s: "threshold" min(decay, (1 + s) / (10 + s)), "exponential"
            decay * (1 - exp(-(s + 1) / 2000)), "normal" decay at once.

    The average starts at zero; but for "exponential", `weights` divides by 1 - d ** s to make up for it.
    """

    def __init__(self, model: nn.Layer, decay: float = 0.9998, decay_type: str = "threshold") -> None:
        if decay_type not in ("threshold", "normal", "exponential"):
            raise ConfigError(f"ema_decay_type: {decay_type!r}; allowed: threshold, normal, exponential")
        self.model = model
        self.decay = decay
        self.decay_type = decay_type
        self.step = 0
        self.average = {name: paddle.zeros(value.shape, dtype="float32")
                        for name, value in model.state_dict().items() if "float" in str(value.dtype)}

    def _share(self, step: int) -> float:
        if self.decay_type == "threshold":
            return min(self.decay, (1 + step) / (10 + step))
        if self.decay_type == "exponential":
            return self.decay * (1 - math.exp(-(step + 1) / 2000))
        return self.decay

    @paddle.no_grad()
    def update(self, masters: Mapping[str, Tensor] | None = None) -> None:
        """Take in the model's weights after an optimizer step; of those in half precision the copies (`masters_of`)."""
        share = self._share(self.step)
        state = full_state(self.model, masters or {})
        for name in self.average:
            self.average[name] = share * self.average[name] + (1 - share) * state[name].astype("float32")
        self.step += 1

    @paddle.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The state to evaluate and to save: {name: tensor}, the model's own before the first step."""
        state = dict(self.model.state_dict())
        if self.step == 0:
            return state
        scale = 1.0 if self.decay_type == "exponential" else 1 - self._share(self.step - 1) ** self.step
        state.update({name: value / scale for name, value in self.average.items()})
        return state
