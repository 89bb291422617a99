import inspect
import math

import numpy as np
import paddle
import pytest

from ppgfl import ConfigError, build, load_config
from ppgfl.config import keys
from ppgfl.optim import (
    EMA,
    OPTIMIZERS,
    CosineDecay,
    ExpWarmup,
    LinearWarmup,
    PiecewiseDecay,
    make_optimizer,
    make_schedule,
)


def rates(schedule, steps):
    got = []
    for _ in range(steps):
        got.append(schedule())
        schedule.step()
    return got


def test_piecewise_with_linear_warmup_by_pencil():
    schedule = make_schedule(1.0, PiecewiseDecay(gamma=0.1, milestones=[2, 3]), LinearWarmup(4, 0.2), 5)
    # warm-up 0.2 + 0.8 * step / 4 until step 4; then 1 until epoch 2, 0.1 until epoch 3, 0.01 after it
    np.testing.assert_allclose(rates(schedule, 17), [0.2, 0.4, 0.6, 0.8, *[1.0] * 6, *[0.1] * 5, 0.01, 0.01])


def test_a_warmup_longer_than_the_milestones_goes_to_the_end_first():
    schedule = make_schedule(1.0, PiecewiseDecay(gamma=0.1, milestones=[1, 2]), LinearWarmup(6, 0.0), 2)
    np.testing.assert_allclose(rates(schedule, 8), [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0.01, 0.01])


def test_gamma_as_a_list_and_values():
    decay = PiecewiseDecay(gamma=[0.5, 0.2], milestones=[1, 2])
    np.testing.assert_allclose(rates(make_schedule(2.0, decay, None, 1), 4), [2, 1, 0.4, 0.4])
    decay = PiecewiseDecay(values=[3.0, 1.0, 0.5], milestones=[1, 2])
    np.testing.assert_allclose(rates(make_schedule(2.0, decay, None, 1), 4), [3, 1, 0.5, 0.5])
    with pytest.raises(ConfigError, match="milestones need as many"):
        PiecewiseDecay(gamma=[0.5], milestones=[1, 2])
    with pytest.raises(ConfigError, match=r"milestones: \[11, 8\]; they must rise"):
        PiecewiseDecay(milestones=[11, 8])


def test_cosine_by_formula():
    schedule = make_schedule(2.0, CosineDecay(max_epochs=3, min_lr_ratio=0.1, last_plateau_epochs=1),
                             LinearWarmup(2, 0.5), 4)
    got = rates(schedule, 14)
    np.testing.assert_allclose(got[:3], [1.0, 1.5, 2.0])
    for step in range(2, 8):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 2) / (12 - 2 - 4)))
        assert got[step] == pytest.approx(0.2 + 1.8 * cosine)
    np.testing.assert_allclose(got[8:], 0.2)


def test_exponential_warmup_and_epochs():
    schedule = make_schedule(1.0, CosineDecay(max_epochs=1000), ExpWarmup(epochs=2, power=2), 5)
    np.testing.assert_allclose(rates(schedule, 11)[:11], [(i / 10) ** 2 for i in range(10)] + [1.0])
    assert LinearWarmup(steps=3, epochs=2).length(5) == 10
    assert LinearWarmup(steps=3, epochs=2, epochs_first=False).length(5) == 3


def test_the_rate_is_scaled_only_when_the_batch_is_given(caplog):
    cfg, layer = load_config("gfl_r50_fpn_1x_coco"), paddle.nn.Linear(1, 1)

    def base(**options):
        return build.build_optimizer(cfg, layer, steps_per_epoch=10, **options)._learning_rate.base_lr

    assert base() == 0.01
    with caplog.at_level("INFO"):
        assert base(total_batch_size=2) == pytest.approx(0.00125)
    assert "lr 0.01 for 16 images -> 0.00125 for 2" in caplog.text
    assert base(total_batch_size=16) == 0.01
    cfg["LearningRate"]["total_batch_size"] = 4
    assert base(total_batch_size=2) == pytest.approx(0.005)


def one_step(section, gradient=(3.0, 4.0), decayed=True):
    """The change that one step makes to the parameter (1, 1) with a rate of 1."""
    layer = paddle.nn.Layer()
    attr = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(1.0),
                            regularizer=None if decayed else paddle.regularizer.L2Decay(0.0))
    layer.weight = layer.create_parameter([2], attr=attr)
    optimizer = make_optimizer(layer, make_schedule(1.0, PiecewiseDecay(), None, 100), **section)
    (layer.weight * paddle.to_tensor(np.array(gradient, np.float32))).sum().backward()
    optimizer.step()
    return layer.weight.numpy() - 1


def test_optimizers_by_pencil():
    np.testing.assert_allclose(one_step({"optimizer": {"type": "SGD"}}), [-3, -4])
    np.testing.assert_allclose(one_step({"optimizer": {"type": "Momentum", "momentum": 0.9}}), [-3, -4])
    l2 = {"optimizer": {"type": "SGD"}, "regularizer": {"type": "L2", "factor": 0.5}}
    np.testing.assert_allclose(one_step(l2), [-3.5, -4.5])
    np.testing.assert_allclose(one_step(l2, decayed=False), [-3, -4])  # as normalisation parameters
    np.testing.assert_allclose(one_step({"optimizer": {"type": "SGD"}, "clip_grad_by_norm": 1.0}), [-0.6, -0.8])
    np.testing.assert_allclose(one_step({"optimizer": {"type": "SGD"}, "clip_grad_by_value": 3.5}), [-3, -3.5])
    np.testing.assert_allclose(one_step({"optimizer": {"type": "Adam"}}), [-1, -1], atol=1e-4)
    np.testing.assert_allclose(one_step({"optimizer": {"type": "AdamW", "weight_decay": 0.1}}), [-1.1, -1.1], atol=1e-4)


@pytest.mark.parametrize(("section", "found"), [
    ({"optimizer": {"type": "Adamm"}}, "did you mean .Adam"), ({"optimizer": {"momentumm": 1}}, "momentumm"),
    ({"optimizer": {}, "regularizer": {"type": "L3"}}, "allowed: L1, L2"),
    ({"optimizer": {"type": "AdamW"}, "regularizer": {"type": "L2"}}, "AdamW decays weights itself"),
])
def test_bad_sections(section, found):
    with pytest.raises(ConfigError, match=found):
        build.build_optimizer({"OptimizerBuilder": section}, paddle.nn.Linear(1, 1), steps_per_epoch=1)


def average_after(values, **options):
    layer = paddle.nn.Linear(1, 1)
    ema = EMA(layer, **options)
    for value in values:
        layer.weight.set_value(np.full((1, 1), value, np.float32))
        ema.update()
    return ema.weights()["weight"].item()


def test_moving_averages_by_pencil():
    assert average_after([5.0]) == pytest.approx(5.0)
    # threshold: shares 1/10 and 2/11: (2/11 * 0.9 * 5 + 9/11 * 8) / (1 - (2/11)^2)
    assert average_after([5.0, 8.0]) == pytest.approx((2 / 11 * 0.9 * 5 + 9 / 11 * 8) / (1 - (2 / 11) ** 2))
    assert average_after([5.0, 8.0], decay_type="normal", decay=0.5) == pytest.approx((0.25 * 5 + 0.5 * 8) / 0.75)
    d1, d2 = (0.5 * (1 - math.exp(-n / 2000)) for n in (1, 2))
    exponential = d2 * (1 - d1) * 5 + (1 - d2) * 8
    assert average_after([5.0, 8.0], decay_type="exponential", decay=0.5) == pytest.approx(exponential)
    with pytest.raises(ConfigError, match="ema_decay_type"):
        average_after([], decay_type="other")


def test_before_the_first_step_the_average_is_the_model():
    layer = paddle.nn.Linear(1, 1)
    assert EMA(layer).weights()["weight"] is layer.state_dict()["weight"]


@pytest.mark.parametrize("kind", keys.OPTIMIZERS)
def test_keys_of_an_optimizer_are_arguments_of_paddles_class(kind):
    assert keys.OPTIMIZERS.keys() == OPTIMIZERS.keys()
    taken = inspect.signature(OPTIMIZERS[kind]).parameters
    for key, known in keys.OPTIMIZERS[kind].items():
        if key == "amsgrad" and key not in taken:  # Paddle 2.6
            with pytest.raises(ConfigError, match="takes no such argument"):
                one_step({"optimizer": {"type": kind, "amsgrad": True}})
            continue
        default = taken[key].default
        assert default == known.default or key == "multi_precision", key
