"""Commands that are killed or asked to stop amid their work: what is left is whole, and the next run goes on."""
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import (
    CONTENT,
    LOSSES,
    MANY,
    ROOT,
    infer_many,
    lines_of,
    options,
    rows_of,
    run_tool,
    start_fetch,
    whole,
)

from ppgfl.weights import download
from ppgfl.weights.checkpoint import read
from ppgfl.weights.safe_pickle import load as load_pickle

# --- training

def test_kills_leave_whole_files_and_every_resume_works(shapes, tmp_path, rounds=4):
    """SIGKILL at moments drawn from a seed. PPGFL_KILLS sets the number of rounds."""
    rounds = int(os.environ.get("PPGFL_KILLS", rounds))
    rng = np.random.default_rng(0)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "-c", "shapes_gfl", "--eval", "--resume", "-o",
               *options(shapes, tmp_path, "epoch=1000")]
    for number in range(rounds):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = int(rng.integers(1, 60))
        for line in process.stdout:
            lines -= 1
            if lines < 0 and (number or "saved" in line):  # at least one checkpoint in the first round
                break
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, rest
        for path in (tmp_path / "shapes_gfl").glob("*.pd*"):
            if path.suffix != ".tmp":
                assert load_pickle(path)
    table = rows_of(tmp_path / "shapes_gfl")
    assert [float(row["epoch"]) for row in table] == list(range(1, len(table) + 1))
    done = run_tool("train", *command[2:], f"epoch={len(table) + 1}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout


def two_epochs(shapes, folder):
    """Of sixteen steps, so that no signal comes too late for the first."""
    return ["-c", "shapes_gfl", "-o", *options(shapes, folder, "worker_num=2", "log_iter=1", "TrainDataset.repeat=4")]


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_tool("train", *two_epochs(shapes, folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "shapes_gfl"


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_asked_to_stop_a_run_saves_and_resumes_as_if_nothing_had_happened(
        shapes, uninterrupted, tmp_path, number, group):
    arguments = two_epochs(shapes, tmp_path)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "train.py"), *arguments], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if "[1/16]" in line:
            break
    (os.killpg if group else os.kill)(process.pid, number)
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, rest + errors
    assert errors.count("\n") == 1, errors
    assert f"stopped by {number.name}: epoch 1, step" in errors
    with pytest.raises(ProcessLookupError):  # nobody is left of the group
        os.killpg(process.pid, 0)
    done = run_tool("train", *arguments, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "shapes_gfl").glob("interrupted*"))
    assert not (tmp_path / "shapes_gfl" / "run.lock").exists()
    a, b = (read(folder / "model_final.pdparams") for folder in (uninterrupted, tmp_path / "shapes_gfl"))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    for row, other in zip(rows_of(uninterrupted), rows_of(tmp_path / "shapes_gfl")):
        np.testing.assert_allclose([float(row[k]) for k in LOSSES], [float(other[k]) for k in LOSSES], rtol=1e-6)


# --- detection

def test_a_killed_run_is_resumed(many, r18vd_weights, tmp_path):
    process = subprocess.Popen([sys.executable, str(ROOT / "tools" / "infer.py"), *infer_many(many, r18vd_weights)],
                               cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shard = tmp_path / "out" / "results-00000.jsonl"
    for _ in range(1200):
        if shard.exists() and shard.stat().st_size:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = shard.read_text(encoding="utf-8").count("\n")
    assert 0 < first < MANY
    done = run_tool("infer", *infer_many(many, r18vd_weights), cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume goes on with them" in done.stderr
    done = run_tool("infer", *infer_many(many, r18vd_weights, "--resume"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [os.path.basename(line["file"]) for line in lines_of(tmp_path / "out")]
    assert sorted(files) == [f"{i:03d}.jpg" for i in range(MANY)]  # each once
    assert not [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("results-")]
    again = run_tool("infer", *infer_many(many, r18vd_weights, "--resume"), cwd=tmp_path)
    assert again.returncode == 0
    assert f"{MANY} of {MANY} images were done by an earlier run" in again.stdout + again.stderr


# --- downloads

def test_a_killed_download_leaves_nothing_in_the_way(server, tmp_path):
    arrived = threading.Event()

    def slow(path, count):
        arrived.set()
        return 200, len(CONTENT), CONTENT, 0.2

    server.behave = slow
    process = start_fetch(f"{server.url}/w.pdparams")
    assert arrived.wait(30)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "home").rglob("w.pdparams"))
    server.behave = whole
    assert download.fetch(f"{server.url}/w.pdparams").read_bytes() == CONTENT


def test_kills_at_random_moments_of_downloads(server, tmp_path):
    """Before, in, and after it: the file is whole or absent, and the next try has it. PPGFL_KILLS sets the rounds."""
    rng, left = np.random.default_rng(0), 0
    for number in range(int(os.environ.get("PPGFL_KILLS", "3"))):
        server.behave = lambda path, count: (200, len(CONTENT), CONTENT, 0.1)  # 1.3 seconds
        process = start_fetch(f"{server.url}/{number}.pdparams")
        time.sleep(rng.uniform(0.1, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        path = download.cached_path(f"{server.url}/{number}.pdparams")
        if path.exists():
            left += 1
            assert path.read_bytes() == CONTENT
        server.behave = whole
        assert download.fetch(f"{server.url}/{number}.pdparams").read_bytes() == CONTENT
    print(f"{left} were whole when they were killed")
