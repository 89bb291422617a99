"""From a data set and the name of a model to a whole config: `ppgfl train --data`."""
from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..build import check, make_model
from ..config import load_config
from ..config.keys import setting
from ..config.load import apply_overrides
from ..data.dataset import DetectionDataSet
from ..data.recognize import sections_of
from ..errors import ConfigError
from ..readers import build_dataset, build_loader
from ..system.log import logger
from ..weights.checkpoint import find
from ..weights.zoo import MODELS, SHORT_NAMES

STRIDE = 32  # sizes are multiples of it
WARMUP_STEPS, WARMUP_SHARE = 500, 0.1  # the fewer of these, and of that share of all steps
SIZES = (0.75, 1.25)  # shares of --size that images of training have,
VARIED_FROM = 24  # from so many epochs on, as in the papers' 2x schedules
EVALUATIONS = 10  # in a whole run, about


@dataclass(frozen=True)
class Wish:
    """What a user says of a training on data of their own.

    Attributes:
        data: see `data.recognize.sections_of`; or a config, whose data sets are taken.
        model: one of `SHORT_NAMES`.
        size: pixels of the long side of an image.
        batch: images of a step and process.
        name: of the run's folder.
        weights: where the training starts: None: the released detector; "backbone": the backbone of ImageNet; else a
            file or an address.
    """

    data: str
    model: str = "r18vd"
    size: int = 640
    epochs: int = 50
    batch: int = 8
    name: str = "run"
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.model not in SHORT_NAMES:
            raise ConfigError(f"--model: {self.model}; allowed: {', '.join(SHORT_NAMES)}")
        for name, value, least in (("size", self.size, STRIDE), ("epochs", self.epochs, 1), ("batch", self.batch, 1)):
            if value < least:
                raise ConfigError(f"--{name}: {value}; it must be {least} or more")
        if self.name != os.path.basename(self.name) or self.name in ("", ".", ".."):
            raise ConfigError(f"--name: {self.name!r}; it is the name of a folder, without a path")
        if self.weights == "":
            raise ConfigError("--weights: is empty; give a file, an address, or backbone; without --weights the "
                              "training starts from the released detector")


def run_folder(wish: Wish, overrides: Sequence[str] = ()) -> Path:
    """The folder of the run: `save_dir`, which may be among the overrides, with the run's name. Raises ConfigError."""
    given: dict[str, Any] = {}
    _override(given, overrides)
    given = {key: given[key] for key in ("save_dir",) if key in given}
    check(given)
    return Path(setting(given, "save_dir"), wish.name)


def find_weights(wish: Wish, overrides: Sequence[str] = ()) -> None:
    """Have the weights here that the training starts from, before anything is read or written. Raises ConfigError,
    CheckpointError."""
    cfg = {"pretrain_weights": _first_weights(wish)}
    _override(cfg, overrides)
    if cfg["pretrain_weights"]:
        check({"pretrain_weights": cfg["pretrain_weights"]})
        find(cfg["pretrain_weights"])


def _override(cfg: dict[str, Any], overrides: Sequence[str]) -> None:
    apply_overrides(cfg, overrides, Path("config.yml").absolute())  # files that they name are found from here


def _first_weights(wish: Wish) -> Any:
    name = SHORT_NAMES[wish.model]
    if wish.weights == "backbone":
        return load_config(name)["pretrain_weights"]
    return MODELS[name].weights if wish.weights is None else wish.weights


def make_config(wish: Wish, folder: Path,
                overrides: Sequence[str] = ()) -> tuple[dict[str, Any], DetectionDataSet, DetectionDataSet]:
    """The whole config of a training, and its two data sets, which are opened here once.

    Args:
        folder: of the run, for annotation files that have to be written.
        overrides: of keys of the config, as in ["epoch=3"].

    Returns: (config, training set, validation set).
    Raises: ConfigError, DataError.
    """
    cfg = {**load_config(SHORT_NAMES[wish.model]), **_data_sections(wish.data, folder), "num_classes": None}
    _override(cfg, overrides)
    check(cfg)
    train, val = (build_dataset(cfg, name) for name in ("TrainDataset", "EvalDataset"))
    steps = max(1, len(train.records) // wish.batch)
    cfg.update({
        "num_classes": len(train.class_names), "metric": "COCO", "save_dir": str(folder.parent), "epoch": wish.epochs,
        "pretrain_weights": _first_weights(wish),
        "weights": str(folder / "best_model"), "snapshot_epoch": max(1, wish.epochs // EVALUATIONS),
        "log_iter": min(20, steps), "use_ema": True, "ema_decay": 0.9998, "ema_decay_type": "threshold",
        "LearningRate": {"base_lr": 0.01, "schedulers": [
            {"name": "CosineDecay", "max_epochs": wish.epochs},
            {"name": "LinearWarmup", "start_factor": 0.001,
             "steps": max(1, min(WARMUP_STEPS, int(WARMUP_SHARE * steps * wish.epochs)))}]},
        **_readers(cfg, wish, len(train.records))})
    _override(cfg, overrides)  # over the recipe's own keys, too
    check(cfg)
    return cfg, train, val


def _data_sections(data: str, folder: Path) -> dict[str, Any]:
    """The three data sets of a config."""
    path = Path(os.path.expanduser(data))
    if path.suffix.lower() in (".yml", ".yaml") and path.is_file() and "TrainDataset" in (given := load_config(path)):
        names = ("TrainDataset", "EvalDataset", "TestDataset")
        missing = [name for name in names[:2] if name not in given]
        if missing:
            raise ConfigError(f"--data {path}: has no {missing[0]}; a training needs both")
        return {name: given[name] for name in names if name in given}
    sections = sections_of(data, folder.absolute() / "annotations", leave_out=folder.parent)
    return {**sections, "TestDataset": {"name": "ImageFolder", "anno_path": sections["TrainDataset"]["anno_path"]}}


def _readers(cfg: Mapping[str, Any], wish: Wish, images: int) -> dict[str, Any]:
    """The three readers of the released model at another size. Who sees an image often sees it at several SIZES:
    drawn images gained 4 to 7 points of AP by it in 50 rounds, and lost 2 to 8 in 4 and in 12 (benchmarks/NOTES.md).
    """
    longest = -(-wish.size // STRIDE) * STRIDE
    varied = {"RandomResize": {"target_size": [[max(STRIDE, round(share * longest))] * 2 for share in SIZES],
                               "keep_ratio": True, "random_range": True, "random_size": False}}
    fixed = {"Resize": {"target_size": [longest, longest], "keep_ratio": True, "interp": 1}}
    readers = {}
    for name, resize in (("TrainReader", varied if wish.epochs >= VARIED_FROM else fixed), ("EvalReader", fixed),
                         ("TestReader", fixed)):
        steps = [resize if {"Resize", "RandomResize"} & set(step) else step for step in cfg[name]["sample_transforms"]]
        readers[name] = {**cfg[name], "sample_transforms": steps}
    readers["TrainReader"]["batch_size"] = min(wish.batch, images)
    return readers


def show_plan(cfg: dict[str, Any], wish: Wish, train: DetectionDataSet, val: DetectionDataSet) -> None:
    """Say what a training will do, and how long it will take by two steps of a model that is thrown away."""
    loader = build_loader(cfg, "TrainReader", train.records)
    seconds = _seconds_per_step(cfg, loader)
    steps = len(loader) * wish.epochs
    logger.info("plan: %s from %s, %d images for training and %d for validation, %d classes, %d pixels", wish.model,
                cfg["pretrain_weights"] or "nothing", len(train.records), len(val.records), cfg["num_classes"],
                wish.size)
    logger.info("plan: %d epochs of %d steps of %d images, %.2g s a step on this machine: about %s, and the "
                "evaluations", wish.epochs, len(loader), cfg["TrainReader"]["batch_size"], seconds,
                in_words(seconds * steps))


def _seconds_per_step(cfg: dict[str, Any], loader: Any) -> float:
    model = make_model(cfg)
    model.train()
    batches = loader.epoch()
    seconds = 0.0
    for _ in range(2):  # the first one sets things up
        begun = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        loss = model(batch)["loss"]
        loss.backward()
        float(loss)  # waits for the device
        seconds = time.perf_counter() - begun
    batches.close()
    return seconds


def in_words(seconds: float) -> str:
    """As "12 min", "3 h 5 min".

    >>> in_words(11100)
    '3 h 5 min'
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
