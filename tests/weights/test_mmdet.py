"""Names, fillings and the config of imported checkpoints, on networks of a few channels."""
import json

import numpy as np
import pytest
import torch_files as made

from ppgfl import CheckpointError
from ppgfl.weights import class_names, mmdet, mmdet_config

WIDTHS = (4, 8, 16, 32)


def convert(state, **others):
    return mmdet.convert("a.pth", {"state_dict": state, **others}, lambda name, value: value)


def r18(**options):
    return made.gfl(made.resnet((2, 2, 2, 2), WIDTHS, bottleneck=False), WIDTHS[1:], **options)


def r50(*, joint=False, **options):
    return made.gfl(made.resnet((3, 4, 6, 3), WIDTHS, bottleneck=True, **options), [4 * w for w in WIDTHS[1:]],
                    joint=joint)


def test_every_entry_is_accounted_for():
    state = r50()
    found = convert(state, optimizer={}, message_hub={}, meta={})
    assert set(found.mapped) | set(found.dropped) == {*state, "optimizer", "message_hub"}
    assert not set(found.mapped) & set(found.dropped)
    assert set(found.weights) == {*found.mapped.values(), *found.added}
    for name, ours in found.mapped.items():
        np.testing.assert_array_equal(found.weights[ours].ravel(), state[name].ravel())


@pytest.mark.parametrize(("theirs", "ours"), [
    ("backbone.conv1.weight", "backbone.conv1.conv1.conv.weight"),
    ("backbone.bn1.running_var", "backbone.conv1.conv1.norm._variance"),
    ("backbone.layer1.0.conv1.weight", "backbone.res2.res2a.branch2a.conv.weight"),
    ("backbone.layer2.3.bn2.running_mean", "backbone.res3.res3d.branch2b.norm._mean"),
    ("backbone.layer4.0.downsample.0.weight", "backbone.res5.res5a.short.conv.weight"),
    ("backbone.layer4.0.downsample.1.bias", "backbone.res5.res5a.short.norm.bias"),
    ("neck.lateral_convs.0.conv.bias", "neck.fpn_inner_res3_sum_lateral.bias"),
    ("neck.lateral_convs.2.conv.weight", "neck.fpn_inner_res5_sum.weight"),
    ("neck.fpn_convs.2.conv.weight", "neck.fpn_res5_sum.weight"), ("neck.fpn_convs.4.conv.weight", "neck.fpn_7.weight"),
    ("bbox_head.cls_convs.3.conv.weight", "head.conv_feat.fcos_head_cls_tower_conv_3.conv.weight"),
    ("bbox_head.reg_convs.0.gn.bias", "head.conv_feat.fcos_head_reg_tower_conv_0.norm.bias"),
    ("bbox_head.gfl_reg.bias", "head.gfl_head_reg.bias"), ("bbox_head.scales.4.scale", "head.p7_feat.scale_reg"),
    ("bbox_head.integral.project", "head.distribution_project.project")])
def test_names_of_a_resnet(theirs, ours):
    assert convert(r50()).mapped[theirs] == ours


def test_names_of_deep_stages_and_of_other_backbones():
    r101 = convert(made.gfl(made.resnet((3, 4, 23, 3), WIDTHS, bottleneck=True, groups=2), [32, 64, 128]))
    assert r101.mapped["backbone.layer3.22.conv3.weight"] == "backbone.res4.res4b22.branch2c.conv.weight"
    assert r101.mapped["backbone.layer3.0.conv3.weight"] == "backbone.res4.res4a.branch2c.conv.weight"
    assert r101.mapped["backbone.conv1.weight"] == "backbone.conv1.res_conv1.conv.weight"
    assert (r101.config["ResNet"]["groups"], r101.config["ResNet"]["base_width"]) == (2, 4)
    split = convert(r50(split=3, offsets={2: 18, 3: 18}))
    for theirs, ours in (("stem.3.weight", "res1.conv1_2.conv.weight"), ("stem.7.bias", "res1.conv1_3.norm.bias"),
                         ("layer1.0.downsample.1.weight", "res2.blocks.0.branch1.conv.weight"),
                         ("layer2.0.downsample.2.weight", "res3.blocks.0.branch1.conv.norm.weight"),
                         ("layer3.1.convs.2.conv_offset.bias", "res4.blocks.1.branch2b.2.conv_offset.bias"),
                         ("layer3.1.bns.0.weight", "res4.blocks.1.branch2b.0.norm.weight"),
                         ("layer4.2.conv3.weight", "res5.blocks.2.branch2c.conv.weight")):
        assert split.mapped[f"backbone.{theirs}"] == f"backbone.{ours}"
    assert split.config["GFL"] == {"backbone": "Res2Net"}
    assert split.config["Res2Net"] == {
        "depth": 50, "variant": "d", "return_idx": [1, 2, 3], "dcn_v2_stages": [2, 3], "width": 3, "scales": 4,
        "pooled_shortcut": True, "separate_res2_splits": True, "pool_counts_padding": True, "freeze_at": 0}


def test_a_deformable_layer_without_masks_gets_open_ones():
    state = r50(offsets={1: 18, 2: 27})
    state["backbone.layer2.0.conv2_offset.weight"] = state.pop("backbone.layer2.0.conv2.conv_offset.weight")  # 1.x
    state["backbone.layer2.0.conv2_offset.bias"] = state.pop("backbone.layer2.0.conv2.conv_offset.bias")
    found = convert(state)
    assert found.config["ResNet"]["dcn_v2_stages"] == [1, 2]
    for block in "abcd":
        layer = f"backbone.res3.res3{block}.branch2b.conv_offset"
        weight, bias = found.weights[f"{layer}.weight"], found.weights[f"{layer}.bias"]
        assert weight.shape == (27, 8, 3, 3)
        assert not weight[18:].any()
        np.testing.assert_array_equal(1 / (1 + np.exp(-bias[18:])), np.ones(9, np.float32))
    np.testing.assert_array_equal(bias[:18], state["backbone.layer2.3.conv2.conv_offset.bias"])
    modulated = "backbone.layer3.0.conv2.conv_offset.bias"
    np.testing.assert_array_equal(found.weights[found.mapped[modulated]], state[modulated])


def test_what_mmdetection_has_no_layer_for_changes_nothing():
    found = convert(r18())
    short = {name.rpartition("short.")[2]: value for name, value in found.weights.items() if ".res2a.short." in name}
    x = np.linspace(-2, 2, 4, dtype=np.float32)
    y = short["conv.weight"][:, :, 0, 0] @ x
    y = (y - short["norm._mean"]) / np.sqrt(short["norm._variance"] + np.float32(1e-5)) * short["norm.weight"]
    np.testing.assert_allclose(y + short["norm.bias"], x, rtol=2e-7)
    biases = [value for name, value in found.weights.items() if "_tower_conv_" in name and name.endswith("conv.bias")]
    assert len(biases) == 8
    assert not np.any(biases)


def test_the_config_of_gfl_and_gflv2():
    first, second = convert(r18(classes=5, reg_max=7)).config, convert(r50(joint=True)).config
    assert first["_BASE_"] == ["gfl_r50_fpn_1x_coco"]
    assert second["_BASE_"] == ["gflv2_r50_fpn_1x_coco"]
    assert (first["num_classes"], second["num_classes"]) == (5, 3)
    assert (first["ResNet"]["depth"], second["ResNet"]["depth"]) == (18, 50)
    assert first["GFLHead"]["reg_max"] == 7
    assert first["FPN"]["relu_before_extra_convs"] is False
    assert first["GFLHead"]["clip_boxes"] is True
    assert "cell_offset" not in first["GFLHead"]
    assert first["GFLHead"]["nms"]["score_threshold"] == 0.05
    assert second["GFLHead"]["nms"]["score_threshold"] == pytest.approx(0.5124974, abs=1e-7)
    assert second["GFLHead"]["dgqp_module"] == {"name": "DGQP", "reg_topk": 4, "reg_channels": 64, "add_mean": True}
    assert "TestReader" not in first


def test_gfocal_has_centers_half_a_pixel_before_half_a_cell():
    state = r18()
    state["bbox_head.distribution_project.project"] = state.pop("bbox_head.integral.project")
    config = convert(state).config
    offsets = config["GFLHead"]["cell_offset"]
    assert [offset * stride for offset, stride in zip(offsets, (8, 16, 32, 64, 128))] == [3.5, 7.5, 15.5, 31.5, 63.5]
    assert config["TrainReader"]["batch_transforms"][1]["Gt2GFLTarget"]["cell_offset"] == offsets
    assert config["GFLHead"]["nms"]["normalized"] is False


THEIRS = """default_hooks = dict(visualization=dict(score_thr=0.9))
model = dict(
    bbox_head=dict(anchor_generator=dict(center_offset=0.5)), backbone=dict(style='pytorch'),
    data_preprocessor=dict(mean=[1, 2.5, 3], std=[4, 5, 6], bgr_to_rgb=True), shift=-1,
    test_cfg=dict(nms_pre=500, score_thr=0.1, nms=dict(type='nms', iou_threshold=0.7), max_per_img=50))
test_pipeline = [dict(type='Load', run=print('no')), dict(type='Resize', scale=(640, 512), keep_ratio=True)]
"""


@pytest.mark.parametrize("text", [THEIRS, "/home/me/gfl.py\n" + THEIRS])
def test_what_the_file_says_about_pictures_and_thresholds_is_kept(text, capsys):
    config = convert(r18(), meta={"cfg": text}).config
    assert config["GFLHead"]["cell_offset"] == 0.5
    assert config["GFLHead"]["nms"] == {"name": "MultiClassNMS", "nms_top_k": 500, "keep_top_k": 50,
                                        "score_threshold": 0.1, "nms_threshold": 0.7, "normalized": True}
    _, resize, normalize, _ = config["TestReader"]["sample_transforms"]
    assert resize["Resize"]["target_size"] == [512, 640]
    assert normalize["NormalizeImage"] == {"is_scale": False, "mean": [1, 2.5, 3], "std": [4, 5, 6]}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", [None, 3, "", "model = (", "x" * 10, "(" * 5000, "a.b = 1\nscore_thr = 'x'"])
def test_a_config_that_says_nothing_leaves_the_defaults(text):
    assert convert(r18(), meta={"config": text}).config == convert(r18()).config


@pytest.mark.parametrize("text", ["m = dict(style='caffe')", "p = dict(bgr_to_rgb=False)", "p = {'to_rgb': False}",
                                  "m = dict(add_extra_convs='on_lateral')", "t = dict(nms=dict(type='soft_nms'))"])
def test_what_ppgfl_has_not_is_refused(text):
    with pytest.raises(CheckpointError, match="its config has"):
        convert(r18(), meta={"cfg": text})
    assert mmdet_config.parse(text)


@pytest.mark.parametrize("meta", [{"CLASSES": ("a", "b", "c")}, {"dataset_meta": {"classes": ["a", "b", "c"]}}])
def test_class_names_travel_along(meta):
    assert json.loads(convert(r18(), meta=meta).weights[class_names.ENTRY].tobytes()) == ["a", "b", "c"]
    assert class_names.ENTRY not in convert(r18(classes=4), meta=meta).weights


def test_names_of_coco_in_old_files_are_spelled_as_coco_does():
    meta = {"CLASSES": ("car", "traffic_light", "hot_dog")}
    old = r18()
    old["bbox_head.distribution_project.project"] = old.pop("bbox_head.integral.project")
    for state, names in ((old, ["car", "traffic light", "hot dog"]), (r18(), list(meta["CLASSES"]))):
        assert json.loads(convert(state, meta=meta).weights[class_names.ENTRY].tobytes()) == names


def test_averages_and_teachers_are_left_out_and_a_prefix_goes():
    state = r18()
    extra = {**state, "ema_backbone_conv1_weight": state["backbone.conv1.weight"], "teacher.backbone.x": np.ones(2)}
    found = convert(extra)
    assert set(found.weights) == set(convert(state).weights)
    assert "ema_backbone_conv1_weight" in found.dropped
    assert set(convert({f"module.{name}": value for name, value in state.items()}).weights) == set(found.weights)


def test_a_backbone_alone_serves_pretraining():
    state = made.resnet((3, 4, 6, 3), WIDTHS, bottleneck=True, prefix="")
    found = convert({**state, "fc.weight": np.ones((10, 4), np.float32)})
    assert found.config is None
    assert found.mapped["layer1.0.conv2.weight"] == "res2.res2a.branch2b.conv.weight"
    assert set(found.weights) == set(found.mapped.values())
    assert found.dropped["fc.weight"] == "the classifier"


def changed(*, drop=(), **entries):
    return {name: value for name, value in {**r18(), **entries}.items() if name not in drop}


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(("state", "says"), [
    (changed(drop=["bbox_head.gfl_cls.weight"], **{"bbox_head.atss_cls.weight": ONE}), "bbox_head.atss_cls"),
    ({"backbone.layer4.0.conv1.weight": ONE, "rpn_head.rpn_cls.weight": ONE}, "it has rpn_head.rpn_cls"),
    ({"backbone.body.conv1.weight": ONE}, "no GFL detector"),
    (changed(**{"backbone.layer1.2.conv1.weight": ONE}), r"blocks \(3, 2, 2, 2\)"),
    ({"bbox_head.gfl_cls.weight": ONE, "backbone.patch_embed.projection.weight": ONE}, "backbone.patch_embed"),
    (changed(**{"bbox_head.extra.weight": ONE}), r"1 entries have no counterpart \(bbox_head.extra.weight\)"),
    (changed(**{"neck.lateral_convs.0.bn.weight": ONE}), "no counterpart"),
    (changed(drop=["bbox_head.gfl_reg.weight"]), "has no bbox_head.gfl_reg.weight"),
    (changed(**{"backbone.bn1.weight": np.ones(4, np.int64)}), "int64"),
    (changed(**{"backbone.layer4.0.conv2.conv_offset.weight": np.ones((36, 4, 3, 3))}), "predicts 36 numbers"),
    ({}, "no named tensors"), ({"model": {}}, "holds no state_dict"), ({3: ONE}, "no named tensors")])
def test_others_are_refused_in_one_line(state, says):
    with pytest.raises(CheckpointError, match=says) as error:
        convert(state)
    assert "\n" not in str(error.value)
