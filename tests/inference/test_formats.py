"""Detections as other tools take them: pencil numbers, and what those tools' own readers make of them."""
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from ppgfl import ConfigError, Detections
from ppgfl.inference.detections import coco_records

ROWS = np.array([[1, 0.9, 10, 20, 50.5, 60.25], [0, 0.5, -4, 30, 20, 90], [1, 0.3, 200, 0, 240, 9]], np.float32)
NAMES = ["cat", "Hund & Co"]


def found_on(height=80, width=120, rows=ROWS, **options):
    options = options or {"image": np.zeros((height, width, 3), np.uint8)}
    return Detections.from_rows(rows, NAMES, **options)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:0]])
def test_supervision(rows):
    supervision = pytest.importorskip("supervision")
    given = found_on(rows=rows).to_supervision()
    assert isinstance(given, supervision.Detections)
    np.testing.assert_array_equal(given.xyxy, rows[:, 2:])
    np.testing.assert_array_equal(given.confidence, rows[:, 1])
    np.testing.assert_array_equal(given.class_id, rows[:, 0])
    assert list(given.data["class_name"]) == [NAMES[int(row[0])] for row in rows]
    assert len(given[given.confidence > 0.4]) == (rows[:, 1] > 0.4).sum()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r'pip install "ppgfl\[supervision\]"'):
        found_on().to_supervision()


def test_yolo_by_hand():
    """The second box is cut at the left and at the bottom; of the third nothing lies in the image."""
    assert found_on().to_yolo() == ("1 0.252083 0.501563 0.337500 0.503125\n"
                                    "0 0.083333 0.687500 0.166667 0.625000\n")
    assert found_on().to_yolo(with_scores=True).splitlines()[0] == "1 0.252083 0.501563 0.337500 0.503125 0.900000"
    assert found_on(rows=ROWS[:0]).to_yolo() == ""


def test_labelme_by_hand():
    content = found_on(path=None, image=np.zeros((80, 120, 3), np.uint8)).to_labelme("../a.jpg")
    assert {key: content[key] for key in ("imagePath", "imageData", "imageHeight", "imageWidth")} == {
        "imagePath": "../a.jpg", "imageData": None, "imageHeight": 80, "imageWidth": 120}
    assert [(s["label"], s["points"], s["shape_type"], s["score"]) for s in content["shapes"]] == [
        ("Hund & Co", [[10, 20], [50.5, 60.25]], "rectangle", 0.9), ("cat", [[0, 30], [20, 80]], "rectangle", 0.5)]


def test_voc_by_hand():
    """Pixels from 1, the last one inside: 10 to 50.5 are the 11th to the 51st."""
    root = ElementTree.fromstring(found_on().to_voc("x/a.jpg"))
    assert (root.findtext("filename"), root.findtext("size/width"), root.findtext("size/height")) == (
        "a.jpg", "120", "80")
    assert [[item.findtext("name")] + [int(side.text) for side in item.find("bndbox")]
            for item in root.iter("object")] == [["Hund & Co", 11, 21, 51, 60], ["cat", 1, 31, 20, 80]]


def test_coco_is_what_infer_saves():
    assert found_on().to_coco(7, [1, 18])[0] == {
        "image_id": 7, "category_id": 18, "bbox": [10, 20, 40.5, 40.25], "score": float(np.float32(0.9))}
    assert found_on().to_coco(7, [1, 18]) == coco_records(ROWS, 7, [1, 18])


@pytest.mark.parametrize("box", [(119.4, 79.4, 200, 200), (0, 0, 0.6, 0.6), (-5, -5, 0.5, 99), (0, 0, 1e9, 1e9)])
def test_labels_lie_in_the_image_and_have_a_size(box):
    found = found_on(rows=np.array([[0, 0.9, *box]], np.float32))
    x1, y1, x2, y2 = (int(side.text) for side in ElementTree.fromstring(found.to_voc()).find("object/bndbox"))
    assert 1 <= x1 <= x2 <= 120
    assert 1 <= y1 <= y2 <= 80
    _, x, y, width, height = map(float, found.to_yolo().split())
    assert min(x - width / 2, y - height / 2) > -1e-6
    assert max(x + width / 2, y + height / 2) < 1 + 1e-6
    assert min(width * 120, height * 80) > 0.499


def test_names_that_xml_cannot_write():
    found = Detections.from_rows(ROWS[:1], ["", "\x1b\ud800é"], image=np.zeros((80, 120, 3), np.uint8))
    assert ElementTree.fromstring(found.to_voc("a\udcff.jpg")).findtext("object/name") == "??é"


def test_the_size_has_to_be_known():
    with pytest.raises(ValueError, match="neither the path nor the pixels"):
        Detections.from_rows(ROWS, NAMES).to_yolo()
