"""The static graph in place of dygraph: the same detections, made once, and no harm when it cannot be made."""
import json
import logging
import shutil
import sys

import pytest
from helpers import match, tiny_config

from ppgfl import ConfigError, Detector, ExportError, evaluate
from ppgfl.data.image import read_image
from ppgfl.inference import export, static_model
from ppgfl.inference.detector import open_detector
from ppgfl.inference.static_model import StaticModel, load_detection_model
from ppgfl.model.gfl import GFL
from ppgfl.system import framework

DATA = "EvalDataset.data_fields=[image, gt_bbox, gt_class]"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of graphs that were really exported, by all that they depend on."""
    return tmp_path_factory.mktemp("made"), {}


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """An empty cache. A graph takes five seconds to make, so an equal one is copied."""
    kept, known = made

    def write_graphs(cfg, weights, folder, formats, **more):
        changing_nothing = ("engine", "worker_num", "EvalReader", "TrainReader")
        changing = {name: value for name, value in cfg.items() if name not in changing_nothing}
        key = repr([changing, weights, list(formats)])
        if key not in known:
            known[key] = kept / str(len(known))
            really_write(cfg, weights, known[key], formats, **more)
        shutil.copytree(known[key], folder)

    really_write = export.write_graphs
    monkeypatch.setattr(export, "write_graphs", write_graphs)
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "graphs"


def graphs(home):
    return sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []


@pytest.fixture
def no_onnx(monkeypatch):
    """As where ONNX Runtime is not installed."""
    monkeypatch.setattr(static_model, "_kinds", lambda: ["pdmodel"])


def auto():
    return tiny_config("gfl_r18vd_1x_coco", "engine=auto")


def test_all_find_the_same_in_images_of_several_shapes(r18vd_weights, small_coco, monkeypatch):
    files = sorted((small_coco / "val2017").iterdir())
    images = [read_image(str(path)) for path in files[:4]]
    found = {}
    for name in ("dygraph", "onnx", "pdmodel"):
        monkeypatch.setattr(static_model, "_kinds", lambda name=name: [name])
        engine = "dygraph" if name == "dygraph" else "static"
        cfg = tiny_config("gfl_r18vd_1x_coco", f"engine={engine}", "TestReader.batch_size=4")
        model = load_detection_model(cfg, r18vd_weights)
        assert isinstance(model, GFL if name == "dygraph" else StaticModel)
        assert name == "dygraph" or model.runner.description.startswith(f"model.{name} ")
        detect = open_detector(cfg, model=model)
        found[name] = [*detect(images), *detect(images[:1])]
    for name in ("onnx", "pdmodel"):
        for wanted, rows in zip(found["dygraph"], found[name]):
            assert len(wanted) > 5
            match(rows, wanted)


def test_an_evaluation_gives_the_same_numbers(r18vd_weights, small_coco, tmp_path):
    results = {}
    for name in ("dygraph", "static"):
        cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", f"engine={name}")
        metrics = evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path / name)
        results[name] = metrics, json.loads((tmp_path / name / "bbox.json").read_text())
    assert results["static"][0] == pytest.approx(results["dygraph"][0], abs=1e-4)
    assert len(results["static"][1]) == len(results["dygraph"][1])


@pytest.mark.drill
def test_a_graph_is_made_once_and_again_when_something_changes(r18vd_weights, home, caplog):
    caplog.set_level(logging.INFO, "ppgfl")

    def load(*overrides):
        caplog.clear()
        load_detection_model(tiny_config("gfl_r18vd_1x_coco", "engine=static", *overrides), r18vd_weights)
        return "making a static graph" in caplog.text

    assert load()
    assert not load()
    assert not load("EvalReader.batch_size=7", "worker_num=1")  # the graph does not depend on it
    assert not load("_note={2026-11-30: of the user, 1: his}", "eval_size={2026-11-30: 1, a: 2}")  # whatever it is
    assert load("GFLHead.nms.nms_threshold=0.5")
    assert len(graphs(home)) == 2


@pytest.mark.drill
def test_only_the_graphs_used_last_are_kept(r18vd_weights, home, monkeypatch):
    monkeypatch.setattr(static_model, "MAX_CACHED_GRAPHS", 2)
    for threshold in (0.4, 0.5, 0.4, 0.6):
        cfg = tiny_config("gfl_r18vd_1x_coco", "engine=static", f"GFLHead.nms.nms_threshold={threshold}")
        load_detection_model(cfg, r18vd_weights)
    kept = graphs(home)
    assert len(kept) == 2
    cfg = tiny_config("gfl_r18vd_1x_coco", "engine=static", "GFLHead.nms.nms_threshold=0.4")
    load_detection_model(cfg, r18vd_weights)
    assert graphs(home) == kept  # 0.4 was used after 0.5


def test_a_few_images_are_not_worth_a_graph_unless_it_is_there(r18vd_weights, home):
    cfg = auto()
    assert isinstance(load_detection_model(cfg, r18vd_weights, images=static_model.MIN_IMAGES_FOR_GRAPH - 1), GFL)
    assert isinstance(load_detection_model(cfg, r18vd_weights, images=static_model.MIN_IMAGES_FOR_GRAPH), StaticModel)
    assert isinstance(load_detection_model(cfg, r18vd_weights, images=1), StaticModel)


def test_settings_of_an_export_do_not_reach_it(r18vd_weights, home, picture):
    cfg = tiny_config("gfl_r18vd_1x_coco", "engine=static", "export.nms=false",
                      "TestReader.inputs_def.image_shape=[3, 64, 96]")
    detect = open_detector(cfg, weights=r18vd_weights)
    assert detect([read_image(str(picture))])[0].shape[1] == 6


def test_when_no_graph_can_be_made(r18vd_weights, home, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ExportError("it differs")

    caplog.set_level(logging.INFO, "ppgfl")
    monkeypatch.setattr(export, "write_graphs", fail)
    assert isinstance(load_detection_model(auto(), r18vd_weights), GFL)
    assert "running in dygraph, since there is no static graph: it differs" in caplog.text
    with pytest.raises(ExportError, match="engine=dygraph always works"):
        load_detection_model(tiny_config("gfl_r18vd_1x_coco", "engine=static"), r18vd_weights)
    assert graphs(home) == []


def test_what_onnx_runtime_cannot_run_is_kept_for_paddle(r18vd_weights, home, monkeypatch, caplog):
    """As a model with deformable convolutions in an ONNX Runtime before 1.25."""
    really_make = static_model.make_runner

    def make_runner(path, **settings):
        if path.suffix == ".onnx":
            raise ExportError("ONNX Runtime cannot load it")
        return really_make(path, **settings)

    monkeypatch.setattr(static_model, "make_runner", make_runner)
    caplog.set_level(logging.INFO, "ppgfl")
    assert "model.pdmodel" in load_detection_model(auto(), r18vd_weights).runner.description
    assert "the graph cannot run as model.onnx: ONNX Runtime cannot load it" in caplog.text


def test_an_onnx_that_cannot_be_imported_is_no_reason_to_stop(r18vd_weights, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "ppgfl.inference.onnx_graph", raising=False)
    monkeypatch.delattr("ppgfl.inference.onnx_graph", raising=False)
    monkeypatch.setattr(static_model, "_kinds", lambda: ["onnx", "pdmodel"])
    assert "model.pdmodel" in load_detection_model(auto(), r18vd_weights).runner.description


def test_openvino_which_keeps_its_memory_gets_one_model(r18vd_weights, home, no_onnx, monkeypatch):
    monkeypatch.setattr(static_model, "_on_openvino", {})

    def load(threshold):
        cfg = tiny_config("gfl_r18vd_1x_coco", "engine=static", f"GFLHead.nms.nms_threshold={threshold}")
        return load_detection_model(cfg, r18vd_weights)

    first, second, again = load(0.4), load(0.5), load(0.4)
    has_openvino = "OpenVINO" in first.runner.description  # Paddle 2.6 has not
    assert (again is first) == has_openvino
    assert "oneDNN" in second.runner.description


@pytest.mark.parametrize("kind,file", [("onnx", "model.onnx"), ("pdmodel", "model.pdiparams")])
def test_a_damaged_graph_is_no_reason_to_stop(r18vd_weights, home, monkeypatch, kind, file):
    monkeypatch.setattr(static_model, "_kinds", lambda: [kind])
    monkeypatch.setattr(static_model, "_on_openvino", {"another": None})
    load_detection_model(auto(), r18vd_weights)
    (home / graphs(home)[0] / file).write_bytes(b"")
    assert isinstance(load_detection_model(auto(), r18vd_weights), GFL)
    assert isinstance(load_detection_model(auto(), r18vd_weights), StaticModel)  # made anew


def test_onnx_runtime_comes_first_where_it_can_run(monkeypatch):
    assert static_model._kinds() == ["onnx", "pdmodel"]
    with monkeypatch.context() as absent:
        absent.setattr(static_model.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
        assert static_model._kinds() == ["pdmodel"]
    monkeypatch.setattr(framework, "on_gpu", lambda: True)
    assert static_model._kinds() == ["pdmodel"]


def test_a_gpu_runs_dygraph(r18vd_weights, monkeypatch):
    monkeypatch.setattr(framework, "on_gpu", lambda: True)
    assert isinstance(load_detection_model(auto(), r18vd_weights), GFL)


def test_an_unknown_engine(r18vd_weights):
    with pytest.raises(ConfigError, match="engine: 'fast'; allowed: auto, dygraph, static"):
        Detector("gfl_r18vd_1x_coco", weights=r18vd_weights, overrides=["engine=fast"])


def test_a_cache_that_cannot_be_written(r18vd_weights, tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file where the folder should be")
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    assert isinstance(load_detection_model(auto(), r18vd_weights), GFL)
