"""What a training run leaves on disk beside its checkpoints."""
from __future__ import annotations

import datetime
import json
import os
import platform
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
import yaml

from ..config.keys import section, setting
from ..data.image import read_image, write_image
from ..errors import ConfigError
from ..evaluation import report
from ..system import dist
from ..system.atomic_write import explain, write_csv, write_json, write_text
from ..system.log import logger
from .checkpoints import SUFFIXES

if TYPE_CHECKING:
    from .state import Progress

WITHOUT_DEFAULT = ("architecture", "metric", "num_classes", "epoch", "snapshot_epoch", "save_dir", "log_iter",
                   "worker_num")  # in PaddleDetection
FIRST_COLUMNS = ("epoch", "step", "lr")  # of results.csv; then the losses and the metrics, which depend on the config


class RunFolder:
    """`config.yml` (resolved), `run.json` (each start: command, versions), `results.csv` (a row per epoch),
    `metrics.json` (the last numbers), `curves.png`, `batches/` (pictures of the first ones). Only process 0 writes.

    Args:
        resume: None, "" for the newest checkpoint of this folder, or the path of one that may lie elsewhere.

    Raises ConfigError when the folder holds another run than the one that is resumed.
    """

    def __init__(self, path: Path, *, resume: str | None) -> None:
        self.path = path
        resumed = path if resume == "" else Path(resume or os.devnull)
        resumes_this = path.resolve() in (resumed.resolve(), *resumed.resolve().parents)
        if not resumes_this and any(path.glob("*.pdparams")):
            raise ConfigError(f"{path.absolute()}: holds a run already; --resume to go on with it, or choose another "
                              "folder with -o save_dir=")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; one that is killed leaves no lock. Raises ConfigError while another writes here."""
        if not dist.is_main():
            yield
            return
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(f"{self.path.absolute()}: another run is writing there; wait for its end, or choose "
                              "another folder with -o save_dir=") from error
        try:
            yield
        finally:
            (self.path / "run.lock").unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                self.path.rmdir()  # empty after a mistake before the first step

    def describe(self, cfg: dict[str, Any], options: Mapping[str, Any], progress: Progress, *, images: int,
                 images_per_step: int) -> None:
        """Write what this run is, and say in the log where everything goes."""
        logger.info("%d images, %d a step, epochs %d to %d; everything goes to %s", images, images_per_step,
                    progress.epoch + 1, setting(cfg, "epoch"), self.path.absolute())
        if not dist.is_main():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yml", yaml.safe_dump(for_both(cfg), sort_keys=False, allow_unicode=True))
        starts = json.loads(self._text("run.json") or "[]")
        starts.append({
            "command": options["command"], "options": {k: v for k, v in options.items() if k != "command"},
            "time": datetime.datetime.now().isoformat(timespec="seconds"), "from_epoch": progress.epoch,
            "processes": dist.world_size(), "images_per_step": images_per_step, "python": platform.python_version(),
            "paddle": paddle.__version__, "numpy": np.__version__, "device": str(paddle.device.get_device())})
        write_json(self.path / "run.json", starts)
        self._write_rows(progress.rows)

    def add_row(self, progress: Progress, lr: float, losses: Mapping[str, float], metrics: Sequence[str]) -> None:
        """Add an epoch to the progress; metrics: the names of the numbers that an evaluation may add."""
        progress.rows.append({"epoch": float(progress.epoch), "step": float(progress.step), "lr": float(lr), **losses,
                              **dict.fromkeys(metrics)})

    def add_metrics(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Add the numbers of an evaluation to the epoch that was added last."""
        progress.rows[-1].update({name: float(value) for name, value in metrics.items()})

    def write_rows(self, progress: Progress) -> None:
        """Write results.csv, or warn."""
        if dist.is_main():
            with only_warned("results.csv", "it is written again after the next epoch"):
                self._write_rows(progress.rows)

    def add_batch(self, step: int, picture: np.ndarray) -> None:
        """Keep a picture [H, W, 3] uint8 BGR of what was trained on in a step."""
        (self.path / "batches").mkdir(exist_ok=True)
        write_image(str(self.path / "batches" / f"{step}.jpg"), picture)

    def remove_checkpoint(self, name: str) -> None:
        """Remove one that a later one has taken the place of."""
        for suffix in SUFFIXES if dist.is_main() else ():
            (self.path / f"{name}{suffix}").unlink(missing_ok=True)

    def batches(self) -> list[np.ndarray]:
        """The pictures of `add_batch`, also those from before a resume."""
        return [read_image(str(path)) for path in sorted((self.path / "batches").glob("*.jpg"))]

    def finish(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Write metrics.json and say where the results are."""
        if dist.is_main():
            with only_warned("metrics.json", "its numbers stand in results.csv"):
                write_json(self.path / "metrics.json", {"epoch": progress.epoch, "best": progress.best,
                                                        "best_epoch": progress.best_epoch, **metrics})
            with only_warned("curves.png", "its numbers stand in results.csv"):
                write_image(str(self.path / "curves.png"), report.draw_training(progress.rows))
        logger.info("finished: weights, results.csv and curves.png in %s", self.path.absolute())

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys([*FIRST_COLUMNS, *(key for row in rows for key in row)]))
        lines = [["" if row.get(key) is None else f"{row[key]:.10g}" for key in columns] for row in rows]
        write_csv(self.path / "results.csv", [columns, *lines])

    def _text(self, name: str) -> str:
        path = self.path / name
        return path.read_text(encoding="utf-8") if os.path.exists(path) else ""


@contextmanager
def only_warned(what: str, instead: str) -> Iterator[None]:
    """Inside, whatever fails costs a warning and never the run: it matters less than the weights, which are saved."""
    try:
        yield
    except Exception as error:
        logger.warning("%s is not written, and training goes on (%s): %s", what, instead, reason(error))


def reason(error: Exception) -> str:
    """What failed, in one line."""
    known = explain(error) if isinstance(error, OSError) else None
    return known or " ".join(traceback.format_exception_only(type(error), error)[-1].split())


def for_both(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same config as PaddleDetection reads it too: with the values that it has no defaults for, and without the
    keys that stop it, since it takes none in a section but its own."""
    cfg = {**{name: setting(cfg, name) for name in WITHOUT_DEFAULT}, **cfg}
    rates = dict(cfg.get("LearningRate") or {})
    if "total_batch_size" in rates:  # in the rate instead
        images, usual = rates.pop("total_batch_size"), section({}, "LearningRate")["total_batch_size"]
        cfg["LearningRate"] = {**rates, "base_lr": section(cfg, "LearningRate")["base_lr"] * usual / images}
    for name in ("GFLHead", "LDGFLHead"):
        head = dict(cfg.get(name) or {})
        if "upstream_scores" in head:
            cfg["upstream_scores"] = head.pop("upstream_scores")
        if "loss_qfl" in head:  # the name of loss_class in its first GFLv2 files
            head = {"loss_class": head.pop("loss_qfl"), **head}
        if head:
            cfg[name] = head
    return cfg


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of a finished run's metrics.json."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
