"""deploy/python/infer.py: one file, without ppgfl, that predicts what the model predicts."""
import ctypes
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from helpers import ROOT, UNREADABLE, match, read, tiny_config

from ppgfl import Detector, build_model, load_weights
from ppgfl.data import transforms
from ppgfl.data.batch import PadBatch
from ppgfl.inference.runner import load_runner

RUNNER = ROOT / "deploy" / "python" / "infer.py"
SMALL = "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"


def test_the_runner_prepares_images_as_the_model_does(small_coco):
    """One arithmetic, two files: the runner must not need ppgfl."""
    cfg = tiny_config()
    entries = cfg["TestReader"]["sample_transforms"][1:]
    ops = [{"type": name, **args} for entry in entries for name, args in entry.items()]
    module = load_runner()
    from ppgfl import build

    sample_transforms, _ = build.build_transforms(cfg, "TestReader")
    for path in (small_coco / "val2017").iterdir():
        ours, = PadBatch(32)([transforms.apply(sample_transforms, {"im_file": str(path)})])
        theirs = module.prepare([read(path)], [module.make_step(op) for op in ops])
        np.testing.assert_array_equal(theirs["image"][0], ours["image"])
        np.testing.assert_array_equal(theirs["scale_factor"][0], ours["scale_factor"])


def test_a_detector_of_the_folder_finds_what_the_model_finds(exported, r18vd_weights, picture):
    model = Detector("gfl_r18vd_1x_coco", r18vd_weights, [SMALL, "use_gpu=false"])(picture)
    found = Detector(exported[0])(picture)
    np.testing.assert_allclose(found.scores, model.scores, atol=1e-4)
    np.testing.assert_allclose(np.sort(found.boxes, axis=0), np.sort(model.boxes, axis=0), atol=1e-2)
    assert found.path == str(picture)
    assert found.draw(0.5).shape == read(picture).shape


def test_a_batch_of_images_of_different_sizes(exported, small_coco):
    runner = load_runner().Runner(exported[0])
    images = [read(path) for path in sorted((small_coco / "val2017").iterdir())]
    found = runner(images)
    assert [rows.shape for rows in found] == [(100, 6)] * 5
    alone = runner([np.ascontiguousarray(images[0])])[0]
    assert (np.diff(alone[:, 1]) <= 0).all()


@pytest.mark.parametrize("size", [(31, 33), (200, 3), (64, 96)])
def test_any_size_of_input(exported, r18vd_weights, size):
    model = build_model(tiny_config())
    load_weights(model, r18vd_weights)
    model.eval()
    height, width = (-(-n // 32) * 32 for n in size)
    image = np.random.default_rng(0).normal(size=(2, 3, height, width)).astype("float32")
    scale = np.array([[1.5, 0.5], [1, 2]], np.float32)
    with paddle.no_grad():
        wanted = model({"image": paddle.to_tensor(image), "scale_factor": paddle.to_tensor(scale)})
    bbox, bbox_num = load_runner().Runner(exported[0]).run({"image": image, "scale_factor": scale})
    np.testing.assert_array_equal(bbox_num, wanted["bbox_num"].numpy())
    np.testing.assert_allclose(np.sort(bbox[:, 1]), np.sort(wanted["bbox"].numpy()[:, 1]), atol=1e-4)


class SharedIntegral(paddle.nn.Layer):
    """How PaddleDetection decodes: one weight for all levels, and the level's stride right behind the matmul."""

    def __init__(self):
        super().__init__()
        self.project = self.create_parameter([3])
        self.project.set_value(np.arange(3, dtype=np.float32))

    def forward(self, image):
        cells = image.transpose([0, 2, 3, 1]).reshape([-1, 3])
        levels = [paddle.nn.functional.linear(cells, self.project) * stride for stride in (8, 16, 32)]
        return paddle.concat(levels, axis=0)


@pytest.mark.parametrize(("wanted", "run_mode", "suffix", "has_openvino", "any_size", "engine", "word"), [
    ("auto", "paddle", ".pdmodel", True, True, "openvino", None),
    ("auto", "bf16", ".pdmodel", True, True, "openvino", None),
    ("auto", "int8", ".pdmodel", True, True, "onednn", None),
    ("auto", "paddle", ".pdmodel", False, True, "onednn", None),
    ("auto", "paddle", ".json", True, True, "native", "fails at random"),
    ("auto", "paddle", ".json", True, False, "onednn", None),
    ("auto", "bf16", ".json", True, True, "onednn", "may fail"),
    ("onednn", "paddle", ".json", True, True, "onednn", None),
    ("openvino", "paddle", ".json", True, True, "onednn", "OpenVINO needs"),
    ("openvino", "paddle", ".pdmodel", False, True, "onednn", "OpenVINO needs"),
    ("native", "paddle", ".pdmodel", True, True, "native", None),
])
def test_the_engine(wanted, run_mode, suffix, has_openvino, any_size, engine, word):
    chosen, note = load_runner().choose_engine(wanted, run_mode, suffix, has_openvino=has_openvino, any_size=any_size)
    assert chosen == engine
    assert word in note if word else note is None


@pytest.mark.parametrize("engine", ["onednn", "openvino", "native"])
def test_every_engine_finds_the_same(exported, picture, engine):
    module, image = load_runner(), read(picture)
    wanted, = module.Runner(exported[0])([image])
    assert len(wanted) == 100
    found, = module.Runner(exported[0] / "model.pdmodel", engine=engine)([image])
    match(found, wanted)


def test_bfloat16_is_close(exported, picture):
    module, image = load_runner(), read(picture)
    if not module._has_bf16():
        pytest.skip("this processor has no bfloat16")
    wanted, = module.Runner(exported[0])([image])
    for engine in ("auto", "onednn"):
        runner = module.Runner(exported[0], run_mode="bf16", engine=engine)
        assert "bfloat16" in runner.description
        found, = runner([image])
        assert 0 < np.abs(found[:20, 1] - wanted[:20, 1]).max() < 0.02  # really less precise, and not wrong


def test_openvino_leaves_nothing_behind(exported, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_runner().Runner(exported[0])([read(picture)])
    assert not list(tmp_path.iterdir())


def test_a_weight_that_levels_share_is_scaled_once(exported, tmp_path):
    """Paddle's predictor scales it in place, once per level, for .pdmodel: boxes of 1e8 pixels."""
    layer = SharedIntegral()
    static = paddle.jit.to_static(layer, full_graph=True, input_spec=[
        paddle.static.InputSpec([None, 3, None, None], "float32", "image")])
    paddle.jit.save(static, str(tmp_path / "model"))
    shutil.copy(exported[0] / "infer_cfg.yml", tmp_path)
    forget_sum(tmp_path / "model.pdiparams")
    image = np.random.default_rng(0).random((1, 3, 4, 4)).astype("float32")
    output, = load_runner().Runner(tmp_path).run({"image": image})
    np.testing.assert_allclose(output, layer(paddle.to_tensor(image)).numpy(), rtol=1e-5)


# --- the runner on its own

def run(*arguments, cwd):
    """Where ppgfl cannot be imported."""
    shutil.copy(RUNNER, cwd / "infer.py")
    return subprocess.run([sys.executable, "-S", "-c", CODE, *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, timeout=120, check=False)


CODE = """
import sys, site
sys.modules["ppgfl"] = None  # any import of it fails
site.main()
sys.argv[0] = "infer.py"
exec(compile(open("infer.py", encoding="utf-8").read(), "infer.py", "exec"))
"""


def test_the_runner_needs_no_ppgfl(exported, small_coco, tmp_path):
    done = run("--model_dir", exported[0], "--image_dir", small_coco / "val2017", "--batch_size", 2,
               "--output_dir", "out", "--save_results", "--threshold", 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "running model.pdmodel on CPU" in done.stdout
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 5
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert len(results) == 5
    assert all(d["score"] >= 0.1 for one in results for d in one["detections"])


def test_the_benchmark_prints_every_stage(exported, picture, tmp_path):
    done = run("--model_dir", exported[0], "--image_file", picture, "--run_benchmark", "--benchmark_seconds", 0.2,
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("preprocess", "inference", "postprocess", "images/s"):
        assert word in done.stdout


def change_bytes(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


def forget_sum(path):
    """As PaddleDetection's exports, which hold none."""
    settings = path.parent / "infer_cfg.yml"
    settings.write_text("".join(line for line in settings.read_text(encoding="utf-8").splitlines(keepends=True)
                                if not line.startswith("params_sha256")), encoding="utf-8")


def broken(exported, tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(exported[0], folder)
    change(folder)
    return folder


@pytest.mark.parametrize(("change", "words"), [
    (shutil.rmtree, "no such folder"),
    (lambda f: (f / "model.pdiparams").unlink(), "found infer_cfg.yml, model."),
    (lambda f: (f / "infer_cfg.yml").unlink(), "infer_cfg.yml: no such file"),
    (lambda f: (f / "infer_cfg.yml").write_text("arch: YOLO"), "arch is 'YOLO'"),
    (lambda f: (f / "infer_cfg.yml").write_text("arch: GFL"), "has no list 'Preprocess'"),
    (lambda f: (f / "infer_cfg.yml").write_text("a: ["), "not YAML"),
    (lambda f: change_bytes(f / "model.pdiparams", lambda data: data[:-1]), "model.pdiparams: damaged"),
    (lambda f: change_bytes(f / "model.pdiparams", lambda data: data[:5000] + b"!" + data[5001:]),
     "model.pdiparams: damaged"),
    (lambda f: forget_sum(change_bytes(f / "model.pdiparams", lambda data: b"")), "Paddle cannot load it"),
    (lambda f: forget_sum(change_bytes(f / "model.pdiparams", lambda data: data[:100_000])), "Paddle cannot load it"),
    (lambda f: forget_sum(change_bytes(f / "model.pdiparams", lambda data: b"\x01" * 100)), "Paddle cannot load it"),
    (lambda f: change_bytes(f / "model.pdmodel", lambda data: data[:1000]), "Paddle cannot load it"),
])
def test_a_broken_folder_is_one_line(exported, picture, tmp_path, change, words):
    folder = broken(exported, tmp_path, change)
    done = run("--model_dir", folder, "--image_file", picture, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--device", "GPU"], "is a CPU build"), (["--run_mode", "trt_fp16"], "TensorRT needs --device GPU"),
    (["--run_mode", "bf16", "--engine", "native"], "are float32 only"), (["--run_mode", "int8"], "no quantisation"),
])
def test_settings_that_this_machine_lacks(exported, picture, tmp_path, arguments, words):
    if paddle.is_compiled_with_cuda():
        pytest.skip("the messages of a CPU build")
    done = run("--model_dir", exported[0], "--image_file", picture, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_an_image_that_cannot_be_read_is_named(exported, tmp_path, data):
    (tmp_path / "picture.png").write_bytes(data)
    done = run("--model_dir", exported[0], "--image_file", "picture.png", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: picture.png: not an image that can be decoded")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_is_one_line(exported, picture, tmp_path):
    command = [sys.executable, "-u", RUNNER, "--model_dir", exported[0], "--image_file", picture, "--run_benchmark",
               "--benchmark_seconds", "100"]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline().startswith("running")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped by SIGINT"
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["--batch_size", "0"], ["--cpu_threads", "-1"], ["--benchmark_seconds", "0"],
                                       ["--batch_size", "two"]])
def test_numbers_that_make_no_sense_are_refused(picture, tmp_path, arguments):
    done = run("--model_dir", tmp_path, "--image_file", picture, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert arguments[0] in done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="the signal stack is Linux's")
def test_a_runner_leaves_the_signal_stack_alone(exported, picture):
    """OpenVINO inside Paddle sets one and frees it with the model: the next signal was a SIGSEGV."""
    module, libc = load_runner(), ctypes.CDLL(None)

    def signal_stack():
        stack = module.SignalStack()
        libc.sigaltstack(None, ctypes.byref(stack))
        return stack.address, stack.flags, stack.size

    before = signal_stack()
    runner = module.Runner(exported[0])
    runner([read(picture)])
    assert signal_stack() == before
