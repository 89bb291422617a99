"""The benchmark: its guard by pencil, and each question once on tiny inputs."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ppgfl.system import runtime

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def compare():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("compare", BENCHMARKS / "compare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = module  # where its dataclass is looked up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))
    del sys.modules["compare"]


def row(subject, *seconds, question="inference", case="R18vd"):
    return {"question": question, "case": case, "subject": subject, "seconds": list(seconds)}


BEFORE = [row("ppgfl (OpenVINO)", 1.0), row("ONNX Runtime (no NMS)", 1.0), row("PaddleDetection, tuned", 3.0),
          row("ppgfl, bfloat16", 0.5)]


def worse(compare, *after):
    return [line.split(": ")[1].split(" takes")[0] for is_worse, line in compare.check(BEFORE, list(after)) if is_worse]


def test_a_slower_machine_is_no_worse(compare):
    assert worse(compare, *[row(one["subject"], 2 * one["seconds"][0]) for one in BEFORE]) == []


def test_what_is_worse(compare):
    """ppgfl takes 1.5 times as long: against every peer, but not against its own bfloat16, which takes as long."""
    after = [row("ppgfl (oneDNN)", 1.5), row("ONNX Runtime (no NMS)", 1.0), row("PaddleDetection, tuned", 3.0),
             row("ppgfl, bfloat16", 0.5)]
    assert worse(compare, *after) == ["ONNX Runtime", "PaddleDetection, tuned"]
    slow = [*BEFORE[:3], row("ppgfl, bfloat16", 0.8)]
    assert worse(compare, *slow) == ["ppgfl, bfloat16"]


def test_noise_is_allowed_for(compare):
    """The same 1.5 times, of runs that differ by 1.4: the least of them would be 1.07 times."""
    after = [row("ppgfl", 1.2, 1.5, 1.68), row("ONNX Runtime", 1.0)]
    assert worse(compare, *after) == []
    assert worse(compare, row("ppgfl", 1.5, 1.5, 1.5), row("ONNX Runtime", 1.0)) == ["ONNX Runtime"]


def test_what_was_not_asked_before_is_left_out(compare):
    assert list(compare.check(BEFORE, [row("ppgfl", 1.0, question="new"), row("other", 9.0, question="new")])) == []


def test_in_words(compare):
    rows = [compare.Row("ppgfl", "R18vd", [1.0, 2.0, 3.0]), compare.Row("peer", "R18vd", [6.0]),
            compare.Row("ppgfl", "R50", [9.0])]
    assert compare.in_words(rows) == "In times of what ppgfl takes (2 s, R18vd): peer 3.00"


@pytest.mark.drill
def test_each_question_runs_once_at_its_smallest(compare, tmp_path):
    """Without the peers whose environments nobody has made."""
    done = subprocess.run([sys.executable, BENCHMARKS / "compare.py", "--smallest"], cwd=tmp_path, text=True,
                          check=False, env=runtime.child_variables(), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert [line[3:] for line in done.stdout.splitlines() if line.startswith("## ")] == list(compare.QUESTIONS)


def test_both_packages_give_coco_s_numbers():
    done = subprocess.run([sys.executable, BENCHMARKS / "coco_numbers.py", "--images", "30"], text=True, check=True,
                          capture_output=True)
    ours, theirs, difference = done.stdout.splitlines()
    assert ours.startswith("faster_coco_eval:") and theirs.startswith("pycocotools:")
    assert float(ours.split()[-1]) > 0.1 and float(difference.split()[-1]) < 1e-9


def test_the_chart_knows_what_each_question_of_the_results_means(compare, tmp_path):
    results = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    compare.chart(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000
