"""Values of every key: of the right kind or one line that names the key, never a traceback."""
import copy
import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import numpy as np
import paddle
import pytest
from helpers import coco_as_voc, coco_as_yolo, config

from ppgfl import ConfigError, DataError, build
from ppgfl.config import keys
from ppgfl.config.values import as_written, fits, kinds_of, read, words_of
from ppgfl.kinds import Automatic, Count, CountOrAll, Part, Positive, Range, Share, ShareBelowOne

WRONG = (-1, 0, 7, 10**30, -0.5, 1.5, float("nan"), float("inf"), "word", "3", None, True, False, [], [0], ["a"],
         [None], [[1, 2], [3]], {}, {"a": 1}, {"name": 3}, {"name": "None"}, "", "None", datetime.date(2026, 1, 2),
         b"raw")


MADE = 2  # of the values that a key takes, so many are also built: that takes longer than the check


# --- kinds

@pytest.mark.parametrize(("kind", "good", "bad", "words"), [
    (int, [3, -1, np.int64(2)], [3.0, "3", True, None, [3], float("nan")], "a whole number"),
    (float, [3, 0.5, np.float32(1), 1e30], ["0.5", True, None, float("inf"), 10**400, 2**63], "a number"),
    (bool, [True, False], [0, 1, "yes", None], "true or false"),
    (str, ["a", ""], [3, None, True], "text"),
    (Count, [1, 9], [0, -1, 1.0], "a whole number, 1 or more"),
    (CountOrAll, [-1, 1], [0, -2], "a whole number, -1 or more, not 0 (-1 for all)"),
    (Positive, [0.1, 3], [0, -1], "a number, more than 0"),
    (Share, [0, 0.5, 1], [-0.1, 1.1], "a number, 0 to 1"),
    (ShareBelowOne, [0, 0.99], [1], "a number, 0 or more, less than 1"),
    (Literal["a", "b"], ["a"], ["c", None, 1], "allowed: a, b"),
    (Optional[Count], [None, 1], [0.5, "a"], "a whole number, 1 or more; or null"),
    (list[int], [[1, 2], (1,), []], [1, [1.0], ["a"], None], "a list of whole numbers"),
    (Union[int, list[int]], [1, [1]], ["a", [0.5]], "a whole number; or a list of whole numbers"),
    (list[Part], [["Name", {"name": "Name"}]], ["Name", [3]], "a list of names, or mappings with a key 'name'"),
    (Part, ["Name", {"name": "Name"}], [3, {}, {"name": 3}, None], "a name, or a mapping with a key 'name'"),
    (dict[str, Any], [{}, {"a": 1}], [[], "a", None], "a mapping of keys"),
    (Annotated[int, Range(2, 4), "even"], [2], [1, 5], "a whole number, 2 to 4 (even)"),
    (Any, [None, 1, "a", []], [], "anything"),
])
def test_kinds(kind, good, bad, words):
    assert [fits(value, kind) for value in good] == [True] * len(good)
    assert [fits(value, kind) for value in bad] == [False] * len(bad)
    assert words_of(kind) == words


def test_what_is_off_is_spelled_in_four_ways():
    for off in (None, False, 0, "None"):
        assert read("key", off, Optional[Positive]) is None
        assert read("key", off, Optional[dict[str, Any]]) is None
    assert read("key", 0, Optional[Share]) == 0  # a value of its own
    assert read("key", "None", Optional[str]) is None
    for wrong in (False, 0, "None"):  # null means something else than off here
        with pytest.raises(ConfigError, match="key: "):
            read("key", wrong, Union[Count, Automatic])
    with pytest.raises(ConfigError, match="key: true; it must be"):
        read("key", True, Optional[Positive])


def test_a_message_shows_the_value_as_a_config_has_it():
    assert [as_written(value) for value in (None, True, False)] == ["null", "true", "false"]
    assert [as_written(value) for value in (1, "a", [1, 0])] == ["1", "'a'", "[1, 0]"]
    assert len(as_written("a" * 1000)) < 100
    with pytest.raises(ConfigError, match=r"epoch: '3'; it must be a whole number, 1 or more \(.* is written 3\)"):
        read("epoch", "3", Count)
    with pytest.raises(ConfigError, match=r"lr: '-\.5'; it must be a number, more than 0 \(.* is written -0\.5\)"):
        read("lr", "-.5", Positive)  # YAML 1.1 reads it as text


def test_kinds_come_from_signatures_also_with_the_unions_that_python_39_lacks():
    class Thing:
        def __init__(self, a: "int | list[int] | None" = None, b: "list[int | float]" = (), c=3, *, d: Path = Path()):
            pass

    assert kinds_of(Thing) == {"a": Union[int, list[int], None], "b": list[Union[int, float]], "c": Any, "d": Path}


# --- each key with each wrong value

SHIFT = [{"RandomShift": {}}]
TRANSFORMS = [
    {"Decode": {}}, {"Mixup": {}}, {"Cutmix": {}}, {"Mosaic": {"input_dim": 48}}, {"AutoAugment": {}},
    {"AugmentHSV": {"hgain": 1, "sgain": 1, "vgain": 1}}, {"RandomDistort": {}}, {"RandomFlip": {}},
    {"Lighting": {"eigval": [1, 2, 3], "eigvec": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}}, {"GridMask": {}},
    {"RandomErasing": {}}, {"RandomErasingCrop": {}}, {"RandomShift": {}}, {"RandomExpand": {"ratio": 1.5}},
    {"RandomCrop": {}}, {"RandomSizeCrop": {"min_size": 9, "max_size": 90}},
    {"RandomShortSideResize": {"short_side_sizes": [40, 50]}}, {"RandomScaledCrop": {"target_size": 48}},
    {"Pad": {}}, {"PadResize": {"target_size": 64}}, {"RandomSelect": {"transforms1": SHIFT, "transforms2": []}},
    {"RandomSelects": {"transforms_list": [SHIFT]}}, {"Resize": {"target_size": [64, 96], "keep_ratio": True}},
    {"RandomResize": {"target_size": [[64, 96], [32, 48]]}}, {"NormalizeImage": {}}, {"Permute": {}}]
IN_LISTS = {**{name: f"TrainReader.sample_transforms.{i}.{name}" for i, each in enumerate(TRANSFORMS) for name in each},
            "PadBatch": "TrainReader.batch_transforms.0.PadBatch",
            "Gt2GFLTarget": "TrainReader.batch_transforms.1.Gt2GFLTarget",
            "PiecewiseDecay": "LearningRate.schedulers.0", "LinearWarmup": "LearningRate.schedulers.1"}
NESTED = {"FCOSFeat": "GFLHead.conv_feat", "DGQP": "GFLHead.dgqp_module", "QualityFocalLoss": "GFLHead.loss_class",
          "DistributionFocalLoss": "GFLHead.loss_dfl", "GIoULoss": "GFLHead.loss_bbox",
          "MultiClassNMS": "GFLHead.nms", "COCODataSet": "TrainDataset", "ImageFolder": "TestDataset"}
FORMATS = ("VOCDataSet", "YOLODataSet")  # `test_no_value_of_a_data_set_ends_in_a_traceback`


def small(folder):
    """A config of everything, small."""
    cfg = config(folder, folder, "num_classes=80", "TestReader.inputs_def.image_shape=[3, 64, 64]")
    cfg["TrainReader"]["sample_transforms"] = copy.deepcopy(TRANSFORMS)
    cfg["LearningRate"]["schedulers"] = [{"name": "PiecewiseDecay"}, {"name": "LinearWarmup"}]
    cfg["OptimizerBuilder"]["clip_grad_by_norm"] = None
    for name in ("TrainDataset", "EvalDataset", "TestDataset"):
        cfg[name].update(dataset_dir=str(folder), anno_path="annotations/instances_val2017.json")
    cfg["TrainDataset"]["image_dir"] = cfg["EvalDataset"]["image_dir"] = "val2017"
    return cfg


def make_all(cfg, key):
    """Make what a section or key is about; a model only where it is about one."""
    if key in ("GFL", "num_classes", "norm_type", "upstream_scores", *build.BACKBONES, *build.NECKS, "GFLHead"):
        build.make_model(cfg)
    if key.endswith("Dataset"):
        build.build_dataset(cfg, key)
    if key.endswith("Reader") or key in ("worker_num", "corrupt_images", "num_classes"):
        reader = key if key.endswith("Reader") else "TrainReader"
        records = build.build_dataset(cfg, "TrainDataset").records
        loader = build.build_loader(cfg, reader, records)
        loader.maker(0, [0, 1])
    if key in ("LearningRate", "OptimizerBuilder", "CosineDecay", "ExpWarmup"):
        layer = paddle.nn.Linear(1, 1)
        optimizer = build.build_optimizer(cfg, layer, steps_per_epoch=5, total_batch_size=2)
        layer(paddle.ones([1, 1])).sum().backward()
        optimizer.step()
    if key.startswith(("use_ema", "ema_")):
        build.build_ema(cfg, paddle.nn.Linear(1, 1))
    for name in keys.TOP_LEVEL:
        keys.setting(cfg, name)


def places():
    """Where each key is that somebody reads: "ResNet.depth", "LearningRate.schedulers.0.gamma", "epoch", ..."""
    for name, cls in build.CLASSES.items():
        if name in FORMATS:
            continue
        yield from (f"{IN_LISTS.get(name) or NESTED.get(name, name)}.{key}"
                    for key, kind in keys.keys_of(name, cls).items() if kind is not Any)
    for name, known in keys.SECTIONS.items():
        yield from (f"{name}.{key}" for key in known if known[key].kind is not Any)
    yield from ("ResNet", "FPN", "GFLHead", "TrainDataset", *keys.SECTIONS, *keys.TOP_LEVEL)
    yield from (f"OptimizerBuilder.optimizer.{key}" for key in ("type", *keys.OPTIMIZERS["Momentum"]))
    yield from (f"OptimizerBuilder.regularizer.{key}" for key in keys.REGULARIZER)
    yield "TestReader.inputs_def.image_shape"


def put(cfg, place, value):
    """A deep copy of a config with another value in a place."""
    cfg = copy.deepcopy(cfg)
    *parents, last = place.split(".")
    inside = cfg
    for key in parents:
        step = int(key) if isinstance(inside, list) else key
        if not isinstance(inside.get(step) if isinstance(inside, dict) else inside[step], (dict, list)):
            inside[step] = {"name": "DGQP"} if step == "dgqp_module" else {}
        inside = inside[step]
    inside[last] = value
    return cfg


def test_no_value_of_any_key_ends_in_a_traceback(small_coco):
    tried, refused = try_all(small(small_coco), places())
    assert tried > 5000
    assert refused > 0.8 * tried


@pytest.mark.parametrize("name", FORMATS)
def test_no_value_of_a_data_set_ends_in_a_traceback(small_coco, shapes, tmp_path, name, monkeypatch):
    """From its own folder, so that a list of files that is "" or "." is none of somebody else's."""
    monkeypatch.chdir(tmp_path)
    base = small(small_coco)
    if name == "VOCDataSet":
        folder = coco_as_voc(shapes, tmp_path / "data", "train2017")
        section = {"anno_path": "train2017.txt", "label_list": "label_list.txt"}
    else:
        folder, section = coco_as_yolo(shapes, tmp_path / "data", ["train2017"]), {"anno_path": "data.yaml"}
    base["TrainDataset"] = {"name": name, "dataset_dir": str(folder), **section}
    tried, refused = try_all(base, [f"TrainDataset.{key}" for key in keys.keys_of(name, build.DATASETS[name])])
    assert refused > 0.5 * tried > 100


def try_all(base, wanted):
    """Give every place each wrong value -> how often that was tried, and how often refused, which must be in a line."""
    tried, refused = 0, 0
    build.check(base)
    for place in wanted:
        made = 0
        for value in WRONG:
            tried += 1
            cfg, top = put(base, place, value), place.split(".")[0]
            try:
                build.check({top: cfg[top]})  # the others are those of `base`
                made += 1
                if made <= MADE:
                    make_all(cfg, top)
            except (ConfigError, DataError) as error:
                refused += 1
                assert "\n" not in str(error), place
                named = [word for word in place.split(".") if not word.isdigit()][-2:]
                named += ["no such image"] if place == "TestDataset.image_dir" else []
                assert any(word in str(error) for word in named), (place, value, str(error))
            except Exception as error:
                raise AssertionError(f"{place}: {value!r}: {error!r}") from error
    return tried, refused
