"""VOC's lists and YOLO's data.yaml as data sets: the same records as COCO's file of the same data, and what is mended
or refused, in a line."""
import json

import cv2
import numpy as np
import pytest
from helpers import coco_as_voc, coco_as_yolo, config, voc_object

from ppgfl import DataError, build
from ppgfl.classes import number_of_classes
from ppgfl.data import check
from ppgfl.data.dataset import VOCDataSet, YOLODataSet
from ppgfl.data.sources import VOC_CLASSES
from ppgfl.evaluation import metric
from ppgfl.training.train import train

FIELDS = ["image", "gt_bbox", "gt_class", "difficult"]


def picture(path, height=40, width=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.zeros((height, width, 3), np.uint8))[1].tobytes())


def xml(*objects, size="<size><width>60</width><height>40</height></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """A call: what to change -> the `VOCDataSet` of two images with one box each."""
    def make(*, list_text="1.png 1.xml\n2.png 2.xml\n", first=None, files=(), labels="a\nb\n", **keys):
        for name in ("1", "2"):
            picture(tmp_path / f"{name}.png")
            (tmp_path / f"{name}.xml").write_text(xml(voc_object("b", 10, 12, 30, 32)))
        if isinstance(first, bytes):
            (tmp_path / "1.xml").write_bytes(first)
        elif first is not None:
            (tmp_path / "1.xml").write_text(first, encoding="utf-8")
        (tmp_path / "list.txt").write_bytes(list_text if isinstance(list_text, bytes) else list_text.encode())
        if labels is not None:
            (tmp_path / "labels.txt").write_text(labels, encoding="utf-8")
        for name, content in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                picture(tmp_path / name)
            else:
                (tmp_path / name).write_text(content, encoding="utf-8")
        return VOCDataSet(**{"dataset_dir": tmp_path, "anno_path": "list.txt", "label_list": "labels.txt",
                             "data_fields": FIELDS, **keys})
    return make


# --- VOC


def test_the_numbers_of_a_box_are_taken_as_they_are(voc):
    data = voc()
    assert (data.class_names, data.category_ids) == (["a", "b"], [1, 2])
    assert [record["im_id"] for record in data.records] == [0, 1]  # the place in the list, as in PaddleDetection
    for record in data.records:
        assert (record["w"], record["h"]) == (60, 40)
        assert (record["gt_bbox"].tolist(), record["gt_class"].tolist()) == ([[10, 12, 30, 32]], [1])
    assert not data.annotations.mendings()


@pytest.mark.parametrize(("box", "found", "mended"), [
    ((0, 0, 60, 40), [[0, 0, 59, 39]], False),  # PaddleDetection: cut at width - 1
    ((-3, 5, 30, 30), [[0, 5, 30, 30]], True), ((5, 5, 70, 30), [[5, 5, 59, 30]], True),
    ((30, 12, 10, 32), [], False), ((10, 12, 10, 32), [], False), ((70, 5, 80, 30), [], False),  # no size is left
    (("10.5", " 12 ", "30.25", "3.2e1"), [[10.5, 12, 30.25, 32]], False),
    (("x", 12, 30, 32), [], False), (("nan", 12, 30, 32), [], False), (("", 12, 30, 32), [], False),
])
def test_boxes(voc, box, found, mended):
    data = voc(first=xml(voc_object("a", 1, 2, 3, 4), voc_object("a", *box)))
    assert data.records[0]["gt_bbox"].tolist() == [[1, 2, 3, 4], *found]
    assert bool(data.annotations.mended["box that stands out of its image as what lies inside"]) == mended
    assert sum(data.rejected.values()) == 1 - len(found)


@pytest.mark.parametrize(("text", "flag"), [("1", 1), ("0", 0), (" 1\n", 1), ("", 0), ("true", 1), ("2", 1),
                                            ("Unspecified", 0)])
def test_what_is_difficult_is_learnt_but_need_not_be_found(voc, text, flag):
    marked = voc_object("a", 1, 2, 30, 34).replace("<bndbox>", f"<difficult>{text}</difficult><bndbox>")
    data = voc(first=xml(marked))
    assert len(data.records[0]["gt_bbox"]) == 1
    assert [data.is_to_be_found(one) for one in data.annotations.objects] == [not flag, True]
    assert ("1 boxes marked difficult" in data.summary()) == bool(flag)
    for name, number in (("VOC", "mAP"), ("COCO", "AP50")):
        found = [{"image_id": 1, "category_id": 2, "bbox": [10, 12, 20, 20], "score": 0.5}]
        assert metric.measure({"metric": name}, data, found).metrics[number] == pytest.approx(1 if flag else 0.5)


@pytest.mark.parametrize("text", [
    b"\xef\xbb\xbf1.png 1.xml\r\n2.png 2.xml\r\n", "1.png\t1.xml\n\n  2.png   2.xml  ",
    "1.png 1.xml more\n2.png 2.xml 7", "./1.png ./1.xml\n2.png 2.xml", "1.png 1.XML\n2.png 2.xml"])
def test_lists_as_people_write_them(voc, text):
    assert len(voc(list_text=text, files=[("1.XML", xml(voc_object("b", 10, 12, 30, 32)))]).records) == 2


def test_names_with_blanks_backslashes_and_of_all_scripts(voc, tmp_path):
    content = xml(voc_object("犬", 1, 2, 30, 30))
    names = ["my folder/a b.png", "图/像.png", "c.xml.png"]
    files = [(name, None) for name in names] + [(name[:-4] + ".xml", content) for name in names]
    lines = [f"{name} {name[:-4]}.xml" for name in names] + [r"my folder\a b.png my folder\a b.xml",
                                                             f"{tmp_path}/c.xml.png {tmp_path}/c.xml.xml"]
    data = voc(list_text="\n".join(lines), files=files, labels="犬\n")
    assert len(data.records) == 5
    assert data.annotations.mended["file_name with \\ as one with /"] == 2
    assert data.records[0]["im_file"] == data.records[3]["im_file"]


def test_several_lists_are_read_as_one(voc, tmp_path):
    assert len(voc(files=[("more.txt", "2.png 2.xml")], anno_path=["list.txt", "more.txt"]).records) == 3


def test_images_without_annotations(voc, tmp_path):
    data = voc(list_text="1.png\n2.png\n", allow_empty=True)
    assert [len(record["gt_bbox"]) for record in data.records] == [0, 0]
    with pytest.raises(DataError, match="no image to use .*EvalDataset.allow_empty=true keeps images without a box"):
        voc(list_text="1.png\n2.png\n")
    with pytest.raises(DataError, match=r"list.txt: line 2 names no annotation file \(1 of 2 lines do not\)"):
        voc(list_text="1.png 1.xml\n2.png\n")
    with pytest.raises(DataError, match=r"more.txt: line 1 names no annotation file \(1 of 3"):
        voc(files=[("more.txt", "2.png")], anno_path=["list.txt", "more.txt"])


BOMB = ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
        '<annotation><object><name>&c;</name></object></annotation>')


@pytest.mark.parametrize(("changes", "message"), [
    ({"list_text": "1.png 1.xml\n2.png 3.xml"}, r"3.xml: no such annotation file \(1 of the 2 that .*list.txt lists"),
    ({"list_text": "1.png 1.xml\n3.png 2.xml"}, r"3.png: no such image \(1 of the 2"),
    ({"list_text": "000012\n"}, "list.txt: line 1 is '000012'; a line names an image and its annotation file"),
    ({"list_text": "1.xml 1.png\n"}, "1.xml 1.png: no such image"), ({"list_text": " \n\n"}, "the list is empty"),
    ({"list_text": b"1.png 1.xml\0\n"}, "line 1 is"), ({"list_text": b"\xff\xfe1\0"}, "list.txt: is not UTF-8"),
    ({"list_text": "1.png data\n"}, "data: no such annotation file"),
    ({"list_text": "../x.png 1.xml\n"}, "leads out of"),
    ({"list_text": "/etc/x.png 1.xml\n"}, "leads out of .*EvalDataset.allow_outside=true"),
    ({"anno_path": "lost.txt"}, "lost.txt: no such list of images.*EvalDataset.anno_path"),
    ({"anno_path": ""}, "no such list of images"), ({"list_text": f"1.png {'x' * 400}.xml"}, "no such annotation file"),
    ({"label_list": "lost.txt"}, "lost.txt: no such list of classes.*null"),
    ({"labels": ""}, "labels.txt: lists no class"), ({"labels": "a\na\n"}, "'a' stands there twice"),
    ({"first": xml(voc_object("dog", 1, 2, 3, 4))},
     r"1 annotations have a category that .*labels.txt does not list: 'dog' in 1.xml; allowed: \['a', 'b'\]"),
    ({"label_list": None},
     "a category that VOC .EvalDataset.label_list names no file of other classes. does not list: 'b'"),
    ({"first": xml("<object><bndbox/></object>")}, "does not list: '' in 1.xml"),
    ({"first": ""}, "1.xml: is not XML"), ({"first": "<annotation><object>"}, "1.xml: is not XML"),
    ({"first": b"\x89PNG\r\n\x1a\n\0\0"}, "1.xml: is not utf-8"), ({"first": BOMB}, "1.xml: declares entities"),
    ({"first": BOMB.encode("utf-16")}, "1.xml: declares entities"),
    ({"first": "<annotations><image/></annotations>"}, "1.xml: is no annotation of VOC .it is a <annotations>"),
])
def test_what_stops_in_a_line(voc, changes, message):
    with pytest.raises(DataError, match=message) as error:
        voc(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>",
                                  "<size><width>1e300</width><height>40</height></size>",
                                  "<size><width>many</width><height>40</height></size>",
                                  "<size><width>40</width><height>60</height></size>"])  # of one that was turned
def test_a_size_that_is_none_is_that_of_the_image(voc, size):
    data = voc(first=xml(voc_object("a", 10, 12, 55, 32), size=size))
    assert (data.records[0]["w"], data.records[0]["h"]) == (60, 40)
    assert data.records[0]["gt_bbox"].tolist() == [[10, 12, 55, 32]]
    assert "size, for which its image's is taken" in data.annotations.mendings()


def test_without_a_list_of_classes_they_are_those_of_voc(voc):
    data = voc(first=xml(voc_object("dog", 1, 2, 30, 30)), files=[("2.xml", xml())], label_list=None)
    assert data.class_names == list(VOC_CLASSES)
    assert data.class_names[data.records[0]["gt_class"][0]] == "dog"


# --- YOLO


@pytest.fixture
def yolo(tmp_path):
    """A call: what to change -> the `YOLODataSet` of two images for training and one for validation."""
    def make(*, yaml="train: images/train\nval: images/val\nnames: [a, b]\n", text="1 0.5 0.5 0.5 0.5\n", files=(),
             **keys):
        for name in ("train/1", "train/2", "val/3"):
            picture(tmp_path / "images" / f"{name}.png")
            (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / f"{name}.txt").write_text(text if name.endswith("1") else "0 0.25 0.25 0.5 0.5")
        (tmp_path / "data.yaml").write_text(yaml)
        for name, content in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content) if content is not None else picture(tmp_path / name)
        return YOLODataSet(**{"dataset_dir": tmp_path, "section": "TrainDataset", **keys})
    return make


def test_boxes_are_shares_of_the_image(yolo):
    data = yolo()
    assert [record["gt_bbox"].tolist() for record in data.records] == [[[15, 10, 45, 30]], [[0, 0, 30, 20]]]
    assert [record["gt_class"].tolist() for record in data.records] == [[1], [0]]
    assert (data.class_names, data.category_ids) == (["a", "b"], [1, 2])


@pytest.mark.parametrize(("yaml", "keys", "stems"), [
    ("train: images/train\nval: images/val", {}, "12"), ("train: images/train\nval: images/val",
                                                         {"section": "EvalDataset"}, "3"),
    ("train: images/train\ntest: images/val", {"split": "test"}, "3"), ("train: images/train\nvalid: images/val",
                                                                        {"split": "val"}, "3"),
    ("train: [images/train, images/val]", {}, "123"), ("train: list.txt", {}, "21"), ("train: [list.txt]", {}, "21"),
    ("path: .\ntrain: ./images/train", {}, "12"), ("path: images\ntrain: train", {}, "12"),
    ("train: ../images/train", {}, "12"),  # Roboflow writes one ../ too many
    ("path: /not/of/this/machine\ntrain: images/train", {}, "12"), ("train: images\\train", {}, "12"),
    ("train: images/train\nval: images/val", {"dataset_dir": None}, "12"),
    ("train: [images/train, list.txt]", {}, "12"),  # each image once
])
def test_where_the_images_are(yolo, tmp_path, yaml, keys, stems):
    keys = {**keys, "anno_path": tmp_path / "data.yaml"} if "dataset_dir" in keys else keys
    data = yolo(yaml=f"{yaml}\nnames: [a, b]\n", files=[("list.txt", "./images/train/2.png\r\nimages\\train\\1.png\n")],
                **keys)
    assert "".join(record["im_file"][-5] for record in data.records) == stems


def test_names_may_be_a_mapping_with_gaps(yolo):
    data = yolo(yaml="train: images/train\nnames: {7: b, 0: a}\n", text="7 0.5 0.5 0.5 0.5")
    assert (data.class_names, data.category_ids) == (["a", "b"], [1, 2])
    assert [record["gt_class"].tolist() for record in data.records] == [[1], [0]]


def test_empty_images_and_bad_lines_are_counted(yolo):
    data = yolo(text="1 0.5 0.5 0.5\n1 0.5 0.5 0 0\n1 40 40 60 60\n1 0.5 0.5 0.4 0.4\n",
                files=[("images/train/4.png", None)])
    assert data.dropped_empty == 1
    assert len(data.records[0]["gt_bbox"]) == 1
    assert sum(data.rejected.values()) == 3
    assert "1 line that is not five numbers" in data.summary()


def test_an_image_that_cannot_be_read_is_left_to_who_reads_it(yolo):
    data = yolo(files=[("images/train/1.png", "no picture")])
    assert len(data.records) == 2
    assert len(data.records[0]["gt_bbox"]) == 1


def test_a_turned_photograph_has_its_boxes_as_it_is_shown(yolo, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images" / "turned").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "images/turned/5.jpg", exif=exif)
    data = yolo(yaml="train: images/turned\nnames: [a, b]\n", files=[("labels/turned/5.txt", "0 0.5 0.5 1 0.5")])
    assert (data.records[0]["w"], data.records[0]["h"]) == (40, 60)
    assert data.records[0]["gt_bbox"].tolist() == [[0, 15, 40, 45]]


@pytest.mark.parametrize(("changes", "message"), [
    ({"yaml": "train: images/train"}, "data.yaml: has no key `names`"),
    ({"yaml": "names: [a, b"}, "data.yaml: is not YAML"),
    ({"yaml": "names: [a, b]\nval: images/val"}, "data.yaml: has no key `train`.*it has val"),
    ({"yaml": "names: [a, b]\ntrain: images/lost"}, "data.yaml: key `train`: images/lost is not there"),
    ({"yaml": "names: [a, b]\ntrain: [images/train, images/lost]"}, "images/lost is not there"),
    ({"yaml": "names: [a, b]\ntrain: labels/train"}, "labels/train holds no image"),
    ({"yaml": "names: [a, b]\ntrain: {a: 1}"}, "key `train`"), ({"yaml": "names: 3\ntrain: images/train"}, "key names"),
    ({"yaml": "names: [a, a]\ntrain: images/train"}, "'a' stands there twice"),
    ({"text": "2 0.5 0.5 0.5 0.5"}, r"a category that `names` of .*data.yaml does not list: class \(2\) in 1.txt"),
    ({"yaml": "names: [a, b]\ntrain: list.txt", "files": [("list.txt", "images/train/9.png")]}, "9.png: no such image"),
    ({"yaml": "names: [a, b]\ntrain: list.txt", "files": [("list.txt", "1 0.5\n")]}, "list.txt: line 1 is '1 0.5'"),
    ({"yaml": "names: [a, b]\ntrain: list.txt", "files": [("list.txt", "\n")]}, "holds no image"),
    ({"anno_path": "lost.yaml"}, "lost.yaml: no such data.yaml; set TrainDataset.dataset_dir"),
    ({"text": "1 0.5 0.5 0.1 0.5 0.1 0.6 0.2 0.6", "yaml": "names: [a, b]\ntrain: [images/train/1.png]"},
     "no image to use .*1 line of more than five numbers.*task: segment"),
])
def test_what_stops_yolo_in_a_line(yolo, changes, message):
    with pytest.raises(DataError, match=message) as error:
        yolo(**changes)
    assert "\n" not in str(error.value)


def test_images_outside_of_the_data_set_need_a_word(yolo, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(DataError, match="leads out of .*TrainDataset.allow_outside=true"):
        yolo(files=[("inner/data.yaml", "path: ..\ntrain: images/train\nnames: [a, b]\n")], dataset_dir=inner)
    assert len(YOLODataSet(dataset_dir=inner, section="TrainDataset", allow_outside=True).records) == 2


# --- the same data in three formats


@pytest.fixture(scope="module")
def three(shapes, tmp_path_factory):
    """Overrides that make the configs of one data set in COCO's, VOC's and YOLO's files."""
    root = tmp_path_factory.mktemp("three")
    for split in ("train2017", "val2017"):
        coco_as_voc(shapes, root / "voc", split)
    coco_as_yolo(shapes, root / "yolo", ("train2017", "val2017"))
    voc = {"name": "VOCDataSet", "dataset_dir": str(root / "voc"), "label_list": "label_list.txt"}
    yolo = {"name": "YOLODataSet", "dataset_dir": str(root / "yolo"), "anno_path": "data.yaml"}
    made = {"coco": [], "yolo": [f"{section}={json.dumps(yolo)}" for section in ("TrainDataset", "EvalDataset")]}
    made["voc"] = [f"{section}={json.dumps({**voc, 'anno_path': f'{split}.txt'})}"
                   for section, split in (("TrainDataset", "train2017"), ("EvalDataset", "val2017"))]
    return made


def test_the_records_are_the_same(shapes, three, tmp_path):
    cfgs = [config(shapes, tmp_path, *overrides, "num_classes=null", *(
        f"{section}.data_fields=[image, gt_bbox, gt_class]" for section in ("TrainDataset", "EvalDataset")))
        for overrides in three.values()]
    assert [number_of_classes(cfg) for cfg in cfgs] == [3, 3, 3]
    for section in ("TrainDataset", "EvalDataset"):
        coco, *others = (build.build_dataset(cfg, section) for cfg in cfgs)
        for other in others:
            assert len(other.records) == len(coco.records)
            assert (other.class_names, other.category_ids) == (coco.class_names, coco.category_ids)
            for one, same in zip(coco.records, other.records):
                for key in ("gt_bbox", "gt_class", "is_crowd"):
                    np.testing.assert_array_equal(one[key], same[key])
                    assert one[key].dtype == same[key].dtype


@pytest.mark.drill
def test_the_losses_of_two_epochs_and_the_map_are_the_same(shapes, three, tmp_path):
    losses = {}
    for kind, overrides in three.items():
        done = train(config(shapes, tmp_path / kind, *overrides, "metric=VOC"), evaluate=True)
        assert set(done) == {"folder", "epoch", "best", "mAP"}
        lines = (tmp_path / kind / "run" / "results.csv").read_text().splitlines()
        assert lines[0].endswith(",mAP")
        losses[kind] = lines
    assert losses["voc"] == losses["yolo"] == losses["coco"]


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_data_check_looks_through_them(shapes, three, tmp_path, kind, caplog):
    cfg = config(shapes, tmp_path, *three[kind])
    if kind == "voc":  # with the sizes that the images have
        for section, split in (("TrainDataset", "train2017"), ("EvalDataset", "val2017")):
            cfg[section]["dataset_dir"] = str(coco_as_voc(shapes, tmp_path / split, split, more=0))
    with caplog.at_level("INFO"):
        assert check.check(cfg, output_dir=tmp_path / "check")
    assert "nothing is wrong" in caplog.text
    report = check.look_through(cfg, "TrainDataset")
    assert (report.class_names, report.faults) == (["circle", "square", "triangle"], {})
    assert sum(report.boxes_of.values()) == sum(len(one["gt_bbox"]) for one in
                                                build.build_dataset(cfg, "TrainDataset").records)
