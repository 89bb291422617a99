"""Training, in the order in which things happen."""
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import paddle

from ..build import build_dataset, build_ema, build_loader, build_model, build_optimizer, build_teacher
from ..data.loader import iterate, worker_losses_explained
from ..errors import ConfigError
from ..evaluation import report
from ..evaluation.evaluate import METRICS, check_classes, coco_evaluator, run, summarize
from ..system import dist, interrupt
from ..system.log import logger
from ..system.progress import training_bar
from ..weights.checkpoint import load_pretrained
from . import checkpoints, onednn
from .meter import Meter
from .run_folder import RunFolder
from .step import make_step
from .visualdl_log import Dashboard, prediction_pictures

INTERRUPTED = "interrupted"  # the checkpoint inside an epoch
HISTOGRAMS_EVERY = 5  # epochs
SHOWN_BATCHES = 3  # the first ones of a run, as the network sees them


@dataclass
class Options:
    """What a command line adds to a config.

    Attributes:
        run_name: the run's folder is `save_dir`/`run_name`.
        evaluate: evaluate after every `snapshot_epoch` epochs and keep the best model.
        resume: None: a new run; "": go on from the newest checkpoint of the run's folder; else from this one.
        amp: None, "O1" or "O2": automatic mixed precision on a GPU.
        accumulate: batches per optimizer step.
        use_vdl, vdl_log_dir: write a VisualDL log, by default into the run's folder.
        to_static: compile the step into a static graph.
        seed: of everything that is random.
        patience: stop after so many evaluations without a better one; 0: never.
        best_metric: which of `evaluate.METRICS` is meant by better.
        scale_lr: scale the config's learning rate to the real total batch.
        command: the command line, for the run's folder.
    """

    run_name: str = "run"
    evaluate: bool = False
    resume: str = None
    amp: str = None
    accumulate: int = 1
    use_vdl: bool = False
    vdl_log_dir: str = None
    to_static: bool = False
    seed: int = 0
    patience: int = 0
    best_metric: str = "AP"
    scale_lr: bool = True
    command: str = ""

    def __post_init__(self):
        if self.best_metric not in METRICS:
            raise ConfigError(f"--best_metric: {self.best_metric!r}; allowed: {', '.join(METRICS)}")
        if self.accumulate < 1:
            raise ConfigError(f"--accumulate: {self.accumulate}; it must be 1 or more")


@dataclass
class Progress:
    """How far a run is; all of it is in every checkpoint."""

    epoch: int = 0  # finished
    step: int = 0
    done: int = 0  # steps of the epoch under way, after an interruption
    sums: dict = field(default_factory=dict)  # of their losses
    seed: int = 0
    best: float = -1.0
    best_epoch: int = 0
    rows: list = field(default_factory=list)  # of results.csv


def train(cfg, **options):
    """Train the detector of a config.

    Args:
        cfg: the dict of `load_config`.
        options: see `Options`.

    Returns: {"folder": the run's folder, "epoch": finished epochs, "best": best metric or -1, and the last metrics}.
    Raises: ConfigError, DataError, CheckpointError, OSError; TrainingError when a loss is not finite; Interrupted, a
        KeyboardInterrupt, after Ctrl-C or SIGTERM, with a checkpoint to resume from.
    """
    options = _with_keys_of_config(cfg, Options(**options))
    dist.start()
    folder = RunFolder(Path(cfg.get("save_dir", "output")) / options.run_name, resume=options.resume)
    with dist.failing_aloud(), folder.locked(), worker_losses_explained(), \
            onednn.switched_on(cfg.get("onednn_training")), interrupt.requests() as request:
        return _train(cfg, options, folder, request)


def _with_keys_of_config(cfg, options):
    """Options that a config can also ask for."""
    return replace(options, amp=options.amp or (cfg.get("amp_level", "O1") if cfg.get("amp") else None),
                   use_vdl=options.use_vdl or bool(cfg.get("use_vdl")),
                   vdl_log_dir=options.vdl_log_dir or cfg.get("vdl_log_dir"))


def _train(cfg, options, folder, request):
    paddle.seed(options.seed)
    train_set, eval_set, cfg = _data_sets(cfg, options)
    loader = build_loader(cfg, "TrainReader", train_set, seed=options.seed, rank=dist.rank(),
                          world_size=dist.world_size())
    steps = len(loader.batch_sampler) // options.accumulate
    if not steps:
        raise ConfigError(f"--accumulate: {options.accumulate}, but an epoch has only "
                          f"{len(loader.batch_sampler)} batches")
    images_per_step = cfg["TrainReader"].get("batch_size", 1) * dist.world_size() * options.accumulate

    model = build_model(cfg)
    names = {name: value.name for name, value in model.state_dict().items()}
    optimizer = build_optimizer(cfg, model, steps_per_epoch=steps,
                                total_batch_size=images_per_step if options.scale_lr else None)
    ema, teacher = build_ema(cfg, model), build_teacher(cfg, model)
    progress = _start_or_resume(cfg, options, folder, model, optimizer, ema, names)
    epochs, every, metrics = cfg.get("epoch", 12), cfg.get("snapshot_epoch", 1), {}
    if progress.epoch >= epochs:
        raise ConfigError(f"epoch: {epochs}, and the run that is resumed has finished {progress.epoch}; "
                          "set -o epoch= higher to go on")
    folder.describe(cfg, options, progress, train_set, images_per_step)
    board = Dashboard(_dashboard_folder(options, folder), resume_step=progress.step)

    step = make_step(cfg, model, optimizer, ema, teacher, amp=options.amp, accumulate=options.accumulate,
                     to_static=options.to_static)
    model.train()
    for epoch in range(progress.epoch, epochs):
        request.obey(f"go on from {folder.path} with --resume")
        loader.batch_sampler.epoch, loader.batch_sampler.skip = epoch, progress.done * options.accumulate
        meter = Meter(epoch=epoch, epochs=epochs, steps=steps, images_per_step=images_per_step,
                      log_iter=cfg.get("log_iter", 20), done=progress.done, sums=progress.sums)
        with dist.hanging_aloud(cfg.get("hang_timeout")) as next_is:
            _train_epoch(loader, step, meter, progress, folder, board, train_set.class_names, request, next_is)
        if request and meter.done < steps:
            progress.done, progress.sums = meter.pause()
            _save(folder, [INTERRUPTED], model, optimizer, ema, names, progress)
            request.obey(f"epoch {epoch + 1}, step {meter.done} of {steps} is in {folder.path / INTERRUPTED}; "
                         "go on with --resume")
        progress.epoch, progress.done, progress.sums = epoch + 1, 0, {}
        if epoch % HISTOGRAMS_EVERY == 0:
            board.histograms(model, progress.step)
        optimizer.clear_grad()
        due = progress.epoch == epochs or progress.epoch % every == 0
        metrics, evaluator = _evaluate(cfg, model, step, eval_set, board, progress) if eval_set and due else ({}, None)
        better = bool(metrics) and metrics[options.best_metric] > progress.best
        if better:
            progress.best, progress.best_epoch = metrics[options.best_metric], progress.epoch
        folder.add_row(progress, optimizer.get_lr(), meter.means(), metrics)
        last = progress.epoch == epochs or _out_of_patience(options, progress, metrics)
        save = {"best_model": better, "model_final": last, str(epoch): due and not last}
        if dist.is_main():
            _save(folder, [name for name in save if save[name]], model, optimizer, ema, names, progress)
            if due or last:
                folder.remove_checkpoint(INTERRUPTED)
            if better:  # last, since a full disk must not cost the weights
                _report(folder, evaluator, eval_set, metrics, board, progress)
        dist.barrier()
        if last:
            break
    _finish(cfg, folder, board, progress, metrics, images_per_step)
    return {"folder": str(folder.path), "epoch": progress.epoch, "best": progress.best, **metrics}


# --- before the first step


def _data_sets(cfg, options):
    """The two data sets and the config with the number of classes that they have. Raises a ConfigError that lists the
    classes when config, training set and validation set disagree."""
    if cfg.get("GFL", {}).get("head") == "LDGFLHead" and not cfg.get("teacher"):
        raise ConfigError("GFL.head: LDGFLHead learns from a teacher; add --slim_config configs/slim/distill/"
                          "gfl_ld_distill.yml, or set GFL.head=GFLHead")
    train_set = build_dataset(cfg, "TrainDataset")
    if cfg.get("num_classes") is None:
        cfg = {**cfg, "num_classes": len(train_set.class_names)}
        logger.info("num_classes: %d, from %s", cfg["num_classes"], train_set.anno_path)
    eval_set = build_dataset(cfg, "EvalDataset") if options.evaluate else None
    if eval_set and eval_set.class_names != train_set.class_names:
        raise ConfigError(f"classes disagree: num_classes {cfg['num_classes']}; training set {train_set.anno_path} "
                          f"{train_set.class_names}; validation set {eval_set.anno_path} {eval_set.class_names}; "
                          "both annotation files must list the same categories in the same order")
    check_classes(cfg, train_set.class_names, train_set.anno_path)
    return train_set, eval_set, cfg


def _start_or_resume(cfg, options, folder, model, optimizer, ema, names):
    progress = Progress(seed=options.seed)
    if options.resume is not None:
        stem = checkpoints.find_training(options.resume, folder.path)
        if stem is None:
            logger.info("%s: no checkpoint to resume from, so this starts at the first epoch", folder.path)
        else:
            saved = checkpoints.load_training(stem, model=model, optimizer=optimizer, ema=ema, parameter_names=names)
            progress = Progress(**saved)
            if progress.seed != options.seed:
                raise ConfigError(f"--seed: {options.seed}, but {stem} was trained with {progress.seed}; give that one")
            logger.info("resumed from %s: epoch %d, step %d, best %.4f", stem, progress.epoch, progress.step,
                        progress.best)
            return progress
    if cfg.get("pretrain_weights"):
        load_pretrained(model, cfg["pretrain_weights"])
    return progress


def _dashboard_folder(options, folder):
    if not options.use_vdl or not dist.is_main():
        return None
    return Path(options.vdl_log_dir) if options.vdl_log_dir else folder.path / "vdl"


# --- the loop


def _train_epoch(loader, step, meter, progress, folder, board, class_names, request, next_is):
    """The rest of a round through the training set, or up to the step in which it is asked to stop."""
    with training_bar(meter.steps, f"epoch {meter.epoch + 1}") as bar, closing(iterate(loader)) as batches:
        bar.update(meter.done)
        while meter.done < meter.steps and not request:
            next_is("reading a batch")
            try:
                group = [next(batches) for _ in range(step.accumulate)]
            except (RuntimeError, SystemError):  # the workers were asked to stop too
                if request:
                    return
                raise
            meter.data_arrived()
            if progress.step < SHOWN_BATCHES and dist.is_main():
                picture = report.draw_batch(group[0], loader.dataset.transforms, class_names)
                folder.add_batch(progress.step, picture)
                board.images("train/batch", [(progress.step, picture)], progress.step)
            lr = step.optimizer.get_lr()
            next_is("in a step, which waits for the other processes")
            losses = step(group)
            progress.step += 1
            curves = meter.add(progress.step, lr, group, losses)
            board.scalars(curves, progress.step)
            bar.update(1)


# --- after an epoch


def _evaluate(cfg, model, step, eval_set, board, progress):
    """The COCO numbers of the model, or of its moving average, and the `COCOeval` they come from; the model comes back
    as it was, in training mode."""
    own = {name: value.clone() for name, value in model.state_dict().items()} if step.ema is not None else {}
    _set_state(model, {} if step.ema is None else step.ema.weights())
    with paddle.amp.auto_cast(**step.amp):
        results = run(model, cfg, eval_set)
    _set_state(model, own)
    model.train()
    evaluator = coco_evaluator(eval_set, results)
    metrics = summarize(evaluator, eval_set, classwise=True)
    per_class = metrics.pop("per_class")
    board.scalars({**{f"eval/{name}": value for name, value in metrics.items()},
                   **{f"eval_class/{name}": value for name, value in per_class.items() if value >= 0}}, progress.step)
    board.images("eval/image", prediction_pictures(eval_set, results), progress.step)
    return metrics, evaluator


def _report(folder, evaluator, eval_set, metrics, board, progress):
    """The page of the best model so far, its pictures also on the dashboard."""
    pictures = report.write(folder.path / "report", evaluator, eval_set, metrics, training=progress.rows,
                            batches=folder.batches(),
                            title=f"{folder.path.name}, epoch {progress.epoch}, AP {metrics['AP']:.3f}")
    board.images("report/best", pictures.items(), progress.step)


def _out_of_patience(options, progress, metrics):
    waited = progress.epoch - progress.best_epoch
    if not options.patience or not metrics or waited < options.patience:
        return False
    logger.info("stopped early: %s has not been better than %.4f (epoch %d) for %d epochs", options.best_metric,
                progress.best, progress.best_epoch, waited)
    return True


def _set_state(model, state):
    targets = model.state_dict()
    for name, value in state.items():
        targets[name].set_value(value.astype(targets[name].dtype))  # half precision under --amp O2


def _save(folder, names_to_save, model, optimizer, ema, parameter_names, progress):
    for name in names_to_save:
        checkpoints.save_training(
            folder.path, name, weights=model.state_dict() if ema is None else ema.weights(), optimizer=optimizer,
            parameter_names=parameter_names, progress=dict(vars(progress)), ema=ema,
            raw_weights=None if ema is None else model.state_dict())
        logger.info("saved %s", folder.path / name)


def _finish(cfg, folder, board, progress, metrics, images_per_step):
    folder.finish(progress, metrics)
    board.hyper_parameters(
        {"base_lr": float(cfg.get("LearningRate", {}).get("base_lr", 0.01)), "images_per_step": images_per_step,
         "epochs": progress.epoch, "depth": int(cfg.get("ResNet", {}).get("depth", 50))},
        {"final/AP": metrics.get("AP", -1.0)}, progress.step)
    board.close()
