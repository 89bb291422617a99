"""Training, in the order in which things happen."""
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paddle

from . import dist, resume, runtime
from .build import build_dataset, build_ema, build_loader, build_model, build_optimizer
from .checkpoint import load_pretrained
from .dashboard import Dashboard, training_pictures
from .data.loader import iterate
from .data.transforms import NormalizeImage
from .detections import Detections, split_batch
from .errors import ConfigError, TrainingError
from .evaluate import METRICS, check_classes, coco_metrics, run
from .log import logger, training_bar
from .run_folder import RunFolder

LOSSES = ("loss", "loss_qfl", "loss_bbox", "loss_dfl")
HISTOGRAMS_EVERY = 5  # epochs
PICTURED = 4  # validation images whose predictions go to the dashboard


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
    Raises: ConfigError, DataError, CheckpointError; TrainingError when a loss is not finite.
    """
    options = Options(**options)
    dist.start()
    folder = RunFolder(Path(cfg.get("save_dir", "output")) / options.run_name, resuming=options.resume is not None)
    with dist.failing_together(folder.path):
        return _train(cfg, options, folder)


def _train(cfg, options, folder):
    paddle.seed(options.seed)
    train_set, eval_set, cfg = _data_sets(cfg, options)
    loader = build_loader(cfg, "TrainReader", train_set, seed=options.seed, rank=dist.rank(),
                          world_size=dist.world_size())
    steps = len(loader.batch_sampler) // options.accumulate
    if not steps:
        raise ConfigError(f"--accumulate: {options.accumulate}, but an epoch has only {len(loader.batch_sampler)} batches")
    images_per_step = cfg["TrainReader"].get("batch_size", 1) * dist.world_size() * options.accumulate

    model = build_model(cfg)
    names = {name: value.name for name, value in model.state_dict().items()}
    optimizer = build_optimizer(cfg, model, steps_per_epoch=steps,
                                total_batch_size=images_per_step if options.scale_lr else None)
    ema = build_ema(cfg, model)
    progress = _start_or_resume(cfg, options, folder, model, optimizer, ema, names)
    folder.describe(cfg, options, progress, train_set, images_per_step)
    board = Dashboard(_dashboard_folder(options, folder), resume_step=progress.step)

    step_model, scaler, amp = _prepare(cfg, options, model, optimizer)
    step = _Step(step_model, optimizer, ema, scaler, amp, options.accumulate)
    model.train()
    metrics = {}
    for epoch in range(progress.epoch, cfg.get("epoch", 12)):
        losses = _train_epoch(cfg, epoch, steps, loader, step, progress, board, train_set, images_per_step)
        progress.epoch = epoch + 1
        last = progress.epoch == cfg.get("epoch", 12)
        due = last or progress.epoch % cfg.get("snapshot_epoch", 1) == 0
        if epoch % HISTOGRAMS_EVERY == 0 and dist.is_main():
            board.histograms(model, progress.step)
        optimizer.clear_grad()
        if due and options.evaluate:
            metrics = _evaluate(cfg, model, ema, eval_set, board, progress)
        better = bool(metrics) and due and metrics[options.best_metric] > progress.best
        if better:
            progress.best, progress.best_epoch = metrics[options.best_metric], progress.epoch
        folder.add_row(progress, optimizer.get_lr(), losses, metrics if due else {})
        save = [name for name, wanted in (("best_model", better), (str(epoch), due and not last), ("model_final", last))
                if wanted]
        if dist.is_main():
            _save(folder, save, model, optimizer, ema, names, progress)
        dist.barrier()
        if options.patience and due and metrics and progress.epoch - progress.best_epoch >= options.patience:
            logger.info("stopped early: %s has not been better than %.4f (epoch %d) for %d epochs",
                        options.best_metric, progress.best, progress.best_epoch, options.patience)
            break
    _finish(cfg, folder, board, progress, metrics, images_per_step)
    return {"folder": str(folder.path), "epoch": progress.epoch, "best": progress.best, **metrics}


# --- before the first step


def _data_sets(cfg, options):
    """The two data sets and the config with the number of classes that they have. Raises a ConfigError that lists the
    classes when config, training set and validation set disagree."""
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
        stem = resume.find_training(options.resume, folder.path)
        if stem is None:
            logger.info("%s: no checkpoint to resume from, so this starts at the first epoch", folder.path)
        else:
            saved = resume.load_training(stem, model=model, optimizer=optimizer, ema=ema, parameter_names=names)
            progress = Progress(**saved)
            if progress.seed != options.seed:
                raise ConfigError(f"--seed: {options.seed}, but {stem} was trained with {progress.seed}; give that one")
            logger.info("resumed from %s: epoch %d, step %d, best %.4f", stem, progress.epoch, progress.step,
                        progress.best)
            return progress
    if cfg.get("pretrain_weights"):
        load_pretrained(model, cfg["pretrain_weights"])
    return progress


def _prepare(cfg, options, model, optimizer):
    """The model as a step calls it (compiled, distributed), the gradient scaler, and the auto-cast settings."""
    on_gpu = runtime.on_gpu()
    if options.amp and not on_gpu:
        logger.info("--amp has no effect on a CPU")
    amp = dict(enable=bool(options.amp) and on_gpu, level=options.amp or "O1")
    scaler = paddle.amp.GradScaler(enable=amp["enable"], init_loss_scaling=1024.0)
    step_model = model
    if cfg.get("norm_type") == "sync_bn" and dist.world_size() > 1 and on_gpu:
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if amp["enable"] and options.amp == "O2":
        step_model = paddle.amp.decorate(models=model, optimizers=optimizer, level="O2")[0]
    if options.to_static:
        step_model = paddle.jit.to_static(step_model)
    if dist.world_size() > 1:
        step_model = paddle.DataParallel(step_model, find_unused_parameters=cfg.get("find_unused_parameters", False))
    return step_model, scaler, amp


def _dashboard_folder(options, folder):
    if not options.use_vdl or not dist.is_main():
        return None
    return Path(options.vdl_log_dir) if options.vdl_log_dir else folder.path / "vdl"


# --- the loop


@dataclass
class _Step:
    """One optimizer step."""

    model: object
    optimizer: object
    ema: object
    scaler: object
    amp: dict
    accumulate: int

    def __call__(self, batches):
        """`accumulate` batches -> the mean of their losses, {name: tensor}. Never waits for the device."""
        total = {}
        for batch in batches:
            with paddle.amp.auto_cast(**self.amp):
                losses = self.model(batch)
            self.scaler.scale(losses["loss"] / self.accumulate).backward()
            for name in LOSSES:
                total[name] = total.get(name, 0) + losses[name].detach() / self.accumulate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()
        return total


def _train_epoch(cfg, epoch, steps, loader, step, progress, board, train_set, images_per_step):
    """One round through the training set. Returns the mean of each loss."""
    loader.batch_sampler.epoch = epoch
    log_iter = cfg.get("log_iter", 20)
    window, sums = [], np.zeros(len(LOSSES))
    started = waited = time.perf_counter()
    data_time = 0.0
    batches = iterate(loader)
    with training_bar(steps, f"epoch {epoch + 1}") as bar:
        for index in range(steps):
            group = [next(batches) for _ in range(step.accumulate)]
            data_time += time.perf_counter() - waited
            if epoch == 0 and index == 0 and dist.is_main():
                _picture_batch(board, cfg, loader, group[0], train_set)
            step.optimizer.clear_grad()
            window.append((progress.step, [batch["im_id"] for batch in group], step(group)))
            lr = step.optimizer.get_lr()
            step.optimizer._learning_rate.step()
            progress.step += 1
            bar.update(1)
            if len(window) == log_iter or index == steps - 1:
                means = _read(window, epoch)
                sums += means * len(window)
                seconds = (time.perf_counter() - started) / len(window)
                left = seconds * (steps * (cfg.get("epoch", 12) - epoch) - index - 1)
                rate = images_per_step / seconds
                terms = " ".join(f"{name} {value:.4f}" for name, value in zip(LOSSES, means))
                logger.info("epoch %d/%d [%d/%d] eta %s lr %.6f %s data %.3f s batch %.3f s %.2f images/s", epoch + 1,
                            cfg.get("epoch", 12), index + 1, steps, _clock(left), lr, terms,
                            data_time / len(window), seconds, rate)
                board.scalars({"train/lr": lr, "train/images_per_s": rate,
                               **{f"train/{name}": value for name, value in zip(LOSSES, means)}}, progress.step)
                window, data_time, started = [], 0.0, time.perf_counter()
            waited = time.perf_counter()
    return dict(zip(LOSSES, sums / steps))


def _read(window, epoch):
    """The mean of each loss over the logged steps and all processes; raises TrainingError where one is not finite."""
    values = paddle.stack([paddle.stack([losses[name] for name in LOSSES]) for _, _, losses in window])
    own = values.numpy()
    for (step, images, _), row in zip(window, own):
        if not np.isfinite(row).all():
            ids = [image for batch in images for image in np.asarray(batch).ravel().tolist()]
            terms = ", ".join(f"{name} {value}" for name, value in zip(LOSSES, row))
            raise TrainingError(
                f"a loss is not finite in epoch {epoch + 1}, step {step + 1}: {terms}; image ids {ids}; the last "
                "checkpoint is intact. Lower LearningRate.base_lr, lengthen the warm-up, or look at these images")
    return dist.mean(values.mean(axis=0)).numpy().astype(np.float64)


def _clock(seconds):
    hours, rest = divmod(int(math.ceil(seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


# --- after an epoch


def _evaluate(cfg, model, ema, eval_set, board, progress):
    """The COCO numbers of the model, or of its moving average; the model comes back as it was, in training mode."""
    own = {name: value.clone() for name, value in model.state_dict().items()} if ema is not None else {}
    if ema is not None:
        _set_state(model, ema.weights())
    results = run(model, cfg, eval_set)
    metrics = coco_metrics(eval_set, results, classwise=True)
    if dist.is_main():
        _picture_predictions(cfg, model, eval_set, board, progress)
    _set_state(model, own)
    model.train()
    per_class = metrics.pop("per_class")
    board.scalars({**{f"eval/{name}": value for name, value in metrics.items()},
                   **{f"eval_class/{name}": value for name, value in per_class.items() if value >= 0}}, progress.step)
    return metrics


def _set_state(model, state):
    targets = model.state_dict()
    for name, value in state.items():
        targets[name].set_value(value)


def _save(folder, names_to_save, model, optimizer, ema, parameter_names, progress):
    for name in names_to_save:
        resume.save_training(
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


# --- pictures for the dashboard


def _picture_batch(board, cfg, loader, batch, train_set):
    normalize = next((t for t in loader.dataset.transforms if isinstance(t, NormalizeImage)), None)
    if board.writer is None or normalize is None:
        return
    for i, picture in enumerate(training_pictures(batch, normalize, train_set.class_names)):
        board.image(f"train/first_batch_{i}", picture, 0)


def _picture_predictions(cfg, model, eval_set, board, progress):
    if board.writer is None:
        return
    from copy import copy

    few = copy(eval_set)
    few.records = eval_set.records[:PICTURED]
    model.eval()
    with paddle.no_grad():
        index = 0
        for batch in iterate(build_loader({**cfg, "worker_num": 0}, "EvalReader", few)):
            for rows in split_batch(model(batch)):
                found = Detections.from_rows(rows, eval_set.class_names, path=few.records[index]["im_file"])
                board.image(f"eval/image_{few.records[index]['im_id']}", found.draw(0.3), progress.step)
                index += 1
