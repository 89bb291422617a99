"""How many classes there are where a config does not say."""
import json

import paddle
import pytest
import yaml
from helpers import config

from ppgfl import ConfigError, Detector, build, evaluate, export
from ppgfl.classes import number_of_classes
from ppgfl.config.keys import with_weights


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A config of three classes without their number, weights of two classes more, and a folder."""
    folder = tmp_path_factory.mktemp("null")
    for name, count in (("three", 3), ("five", 5)):
        model = build.build_model(config(shapes, folder, f"num_classes={count}"))
        paddle.save(model.state_dict(), str(folder / f"{name}.pdparams"))
    return config(shapes, folder, "num_classes=null", f"weights={folder / 'five'}"), folder


def test_the_number_is_that_of_the_config_the_training_file_or_the_weights(trained, shapes):
    cfg, folder = trained
    assert number_of_classes({**cfg, "num_classes": 7}) == 7
    assert number_of_classes({key: value for key, value in cfg.items() if key != "num_classes"}) == 80
    assert number_of_classes(cfg) == 3
    absent = {**cfg, "TrainDataset": {**cfg["TrainDataset"], "anno_path": "absent.json"}}
    assert number_of_classes(absent) == 5
    assert number_of_classes(with_weights(absent, folder / "three.pdparams")) == 3
    assert number_of_classes({**absent, "TrainDataset": None}) == 5
    nothing = {**absent, "weights": "absent"}
    assert number_of_classes(nothing) is None
    with pytest.raises(ConfigError, match="num_classes: null takes the number from .* neither is there"):
        build.build_model(nothing)


def test_a_training_file_that_has_changed_is_read_again(trained, tmp_path):
    cfg, _ = trained
    file = tmp_path / "train.json"
    for count in (2, 4):
        categories = [{"id": i, "name": str(i)} for i in range(count)]
        file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories, "pad": "x" * count}))
        assert number_of_classes({**cfg, "TrainDataset": {"anno_path": file}}) == count


def test_gflv2_has_one_channel_more_than_classes(trained, shapes, tmp_path):
    cfg = config(shapes, tmp_path, "num_classes=4", "GFLHead.dgqp_module=DGQP", "GFLHead.loss_class.use_sigmoid=false")
    paddle.save(build.build_model(cfg).state_dict(), str(tmp_path / "v2.pdparams"))
    assert number_of_classes({"num_classes": None, "weights": tmp_path / "v2"}) == 4


def test_each_command_finds_the_number(trained, shapes, tmp_path, run_here):
    cfg, folder = trained
    cfg = {**cfg, "engine": "dygraph"}
    weights = folder / "three.pdparams"
    assert evaluate(cfg, weights=weights, output_dir=tmp_path)["AP"] >= 0
    with pytest.raises(ConfigError, match="num_classes: 5, but .* lists 3"):
        evaluate({**cfg, "TrainDataset": None}, output_dir=tmp_path)
    export(cfg, weights=weights, output_dir=tmp_path / "out", format="pdmodel", verify=())
    assert len(yaml.safe_load((tmp_path / "out" / "infer_cfg.yml").read_text())["label_list"]) == 3
    file = tmp_path / "null.yml"
    file.write_text(yaml.safe_dump(cfg))
    assert len(Detector(file, weights=weights).class_names) == 3
    assert len(Detector(file, overrides=["TrainDataset=null", "TestDataset.anno_path=null"]).class_names) == 5
    assert run_here("ppgfl", "data", "check", file, cwd=tmp_path).returncode == 0
    done = run_here("ppgfl", "infer", "-c", file, "-o", f"weights={weights}", "--infer_dir", shapes / "val2017",
                    cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_of_voc_and_yolo_it_is_that_of_the_list_of_classes(tmp_path):
    (tmp_path / "labels.txt").write_text("a\n\nb\n")
    (tmp_path / "data.yaml").write_text("names: {0: a, 4: b, 9: c}\n")
    voc = {"name": "VOCDataSet", "dataset_dir": str(tmp_path), "anno_path": "lost.txt"}
    assert number_of_classes({"num_classes": None, "TrainDataset": {**voc, "label_list": "labels.txt"}}) == 2
    assert number_of_classes({"num_classes": None, "TrainDataset": voc}) == 20
    yolo = {"name": "YOLODataSet", "dataset_dir": str(tmp_path), "anno_path": "data.yaml"}
    assert number_of_classes({"num_classes": None, "TrainDataset": yolo}) == 3
