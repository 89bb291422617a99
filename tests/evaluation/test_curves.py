"""The numbers behind the report: by hand, against a naive count, and against pycocotools."""
import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from ppgfl.data.dataset import COCODataSet
from ppgfl.evaluation import curves
from ppgfl.evaluation.coco import coco_evaluator
from ppgfl.evaluation.curves import Ranking

# Two images, classes cat (id 3) and dog (id 7), boxes x y w h.
TRUTH = [(1, 3, [0, 0, 10, 10], 0), (1, 7, [50, 50, 20, 20], 0), (2, 3, [0, 0, 10, 10], 0), (2, 3, [30, 30, 10, 10], 0),
         (2, 7, [60, 0, 40, 40], 1)]  # the last is a crowd
FOUND = [(1, 3, [0, 0, 10, 10], 0.9),    # a cat
         (1, 3, [50, 50, 20, 20], 0.8),  # the dog, taken for a cat
         (1, 7, [80, 0, 9, 9], 0.4),     # nothing
         (2, 3, [0, 0, 10, 9], 0.7),     # a cat
         (2, 3, [0, 0, 10, 8], 0.6),     # the same cat again
         (2, 7, [62, 2, 20, 20], 0.5)]   # on the crowd


@pytest.fixture
def data(tmp_path):
    """(data set, COCOeval) of the boxes above."""
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    content = {"images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in (1, 2)],
               "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
               "annotations": [{"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd,
                                "area": box[2] * box[3]} for i, (image, category, box, crowd) in enumerate(TRUTH)]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = COCODataSet(str(tmp_path), "", "a.json")
    results = [{"image_id": image, "category_id": category, "bbox": box, "score": score}
               for image, category, box, score in FOUND]
    return dataset, coco_evaluator(dataset, results)


def test_rankings_by_hand(data):
    cats, dogs = curves.rankings(data[1])
    assert cats.scores.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert cats.hits.tolist() == [True, False, True, False]
    assert cats.positives == 3
    assert dogs.scores.tolist() == [0.4]  # the one on the crowd is not counted
    assert dogs.hits.tolist() == [False]
    assert dogs.positives == 1


def test_precision_recall_and_f1_by_hand(data):
    cats = curves.rankings(data[1])[0]
    precision, recall, f1 = cats.at([0.95, 0.9, 0.75, 0.65, 0.0])
    assert precision.tolist() == pytest.approx([1, 1, 1 / 2, 2 / 3, 2 / 4])
    assert recall.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert f1.tolist() == pytest.approx([0, 2 / 4, 2 / 5, 4 / 6, 4 / 7])
    assert curves.best_threshold(cats) == (0.7, pytest.approx(4 / 6))


def test_what_scores_exactly_the_threshold_counts():
    ranking = Ranking(np.array([0.5, 0.5, 0.2]), np.array([True, False, True]), 2)
    assert ranking.at([0.5])[1].tolist() == [0.5]
    assert ranking.at([0.500001])[1].tolist() == [0.0]


def test_nothing_found_and_nothing_to_find():
    nothing = Ranking(np.zeros(0), np.zeros(0, bool), 0)
    assert [values.tolist() for values in nothing.at([0.5])] == [[1.0], [0.0], [0.0]]
    assert curves.best_threshold(nothing) == (1.0, 0.0)
    assert curves.best_threshold(Ranking(np.array([0.9]), np.array([False]), 3)) == (1.0, 0.0)


def test_classes_together(data):
    together = curves.pool(curves.rankings(data[1]))
    assert together.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.4]
    assert together.hits.tolist() == [True, False, True, False, False]
    assert together.positives == 4


def test_confusion_by_hand(data):
    # rows: cat, dog, background are there; columns: found as
    assert curves.confusion(data[1], 0.0).tolist() == [[2, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert curves.confusion(data[1], 0.65).tolist() == [[2, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert curves.confusion(data[1], 0.95).tolist() == [[0, 0, 3], [0, 0, 1], [0, 0, 0]]


def test_images_by_hand(data):
    scores = curves.image_scores(data[1], 0.5)
    assert scores == {0: (pytest.approx(2 / 4), 2, 1, 1), 1: (pytest.approx(2 / 4), 2, 1, 1)}


def test_precision_recall_is_pycocotools_own(data):
    evaluator = data[1]
    recall, precision = curves.precision_recall(evaluator, 0.75)
    assert recall.tolist() == evaluator.params.recThrs.tolist()
    np.testing.assert_array_equal(precision, evaluator.eval["precision"][5, :, :, 0, -1].T)
    _, mean = curves.precision_recall(evaluator)
    present = mean[(mean > -1).all(axis=1)]
    assert present.mean() == pytest.approx(evaluator.eval["precision"][:, :, :, 0, -1].mean())


def test_interpolated_precision_agrees_with_the_ranking(data):
    """pycocotools' precision at a recall is the best that any threshold with at least that recall gives."""
    cats = curves.rankings(data[1])[0]
    precision, recall, _ = cats.at(cats.scores)
    recalls, own = curves.precision_recall(data[1], 0.5)
    for r, p in zip(recalls, own[0]):
        reached = precision[recall >= r - 1e-12]
        assert p == pytest.approx(reached.max() if len(reached) else 0.0)


def by_pycocotools(evaluator):
    """pycocotools' own `COCOeval` of the same objects and results, accumulated and summarized."""
    twin = COCOeval(evaluator.cocoGt, evaluator.cocoDt, "bbox")
    twin.params.imgIds = evaluator.params.imgIds
    with contextlib.redirect_stdout(io.StringIO()):
        twin.evaluate()
        twin.accumulate()
        twin.summarize()
    return twin


def repeated(evaluator, counts):
    """A `COCOeval` in which image i occurs `counts[i]` times, accumulated by pycocotools itself."""
    images, areas = len(evaluator.params.imgIds), len(evaluator.params.areaRng)
    twin = copy.deepcopy(evaluator)
    order = np.repeat(np.arange(images), counts)
    twin.evalImgs = [evaluator.evalImgs[block * images + i] for block in range(len(evaluator.params.catIds) * areas)
                     for i in order]
    for params in (twin.params, twin._paramsEval):
        params.imgIds = list(range(len(order)))
    twin.accumulate()
    precision = twin.eval["precision"][:, :, :, 0, -1]
    return precision[precision > -1].mean()


def many_images(tmp_path, decimals):
    """A COCOeval of 30 images and 3 classes, with crowds and a class that one image has."""
    rng = np.random.default_rng(5)
    truth, results = [], []
    for i in range(30):
        (tmp_path / f"{i}.jpg").touch()
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
            category = 3 if i == 7 else int(rng.integers(1, 3))
            truth.append({"id": len(truth) + 1, "image_id": i, "category_id": category, "bbox": box,
                          "iscrowd": int(rng.random() < 0.15)})
            results += [{"image_id": i, "category_id": category, "score": round(float(rng.random()), decimals),
                         "bbox": (np.array(box) + rng.normal(0, 3, 4)).tolist()} for _ in range(3)]
    content = {"images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(30)],
               "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)], "annotations": truth}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return coco_evaluator(COCODataSet(str(tmp_path), "", "a.json", allow_empty=True), results)


def test_every_image_once_gives_pycocotools_ap_exactly(tmp_path, data):
    for evaluator in (many_images(tmp_path, 9), many_images(tmp_path, 1), data[1]):  # 1: many equal scores
        images = len(evaluator.params.imgIds)
        wanted = by_pycocotools(evaluator).stats[0]
        assert curves.resampled_ap(evaluator, np.ones((1, images), int)).tolist() == [wanted]


@pytest.mark.parametrize("decimals", [9, 1])  # 1: many equal scores
def test_all_numbers_are_those_of_pycocotools(tmp_path, decimals):
    found = many_images(tmp_path, decimals)
    wanted = by_pycocotools(found)
    with contextlib.redirect_stdout(io.StringIO()):
        found.summarize()
    assert len(set(wanted.stats)) > 6
    np.testing.assert_allclose(found.stats, wanted.stats, rtol=1e-12)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(found.eval[name], wanted.eval[name], rtol=1e-12)


def test_images_that_count_several_times_are_pycocotools_repeated(tmp_path):
    """Also when the class of one image is not drawn."""
    evaluator = many_images(tmp_path, 9)
    counts = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=45)
    assert (counts[:, 7] == 0).any()
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = [repeated(by_pycocotools(evaluator), row) for row in counts]
    np.testing.assert_allclose(curves.resampled_ap(evaluator, counts), wanted, rtol=1e-12)
    assert curves.resampled_ap(evaluator, np.zeros((1, 30), int)).tolist() == [-1]


def test_the_interval_of_the_ap(tmp_path, data):
    evaluator = many_images(tmp_path, 9)
    ap = float(curves.resampled_ap(evaluator, np.ones((1, 30), int))[0])
    low, high = curves.ap_interval(evaluator, ap)
    assert (low, high) == curves.ap_interval(evaluator, ap)  # from a seed
    assert low < ap < high
    assert curves.ap_interval(evaluator, ap, seed=1) == pytest.approx((low, high), abs=0.03)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=200)
    assert high - ap == pytest.approx(1.96 * curves.resampled_ap(evaluator, counts).std())
    assert curves.ap_interval(evaluator, -1.0) is None
    assert curves.ap_interval(evaluator, 0.0) is None
    data[1].params.imgIds = data[1].params.imgIds[:1]
    assert curves.ap_interval(data[1], 0.5) is None  # of one image


def test_against_a_naive_count_on_random_boxes(tmp_path):
    rng = np.random.default_rng(3)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(1, 9)]
    for image in images:
        (tmp_path / image["file_name"]).touch()

    def box():
        return [*rng.uniform(0, 60, 2).round(1).tolist(), *rng.uniform(10, 40, 2).round(1).tolist()]

    truth = [{"id": i + 1, "image_id": int(rng.integers(1, 9)), "category_id": int(rng.integers(1, 4)), "bbox": box(),
              "iscrowd": 0} for i in range(40)]
    content = {"images": images, "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)], "annotations": truth}
    (tmp_path / "a.json").write_text(json.dumps(content))
    results = [{"image_id": t["image_id"], "category_id": int(rng.integers(1, 4)), "score": float(rng.random()),
                "bbox": (np.array(t["bbox"]) + rng.normal(0, 2, 4)).tolist()} for t in truth for _ in range(2)]
    dataset = COCODataSet(str(tmp_path), "", "a.json")
    evaluator = coco_evaluator(dataset, results)
    matrix = curves.confusion(evaluator, 0.3)
    kept = sum(r["score"] >= 0.3 for r in results)
    assert matrix[:3].sum() == len(truth)  # every box is found once, or missed
    assert matrix[:, :3].sum() == kept  # every detection found a box, or nothing
    ranked = curves.rankings(evaluator)
    assert sum(r.positives for r in ranked) == len(truth)
    assert sum(len(r.scores) for r in ranked) == len(results)
    scores = curves.image_scores(evaluator, 0.3)
    assert sum(row[1] for row in scores.values()) == len(truth)
    assert sum(row[2] for row in scores.values()) == sum((~r.hits[r.scores >= 0.3]).sum() for r in ranked)
