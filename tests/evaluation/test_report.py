"""The page of a run: complete, self-contained, and right about what it shows."""
import csv
import datetime
import html
import json
import re
import warnings

import numpy as np
import paddle
import pytest
from helpers import tiny_config

import ppgfl
from ppgfl import build
from ppgfl.data.batch import Reader
from ppgfl.data.transforms import NormalizeImage
from ppgfl.evaluation import charts, report
from ppgfl.evaluation.coco import coco_evaluator, summarize
from ppgfl.system.fonts import chart_text
from ppgfl.system.text import cut


@pytest.fixture
def written(small_coco, tmp_path):
    """A call: results -> the folder of their report, and its pictures."""
    cfg = tiny_config("gfl_r18vd_1x_coco", f"EvalDataset.dataset_dir={small_coco}",
                      "EvalDataset.data_fields=[image, gt_bbox, gt_class]")
    dataset = build.build_dataset(cfg, "EvalDataset")
    perfect = [{"image_id": r["im_id"], "category_id": dataset.category_ids[c], "score": 0.9,
                "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]}
               for r in dataset.records for b, c in zip(r["gt_bbox"], r["gt_class"])]

    def write(change=lambda results: results, names=(), **options):
        dataset.class_names[:len(names)] = names
        evaluator = coco_evaluator(dataset, change(perfect))
        pictures = report.write(tmp_path / "report", evaluator, dataset, summarize(evaluator, dataset),
                                **{"title": "<a> run & more", **options})
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
    assert set(pictures) == {"precision_recall", "f1_over_score", "confusion", "ap_by_size", "reliability"}
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures.values())


@pytest.mark.drill
def test_nothing_right_advises_no_threshold(written):
    def beside(results):
        return [{**one, "bbox": [one["bbox"][0] + 4 * one["bbox"][2], *one["bbox"][1:]]} for one in results]

    def rarely(results):  # one in fifty: F1 below 0.1
        return [*results[:1], *beside(results * 50)]

    for change, words in ((rarely, "even with the best threshold F1 is 0.0"),
                          (lambda results: [], "no detection is right"), (beside, "no detection is right")):
        folder = written(change)[0]
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "Not usable yet" in page
        assert words in page
        assert 'id="threshold"' not in page
    for row in read_csv(folder / "per_class.csv"):
        assert (row["best threshold"], row["precision"]) == ("", "")  # not 1.0: nothing is right at any score
        assert row["F1"] == ("0.0" if row["boxes"] != "0" else "")


def test_what_the_page_says_about_the_run(written):
    facts = {"weights": "http://me:s3c@ret@host/w.pdparams", "command": "ppgfl eval -o weights=ftp://a:b@c/d <x>"}
    page = (written(**facts)[0] / "report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub("<[^>]*>", " ", page))
    for words in ("http://***@host/w.pdparams", "ppgfl eval -o weights=ftp://***@c/d <x>", "instances_val2017.json",
                  f"ppgfl {ppgfl.__version__}", "AP 1.000  95 % interval 1.000 to 1.000", "APm none  AP of medium",
                  datetime.date.today().strftime("%Y-%m-")):
        assert words in text, words
    assert "s3c" not in text


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


def test_names_are_shown_and_never_obeyed(written):
    """Markup, a formula, what matplotlib leaves out of legends, control characters, a mark of direction, length."""
    names = ["<img src=x onerror=alert(1)>", "$\\frac{$", "_hidden", "\x1b[31m\u202egpj", "猫\u200d\u3000猫", "n" * 200]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        folder = written(names=names)[0]
    page = (folder / "report.html").read_text(encoding="utf-8")
    cells = re.findall(r'<th scope="row" title="([^"]*)"><bdi>([^<]*)</bdi>', page)
    assert [html.unescape(cell) for _, cell in cells[:6]] == [
        names[0], names[1], "_hidden", "\\x1b[31m\\u202egpj", names[4], names[5]]
    assert all(title == cell for title, cell in cells)
    assert page.count("<img") == 5 + 4


def test_names_in_charts():
    assert chart_text("person") == "person"
    assert chart_text("a" * 22) == "a" * 22
    assert chart_text("a" * 23) == "a" * 21 + "…"
    assert cut("猫" * 12, 22) == "猫" * 10 + "…"  # twice as wide
    assert chart_text("$a$") == r"\$a\$"
    assert chart_text("_a") == " _a"
    assert chart_text("\ud800") == r"\ud800"
    assert chart_text("a\nb\x07") == r"a\nb\x07"


def test_curves_lie_in_the_unit_square_with_one_legend_below_them(written, monkeypatch):
    figures = []
    picture = charts._picture
    monkeypatch.setattr(charts, "_picture", lambda figure: figures.append(figure) or picture(figure))
    written()
    for figure in figures[:2]:
        panels = figure.axes[:2]
        assert all(panel.get_xlim() == panel.get_ylim() == (0, 1) for panel in panels)
        legend, = figure.legends
        assert not any(panel.get_legend() for panel in panels)
        assert legend.get_window_extent().y1 < min(panel.get_tightbbox().y0 for panel in panels)
    assert figures[0].axes[2].get_ylabel() == "IoU"
    assert figures[3].axes[0].get_ylim() == (0, 1)


def test_the_page_fits_a_phone_and_a_wide_screen(written, browser):
    folder = written(names=["n" * 200, "<b>x</b>"], command="x" * 500, title="t" * 300)[0]
    browser.get(f"file://{folder}/report.html")
    for width in (390, 1280, 1600):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390})
        page_width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width - 20 < page_width <= width  # but for a scrollbar
        assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return [...document.images].every(i => i.alt.length > 10)")
    picture = browser.find_element("css selector", ".zoom")
    picture.click()
    shown = browser.find_element("css selector", "dialog[open] img")
    assert shown.size["width"] == browser.execute_script("return arguments[0].naturalWidth", shown)
    browser.find_element("css selector", "dialog button").click()
    assert not browser.find_elements("css selector", "dialog[open]")


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
