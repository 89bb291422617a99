"""deploy/python/infer.py: one file, without ppgfl, that predicts what the model predicts, from a folder and a .onnx."""
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import paddle
import pytest
import yaml
from helpers import ROOT, UNREADABLE, draw_image, files_of_all_names, match, read, tiny_config

from ppgfl import Detector, build_model, export, load_weights
from ppgfl.build import build_reader
from ppgfl.data import image as images_of_package
from ppgfl.inference import infer
from ppgfl.inference.export import describe
from ppgfl.inference.runner import load_runner
from ppgfl.system import atomic_write, runtime

pytest.importorskip("onnxruntime")
RUNNER = ROOT / "deploy" / "python" / "infer.py"
SMALL = "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"
RESIZE, NORMALIZE = "TestReader.sample_transforms.1.Resize", "TestReader.sample_transforms.2.NormalizeImage"
KINDS = {"folder": ".", "onnx": "model.onnx"}  # place of the model in the exported folder


@pytest.fixture
def module():
    return load_runner()


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request, exported):
    """The exported folder, and the .onnx in it."""
    return exported[0] / request.param


@pytest.fixture
def images(small_coco):
    return [read(path) for path in sorted((small_coco / "val2017").iterdir())]


# --- it is what the package is


@pytest.mark.parametrize("overrides", [
    [], [f"{RESIZE}.keep_ratio=false"], [f"{RESIZE}.target_size=64"], [f"{RESIZE}.interp=2"],
    [f"{NORMALIZE}.is_scale=false"], [f"{NORMALIZE}.norm_type=none"], [f"{NORMALIZE}.mean=[0.1, 0.2, 0.3]"],
    ["TestReader.batch_transforms.0.PadBatch.pad_to_stride=64"],
], ids=lambda overrides: ",".join(overrides).rpartition(".")[2] or "as shipped")
def test_images_are_prepared_as_the_model_does(module, images, overrides):
    """One arithmetic, two files: the runner must not need ppgfl."""
    cfg = tiny_config("gfl_r18vd_1x_coco", *overrides)
    ops = describe(cfg, [None, 3, None, None])["Preprocess"]
    reader = build_reader(cfg, "TestReader")
    for group in ([image] for image in images), [images]:
        for some in group:
            ours, theirs = reader(some), module.prepare(some, ops)
            for name in ("image", "scale_factor", "im_shape"):
                assert theirs[name].dtype == np.float32
                np.testing.assert_array_equal(theirs[name], ours[name])


def test_a_step_that_it_does_not_know(module, images):
    with pytest.raises(module.RunnerError, match="has a step 'Mosaic'"):
        module.prepare(images, [{"type": "Mosaic"}])


TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"
TWO_CORES = {TOPOLOGY.format(cpu, name): f"{value}\n" for cpu in range(4)
             for name, value in (("physical_package_id", 0), ("core_id", cpu // 2))}
TWO_SOCKETS = {**TWO_CORES, **{TOPOLOGY.format(cpu, "physical_package_id"): "1\n" for cpu in (2, 3)},
               **{TOPOLOGY.format(cpu, "core_id"): "0\n" for cpu in range(4)}}
V1 = "/sys/fs/cgroup/cpu/cpu.cfs_{}_us"


@pytest.mark.parametrize(("files", "cores"), [
    (TWO_CORES, 2), (TWO_SOCKETS, 2), ({}, 4),
    ({**TWO_CORES, "/sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
    ({**TWO_CORES, "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
    ({**TWO_CORES, "/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    ({**TWO_CORES, "/sys/fs/cgroup/cpu.max": "800000 100000\n"}, 2),
    ({**TWO_CORES, "/sys/fs/cgroup/cpu.max": "max 100000\n", V1.format("quota"): "100000\n",
      V1.format("period"): "100000\n"}, 2),
    ({"/sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
    ({**TWO_CORES, "/sys/fs/cgroup/cpu.max": "nonsense\n"}, 2),
    ({**TWO_CORES, V1.format("quota"): "100000\n", V1.format("period"): "100000\n"}, 1),
    ({**TWO_CORES, V1.format("quota"): "-1\n", V1.format("period"): "100000\n"}, 2),
    ({**TWO_CORES, V1.format("quota"): "100000\n"}, 2),
])
def test_threads_are_counted_as_the_package_does(module, monkeypatch, files, cores):
    """Affinity, threads of one core, and the quota of a container, as its files under /sys say."""
    real = Path.read_text

    def read_text(self, *args, **kwargs):
        if not str(self).startswith("/sys/"):
            return real(self, *args, **kwargs)
        if str(self) not in files:
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert (module.physical_cores(), runtime.physical_cores()) == (cores, cores)


@pytest.mark.parametrize(("count", "cores"), [(8, 4), (1, 1), (None, 1)])
def test_threads_where_nothing_is_said_of_affinity(module, monkeypatch, count, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert (module.physical_cores(), runtime.physical_cores()) == (cores, cores)


# --- what it finds


@pytest.mark.drill
def test_a_detector_of_the_folder_finds_what_the_model_finds(exported, r18vd_weights, picture):
    model = Detector("gfl_r18vd_1x_coco", r18vd_weights, [SMALL, "use_gpu=false"])(picture)
    found = Detector(exported[0])(picture)
    np.testing.assert_allclose(found.scores, model.scores, atol=1e-4)
    np.testing.assert_allclose(np.sort(found.boxes, axis=0), np.sort(model.boxes, axis=0), atol=1e-2)
    assert found.path == str(picture)
    assert found.draw(0.5).shape == read(picture).shape


def test_both_runners_find_the_same(module, exported, images):
    ours, runner = module.open_runner(exported[0] / "model.onnx"), module.open_runner(exported[0])
    assert (type(ours), type(runner)) == (module.OnnxRunner, module.Runner)
    assert ours.class_names == runner.class_names
    for image in images:
        match(ours([image])[0], runner([image])[0])


def test_a_batch_of_images_of_different_sizes(module, model, images):
    runner = module.open_runner(model)
    for found in (runner(images), runner.detect(runner.prepare(images))):
        assert [rows.shape for rows in found] == [(100, 6)] * 5
        assert all((np.diff(rows[:, 1]) <= 0).all() for rows in found)
    assert min(runner.times.values()) > 0


@pytest.mark.parametrize("size", [(31, 33), (200, 3), (64, 96)])
@pytest.mark.drill
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


# --- Paddle Inference


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
def test_the_engine(module, wanted, run_mode, suffix, has_openvino, any_size, engine, word):
    chosen, note = module.choose_engine(wanted, run_mode, suffix, has_openvino=has_openvino, any_size=any_size)
    assert chosen == engine
    assert word in note if word else note is None


@pytest.mark.parametrize("engine", ["onednn", "openvino", "native"])
def test_every_engine_finds_the_same(module, exported, picture, engine):
    image = read(picture)
    wanted, = module.Runner(exported[0])([image])
    assert len(wanted) == 100
    found, = module.Runner(exported[0] / "model.pdmodel", engine=engine)([image])
    match(found, wanted)


def test_bfloat16_is_close(module, exported, picture):
    image = read(picture)
    if not module.processor_has("avx512_bf16", "amx_bf16"):
        pytest.skip("this processor has no bfloat16")
    wanted, = module.Runner(exported[0])([image])
    for engine in ("auto", "onednn"):
        runner = module.Runner(exported[0], run_mode="bf16", engine=engine)
        assert "bfloat16" in runner.description
        found, = runner([image])
        assert 0 < np.abs(found[:20, 1] - wanted[:20, 1]).max() < 0.02  # really less precise, and not wrong


def test_openvino_leaves_nothing_behind(module, exported, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module.Runner(exported[0])([read(picture)])
    assert not list(tmp_path.iterdir())


def test_a_weight_that_levels_share_is_scaled_once(module, exported, tmp_path):
    """Paddle's predictor scales it in place, once per level, for .pdmodel: boxes of 1e8 pixels."""
    layer = SharedIntegral()
    static = paddle.jit.to_static(layer, full_graph=True, input_spec=[
        paddle.static.InputSpec([None, 3, None, None], "float32", "image")])
    paddle.jit.save(static, str(tmp_path / "model"))
    shutil.copy(exported[0] / "infer_cfg.yml", tmp_path)
    forget_sum(tmp_path / "model.pdiparams")
    image = np.random.default_rng(0).random((1, 3, 4, 4)).astype("float32")
    runner = module.Runner(tmp_path)
    output, = runner.run({"image": image})
    np.testing.assert_allclose(output, layer(paddle.to_tensor(image)).numpy(), rtol=1e-5)
    with pytest.raises(module.RunnerError, match="needs an export with post-processing and NMS"):
        runner.detect({"image": image})
    with pytest.raises(module.RunnerError, match="wants an input 'image'"):
        runner.run({"picture": image})


@pytest.mark.skipif(sys.platform != "linux", reason="the signal stack is Linux's")
def test_a_runner_leaves_the_signal_stack_alone(module, exported, picture):
    """OpenVINO inside Paddle sets one and frees it with the model: the next signal was a SIGSEGV."""
    libc = ctypes.CDLL(None)

    class SignalStack(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    def signal_stack():
        stack = SignalStack()
        libc.sigaltstack(None, ctypes.byref(stack))
        return stack.address, stack.flags, stack.size

    before = signal_stack()
    runner = module.Runner(exported[0])
    runner([read(picture)])
    assert signal_stack() == before


# --- ONNX Runtime


def test_nms_inside_or_outside_alone_or_in_a_batch(module, exported, r18vd_weights, images, tmp_path):
    export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, format="pdmodel", with_nms=True, verify=())
    inside, outside = (module.open_runner(folder / "model.onnx") for folder in (tmp_path, exported[0]))
    assert (inside.has_nms, outside.has_nms) == (True, False)
    alone = outside(images)
    assert [len(rows) for rows in alone] == [100] * 5
    for a, b in zip(inside(images), alone):
        match(a, b)
    of_one_size = [images[0], images[0][::-1], images[0][:, ::-1]]
    for runner in (inside, outside):
        for a, b in zip(runner.detect(runner.prepare(of_one_size)), outside(of_one_size)):
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
    dict(score_threshold=0.9, nms_top_k=10, keep_top_k=-1, nms_threshold=0.5),  # of the four classes two have more
    dict(score_threshold=1.0, nms_top_k=10, keep_top_k=10, nms_threshold=0.5),
])
def test_nms_against_the_textbook(module, settings):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, size=(150, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 40, size=(150, 2))]).astype(np.float32)
    scores = rng.random((150, 4)).astype(np.float32)
    np.testing.assert_allclose(module.suppress(boxes, scores, **settings), slow_nms(boxes, scores, **settings))


def test_a_fixed_size_that_the_preparation_does_not_make(module, exported, images, tmp_path):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(exported[0] / "model.onnx")
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim[2:], (64, 96)):
        dim.dim_value = size  # as TestReader.inputs_def.image_shape=[3, 64, 96] has it
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(module.RunnerError, match=r"takes images of \['N', 3, 64, 96\], and was given \[1, 3, 96, 64\]"):
        module.open_runner(tmp_path / "model.onnx")([images[1]])


def test_cuda_that_does_not_start(module, exported, monkeypatch):
    """A build for CUDA on a machine that lacks its libraries computes on the CPU, and says so in lines of its own."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning), pytest.raises(module.RunnerError, match="cannot start its CUDAExecutionProvider"):
        module.open_runner(exported[0] / "model.onnx", device="GPU")


# --- the file on its own


def run(*arguments, cwd, without):
    """A copy of the file, where some modules cannot be imported."""
    shutil.copy(RUNNER, cwd / "infer.py")
    code = (f"import sys; sys.modules.update(dict.fromkeys({without}, None)); sys.argv[0] = 'infer.py';"
            "exec(compile(open('infer.py', encoding='utf-8').read(), 'infer.py', 'exec'))")
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=120, check=False)


@pytest.mark.parametrize(("flag", "place", "without"), [
    ("--model_dir", ".", ["ppgfl", "onnxruntime"]), ("--model", "model.onnx", ["ppgfl", "paddle", "yaml"]),
], ids=KINDS)
def test_it_needs_neither_ppgfl_nor_what_the_other_kind_needs(exported, small_coco, tmp_path, flag, place, without):
    done = run(flag, exported[0] / place, "--image_dir", small_coco, "--batch_size", 2, "--output_dir", "out",
               "--save_results", "--threshold", 0.1, cwd=tmp_path, without=without)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("running model.")
    pictures = [path.name for path in (tmp_path / "out").glob("*.jpg")]
    assert sorted(pictures) == sorted(path.name for path in (small_coco / "val2017").iterdir())
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [len(one["detections"]) > 0 for one in results] == [True] * 5
    assert all(d["score"] >= 0.1 for one in results for d in one["detections"])


@pytest.fixture
def command(module, monkeypatch, tmp_path, capsys):
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = module.main([str(argument) for argument in arguments])
        except SystemExit as done:  # of argparse
            code = done.code
        out, errors = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=errors)

    return run


def test_pictures_keep_their_names_and_folders(command, model, picture, tmp_path):
    for name in ("a/one.jpg", "b/one.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        shutil.copy(picture, tmp_path / "photos" / name)
    done = command("--model", model, "--image_dir", "photos", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert ", 1 threads" in done.stdout
    written = sorted(str(path.relative_to(tmp_path / "output")) for path in (tmp_path / "output").rglob("*.*"))
    assert written == ["a/one.jpg", "b/one.jpg"]
    assert all(read(tmp_path / "output" / name).shape == read(picture).shape for name in written)
    done = command("--model_dir", model, "--image_dir", "photos", "--output_dir", "photos")
    assert done.returncode == 2
    assert "the drawn picture would replace the image" in done.stderr


def test_the_benchmark_prints_every_stage(command, model, picture, tmp_path):
    done = command("--model_dir", model, "--image_file", picture, "--run_benchmark", "--benchmark_seconds", 0.2,
                   "--batch_size", 2)
    assert done.returncode == 0, done.stderr
    for word in ("preprocess", "inference", "postprocess", "images/s, batch 2"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


# --- what cannot be used


def change_bytes(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


def forget_sum(path):
    """As PaddleDetection's exports, which hold none."""
    settings = path.parent / "infer_cfg.yml"
    settings.write_text("".join(line for line in settings.read_text(encoding="utf-8").splitlines(keepends=True)
                                if not line.startswith("params_sha256")), encoding="utf-8")


def is_one_line(done, words, start="error: "):
    """Whether a command has refused something as it should."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(start), done.stderr
    assert words in done.stderr
    assert not Path("output").exists()
    return True


@pytest.mark.parametrize(("change", "words"), [
    (shutil.rmtree, "no such folder"),
    (lambda f: (f / "model.pdiparams").unlink(), "found infer_cfg.yml, model."),
    (lambda f: (f / "infer_cfg.yml").unlink(), "infer_cfg.yml: no such file"),
    (lambda f: (f / "infer_cfg.yml").write_text("arch: YOLO"), "arch is 'YOLO'"),
    (lambda f: (f / "infer_cfg.yml").write_text("YOLO"), "arch is 'YOLO'"),
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
def test_a_broken_folder_is_one_line(command, exported, picture, tmp_path, change, words):
    folder = tmp_path / "broken"
    shutil.copytree(exported[0], folder)
    change(folder)
    assert is_one_line(command("--model_dir", folder, "--image_file", picture), words)


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: None, "no such file"),
    (lambda data: data[:1000], "ONNX Runtime cannot load it"),
    (lambda data: b"", "ONNX Runtime cannot load it"),
    (lambda data: data.replace(b"class_names", b"other_names"), "has no class_names in its metadata"),
])
def test_a_broken_onnx_is_one_line(command, exported, picture, tmp_path, change, words):
    changed = change((exported[0] / "model.onnx").read_bytes())
    if changed is not None:
        (tmp_path / "model.onnx").write_bytes(changed)
    start = f"error: {tmp_path if changed is None else 'model.onnx'}"
    assert is_one_line(command("--model", "model.onnx", "--image_file", picture), words, start)


@pytest.mark.parametrize("said", [
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for DeformConv(19) node with name 'a'",
    "Unsupported model IR version: 9, max supported IR version: 8"])
def test_a_runtime_that_is_too_old_is_told_apart_from_a_broken_file(module, exported, monkeypatch, said):
    import onnxruntime

    def refuse(*arguments, **settings):
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(module.RunnerError, match="pip install -U onnxruntime: this is 1.24.4, .* need 1.25"):
        module.open_runner(exported[0] / "model.onnx")


@pytest.mark.parametrize(("place", "package", "install"), [
    (".", "paddle", "paddlepaddle"), (".", "yaml", "pyyaml"), ("model.onnx", "onnxruntime", "onnxruntime")])
def test_a_package_that_is_missing_is_one_line(command, exported, picture, monkeypatch, place, package, install):
    monkeypatch.setitem(sys.modules, package, None)
    done = command("--model_dir", exported[0] / place, "--image_file", picture)
    assert is_one_line(done, f"this model needs {package}:")
    assert done.stderr.endswith(f"pip install {install}\n")


@pytest.mark.parametrize(("place", "arguments", "words"), [
    (".", ["--device", "GPU"], "is a CPU build"), (".", ["--run_mode", "trt_fp16"], "TensorRT needs --device GPU"),
    (".", ["--run_mode", "bf16", "--engine", "native"], "are float32 only"),
    (".", ["--run_mode", "int8"], "no quantisation"),
    ("model.onnx", ["--device", "GPU"], "has no CUDAExecutionProvider; pip install onnxruntime-gpu"),
    ("model.onnx", ["--run_mode", "bf16"], "model.onnx: paddle\n"),
    ("model.onnx", ["--engine", "openvino"], "model.onnx: auto\n"),
])
def test_settings_that_this_machine_or_model_lacks(module, command, exported, picture, place, arguments, words):
    if paddle.is_compiled_with_cuda():
        pytest.skip("the messages of a CPU build")
    if "bf16" in arguments and place == "." and not module.processor_has("avx512_bf16", "amx_bf16"):
        pytest.skip("this processor has no bfloat16")
    assert is_one_line(command("--model_dir", exported[0] / place, "--image_file", picture, *arguments), words)


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_an_image_that_cannot_be_read_is_named(command, model, tmp_path, data):
    (tmp_path / "picture.png").write_bytes(data)
    done = command("--model_dir", model, "--image_file", "picture.png")
    assert is_one_line(done, "", "error: picture.png: not an image that can be decoded")


@pytest.mark.parametrize("arguments", [["--batch_size", "0"], ["--cpu_threads", "-1"], ["--benchmark_seconds", "0"],
                                       ["--benchmark_seconds", "nan"], ["--batch_size", "two"],
                                       ["--threshold", "50"], ["--threshold", "nan"]])
def test_numbers_that_make_no_sense_are_refused(command, picture, tmp_path, arguments):
    done = command("--model_dir", tmp_path, "--image_file", picture, *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr.splitlines()[-1]


# --- names of files, as `infer` of the package has them


@pytest.fixture
def quick(module, monkeypatch, command):
    """The command with a model that finds one thing in each image."""
    runner = SimpleNamespace(description="cardboard", class_names=["thing"], prepare=lambda images: images,
                             detect=lambda images: [np.array([[1, 0.9, 1, 2, 5, 6]], np.float32)] * len(images))
    monkeypatch.setattr(module, "open_runner", lambda model, **settings: runner)
    return lambda *arguments: command("--model", "none", "--batch_size", 3, "--save_results", *arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take any bytes as a name")
def test_each_image_has_a_result_under_its_name(quick, tmp_path):
    names = files_of_all_names(tmp_path / "in")
    for folder, out in (("in", tmp_path / "out"), ("./in/", tmp_path / "in" / "out")):
        for _ in range(2):  # the second time a folder of results is there, which is not read
            done = quick("--image_dir", folder, "--output_dir", out)
            assert done.returncode == 0, done.stderr
            results = json.loads((out / "results.json").read_text("utf-8"))
            assert sorted(one["file"] for one in results) == sorted(os.path.join(folder, name) for name in names)
            assert {one["detections"][0]["name"] for one in results} == {"class 1"}  # the model has more than it names
            pictures = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()]
            assert sorted(pictures) == sorted([*names, "results.json"])


def test_pictures_without_a_box_are_told(quick, picture, tmp_path):
    assert "no box" not in quick("--image_file", picture).stdout
    done = quick("--image_file", picture, "--threshold", 0.95)
    assert done.stdout.endswith("no box is drawn: the best score is 0.900, and --threshold is 0.95\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take any bytes as a name")
def test_paths_are_what_they_are_for_the_package(module, tmp_path, monkeypatch):
    """One logic, two files."""
    monkeypatch.chdir(tmp_path)
    assert module.SUFFIXES == images_of_package.SUFFIXES
    names = files_of_all_names(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere")
    for place, left_out in (("in", None), (tmp_path / "in", "in/sub"), ("./in/sub/../sub/", "out"),
                            (os.path.join("in", names[0]), None), ("in/gone.png", None), ("in", "in")):
        files = module.find_images(place, left_out)
        assert files == images_of_package.find_images(place, left_out)
        files += [*files[:3], "upload", "upload.png", "x" * 255, "x" * 252 + ".no", os.fsdecode(b"\xe9" * 250),
                  "in/sub/../.a", "in/again/../.a"]
        assert module.picture_names(files) == infer.picture_names(files)
    for length in (1, 250, 251, 252, 255):
        for name in ("x" * length, "数" * (length // 3), os.fsdecode(b"\xe9" * length)):
            made = module.with_ending(name, ".tmp")
            assert made == atomic_write.with_ending(name, ".tmp")
            assert len(os.fsencode(made)) <= 255


def test_names_without_an_ending_and_of_255_bytes(quick, picture, tmp_path):
    for name in ("upload", "photo.dat", "x" * 251 + ".jpg"):
        shutil.copy(picture, tmp_path / name)
        assert quick("--image_file", name).returncode == 0
    assert {"upload.png", "photo.dat.png", "x" * 251 + ".jpg"} < set(os.listdir("output"))
    assert read(tmp_path / "output" / "upload.png").shape == read(picture).shape


@pytest.mark.parametrize(("name", "words"), [
    ("gone.png", "gone.png: cannot be read: it is a link to nowhere, which is not there"),
    ("none.png", "no image there"), ("~a.png", "no image there"), ("*.png", "no image there"),
    ("cut.jpg", "it is truncated (it ends after"),
    ("cut.png", "it is truncated (it ends after")])
def test_an_image_that_is_not_whole_or_not_there(quick, picture, tmp_path, name, words):
    (tmp_path / "gone.png").symlink_to("nowhere")
    for ending in (".jpg", ".png"):
        (tmp_path / f"cut{ending}").write_bytes(cv2.imencode(ending, read(picture))[1].tobytes()[:-20])
    assert is_one_line(quick("--image_file", name), words)


def test_a_picture_that_cannot_be_written_is_no_empty_file(quick, module, tmp_path):
    with pytest.raises(module.RunnerError, match="a.webp: OpenCV cannot write 2 x 20000 pixels"):
        module.encode("a.webp", np.zeros((20_000, 2, 3), np.uint8))


@pytest.mark.parametrize("size", [(5, 7), (40, 60), (300, 200)])
def test_where_an_image_counts_as_truncated(module, size):
    data = draw_image(np.random.default_rng(0), 60, 90)[0]
    for ending in (".jpg", ".png"):
        whole = cv2.imencode(ending, cv2.resize(data, size))[1].tobytes()
        for end in (0, 1, 3, 9, 30, len(whole) // 2, len(whole) - 9, len(whole) - 2, len(whole) - 1, len(whole)):
            wanted = images_of_package._is_truncated(np.frombuffer(whole[:end], np.uint8))
            assert module.is_truncated(whole[:end]) == wanted, end


# --- foreign exports


GOOD = [{"type": "Resize", "target_size": [64, 96], "keep_ratio": True, "interp": 1},
        {"type": "NormalizeImage", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "is_scale": True},
        {"type": "Permute"}, {"type": "PadStride", "stride": 32}]
RESIZED = "Preprocess[0].target_size"


def changed(place, **values):
    return [*GOOD[:place], {**GOOD[place], **values}, *GOOD[place + 1:]]


@pytest.mark.parametrize(("names", "steps", "words"), [
    ([date(2020, 1, 1)], GOOD, "label_list[0]: 2020-01-01"), (["a", 1], GOOD, "label_list[1]: 1"),
    ([True], GOOD, "label_list[0]: True"), ([None], GOOD, "label_list[0]: None"), ([], GOOD, "label_list: []"),
    ([["a"]], GOOD, "label_list[0]"), (["a"], [], "Preprocess: []"), (["a"], ["Permute"], "Preprocess[0]: Permute"),
    (["a"], [{"type": "Mosaic"}], "Resize, NormalizeImage, Permute, PadStride"),
    (["a"], [{"type": ["a"]}], "Preprocess[0]"), (["a"], [None], "Preprocess[0]: None"),
    (["a"], [{"type": "Resize"}, *GOOD], f"{RESIZED}: None"),
    (["a"], changed(0, target_size="800"), RESIZED), (["a"], changed(0, target_size=0), RESIZED),
    (["a"], changed(0, target_size=[800]), RESIZED), (["a"], changed(0, target_size=[800, 10**9]), RESIZED),
    (["a"], changed(0, target_size=640.5), RESIZED), (["a"], changed(0, target_size=True), RESIZED),
    (["a"], changed(0, keep_ratio="no"), "Preprocess[0].keep_ratio: no"),
    (["a"], changed(0, interp=99), "Preprocess[0].interp"),
    (["a"], changed(1, mean=["a", "b", "c"]), "Preprocess[1].mean: ['a', 'b', 'c']"),
    (["a"], changed(1, mean=[1, 2]), "three numbers"), (["a"], changed(1, std=[1, 0, 1]), "Preprocess[1].std"),
    (["a"], changed(1, std=[1, float("nan"), 1]), "Preprocess[1].std"),
    (["a"], changed(1, norm_type="max"), "mean_std or none"),
    (["a"], [{"type": "NormalizeImage"}, {"type": "Permute"}], "Preprocess[0].mean: None"),
    (["a"], changed(3, stride="32"), "Preprocess[3].stride"), (["a"], changed(3, stride=10**6), "Preprocess[3].stride"),
    (["a"], [GOOD[2], *GOOD[:2]], "one Permute, behind"), (["a"], GOOD[:2], "one Permute, behind"),
    (["a"], [GOOD[1], *GOOD], "one Permute, behind"),
])
def test_settings_are_checked_when_they_are_read(module, tmp_path, names, steps, words):
    settings = {"arch": "GFL", "label_list": names, "Preprocess": steps}
    (tmp_path / "infer_cfg.yml").write_text(yaml.dump(settings), "utf-8")
    with pytest.raises(module.RunnerError) as caught:
        module.read_settings(tmp_path / "model.pdiparams")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'infer_cfg.yml'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("use_dynamic_shape", "no"), ("min_subgraph_size", "3"),
                                            ("min_subgraph_size", 0)])
def test_settings_of_the_predictor_are_checked_too(module, tmp_path, key, value):
    settings = {"arch": "GFL", "label_list": ["a"], "Preprocess": GOOD, key: value}
    (tmp_path / "infer_cfg.yml").write_text(yaml.dump(settings), "utf-8")
    with pytest.raises(module.RunnerError, match=f"infer_cfg.yml: {key}: {value!r}: it has to be"):
        module.read_settings(tmp_path / "model.pdiparams")


def test_settings_that_are_good(module):
    for steps in (GOOD, GOOD[:3], changed(0, target_size=640), changed(1, is_scale=False, norm_type="mean_std"),
                  [GOOD[0], {"type": "NormalizeImage", "norm_type": "none"}, GOOD[2]], GOOD[1:3]):
        module.check_settings("here", ["a", "ü"], steps)
        module.prepare([np.zeros((9, 8, 3), np.uint8)], steps)


@pytest.mark.parametrize(("text", "words"), [
    ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)), "has 58 aliases"),
    ("a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)),
     "has 58 aliases"),
    ("label_list: [2020-13-45]", "not YAML: month must be"), ("a: " + "[" * 1000, "not YAML"),
    ("a: !!python/object:os.x {}", "not YAML")])
def test_yaml_that_would_fill_the_memory_or_is_none(module, tmp_path, text, words):
    (tmp_path / "infer_cfg.yml").write_text(f"arch: GFL\n{text}\n", "utf-8")
    with pytest.raises(module.RunnerError) as caught:
        module.read_settings(tmp_path / "model.pdiparams")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("key", "value", "words"), [
    ("class_names", '["a"]', "name 1 classes, the model has 80"), ("class_names", "[1]", "label_list[0]: 1"),
    ("class_names", "{", "not JSON"), ("preprocess", '["Permute"]', "Preprocess[0]: Permute"),
    ("nms", "[]", "nms: []"), ("nms", '{"nms_top_k": 1}', "nms: {"),
    ("nms", '{"score_threshold": "a", "nms_top_k": 1, "keep_top_k": 1, "nms_threshold": 1}', "nms: {")])
def test_metadata_of_an_onnx_are_checked(command, exported, picture, tmp_path, key, value, words):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(exported[0] / "model.onnx")
    next(entry for entry in proto.metadata_props if entry.key == key).value = value
    onnx.save(proto, tmp_path / "model.onnx")
    assert is_one_line(command("--model", "model.onnx", "--image_file", picture), words)


# --- Ctrl-C


def ended(process):
    """The errors of a command that Ctrl-C has ended."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped by SIGINT"
    assert "Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_is_one_line(exported, picture, tmp_path):
    command = [sys.executable, "-u", RUNNER, "--model_dir", exported[0], "--image_file", picture, "--run_benchmark",
               "--benchmark_seconds", "100"]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline().startswith("running")
    ended(process)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_whole_pictures(exported, picture, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "output"
    photos.mkdir()
    for i in range(5000):
        os.link(picture, photos / f"{i}.jpg")
    process = subprocess.Popen([sys.executable, RUNNER, "--model", exported[0] / "model.onnx", "--image_dir", photos],
                               cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(output.glob("*.jpg")) and process.poll() is None:
        time.sleep(0.01)
    ended(process)
    assert all(read(path) is not None for path in output.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_the_first_ctrl_c_waits_and_the_second_does_not(module):
    with pytest.raises(KeyboardInterrupt), module.delayed_interrupt() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second did nothing")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_that_is_ignored_stays_ignored(module):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with module.delayed_interrupt() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# --- videos


def test_a_video(module, model, tmp_path, capsys):
    clip, size = tmp_path / "clip.avi", (64, 48)
    writer = cv2.VideoWriter(str(clip), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 12.5, size)
    for i in range(5):
        writer.write(np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    out, options = tmp_path / "out", ["--model_dir", str(model), "--threshold", "0"]
    assert module.main([*options, "--video_file", str(clip), "--output_dir", str(out), "--save_results"]) == 0
    assert "5 frames in" in capsys.readouterr().out
    drawn = cv2.VideoCapture(str(out / "clip.webm"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (5, 12.5)
    assert drawn.read()[1].shape == (48, 64, 3)
    lines = [json.loads(line) for line in (out / "clip.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time"]) for line in lines] == [(i, round(i / 12.5, 3)) for i in range(5)]
    capture = cv2.VideoCapture(str(clip))
    runner = module.open_runner(model)
    wanted = module.detections_of(runner([capture.read()[1]])[0], runner.class_names)
    assert lines[0]["detections"] == wanted

    slices = ["--slice_infer", "--slice_size", "32"]
    arguments = [*options, *slices, "--video_file", str(clip), "--output_dir", str(out)]
    assert module.main([*arguments, "--save_results"]) == 0
    image = cv2.VideoCapture(str(clip)).read()[1]
    rows = module.detect_slices(runner, image, module.parse_arguments(arguments))
    line = json.loads((out / "clip.jsonl").read_text().splitlines()[0])
    assert line["detections"] == module.detections_of(rows, runner.class_names) != wanted

    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[:clip.stat().st_size * 6 // 10])
    assert module.main([*options, "--video_file", str(cut), "--output_dir", str(out)]) == 0
    assert "of the 5 that it promises" in capsys.readouterr().err
    clip.rename(tmp_path / "clip.webm")
    for arguments, said in ((["--video_file", str(tmp_path / "clip.webm")], "would replace its source"),
                            (["--video_file", "none.mp4"], "cannot be opened"),
                            (["--camera_id", "7"], "camera_7: cannot")):
        assert module.main([*options, *arguments, "--output_dir", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


def test_a_stream_that_breaks_off_is_opened_again(module, model, tmp_path, capsys, monkeypatch):
    """MJPEG of three frames, again and again."""
    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 77, np.uint8))[1].tobytes()
    part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            self.wfile.write(3 * part)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "RECONNECTS", 2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://user:secret@127.0.0.1:{server.server_port}/camera"
    try:
        code = module.main(["--model_dir", str(model), "--video_file", address, "--output_dir", str(tmp_path),
                            "--save_results"])
    finally:
        server.shutdown()
        server.server_close()
    said = capsys.readouterr().err
    assert code == 2
    assert "broke off after 3 frames; reconnecting, attempt 1 of 2" in said
    assert "camera: the stream broke off after 9 frames, and 2 attempts to reconnect did not mend it" in said
    assert "secret" not in said
    assert len((tmp_path / "camera.jsonl").read_text().splitlines()) == 9
    assert cv2.VideoCapture(str(tmp_path / "camera.webm")).get(cv2.CAP_PROP_FRAME_COUNT) == 9
