"""The page of a run: complete, self-contained, and right about what it shows."""
import csv
import json
import re

import numpy as np
import paddle
import pytest
from helpers import tiny_config

from ppgfl import build
from ppgfl.data.batch import Reader
from ppgfl.data.transforms import NormalizeImage
from ppgfl.evaluation import report
from ppgfl.evaluation.coco import coco_evaluator, summarize


@pytest.fixture
def written(small_coco, tmp_path):
    """A call: results -> the folder of their report, and its pictures."""
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}",
                      "EvalDataset.data_fields=[image, gt_bbox, gt_class]")
    dataset = build.build_dataset(cfg, "EvalDataset")
    perfect = [{"image_id": r["im_id"], "category_id": dataset.category_ids[c], "score": 0.9,
                "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]}
               for r in dataset.records for b, c in zip(r["gt_bbox"], r["gt_class"])]

    def write(change=lambda results: results, **options):
        evaluator = coco_evaluator(dataset, change(perfect))
        pictures = report.write(tmp_path / "report", evaluator, dataset, summarize(evaluator, dataset),
                                title="<a> run & more", **options)
        return tmp_path / "report", pictures, dataset, perfect

    return write


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_truth_itself(written):
    folder, pictures, dataset, perfect = written()
    rows = read_csv(folder / "per_class.csv")
    assert len(rows) == 80
    present = {dataset.class_names[dataset.category_ids.index(r["category_id"])] for r in perfect}
    for row in rows:
        if row["class"] in present:
            assert (row["AP"], row["F1"], row["best threshold"]) == ("1.0", "1.0", "0.9")
        else:
            assert (row["boxes"], row["AP"]) == ("0", "")
    matrix = read_csv(folder / "confusion.csv")
    names = [row.pop("is \\ found as") for row in matrix]
    counts = np.array([[int(count) for count in row.values()] for row in matrix])
    assert list(matrix[0]) == names
    assert counts.sum() == np.trace(counts) == len(perfect)
    assert set(pictures) == {"precision_recall", "f1_over_score", "confusion", "ap_by_size"}
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures.values())


def test_nothing_found(written):
    folder, _, _, _ = written(lambda results: [])
    assert "best F1 over all classes, 0.000" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_no_network_and_escapes_names(written):
    rows = [{"epoch": 1, "loss": 2.0, "loss_qfl": 1.0, "loss_bbox": 0.5, "loss_dfl": 0.5, "AP": None, "AP50": None,
             "AP75": None}]
    folder, pictures, _, _ = written(training=rows)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "training" in pictures
    assert "<title>&lt;a&gt; run &amp; more</title>" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count("<img") == len(pictures) + 4  # four images have boxes


def test_the_page_in_a_browser(written, browser):
    folder, pictures, _, _ = written()
    browser.get(f"file://{folder}/report.html")
    sizes = browser.execute_script("return Array.from(document.images).map(i => i.naturalWidth)")
    assert len(sizes) == len(pictures) + 4
    assert min(sizes) > 200  # all of them were decoded
    assert browser.find_element("id", "threshold").text == "0.900"
    assert len(browser.find_elements("css selector", "table tr")) == 81
    assert browser.get_log("browser") == []


def test_a_batch_as_the_network_sees_it():
    """Two images of 48 x 96, white and black; one cell of the first has the box 24 12 72 36 as its target."""
    normalize = NormalizeImage(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    image = np.stack([np.full((3, 48, 96), 2.0), np.full((3, 48, 96), -2.0)]).astype(np.float32)
    labels = np.array([[2, 0, 2], [2, 2, 2]])  # 2: background
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[0, 1] = 24, 12, 72, 36
    batch = {key: paddle.to_tensor(value) for key, value in
             {"image": image, "labels": labels, "bbox_targets": boxes}.items()}
    picture = report.draw_batch(batch, Reader([normalize], []), ["a", "b"])
    assert picture.shape == (240, 480 + 6 + 480, 3)  # the longer side is 480
    white, gap, black = np.split(picture, [480, 486], axis=1)
    assert (gap == 255).all()
    assert (black == 0).all()
    changed = np.argwhere((white != 255).any(axis=2))
    assert abs(changed[:, 0].max() - 36 * 5) <= 2  # the box, five times as large; its label is above
    assert (abs(changed[:, 1].min() - 24 * 5) <= 2, abs(changed[:, 1].max() - 72 * 5) <= 2) == (True, True)


def test_worst_and_best():
    scores = {1: (1.0, 3, 0, 0), 2: (0.2, 5, 4, 2), 3: (0.2, 5, 9, 2), 4: (1.0, 9, 0, 0), 5: (0.0, 0, 0, 0)}
    worst, best = report.extremes({**scores, **dict.fromkeys(range(10, 20), (0.5, 1, 1, 1))})
    assert worst[:2] == [3, 2]
    assert best[:2] == [4, 1]
    assert 5 not in worst + best  # nothing was there and nothing was found


def test_the_command_leaves_a_report(run_here, small_coco, r18vd_weights, tmp_path):
    arguments = ["-c", "gfl_r18vd_1x_coco", "-o", f"weights={r18vd_weights}", f"EvalDataset.dataset_dir={small_coco}",
                 "EvalReader.sample_transforms.1.Resize.target_size=[64, 96]", "worker_num=0", "use_gpu=false",
                 "engine=dygraph", "--output_eval", "out"]
    done = run_here("eval", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out" / "report").iterdir()) == [
        "confusion.csv", "per_class.csv", "report.html"]
    assert json.loads((tmp_path / "out" / "bbox.json").read_text())
    assert run_here("eval", *arguments[:-1], "bare", "--no_report", cwd=tmp_path).returncode == 0
    assert [p.name for p in (tmp_path / "bare").iterdir()] == ["bbox.json"]
