"""From pictures to a trained model by one command."""
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, image, text, voc_object

from ppgfl import ConfigError, load_config
from ppgfl.build import build_dataset, build_reader, build_schedule, check
from ppgfl.cli.commands import main
from ppgfl.config.load import best_weights, config_name
from ppgfl.training.recipe import SHORT_NAMES, Wish, find_weights, in_words, make_config, run_folder
from ppgfl.training.run_folder import RunFolder
from ppgfl.training.setup import _data_sets
from ppgfl.weights.zoo import MODELS


@pytest.mark.parametrize("model", SHORT_NAMES)
def test_the_config_is_whole_and_fits_the_data(shapes, tmp_path, model):
    wish = Wish(str(shapes), model, size=100, epochs=20, batch=4, weights="w.pdparams")
    cfg, train_set, eval_set = make_config(wish, tmp_path / "run")
    assert (len(train_set.records), len(eval_set.records)) == (8, 4)
    check(cfg)
    assert cfg["num_classes"] == 3
    assert cfg["pretrain_weights"] == "w.pdparams"
    sizes = [step["Resize"]["target_size"] for name in ("EvalReader", "TestReader")
             for step in cfg[name]["sample_transforms"] if "Resize" in step]
    assert sizes == [[128, 128]] * 2  # a multiple of 32
    build_reader(cfg, "TrainReader")
    schedule = build_schedule(cfg, steps_per_epoch=2)  # 8 images, 4 a step
    rates = [schedule.get_lr()]
    for _ in range(39):
        schedule.step()
        rates.append(schedule.get_lr())
    assert rates.index(max(rates)) == 4  # a tenth of 40 steps
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize(("epochs", "sizes"), [(23, [128, 128]), (24, [[96, 96], [160, 160]])])
def test_who_sees_an_image_often_sees_it_at_several_sizes(shapes, tmp_path, epochs, sizes):
    cfg, *_ = make_config(Wish(str(shapes), size=128, epochs=epochs), tmp_path / "run")
    resize, = (value for step in cfg["TrainReader"]["sample_transforms"] for key, value in step.items()
               if key in ("Resize", "RandomResize"))
    assert resize["target_size"] == sizes


def test_where_a_training_starts(shapes, tmp_path):
    released, backbone = (make_config(wish, tmp_path / "run")[0]["pretrain_weights"]
                          for wish in (Wish(str(shapes), "r50"), Wish(str(shapes), "r50", weights="backbone")))
    assert released == MODELS["gfl_r50_fpn_1x_coco"].weights
    assert backbone == load_config("gfl_r50_fpn_1x_coco")["pretrain_weights"]


@pytest.fixture
def voc_folder(tmp_path, monkeypatch):
    """Four images with XML files in the folder `mine` of the current one."""
    for i in range(4):
        image(tmp_path / "mine" / f"{i}.jpg")
        text(tmp_path / "mine" / f"{i}.xml", f"<annotation>{voc_object('cat', 1, 1, 30, 20)}</annotation>")
    monkeypatch.chdir(tmp_path)


def test_annotations_that_had_to_be_written_are_found_from_any_folder(voc_folder):
    cfg = make_config(Wish("mine"), Path("output", "run"))[0]
    assert len(build_dataset(cfg, "TrainDataset").records) == 3
    assert len(build_dataset(cfg, "EvalDataset").records) == 1


def test_the_data_sets_of_a_config_are_taken(shapes, tmp_path):
    config = tmp_path / "mine.yml"
    sections = {name: {"name": "COCODataSet", "dataset_dir": str(shapes), "image_dir": f"{split}2017",
                       "anno_path": f"annotations/instances_{split}2017.json", "data_fields": ["gt_bbox", "gt_class"]}
                for name, split in (("TrainDataset", "train"), ("EvalDataset", "val"))}
    config.write_text(yaml.safe_dump(sections))
    cfg = make_config(Wish(str(config)), tmp_path / "run")[0]
    assert {name: cfg[name] for name in sections} == sections
    config.write_text(yaml.safe_dump({"TrainDataset": sections["TrainDataset"]}))
    with pytest.raises(ConfigError, match="has no EvalDataset"):
        make_config(Wish(str(config)), tmp_path / "run")


def test_the_folder_of_the_run_is_where_save_dir_says():
    assert run_folder(Wish("data", name="mine")) == Path("output", "mine")
    assert run_folder(Wish("data"), ["epoch=3", "save_dir=/a/b", "save_dir=/c"]) == Path("/c/run")
    with pytest.raises(ConfigError, match="save_dir"):
        run_folder(Wish("data"), ["save_dir=[1]"])


def test_overrides_reach_the_data_sets_and_the_keys_of_the_recipe(shapes, tmp_path):
    overrides = [f"TrainDataset.anno_path={shapes}/annotations/instances_val2017.json", "LearningRate.base_lr=0.5",
                 f"TrainDataset.dataset_dir={shapes}/val2017"]
    cfg, train_set, _ = make_config(Wish(str(shapes), batch=16), tmp_path / "run", overrides)
    assert len(train_set.records) == 4
    assert cfg["TrainReader"]["batch_size"] == 4
    assert cfg["LearningRate"]["base_lr"] == 0.5
    assert cfg["LearningRate"]["schedulers"][0] == {"name": "CosineDecay", "max_epochs": 50}
    with pytest.raises(ConfigError, match="epoch"):
        make_config(Wish(str(shapes)), tmp_path / "run", ["epoch=many"])


def test_weights_that_are_missing_stop_before_anything_is_written(voc_folder, capsys, monkeypatch):
    for words in (["--weights", "nowhere"], ["-o", "pretrain_weights=nowhere"]):
        assert main("train", ["--data", "mine", *words]) == 2
        assert "error: nowhere: no such weights file" in capsys.readouterr().err
    assert not Path("output").exists()
    find_weights(Wish("mine"), ["pretrain_weights=null"])  # from nothing, on purpose
    fetched = []
    monkeypatch.setattr("ppgfl.weights.download.fetch", lambda address, **_: fetched.append(address))
    find_weights(Wish("mine", "r50"))
    find_weights(Wish("mine", "r50", weights="backbone"))
    assert fetched == [MODELS["gfl_r50_fpn_1x_coco"].weights, load_config("gfl_r50_fpn_1x_coco")["pretrain_weights"]]


def test_one_command_opens_each_data_set_once(voc_folder, monkeypatch, caplog):
    trained = {}
    monkeypatch.setattr("ppgfl.training.train.train", lambda cfg, **options: trained.update(options, cfg=cfg))
    monkeypatch.setattr("ppgfl.training.recipe._seconds_per_step", lambda cfg, loader: 1.0)
    monkeypatch.setattr("ppgfl.cli.commands.set_up", lambda level: None)
    with caplog.at_level("INFO", logger="ppgfl"):
        assert main("train", ["--data", "mine", "-o", "save_dir=elsewhere", "pretrain_weights=null",
                              "use_gpu=false"]) == 0
    assert caplog.text.count("images with boxes") == 2
    assert caplog.text.count("plan: r18vd from nothing") == 1
    assert "in a config" not in caplog.text  # which lines a config would need is the command's own matter
    assert not Path("output").exists()
    assert sorted(path.name for path in Path("elsewhere/run").rglob("*.json")) == ["instances_train.json",
                                                                                   "instances_val.json"]
    opened = trained["data_sets"]
    assert _data_sets(trained["cfg"], evaluate=True, opened=opened)[:2] == opened


def test_the_annotations_of_a_run_that_has_just_begun_stay(voc_folder, capsys):
    annotations = Path("output/run/annotations/instances_train.json")
    text(annotations, "of the other run")
    with RunFolder(Path("output", "run"), resume=None).locked():
        assert main("train", ["--data", "mine", "-o", "pretrain_weights=null"]) == 2
    assert "another run is writing there" in capsys.readouterr().err
    assert annotations.read_text() == "of the other run"


@pytest.mark.parametrize(("wish", "message"), [
    ({"model": "r18"}, "--model: r18; allowed: r18vd, r34vd"), ({"size": 31}, "--size: 31; it must be 32 or more"),
    ({"epochs": 0}, "--epochs: 0"), ({"batch": -1}, "--batch: -1"), ({"name": "a/b"}, "--name: 'a/b'; it is the name"),
    ({"name": ".."}, "--name"), ({"name": ""}, "--name"), ({"weights": ""}, "--weights: is empty; give a file")])
def test_a_wish_that_cannot_be_is_one_line(wish, message):
    with pytest.raises(ConfigError, match=message):
        Wish("data", **wish)


def test_in_words():
    assert [in_words(seconds) for seconds in (3, 90, 3569, 3600, 11100)] == ["1 min", "2 min", "59 min", "1 h 0 min",
                                                                             "3 h 5 min"]


def test_the_name_of_a_shipped_config_is_never_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "gfl_r18vd_1x_coco"
    run.mkdir()
    (run / "config.yml").write_text("epoch: 3\n")
    (run / "best_model.pdparams").touch()
    assert load_config("gfl_r18vd_1x_coco") == load_config(ROOT / "configs" / "gfl" / "gfl_r18vd_1x_coco.yml")
    assert load_config(run) == {"epoch": 3, "weights": str(run / "best_model")}


def test_the_folder_of_a_run_is_a_model(tmp_path):
    run = tmp_path / "mine.v2"
    run.mkdir()
    with pytest.raises(ConfigError, match="a folder without a config.yml"):
        load_config(run)
    (run / "config.yml").write_text("weights: elsewhere\nepoch: 3\n")
    assert load_config(run) == {"weights": "elsewhere", "epoch": 3}
    assert best_weights(run) is None
    for name in ("model_final", "best_model"):
        (run / f"{name}.pdparams").touch()
        assert load_config(run)["weights"] == str(run / name)
        assert load_config(run, ["weights=mine"])["weights"] == "mine"
    assert load_config(run / "config.yml")["weights"] == "elsewhere"
    assert [config_name(path) for path in (run, run / "config.yml", "gfl_r18vd_1x_coco")] == [
        "mine.v2", "config", "gfl_r18vd_1x_coco"]


@pytest.mark.drill
def test_one_command_and_the_three_that_it_names(run_here, shapes, r18vd_weights, tmp_path):
    wish = ["--data", shapes, "--size", 64, "--epochs", 2, "--batch", 4, "--name", "mine"]
    command = ["ppgfl", "train", *wish, "--weights", r18vd_weights, "-o", "use_gpu=false", "worker_num=0",
               "engine=dygraph"]
    done = run_here(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plan: r18vd from" in done.stdout
    assert "8 images for training and 4 for validation, 3 classes" in done.stdout
    assert "plan: 2 epochs of 2 steps of 4 images" in done.stdout
    run = Path("output/mine")
    for line in (f"ppgfl eval -c {run}", f"ppgfl infer -c {run} --infer_dir PHOTOS", f"ppgfl export -c {run}"):
        assert line in done.stdout
    assert (tmp_path / run / "model_final.pdparams").is_file()
    assert load_config(tmp_path / run / "config.yml")["num_classes"] == 3
    again = run_here(*command, cwd=tmp_path)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    photos = Path(shapes, "val2017")
    for words, made in ((["eval", "-c", run, "--no_report"], "bbox.json"),
                        (["infer", "-c", run, "--infer_dir", photos, "--output_dir", "pictures"], "pictures"),
                        (["export", "-c", run, "--no_verify"], "output_inference/mine/infer_cfg.yml")):
        done = run_here("ppgfl", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / made).exists()
