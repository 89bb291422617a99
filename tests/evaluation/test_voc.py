"""VOC's mAP: that of PaddleDetection, and by pencil."""
import contextlib
import io

import cases
import numpy as np
import pytest
from helpers import recorded
from pycocotools.coco import COCO

from ppgfl.evaluation import curves
from ppgfl.evaluation.voc import VOCeval, average_precision, overlaps

TYPES = ("11point", "integral")


def indexed(rows, images, classes):
    """COCO's index of rows: image, class, score, crowd, x1 y1 x2 y2."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(images)], "categories": [{"id": i} for i in range(classes)],
        "annotations": [{"id": n, "image_id": int(image), "category_id": int(label), "score": float(score),
                         "iscrowd": int(crowd), "area": 1.0,
                         "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]}
                        for n, (image, label, score, crowd, x1, y1, x2, y2) in enumerate(rows, 1)]}
    coco.createIndex()
    return coco


def evaluated(truth, found, map_type="11point", images=1, classes=1):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = VOCeval(indexed(truth, images, classes), indexed(found, images, classes), map_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


@pytest.mark.parametrize("map_type", TYPES)
@pytest.mark.parametrize("seed", range(6))
def test_every_ap_is_that_of_paddledetection(seed, map_type):
    case = cases.voc(seed)
    truth = [(i, label, 1, difficult, *box) for i, (rows, _) in enumerate(case["images"])
             for label, *box, difficult in rows]
    found = [(i, label, score, 0, *box) for i, (_, rows) in enumerate(case["images"]) for label, score, *box in rows]
    evaluator = evaluated(truth, found, map_type, len(case["images"]), case["classes"])
    mean, *per_class = recorded("voc_map")[f"case{seed}_{map_type}"]
    np.testing.assert_allclose(evaluator.eval["AP"], per_class, atol=1e-12)
    np.testing.assert_allclose(evaluator.eval["AP"][evaluator.eval["AP"] >= 0].mean(), mean, atol=1e-12)


BOX = (0, 0, 9, 9)  # with its last pixels 10 x 10


@pytest.mark.parametrize(("truth", "found", "ap"), [
    ([(0, *BOX)], [(0.9, *BOX)], 1.0),
    ([(0, *BOX)], [(0.9, 0, 0, 9, 4)], 0.0),  # 50 of 100 pixels: exactly a half is too little
    ([(0, *BOX)], [(0.9, 0, 0, 9, 5)], 1.0),
    ([(0, *BOX)], [(0.9, 9, 0, 18, 9)], 0.0),  # it touches
    ([(0, *BOX)], [], 0.0),
    ([], [(0.9, *BOX)], -1.0),
    ([(1, *BOX)], [(0.9, *BOX)], -1.0),  # only a difficult one
    ([(0, *BOX), (1, 50, 50, 59, 59)], [(0.9, 50, 50, 59, 59), (0.8, 50, 50, 59, 59), (0.7, *BOX)], 1.0),
    ([(0, *BOX)], [(0.9, *BOX), (0.8, *BOX)], 1.0),  # the second is wrong, after all is found
    ([(0, *BOX), (0, 50, 50, 59, 59)], [(0.9, *BOX), (0.8, *BOX), (0.7, 50, 50, 59, 59)],
     {"11point": (6 * 1 + 5 * 2 / 3) / 11, "integral": (1 + 2 / 3) / 2}),
    # The second overlaps the taken one most (90 of 110), so it is wrong, though it would do for the other (80 of 120).
    ([(0, *BOX), (0, 3, 0, 12, 9)], [(0.9, *BOX), (0.8, 1, 0, 10, 9)], {"11point": 6 / 11, "integral": 0.5}),
])
@pytest.mark.parametrize("map_type", TYPES)
def test_by_pencil(truth, found, ap, map_type):
    evaluator = evaluated([(0, 0, 1, *one) for one in truth], [(0, 0, score, 0, *box) for score, *box in found],
                          map_type)
    assert curves.class_ap(evaluator) == pytest.approx([ap[map_type] if isinstance(ap, dict) else ap])


def test_overlaps_count_the_last_pixels():
    found = np.array([[0, 0, 9, 9], [100, 100, 1, 1]], float)
    truth = np.array([[0, 0, 9, 9], [5, 5, 9, 9], [9, 9, 5, 5]], float)
    np.testing.assert_allclose(overlaps(found, truth), [[1, 25 / 175, 0], [0, 0, 0]])
    assert overlaps(found[:0], truth).shape == (0, 3)


def test_more_detections_than_coco_looks_at():
    """COCO takes the best hundred of an image and class; here the object is found by the last of two hundred."""
    found = [(0, 0, 0.9 - i / 1000, 0, 20, 20, 29, 29) for i in range(199)] + [(0, 0, 0.1, 0, *BOX)]
    evaluator = evaluated([(0, 0, 1, 0, *BOX)], found, "integral")
    assert evaluator.eval["AP"] == pytest.approx([1 / 200])


def test_a_page_is_read_from_it_as_from_cocos():
    evaluator = evaluated([(0, 0, 1, 0, *BOX), (1, 0, 1, 1, *BOX)],
                          [(0, 0, 0.9, 0, *BOX), (1, 0, 0.8, 0, *BOX), (1, 0, 0.7, 0, 50, 50, 59, 59)], images=2)
    ranking, = curves.rankings(evaluator)
    assert (ranking.scores.tolist(), ranking.hits.tolist(), ranking.positives) == ([0.9, 0.7], [True, False], 1)
    assert curves.image_scores(evaluator, 0.5) == {0: (1.0, 1, 0, 0), 1: (0.0, 0, 1, 0)}
    np.testing.assert_array_equal(curves.confusion(evaluator, 0.5), [[1, 0], [1, 0]])
    recall, precision = curves.precision_recall(evaluator, 0.5)
    assert len(recall) == 101
    np.testing.assert_allclose(precision, 1.0)


def test_nothing_found_has_precision_zero():
    nothing = curves.Ranking(np.zeros(0), np.zeros(0, bool), 3)
    assert [average_precision(nothing, map_type) for map_type in TYPES] == [0.0, 0.0]
