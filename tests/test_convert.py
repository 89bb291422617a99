"""`ppgfl convert` from end to end: what it writes loads and detects, and what it refuses leaves no file."""
import json
import os
import pickle

import numpy as np
import pytest
import torch_files as made
from helpers import image, run_ppgfl

from ppgfl import CheckpointError, build, load_config, load_weights
from ppgfl.convert import convert
from ppgfl.weights import checkpoint

WIDTHS = (64, 128, 256, 512)
META = {"CLASSES": ("cat", "dog", "owl"), "config": "model = dict(test_cfg=dict(score_thr=0.2))\n"}


@pytest.fixture(scope="module")
def r18():
    return made.gfl(made.resnet((2, 2, 2, 2), WIDTHS, bottleneck=False), WIDTHS[1:])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_detector_and_its_config(tmp_path, r18, legacy):
    made.save(tmp_path / "a.pth", r18, legacy=legacy, meta=META, optimizer={"state": {}})
    convert(str(tmp_path / "a.pth"), str(tmp_path / "out" / "b.pdparams"))
    assert sorted(os.listdir(tmp_path / "out")) == ["b.pdparams", "b.yml"]
    cfg = load_config(tmp_path / "out" / "b.yml")
    assert "&id" not in (tmp_path / "out" / "b.yml").read_text()
    assert cfg["weights"] == str(tmp_path / "out" / "b.pdparams")
    assert cfg["GFLHead"]["nms"]["score_threshold"] == 0.2
    model = build.build_model(cfg)
    report = load_weights(model, cfg["weights"])
    assert report.complete
    assert report.class_names == ["cat", "dog", "owl"]
    conv = model.backbone.state_dict()["res3.res3a.branch2b.conv.weight"].numpy()
    np.testing.assert_array_equal(conv, r18["backbone.layer2.0.conv2.weight"])
    assert model.decoder.clip_boxes
    assert not model.neck.relu_before_extra_convs


def test_a_backbone_starts_a_training(tmp_path):
    state = made.resnet((2, 2, 2, 2), WIDTHS, bottleneck=False, prefix="")
    made.save(tmp_path / "resnet18.pth", {**state, "fc.weight": np.zeros((10, 512), np.float32)})
    convert(str(tmp_path / "resnet18.pth"), str(tmp_path / "resnet18.pdparams"))
    assert not (tmp_path / "resnet18.yml").exists()
    model = build.build_model(load_config("gfl_r18vd_1x_coco", ["ResNet.variant=b"]))
    report = checkpoint.load_pretrained(model, tmp_path / "resnet18.pdparams")
    assert report.complete


def test_safetensors_and_back(tmp_path):
    pytest.importorskip("safetensors")
    state = {"head.x.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "head.x.bias": np.float16([1, 2]),
             "one": np.array(3.0),
             "class_names@@": np.frombuffer(b'["a", "b"]', np.uint8)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(state, protocol=2))
    convert(str(tmp_path / "a.pdparams"), str(tmp_path / "b.safetensors"))
    with pytest.raises(CheckpointError, match="like a file of safetensors.*ppgfl convert"):
        checkpoint.read(tmp_path / "b.safetensors")
    convert(str(tmp_path / "b.safetensors"), str(tmp_path / "c.pdparams"))
    found, names = checkpoint.read_named(tmp_path / "c.pdparams")
    assert names == ["a", "b"]
    for name, value in found.items():
        np.testing.assert_array_equal(value, state[name])
        assert value.dtype == state[name].dtype
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut.safetensors: damaged"):
        convert(str(tmp_path / "cut.safetensors"), str(tmp_path / "d.pdparams"))


def test_bfloat16_of_paddle_becomes_float32_for_others(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy")
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"x": np.array([0x3fc0], np.uint16)}, protocol=2))
    convert(str(tmp_path / "a.pdparams"), str(tmp_path / "b.safetensors"))
    assert numpy_format.load_file(tmp_path / "b.safetensors")["x"].tolist() == [1.5]


@pytest.mark.parametrize(("dtype", "says"), [("BF16", None), ("F8_E4M3", "entry 'x' is of F8_E4M3; read are F64, F32")])
def test_safetensors_of_types_that_numpy_has_not(tmp_path, dtype, says):
    pytest.importorskip("safetensors")
    data = b"\xc0\x3f\x00\x40" if dtype == "BF16" else b"\x00\x00"
    header = json.dumps({"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    if says:
        with pytest.raises(CheckpointError, match=says):
            convert(str(tmp_path / "a.safetensors"), str(tmp_path / "b.pdparams"))
    else:
        convert(str(tmp_path / "a.safetensors"), str(tmp_path / "b.pdparams"))
        assert checkpoint.read(tmp_path / "b.pdparams")["x"].tolist() == [1.5, 2.0]


def test_what_it_refuses_leaves_everything_as_it_was(tmp_path, r18):
    made.save(tmp_path / "a.pth", r18)
    made.save(tmp_path / "broken.pth", {name: r18[name] for name in r18 if "layer3.1.bn2.weight" not in name})
    made.save(tmp_path / "nan.pth", {**r18, "bbox_head.gfl_reg.bias": np.full(68, np.nan, np.float32)})
    (tmp_path / "there.pdparams").write_text("precious")
    (tmp_path / "beside.yml").write_text("precious")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for source, output, says in (
            ("a.pth", "there.pdparams", "there.pdparams: is there already"),
            ("a.pth", "beside.pdparams", "beside.yml: is there already"),
            ("a.pth", "b.onnx", "allowed: .pdparams, .safetensors"), ("a.pth", "b.safetensors", "needs a .pdparams"),
            ("broken.pth", "b.pdparams", "1 missing, 0 unused, 0 of another shape"),
            ("nan.pth", "b.pdparams", "68 of 68 values are NaN"), ("gone.pth", "b.pdparams", "no such weights file")):
        with pytest.raises(CheckpointError, match=says):
            convert(str(tmp_path / source), str(tmp_path / output))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_eval_with_a_torch_file_names_the_command(tmp_path):
    made.save(tmp_path / "a.pth", {"x": np.zeros(3, np.float32)})
    image(tmp_path / "a.jpg")
    done = run_ppgfl("infer", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={tmp_path}/a.pth", "use_gpu=false",
                     "--infer_img", str(tmp_path / "a.jpg"), cwd=tmp_path)
    assert done.returncode == 2
    assert f"`ppgfl convert {tmp_path}/a.pth NAME.pdparams`" in done.stderr
