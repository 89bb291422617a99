"""Hooks and dashboards of real runs of a few steps. MLflow, W&B and TensorBoard are stand-ins with the same calls."""
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, config, options, rows

import ppgfl
from ppgfl import ConfigError, TrainingError, train
from ppgfl.system import dist
from ppgfl.training.hooks import Event, Hooks
from ppgfl.training.loggers import OTHERS, _named


class Recorder:
    def __init__(self):
        self.events = []

    def on_start(self, event):
        self.events.append(("on_start", event))

    def on_step(self, event):
        self.events.append(("on_step", event))

    def on_epoch(self, event):
        self.events.append(("on_epoch", event))

    def on_evaluation(self, event):
        self.events.append(("on_evaluation", event))

    def on_end(self, event):
        self.events.append(("on_end", event))

    def of(self, method):
        return [event for name, event in self.events if name == method]


# --- stand-ins

class MLflow(ModuleType):
    def __init__(self):
        super().__init__("mlflow")
        self.runs = []
        self.active = None
        self.get_tracking_uri = lambda: "file:mlruns"
        self.active_run = lambda: self.active

    def start_run(self, *, run_name):
        self.active = SimpleNamespace(info=SimpleNamespace(run_id=run_name), data=SimpleNamespace(params={}),
                                      metrics=[], status="RUNNING")
        self.runs.append(self.active)
        return self.active

    def log_params(self, params):
        self.active.data.params.update(params)

    def log_artifact(self, path):
        self.active.artifact = path

    def log_metrics(self, metrics, *, step):
        assert all(re.fullmatch(r"[/\w.\- ]+", name) and isinstance(value, float) for name, value in metrics.items())
        self.active.metrics += [(name, value, step) for name, value in metrics.items()]

    def end_run(self, status):
        self.active.status = status
        self.active = None


class WandB(ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.run, self.logged, self.exit_codes = None, [], []
        self.Image = np.shape

    def init(self, project=None, name=None):
        assert (project, name) == ("shapes", "run")
        self.config = {}
        return SimpleNamespace(config=SimpleNamespace(update=self.update), log=self.log, finish=self.finish)

    def update(self, cfg, *, allow_val_change):
        self.config.update(cfg)

    def log(self, values, *, step):
        self.logged.append((step, values))

    def finish(self, *, exit_code):
        self.exit_codes.append(exit_code)


class TensorBoard(ModuleType):
    def __init__(self):
        super().__init__("tensorboardX")
        self.opened, self.scalars, self.images = [], [], []

    def SummaryWriter(self, folder, **how):
        self.opened.append((folder, how))
        return self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def add_image(self, name, picture, step, *, dataformats):
        self.images.append((name, picture.shape, step))

    def flush(self):
        pass

    close = flush


@pytest.fixture(scope="module")
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        modules = [MLflow(), WandB(), TensorBoard()]
        for module in modules:
            patch.setitem(sys.modules, module.__name__, module)
        yield modules


@pytest.fixture(scope="module")
def run(shapes, stand_ins, tmp_path_factory):
    """Two epochs with evaluation and all dashboards: folder, recorder, summary."""
    folder, recorder = tmp_path_factory.mktemp("hooks"), Recorder()
    cfg = config(shapes, folder, "loggers=[mlflow,tensorboard]", "wandb.project=shapes")
    return folder, recorder, train(cfg, evaluate=True, hooks=[recorder, SimpleNamespace(on_end=lambda event: None)])


# --- what hooks are told

def test_hooks_are_told_what_happens_in_its_order(run):
    folder, recorder, summary = run
    epoch = ["on_step"] * 4 + ["on_epoch", "on_evaluation"]
    assert [name for name, _ in recorder.events] == ["on_start", *epoch, *epoch, "on_end"]
    assert [event.step for event in recorder.of("on_step")] == list(range(1, 9))
    assert [event.epoch for event in recorder.of("on_step")] == [0] * 4 + [1] * 4
    assert [bool(event.values) for event in recorder.of("on_step")] == [False, True] * 4  # log_iter is 2
    start, end = recorder.of("on_start") + recorder.of("on_end")
    assert (start.step, start.epoch, start.run.epochs, start.run.folder.path) == (0, 0, 2, folder / "run")
    assert (end.step, end.epoch, end.error) == (8, 2, None)
    assert end.values == {name: summary[name] for name in end.values}
    assert "AP" in end.values


def test_hooks_get_the_numbers_of_the_results(run):
    folder, recorder, _ = run
    for row, epoch, evaluation in zip(rows(folder), recorder.of("on_epoch"), recorder.of("on_evaluation")):
        assert row == {name: f"{value:.10g}" for name, value in {**epoch.values, **evaluation.values}.items()}
        assert set(evaluation.per_class) == {"circle", "square", "triangle"}
    first = [event.values for event in recorder.of("on_step") if event.values][:2]
    assert recorder.of("on_epoch")[0].values["loss"] == pytest.approx(np.mean([values["loss"] for values in first]))


def test_hooks_get_pictures(run):
    recorder = run[1]
    names = [list(event.pictures()) for event in recorder.of("on_step")]
    assert names == [["train/batch_0"], ["train/batch_1"], ["train/batch_2"], *[[]] * 5]
    found = recorder.of("on_evaluation")[0].pictures()
    assert {"eval/image_1", "report/best_confusion"} <= set(found)
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in found.values())


def test_a_hook_that_fails_ends_the_run_and_a_resume_goes_on(shapes, stand_ins, tmp_path, caplog):
    class Impatient(Recorder):
        def on_step(self, event):
            if event.step == 6:
                raise KeyError("enough")

        def on_end(self, event):
            super().on_end(event)
            raise OSError("the line is dead")

    hook, mlflow = Impatient(), stand_ins[0]
    loggers = "loggers=[mlflow]"
    with pytest.raises(TrainingError, match=r"Impatient.on_step failed: KeyError: 'enough'; .*resume=\"\"") as failure:
        train(config(shapes, tmp_path, loggers), hooks=[hook])
    assert isinstance(failure.value.__cause__, KeyError)
    assert [event.error for event in hook.of("on_end")] == [failure.value]
    assert "Impatient.on_end failed: OSError: the line is dead" in caplog.text
    assert mlflow.runs[-1].status == "FAILED"

    recorder = Recorder()
    train(config(shapes, tmp_path, loggers), hooks=[recorder], resume="")
    assert [(event.step, event.epoch) for event in recorder.of("on_start")] == [(4, 1)]
    assert [event.step for event in recorder.of("on_step")] == [5, 6, 7, 8]
    assert [step for name, _, step in mlflow.runs[-1].metrics if name == "train/loss"] == [6, 8]
    assert mlflow.runs[-1].status == "FINISHED"


def event_of(step=0, **more):
    folder = SimpleNamespace(path=ROOT / "nowhere")
    run = SimpleNamespace(cfg={}, folder=folder, options=SimpleNamespace(run_name="a"), epochs=1, images_per_step=2)
    return Event(**{"run": run, "step": step, "epoch": 0, "values": {}, "per_class": {}, "pictures": dict,
                    "error": None, **more})


def test_only_process_0_calls_hooks(monkeypatch):
    recorder = Recorder()
    for main in (False, True):
        monkeypatch.setattr(dist, "is_main", lambda main=main: main)
        Hooks([], [recorder]).tell("on_start", event_of())
        assert len(recorder.events) == int(main)


@pytest.mark.parametrize(("hooks", "words"), [
    (Recorder(), "it must be a list of objects"),
    ([Recorder], "Recorder is a class; give an object of it, Recorder()"),
    ([SimpleNamespace(on_epoc=print)], "SimpleNamespace.on_epoc is never called; did you mean 'on_epoch'?"),
    ([SimpleNamespace(on_step=print, on_epoch_end=print)], "on_epoch_end is never called"),
    ([print], "has none of the methods on_start, on_step"),
    ([SimpleNamespace(on_line=True)], "has none of the methods on_start, on_step")])
def test_a_hook_that_would_never_be_called_is_refused(shapes, tmp_path, hooks, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        train(config(shapes, tmp_path / "out"), hooks=hooks)
    assert not (tmp_path / "out").exists()


# --- dashboards

def test_mlflow_has_the_numbers_of_the_results(run, stand_ins):
    folder, mlflow = run[0], stand_ins[0]
    logged, = mlflow.runs[:1]
    for row in rows(folder):
        found = {name.split("/")[1]: f"{value:.10g}" for name, value, step in logged.metrics
                 if name.startswith(("epoch/", "eval/")) and step == int(row["step"])}
        assert found == row
    assert [step for name, _, step in logged.metrics if name == "train/loss"] == [2, 4, 6, 8]
    assert logged.status == "FINISHED"
    assert logged.data.params == {"base_lr": 0.005, "epochs": 2, "images_per_step": 2}
    assert logged.artifact == str(folder / "run" / "config.yml")


def test_the_others_have_the_same_numbers_and_the_pictures(run, stand_ins):
    mlflow, wandb, board = stand_ins
    wanted = mlflow.runs[0].metrics
    assert board.scalars[:len(wanted)] == wanted
    steps = [step for step, _ in wandb.logged]
    assert steps == sorted(steps)  # W&B drops what steps back
    numbers = [(name, value, step) for step, values in wandb.logged for name, value in values.items()
               if not isinstance(value, tuple)]
    assert numbers == wanted
    drawn = [(name, shape, step) for step, values in wandb.logged for name, shape in values.items()
             if isinstance(shape, tuple)]
    assert board.images[:len(drawn)] == drawn
    assert {"train/batch_2", "eval/image_1", "report/best_confusion"} <= {name for name, _, _ in drawn}
    assert wandb.config["epoch"] == 2
    assert wandb.exit_codes == [0]


def test_tensorboard_forgets_what_came_after_the_checkpoint():
    board = TensorBoard()
    for step in (0, 4):
        OTHERS["tensorboard"](board).on_start(event_of(step))
    assert [how for _, how in board.opened] == [{"purge_step": None, "filename_suffix": ".0"},
                                                {"purge_step": 5, "filename_suffix": ".4"}]


def test_mlflow_keeps_a_run_of_the_user_open_and_its_parameters():
    mlflow = MLflow()
    mine = mlflow.start_run(run_name="mine")
    mlflow.log_params({"epochs": 99})
    logger = OTHERS["mlflow"](mlflow)
    logger.on_start(event_of())
    logger.on_end(event_of())
    assert (mlflow.runs, mine.status) == ([mine], "RUNNING")
    assert mine.data.params == {"base_lr": 0.01, "epochs": 99, "images_per_step": 2}


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"),
                                               (ValueError(), "FAILED")])
def test_mlflow_says_how_a_run_ended(error, status):
    mlflow = MLflow()
    logger = OTHERS["mlflow"](mlflow)
    logger.on_start(event_of())
    logger.on_end(event_of(error=error))
    assert mlflow.runs[0].status == status


def test_a_dashboard_that_fails_is_switched_off_and_the_others_go_on(caplog):
    mlflow, board = MLflow(), TensorBoard()
    hooks = Hooks([OTHERS["mlflow"](mlflow), OTHERS["tensorboard"](board)])
    hooks.tell("on_start", event_of())
    mlflow.log_metrics = lambda *a, **k: 1 / 0
    for step in (1, 2):
        hooks.tell("on_step", event_of(step, values={"loss": 1.0}))
    assert caplog.text.count("MLflow failed and is switched off for this run: ZeroDivisionError") == 1
    assert board.scalars == [("train/loss", 1.0, 1), ("train/loss", 1.0, 2)]


def test_class_names_of_any_text_become_names_of_their_own():
    names = ["a/b", "a b", "a(b", "猫", "", ".", "x" * 99]
    named = _named("eval_class", dict(zip(names, range(7))))
    assert list(named.values()) == list(range(7))
    assert list(named)[:6] == ["eval_class/a_b", "eval_class/a_b_", "eval_class/a_b__", "eval_class/猫", "eval_class/_",
                               "eval_class/__"]
    assert len(list(named)[6]) < 99


def test_an_absent_package_stops_the_command_before_anything_is_made(shapes, tmp_path, monkeypatch, run_here):
    for package, *words in (("mlflow", "--loggers", "mlflow"), ("tensorboardX", "--loggers", "mlflow, tensorboard"),
                            ("wandb", "--use_wandb")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "mlflow", MLflow())
            patch.setitem(sys.modules, package, None)
            done = run_here("train", "-c", "shapes_gfl", *words, "-o", *options(shapes, tmp_path / "out"),
                            cwd=tmp_path)
        extra = package.removesuffix("X")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: loggers: {extra}: ")
        assert done.stderr.endswith(f"; pip install \"ppgfl[{extra}]\"\n")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("override", "words"), [
    ("loggers=[mlflw]", "loggers: ['mlflw']; it must be a list of names from visualdl, mlflow, tensorboard, wandb"),
    ("loggers=mlflow", "loggers: 'mlflow'; it must be a list of names"),
    ("wandb.projct=a", "wandb: unknown key 'projct', did you mean 'project'?"),
    ("wandb=true", "wandb: true; it must be a mapping of keys; or null")])
def test_what_a_config_may_not_say(shapes, stand_ins, tmp_path, override, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        train(config(shapes, tmp_path, override))


def test_each_dashboard_has_its_extra():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name, cls in OTHERS.items():
        assert re.search(rf'"{name}": \["{cls.package}"', setup)


def test_the_program_of_the_page_runs(shapes, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    code = page.split("## Hooks")[1].split("```python\n")[1].split("```")[0]
    cfg = config(shapes, tmp_path, "epoch=1")
    monkeypatch.setattr(ppgfl, "load_config", lambda name, overrides: cfg)
    exec(code, {})
    assert f"epoch 1: AP 0.000, weights in {tmp_path / 'run'}\n" in capsys.readouterr().out
