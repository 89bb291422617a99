"""VOC, YOLO and labelme -> COCO: numbers by hand, and every kind of broken file counted instead of fatal."""
import json

import pytest
from helpers import image, run_ppgfl, text, voc_object

from ppgfl import DataError
from ppgfl.data.convert import convert
from ppgfl.data.dataset import COCODataSet


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data ünïcode"


def boxes(content):
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {one["id"]: one["file_name"] for one in content["images"]}
    return sorted((files[a["image_id"]], names[a["category_id"]], *a["bbox"]) for a in content["annotations"])


def test_voc(root, tmp_path):
    image(root / "JPEGImages" / "a.jpg")
    image(root / "JPEGImages" / "b.png")
    text(root / "Annotations" / "a.xml", "<annotation>" + voc_object("dog", 1, 1, 100, 50)
         + voc_object("cat", 11, 21, 20, 30)
         + voc_object("dog", 90, 40, 130, 60) + voc_object("dog", 200, 200, 210, 210) + voc_object("cat", "x", 1, 2, 3)
         + "<object><name>cat</name></object></annotation>")
    text(root / "Annotations" / "b.xml", "<annotation></annotation>")
    text(root / "Annotations" / "c.xml", "<annotation></annotation>")  # no such image
    text(root / "Annotations" / "d.xml", "<annotation>")
    image(root / "JPEGImages" / "d.jpg")
    text(root / "Annotations" / "e.xml",
         '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>')
    image(root / "JPEGImages" / "e.jpg")
    content, rejected = convert("voc", root, tmp_path / "out" / "a.json")
    assert boxes(content) == [("JPEGImages/a.jpg", "cat", 10, 20, 10, 10), ("JPEGImages/a.jpg", "dog", 0, 0, 100, 50),
                              ("JPEGImages/a.jpg", "dog", 89, 39, 11, 11)]
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert len(content["images"]) == 2
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "file that cannot be used": 3, "box without a size, or outside of its image": 1,
        "object without a box (xmin is 'x', not a number)": 1, "object without a box (xmin is None, not a number)": 1}
    assert any("declares entities" in line for line in rejected["file that cannot be used"])
    dataset = COCODataSet(str(root), "", str(tmp_path / "out" / "a.json"), data_fields=["image", "gt_bbox", "gt_class"])
    assert dataset.class_names == ["cat", "dog"]
    assert len(dataset.records) == 1  # the other has no box


def test_yolo(root, tmp_path):
    image(root / "images" / "train" / "a.jpg")
    image(root / "images" / "train" / "b.jpg")
    image(root / "images" / "train" / "c.JPG".lower())
    text(root / "data.yaml", "names: {1: cat, 0: dog}\nnc: 2\n")
    text(root / "labels" / "train" / "a.txt",
         "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6\n\n7 0.5 0.5 0.1 0.1\n"
         "0 0.5 0.5\nzero 1 1 1 1\n0 nan 0.5 0.1 0.1\n0 0.98 0.5 0.2 0.2\n")
    text(root / "labels" / "train" / "b.txt", "")
    content, rejected = convert("yolo", root, tmp_path / "a.json")
    assert boxes(content) == [("images/train/a.jpg", "cat", 10, 10, 30, 20),
                              ("images/train/a.jpg", "dog", 40, 15, 20, 20),
                              ("images/train/a.jpg", "dog", 88, 20, 12, 10)]
    assert [category["name"] for category in content["categories"]] == ["dog", "cat"]
    assert len(content["images"]) == 3  # with the empty one and the one without a text
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "object of a class that is not listed (7)": 1, "line that is not five numbers": 3}


def test_yolo_without_names(root, tmp_path):
    image(root / "a.jpg")
    text(root / "a.txt", "1 0.5 0.5 1 1")
    with pytest.raises(DataError, match="give --classes FILE"):
        convert("yolo", root, tmp_path / "a.json")
    text(tmp_path / "names.txt", "dog\ncat\n")
    content, _ = convert("yolo", root, tmp_path / "a.json", classes=tmp_path / "names.txt")
    assert boxes(content) == [("a.jpg", "cat", 0, 0, 100, 50)]


def test_labelme(root, tmp_path):
    image(root / "a.jpg")
    image(root / "sub" / "other name.png")
    shapes = [{"label": "dog", "points": [[10, 20], [30, 5]], "shape_type": "rectangle"},
              {"label": "cat", "points": [[1, 2], [9, 3], [5, 12]], "shape_type": "polygon"},
              {"label": "dog", "points": [[50, 25], [53, 29]], "shape_type": "circle"},
              {"label": "dog", "points": [[50, 25]], "shape_type": "point"},
              {"label": "dog", "points": "none"}, "no shape"]
    text(root / "a.json", json.dumps({"shapes": shapes, "imagePath": "..\\somewhere\\a.jpg"}))
    text(root / "sub" / "b.json", json.dumps({"shapes": [], "imagePath": "other name.png"}))
    text(root / "sub" / "c.json", "{")
    text(root / "sub" / "no labelme.json", "{}")
    content, rejected = convert("labelme", root, tmp_path / "a.json")
    assert boxes(content) == [("a.jpg", "cat", 1, 2, 8, 10), ("a.jpg", "dog", 10, 5, 20, 15),
                              ("a.jpg", "dog", 45, 20, 10, 10)]
    assert {one["file_name"] for one in content["images"]} == {"a.jpg", "sub/other name.png"}
    assert {reason: len(examples) for reason, examples in rejected.items()} == {
        "file that cannot be used": 1, "shape that has no box (point)": 1, "shape without points": 2}


def test_a_class_that_is_not_listed(root, tmp_path):
    image(root / "a.jpg")
    objects = voc_object("dog", 1, 1, 10, 10) + voc_object("cat", 1, 1, 10, 10)
    text(root / "a.xml", f"<annotation>{objects}</annotation>")
    text(tmp_path / "names.txt", "bird\ncat\n")
    content, rejected = convert("voc", root, tmp_path / "a.json", classes=tmp_path / "names.txt")
    assert [a["category_id"] for a in content["annotations"]] == [2]
    assert list(rejected) == ["object of a class that is not listed (dog)"]


def test_a_damaged_image_is_left_out(root, tmp_path):
    image(root / "a.jpg")
    (root / "b.jpg").write_bytes(b"no image")
    for name in "ab":
        text(root / f"{name}.xml", "<annotation>" + voc_object("dog", 1, 1, 10, 10) + "</annotation>")
    content, rejected = convert("voc", root, tmp_path / "a.json")
    assert len(content["images"]) == 1
    assert "b.jpg" in rejected["file that cannot be used"][0]


def test_the_command_writes_nothing_over(run_here, root, tmp_path):
    image(root / "a.jpg")
    text(root / "a.xml", "<annotation>" + voc_object("dog", 1, 1, 10, 10) + "</annotation>")
    done = run_ppgfl("data", "convert", "--from", "voc", root, tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert "1 images, 0 of them without a box, 1 boxes" in done.stdout + done.stderr
    before = (tmp_path / "a.json").read_text(encoding="utf-8")
    for arguments, words in (([root, tmp_path / "a.json"], "is not written over"),
                             ([tmp_path / "none", "b.json"], "no such folder"),
                             ([root, tmp_path / "b.json", "--classes", "none.txt"], "no such file")):
        done = run_here("ppgfl", "data", "convert", "--from", "voc", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == before
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing that looks like labelme"):
        convert("labelme", tmp_path / "empty", tmp_path / "b.json")
