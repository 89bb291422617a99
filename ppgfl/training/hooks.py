"""Hooks: objects that a training run tells what happens. A dashboard is one, and so is what a user hands to `train`."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np

from ..errors import ConfigError, TrainingError, nearest
from ..system import dist
from ..system.log import logger
from .run_folder import reason

if TYPE_CHECKING:
    from .setup import Run

Method = Literal["on_start", "on_step", "on_epoch", "on_evaluation", "on_end"]


@dataclass(frozen=True)
class Event:
    """What each method of a hook is called with.

    Attributes:
        run: everything that the loop uses: `cfg`, `folder.path`, `state.model`, `epochs`, `images_per_step`, ...
        step: optimizer steps so far, also those before a resume.
        epoch: finished epochs.
        values: {name: number}. on_step: those of the log line, the means since the line before, and {} where no line is
            due, since reading them makes the device wait; on_epoch: the row of results.csv; on_evaluation and on_end:
            the metrics, {} where the last epoch was not evaluated.
        per_class: of on_evaluation: class name -> AP; -1 for a class without a box.
        pictures: draws {name: [H, W, 3] uint8 BGR}: the first batches, what was found on the first images of the
            validation set, the charts of the report.
        error: of on_end: the exception that ended the run, None where it has finished.
    """

    run: Run
    step: int
    epoch: int
    values: Mapping[str, float]
    per_class: Mapping[str, float]
    pictures: Callable[[], dict[str, np.ndarray]]
    error: BaseException | None


class Logger(Protocol):
    """A hook of ppgfl's own. `name` is for people."""

    name: str


class Hooks:
    """Tells process 0's loggers, of which one that fails is switched off with a warning, and then the hooks of the
    user, whose errors end the run: what they do may be what the run is for.

    Raises ConfigError for a hook that would never be called.
    """

    def __init__(self, loggers: Iterable[Logger] = (), own: Sequence[object] = ()) -> None:
        if not isinstance(own, (list, tuple)):
            raise ConfigError(f"hooks: {own!r}; it must be a list of objects")
        for hook in own:
            _check(hook)
        self.loggers = list(loggers)
        self.own = own

    def tell(self, method: Method, event: Event) -> None:
        """Call a method of all hooks that have it. Raises TrainingError when a user's hook fails, but for an on_end
        after the error that ended the run."""
        if not dist.is_main():
            return
        for each in tuple(self.loggers):
            try:
                _call(each, method, event)
            except Exception as error:  # whatever a dashboard raises, training matters more
                logger.warning("%s failed and is switched off for this run: %s", each.name, reason(error))
                self.loggers.remove(each)
        for hook in self.own:
            try:
                _call(hook, method, event)
            except Exception as error:
                what = f"hooks: {type(hook).__name__}.{method} failed: {reason(error)}"
                if event.error is None:
                    raise TrainingError(f"{what}; the checkpoints in {event.run.folder.path} are intact, resume=\"\" "
                                        "goes on from the newest") from error
                logger.warning(what)


def _call(hook: object, method: Method, event: Event) -> None:
    function = getattr(hook, method, None)
    if function is not None:
        function(event)


def _check(hook: object) -> None:
    if isinstance(hook, type):
        raise ConfigError(f"hooks: {hook.__name__} is a class; give an object of it, {hook.__name__}()")
    allowed = get_args(Method)
    found = [name for name in dir(hook) if name.startswith("on_") and callable(getattr(hook, name))]
    for name in found:
        if name not in allowed:
            raise ConfigError(f"hooks: {type(hook).__name__}.{name} is never called; {nearest(name, allowed)}")
    if not found:
        raise ConfigError(f"hooks: {hook!r} has none of the methods {', '.join(allowed)}")
