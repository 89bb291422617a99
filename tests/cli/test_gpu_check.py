"""The GPU check: every part can fail, says so, and the next one still runs. On the CPU, which takes the GPU's place;
each part is broken on purpose, and what is not broken is found to be well in the same run."""
import dataclasses
import json
import re
import traceback

import numpy as np
import pytest
from helpers import ROOT, run_tool

from ppgfl import cli
from ppgfl.cli import commands, demo, doctor
from ppgfl.cli.gpu import check, exports, finding, golden, report, speed, training, values
from ppgfl.cli.gpu.finding import Finding, Limits, Place
from ppgfl.training.state import TrainingState


@pytest.fixture
def dry(run_here, tmp_path, monkeypatch):
    """A call, parts -> (exit code, {what was found: "ok", "MISS" or "skipped"}) of a dry run within this process, whose
    parts can be broken."""
    def here(number, place, output):
        monkeypatch.chdir(place.folder)
        try:
            check.child(str(number), place.device, str(place.folder), place.way)
            return 0
        except Exception:
            output.write_text(traceback.format_exc())
            return 1
        finally:
            output.touch()

    def run(parts):
        monkeypatch.setattr(check, "in_its_own_process", here)
        done = run_here("ppgfl", "doctor", "--gpu", "--dry", "--parts", parts, "--output_dir", tmp_path / "out",
                        cwd=tmp_path)
        content = json.loads((tmp_path / "out" / "gpu_report.json").read_text())
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu_report.json", "gpu_report.md"]
        found = {each["what"]: report.WORDS[each["ok"]] for part in content["parts"] for each in part["findings"]}
        for what, word in found.items():
            assert re.search(rf"^{word} +\d  {re.escape(what)}", done.stdout, re.MULTILINE)
        return done.returncode, found

    return run


def missed(found):
    return {what for what, word in found.items() if word == "MISS"}


def doing(function, before=lambda *args, **settings: (args, settings), after=lambda result: result):
    """A function with its arguments or its result changed."""
    def changed(*args, **settings):
        args, settings = before(*args, **settings)
        return after(function(*args, **settings))
    return changed


# --- each part, broken


def test_part_0_a_convolution_that_is_off_and_a_bad_finding_of_doctor(dry, monkeypatch):
    monkeypatch.setattr(doctor, "self_test", lambda: iter([("bad", "detection", "gives numbers that are not finite"),
                                                           ("warn", "threads", "is only slow")]))
    assert missed(dry("0")[1]) == {"doctor: detection"}
    conv2d = values.paddle.nn.functional.conv2d
    monkeypatch.setattr(values.paddle.nn.functional, "conv2d", doing(conv2d, after=lambda result: result * (1 + 1e-4)))
    code, found = dry("0")
    assert code == 1
    assert missed(found) == {"doctor: detection", "convolution, 64 channels"}
    assert found["doctor: paddle"] == found["doctor: threads"] == "ok"


def test_part_1_wrong_weights_and_nms_that_loses_a_row(dry, monkeypatch):
    def perturb(state):
        state["head.gfl_head_reg.weight"] = 1.01 * state["head.gfl_head_reg.weight"]
        return state

    calls = []

    def lose_one(kept):
        calls.append(kept)
        return kept if len(calls) % 2 else [kept[0][1:], *kept[1:]]  # the CPU's, then the device's

    monkeypatch.setattr(golden, "weights", doing(golden.weights, after=perturb))
    monkeypatch.setattr(values, "suppressed", doing(values.suppressed, after=lose_one))
    code, found = dry("1")
    assert code == 1
    name = values.SMALL
    assert missed(found) == {f"{name}: maps", f"{name}: detections", "NMS on 320x416",
                             "NMS on 32x64, fewer cells than nms_top_k"}


def test_part_2_a_loss_that_is_off_and_batches_that_are_not_averaged(dry, monkeypatch):
    def heavier(model):
        model.criterion.loss_dfl.loss_weight *= 1.02  # a fiftieth of one of three
        return model

    def longer(cfg, **settings):
        cfg["LearningRate"]["base_lr"] *= settings.get("accumulate", 1)
        return (cfg,), settings

    monkeypatch.setattr(values, "build_model", doing(values.build_model, after=heavier))
    monkeypatch.setattr(training, "train", doing(training.train, before=longer))
    code, found = dry("2")
    assert code == 1
    assert missed(found) == {f"{values.SMALL}: losses of 2 steps", "accumulate: losses of 3 steps"}
    assert found[f"{values.SMALL}: learning rates"] == "ok"


def test_part_3_mixed_precision_that_is_off_and_a_resume_without_momentum(dry, monkeypatch):
    def coarser(cfg, **settings):
        if settings["amp"]:
            cfg["GFLHead"]["prior_prob"] = 0.3
        return (cfg,), settings

    def forgetful(self, stem):
        load(self, stem)
        for name, value in self.optimizer.state_dict().items():
            if "velocity" in name:
                value.set_value(values.paddle.zeros_like(value))

    load = TrainingState.load
    monkeypatch.setattr(training, "LEVELS", (None, "O1"))
    monkeypatch.setattr(training, "train", doing(training.train, before=coarser))
    monkeypatch.setattr(TrainingState, "load", forgetful)
    code, found = dry("3")
    assert code == 1
    assert missed(found) == {"shapes_gfl_1x, float32: resume", "shapes_gfl_1x, O1: losses of 4 steps",
                             "shapes_gfl_1x, O1: resume"}
    assert found["shapes_gfl_1x, O1: precision"] == "skipped"


@pytest.mark.drill
def test_part_4_two_cards_that_learn_at_another_rate(dry, monkeypatch):
    """Here one process with the whole batch stands for two."""
    def command(place, launcher, *words):
        more = ["TrainReader.batch_size=4", "LearningRate.base_lr=0.05"] if launcher else []
        assert commands.main("train", [*words[1:], *more, "epoch=2", "snapshot_epoch=2"]) == 0

    monkeypatch.setattr(training, "command", command)
    code, found = dry("4")
    assert code == 1
    assert missed(found) == {"two cards, statistics that are frozen: losses of ten steps"}
    assert found["sync_bn"] == "skipped"


@pytest.mark.drill
def test_parts_5_and_6_boxes_that_are_off_and_a_demo_that_fails(dry, monkeypatch):
    def shifted(runner, inputs):
        moved = 0.2 if "native" in runner.description else 0.0
        return [rows + np.float32([0, 0, moved, 0, moved, 0]) for rows in found_by(runner, inputs)]

    found_by = exports.found_by
    monkeypatch.setattr(exports, "found_by", shifted)
    monkeypatch.setattr(demo, "run", doing(demo.run, after=lambda code: 2))
    code, found = dry("5,6")
    assert code == 1
    assert missed(found) == {"model.pdmodel, paddle", "ppgfl demo"}  # a .json runs natively on a CPU too
    assert found["model.pdmodel, CPU"] == found["model.pdmodel, paddle: AP"] == "ok"
    assert found["model.pdmodel, trt_fp16"] == "skipped"


@pytest.mark.parametrize(("ap", "ok"), [(0.59, False), (0.6, True), (float("nan"), False)])
def test_part_6_an_ap_that_is_too_low(monkeypatch, tmp_path, ap, ok):
    monkeypatch.setattr(training, "trained", lambda place: (0, ap))
    assert [each.ok for each in training.run_demo(Place("gpu", tmp_path))] == [True, ok]


def test_part_7_a_loss_that_is_not_finite_and_a_way_that_crashes(dry, monkeypatch):
    def crash(place, how, count):
        raise MemoryError("no room")

    monkeypatch.setitem(speed.MAKERS, "train", lambda place, how, count: lambda: np.float32("nan"))
    monkeypatch.setitem(speed.MAKERS, "infer", crash)
    code, found = dry("7")
    assert code == 1
    assert missed(found) == {"train, float32, 1", "comes to its end"}


# --- processes


def test_a_crash_is_a_miss_with_its_last_line(tmp_path):
    result = check.run_one(7, Place("cpu", tmp_path, "dream, float32, 1"))
    assert [(each.ok, each.what) for each in result.findings] == [(False, "comes to its end")]
    assert result.findings[0].text == "ended with exit code 1: KeyError: 'dream'"
    assert "Traceback" in result.log


def test_a_part_that_hangs_is_ended(tmp_path, monkeypatch):
    part = dataclasses.replace(check.PARTS[0], minutes=0.001)
    monkeypatch.setattr(check, "PARTS", [part])
    result = check.run_one(0, Place("cpu", tmp_path))
    assert result.findings[-1].text.startswith("took more than 0.001 minutes")


def test_what_was_found_before_a_crash_is_kept(tmp_path, monkeypatch):
    def killed(number, place, output):
        (place.folder / check.FOUND).write_text(json.dumps(dataclasses.asdict(Finding(True, "a", "b"))) + '\n{"ok": tr')
        output.write_text("some\nSegmentation fault\n\n")
        return -11

    monkeypatch.setattr(check, "in_its_own_process", killed)
    result = check.run_one(0, Place("cpu", tmp_path))
    assert [each.what for each in result.findings] == ["a", "comes to its end"]
    assert result.findings[1].text == "ended with exit code -11: Segmentation fault"


@pytest.mark.drill
def test_a_dry_run_is_well_and_leaves_nothing_but_its_report(tmp_path):
    (tmp_path / "tmp").mkdir()
    done = run_tool("gpu_check", "--dry", "--parts", "0,1,3,4,5,7", "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missed" in done.stdout
    assert {path.name for path in tmp_path.rglob("*")} == {"tmp", "out", "gpu_report.md", "gpu_report.json"}


# --- what is typed


@pytest.mark.parametrize(("words", "error"), [
    (["--gpu", "--dry", "--parts", "0,8"], "error: --parts: '8'; allowed: 0 to 7, as in --parts 0,1,5"),
    (["--gpu", "--dry", "--parts", ""], "error: --parts: ''; allowed: 0 to 7, as in --parts 0,1,5"),
    (["--gpu", "--dry", "--parts", "one"], "error: --parts: 'one'; allowed: 0 to 7, as in --parts 0,1,5"),
    (["--dry"], "error: --dry: it belongs to the GPU check; add --gpu"),
    (["--parts", "1"], "error: --parts: it belongs to the GPU check; add --gpu")])
def test_a_mistake_is_one_line(run_here, tmp_path, words, error):
    done = run_here("ppgfl", "doctor", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (2, [error])
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(values.paddle, "is_compiled_with_cuda", lambda: False)
    done = run_here("ppgfl", "doctor", "--gpu", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --gpu: this paddlepaddle is a CPU build; pip install paddlepaddle-gpu")
    monkeypatch.setattr(values.paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(values.paddle.device.cuda, "device_count", lambda: 0)
    assert "error: --gpu: no GPU is visible" in run_here("ppgfl", "doctor", "--gpu", cwd=tmp_path).stderr


def test_a_folder_that_cannot_be_written_is_known_before_the_first_part(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "run_one", lambda *args: pytest.fail("runs"))
    (tmp_path / "file").touch()
    done = run_here("ppgfl", "doctor", "--gpu", "--dry", "--output_dir", tmp_path / "file", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_the_tool_is_the_same_command(monkeypatch):
    text = (ROOT / "tools" / "gpu_check.py").read_text(encoding="utf-8")
    assert 'main("doctor", ["--gpu", *sys.argv[1:]], prog="gpu_check.py")' in text
    given = []
    monkeypatch.setattr(check, "run", lambda parts, **settings: given.append((parts, settings)) or True)
    assert cli.main("doctor", ["--gpu", "--parts", "1"], prog="gpu_check.py") == 0
    assert given == [("1", {"dry": False, "output_dir": "."})]


# --- comparisons, by pencil


ROWS = np.array([[0, 0.9, 10, 10, 20, 20], [1, 0.5, 30, 30, 40, 40]], np.float32)


@pytest.mark.parametrize(("others", "share"), [
    (ROWS[::-1], 0), (ROWS[:1], 0.5), (ROWS[:0], 1), (ROWS + np.float32([0, 0.01, 1, 0, 0, 0]), 0),
    (ROWS + np.float32([0, 0.02, 0, 0, 0, 0]), 1), (ROWS + np.float32([0, 0, 0, 0, 0, 1.1]), 1),
    (ROWS + np.float32([1, 0, 0, 0, 0, 0]), 1), (ROWS * np.float32("nan"), 1)])
def test_rows_without_a_partner(others, share):
    limits = Limits(pixels=1.05, score=0.011)
    assert finding.without_partner(ROWS, others, limits) == share
    assert finding.unlike([ROWS], [others], limits) == finding.unlike([others], [ROWS], limits) == share


def test_detections_below_the_least_score_are_partners_but_need_none():
    assert finding.unlike([ROWS], [ROWS[:1]], Limits(1, 0.1), least=0.6) == 0
    assert finding.unlike([ROWS], [ROWS[:1]], Limits(1, 0.1), least=0.5) == 0.5
    assert finding.unlike([ROWS], [], Limits(1, 0.1)) == 1


@pytest.mark.parametrize("rows", [
    [{"loss": 2.0, "loss_dfl": 0.52}], [{"loss": 2.0}], [], [{"loss": float("nan"), "loss_dfl": 0.5}]])
def test_losses_that_differ(rows):
    wanted = [{"loss": 2.0, "loss_dfl": 0.5, "AP": 0.1}]
    assert training.apart(wanted, wanted) == 0
    assert training.apart(rows, wanted) == pytest.approx(0.01 if rows and rows[0].get("loss_dfl") == 0.52 else np.inf)


@pytest.mark.parametrize(("other", "apart"), [
    ({"a": np.array([2.0, 1.0])}, 0), ({"a": np.array([2.0, 1.5])}, 0.25), ({"b": np.array([2.0, 1.0])}, np.inf),
    ({"a": np.array([2.0])}, np.inf), ({"a": np.array([2.0, np.nan])}, np.inf), ({}, np.inf)])
def test_arrays_that_differ(other, apart):
    assert training.arrays_apart({"a": np.array([2.0, 1.0])}, other) == apart


def test_a_number_that_is_not_finite_is_a_miss():
    assert [finding.within("a", each, 0.1).ok for each in (0.1, 0.2, float("nan"), float("inf"))] == [
        True, False, False, False]


# --- the report


def test_the_report_by_hand(tmp_path):
    figures = {"what": "train", "precision": "O1", "batch": 8, "images/s": 41.26, "GiB": 6.5}
    results = [report.Result(1, "maps", "TF32 off", 60.0, [Finding(True, "a", "1 | 2"), Finding(None, "b", "no card")]),
               report.Result(1, "maps", "TF32 on", 30.0, [Finding(False, "a", "3")], log="Traceback"),
               report.Result(7, "speed", "train, O1, 8", 30.0, [Finding(True, "train, O1, 8", "41.3", figures)])]
    report.write(tmp_path, results, planned=2, dry=False, machine="a card")
    text = (tmp_path / "gpu_report.md").read_text()
    assert text.startswith("# GPU check: 2 ok, 1 missed, 1 skipped, in 2.0 minutes.\n")
    for line in ("| 1 | maps | MISS | 1 | 1 | 1 | 90 |", "| 7 | speed | ok | 1 | 0 | 0 | 30 |", "| ok | a | 1 \\| 2 |",
                 "### 1 maps, TF32 on, 30 s", "Traceback", "| train | O1 | 8 | 41.3 | 6.5 |"):
        assert f"\n{line}\n" in text
    content = json.loads((tmp_path / "gpu_report.json").read_text())
    assert content["machine"] == "a card"
    assert content["parts"][2]["findings"][0]["figures"] == figures
    assert "NOT FINISHED: 2 of 8 parts" in report.summary(results, 8, False)
    assert report.summary(results, 2, True).startswith("The kit was tried on a CPU (--dry), which proves nothing")
