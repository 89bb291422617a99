"""Backbones of PaddleDetection, value by value, and the authors' Res2Net."""
import functools

import cases
import make_weights
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from helpers import recorded, sample

from ppgfl import ConfigError
from ppgfl.model.res2net import Res2Block, Res2Net
from ppgfl.model.resnet import ResNet

CLASSES = {"ResNet": ResNet, "Res2Net": Res2Net}


@functools.cache
def values():
    return dict(recorded("backbones"))


def drawn(kind, **arguments):
    """A backbone with the weights of the recorded one."""
    net = CLASSES[kind](**arguments)
    net.set_state_dict({name: make_weights.draw(name, value.shape, 0) for name, value in net.state_dict().items()})
    return net


@pytest.mark.parametrize("name", cases.BACKBONES)
def test_entries_maps_and_gradients_are_those_of_paddledetection(name):
    kind, arguments = cases.BACKBONES[name]
    net = drawn(kind, **arguments)
    entries = [f"{entry} {list(value.shape)}" for entry, value in net.state_dict().items()]
    assert sorted(entries) == sorted(values()[f"{name}: entries"])
    cases.keep_statistics(net)
    maps = net(paddle.to_tensor(cases.backbone_image()))
    assert [m.shape[1] for m in maps] == net.channels
    for i, each in enumerate(maps):
        want = values()[f"{name}: map {i}"]
        assert np.abs(sample(each.numpy(), 96) - want).max() <= 2e-5 * want[2], i
    sum((each**2).mean() for each in maps).backward()
    found = {entry: value.grad.numpy() for entry, value in net.named_parameters() if value.grad is not None}
    norms = dict(zip(values()[f"{name}: learning"], values()[f"{name}: norms"]))
    assert found.keys() == norms.keys()
    for entry, norm in norms.items():
        np.testing.assert_allclose(np.linalg.norm(found[entry]), norm, rtol=1e-3, atol=1e-7, err_msg=entry)
    for key in (key for key in values() if key.startswith(f"{name}: gradient ")):
        want = values()[key]
        assert np.abs(sample(found[key.rpartition(" ")[2]], 48) - want).max() <= 3e-4 * want[2], key


@pytest.mark.parametrize(("arguments", "found"), [
    (dict(depth=18), "Res2Net.depth: 18; allowed: 50, 101, 152, 200"), (dict(variant="e"), "Res2Net.variant"),
    (dict(groups=4), "Res2Net.groups: 4; width 26 is no multiple"), (dict(return_idx=[4]), "Res2Net.return_idx"),
    (dict(dcn_v2_stages=[4]), "Res2Net.dcn_v2_stages"), (dict(lr_mult_list=[1.0]), "Res2Net.lr_mult_list")])
def test_res2net_refuses(arguments, found):
    with pytest.raises(ConfigError, match=found):
        Res2Net(**arguments)


def test_rates_and_names_of_the_stem():
    net = Res2Net(depth=50, variant="c", lr_mult_list=[0.1, 0.2, 0.3, 0.4], freeze_norm=False)
    assert [name for name, _ in net.res1.named_children()] == ["conv1_1", "conv1_2", "conv1_3"]
    for i, stage in enumerate(net.stages):
        block = stage.blocks[1]
        for layer in (block.branch2a.conv, block.branch2b[2].conv, block.branch2c.norm):
            assert layer.weight.optimize_attr["learning_rate"] == pytest.approx(0.1 * (i + 1))
    assert net.res1.conv1_1.conv.weight.optimize_attr["learning_rate"] == 1.0
    resnext = ResNet(depth=50, groups=2, num_stages=1, return_idx=0)
    assert [name for name, _ in resnext.conv1.named_children()] == ["res_conv1"]


@pytest.mark.parametrize(("freeze_at", "return_idx", "frozen", "without"), [
    (-1, [1, 2, 3], set(), set()), (0, [1, 2, 3], {"res1", "res2"}, {"res1", "res2"}),
    (1, [1, 2, 3], {"res1", "res2", "res3"}, {"res1", "res2", "res3"}), (1, [0, 3], {"res3"}, {"res3"})])
def test_what_stays_of_a_res2net(freeze_at, return_idx, frozen, without):
    net = Res2Net(depth=50, width=4, freeze_norm=False, freeze_at=freeze_at, return_idx=return_idx)
    stopped = {name.split(".")[0] for name, p in net.named_parameters()
               if p.stop_gradient and not name.endswith(("_mean", "_variance"))}
    assert stopped == frozen
    sum(each.sum() for each in net(paddle.randn([1, 3, 64, 64]))).backward()
    assert {name.split(".")[0] for name, p in net.named_parameters()
            if p.grad is None and not name.endswith(("_mean", "_variance"))} == without


def naive_block(block, x, *, separate, stride, count_padding):
    """A block of the authors' network, by its description."""
    splits = np.split(block.branch2a(x).numpy(), 4, axis=1)
    results = []
    for i, conv in enumerate(block.branch2b):
        given = splits[i] if separate or i == 0 else splits[i] + results[-1]
        results.append(conv(paddle.to_tensor(given)).numpy())
    last = splits[3]
    if stride == 2:
        ones = np.ones_like(last)
        total, count = (np.pad(each, [(0, 0), (0, 0), (1, 1), (1, 1)]) for each in (last, ones))
        windows = [[(total[:, :, i:i + 3, j:j + 3].sum((2, 3)), count[:, :, i:i + 3, j:j + 3].sum((2, 3)))
                    for j in range(0, last.shape[3], 2)] for i in range(0, last.shape[2], 2)]
        last = np.array([[s / (9 if count_padding else n) for s, n in row] for row in windows]).transpose(2, 3, 0, 1)
    y = block.branch2c(paddle.to_tensor(np.concatenate([*results, last], 1).astype("float32")))
    shortcut = F.avg_pool2d(x, 2, 2) if stride == 2 else x
    shortcut = block.branch1.conv(shortcut) if stride == 2 else block.branch1(shortcut)
    return F.relu(y + shortcut).numpy()


@pytest.mark.parametrize(("stride", "separate", "count_padding"), [
    (1, True, True), (1, False, False), (2, True, True), (2, True, False)])
def test_switches_of_the_authors_network(stride, separate, count_padding):
    paddle.seed(0)
    block = Res2Block(8, 16, width=4, scales=4, stride=stride, project=True, pooled_shortcut=True, separate=separate,
                      pool_counts_padding=count_padding, groups=1, deformable=False, learning_rate=1.0,
                      norm=dict(norm_type="bn"))
    block.eval()
    x = paddle.randn([2, 8, 6, 8])
    wanted = naive_block(block, x, separate=separate, stride=stride, count_padding=count_padding)
    np.testing.assert_allclose(block(x).numpy(), wanted, atol=1e-5)


def test_where_the_switches_are_set():
    net = Res2Net(depth=50, width=4, pooled_shortcut=True, separate_res2_splits=True, pool_counts_padding=True)
    theirs = Res2Net(depth=50, width=4)
    for one, separate in ((net, [True] * 4), (theirs, [False, True, True, True])):
        assert [stage.blocks[0].separate for stage in one.stages] == separate
        assert not any(block.separate for stage in one.stages for block in list(stage.blocks)[1:])
    assert "res3.blocks.0.branch1.conv.conv.weight" in net.state_dict()
    assert "res2.blocks.0.branch1.conv.weight" in net.state_dict()
    assert "res3.blocks.0.branch1.conv.weight" in theirs.state_dict()
    assert [net.res3.blocks[0].last.exclusive, theirs.res3.blocks[0].last.exclusive] == [False, True]
