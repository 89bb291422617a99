"""A config is checked once by the same code: from then on the check, and a graph of the cache, do without Paddle."""
import os
import subprocess
import sys

import paddle
import pytest
from helpers import ROOT, tiny_config

from ppgfl import ConfigError, build, checked
from ppgfl.config import check as config_check
from ppgfl.system import framework, runtime

DETECT = """
import sys, numpy as np, ppgfl
image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
small = "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"
detect = ppgfl.Detector("gfl_r18vd_1x_coco", sys.argv[1], ["use_gpu=false", small, *sys.argv[2:]])
print("paddle" in sys.modules, len(detect.class_names), repr(detect(image).boxes.tolist()))
"""


@pytest.fixture
def first_detection(r18vd_weights, tmp_path):
    """A call: what a new process finds, and whether Paddle was imported for it."""
    def detect(*overrides):
        done = subprocess.run([sys.executable, "-c", DETECT, str(r18vd_weights), *overrides], check=True, cwd=ROOT,
                              env={**os.environ, "PPGFL_HOME": str(tmp_path / "home")}, capture_output=True, text=True)
        with_paddle, names, boxes = done.stdout.split(" ", 2)
        return with_paddle == "True", int(names), boxes

    return detect


@pytest.mark.drill
def test_a_second_first_detection_does_without_paddle_and_finds_the_same(first_detection):
    with_paddle, names, boxes = first_detection()
    assert with_paddle and names == 80 and len(boxes) > 100
    assert first_detection() == (False, 80, boxes)
    larger = "TestReader.sample_transforms.1.Resize.target_size=[128, 192]"
    assert first_detection(larger)[0]  # another config, of which the graph is there
    with_paddle, _, others = first_detection(larger)
    assert not with_paddle and others != boxes


@pytest.fixture
def checks(monkeypatch, tmp_path):
    """The configs that `build.check` was asked about, as in a process that has not imported Paddle."""
    asked, real = [], build.check
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(build, "check", lambda cfg: asked.append(cfg) or real(cfg))
    monkeypatch.setattr(framework, "import_paddle", lambda: None)
    monkeypatch.setattr(framework, "can_use_gpus", lambda: False)
    monkeypatch.delitem(sys.modules, "paddle")
    return asked


def test_what_has_passed_is_not_checked_again(checks):
    checked.check(tiny_config())
    checked.check(tiny_config())
    assert len(checks) == 1
    checked.check(tiny_config("gfl_r18vd_1x_coco", "worker_num=1"))
    assert len(checks) == 2


def test_what_has_not_passed_is_refused_each_time(checks):
    for _ in range(2):
        with pytest.raises(ConfigError, match="unknown key 'nms_treshold'"):
            checked.check(tiny_config("gfl_r18vd_1x_coco", "MultiClassNMS.nms_treshold=0.5"))
    assert len(checks) == 2


@pytest.mark.parametrize(("module", "change"), [(runtime, "code_digest"), (framework, "version")])
def test_other_code_and_another_paddle_check_again(module, change, checks, monkeypatch):
    checked.check(tiny_config())
    monkeypatch.setattr(module, change, lambda: "another")
    checked.check(tiny_config())
    assert len(checks) == 2


def test_a_paddle_that_is_imported_or_may_use_a_gpu_is_asked(checks, monkeypatch):
    for i in range(1, 3):
        checked.check(tiny_config())
        assert len(checks) == i
        monkeypatch.setattr(framework, "can_use_gpus", lambda: True)
    monkeypatch.setattr(framework, "can_use_gpus", lambda: False)
    checked.check(tiny_config())
    assert len(checks) == 2
    monkeypatch.setitem(sys.modules, "paddle", paddle)
    checked.check(tiny_config())
    assert len(checks) == 3


def test_a_users_own_transform_is_looked_at_each_time(checks, tmp_path):
    (tmp_path / "ops.py").write_text("class Blur:\n    def __call__(self, sample, rng):\n        pass\n")
    cfg = {"TrainReader": {"sample_transforms": [{"Decode": {}}, {f"{tmp_path}/ops.py:Blur": {}}]}}
    checked.check(cfg)
    checked.check(cfg)
    assert len(checks) == 2


def test_keys_without_an_effect_are_named_in_each_process(checks, caplog):
    for _ in range(2):
        config_check._warn_once.cache_clear()
        checked.check({"fleet": True, "teacher": {"cycle_epoch": 3}})
    assert len(checks) == 1
    assert [line.split(":")[0] for line in caplog.messages] == ["fleet", "teacher.cycle_epoch"] * 2


def test_the_last_are_remembered_and_a_cache_that_cannot_be_written_is_no_reason_to_stop(checks, tmp_path, monkeypatch):
    monkeypatch.setattr(checked, "REMEMBERED", 2)
    for number in range(1, 4):
        checked.check({"epoch": number})
        mark = checked._mark({"epoch": number})
        os.utime(mark, (number, number))
    assert len(list(mark.parent.iterdir())) == 2
    monkeypatch.setenv("PPGFL_HOME", str(mark))  # a file
    checked.check({"epoch": 3})
    assert len(checks) == 4
