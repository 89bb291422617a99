"""Exported models inside ppgfl: what `make_runner` makes of the runners of deploy/python/infer.py."""
import numpy as np
import pytest
from helpers import match, read

from ppgfl import ExportError
from ppgfl.inference.runner import is_exported, load_runner, make_runner
from ppgfl.system import runtime

MODELS = [".", "model.pdmodel", "model.onnx"]


@pytest.mark.parametrize("model", MODELS)
def test_a_folder_a_model_file_and_an_onnx_are_opened_in_one_way(exported, picture, monkeypatch, model):
    monkeypatch.setattr(runtime, "physical_cores", lambda: 1)
    path = exported[0] / model
    assert is_exported(path)
    runner = make_runner(path)
    assert runner.description.endswith(", 1 threads")
    assert make_runner(path, cpu_threads=2, engine="auto").description.endswith(", 2 threads")
    assert len(runner.class_names) == 80
    image = read(picture)
    wanted, = load_runner().open_runner(path)([image])
    arrays = runner.prepare([image])
    for found in (runner([image]), runner.detect(arrays)):
        match(found[0], wanted)
    outputs = runner.run(arrays)
    assert outputs[0].shape[-1] == (4 if model == "model.onnx" else 6)


@pytest.mark.parametrize("model", MODELS)
def test_a_setting_that_no_runner_has(exported, model):
    with pytest.raises(ExportError, match="has no setting 'threads'; it has device, run_mode, cpu_threads, engine"):
        make_runner(exported[0] / model, threads=2)


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("nowhere", {}, "nowhere: no such folder"), ("nowhere.onnx", {}, "nowhere.onnx: no such file"),
    ("", {"run_mode": "fp64"}, "run_mode: 'fp64'; allowed for"), ("a.onnx", {"run_mode": "bf16"}, "a.onnx: paddle"),
])
def test_what_cannot_be_opened(tmp_path, name, settings, words):
    with pytest.raises(ExportError, match=words):
        make_runner(tmp_path / name, **settings)


@pytest.mark.parametrize("model", MODELS)
def test_a_call_that_fails(exported, picture, model):
    """RunnerError is not known outside of deploy/: it would be a traceback in the command line."""
    runner = make_runner(exported[0] / model)
    runner.runner.preprocess = [{"type": "Mosaic"}]
    for call in (runner, runner.prepare):
        with pytest.raises(ExportError, match="has a step 'Mosaic'"):
            call([read(picture)])
    if model != "model.onnx":
        for call in (runner.detect, runner.run):
            with pytest.raises(ExportError, match="wants an input 'image'"):
                call({"picture": np.zeros(1)})


def test_the_file_is_loaded_once():
    assert load_runner() is load_runner()
