"""deploy/onnxruntime/infer.py: one file, without Paddle, that finds what the runner of the exported folder finds."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, UNREADABLE, match, read, tiny_config

from ppgfl import export
from ppgfl.inference.runner import load_runner

pytest.importorskip("onnxruntime")
FILE = ROOT / "deploy" / "onnxruntime" / "infer.py"
CODE = """
import sys
for name in ("paddle", "ppgfl"):
    sys.modules[name] = None  # any import of it fails
sys.argv[0] = "infer.py"
exec(compile(open("infer.py", encoding="utf-8").read(), "infer.py", "exec"))
"""


@pytest.fixture(scope="module")
def module():
    return load_runner("onnxruntime")


def run(*arguments, cwd):
    shutil.copy(FILE, cwd / "infer.py")
    return subprocess.run([sys.executable, "-c", CODE, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=120, check=False)


def test_it_finds_what_the_other_runner_finds(module, exported, small_coco):
    ours, runner = module.Runner(exported[0] / "model.onnx"), load_runner().Runner(exported[0])
    assert ours.class_names == runner.class_names
    for path in (small_coco / "val2017").iterdir():
        image = read(path)
        np.testing.assert_allclose(ours.prepare(image)["image"], runner.prepare([image])["image"], atol=1e-6)
        match(ours([image])[0], runner([image])[0])


def test_nms_inside_or_outside(module, exported, r18vd_weights, picture, tmp_path):
    export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, with_nms=True, verify=())
    image = read(picture)
    a, b = (module.Runner(folder / "model.onnx")([image])[0] for folder in (tmp_path, exported[0]))
    assert len(b) == 100
    match(a, b)


def slow_nms(boxes, scores, score_threshold, nms_top_k, keep_top_k, nms_threshold):
    """Class by class, as it is explained in textbooks."""
    found = []
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")[:nms_top_k if nms_top_k > 0 else None]
        kept = []
        for i in order:
            if scores[i, label] > score_threshold and all(iou(boxes[i], boxes[j]) <= nms_threshold for j in kept):
                kept.append(i)
        found += [[label, scores[i, label], *boxes[i]] for i in kept]
    found.sort(key=lambda row: -row[1])
    return np.array(found[:keep_top_k if keep_top_k >= 0 else None], np.float32).reshape(-1, 6)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("settings", [
    dict(score_threshold=0.1, nms_top_k=1000, keep_top_k=100, nms_threshold=0.6),
    dict(score_threshold=0.5, nms_top_k=7, keep_top_k=20, nms_threshold=0.3),
    dict(score_threshold=-1.0, nms_top_k=-1, keep_top_k=-1, nms_threshold=0.5),
    dict(score_threshold=1.0, nms_top_k=10, keep_top_k=10, nms_threshold=0.5),
])
def test_nms_against_the_textbook(module, settings):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, size=(150, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 40, size=(150, 2))]).astype(np.float32)
    scores = rng.random((150, 4)).astype(np.float32)
    np.testing.assert_allclose(module.suppress(boxes, scores, **settings), slow_nms(boxes, scores, **settings))


def test_the_command(exported, small_coco, tmp_path):
    done = run("--model", exported[0] / "model.onnx", "--image_dir", small_coco, "--threshold", 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "output").glob("*.jpg"))) == 5
    results = json.loads((tmp_path / "output" / "results.json").read_text(encoding="utf-8"))
    assert [len(one["detections"]) > 0 for one in results] == [True] * 5


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: None, "no such file"),
    (lambda data: data[:1000], "ONNX Runtime cannot load it"),
    (lambda data: b"", "ONNX Runtime cannot load it"),
    (lambda data: data.replace(b"class_names", b"other_names"), "has no class_names in its metadata"),
])
def test_a_file_that_cannot_be_used_is_one_line(exported, picture, tmp_path, change, words):
    changed = change((exported[0] / "model.onnx").read_bytes())
    if changed is not None:
        (tmp_path / "model.onnx").write_bytes(changed)
    done = run("--model", "model.onnx", "--image_file", picture, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: model.onnx" if changed is not None else "error: /")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_an_image_that_cannot_be_read_is_named(exported, tmp_path, data):
    (tmp_path / "picture.png").write_bytes(data)
    done = run("--model", exported[0] / "model.onnx", "--image_file", "picture.png", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: picture.png: not an image")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_is_one_line_and_leaves_whole_pictures(exported, picture, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "output"
    photos.mkdir()
    for i in range(5000):
        os.link(picture, photos / f"{i}.jpg")
    process = subprocess.Popen([sys.executable, FILE, "--model", exported[0] / "model.onnx", "--image_dir", photos],
                               cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(output.glob("*.jpg")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped by SIGINT"
    assert "Traceback" not in errors
    assert all(read(path) is not None for path in output.iterdir())
