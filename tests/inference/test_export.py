"""The exported folder: its layout, its formats, and the proof that it predicts what the model predicts."""
import hashlib
import json
import sys

import make_weights
import numpy as np
import paddle
import pytest
import yaml
from helpers import COCO_MINI, ROOT, ZOO, run_tool, tiny_config

from ppgfl import CheckpointError, ConfigError, ExportError, build_model, export, load_config, load_weights
from ppgfl import export as export_function
from ppgfl.inference.export import describe
from ppgfl.inference.runner import load_runner

SMALL = "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"
PADDLE3 = hasattr(paddle.pir_utils, "DygraphOldIrGuard")
MODELS = {"model.json", "model.pdmodel"} if PADDLE3 else {"model.pdmodel"}


def test_the_public_name_is_the_function():
    assert export is export_function
    assert callable(export)


def test_the_folder_is_laid_out_as_paddledetections(exported):
    folder, result = exported
    names = {p.name for p in folder.iterdir()} - {"model.pdiparams.info"}
    assert names == {*MODELS, "model.pdiparams", "model.onnx", "infer_cfg.yml"}
    assert set(result) == {*MODELS, "model.onnx"}
    for differences in result.values():
        assert differences["largest_box_difference"] <= 1e-3
        assert differences["largest_score_difference"] <= 1e-4
    settings = yaml.safe_load((folder / "infer_cfg.yml").read_text(encoding="utf-8"))
    assert list(settings) == ["mode", "draw_threshold", "metric", "use_dynamic_shape", "arch", "min_subgraph_size",
                              "Preprocess", "label_list", "params_sha256"]
    assert settings["params_sha256"] == hashlib.sha256((folder / "model.pdiparams").read_bytes()).hexdigest()
    assert settings["arch"] == "GFL"
    assert [op["type"] for op in settings["Preprocess"]] == ["Resize", "NormalizeImage", "Permute", "PadStride"]
    assert settings["Preprocess"][-1]["stride"] == 32
    assert len(settings["label_list"]) == 80
    for name in MODELS:
        assert load_runner().Runner(folder / name).inputs == ["image", "scale_factor"]


def test_infer_cfg_is_paddledetections():
    """Its C++, Lite and Serving programs read these keys; tests/golden/infer_cfg.yml is what paddledet 2.6.0 wrote."""
    wanted = yaml.safe_load((ROOT / "tests" / "golden" / "infer_cfg.yml").read_text(encoding="utf-8"))
    assert describe(load_config("gfl_r18vd_1x_coco"), [None, 3, None, None]) == wanted


RESIZE = "TestReader.sample_transforms.1.Resize"


@pytest.mark.parametrize(("overrides", "step"), [
    ([f"{RESIZE}.target_size=320"], {"target_size": [320, 320], "keep_ratio": True, "interp": 1}),
    ([f"{RESIZE}.interp=2", f"{RESIZE}.keep_ratio=false"], {"target_size": [64, 96], "keep_ratio": False, "interp": 2}),
    (["TestReader.sample_transforms.1={Resize: {target_size: 64, keep_ratio: true}}"],
     {"target_size": [64, 64], "keep_ratio": True, "interp": 1}),
    (["Resize={interp: 2}", "TestReader.sample_transforms.1={Resize: {target_size: 64, keep_ratio: true}}"],
     {"target_size": [64, 64], "keep_ratio": True, "interp": 2}),
    (["TestReader.sample_transforms.2=NormalizeImage: {}"],
     {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}),
    (["NormalizeImage={mean: [0.1, 0.2, 0.3]}", "TestReader.sample_transforms.2=NormalizeImage: null"],
     {"is_scale": True, "mean": [0.1, 0.2, 0.3], "std": [0.229, 0.224, 0.225]}),
    (["TestReader.sample_transforms.2.NormalizeImage.norm_type=none"],
     {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "norm_type": "none"}),
    (["TestReader.batch_transforms=[PadBatch: {}]"], {"stride": 1}),
])
def test_every_value_of_the_preparation_is_written_out(overrides, step):
    """PaddleDetection's C++ and FastDeploy ask for each of these, a size as a list of two whole numbers."""
    steps = describe(tiny_config("gfl_r18vd_1x_coco", *overrides), [None, 3, None, None])["Preprocess"]
    assert [each["type"] for each in steps] == ["Resize", "NormalizeImage", "Permute", "PadStride"]
    found = next(each for each in steps if set(each) - {"type"} == set(step))
    assert json.dumps({**found, "type": ""}, sort_keys=True) == json.dumps({**step, "type": ""}, sort_keys=True)


def test_a_step_that_no_runner_knows_is_refused(r18vd_weights, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", "TestReader.sample_transforms.1=RandomFlip: {}")
    with pytest.raises(ConfigError, match="TestReader: RandomFlip cannot be exported"):
        export(cfg, weights=r18vd_weights, output_dir=tmp_path / "new", verify=())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("overrides", "changed"), [
    ([], {"interp": 0}),
    (["TestReader.batch_transforms=null", f"{RESIZE}.target_size=[70, 100]"], {}),
], ids=["interp", "no padding"])
def test_the_proof_prepares_images_as_the_folder_says(r18vd_weights, tmp_path, monkeypatch, overrides, changed):
    real = describe

    def describe_wrongly(*args):
        settings = real(*args)
        settings["Preprocess"][0].update(changed)
        return settings

    monkeypatch.setattr(sys.modules["ppgfl.inference.export"], "describe", describe_wrongly)
    with pytest.raises(ExportError, match="the runner makes image of shape .* where TestReader makes"):
        export(tiny_config("gfl_r18vd_1x_coco", *overrides), weights=r18vd_weights, output_dir=tmp_path / "new",
               format="pdmodel")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("options", "outputs"), [
    (["export.nms=false"], 2), (["export.post_process=false"], 10), (["export.benchmark=true"], 10),
])
@pytest.mark.drill
def test_other_endings_of_the_graph(r18vd_weights, tmp_path, options, outputs):
    result = export(tiny_config("gfl_r18vd_1x_coco", *options), weights=r18vd_weights, output_dir=tmp_path)
    assert all(one["largest_score_difference"] <= 1e-4 for one in result.values())
    runner = load_runner().Runner(tmp_path)
    assert len(runner.predictor.get_output_names()) == outputs
    assert runner.inputs == (["image"] if outputs == 10 else ["image", "scale_factor"])


@pytest.mark.drill
def test_folding_batch_norm_changes_nothing(r18vd_weights, tmp_path):
    from ppgfl.inference.export import fuse_conv_bn

    model = build_model(tiny_config())
    load_weights(model, r18vd_weights)
    model.eval()
    image = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype("float32"))
    before = [m.numpy() for m in model.backbone(image)]
    fuse_conv_bn(model)
    assert not [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    for a, b in zip(before, model.backbone(image)):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-5 * np.abs(a).max())
    result = export(tiny_config("gfl_r18vd_1x_coco", "export.fuse_conv_bn=true"), weights=r18vd_weights,
                    output_dir=tmp_path)
    assert all(one["largest_box_difference"] <= 1e-3 for one in result.values())


@pytest.mark.drill
def test_a_fixed_input_shape(r18vd_weights, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", "TestReader.inputs_def.image_shape=[3, 64, 96]",
                      "TestReader.sample_transforms.1.Resize.keep_ratio=false")
    result = export(cfg, weights=r18vd_weights, output_dir=tmp_path, onnx=True)
    assert set(result) == {*MODELS, "model.onnx"}
    assert yaml.safe_load((tmp_path / "infer_cfg.yml").read_text())["use_dynamic_shape"] is False


@pytest.mark.parametrize("shape", ["[3, 64]", "[1, 64, 64]", "[3, 60, 64]", "[3, a, 64]"])
def test_input_shapes_that_make_no_sense(r18vd_weights, tmp_path, shape):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"TestReader.inputs_def.image_shape={shape}")
    with pytest.raises(ConfigError, match="TestReader.inputs_def.image_shape"):
        export(cfg, weights=r18vd_weights, output_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wanted", ["json", "pdmodel", "both"])
def test_formats(r18vd_weights, tmp_path, wanted):
    if not PADDLE3 and wanted != "pdmodel":
        with pytest.raises(ConfigError, match=rf"--format {wanted}: Paddle 2.* writes pdmodel only"):
            export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path / "new", format=wanted)
        assert not (tmp_path / "new").exists()
        return
    export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, format=wanted, verify=())
    assert {p.name for p in tmp_path.glob("model.*")} - {"model.pdiparams", "model.pdiparams.info"} == (
        {"model.json", "model.pdmodel"} if wanted == "both" else {f"model.{wanted}"})


def test_a_format_that_does_not_exist():
    with pytest.raises(ConfigError, match="--format: 'onnx'; allowed: json, pdmodel, both"):
        export(tiny_config(), format="onnx")


@pytest.mark.drill
def test_an_export_that_predicts_something_else_is_refused(r18vd_weights, tmp_path, monkeypatch):
    module = sys.modules["ppgfl.inference.verify"]
    real = module.make_runner

    def shifted(folder, **settings):
        runner = real(folder, **settings)
        run = runner.run
        runner.run = lambda arrays: [output + np.asarray(1.0, output.dtype) for output in run(arrays)]
        return runner

    monkeypatch.setattr(module, "make_runner", shifted)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.json").write_text("the export before")
    with pytest.raises(ExportError, match="nothing was written"):
        export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path / "old")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model.json", "old"]
    assert (tmp_path / "old" / "model.json").read_text() == "the export before"


@pytest.mark.drill
def test_an_export_replaces_an_earlier_one_and_nothing_else(r18vd_weights, tmp_path):
    for name in ("model.json", "model.pdmodel", "model.onnx", "model.pdparams"):
        (tmp_path / name).write_text("old")
    export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, verify=())
    assert (tmp_path / "model.pdparams").read_text() == "old"
    for name in MODELS:
        load_runner().Runner(tmp_path / name)
    export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, verify=(), format="pdmodel")
    assert not (tmp_path / "model.json").exists()


@pytest.mark.drill
@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_exports(name, tmp_path):
    import make_weights

    model = build_model(load_config(name))
    model.set_state_dict(make_weights.make(name))
    paddle.save(model.state_dict(), str(tmp_path / "w.pdparams"))
    images = sorted((COCO_MINI / "val2017").glob("*.jpg"))[:3] if COCO_MINI.is_dir() else None
    cfg = load_config(name, ["TestReader.sample_transforms.1.Resize.target_size=[256, 416]", "use_gpu=false"])
    result = export(cfg, weights=tmp_path / "w", output_dir=tmp_path / "out", onnx=True, verify=images)
    assert set(result) == {*MODELS, "model.onnx"}
    for differences in result.values():
        assert differences["largest_box_difference"] <= 3e-3  # images of 640 pixels
        assert differences["largest_score_difference"] <= 1e-4


def test_the_command_exports_and_checks(r18vd_weights, picture, tmp_path):
    done = run_tool("export_model", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", SMALL,
                    "--verify_images", picture, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checked model.pdmodel on CPU" in done.stdout
    assert (tmp_path / "output_inference" / "gfl_r18vd_1x_coco" / "infer_cfg.yml").is_file()


@pytest.fixture
def gpu(monkeypatch):
    """A device that is a GPU until someone chooses another: its convolutions round what goes into them to TF32, as
    those of Ampere and newer do by default. -> the devices that were chosen, the first is the one before."""
    chosen = ["gpu:0"]
    plain = paddle.nn.Conv2D.forward

    def tf32(x):
        bits = np.array(x.numpy()).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000
        return paddle.to_tensor(rounded.astype(np.uint32).view(np.float32))

    def forward(self, x):
        if chosen[-1] == "cpu" or not paddle.in_dynamic_mode():
            return plain(self, x)
        return paddle.nn.functional.conv2d(tf32(x), tf32(self.weight), self.bias, stride=self._stride,
                                           padding=self._updated_padding, dilation=self._dilation, groups=self._groups)

    monkeypatch.setattr(paddle.nn.Conv2D, "forward", forward)
    monkeypatch.setattr(paddle.device, "get_device", lambda: chosen[-1])
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    return chosen


def test_an_export_is_made_on_the_cpu_whatever_the_device_is(r18vd_weights, tmp_path, gpu):
    differences = export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path / "gfl", format="pdmodel")
    assert differences["model.pdmodel"]["largest_box_difference"] < 1e-3
    assert gpu == ["gpu:0", "cpu", "gpu:0"]


def test_the_device_comes_back_after_an_export_that_fails(tmp_path, gpu):
    with pytest.raises(CheckpointError):
        export(tiny_config(), weights=tmp_path / "missing.pdparams", output_dir=tmp_path / "gfl")
    assert gpu[0] == gpu[-1] == "gpu:0"


def test_the_command_chooses_no_device(r18vd_weights, tmp_path, monkeypatch, run_here):
    monkeypatch.setattr("ppgfl.system.framework.select_device", lambda use_gpu: pytest.fail("a device was chosen"))
    done = run_here("export_model", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", SMALL, "--no_verify",
                    "--format", "pdmodel", "--output_dir", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.drill
@pytest.mark.parametrize("overrides", [
    ["GFL.backbone=Res2Net", "Res2Net={width: 4, variant: d, return_idx: [1, 2, 3], dcn_v2_stages: [2, 3]}",
     "GFLHead.clip_boxes=true"],
    ["ResNet={depth: 50, groups: 8, base_width: 4, std_senet: true, dcn_v2_stages: [1, 2, 3]}",
     "export.fuse_conv_bn=true"]], ids=["Res2Net", "ResNeXt"])
def test_larger_backbones_with_deformable_convolutions(overrides, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", *overrides)
    state = {name: make_weights.draw(name, value.shape, 0) for name, value in build_model(cfg).state_dict().items()}
    paddle.save(state, str(tmp_path / "w.pdparams"))
    differences = export(cfg, weights=tmp_path / "w.pdparams", output_dir=tmp_path / "out")
    assert set(differences) == MODELS
