import json

import cv2
import numpy as np
import pytest
from helpers import COCO_MINI, recorded, sample, tiny_config

from ppgfl import ConfigError, DataError, build, load_config
from ppgfl.data.batch import PadBatch, Reader, collate
from ppgfl.data.dataset import COCODataSet, ImageFolder
from ppgfl.data.image import read_image, write_image
from ppgfl.data.loader import Batches
from ppgfl.data.transforms import Decode, NormalizeImage, RandomFlip, RandomResize, Resize


def rng():
    return np.random.default_rng(3)


# --- images

@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_every_format_is_read_under_any_name(tmp_path, suffix):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15] = (255, 0, 0)  # blue in BGR
    path = str(tmp_path / f"bild äö 图{suffix}")
    write_image(path, image)
    read = read_image(path)
    assert read.shape == (20, 30, 3)
    np.testing.assert_allclose(read[10, 5], (255, 0, 0), atol=3)


@pytest.mark.parametrize(("array", "pixel"), [
    (np.full((4, 5), 70, np.uint8), (70, 70, 70)),
    (np.full((4, 5, 4), (10, 20, 30, 0), np.uint8), (10, 20, 30)),
    (np.full((4, 5, 3), 70 * 257, np.uint16), (70, 70, 70)),
    (np.full((4, 5), 70 * 257, np.uint16), (70, 70, 70)),
], ids=["grey", "transparent", "16 bit", "16 bit grey"])
def test_other_pixels_become_8_bit_colour(tmp_path, array, pixel):
    cv2.imwrite(str(tmp_path / "i.png"), array)
    image = read_image(tmp_path / "i.png")
    assert image.dtype == np.uint8
    assert image.shape == (4, 5, 3)
    np.testing.assert_array_equal(image[0, 0], pixel)


def exif_jpeg(orientation):
    """A JPEG of 40 x 20 pixels, left half white, with an EXIF orientation."""
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255
    raw = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2, "big")
            + b"\0\0\0\0\0\0")
    return raw[:2] + b"\xff\xe1" + (len(tiff) + 2).to_bytes(2, "big") + tiff + raw[2:]


def test_the_rotation_of_a_photograph_is_applied(tmp_path):
    (tmp_path / "turned.jpg").write_bytes(exif_jpeg(6))  # 6: turn by 90 degrees clockwise
    image = read_image(tmp_path / "turned.jpg")
    assert image.shape == (40, 20, 3)
    assert image[2, 10].min() > 200  # what was left is on top
    assert image[37, 10].max() < 50
    sample = Reader([Decode()], []).sample({"im_file": str(tmp_path / "turned.jpg"), "h": 20, "w": 40})
    assert (sample["h"], sample["w"]) == (40, 20)


def test_truncated_and_broken_images_are_named(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in (".jpg", ".png"):
        data = cv2.imencode(suffix, image)[1].tobytes()
        for length in (len(data) // 3, len(data) // 2, len(data) - 2 if suffix == ".jpg" else len(data) - 12):
            path = tmp_path / f"cut{suffix}"
            path.write_bytes(data[:length])
            with pytest.raises(DataError, match=rf"cut\{suffix}.*truncated"):
                read_image(path)
        (tmp_path / f"whole{suffix}").write_bytes(data + b"some camera's trailer")
        assert read_image(tmp_path / f"whole{suffix}").shape == (64, 64, 3)
    for name, data in (("empty.jpg", b""), ("text.jpg", b"hello"), ("header.jpg", b"\xff\xd8\xff\xd9")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "none.jpg")


def test_the_end_marker_of_a_thumbnail_is_not_the_end_of_the_image(tmp_path):
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    thumbnail = b"\xff\xe1" + (12).to_bytes(2, "big") + b"thumb\xff\xd9end"
    (tmp_path / "t.jpg").write_bytes(data[:2] + thumbnail + data[2:len(data) // 2])
    with pytest.raises(DataError, match="truncated"):
        read_image(tmp_path / "t.jpg")


# --- transforms

@pytest.mark.parametrize(("size", "target", "expected"), [
    ((480, 640), [800, 1333], (800, 1067)), ((640, 427), [800, 1333], (1199, 800)),
    ((300, 1000), [800, 1333], (400, 1333)), ((1, 5000), [800, 1333], (1, 1333)), ((480, 640), 320, (240, 320)),
])
def test_resize_keeps_the_ratio(size, target, expected):
    assert Resize(target, keep_ratio=True).size_for(*size) == expected


def test_resize_scales_boxes_and_clips_them():
    s = {"image": np.zeros((10, 20, 3), np.uint8), "scale_factor": np.ones(2, np.float32),
         "gt_bbox": np.array([[2, 1, 25, 9]], np.float32)}
    Resize([20, 60], keep_ratio=False)(s)
    assert s["image"].shape == (20, 60, 3)
    np.testing.assert_array_equal(s["im_shape"], [20, 60])
    np.testing.assert_array_equal(s["scale_factor"], [2, 3])  # height first
    np.testing.assert_array_equal(s["gt_bbox"], [[6, 2, 60, 18]])


def test_flip_mirrors_boxes():
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    s = {"image": image, "gt_bbox": np.array([[0, 0, 2, 1]], np.float32)}
    RandomFlip(prob=1.0)(s, rng())
    np.testing.assert_array_equal(s["image"], image[:, ::-1])
    np.testing.assert_array_equal(s["gt_bbox"], [[3, 0, 5, 1]])
    RandomFlip(prob=0.0)(s, rng())
    np.testing.assert_array_equal(s["gt_bbox"], [[3, 0, 5, 1]])


def test_normalize_equals_the_arithmetic_on_every_value():
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    image = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    s = {"image": image.copy()}
    NormalizeImage(mean, std)(s)
    expected = image.astype(np.float32)
    expected *= np.float32(1 / 255)
    expected -= np.array(mean)
    expected /= np.array(std)
    assert s["image"].dtype == np.float32
    np.testing.assert_array_equal(s["image"], expected)
    s = {"image": image.copy()}
    NormalizeImage(is_scale=False, norm_type="none")(s)
    np.testing.assert_array_equal(s["image"], image)


def test_random_resize_draws_from_its_sizes():
    def widths(**options):
        generator, seen = rng(), set()
        for _ in range(60):
            s = {"image": np.zeros((10, 10, 3), np.uint8), "scale_factor": np.ones(2, np.float32)}
            RandomResize(**options)(s, generator)
            seen.add(s["image"].shape[1])
        return seen

    assert widths(target_size=[[20, 99], [30, 99], [40, 99]]) == {20, 30, 40}
    assert widths(target_size=[[20, 99], [24, 99]], random_range=True) == {20, 21, 22, 23, 24}
    assert widths(target_size=[50, 50], random_size=False) == {50}


def test_pad_batch_pads_right_and_bottom():
    samples = [{"image": np.ones((3, 5, 33), np.float32)}, {"image": np.full((3, 40, 2), 2, np.float32)}]
    PadBatch(32)(samples)
    for s, value, h, w in zip(samples, (1, 2), (5, 40), (33, 2)):
        assert s["image"].shape == (3, 64, 64)
        assert (s["image"][:, :h, :w] == value).all()
        assert s["image"].sum() == 3 * h * w * value


@pytest.mark.parametrize("make", [
    lambda: Resize([1, 2, 3], True), lambda: Resize(0, True), lambda: Resize(5, True, interp=9), lambda: RandomFlip(2),
    lambda: NormalizeImage(std=[0, 1, 1]), lambda: NormalizeImage(norm_type="x"), lambda: RandomResize(5),
    lambda: RandomResize([1, 2, 3], random_range=True), lambda: PadBatch(-1), lambda: RandomResize([]),
    lambda: RandomResize([[9, 90], [8, 90]], random_range=True), lambda: RandomResize([[8, 90, 3]]),
    lambda: collate([{"image": np.zeros((3, 2, 2))}, {"image": np.zeros((3, 2, 4))}]),
])
def test_bad_arguments_are_config_errors(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs the real COCO images beside the project")
def test_inputs_of_real_photographs_are_those_of_paddledetection():
    expected = recorded("gfl_r18vd_1x_coco_val6")
    reader = build.build_reader(load_config("gfl_r18vd_1x_coco"), "EvalReader")
    for i in range(6):
        path = COCO_MINI / "val2017" / f"{expected[f'im_id{i}'].item():012d}.jpg"
        s = {key: value[0] for key, value in reader([str(path)]).items()}
        np.testing.assert_array_equal(s["im_shape"], expected[f"im_shape{i}"][0])
        np.testing.assert_array_equal(s["scale_factor"], expected[f"scale_factor{i}"][0])
        assert [1, *s["image"].shape] == expected[f"padded{i}"].tolist()
        np.testing.assert_array_equal(sample(s["image"], 512)[3:], expected[f"image{i}"][3:])


# --- data sets

def coco_file(folder, **content):
    (folder / "a.json").write_text(json.dumps(content))
    for image in content.get("images", []):
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((8, 8, 3), np.uint8))
    return COCODataSet(dataset_dir=str(folder), anno_path="a.json", data_fields=["image", "gt_bbox", "gt_class"],
                       allow_empty=True)


def images(n):
    return [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(n)]


@pytest.mark.parametrize("ids", [[0, 1, 2], [1, 2, 3], [7, 90, 3]])
def test_classes_come_from_the_file_in_its_order(tmp_path, ids):
    categories = [{"id": i, "name": n} for i, n in zip(ids, "abc")]
    annotations = [{"id": k, "image_id": 0, "bbox": [0, 0, 4, 4], "category_id": i} for k, i in enumerate(ids)]
    d = coco_file(tmp_path, images=images(1), categories=categories, annotations=annotations)  # no area, no iscrowd
    assert d.class_names == ["a", "b", "c"]
    assert d.category_ids == ids
    np.testing.assert_array_equal(d.records[0]["gt_class"], [0, 1, 2])


def test_boxes_without_a_size_and_crowds_are_counted_and_dropped(tmp_path):
    boxes = [[1, 1, 3, 3], [1, 1, 0, 3], [1, 1, -3, 3], [1, 1, float("nan"), 3], [1, 1, 3], [0, 0, 5, 5], [2, 2, 1, 1]]
    annotations = [{"id": i, "image_id": 0, "bbox": b, "category_id": 1, "iscrowd": int(i == 5), "ignore": int(i == 6)}
                   for i, b in enumerate(boxes)]
    d = coco_file(tmp_path, images=images(2), categories=[{"id": 1, "name": "a"}], annotations=annotations)
    np.testing.assert_array_equal(d.records[0]["gt_bbox"], [[1, 1, 4, 4]])
    assert d.rejected == {"crowd": 1, "without a size": 3, "marked ignore": 1, "without a bbox": 1,
                          "of an image that is not listed": 0}
    assert "1 images with boxes, 1 empty ones kept, 0 empty ones left out" in d.summary()
    assert "3 without a size" in d.summary()


def test_empty_images_are_kept_as_asked(small_coco):
    def lengths(**options):
        d = COCODataSet(str(small_coco), "val2017", "annotations/instances_val2017.json", **options)
        return d.with_boxes, d.kept_empty, len(d.records)

    assert lengths() == (4, 0, 4)
    assert lengths(allow_empty=True) == (4, 1, 5)
    assert lengths(allow_empty=True, empty_ratio=0.1) == (4, 0, 4)
    assert lengths(allow_empty=True, repeat=3) == (4, 1, 15)
    assert lengths(sample_num=2) == (2, 0, 2)


@pytest.mark.parametrize(("content", "found"), [
    ("{", "not a JSON file"), ("[]", "list 'images'"), ("{}", "list 'images'"),
    ('{"images": [{"id": 1}], "categories": []}', "file_name"),
    ('{"images": [], "categories": [{"id": 1}]}', "list 'categories'"),
    ('{"images": [{"id": null, "file_name": "x"}], "categories": []}', "image id None is neither a whole number nor"),
    ('{"images": [{"id": 1.5, "file_name": "x"}], "categories": []}', "image id 1.5 is neither a whole number nor"),
    ('{"images": [{"id": 1, "file_name": 7}], "categories": []}', "file_name of image 1 is 7; it must be the path"),
    ('{"images": [], "categories": [{"id": 1, "name": null}]}', "the name of category 1 is None"),
    ('{"images": [], "categories": [], "annotations": 5}', "'annotations' must be"),
])
def test_files_that_are_not_coco(tmp_path, content, found):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=found) as error:
        COCODataSet(dataset_dir=str(tmp_path), anno_path="a.json", section="EvalDataset")
    assert "EvalDataset.anno_path" in str(error.value)


def test_wrong_paths_name_the_key_and_the_resolved_path(tmp_path, small_coco):
    with pytest.raises(DataError, match=r"EvalDataset.dataset_dir") as error:
        COCODataSet(dataset_dir=str(tmp_path / "none"), anno_path="a.json")
    assert str(tmp_path / "none" / "a.json") in str(error.value)
    with pytest.raises(DataError, match=r"no such image \(5 of the 5"):
        COCODataSet(str(small_coco), "train2017", "annotations/instances_val2017.json")


def test_an_unknown_category_is_named(tmp_path):
    with pytest.raises(DataError, match=r"annotation 5 \(category_id 9\); allowed: \[1\]"):
        coco_file(tmp_path, images=images(1), categories=[{"id": 1, "name": "a"}],
                  annotations=[{"id": 5, "image_id": 0, "bbox": [0, 0, 1, 1], "category_id": 9}])


def test_image_folder_takes_a_folder_a_file_and_a_list(small_coco, tmp_path):
    folder = small_coco / "val2017"
    names = sorted(p.name for p in folder.iterdir())
    (tmp_path / "notes.txt").write_text("no image")
    assert [r["im_file"].split("/")[-1] for r in ImageFolder(image_dir=str(folder)).records] == names
    assert len(ImageFolder(image_dir=str(folder / names[0])).records) == 1
    assert len(ImageFolder(image_dir=[str(folder / names[1]), str(folder)]).records) == 6
    with pytest.raises(DataError, match="holds no image"):
        ImageFolder(image_dir=str(tmp_path))
    with pytest.raises(DataError, match="no such image or folder"):
        ImageFolder(image_dir=str(tmp_path / "none"))


def test_class_names_from_json_text_or_coco(small_coco, tmp_path):
    (tmp_path / "labels.txt").write_text("katze\n\nhündin\n", encoding="utf-8")
    d = ImageFolder(dataset_dir=str(tmp_path), anno_path="labels.txt", num_classes=2)
    assert (d.class_names, d.category_ids) == (["katze", "hündin"], [1, 2])
    d = ImageFolder(dataset_dir=str(small_coco), anno_path="annotations/instances_val2017.json")
    assert d.class_names[3] == "class 3"
    d = ImageFolder(dataset_dir="dataset/coco", anno_path="none.json")
    assert (len(d.class_names), d.class_names[0], d.category_ids[-1]) == (80, "person", 90)
    assert ImageFolder(anno_path="none.json", num_classes=2).class_names == ["class 0", "class 1"]
    with pytest.raises(DataError, match="lists 2 classes, but num_classes is 80; set TestDataset.anno_path"):
        ImageFolder(dataset_dir=str(tmp_path), anno_path="labels.txt")


# --- loading

def test_batches_cover_everything_once():
    def flat(batches, epoch=0):
        return [index for batch in batches.indices(epoch) for index in batch]

    batches = Batches(10, 3, shuffle=True, seed=1)
    first = flat(batches)
    assert sorted(first) == list(range(10))
    assert flat(batches) == first
    assert flat(batches, epoch=1) != first
    assert [len(x) for x in Batches(10, 3).indices()] == [3, 3, 3, 1]
    assert [len(x) for x in Batches(10, 3, drop_last=True).indices()] == [3, 3, 3]


def loaded(cfg, reader="TrainReader", section="TrainDataset"):
    dataset = build.build_dataset(cfg, section)
    return [{k: v.numpy() for k, v in batch.items()}
            for batch in build.build_loader(cfg, reader, dataset.records).epoch()]


def test_batches_are_the_same_whatever_the_number_of_workers(small_coco):
    got = [loaded(tiny_config("gfl_r18vd_1x_coco", f"TrainDataset.dataset_dir={small_coco}",
                              "TrainDataset.image_dir=val2017", f"worker_num={workers}")) for workers in (0, 1, 2)]
    assert len(got[0]) == 2
    keys = {"image", "im_shape", "scale_factor", "im_id", "place", "labels", "label_weights", "bbox_targets",
            "pos_num"}
    assert set(got[0][0]) == keys
    for other in got[1:]:
        for a, b in zip(got[0], other):
            for key in keys:
                np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_reaches_the_caller_as_one_error(small_coco, tmp_path, workers, capfd):
    target = tmp_path / "val2017"
    target.mkdir()
    for path in (small_coco / "val2017").iterdir():
        data = path.read_bytes()
        (target / path.name).write_bytes(data[:len(data) // 2] if "_2" in path.name else data)
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", f"worker_num={workers}",
                      f"EvalDataset.image_dir={target}")
    with pytest.raises(DataError, match=r"bild_2é.jpg.*truncated"):
        loaded(cfg, "EvalReader", "EvalDataset")
    assert "Traceback" not in capfd.readouterr().err
