"""Dashboards, as hooks. VisualDL comes with ppgfl; the packages of the others are imported where they are asked for.

MLflow and W&B are set up by variables of their own: MLFLOW_TRACKING_URI, MLFLOW_RUN_ID, WANDB_MODE, ...
"""
from __future__ import annotations

import importlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config.keys import known_only, section, setting
from ..errors import ConfigError
from ..system.log import logger
from .hooks import Event, Logger
from .visualdl_log import VisualDL

LONGEST = 60  # letters of a class name; MLflow makes file names of them


def chosen(cfg: Mapping[str, Any], *, use_vdl: bool, vdl_log_dir: str | None) -> list[Logger]:
    """The dashboards that a config or the command line asks for.

    Raises: ConfigError: a package is missing, or the section `wandb` has a key that `wandb.init` does not take.
    """
    names, wandb = list(setting(cfg, "loggers") or ()), setting(cfg, "wandb")
    if use_vdl or setting(cfg, "use_vdl"):
        names.append("visualdl")
    if setting(cfg, "use_wandb") or wandb is not None:
        names.append("wandb")
    found: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "visualdl":
            folder = vdl_log_dir or setting(cfg, "vdl_log_dir")
            found.append(VisualDL(Path(folder) if folder else None))
            continue
        cls = OTHERS[name]
        try:
            package = importlib.import_module(cls.package)
        except Exception as error:  # also a version that does not go with what else is installed
            raise ConfigError(f"loggers: {name}: {error}; pip install \"ppgfl[{name}]\"") from error
        if cls is WandB and wandb:
            known_only("wandb", wandb, inspect.signature(package.init).parameters)
        found.append(cls(package))
    return found


class Curves(ABC):
    """A dashboard of curves train/..., epoch/..., eval/..., eval_class/... over optimizer steps, and of pictures.

    Attributes:
        name: for people.
        package: what is imported.
    """

    name: str
    package: str

    def __init__(self, package: Any) -> None:
        self.module = package

    @abstractmethod
    def on_start(self, event: Event) -> None:
        """Open it."""

    def on_step(self, event: Event) -> None:
        self.write(_named("train", event.values), event)

    def on_epoch(self, event: Event) -> None:
        self.write(_named("epoch", event.values), event)

    def on_evaluation(self, event: Event) -> None:
        measured = {name: value for name, value in _named("eval_class", event.per_class).items() if value >= 0}
        self.write({**_named("eval", event.values), **measured}, event)

    @abstractmethod
    def write(self, numbers: Mapping[str, float], event: Event) -> None:
        """Write {name: number} and the pictures of an event."""

    @abstractmethod
    def on_end(self, event: Event) -> None:
        """Close it."""


class MLflow(Curves):
    """A run of MLflow: numbers, `config.yml` and what runs are compared by. One that is active already is used."""

    name, package = "MLflow", "mlflow"

    def on_start(self, event: Event) -> None:
        active = self.module.active_run()
        self.begun_here = active is None
        active = active or self.module.start_run(run_name=event.run.options.run_name)
        logger.info("dashboard: MLflow, run %s in %s", active.info.run_id, self.module.get_tracking_uri())
        facts = {"base_lr": section(event.run.cfg, "LearningRate")["base_lr"], "epochs": event.run.epochs,
                 "images_per_step": event.run.images_per_step}
        # MLflow refuses another value for one that a run has, as one that MLFLOW_RUN_ID goes on with.
        self.module.log_params({name: value for name, value in facts.items() if name not in active.data.params})
        self.module.log_artifact(str(event.run.folder.path / "config.yml"))

    def write(self, numbers: Mapping[str, float], event: Event) -> None:
        if numbers:
            self.module.log_metrics(dict(numbers), step=event.step)

    def on_end(self, event: Event) -> None:
        if self.begun_here:
            ended = "KILLED" if isinstance(event.error, KeyboardInterrupt) else "FAILED"
            self.module.end_run("FINISHED" if event.error is None else ended)


class WandB(Curves):
    """A run of Weights & Biases. The section `wandb` of a config has arguments of `wandb.init`. One that is active
    already is used."""

    name, package = "W&B", "wandb"

    def on_start(self, event: Event) -> None:
        self.begun_here = self.module.run is None
        given = {key: value for key, value in (setting(event.run.cfg, "wandb") or {}).items() if value is not None}
        self.run = self.module.run or self.module.init(**{"name": event.run.options.run_name, **given})
        self.run.config.update(event.run.cfg, allow_val_change=True)

    def write(self, numbers: Mapping[str, float], event: Event) -> None:
        pictures = {name: self.module.Image(picture) for name, picture in _rgb(event).items()}
        if numbers or pictures:
            self.run.log({**numbers, **pictures}, step=event.step)

    def on_end(self, event: Event) -> None:
        if self.begun_here:
            self.run.finish(exit_code=int(event.error is not None))


class TensorBoard(Curves):
    """Event files in the run's folder."""

    name, package = "TensorBoard", "tensorboardX"

    def on_start(self, event: Event) -> None:
        folder = event.run.folder.path / "tensorboard"
        # TensorBoard forgets what was written after the checkpoint: the curve must not step back.
        self.writer = self.module.SummaryWriter(str(folder), purge_step=event.step + 1 if event.step else None,
                                                filename_suffix=f".{event.step}")
        logger.info("dashboard: tensorboard --logdir %s", folder)

    def write(self, numbers: Mapping[str, float], event: Event) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, event.step)
        for name, picture in _rgb(event).items():
            self.writer.add_image(name, picture, event.step, dataformats="HWC")
        self.writer.flush()

    def on_end(self, event: Event) -> None:
        self.writer.close()


OTHERS: dict[str, type[Curves]] = {"mlflow": MLflow, "wandb": WandB, "tensorboard": TensorBoard}


def _named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    """{group/name: number}, each with a name of its own that all dashboards take: class names may be any text."""
    named: dict[str, float] = {}
    for name, value in values.items():
        tag = f"{group}/" + (re.sub(r"[^\w-]", "_", name)[:LONGEST] or "_")
        while tag in named:
            tag += "_"
        named[tag] = value
    return named


def _rgb(event: Event) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(picture[..., ::-1]) for name, picture in event.pictures().items()}
