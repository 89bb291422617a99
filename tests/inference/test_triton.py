"""Triton's model repository: its configuration as Triton reads it, and its model.py as Triton calls it."""
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, match, read

from ppgfl import ConfigError, ExportError
from ppgfl.inference import triton
from ppgfl.inference.runner import load_runner

pytest.importorskip("onnxruntime")
SMALL = "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"


def message_of_our_own():
    """The part of Triton's ModelConfig that the file uses, with the names and types of its model_config.proto."""
    protobuf = pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    assert protobuf
    file = descriptor_pb2.FileDescriptorProto(name="part_of_model_config.proto", package="part", syntax="proto3")
    for kind, names in (("DataType", ["TYPE_INVALID", "TYPE_INT64", "TYPE_FP32", "TYPE_STRING"]),
                        ("Kind", ["KIND_AUTO", "KIND_GPU", "KIND_CPU"])):
        enum = file.enum_type.add(name=kind)
        for number, name in enumerate(names):
            enum.value.add(name=name, number=number)
    field = descriptor_pb2.FieldDescriptorProto

    def add(message, fields):
        made = file.message_type.add(name=message)
        for number, (name, kind, many) in enumerate(fields, 1):
            made.field.add(name=name, number=number, label=field.LABEL_REPEATED if many else field.LABEL_OPTIONAL,
                           **({"type": kind} if isinstance(kind, int) else {"type_name": f".part.{kind}"}))
        return made

    tensor = [("name", field.TYPE_STRING, False), ("data_type", "DataType", False), ("dims", field.TYPE_INT64, True)]
    add("Tensor", tensor)
    add("Group", [("count", field.TYPE_INT32, False), ("kind", "Kind", False)])
    add("Parameter", [("string_value", field.TYPE_STRING, False)])
    config = add("ModelConfig", [
        ("name", field.TYPE_STRING, False), ("backend", field.TYPE_STRING, False),
        ("max_batch_size", field.TYPE_INT32, False), ("input", "Tensor", True), ("output", "Tensor", True),
        ("instance_group", "Group", True), ("parameters", "ModelConfig.ParametersEntry", True)])
    entry = config.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=field.LABEL_OPTIONAL, type_name=".part.Parameter")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("part.ModelConfig"))


def message_of_triton():
    return pytest.importorskip("tritonclient.grpc.model_config_pb2").ModelConfig


@pytest.mark.parametrize("message", [message_of_our_own, message_of_triton])
@pytest.mark.parametrize("sigma", [False, True])
def test_the_configuration_is_what_triton_reads(message, sigma):
    kind = message()
    from google.protobuf import json_format, text_format

    config = json_format.MessageToDict(text_format.Parse(triton.config_of("gfl_r18vd.1x", sigma), kind()),
                                       preserving_proto_field_name=True)
    assert config == {
        "name": "gfl_r18vd.1x", "backend": "python",
        "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": ["-1"]}],
        "output": [{"name": "boxes", "data_type": "TYPE_FP32", "dims": ["-1", "4"]},
                   {"name": "scores", "data_type": "TYPE_FP32", "dims": ["-1"]},
                   {"name": "labels", "data_type": "TYPE_INT64", "dims": ["-1"]},
                   {"name": "names", "data_type": "TYPE_STRING", "dims": ["-1"]},
                   {"name": "bbox_num", "data_type": "TYPE_INT64", "dims": ["-1"]},
                   *([{"name": "sigma", "data_type": "TYPE_FP32", "dims": ["-1", "4"]},
                      {"name": "top2", "data_type": "TYPE_FP32", "dims": ["-1", "4"]}] if sigma else [])],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": {"threshold": {"string_value": "0"}, "cpu_threads": {"string_value": "0"}}}


class Tensor:
    """As Triton's."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


class Request:
    """As Triton's."""

    def __init__(self, files, outputs, parameters=""):
        self.tensors = {"image": Tensor("image", np.array(files, object))}
        self.outputs, self.given = outputs, parameters

    def requested_output_names(self):
        return self.outputs

    def parameters(self):
        return self.given


def load_model(folder, monkeypatch):
    """model.py of a repository, loaded as Triton's process does it: with its utilities, and with nothing of ppgfl."""
    utilities = ModuleType("triton_python_backend_utils")
    utilities.Tensor = Tensor
    utilities.TritonError = lambda message: SimpleNamespace(message=message)
    utilities.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(
        tensors=output_tensors, error=error)
    utilities.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)
    monkeypatch.delitem(sys.modules, "infer", raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "deploy" not in place])
    spec = importlib.util.spec_from_file_location("triton_model", folder / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.infer.__file__ == str(folder / "1" / "infer.py")
    monkeypatch.delitem(sys.modules, "infer")
    return module


def opened(module, **parameters):
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": {
        name: {"string_value": value} for name, value in parameters.items()}}), "model_instance_kind": "CPU",
        "model_instance_device_id": "0"})
    return model


ALL = ["boxes", "scores", "labels", "names", "bbox_num"]


def test_the_model_gives_the_runners_rows(exported, small_coco, tmp_path, monkeypatch):
    folder = triton.write(tmp_path / "repository", exported[0] / "model.onnx", "gfl")
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["infer.py", "model.onnx", "model.py"]
    runner = load_runner().open_runner(folder / "1" / "model.onnx")
    paths = sorted((small_coco / "val2017").iterdir())
    wanted, files = [runner([read(path)])[0] for path in paths], [path.read_bytes() for path in paths]
    model = opened(load_model(folder, monkeypatch), threshold="0", cpu_threads="1")
    assert model.runner.threads == 1
    answers = model.execute([Request(files, ALL), Request([files[0]], ["scores", "bbox_num"], '{"threshold": 0.5}'),
                             Request([files[0], b"x"], ALL), Request([files[0][:300]], ALL), Request([], ALL),
                             Request(files[:1], ALL, '{"threshold": "x"}')])
    assert all(answer.error is None for answer in (*answers[:2], answers[4]))
    found = {tensor.name: tensor.values for tensor in answers[0].tensors}
    assert list(found) == ALL
    assert [found[name].dtype for name in ALL] == [np.float32, np.float32, np.int64, object, np.int64]
    assert found["bbox_num"].tolist() == [len(rows) for rows in wanted]
    together = np.concatenate([found["labels"][:, None], found["scores"][:, None], found["boxes"]], axis=1)
    for rows, one in zip(wanted, np.split(together, np.cumsum(found["bbox_num"])[:-1])):
        match(one, rows, pixels=1e-3, score=1e-6)
    assert found["names"][0].decode() == runner.class_names[int(found["labels"][0])]
    scores, count = (tensor.values for tensor in answers[1].tensors)
    assert count.tolist() == [len(scores)] == [(wanted[0][:, 1] >= 0.5).sum()]
    assert answers[2].error.message == "image 1: not an image that can be decoded"
    assert answers[3].error.message.startswith("image 0: not an image")
    assert [tensor.values.shape for tensor in answers[4].tensors] == [(0, 4), (0,), (0,), (0,), (0,)]
    assert "x" in answers[5].error.message


def test_the_service_and_triton_have_one_description(exported, tmp_path, monkeypatch):
    for name in ("starlette", "h11", "multipart", "prometheus_client"):
        pytest.importorskip(name)
    module = load_model(triton.write(tmp_path, exported[0] / "model.onnx", "gfl"), monkeypatch)
    monkeypatch.syspath_prepend(str(ROOT / "deploy" / "python"))
    monkeypatch.syspath_prepend(str(ROOT / "deploy" / "serving"))
    protocol = importlib.import_module("protocol_v2")
    names = {"TYPE_FP32": "FP32", "TYPE_INT64": "INT64", "TYPE_STRING": "BYTES"}
    for ours, theirs in ((triton.OUTPUTS, protocol.OUTPUTS), (triton.SIGMA, protocol.SIGMA)):
        assert {name: (names[kind], json.loads(f"[{dims}]")) for name, kind, dims in ours} == theirs
    rows = np.random.default_rng(0).uniform(0, 1, (3, 14))
    classes = ["a", "\ud800"]
    by_triton = module.tensors([rows, rows[:1]], SimpleNamespace(sigma=True, class_names=classes))
    by_us = protocol.tensors([rows, rows[:1]], classes)
    assert list(by_triton) == list(by_us)
    assert all(np.array_equal(by_triton[name], by_us[name]) for name in by_us if name != "names")
    assert by_triton["names"].tolist() == [name.encode("utf-8", "surrogatepass") for name in by_us["names"]]


def test_the_command_exports_first(exported, r18vd_weights, tmp_path, run_here, monkeypatch):
    """What is copied is the model.onnx of this very export, with its NMS."""
    def export(cfg, *, output_dir, onnx, with_nms, **rest):
        output_dir.mkdir(parents=True)
        (output_dir / "model.onnx").write_bytes((exported[0] / "model.onnx").read_bytes())
        assert with_nms

    monkeypatch.setattr("ppgfl.inference.export.export", export)
    done = run_here("export_model", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", "--triton", "models",
                    "--output_dir", "exports", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    copied = tmp_path / "models" / "gfl_r18vd_1x_coco" / "1" / "model.onnx"
    assert copied.read_bytes() == (exported[0] / "model.onnx").read_bytes()


@pytest.mark.drill
def test_the_command_writes_a_repository(r18vd_weights, tmp_path, run_here):
    def command(*more):
        return run_here("export_model", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", SMALL,
                        "--no_verify", "--format", "pdmodel", *more, cwd=tmp_path)

    done = command("--triton", "models")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "gfl_r18vd_1x_coco"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["gfl_r18vd_1x_coco"]
    assert 'name: "gfl_r18vd_1x_coco"' in (folder / "config.pbtxt").read_text()
    runner = load_runner().open_runner(folder / "1" / "model.onnx")
    assert runner.has_nms
    (folder / "1" / "model.py").write_text("old")
    triton.write(tmp_path / "models", folder / "1" / "model.onnx", "gfl_r18vd_1x_coco")  # in its own place
    assert "class TritonPythonModel" in (folder / "1" / "model.py").read_text()


def test_what_is_not_ours_is_left_alone(tmp_path, run_here, r18vd_weights):
    (tmp_path / "file").write_text("")
    (tmp_path / "models" / "gfl_r18vd_1x_coco").mkdir(parents=True)
    (tmp_path / "models" / "gfl_r18vd_1x_coco" / "config.pbtxt").write_text('name: "mine"')
    for folder, words in (("file", "it is a file"), ("models", "was not written by this command")):
        done = run_here("export_model", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", "--triton", folder,
                        cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert not (tmp_path / "output_inference").exists()
    with pytest.raises(ConfigError, match="rename the config"):
        triton.check(tmp_path, "mein Modell")
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(ExportError):
        triton.write(tmp_path / "new", tmp_path / "no.onnx", "gfl")
    assert not (tmp_path / "new" / "gfl").exists()
