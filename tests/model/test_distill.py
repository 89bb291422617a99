"""A student that learns from a teacher: the recorded losses of PaddleDetection, and whole runs on drawn images."""
import math

import cases
import make_weights
import numpy as np
import paddle
import pytest
import yaml
from helpers import LD_LOSSES, SHORT, TEACHER, options, recorded, rows, same

from ppgfl import CheckpointError, ConfigError, build_model, load_config, load_weights, train
from ppgfl.data.batch import collate
from ppgfl.data.targets import Gt2GFLTarget
from ppgfl.model.distill import CWDFeatureLoss, KnowledgeDistillationKLDivLoss, LocalizationDistillation, Teacher
from ppgfl.model.gfl import Features
from ppgfl.weights.checkpoint import read


def tensor(values):
    return paddle.to_tensor(np.array(values, np.float32))


# --- against PaddleDetection

def golden(student, slim, teacher="gfl_r101vd_fpn_mstrain_2x_coco"):
    """The student with weights of seed 0, the teacher with those of seed 5, a batch."""
    cfg = load_config(student, slim_config=slim)
    models = build_model(cfg), build_model(cfg["teacher"])
    for model, name, seed in zip(models, (student, teacher), (0, 5)):
        model.set_state_dict(make_weights.make(name, seed))
    b = cases.batch(0)
    samples = [{"image": image, "gt_bbox": boxes, "gt_class": classes}
               for image, boxes, classes in zip(b["image"], b["boxes"], b["classes"])]
    batch = collate(Gt2GFLTarget(grid_cell_scale=8, compute_vlr_region=True)(samples))
    return models[0], Teacher(models[1]), {key: paddle.to_tensor(value) for key, value in batch.items()}


def test_ld_is_that_of_paddledetection_and_reaches_the_student_only():
    student, teacher, batch = golden("gfl_slim_ld_r18vd_1x_coco", "gfl_ld_distill")
    before = {name: value.numpy() for name, value in teacher.model.state_dict().items()}
    losses = student(teacher(batch))
    losses["loss"].backward()
    expected = recorded("distill")
    for name in ("loss_qfl", "loss_bbox", "loss_dfl", *LD_LOSSES):
        assert losses[name].item() == pytest.approx(float(expected[f"ld_{name}"]), rel=1e-4), name
    assert losses["loss"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "loss"), rel=1e-5)
    for name in ("gfl_head_reg", "gfl_head_cls"):
        norm = np.linalg.norm(getattr(student.head, name).weight.grad.numpy())
        assert norm == pytest.approx(float(expected[f"ld_grad_norm_{name}"]), rel=1e-3)
    assert all(value.grad is None and value.stop_gradient for value in teacher.model.parameters())
    assert same({name: value.numpy() for name, value in teacher.model.state_dict().items()}, before)
    assert not teacher.model.training
    assert sum(value.grad is not None for value in student.parameters()) > 50


def test_cwd_is_that_of_paddledetection():
    student, teacher, batch = golden("gfl_r50_fpn_1x_coco", "gfl_r101vd_fpn_coco_distill_cwd")
    losses = student(teacher(batch))
    expected = recorded("distill")
    for i in range(5):
        for kind in ("cls", "neck"):
            value = losses[f"loss_cwd_{kind}_p{i + 3}"].item()
            assert value == pytest.approx(float(expected[f"cwd_{kind}_f_{i}"]), rel=1e-4)
    assert len(losses) == 1 + 3 + 10


# --- by pencil

def test_the_kl_term_by_pencil():
    student, teacher = tensor([[0, 0]]), tensor([[2 * math.log(3), 0]])  # at T = 2: 1/2, 1/2 and 3/4, 1/4
    kl = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2 * 2**2
    loss = KnowledgeDistillationKLDivLoss(loss_weight=3.0, T=2)
    np.testing.assert_allclose(loss(student, teacher), [3 * kl], rtol=1e-6)
    np.testing.assert_allclose(loss(teacher, teacher), [0], atol=1e-6)
    extreme = tensor([[1e4, -1e4]])
    assert np.isfinite(loss(extreme, -extreme).numpy()).all()


def test_cwd_by_pencil():
    flat, peak = tensor([[[[0, 0]]]]), tensor([[[[math.log(3), 0]]]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert CWDFeatureLoss(weight=5)(flat, peak).item() == pytest.approx(5 * kl, rel=1e-4)
    assert CWDFeatureLoss(tau=2)(2 * flat, 2 * peak).item() == pytest.approx(kl, rel=1e-4)
    # the mean over two channels of two images, three of which agree
    a, b = paddle.zeros([2, 2, 1, 2]), paddle.concat([paddle.zeros([1, 2, 1, 2]), paddle.concat([flat, peak], 1)])
    assert CWDFeatureLoss()(a, b).item() == pytest.approx(kl / 4, rel=1e-4)
    x = tensor(np.random.default_rng(0).normal(size=(2, 2, 3, 3)))
    assert CWDFeatureLoss()(x, 7 * x + 3).item() > 0.1
    assert CWDFeatureLoss(normalize=True)(x, 7 * x + 3).item() == pytest.approx(0, abs=1e-4)


def test_ld_equals_the_naive_loop():
    rng = np.random.default_rng(0)
    sizes, classes, bins = [(2, 3), (1, 2)], 3, 5
    cells = sum(h * w for h, w in sizes)

    def features():
        return Features([], *([tensor(rng.normal(size=(2, k, *size))) for size in sizes] for k in (classes, 4 * bins)))

    student, teacher = features(), features()
    positive = (rng.uniform(size=(2, cells)) < 0.5).astype("float32")
    positive[:, 6:] = 0  # none on the second level
    weight, region = positive * rng.uniform(size=(2, cells)), rng.uniform(size=(2, cells))
    batch = {"vlr_regions": tensor(region), "label_weights": tensor(np.ones((2, cells)))}
    terms = [KnowledgeDistillationKLDivLoss(w, T) for w, T in ((0.25, 10), (0.5, 5), (10, 2))]
    losses = LocalizationDistillation(*terms)(student, teacher, batch, tensor(positive), tensor(weight))

    def kl(a, b, weight, temperature):
        p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (a, b))
        return weight * temperature**2 * (q * np.log(q / p)).mean()

    ld = vlr = kd = 0
    for n in range(2):
        cell = 0
        for level, (h, w) in enumerate(sizes):
            for i, j in np.ndindex(h, w):
                a, b = ([kind[level].numpy()[n, :, i, j] for kind in (x.cls, x.reg)] for x in (student, teacher))
                for side in range(4):
                    part = slice(side * bins, (side + 1) * bins)
                    ld += weight[n, cell] * kl(a[1][part], b[1][part], 0.25, 10) / 4
                    vlr += region[n, cell] * kl(a[1][part], b[1][part], 0.5, 5) / 16
                if positive[n, cell]:
                    kd += kl(a[0], b[0], 10, 2) / positive[:, :6].sum()
                cell += 1
    np.testing.assert_allclose([losses[name].item() for name in LD_LOSSES], [ld, vlr, kd], rtol=1e-4)


# --- configs

def test_what_a_slim_config_changes():
    plain = load_config("gfl_r50_fpn_1x_coco")
    slim = "gfl_r101vd_fpn_coco_distill_cwd"
    cfg = load_config("gfl_r50_fpn_1x_coco", ["epoch=3", "teacher.num_classes=80"], slim_config=slim)
    assert cfg["teacher"] == {**load_config(slim), "num_classes": 80}
    assert (cfg["epoch"], cfg["use_ema"]) == (3, True)  # of the command line, of the slim config
    assert cfg["TrainReader"]["sample_transforms"][1]["RandomResize"]["target_size"][0] == [480, 1333]
    trained = ("epoch", "TrainReader", "LearningRate", "OptimizerBuilder", "use_ema", "ema_decay", "teacher")
    assert {k: v for k, v in cfg.items() if k not in trained} == {k: v for k, v in plain.items() if k not in trained}
    with pytest.raises(ConfigError, match="slim is None; ppgfl knows slim: Distill only"):
        load_config("gfl_r50_fpn_1x_coco", slim_config="gfl_r18vd_1x_coco")


def distilled(shapes, folder, weights, *more, config="shapes_gfl_student_ld", slim="shapes_distill_ld"):
    return load_config(config, [
        *options(shapes, folder), *[f"teacher.{override}" for override in TEACHER],
        f"teacher.pretrain_weights={weights}", *more], slim_config=slim)


@pytest.mark.parametrize(("more", "error", "found"), [
    (["teacher.num_classes=4"], ConfigError, "teacher: its num_classes is 4, that of the student 3"),
    (["teacher.GFLHead.reg_max=8"], ConfigError, "its reg_max is 8, that of the student 16"),
    (["teacher.GFLHead.fpn_stride=[8, 16, 32, 64]", "teacher.FPN.extra_stage=1"], ConfigError, "its fpn_stride is"),
    (["teacher.GFLHead.dgqp_module=DGQP", "teacher.GFLHead.loss_class.use_sigmoid=false"], ConfigError, "is DGQP"),
    (["LDGFLHead.dgqp_module=DGQP", "LDGFLHead.loss_class.use_sigmoid=false"], ConfigError, "class logits"),
    (["teacher.FPN.out_channel=16", "teacher.GFLHead.conv_feat.feat_in=16", "teacher.slim_method=CWD",
      "teacher.CWDFeatureLoss={student_channels: 3, teacher_channels: 3}"], ConfigError, "FPN.out_channel is 16"),
    (["teacher.slim_method=CWD", "teacher.CWDFeatureLoss={student_channels: 3, teacher_channels: 4}"], ConfigError,
     "must be equal"),
    (["teacher.slim_method=CWD", "teacher.distill_loss=GIoULoss"], ConfigError, "unknown name 'GIoULoss'"),
    (["teacher.slim_method=CWD", "teacher.distill_loss_name=[a]"], ConfigError, "must name 3 losses"),
    (["teacher.slim_method=FGD"], ConfigError, "'FGD'; allowed: LD, CWD"),
    (["teacher.pretrain_weights=null"], ConfigError, "set -o teacher.pretrain_weights=PATH"),
    (["teacher.pretrain_weights=nowhere.pdparams"], CheckpointError, "the teacher .*nowhere"),
    (["teacher.ResNet.depth=34"], CheckpointError, "the teacher .* does not fit the model"),
    (["TrainReader.batch_transforms.1.Gt2GFLTarget.compute_vlr_region=false"], ConfigError, "compute_vlr_region: true"),
    (["GFL.head=GFLHead"], ConfigError, "trains an LDGFLHead"),
    (["LDGFLHead.loss_ld.T=0.5"], ConfigError, "T: 0.5; it must be 1 or more"),
    (["LDGFLHead.loss_kb=1"], ConfigError, "unknown key 'loss_kb'"),
])
def test_what_does_not_fit_stops_before_the_first_step(shapes, teacher_weights, tmp_path, more, error, found):
    with pytest.raises(error, match=found) as raised:
        train(distilled(shapes, tmp_path, teacher_weights, *more))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


# --- runs

def test_a_run_with_a_teacher(shapes, teacher_weights, tmp_path):
    """EMA, evaluation, VisualDL, resume; the checkpoint is that of a plain detector."""
    summary = train(distilled(shapes, tmp_path / "a", teacher_weights, "epoch=3"), evaluate=True, use_vdl=True)
    found = rows(tmp_path / "a")
    assert [float(row["epoch"]) for row in found] == [1, 2, 3]
    assert all(float(row[name]) > 0 for row in found for name in LD_LOSSES)
    assert summary["epoch"] == 3
    from visualdl import LogReader

    log, = (tmp_path / "a" / "run" / "vdl").iterdir()
    assert {f"train/{name}" for name in LD_LOSSES} <= set(LogReader(file_path=str(log)).get_tags()["scalar"])

    part = distilled(shapes, tmp_path / "b", teacher_weights, "epoch=3", "snapshot_epoch=1")
    train({**part, "epoch": 1}, evaluate=True)
    train(part, evaluate=True, resume="")
    for suffix in (".pdparams", ".pdema"):
        assert same(*(read(tmp_path / x / "run" / f"model_final{suffix}") for x in "ab")), suffix

    plain = load_config("shapes_gfl_student", SHORT)
    weights = tmp_path / "a" / "run" / "model_final.pdparams"
    assert load_weights(build_model(plain), weights).complete
    assert build_model(load_config(tmp_path / "a" / "run" / "config.yml")).criterion.distillation is not None
    paddle.save(build_model(plain).state_dict(), str(tmp_path / "plain.pdparams"))
    assert load_weights(build_model(load_config("shapes_gfl_student_ld", SHORT)), tmp_path / "plain.pdparams").complete


def test_the_teacher_changes_nothing_but_the_losses(shapes, teacher_weights, tmp_path):
    """Without weight in the loss, a teacher leaves the run bit for bit as it is."""
    silent = [f"LDGFLHead.{name}.loss_weight=0" for name in LD_LOSSES]
    train(distilled(shapes, tmp_path / "a", teacher_weights, "epoch=1", *silent))
    train(load_config("shapes_gfl_student", options(shapes, tmp_path / "b", "epoch=1")))
    assert same(*(read(tmp_path / x / "run" / "model_final.pdparams") for x in "ab"))


def test_cwd_compiled_and_with_several_batches_per_step(shapes, teacher_weights, tmp_path):
    results = []
    for name, kwargs in (("a", {}), ("b", {"to_static": True})):
        cfg = distilled(shapes, tmp_path / name, teacher_weights, "epoch=1", config="shapes_gfl_student_wide",
                        slim="shapes_distill_cwd")
        train(cfg, accumulate=2, **kwargs)
        results.append([float(value) for key, value in rows(tmp_path / name)[0].items() if key.startswith("loss")])
    assert len(results[0]) == 1 + 3 + 6
    np.testing.assert_allclose(*results, rtol=1e-3)


def test_the_commands_take_a_slim_config(run_here, shapes, teacher_weights, tmp_path):
    more = [*options(shapes, "output", "epoch=1"), *[f"teacher.{override}" for override in TEACHER],
            f"teacher.pretrain_weights={teacher_weights}"]
    both = ["-c", "shapes_gfl_student_ld", "--slim_config", "shapes_distill_ld"]
    done = run_here("train", *both, "--eval", "-o", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = "weights=output/shapes_gfl_student_ld/model_final"
    picture = next((shapes / "val2017").iterdir())
    for name, *arguments in (("eval",), ("infer", "--infer_img", picture), ("export_model",)):
        done = run_here(name, *both, *arguments, "-o", *more, weights, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    exported = tmp_path / "output_inference" / "shapes_gfl_student_ld"
    settings = (exported / "infer_cfg.yml").read_text()
    assert "teacher" not in settings
    assert yaml.safe_load(settings)["arch"] == "GFL"
    plain = run_here("export_model", "-c", "shapes_gfl_student", "-o", *more[:-9], weights, "--output_dir", "plain",
                     cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert (exported / "model.pdiparams").read_bytes() == (
        tmp_path / "plain" / "shapes_gfl_student" / "model.pdiparams").read_bytes()
