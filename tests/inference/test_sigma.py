"""How uncertain sides are: the same numbers as numpy's from the raw maps, whatever runs the model."""
import csv
import json

import numpy as np
import paddle
import pytest
from helpers import SHORT, draw_image, lines_of, match, tiny_config

import ppgfl
from ppgfl import ConfigError, DataError, Detections, Detector
from ppgfl.build import build_reader, load_model
from ppgfl.data.device import to_device
from ppgfl.inference import detections
from ppgfl.inference.bands import draw_bands
from ppgfl.inference.detections import coco_records, write_csv
from ppgfl.inference.infer import infer
from ppgfl.inference.json_lines import JsonLines
from ppgfl.inference.slicing import Slicing, combine, moved
from ppgfl.inference.static_model import load_detection_model
from ppgfl.model.head import Integral

SMALL = ["FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32",
         "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1", "GFLHead.nms.keep_top_k=50", "ResNet.depth=18",
         "TestReader.sample_transforms.1.Resize.keep_ratio=false", *SHORT,
         "GFLHead.fpn_stride=[8, 16, 32]"]  # x and y have their own scales
PIXELS, IN_OPENVINO = 1e-4, 3e-4  # which rounds in another order: 1.3e-4 of 18 pixels on a processor with AMX
NAMES = {"gfl": ("gfl_r18vd_1x_coco", "GFLHead.nms.score_threshold=0.005"),
         "gflv2": ("gflv2_r50_fpn_1x_coco", "GFLHead.nms.score_threshold=0.5005")}


@pytest.fixture(scope="module", params=NAMES)
def made(request, tmp_path_factory):
    """(config, weights, images, folder of an export with sigma)."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = tiny_config(NAMES[request.param][0], *SMALL, *NAMES[request.param][1:], "export.sigma=true")
    paddle.seed(3)
    model = ppgfl.build_model(cfg)
    for conv in (model.head.gfl_head_reg, model.head.gfl_head_cls):  # sharp shapes, and no scores that are alike
        conv.weight.set_value(conv.weight * 30)
    bias = -0.5 * (paddle.arange(17, dtype="float32") - 2) ** 2  # boxes of a few cells, where floats are fine enough
    model.head.gfl_head_reg.bias.set_value(paddle.tile(bias, [4]))
    paddle.save(model.state_dict(), str(folder / "w.pdparams"))
    rng = np.random.default_rng(5)
    images = [draw_image(rng, 60, 85)[0], draw_image(rng, 75, 52)[0]]
    cfg["weights"] = str(folder / "w.pdparams")
    ppgfl.export(cfg, output_dir=folder / "plain", onnx=True)
    ppgfl.export(cfg, output_dir=folder / "nms", onnx=True, with_nms=True)
    return cfg, folder, images


def wanted(cfg, image):
    """{box's cell: (box, sigma, top2)} of every cell by numpy, from the raw maps: softmax, expectation, variance."""
    model, reader = load_model(cfg), build_reader(cfg, "TestReader")
    batch = to_device(reader([image]), reader)
    with paddle.no_grad():
        features = model.features(batch["image"])
    y_scale, x_scale = batch["scale_factor"].numpy()[0]
    cells = []
    for maps, stride, offset in zip(features.reg, model.decoder.strides, model.decoder.cell_offsets):
        logits = maps.numpy()[0].astype(np.float64).reshape(4, 17, -1)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        bins = model.head.distribution_project.project.numpy().astype(np.float64).reshape(1, 17, 1)  # of the weights
        mean = (shares * bins).sum(axis=1, keepdims=True)
        sigma = np.sqrt((shares * (bins - mean) ** 2).sum(axis=1)) * stride
        sigma /= np.array([[x_scale], [y_scale], [x_scale], [y_scale]])
        ys, xs = (places + offset for places in np.divmod(np.arange(logits.shape[2]), maps.shape[3]))
        mean = mean[:, 0] * stride
        box = np.array([xs * stride - mean[0], ys * stride - mean[1], xs * stride + mean[2], ys * stride + mean[3]])
        box /= np.array([[x_scale], [y_scale], [x_scale], [y_scale]])
        top2 = np.sort(shares, axis=1)[:, -2:].sum(axis=1)
        cells.append(np.concatenate([box, sigma, top2]).T)
    return np.concatenate(cells)


def ways(cfg, folder):
    yield "dygraph", ppgfl.open_detector(cfg, sigma=True)
    yield "static", ppgfl.open_detector({**cfg, "engine": "static"}, sigma=True)
    for name in sorted({"model.json", "model.pdmodel"} & {path.name for path in (folder / "plain").iterdir()}):
        # Paddle 3's oneDNN fails at random with a .json
        engine = "native" if name.endswith(".json") else "auto"
        yield name, ppgfl.open_detector({}, exported=folder / "plain" / name, sigma=True, runner={"engine": engine})
    yield "onnx", ppgfl.open_detector({}, exported=folder / "plain" / "model.onnx", sigma=True)
    yield "onnx with nms", ppgfl.open_detector({}, exported=folder / "nms" / "model.onnx", sigma=True)


def test_all_ways_give_numpys_numbers(made):
    cfg, folder, images = made
    expected = [wanted(cfg, image) for image in images]
    plain = ppgfl.open_detector(cfg)
    off = {}
    for way, detector in ways(cfg, folder):
        for image, cells in zip(images, expected):
            rows = detector([image])[0]
            assert rows.shape[1] == 14 and len(rows) > 20 and rows.dtype == np.float32
            match(rows[:, :6], plain([image])[0])
            distance = np.abs(cells[None, :, :4] - rows[:, None, 2:6]).max(axis=2)
            # cells' boxes may be equal: of those the nearest
            spread = np.abs(cells[None, :, 4:] - rows[:, None, 6:])
            spread = np.where((distance < 1e-2)[..., None], spread, np.inf)
            off[way] = max(off.get(way, 0), spread.max(axis=2).min(axis=1).max())
    assert len(off) >= 5
    assert all(most <= (IN_OPENVINO if way == "model.pdmodel" else PIXELS) for way, most in off.items()), off


def test_without_it_nothing_changes(made, tmp_path):
    """The same rows, files and columns; what an export holds more is what was asked for."""
    cfg, folder, images = made
    off = {**cfg, "export": {}}
    ppgfl.export(off, output_dir=tmp_path / "off", onnx=True, verify=())
    settings = (tmp_path / "off" / "infer_cfg.yml").read_text(encoding="utf-8")
    assert "sigma" not in settings and "calibration" not in settings
    rows = ppgfl.open_detector({}, exported=tmp_path / "off")([images[0]])[0]
    assert rows.shape[1] == 6
    found = Detector(tmp_path / "off")(images[0])
    assert found.sigma is None and found.top2 is None and "sigma" not in found.to_json()
    with pytest.raises(ConfigError, match="export it again with -o export.sigma=true"):
        Detector(tmp_path / "off", sigma=True)
    on = Detector(folder / "plain", sigma=True)(images[0])
    assert on.sigma.shape == on.top2.shape == (len(on), 4) and on.sigma.dtype == on.top2.dtype == np.float32


def test_a_batch_whose_images_find_different_numbers(made):
    cfg, folder, images = made
    model, reader = load_detection_model(cfg, sigma=True), build_reader(cfg, "TestReader")
    blank = np.zeros((60, 85, 3), np.uint8)
    batch = to_device(reader([images[0], blank, images[0]]), reader)
    bbox, counts = (value.numpy() for value in model(batch).values())
    assert bbox.shape == (counts.sum(), 14)
    np.testing.assert_array_equal(bbox[:counts[0]], bbox[-counts[2]:])
    model.decoder.nms.score_threshold = 1.0
    assert [value.numpy().tolist() for value in model(batch).values()] == [[], [0, 0, 0]]


def test_graphs_that_find_nothing(made, tmp_path):
    cfg, _, images = made
    ppgfl.export({**cfg, "GFLHead": {**cfg["GFLHead"], "nms": {**cfg["GFLHead"]["nms"], "score_threshold": 1.0}}},
                 output_dir=tmp_path, onnx=True, with_nms=True, verify=())
    for name, engine in (("model.json", "native"), ("model.pdmodel", "native"), ("model.pdmodel", "onednn"),
                         ("model.onnx", "auto")):
        if (tmp_path / name).exists():  # Paddle 2.6 writes no .json
            found = Detector(tmp_path / name, runner={"engine": engine})(images)
            assert [(len(one), one.sigma.shape) for one in found] == [(0, (0, 4))] * 2


def test_spread_by_pencil():
    """Bins 2 and 4 alike: deviation 1. All in bin 0: 0. Uniform over 0..4: √2. A quarter at 0, the rest at 4."""
    shares = np.full((4, 5), 1e-30)
    shares[0, [2, 4]], shares[1, 0], shares[2], shares[3, [0, 4]] = 0.5, 1, 0.2, (0.25, 0.75)
    spread = Integral(4).spread(paddle.to_tensor(np.log(shares).astype(np.float32).reshape(1, 20))).numpy()[0]
    np.testing.assert_allclose(spread, [1, 0, 2**0.5, 3**0.5, 1, 1, 0.4, 1], atol=1e-6)


# --- what carries it on


ROWS = np.array([[2, 0.4, 1, 2, 30, 40, *range(1, 5), 0.1, 0.2, 0.3, 0.4],
                 [0, 0.9, 5, 5, 20, 20, *range(5, 9), 0.5, 0.6, 0.7, 0.8]], np.float32)


def test_detections_and_files_have_it(tmp_path):
    found = Detections.from_rows(ROWS, ["a", "b", "c"], path="x.jpg")
    np.testing.assert_array_equal(found.sigma, [[5, 6, 7, 8], [1, 2, 3, 4]])
    np.testing.assert_array_equal(found.boxes, [[5, 5, 20, 20], [1, 2, 30, 40]])
    best = found.above(0.5)
    assert len(best.sigma) == len(best.top2) == 1 and best.path == "x.jpg"
    assert found.to_dict()["detections"][0] == {
        "label": 0, "name": "a", "score": 0.9, "box": [5, 5, 20, 20], "sigma": [5, 6, 7, 8],
        "top2": [0.5, 0.6, 0.7, 0.8]}
    write_csv(tmp_path / "on.csv", [found])
    write_csv(tmp_path / "off.csv", [Detections.from_rows(ROWS[:, :6], ["a", "b", "c"], path="x.jpg")])
    on, off = (list(csv.reader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("on", "off"))
    assert [row[:8] for row in on] == off
    assert on[0][8:] == [f"{key}_{side}" for key in ("sigma", "top2") for side in ("x1", "y1", "x2", "y2")]
    assert [float(n) for n in on[1][8:]] == [5, 6, 7, 8, 0.5, 0.6, 0.7, 0.8]
    plain, more = coco_records(ROWS[:, :6], 1, [7, 8, 9]), coco_records(ROWS, 1, [7, 8, 9])
    assert [{**one, "sigma": spread} for one, spread in zip(plain, ([1, 2, 3, 4], [5, 6, 7, 8]))] == more


@pytest.mark.parametrize("method", ["nms", "nmm", "concat"])
def test_slices_keep_it(method):
    rows, = moved([ROWS], [(100, 50, 164, 114)])
    np.testing.assert_array_equal(rows[:, 6:], ROWS[:, 6:])
    np.testing.assert_array_equal(rows[:, :6], ROWS[:, :6] + [0, 0, 100, 50, 100, 50])
    other = rows + np.array([0, 0.05, 3, 3, 3, 3, *[0.5] * 8], np.float32)
    joined = combine(np.concatenate([rows, other]), Slicing(combine_method=method))
    plain = combine(np.concatenate([rows, other])[:, :6], Slicing(combine_method=method))
    np.testing.assert_array_equal(joined[:, :6], plain)
    for row in joined:  # that of the best
        source = other if method != "concat" or row[1] in other[:, 1] else rows
        np.testing.assert_array_equal(row[6:], source[source[:, 0] == row[0]][0][6:])


def test_a_mirrored_image_has_mirrored_sigmas(made):
    """Of a view and its mirror image the better candidate wins; both know their own sides."""
    cfg, _, images = made
    tta = ppgfl.open_detector(cfg, tta="flip", sigma=True)
    image = images[0]
    once, mirrored = tta([image])[0], tta([np.ascontiguousarray(image[:, ::-1])])[0]
    width = image.shape[1]
    back = mirrored.copy()
    back[:, [2, 4]] = width - mirrored[:, [4, 2]]
    for first in (6, 10):
        back[:, [first, first + 2]] = mirrored[:, [first + 2, first]]
    if cfg["architecture"] == "GFL" and once.shape == back.shape:
        order = [np.lexsort(np.round(rows[:, [2, 3, 0]], 2).T) for rows in (once, back)]
        np.testing.assert_allclose(once[order[0]], back[order[1]], atol=2e-3)


def test_infer_writes_and_draws_it(r18vd_weights, small_coco, tmp_path, monkeypatch):
    drawn = []  # the boxes are larger than the images, so no band is seen
    monkeypatch.setattr(detections, "draw_bands", lambda image, *rest: drawn.append(len(rest[1])) or image)
    cfg = tiny_config("gfl_r18vd_1x_coco", "GFLHead.nms.score_threshold=0.001")
    images = small_coco / "val2017"
    plain = infer(cfg, images, weights=r18vd_weights, output_dir=tmp_path / "off", draw_threshold=0)
    found = infer(cfg, images, weights=r18vd_weights, output_dir=tmp_path / "on", draw_threshold=0,
                  draw_sigma=True, save_results="json", show_distributions=True)
    for one, other in zip(plain, found):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.sigma is None and other.sigma.shape == (len(other), 4) and (other.sigma > 0).all()
        assert len(one)
    saved = json.loads((tmp_path / "on" / "results.json").read_text(encoding="utf-8"))
    assert all(len(row["sigma"]) == len(row["top2"]) == 4 for one in saved for row in one["detections"])
    assert drawn == [len(one) for one in found]
    infer(cfg, images, weights=r18vd_weights, output_dir=tmp_path / "lines", save_results="jsonl", sigma=True,
          pictures=False)
    assert all("sigma" in row for line in lines_of(tmp_path / "lines") for row in line["detections"])
    with pytest.raises(DataError, match="made with sigma True, and now it is False"):
        infer(cfg, images, weights=r18vd_weights, output_dir=tmp_path / "lines", save_results="jsonl", resume=True,
              pictures=False)


def test_resumed_lines_are_all_with_it_or_all_without(tmp_path):
    JsonLines(tmp_path, settings={"tta": "None"}).write({"file": "a"})
    with pytest.raises(DataError, match="made with sigma False, and now it is True"):
        JsonLines(tmp_path, resume=True, settings={"tta": "None", "sigma": True})


def test_bands_reach_one_sigma():
    image = np.full((80, 100, 3), 200, np.uint8)
    picture = draw_bands(image, np.array([[30, 20, 70, 60.]]), np.array([[8, 1, 3, 0.]]), np.array([0]))
    changed = (picture != image).any(axis=2)
    xs = np.flatnonzero(changed[40])  # across the left and the right side
    assert xs[xs < 50].tolist() == list(range(22, 39)) and xs[xs > 50].tolist() == list(range(67, 74))
    assert np.flatnonzero(changed[:40, 50]).tolist() == [19, 20, 21]
    assert (np.abs(picture[40, 30].astype(int) - 200) > np.abs(picture[40, 36].astype(int) - 200)).any()
    assert (image == 200).all()
    found = Detections.from_rows(ROWS, ["a", "b", "c"], image=image)
    off, on = found.draw(0), found.draw(0, with_sigma=True)
    assert (off != on).any() and (off == found.above(0).draw(0)).all()


@pytest.mark.parametrize(("box", "sigma"), [
    ([-50, -50, -10, -10], [3] * 4), ([-1e6, -1e6, 1e6, 1e6], [1e6] * 4), ([np.nan] * 4, [1] * 4),
    ([10, 10, 5, 5], [2] * 4), ([0, 0, 99, 79], [np.inf] * 4)])
def test_bands_of_all_kinds_are_drawn(box, sigma):
    assert draw_bands(np.zeros((80, 100, 3), np.uint8), np.array([box]), np.array([sigma]), np.array([3])).shape == (
        80, 100, 3)
