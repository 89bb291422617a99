"""The exported folder: its layout, its runner, and that both predict what the model predicts."""
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest
import yaml
from conftest import COCO_MINI, ROOT, ZOO, run_tool, tiny_config

from ppgfl import ConfigError, Detector, ExportError, build_model, export, load_config, load_weights
from ppgfl import export as export_function
from ppgfl.data import transforms
from ppgfl.data.batch import PadBatch
from ppgfl.predictor import load_runner

RUNNER = ROOT / "deploy" / "python" / "infer.py"
MODEL_SUFFIX = {True: ".json", False: ".pdmodel"}
SMALL = "TestReader.sample_transforms.1.Resize.target_size=[64, 96]"


@pytest.fixture(scope="module")
def exported(r18vd_weights, tmp_path_factory):
    """(folder, result of the check) of the R18vd model."""
    folder = tmp_path_factory.mktemp("export") / "gfl"
    return folder, export(tiny_config(), weights=r18vd_weights, output_dir=folder)


@pytest.fixture
def picture(small_coco):
    return sorted((small_coco / "val2017").iterdir())[1]


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def test_the_public_name_is_the_function():
    assert export is export_function
    assert callable(export)


def test_the_folder_is_laid_out_as_paddledetections(exported):
    folder, result = exported
    names = {p.name for p in folder.iterdir()} - {"model.pdiparams.info"}
    assert names in ({"model.json", "model.pdiparams", "infer_cfg.yml"},
                     {"model.pdmodel", "model.pdiparams", "infer_cfg.yml"})
    assert result["largest_box_difference"] <= 1e-3
    assert result["largest_score_difference"] <= 1e-4
    settings = yaml.safe_load((folder / "infer_cfg.yml").read_text(encoding="utf-8"))
    assert list(settings) == ["mode", "draw_threshold", "metric", "use_dynamic_shape", "arch", "min_subgraph_size",
                              "Preprocess", "label_list"]
    assert settings["arch"] == "GFL"
    assert [op["type"] for op in settings["Preprocess"]] == ["Resize", "NormalizeImage", "Permute", "PadStride"]
    assert settings["Preprocess"][-1]["stride"] == 32
    assert len(settings["label_list"]) == 80
    runner = load_runner().Runner(folder, engine="native")
    assert runner.inputs == ["image", "scale_factor"]


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
    found = Detector(exported[0], runner={"engine": "native"})(picture)
    np.testing.assert_allclose(found.scores, model.scores, atol=1e-4)
    np.testing.assert_allclose(np.sort(found.boxes, axis=0), np.sort(model.boxes, axis=0), atol=1e-2)
    assert found.path == str(picture)
    assert found.draw(0.5).shape == read(picture).shape


def test_a_batch_of_images_of_different_sizes(exported, small_coco):
    runner = load_runner().Runner(exported[0], engine="native")
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
    bbox, bbox_num = load_runner().Runner(exported[0], engine="native").run({"image": image, "scale_factor": scale})
    np.testing.assert_array_equal(bbox_num, wanted["bbox_num"].numpy())
    np.testing.assert_allclose(np.sort(bbox[:, 1]), np.sort(wanted["bbox"].numpy()[:, 1]), atol=1e-4)


@pytest.mark.parametrize(("options", "outputs"), [
    (["export.nms=false"], 2), (["export.post_process=false"], 10), (["export.benchmark=true"], 10),
])
def test_other_endings_of_the_graph(r18vd_weights, tmp_path, options, outputs):
    result = export(tiny_config("gfl_r18vd_1x_coco", *options), weights=r18vd_weights, output_dir=tmp_path)
    assert result["largest_score_difference"] <= 1e-4
    runner = load_runner().Runner(tmp_path, engine="native")
    assert len(runner.predictor.get_output_names()) == outputs
    assert runner.inputs == (["image"] if outputs == 10 else ["image", "scale_factor"])


def test_folding_batch_norm_changes_nothing(r18vd_weights, tmp_path):
    from ppgfl.export import fuse_conv_bn

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
    assert result["largest_box_difference"] <= 1e-3


def test_a_fixed_input_shape(r18vd_weights, tmp_path):
    cfg = tiny_config("gfl_r18vd_1x_coco", "TestReader.inputs_def.image_shape=[3, 64, 96]",
                      "TestReader.sample_transforms.1.Resize.keep_ratio=false")
    export(cfg, weights=r18vd_weights, output_dir=tmp_path)
    assert yaml.safe_load((tmp_path / "infer_cfg.yml").read_text())["use_dynamic_shape"] is False


@pytest.mark.parametrize("shape", ["[3, 64]", "[1, 64, 64]", "[3, 60, 64]", "[3, a, 64]"])
def test_input_shapes_that_make_no_sense(r18vd_weights, tmp_path, shape):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"TestReader.inputs_def.image_shape={shape}")
    with pytest.raises(ConfigError, match="TestReader.inputs_def.image_shape"):
        export(cfg, weights=r18vd_weights, output_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_format_that_this_paddle_cannot_write_is_said(r18vd_weights, tmp_path, exported):
    other = "pdmodel" if (exported[0] / "model.json").exists() else "json"
    for wanted in (other, "both"):
        with pytest.raises(ConfigError, match=rf"--format {wanted}: Paddle .* writes .* only"):
            export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path / "new", format=wanted)


def test_an_export_that_predicts_something_else_is_refused(r18vd_weights, tmp_path, monkeypatch):
    module = sys.modules["ppgfl.export"]
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


def test_an_export_replaces_an_earlier_one_and_nothing_else(r18vd_weights, tmp_path):
    for name in ("model.json", "model.pdmodel", "model.pdparams"):
        (tmp_path / name).write_text("old")
    export(tiny_config(), weights=r18vd_weights, output_dir=tmp_path, verify=())
    assert (tmp_path / "model.pdparams").read_text() == "old"
    assert len(list(tmp_path.glob("model.json")) + list(tmp_path.glob("model.pdmodel"))) == 1
    load_runner().Runner(tmp_path, engine="native")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_exports(name, tmp_path):
    import make_weights

    model = build_model(load_config(name))
    model.set_state_dict(make_weights.make(name))
    paddle.save(model.state_dict(), str(tmp_path / "w.pdparams"))
    images = sorted((COCO_MINI / "val2017").glob("*.jpg"))[:3] if COCO_MINI.is_dir() else None
    cfg = load_config(name, ["TestReader.sample_transforms.1.Resize.target_size=[256, 416]", "use_gpu=false"])
    result = export(cfg, weights=tmp_path / "w", output_dir=tmp_path / "out", verify=images)
    assert result["largest_box_difference"] <= 3e-3  # images of 640 pixels
    assert result["largest_score_difference"] <= 1e-4


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
               "--output_dir", "out", "--save_results", "--threshold", 0.1, "--engine", "native", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "native kernels" in done.stdout
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 5
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert len(results) == 5
    assert all(d["score"] >= 0.1 for one in results for d in one["detections"])


def test_the_benchmark_prints_every_stage(exported, picture, tmp_path):
    done = run("--model_dir", exported[0], "--image_file", picture, "--run_benchmark", "--benchmark_seconds", 0.2,
               "--engine", "native", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("preprocess", "inference", "postprocess", "images/s"):
        assert word in done.stdout


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
    (lambda f: (f / "model.pdiparams").write_bytes(b"\x00" * 100), "Paddle cannot load it"),
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
    (["--run_mode", "bf16", "--engine", "native"], "needs oneDNN"),
])
def test_settings_that_this_machine_lacks(exported, picture, tmp_path, arguments, words):
    if paddle.is_compiled_with_cuda():
        pytest.skip("the messages of a CPU build")
    done = run("--model_dir", exported[0], "--image_file", picture, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_the_command_exports_and_checks(r18vd_weights, picture, tmp_path):
    done = run_tool("export_model", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", SMALL,
                    "--verify_images", picture, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checked on 1 images with model." in done.stdout
    assert (tmp_path / "output_inference" / "gfl_r18vd_1x_coco" / "infer_cfg.yml").is_file()


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


def test_a_weight_that_levels_share_is_scaled_once(exported, tmp_path):
    """Paddle's predictor scales it in place, once per level, for .pdmodel: boxes of 1e8 pixels."""
    layer = SharedIntegral()
    static = paddle.jit.to_static(layer, full_graph=True, input_spec=[
        paddle.static.InputSpec([None, 3, None, None], "float32", "image")])
    paddle.jit.save(static, str(tmp_path / "model"))
    shutil.copy(exported[0] / "infer_cfg.yml", tmp_path)
    image = np.random.default_rng(0).random((1, 3, 4, 4)).astype("float32")
    output, = load_runner().Runner(tmp_path, engine="native").run({"image": image})
    np.testing.assert_allclose(output, layer(paddle.to_tensor(image)).numpy(), rtol=1e-5)
