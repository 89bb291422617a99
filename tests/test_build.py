import logging

import pytest
from helpers import ZOO, tiny_config

from ppgfl import ConfigError, build, build_model, load_config
from ppgfl.config import check
from ppgfl.fit import check_targets


@pytest.mark.parametrize("name", ZOO)
def test_every_shipped_config_is_free_of_findings(name, caplog):
    check._warn_once.cache_clear()
    cfg = load_config(name)
    with caplog.at_level(logging.WARNING):
        check.check_config(cfg, build.CLASSES)
    assert not caplog.records
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        build.build_reader(cfg, reader)


@pytest.mark.parametrize(("override", "found"), [
    ("ResNet.depht=50", "ResNet: unknown key 'depht', did you mean 'depth'"),
    ("GFLHead.conv_feat.num_conv=4", "GFLHead.conv_feat: unknown key 'num_conv', did you mean 'num_convs'"),
    ("GFLHead.nms.keep_topk=5", "did you mean 'keep_top_k'"),
    ("EvalDataset.dataset_dirr=x", "EvalDataset: unknown key 'dataset_dirr', did you mean 'dataset_dir'"),
    ("EvalReader.batchsize=5", "did you mean 'batch_size'"),
    ("EvalReader.sample_transforms.1.Resize.size=5", r"EvalReader.sample_transforms\[1\].Resize: unknown key 'size'"),
    ("LearningRate.baselr=5", "did you mean 'base_lr'"),
    ("ResNet=5", "must be a mapping"),
    ("GFL.head=YOLOHead", "unknown name 'YOLOHead'"),
    ("GFLHead.nms.name=SoftNMS", "unknown name 'SoftNMS'"),
    ("architecture=YOLOv3", "ppgfl builds GFL only"),
    ("GFLHead.fpn_stride=[4, 8, 16, 32, 64]", "strides"),
    ("FPN.extra_stage=1", "the neck's levels have strides"),
    ("GFLHead.loss_class.use_sigmoid=false", "must be true without dgqp_module"),
    ("norm_type=gn", "norm_type"),
    ("GFLHead.loss_class=GIoULoss", "unknown name 'GIoULoss'; Allowed: FocalLoss, QualityFocalLoss"),
    ("GFLHead.loss_dfl={name: QualityFocalLoss}", "GFLHead.loss_dfl: unknown name 'QualityFocalLoss'; "),
    ("FPN.out_channel=128", "GFLHead.conv_feat.feat_in: 256, but FPN.out_channel is 128"),
    ("GFLHead.conv_feat.feat_out=128", "GFLHead.conv_feat.feat_out: 128, but GFLHead.feat_in_chan is 256"),
    ("GFLHead.conv_feat.feat_out=100", "gn has 32 groups, and 100 channels are no multiple of that"),
    ("FPN={norm_type: gn, out_channel: 48}", "gn has 32 groups, and 48 channels are no multiple of that"),
    ("GFLHead={reg_max: 2, dgqp_module: DGQP}", "DGQP.reg_topk: 4; of reg_max 2 there are 3"),
    ("GFLHead.cell_offset=[0.5, 0.5]", "cell_offset: .0.5, 0.5.; of 2, but there are 5 levels"),
    ("GFLHead.cell_offset=[0.5, 0.5, 1.5, 0.5, 0.5]", "GFLHead.cell_offset: .*; it must be a number, 0 to 1; or a"),
    ("GFLHead.clip_boxes=1", "GFLHead.clip_boxes: 1; it must be true or false"),
    ("ResNet.groups=32", "ResNet.groups: 32 with base_width 64, but depth 18 has no bottlenecks"),
    ("ResNet.base_width=4", "ResNet.groups: 1 with base_width 4, but depth 18"),
    ("ResNet.groups=0", "ResNet.groups: 0; it must be a whole number"),
    ("GFL.backbone=Res2Net", r"Res2Net.return_idx|fpn_stride|FPN"),
    ("ResNet.return_idx=[1, 3]", r"return_idx: its maps have strides \[8, 32\]"),
    ("ResNet.return_idx=[2, 1, 3]", "come in order, once each"),
])
def test_mistakes_in_a_config_are_named(override, found):
    cfg = load_config("gfl_r18vd_1x_coco", [override])
    if override == "norm_type=gn":
        cfg["ResNet"].pop("norm_type")  # nested keys are stronger than the shared one
    with pytest.raises(ConfigError, match=found):
        build_model(cfg)


def test_all_findings_are_reported_together():
    cfg = load_config("gfl_r18vd_1x_coco", ["ResNet.depht=50", "FPN.out_chanel=3"])
    with pytest.raises(ConfigError, match="depht.*out_chanel"):
        build_model(cfg)


def test_an_unknown_top_level_key_stops():
    with pytest.raises(ConfigError, match="EvalDatset: unknown key; did you mean 'EvalDataset'"):
        check.check_config({"EvalDatset": {"x": 1}, "snapshot_epoch": 2}, build.CLASSES)
    with pytest.raises(ConfigError, match="imgsz: unknown key; .*begins with _ or x-"):
        check.check_config({"imgsz": 320}, build.CLASSES)
    check.check_config({"_sizes": [320], "x-note": {"any": "thing"}}, build.CLASSES)


def test_order_of_arguments():
    cfg = load_config("gfl_r18vd_1x_coco", ["num_classes=7", "FPN.spatial_scales=[1, 0.5, 0.25]"])
    model = build_model(cfg)
    assert model.head.gfl_head_cls.weight.shape[0] == 7  # a shared key
    assert model.neck.strides == [8, 16, 32, 64, 128]  # facts win over the section
    nested = load_config("gfl_r18vd_1x_coco", ["num_classes=7", "GFLHead.num_classes=5"])
    assert build_model(nested).head.num_classes == 5
    cfg["GFLHead"]["nms"] = "MultiClassNMS"
    cfg["MultiClassNMS"] = {"keep_top_k": 3}
    assert build_model(cfg).decoder.nms.keep_top_k == 3  # the section of that name
    cfg["GFLHead"]["nms"] = {"name": "MultiClassNMS", "keep_top_k": 4}
    assert build_model(cfg).decoder.nms.keep_top_k == 4  # nested keys win


def test_the_first_gflv2_configs_called_the_loss_loss_qfl():
    cfg = load_config("gflv2_r50_fpn_1x_coco")
    cfg["GFLHead"]["loss_qfl"] = cfg["GFLHead"].pop("loss_class")
    assert build_model(cfg).criterion.loss_class.use_sigmoid is False


@pytest.mark.parametrize(("override", "found"), [
    ("EvalReader.batch_size=0", "batch_size: 0"), ("worker_num=-1", "worker_num: -1"),
    ("EvalReader.sample_transforms=[Decode]", "must be one transform"),
    ("EvalReader.sample_transforms=[{Mosaik: {}}]", "unknown name 'Mosaik'"),
    ("EvalReader=null", "no such section"), ("EvalDataset=null", "no such section"),
])
def test_mistakes_in_a_reader(override, found, small_coco):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", override)
    with pytest.raises(ConfigError, match=found):
        build.build_loader(cfg, "EvalReader", build.build_dataset(cfg, "EvalDataset").records)


def test_a_key_that_nobody_takes_is_refused_where_an_object_is_made():
    """Also by those who do not call `check`."""
    cfg = load_config("gfl_r18vd_1x_coco", ["TrainReader.batch_transforms.1.Gt2GFLTarget.num_clases=3"])
    with pytest.raises(ConfigError, match="unknown key 'num_clases', did you mean 'num_classes'"):
        build.build_reader(cfg, "TrainReader")
    cfg = load_config("gfl_r18vd_1x_coco", ["OptimizerBuilder.clip_grad_by_nrom=3"])
    with pytest.raises(ConfigError, match="OptimizerBuilder: unknown key 'clip_grad_by_nrom', did you mean"):
        build.build_optimizer(cfg, None, steps_per_epoch=1)
    with pytest.raises(ConfigError, match="ResNet: unknown key 'depht'"):
        build.make_model(load_config("gfl_r18vd_1x_coco", ["ResNet.depht=50"]))


COMPLETE = "[{Decode: {}}, {Resize: {target_size: [64, 96], keep_ratio: true}}, {NormalizeImage: {}}, {Permute: {}}]"


@pytest.mark.parametrize(("reader", "transforms", "found"), [
    ("EvalReader.sample_transforms", COMPLETE.replace("{Decode: {}}, ", ""), "Decode stands there 0 times"),
    ("EvalReader.sample_transforms", COMPLETE.replace(", {Permute: {}}", ""), "Permute stands there 0 times"),
    ("EvalReader.sample_transforms", COMPLETE.replace("{NormalizeImage: {}}, ", ""), "NormalizeImage stands there 0"),
    ("EvalReader.sample_transforms", COMPLETE[:-1] + ", {NormalizeImage: {}}]", "NormalizeImage stands there 2 times"),
    ("EvalReader.sample_transforms", "[{Decode: {}}, {Permute: {}}, {NormalizeImage: {}}]", "Permute the last"),
    ("EvalReader.sample_transforms", "[{NormalizeImage: {}}, {Decode: {}}, {Permute: {}}]", "Decode must be the first"),
    ("EvalReader.sample_transforms", "[]", "found: nothing"),
    ("TrainReader.batch_transforms", "[{PadBatch: {pad_to_stride: 32}}]", "Gt2GFLTarget stands there 0 times"),
    ("TrainReader.batch_transforms", "[{Gt2GFLTarget: {}}, {PadBatch: {pad_to_stride: 32}}]", "PadBatch must come"),
])
def test_transforms_must_be_complete_and_in_order(reader, transforms, found):
    cfg = load_config("gfl_r18vd_1x_coco", [f"{reader}={transforms}"])
    with pytest.raises(ConfigError, match=f"{reader}: .*{found}"):
        build.build_reader(cfg, reader.partition(".")[0])


@pytest.mark.parametrize(("key", "value", "found"), [
    ("downsample_ratios", "[8, 16, 32]", r"\[8, 16, 32\], but the head has \[8, 16, 32, 64, 128\]"),
    ("cell_offset", "0.5", "0.5, but the head has 0"), ("num_classes", "7", "7, but the head has 80"),
])
def test_targets_must_be_those_of_the_head(key, value, found):
    cfg = load_config("gfl_r18vd_1x_coco", [f"TrainReader.batch_transforms.1.Gt2GFLTarget.{key}={value}"])
    model = build_model(cfg)
    with pytest.raises(ConfigError, match=f"Gt2GFLTarget.{key}: {found}"):
        check_targets(build.build_reader(cfg, "TrainReader"), model)
    check_targets(build.build_reader(load_config("gfl_r18vd_1x_coco"), "TrainReader"), model)


def test_offsets_of_the_levels_are_compared_as_what_they_are():
    same = "GFLHead.cell_offset=[0.5, 0.5, 0.5, 0.5, 0.5]"
    target = "TrainReader.batch_transforms.1.Gt2GFLTarget.cell_offset"
    cfg = load_config("gfl_r18vd_1x_coco", [same, f"{target}=0.5"])
    model = build_model(cfg)
    assert model.decoder.cell_offsets == model.criterion.cell_offsets == [0.5] * 5
    check_targets(build.build_reader(cfg, "TrainReader"), model)
    other = load_config("gfl_r18vd_1x_coco", [f"{target}=[0.4, 0.5, 0.5, 0.5, 0.5]"])
    with pytest.raises(ConfigError, match=r"cell_offset: \[0.4, 0.5, 0.5, 0.5, 0.5\], but the head has 0.5"):
        check_targets(build.build_reader(other, "TrainReader"), model)


def test_padding_must_be_that_of_the_backbone():
    cfg = load_config("gfl_r18vd_1x_coco", ["TrainReader.batch_transforms.0.PadBatch.pad_to_stride=16"])
    with pytest.raises(ConfigError, match="pad_to_stride: 16; .*a multiple of 32"):
        check_targets(build.build_reader(cfg, "TrainReader"), build_model(cfg))
