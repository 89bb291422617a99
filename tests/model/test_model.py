"""The network: names and shapes of checkpoints, and PaddleDetection's recorded maps and detections."""
import json

import cases
import make_weights
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from helpers import GOLDEN, ZOO, recorded, sample
from paddle import nn

from ppgfl import ConfigError, build_model, load_config
from ppgfl.model.fpn import FPN, upsample_nearest
from ppgfl.model.head import DGQP, FCOSFeat, GFLHead, Integral
from ppgfl.model.layers import share_statistics
from ppgfl.model.resnet import ResNet

MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_every_entry_has_the_name_and_shape_of_the_released_file(name):
    entries = build_model(load_config(name)).state_dict()
    assert {k: list(v.shape) for k, v in entries.items()} == {k: shape for k, shape, _ in MANIFEST[name]}
    assert {str(v.dtype).replace("paddle.", "") for v in entries.values()} == {"float32"}


@pytest.mark.parametrize("name", ZOO)
def test_maps_and_detections_are_those_of_paddledetection(name):
    model = build_model(load_config(name))
    model.set_state_dict(make_weights.make(name))
    model.eval()
    expected, inputs = recorded(f"{name}_eval"), cases.batch(0)
    with paddle.no_grad():
        backbone = model.backbone(paddle.to_tensor(inputs["image"]))
        levels = model.neck(backbone)
        cls, reg = model.head(levels)
        output = model({key: paddle.to_tensor(inputs[key]) for key in ("image", "scale_factor")})
    for kind, maps, n in (("backbone", backbone, 96), ("fpn", levels, 96), ("cls", cls, 512), ("reg", reg, 512)):
        for i, values in enumerate(maps):
            want = expected[f"{kind}{i}"]
            assert np.abs(sample(values.numpy(), n) - want).max() <= 5e-5 * want[2], (kind, i)
    suffix = "_calibrated" if name.startswith("gflv2") else ""
    check_detections(output, expected["bbox" + suffix], expected["bbox_num" + suffix])


def check_detections(output, bbox, bbox_num):
    got = output["bbox"].numpy()
    np.testing.assert_array_equal(output["bbox_num"].numpy(), bbox_num)
    np.testing.assert_array_equal(got[:, 0], bbox[:, 0])
    np.testing.assert_allclose(got[:, 1], bbox[:, 1], atol=1e-5)
    np.testing.assert_allclose(got[:, 2:], bbox[:, 2:], atol=5e-3)


@pytest.mark.parametrize("override", ["upstream_scores=true", "GFLHead.upstream_scores=true"])
def test_gflv2_gives_upstream_scores_on_request(override):
    name = "gflv2_r50_fpn_1x_coco"
    model = build_model(load_config(name, [override]))
    model.set_state_dict(make_weights.make(name))
    model.eval()
    inputs = cases.batch(0)
    with paddle.no_grad():
        output = model({key: paddle.to_tensor(inputs[key]) for key in ("image", "scale_factor")})
    expected = recorded(f"{name}_eval")
    check_detections(output, expected["bbox"], expected["bbox_num"])


@pytest.mark.parametrize("variant", ["a", "b", "c", "d"])
@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_variants(depth, variant):
    net = ResNet(depth=depth, variant=variant, return_idx=[0, 2], num_stages=3)
    maps = net(paddle.zeros([1, 3, 64, 96]))
    assert net.strides == [4, 16]
    assert [list(m.shape) for m in maps] == [[1, c, 64 // s, 96 // s] for c, s in zip(net.channels, net.strides)]
    strided = net.res3[0].branch2a if depth == 18 or variant == "a" else net.res3[0].branch2b
    assert strided.conv._stride == [2, 2]
    stem = ["conv1_1", "conv1_2", "conv1_3"] if variant in "cd" else ["conv1"]
    assert [name for name, _ in net.conv1.named_children()] == stem


@pytest.mark.parametrize(("freeze_at", "frozen"), [(-1, []), (0, ["conv1", "res2"]), (1, ["conv1", "res2", "res3"])])
def test_freeze_at(freeze_at, frozen):
    net = ResNet(depth=18, freeze_at=freeze_at, freeze_norm=False)
    stopped = {name.split(".")[0] for name, p in net.named_parameters()
               if p.stop_gradient and not name.endswith(("_mean", "_variance"))}
    assert stopped == set(frozen)


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_freeze_norm_keeps_statistics(freeze_norm):
    net = ResNet(depth=18, freeze_norm=freeze_norm)
    before = net.res3[0].branch2a.norm._mean.numpy().copy()
    net.train()
    net(paddle.randn([2, 3, 64, 64]))
    assert (net.res3[0].branch2a.norm._mean.numpy() == before).all() == freeze_norm
    assert net.res3[0].branch2a.norm.weight.stop_gradient == freeze_norm


def test_lr_mult_list_reaches_every_stage():
    net = ResNet(depth=18, lr_mult_list=[0.1, 0.2, 0.3, 0.4])
    for i, stage in enumerate(net.stages):
        assert stage[0].branch2a.conv.weight.optimize_attr["learning_rate"] == pytest.approx(0.1 * (i + 1))


def test_deformable_stages_start_as_plain_convolutions_with_half_masks():
    paddle.seed(1)
    net = ResNet(depth=18, dcn_v2_stages=[3])
    names = [name for name in net.state_dict() if "conv_offset" in name]
    assert names[:2] == ["res5.res5a.branch2b.conv_offset.weight", "res5.res5a.branch2b.conv_offset.bias"]
    x = paddle.randn([1, 512, 4, 4])
    layer = net.res5[0].branch2b
    plain = layer.norm(0.5 * F.conv2d(x, layer.conv.weight, padding=1))  # offsets 0, mask sigmoid(0)
    net.eval()
    np.testing.assert_allclose(layer(x).numpy(), plain.numpy(), atol=1e-4)


@pytest.mark.parametrize(("kwargs", "found"), [
    (dict(depth=51), "depth: 51; allowed: 18"), (dict(variant="e"), "variant"), (dict(norm_type="gn"), "norm_type"),
    (dict(return_idx=[4]), "return_idx"), (dict(num_stages=5), "num_stages"), (dict(lr_mult_list=[1.0]), "lr_mult"),
    (dict(dcn_v2_stages=[4]), "dcn_v2_stages"),
])
def test_resnet_refuses(kwargs, found):
    with pytest.raises(ConfigError, match=found):
        ResNet(**kwargs)


def test_upsampling_is_bit_exact():
    x = paddle.randn([2, 3, 5, 7])
    np.testing.assert_array_equal(upsample_nearest(x).numpy(), F.interpolate(x, scale_factor=2).numpy())


@pytest.mark.parametrize(("kwargs", "names", "strides"), [
    (dict(has_extra_convs=True, extra_stage=2, use_c5=False), ["fpn_6", "fpn_7"], [8, 16, 32, 64, 128]),
    (dict(has_extra_convs=True, extra_stage=1, use_c5=True), ["fpn_6"], [8, 16, 32, 64]),
    (dict(has_extra_convs=False, extra_stage=1), [], [8, 16, 32, 64]),
    (dict(extra_stage=0, norm_type="gn"), [], [8, 16, 32]),
    (dict(extra_stage=0, norm_type="bn", freeze_norm=True), [], [8, 16, 32]),
])
def test_fpn_options(kwargs, names, strides):
    neck = FPN([32, 64, 128], 32, [1 / 8, 1 / 16, 1 / 32], **kwargs)
    levels = neck([paddle.randn([1, c, 64 // s, 128 // s]) for c, s in ((32, 8), (64, 16), (128, 32))])
    assert neck.strides == strides
    assert [tuple(x.shape) for x in levels] == [(1, 32, -(-64 // s), -(-128 // s)) for s in strides]
    children = [name for name, _ in neck.named_children()]
    assert [name for name in children if name.startswith("fpn_") and name[4].isdigit()] == names
    assert children[:2] == ["fpn_inner_res3_sum_lateral", "fpn_res3_sum"]
    assert ("fpn_res3_sum.norm.weight" in neck.state_dict()) == ("norm_type" in kwargs)


def test_relu_stands_before_p7_unless_switched_off():
    x = [paddle.randn([1, 8, 8, 8]), paddle.randn([1, 8, 4, 4]), paddle.randn([1, 8, 2, 2])]
    neck = FPN([8, 8, 8], 8, [1 / 8, 1 / 16, 1 / 32], has_extra_convs=True, extra_stage=2, use_c5=False)
    levels = neck(x)
    np.testing.assert_allclose(levels[4].numpy(), neck.fpn_7(F.relu(levels[3])).numpy(), atol=1e-6)
    neck.relu_before_extra_convs = False
    np.testing.assert_allclose(neck(x)[4].numpy(), neck.fpn_7(levels[3]).numpy(), atol=1e-6)


def test_integral_by_pencil():
    logits = np.full((1, 2, 4 * 3), -100.0, np.float32)
    logits[0, 0, [0, 4, 8, 9]] = 100.0  # left 0; top 1; right 2; bottom 0
    logits[0, 1] = 0.0  # flat: the middle
    got = Integral(2)(paddle.to_tensor(logits)).numpy()
    np.testing.assert_allclose(got, [[[0, 1, 2, 0], [1, 1, 1, 1]]], atol=1e-5)


def test_dgqp_against_a_naive_loop():
    paddle.seed(0)
    module = DGQP(reg_topk=2, reg_channels=3)
    x = np.random.default_rng(0).normal(size=(2, 4 * 5, 2, 3)).astype("float32")
    w1, w2 = module.reg_conv1.weight.numpy()[:, :, 0, 0], module.reg_conv2.weight.numpy()[:, :, 0, 0]
    got = module(paddle.to_tensor(x)).numpy()
    for n, h, w in np.ndindex(2, 2, 3):
        features = []
        for side in range(4):
            logits = x[n, side * 5:side * 5 + 5, h, w]
            p = np.exp(logits) / np.exp(logits).sum()
            top = sorted(p, reverse=True)[:2]
            features += [*top, np.mean(top)]
        hidden = np.maximum(w1 @ np.array(features), 0)
        np.testing.assert_allclose(got[n, 0, h, w], 1 / (1 + np.exp(-(w2 @ hidden)[0])), atol=1e-6)


def test_dgqp_convolutions_are_one_parameter_under_two_names():
    module = DGQP()
    state = module.state_dict()
    assert state["reg_conv1.weight"] is state["dgqp_reg_conv1.weight"]
    assert len(module.parameters()) == 4


def test_the_head_returns_raw_maps_in_both_modes():
    head = GFLHead(FCOSFeat(16, 32, num_convs=1, norm_type="gn"), num_classes=3, fpn_stride=[8, 16], feat_in_chan=32)
    levels = [paddle.randn([1, 16, 4, 4]), paddle.randn([1, 16, 2, 2])]
    head.train()
    trained = head(levels)
    head.eval()
    for a, b in zip(trained[0] + trained[1], head(levels)[0] + head(levels)[1]):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert [list(x.shape) for x in trained[0]] == [[1, 3, 4, 4], [1, 3, 2, 2]]
    assert [list(x.shape) for x in trained[1]] == [[1, 68, 4, 4], [1, 68, 2, 2]]


def test_the_class_bias_starts_at_the_prior_and_tower_biases_learn_twice_as_fast():
    head = GFLHead(FCOSFeat(), num_classes=3, prior_prob=0.02)
    np.testing.assert_allclose(F.sigmoid(head.gfl_head_cls.bias).numpy(), 0.02, rtol=1e-5)
    tower = head.conv_feat.fcos_head_cls_tower_conv_0.conv
    assert tower.bias.optimize_attr["learning_rate"] == 2.0
    assert tower.weight.optimize_attr["learning_rate"] == 1.0


def test_deformable_towers_have_paddledetections_names():
    state = FCOSFeat(8, 32, num_convs=1, norm_type="gn", use_dcn=True).state_dict()
    names = {n.split("fcos_head_cls_tower_conv_0.")[1] for n in state if "cls" in n}
    assert names == {"conv.conv_offset.weight", "conv.conv_offset.bias", "conv.conv_dcn.weight", "conv.conv_dcn.bias",
                     "norm.weight", "norm.bias"}


def test_biases_of_deformable_towers_do_not_decay_and_learn_twice_as_fast():
    """PaddleDetection: both; in a backbone the offsets' biases are as all others."""
    layer = FCOSFeat(8, 32, num_convs=1, norm_type="gn", use_dcn=True).cls_tower[0].conv
    for conv, decays in ((layer.conv_offset, 0.0), (layer.conv_dcn, 0.0)):
        assert conv.bias.regularizer._coeff == decays
        assert conv.bias.optimize_attr["learning_rate"] == 2.0
        assert conv.weight.regularizer is None
    backbone = ResNet(depth=18, num_stages=1, return_idx=[0], dcn_v2_stages=[0]).res2.res2a.branch2b
    assert backbone.conv_offset.bias.regularizer is None
    assert backbone.conv_offset.bias.optimize_attr["learning_rate"] == 1.0


@pytest.mark.parametrize(("more", "shared"), [
    (["norm_type=sync_bn"], {"backbone", "head"}), (["ResNet.norm_type=sync_bn"], {"backbone"}),
    (["GFLHead.conv_feat={name: FCOSFeat, norm_type: sync_bn}"], {"head"}), ([], set())])
def test_batchnorm_of_several_processes_is_shared_where_asked_for_and_stays_frozen_where_it_is(more, shared):
    """Paddle's conversion of a whole model loses `use_global_stats`."""
    bn = {} if any("conv_feat" in each for each in more) else {"GFLHead.conv_feat={name: FCOSFeat, norm_type: bn}"}
    cfg = load_config("gfl_r18vd_1x_coco", ["ResNet.freeze_norm=false", "ResNet.freeze_at=0", *bn, *more])
    model = build_model(cfg)
    frozen = model.backbone.conv1.conv1_1.norm
    frozen._use_global_stats = True
    names, parameters = list(model.state_dict()), {id(each) for each in model.parameters()}
    share_statistics(model, all_layers=cfg.get("norm_type") == "sync_bn")
    found = {name.split(".")[0] for name, layer in model.named_sublayers() if isinstance(layer, nn.SyncBatchNorm)}
    assert found == shared
    assert model.backbone.conv1.conv1_1.norm is frozen
    assert type(frozen) is nn.BatchNorm2D
    kinds = {name.split(".")[0] for name, layer in model.named_sublayers()
             if type(layer) is nn.BatchNorm2D and layer is not frozen}
    assert kinds == {"backbone", "head"} - shared
    assert list(model.state_dict()) == names
    assert {id(each) for each in model.parameters()} == parameters  # the optimizer's
