"""A few steps of real training on a handful of drawn images, and everything that must survive them."""
import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import paddle
import pytest
from helpers import COCO_MINI, LOSSES, config, options, recorded, rows, run_tool, same

from ppgfl import CheckpointError, ConfigError, TrainingError, build_model, load_config, train
from ppgfl.data.shapes import CLASSES, draw_scene
from ppgfl.optim import step_schedule
from ppgfl.system.interrupt import stop_requests
from ppgfl.training import onednn
from ppgfl.training.run_folder import RunFolder, for_both
from ppgfl.training.state import new_state
from ppgfl.weights.checkpoint import load_pretrained, read
from ppgfl.weights.safe_pickle import load as load_pickle


def files(folder):
    return sorted(p.name for p in (folder / "run").iterdir())


# --- the data set of the demo

def test_shapes_are_the_same_from_the_same_seed_and_boxes_fit_them():
    a, b = (draw_scene(np.random.default_rng(5), 64, 96) for _ in range(2))
    assert same(a, b)
    for seed in range(30):
        picture, boxes, classes = draw_scene(np.random.default_rng(seed), 64, 96)
        assert picture.shape == (64, 96, 3)
        assert len(boxes) == len(classes)
        for (x, y, w, h), label in zip(boxes, classes):
            assert 0 <= x < x + w <= 96
            assert 0 <= y < y + h <= 64
            assert label in range(len(CLASSES))


# --- one run

@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """Two epochs with evaluation, EMA and VisualDL."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(config(shapes, folder), evaluate=True, use_vdl=True)


def test_a_run_leaves_paddledetections_files(finished):
    folder, summary = finished
    for name in ("0", "model_final", "best_model") if summary["best"] > 0 else ("0", "model_final"):
        for suffix in (".pdparams", ".pdopt", ".pdema"):
            assert f"{name}{suffix}" in files(folder)
    assert not [name for name in files(folder) if name.endswith(".tmp")]
    assert {"config.yml", "run.json", "results.csv", "metrics.json", "vdl"} <= set(files(folder))
    run = folder / "run"
    assert load_pickle(run / "model_final.pdopt")["last_epoch"] == 2
    assert load_config(run / "config.yml")["epoch"] == 2
    assert json.loads((run / "run.json").read_text())[0]["paddle"] == paddle.__version__
    assert set(read(run / "0.pdparams")) == set(read(run / "0.pdema"))
    assert not same(read(run / "0.pdparams"), read(run / "0.pdema"))


@pytest.mark.parametrize(("given", "wanted"), [
    ({"LearningRate": {"base_lr": 0.02, "total_batch_size": 8}}, {"LearningRate": {"base_lr": 0.04}}),
    ({"LearningRate": {"total_batch_size": 32}}, {"LearningRate": {"base_lr": 0.005}}),
    ({"LearningRate": {"base_lr": 0.02}}, {"LearningRate": {"base_lr": 0.02}}),
    ({"GFLHead": {"upstream_scores": True, "loss_qfl": "a", "nms": "b"}},
     {"upstream_scores": True, "GFLHead": {"loss_class": "a", "nms": "b"}}),
    ({"epoch": 3, "_": 1}, {"epoch": 3, "_": 1, "architecture": "GFL", "snapshot_epoch": 1}),
])
def test_the_config_of_a_run_is_one_of_paddledetection(given, wanted):
    before = json.dumps(given)
    found = for_both(given)
    assert {key: found[key] for key in wanted} == wanted
    assert json.dumps(given) == before


def test_the_config_of_a_run_trains_at_the_same_rate(finished, shapes):
    cfg = load_config(finished[0] / "run" / "config.yml")
    assert "total_batch_size" not in cfg["LearningRate"]
    a, b = (new_state(each, steps_per_epoch=4, total_batch_size=2, seed=0).optimizer
            for each in (cfg, config(shapes, finished[0])))
    for _ in range(8):
        assert a.get_lr() == b.get_lr()
        for each in (a, b):
            step_schedule(each)


def test_paddle_itself_reads_the_files(finished):
    run = finished[0] / "run"
    ours = read(run / "0.pdparams")
    theirs = paddle.load(str(run / "0.pdparams"))
    assert set(theirs) == set(ours)
    assert all(np.array_equal(np.asarray(theirs[name]), ours[name]) for name in ours)
    assert paddle.load(str(run / "0.pdopt"))["last_epoch"] == 1


def test_every_numpy_can_read_the_files(finished):
    for suffix in (".pdparams", ".pdopt", ".pdema"):
        data = (finished[0] / "run" / f"0{suffix}").read_bytes()
        assert b"numpy.core.multiarray" in data
        assert b"numpy._core" not in data


def test_results_have_a_row_per_epoch(finished):
    table = rows(finished[0])
    assert [float(row["epoch"]) for row in table] == [1, 2]
    assert [float(row["step"]) for row in table] == [4, 8]
    for row in table:
        terms = sum(float(row[f"loss_{k}"]) for k in ("qfl", "bbox", "dfl"))
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-5)
        assert 0 <= float(row["AP"]) <= 1


def test_visualdl_reads_the_log_back(finished):
    from visualdl import LogReader

    reader = LogReader(file_path=str(finished[0] / "run" / "vdl" / "vdlrecords.ppgfl.log"))
    tags = reader.get_tags()
    for tag in ("train/loss", "train/lr", "train/images_per_s", "eval/AP", "eval/AP50", "final/AP"):
        assert tag in tags["scalar"], tag
    assert any(tag.startswith("eval_class/") for tag in tags["scalar"])
    assert [value.id for value in reader.get_data("scalar", "train/loss")] == [2, 4, 6, 8]
    assert {"train/batch_0", "train/batch_2", "eval/image_1"} <= set(tags["image"])
    assert any(tag.startswith("weights/head") for tag in tags["histogram"])
    assert any(tag.startswith("gradients/head") for tag in tags["histogram"])


def test_the_first_batches_can_be_looked_at(finished):
    run = finished[0] / "run"
    assert sorted(path.name for path in (run / "batches").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert page.split("First training batches")[1].count("<img") == 3


def test_a_new_run_never_overwrites_an_old_one(finished, shapes):
    with pytest.raises(ConfigError, match="holds a run already; --resume"):
        train(config(shapes, finished[0]))


def test_a_dashboard_that_fails_never_stops_training(shapes, tmp_path, monkeypatch, caplog):
    import visualdl

    monkeypatch.setattr(visualdl.LogWriter, "add_scalar", lambda *a, **k: 1 / 0)
    train(config(shapes, tmp_path, "epoch=1"), use_vdl=True)
    assert caplog.text.count("VisualDL failed and is switched off") == 1
    assert "model_final.pdparams" in files(tmp_path)


# --- resume

@pytest.mark.parametrize("use_ema", [True, False])
def test_two_and_two_epochs_are_four_bit_for_bit(shapes, tmp_path, use_ema):
    more = [f"use_ema={str(use_ema).lower()}"]
    train(config(shapes, tmp_path / "a", "epoch=4", *more), evaluate=True)
    train(config(shapes, tmp_path / "b", "epoch=2", *more), evaluate=True)
    train(config(shapes, tmp_path / "b", "epoch=4", *more), evaluate=True, resume="")
    for suffix in (".pdparams", ".pdema") if use_ema else (".pdparams",):
        assert same(*(read(tmp_path / x / "run" / f"model_final{suffix}") for x in "ab"))
    a, b = (load_pickle(tmp_path / x / "run" / "model_final.pdopt") for x in "ab")
    in_order = [sorted((k, v) for k, v in x["ppgfl"].pop("parameter_names").items()) for x in (a, b)]
    by_entry = [{value: key for key, value in names} for names in in_order]
    for x in (a, b):
        x["ppgfl"].pop("checksums")  # of files that hold paddle's names, which count up within a process
    assert same(rename(a, by_entry[0]), rename(b, by_entry[1]))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert len(json.loads((tmp_path / "b" / "run" / "run.json").read_text())) == 2


def rename(state, entry_of):
    """The optimizer's state under the entries' names instead of paddle's."""
    def new(key):
        owner = max((name for name in entry_of if key.startswith(f"{name}_")), key=len, default="")
        return entry_of.get(owner, "") + key[len(owner):]
    return {new(key): value for key, value in state.items()}


def test_resume_takes_paths_folders_and_the_newest(shapes, tmp_path, caplog):
    train(config(shapes, tmp_path, "epoch=3"))
    run = tmp_path / "run"
    for name, epoch in (("0.pdopt", 2), ("1", 3), ("model_final.pdparams", 4)):
        with caplog.at_level("INFO"):
            train(config(shapes, tmp_path / name, f"epoch={epoch}"), resume=str(run / name))
        assert f"resumed from {run / name.split('.')[0]}:" in caplog.text
    (run / "model_final.pdparams").write_bytes(b"half")
    caplog.clear()
    with caplog.at_level("INFO"):
        train(config(shapes, tmp_path, "epoch=3"), resume="")
    assert "not resumed from" in caplog.text
    assert f"resumed from {run / '1'}: epoch 2" in caplog.text


def test_a_finished_run_is_not_run_again(finished, shapes):
    before = {p.name: p.read_bytes() for p in (finished[0] / "run").iterdir() if p.is_file()}
    with pytest.raises(ConfigError, match="epoch: 2, and the run that is resumed has finished 2"):
        train(config(shapes, finished[0]), resume="")
    assert {p.name: p.read_bytes() for p in (finished[0] / "run").iterdir() if p.is_file()} == before


def test_a_checkpoint_of_another_run_does_not_open_this_folder(finished, shapes, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model_final.pdparams").write_text("another run")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config(shapes, tmp_path, "epoch=3"), resume=str(finished[0] / "run" / "0"))


def test_nothing_to_resume_starts_at_the_first_epoch(shapes, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(config(shapes, tmp_path, "epoch=1"), resume="")
    assert "no checkpoint to resume from" in caplog.text


def test_resume_refuses_what_does_not_belong(shapes, tmp_path, finished):
    run = finished[0] / "run"
    with pytest.raises(CheckpointError, match="no such file"):
        train(config(shapes, tmp_path), resume=str(run / "none"))
    with pytest.raises(CheckpointError, match="set use_ema to true"):
        train(config(shapes, tmp_path, "use_ema=false"), resume=str(run / "0"))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(config(shapes, tmp_path, "ResNet.depth=34"), resume=str(run / "0"))
    with pytest.raises(ConfigError, match="was trained with 0"):
        train(config(shapes, tmp_path), resume=str(run / "0"), seed=1)
    (tmp_path / "foreign.pdopt").write_bytes(pickle.dumps({"last_epoch": 3}))
    with pytest.raises(CheckpointError, match="was written by neither ppgfl nor PaddleDetection"):
        train(config(shapes, tmp_path), resume=str(tmp_path / "foreign"))


def test_a_resumed_curve_is_one_line(shapes, tmp_path):
    from visualdl import LogReader

    train(config(shapes, tmp_path, "epoch=3"), use_vdl=True)
    for name in ("1", "model_final"):  # as if it had been killed in the second epoch
        for suffix in (".pdparams", ".pdopt", ".pdema"):
            os.remove(tmp_path / "run" / f"{name}{suffix}")
    train(config(shapes, tmp_path, "epoch=3"), use_vdl=True, resume="")
    reader = LogReader(file_path=str(tmp_path / "run" / "vdl" / "vdlrecords.ppgfl.log"))
    assert [value.id for value in reader.get_data("scalar", "train/loss")] == [2, 4, 6, 8, 10, 12]
    assert [float(row["epoch"]) for row in rows(tmp_path)] == [1, 2, 3]


# --- the step

def losses_of(shapes, folder, *more, **kwargs):
    train(config(shapes, folder, *more), **kwargs)
    return np.array([[float(row[key]) for key in LOSSES] for row in rows(folder)])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(shapes, tmp_path):
    a, b, c = (losses_of(shapes, tmp_path / str(i), "epoch=1", f"worker_num={workers}", seed=seed)
               for i, (seed, workers) in enumerate([(0, 0), (0, 2), (1, 0)]))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    first, second = (read(tmp_path / i / "run" / "model_final.pdparams") for i in "01")
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_accumulated_batches_count_as_one_step(shapes, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(config(shapes, tmp_path, "epoch=1"), accumulate=2)
    assert [float(row["step"]) for row in rows(tmp_path)] == [2]
    assert "lr 0.005 for 8 images -> 0.0025 for 4" in caplog.text


def test_a_static_graph_gives_the_same_losses(shapes, tmp_path):
    plain = losses_of(shapes, tmp_path / "a", "epoch=1")
    static = losses_of(shapes, tmp_path / "b", "epoch=1", to_static=True)
    np.testing.assert_allclose(plain, static, rtol=1e-4)


@pytest.mark.skipif(paddle.__version__ < "3.3", reason="Paddle 2.6.2 aborts, so it is refused there")
def test_convolutions_of_onednn_give_the_same_losses(shapes, tmp_path, monkeypatch):
    seen = []
    either = onednn._either

    def counting(layer, fits):
        forward = either(layer, fits)
        return lambda x: seen.append(fits[0]) or forward(x)

    monkeypatch.setattr(onednn, "_either", counting)
    plain = losses_of(shapes, tmp_path / "a")
    fast = losses_of(shapes, tmp_path / "b", "onednn_training=true", evaluate=True)
    np.testing.assert_allclose(plain, fast, rtol=1e-3)
    assert True in seen  # in training
    assert False in seen  # in evaluation
    assert paddle.get_flags(["FLAGS_use_mkldnn"]) == {"FLAGS_use_mkldnn": False}


@pytest.mark.skipif(paddle.__version__ < "3.3", reason="Paddle 2.6.2 aborts, so it is refused there")
def test_batches_of_another_size_run_without_onednn(shapes, tmp_path, monkeypatch):
    model = build_model(config(shapes, tmp_path))
    model.train()
    model.criterion = lambda features, integral, batch: [*features.cls, *features.reg]
    fits, either = [], onednn._either
    monkeypatch.setattr(onednn, "_either", lambda layer, given: fits.append(given) or either(layer, given))
    sizes = [(2, 64, 96), (2, 32, 96), (1, 64, 96), (2, 64, 96)]
    images = [paddle.rand([count, 3, height, width]) for count, height, width in sizes]
    plain = [model({"image": image}) for image in images]
    used = []
    with onednn.switched_on(True):
        onednn.replace_convolutions(model)
        for image, expected in zip(images, plain):
            for ours, level in zip(model({"image": image}), expected):
                np.testing.assert_allclose(ours.numpy(), level.numpy(), rtol=1e-3, atol=1e-4)
            used.append(fits[0][0])
    assert used == [True, False, False, True]


@pytest.mark.skipif(paddle.__version__ >= "3.3", reason="it works there")
def test_convolutions_of_onednn_are_refused_where_paddle_aborts(shapes, tmp_path):
    with pytest.raises(ConfigError, match="needs Paddle 3.3"):
        train(config(shapes, tmp_path, "onednn_training=true"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_everything(shapes, tmp_path):
    folder = tmp_path
    train(config(shapes, folder, "epoch=1"))
    before = {p.name: p.read_bytes() for p in (folder / "run").glob("*.pd*")}
    with pytest.raises(TrainingError) as error:
        train(config(shapes, folder, "epoch=3", "LearningRate.base_lr=1e30", "OptimizerBuilder.clip_grad_by_norm=null"),
              resume="", scale_lr=False)
    message = str(error.value)
    assert "in epoch 2, step" in message
    assert "image ids [" in message
    for term in ("loss_qfl", "loss_bbox", "loss_dfl", "nan"):
        assert term in message
    assert "\n" not in message
    assert {p.name: p.read_bytes() for p in (folder / "run").glob("*.pd*")} == before


def test_early_stopping(shapes, tmp_path):
    summary = train(config(shapes, tmp_path, "epoch=9", "LearningRate.base_lr=1e-9"), evaluate=True, patience=2)
    assert summary["epoch"] <= 4
    assert load_pickle(tmp_path / "run" / "model_final.pdopt")["last_epoch"] == summary["epoch"]


@pytest.mark.parametrize(("more", "kwargs", "found"), [
    (["TrainReader.batch_size=9"], {}, "only 8 images"), ([], {"accumulate": 9}, "only 4 batches"),
    ([], {"accumulate": 0}, "must be 1 or more"), ([], {"best_metric": "mAP"}, "allowed: AP"),
    (["num_classes=80"], {}, "lists 3"), (["metric=VOC"], {}, "COCO only"), (["GFL.head=LDGFLHead"], {}, "teacher"),
])
def test_mistakes_stop_before_the_first_step(shapes, tmp_path, more, kwargs, found):
    with pytest.raises(ConfigError, match=found):
        train(config(shapes, tmp_path, *more), **kwargs)
    assert not (tmp_path / "run").exists()


def test_training_and_validation_sets_that_disagree_are_both_listed(shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    content["categories"].reverse()
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"num_classes 3; .*'circle', 'square'.*'triangle', 'square', 'circ"):
        train(config(shapes, tmp_path, f"EvalDataset.anno_path={tmp_path / 'val.json'}"), evaluate=True)


def test_the_number_of_classes_can_come_from_the_annotation_file(shapes, tmp_path):
    train(config(shapes, tmp_path, "num_classes=null", "epoch=1"))
    assert load_config(tmp_path / "run" / "config.yml")["num_classes"] == 3


def test_images_without_boxes_can_be_trained_on(shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "instances_train2017.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 6]
    (tmp_path / "few.json").write_text(json.dumps(content))
    summary = train(config(shapes, tmp_path, f"TrainDataset.anno_path={tmp_path / 'few.json'}", "epoch=1",
                           "TrainDataset.allow_empty=true"))
    assert summary["epoch"] == 1
    assert float(rows(tmp_path)[0]["step"]) == 4


# --- start weights

def test_every_trainable_parameter_of_every_demo_model_gets_a_gradient(shapes, tmp_path):
    from ppgfl import build

    for name in ("shapes_gfl", "shapes_gflv2"):
        cfg = config(shapes, tmp_path, name=name)
        model = build_model(cfg)
        batch = next(build.build_loader(cfg, "TrainReader", build.build_dataset(cfg, "TrainDataset").records).epoch())
        model(batch)["loss"].backward()
        learning = {n for n, p in model.named_parameters() if not p.stop_gradient}
        assert learning == {n for n, p in model.named_parameters() if p.grad is not None}


def save(path, state):
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in state.items()}, protocol=2))
    return path


def test_fine_tuning_on_other_classes_renews_the_class_layer_only(tmp_path, caplog):
    many = build_model(load_config("gfl_r18vd_1x_coco"))
    few = build_model(load_config("gfl_r18vd_1x_coco", ["num_classes=3"]))
    fresh = few.head.gfl_head_cls.weight.numpy().copy()
    with caplog.at_level("INFO"):
        report = load_pretrained(few, save(tmp_path / "coco.pdparams", many.state_dict()))
    assert [name for name, _, _ in report.misshapen] == ["head.gfl_head_cls.weight", "head.gfl_head_cls.bias"]
    assert "start anew: head.gfl_head_cls.weight, head.gfl_head_cls.bias" in caplog.text
    np.testing.assert_array_equal(few.head.gfl_head_cls.weight.numpy(), fresh)
    np.testing.assert_allclose(paddle.nn.functional.sigmoid(few.head.gfl_head_cls.bias).numpy(), 0.01, rtol=1e-4)
    for name, value in few.state_dict().items():
        if "gfl_head_cls" not in name:
            np.testing.assert_array_equal(value.numpy(), many.state_dict()[name].numpy())


def test_an_imagenet_backbone_fills_the_backbone(tmp_path, caplog):
    source, target = (build_model(load_config("gfl_r18vd_1x_coco")) for _ in range(2))
    state = {**source.backbone.state_dict(), "fc.weight": paddle.zeros([512, 1000])}
    with caplog.at_level("INFO"):
        report = load_pretrained(target, save(tmp_path / "resnet.pdparams", state))
    assert "1 not used (backbone.fc.weight)" in caplog.text
    assert len(report.loaded) == len(source.backbone.state_dict())
    for name, value in target.backbone.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), source.backbone.state_dict()[name].numpy())
    state.pop("res3.res3a.branch2a.conv.weight")
    with pytest.raises(CheckpointError, match="1 missing"):
        load_pretrained(target, save(tmp_path / "resnet.pdparams", state))
    with pytest.raises(CheckpointError, match="does not fit the model to be trained"):
        other = build_model(load_config("gfl_r34vd_1x_coco"))
        load_pretrained(target, save(tmp_path / "other.pdparams", other.state_dict()))


# --- the command

def test_the_command_trains_and_resumes(shapes, tmp_path):
    arguments = ["-c", "shapes_gfl", "-o", *options(shapes, tmp_path, "epoch=1"), "--eval", "--use_vdl=true"]
    done = run_tool("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("epoch 1/1 [4/4] eta 0:00:00 lr 0.0", "loss_dfl", "images/s", "Average Precision",
                  "visualdl --logdir", "saved", "8 images with boxes"):
        assert words in done.stdout, words
    assert (tmp_path / "shapes_gfl" / "model_final.pdparams").is_file()
    again = run_tool("train", *arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    assert again.stderr.count("\n") == 1


def test_a_ctrl_c_that_was_ignored_stays_ignored():
    """As in what a shell script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert not request
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(shapes, tmp_path):
    with RunFolder(tmp_path / "run", resume=None).locked(), pytest.raises(ConfigError, match="another run is writing"):
        train(config(shapes, tmp_path))
    assert os.listdir(tmp_path) == []


# --- real images

@pytest.mark.drill
@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs the real COCO images beside the project")
def test_two_photographs_are_learnt_by_heart(tmp_path):
    content = json.loads((COCO_MINI / "annotations" / "instances_train2017.json").read_text())
    counts = {image["id"]: [a for a in content["annotations"] if a["image_id"] == image["id"]
                            and not a["iscrowd"]] for image in content["images"]}
    few = [i for i, own in counts.items() if 2 <= len(own) <= 4 and min(a["area"] for a in own) > 6000][:2]
    content["images"] = [image for image in content["images"] if image["id"] in few]
    content["annotations"] = [a for i in few for a in counts[i]]
    (tmp_path / "two.json").write_text(json.dumps(content))
    sizes = "Resize: {target_size: [192, 256], keep_ratio: true}"
    transforms = f"[{{Decode: {{}}}}, {{{sizes}}}, {{NormalizeImage: {{}}}}, {{Permute: {{}}}}]"
    cfg = load_config("shapes_gfl", [
        *(f"{s}.dataset_dir={COCO_MINI}" for s in ("TrainDataset", "EvalDataset")), "num_classes=80",
        *(f"{s}.anno_path={tmp_path / 'two.json'}" for s in ("TrainDataset", "EvalDataset")),
        "EvalDataset.image_dir=train2017", f"TrainReader.sample_transforms={transforms}",
        f"EvalReader.sample_transforms={transforms}", "TrainReader.batch_size=2", "EvalReader.batch_size=1",
        "TrainDataset.repeat=20", "epoch=6", "snapshot_epoch=6", f"save_dir={tmp_path}", "use_gpu=false",
        "LearningRate.base_lr=0.01", "LearningRate.schedulers.0.max_epochs=6"])
    assert len(few) == 2
    summary = train(cfg, evaluate=True, scale_lr=False)
    assert summary["AP"] >= 0.9
    assert len(recorded("gfl_r18vd_1x_coco_val6")["catid"]) == 80
    assert Path(summary["folder"]).is_dir()
