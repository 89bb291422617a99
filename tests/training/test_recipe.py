"""From pictures to a trained model by one command."""
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, image, text, voc_object

from ppgfl import ConfigError, load_config
from ppgfl.build import build_dataset, build_reader, build_schedule, check
from ppgfl.config.load import best_weights, config_name
from ppgfl.training.recipe import SHORT_NAMES, Wish, in_words, make_config
from ppgfl.weights.zoo import MODELS


@pytest.mark.parametrize("model", SHORT_NAMES)
def test_the_config_is_whole_and_fits_the_data(shapes, tmp_path, model):
    cfg = make_config(Wish(str(shapes), model, size=100, epochs=20, batch=4, weights="w.pdparams"), tmp_path / "run")
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


def test_where_a_training_starts(shapes, tmp_path):
    released, backbone = (make_config(Wish(str(shapes), "r50", weights=weights), tmp_path / "run")["pretrain_weights"]
                          for weights in (None, "backbone"))
    assert released == MODELS["gfl_r50_fpn_1x_coco"].weights
    assert backbone == load_config("gfl_r50_fpn_1x_coco")["pretrain_weights"]


def test_annotations_that_had_to_be_written_are_found_from_any_folder(tmp_path, monkeypatch):
    for i in range(4):
        image(tmp_path / "mine" / f"{i}.jpg")
        text(tmp_path / "mine" / f"{i}.xml", f"<annotation>{voc_object('cat', 1, 1, 30, 20)}</annotation>")
    monkeypatch.chdir(tmp_path)
    cfg = make_config(Wish("mine"), Path("output", "run"))
    assert len(build_dataset(cfg, "TrainDataset").records) == 3
    assert len(build_dataset(cfg, "EvalDataset").records) == 1


def test_the_data_sets_of_a_config_are_taken(shapes, tmp_path):
    config = tmp_path / "mine.yml"
    sections = {name: {"name": "COCODataSet", "dataset_dir": str(shapes), "image_dir": f"{split}2017",
                       "anno_path": f"annotations/instances_{split}2017.json", "data_fields": ["gt_bbox", "gt_class"]}
                for name, split in (("TrainDataset", "train"), ("EvalDataset", "val"))}
    config.write_text(yaml.safe_dump(sections))
    cfg = make_config(Wish(str(config)), tmp_path / "run")
    assert {name: cfg[name] for name in sections} == sections
    config.write_text(yaml.safe_dump({"TrainDataset": sections["TrainDataset"]}))
    with pytest.raises(ConfigError, match="has no EvalDataset"):
        make_config(Wish(str(config)), tmp_path / "run")


@pytest.mark.parametrize(("wish", "message"), [
    ({"model": "r18"}, "--model: r18; allowed: r18vd, r34vd"), ({"size": 31}, "--size: 31; it must be 32 or more"),
    ({"epochs": 0}, "--epochs: 0"), ({"batch": -1}, "--batch: -1"), ({"name": "a/b"}, "--name: 'a/b'; it is the name"),
    ({"name": ".."}, "--name"), ({"name": ""}, "--name")])
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
