"""What people have, told apart by what lies there, divided where it is not, and refused in one line."""
import json
import re
import shutil

import pytest
from helpers import image, text, voc_object

from ppgfl import DataError
from ppgfl.data.dataset import COCODataSet
from ppgfl.data.recognize import sections_of


def coco(path, names, split=None):
    text(path, json.dumps({
        "images": [{"id": i, "file_name": name, "width": 100, "height": 50} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 2, 30, 20]}
                        for i in range(len(names))],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}))


def counts(sections):
    """Images of both data sets as they are opened."""
    return [len(COCODataSet(**{key: value for key, value in sections[name].items() if key != "name"}).records)
            for name in ("TrainDataset", "EvalDataset")]


def test_coco_as_it_is_downloaded(tmp_path):
    root = tmp_path / "coco"
    for split, names in (("train2017", "abc"), ("val2017", "de")):
        coco(root / "annotations" / f"instances_{split}.json", [f"{name}.jpg" for name in names])
        coco(root / "annotations" / f"person_keypoints_{split}.json", [])
        for name in names:
            image(root / split / f"{name}.jpg")
    text(root / "notes.json", "[]")
    sections = sections_of(root, tmp_path / "out")
    assert counts(sections) == [3, 2]
    assert sections["EvalDataset"]["anno_path"] == str(root / "annotations" / "instances_val2017.json")
    assert not (tmp_path / "out").exists()


def test_coco_beside_its_images(tmp_path):
    for split in ("train", "valid"):  # as Roboflow writes it
        coco(tmp_path / split / "_annotations.coco.json", ["a.jpg", "b.jpg"])
        for name in "ab":
            image(tmp_path / split / f"{name}.jpg")
    assert counts(sections_of(tmp_path, tmp_path / "out")) == [2, 2]


def test_one_coco_file_is_divided_the_same_way_each_time(tmp_path):
    names = [f"{i}.jpg" for i in range(10)]
    coco(tmp_path / "labels.json", [f"deep/{name}" for name in names])
    for name in names:
        image(tmp_path / "pictures" / "deep" / name)
    shutil.move(tmp_path / "labels.json", tmp_path / "pictures" / "labels.json")
    first = sections_of(tmp_path / "pictures", tmp_path / "out")
    assert counts(first) == [8, 2]
    parts = {name: json.loads((tmp_path / "out" / f"instances_{name}.json").read_text()) for name in ("train", "val")}
    assert {one["category_id"] for one in parts["val"]["annotations"]} == {1, 2}  # each class in both
    assert not {one["id"] for one in parts["train"]["images"]} & {one["id"] for one in parts["val"]["images"]}
    again = sections_of(tmp_path / "pictures" / "labels.json", tmp_path / "out")
    assert again == first
    assert json.loads((tmp_path / "out" / "instances_val.json").read_text()) == parts["val"]


@pytest.mark.parametrize("named", [True, False])
def test_yolo(tmp_path, named):
    for split, count in (("train", 4), ("val", 2)) if named else (("", 5),):
        for i in range(count):
            image(tmp_path / "images" / split / f"{split}{i}.jpg")
            text(tmp_path / "labels" / split / f"{split}{i}.txt", f"{i % 2} 0.5 0.5 0.2 0.4\n")
    keys = "train: images/train\nval: images/val\n" if named else ""
    text(tmp_path / "data.yaml", f"{keys}names: [cat, dog]\n")
    for source in (tmp_path, tmp_path / "data.yaml"):
        assert counts(sections_of(source, tmp_path / "out")) == ([4, 2] if named else [4, 1])


def test_voc_divides_what_is_for_training(tmp_path):
    for i in range(8):
        image(tmp_path / "JPEGImages" / f"{i}.jpg")
        text(tmp_path / "Annotations" / f"{i}.xml", f"<annotation>{voc_object('cat', 1, 1, 30, 20)}</annotation>")
    taken = tmp_path, tmp_path / "output" / "run" / "annotations"  # a run that is made in the folder of the data
    assert counts(sections_of(*taken, leave_out=tmp_path / "output")) == [6, 2]
    text(tmp_path / "ImageSets" / "Main" / "trainval.txt", "0\n1\n2\n3\n4\n")
    text(tmp_path / "ImageSets" / "Main" / "test.txt", "5\n6\n7\n")
    assert counts(sections_of(*taken, leave_out=tmp_path / "output")) == [4, 1]  # none of test.txt


def test_labelme(tmp_path):
    for i in range(3):
        image(tmp_path / f"{i}.jpg")
        text(tmp_path / f"{i}.json", json.dumps({"imagePath": f"{i}.jpg", "shapes": [
            {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [30, 20]]}]}))
    assert counts(sections_of(tmp_path, tmp_path / "out")) == [2, 1]


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: None, "no such file or folder"),
    (lambda root: image(root / "a.jpg"), "no annotations beside 1 images; ppgfl reads COCO"),
    (lambda root: coco(root / "a.json", ["a.jpg"]), "its images, as a.jpg, are in none of"),
    (lambda root: (image(root / "a.jpg"), coco(root / "a.json", ["a.jpg"])), "lists 1 image, which cannot be divided"),
    (lambda root: [coco(root / f"{name}.json", ["a.jpg"]) for name in "ab"], "none of them called train: .*a.json"),
    (lambda root: [coco(root / f"train_{name}.json", ["a.jpg"]) for name in "ab"], "several COCO files are for train"),
    (lambda root: text(root / "a.json", '{"images": [], "categories": ['), "not a JSON file"),
    (lambda root: (image(root / "a.jpg"), text(root / "a.txt", "0 0.5 0.5 0.2 0.4")), "class"),
])
def test_what_cannot_be_taken_is_one_line(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message) as error:
        sections_of(tmp_path / "data", tmp_path / "out")
    assert not re.search("\n", str(error.value))


def test_a_file_of_another_kind(tmp_path):
    text(tmp_path / "a.csv", "1,2")
    with pytest.raises(DataError, match="neither a data.yaml nor a COCO annotation file"):
        sections_of(tmp_path / "a.csv", tmp_path / "out")
