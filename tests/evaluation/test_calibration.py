"""Whether scores and sigmas mean what they say: by pencil, against naive counts, and from eval to an export."""
import json

import numpy as np
import paddle
import pytest
from helpers import SHORT, tiny_config

import ppgfl
from ppgfl import CheckpointError, ConfigError, DataError, Detections, Detector, ExportError
from ppgfl.build import build_dataset
from ppgfl.data.image import read_image
from ppgfl.evaluation import calibration, trust
from ppgfl.evaluation.calibration import Judged, cross_fitted, fit, judge, rank_correlation, ratios
from ppgfl.evaluation.coco import coco_evaluator, read_results
from ppgfl.evaluation.evaluate import evaluate
from ppgfl.inference.infer import infer
from ppgfl.inference.runner import load_runner
from ppgfl.weights import calibration as stored

SMALL = ["FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32",
         "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1", "GFLHead.fpn_stride=[8, 16, 32]", *SHORT]
NUMBERS = {"sigma_scale": 0.5, "temperature": 0.4, "bias": -0.7}


def made_up(count=20_000, seed=0):
    """Detections that are right as often as sigmoid(2 logit(score) - 1) says, with sides off by 0.3 sigma."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.02, 0.98, count)
    hits = rng.uniform(size=count) < 1 / (1 + np.exp(1 - 2 * np.log(scores / (1 - scores))))
    sigma = rng.uniform(1, 20, (count, 4))
    errors = np.where(hits[:, None], rng.normal(0, 0.3 * sigma), np.nan)
    return Judged(scores, hits, rng.integers(0, 100, count), errors, sigma)


def test_the_fit_finds_what_was_put_in():
    found = fit(made_up())
    assert found.temperature == pytest.approx(0.5, rel=0.03) and found.bias == pytest.approx(-1, abs=0.05)
    assert found.sigma_scale == pytest.approx(0.3, rel=0.02)


def test_it_is_the_least_cross_entropy():
    judged = made_up(400)
    found = fit(judged)
    target = np.where(judged.hits, (judged.hits.sum() + 1) / (judged.hits.sum() + 2),
                      1 / ((~judged.hits).sum() + 2))

    def loss(temperature, bias):
        share = calibration.Fit(temperature, bias, None).scores(judged.scores)
        return -(target * np.log(share) + (1 - target) * np.log(1 - share)).sum()

    best = loss(found.temperature, found.bias)
    for factor, more in ((1.02, 0), (0.98, 0), (1, 0.02), (1, -0.02)):
        assert loss(found.temperature * factor, found.bias + more) > best


def test_after_it_the_other_half_is_calibrated():
    judged = made_up()
    scores, scales = cross_fitted(judged)
    before, after = (calibration.calibration_error(s, judged.hits) for s in (judged.scores, scores))
    assert before > 0.1 and after < 0.02
    assert len(np.unique(scales)) == 2
    inside = ratios(judged) / scales[judged.hits][:, None]
    assert (inside <= 1).mean() == pytest.approx(0.6827, abs=0.01)
    assert (inside <= 2).mean() == pytest.approx(0.9545, abs=0.01)


@pytest.mark.parametrize("hits", [[True] * 4, [False] * 4, [True, True, False, False], []])
def test_what_cannot_be_fitted(hits):
    """All right, none right, the worse scored sooner, nothing at all."""
    hits = np.array(hits, bool)
    judged = Judged(np.linspace(0.1, 0.9, len(hits)), hits, np.arange(len(hits)), np.zeros((len(hits), 4)), None)
    assert fit(judged) is None and cross_fitted(judged) is None
    charts, facts = trust.trust(judged)
    assert set(charts) == ({"reliability"} if hits.any() else set()) and "Sigma" not in facts


def test_perfectly_separated_scores_have_a_finite_fit():
    scores = np.array([0.1, 0.2, 0.8, 0.9] * 5)
    found = fit(Judged(scores, scores > 0.5, np.arange(20), np.zeros((20, 4)), np.ones((20, 4))))
    assert np.isfinite([found.temperature, found.bias]).all() and found.temperature > 0
    assert found.sigma_scale > 0


def test_calibration_error_by_pencil():
    """Three in the lowest range, one right: |0.04 - 1/3|; one of score 1, which belongs to the last range."""
    scores, hits = np.array([0.03, 0.04, 0.05, 1.0]), np.array([False, True, False, True])
    mean, share, count = calibration.reliability(scores, hits)
    np.testing.assert_allclose(mean, [0.04, 1])
    np.testing.assert_allclose(share, [1 / 3, 1])
    assert count.tolist() == [3, 1]
    assert calibration.calibration_error(scores, hits) == pytest.approx(3 / 4 * (1 / 3 - 0.04))


def test_rank_correlation_by_pencil():
    """d = 0, 1, -1, 0 -> 1 - 6 * 2 / (4 * 15); equals share the mean of their ranks."""
    assert rank_correlation(np.array([1, 2, 3, 4.0]), np.array([10, 30, 20, 99.0])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1, 2, 2, 3.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation(np.arange(5.0), -np.arange(5.0) ** 3) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


@pytest.fixture
def cfg(small_coco):
    return tiny_config("gfl_r18vd_1x_coco", *SMALL, f"EvalDataset.dataset_dir={small_coco}",
                       "EvalDataset.data_fields=[image, gt_bbox, gt_class]")


def test_judged_by_hand(cfg):
    """The truth moved by 1, 2, -1, -2 pixels is right, all else is not."""
    dataset = build_dataset(cfg, "EvalDataset")
    results = []
    for r in dataset.records:
        for b, c in zip(r["gt_bbox"], r["gt_class"]):
            x1, y1, x2, y2 = b + np.array([1, 0.5, -1, -0.5])
            results.append({"image_id": r["im_id"], "category_id": dataset.category_ids[c], "score": 0.9,
                            "bbox": [float(n) for n in (x1, y1, x2 - x1, y2 - y1)], "sigma": [1, 2, 3, 4]})
    wrong = [{**one, "bbox": [300.0, 300.0, 5.0, 5.0], "score": 0.3} for one in results]
    judged = judge(coco_evaluator(dataset, results + wrong))
    assert judged.hits.sum() == len(results) and len(judged.hits) == 2 * len(results)
    assert set(judged.scores[judged.hits]) == {0.9} and set(judged.scores[~judged.hits]) == {0.3}
    np.testing.assert_allclose(judged.errors[judged.hits], [[1, 0.5, -1, -0.5]] * len(results), atol=1e-4)
    assert np.isnan(judged.errors[~judged.hits]).all()
    np.testing.assert_array_equal(judged.sigma, [[1, 2, 3, 4]] * len(judged.hits))
    charts, facts = trust.trust(judged)
    assert set(charts) == {"reliability", "sigma"}
    assert "within ±1 sigma 100.0% of the sides" in facts["Sigma"] and "error 0.2" in facts["Scores"]
    assert judge(coco_evaluator(dataset, results + [{k: v for k, v in wrong[0].items() if k != "sigma"}])).sigma is None


def test_results_with_a_strange_sigma_are_refused(cfg, tmp_path):
    dataset = build_dataset(cfg, "EvalDataset")
    one = {"image_id": 10, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5, "sigma": [1, 2, 3]}
    (tmp_path / "bbox.json").write_text(json.dumps([one]))
    with pytest.raises(DataError, match=r"result 0 has sigma \[1, 2, 3\]; it must be four numbers"):
        read_results(tmp_path / "bbox.json", dataset)


# --- the file beside the weights


@pytest.fixture
def weights(cfg, tmp_path):
    """Of a small model as at the start but for scores that are not alike, with a calibration."""
    path = tmp_path / "w.pdparams"
    paddle.seed(3)
    model = ppgfl.build_model(cfg)
    model.head.gfl_head_cls.weight.set_value(model.head.gfl_head_cls.weight * 30)
    paddle.save(model.state_dict(), str(path))
    stored.write(path, NUMBERS, upstream_scores=False, fitted_on={"images": 3})
    return path


def test_the_file_belongs_to_its_weights_and_scores(weights, caplog):
    assert stored.read(weights, False) == stored.needed(weights, False) == NUMBERS
    assert stored.read(weights, True) is None and "left out" in caplog.text
    weights.write_bytes(weights.read_bytes() + b" ")
    assert stored.read(weights, False) is None
    with pytest.raises(ConfigError, match="w.calibration.json is not there, or not of these weights"):
        stored.needed(weights, False)


@pytest.mark.parametrize("change", [
    lambda content: {}, lambda content: [], lambda content: {**content, "temperature": 0},
    lambda content: {**content, "bias": "much"}, lambda content: {**content, "sigma_scale": float("nan")}])
def test_a_damaged_file_is_refused(weights, change):
    path = stored.path_of(weights)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match="fit it again"):
        stored.read(weights, False)


def test_calibrated_by_pencil():
    """score 0.8: logit 1.3863 / 0.4 - 0.7 = 2.7657 -> 0.9408. The order stays, and so does all but score and sigma."""
    rows = np.array([[3, 0.8, 1, 2, 3, 4, 8, 6, 4, 2, .1, .2, .3, .4], [3, 1] + [0] * 12, [3] + [0] * 13], np.float32)
    before = rows.copy()
    found = load_runner().calibrate(rows, **NUMBERS)
    assert found[0, 1] == pytest.approx(0.94080, abs=1e-5) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, 6:10], [4, 3, 2, 1])
    np.testing.assert_array_equal(np.delete(found, [1, 6, 7, 8, 9], 1), np.delete(rows, [1, 6, 7, 8, 9], 1))
    assert 0 <= found[2, 1] < found[0, 1] < found[1, 1] <= 1 and (rows == before).all()
    scores = np.sort(np.random.default_rng(0).uniform(0, 1, 5000).astype(np.float32))
    calibrated = load_runner().calibrate(np.column_stack([scores] * 6), **NUMBERS)
    assert (np.diff(calibrated[:, 1]) >= 0).all() and calibrated.shape == (5000, 6)


def test_all_ways_apply_it(cfg, weights, picture, tmp_path):
    cfg = {**cfg, "weights": str(weights), "export": {"sigma": True}}
    ppgfl.export(cfg, output_dir=tmp_path / "exported", onnx=True, verify=())
    image = read_image(picture)
    wanted = load_runner().calibrate(ppgfl.open_detector(cfg, sigma=True)([image])[0], **NUMBERS)
    for found in (Detector(tmp_path / "exported", calibrated=True)(image),
                  Detector(tmp_path / "exported" / "model.onnx", calibrated=True)(image),
                  Detections.from_rows(ppgfl.open_detector(cfg, sigma=True, calibrated=True)([image])[0], [])):
        np.testing.assert_allclose(np.sort(found.scores), np.sort(wanted[:, 1]), atol=1e-4)
        np.testing.assert_allclose(np.sort(found.sigma.ravel()), np.sort(wanted[:, 6:10].ravel()), rtol=1e-3)


def test_ap_stays(cfg, weights, tmp_path):
    cfg = {**cfg, "weights": str(weights)}
    calibrated = ppgfl.open_detector(cfg, calibrated=True, reader="EvalReader")
    before = evaluate(cfg, output_dir=tmp_path / "a")
    assert evaluate(cfg, detector=calibrated, output_dir=tmp_path / "b") == before
    assert (tmp_path / "a/bbox.json").read_bytes() != (tmp_path / "b/bbox.json").read_bytes()


def test_what_has_none_is_refused(cfg, weights, small_coco, tmp_path):
    stored.path_of(weights).unlink()
    with pytest.raises(ConfigError, match="eval --calibrate writes it"):
        ppgfl.open_detector(cfg, weights=weights, calibrated=True)
    ppgfl.export(cfg, weights=weights, output_dir=tmp_path / "exported", verify=())
    with pytest.raises(ExportError, match="holds no calibration"):
        Detector(tmp_path / "exported", calibrated=True)
    with pytest.raises(ConfigError, match="--show_distributions: with --calibrated"):
        infer(cfg, small_coco / "val2017", output_dir=tmp_path / "out", show_distributions=True, calibrated=True)


def test_eval_writes_it(cfg, weights, tmp_path, monkeypatch, run_here, small_coco):
    stored.path_of(weights).unlink()
    with pytest.raises(DataError, match="no calibration comes of"):  # random weights find nothing
        evaluate(cfg, weights=weights, output_dir=tmp_path, calibrate=True)
    assert not stored.path_of(weights).exists()
    monkeypatch.setattr("ppgfl.evaluation.calibration.judge", lambda evaluator, iou=0.5: made_up(300))
    common = ["-c", "gfl_r18vd_1x_coco", "--output_eval", tmp_path, "-o", f"weights={weights}", "use_gpu=false",
              f"EvalDataset.dataset_dir={small_coco}", "EvalReader.sample_transforms.1.Resize.target_size=[64, 96]",
              "engine=dygraph", "worker_num=0", *SMALL]
    done = run_here("eval", *common, "--calibrate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert stored.read(weights, False)["temperature"] == pytest.approx(0.5, rel=0.2)
    assert "after calibration" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "sigma" in json.loads((tmp_path / "bbox.json").read_text())[0]
    for option in ("--json_eval", "--slice_infer", "--save_prediction_only"):
        done = run_here("eval", *common, "--calibrate", option, cwd=tmp_path)
        assert done.returncode == 2 and "--calibrate: it is fitted to" in done.stderr
