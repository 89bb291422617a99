"""Sliced inference: where slices lie, how findings are joined, and that small objects are found where they are."""
import json

import numpy as np
import pytest
from helpers import match

from ppgfl import ConfigError
from ppgfl.inference import slicing
from ppgfl.inference.slicing import Slicing


@pytest.mark.parametrize(("size", "options", "wanted"), [
    ((640, 640), {}, [(0, 0, 640, 640)]),
    ((100, 200), {}, [(0, 0, 200, 100)]),  # smaller than a slice
    ((1000, 640), {}, [(0, 0, 640, 640), (0, 360, 640, 1000)]),
    ((100, 250), {"slice_size": (100, 100), "overlap_ratio": (0, 0)},
     [(0, 0, 100, 100), (100, 0, 200, 100), (150, 0, 250, 100)]),
    ((100, 190), {"slice_size": (100, 100), "overlap_ratio": (0.25, 0.1)}, [(0, 0, 100, 100), (90, 0, 190, 100)]),
])
def test_slices_by_hand(size, options, wanted):
    assert slicing.slices(*size, Slicing(**options)) == wanted


@pytest.mark.parametrize("size", [(33, 2000), (641, 641), (1234, 777), (4000, 3000)])
def test_slices_cover_the_image_and_overlap(size):
    options = Slicing((320, 256), (0.2, 0.3))
    seen = np.zeros(size, bool)
    places = slicing.slices(*size, options)
    for x1, y1, x2, y2 in places:
        assert (y2 - y1, x2 - x1) == (min(320, size[0]), min(256, size[1]))
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    columns = sorted({place[0] for place in places})
    assert all(b - a <= 256 - int(0.3 * 256) for a, b in zip(columns, columns[1:]))


ROWS = np.array([[0, 0.9, 0, 0, 99, 99],      # a whole object
                 [0, 0.8, 50, 0, 99, 99],     # half of it, cut by a slice: IoU 0.5, all of the smaller box
                 [1, 0.7, 0, 0, 99, 99],      # another class
                 [0, 0.6, 90, 90, 189, 189],  # hardly overlaps
                 [0, 0.5, 0, 0, 109, 99]], np.float32)


@pytest.mark.parametrize(("options", "kept"), [
    ({}, [0, 2, 3]), ({"match_metric": "iou"}, [0, 1, 2, 3]),
    ({"match_metric": "iou", "match_threshold": 0.5}, [0, 2, 3]),
    ({"combine_method": "concat"}, [0, 1, 2, 3, 4]), ({"match_threshold": 1.0}, [0, 2, 3]),
])
def test_joining_by_hand(options, kept):
    shuffled = ROWS[[3, 1, 4, 0, 2]]
    np.testing.assert_array_equal(slicing.combine(shuffled, Slicing(**options)), ROWS[kept])


def test_merging_gives_the_box_around_all():
    merged = slicing.combine(ROWS, Slicing(combine_method="nmm"))
    np.testing.assert_array_equal(merged[0], np.float32([0, 0.9, 0, 0, 109, 99]))
    np.testing.assert_array_equal(merged[1:], ROWS[[2, 3]])


def test_nothing_found():
    assert slicing.combine(np.zeros((0, 6), np.float32), Slicing()).shape == (0, 6)


@pytest.mark.parametrize("metric", slicing.MATCH_METRICS)
def test_joining_against_the_textbook(metric):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 100, (80, 2))
    rows = np.column_stack([rng.integers(0, 3, 80), rng.random(80), corners, corners + rng.uniform(5, 50, (80, 2))])
    kept = []
    for row in sorted(rows.tolist(), key=lambda r: -r[1]):
        for other in kept:
            if other[0] != row[0]:
                continue
            width = min(row[4], other[4]) - max(row[2], other[2]) + 1
            height = min(row[5], other[5]) - max(row[3], other[3]) + 1
            common = max(0, width) * max(0, height)
            a, b = ((r[4] - r[2] + 1) * (r[5] - r[3] + 1) for r in (row, other))
            if common / (a + b - common if metric == "iou" else min(a, b)) >= 0.4:
                break
        else:
            kept.append(row)
    np.testing.assert_allclose(slicing.combine(rows, Slicing(match_threshold=0.4, match_metric=metric)), kept)


def bright_spots(images):
    """A detector of cardboard: the box around the pixels of each value above 100, which is its class; the more of them,
    the higher the score."""
    found = []
    for image in images:
        rows = []
        for value in np.unique(image[image > 100]):
            y, x = np.nonzero(image[..., 0] == value)
            rows.append([value, len(x) / 1e4, x.min(), y.min(), x.max(), y.max()])
        found.append(np.array(rows, np.float32).reshape(-1, 6))
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_objects_are_found_where_they_are(batch_size):
    image = np.zeros((700, 900, 3), np.uint8)
    spots = {200: (10, 20, 30, 40), 210: (60, 250, 80, 262), 220: (680, 880, 699, 899), 230: (300, 90, 340, 150)}
    for value, (y1, x1, y2, x2) in spots.items():
        image[y1:y2 + 1, x1:x2 + 1] = value
    options = Slicing((128, 128), (0.5, 0.5), "nmm")
    rows = slicing.detect_sliced(bright_spots, image, options, batch_size)
    assert len(rows) == len(spots)
    assert {int(row[0]): tuple(row[[3, 2, 5, 4]].astype(int)) for row in rows} == spots


def test_the_whole_image_is_looked_at_besides():
    """An object larger than a slice; whose parts are the smaller boxes that its own, larger one covers."""
    image = np.zeros((300, 400, 3), np.uint8)
    image[20:280, 30:370] = 200
    image[5:9, 5:9] = 150
    sizes = []

    def look(images):
        sizes.append([one.shape[:2] for one in images])
        return bright_spots(images)

    options = Slicing((128, 128), (0.25, 0.25), full=True)
    rows = slicing.detect_sliced(look, image, options, batch_size=5)
    np.testing.assert_array_equal(rows[0], np.float32([200, 8.84, 30, 20, 369, 279]))
    assert (rows[:, 0] == 200).sum() == 1
    assert tuple(rows[1, 2:]) == (5, 5, 8, 8)
    assert sizes[-1] == [(300, 400)]
    assert {size for some in sizes[:-1] for size in some} == {(128, 128)}
    without = slicing.detect_sliced(bright_spots, image, Slicing((128, 128)))
    assert (without[:, 4] - without[:, 2]).max() < 128
    assert slicing.groups_of_slices(image[:100, :128], options) == [[(0, 0, 128, 100)]]  # looked at once


@pytest.mark.parametrize(("options", "words"), [
    ({"slice_size": (16, 640)}, "slice_size"), ({"overlap_ratio": (1.0, 0.2)}, "overlap_ratio"),
    ({"combine_method": "max"}, "combine_method: 'max'; allowed: nms, nmm, concat"),
    ({"match_metric": "giou"}, "match_metric"), ({"match_threshold": 0}, "match_threshold"),
])
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        Slicing(**options)


def command(run_here, name, *arguments, options=(), weights, cwd):
    sizes = [f"{reader}.sample_transforms.1.Resize.target_size=[64, 96]" for reader in ("TestReader", "EvalReader")]
    done = run_here(name, "-c", "gfl_r18vd_1x_coco", *arguments, "-o", f"weights={weights}", "use_gpu=false",
                    "worker_num=0", "engine=dygraph", *sizes, *options, cwd=cwd)
    assert done.returncode == 0, done.stderr


@pytest.mark.drill
def test_infer_and_eval(run_here, small_coco, r18vd_weights, exported, tmp_path):
    """One slice that holds the whole image changes nothing; several do; and an exported model is sliced as well."""
    for name, flags in (("whole", []), ("one", ["--slice_infer"]),
                        ("many", ["--slice_infer", "--slice_size", 48, "--combine_method", "nmm"])):
        command(run_here, "infer", "--infer_dir", small_coco / "val2017", "--save_results", "coco", "--output_dir",
                name, *flags, weights=r18vd_weights, cwd=tmp_path)
    results = {name: json.loads((tmp_path / name / "bbox.json").read_text()) for name in ("whole", "one", "many")}
    assert {r["image_id"] for r in results["many"]} == {0, 1, 2, 3, 4}
    assert results["many"] != results["one"]
    best = [max((r["score"], *r["bbox"]) for r in results[name] if r["image_id"] == 2) for name in ("whole", "one")]
    np.testing.assert_allclose(*best, atol=1e-3)

    for name, flags in (("from_weights", []), ("from_export", ["--exported", exported[0]])):
        command(run_here, "eval", "--slice_infer", "--slice_size", 64, 48, "--no_report", "--output_eval", name, *flags,
                options=[f"EvalDataset.dataset_dir={small_coco}"], weights=r18vd_weights, cwd=tmp_path)
    a, b = (json.loads((tmp_path / name / "bbox.json").read_text()) for name in ("from_weights", "from_export"))
    for image_id in {r["image_id"] for r in a}:
        match(*(np.array([[r["category_id"], r["score"], *r["bbox"]] for r in rows if r["image_id"] == image_id])
                for rows in (b, a)))


def test_a_bad_size_is_one_line(run_here, tmp_path):
    done = run_here("infer", "-c", "gfl_r18vd_1x_coco", "--slice_infer", "--slice_size", 8, "--infer_img", "x.jpg",
                    cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: slice_size: [8, 8]")
