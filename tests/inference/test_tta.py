"""Test-time augmentation: what each view sees, where its boxes come to lie, and one NMS over all of them."""
import json
import pickle

import cv2
import numpy as np
import paddle
import pytest
from helpers import draw_image, match, recorded, tiny_config

import ppgfl
from ppgfl import ConfigError, Detector
from ppgfl.build import build_reader
from ppgfl.inference.detector import open_detector
from ppgfl.inference.slicing import Slicing
from ppgfl.inference.tta import views_of
from ppgfl.model.decode import Decoder, MultiClassNMS

SMALL = ["FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32",
         "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1", "GFLHead.nms.keep_top_k=50",
         "TestReader.batch_size=2"]


def views(tta, *overrides):
    return views_of(tta, build_reader(tiny_config("gfl_r18vd_1x_coco", *overrides), "TestReader"), "TestReader")


@pytest.fixture(scope="module", params=["gfl_r18vd_1x_coco", "gflv2_r50_fpn_1x_coco"])
def small(request):
    """The config and the model, with weights as they are at the start, of a GFL and of a GFLv2."""
    threshold = 0.005 if request.param.startswith("gfl_") else 0.5005
    cfg = tiny_config(request.param, "ResNet.depth=18", f"GFLHead.nms.score_threshold={threshold}", *SMALL)
    paddle.seed(3)
    model = ppgfl.build_model(cfg)
    model.eval()
    return cfg, model


@pytest.fixture(scope="module")
def images():
    """Of two shapes, neither of whose widths is a multiple of 32 once they are resized."""
    rng = np.random.default_rng(5)
    return [draw_image(rng, 60, 85)[0], draw_image(rng, 75, 52)[0]]


# --- values


def cardboard(batches):
    """A network that gives what stands in `batches`, one of (boxes [A, 4] in pixels of the input, classes, scores) for
    each view, and what it was called with."""
    left, seen = list(batches), []

    def network(batch):
        rows = left.pop(0)
        seen.append({name: value.numpy() for name, value in batch.items()})
        boxes = rows[:, 2:] / np.tile(seen[-1]["scale_factor"][:, ::-1], 2)
        scores = (rows[:, :1] == np.arange(80)) * rows[:, 1:2]
        return paddle.to_tensor(boxes[None].astype("float32")), paddle.to_tensor(scores[None].astype("float32"))

    return network, seen


def test_candidates_come_together_as_in_mmdetection():
    values = recorded("tta")
    ways = views("flip,0.8", "TestReader.sample_transforms.1.Resize.target_size=[256, 333]")
    network, _ = cardboard([values[name] for name in ("plain", "mirrored", "small", "small_mirrored")])
    nms = MultiClassNMS(score_threshold=0.05, nms_top_k=1000, keep_top_k=100, nms_threshold=0.6)
    found = ways.detect(ways([np.zeros((256, 333, 3), np.uint8)]), network, Decoder((8,), 80, nms))
    assert found["bbox_num"].tolist() == [100]
    match(found["bbox"].numpy(), values["merged"], pixels=1e-3, score=1e-6)


def test_views_by_hand():
    """Twice as high as wide, so that the short side decides: 48 -> 64 pixels, and -> 32 with half the size."""
    image = np.random.default_rng(0).integers(0, 256, (72, 48, 3), dtype=np.uint8)
    widths, batches = views("0.5, flip")([image, image])
    assert widths == [48, 48]
    assert [batch["image"].shape for batch in batches] == [(2, 3, 96, 64)] * 2 + [(2, 3, 64, 32)] * 2
    assert [batch["im_shape"][0].tolist() for batch in batches] == [[96, 64]] * 2 + [[48, 32]] * 2
    for batch, mirrored in (batches[:2], batches[2:]):
        height, width = batch["im_shape"][0].astype(int)
        content = [each["image"][..., :height, :width] for each in (batch, mirrored)]
        np.testing.assert_array_equal(content[1], content[0][..., ::-1])
        assert not mirrored["image"][..., height:, :].any()


@pytest.mark.parametrize(("tta", "count"), [("1", 1), ("flip", 2), ("1,flip", 2), ("0.5", 2), ("flip,2,1,0.5", 6)])
def test_the_image_as_it_is_is_one_of_the_views(tta, count):
    assert len(views(tta).readers) == count


def test_images_are_mirrored_before_they_are_padded():
    image = np.full((64, 90, 3), 200, np.uint8)
    _, (plain, mirrored) = views("flip")([image])
    assert plain["image"].shape == (1, 3, 64, 96)
    np.testing.assert_array_equal(mirrored["image"], plain["image"])  # the padding is on the right of both
    assert not plain["image"][..., 90:].any()
    padded = ["TestReader.sample_transforms=[Decode: {}, Pad: {size: [96, 96]}, Resize: {target_size: [64, 64], "
              "keep_ratio: true}, NormalizeImage: {}, Permute: {}]"]
    _, (plain, mirrored) = views("flip", *padded)([image])
    np.testing.assert_array_equal(mirrored["image"], plain["image"])


def test_a_reader_without_a_size_scales_the_image_itself():
    steps = "TestReader.sample_transforms=[Decode: {}, NormalizeImage: {}, Permute: {}]"
    ways = views("1.5", steps)
    _, batches = ways([np.zeros((41, 64, 3), np.uint8)])
    assert [batch["im_shape"].tolist() for batch in batches] == [[[41, 64]], [[62, 96]]]
    np.testing.assert_allclose(batches[1]["scale_factor"], [[62 / 41, 1.5]], rtol=1e-6)


@pytest.mark.parametrize("tta", ["flip", "flip,0.5,1.5", "1.5"])
def test_against_a_plain_nms_over_all_views(tta):
    rng = np.random.default_rng(2)
    ways, sizes = views(tta), [np.zeros((64, 90, 3), np.uint8)]
    views_rows = []
    for _ in ways.readers:
        corners = rng.uniform(-5, 60, (50, 2))
        views_rows.append(np.column_stack([rng.integers(0, 3, 50), rng.permutation(50) / 51 + rng.uniform(0, 0.01, 50),
                                           corners, corners + rng.uniform(5, 40, (50, 2))]))
    network, seen = cardboard(views_rows)
    found = ways.detect(ways(sizes), network, Decoder((8,), 80, MultiClassNMS(0.1, -1, -1, 0.5)))["bbox"].numpy()
    rows = []
    for number, (batch, view) in enumerate(zip(seen, views_rows)):
        view = view.copy()
        if ways.flip and number % 2:
            width = batch["im_shape"][0, 1]  # of the view, before padding
            view[:, [2, 4]] = width - view[:, [4, 2]]
        view[:, 2:] /= np.tile(batch["scale_factor"][0, ::-1], 2)
        rows += view[view[:, 1] > 0.1].tolist()
    kept = []
    for row in sorted(rows, key=lambda row: -row[1]):
        if not any(row[0] == other[0] and iou(row[2:], other[2:]) > 0.5 for other in kept):
            kept.append(row)
    assert len(kept) < len(rows)
    match(found, np.array(kept, np.float32), pixels=1e-3, score=1e-6)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_each_view_brings_its_best_candidates():
    """`nms_top_k: 1`: the best of a class of each view, as if it were alone."""
    rows = [np.array([[0, 0.9, 0, 0, 10, 10], [0, 0.5, 20, 20, 30, 30]], np.float32),
            np.array([[0, 0.8, 0, 40, 10, 50], [0, 0.4, 20, 60, 30, 70]], np.float32)]
    ways = views("flip")
    found = ways.detect(ways([np.zeros((64, 96, 3), np.uint8)]), cardboard(rows)[0],
                        Decoder((8,), 80, MultiClassNMS(0.1, 1, 100, 0.5)))["bbox"].numpy()
    match(found, np.array([[0, 0.9, 0, 0, 10, 10], [0, 0.8, 86, 40, 96, 50]], np.float32))


# --- the real network


def test_factor_1_alone_changes_nothing(small, images):
    cfg, model = small
    wanted = open_detector(cfg, model=model)(images)
    for got, rows in zip(open_detector(cfg, model=model, tta="1")(images), wanted):
        assert len(rows) > 5
        np.testing.assert_array_equal(got, rows)


def mirrored(rows, width):
    return np.column_stack([rows[:, :2], width - rows[:, 4], rows[:, 3], width - rows[:, 2], rows[:, 5]])


@pytest.mark.parametrize("tta", ["flip", "flip,0.75"])
def test_a_mirrored_image_gives_mirrored_detections(small, images, tta):
    cfg, model = small
    images = [image[:, :64] for image in images]  # of 64 pixels resized: the views of one are those of the other
    images[0] = images[0][:48]
    turned = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    detect = open_detector(cfg, model=model, tta=tta)
    for rows, back, image in zip(detect(images), detect(turned), images):
        assert len(rows) > 5
        match(mirrored(back, image.shape[1]), rows)
    alone = open_detector(cfg, model=model)
    rows, back = alone(images[:1])[0], alone(turned[:1])[0]
    assert len(rows) != len(back) or np.abs(mirrored(back, 64) - rows).max() > 0.1  # the network itself does not


def test_a_symmetric_image_gives_symmetric_candidates(small, images):
    cfg, model = small
    half = images[0][:, :40]
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    cfg = {**cfg, "GFLHead": {**cfg["GFLHead"], "nms": {**cfg["GFLHead"]["nms"], "nms_threshold": 1.0,
                                                        "nms_top_k": -1, "keep_top_k": -1}}}
    cfg["GFLHead"]["nms"]["score_threshold"] *= 1.001
    everything = ppgfl.build_model(cfg)
    everything.set_state_dict(model.state_dict())
    rows, = open_detector(cfg, model=everything, tta="flip")([image])
    rows = rows[np.argsort(-rows[:, 1], kind="stable")][:200]
    assert len(rows) > 20
    for row in mirrored(rows[:100], 80):
        assert np.abs(rows - row).max(axis=1).min() < 1e-2


def test_records_slices_and_batches_are_the_same(small, images, tmp_path):
    cfg, model = small
    records = []
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        records.append({"im_id": number, "im_file": str(tmp_path / f"{number}.png")})
    detect = open_detector(cfg, model=model, tta="flip,0.75")
    alone = [detect([image])[0] for image in images]
    found = list(detect.detect_records(records))
    assert [number for number, _ in found] == [0, 1]
    for (_, rows), wanted in zip(found, alone):
        np.testing.assert_array_equal(rows, wanted)
    whole = Slicing((640, 640), combine_method="concat")  # one slice
    sliced = open_detector(cfg, model=model, tta="flip,0.75", slicing=whole)
    for (_, rows), wanted, other in zip(sliced.detect_records(records), alone, sliced(images)):
        match(rows, wanted)
        match(other, wanted)
    same = [images[0], images[0][::-1].copy()]
    for rows, wanted in zip(detect(same), [detect([image])[0] for image in same]):
        match(rows, wanted)


def test_a_static_graph_finds_the_same(small, images, tmp_path):
    """Also where only the weights say how many classes there are."""
    cfg, model = small
    weights = str(tmp_path / "small.pdparams")
    paddle.save(model.state_dict(), weights)
    cfg = {**cfg, "engine": "static", "num_classes": None, "TrainDataset": None}
    static = open_detector(cfg, weights=weights, tta="flip,1.25")
    for rows, wanted in zip(static(images), open_detector(cfg, model=model, tta="flip,1.25")(images)):
        assert len(wanted) > 5
        match(rows, wanted)


def test_detector_keeps_its_augmentation_when_it_is_pickled(r18vd_weights, images):
    overrides = ["TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "engine=dygraph", "use_gpu=false"]
    detector = Detector("gfl_r18vd_1x_coco", r18vd_weights, overrides, tta="flip,0.8")
    plain = Detector("gfl_r18vd_1x_coco", r18vd_weights, overrides)(images[0])
    found = detector(images[0])
    assert len(found) != len(plain) or not np.array_equal(found.boxes, plain.boxes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector))(images[0]).boxes, found.boxes)


# --- what cannot be


@pytest.mark.parametrize("tta", [
    "up", "0", "100", "-0.8", "nan", "inf", "1e999", "", " ", ",", "flip,", "flip,flip", "1,1", "0.8,0.80", "FLIP",
    "flip 0.8", "flip;0.8", "0,8", 0.8, True, ["flip"]])
def test_wrong_values(tta):
    with pytest.raises(ConfigError, match=r"^tta: .*; allowed: flip and factors of the reader's size, 0.25 to 4") as no:
        views(tta)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(("reader", "words"), [
    (["sample_transforms=[Decode: {}, PadResize: {target_size: 64}, NormalizeImage: {}, Permute: {}]"],
     r"\(TestReader has PadResize\); leave factors out"),
    (["sample_transforms=[Decode: {}, Resize: {target_size: 64, keep_ratio: true}, Pad: {size: 64}, "
      "NormalizeImage: {}, Permute: {}]"], r"\(TestReader has Resize, Pad\)"),
    (["sample_transforms=[Decode: {}]", "batch_transforms=[Resize: {target_size: 64, keep_ratio: false}, "
      "NormalizeImage: {}, Permute: {}, PadBatch: {pad_to_stride: 32}]"], r"Resize of TestReader.sample_transforms"),
    (["batch_transforms=[]"], r"add PadBatch: \{pad_to_stride: 32\} to TestReader.batch_transforms"),
    (["batch_transforms=[PadBatch: {pad_to_stride: 16}]"], "multiples of 32"),
])
def test_readers_that_factors_cannot_scale(reader, words):
    overrides = [f"TestReader.{each}" for each in reader]
    with pytest.raises(ConfigError, match=words):
        views("flip,0.8", *overrides)
    assert len(views("flip", *overrides).readers) == 2


def test_commands(run_here, small_coco, r18vd_weights, exported, tmp_path):
    sizes = [f"{reader}.sample_transforms.1.Resize.target_size=[64, 96]" for reader in ("TestReader", "EvalReader")]
    common = ["-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", f"EvalDataset.dataset_dir={small_coco}",
              "use_gpu=false", "worker_num=0", "engine=dygraph", "EvalReader.batch_size=3", *sizes]
    found = {}
    for name, flags in (("plain", []), ("flip", ["--tta", "flip"]), ("both", ["--tta", "flip,0.75"])):
        done = run_here("ppgfl", "eval", "--no_report", "--output_eval", name, *flags, *common, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        done = run_here("ppgfl", "infer", "--no_pictures", "--save_results", "coco", "--infer_dir",
                        small_coco / "val2017", "--output_dir", f"infer_{name}", *flags, *common, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name / "bbox.json").read_text())
        looked_at = json.loads((tmp_path / f"infer_{name}" / "bbox.json").read_text())
        boxes = [sorted(row["bbox"] for row in rows) for rows in (looked_at, found[name])]
        assert boxes[0] == boxes[1] or name == "plain"  # padded in batches of 3
    assert found["plain"] != found["flip"] != found["both"]
    for command, flags, words in (
            ("eval", ["--tta", "up"], "error: tta: 'up'; allowed: flip"),
            ("infer", ["--infer_dir", small_coco / "val2017", "--tta", ""], "error: tta: ''; allowed: flip"),
            ("eval", ["--exported", exported[0], "--tta", "flip"], "use the weights it was made from"),
            ("eval", ["--json_eval", "--tta", "flip"], "error: --tta: with --json_eval")):
        done = run_here("ppgfl", command, *flags, *common, cwd=tmp_path)
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        assert (done.returncode, len(errors)) == (2, 1), done.stderr
        assert words in errors[0]
