"""model.onnx: what is in it, and that ONNX Runtime finds what the model finds."""
import json
import sys

import numpy as np
import paddle
import pytest
from helpers import match, tiny_config
from paddle import nn

from ppgfl import ConfigError, ExportError, build_model, export, load_config
from ppgfl.inference.export import describe
from ppgfl.inference.graph import Graph
from ppgfl.inference.runner import make_runner

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from ppgfl.inference import onnx_graph  # noqa: E402

ANY = [None, 3, None, None]
needs_deform_conv = pytest.mark.skipif(tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 25),
                                       reason="this ONNX Runtime has no DeformConv")


def write(path, name, *overrides, with_nms=False):
    """Write a model to path -> (the model, a session of the file)."""
    import make_weights

    cfg = tiny_config(name, *overrides)
    model = build_model(cfg)
    recorded = make_weights.make(name)  # other layers have weights of their own
    model.set_state_dict({entry: recorded[entry] if tuple(recorded.get(entry, np.zeros(0)).shape) == tuple(value.shape)
                          else make_weights.draw(entry, value.shape, 0) for entry, value in model.state_dict().items()})
    model.eval()
    onnx_graph.write(path, model, image_shape=ANY, settings=describe(cfg, ANY), with_nms=with_nms)
    return model, onnxruntime.InferenceSession(str(path))


def arrays(n, height, width):
    rng = np.random.default_rng(n)
    return {"image": rng.normal(size=(n, 3, height, width)).astype("float32"),
            "scale_factor": rng.uniform(0.5, 2, size=(n, 2)).astype("float32"),
            "im_shape": np.array([[height - 3 * i, width - 5] for i in range(n)], np.float32)}


def outputs(model, batch, **ending):
    with paddle.no_grad():
        graph = Graph(model, **ending)
        return [x.numpy() for x in graph(*[paddle.to_tensor(batch[name]) for name in graph.inputs])]


def run(session, batch):
    return session.run(None, {node.name: batch[node.name] for node in session.get_inputs()})


SIZES = [(1, 32, 64), (2, 96, 64), (3, 64, 160), (1, 2048, 32)]


@pytest.mark.parametrize(("name", "overrides"), [
    ("gfl_r18vd_1x_coco", []),
    ("gflv2_r50_fpn_1x_coco", []),
    ("gflv2_r50_fpn_1x_coco", ["upstream_scores=true"]),
    ("gfl_r18vd_1x_coco", ["ResNet.variant=a", "GFLHead.cell_offset=0.5"]),
    ("gfl_r18vd_1x_coco", ["ResNet={std_senet: true, variant: a}", "GFLHead.cell_offset=[0.1, 0.2, 0.3, 0.4, 0.5]",
                           "GFLHead.clip_boxes=true"]),
    ("gfl_r18vd_1x_coco", ["GFLHead.reg_max=0", "GFLHead.quality_branch=iou", "GFLHead.loss_class=FocalLoss"]),
    ("gfl_r50_fpn_1x_coco", ["GFL.backbone=Res2Net", "Res2Net={return_idx: [1, 2, 3], scales: 3, groups: 2}"]),
    ("gfl_r50_fpn_1x_coco", ["GFL.backbone=Res2Net", "Res2Net={return_idx: [1, 2, 3], variant: d, "
                             "pooled_shortcut: true, separate_res2_splits: true, pool_counts_padding: true}"]),
])
@pytest.mark.drill
def test_boxes_and_scores_at_any_size(tmp_path, name, overrides):
    model, session = write(tmp_path / "m.onnx", name, *overrides)
    for size in SIZES:
        batch = arrays(*size)
        boxes, scores = run(session, batch)
        wanted_boxes, wanted_scores = outputs(model, batch, nms=False)
        # An exponential of random numbers is thousands of pixels.
        rtol = 3e-6 if "GFLHead.reg_max=0" in overrides else 1e-7
        np.testing.assert_allclose(boxes, wanted_boxes, rtol=rtol, atol=1e-2)
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
        bbox, bbox_num = run(session, batch)
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


def test_filters_that_levels_share_are_written_once(exported, r18vd_weights):
    written = (exported[0] / "model.onnx").stat().st_size
    assert 0.9 < written / r18vd_weights.stat().st_size < 1.1


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
    a, b = (run(onnxruntime.InferenceSession(str(folder / "model.onnx")), batch)
            for folder in (tmp_path, exported[0]))
    np.testing.assert_allclose(a[1], b[1], atol=1e-5)


@needs_deform_conv
@pytest.mark.parametrize(("name", "overrides", "count"), [
    ("gfl_r18vd_1x_coco", ["ResNet.dcn_v2_stages=[3]"], 2),
    ("gflv2_r50_fpn_1x_coco", ["GFL.backbone=Res2Net", "Res2Net={return_idx: [1, 2, 3], variant: d, width: 8, "
                               "scales: 3, groups: 2, dcn_v2_stages: [3]}", "GFLHead.clip_boxes=true"], 6),
    pytest.param("gfl_r50_fpn_1x_coco", ["ResNet={depth: 50, groups: 8, base_width: 4, std_senet: true, "
                                         "dcn_v2_stages: [1, 2, 3]}"], 13, marks=pytest.mark.drill),
    *(pytest.param("gfl_r18vd_1x_coco", ["GFLHead.conv_feat={num_convs: 1, use_dcn: true, "
                                         f"norm_type: {norm}}}"], 10, marks=pytest.mark.drill)
      for norm in ("gn", "bn")),
])
def test_deformable_convolutions(tmp_path, name, overrides, count):
    """With offsets of a pixel and more, in a graph of opset 19."""
    model, session = write(tmp_path / "m.onnx", name, *overrides)
    proto = onnx.load(tmp_path / "m.onnx")
    assert (proto.opset_import[0].version, proto.ir_version) == (19, 9)
    assert sum(node.op_type == "DeformConv" for node in proto.graph.node) == count
    for size in SIZES[1:3]:
        batch = arrays(*size)
        boxes, scores = run(session, batch)
        wanted_boxes, wanted_scores = outputs(model, batch, nms=False)
        np.testing.assert_allclose(boxes, wanted_boxes, rtol=1e-5, atol=2e-3)
        np.testing.assert_allclose(scores, wanted_scores, atol=1e-4)


def deformable(tmp_path):
    """(config, weights file) of a model with two deformable convolutions."""
    import make_weights

    cfg = tiny_config("gfl_r18vd_1x_coco", "ResNet.dcn_v2_stages=[3]", "export.fuse_conv_bn=true")
    state = {name: make_weights.draw(name, value.shape, 0) for name, value in build_model(cfg).state_dict().items()}
    paddle.save(state, str(tmp_path / "w.pdparams"))
    return cfg, tmp_path / "w.pdparams"


@needs_deform_conv
@pytest.mark.drill
def test_an_export_with_deformable_convolutions_is_checked_and_quantised(tmp_path, small_coco):
    cfg, weights = deformable(tmp_path)
    differences = export(cfg, weights=weights, output_dir=tmp_path / "out", format="pdmodel", with_nms=True,
                         int8=str(small_coco / "val2017"))
    assert set(differences) == {"model.pdmodel", "model.onnx"}
    graph = onnx.load(tmp_path / "out" / "model_int8.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    quantised = [[makers.get(name) for name in node.input[:2]] for node in graph.node if node.op_type == "Conv"]
    assert quantised == [["DequantizeLinear"] * 2] * len(quantised)
    assert len(quantised) > 30
    found, = make_runner(tmp_path / "out" / "model_int8.onnx")([np.zeros((64, 96, 3), np.uint8)])
    assert len(found) > 10


@pytest.mark.drill
def test_a_runtime_without_deformable_convolutions_leaves_the_file_unchecked(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    cfg, weights = deformable(tmp_path)
    with caplog.at_level("INFO"):
        result = export(cfg, weights=weights, output_dir=tmp_path / "out", format="pdmodel", onnx=True)
    assert set(result) == {"model.pdmodel"}
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert "model.onnx was not run: pip install -U 'onnxruntime>=1.25'" in caplog.text


def test_models_without_them_keep_the_opset_that_every_runtime_reads(exported):
    proto = onnx.load(exported[0] / "model.onnx")
    assert (proto.opset_import[0].version, proto.ir_version) == (13, 8)


@pytest.mark.parametrize("layer", [nn.Conv2DTranspose(8, 8, 3), nn.PReLU()])
def test_a_layer_that_is_not_written_is_refused(tmp_path, layer):
    cfg = load_config("gfl_r18vd_1x_coco")
    model = build_model(cfg)
    model.eval()
    model.backbone.conv1[1].conv = layer
    with pytest.raises(ExportError, match=f"the model has a {type(layer).__name__} that is not written as ONNX"):
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
