"""`ppgfl data check`: every fault that is put into a small data set is found and named."""
import json
import shutil

import numpy as np
import pytest
from helpers import tiny_config

from ppgfl import ConfigError
from ppgfl.data import check


@pytest.fixture
def broken(small_coco, tmp_path):
    """A call: change the content of a copy's annotation file and its folder, and look through it."""
    root = shutil.copytree(small_coco, tmp_path / "data")
    path = root / "annotations" / "instances_val2017.json"

    def look(change=lambda content, folder: None, **options):
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content, root / "val2017")
        path.write_text(json.dumps(content), encoding="utf-8")
        return check.look_through(config(root), "EvalDataset", **options)

    look.root = root
    return look


def config(root):
    return tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={root}", f"TrainDataset.dataset_dir={root}",
                       "TrainDataset.image_dir=val2017", "TrainDataset.anno_path=annotations/instances_val2017.json")


def test_a_sound_data_set(broken, small_coco):
    report = broken()
    content = json.loads((small_coco / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    assert report.faults == {}
    assert (report.images, report.empty) == (5, 1)
    assert sum(report.boxes_of.values()) == len(content["annotations"]) == len(report.sides)
    assert report.sides[0] == pytest.approx(np.sqrt(np.prod(content["annotations"][0]["bbox"][2:])))


def annotation(index, **values):
    def change(content, folder):
        content["annotations"][index].update(values)
    return change


def image(index, **values):
    def change(content, folder):
        content["images"][index].update(values)
    return change


def repeat(key, **values):
    def change(content, folder):
        content[key].append({**content[key][0], **values})
    return change


@pytest.mark.parametrize(("change", "what"), [
    (annotation(0, category_id=999), "box of a category that is not listed"),
    (annotation(0, bbox=[50, 5, 100, 20]), "box that stands out of its image"),
    (image(0, height=9), "image of another size than listed"),
    (image(0, file_name="none.jpg"), "missing file"),
    (lambda content, folder: (folder / content["images"][1]["file_name"]).write_bytes(b"no image"),
     "image that cannot be decoded"),
    (repeat("images", file_name="other.jpg"), "image id listed twice"),
    (repeat("images", id=99), "file listed twice"),
    (repeat("categories", name="other"), "category id listed twice"),
    (repeat("categories", id=99), "categories of one name, told apart by their ids"),
])
def test_faults(broken, change, what):
    assert what in broken(change).faults


@pytest.mark.parametrize(("change", "what"), [
    (annotation(0, image_id=999), "box of an image that is not listed"),
    (annotation(0, iscrowd=1), "box left out: crowd"),
    (annotation(0, bbox=[1, 1, 0, 5]), "box left out: without a size"),
    (annotation(0, bbox="large"), "box left out: without a bbox"),
])
def test_remarks(broken, change, what):
    report = broken(change)
    assert len(report.remarks[what]) == 1
    assert not {fault for fault in report.faults if "size" not in fault}


def test_without_decoding(broken):
    def change(content, folder):
        (folder / content["images"][1]["file_name"]).write_bytes(b"no image")
        (folder / content["images"][2]["file_name"]).unlink()

    assert set(broken(change, decode=False).faults) == {"missing file"}


def test_data_sets_that_do_not_belong_together(broken):
    train, val = broken(), broken()
    assert any("5 images are in EvalDataset and in EvalDataset" in line
               for line in check.compare([train, val], 80))
    val.files = set()
    assert list(check.compare([train, val], 80)) == []
    line, = check.compare([train], 3)
    assert "num_classes is 3" in line
    assert "set num_classes to 80" in line
    val.class_names = val.class_names[::-1]
    assert list(check.compare([train, val], 80)) == []  # matched by name
    val.class_names = [*train.class_names[:-1], "unicorn"]
    line, = check.compare([train, val], 80)
    assert "unicorn" in line


def test_the_command(run_here, small_coco, tmp_path):
    done = run_here("ppgfl", "data", "check", "gfl_r18vd_1x_coco", "-o", f"EvalDataset.dataset_dir={small_coco}",
                    f"TrainDataset.dataset_dir={small_coco}", "TrainDataset.image_dir=val2017",
                    "TrainDataset.anno_path=annotations/instances_val2017.json", "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "so the AP comes out too high" in done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["EvalDataset.png", "TrainDataset.png"]


def test_a_config_without_annotations():
    cfg = tiny_config()
    cfg["TrainDataset"] = cfg["EvalDataset"] = {"name": "ImageFolder"}
    with pytest.raises(ConfigError, match="no COCODataSet, VOCDataSet or YOLODataSet under TrainDataset or"):
        check.check(cfg)


def apart(small_coco, tmp_path):
    """Options of `data check` for two data sets without a fault: the second is the first with other pictures."""
    root = shutil.copytree(small_coco, tmp_path / "train")
    return ["-o", f"EvalDataset.dataset_dir={small_coco}", f"TrainDataset.dataset_dir={root}",
            "TrainDataset.image_dir=val2017", "TrainDataset.anno_path=annotations/instances_val2017.json"]


def test_advice_on_the_training(run_here, small_coco, tmp_path):
    done = run_here("ppgfl", "data", "check", "gfl_r18vd_1x_coco", *apart(small_coco, tmp_path), "epoch=4",
                    "TrainReader.batch_size=2", "worker_num=0", cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "has 4 epochs of 2 steps: 8" in text
    assert "note  LinearWarmup.steps: the warm-up takes" in text or "schedulers.1.steps: the warm-up takes" in text
    assert "nothing is wrong" in text


@pytest.mark.parametrize(("option", "reason"), [
    ("TrainReader.batch_size=9", "TrainReader.batch_size: 9"), ("TrainDataset.data_fields=[image]", "data_fields"),
    ("num_classes=79", "num_classes is 79")])
def test_a_training_that_would_stop_is_bad(run_here, small_coco, tmp_path, option, reason):
    done = run_here("ppgfl", "data", "check", "gfl_r18vd_1x_coco", *apart(small_coco, tmp_path), "worker_num=0", option,
                    cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert reason in text
    assert "something is wrong" in text
