"""Results in shards: rotated, resumed after a kill, shared among processes."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run_tool

from ppgfl import DataError
from ppgfl.inference.json_lines import JsonLines

MANY = 150  # long enough to be killed amid


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def all_lines(folder):
    return [json.loads(line) for path in sorted(folder.glob("results-*.jsonl"))
            for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_shards_are_rotated_and_resumed(tmp_path):
    lines = JsonLines(tmp_path, shard=3)
    for i in range(7):
        lines.write({"file": f"bild {i} ü\n\u2028.jpg", "detections": []})
    lines.close()
    assert names(tmp_path) == ["results-00000.jsonl", "results-00001.jsonl", "results-00002.jsonl"]
    assert [line["file"] for line in all_lines(tmp_path)] == [f"bild {i} ü\n\u2028.jpg" for i in range(7)]
    with pytest.raises(DataError, match="--resume goes on with them"):
        JsonLines(tmp_path)
    lines = JsonLines(tmp_path, resume=True)
    assert lines.done == {f"bild {i} ü\n\u2028.jpg" for i in range(7)}
    lines.write({"file": "new"})
    lines.close()
    assert names(tmp_path)[-1] == "results-00003.jsonl"


def test_nothing_is_written_before_the_first_line(tmp_path):
    JsonLines(tmp_path / "new").close()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cut", ['{"file": "b', "\x00\x00", '{"file": "b", "detections": []}'])
def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    (tmp_path / "results-00000.jsonl").write_text('{"file": "a", "detections": []}\n' + cut)
    assert JsonLines(tmp_path, resume=True).done == {"a"}
    assert (tmp_path / "results-00000.jsonl").read_text() == '{"file": "a", "detections": []}\n'


@pytest.mark.parametrize("content", ["not json\n", "[]\n", '{"name": 1}\n'])
def test_a_file_of_another_kind_is_left_alone(tmp_path, content):
    (tmp_path / "results-00000.jsonl").write_text(content)
    with pytest.raises(DataError, match="not a file of results"):
        JsonLines(tmp_path, resume=True)
    assert (tmp_path / "results-00000.jsonl").read_text() == content


def arguments(folder, weights, *more):
    return ["-c", "gfl_r18vd_1x_coco", "-o", f"weights={weights}", "use_gpu=false", "worker_num=0",
            "TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "--infer_dir", str(folder), "--save_results",
            "jsonl", "--no_pictures", "--output_dir", "out", *more]


@pytest.fixture
def many(small_coco, tmp_path):
    """A folder of MANY images."""
    folder = tmp_path / "many"
    folder.mkdir()
    sources = sorted((small_coco / "val2017").iterdir())
    for i in range(MANY):
        (folder / f"{i:03d}.jpg").write_bytes(sources[i % 5].read_bytes())
    return folder


def test_a_killed_run_is_resumed(many, r18vd_weights, tmp_path):
    process = subprocess.Popen([sys.executable, str(ROOT / "tools" / "infer.py"), *arguments(many, r18vd_weights)],
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
    done = run_tool("infer", *arguments(many, r18vd_weights), cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume goes on with them" in done.stderr
    done = run_tool("infer", *arguments(many, r18vd_weights, "--resume"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [os.path.basename(line["file"]) for line in all_lines(tmp_path / "out")]
    assert sorted(files) == [f"{i:03d}.jpg" for i in range(MANY)]  # each once
    assert [name for name in names(tmp_path / "out") if not name.startswith("results-")] == []
    again = run_tool("infer", *arguments(many, r18vd_weights, "--resume"), cwd=tmp_path)
    assert again.returncode == 0
    assert f"{MANY} of {MANY} images were done by an earlier run" in again.stdout + again.stderr


@pytest.mark.slow
def test_two_processes_share_the_images(many, r18vd_weights, tmp_path):
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    done = subprocess.run([*launch, str(ROOT / "tools" / "infer.py"), *arguments(many, r18vd_weights)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert names(tmp_path / "out") == ["results-0-00000.jsonl", "results-1-00000.jsonl"]
    files = [os.path.basename(line["file"]) for line in all_lines(tmp_path / "out")]
    assert sorted(files) == [f"{i:03d}.jpg" for i in range(MANY)]
    assert 70 < len((tmp_path / "out" / "results-1-00000.jsonl").read_text(encoding="utf-8").splitlines()) < 80


def test_resume_needs_shards(many, r18vd_weights, tmp_path):
    done = run_tool("infer", "-c", "gfl_r18vd_1x_coco", "--infer_dir", many, "--resume", cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume goes with --save_results jsonl" in done.stderr
