"""What a training run consists of, put together before the first step: data, state, step, folder, hooks."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle

from ..build import build_schedule, build_teacher
from ..config.check import check_classes
from ..config.keys import section, setting
from ..data.dataset import DetectionDataSet
from ..data.loader import Loader
from ..errors import ConfigError
from ..evaluation.metric import ALL_NAMES
from ..fit import check_targets
from ..optim import CosineDecay, schedule_of
from ..precision import precision_of
from ..readers import build_dataset, build_loader
from ..system import dist
from ..system.log import logger
from ..weights.checkpoint import load_pretrained
from . import checkpoints, schedule_check
from .hooks import Event, Hooks, Method
from .run_folder import RunFolder
from .state import Progress, TrainingState, new_state
from .step import Step, make_step


@dataclass(frozen=True)
class Options:
    """What a command line adds to a config; see `train.train`."""

    run_name: str
    evaluate: bool
    resume: str | None
    amp: str | None
    accumulate: int
    use_vdl: bool
    vdl_log_dir: str | None
    to_static: bool
    seed: int
    patience: int
    best_metric: str
    scale_lr: bool
    command: str

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"--accumulate: {self.accumulate}; it must be 1 or more")


@dataclass(frozen=True)
class Run:
    """Everything that the loop uses.

    Attributes:
        cfg: with the number of classes that the data has.
        epochs: of the whole run.
        steps: optimizer steps of an epoch.
        images_per_step: over all processes.
    """

    cfg: dict[str, Any]
    options: Options
    folder: RunFolder
    hooks: Hooks
    train_set: DetectionDataSet
    eval_set: DetectionDataSet | None
    loader: Loader
    state: TrainingState
    step: Step
    epochs: int
    steps: int
    images_per_step: int

    def tell(self, method: Method, values: Mapping[str, float] | None = None, *,
             per_class: Mapping[str, float] | None = None,
             pictures: Callable[[], dict[str, np.ndarray]] = dict, error: BaseException | None = None) -> None:
        """Call a method of the hooks; see `hooks.Event`."""
        progress = self.state.progress
        self.hooks.tell(method, Event(self, progress.step, progress.epoch, values or {}, per_class or {}, pictures,
                                      error))


def set_up(cfg: dict[str, Any], options: Options, folder: RunFolder, hooks: Hooks,
           opened: tuple[DetectionDataSet, DetectionDataSet] | None = None) -> Run:
    """Put a run together, resume it if asked, and write into its folder what it is.

    Args:
        opened: the data sets for training and validation; None: they are opened here.

    Raises: ConfigError, DataError, CheckpointError, OSError.
    """
    precision = precision_of(cfg, options.amp)
    paddle.seed(options.seed)
    train_set, eval_set, cfg = _data_sets(cfg, evaluate=options.evaluate, opened=opened)
    loader = build_loader(cfg, "TrainReader", train_set.records, seed=options.seed, rank=dist.rank(),
                          world_size=dist.world_size())
    steps = len(loader) // options.accumulate
    if not steps:
        raise ConfigError(f"--accumulate: {options.accumulate}, but an epoch has only {len(loader)} batches")
    images_per_step = section(cfg, "TrainReader")["batch_size"] * dist.world_size() * options.accumulate

    state = new_state(cfg, steps_per_epoch=steps, total_batch_size=images_per_step if options.scale_lr else None,
                      seed=options.seed)
    state.model.class_names = train_set.class_names
    check_targets(loader.maker.reader, state.model)
    teacher = build_teacher(cfg, state.model)
    _resume_or_start(cfg, options, folder, state)
    epochs, schedule = setting(cfg, "epoch"), schedule_of(state.optimizer)
    if state.progress.epoch >= epochs:
        also = f", and {schedule_check.key_of(cfg, 0, 'max_epochs')}= as high" \
            if isinstance(schedule.decay, CosineDecay) else ""
        raise ConfigError(f"epoch: {epochs}, and the run that is resumed has finished {state.progress.epoch}; "
                          f"set -o epoch= higher to go on{also}")
    for line in schedule_check.findings(cfg, schedule, epochs=epochs, first=state.progress.epoch):
        logger.warning(line)
    folder.describe(cfg, asdict(options), state.progress, images=len(train_set.records),
                    images_per_step=images_per_step)
    step = make_step(cfg, state, teacher, precision=precision, accumulate=options.accumulate,
                     to_static=options.to_static)
    return Run(cfg, options, folder, hooks, train_set, eval_set, loader, state, step, epochs, steps, images_per_step)


def rehearse(cfg: dict[str, Any]) -> list[str]:
    """All that a training does before it makes a model; what its schedule will not do, in lines.

    Raises: ConfigError, DataError: what the training would stop with.
    """
    train_set, _, cfg = _data_sets(cfg, evaluate=isinstance(cfg.get("EvalDataset"), dict))
    steps = len(build_loader(cfg, "TrainReader", train_set.records))
    epochs = setting(cfg, "epoch")
    logger.info("a training on one device has %d epochs of %d steps: %d", epochs, steps, epochs * steps)
    return schedule_check.findings(cfg, build_schedule(cfg, steps_per_epoch=steps), epochs=epochs)


def _data_sets(cfg: dict[str, Any], *, evaluate: bool,
               opened: tuple[DetectionDataSet, DetectionDataSet] | None = None
               ) -> tuple[DetectionDataSet, DetectionDataSet | None, dict[str, Any]]:
    """The two data sets and the config with the number of classes that they have. Raises a ConfigError that lists the
    classes when config, training set and validation set disagree."""
    if section(cfg, "GFL")["head"] == "LDGFLHead" and not cfg.get("teacher"):
        raise ConfigError("GFL.head: LDGFLHead learns from a teacher; add --slim_config configs/slim/distill/"
                          "gfl_ld_distill.yml, or set GFL.head=GFLHead")
    train_set = opened[0] if opened else build_dataset(cfg, "TrainDataset")
    missing = [key for key in ("gt_bbox", "gt_class") if key not in train_set.records[0]]
    if missing:
        raise ConfigError(f"TrainDataset.data_fields: {', '.join(missing)} is not among them, and without boxes there "
                          "is nothing to learn; set it to [image, gt_bbox, gt_class, is_crowd]")
    if setting(cfg, "num_classes") is None:
        cfg = {**cfg, "num_classes": len(train_set.class_names)}
        logger.info("num_classes: %d, from %s", cfg["num_classes"], train_set.anno_path)
    eval_set = (opened[1] if opened else build_dataset(cfg, "EvalDataset")) if evaluate else None
    if eval_set and sorted(eval_set.class_names) != sorted(train_set.class_names):
        raise ConfigError(f"classes disagree: num_classes {setting(cfg, 'num_classes')}; training set "
                          f"{train_set.anno_path} {train_set.class_names}; validation set {eval_set.anno_path} "
                          f"{eval_set.class_names}; both annotation files must list the same categories")
    check_classes(cfg, train_set.class_names, train_set.anno_path)
    return train_set, eval_set, cfg


def _resume_or_start(cfg: dict[str, Any], options: Options, folder: RunFolder, state: TrainingState) -> None:
    """Load the checkpoint to resume from, or else the weights to start from."""
    if options.resume is not None:
        stem = checkpoints.find_training(options.resume, folder.path)
        if stem is not None:
            state.load(stem)
            _forget_other_metric(state.progress, options.best_metric)
            return
        logger.info("%s: no checkpoint to resume from, so this starts at the first epoch", folder.path)
    if setting(cfg, "pretrain_weights"):
        load_pretrained(state.model, setting(cfg, "pretrain_weights"), names=state.model.class_names)


def _forget_other_metric(progress: Progress, name: str) -> None:
    """Begin the best anew where a resumed run was judged by numbers that its config does not measure any more."""
    evaluated = [row for row in progress.rows if any(row.get(each) is not None for each in ALL_NAMES)]
    if evaluated and all(row.get(name) is None for row in evaluated):
        logger.info("the run was judged by another metric so far, so the best %s begins anew", name)
        progress.best, progress.best_epoch = -1.0, 0
