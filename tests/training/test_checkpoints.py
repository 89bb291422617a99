"""Optimizer states of other processes, earlier versions and PaddleDetection: each momentum comes to its own layer."""
import json
import pickle

import numpy as np
import paddle
import pytest
from helpers import GOLDEN, config, same

from ppgfl import CheckpointError, load_config, train
from ppgfl.build import build_model
from ppgfl.config.load import merge
from ppgfl.training.checkpoints import counted_anew
from ppgfl.training.state import new_state
from ppgfl.weights.checkpoint import NAME_TABLE

RECORDED = json.loads((GOLDEN / "parameter_names.json").read_text(encoding="utf-8"))


# --- names


def test_names_are_counted_as_if_the_model_came_first():
    assert counted_anew({"a": "conv2d_7.w_0", "a.bias": "conv2d_7.b_0", "b": "conv2d_12.w_0",
                         "c": "deform_conv2d_3.w_0", "alias": "conv2d_7.w_0", "buffer": "generated_tensor_5"}) == {
        "a": "conv2d_0.w_0", "a.bias": "conv2d_0.b_0", "b": "conv2d_1.w_0", "c": "deform_conv2d_0.w_0",
        "alias": "conv2d_0.w_0", "buffer": "generated_tensor_5"}


@pytest.mark.parametrize("case", RECORDED)
def test_every_parameter_has_paddledetections_name(case):
    """Made in another order, a layer would get another's momentum: benchmarks/exchange.py recorded the order."""
    cfg = merge(load_config(RECORDED[case]["config"], ["use_gpu=false"]), RECORDED[case]["overrides"])
    names = counted_anew({entry: value.name for entry, value in build_model(cfg).state_dict().items()})
    numbers = {name.partition(".")[0]: entry.rpartition(".")[0]
               for entry, name in reversed(names.items()) if "." in name}
    wanted = {f"{kind}_{i}": layer for kind, made in RECORDED[case]["layers"].items() for i, layer in enumerate(made)}
    assert numbers == wanted


# --- checkpoints


BOTTLENECKS = ("ResNet.depth=50", "ResNet.variant=b", "ResNet.num_stages=2", "ResNet.return_idx=[1]",
               "FPN.extra_stage=2")


def state_of(shapes, folder, *more):
    """A `TrainingState` of a small network with bottlenecks."""
    return new_state(config(shapes, folder, *BOTTLENECKS, *more), steps_per_epoch=4, total_batch_size=None, seed=0)


def step(state):
    """A step after which each layer has a momentum of its own."""
    learning = [value for value in state.model.parameters() if not value.stop_gradient]
    paddle.add_n([(value * (i + 1.0)).sum() for i, value in enumerate(learning)]).backward()
    state.optimizer.step()
    state.optimizer.clear_grad()


def momenta(state):
    """{entry: its momentum}, as it is after a step or waits for one after a resume."""
    filed = {**state.optimizer._accumulators_holder, **state.optimizer.state_dict()}
    return {entry: np.asarray(filed[f"{name}_velocity_0"]) for entry, name in state.parameter_names.items()
            if f"{name}_velocity_0" in filed}


def weights(state):
    return {entry: value.numpy() for entry, value in state.model.state_dict().items()}


def shortcut_first(names):
    """The names of versions that made a bottleneck's shortcut first: ppgfl's before, PaddleDetection's up to 2.6.0."""
    blocks = {entry.partition(".short.")[0] for entry in names if ".short." in entry}

    def old(entry, name):
        if entry.partition(".short.")[0].partition(".branch")[0] not in blocks:
            return name
        kind, _, number = name.partition(".")[0].rpartition("_")
        return f"{kind}_{int(number) + (-3 if '.short.' in entry else 1)}.{name.partition('.')[2]}"

    return {entry: old(entry, name) for entry, name in names.items()}


def write_paddledetection(state, stem, names, *, average=None, named=".pdparams"):
    """The files of a checkpoint as PaddleDetection writes them after two epochs of four steps; with an average, either
    of the two files of weights may hold the model's own names (`named`)."""
    computed = {entry: f"eager_tmp_{i}" for i, entry in enumerate(names)}
    files = {".pdparams": {**(average or weights(state)), NAME_TABLE: names if named == ".pdparams" else computed},
             ".pdopt": {**{f"{names[entry]}_velocity_0": (f"{names[entry]}_velocity_0", value)
                           for entry, value in momenta(state).items()},
                        "LR_Scheduler": {"last_epoch": 8, "last_lr": 0.123}, "last_epoch": 2}}
    if average:
        copied = {entry: f"{name}_deepcopy_7" for entry, name in names.items()}
        files[".pdema"] = {**weights(state), NAME_TABLE: copied if named == ".pdema" else computed}
    for suffix, content in files.items():
        stem.with_suffix(suffix).write_bytes(pickle.dumps(content, protocol=4))


def test_files_do_not_depend_on_what_the_process_made_before(shapes, tmp_path):
    for i in range(2):
        state = state_of(shapes, tmp_path)
        step(state)
        state.save(tmp_path, str(i))
    a, b = (pickle.loads((tmp_path / f"{i}.pdopt").read_bytes()) for i in range(2))
    assert "conv2d_0.w_0_velocity_0" in a
    assert set(a) == set(b)
    a, b = (x["ppgfl"]["parameter_names"] for x in (a, b))
    assert {entry for entry in a if a[entry] != b[entry]} <= {"head.distribution_project.project"}  # a buffer


def test_a_checkpoint_of_the_order_before_is_resumed_by_layer(shapes, tmp_path):
    state = state_of(shapes, tmp_path)
    step(state)
    state.save(tmp_path, "0")
    opt = pickle.loads((tmp_path / "0.pdopt").read_bytes())
    names = opt["ppgfl"]["parameter_names"]
    old = shortcut_first(names)
    assert old["backbone.res3.res3a.short.conv.weight"] == names["backbone.res3.res3a.branch2a.conv.weight"]
    for entry in momenta(state):
        del opt[f"{names[entry]}_velocity_0"]
    opt.update({f"{old[entry]}_velocity_0": value for entry, value in momenta(state).items()})
    opt["ppgfl"]["parameter_names"] = old
    (tmp_path / "0.pdopt").write_bytes(pickle.dumps(opt, protocol=4))

    resumed = state_of(shapes, tmp_path)
    resumed.load(tmp_path / "0")
    assert same(momenta(resumed), momenta(state))


@pytest.mark.parametrize("order", [dict, shortcut_first], ids=["2.7 and newer", "up to 2.6.0"])
def test_a_checkpoint_of_paddledetection_is_resumed_by_layer(shapes, tmp_path, order):
    state = state_of(shapes, tmp_path, "use_ema=false")
    step(state)
    write_paddledetection(state, tmp_path / "1", order(counted_anew(state.parameter_names)))
    resumed = state_of(shapes, tmp_path, "use_ema=false")
    resumed.load(tmp_path / "1")
    assert same(momenta(resumed), momenta(state))
    assert len(momenta(resumed)) > 40
    assert same(weights(resumed), weights(state))
    assert (resumed.progress.epoch, resumed.progress.step, resumed.progress.seed) == (2, 8, 0)
    for _ in range(8):
        state.optimizer._learning_rate.step()
    assert resumed.optimizer.get_lr() == state.optimizer.get_lr()  # of this config, not of the file
    step(resumed)  # Paddle takes the momenta in this step
    assert not same(momenta(resumed), momenta(state))


@pytest.mark.parametrize("named", [".pdparams", ".pdema"])
def test_its_average_of_the_weights_goes_on(shapes, tmp_path, named):
    state = state_of(shapes, tmp_path)
    step(state)
    average = {entry: value + np.float32(1) for entry, value in weights(state).items()}
    write_paddledetection(state, tmp_path / "1", counted_anew(state.parameter_names), average=average, named=named)
    resumed = state_of(shapes, tmp_path)
    resumed.load(tmp_path / "1")
    assert resumed.ema.step == 8
    assert same({name: value.numpy() for name, value in resumed.ema.average.items()}, average)
    assert same(momenta(resumed), momenta(state))
    with pytest.raises(CheckpointError, match="was saved with an EMA; set use_ema to true"):
        state_of(shapes, tmp_path, "use_ema=false").load(tmp_path / "1")


def test_training_goes_on_from_a_checkpoint_of_paddledetection(shapes, tmp_path, caplog):
    more = (*BOTTLENECKS, "use_ema=false")
    state = state_of(shapes, tmp_path, "use_ema=false")
    step(state)
    (tmp_path / "theirs").mkdir()
    write_paddledetection(state, tmp_path / "theirs" / "1", counted_anew(state.parameter_names))
    with caplog.at_level("INFO"):
        result = train(config(shapes, tmp_path, "epoch=3", *more), resume=str(tmp_path / "theirs" / "1.pdopt"))
    assert result["epoch"] == 3
    assert "resumed from" in caplog.text
    opt = pickle.loads((tmp_path / "run" / "model_final.pdopt").read_bytes())
    assert opt["last_epoch"] == 3
    assert opt["LR_Scheduler"]["last_epoch"] == 12


def test_what_fits_no_layer_is_refused(shapes, tmp_path):
    def refused(text, *more):
        fresh = state_of(shapes, tmp_path, "use_ema=false", *more)
        before = weights(fresh)
        with pytest.raises(CheckpointError, match=text) as error:
            fresh.load(tmp_path / "1")
        assert "\n" not in str(error.value)
        assert same(weights(fresh), before)

    state = state_of(shapes, tmp_path, "use_ema=false")
    step(state)
    names = counted_anew(state.parameter_names)
    write_paddledetection(state, tmp_path / "1", names)
    params = pickle.loads((tmp_path / "1.pdparams").read_bytes())
    opt = pickle.loads((tmp_path / "1.pdopt").read_bytes())

    def write(suffix, content):
        (tmp_path / f"1{suffix}").write_bytes(pickle.dumps(content, protocol=4))

    write(".pdparams", {**params, NAME_TABLE: shortcut_first(names)})  # not those of its .pdopt
    refused(r"1.pdopt: its state of the optimizer is not that of this model's layers \(\d+ of \d+ parts fit no layer")
    write(".pdparams", {key: value for key, value in params.items() if key != NAME_TABLE})
    refused("1.pdparams: does not name the parameters as .*1.pdopt does")
    write(".pdparams", params)
    write(".pdopt", {**opt, "conv2d_999.w_0_velocity_0": np.zeros(3, np.float32)})
    refused("does not name the parameters")
    some = next(key for key in opt if key.endswith("_velocity_0"))
    write(".pdopt", {key: value for key, value in opt.items() if key != some})
    refused("1 layers that learn have none")
    write(".pdopt", {"last_epoch": 2})
    refused("was written by neither ppgfl nor PaddleDetection")
    write(".pdopt", opt)
    refused("does not fit the model", "ResNet.depth=34")
    (tmp_path / "1.pdparams").unlink()
    refused("1.pdparams: cannot be read")


def test_float32_copies_of_weights_become_the_weights(shapes, tmp_path):
    """Paddle keeps them, with O2 on a GPU, below its optimizer's state, and the momentum under names of theirs."""
    state = state_of(shapes, tmp_path, "use_ema=false")
    step(state)
    state.save(tmp_path, "0")
    saved = pickle.loads((tmp_path / "0.pdopt").read_bytes())
    names = saved["ppgfl"]["parameter_names"]
    copies = {names[name]: value.numpy() + 1 for name, value in state.model.state_dict().items() if name in
              {key for key, parameter in state.model.named_parameters() if not parameter.stop_gradient}}
    changed = {key.replace("_velocity_0", "_fp32_master_0_velocity_0"): value for key, value in saved.items()}
    (tmp_path / "0.pdopt").write_bytes(pickle.dumps({**changed, "master_weights": copies}))
    resumed = state_of(shapes, tmp_path, "use_ema=false")
    resumed.load(tmp_path / "0")
    for name, value in resumed.model.state_dict().items():
        before = state.model.state_dict()[name].numpy()
        np.testing.assert_array_equal(value.numpy(), copies.get(names[name], before))
    step(resumed)
    resumed.save(tmp_path, "1")
    assert pickle.loads((tmp_path / "1.pdopt").read_bytes()).keys() == saved.keys()
