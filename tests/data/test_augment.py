"""Augmentations: the pixels and boxes that PaddleDetection makes of the same numbers, and what holds for each."""
import copy
import json

import numpy as np
import pytest
import replay
from helpers import GOLDEN

from ppgfl import ConfigError, load_config
from ppgfl.data.augment.base import PER_BOX
from ppgfl.data.augment.choose import BatchRandomResize, RandomSelects
from ppgfl.data.augment.colour import AugmentHSV, RandomDistort
from ppgfl.data.augment.crop import RandomCrop, RandomScaledCrop, RandomSizeCrop
from ppgfl.data.augment.erase import GridMask, RandomErasing
from ppgfl.data.augment.geometry import Pad, RandomShift, RandomShortSideResize
from ppgfl.data.augment.mix import Cutmix, Mixup
from ppgfl.data.augment.mosaic import Mosaic
from ppgfl.data.augment.operations import in_box, posterize, solarize
from ppgfl.data.batch import Reader
from ppgfl.data.loader import BatchMaker
from ppgfl.data.transforms import NormalizeImage, Resize, pixels_of
from ppgfl.readers import BATCH_TRANSFORMS, SAMPLE_TRANSFORMS, _transform

RECORDED = json.loads((GOLDEN / "augmentation.json").read_text(encoding="utf-8"))
CFG = load_config("gfl_r18vd_1x_coco")


def make(case):
    name, args = replay.CASES[case]
    return _transform(CFG, {**SAMPLE_TRANSFORMS, **BATCH_TRANSFORMS}, {name: copy.deepcopy(args)}, case)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("case", replay.CASES)
def test_pixels_and_boxes_are_those_of_paddledetection(case):
    """Another version of OpenCV or Pillow may round a pixel to the next value."""
    assert RECORDED[case]
    for one in RECORDED[case]:
        sample = replay.transformed(make(case), replay.records(case, one["seed"]), replay.Replay(one["drawn"]))
        image = pixels_of(sample)
        assert (list(image.shape), str(image.dtype)) == (one["shape"], one["dtype"])
        flat = image.astype(np.float64).ravel()
        index = np.linspace(0, flat.size - 1, min(48, flat.size)).astype(int)
        assert [flat.mean(), flat.std()] == pytest.approx(one["image"][:2], abs=0.3)
        assert np.mean(np.abs(flat[index] - one["image"][2:]) > 1.01) <= 0.05
        np.testing.assert_allclose(sample["gt_bbox"], np.reshape(one["boxes"], (-1, 4)), atol=2e-3)
        assert list(sample["gt_class"]) == one["classes"]


@pytest.mark.parametrize("case", replay.CASES)
def test_each_keeps_what_belongs_to_a_box_and_leaves_the_records_alone(case):
    transform = make(case)
    for seed in range(15):
        samples = replay.records(case, seed, (int(rng(seed).integers(2, 80)), 50) if seed % 2 else None)
        for sample in samples:
            sample["gt_score"] = np.ones(len(sample["gt_bbox"]), np.float32)
        before = copy.deepcopy(samples)
        made = replay.transformed(transform, samples, rng(seed))
        for old, sample in zip(before, samples):
            assert all(np.array_equal(old[key], sample[key]) for key in ("gt_bbox", "image", *PER_BOX[:3]))
        assert made["gt_bbox"].dtype == np.float32
        assert made["gt_class"].dtype == np.int64
        assert {len(made[key]) for key in ("gt_bbox", "gt_class", "is_crowd") if key in made} == {len(made["gt_bbox"])}
        assert made["image"].dtype in (np.uint8, np.float32)
        assert np.isfinite(made["gt_bbox"]).all()


@pytest.mark.parametrize("case", replay.CASES)
def test_each_takes_an_image_without_boxes_and_the_same_numbers_give_the_same(case):
    samples = [{key: value for key, value in sample.items() if key not in ("gt_bbox", *PER_BOX)}
               for sample in replay.records(case, 1)]
    one, other = (replay.transformed(make(case), samples, rng(5)) for _ in range(2))
    assert "gt_bbox" not in one
    assert np.array_equal(one["image"], other["image"])


# --- pencil numbers

def sample_of(boxes, height=10, width=20, value=100):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {"image": np.full((height, width, 3), value, np.uint8), "gt_bbox": boxes, "is_crowd": np.zeros(len(boxes)),
            "gt_class": np.arange(len(boxes)), "im_shape": np.array([height, width], np.float32),
            "scale_factor": np.ones(2, np.float32)}


def test_a_crop_keeps_the_boxes_whose_centre_is_inside():
    sample = sample_of([[0, 0, 4, 4], [8, 2, 14, 8], [15, 0, 20, 10]])
    RandomCrop().apply(sample, (4, 1, 12, 9))
    assert sample["image"].shape == (8, 8, 3)
    assert sample["gt_bbox"].tolist() == [[4, 1, 8, 7]]
    assert sample["gt_class"].tolist() == [1]


def test_the_share_of_a_crop_is_of_the_box_or_of_both():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 10, 10]], np.float32)
    fits = [RandomCrop(ioumode=mode)._fits(boxes[:1], (0, 0, 8, 3), share) for mode, share in (
        ("iof", 0.74), ("iof", 0.76), ("iou", 0.42), ("iou", 0.44))]  # 12 of 16, and 12 of 16 + 24 - 12
    assert fits == [True, False, True, False]
    assert RandomCrop(ioumode="iof")._fits(boxes, (0, 0, 4, 3), 0.7)
    assert not RandomCrop(ioumode="iof", cover_all_box=True)._fits(boxes, (0, 0, 4, 3), 0.7)  # 12 of 100


def test_a_shift_that_loses_all_boxes_leaves_image_and_boxes():
    sample = sample_of([[0, 0, 2, 2]])
    transform = RandomShift(prob=1, max_shift=5)
    assert transform.draw(sample, replay.Replay([["random", None, 0], ["integers", [-5, 6], -5],
                                                 ["integers", [-5, 6], 0]])) is None
    transform.apply(sample, (3, 5))
    assert sample["gt_bbox"].tolist() == [[5, 3, 7, 5]]
    assert (sample["image"][:3] == 0).all()
    assert (sample["image"][:, :5] == 0).all()
    assert (sample["image"][3:, 5:] == 100).all()


def test_mixup_and_cutmix_take_the_boxes_of_both():
    samples = [sample_of([[0, 0, 5, 5]]), sample_of([[1, 1, 3, 3], [2, 2, 4, 4]], 20, 10, 200)]
    mixed = Mixup().apply(samples, 0.25)
    assert mixed["image"].shape == (20, 20, 3)
    assert [int(mixed["image"][y, x, 0]) for y, x in ((0, 0), (0, 15), (15, 0), (15, 15))] == [175, 25, 150, 0]
    assert mixed["gt_class"].tolist() == [0, 0, 1]
    assert mixed["gt_score"].tolist() == [0.25, 0.75, 0.75]
    cut = Cutmix().apply(samples, (0.75, 5, 5))  # half of each side: 10 x 10 around (5, 5)
    assert (cut["image"][:10, :10] == 200).all()
    assert (cut["image"][:10, 10:] == 100).all()
    assert cut["gt_bbox"].tolist() == [[0, 0, 5, 5], [1, 1, 3, 3], [2, 2, 4, 4]]


def test_a_mosaic_is_as_high_and_wide_as_it_should_be():
    samples = [replay.record(seed) for seed in (1, 3, 5, 6, 8)]
    for seed in range(5):
        made = Mosaic(input_dim=(40, 64)).mix(samples, rng(seed))
        assert made["image"].shape == (40, 64, 3)
        assert (made["gt_bbox"].reshape(-1, 2, 2) <= [64, 40]).all()
    assert Mosaic(prob=0).mix(samples, rng()) is samples[0]


def test_grid_mask_grows_from_epoch_to_epoch():
    drawn = [sum(GridMask(prob=1, upper_iter=100).draw({**sample_of([]), "curr_iter": seen}, rng(seed)) is not None
                 for seed in range(200)) for seen in (0, 50, 100, 500)]
    assert drawn[0] == 0
    assert 70 < drawn[1] < 130
    assert drawn[2:] == [200, 200]
    sample = sample_of([])
    GridMask(offset=True).apply(sample, (4, 0, 0, 0, rng().random((10, 20))))  # which PaddleDetection cannot
    assert sample["image"].dtype == np.uint8


def test_noise_of_an_erased_part_goes_round():
    sample = sample_of([])
    RandomErasing(value="random").apply(sample, (0, 0, 1, 2, np.array([[[-1.5, 256.9, 0], [511.2, -256.9, 7.9]]])))
    assert sample["image"][0, :2].tolist() == [[255, 0, 0], [255, 0, 7]]


def test_small_images_pass_where_paddledetection_fails():
    assert RandomSizeCrop(384, 600).draw(sample_of([]), rng()) == (0, 0, 20, 10)
    sample = sample_of([[0, 0, 1, 1]], 1, 200)
    RandomScaledCrop(8, (0.1, 0.1))(sample, rng())
    assert sample["image"].shape == (8, 8, 3)
    RandomShortSideResize([1])(sample_of([], 1, 1000), rng())


def test_padding():
    sample = sample_of([[0, 0, 1, 1]])
    Pad(size=(12, 24), pad_mode=2, fill_value=[1, 2, 3])(sample, rng())
    assert sample["gt_bbox"].tolist() == [[4, 2, 5, 3]]
    assert sample["image"][0, 0].tolist() == [1, 2, 3]
    sample = sample_of([])
    Pad(size=(12, 24), fill_value=7.5)(sample, rng())
    assert sample["image"][11, 23].tolist() == [7.5, 7.5, 7.5]
    sample = sample_of([])
    Pad()(sample, rng())
    assert sample["image"].shape == (32, 32, 3)
    with pytest.raises(ConfigError, match=r"Pad.size: 8 x 8.*an image has 10 x 20 pixels"):
        Pad(size=8)(sample_of([]), rng())


def test_operations_of_auto_augment():
    image = np.full((4, 4, 3), 255, np.uint8)
    inside = in_box(image, np.array([0, 0, 0.25, 0.25]), solarize, 128)
    assert inside[:2, :2].max() == 0  # the last row and column belong to it
    assert inside[2:].min() == 255  # where PaddleDetection makes black of white
    assert np.array_equal(in_box(image, np.array([1.0, 0, 1, 1]), solarize, 128)[:3], image[:3])
    assert posterize(np.array([255, 100], np.uint8), 4).tolist() == [240, 96]
    assert posterize(image, 0).max() == 0


def test_a_batch_has_one_size_and_images_keep_their_numbers():
    samples = [sample_of([[0, 0, 20, 10]]), sample_of([], 30, 30)]
    made = BatchRandomResize([[8, 12], 16], keep_ratio=False)(samples, rng(1))
    assert len({each["image"].shape for each in made}) == 1
    assert made[0]["gt_bbox"][0, 2:].tolist() == list(made[0]["image"].shape[1::-1])


def test_normalisation_of_bytes_and_of_floats_is_the_same():
    bytes_, floats = (rng().integers(0, 256, (5, 6, 3)).astype(kind) for kind in (np.uint8, np.float32))
    normalize = NormalizeImage()
    made = [{"image": image} for image in (bytes_, floats, floats + np.float32(0.5))]
    for sample in made:
        normalize(sample)
    assert np.array_equal(made[0]["image"], made[1]["image"])
    expected = ((floats + 0.5) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(made[2]["image"], expected, rtol=1e-5, atol=1e-6)
    mirrored = {"image": np.asfortranarray(floats + np.float32(0.5))[:, ::-1]}
    normalize(mirrored)
    assert np.array_equal(mirrored["image"], made[2]["image"][:, ::-1])
    outside = {"image": np.full((1, 1, 3), -7, np.float32)}
    normalize(outside)
    np.testing.assert_allclose(outside["image"][0, 0], (-7 / 255 - normalize.mean) / normalize.std, rtol=1e-5)


def test_a_second_resize_works_on_fractions():
    """As in PaddleDetection, whose first one makes float32 of an image."""
    once = sample_of([])
    once["image"] = rng().integers(0, 256, (10, 20, 3)).astype(np.uint8)
    Resize([8, 9], False)(once)
    assert once["image"].dtype == np.uint8
    Resize([13, 17], False, 2)(once)
    assert once["image"].dtype == np.float32
    assert (once["image"] % 1 != 0).any()


def test_the_share_of_lists_adds_up():
    def paint(value):
        return lambda sample, rng: sample.update(image=value)

    chosen = RandomSelects([[paint(1)], [paint(2)]], p=[0.25, 0.5])
    samples = [{} for _ in range(400)]
    source = rng()
    for sample in samples:
        chosen(sample, source)
    assert 70 < sum(sample["image"] == 1 for sample in samples) < 130
    assert all(sample["image"] in (1, 2) for sample in samples)  # above 0.5 the last one, not nothing


@pytest.mark.parametrize(("made", "found"), [
    (lambda: RandomDistort(hue=[5, -5, 0.5]), r"RandomDistort.hue: \[5, -5\]; the smaller"),
    (lambda: RandomDistort(contrast=[0, 1, 2]), "RandomDistort.contrast: .*the third number is a share"),
    (lambda: AugmentHSV(hgain=3), "AugmentHSV.hgain, sgain, vgain: .*all three, or none"),
    (lambda: Pad(pad_mode=-1), "Pad.offsets: missing"),
    (lambda: RandomSizeCrop(9, 3), "RandomSizeCrop.min_size: 9; it must be at most max_size, 3"),
    (lambda: RandomSelects([[]], p=[0.1, 1]), "RandomSelects.p: .*one share for each of the 1 lists"),
    (lambda: BatchRandomResize(64, True), "BatchRandomResize.target_size: 64; random_size needs a list"),
    (lambda: Mosaic(scale=[2, 1]), "Mosaic.scale: .*smaller"), (lambda: Mosaic(scale=[1, 1000]), "at most 100"),
])
def test_values_that_do_not_go_together(made, found):
    with pytest.raises(ConfigError, match=found):
        made()


def test_samples_know_how_many_images_came_before():
    seen = []
    reader = Reader([lambda sample, rng: seen.append(sample["curr_iter"])], [])
    maker = BatchMaker([{"image": np.zeros((1, 1, 3))}] * 5, reader)
    for epoch in (0, 3):
        maker._transformed(epoch, 2)
    assert seen == [0, 15]
