"""Training, in the order in which things happen."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ..build import check
from ..config.keys import setting
from ..data.dataset import DetectionDataSet
from ..errors import ConfigError, Interrupted, TrainingError
from ..evaluation import metric, report
from ..evaluation.coco import Results
from ..evaluation.evaluate import detect_on
from ..inference.detector import open_detector
from ..system import dist, interrupt, watchdog
from ..system.interrupt import StopRequest
from ..system.log import logger
from ..system.progress import training_bar
from . import loggers
from .hooks import Hooks
from .meter import Meter
from .run_folder import RunFolder, only_warned
from .setup import Options, Run, set_up

INTERRUPTED = "interrupted"  # the checkpoint inside an epoch
SHOWN_BATCHES = 3  # the first ones of a run, as the network sees them


def train(cfg: dict[str, Any], *, run_name: str = "run", evaluate: bool = False, resume: str | None = None,
          amp: str | None = None, accumulate: int = 1, use_vdl: bool = False, vdl_log_dir: str | None = None,
          to_static: bool = False, seed: int = 0, patience: int = 0, best_metric: str | None = None,
          scale_lr: bool = True, command: str = "", hooks: Sequence[object] = (),
          data_sets: tuple[DetectionDataSet, DetectionDataSet] | None = None) -> dict[str, Any]:
    """Train the detector of a config.

    Args:
        cfg: the dict of `load_config`.
        run_name: the run's folder is `save_dir`/`run_name`.
        evaluate: evaluate after every `snapshot_epoch` epochs and keep the best model.
        resume: None: a new run; "": go on from the newest checkpoint of the run's folder; else from this one.
        amp: None, "O1" or "O2": automatic mixed precision on a GPU.
        accumulate: batches per optimizer step.
        use_vdl, vdl_log_dir: write a VisualDL log, by default into the run's folder.
        to_static: compile the model into a static graph.
        seed: of everything that is random.
        patience: stop after so many epochs without a better evaluation; 0: never.
        best_metric: which of `metric.names` is meant by better; None: AP, or mAP with `metric: VOC`.
        scale_lr: scale the config's learning rate to the real total batch.
        command: the command line, for the run's folder.
        hooks: objects with any of the methods on_start, on_step, on_epoch, on_evaluation, on_end, each of which takes a
            `hooks.Event`; process 0 calls them.
        data_sets: those of the config for training and validation, where they are open already.

    Returns: {"folder": the run's folder, "epoch": finished epochs, "best": best metric or -1, and the last metrics}.
    Raises: ConfigError, DataError, CheckpointError, OSError; TrainingError when a loss is not finite or a hook fails;
        Interrupted, a KeyboardInterrupt, after Ctrl-C or SIGTERM, with a checkpoint to resume from.
    """
    allowed = metric.names(cfg)
    best_metric = allowed[0] if best_metric is None else best_metric
    if best_metric not in allowed:
        raise ConfigError(f"--best_metric: {best_metric!r}; allowed: {', '.join(allowed)}")
    options = Options(run_name, evaluate, resume, amp, accumulate, use_vdl, vdl_log_dir, to_static, seed, patience,
                      best_metric, scale_lr, command)
    check(cfg)
    told = Hooks(loggers.chosen(cfg, use_vdl=use_vdl, vdl_log_dir=vdl_log_dir), hooks)
    dist.start()
    folder = RunFolder(Path(setting(cfg, "save_dir")) / run_name, resume=resume)
    with watchdog.report_failures(), folder.locked(), interrupt.stop_requests() as request:
        run = set_up(cfg, options, folder, told, data_sets)
        try:
            metrics = _loop(run, request)
        except BaseException as error:
            run.tell("on_end", error=error)
            if isinstance(error, Interrupted):  # which reaches all processes
                dist.from_main(None)  # the launcher ends all when one has ended
            raise
        run.tell("on_end", metrics)
    return {"folder": str(folder.path), "epoch": run.state.progress.epoch, "best": run.state.progress.best, **metrics}


def _loop(run: Run, request: StopRequest) -> dict[str, float]:
    """All epochs. Returns the metrics after the last one."""
    run.tell("on_start")
    dist.from_main(None)  # whose hooks take their time
    state, progress, metrics = run.state, run.state.progress, {}
    first, before = progress.epoch, progress.step
    state.model.train()
    for epoch in range(progress.epoch, run.epochs):
        meter = Meter(epoch=epoch, epochs=run.epochs, steps=run.steps, images_per_step=run.images_per_step,
                      log_iter=setting(run.cfg, "log_iter"), at_once=epoch == first, done=progress.done,
                      sums=progress.sums)
        _train_epoch(run, epoch, meter, request)
        if request and meter.done < run.steps:
            if progress.step == before:
                request.raise_if_set(f"go on from {run.folder.path} with --resume")
            progress.done, progress.sums = meter.pause()
            _save(run, INTERRUPTED)
            request.raise_if_set(f"epoch {epoch + 1}, step {meter.done} of {run.steps} is in "
                                 f"{run.folder.path / INTERRUPTED}; go on with --resume")
        progress.epoch, progress.done, progress.sums = epoch + 1, 0, {}
        metrics = _end_epoch(run, meter.means())
        if progress.epoch == run.epochs or _out_of_patience(run, metrics):
            break
    _finish(run, metrics)
    return metrics


def _train_epoch(run: Run, epoch: int, meter: Meter, request: StopRequest) -> None:
    """The rest of a round through the training set, or up to the step in which it is asked to stop."""
    progress, accumulate = run.state.progress, run.step.accumulate
    batches = run.loader.epoch(epoch, first=meter.done * accumulate, stop=request)
    with training_bar(meter.steps, f"epoch {epoch + 1}") as bar, closing(batches), \
            watchdog.watch_for_hangs(setting(run.cfg, "hang_timeout"), first_step=meter.at_once) as next_is:
        bar.update(meter.done)
        while meter.done < meter.steps and not request.before_step():
            next_is("reading a batch")
            group = list(islice(batches, accumulate))
            if len(group) < accumulate:  # asked to stop while it waited
                return
            meter.data_arrived()
            pictures = {}
            if progress.step < SHOWN_BATCHES and dist.is_main():
                picture = report.draw_batch(group[0], run.loader.maker.reader, run.train_set.class_names)
                run.folder.add_batch(progress.step, picture)
                pictures[f"train/batch_{progress.step}"] = picture
            lr = run.step.optimizer.get_lr()
            next_is("in a step, which waits for the other processes")
            _seed_step(run.options.seed, progress.step)
            try:
                losses = run.step(group)
            except MemoryError as error:
                raise TrainingError(_no_memory(group, progress.step)) from error
            progress.step += 1
            run.tell("on_step", meter.add(progress.step, lr, group, losses), pictures=pictures.copy)
            bar.update(1)


def _seed_step(seed: int, step: int) -> None:
    """What is random inside of a model differs between steps and processes, and comes again after a resume."""
    paddle.seed(int(np.random.SeedSequence([seed, step, dist.rank()]).generate_state(1)[0]))


def _no_memory(batches: Sequence[Mapping[str, Tensor]], step: int) -> str:
    count, _, height, width = max((batch["image"].shape for batch in batches), key=math.prod)
    mend = "set TrainReader.batch_size lower (--accumulate keeps the images of a step), or " if count > 1 else ""
    return (f"there is no memory for step {step + 1}, of {count} x {height} x {width} pixels; {mend}let TrainReader's "
            "Resize make pictures smaller")


# --- after an epoch


def _end_epoch(run: Run, losses: dict[str, float]) -> dict[str, float]:
    """Keep what there is to keep, and evaluate if it is time. The weights come first: whatever fails later, by an error
    or a kill, they are there. Returns the metrics, {} when it was not evaluated."""
    progress, folder = run.state.progress, run.folder
    last = progress.epoch == run.epochs
    due = last or progress.epoch % setting(run.cfg, "snapshot_epoch") == 0
    name = "model_final" if last else str(progress.epoch - 1)
    folder.add_row(progress, run.state.optimizer.get_lr(), losses, metric.names(run.cfg))
    folder.write_rows(progress)
    if due:
        _save(run, name)
        folder.remove_checkpoint(INTERRUPTED)
    run.tell("on_epoch", {key: value for key, value in progress.rows[-1].items() if value is not None})
    run.state.optimizer.clear_grad()
    dist.from_main(None)  # whose hooks take their time
    eval_set = run.eval_set
    if not eval_set or not due:
        return {}
    (evaluator, metrics, per_class), results = _evaluate(run, eval_set, name)
    folder.add_metrics(progress, metrics)
    better = metrics[run.options.best_metric] > progress.best
    if better:
        progress.best, progress.best_epoch = metrics[run.options.best_metric], progress.epoch
    folder.write_rows(progress)
    _save(run, name, again=True)  # with the numbers, from which a resume goes on
    if better:
        _save(run, "best_model")
    charts = _report(run, eval_set, evaluator, metrics) if better else {}
    if _out_of_patience(run, metrics) and not last:
        _save(run, "model_final")
    run.tell("on_evaluation", metrics, per_class=per_class,
             pictures=lambda: {**report.prediction_pictures(eval_set, results), **charts})
    dist.from_main(None)  # who writes the report and calls the hooks
    return metrics


def _save(run: Run, name: str, *, again: bool = False) -> None:
    if dist.is_main():
        run.state.save(run.folder.path, name)
        if not again:
            logger.info("saved %s", run.folder.path / name)


def _evaluate(run: Run, eval_set: DetectionDataSet, name: str) -> tuple[metric.Measured, Results]:
    """The metrics of the weights to deploy, which are saved as `name`, and what they were measured on."""
    try:
        with run.state.evaluated_weights() as model:
            detector = open_detector(run.cfg, model=model, reader="EvalReader", precision=run.step.precision)
            results = detect_on(eval_set, detector)
        measured = metric.measure(run.cfg, eval_set, results)
    except Exception:
        logger.warning("the evaluation failed; the weights of epoch %d are in %s.pdparams%s", run.state.progress.epoch,
                       run.folder.path / name, "" if name == "model_final" else ", and --resume goes on from there")
        raise
    _warn_of_no_metric(run, eval_set, measured.metrics)
    return measured, results


def _warn_of_no_metric(run: Run, eval_set: DetectionDataSet, metrics: dict[str, float]) -> None:
    """The numbers are -1 where the data has nothing to find, whatever the model."""
    progress, best, patience = run.state.progress, run.options.best_metric, run.options.patience
    evaluated_before = any(row.get(best) is not None for row in progress.rows)
    if metrics[best] >= 0 or evaluated_before or not dist.is_main():
        return
    measured = ", ".join(name for name, value in metrics.items() if value >= 0)
    logger.warning("--best_metric: %s cannot be measured on %s, which has no object that counts for it: no best_model "
                   "is kept%s; %s", best, eval_set.anno_path, ", and --patience never stops" if patience else "",
                   f"choose one of {measured}" if measured else "none of the metrics can")


def _report(run: Run, eval_set: DetectionDataSet, evaluator: Any, metrics: dict[str, float]) -> dict[str, np.ndarray]:
    """The page of the best model so far. Returns the pictures of its charts, for the hooks."""
    progress, path = run.state.progress, run.folder.path
    charts: dict[str, np.ndarray] = {}
    with only_warned("the report", f"ppgfl eval -o weights={path / 'best_model'} writes it"):
        if dist.is_main():
            charts = report.write(path / "report", evaluator, eval_set, metrics, training=progress.rows,
                                  batches=run.folder.batches(), weights=str(path / "best_model"),
                                  command=run.options.command,
                                  title=report.titled(f"{path.name}, epoch {progress.epoch}", metrics))
    return {f"report/best_{name}": picture for name, picture in charts.items()}


def _out_of_patience(run: Run, metrics: dict[str, float]) -> bool:
    progress, patience = run.state.progress, run.options.patience
    measured = metrics and metrics[run.options.best_metric] >= 0
    return bool(patience and measured) and progress.epoch - progress.best_epoch >= patience


def _finish(run: Run, metrics: dict[str, float]) -> None:
    progress = run.state.progress
    if progress.epoch < run.epochs:
        logger.info("stopped early: %s has not been better than %.4f (epoch %d) for %d epochs", run.options.best_metric,
                    progress.best, progress.best_epoch, progress.epoch - progress.best_epoch)
    run.folder.finish(progress, metrics)
