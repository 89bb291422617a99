"""Several processes, started by `paddle.distributed.launch`: the same results, and who is in trouble says so."""
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import (
    LD_LOSSES,
    LOSSES,
    MANY,
    ROOT,
    TEACHER,
    infer_many,
    launch,
    lines_of,
    options,
    rows_of,
    run_tool,
)


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = launch(ROOT / "tools" / "train.py", *stopped_run(shapes, folder), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "shapes_gfl"


def stopped_run(shapes, folder):
    return ["-c", "shapes_gfl", "-o", *options(shapes, folder, "worker_num=1", "log_iter=1", "TrainDataset.repeat=16")]


def test_two_processes_are_one_with_twice_the_batch(shapes, uninterrupted, tmp_path):
    # From trained weights: PaddleDetection's normaliser of the box losses is the mean over processes but at least 1 in
    # each, which freshly initialised scores do not reach, and these find something. SGD with a limit that no gradient
    # reaches: AdamW, and a limit, hide gradients that are all twice as large.
    def run(name, *more):
        return ["-c", "shapes_gfl", "--eval", "-o",
                *options(shapes, tmp_path / name, "epoch=4", "snapshot_epoch=4", "log_iter=1",
                         "ResNet.freeze_norm=true", "OptimizerBuilder.optimizer.type=Momentum",
                         "OptimizerBuilder.optimizer.momentum=0.9", "OptimizerBuilder.clip_grad_by_norm=1000",
                         f"pretrain_weights={uninterrupted}/model_final.pdparams", *more)]

    done = launch(ROOT / "tools" / "train.py", *run("two"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one = run_tool("train", *run("one", "TrainReader.batch_size=4"), cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    a, b = rows_of(tmp_path / "one" / "shapes_gfl"), rows_of(tmp_path / "two" / "shapes_gfl")
    assert [row["step"] for row in a] == [row["step"] for row in b] == ["2", "4", "6", "8"]
    for x, y in zip(a, b):
        for key in (*LOSSES, "lr"):
            assert float(x[key]) == pytest.approx(float(y[key]), rel=1e-5), key
    assert float(a[-1]["AP"]) == pytest.approx(float(b[-1]["AP"]), abs=1e-3)  # evaluated while training
    assert float(a[-1]["AP"]) > 0.1


def test_two_processes_evaluate_as_one(shapes, teacher_weights, tmp_path):
    def run(name):
        return ["-c", "shapes_gfl_teacher", "--output_eval", tmp_path / name, "-o", *TEACHER, "use_gpu=false",
                "GFLHead.nms.score_threshold=0.001", f"EvalDataset.dataset_dir={shapes}", f"weights={teacher_weights}"]

    done = launch(ROOT / "tools" / "eval.py", *run("two"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one = run_tool("eval", *run("one"), cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    a, b = (np.array([(row["image_id"], row["category_id"], row["score"], *row["bbox"])
                      for row in json.loads((tmp_path / name / "bbox.json").read_bytes())]) for name in ("one", "two"))
    assert a.shape == b.shape and len(set(a[:, 0])) == 4
    apart = np.abs(a[:, None] - b).max(axis=-1)  # equal scores may stand in another order
    assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-3


def test_two_processes_share_a_teacher(shapes, teacher_weights, tmp_path):
    done = launch(ROOT / "tools" / "train.py", "-c", "shapes_gfl_student_ld", "--slim_config", "shapes_distill_ld",
                  "-o", *options(shapes, tmp_path, "epoch=1"), *[f"teacher.{override}" for override in TEACHER],
                  f"teacher.pretrain_weights={teacher_weights}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "shapes_gfl_student_ld" / "model_final.pdparams").exists()
    found, = rows_of(tmp_path / "shapes_gfl_student_ld")
    assert all(float(found[name]) > 0 for name in LD_LOSSES)


def process_of(launcher, rank):
    for process in subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True,
                                  check=True).stdout.split():
        with open(f"/proc/{process}/environ", encoding="utf-8") as file:
            if f"PADDLE_TRAINER_ID={rank}\0" in file.read():
                return int(process)
    raise AssertionError("no such process")


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds processes there")
@pytest.mark.parametrize(("who", "number"), [("the launcher", signal.SIGINT), ("the launcher", signal.SIGTERM),
                                             (1, signal.SIGTERM)])
def test_asked_to_stop_all_stop_after_the_same_step_and_resume_as_if_nothing_had_happened(
        shapes, uninterrupted, tmp_path, who, number):
    """The launcher for gloo turns Ctrl-C into SIGTERM for all, and dies of SIGTERM without a word to any."""
    logs = [tmp_path / "log" / f"workerlog.{rank}" for rank in range(2)]
    arguments = stopped_run(shapes, tmp_path)
    launcher = subprocess.Popen(
        [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo", "--log_dir",
         str(tmp_path / "log"), str(ROOT / "tools" / "train.py"), *map(str, arguments)], cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def wait(until):
        deadline = time.monotonic() + 120
        while not until():
            assert time.monotonic() < deadline, [log.read_text() for log in logs if log.exists()]
            time.sleep(0.1)

    wait(lambda: logs[0].exists() and "[1/32]" in logs[0].read_text())
    os.kill(launcher.pid if who == "the launcher" else process_of(launcher.pid, who), number)
    launcher.wait(120)
    wait(lambda: all("stopped by SIGTERM" in log.read_text() for log in logs))
    said = r"stopped by SIGTERM: epoch (\d), step (\d+) of 32 is in .*interrupted"
    stops = [re.search(said, log.read_text()).groups() for log in logs]
    assert stops[0] == stops[1]
    wait(lambda: subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, stdout=subprocess.DEVNULL).returncode)
    done = launch(ROOT / "tools" / "train.py", *arguments, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = (pickle.loads((folder / "model_final.pdparams").read_bytes())
            for folder in (uninterrupted, tmp_path / "shapes_gfl"))
    assert all(np.array_equal(a[name], b[name]) for name in a if hasattr(a[name], "shape"))
    assert [row["loss"] for row in rows_of(uninterrupted)] == [row["loss"] for row in rows_of(tmp_path / "shapes_gfl")]
    assert not list((tmp_path / "shapes_gfl").glob("interrupted*"))


def test_two_processes_share_the_images(many, r18vd_weights, tmp_path):
    done = launch(ROOT / "tools" / "infer.py", *infer_many(many, r18vd_weights), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results-0-00000.jsonl", "results-1-00000.jsonl", "results-settings.json"}
    files = [os.path.basename(line["file"]) for line in lines_of(tmp_path / "out")]
    assert sorted(files) == [f"{i:03d}.jpg" for i in range(MANY)]
    assert 70 < len((tmp_path / "out" / "results-1-00000.jsonl").read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize(("fault", "found"), [  # of a hang the run is told soon: hang_timeout is 12 s instead of 25
    ("raise RuntimeError('it breaks')", ["process 1 failed", "RuntimeError: it breaks"]),
    ("out = {name: value * float('nan') for name, value in out.items()}", ["process 1 failed", "a loss is not finite"]),
    ("os.kill(os.getpid(), signal.SIGKILL)", []),
    ("time.sleep(1000)", ["process 0 has hung", "process 1 has hung", "time.sleep(1000)"]),
    ("os.kill(os.getpid(), signal.SIGSTOP)", ["process 0 has hung", "waits for the other processes"])])
def test_a_process_in_trouble_ends_the_others_and_shows_why(shapes, tmp_path, fault, found):
    script = tmp_path / "trouble.py"
    script.write_text(f"import os, signal, sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
                      "import ppgfl\nfrom ppgfl.model import losses\nfrom ppgfl.system import dist\n"
                      "real = losses.GFLCriterion.__call__\n"
                      "def broken(*arguments):\n"
                      "    out = real(*arguments)\n"
                      f"    if dist.rank() == 1:\n        {fault}\n"
                      "    return out\n"
                      "losses.GFLCriterion.__call__ = broken\n"
                      "from ppgfl.cli import main\nsys.exit(main('train'))\n")
    start = time.monotonic()
    done = launch(script, "-c", "shapes_gfl", "-o", *options(shapes, tmp_path, "log_iter=1", "hang_timeout=12"),
                  cwd=tmp_path)
    assert done.returncode != 0
    assert time.monotonic() - start < 120
    for words in found:
        assert words in done.stdout + done.stderr
    deadline = time.monotonic() + 30
    while subprocess.run(["pgrep", "-f", str(script)], check=False, stdout=subprocess.DEVNULL).returncode == 0:
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.1)
