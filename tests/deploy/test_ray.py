"""The worker of the Ray recipe, without Ray."""
import importlib.util

import numpy as np
import pytest
from helpers import ROOT

from ppgfl import Detector


@pytest.fixture(params=[".", "model.onnx"])
def worker(exported, request):
    spec = importlib.util.spec_from_file_location("ray_recipe", ROOT / "deploy" / "ray" / "infer.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.Detect(str(exported[0] / request.param), 0.03, 1)


def test_a_line_is_what_the_detector_finds(worker, exported, picture):
    line = worker({"file": str(picture)})
    found = Detector(exported[0])(str(picture)).above(0.03)
    assert len(found)
    assert line["error"] == ""
    assert line["labels"] == list(found.names)
    np.testing.assert_allclose(line["scores"], found.scores, atol=1e-5)
    np.testing.assert_allclose(line["boxes"], found.boxes, atol=1e-2)


def test_an_image_that_cannot_be_read_is_a_line_too(worker, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    line = worker({"file": str(tmp_path / "a.jpg")})
    assert (line["labels"], line["boxes"]) == ([], [])
    assert "not an image" in line["error"]
