"""Folders of labels: what `ppgfl data convert`, and supervision's loaders, read from them is what was found."""
import json

import cv2
import numpy as np
import pytest

from ppgfl import DataError, Detections
from ppgfl.data.convert import convert
from ppgfl.inference.infer import picture_names
from ppgfl.inference.label_folder import LAYOUTS, LabelFolder

NAMES = ["cat", "no", "Hund & Co", "行人"]  # YAML may read `no` as a truth value
# In pixels: of a share with six digits of at most 200 pixels; of hundredths; of whole pixels.
ROUNDING = {"yolo": 2e-4, "labelme": 5.1e-3, "voc": 0.5}


@pytest.fixture
def photos(tmp_path):
    """Images in sub-folders, two of which differ by their ending alone, and one of which has no object."""
    found = []
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "x/a.jpg", "x/images/b é.jpg", "y/empty.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(60, 200, 2)
        assert cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        count = 0 if "empty" in name else 6
        corners = rng.uniform(-20, 1, (count, 2)) + rng.uniform(0, 50, (count, 2))
        rows = np.column_stack([rng.integers(0, 4, count), rng.random(count), corners,
                                corners + rng.uniform(25, 200, (count, 2))]).astype(np.float32)
        found.append(Detections.from_rows(rows, NAMES, path=str(path)))
    return found


def write(kind, photos, folder):
    files = [one.path for one in photos]
    labels = LabelFolder(kind, folder, files, picture_names(files), NAMES)
    for index, one in enumerate(photos):
        labels.write(index, one)
    labels.close()
    return labels


def wanted(found):
    """{(class, cut box)} of detections."""
    height, width = cv2.imread(found.path).shape[:2]
    return [(name, box) for name, box in
            zip(found.names, np.clip(found.boxes.astype(float), 0, [width, height, width, height]))]


def check(boxes, names, found, rounding):
    expected = wanted(found)
    assert len(boxes) == len(expected) == len(names)
    left = list(zip(names, boxes))
    for name, box in expected:
        at = min(range(len(left)), key=lambda i: np.abs(left[i][1] - box).max() + 1e6 * (left[i][0] != name))
        read_name, read = left.pop(at)
        assert read_name == name
        np.testing.assert_allclose(read, box, atol=rounding + 1e-3)  # `convert` writes thousandths


@pytest.mark.parametrize("kind", LAYOUTS)
def test_convert_reads_what_was_found(kind, photos, tmp_path):
    labels = write(kind, photos, tmp_path / "out")
    classes = tmp_path / "out" / kind / ("classes.txt" if kind == "yolo" else "labels.txt")
    content, rejected = convert(kind, tmp_path / "out" / kind, tmp_path / "back.json", classes=classes)
    assert not rejected
    assert [one["name"] for one in content["categories"]] == NAMES
    by_file = {one["file_name"]: one for one in content["images"]}
    assert len(by_file) == len(photos)
    for one, name in zip(photos, labels.names):
        image = by_file["/".join(filter(None, (labels.images, name)))]
        read = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in read)])
        check(boxes, [NAMES[a["category_id"] - 1] for a in read], one, ROUNDING[kind])


@pytest.mark.parametrize("kind", LAYOUTS)
def test_supervision_reads_what_was_found(kind, photos, tmp_path):
    """It looks into one folder, not below. Older versions read no labelme."""
    sv = pytest.importorskip("supervision")
    flat = [one for one in photos if "/x/" not in one.path and "/y/" not in one.path]
    labels = write(kind, flat, tmp_path / "out")
    folder = labels.folder
    if kind == "yolo":
        data = sv.DetectionDataset.from_yolo(str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"))
        assert data.classes == NAMES
    elif kind == "voc":
        data = sv.DetectionDataset.from_pascal_voc(str(folder / "JPEGImages"), str(folder / "Annotations"))
    elif hasattr(sv.DetectionDataset, "from_labelme"):
        data = sv.DetectionDataset.from_labelme(str(folder), str(folder))
    else:
        pytest.skip("this supervision reads no labelme")
    assert len(data) == 2
    for one, name in zip(flat, labels.names):
        read = data.annotations[str(folder / labels.images / name)]
        check(read.xyxy, [data.classes[i] for i in read.class_id], one, ROUNDING[kind])


def test_supervision_reads_coco(photos, tmp_path):
    sv = pytest.importorskip("supervision")
    records = [r for i, one in enumerate(photos) for r in one.to_coco(i, range(1, 5))]
    images = [{"id": i, "file_name": name, "height": 1, "width": 1}
              for i, name in enumerate(picture_names([one.path for one in photos]))]
    content = {"images": images, "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
               "annotations": [{**r, "id": i, "area": 1, "iscrowd": 0} for i, r in enumerate(records)]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    data = sv.DetectionDataset.from_coco(str(tmp_path / "photos"), str(tmp_path / "coco.json"))
    assert len(data) == len(photos)
    for one in photos:
        read = data.annotations[one.path]
        np.testing.assert_allclose(read.xyxy, one.boxes, atol=1e-4)
        np.testing.assert_array_equal([data.classes[i] for i in read.class_id], one.names)


def test_images_are_links_and_stems_are_their_own(photos, tmp_path):
    labels = write("yolo", photos, tmp_path / "out")
    assert labels.names == ["a.jpg", "a.png.png", "x/a.jpg", "x/images/b é.jpg", "y/empty.png"]
    assert (labels.folder / "images" / "a.png.png").resolve() == (tmp_path / "photos" / "a.png").resolve()
    assert (labels.folder / "labels" / "y" / "empty.txt").read_text() == ""
    assert (labels.folder / "images" / "x" / "labels" / "b é.txt").is_file()  # the right-most images/, as Ultralytics


def test_labels_that_are_there_stay(photos, tmp_path):
    label = write("labelme", photos[:1], tmp_path).folder / "a.json"
    label.write_text("a person's work")
    with pytest.raises(DataError, match="may have corrected"):
        LabelFolder("labelme", tmp_path, [], [], NAMES)
    assert label.read_text() == "a person's work"


@pytest.mark.parametrize(("names", "words"), [(["a", "a"], "stands there twice"), (["a "], "blanks around"),
                                              (["a\nb"], "blanks around"), (["\ud800"], "UTF-8")])
def test_class_names_that_labels_cannot_have(names, words, tmp_path):
    with pytest.raises(DataError, match=words):
        LabelFolder("yolo", tmp_path, [], [], names)
    assert not list(tmp_path.iterdir())


def test_what_has_no_label_is_said(photos, tmp_path, caplog):
    rows = np.array([[0, 0.9, 5, 5, 20, 20], [0, 0.8, 900, 5, 990, 20], [4, 0.7, 5, 5, 20, 20]], np.float32)
    write("voc", [Detections.from_rows(rows, NAMES, path=photos[0].path)], tmp_path)
    assert "2 detections have no label" in caplog.text
