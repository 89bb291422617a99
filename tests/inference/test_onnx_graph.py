"""model.onnx: what is in it, and that ONNX Runtime finds what the model finds."""
import json
import sys

import numpy as np
import paddle
import pytest
from helpers import match, tiny_config

from ppgfl import ConfigError, ExportError, build_model, export, load_config
from ppgfl.inference.export import describe
from ppgfl.inference.graph import Graph

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from ppgfl.inference import onnx_graph  # noqa: E402

ANY = [None, 3, None, None]


def write(path, name, *overrides, with_nms=False):
    """Write a model to path -> (the model, a session of the file)."""
    import make_weights

    cfg = tiny_config(name, *overrides)
    model = build_model(cfg)
    if "ResNet.variant=a" not in overrides:  # which has other layers: those as initialised will do
        model.set_state_dict(make_weights.make(name))
    model.eval()
    onnx_graph.write(path, model, image_shape=ANY, settings=describe(cfg, ANY), with_nms=with_nms)
    return model, onnxruntime.InferenceSession(str(path))


def arrays(n, height, width):
    rng = np.random.default_rng(n)
    return {"image": rng.normal(size=(n, 3, height, width)).astype("float32"),
            "scale_factor": rng.uniform(0.5, 2, size=(n, 2)).astype("float32")}


def outputs(model, batch, **ending):
    with paddle.no_grad():
        return [x.numpy() for x in Graph(model, **ending)(*map(paddle.to_tensor, batch.values()))]


SIZES = [(1, 32, 64), (2, 96, 64), (3, 64, 160), (1, 2048, 32)]


@pytest.mark.parametrize(("name", "overrides"), [
    ("gfl_r18vd_1x_coco", []),
    ("gflv2_r50_fpn_1x_coco", []),
    ("gflv2_r50_fpn_1x_coco", ["upstream_scores=true"]),
    ("gfl_r18vd_1x_coco", ["ResNet.variant=a", "GFLHead.cell_offset=0.5"]),
])
@pytest.mark.drill
def test_boxes_and_scores_at_any_size(tmp_path, name, overrides):
    model, session = write(tmp_path / "m.onnx", name, *overrides)
    for size in SIZES:
        batch = arrays(*size)
        boxes, scores = session.run(None, batch)
        wanted_boxes, wanted_scores = outputs(model, batch, nms=False)
        np.testing.assert_allclose(boxes, wanted_boxes, atol=1e-2)
        np.testing.assert_allclose(scores, wanted_scores, atol=2e-5)


@pytest.mark.parametrize(("name", "overrides"), [
    ("gfl_r18vd_1x_coco", []),
    ("gfl_r18vd_1x_coco", ["MultiClassNMS.nms_top_k=5", "MultiClassNMS.keep_top_k=300"]),
    ("gfl_r18vd_1x_coco", ["MultiClassNMS.nms_top_k=-1", "MultiClassNMS.keep_top_k=-1",
                           "MultiClassNMS.score_threshold=0.3"]),
    ("gflv2_r50_fpn_1x_coco", ["MultiClassNMS.score_threshold=0.6"]),
    ("gfl_r18vd_1x_coco", ["MultiClassNMS.score_threshold=0.9999"]),
])
def test_nms_inside(tmp_path, name, overrides):
    model, session = write(tmp_path / "m.onnx", name, *overrides, with_nms=True)
    for size in SIZES[:3]:
        batch = arrays(*size)
        bbox, bbox_num = session.run(None, batch)
        wanted, wanted_num = outputs(model, batch)
        np.testing.assert_array_equal(bbox_num, wanted_num)
        ends = np.cumsum(bbox_num)
        if wanted_num.sum():
            for start, end in zip(ends - bbox_num, ends):
                assert (np.diff(bbox[start:end, 1]) <= 0).all()
                match(bbox[start:end], wanted[start:end])


def test_what_the_file_says_about_itself(exported):
    proto = onnx.load(exported[0] / "model.onnx")
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert len(about["class_names"]) == 80
    assert about["nms"] == {"score_threshold": 0.025, "nms_top_k": 1000, "keep_top_k": 100, "nms_threshold": 0.6}
    steps = {step["type"]: step for step in about["preprocess"]}
    assert steps["Resize"]["target_size"] == [64, 96]
    assert steps["NormalizeImage"]["mean"] == [0.485, 0.456, 0.406]
    assert steps["PadStride"]["stride"] == 32
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    assert shapes == {"image": ["N", 3, "H", "W"], "scale_factor": ["N", 2]}
    assert not {node.op_type for node in proto.graph.node} & {"BatchNormalization", "If", "Loop"}


def test_a_fixed_size_is_written_down(r18vd_weights, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", "TestReader.inputs_def.image_shape=[1, 3, 64, 96]",
                      "TestReader.sample_transforms.1.Resize.keep_ratio=false")
    export(cfg, weights=r18vd_weights, output_dir=tmp_path, format="pdmodel", onnx=True, verify=())
    image = onnx.load(tmp_path / "model.onnx").graph.input[0]
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 3, 64, 96]


@pytest.mark.drill
def test_folded_batch_norm_is_written_the_same(exported, r18vd_weights, tmp_path):
    export(tiny_config("gfl_r18vd_1x_coco", "export.fuse_conv_bn=true"), weights=r18vd_weights, output_dir=tmp_path,
           format="pdmodel", onnx=True, verify=())
    batch = arrays(1, 64, 64)
    a, b = (onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, batch)
            for folder in (tmp_path, exported[0]))
    np.testing.assert_allclose(a[1], b[1], atol=1e-5)


@pytest.mark.parametrize("overrides", [["ResNet.dcn_v2_stages=[1, 2, 3]"], ["GFLHead.conv_feat.use_dcn=true"]])
def test_deformable_convolutions_are_refused(tmp_path, overrides):
    cfg = load_config("gfl_r18vd_1x_coco", overrides)
    model = build_model(cfg)
    model.eval()
    with pytest.raises(ExportError, match="deformable convolutions are known to Paddle Inference only"):
        onnx_graph.write(tmp_path / "m.onnx", model, image_shape=ANY, settings=describe(cfg, ANY))
    assert not list(tmp_path.iterdir())


def test_an_nms_that_onnx_does_not_have(tmp_path):
    with pytest.raises(ExportError, match="--with_nms: ONNX has no NMS with normalized: False"):
        write(tmp_path / "m.onnx", "gfl_r18vd_1x_coco", "MultiClassNMS.normalized=false", with_nms=True)


def test_without_the_package(monkeypatch, r18vd_weights, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "ppgfl.inference.onnx_graph")
    monkeypatch.delattr(sys.modules["ppgfl.inference"], "onnx_graph")
    with pytest.raises(ConfigError, match="pip install onnx onnxruntime"):
        export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path / "new", onnx=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.drill
def test_without_onnx_runtime_the_file_is_written_and_not_checked(monkeypatch, r18vd_weights, tmp_path, caplog):
    module = sys.modules["ppgfl.inference.verify"]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        result = export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, format="pdmodel", onnx=True)
    assert set(result) == {"model.pdmodel"}
    assert (tmp_path / "model.onnx").is_file()
    assert "model.onnx was not run: pip install onnxruntime" in caplog.text
