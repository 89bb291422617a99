"""PaddleDetection's own readers under GFL, the orders of transforms that work, and transforms of a user's own."""
import copy
import pickle

import numpy as np
import pytest
import yaml
from helpers import GOLDEN, config, tiny_config

from ppgfl import ConfigError, DataError, build, load_config
from ppgfl.config import keys
from ppgfl.fit import check_targets
from ppgfl.readers import BATCH_TRANSFORMS, SAMPLE_TRANSFORMS

READERS = {name: reader for name, reader in
           yaml.safe_load((GOLDEN / "readers.yml").read_text(encoding="utf-8")).items() if not name.startswith("_")}
SIZES = ("target_size", "short_side_sizes", "max_size", "min_size", "input_dim")


@pytest.fixture(scope="module")
def model():
    return build.build_model(tiny_config("gfl_r18vd_1x_coco"))


def smaller(value, *, size=False):
    """The same reader with a fifth of all sizes in pixels, so that a step takes a moment."""
    if isinstance(value, dict):
        return {key: smaller(each, size=size or key in SIZES) for key, each in value.items()}
    if isinstance(value, list):
        return [smaller(each, size=size) for each in value]
    return value // 5 if size and isinstance(value, int) else value


def under_gfl(reader):
    """A reader as its refusals tell to change it: what belongs to other heads is out, GFL's targets are in."""
    reader = smaller(copy.deepcopy(reader))
    for key in ("sample_transforms", "batch_transforms"):
        reader[key] = [entry for entry in reader[key] if next(iter(entry)) not in keys.ABSENT]
    names = [next(iter(entry)) for key in ("sample_transforms", "batch_transforms") for entry in reader[key]]
    if "NormalizeImage" not in names:
        reader["sample_transforms"].append({"NormalizeImage": {}})
    if "PadBatch" not in names:
        reader["batch_transforms"].append({"PadBatch": {"pad_to_stride": 32}})
    reader["batch_transforms"].append({"Gt2GFLTarget": {}})
    return {**reader, "batch_size": 2, "shuffle": True, "drop_last": True}


def given(reader, small_coco):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"TrainDataset.dataset_dir={small_coco}",
                      "TrainDataset.anno_path=annotations/instances_val2017.json", "TrainDataset.image_dir=val2017")
    cfg["TrainReader"] = reader
    return cfg


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_paddledetection_trains(name, model, small_coco):
    cfg = given(READERS[name], small_coco)
    others = {kind for key in ("sample_transforms", "batch_transforms") for entry in READERS[name][key]
              for kind in entry if kind not in {**SAMPLE_TRANSFORMS, **BATCH_TRANSFORMS}}
    assert others <= set(keys.ABSENT)
    if others:
        with pytest.raises(ConfigError, match="ppgfl leaves it out on purpose"):
            build.build_reader(cfg, "TrainReader")
    cfg = given(under_gfl(READERS[name]), small_coco)
    build.check(cfg)
    loader = build.build_loader(cfg, "TrainReader", build.build_dataset(cfg, "TrainDataset").records, seed=3)
    check_targets(loader.maker.reader, model)
    optimizer = build.build_optimizer(cfg, model, steps_per_epoch=2, total_batch_size=2)
    model.train()
    steps = list(loader.epoch(0))[:2]
    for batch in steps:
        loss = model(batch)["loss"]
        assert np.isfinite(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    assert len(steps) == 2


# --- order, and the epochs of mixing

START, END = [{"Decode": {}}], [{"NormalizeImage": {}}, {"Permute": {}}]
BATCH = [{"PadBatch": {"pad_to_stride": 32}}, {"Gt2GFLTarget": {}}]
RESIZE = {"BatchRandomResize": {"target_size": [64], "keep_ratio": False}}


@pytest.mark.parametrize(("sample", "batch", "more", "found"), [
    (START + END, [RESIZE, *BATCH], {}, "BatchRandomResize must come before Permute"),
    (START, [RESIZE, END[0], *BATCH, END[1]], {}, "PadBatch must come after Permute"),
    ([*START, END[0], {"RandomDistort": {}}, END[1]], BATCH, {}, "RandomDistort works on the pixels' values"),
    ([*START, *END], [END[0], *BATCH], {}, "NormalizeImage stands there 2 times; it must stand once there or in"),
    ([*START, *END], BATCH, {"mixup_epoch": 3}, "TrainReader.mixup_epoch: 3; there is no Mixup"),
    ([*START, {"Cutmix": {}}, {"Cutmix": {}}, *END], BATCH, {"cutmix_epoch": 3}, "Cutmix stands there 2 times"),
    (START, [{"Mixup": {}}, RESIZE, *END, *BATCH], {}, "unknown name 'Mixup'"),
    ([*START, {"RandomSelect": {"transforms1": [{"Mixup": {}}], "transforms2": []}}, *END], BATCH, {},
     r"sample_transforms\[1\].RandomSelect.transforms1\[0\]: unknown name 'Mixup'"),
    ([*START, {"RandomSelect": {"transforms1": []}}, *END], BATCH, {}, "RandomSelect.transforms2: missing|transforms2"),
])
def test_transforms_that_cannot_work(sample, batch, more, found):
    cfg = load_config("gfl_r18vd_1x_coco")
    cfg["TrainReader"] = {"sample_transforms": sample, "batch_transforms": batch, **more}
    with pytest.raises(ConfigError, match=found):
        build.build_reader(cfg, "TrainReader")


def test_keys_inside_of_lists_of_transforms_are_checked():
    cfg = load_config("gfl_r18vd_1x_coco")
    inner = [{"RandomShift": {"max_shft": 3}}, {"RandomCrop": {"num_attempts": 0}}]
    cfg["TrainReader"]["sample_transforms"].insert(1, {"RandomSelects": {"transforms_list": [inner]}})
    with pytest.raises(ConfigError) as error:
        build.check(cfg)
    place = "TrainReader.sample_transforms[1].RandomSelects.transforms_list[0]"
    assert f"{place}[0].RandomShift: unknown key 'max_shft'" in str(error.value)
    assert f"{place}[1].RandomCrop.num_attempts: 0" in str(error.value)


def test_images_are_mixed_in_their_epochs():
    cfg = load_config("gfl_r18vd_1x_coco")
    mixers = [{"Mosaic": {"input_dim": 64}}, {"Cutmix": {}}, {"Mixup": {}}]
    cfg["TrainReader"].update(sample_transforms=[*START, *mixers, *END], mixup_epoch=1, cutmix_epoch=3)
    mosaic_later = {**cfg, "TrainReader": {**cfg["TrainReader"], "mosaic_epoch": 0}}
    kinds = [[type(build.build_reader(each, "TrainReader").mixer(epoch)).__name__ for epoch in range(5)]
             for each in (cfg, mosaic_later)]
    assert kinds == [["Mixup", "Cutmix", "Cutmix", "NoneType", "NoneType"],
                     ["Mixup", "Cutmix", "Cutmix", "Mosaic", "Mosaic"]]


def test_a_batch_is_the_same_wherever_it_is_made(small_coco):
    reader = under_gfl(READERS["yolov3/_base_/yolov3_reader.yml"])
    cfg = given(reader, small_coco)
    records = build.build_dataset(cfg, "TrainDataset").records
    maker = build.build_loader(cfg, "TrainReader", records, seed=3).maker
    first, again = maker(1, [0, 2])[0], pickle.loads(pickle.dumps(maker))(1, [0, 2])[0]
    assert all(np.array_equal(first[key], again[key]) for key in first)
    cfg["worker_num"] = 2
    in_workers = [[batch["image"].numpy() for batch in build.build_loader(
        {**cfg, "worker_num": count}, "TrainReader", records, seed=3).epoch(1)] for count in (0, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(*in_workers))
    sizes = {maker(epoch, [0, 2])[0]["image"].shape for epoch in range(12)}
    assert len(sizes) > 2  # drawn for each batch


# --- a user's own

BLUR = """
import cv2

class Blur:
    def __init__(self, radius: int = 2):
        self.size = 2 * radius + 1

    def __call__(self, sample, rng):
        sample["image"] = cv2.blur(sample["image"], (self.size, self.size))
"""


@pytest.fixture
def own(tmp_path, small_coco):
    """-> a function: a class's text, its arguments -> the config that names it, and the folder."""
    def write(text, args="{}", folder=tmp_path, name="ops.py:Blur"):
        (folder / "ops.py").write_text(text, encoding="utf-8")
        (tmp_path / "mine.yml").write_text(
            "_BASE_: [gfl_r18vd_1x_coco]\nworker_num: 0\nTrainReader:\n  sample_transforms:\n    - Decode: {}\n"
            f"    - {name}: {args}\n    - Resize: {{target_size: [64, 96], keep_ratio: true}}\n"
            "    - NormalizeImage: {}\n    - Permute: {}\n"
            f"TrainDataset: {{dataset_dir: {str(small_coco)!r}, image_dir: val2017, "
            "anno_path: annotations/instances_val2017.json}\n", encoding="utf-8")
        return tmp_path / "mine.yml"
    return write


def batch_of(cfg):
    build.check(cfg)
    records = build.build_dataset(cfg, "TrainDataset").records
    return build.build_loader(cfg, "TrainReader", records).maker


def test_a_transform_of_a_users_own(own):
    sharp, blurred = (batch_of(load_config(own(BLUR, f"{{radius: {radius}}}")))(0, [0, 1])[0]["image"]
                      for radius in (0, 5))
    assert blurred.std() < sharp.std()
    maker = batch_of(load_config(own(BLUR)))
    copy_in_worker = pickle.loads(pickle.dumps(maker))
    assert np.array_equal(maker(0, [0])[0]["image"], copy_in_worker(0, [0])[0]["image"])


@pytest.mark.parametrize(("args", "found"), [
    ("{radius: 1.5}", "radius: 1.5; it must be a whole number"), ("{radus: 1}", "unknown key 'radus', did you mean"),
])
def test_arguments_of_a_users_own_are_checked(args, found, own):
    with pytest.raises(ConfigError, match=rf"TrainReader.sample_transforms\[1\].*ops.py:Blur.*{found}"):
        build.check(load_config(own(BLUR, args)))


@pytest.mark.parametrize(("text", "found"), [
    ("class Blur:\n    def __call__(self, sample, rng):\n        sample['image'] = 1 / 0\n",
     "ops.py, line 3, in Blur: ZeroDivisionError: division by zero"),
    ("class Blur:\n    def __call__(self, sample, rng):\n        sample['image'] = sample['image'] / 255\n",
     "image is float64; it must be an array, uint8 or float32"),
    ("class Blur:\n    def __call__(self, sample, rng):\n        return sample\n", "it returned something"),
    ("class Blur:\n    def __call__(self, sample, rng):\n        sample['gt_bbox'] = sample['gt_bbox'][:1]\n",
     "gt_bbox has 1 boxes, but gt_class has 3"),
    ("class Blur:\n    def __call__(self, sample):\n        pass\n", "TypeError: .*positional argument"),
])
def test_an_error_in_a_users_own_names_file_and_line(text, found, own):
    with pytest.raises(DataError, match=found):
        batch_of(load_config(own(text)))(0, [0, 1])


@pytest.mark.parametrize(("text", "found"), [
    ("class Blur:\n    x =\n", "ops.py, line 2, in Blur: SyntaxError"),
    ("import nothing_like_that\n", "ops.py, line 1, in Blur: ModuleNotFoundError"),
    ("class Blurr: pass\n", "has no class Blur, did you mean 'Blurr'"),
    ("class Blur:\n    pass\n", "has no __call__"),
    ("class Blur:\n    def __init__(self):\n        raise ValueError('so')\n", "line 3, in Blur: ValueError: so"),
])
def test_a_file_that_gives_no_transform(text, found, own):
    with pytest.raises(ConfigError, match=found):
        batch_of(load_config(own(text)))


def test_a_users_own_lies_beside_the_config_that_names_it(own, tmp_path):
    (tmp_path / "other").mkdir()
    config_file = own(BLUR, folder=tmp_path / "other", name="other/ops.py:Blur")
    with pytest.raises(ConfigError, match="lies in another folder than the config that names it"):
        load_config(config_file)
    batch_of(load_config(config_file, ["trust=true"]))(0, [0])
    config_file.write_text(config_file.read_text() + "trust: true\n")
    with pytest.raises(ConfigError, match="a file cannot say whether it is trusted"):
        load_config(config_file)
    (tmp_path / "gone.yml").write_text("_BASE_: [mine.yml]\nTrainReader: {sample_transforms: [gone.py:Blur: {}]}\n")
    own(BLUR)
    with pytest.raises(ConfigError, match=r"gone.py:Blur: No such file"):
        build.check(load_config(tmp_path / "gone.yml"))


def test_a_config_in_another_folder_inherits_a_users_own(own, tmp_path):
    base = own(BLUR)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.yml").write_text(f"_BASE_: [{base}]\nepoch: 3\n")
    here, there = (batch_of(load_config(path))(0, [0])[0]["image"] for path in (base, tmp_path / "sub" / "more.yml"))
    np.testing.assert_array_equal(there, here)


def test_an_export_refuses_a_users_own(own, shapes, tmp_path):
    from ppgfl.inference.export import describe

    own(BLUR)
    cfg = config(shapes, tmp_path)
    cfg["TestReader"]["sample_transforms"].insert(1, {f"{tmp_path}/ops.py:Blur": {}})
    with pytest.raises(ConfigError, match=r"TestReader: .*ops.py:Blur cannot be exported"):
        describe(cfg, [3, 64, 64])
