import pytest
from helpers import ROOT, ZOO

from ppgfl import ConfigError, load_config
from ppgfl.config.load import shipped_configs


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")


def test_bases_merge_in_order_and_the_file_itself_wins(tmp_path):
    write(tmp_path, one="a: 1\nsection: {x: 1, y: [1, 2]}", two="a: 2\nsection: {z: 3}",
          top="_BASE_: [one.yml, two.yml]\nsection: {y: [9]}\nb: 5")
    assert load_config(tmp_path / "top.yml") == {"a": 2, "b": 5, "section": {"x": 1, "y": [9], "z": 3}}


def test_tags_read_as_names(tmp_path):
    write(tmp_path, c="schedulers:\n- !PiecewiseDecay\n  gamma: 0.1\n- !Empty {}\nset: !COCODataSet\n  a: 1")
    cfg = load_config(tmp_path / "c.yml")
    assert cfg["schedulers"] == [{"name": "PiecewiseDecay", "gamma": 0.1}, {"name": "Empty"}]
    assert cfg["set"] == {"name": "COCODataSet", "a": 1}


def test_overrides_keep_siblings_and_parse_yaml(tmp_path):
    write(tmp_path, c="a: {b: {c: 1, d: 2}}\nops:\n- Resize: {size: [1, 2]}\nrate: 1e-3")
    cfg = load_config(tmp_path / "c.yml", ["a.b.c=[3, 4]", "new.key=true", "ops.0.Resize.size=5", "rate=2e-4", "t=x=y"])
    assert cfg["a"] == {"b": {"c": [3, 4], "d": 2}}
    assert cfg["new"] == {"key": True}
    assert cfg["ops"] == [{"Resize": {"size": 5}}]
    assert cfg["rate"] == 2e-4
    assert cfg["t"] == "x=y"


def test_numbers_without_a_dot_are_numbers(tmp_path):
    write(tmp_path, c="a: 1e-3\nb: -2E5\nc: 1e-3x")
    assert load_config(tmp_path / "c.yml") == {"a": 0.001, "b": -200000.0, "c": "1e-3x"}


@pytest.mark.parametrize(("text", "found"), [
    ("a: 1\na: 2", "'a' stands twice"),
    ("a: [1", "line 1"),
    ("- 1", "is a mapping"),
    ("x: !!python/object/apply:os.system ['echo hi']", "could not determine a constructor"),
    ("_BASE_: missing.yml", "there is no"),
    ("_BASE_: {a: 1}", "must be a list"),
    ("_BASE_: c.yml", "loop: c.yml -> c.yml"),
])
def test_bad_files_are_one_clear_line(tmp_path, text, found):
    write(tmp_path, c=text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "c.yml")
    assert found in str(error.value)
    assert "c.yml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_loop_of_bases_is_named(tmp_path):
    write(tmp_path, a="_BASE_: b.yml", b="_BASE_: c.yml", c="_BASE_: a.yml")
    with pytest.raises(ConfigError, match=r"a.yml -> b.yml -> c.yml -> a.yml"):
        load_config(tmp_path / "a.yml")


def test_the_same_base_twice_is_no_loop(tmp_path):
    write(tmp_path, base="x: 1", a="_BASE_: base.yml", b="_BASE_: base.yml", top="_BASE_: [a.yml, b.yml]")
    assert load_config(tmp_path / "top.yml") == {"x": 1}


@pytest.mark.parametrize(("override", "found"), [
    ("no_equals", "key=value"), ("=5", "key=value"), ("a.b=1", "leads nowhere"), ("l.7=1", "a list of 2"),
    ("a=[1", "not YAML"),
])
def test_bad_overrides(tmp_path, override, found):
    write(tmp_path, c="a: 1\nl: [1, 2]")
    with pytest.raises(ConfigError, match=found):
        load_config(tmp_path / "c.yml", [override if override != "a.b=1" else "a.b.c=1"])


def test_a_missing_config_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="gfl_r50_fpn_1x_coco"):
        load_config("gfl_r51")


@pytest.mark.parametrize("name", ZOO)
def test_shipped_configs_load_by_name_and_say_what_they_are(name):
    assert load_config(name) == load_config(ROOT / "configs" / "gfl" / f"{name}.yml")
    head = (shipped_configs()[0] / "gfl" / f"{name}.yml").read_text(encoding="utf-8").split("_BASE_")[0]
    expected = {"gfl_r50_fpn_1x_coco": "41.0", "gfl_r101vd_fpn_mstrain_2x_coco": "46.8", "gfl_r34vd_1x_coco": "40.8",
                "gfl_r18vd_1x_coco": "36.6", "gflv2_r50_fpn_1x_coco": "41.2"}[name]
    assert f"AP {expected}" in head
    assert f"python tools/eval.py -c configs/gfl/{name}.yml" in head


def test_a_base_may_be_a_shipped_config_by_name(tmp_path):
    write(tmp_path, mine="_BASE_: [gfl_r18vd_1x_coco]\nnum_classes: 3")
    assert load_config(tmp_path / "mine.yml") == {**load_config("gfl_r18vd_1x_coco"), "num_classes": 3}
    write(tmp_path, gfl_r18vd_1x_coco="num_classes: 7", near="_BASE_: gfl_r18vd_1x_coco.yml")
    assert load_config(tmp_path / "near.yml") == {"num_classes": 7}


def test_the_merge_key_of_yaml_merges(tmp_path):
    write(tmp_path, c="a: &a {x: 1, y: {z: 2}}\nb:\n  <<: *a\n  x: 3\nc: {<<: [{p: 1, q: 1}, {q: 2, r: 2}]}")
    cfg = load_config(tmp_path / "c.yml")
    assert cfg == {"a": {"x": 1, "y": {"z": 2}}, "b": {"x": 3, "y": {"z": 2}}, "c": {"p": 1, "q": 1, "r": 2}}
    write(tmp_path, twice="b: {<<: {x: 1}, x: 1, x: 2}")
    with pytest.raises(ConfigError, match="'x' stands twice"):
        load_config(tmp_path / "twice.yml")
    write(tmp_path, bad="b: {<<: 3}")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(tmp_path / "bad.yml")


def test_a_change_in_one_place_of_an_alias_stays_there(tmp_path):
    write(tmp_path, c="a: &a {x: {y: [1]}}\nb: *a\nc: {<<: *a}")
    cfg = load_config(tmp_path / "c.yml", ["b.x.y.0=2", "c.x.z=3"])
    assert cfg == {"a": {"x": {"y": [1]}}, "b": {"x": {"y": [2]}}, "c": {"x": {"y": [1], "z": 3}}}


@pytest.mark.parametrize("text", ["2026-13-45", "!!bool maybe", "!!int x", "!!timestamp x", "!!float x", "{[1]: 2}",
                                  "9" * 5000, "012", "-007", "1:30", "1:30.5", "[3, 08, 010]"])
def test_a_value_that_is_not_what_it_claims_to_be_is_one_line(tmp_path, text):
    write(tmp_path, c=f"a: {text}")
    with pytest.raises(ConfigError, match="c.yml"):
        load_config(tmp_path / "c.yml")
    with pytest.raises(ConfigError, match="-o a="):
        load_config("gfl_r18vd_1x_coco", [f"a={text}"])


BASE = "OptimizerBuilder: {optimizer: {type: Momentum, momentum: 0.9, weight_decay: 0.1}, regularizer: {type: L2}}"


@pytest.mark.parametrize(("own", "optimizer", "regularizer", "said"), [
    ("{optimizer: {type: SGD}}", {"type": "SGD", "weight_decay": 0.1}, {"type": "L2"}, "momentum"),
    ("{optimizer: {type: Adam, beta1: 0.8}}", {"type": "Adam", "beta1": 0.8, "weight_decay": 0.1}, {"type": "L2"},
     "momentum"),
    ("{optimizer: {type: AdamW}}", {"type": "AdamW", "weight_decay": 0.1}, None, "momentum, regularizer"),
    ("{optimizer: {type: AdamW}, regularizer: {type: L1}}", {"type": "AdamW", "weight_decay": 0.1}, {"type": "L1"},
     "momentum"),
    ("{optimizer: {type: AdamW, momentum: 0.5}}", {"type": "AdamW", "weight_decay": 0.1, "momentum": 0.5}, None,
     "regularizer"),
    ("{optimizer: {type: Momentum}}", {"type": "Momentum", "momentum": 0.9, "weight_decay": 0.1}, {"type": "L2"}, None),
    ("{optimizer: {momentum: 0.5}}", {"type": "Momentum", "momentum": 0.5, "weight_decay": 0.1}, {"type": "L2"}, None),
    ("{optimizer: {type: Adamm}}", {"type": "Adamm", "momentum": 0.9, "weight_decay": 0.1}, {"type": "L2"}, None),
    ("{optimizer: AdamW}", "AdamW", {"type": "L2"}, None),
])
def test_arguments_of_another_optimizer_stay_behind(tmp_path, caplog, own, optimizer, regularizer, said):
    write(tmp_path, base=BASE, own=f"_BASE_: base.yml\nOptimizerBuilder: {own}")
    for read in (lambda: load_config(tmp_path / "own.yml"),
                 lambda: load_config(tmp_path / "base.yml", [f"OptimizerBuilder={own}"])):
        caplog.clear()
        with caplog.at_level("INFO"):
            builder = read()["OptimizerBuilder"]
        assert (builder["optimizer"], builder["regularizer"]) == (optimizer, regularizer)
        assert caplog.messages == ([] if said is None else [
            f"OptimizerBuilder.optimizer.type: {optimizer['type']} instead of Momentum, so that these stay behind: "
            f"{said}"])


def test_another_optimizer_by_its_type_alone(tmp_path):
    write(tmp_path, base=BASE)
    cfg = load_config(tmp_path / "base.yml", ["OptimizerBuilder.optimizer.type=AdamW"])
    assert cfg["OptimizerBuilder"] == {"optimizer": {"type": "AdamW", "weight_decay": 0.1}, "regularizer": None}
    write(tmp_path, implied="OptimizerBuilder: {optimizer: {momentum: 0.8}}")
    cfg = load_config(tmp_path / "implied.yml", ["OptimizerBuilder.optimizer.type=SGD"])
    assert cfg["OptimizerBuilder"] == {"optimizer": {"type": "SGD"}}


def test_the_image_folder_of_another_kind_of_data_set_stays_behind(tmp_path, caplog):
    (tmp_path / "voc.yml").write_text("_BASE_: [gfl_r18vd_1x_coco, voc]\nTrainDataset: {dataset_dir: mine}\n")
    with caplog.at_level("INFO"):
        cfg = load_config(tmp_path / "voc.yml")
    assert (cfg["metric"], cfg["map_type"], cfg["num_classes"]) == ("VOC", "11point", 20)
    assert cfg["TrainDataset"] == {
        "name": "VOCDataSet", "dataset_dir": "mine", "anno_path": "trainval.txt", "label_list": "label_list.txt",
        "data_fields": ["image", "gt_bbox", "gt_class", "difficult"]}
    assert "TrainDataset.name: VOCDataSet instead of COCODataSet, so that this stays behind: image_dir train2017" in (
        caplog.messages)
    chosen = load_config("gfl_r18vd_1x_coco", ["TrainDataset={name: VOCDataSet, image_dir: mine}"])
    assert chosen["TrainDataset"]["image_dir"] == "mine"
    same = load_config("gfl_r18vd_1x_coco", ["TrainDataset.name=COCODataSet"])
    assert same["TrainDataset"]["image_dir"] == "train2017"
