import cases
import make_weights
import numpy as np
import paddle
import pytest
from helpers import recorded, sample

from ppgfl import build, build_model, load_config
from ppgfl.data.batch import collate
from ppgfl.data.targets import Gt2GFLTarget
from ppgfl.model.gfl import Features
from ppgfl.model.head import Integral
from ppgfl.model.losses import (
    DistributionFocalLoss,
    FocalLoss,
    GFLCriterion,
    GIoULoss,
    QualityFocalLoss,
    centerness,
)

LOSSES = ("loss", "loss_qfl", "loss_bbox", "loss_dfl")


def tensor(values):
    return paddle.to_tensor(np.array(values, np.float32))


def golden_batch(seed):
    b = cases.batch(seed)
    samples = [{"image": image, "gt_bbox": boxes, "gt_class": classes}
               for image, boxes, classes in zip(b["image"], b["boxes"], b["classes"])]
    batch = collate(Gt2GFLTarget(num_classes=80, grid_cell_scale=8)(samples))
    return {key: paddle.to_tensor(value) for key, value in batch.items()}


@pytest.mark.parametrize("name", ["gfl_r18vd_1x_coco", "gflv2_r50_fpn_1x_coco"])
def test_six_training_steps_are_those_of_paddledetection(name):
    expected = recorded(f"{name}_train")
    model = build_model(load_config(name))
    model.set_state_dict(make_weights.make(name))
    model.train()
    optimizer = build.build_optimizer(load_config(name), model, steps_per_epoch=100)
    for step in range(6):
        losses = model(golden_batch(100 + step))
        np.testing.assert_allclose([losses[k].item() for k in LOSSES], expected[f"step{step}_losses"], rtol=1e-3)
        assert optimizer.get_lr() == pytest.approx(float(expected[f"step{step}_lr"]), rel=1e-6)
        losses["loss"].backward()
        if step == 0:
            check_gradients(model, expected)
        optimizer.step()
        optimizer.clear_grad()
        optimizer._learning_rate.step()
    state = model.state_dict()
    for key in expected:
        if key.startswith("final_"):
            got = sample(state[key[len("final_"):]].numpy(), 64)
            np.testing.assert_allclose(got, expected[key], rtol=1e-3, atol=1e-5 * np.abs(expected[key]).max())


def check_gradients(model, expected):
    # Nearly all of the tolerance is the recorded norms' own: Paddle 3.3 summed millions of squares in float32, and its
    # norm of our gradients agrees with them within 6e-5.
    norms = {n: np.linalg.norm(p.grad.numpy().astype("float64")) for n, p in model.named_parameters()
             if p.grad is not None}
    assert set(norms) == set(expected["grad_names"])
    wanted = dict(zip(expected["grad_names"], expected["grad_norms"]))
    for name, norm in norms.items():
        assert norm == pytest.approx(wanted[name], rel=1e-3, abs=1e-6 * max(wanted.values())), name
    assert {n for n, _ in model.named_parameters() if n not in norms} == set(expected["frozen"])


def test_quality_focal_loss_by_pencil():
    # p = 0.5: |q - p|^2 * cross entropy; at q = 1: 0.25 ln 2; at q = 0: 0.25 ln 2; at q = 0.5: 0
    loss = QualityFocalLoss(loss_weight=2.0)(tensor([0, 0, 0]), tensor([1, 0, 0.5])).numpy()
    np.testing.assert_allclose(loss, [0.5 * np.log(2), 0.5 * np.log(2), 0], atol=1e-6)
    loss = QualityFocalLoss(use_sigmoid=False, beta=1.0)(tensor([0.5, 0.25]), tensor([1, 0])).numpy()
    np.testing.assert_allclose(loss, [0.5 * np.log(2), -0.25 * np.log(0.75)], atol=1e-6)


def test_nan_as_a_probability_comes_out_and_changes_no_other():
    """Paddle's binary_cross_entropy raises, on a GPU it ends the process."""
    probability = paddle.to_tensor([0.3, float("nan"), 1.0, 0.0], stop_gradient=False)
    quality = paddle.to_tensor([0.7, 0.7, 1.0, 0.0])
    loss = QualityFocalLoss(use_sigmoid=False)(probability, quality)
    loss.sum().backward()
    good = paddle.to_tensor([0.3, 0.5, 1.0, 0.0], stop_gradient=False)
    entropy = paddle.nn.functional.binary_cross_entropy(good, quality, reduction="none")
    expected = entropy * (quality - good).abs().pow(2.0)
    expected.sum().backward()
    for i in (0, 2, 3):
        assert loss[i].item() == expected[i].item()
        assert probability.grad[i].item() == good.grad[i].item()
    assert np.isnan(loss[1].item())


def test_distribution_focal_loss_by_pencil():
    # three equal bins: ln 3 wherever the target lies; a sharp bin 1 and target 1.25: 0.75 * 0 + 0.25 * 20
    loss = DistributionFocalLoss(loss_weight=0.5)(tensor([[0, 0, 0], [0, 0, 0]]), tensor([0.3, 1.9])).numpy()
    np.testing.assert_allclose(loss, [0.5 * np.log(3)] * 2, atol=1e-6)
    loss = DistributionFocalLoss()(tensor([[-20, 0, -20]]), tensor([1.25])).numpy()
    np.testing.assert_allclose(loss, [5.0], atol=1e-3)


def test_giou_loss_by_pencil():
    loss = GIoULoss(loss_weight=2.0)(tensor([[0, 0, 1, 1]]), tensor([[2, 0, 3, 1]])).numpy()
    np.testing.assert_allclose(loss, [2 * (1 + 1 / 3)], atol=1e-6)


def test_focal_loss_by_pencil():
    # At a logit of 0 the probability is a half: entropy log 2, modulated by a half squared.
    loss = FocalLoss(alpha=0.25, gamma=2.0)(tensor([[0.0, 0.0]]), tensor([[1.0, 0.0]])).numpy()
    np.testing.assert_allclose(loss, [[0.25 * 0.25 * np.log(2), 0.75 * 0.25 * np.log(2)]], rtol=1e-6)


def test_centerness_by_pencil():
    sides = tensor([[2, 2, 2, 2], [1, 2, 4, 2], [1, 3, 4, 12], [-1, 2, 3, 2], [0, 0, 0, 0]])  # left top right bottom
    np.testing.assert_allclose(centerness(sides).numpy(), [1, 0.5, 0.25, 0, 0], atol=1e-6)


def criterion(use_sigmoid=True, loss_class=None, reg_max=16, **more):
    return GFLCriterion(strides=(8, 16), num_classes=3, reg_max=reg_max, loss_bbox=GIoULoss(2.0),
                        loss_class=loss_class or QualityFocalLoss(use_sigmoid),
                        loss_dfl=DistributionFocalLoss(0.25), **more)


def small_case(boxes, classes, channels=3, seed=0, scale=1.0, bins=17):
    rng = np.random.default_rng(seed)
    targets = Gt2GFLTarget(num_classes=3, downsample_ratios=[8, 16], grid_cell_scale=2)(
        [{"image": np.zeros((3, 32, 48), np.float32), "gt_bbox": np.array(b, np.float32).reshape(-1, 4),
          "gt_class": np.array(c, np.int64)} for b, c in zip(boxes, classes)])
    batch = {k: paddle.to_tensor(v) for k, v in collate(targets).items()}
    sizes = [(4, 6), (2, 3)]
    maps = tuple([paddle.to_tensor((scale * rng.normal(size=(len(boxes), k, *s))).astype("float32")) for s in sizes]
                 for k in (channels, 4 * bins))
    return maps, batch


def naive(maps, batch, use_sigmoid=True):
    """The three losses, cell by cell (GFL, equations 5 and 6; PaddleDetection's weights and normalisers)."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    qfl, bbox, dfl, weights, positives = 0.0, 0.0, 0.0, 0.0, batch["pos_num"].numpy().sum()
    for n in range(maps[0][0].shape[0]):
        cell = 0
        for cls, reg, stride in zip(*maps, (8, 16)):
            cls, reg = cls.numpy()[n].astype("float64"), reg.numpy()[n].astype("float64")
            for i, j in np.ndindex(cls.shape[1:]):
                label, box = int(batch["labels"][n, cell]), batch["bbox_targets"][n, cell].numpy() / stride
                p = sigmoid(cls[:, i, j]) if use_sigmoid else cls[:, i, j]
                quality = np.zeros(len(p))
                if label < 3:
                    logits = reg[:, i, j].reshape(4, 17)
                    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                    left, top, right, bottom = prob @ np.arange(17)
                    got = np.array([j - left, i - top, j + right, i + bottom])
                    iou, hull = overlap(got, box)
                    quality[label] = iou[0]
                    weight = sigmoid(cls[:, i, j]).max()
                    weights += weight
                    bbox += 2.0 * weight * (1 - (iou[0] - (hull - iou[1]) / hull))
                    for side, d in enumerate((j - box[0], i - box[1], box[2] - j, box[3] - i)):
                        d = min(max(d, 0), 15.9)
                        low = int(d)
                        dfl -= 0.25 * weight / 4 * ((low + 1 - d) * np.log(prob[side, low])
                                                    + (d - low) * np.log(prob[side, low + 1]))
                entropy = -(quality * np.log(p) + (1 - quality) * np.log(1 - p))
                qfl += (entropy * np.abs(quality - p) ** 2).sum()
                cell += 1
    return qfl / positives, bbox / max(weights, 1), dfl / max(weights, 1)


def overlap(a, b):
    w, h = max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return (w * h / union, union), (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))


BOXES = [[[4, 4, 30, 28], [20, 2, 44, 20]], [[2, 10, 20, 30]]]
CLASSES = [[0, 2], [1]]


@pytest.mark.parametrize("seed", range(3))
def test_dense_losses_equal_the_naive_loop(seed):
    maps, batch = small_case(BOXES, CLASSES, seed=seed)
    assert (batch["labels"].numpy() < 3).sum(axis=1).min() > 0
    losses = criterion()(Features([], *maps), Integral(16), batch)
    expected = naive(maps, batch)
    np.testing.assert_allclose([losses[k].item() for k in LOSSES[1:]], expected, rtol=1e-4)
    assert losses["loss"].item() == pytest.approx(sum(expected), rel=1e-4)


def test_the_plain_focal_loss_wants_1_whatever_the_box():
    maps, batch = small_case(BOXES, CLASSES)
    got = criterion(loss_class=FocalLoss())(Features([], *maps), Integral(16), batch)
    logits = np.concatenate([m.numpy().reshape(2, 3, -1) for m in maps[0]], 2).transpose(0, 2, 1).astype("float64")
    labels = batch["labels"].numpy()
    target = np.eye(4)[labels][..., :3]
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(target == 1, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p ** 2 * np.log(1 - p)).sum()
    assert got["loss_qfl"].item() == pytest.approx(expected / (labels < 3).sum(), rel=1e-5)
    with_qfl = criterion()(Features([], *maps), Integral(16), batch)
    assert [got[name].item() for name in LOSSES[2:]] == [with_qfl[name].item() for name in LOSSES[2:]]


def test_one_number_for_each_side_is_the_logarithm_of_its_distance():
    maps, batch = small_case(BOXES, CLASSES, bins=1)
    got = criterion(reg_max=0)(Features([], *maps), Integral(0), batch)
    assert got["loss_dfl"].item() == 0
    cls, reg = (np.concatenate([m.numpy().reshape(2, m.shape[1], -1) for m in level], 2).transpose(0, 2, 1)
                for level in maps)
    total = weights = 0.0
    strides = [8] * 24 + [16] * 6
    cells = [(i, j) for size in ((4, 6), (2, 3)) for i, j in np.ndindex(size)]
    for n, cell in zip(*np.nonzero(batch["labels"].numpy() < 3)):
        i, j = cells[cell]
        left, top, right, bottom = np.exp(reg[n, cell].astype("float64"))
        box = batch["bbox_targets"].numpy()[n, cell] / strides[cell]
        iou, hull = overlap(np.array([j - left, i - top, j + right, i + bottom]), box)
        weight = 1 / (1 + np.exp(-cls[n, cell].max()))
        total, weights = total + 2 * weight * (1 - (iou[0] - (hull - iou[1]) / hull)), weights + weight
    assert got["loss_bbox"].item() == pytest.approx(total / max(weights, 1), rel=1e-4)


@pytest.mark.parametrize("branch", ["iou", "centerness"])
def test_a_quality_branch_learns_at_positive_cells_and_changes_no_other_term(branch):
    maps, batch = small_case(BOXES, CLASSES, channels=4)
    classes = [m[:, :3] for m in maps[0]]
    got = criterion(quality_branch=branch)(Features([], *maps), Integral(16), batch)
    without = criterion()(Features([], classes, maps[1]), Integral(16), batch)
    assert [got[name].item() for name in LOSSES[1:]] == [without[name].item() for name in LOSSES[1:]]
    positive = batch["labels"].numpy() < 3
    logits = np.concatenate([m.numpy()[:, 3].reshape(2, -1) for m in maps[0]], 1)[positive].astype("float64")
    strides = np.repeat([8, 16], [24, 6])
    centers = np.array([(j, i) for size in ((4, 6), (2, 3)) for i, j in np.ndindex(size)])
    wanted = []
    for n, cell in zip(*np.nonzero(positive)):
        (j, i), box = centers[cell], batch["bbox_targets"].numpy()[n, cell] / strides[cell]
        if branch == "centerness":
            x, y = sorted([j - box[0], box[2] - j]), sorted([i - box[1], box[3] - i])
            wanted.append(np.sqrt(max(0, x[0]) / x[1] * max(0, y[0]) / y[1]))
        else:
            reg = np.concatenate([m.numpy()[n].reshape(68, -1) for m in maps[1]], 1)[:, cell].reshape(4, 17)
            prob = np.exp(reg) / np.exp(reg).sum(1, keepdims=True)
            left, top, right, bottom = prob @ np.arange(17)
            wanted.append(overlap(np.array([j - left, i - top, j + right, i + bottom]), box)[0][0])
    p = 1 / (1 + np.exp(-logits))
    entropy = -(np.array(wanted) * np.log(p) + (1 - np.array(wanted)) * np.log(1 - p))
    assert got["loss_quality"].item() == pytest.approx(entropy.sum() / positive.sum(), rel=1e-4)
    assert got["loss"].item() == pytest.approx(without["loss"].item() + got["loss_quality"].item(), rel=1e-6)


def test_gflv2s_extra_channel_is_background_everywhere():
    maps, batch = small_case(BOXES, CLASSES, channels=4)
    maps = ([paddle.nn.functional.sigmoid(x) for x in maps[0]], maps[1])
    losses = criterion(use_sigmoid=False)(Features([], *maps), Integral(16), batch)
    np.testing.assert_allclose([losses[k].item() for k in LOSSES[1:]], naive(maps, batch, use_sigmoid=False), rtol=1e-4)


def test_images_without_boxes_teach_background_only():
    maps, batch = small_case([[], []], [[], []])
    for x in (*maps[0], *maps[1]):
        x.stop_gradient = False
    losses = criterion()(Features([], *maps), Integral(16), batch)
    assert losses["loss_bbox"].item() == losses["loss_dfl"].item() == 0
    assert losses["loss_qfl"].item() > 0
    losses["loss"].backward()
    assert all(np.isfinite(x.grad.numpy()).all() for x in (*maps[0], *maps[1]))
    assert all((x.grad.numpy() == 0).all() for x in maps[1])


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_maps_give_finite_losses_and_gradients(scale):
    maps, batch = small_case([[[0, 0, 48, 32], [10, 10, 10.5, 10.5]], [[0, 0, 4, 4]]], [[0, 1], [2]], scale=scale)
    for x in (*maps[0], *maps[1]):
        x.stop_gradient = False
    losses = criterion()(Features([], *maps), Integral(16), batch)
    losses["loss"].backward()
    assert all(np.isfinite(value.item()) for value in losses.values())
    assert all(np.isfinite(x.grad.numpy()).all() for x in (*maps[0], *maps[1]))


class Step(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.integral = Integral(16)
        self.criterion = criterion()

    def forward(self, cls, reg, batch):
        return self.criterion(Features([], cls, reg), self.integral, batch)


def test_the_loss_compiles_into_one_static_graph():
    """full_graph: a step that looked at a value on the host could not be compiled."""
    maps, batch = small_case(BOXES, CLASSES)
    batch = {key: batch[key] for key in ("labels", "label_weights", "bbox_targets", "pos_num")}
    eager = Step()(*maps, batch)
    static = paddle.jit.to_static(Step(), full_graph=True)(*maps, batch)
    for name in LOSSES:
        assert static[name].item() == pytest.approx(eager[name].item(), rel=1e-6)
