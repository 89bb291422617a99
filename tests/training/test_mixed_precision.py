"""--amp: what is in half precision and what is not, checkpoints of O2, and no wait for the device.

There is no GPU here; `emulated_gpu` says what is real and what is not."""
import collections
import pickle

import emulated_gpu
import numpy as np
import paddle
import pytest
from helpers import config, rows, same

from ppgfl import build_model
from ppgfl.data.batch import collate
from ppgfl.data.targets import Gt2GFLTarget
from ppgfl.errors import ConfigError
from ppgfl.evaluation.evaluate import evaluate
from ppgfl.model.head import Integral
from ppgfl.precision import Precision, precision_of
from ppgfl.training.state import new_state
from ppgfl.training.step import make_step
from ppgfl.training.train import train
from ppgfl.weights.checkpoint import NAME_TABLE


@pytest.fixture
def gpu(monkeypatch):
    emulated_gpu.switch_on(monkeypatch)


def load(path):
    return pickle.loads(path.read_bytes())


def batches(cfg, count=2):
    rng, made = np.random.default_rng(0), []
    targets = Gt2GFLTarget(cfg["num_classes"] or 80, downsample_ratios=[8, 16, 32], grid_cell_scale=8)
    for _ in range(count):
        corners = rng.uniform(0, 40, (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(15, 50, (6, 2))], 1).astype("float32")
        sample = {"im_id": 0, "image": rng.normal(size=(3, 64, 96)).astype("float32"), "gt_bbox": boxes,
                  "gt_class": rng.integers(0, 3, 6)}
        made.append({key: paddle.to_tensor(value) for key, value in collate(targets([sample])).items()})
    return made


def step_of(cfg, **kwargs):
    state = new_state(cfg, steps_per_epoch=10, total_batch_size=None, seed=0)
    state.model.train()
    return state, make_step(cfg, state, **{"precision": precision_of(cfg), **kwargs})


def watch(monkeypatch, *classes):
    """[(name of a class, level of mixed precision)] of each call of its layers from now on."""
    seen = []

    def watched(name, real):
        def forward(self, *arguments):
            seen.append((name, paddle.base.framework._dygraph_tracer()._amp_level.name))
            return real(self, *arguments)

        return forward

    for cls in classes:
        monkeypatch.setattr(cls, "forward", watched(cls.__name__, cls.forward))
    return seen


# --- what is float32

@pytest.mark.parametrize("name", ["shapes_gfl_1x", "shapes_gflv2"])
def test_o2_leaves_the_integral_and_batchnorm_in_float32(shapes, tmp_path, gpu, name):
    cfg = config(shapes, tmp_path, "amp=true", "amp_level=O2", "num_classes=3", name=name)
    state, step = step_of(cfg)
    halves = {entry for entry, value in state.model.state_dict().items() if value.dtype == paddle.float16}
    assert "head.gfl_head_cls.weight" in halves
    assert not any("project" in entry or (".norm." in entry and "tower" not in entry) for entry in halves)
    assert all(np.isfinite(value.item()) for value in step(batches(cfg)).values())
    masters = state.optimizer.state_dict()["master_weights"]
    assert {value.dtype for value in masters.values()} == {paddle.float32}


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_losses_are_computed_without_mixed_precision(shapes, tmp_path, gpu, monkeypatch, level):
    """matmul is on the list of what is computed in float16, so the integral would be."""
    seen = watch(monkeypatch, Integral, paddle.nn.Conv2D)
    cfg = config(shapes, tmp_path, "amp=true", f"amp_level={level}", "num_classes=3")
    _, step = step_of(cfg)
    step(batches(cfg))
    assert set(seen) == {("Integral", "O0"), ("Conv2D", level)}


def test_eval_computes_the_network_in_mixed_precision_and_boxes_without(shapes, tmp_path, gpu, monkeypatch):
    cfg = config(shapes, tmp_path)
    paddle.save(build_model(cfg).state_dict(), str(tmp_path / "w.pdparams"))
    seen = watch(monkeypatch, Integral, paddle.nn.Conv2D)
    for amp, level in ((None, "O0"), ("O1", "O1"), ("O2", "O2")):
        seen.clear()
        evaluate(cfg, weights=tmp_path / "w.pdparams", output_dir=tmp_path, amp=amp)
        assert set(seen) == {("Integral", "O0"), ("Conv2D", level)}
    seen.clear()
    evaluate({**cfg, "amp": True}, weights=tmp_path / "w.pdparams", output_dir=tmp_path)
    assert ("Conv2D", "O1") in seen
    with pytest.raises(ConfigError, match="engine: static; a graph computes as it was made"):
        evaluate({**cfg, "engine": "static"}, weights=tmp_path / "w.pdparams", output_dir=tmp_path, amp="O1")


def test_on_a_cpu_a_line_says_that_it_has_no_effect(shapes, tmp_path, caplog):
    cfg = config(shapes, tmp_path, "engine=dygraph")
    paddle.save(build_model(cfg).state_dict(), str(tmp_path / "w.pdparams"))
    caplog.set_level("INFO")
    evaluate(cfg, weights=tmp_path / "w.pdparams", output_dir=tmp_path, amp="O1")
    assert caplog.text.count("--amp has no effect on a CPU") == 1


def test_a_probability_is_never_one_for_want_of_digits(shapes, tmp_path):
    """float16(0.9999) is 1, where the gradient of cross entropy is 1e9: GFLv2's probabilities are made in float32."""
    head = build_model(config(shapes, tmp_path, "num_classes=3", name="shapes_gflv2")).head
    logits = paddle.full([1, 4, 2, 2], 9.5, "float16")
    logits.stop_gradient = False
    quality = paddle.full([1, 1, 2, 2], 9.5, "float16")
    for layer, value in ((head.gfl_head_cls, logits), (head.dgqp_module.reg_conv2, quality)):
        layer.forward = lambda x, value=value: value
    (probability, *_), _ = head([paddle.zeros([1, 32, 2, 2])] * 3)
    assert probability.dtype == paddle.float32
    exact = (1 / (1 + np.exp(-9.5))) ** 2
    np.testing.assert_allclose(probability.numpy(), exact, rtol=1e-6)
    entropy = paddle.nn.functional.binary_cross_entropy(probability, paddle.full([1, 4, 2, 2], 0.9), reduction="sum")
    entropy.backward()
    np.testing.assert_allclose(logits.grad.astype("float32").numpy(), (exact - 0.9) / (1 - exact) * np.exp(-9.5),
                               rtol=1e-2)


# --- checkpoints

def content(state, folder):
    """What its checkpoint holds, without Paddle's names of parameters, which count on in a process."""
    state.save(folder, "a")
    found = {file.suffix: load(file) for file in folder.glob("a.pd*")}
    del found[".pdopt"]["ppgfl"]["checksums"], found[".pdopt"]["ppgfl"]["parameter_names"]
    for part in found.values():
        part.pop(NAME_TABLE, None)
    return found


@pytest.mark.parametrize("more", [["use_ema=false"], ["use_ema=true"],
                                  ["use_ema=false", "OptimizerBuilder.clip_grad_by_norm=null",
                                   "OptimizerBuilder.regularizer=null"]],
                         ids=["plain", "ema", "no clipping"])
def test_a_resume_of_o2_is_bit_exact(shapes, tmp_path, gpu, more):
    cfg = config(shapes, tmp_path, "amp=true", "amp_level=O2", "num_classes=3", *more)
    made = batches(cfg, 4)
    paddle.seed(0)
    whole, step = step_of(cfg)
    for i, batch in enumerate(made):
        if i == 2:
            whole.progress.step = whole.progress.done = i
            whole.save(tmp_path, "half")
        step([batch])
    resumed = new_state(cfg, steps_per_epoch=10, total_batch_size=None, seed=0)
    resumed.load(tmp_path / "half")
    step = make_step(cfg, resumed, precision=precision_of(cfg))
    resumed.model.train()
    for batch in made[2:]:
        step([batch])
    a, b = content(whole, tmp_path), content(resumed, tmp_path)
    assert a.keys() == b.keys()
    assert len(a) == 2 + ("use_ema=true" in more)
    assert same(a, b)
    weight = a[max(a.keys() - {".pdopt"}, key=lambda suffix: suffix == ".pdema")]["head.gfl_head_cls.weight"]
    assert weight.dtype == np.float32
    assert not np.array_equal(weight, weight.astype(np.float16).astype(np.float32))  # no rounded copy


def test_a_checkpoint_says_nothing_of_the_precision(shapes, tmp_path):
    """After O2 a resume goes on without, and the other way round."""
    cfg = config(shapes, tmp_path, "num_classes=3")
    half = Precision("O2")

    def stage(precision, stem=None):
        with pytest.MonkeyPatch.context() as patch:
            if precision is half:
                emulated_gpu.switch_on(patch)
            state = new_state(cfg, steps_per_epoch=10, total_batch_size=None, seed=0)
            if stem:
                state.load(stem)
            state.model.train()
            step = make_step(cfg, state, precision=precision)
            halved = state.model.head.gfl_head_cls.weight.dtype == paddle.float16
            assert halved == (precision is half)
            step(batches(cfg))
            state.progress.step += 1
            return content(state, tmp_path)

    full = stage(Precision())
    after_full = stage(half, tmp_path / "a")
    assert after_full[".pdopt"]["ppgfl"]["loss_scaling"] == {"scale": 1024.0, "incr_count": 1, "decr_count": 0}
    after_half = stage(Precision(), tmp_path / "a")
    assert full[".pdopt"].keys() == after_full[".pdopt"].keys() == after_half[".pdopt"].keys()
    assert not any("master" in key for key in after_full[".pdopt"])
    assert after_half[".pdopt"]["ppgfl"]["step"] == 3
    assert after_half[".pdopt"]["ppgfl"]["loss_scaling"] == {}


@pytest.mark.drill
def test_a_run_of_o2_is_evaluated_and_resumed(shapes, tmp_path, gpu):
    def run(folder, epochs, **kwargs):
        train(config(shapes, tmp_path / folder, f"epoch={epochs}"), amp="O2", evaluate=True, **kwargs)
        return tmp_path / folder / "run"

    whole = run("whole", 2)
    run("halves", 1)
    halves = run("halves", 2, resume="")
    a, b = (load(folder / "model_final.pdparams") for folder in (whole, halves))
    assert all(np.array_equal(a[name], b[name]) for name in a.keys() - {NAME_TABLE})
    assert rows(tmp_path / "whole") == rows(tmp_path / "halves")


def test_the_scaling_of_the_loss_goes_on(gpu):
    precision = Precision("O1", init_loss_scaling=64.0)
    assert precision.scaler({}).state_dict()["scale"].item() == 64
    state = precision.scaler({"scale": 0.5, "incr_count": 7, "decr_count": 1}).state_dict()
    assert (state["scale"].item(), state["incr_count"], state["decr_count"]) == (0.5, 7, 1)


def test_the_average_takes_in_the_float32_weights(shapes, tmp_path, gpu):
    cfg = config(shapes, tmp_path, "amp=true", "amp_level=O2", "num_classes=3", "use_ema=true", "ema_decay_type=normal",
                 "ema_decay=0")
    state, step = step_of(cfg)
    step(batches(cfg))
    weight = state.model.head.gfl_head_cls.weight
    master = state.optimizer.state_dict()["master_weights"][weight.name].numpy()
    np.testing.assert_array_equal(state.ema.average["head.gfl_head_cls.weight"].numpy(), master)
    assert not np.array_equal(master, weight.astype("float32").numpy())
    rounded = paddle.to_tensor(master).astype("float16").numpy()  # Paddle 2.6 cuts off on a CPU
    np.testing.assert_array_equal(rounded, weight.numpy())
    before = {name: value.numpy() for name, value in state.model.state_dict().items()}
    with state.evaluated_weights() as model:
        np.testing.assert_array_equal(model.head.gfl_head_cls.weight.numpy(), rounded)
    assert same(before, {name: value.numpy() for name, value in state.model.state_dict().items()})


# --- keys

@pytest.mark.parametrize(("more", "found"), [
    (["custom_white_list=[conv2]"], "custom_white_list: this Paddle has no operator 'conv2'; did you mean 'conv2d'"),
    (["custom_black_list=[add]"], "custom_black_list: 'add' is called elementwise_add in mixed precision; write that"),
    (["custom_white_list=[softmax]", "custom_black_list=[exp,softmax]"], "softmax is in custom_black_list too")])
def test_names_of_operators_are_checked(shapes, tmp_path, more, found):
    with pytest.raises(ConfigError, match=found):
        train(config(shapes, tmp_path, *more))


def test_the_keys_reach_paddle(shapes, tmp_path, gpu, monkeypatch):
    given = []
    real = paddle.amp.auto_cast
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **kwargs: given.append(kwargs) or real(**kwargs))
    cfg = config(shapes, tmp_path, "amp=true", "num_classes=3", "custom_black_list=[conv2d,deformable_conv]",
                 "custom_white_list=[softmax]", "init_loss_scaling=8")
    state, step = step_of(cfg)
    step(batches(cfg))
    assert {"enable": True, "level": "O1", "custom_white_list": {"softmax"},
            "custom_black_list": {"conv2d", "deformable_conv"}} in given
    assert state.scaler.state_dict()["scale"].item() == 8
    with pytest.raises(ConfigError, match="does not go with master_grad: true"):
        step_of({**cfg, "master_grad": True}, accumulate=2)


# --- nothing waits for the device

@pytest.mark.parametrize("name", ["shapes_gfl_1x", "shapes_gflv2"])
def test_a_step_reads_nothing_from_the_device(shapes, tmp_path, monkeypatch, name):
    cfg = config(shapes, tmp_path, "num_classes=3", "use_ema=true", name=name)
    _, step = step_of(cfg, accumulate=2)
    made, reads = batches(cfg), collections.Counter()
    step(made)  # the first one makes what an optimizer keeps

    def counting(method):
        real = getattr(paddle.Tensor, method)

        def read(self, *arguments, **kwargs):
            reads[method] += 1
            return real(self, *arguments, **kwargs)

        monkeypatch.setattr(paddle.Tensor, method, read)

    for method in ("numpy", "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__array__", "__len__"):
        counting(method)
    losses = step(made)
    assert not reads
    assert losses["loss"].item() > 0
    assert reads  # the counter works


# --- several processes

class Parallel(paddle.DataParallel):
    """Paddle's wrapper without the processes, which notes which batches' gradients would be added up over them."""

    def __init__(self, model):
        paddle.nn.Layer.__init__(self)
        self._layers, self.grad_need_sync, self.summed = model, True, []

    def forward(self, batch):
        self.summed.append(self.grad_need_sync)
        return self._layers(batch)


def test_gradients_are_added_up_over_the_processes_once_per_step(shapes, tmp_path):
    cfg = config(shapes, tmp_path, "num_classes=3")
    made = batches(cfg, 3)
    _, step = step_of(cfg, accumulate=3)
    step.model = parallel = Parallel(step.model)
    step(made)
    step(made)
    assert parallel.summed == [False, False, True] * 2
