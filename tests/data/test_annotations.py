"""Annotation files as exporters write them: each gives the 3 boxes that it means, in training and in evaluation."""
import copy
import json
import math

import cv2
import numpy as np
import pytest

from ppgfl import DataError, build
from ppgfl.data import check
from ppgfl.data.annotations import Places, number, read_annotations, whole
from ppgfl.data.dataset import COCODataSet
from ppgfl.evaluation.coco import coco_evaluator, read_results, summarize

BOXES = [[2, 3, 10, 8], [20, 1, 9, 30], [5, 30, 25, 9]]
HUGE = 20240101123456789012


def good():
    """Two images, the second with two boxes."""
    return {"images": [{"id": i, "file_name": f"images/{i}.png", "width": 48, "height": 40} for i in (1, 2)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [{"id": k + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0,
                             "area": box[2] * box[3]}
                            for k, (image, category, box) in enumerate(zip((1, 2, 2), (1, 2, 1), BOXES))]}


def each(key, value):
    """A change of every annotation's key: to a value, or to what a function makes of the annotation."""
    def change(content):
        for annotation in content["annotations"]:
            annotation[key] = value(annotation) if callable(value) else value
    return change


def of_images(key, value):
    def change(content):
        for image in content["images"]:
            image[key] = value(image)
    return change


def renumber(value, joined=None):
    """A change of the images' ids, and of what annotations call them."""
    def change(content):
        for image in content["images"]:
            image["id"] = value(image["id"])
        for annotation in content["annotations"]:
            annotation["image_id"] = (joined or value)(annotation["image_id"])
    return change


def outline(annotation):
    x, y, w, h = annotation.pop("bbox")
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def mask(annotation):
    """An uncompressed run-length code: columns of the 40 x 48 image, outside first."""
    x, y, w, h = annotation.pop("bbox")
    image = np.zeros((40, 48), int)
    image[y:y + h, x:x + w] = 1
    values = image.T.ravel()
    starts = np.flatnonzero(np.diff(values)) + 1
    return {"size": [40, 48], "counts": np.diff([0, *starts, len(values)]).tolist()}


MEANT = {
    "as it should be": lambda content: None,
    "area null": each("area", None), "area text": each("area", "12.5"), "area zero": each("area", 0),
    "area negative": each("area", -1), "area words": each("area", "large"), "area nan": each("area", math.nan),
    "iscrowd null": each("iscrowd", None), "iscrowd text": each("iscrowd", "0"),
    "iscrowd false": each("iscrowd", False), "iscrowd float": each("iscrowd", 0.0),
    "iscrowd word": each("iscrowd", "False"), "ignore null": each("ignore", None),
    "bbox text": each("bbox", lambda a: [str(n) for n in a["bbox"]]),
    "bbox text with a point": each("bbox", lambda a: [f" {n}.0" for n in a["bbox"]]),
    "outline only": each("segmentation", outline), "flat outline": each("segmentation", lambda a: outline(a)[0]),
    "outline and bbox null": lambda c: (each("segmentation", lambda a: outline({**a}))(c), each("bbox", None)(c)),
    "outline and bbox of zeros": lambda c: (each("segmentation", lambda a: outline({**a}))(c),
                                            each("bbox", [0, 0, 0, 0])(c)),
    "mask only": each("segmentation", mask),
    "width text": of_images("width", lambda i: "48"), "sizes null": of_images("height", lambda i: None),
    "sizes swapped": lambda c: (of_images("width", lambda i: 40)(c), of_images("height", lambda i: 48)(c)),
    "sizes zero": of_images("width", lambda i: 0),
    "ids float": renumber(float), "ids float here only": renumber(float, int), "ids text": renumber(str),
    "ids text here only": renumber(str, int), "ids text there only": renumber(int, str),
    "ids names": renumber(lambda i: f"image-{i}"), "ids from 0": renumber(lambda i: i - 1),
    "ids of 20 digits": renumber(lambda i: HUGE + i), "ids of 20 digits as text": renumber(lambda i: str(HUGE + i)),
    "ids from 2^63": renumber(lambda i: 2**63 - 2 + i), "ids negative": renumber(lambda i: -i),
    "ids mixed": renumber(lambda i: "a" if i == 1 else 2),
    "ids that numbers cannot tell apart": renumber(lambda i: "7" if i == 1 else "007"),
    "category ids text": lambda c: [a.update(category_id=str(a["category_id"])) for a in c["annotations"]],
    "category ids all text": lambda c: [e.update({k: f"c{e[k]}"}) for k, entries in (
        ("id", c["categories"]), ("category_id", c["annotations"])) for e in entries],
    "backslash": of_images("file_name", lambda i: i["file_name"].replace("/", "\\")),
    "dot": of_images("file_name", lambda i: "./" + i["file_name"]),
    "names that are numbers": lambda c: [e.update(name=k) for k, e in enumerate(c["categories"])],
    "annotation ids text": each("id", lambda a: f"x{a['id']}"), "no annotation ids": each("id", None),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.zeros((40, 48, 3), np.uint8))
    return tmp_path


def write(folder, content, name="a.json", encoding="utf-8"):
    (folder / name).write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(encoding))


def load(folder, **options):
    return COCODataSet(str(folder), "", options.pop("anno_path", "a.json"), ["image", "gt_bbox", "gt_class"], **options)


def found_everything(dataset):
    """COCO results that are the truth, as an evaluation would write them."""
    return [{"image_id": dataset.annotations.images[one["image"]]["id"], "score": 0.9, "bbox": one["bbox"],
             "category_id": dataset.category_ids[one["category"]]}
            for one in dataset.annotations.objects if one["reason"] is None]


def checked(folder, **keys):
    cfg = {"EvalDataset": {"name": "COCODataSet", "dataset_dir": str(folder), "anno_path": "a.json", **keys}}
    return check.look_through(cfg, "EvalDataset")


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_read_by_training_evaluation_and_check(folder, name):
    content = good()
    MEANT[name](content)
    write(folder, content)
    dataset = load(folder)
    boxes = np.concatenate([record["gt_bbox"] for record in dataset.records])
    wanted = [[x, y, x + w, y + h] for x, y, w, h in BOXES]
    assert sorted(boxes.tolist()) == sorted(wanted)
    assert sum(dataset.rejected.values()) == 0

    results = found_everything(dataset)
    write(folder, results, "bbox.json")
    metrics = summarize(coco_evaluator(dataset, results), dataset, classwise=True)
    assert metrics["AP"] == pytest.approx(1.0)
    assert set(metrics["per_class"]) == set(dataset.class_names)
    again = read_results(folder / "bbox.json", dataset)
    assert again == results
    assert summarize(coco_evaluator(dataset, results[:-1]), dataset)["AR100"] < 0.8  # the evaluation can fail

    report = checked(folder)
    assert report.faults == {}
    assert sum(report.boxes_of.values()) == 3


@pytest.mark.parametrize("name", ["ids names", "ids of 20 digits", "ids from 2^63", "ids mixed", "ids float"])
def test_results_carry_the_files_own_ids_and_tensors_places(folder, name):
    content = good()
    MEANT[name](content)
    write(folder, content)
    dataset = load(folder)
    cfg = {"EvalReader": {"sample_transforms": [{"Decode": {}}, {"NormalizeImage": {}}, {"Permute": {}}]}}
    batches = list(build.build_loader(cfg, "EvalReader", dataset.records).epoch())
    places = [int(batch["place"][0]) for batch in batches]
    assert places == [0, 1]
    assert {dataset.records[place]["im_id"] for place in places} == {
        int(image["id"]) if isinstance(image["id"], float) else image["id"] for image in content["images"]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_and_windows_encodings(folder, encoding):
    content = good()
    content["categories"][0]["name"] = "猫"
    write(folder, json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert load(folder).class_names == ["猫", "dog"]


LOST = {
    "crowd": (each("iscrowd", 1), "crowd"), "crowd text": (each("iscrowd", "1"), "crowd"),
    "crowd true": (each("iscrowd", True), "crowd"), "ignored": (each("ignore", 1), "marked ignore"),
    "no bbox": (each("bbox", None), "without a bbox"), "three numbers": (each("bbox", [1, 2, 3]), "without a bbox"),
    "a dict": (each("bbox", {"x": 1}), "without a bbox"), "words": (each("bbox", ["a"] * 4), "without a size"),
    "no width": (each("bbox", [1, 1, 0, 5]), "without a size"),
    "huge": (each("bbox", [0, 0, 1e300, 5]), "without a size"),
    "infinite": (each("bbox", [0, 0, math.inf, 5]), "without a size"),
    "ten to the 400": (each("bbox", [0, 0, 10**400, 5]), "without a size"),
    "booleans": (each("bbox", [True, 1, 5, 5]), "without a size"),
    "odd outline": (lambda c: (each("bbox", None)(c), each("segmentation", [[1, 2, 3]])(c)), "without a bbox"),
    "broken mask": (lambda c: (each("bbox", None)(c), each("segmentation", {"counts": "?"})(c)), "without a bbox"),
    "words as outline": (lambda c: (each("bbox", None)(c), each("segmentation", "none")(c)), "without a bbox"),
}


@pytest.mark.parametrize("name", LOST)
def test_objects_that_are_no_box_are_counted_and_alike_everywhere(folder, name):
    change, reason = LOST[name]
    content = good()
    spoilt = copy.deepcopy(content)
    change(spoilt)
    content["annotations"] = [*content["annotations"], *({**a, "id": a["id"] + 10} for a in spoilt["annotations"])]
    write(folder, content)
    dataset = load(folder)
    assert dataset.rejected[reason] == 3
    assert sum(len(record["gt_bbox"]) for record in dataset.records) == 3
    evaluator = coco_evaluator(dataset, found_everything(dataset))
    assert sum(not one["iscrowd"] for one in evaluator.cocoGt.dataset["annotations"]) == 3
    assert summarize(evaluator, dataset)["AP"] == pytest.approx(1.0)
    write(folder, {**content, "annotations": spoilt["annotations"]})
    with pytest.raises(DataError, match=f"no image to use.*3 {reason}"):
        load(folder)
    assert checked(folder).faults["reason to stop"] == ["there is no box to learn from or to find"]


def test_a_switch_takes_crowds_as_objects(folder):
    content = good()
    each("iscrowd", 1)(content)
    write(folder, content)
    dataset = load(folder, load_crowd=True)
    assert sum(len(record["gt_bbox"]) for record in dataset.records) == 3
    results = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
               for a in content["annotations"]]
    assert summarize(coco_evaluator(dataset, results), dataset)["AP"] == pytest.approx(1.0)
    assert checked(folder, load_crowd=True).faults == {}
    with pytest.raises(DataError, match="EvalDataset.load_crowd=true takes crowd regions as boxes"):
        load(folder)


@pytest.mark.parametrize("value", [99, "99", "other", None, [1], 1.5, True])
def test_annotations_of_no_image_are_counted_and_stop_when_they_are_many(folder, value):
    content = good()
    content["annotations"][0]["image_id"] = value
    write(folder, content)
    with pytest.raises(DataError, match=r"1 of 3 annotations have an image that `images` does not list.*annotation 1"):
        load(folder)
    report = checked(folder)
    assert len(report.faults["box of an image that is not listed"]) == 1
    content["annotations"] += [{**content["annotations"][1], "id": i} for i in range(10, 30)]
    write(folder, content)
    assert load(folder).rejected["of an image that is not listed"] == 1
    report = checked(folder)
    assert report.faults == {}
    assert len(report.remarks["box of an image that is not listed"]) == 1


@pytest.mark.parametrize(("key", "value"), [("iscrowd", "maybe"), ("ignore", [1]), ("iscrowd", {})])
def test_flags_that_nobody_can_read(folder, key, value):
    content = good()
    content["annotations"][1][key] = value
    write(folder, content)
    with pytest.raises(DataError, match=rf"annotation 2 has {key} .*; it must be 0 or 1"):
        load(folder)


@pytest.mark.parametrize("name", ["../other/1.png", "images/../../1.png", "/etc/1.png", "..\\..\\1.png",
                                  "images/../.."])
def test_pictures_outside_of_the_data_set_need_a_switch(folder, name):
    content = good()
    content["images"][0]["file_name"] = name
    write(folder, content)
    with pytest.raises(DataError, match=r"leads out of .*EvalDataset.allow_outside=true"):
        load(folder)
    assert "leads out of" in checked(folder).faults["file outside of the data set"][0]
    with pytest.raises(DataError, match="no such image"):
        load(folder, allow_outside=True)


def test_paths_that_only_look_as_if_they_led_outside(folder):
    content = good()
    content["images"][0]["file_name"] = "../images/1.png"
    content["images"][1]["file_name"] = str(folder / "images" / "2.png")
    (folder / "labels").mkdir()
    write(folder, content)
    dataset = COCODataSet(str(folder), "labels", "a.json")
    assert len(dataset.records) == 2
    (folder / "images" / "a\\b.png").write_bytes((folder / "images" / "1.png").read_bytes())
    content["images"][0]["file_name"] = "images/a\\b.png"  # a backslash in the name of a file that is there
    write(folder, content)
    assert load(folder).files[0].endswith("a\\b.png")


def test_several_files_are_one_data_set(folder):
    first, second = good(), good()
    second["annotations"] = second["annotations"][:1]
    write(folder, first, "a.json")
    write(folder, second, "b.json")
    dataset = load(folder, anno_path=["a.json", "b.json"])
    assert [record["im_id"] for record in dataset.records] == [1, 2, 3]  # numbered anew
    assert len(dataset.annotations.images) == 4
    assert summarize(coco_evaluator(dataset, found_everything(dataset)), dataset)["AP"] == pytest.approx(1.0)
    renumber(lambda i: i + 10)(second)
    write(folder, second, "b.json")
    assert [r["im_id"] for r in load(folder, anno_path=["a.json", "b.json"]).records] == [1, 2, 11]
    second["categories"].reverse()
    write(folder, second, "b.json")
    assert load(folder, anno_path=["a.json", "b.json"]).class_names == ["cat", "dog"]
    second["categories"][0]["name"] = "horse"
    write(folder, second, "b.json")
    with pytest.raises(DataError, match=r"b.json: lists other categories than .*a.json"):
        load(folder, anno_path=["a.json", "b.json"])


def test_two_categories_of_one_name_are_told_apart(folder):
    content = good()
    content["categories"][1]["name"] = "cat"
    write(folder, content)
    dataset = load(folder)
    assert dataset.class_names == ["cat (id 1)", "cat (id 2)"]
    metrics = summarize(coco_evaluator(dataset, found_everything(dataset)), dataset, classwise=True)
    assert set(metrics["per_class"]) == {"cat (id 1)", "cat (id 2)"}
    assert "categories of one name, told apart by their ids" in checked(folder).faults


@pytest.mark.parametrize(("change", "message"), [
    ({"category_id": 0}, r"1 of 3 results with category_id 0, which .* does not list \(it has 1, 2\)"),
    ({"category_id": "dog"}, "category_id dog"), ({"image_id": 7}, "image_id 7"), ({"image_id": None}, "image_id None"),
    ({"bbox": [1, 2, 3]}, r"result 0 has bbox \[1, 2, 3\]"), ({"bbox": None}, "result 0 has bbox None"),
    ({"score": "high"}, "score 'high'"), ({"bbox": [0, 0, math.nan, 1]}, "result 0 has bbox"),
])
def test_results_that_do_not_belong_to_the_annotations(folder, change, message):
    write(folder, good())
    dataset = load(folder)
    results = found_everything(dataset)
    results[0].update(change)
    write(folder, results, "bbox.json")
    with pytest.raises(DataError, match=message):
        read_results(folder / "bbox.json", dataset)


def test_results_whose_ids_are_text_mean_the_same(folder):
    write(folder, good())
    dataset = load(folder)
    results = found_everything(dataset)
    write(folder, [{**r, "image_id": str(r["image_id"]), "category_id": float(r["category_id"]), "score": "0.9"}
                   for r in results], "bbox.json")
    assert read_results(folder / "bbox.json", dataset) == results


def test_evaluation_does_not_depend_on_the_order_of_categories(folder):
    content = good()
    write(folder, content)
    wrong = [{"image_id": 1, "category_id": 2, "bbox": [30, 30, 5, 5], "score": 0.95}]  # a dog that is not there
    per_class = []
    for _ in range(2):
        dataset = load(folder)
        metrics = summarize(coco_evaluator(dataset, found_everything(dataset) + wrong), dataset, classwise=True)
        per_class.append(metrics["per_class"])
        content["categories"].reverse()
        write(folder, content)
    assert per_class[0] == per_class[1]
    assert per_class[0]["cat"] == pytest.approx(1.0)
    assert per_class[0]["dog"] < 1


def test_what_was_mended_is_told_once(folder, caplog):
    content = good()
    each("area", None)(content)
    each("iscrowd", "0")(content)
    write(folder, content)
    load(folder)
    line, = (record.getMessage() for record in caplog.records if "read as what it means" in record.getMessage())
    assert "3 iscrowd in text as a number" in line
    assert "3 area that is no positive number as width x height" in line


@pytest.mark.parametrize(("value", "wanted"), [
    (1, 1), (1.5, 1.5), ("2.5", 2.5), (" 7 ", 7), ("1e2", 100), ("x", None), (None, None), (True, None), ("nan", None),
    (math.inf, None), ([], None), (10**400, None), ("", None)])
def test_number(value, wanted):
    assert number(value) == wanted


@pytest.mark.parametrize(("value", "wanted"), [
    (7, 7), (7.0, 7), ("7", 7), ("007", 7), ("7.0", 7), (7.5, None), ("7.5", None), (HUGE, HUGE), (str(HUGE), HUGE),
    (None, None), (True, None), ("a7", None), ([7], None), ("9" * 5000, None)])
def test_whole(value, wanted):
    assert whole(value) == wanted


def test_places():
    places = Places([1, 2.0, "3"])
    assert [places(value) for value in ("1", 2, 3.0, 4, None, "x")] == [0, 1, 2, None, None, None]
    places = Places(["7", "007"])
    assert [places(value) for value in ("7", "007", 7, 7.0, "07")] == [0, 1, 0, 0, None]


def test_the_order_of_images_is_that_of_their_numbers(folder):
    content = good()
    for image, value in zip(content["images"], ("10", "9")):
        image["id"] = value
    content["annotations"] = [{**a, "image_id": value} for a, value in zip(content["annotations"], ("10", "9", "9"))]
    write(folder, content)
    assert [image["id"] for image in read_annotations(folder / "a.json", "EvalDataset").images] == ["9", "10"]
