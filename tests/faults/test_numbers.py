"""Losses and decoding in float32 with numbers at the edge of what a float32, a map or an image can hold."""
import itertools

import numpy as np
import paddle
import pytest

from ppgfl.data.batch import collate
from ppgfl.data.targets import Gt2GFLTarget
from ppgfl.model.boxes import giou, iou
from ppgfl.model.decode import Decoder, MultiClassNMS
from ppgfl.model.gfl import Features
from ppgfl.model.head import Integral
from ppgfl.model.losses import DistributionFocalLoss, GFLCriterion, GIoULoss, QualityFocalLoss

STRIDES, SIZES, CLASSES, REG_MAX = (8, 16), [(4, 6), (2, 3)], 3, 16
LOGITS = {"zero": lambda rng, shape: np.zeros(shape), "small": lambda rng, shape: rng.normal(size=shape),
          "+1e4": lambda rng, shape: np.full(shape, 1e4), "-1e4": lambda rng, shape: np.full(shape, -1e4),
          "+-1e4": lambda rng, shape: rng.choice([-1e4, 1e4], shape),
          "+-1e30": lambda rng, shape: rng.choice([-1e30, 1e30], shape)}
BOXES = {"none": [], "no size": [[8, 8, 8, 8]], "no height": [[0, 8, 48, 8]], "a millionth": [[8, 8, 8 + 1e-6, 8.1]],
         "all there is": [[0, 0, 48, 32]], "1e6 pixels": [[-5e5, -5e5, 5e5, 5e5]],
         "1e6 away": [[1e6, 1e6, 1e6 + 50, 1e6 + 50]], "1e6 px and 0 px": [[-5e5, 0, 5e5, 32], [20, 20, 20, 20]],
         "turned round": [[40, 30, 10, 10]], "a hundred alike": [[4, 4, 44, 28]] * 100}


def maps_of(make, rng, channels=CLASSES):
    return tuple([paddle.to_tensor(make(rng, (1, k, *size)).astype("float32"), stop_gradient=False) for size in SIZES]
                 for k in (channels, 4 * (REG_MAX + 1)))


def targets_of(boxes):
    sample = {"image": np.zeros((3, 32, 48), np.float32), "gt_bbox": np.array(boxes, np.float32).reshape(-1, 4),
              "gt_class": np.arange(len(boxes)) % CLASSES}
    batch = collate(Gt2GFLTarget(num_classes=CLASSES, downsample_ratios=STRIDES, grid_cell_scale=8)([sample]))
    return {key: paddle.to_tensor(value) for key, value in batch.items()}


def every_cell_positive():
    batch = targets_of([[0, 0, 48, 32]])
    cells = batch["labels"].shape[1]
    batch["labels"] = paddle.zeros([1, cells], "int64")
    batch["bbox_targets"] = paddle.tile(paddle.to_tensor([[[0.0, 0.0, 48.0, 32.0]]]), [1, cells, 1])
    batch["pos_num"] = paddle.to_tensor([cells])
    return batch


def losses_and_gradients(maps, batch, use_sigmoid=True):
    criterion = GFLCriterion(strides=STRIDES, num_classes=CLASSES, reg_max=REG_MAX, loss_bbox=GIoULoss(2.0),
                             loss_class=QualityFocalLoss(use_sigmoid), loss_dfl=DistributionFocalLoss(0.25))
    cls = maps[0] if use_sigmoid else [paddle.nn.functional.sigmoid(x) for x in maps[0]]
    losses = criterion(Features([], cls, maps[1]), Integral(REG_MAX), batch)
    losses["loss"].backward()
    return np.array([value.item() for value in losses.values()]), [x.grad.numpy() for kind in maps for x in kind]


@pytest.mark.parametrize("joint", [False, True], ids=["gfl", "gflv2"])
@pytest.mark.parametrize("boxes", [*BOXES, "every cell"])
@pytest.mark.parametrize("logits", LOGITS)
def test_losses_and_gradients_are_finite(logits, boxes, joint):
    batch = every_cell_positive() if boxes == "every cell" else targets_of(BOXES[boxes])
    maps = maps_of(LOGITS[logits], np.random.default_rng(0), CLASSES + joint)
    losses, gradients = losses_and_gradients(maps, batch, use_sigmoid=not joint)
    assert np.isfinite(losses).all(), losses
    assert (losses >= 0).all(), losses
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [0, 1], ids=["classes", "distances"])
@pytest.mark.parametrize("joint", [False, True], ids=["gfl", "gflv2"])
def test_nan_in_gives_nan_out_and_no_crash(bad, kind, joint):
    """What is wrong must reach `Meter`, which names step and images."""
    if joint and kind == 0 and bad == np.inf:
        pytest.skip("the probability of an infinite logit is 1")
    maps = maps_of(LOGITS["small"], np.random.default_rng(0), CLASSES + joint)
    wrong = maps[kind][0].numpy()
    wrong[0, :, 1, 1] = bad  # inside of the box
    maps[kind][0] = paddle.to_tensor(wrong, stop_gradient=False)
    losses, _ = losses_and_gradients(maps, every_cell_positive(), use_sigmoid=not joint)
    assert not np.isfinite(losses[0])


@pytest.mark.parametrize("joint", [False, True], ids=["gfl", "gflv2"])
@pytest.mark.parametrize("logits", LOGITS)
def test_detections_are_finite(logits, joint):
    maps = maps_of(LOGITS[logits], np.random.default_rng(0), CLASSES + joint)
    if joint:
        maps = [paddle.nn.functional.sigmoid(x) for x in maps[0]], maps[1]
    decoder = Decoder(strides=STRIDES, num_classes=CLASSES, joint_scores=joint, nms=MultiClassNMS())
    rows = decoder(Features([], *maps), Integral(REG_MAX), paddle.ones([1, 2]))["bbox"].numpy()
    assert np.isfinite(rows).all()
    assert ((rows[:, 1] >= 0) & (rows[:, 1] <= 1)).all()
    assert ((rows[:, 4:] - rows[:, 2:4]) >= 0).all()
    assert (np.abs(rows[:, 2:]) <= 48 + 16 * REG_MAX).all()


def test_overlaps_of_all_pairs_of_odd_boxes():
    # Turned round ones cannot be predicted (distances are no less than 0) and are rejected from annotations.
    boxes = np.array([box for kind in BOXES if kind != "turned round" for box in BOXES[kind]], np.float32)
    a, b = (paddle.to_tensor(np.array(side), stop_gradient=False) for side in zip(*itertools.product(boxes, boxes)))
    for overlap, low in ((iou(a, b), 0), (giou(a, b), -1)):
        assert ((overlap.numpy() >= low - 1e-3) & (overlap.numpy() <= 1 + 1e-3)).all()
        overlap.sum().backward()
        assert np.isfinite(a.grad.numpy()).all()
        assert np.isfinite(b.grad.numpy()).all()
