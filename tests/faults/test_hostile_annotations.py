"""Annotation files and configs that are damaged, contradict themselves or attack: read, or one line that names them."""
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, draw_image

from ppgfl import ConfigError, DataError, load_config
from ppgfl.data.dataset import COCODataSet
from ppgfl.data.image import write_image
from ppgfl.data.targets import Gt2GFLTarget

BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}


@pytest.fixture
def open_with(tmp_path):
    """A function: parts of an annotation file, or its whole text -> the `COCODataSet`."""
    write_image(str(tmp_path / "a b é.png"), draw_image(np.random.default_rng(0), 60, 80)[0])

    def opened(text=None, **parts):
        content = {"images": [{"id": 1, "file_name": "a b é.png", "width": 80, "height": 60}],
                   "categories": [{"id": 1, "name": "thing"}], "annotations": [BOX], **parts}
        (tmp_path / "a.json").write_text(json.dumps(content) if text is None else text, encoding="utf-8")
        return COCODataSet(dataset_dir=str(tmp_path), image_dir="", anno_path="a.json",
                           data_fields=["image", "gt_bbox"])

    return opened


@pytest.mark.parametrize("bbox", [
    [float("nan"), 0, 5, 5], [0, 0, float("inf"), 5], [0, 0, -5, 5], [0, 0, 0, 5], ["1", "2", "3", "x"], [1, 2, 3], [],
    None, "1,2,3,4", {"x": 1}, [[1], [2], [3], [4]], [None] * 4, [1e400, 0, 5, 5]],
    ids=str)
def test_a_box_that_is_none_is_rejected_and_counted(open_with, bbox):
    dataset = open_with(annotations=[BOX, {**BOX, "id": 2, "bbox": bbox}])
    assert sum(dataset.rejected.values()) == 1
    assert [len(record["gt_bbox"]) for record in dataset.records] == [1]


def test_boxes_outside_of_the_image_and_of_any_number_train(open_with):
    outside = [{**BOX, "id": 2, "bbox": [-50, -50, 500, 500]}, {**BOX, "id": 3, "bbox": [1000, 1000, 5, 5]}]
    many = [{**BOX, "id": 10 + i, "bbox": [i % 70, i % 50, 5 + i % 9, 5 + i % 7]} for i in range(1000)]
    record, = open_with(annotations=[*outside, *many]).records
    assert len(record["gt_bbox"]) == 1002
    sample = {"image": np.zeros((3, 64, 96), np.float32), **{k: record[k] for k in ("gt_bbox", "gt_class", "is_crowd")}}
    made, = Gt2GFLTarget(num_classes=1, grid_cell_scale=8)([sample])
    assert np.isfinite(made["bbox_targets"]).all()
    assert 0 < made["pos_num"] <= made["labels"].size


@pytest.mark.parametrize(("parts", "found"), [
    ({"annotations": [{**BOX, "category_id": 99}]}, "category_id 99"),
    ({"annotations": "none"}, "annotations"), ({"annotations": [1]}, "annotations"),
    ({"images": None}, "images"), ({"images": [{"id": 1}]}, "file_name"), ({"categories": {}}, "categories"),
    ({"images": [{"id": [1], "file_name": "a b é.png"}]}, "neither a whole number nor text"),
    ({"images": [{"id": 1, "file_name": "a b é.png"}, {"id": 1, "file_name": "a b é.png"}]}, "image id 1"),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1"),
    ({"images": [{"id": 1, "file_name": "absent.png"}]}, "no such image"),
    ({"images": [{"id": 1, "file_name": ["a"]}]}, "file_name"),
    ({"text": "[1, 2"}, "not a JSON file"), ({"text": ""}, "not a JSON file"), ({"text": "[]"}, "COCO"),
    ({"text": "[" * 100_000}, "not a JSON file"), ({"text": "null"}, "COCO"),
], ids=lambda x: "" if isinstance(x, dict) else x)
def test_what_contradicts_itself_is_named(open_with, parts, found):
    with pytest.raises(DataError, match=found) as error:
        open_with(**parts)
    assert "\n" not in str(error.value)


def test_two_annotations_of_one_id_count_as_two(open_with):
    assert len(open_with(annotations=[BOX, {**BOX, "bbox": [5, 5, 9, 9]}]).records[0]["gt_bbox"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_200_megabytes_of_annotations(tmp_path):
    line = json.dumps({**BOX, "segmentation": [[0.5] * 60]})
    count = 200_000_000 // len(line)
    write_image(str(tmp_path / "a.png"), np.zeros((60, 80, 3), np.uint8))
    with open(tmp_path / "a.json", "w", encoding="utf-8") as file:
        file.write('{"images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}], "categories": '
                   '[{"id": 1, "name": "thing"}], "annotations": [' + ",".join([line] * count) + "]}")
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from ppgfl.data.dataset import COCODataSet
start = time.time()
boxes = len(COCODataSet(dataset_dir={str(tmp_path)!r}, image_dir="", anno_path="a.json",
                       data_fields=["gt_bbox"]).records[0]["gt_bbox"])
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
print(boxes, peak, round(time.time() - start, 1))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    boxes, peak, seconds = done.stdout.split()
    print(f"{boxes} boxes in 200 MB of JSON: peak {peak} MiB, {seconds} s")
    assert int(boxes) == count
    assert int(peak) < 3000


# --- configs

@pytest.mark.parametrize("text", [
    "a: !!python/object/apply:os.system ['touch ran']", "a: !!python/name:os.system", "a: !!python/module:os",
    "a: !!python/object/new:os.system ['touch ran']", "!!python/object:os.system {}",
], ids=lambda x: x[3:30])
def test_yaml_runs_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yml"):
        load_config(tmp_path / "c.yml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["a: [", "\t- x", "a: 1\na: 2", "- 1", "just text", "\0", "a: &x [*x]", "? [1]: 2"])
def test_bad_yaml_is_one_line(tmp_path, text):
    (tmp_path / "c.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yml") as error:
        load_config(tmp_path / "c.yml")
    assert "\n" not in str(error.value)


def test_a_yaml_bomb_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "c.yml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="alias"):
        load_config(tmp_path / "c.yml")


def test_base_may_lie_above_and_names_may_hold_anything(tmp_path):
    folder = tmp_path / "ünïcode 数据 and spaces"
    folder.mkdir()
    (tmp_path / "base.yml").write_text("epoch: 3", encoding="utf-8")
    (folder / "c d.yml").write_text("_BASE_: [../base.yml]\nsave_dir: ünï", encoding="utf-8")
    assert load_config(folder / "c d.yml") == {"epoch": 3, "save_dir": "ünï"}
