"""The one command and its words."""
import subprocess
import sys

import pytest
from helpers import ROOT, run_ppgfl

from ppgfl.cli import commands


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_its_commands(arguments):
    done = run_ppgfl(*arguments)
    assert done.returncode == 0
    for word in ("train", "eval", "infer", "export", "zoo", "demo", "doctor"):
        assert f"\n  {word} " in done.stdout


def test_an_unknown_command():
    done = run_ppgfl("evaluate")
    assert done.returncode == 2
    assert "usage: ppgfl COMMAND" in done.stdout


@pytest.mark.parametrize(("word", "command"), commands.WORDS.items())
def test_help_imports_nothing_heavy(word, command):
    """So that it answers at once; and `tools/COMMAND.py` has the same flags."""
    code = ("import sys; from ppgfl.cli import entry\n"
            "try: entry()\nexcept SystemExit: pass\n"
            "assert not {'paddle', 'pycocotools', 'matplotlib', 'onnx', 'PIL', 'requests'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, word, "--help"], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: ppgfl {word}" in done.stdout
    script = ROOT / "tools" / f"{command}.py"
    if script.exists():
        tool = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60,
                              check=False)
        flags = done.stdout.partition("options:")[2] or done.stdout.partition("optional arguments:")[2]
        assert flags
        assert flags in tool.stdout


def test_a_command_runs_and_says_what_is_wrong(tmp_path):
    done = run_ppgfl("eval", "-c", "gfl_r18vd_1x_coco", "-o", "EvalDataset.dataset_dir=/nowhere", cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: /nowhere")


@pytest.mark.parametrize("command", [["eval"], ["infer", "--infer_img", "a.jpg"], ["export"]])
def test_without_weights_the_run_of_the_config_is_named(run_here, small_coco, tmp_path, command):
    def error(*options):
        done = run_here("ppgfl", *command, "-c", "shapes_gfl", "-o", f"save_dir={tmp_path}", "use_gpu=false",
                        f"EvalDataset.dataset_dir={small_coco}", *options, cwd=tmp_path)
        assert done.returncode == 2
        return done.stderr.strip().splitlines()[-1]

    assert error() == "error: weights: none are given; set -o weights=PATH (a file, an address or the name of a " \
        "released model)"
    (tmp_path / "shapes_gfl").mkdir()
    (tmp_path / "shapes_gfl" / "model_final.pdparams").touch()
    (tmp_path / "shapes_gfl" / "best_model.pdparams").touch()
    best = tmp_path / "shapes_gfl" / "best_model"
    has = f"the run of this config has some: -o weights={best}"
    assert error() == f"error: weights: none are given; {has}"
    assert error("weights=gone") == f"error: weights: gone is not there; {has}"


@pytest.mark.parametrize("command", ["train", "eval", "infer", "export", "zoo", "data", "convert", "doctor",
                                     "benchmark", "demo"])
def test_help_has_examples_under_the_name_that_was_called(run_here, tmp_path, command):
    done = run_here("ppgfl", command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count(f"ppgfl {command}") >= 2  # in the usage and in an example
    assert "python tools/" not in done.stdout
