"""What the runner asks of Paddle Inference and ONNX Runtime on a card, by stand-ins that write it down; and what it
makes of TensorRT's outputs."""
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from ppgfl.inference import detector, runner
from ppgfl.inference.runner import load_runner
from ppgfl.system import framework


@pytest.fixture
def module():
    return load_runner()


class Config:
    """`paddle.inference.Config`, as far as it is asked."""

    def __init__(self, model, params):
        self.files, self.calls = (model, params), {}

    def prog_file(self):
        return self.files[0]

    def params_file(self):
        return self.files[1]

    def __getattr__(self, name):
        return lambda *args, **named: self.calls.__setitem__(name, (*args, *([named] if named else [])))


@pytest.fixture
def card(module, monkeypatch, tmp_path):
    """Paddle with two cards of compute capability `capability`; a call opens a folder on one -> the Config."""
    import paddle

    made = []
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda card: "a card")
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda card: (8, 6))
    monkeypatch.setattr(paddle.inference, "get_trt_compile_version", lambda: (8, 5, 1))
    monkeypatch.setattr(paddle.inference, "Config", lambda *files: made.append(Config(*files)) or made[-1])
    monkeypatch.setattr(paddle.inference, "create_predictor",
                        lambda config: SimpleNamespace(get_input_names=lambda: ["image"]))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "infer_cfg.yml").write_text("arch: GFL\nlabel_list: [a]\nPreprocess: [{type: Permute}]\n")

    def opened(content=b"graph", name="model.pdmodel", **settings):
        (folder / name).write_bytes(content)
        (folder / "model.pdiparams").write_bytes(b"weights")
        run = module.Runner(folder / name, **settings)
        return SimpleNamespace(calls=made[-1].calls, description=run.description, engine=run.engine)

    return opened


@pytest.mark.parametrize(("device", "number"), [("GPU", 0), ("gpu:1", 1), ("GPU:0", 0)])
def test_a_card_is_chosen_by_its_number(card, device, number):
    config = card(device=device)
    assert config.calls["enable_use_gpu"][1] == number
    assert config.engine == "gpu"
    assert "disable_gpu" not in config.calls
    assert config.description.endswith(f"on {device}, float32")


@pytest.mark.parametrize("device", ["GPU:2", "GPU:x", "GPU:", "TPU", "CPU:0", "", "GPU:-1", "GPU:1:1"])
def test_a_card_that_is_not_there(module, card, device):
    with pytest.raises(module.RunnerError, match="--device"):
        card(device=device)


@pytest.mark.parametrize(("run_mode", "precision", "name"), [
    ("paddle", "Float32", "float32"), ("fp16", "Half", "float16"), ("bf16", "Bfloat16", "bfloat16")])
def test_half_precision_spares_the_boxes(card, run_mode, precision, name):
    from paddle.inference import PrecisionType

    config = card(device="GPU", run_mode=run_mode)
    assert config.calls["enable_use_gpu"] == (256, 0, getattr(PrecisionType, precision))
    assert config.description.endswith(name)
    assert "enable_tensorrt_engine" not in config.calls
    if run_mode == "paddle":
        assert "exp_disable_mixed_precision_ops" not in config.calls
    else:
        kept, = config.calls["exp_disable_mixed_precision_ops"]
        assert {"softmax", "elementwise_sub", "pd_op.subtract", "multiclass_nms3"} <= kept
        assert not {"conv2d", "pd_op.conv2d"} & kept


def test_paddle_takes_these_calls(module):
    """The real `Config`, of whichever Paddle is there, has every setter with these arguments."""
    from paddle import inference

    config = inference.Config()
    config.enable_use_gpu(256, 1, inference.PrecisionType.Half)
    config.exp_disable_mixed_precision_ops({*module.DECODING_OPS})
    config.collect_shape_range_info("shapes.pbtxt")
    config.set_optim_cache_dir("cache")
    for name in ("enable_tensorrt_engine", "enable_tuned_tensorrt_dynamic_shape", "params_file", "prog_file"):
        assert callable(getattr(config, name))  # without TensorRT they end the process


def test_an_old_card_computes_bfloat16_in_float32(card, monkeypatch, capsys):
    monkeypatch.setattr("paddle.device.cuda.get_device_capability", lambda card: (7, 5))
    assert card(device="GPU", run_mode="bf16").description.endswith("float32")
    assert capsys.readouterr().err == "this card has no bfloat16: running in float32\n"


@pytest.mark.parametrize(("device", "run_mode", "words"), [
    ("CPU", "fp16", "fp16: needs --device GPU"), ("CPU", "trt_fp16", "TensorRT needs --device GPU"),
    ("GPU", "int8", "it is for a CPU")])
def test_modes_of_the_other_device(module, card, device, run_mode, words):
    with pytest.raises(module.RunnerError, match=words):
        card(b"quantize_linear", device=device, run_mode=run_mode)


def test_memory_is_shared_only_where_it_may_be(card):
    assert "enable_memory_optim" in card(device="GPU").calls
    assert "enable_memory_optim" not in card(name="model.json", device="GPU").calls


def test_tensorrt_keeps_shapes_and_engines_of_each_model_and_setting(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = {}
    for content, settings in ((b"one", {"run_mode": "trt_fp16"}), (b"two", {"run_mode": "trt_fp16"}),
                              (b"one", {"run_mode": "trt_fp32"})):
        config = card(content, device="GPU", **settings)
        path, = config.calls["collect_shape_range_info"]
        assert "enable_tensorrt_engine" not in config.calls
        assert "run again" in config.description
        assert path.startswith(str(tmp_path / "home" / "tensorrt"))
        assert path not in shapes.values()
        shapes[content, settings["run_mode"]] = path
        with open(path, "w", encoding="utf-8") as file:  # as Paddle does in the end
            file.write("shapes")
    config = card(b"one", device="GPU", run_mode="trt_fp16")
    path = shapes[b"one", "trt_fp16"]
    assert config.calls["enable_tuned_tensorrt_dynamic_shape"] == (path, True)
    assert path == f"{config.calls['set_optim_cache_dir'][0]}/shapes.pbtxt"
    engine, = config.calls["enable_tensorrt_engine"]
    assert (engine["use_static"], engine["use_calib_mode"]) == (True, False)
    assert config.description.endswith("TensorRT float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


# --- what comes out


def padded(counts, keep, wide=False):
    """TensorRT's NMS: `keep` rows for each image, those that stand for nothing of class -1."""
    rows = np.full((len(counts), keep, 6), -1, np.float32)
    for i, count in enumerate(counts):
        for j in range(count):
            rows[i, j] = [0, 0.1 + 0.1 * j, 10 * i, 0, 10 * i + 5, 5]
    return [rows if wide else rows.reshape(-1, 6), np.array(counts, np.int32)]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("counts", [[2, 3], [2, 3, 1], [0, 0], [0, 4], [5, 5], [5, 0, 1], [3]])
def test_rows_of_each_image_whether_padded_or_not(module, counts, wide):
    run = module.Runner.__new__(module.Runner)
    outputs = padded(counts, 5, wide)
    plain = outputs[0].reshape(-1, 6)
    for given in (outputs, [plain[plain[:, 0] >= 0], outputs[1]], [outputs[0], outputs[1][:, None]]):
        found = run.rows_of(given)
        assert [len(rows) for rows in found] == counts
        for i, rows in enumerate(found):
            assert (rows[:, 0] == 0).all()
            assert (rows[:, 2] == 10 * i).all()
            assert (np.diff(rows[:, 1]) < 0).all()  # the best first


def test_rows_that_fit_no_count(module):
    run = module.Runner.__new__(module.Runner)
    run.model_file = "model"
    with pytest.raises(module.RunnerError, match=r"7 rows for images with \[1, 2\] objects"):
        run.rows_of([np.zeros((7, 6), np.float32), np.array([1, 2])])


# --- ONNX Runtime


@pytest.fixture
def sessions(module, monkeypatch, tmp_path):
    """An ONNX Runtime with these providers; the sessions that were asked for."""
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(providers)

        def get_providers(self):
            return [each if isinstance(each, str) else each[0] for each in asked[-1]]

        def get_modelmeta(self):
            return SimpleNamespace(custom_metadata_map={
                "class_names": '["a"]', "preprocess": '[{"type": "Permute"}]',
                "nms": '{"score_threshold": 0, "nms_top_k": 1, "keep_top_k": 1, "nms_threshold": 1}'})

        def get_inputs(self):
            return [SimpleNamespace(name="image")]

        def get_outputs(self):
            return [SimpleNamespace(name="bbox", shape=[1])]

    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider",
                 "CPUExecutionProvider"]
    stand_in = SimpleNamespace(get_available_providers=lambda: available, InferenceSession=Session,
                               SessionOptions=SimpleNamespace, __version__="1")
    monkeypatch.setitem(module.sys.modules, "onnxruntime", stand_in)
    return lambda **settings: (module.open_runner(tmp_path / "model.onnx", **settings), asked[-1])


@pytest.mark.parametrize(("settings", "wanted"), [
    ({}, ["CPUExecutionProvider"]), ({"device": "GPU:1"}, [("CUDAExecutionProvider", {"device_id": 1})]),
    ({"provider": "OpenVINO"}, ["OpenVINOExecutionProvider"]),
    ({"provider": "CUDAExecutionProvider"}, [("CUDAExecutionProvider", {"device_id": 0})])])
def test_a_provider_is_chosen_by_device_or_name(sessions, settings, wanted):
    run, asked = sessions(**settings)
    assert asked == wanted
    assert (settings.get("provider") or settings.get("device") or "CPU") in run.description


def test_tensorrt_of_onnx_runtime_keeps_its_engines(sessions, tmp_path):
    (name, options), cuda = sessions(device="GPU:1", provider="Tensorrt")[1]
    assert (name, cuda) == ("TensorrtExecutionProvider", ("CUDAExecutionProvider", {"device_id": 1}))
    assert options["device_id"] == 1
    assert options["trt_engine_cache_enable"]
    assert options["trt_engine_cache_path"].startswith(str(tmp_path / "home" / "tensorrt"))


def test_a_provider_that_is_not_there_lists_those_that_are(module, sessions):
    with pytest.raises(module.RunnerError, match="--provider ROCM: .* no ROCMExecutionProvider; it has Tensorrt.*CPU"):
        sessions(provider="ROCM")


def test_a_folder_has_no_provider(module, card):
    with pytest.raises(module.RunnerError, match="only a .onnx has one"):
        card(provider="CUDA")


# --- in the package


@pytest.mark.parametrize(("device", "cuda", "wanted"), [
    ("cpu", True, ("CPU", "CPU")), ("gpu:1", True, ("GPU:1", "GPU:1")), ("gpu:0", False, ("GPU:0", "CPU"))])
def test_exported_models_run_on_paddles_device(monkeypatch, device, cuda, wanted):
    asked = []
    run = SimpleNamespace(description="", class_names=[], prepare=None, detect=None)
    monkeypatch.setattr(framework, "device", lambda: device)
    monkeypatch.setattr(detector, "onnx_runs_on_gpu", lambda: cuda)
    monkeypatch.setattr(detector, "make_runner", lambda path, **settings: asked.append(settings["device"]) or run)
    for path in ("folder", "model.onnx"):
        detector.open_detector({}, exported=path)
    assert tuple(asked) == wanted
    detector.Detector("model.onnx", runner={"device": "CPU"})
    assert asked[-1] == "CPU"


def test_what_onnx_runtime_can_do_is_asked_of_it(monkeypatch):
    import sys

    for providers, answer in (([], False), (["CUDAExecutionProvider"], True)):
        monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(get_available_providers=lambda p=providers: p))
        assert runner.onnx_runs_on_gpu() is answer
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert runner.onnx_runs_on_gpu() is False


def test_the_key_of_a_kept_folder(module, tmp_path, monkeypatch):
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path))
    (tmp_path / "a").write_bytes(b"content")
    folder = module.kept_folder([tmp_path / "a"], "trt_fp16", 3)
    assert folder.name == hashlib.sha256(b"('trt_fp16', 3)content").hexdigest()[:16]
    assert folder.is_dir()
