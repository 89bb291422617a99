"""The config is checked once per command, before anything is made."""
import pytest
from helpers import config, tiny_config

from ppgfl import Detector, build, evaluate, train
from ppgfl.inference.infer import infer


@pytest.fixture
def checks(monkeypatch):
    """The configs that were checked so far."""
    checked, real = [], build.check_config
    monkeypatch.setattr(build, "check_config", lambda cfg, classes: checked.append(cfg) or real(cfg, classes))
    return checked


def test_each_command_checks_once(checks, small_coco, shapes, r18vd_weights, tmp_path, monkeypatch):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", "engine=dygraph")
    evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path)
    assert len(checks) == 1
    infer(cfg, str(small_coco / "val2017"), weights=r18vd_weights, output_dir=tmp_path / "drawn")
    assert len(checks) == 2
    train(config(shapes, tmp_path, "epoch=1"), evaluate=True)
    assert len(checks) == 3
    Detector("gfl_r18vd_1x_coco", weights=r18vd_weights, overrides=["engine=dygraph", "use_gpu=false"])
    assert len(checks) == 4


def test_the_graph_of_an_evaluation_is_made_without_another_check(checks, small_coco, r18vd_weights, tmp_path,
                                                                  monkeypatch):
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", "engine=static")
    evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path)
    assert len(checks) == 1
