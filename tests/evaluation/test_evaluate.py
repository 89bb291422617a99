import json
import shutil

import numpy as np
import paddle
import pytest
from helpers import COCO_MINI, match, recorded, run_tool, tiny_config

from ppgfl import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    build,
    build_model,
    evaluate,
    load_config,
    load_weights,
)
from ppgfl.evaluation.coco import METRICS, coco_evaluator, summarize, table
from ppgfl.evaluation.evaluate import evaluate_results
from ppgfl.inference.detections import coco_records, split_batch
from ppgfl.inference.detector import RowDetector, open_detector


def coco_metrics(dataset, results, **options):
    return summarize(coco_evaluator(dataset, results), dataset, **options)


def small_eval(small_coco, *overrides):
    return tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", *overrides)


def perfect_results(dataset):
    return [{"image_id": r["im_id"], "category_id": dataset.category_ids[c], "score": 0.9,
             "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]}
            for r in dataset.records for b, c in zip(r["gt_bbox"], r["gt_class"])]


@pytest.fixture
def dataset(small_coco):
    cfg = small_eval(small_coco, "EvalDataset.data_fields=[image, gt_bbox, gt_class]")
    return build.build_dataset(cfg, "EvalDataset")


def test_the_truth_itself_scores_one_and_nothing_scores_zero(dataset):
    metrics = coco_metrics(dataset, perfect_results(dataset), classwise=True)
    assert metrics["AP"] == pytest.approx(1.0)
    present = {dataset.class_names[c] for r in dataset.records for c in r["gt_class"]}
    assert {name for name, ap in metrics["per_class"].items() if ap == pytest.approx(1.0)} == present
    assert all(ap == -1 for name, ap in metrics["per_class"].items() if name not in present)
    assert coco_metrics(dataset, [])["AP"] == 0


def test_missing_area_and_iscrowd_are_filled_in(small_coco):
    file = small_coco / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        for key in ("area", "iscrowd", "id"):
            annotation.pop(key)
    (file.parent / "bare.json").write_text(json.dumps(content))
    cfg = small_eval(small_coco, "EvalDataset.data_fields=[image, gt_bbox, gt_class]",
                     "EvalDataset.anno_path=annotations/bare.json")
    dataset = build.build_dataset(cfg, "EvalDataset")
    assert coco_metrics(dataset, perfect_results(dataset))["AP"] == pytest.approx(1.0)


def test_only_the_images_of_the_data_set_count(dataset):
    results = perfect_results(dataset)
    dataset.records = dataset.records[:2]
    assert coco_metrics(dataset, results)["AP"] == pytest.approx(1.0)


def test_the_whole_path_writes_coco_results(small_coco, r18vd_weights, tmp_path):
    cfg = small_eval(small_coco)
    metrics = evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path / "new folder", classwise=True)
    results = json.loads((tmp_path / "new folder" / "bbox.json").read_text())
    assert set(METRICS) <= set(metrics)
    assert len(metrics["per_class"]) == 80
    assert {r["image_id"] for r in results} == {10, 11, 12, 13, 14}  # the image without a box too
    assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in results)
    again = evaluate_results(cfg, output_dir=tmp_path / "new folder")
    assert again == {key: metrics[key] for key in METRICS}
    assert evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path, save_prediction_only=True) == {}


def test_worker_processes_change_nothing(small_coco, r18vd_weights, tmp_path):
    results = []
    for workers in (0, 2):
        evaluate(small_eval(small_coco, f"worker_num={workers}"), weights=r18vd_weights, output_dir=tmp_path)
        results.append(json.loads((tmp_path / "bbox.json").read_text()))
    assert results[0] == results[1]


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs the real COCO images beside the project")
@pytest.mark.parametrize("count", [2, pytest.param(6, marks=pytest.mark.drill)])
def test_detections_on_real_photographs_are_those_of_paddledetection(r18vd_weights, count):
    """The whole evaluation path: annotation file, decoding, resizing, padding, network, NMS."""
    expected = recorded("gfl_r18vd_1x_coco_val6")
    cfg = load_config("gfl_r18vd_1x_coco", [f"EvalDataset.dataset_dir={COCO_MINI}", f"EvalDataset.sample_num={count}",
                                            "EvalReader.batch_size=1", "worker_num=0", "use_gpu=false"])
    dataset = build.build_dataset(cfg, "EvalDataset")
    np.testing.assert_array_equal(dataset.category_ids, expected["catid"])
    model = build_model(cfg)
    load_weights(model, r18vd_weights)
    model.eval()
    with paddle.no_grad():
        for i, batch in enumerate(build.build_loader(cfg, "EvalReader", dataset.records).epoch()):
            rows, = split_batch(model(batch))
            want = expected[f"bbox{i}"]
            np.testing.assert_array_equal(batch["im_id"].numpy(), expected[f"im_id{i}"])
            np.testing.assert_array_equal(rows[:, 0], want[:, 0])
            np.testing.assert_allclose(rows[:, 1], want[:, 1], atol=1e-5)
            np.testing.assert_allclose(rows[:, 2:], want[:, 2:], atol=5e-3)


def test_a_class_count_that_disagrees_stops_before_anything_runs(small_coco, r18vd_weights, tmp_path):
    content = json.loads((small_coco / "annotations" / "instances_val2017.json").read_text())
    content["categories"] = content["categories"][:3]
    content["annotations"] = []
    (tmp_path / "three.json").write_text(json.dumps(content))
    cfg = small_eval(small_coco, f"EvalDataset.anno_path={tmp_path / 'three.json'}")
    with pytest.raises(ConfigError, match=r"num_classes: 80, but .*three.json lists 3 \(class 0, class 1, class 2\)"):
        evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="trained for 80 class channels, the config has 3"):
        evaluate({**cfg, "num_classes": 3}, weights=r18vd_weights, output_dir=tmp_path)
    assert not (tmp_path / "bbox.json").exists()


@pytest.mark.parametrize("turned", [False, True])
def test_a_detector_with_names_is_matched_by_name(small_coco, tmp_path, turned):
    """A perfect one, whose classes stand the other way round, finds everything."""
    content = json.loads((small_coco / "annotations" / "instances_val2017.json").read_text())
    for category in content["categories"]:
        category["name"] = f"thing {category['id']}"
    (small_coco / "annotations" / "named.json").write_text(json.dumps(content))
    cfg = small_eval(small_coco, "EvalDataset.data_fields=[image, gt_bbox, gt_class]",
                     "EvalDataset.anno_path=annotations/named.json")
    names = build.build_dataset(cfg, "EvalDataset").class_names

    def detect_records(records):
        for record in records:
            classes = len(names) - 1 - record["gt_class"] if turned else record["gt_class"]
            yield record["im_id"], np.column_stack([classes, np.ones(len(classes)), record["gt_bbox"]])

    detector = RowDetector(lambda images: [], detect_records, 1, names[::-1] if turned else names)
    assert evaluate(cfg, detector=detector, output_dir=tmp_path)["AP"] == pytest.approx(1.0)
    blind = RowDetector(lambda images: [], detect_records, 1, None)
    assert (evaluate(cfg, detector=blind, output_dir=tmp_path)["AP"] < 0.5) == turned


def test_the_twelve_numbers_are_four_lines_of_a_terminal():
    metrics = {name: 0.1 + i / 100 for i, name in enumerate(METRICS)}
    lines = table(metrics)
    assert lines == ["Average Precision  IoU=0.50:0.95  area=all  maxDets=100   0.100",
                     "AP50 0.110  AP75 0.120  APs 0.130  APm 0.140  APl 0.150",
                     "Average Recall     IoU=0.50:0.95  area=all  maxDets=100   0.180",
                     "AR1 0.160  AR10 0.170  ARs 0.190  ARm 0.200  ARl 0.210"]
    metrics.update(APl=-1.0, ARl=-1.0, APs=-1.0)
    lines = table(metrics)
    assert lines[1] == "AP50 0.110  AP75 0.120  no small objects  APm 0.140  no large objects"
    assert lines[3].endswith("no large objects")
    assert all(len(f"[12:00:00] INFO: {line}") <= 90 for line in lines)
    assert table(dict.fromkeys(METRICS, -1.0))[:2] == [
        "Average Precision  IoU=0.50:0.95  area=all  maxDets=100   no objects",
        "no objects  no objects  no small objects  no medium objects  no large objects"]


def test_json_eval_without_results(small_coco, tmp_path):
    with pytest.raises(DataError, match="--json_eval needs the results"):
        evaluate_results(small_eval(small_coco), output_dir=tmp_path)


def test_json_eval_of_other_images_is_refused(small_coco, tmp_path):
    (tmp_path / "bbox.json").write_text(json.dumps(
        [{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]))
    with pytest.raises(DataError, match=r"1 of 1 results with image_id 99, which .* does not list \(it has 10, 11"):
        evaluate_results(small_eval(small_coco), output_dir=tmp_path)


def test_the_class_that_does_not_exist_is_left_out():
    rows = np.array([[0, 0.9, 1, 2, 4, 8], [80, 0.8, 0, 0, 1, 1]], np.float32)
    assert coco_records(rows, 7, list(range(1, 81))) == [
        {"image_id": 7, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 6.0], "score": pytest.approx(0.9)}]


# --- the command, as a user runs it

SMALL = ["EvalReader.sample_transforms.1.Resize.target_size=[64, 96]", "worker_num=0", "use_gpu=true"]


def test_the_command_prints_the_table(small_coco, r18vd_weights, tmp_path):
    done = run_tool("eval", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}",
                    f"EvalDataset.dataset_dir={small_coco}", *SMALL, "--classwise", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("Average Precision") == done.stdout.count("Average Recall") == 1
    assert done.stdout.count("AP   none  class") > 60  # those without a box
    assert "running on the CPU with" in done.stdout
    assert "images/s" in done.stdout
    assert "4 images with boxes, 1 empty ones kept" in done.stdout
    assert (tmp_path / "bbox.json").is_file()


def bad_inputs(small_coco, weights, folder):
    """What users get wrong -> the overrides, and words of the one line they read."""
    data = f"EvalDataset.dataset_dir={small_coco}"
    cut = folder / "cut.pdparams"
    cut.write_bytes(weights.read_bytes()[:1_000_000])
    (folder / "evil.pdparams").write_bytes(b"cos\nsystem\n(S'touch was_here'\ntR.")
    (folder / "loop.yml").write_text("_BASE_: loop.yml")
    (folder / "other.json").write_text('{"type": "FeatureCollection", "features": []}')
    (folder / "val2017").mkdir()
    for path in sorted((small_coco / "val2017").iterdir())[1:]:
        (folder / "val2017" / path.name).write_bytes(path.read_bytes())
    ok = ["-c", "gfl_r18vd_1x_coco", "-o", f"weights={weights}", data]
    return {
        "dataset path": (["-c", "gfl_r18vd_1x_coco", "-o", "EvalDataset.dataset_dir=nowhere"],
                         [str(folder / "nowhere"), "EvalDataset.dataset_dir"]),
        "other depth": (["-c", "gfl_r34vd_1x_coco", "-o", f"weights={weights}", data], ["backbones differ", "missing"]),
        "other classes": ([*ok, "GFLHead.num_classes=20"], ["80 class channels, the config has 20"]),
        "truncated weights": ([*ok, f"weights={cut}"], ["cut.pdparams", "damaged"]),
        "hostile weights": ([*ok, f"weights={folder / 'evil'}"], ["evil.pdparams", "os.system"]),
        "no weights": ([*ok, "weights=none"], ["weights=PATH"]),
        "unknown key": ([*ok, "ResNet.depht=18"], ["ResNet: unknown key 'depht'", "'depth'"]),
        "loop": (["-c", folder / "loop.yml"], ["loop.yml -> loop.yml"]),
        "missing image": ([*ok, f"EvalDataset.image_dir={folder / 'val2017'}"], ["bild_0é.jpg", "1 of the 5"]),
        "not COCO": ([*ok, f"EvalDataset.anno_path={folder / 'other.json'}"], ["other.json", "not a COCO"]),
    }


BAD = ["dataset path", "other depth", "other classes", "truncated weights", "hostile weights", "no weights",
       "unknown key", "loop", "missing image", "not COCO"]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, run_here, small_coco, r18vd_weights, tmp_path):
    check_bad_input(case, run_here, small_coco, r18vd_weights, tmp_path)


def test_bad_input_ends_the_process_with_one_line_and_exit_code_2(small_coco, r18vd_weights, tmp_path):
    check_bad_input("other depth", run_tool, small_coco, r18vd_weights, tmp_path)


def check_bad_input(case, run, small_coco, r18vd_weights, tmp_path):
    (tmp_path / "bbox.json").write_text("precious")
    arguments, words = bad_inputs(small_coco, r18vd_weights, tmp_path)[case]
    done = run("eval", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert (tmp_path / "bbox.json").read_text() == "precious"
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_photograph_is_one_line_and_exit_code_2(workers, run_here, small_coco, r18vd_weights, tmp_path):
    (tmp_path / "val2017").mkdir()
    for path in (small_coco / "val2017").iterdir():
        data = path.read_bytes()
        (tmp_path / "val2017" / path.name).write_bytes(data[:len(data) // 2] if "_3" in path.name else data)
    done = run_here("eval", "-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", "engine=dygraph",
                    f"EvalDataset.dataset_dir={small_coco}", *SMALL, f"EvalDataset.image_dir={tmp_path / 'val2017'}",
                    f"worker_num={workers}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "bild_3é.jpg: the image is truncated" in done.stderr
    assert not (tmp_path / "bbox.json").exists()


# --- what is deployed


@pytest.mark.parametrize("name", ["", "model.pdmodel", "model.onnx"])
def test_an_exported_model_finds_the_same(small_coco, exported, r18vd_weights, tmp_path, name):
    cfg = small_eval(small_coco, "EvalReader.batch_size=1")
    evaluate(cfg, weights=r18vd_weights, output_dir=tmp_path / "weights")
    evaluate(cfg, detector=open_detector(cfg, exported=exported[0] / name), output_dir=tmp_path / "exported")
    a, b = (json.loads((tmp_path / kind / "bbox.json").read_text()) for kind in ("weights", "exported"))
    assert len(a) == len(b)
    for image_id in {r["image_id"] for r in a}:
        match(*(np.array([[r["category_id"], r["score"], *r["bbox"]] for r in results if r["image_id"] == image_id])
                for results in (b, a)))


def test_a_run_mode_is_passed_on(run_here, small_coco, exported, tmp_path):
    done = run_here("eval", "-c", "gfl_r18vd_1x_coco", "-o", f"EvalDataset.dataset_dir={small_coco}", "use_gpu=false",
                    "--exported", exported[0], "--run_mode", "int8", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no quantisation" in done.stderr
    assert not (tmp_path / "bbox.json").exists()


def test_exported_models_that_do_not_fit(small_coco, exported, tmp_path):
    cfg = small_eval(small_coco)
    with pytest.raises(ExportError, match="its runner has no setting 'runmode'; it has device, run_mode, cpu_threads"):
        open_detector(cfg, exported=exported[0] / "model.onnx", runner={"runmode": "bf16"})
    with pytest.raises(ExportError, match=r"run_mode: 'bf16'; allowed for .*model.onnx: paddle"):
        open_detector(cfg, exported=exported[0] / "model.onnx", runner={"run_mode": "bf16"})
    with pytest.raises(ExportError, match="no such folder"):
        open_detector(cfg, exported=tmp_path / "none")
    folder = shutil.copytree(exported[0], tmp_path / "other")
    settings = folder / "infer_cfg.yml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("- bicycle\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"lists 80 classes: .*; the model has 79 classes: person, car, moto"):
        evaluate(cfg, detector=open_detector(cfg, exported=folder), output_dir=tmp_path)
    assert not (tmp_path / "bbox.json").exists()
