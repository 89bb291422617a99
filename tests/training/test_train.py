"""A few steps of real training on a handful of drawn images, and everything that must survive them."""
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from helpers import COCO_MINI, LOSSES, config, options, recorded, rows, run_tool, same

from ppgfl import (
    CheckpointError,
    ConfigError,
    TrainingError,
    build_model,
    evaluate,
    export,
    load_config,
    open_detector,
    train,
)
from ppgfl.data.shapes import CLASSES, draw_scene
from ppgfl.inference.infer import infer
from ppgfl.optim import schedule_of
from ppgfl.system.interrupt import stop_requests
from ppgfl.training import setup
from ppgfl.training.run_folder import RunFolder, for_both
from ppgfl.training.state import Progress, new_state
from ppgfl.weights.checkpoint import load_pretrained, read, read_named
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
            schedule_of(each).step()


def test_paddle_itself_reads_the_files(finished):
    run = finished[0] / "run"
    ours = read(run / "0.pdparams")
    theirs = paddle.load(str(run / "0.pdparams"))
    assert set(theirs) == {*ours, "class_names@@"}
    assert all(np.array_equal(np.asarray(theirs[name]), ours[name]) for name in ours)
    assert paddle.load(str(run / "0.pdopt"))["last_epoch"] == 1


def other_classes(shapes, tmp_path, change):
    """The data set `shapes` with another list of categories in both files."""
    root = tmp_path / "shapes"
    if not root.exists():
        shutil.copytree(shapes, root)
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content["categories"])
        file.write_text(json.dumps(content), encoding="utf-8")
    return root


def test_class_names_travel_with_the_weights(finished, shapes, tmp_path, caplog):
    weights = finished[0] / "run" / "model_final.pdparams"
    assert read_named(weights)[1] == list(CLASSES)
    assert read_named(finished[0] / "run" / "best_model.pdparams")[1] == list(CLASSES)
    reversed_too = other_classes(shapes, tmp_path, lambda categories: categories.reverse())
    many = "GFLHead.nms.score_threshold=1e-6"
    results = {}
    for engine in ("dygraph", "static"):
        for name, root in (("own", shapes), ("reversed", reversed_too)):
            caplog.clear()
            evaluate(config(root, tmp_path, f"engine={engine}", many), weights=weights, output_dir=tmp_path)
            results[engine, name] = (tmp_path / "bbox.json").read_text()
            assert ("matched by name" in caplog.text) == (name == "reversed")
        assert results[engine, "own"] == results[engine, "reversed"]
        assert len({result["category_id"] for result in json.loads(results[engine, "own"])}) == len(CLASSES)
    export(config(reversed_too, tmp_path, many), weights=weights, output_dir=tmp_path / "exported", verify=())
    settings = yaml.safe_load((tmp_path / "exported" / "infer_cfg.yml").read_text(encoding="utf-8"))
    assert settings["label_list"] == list(CLASSES)
    for root in (shapes, reversed_too):
        cfg = config(root, tmp_path, many)
        evaluate(cfg, detector=open_detector(cfg, exported=tmp_path / "exported"), output_dir=tmp_path)
        results[root] = (tmp_path / "bbox.json").read_text()
    assert results[shapes] == results[reversed_too]

    picture = str(next(shapes.rglob("*.[jp][pn]g")))
    found = [infer(config(root, tmp_path, many), [picture], weights=weights, output_dir=tmp_path / name,
                   pictures=False, save_results="coco") for name, root in (("own", shapes), ("reversed", reversed_too))]
    assert found[0][0].names == found[1][0].names
    assert len(found[0][0].names)
    assert (tmp_path / "own" / "bbox.json").read_text() == (tmp_path / "reversed" / "bbox.json").read_text()


def test_weights_of_other_classes_are_not_evaluated(finished, shapes, tmp_path):
    weights = finished[0] / "run" / "model_final.pdparams"
    root = other_classes(shapes, tmp_path, lambda categories: categories[0].update(name="unicorn"))
    cfg = config(root, tmp_path)
    with pytest.raises(ConfigError, match=r"lists 3 classes: unicorn, .*; the model has 3 classes: "):
        evaluate(cfg, weights=weights, output_dir=tmp_path)
    with pytest.raises(ConfigError, match="unicorn.*set match_classes=place if only the names differ"):
        infer(cfg, [str(next(shapes.rglob("*.[jp][pn]g")))], weights=weights, output_dir=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    assert set(evaluate({**cfg, "match_classes": "place"}, weights=weights, output_dir=tmp_path / "renamed",
                        classwise=True)["per_class"]) == {"unicorn", *CLASSES[1:]}
    with pytest.raises(CheckpointError, match="was trained with the classes .*, the training set lists unicorn"):
        train({**cfg, "epoch": 3, "save_dir": str(tmp_path)}, resume=str(weights))


def test_fine_tuning_on_the_same_classes_in_another_order(finished, shapes, tmp_path, caplog):
    weights = finished[0] / "run" / "model_final.pdparams"
    names = list(CLASSES)
    cfg = config(shapes, tmp_path)
    own, turned, renewed = (build_model(cfg) for _ in range(3))
    load_pretrained(own, weights, names=names)
    load_pretrained(turned, weights, names=names[::-1])
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(getattr(own.head.gfl_head_cls, name).numpy(),
                                      getattr(turned.head.gfl_head_cls, name).numpy()[::-1])
    fresh = renewed.head.gfl_head_cls.weight.numpy().copy()
    with caplog.at_level("INFO"):
        load_pretrained(renewed, weights, names=["a", "b", "c"])
    assert "other classes, so these start anew: head.gfl_head_cls.weight, head.gfl_head_cls.bias" in caplog.text
    np.testing.assert_array_equal(renewed.head.gfl_head_cls.weight.numpy(), fresh)


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


@pytest.mark.drill
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


def test_a_resume_with_other_steps_per_epoch_goes_on_at_the_same_epoch(shapes, tmp_path, caplog):
    """Of 8 images: 4 steps of 2, then 2 of 4, then 8 of 1; the rate of an epoch is a tenth of that before."""
    def run(epochs, batch_size, **kwargs):
        caplog.clear()
        train(config(shapes, tmp_path, f"epoch={epochs}", f"TrainReader.batch_size={batch_size}", "log_iter=1",
                     "LearningRate.schedulers=[{name: PiecewiseDecay, gamma: 0.1, milestones: [1, 2]}]"),
              scale_lr=False, **kwargs)
        return caplog.text

    def seen(rate_of_epoch):
        return [int(line.split("epoch ")[1].split("/")[0]) for line in caplog.text.splitlines()
                if f"lr {rate_of_epoch} " in line]

    with caplog.at_level("INFO"):
        assert "an epoch had" not in run(1, 2)
        assert seen("0.005000") == [1] * 4
        text = run(2, 4, resume="")
        assert "an epoch had 4 steps before and has 2 now" in text
        assert "goes on at epoch 2, step 1 of 2, with a rate of 0.0005" in text
        assert seen("0.000500") == [2] * 2
        assert "an epoch had 2 steps before and has 8 now" in run(3, 1, resume="")
        assert seen("0.000050") == [3] * 8
    saved = load_pickle(tmp_path / "run" / "model_final.pdopt")
    assert saved["LR_Scheduler"]["last_epoch"] == 3 * 8  # Paddle's name
    assert saved["last_epoch"] == 3
    assert [float(row["step"]) for row in rows(tmp_path)] == [4, 6, 14]  # steps that were really made


def test_a_resume_with_another_rate_takes_it_from_the_first_step_on(shapes, tmp_path, caplog):
    more = ["LearningRate.schedulers=[{name: CosineDecay, max_epochs: 1}]", "log_iter=1"]
    train(config(shapes, tmp_path, "epoch=1", *more))
    with pytest.raises(ConfigError, match="to go on, and LearningRate.schedulers.0.max_epochs= as high"):
        train(config(shapes, tmp_path, "epoch=1", *more), resume="")
    with caplog.at_level("INFO"):
        train(config(shapes, tmp_path, "epoch=2", *more, "LearningRate.schedulers.0.max_epochs=2"), resume="",
              scale_lr=False)
    assert "WARNING" not in caplog.text
    assert "epoch 2/2 [1/4] eta 0:00:0" in caplog.text
    assert float(caplog.text.split("epoch 2/2 [1/4]")[1].split(" lr ")[1].split()[0]) == 0.0025  # half-way


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


@pytest.mark.drill
def test_a_static_graph_gives_the_same_losses(shapes, tmp_path):
    plain = losses_of(shapes, tmp_path / "a", "epoch=1")
    static = losses_of(shapes, tmp_path / "b", "epoch=1", to_static=True)
    np.testing.assert_allclose(plain, static, rtol=1e-4)


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


# --- what may fail late

def fail(*args, **kwargs):
    raise ZeroDivisionError("a mistake")


def test_the_weights_are_there_before_the_evaluation(shapes, tmp_path, monkeypatch, caplog):
    from ppgfl.training import train as training

    monkeypatch.setattr(training, "detect_on", fail)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        train(config(shapes, tmp_path), evaluate=True)
    assert "the evaluation failed; the weights of epoch 1 are in" in caplog.text
    assert f"{tmp_path / 'run' / '0'}.pdparams, and --resume goes on from there" in caplog.text
    monkeypatch.undo()
    train(config(shapes, tmp_path), evaluate=True, resume="")
    table = rows(tmp_path)
    assert [float(row["epoch"]) for row in table] == [1, 2]
    assert [row["AP"] != "" for row in table] == [False, True]


@pytest.mark.parametrize(("place", "name"), [("evaluation.report.write", "the report"),
                                             ("evaluation.report.draw_training", "curves.png"),
                                             ("training.run_folder.write_csv", "results.csv"),
                                             ("training.run_folder.write_json", "metrics.json")])
def test_what_is_not_the_weights_costs_a_warning(shapes, tmp_path, monkeypatch, caplog, place, name):
    called = []

    def late(*args, **kwargs):  # results.csv and run.json are written before the first step too, where nothing is lost
        called.append(args)
        if len(called) > place.endswith(("csv", "json")):
            fail()

    monkeypatch.setattr(f"ppgfl.{place}", late)
    summary = train(config(shapes, tmp_path, "epoch=1"), evaluate=True)
    assert summary["epoch"] == 1
    assert {"best_model.pdparams", "model_final.pdparams", "model_final.pdopt"} <= set(files(tmp_path))
    assert f"{name} is not written, and training goes on" in caplog.text
    assert "ZeroDivisionError: a mistake" in caplog.text


def test_a_metric_that_cannot_be_measured_is_said_and_stops_nothing(shapes, tmp_path, caplog):
    """Images of 64 x 96 pixels have no object of 96 x 96."""
    summary = train(config(shapes, tmp_path, "epoch=3"), evaluate=True, best_metric="APl", patience=1)
    assert summary["epoch"] == 3
    assert summary["best"] == -1
    assert caplog.text.count("--best_metric: APl cannot be measured on") == 1
    assert "choose one of AP, AP50, AP75, APs, AR1" in caplog.text
    assert "stopped early" not in caplog.text
    assert "best_model.pdparams" not in files(tmp_path)


def test_no_memory_for_a_step_is_one_line(shapes, tmp_path, monkeypatch):
    from ppgfl.training.step import Step

    def refuse(*args):
        raise MemoryError("no 9 GiB")

    monkeypatch.setattr(Step, "__call__", refuse)
    with pytest.raises(TrainingError, match="no memory for step 1, of 2 x 64 x 96 pixels; set TrainReader.batch_size"):
        train(config(shapes, tmp_path))


def test_the_first_step_is_logged_and_what_a_schedule_will_not_do(shapes, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(config(shapes, tmp_path, "log_iter=3", "LearningRate.schedulers.1.steps=9"))
    steps = [line.split("INFO")[1].split("epoch ")[1].split(" eta")[0] for line in caplog.text.splitlines()
             if " eta " in line]
    assert steps == ["1/2 [1/4]", "1/2 [3/4]", "1/2 [4/4]", "2/2 [3/4]", "2/2 [4/4]"]
    text = caplog.text
    assert text.index("the warm-up takes 9 steps and the whole run has 8") < text.index("epoch 1/2 [1/4]")


@pytest.mark.parametrize(("rows", "name", "best"), [
    ([{"AP": 0.3}], "mAP", -1.0), ([{"AP": 0.3}], "AP", 0.3), ([{"AP": 0.3, "mAP": None}], "mAP", -1.0),
    ([{"AP": 0.3}, {"mAP": 0.5}], "mAP", 0.3), ([], "mAP", 0.3), ([{"loss": 1.0, "AP": None}], "mAP", 0.3),
])
def test_a_best_of_another_metric_is_forgotten(rows, name, best):
    progress = Progress(best=0.3, best_epoch=1, rows=rows)
    setup._forget_other_metric(progress, name)
    assert (progress.best, progress.best_epoch) == (best, int(best > 0))


@pytest.mark.parametrize(("more", "kwargs", "found"), [
    (["TrainReader.batch_size=9"], {}, "only 8 images"), ([], {"accumulate": 9}, "only 4 batches"),
    ([], {"accumulate": 0}, "must be 1 or more"), ([], {"best_metric": "mAP"}, "allowed: AP"),
    (["num_classes=80"], {}, "lists 3"), (["metric=VOC"], {"best_metric": "AP"}, "allowed: mAP"),
    (["GFL.head=LDGFLHead"], {}, "teacher"),
])
def test_mistakes_stop_before_the_first_step(shapes, tmp_path, more, kwargs, found):
    with pytest.raises(ConfigError, match=found):
        train(config(shapes, tmp_path, *more), **kwargs)
    assert not (tmp_path / "run").exists()


def test_training_and_validation_sets_that_disagree_are_both_listed(shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    content["categories"][0]["name"] = "disc"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"num_classes 3; .*'circle', 'square'.*'disc', 'square', 'triangle'"):
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


@pytest.mark.drill
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
    cfg = load_config("shapes_gfl_1x", [
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
