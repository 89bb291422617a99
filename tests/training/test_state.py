"""A schedule goes on at the epoch that a checkpoint stands in, whatever its steps are now."""
import numpy as np
import pytest
from helpers import config

from ppgfl.training.state import new_state


def state_of(shapes, folder, steps, *more):
    return new_state(config(shapes, folder, *more), steps_per_epoch=steps, total_batch_size=None, seed=0)


@pytest.fixture(scope="module")
def saved(shapes, tmp_path_factory):
    """Epoch 3 of a run of 8 steps an epoch, 6 of them done."""
    folder = tmp_path_factory.mktemp("state")
    state = state_of(shapes, folder, 8)
    progress = state.progress
    progress.epoch, progress.done, progress.step, progress.sums = 2, 6, 22, {"loss": 12.0}
    state.optimizer._learning_rate.step(22)
    state.save(folder, "a")
    return folder / "a"


@pytest.mark.parametrize(("steps", "done", "sums"), [
    (8, 6, {"loss": 12.0}), (4, 3, {"loss": 6.0}), (16, 12, {"loss": 24.0}), (3, 2, {"loss": 4.0}), (1, 0, {})])
def test_within_an_epoch_by_pencil(shapes, tmp_path, saved, caplog, steps, done, sums):
    """6 of 8 steps are 3 of 4, 12 of 16, and a bit more than 2 of 3 or 0 of 1. The means of the losses stay: 2."""
    more = ["LearningRate.schedulers=[{name: CosineDecay, max_epochs: 4}]", "epoch=4"]
    state = state_of(shapes, tmp_path, steps, *more)
    state.load(saved)
    progress, schedule = state.progress, state.optimizer._learning_rate
    assert (progress.epoch, progress.done, progress.step, progress.steps_per_epoch) == (2, done, 22, steps)
    assert progress.sums == sums
    assert schedule.last_epoch == 2 * steps + done
    rate = 0.005 * (1 + np.cos(np.pi * (2 + done / steps) / 4)) / 2
    assert schedule() == pytest.approx(rate)
    words = f"an epoch had 8 steps before and has {steps} now"
    assert (words in caplog.text) == (steps != 8)
    assert steps == 8 or f"goes on at epoch 3, step {done + 1} of {steps}, with a rate of {rate:g}" in caplog.text


@pytest.mark.parametrize(("epoch", "done", "step", "said"), [(2, 6, 22, True), (2, 6, 14, False), (0, 3, 3, False)])
def test_a_checkpoint_without_the_number_of_steps(shapes, tmp_path, caplog, epoch, done, step, said):
    """As those of ppgfl 0.1: 22 steps less 6 in 2 epochs are 8 an epoch, 14 less 6 are 4; 3 in the first are 3."""
    state = state_of(shapes, tmp_path, 4)
    progress = state.progress
    progress.epoch, progress.done, progress.step, progress.steps_per_epoch = epoch, done, step, 0
    state.save(tmp_path, "old")
    state.load(tmp_path / "old")
    assert ("an epoch had 8 steps before and has 4 now" in caplog.text) == said
    assert state.optimizer._learning_rate.last_epoch == epoch * 4 + (3 if said else done)
