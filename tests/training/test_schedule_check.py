"""What a schedule will not do is said before the first step, with pencil numbers; and following the line mends it."""
import pytest

from ppgfl import load_config
from ppgfl.config.load import shipped_configs
from ppgfl.optim import CosineDecay, ExpWarmup, LinearWarmup, PiecewiseDecay, make_schedule
from ppgfl.training.schedule_check import findings, key_of

CFG = {"LearningRate": {"schedulers": [
    {"name": "decay", "max_epochs": 1, "milestones": [1]}, {"name": "warm-up", "steps": 1, "epochs": 1}]}}


def found(decay, warmup, *, epochs, steps=10, first=0):
    return findings(CFG, make_schedule(1.0, decay, warmup, steps), epochs=epochs, first=first)


def piecewise(*milestones, **more):
    return PiecewiseDecay(milestones=milestones, gamma=[0.1] * len(milestones), **more)


@pytest.mark.parametrize(("decay", "warmup", "epochs", "words"), [
    (piecewise(), LinearWarmup(30, 0.0), 3, None),
    (piecewise(), LinearWarmup(31, 0.0), 3, "schedulers.1.steps: the warm-up takes 31 steps and the whole run has 30 "
                                            "(epoch: 3, of 10 each), so the rate never gets beyond 0.935 of base_lr"),
    (piecewise(), LinearWarmup(5, 0.0, epochs=4), 3, "schedulers.1.epochs: the warm-up takes 40 steps"),
    (piecewise(), LinearWarmup(5, 0.0, epochs=4, epochs_first=False), 3, None),
    (piecewise(), ExpWarmup(500), 3, "never gets beyond 0.00336 of base_lr"),
    (piecewise(use_warmup=False), LinearWarmup(500), 3, None),
    (piecewise(2), LinearWarmup(20), 3, None),
    (piecewise(1, 2), LinearWarmup(11), 3, "the warm-up takes 11 steps, and the milestones [1] come before its end (an "
                                           "epoch has 10)"),
    (piecewise(1, 2), None, 3, None),
    (piecewise(1, 3, 4), None, 3, "schedulers.0.milestones: [3, 4] never come, since the run has 3 epochs"),
    (PiecewiseDecay(values=[1.0, 0.0], milestones=[1]), None, 3, "the rate is 0 in 2 of 3 epochs, the first of them 2"),
    (CosineDecay(3), LinearWarmup(5), 3, None),
    (CosineDecay(2), None, 3, "max_epochs: 2, but the run has 3 epochs: from epoch 3 on the rate is 0, and"),
    (CosineDecay(2, min_lr_ratio=0.05), None, 3, "from epoch 3 on the rate is 0.05 of base_lr; set it to 3"),
    (CosineDecay(4), None, 3, "max_epochs: 4, but the run ends after 3 epochs, at 0.175 of base_lr; set it to 3"),
    (CosineDecay(4, last_plateau_epochs=1, min_lr_ratio=0.1), None, 3, None),
    (CosineDecay(3, last_plateau_epochs=1), None, 3, "the rate is 0 in 1 of 3 epochs, the first of them 3"),
    (CosineDecay(3, last_plateau_epochs=1, min_lr_ratio=0.1), None, 3, None),
    (CosineDecay(3, last_plateau_epochs=3), None, 3, "last_plateau_epochs (3), is 0 steps, and the warm-up takes 0"),
    (CosineDecay(1), LinearWarmup(10), 3, "is 10 steps, and the warm-up takes 10: after it the rate is 0"),
])
def test_findings_by_pencil(decay, warmup, epochs, words):
    lines = found(decay, warmup, epochs=epochs)
    assert len(lines) == (words is not None), lines
    assert words is None or words in lines[0], lines


def test_the_numbers_of_the_lines_are_those_of_the_schedule():
    """31 steps from 0: the last of 30 is at 29/31. A cosine of 40 steps: step 29 is at (1 + cos 130.5 degrees) / 2."""
    assert make_schedule(1.0, piecewise(), LinearWarmup(31, 0.0), 10).factor(29) == pytest.approx(29 / 31)
    assert make_schedule(1.0, CosineDecay(4), None, 10).factor(29) == pytest.approx((1 - 0.649448) / 2, rel=1e-5)


def test_several_findings_are_a_line_each_and_epochs_that_are_done_do_not_count():
    lines = found(piecewise(4, 5), LinearWarmup(60), epochs=5)
    assert [line.split(":")[0].rsplit(".", 1)[1] for line in lines] == ["steps", "milestones"]
    at_zero = PiecewiseDecay(values=[0.0, 1.0], milestones=[1])
    assert len(found(at_zero, None, epochs=3)) == 1
    assert found(at_zero, None, epochs=3, first=1) == []


@pytest.mark.parametrize("path", [path for folder in shipped_configs() for path in sorted(folder.rglob("*.yml"))
                                  if path.parent.name in ("gfl", "demo")], ids=lambda path: path.stem)
def test_shipped_configs_have_none(path):
    from ppgfl import build
    from ppgfl.make import make

    cfg = load_config(path)
    schedulers = cfg["LearningRate"]["schedulers"]
    made = [make(cfg, table, value, "") for table, value in zip((build.DECAYS, build.WARMUPS), schedulers)]
    steps = 30 if path.parent.name == "demo" else 7330
    assert findings(cfg, make_schedule(0.01, *made, steps), epochs=cfg["epoch"]) == []


def test_keys_are_named_where_they_stand():
    cfg = {"LearningRate": {"schedulers": ["CosineDecay", {"name": "LinearWarmup", "start_factor": 0.1}]}}
    assert key_of(cfg, 0, "max_epochs") == "CosineDecay.max_epochs"
    assert key_of(cfg, 1, "steps") == "LinearWarmup.steps"
    assert key_of(CFG, 0, "max_epochs") == "LearningRate.schedulers.0.max_epochs"
    assert key_of({}, 1, "steps") == "LinearWarmup.steps"
