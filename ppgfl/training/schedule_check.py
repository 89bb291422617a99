"""What a schedule will not do in this run although its config looks as if it would: said before the first step."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config.keys import section
from ..optim import CosineDecay, PiecewiseDecay, Schedule


def findings(cfg: dict[str, Any], schedule: Schedule, *, epochs: int, first: int = 0) -> list[str]:
    """A line about each, with the numbers, the key and the mend.

    Args:
        cfg: the config, which says how the keys of the schedule are spelled in it.
        epochs: of the whole run.
        first: epochs that are done already.
    """
    found = [*_of_warmup(cfg, schedule, epochs), *_of_decay(cfg, schedule, epochs)]
    if first < epochs and not any("nothing is learnt" in line for line in found):
        found += _of_rate_zero(schedule, epochs, first)
    return found


def key_of(cfg: dict[str, Any], place: int, key: str) -> str:
    """How `-o` sets a key of the decay (place 0) or the warm-up (1): "LearningRate.schedulers.0.max_epochs" where it
    stands in the list, else "CosineDecay.max_epochs"."""
    entry = section(cfg, "LearningRate")["schedulers"][place]
    if isinstance(entry, dict) and key in entry:
        return f"LearningRate.schedulers.{place}.{key}"
    return f"{entry['name'] if isinstance(entry, dict) else entry}.{key}"


def _of_warmup(cfg: dict[str, Any], schedule: Schedule, epochs: int) -> Iterator[str]:
    warmup, length, steps = schedule.warmup, schedule.warmup_steps, epochs * schedule.steps_per_epoch
    if warmup is None:
        return
    key = key_of(cfg, 1, "epochs" if warmup.in_epochs else "steps")
    if length > steps:
        yield (f"{key}: the warm-up takes {length} steps and the whole run has {steps} (epoch: {epochs}, of "
               f"{schedule.steps_per_epoch} each), so the rate never gets beyond {schedule.factor(steps - 1):.3g} of "
               "base_lr; set it lower")
        return
    milestones = schedule.decay.milestones if isinstance(schedule.decay, PiecewiseDecay) else ()
    inside = [milestone for milestone in milestones if 0 < milestone * schedule.steps_per_epoch < length]
    if inside:
        yield (f"{key}: the warm-up takes {length} steps, and the milestones {inside} come before its end (an epoch "
               f"has {schedule.steps_per_epoch}); set it lower")


def _of_decay(cfg: dict[str, Any], schedule: Schedule, epochs: int) -> Iterator[str]:
    decay = schedule.decay
    if isinstance(decay, CosineDecay):
        yield from _of_cosine(cfg, schedule, decay, epochs)
        return
    milestones = list(decay.milestones)
    key = key_of(cfg, 0, "milestones")
    late = [milestone for milestone in milestones if milestone >= epochs]
    if late:
        yield (f"{key}: {late} never come, since the run has {epochs} epochs; set them lower than that, or epoch "
               "higher")


def _of_cosine(cfg: dict[str, Any], schedule: Schedule, decay: CosineDecay, epochs: int) -> Iterator[str]:
    key, steps = key_of(cfg, 0, "max_epochs"), schedule.steps_per_epoch
    end = decay.max_epochs - decay.last_plateau_epochs
    lowest = f"{decay.min_lr_ratio:g} of base_lr" if decay.min_lr_ratio else "0, and nothing is learnt any more"
    if schedule.warmup_steps > epochs * steps:  # it does not come that far, as is said already
        return
    if end * steps <= schedule.warmup_steps:
        yield (f"{key}: {decay.max_epochs}, less last_plateau_epochs ({decay.last_plateau_epochs}), is {end * steps} "
               f"steps, and the warm-up takes {schedule.warmup_steps}: after it the rate is {lowest}; set max_epochs "
               "higher or the warm-up shorter")
    elif decay.max_epochs < epochs:
        yield (f"{key}: {decay.max_epochs}, but the run has {epochs} epochs: from epoch {decay.max_epochs + 1} on the "
               f"rate is {lowest}; set it to {epochs}")
    elif end > epochs:
        yield (f"{key}: {decay.max_epochs}, but the run ends after {epochs} epochs, at "
               f"{schedule.factor(epochs * steps - 1):.3g} of base_lr; set it to {epochs} for all of the cosine")


def _of_rate_zero(schedule: Schedule, epochs: int, first: int) -> Iterator[str]:
    """Epochs that begin and end at a rate of 0, for whatever reason."""
    steps = schedule.steps_per_epoch
    at_zero = [epoch + 1 for epoch in range(first, epochs)
               if epoch * steps >= schedule.warmup_steps
               and schedule.factor(epoch * steps) == schedule.factor((epoch + 1) * steps - 1) == 0]
    if at_zero:
        yield (f"LearningRate.schedulers: the rate is 0 in {len(at_zero)} of {epochs} epochs, the first of them "
               f"{at_zero[0]}, and nothing is learnt there; change the decay")
