"""Quantisation after training: what is quantised, how near the result stays, and what goes wrong."""
import numpy as np
import pytest
from helpers import tiny_config

import ppgfl
from ppgfl import DataError, ExportError
from ppgfl.data.image import read_image
from ppgfl.inference.runner import make_runner

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def quantized(exported, small_coco, tmp_path_factory):
    from ppgfl.inference.int8 import quantize

    path = tmp_path_factory.mktemp("int8") / "model_int8.onnx"
    quantize(exported[0] / "model.onnx", path, str(small_coco / "val2017"))
    return path


def test_every_convolution_is_int8_and_nothing_else(exported, quantized):
    graphs = [onnx.load(path).graph for path in (exported[0] / "model.onnx", quantized)]
    convolutions = [node for node in graphs[0].node if node.op_type == "Conv"]
    makers = {output: node for node in graphs[1].node for output in node.output}
    quantised = [node for node in graphs[1].node if node.op_type == "Conv"]
    assert len(quantised) == len(convolutions) > 30
    for node in quantised:
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    for graph in graphs:
        assert [node.op_type for node in graph.node if node.op_type in ("Softmax", "MatMul", "Sigmoid")]
    assert quantized.stat().st_size < 0.3 * (exported[0] / "model.onnx").stat().st_size


def test_it_finds_nearly_the_same(exported, quantized, small_coco):
    """A seed's weights find hundreds of things that score alike, so scores are compared cell by cell."""
    runners = [make_runner(exported[0] / "model.onnx"), make_runner(quantized)]
    for path in sorted((small_coco / "val2017").iterdir()):
        arrays = runners[0].prepare([read_image(str(path))])
        (boxes, scores), (rough_boxes, rough_scores) = (runner.run(arrays) for runner in runners)
        assert np.corrcoef(scores.ravel(), rough_scores.ravel())[0, 1] > 0.95
        size = np.maximum(boxes[..., 2:] - boxes[..., :2], 1).mean()
        assert np.abs(boxes - rough_boxes).mean() < 0.05 * size


def test_one_switch(exported, quantized, small_coco, run_here, tmp_path):
    """Of a folder, and of a file beside it, in the runner, in infer and in eval."""
    for name in ("model.pdmodel", "model.pdiparams", "infer_cfg.yml", "model.onnx"):
        (tmp_path / name).symlink_to(exported[0] / name)
    (tmp_path / "model_int8.onnx").symlink_to(quantized)
    image = read_image(str(sorted((small_coco / "val2017").iterdir())[0]))
    wanted = make_runner(quantized)([image])[0]
    for path in (tmp_path, tmp_path / "model.pdmodel", tmp_path / "model.onnx", tmp_path / "model_int8.onnx"):
        runner = make_runner(path, run_mode="int8")
        assert "model_int8.onnx" in runner.description
        np.testing.assert_array_equal(runner([image])[0], wanted)
    assert "model.pdmodel" in make_runner(tmp_path).description
    done = run_here("infer", "-c", "gfl_r18vd_1x_coco", "--exported", tmp_path, "--run_mode", "int8", "--no_pictures",
                    "--infer_dir", small_coco / "val2017", "--save_results", "jsonl", "--output_dir", tmp_path / "out",
                    "-o", "use_gpu=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "running model_int8.onnx" in done.stdout + done.stderr


def test_the_switch_without_such_a_file(exported, small_coco, run_here, tmp_path):
    for path, mend in ((exported[0] / "model.onnx", "allowed for .*: paddle; there is no model_int8.onnx beside it"),
                       (exported[0], "holds no quantisation, and there is no model_int8.onnx beside it: export with")):
        with pytest.raises(ExportError, match=mend):
            make_runner(path, run_mode="int8")
    for arguments, word in ((["--run_mode", "int8"], "--run_mode: it is the runner's of an exported model"),
                            (["--exported", exported[0], "--tta", "flip"], "NMS has to come after all views"),
                            (["--exported", exported[0], "--show_distributions"], "exported model gives boxes alone")):
        done = run_here("infer", "-c", "gfl_r18vd_1x_coco", "--infer_dir", small_coco / "val2017", "--output_dir",
                        tmp_path / "out", *arguments, "-o", "use_gpu=false", cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr, done.stderr


def test_a_folder_without_images(exported, tmp_path):
    from ppgfl.inference.int8 import quantize

    with pytest.raises(DataError):
        quantize(exported[0] / "model.onnx", tmp_path / "a.onnx", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.drill
def test_the_command_writes_it_and_eval_reads_it(run_here, r18vd_weights, small_coco, tmp_path):
    folder = tmp_path / "export"
    ppgfl.export(tiny_config(), weights=r18vd_weights, output_dir=folder, format="pdmodel",
                 int8=str(small_coco / "val2017"), verify=())
    assert {"model.onnx", "model_int8.onnx"} <= {path.name for path in folder.iterdir()}
    done = run_here("eval", "-c", "gfl_r18vd_1x_coco", "-o", f"EvalDataset.dataset_dir={small_coco}", "--exported",
                    folder / "model_int8.onnx", "--no_report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Average Precision" in done.stdout
