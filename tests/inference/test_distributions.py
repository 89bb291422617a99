"""What boxes are the means of: held against the raw maps with numpy, and drawn beside the pictures."""
import cv2
import numpy as np
import paddle
import pytest
from helpers import draw_image, tiny_config

import ppgfl
from ppgfl import ConfigError, Detections
from ppgfl.build import build_reader
from ppgfl.data.device import to_device
from ppgfl.errors import CheckpointError
from ppgfl.inference.detections import split_batch
from ppgfl.inference.distribution_figure import CROP, GAP, draw_distributions
from ppgfl.inference.distributions import SHOWN, Distributions, _cells_of, detect
from ppgfl.inference.infer import figure_paths, infer
from ppgfl.inference.slicing import Slicing

SMALL = ["FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32",
         "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1", "GFLHead.nms.keep_top_k=50", "ResNet.depth=18",
         "TestReader.sample_transforms.1.Resize.keep_ratio=false"]  # x and y have their own scales


def made(name, *overrides):
    """The config, its model with weights as at the start but for sharper distributions, and a batch of two images."""
    cfg = tiny_config(name, *SMALL, *overrides)
    paddle.seed(3)
    model = ppgfl.build_model(cfg)
    model.head.gfl_head_reg.weight.set_value(model.head.gfl_head_reg.weight * 30)
    model.eval()
    reader, rng = build_reader(cfg, "TestReader"), np.random.default_rng(5)
    return model, to_device(reader([draw_image(rng, 60, 85)[0], draw_image(rng, 75, 52)[0]]), reader)


@pytest.fixture(scope="module")
def gfl():
    return made("gfl_r18vd_1x_coco", "GFLHead.nms.score_threshold=0.005")


@pytest.fixture(scope="module")
def gflv2():
    return made("gflv2_r50_fpn_1x_coco", "GFLHead.nms.score_threshold=0.5005")


@pytest.fixture(scope="module")
def upstream():
    return made("gflv2_r50_fpn_1x_coco", "upstream_scores=true", "GFLHead.cell_offset=0.5")


@pytest.mark.parametrize("name", ["gfl", "gflv2", "upstream"])
def test_means_make_the_boxes(name, request):
    model, batch = request.getfixturevalue(name)
    with paddle.no_grad():
        wanted = split_batch(model(batch))
    for (rows, found), expected in zip(detect(model, batch), wanted):
        np.testing.assert_array_equal(rows, expected)
        best = rows[np.argsort(-rows[:, 1], kind="stable")][:SHOWN]
        assert found.probabilities.shape == (SHOWN, 4, 17)
        np.testing.assert_allclose(found.probabilities.sum(axis=2), 1, rtol=1e-12)
        assert found.probabilities.max() > 0.1  # no uniform ones, which would fit any box of a level
        signs = np.array([-1, -1, 1, 1])
        np.testing.assert_allclose(np.tile(found.centers, 2) + signs * found.means(), best[:, 2:], atol=2e-3)
        assert (found.steps[:, 0] != found.steps[:, 1]).all()


@pytest.mark.parametrize("name", ["gfl", "gflv2"])
def test_probabilities_are_those_of_the_raw_maps(name, request):
    """Cell by cell: from which level and place, found by the centre alone."""
    model, batch = request.getfixturevalue(name)
    with paddle.no_grad():
        features = model.features(batch["image"])
    scale = batch["scale_factor"].numpy()
    for image, (_, found) in enumerate(detect(model, batch)):
        for i in range(SHOWN):
            y_scale, x_scale = scale[image]
            stride = round(found.steps[i, 0] * x_scale)
            level = model.decoder.strides.index(stride)
            column, row = np.round(found.centers[i] * (x_scale, y_scale) / stride).astype(int)
            powers = np.exp(features.reg[level].numpy()[image, :, row, column].reshape(4, 17))
            np.testing.assert_allclose(found.probabilities[i], powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("name", ["gflv2", "upstream"])
def test_class_score_times_quality_is_the_score(name, request):
    model, batch = request.getfixturevalue(name)
    for rows, found in detect(model, batch):
        products = found.class_scores * found.qualities
        scores = 1 / (1 + np.exp(-products)) if name == "upstream" else products
        np.testing.assert_allclose(scores, np.sort(rows[:, 1])[::-1][:SHOWN], rtol=1e-5)
        assert ((found.qualities > 0) & (found.qualities < 1)).all()


def test_class_scores_are_the_sigmoid_of_the_class_branch(gflv2):
    model, batch = gflv2
    with paddle.no_grad():
        classes = [paddle.nn.functional.sigmoid(model.head.gfl_head_cls(model.head.conv_feat(level)[0]))
                   for level in model.features(batch["image"]).levels]
    every = np.concatenate([x[0].numpy().ravel() for x in classes])
    for score in detect(model, batch)[0][1].class_scores:
        assert np.abs(every - score).min() < 1e-6


def test_gfl_has_no_quality_and_an_image_without_boxes_no_rows(gfl):
    model, batch = gfl
    assert all(found.class_scores is None and found.qualities is None for _, found in detect(model, batch))
    threshold, model.decoder.nms.score_threshold = model.decoder.nms.score_threshold, 0.99
    try:
        assert [(len(rows), found.sigmas().shape) for rows, found in detect(model, batch)] == [(0, (0, 4))] * 2
    finally:
        model.decoder.nms.score_threshold = threshold


def test_means_and_deviations_by_pencil():
    probabilities = np.zeros((1, 4, 5))
    probabilities[0, 0, 3] = 1
    probabilities[0, 1, [1, 2]] = 0.5
    probabilities[0, 2, [0, 4]] = 0.25, 0.75
    probabilities[0, 3] = 0.2
    found = Distributions(probabilities, np.array([[8.0, 4.0, 8.0, 4.0]]), np.zeros((1, 2)))
    np.testing.assert_allclose(found.means(), [[24, 6, 24, 8]])
    np.testing.assert_allclose(found.sigmas(), [[0, 2, 8 * 3**0.5, 4 * 2**0.5]])


def test_a_box_of_no_cell_is_an_error():
    boxes, scores = np.array([[0, 0, 9, 9], [np.nan] * 4, [1, 1, 5, 5.]]), np.array([[0.5], [0.9], [0.7]])
    assert _cells_of(np.array([[0, 0.7, 1, 1, 5, 5]]), boxes, scores).tolist() == [2]
    for row in ([0, 0.9, *[np.nan] * 4], [0, 0.7, 1, 1, 5, 6]):
        with pytest.raises(CheckpointError, match="comes from no cell"):
            _cells_of(np.array([row]), boxes, scores)


# --- the picture


@pytest.mark.parametrize("box", [
    [10, 10, 40, 30], [-30, -20, 200, 150], [300, 300, 400, 420], [20, 20, 20, 20], [-90, 0, -60, 9],
    [-5e4, -5e4, 5e4, 5e4], [0, 30, 99, 30]])
def test_boxes_of_all_kinds_are_drawn(box):
    image = np.full((60, 100, 3), 90, np.uint8)
    one = Detections(np.array([box], np.float32), np.array([0.5], np.float32), np.array([3]), ["a name ü 数" * 9], None)
    shown = Distributions(np.full((1, 4, 17), 1 / 17), np.full((1, 4), 8.0), np.array([[5.0, 5.0]]))
    picture = draw_distributions(image, one, shown)
    assert picture.dtype == np.uint8 and picture.shape[0] > CROP + GAP
    assert (picture != 255).mean() > 0.05


def test_the_crop_shows_the_image_where_it_is():
    """The left half of the image is red, and so is the left half of a box around its middle; beyond it is grey."""
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, :50, 2] = 255
    shown = Distributions(np.eye(17)[None, [5, 5, 5, 5]], np.full((1, 4), 8.0), np.array([[50.0, 50.0]]))
    for box, outside in (([30, 30, 70, 70], 0), ([-20, -20, 120, 120], 1)):
        one = Detections(np.array([box], np.float32), np.ones(1), np.zeros(1, int), ["x"])
        crop = draw_distributions(image, one, shown)[-CROP - GAP:-GAP, GAP:GAP + CROP]
        assert crop[120, 88].tolist() == [0, 0, 255] and crop[120, 112].tolist() == [0, 0, 0]
        assert (crop[3, 3].tolist() == [240, 240, 240]) == outside


def test_figures_have_names_of_their_own(tmp_path):
    names = ["a.jpg", "a.png", "a_distributions.png", "b/c.bmp"]
    pictures = [tmp_path / "out" / name for name in names]
    figures = figure_paths([str(tmp_path / name) for name in names], pictures)
    assert [str(path.relative_to(tmp_path / "out")) for path in figures] == [
        "a_distributions.png.png", "a_distributions.png.png.png", "a_distributions_distributions.png",
        "b/c_distributions.png"]
    long = figure_paths([], [tmp_path / ("数" * 80 + ".jpg")])[0]
    assert len(long.name.encode()) <= 255 and long.name.endswith("_distributions.png")


def test_infer_draws_them_and_finds_the_same(r18vd_weights, small_coco, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", "TestReader.batch_size=2")
    images = small_coco / "val2017"
    plain = infer(cfg, images, weights=r18vd_weights, output_dir=tmp_path / "plain")
    found = infer(cfg, images, weights=r18vd_weights, output_dir=tmp_path / "shown", draw_threshold=0,
                  show_distributions=True)
    assert len(found) == 5
    for one, other in zip(plain, found):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
    heights = {path.name: cv2.imdecode(np.fromfile(path, np.uint8), 1).shape[0]
               for path in (tmp_path / "shown").glob("*_distributions.png")}
    assert sorted(heights) == [f"bild_{i}é_distributions.png" for i in range(5)]
    assert set(heights.values()) == {SHOWN * (GAP + 34 + CROP) + GAP}
    assert not list((tmp_path / "plain").glob("*_distributions.png"))


def test_no_box_above_the_threshold_is_said_in_the_figure(r18vd_weights, small_coco, tmp_path):
    file = sorted((small_coco / "val2017").iterdir())[0]
    infer(tiny_config(), str(file), weights=r18vd_weights, output_dir=tmp_path, draw_threshold=1,
          show_distributions=True)
    figure = cv2.imdecode(np.fromfile(tmp_path / f"{file.stem}_distributions.png", np.uint8), 1)
    assert (figure[:, :GAP + CROP] != 255).any() and (figure[:, -300:] == 255).all()


@pytest.mark.parametrize(("given", "overrides", "words"), [
    ({"slicing": Slicing()}, [], "with --slice_infer a box may"), ({"tta": "flip"}, [], "with --tta a box may"),
    ({"pictures": False}, [], "with --no_pictures nothing"), ({}, ["engine=static"], "with engine: static the graph")])
def test_what_has_no_distributions_is_refused(given, overrides, words, small_coco, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", *overrides)
    with pytest.raises(ConfigError, match=f"--show_distributions: {words}"):
        infer(cfg, small_coco / "val2017", output_dir=tmp_path / "out", show_distributions=True, **given)
    assert not (tmp_path / "out").exists()
