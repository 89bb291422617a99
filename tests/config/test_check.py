"""The config is checked once per command, before anything is made."""
import paddle
import pytest
from helpers import ROOT, config, tiny_config

from ppgfl import ConfigError, Detector, build, evaluate, load_config, train
from ppgfl.config import check
from ppgfl.config.keys import IGNORED, TOP_LEVEL, optimizer_section
from ppgfl.inference.infer import infer


@pytest.fixture
def checks(monkeypatch):
    """The configs that were checked so far."""
    checked, real = [], build.check_config
    monkeypatch.setattr(build, "check_config", lambda cfg, classes: checked.append(cfg) or real(cfg, classes))
    return checked


def test_each_command_checks_once(checks, small_coco, shapes, r18vd_weights, tmp_path, monkeypatch):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", "engine=dygraph")
    evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path)
    assert len(checks) == 1
    infer(cfg, str(small_coco / "val2017"), weights=r18vd_weights, output_dir=tmp_path / "drawn")
    assert len(checks) == 2
    train(config(shapes, tmp_path, "epoch=1"), evaluate=True)
    assert len(checks) == 3
    Detector("gfl_r18vd_1x_coco", weights=r18vd_weights, overrides=["engine=dygraph", "use_gpu=false"])
    assert len(checks) == 4


def test_the_graph_of_an_evaluation_is_made_without_another_check(checks, small_coco, r18vd_weights, tmp_path,
                                                                  monkeypatch):
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", "engine=static")
    evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path)
    assert len(checks) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yml")), ids=lambda path: path.stem)
def test_shipped_configs_have_no_findings(path, caplog):
    check._warn_once.cache_clear()
    with caplog.at_level("WARNING"):
        build.check(load_config(path))
    assert not caplog.messages


@pytest.mark.parametrize(("key", "value"), [("fleet", True), ("cycle_epoch", 10), ("eval_size", [640, 640])])
def test_keys_of_paddledetection_without_an_effect_say_what_they_do_there(key, value, caplog):
    check._warn_once.cache_clear()
    with caplog.at_level("WARNING"):
        build.check({key: value})
        build.check({key: value})
        build.check({each: off for each in IGNORED for off in (None, False, 0, -1, "", [])})
    assert caplog.messages == [f"{key}: has no effect; in PaddleDetection it {IGNORED[key]}"]
    assert not IGNORED.keys() & TOP_LEVEL.keys()


@pytest.mark.parametrize("key", ["use_xpu", "use_npu", "use_mlu"])
def test_a_device_that_ppgfl_lacks_is_refused(key):
    for off in (False, None, 0, "None"):
        build.check({key: off})
    with pytest.raises(ConfigError, match=f"{key}: true; allowed: false .ppgfl computes on CPUs and on NVIDIA's GPUs"):
        build.check({key: True})


@pytest.mark.parametrize(("key", "bad", "found"), [
    ("custom_white_list", "conv2d", "it must be a list of texts"), ("custom_black_list", [3], "a list of texts"),
    ("master_grad", 1, "true or false"), ("init_loss_scaling", 0, "more than 0")])
def test_keys_of_mixed_precision(key, bad, found):
    build.check({"custom_white_list": ["softmax"], "custom_black_list": None, "master_grad": True,
                 "init_loss_scaling": 32768.0})
    with pytest.raises(ConfigError, match=f"{key}: .*{found}"):
        build.check({key: bad})


@pytest.mark.parametrize(("override", "found"), [
    ("EvalDataset.name=ImageFolder", "^EvalDataset.name: ImageFolder; it must be COCODataSet"),
    ("EvalDataset={name: VOCDataSet, label_lst: a.txt}", "unknown key 'label_lst', did you mean 'label_list'"),
    ("TrainDataset={name: YOLODataSet, split: all}", "TrainDataset.split: 'all'; allowed: train, val, test; or null"),
    ("EvalDataset=COCODataSet", "EvalDataset: 'COCODataSet'; it must be a mapping of keys"),
    ("EvalDataset.name=null", "EvalDataset.name: unknown name null; Allowed: COCODataSet, ImageFolder, VOC"),
    ("metric=RBOX", "metric: 'RBOX'; allowed: COCO, VOC"), ("map_type=9point", "'9point'; allowed: 11point, integral"),
    ("GFL=null", "GFL: null; it must be a mapping of keys"),
    ("ResNet.depth=18.0", "ResNet.depth: 18.0; it must be a whole number"),
    ("ResNet.lr_mult_list=[1, 1, -1, 1]", r"lr_mult_list: \[1, 1, -1, 1\]; it must be a list of numbers, 0 or more"),
    ("TrainReader.sample_transforms.1.RandomFlip.prob=true",
     r"TrainReader.sample_transforms\[1\].RandomFlip.prob: true; it must be a number, 0 to 1"),
    ("TrainReader.sample_transforms.1.RandomFlip=7", r"sample_transforms\[1\].RandomFlip: 7; it must be a mapping"),
    ("TestReader.inputs_def.image_shap=[3, 64, 64]", "unknown key 'image_shap', did you mean 'image_shape'"),
    ("TestReader.inputs_def.image_shape=64", "inputs_def.image_shape: 64; it must be a list of whole numbers"),
    ("LearningRate.schedulers.0.milestones=8", r"LearningRate.schedulers\[0\].milestones: 8; it must be a list"),
    ("LearningRate.schedulers=[CosineDecay, LinearWarmup, ExpWarmup]", "schedulers: .*1 to 2 of them"),
    ("OptimizerBuilder.optimizer=AdamW", "^OptimizerBuilder.optimizer: 'AdamW'; it must be a mapping .*{type: AdamW"),
    ("OptimizerBuilder.optimizer.type=Lion", "OptimizerBuilder.optimizer.type: 'Lion'; Allowed: Adam, AdamW, Momentum"),
    ("OptimizerBuilder.optimizer.type=[Adam]", "OptimizerBuilder.optimizer.type: .'Adam'.;"),
    ("OptimizerBuilder.optimizer.momentm=0.5", "OptimizerBuilder.optimizer: unknown key 'momentm', did you mean"),
    ("OptimizerBuilder.optimizer.weight_decay=0.1", "regularizer: Momentum decays weights itself"),
    ("OptimizerBuilder.regularizer.type=L3", "OptimizerBuilder.regularizer.type: 'L3'; allowed: L1, L2"),
    ("OptimizerBuilder={clip_grad_by_norm: 1, clip_grad_by_value: 1}", "only one of them"),
    ("teacher={num_classes: 0, GFLHed: {}}", "teacher.num_classes: 0; .*teacher.GFLHed: unknown key; did you"),
    ("ResNet.depht=null", "ResNet: unknown key 'depht'"),  # null takes away keys of other classes, not slips
])
def test_findings_name_the_key_and_what_it_may_be(override, found):
    with pytest.raises(ConfigError, match=found):
        build.check(load_config("gfl_r18vd_1x_coco", [override]))


MOMENTUM, L2 = {"type": "Momentum", "momentum": 0.9}, {"type": "L2", "factor": 1e-4}


@pytest.mark.parametrize(("overrides", "optimizer", "regularizer"), [
    (["log_iter=1"], MOMENTUM, L2),
    *[([f"OptimizerBuilder.regularizer={off}"], MOMENTUM, None) for off in ("null", "false", "0", "'None'", "None")],
    (["OptimizerBuilder.optimizer.type=AdamW"], {"type": "AdamW"}, None),
    (["OptimizerBuilder.optimizer.type=Adam"], {"type": "Adam"}, L2),
    (["OptimizerBuilder.optimizer.type=SGD"], {"type": "SGD"}, L2),
    (["OptimizerBuilder.optimizer={type: AdamW, momentum: null}"], {"type": "AdamW"}, None),
    (["OptimizerBuilder={optimizer: {type: Adam, weight_decay: 0.1}, regularizer: false}"],
     {"type": "Adam", "weight_decay": 0.1}, None),
    (["OptimizerBuilder=null", "OptimizerBuilder.optimizer.type=AdamW"], {"type": "AdamW"}, None),  # no inherited one
    (["OptimizerBuilder=null", "OptimizerBuilder.optimizer.weight_decay=1"],
     {"type": "Momentum", "weight_decay": 1}, None),
])
def test_optimizers_are_chosen_over_a_shipped_base(overrides, optimizer, regularizer):
    cfg = load_config("gfl_r18vd_1x_coco", overrides)
    build.check(cfg)
    keys = optimizer_section(cfg)
    assert (keys["optimizer"], keys["regularizer"]) == (optimizer, regularizer)
    made = build.build_optimizer(cfg, paddle.nn.Linear(1, 1), steps_per_epoch=1)
    assert type(made).__name__ == optimizer["type"]


@pytest.mark.parametrize("off", ["null", "false", "0", "'None'", "None"])
def test_a_limit_of_gradients_is_off_in_each_spelling(off):
    cfg = load_config("gfl_r18vd_1x_coco", [f"OptimizerBuilder={{clip_grad_by_norm: {off}, clip_grad_by_value: 35}}"])
    build.check(cfg)
    assert optimizer_section(cfg)["clip_grad_by_norm"] is None


def test_a_key_of_another_class_is_taken_away_with_null():
    cfg = load_config("gfl_r18vd_1x_coco", ["TestDataset={allow_empty: null, image_dir: null}"])
    build.check(cfg)
    assert build.build_dataset(cfg, "TestDataset").records == []
