"""SAHI over a detector of ppgfl finds what `Slicing` finds, once their settings say the same."""
import numpy as np
import pytest
from helpers import draw_image, match

from ppgfl import Detector
from ppgfl.inference import slicing
from ppgfl.inference.slicing import Slicing

sahi = pytest.importorskip("sahi")
from sahi.predict import get_prediction, get_sliced_prediction  # noqa: E402
from sahi.slicing import get_slice_bboxes  # noqa: E402

from ppgfl.inference.sahi_model import SahiModel  # noqa: E402

OVERRIDES = ["TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "use_gpu=false", "engine=dygraph"]
WORDS = {"nms": "NMS", "nmm": "GREEDYNMM", "iou": "IOU", "ios": "IOS"}


@pytest.fixture(scope="module")
def detector(r18vd_weights):
    return Detector("gfl_r18vd_1x_coco", r18vd_weights, OVERRIDES)


@pytest.mark.parametrize("size", [(640, 640), (100, 200), (1000, 640), (641, 900), (33, 2000)])
def test_the_slices_are_the_same(size):
    options = Slicing((320, 256), (0.2, 0.3))
    ours = [list(place) for place in slicing.slices(*size, options)]
    assert ours == get_slice_bboxes(*size, 320, 256, False, 0.2, 0.3)


def rows_of(result):
    return np.array([[one.category.id, one.score.value, *one.bbox.to_xyxy()] for one in result.object_prediction_list],
                    np.float32).reshape(-1, 6)


def cut_look(detector, images):
    """As SAHI sees boxes: inside of what was looked at. And a pixel shorter: `slicing.overlap`, as PaddleDetection,
    adds one to each side."""
    found = []
    for image, rows in zip(images, detector.detect(images)):
        height, width = image.shape[:2]
        rows = rows.copy()
        rows[:, 2:] = np.clip(rows[:, 2:], 0, [width, height] * 2)
        rows = rows[np.minimum(rows[:, 4] - rows[:, 2], rows[:, 5] - rows[:, 3]) >= 0.5]
        found.append(rows - np.float32([0, 0, 0, 0, 1, 1]))
    return found


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("metric", ["ios", "iou"])
def test_sahi_finds_what_our_slicing_finds(detector, full, metric):
    image, _ = draw_image(np.random.default_rng(0), 90, 130)
    options = Slicing((64, 64), (0.25, 0.25), match_metric=metric, full=full)
    ours = slicing.detect_sliced(lambda images: cut_look(detector, images), image, options)
    ours[:, 4:] += 1
    model = SahiModel(model=detector, confidence_threshold=0.0)
    theirs = rows_of(get_sliced_prediction(
        image[..., ::-1], model, 64, 64, 0.25, 0.25, perform_standard_pred=full, postprocess_type="NMS",
        postprocess_match_metric=WORDS[metric], postprocess_match_threshold=0.6, verbose=0, batch_size=3))
    assert len(ours) > 30
    match(theirs, ours)


def test_one_look(detector):
    image, _ = draw_image(np.random.default_rng(1), 90, 130)
    model = SahiModel(model=detector, confidence_threshold=0.05)
    found = detector(image).above(0.05)
    theirs = rows_of(get_prediction(np.ascontiguousarray(image[..., ::-1]), model))
    wanted = np.clip(found.boxes, 0, [130, 90, 130, 90])
    kept = np.minimum(*(wanted[:, 2:] - wanted[:, :2]).T) >= 0.5
    np.testing.assert_allclose(theirs[:, 2:], wanted[kept], atol=1e-4)
    np.testing.assert_array_equal(theirs[:, 0], found.labels[kept])
    assert model.category_names == detector.class_names
