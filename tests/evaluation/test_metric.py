"""`metric: VOC` wherever COCO's numbers go, on data of either format."""
import csv
import json

import pytest
from helpers import coco_as_voc, config, tiny_config

from ppgfl import ConfigError, build, evaluate, train
from ppgfl.evaluation import metric, report
from ppgfl.evaluation.evaluate import evaluate_results


def truth(dataset, keep=lambda one: True):
    """The objects themselves as results."""
    found = dataset.annotations
    return [{"image_id": found.images[one["image"]]["id"], "category_id": dataset.category_ids[one["category"]],
             "bbox": one["bbox"], "score": 0.9} for one in found.objects if dataset.is_to_be_found(one) and keep(one)]


@pytest.fixture
def voc_config(shapes, tmp_path):
    """A config whose EvalDataset has VOC's files; every fourth object is difficult."""
    folder = coco_as_voc(shapes, tmp_path / "voc", "val2017", difficult=lambda one: int(one["id"] % 4 == 0))
    keys = {"name": "VOCDataSet", "dataset_dir": str(folder), "anno_path": "val2017.txt",
            "label_list": "label_list.txt"}
    return lambda *more: config(shapes, tmp_path, f"EvalDataset={json.dumps(keys)}", *more)


def test_which_numbers_there_are():
    assert metric.names({}) == metric.NAMES["COCO"]
    assert metric.names({"metric": "VOC"}) == ("mAP",)
    with pytest.raises(ConfigError, match="metric: 'RBOX'; allowed: COCO, VOC"):
        metric.names({"metric": "RBOX"})


@pytest.mark.parametrize("map_type", ["11point", "integral"])
def test_the_truth_itself_scores_one_and_nothing_scores_zero(voc_config, map_type, caplog):
    cfg = voc_config("metric=VOC", f"map_type={map_type}")
    dataset = build.build_dataset(cfg, "EvalDataset")
    with caplog.at_level("INFO"):
        measured = metric.measure(cfg, dataset, truth(dataset))
    assert measured.metrics == {"mAP": pytest.approx(1.0)}
    assert f"mean Average Precision  IoU>0.50  {map_type}   1.000" in caplog.text
    assert metric.measure(cfg, dataset, []).metrics == {"mAP": 0.0}
    without = metric.measure(cfg, dataset, truth(dataset, lambda one: one["category"]))
    assert [without.per_class[name] for name in dataset.class_names] == pytest.approx([0, 1, 1])
    assert without.metrics["mAP"] == pytest.approx(2 / 3)


def test_it_also_measures_cocos_files(small_coco):
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}", "metric=VOC")
    dataset = build.build_dataset(cfg, "EvalDataset")
    measured = metric.measure(cfg, dataset, truth(dataset))
    assert measured.metrics == {"mAP": pytest.approx(1.0)}
    assert set(measured.per_class.values()) == {1.0, -1.0}  # a class without a box has no AP


def test_evaluation_of_results_and_its_page(voc_config, tmp_path, caplog):
    cfg = voc_config("metric=VOC")
    (tmp_path / "bbox.json").write_text(json.dumps(truth(build.build_dataset(cfg, "EvalDataset"))))
    with caplog.at_level("INFO"):
        metrics = evaluate_results(cfg, output_dir=tmp_path, classwise=True, report_dir=tmp_path / "report")
    assert metrics == {"mAP": pytest.approx(1.0), "per_class": pytest.approx(
        {"circle": 1.0, "square": 1.0, "triangle": 1.0})}
    assert "AP  1.000  circle" in caplog.text
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "val2017, mAP 1.000" in page
    assert "<li>mAP<b>1.000</b>" in page
    assert "AP50" not in page
    assert "AP by size" not in page
    with open(tmp_path / "report" / "per_class.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["AP"], row["F1"]) for row in rows] == [
        (name, "1.0", "1.0") for name in ("circle", "square", "triangle")]
    assert "AP50" not in rows[0]


def test_titles_have_the_first_number():
    assert report.titled("run", {"AP": 0.25, "AP50": 1.0}) == "run, AP 0.250"
    assert report.titled("run", {"mAP": 0.5}) == "run, mAP 0.500"


def test_a_run_is_judged_by_it(shapes, voc_config, tmp_path):
    """The best model, results.csv, metrics.json, the report, the dashboard, and an evaluation of what was saved."""
    from visualdl import LogReader

    cfg = voc_config("metric=VOC", "epoch=1", "map_type=integral")
    done = train(cfg, evaluate=True, use_vdl=True, patience=3)
    folder = tmp_path / "run"
    assert set(done) == {"folder", "epoch", "best", "mAP"}
    assert done["best"] == done["mAP"] >= 0
    assert json.loads((folder / "metrics.json").read_text())["mAP"] == done["mAP"]
    header, row = (folder / "results.csv").read_text().splitlines()
    assert float(dict(zip(header.split(","), row.split(",")))["mAP"]) == pytest.approx(done["mAP"])
    assert not {"AP", "AP50"} & set(header.split(","))
    reader = LogReader(file_path=str(folder / "vdl" / "vdlrecords.ppgfl.log"))
    assert {"eval/mAP", "final/mAP", "eval_class/circle"} <= set(reader.get_tags()["scalar"])
    assert (folder / "curves.png").exists()
    again = evaluate({**cfg, "engine": "dygraph"}, weights=folder / "model_final", output_dir=tmp_path)
    assert again == {"mAP": pytest.approx(done["mAP"], abs=1e-6)}
    if done["mAP"] > 0:
        assert f"mAP {done['mAP']:.3f}" in (folder / "report" / "report.html").read_text(encoding="utf-8")
