"""Slices in deploy/python/infer.py: what `ppgfl.inference.slicing` finds with the same exported model."""
import json

import numpy as np
import pytest
from helpers import draw_image, match

from ppgfl import Detector
from ppgfl.data.image import write_image
from ppgfl.inference import slicing
from ppgfl.inference.runner import load_runner
from ppgfl.inference.slicing import Slicing


@pytest.fixture
def module():
    return load_runner()


@pytest.mark.parametrize("size", [(64, 64), (33, 200), (100, 64), (641, 900)])
def test_places(module, size):
    options = Slicing((64, 48), (0.2, 0.3))
    assert module.slice_places(*size, options.slice_size, options.overlap_ratio) == slicing.slices(*size, options)


@pytest.mark.parametrize("method", slicing.COMBINE_METHODS)
@pytest.mark.parametrize("metric", slicing.MATCH_METRICS)
@pytest.mark.parametrize("count", [0, 1, 200])
def test_joining(module, method, metric, count):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (count, 2))
    rows = np.column_stack([rng.integers(0, 3, count), rng.random(count).round(1), corners,
                            corners + rng.uniform(5, 60, (count, 2))]).astype(np.float32)
    wanted = slicing.combine(rows, Slicing(combine_method=method, match_metric=metric, match_threshold=0.5))
    np.testing.assert_array_equal(module.combine_slices(rows, method, 0.5, metric), wanted)
    assert count < 200 or method == "concat" or 3 < len(wanted) < 200


@pytest.mark.parametrize(("flags", "options"), [
    (["--slice_infer"], {}), (["--slice_full", "--combine_method", "nmm", "--match_metric", "iou"],
                              {"full": True, "combine_method": "nmm", "match_metric": "iou"})])
def test_the_program_finds_what_the_package_finds(module, exported, tmp_path, flags, options):
    pytest.importorskip("onnxruntime")
    image, _ = draw_image(np.random.default_rng(0), 90, 150)
    write_image(str(tmp_path / "a.png"), image)
    model = exported[0] / "model.onnx"
    assert module.main(["--model_dir", str(model), "--image_file", str(tmp_path / "a.png"), "--output_dir",
                        str(tmp_path / "out"), "--save_results", "--threshold", "0.05", "--slice_size", "64",
                        *flags]) == 0
    saved = json.loads((tmp_path / "out" / "results.json").read_text())[0]["detections"]
    wanted = Detector(model, slicing=Slicing((64, 64), **options))(image).above(0.05)
    assert len(wanted) > 20
    match(np.array([[d["label"], d["score"], *d["box"]] for d in saved]),
          np.column_stack([wanted.labels, wanted.scores, wanted.boxes]))


@pytest.mark.parametrize(("flags", "words"), [
    (["--slice_size", "8"], "--slice_size: [8, 8]: height and width"), (["--overlap_ratio", "0.2", "1"], "0 to 0.9"),
    (["--match_threshold", "0"], "above 0"), (["--slice_full", "--run_benchmark"], "measures whole images")])
def test_settings_that_make_no_sense(module, flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(["--model_dir", "x", "--image_file", "y", *flags])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
