import tracemalloc

import cases
import numpy as np
import pytest
from helpers import recorded

from ppgfl import ConfigError
from ppgfl.data.targets import Gt2GFLTarget, assign, valuable_region

STRIDES = (8, 16, 32, 64, 128)


def samples_of(seed):
    batch = cases.batch(seed)
    return [{"image": image, "gt_bbox": boxes, "gt_class": classes}
            for image, boxes, classes in zip(batch["image"], batch["boxes"], batch["classes"])]


@pytest.mark.parametrize("seed", range(8))
def test_targets_are_exactly_those_of_paddledetection(seed):
    expected = recorded("targets")
    for j, s in enumerate(Gt2GFLTarget(num_classes=80, grid_cell_scale=8)(samples_of(seed))):
        positive = np.flatnonzero(s["labels"] < 80)
        np.testing.assert_array_equal(positive, expected[f"case{seed}_image{j}_pos"])
        np.testing.assert_array_equal(s["labels"][positive], expected[f"case{seed}_image{j}_labels"])
        np.testing.assert_array_equal(s["bbox_targets"][positive], expected[f"case{seed}_image{j}_boxes"])
        assert s["pos_num"] == expected[f"case{seed}_pos_num"][j]
        assert len(s["labels"]) == expected[f"case{seed}_num_cells"]
        assert (s["label_weights"] == 1).all()
        assert (s["bbox_targets"][s["labels"] == 80] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_regions_of_distillation_are_exactly_those_of_paddledetection(seed):
    expected = recorded("distill")
    for j, s in enumerate(Gt2GFLTarget(grid_cell_scale=8, compute_vlr_region=True)(samples_of(seed))):
        cells = np.flatnonzero(s["vlr_regions"])
        np.testing.assert_array_equal(cells, expected[f"case{seed}_image{j}_vlr_cells"])
        np.testing.assert_allclose(s["vlr_regions"][cells], expected[f"case{seed}_image{j}_vlr_values"], rtol=1e-5)


def test_regions_of_one_box_by_pencil():
    """A box of the size of a cell's square and at its place: 0 outside, and at the cell itself, whose DIoU is 1."""
    levels = [(8, 8, 8)]
    box = np.array([[16, 16, 48, 48]], np.float32)  # the square of the cell at row 4, column 4 with a scale of 4
    region = valuable_region(levels, box, 4).reshape(8, 8)
    assert region[4, 4] == 0
    # Next to it: 24 x 32 of 32 x 32 pixels are shared, the centres are 8 apart, the box around both is 40 x 32.
    diou = 0.75 - 64 / (40**2 + 32**2)
    ious = np.array([1] + 4 * [0.75 / 1.25] + 4 * [0.75**2 / (2 - 0.75**2)])
    threshold = ious.mean() + ious.std(ddof=1)
    assert threshold / 4 <= diou < threshold
    assert region[4, 5] == region[3, 4] == pytest.approx(0.6)
    assert region[0, 0] == 0


def test_regions_of_many_boxes_are_those_of_each(monkeypatch):
    rng = np.random.default_rng(0)
    levels = [(12, 15, 8), (6, 8, 16)]
    low = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 60, (40, 2))], 1).astype("float32")
    each = np.max([valuable_region(levels, box[None], 8, 0.5) for box in boxes], axis=0)
    np.testing.assert_array_equal(valuable_region(levels, boxes, 8, 0.5), each)
    assert (valuable_region(levels, boxes[:0], 8) == 0).all()


def naive_atss(levels, boxes, scale):
    """ATSS by its definition, cell by cell and box by box (float32 as the recorded values are)."""
    cells, level_of = [], []
    for number, (rows, columns, stride) in enumerate(levels):
        for i in range(rows):
            for j in range(columns):
                half = np.float32(stride * scale / 2)
                x, y = np.float32(j * stride), np.float32(i * stride)
                cells.append((x - half, y - half, x + half, y + half))
                level_of.append(number)
    owner, best = np.full(len(cells), -1), np.full(len(cells), -np.inf)
    for g, box in enumerate(boxes):
        center = (box[:2] + box[2:]) / 2
        candidates = []
        for number in range(len(levels)):
            own = [c for c in range(len(cells)) if level_of[c] == number]
            distance = {c: np.sqrt(((np.add(cells[c][:2], cells[c][2:]) / 2 - center) ** 2).sum()) for c in own}
            candidates += sorted(own, key=lambda c: (distance[c], c))[:9]
        ious = []
        for c in candidates:
            a = cells[c]
            w = max(0, min(a[2], box[2]) - max(a[0], box[0]))
            h = max(0, min(a[3], box[3]) - max(a[1], box[1]))
            ious.append(w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (box[2] - box[0]) * (box[3] - box[1]) - w * h))
        threshold = np.mean(ious) + np.std(ious)
        for c, value in zip(candidates, ious):
            x, y = (np.add(cells[c][:2], cells[c][2:]) / 2)
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > best[c]:
                owner[c], best[c] = g, value
    return owner


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(20, 130)), int(rng.integers(20, 130))
    levels = [(-(-height // s), -(-width // s), s) for s in (8, 16, 32)]
    low = rng.uniform(0, [width - 8, height - 8], (5, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 60, (5, 2))], 1).clip(0, [width, height] * 2).astype("float32")
    np.testing.assert_array_equal(assign(levels, boxes, 8), naive_atss(levels, boxes, 8))


def test_each_level_may_have_an_offset_of_its_own():
    """What a level assigns with its offset is what boxes that are moved the other way get without."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 60, (9, 2))
    boxes = np.concatenate([low, low + rng.uniform(8, 60, (9, 2))], 1).round().astype("float32")
    levels, offsets = [(12, 15, 8), (6, 8, 16)], [0.25, 0.125]  # 2 pixels each
    np.testing.assert_array_equal(assign(levels, boxes, 8, offsets), assign(levels, boxes - 2, 8))
    np.testing.assert_allclose(valuable_region(levels, boxes, 8, offsets), valuable_region(levels, boxes - 2, 8),
                               atol=1e-6)
    assert (assign(levels, boxes, 8, offsets) != assign(levels, boxes, 8, [0.9, 0.125])).any()
    np.testing.assert_array_equal(assign(levels, boxes, 8, [0.25, 0.25]), assign(levels, boxes, 8, 0.25))


@pytest.mark.parametrize("offsets", [[0.5], [0.1] * 6, []])
def test_a_list_of_offsets_has_one_for_each_level(offsets):
    with pytest.raises(ConfigError, match=f"Gt2GFLTarget.cell_offset: .*; of {len(offsets)}, but there are 5 levels"):
        Gt2GFLTarget(cell_offset=offsets)
    with pytest.raises(ConfigError, match="but there are 2 levels"):
        assign([(2, 2, 8), (1, 1, 16)], np.zeros((0, 4), np.float32), 8, [0.5, 0.5, 0.5])


def one(boxes, classes=None, size=(64, 64), **extra):
    classes = np.zeros(len(boxes), np.int64) if classes is None else np.array(classes)
    sample = {"image": np.zeros((3, *size), np.float32), "gt_bbox": np.array(boxes, np.float32).reshape(-1, 4),
              "gt_class": classes, **extra}
    return Gt2GFLTarget(num_classes=3, downsample_ratios=[8, 16], grid_cell_scale=8)([sample])[0]


def test_an_image_without_boxes_is_all_background():
    s = one([])
    assert (s["labels"] == 3).all()
    assert (s["label_weights"] == 1).all()
    assert s["pos_num"] == 1
    assert len(s["labels"]) == 64 + 16


def test_crowd_regions_that_were_loaded_are_targets_as_in_paddledetection():
    boxes = [[10, 10, 40, 40], [0, 0, 64, 64]]
    with_crowd = one(boxes, [1, 2], is_crowd=np.array([0, 1]))
    np.testing.assert_array_equal(with_crowd["labels"], one(boxes, [1, 2])["labels"])
    assert (with_crowd["labels"] == 2).any()
    assert "is_crowd" not in with_crowd


def test_paddledetections_column_of_classes_is_understood():
    np.testing.assert_array_equal(one([[10, 10, 40, 40]], [[2]])["labels"], one([[10, 10, 40, 40]], [2])["labels"])


def test_equal_boxes_belong_to_the_first():
    s = one([[8, 8, 40, 40], [8, 8, 40, 40]], [1, 2])
    assert set(np.unique(s["labels"])) == {1, 3}


def test_thousands_of_boxes_need_little_memory():
    rng = np.random.default_rng(0)
    center, size = rng.uniform(0, 800, (3000, 2)), rng.uniform(8, 200, (3000, 2))
    boxes = np.concatenate([center - size / 2, center + size / 2], 1).clip(0, 800)
    tracemalloc.start()
    one(boxes, size=(800, 800))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6, peak  # cells times boxes would be 700 MB for the distances alone
