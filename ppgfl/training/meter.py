"""Times, averages and logs the steps of an epoch, and stops at a loss that is not finite."""
from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import paddle
from paddle import Tensor

from ..errors import TrainingError
from ..system import dist
from ..system.log import logger


class Meter:
    """Collects steps and reads their losses from the device only every `log_iter` of them.

    Args:
        epoch: index of this epoch; `epochs` of them make the run.
        steps: optimizer steps of an epoch.
        images_per_step: over all processes.
        at_once: log the first step too, so that whoever has started it sees that it runs and how long it takes.
        done, sums: what `pause` returned, to go on within an epoch.
    """

    def __init__(self, *, epoch: int, epochs: int, steps: int, images_per_step: int, log_iter: int,
                 at_once: bool = False, done: int = 0, sums: Mapping[str, float] | None = None) -> None:
        self.epoch = epoch
        self.epochs = epochs
        self.steps = steps
        self.images_per_step = images_per_step
        self.log_iter = log_iter
        self.at_once = at_once
        self.done = done
        self.sums = dict(sums or {})
        self._open_window()

    def _open_window(self) -> None:
        self.window: list[tuple[int, list[Tensor], Mapping[str, Tensor]]] = []
        self.data_seconds = 0.0
        self.started = self.last = time.perf_counter()

    def data_arrived(self) -> None:
        """Call between fetching a step's batches and working on them."""
        self.data_seconds += time.perf_counter() - self.last

    def add(self, step: int, lr: float, batches: Sequence[Mapping[str, Tensor]],
            losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Take in a finished step.

        Args:
            step: number of optimizer steps so far in the run.
            batches: what it worked on; {"im_id"} is remembered.
            losses: {name: tensor}.

        Returns: {name: number} of the line when one was due, else {}.
        Raises: TrainingError: a loss of the logged steps is not finite.
        """
        self.window.append((step, [batch["im_id"] for batch in batches], losses))
        self.done += 1
        self.last = time.perf_counter()
        if len(self.window) < self.log_iter and self.done < self.steps:
            if self.at_once:
                self._log(lr, self._means())
            self.at_once = False
            return {}
        self.at_once = False
        means = self._read_losses()
        rate = self._log(lr, means)
        self._open_window()
        return {"lr": lr, "images_per_s": rate, **means}

    def pause(self) -> tuple[int, dict[str, float]]:
        """Steps done in this epoch and the sums of their losses. Raises TrainingError as `add` does."""
        if self.window:
            self._read_losses()
            self._open_window()
        return self.done, self.sums

    def means(self) -> dict[str, float]:
        """The mean of each loss over the epoch and all processes."""
        return {name: value / self.done for name, value in self.sums.items()}

    def _read_losses(self) -> dict[str, float]:
        means = self._means()
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * len(self.window)
        return means

    def _means(self) -> dict[str, float]:
        names = list(self.window[0][2])
        values = paddle.stack([paddle.stack([losses[name] for name in names]) for _, _, losses in self.window])
        for (step, images, _), row in zip(self.window, values.numpy()):
            if not np.isfinite(row).all():
                ids = [image for ids in images for image in np.asarray(ids).ravel().tolist()]
                terms = ", ".join(f"{name} {value}" for name, value in zip(names, row))
                raise TrainingError(
                    f"a loss is not finite in epoch {self.epoch + 1}, step {step}: {terms}; image ids {ids}; the last "
                    "checkpoint is intact. Lower LearningRate.base_lr, lengthen the warm-up, or look at these images")
        return dict(zip(names, dist.mean(values.mean(axis=0)).numpy().astype(np.float64).tolist()))

    def _log(self, lr: float, means: Mapping[str, float]) -> float:
        seconds = (time.perf_counter() - self.started) / len(self.window)
        left = seconds * (self.steps * (self.epochs - self.epoch) - self.done)
        rate = self.images_per_step / seconds
        terms = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        logger.info("epoch %d/%d [%d/%d] eta %s lr %.6f %s data %.3f s batch %.3f s %.2f images/s", self.epoch + 1,
                    self.epochs, self.done, self.steps, _clock(left), lr, terms,
                    self.data_seconds / len(self.window), seconds, rate)
        return rate


def _clock(seconds: float) -> str:
    hours, rest = divmod(math.ceil(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
