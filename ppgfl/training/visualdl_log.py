"""A run in VisualDL, as a hook: curves, pictures, histograms."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from paddle import Tensor

from ..config.keys import section
from ..evaluation import metric
from ..model.resnet import ResNet
from ..system.log import logger
from .hooks import Event

FILE_NAME = "vdlrecords.ppgfl.log"  # a fixed name: VisualDL shows one file per folder, and a resumed run goes on in it
HISTOGRAMS_EVERY = 5  # epochs


class VisualDL:
    """Writes to `folder`; None: to vdl in the run's folder."""

    name = "VisualDL"

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def on_start(self, event: Event) -> None:
        import io

        from visualdl import LogWriter

        folder = self.folder or event.run.folder.path / "vdl"
        _remove_records_after(folder / FILE_NAME, event.step)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the file exists
            self.writer = LogWriter(logdir=str(folder), file_name=FILE_NAME)
        logger.info("dashboard: visualdl --logdir %s --language en --disable-telemetry", folder)

    def on_step(self, event: Event) -> None:
        self._images(event.pictures(), event.step - 1)  # batches are numbered from 0
        self._scalars("train", event.values, event.step)

    def on_epoch(self, event: Event) -> None:
        """Weights and gradients of every parameter that learns."""
        if (event.epoch - 1) % HISTOGRAMS_EVERY:
            return
        for name, parameter in event.run.state.model.named_parameters():
            if not parameter.stop_gradient:
                self._histogram(f"weights/{name}", parameter, event.step)
                if parameter.grad is not None:
                    self._histogram(f"gradients/{name}", parameter.grad, event.step)
        self._flush()

    def on_evaluation(self, event: Event) -> None:
        self._scalars("eval", event.values, event.step)
        self._scalars("eval_class", {name: ap for name, ap in event.per_class.items() if ap >= 0}, event.step)
        self._images(event.pictures(), event.step)

    def on_end(self, event: Event) -> None:
        """The hyper-parameters of a finished run, and the final number that belongs to them."""
        if event.error is None:
            run, name = event.run, metric.names(event.run.cfg)[0]
            depth = {"depth": run.state.model.backbone.depth} if isinstance(run.state.model.backbone, ResNet) else {}
            self.writer.add_hparams({"base_lr": float(section(run.cfg, "LearningRate")["base_lr"]),
                                     "images_per_step": run.images_per_step, "epochs": event.epoch, **depth},
                                    [f"final/{name}"])
            self._scalars("final", {name: event.values.get(name, -1.0)}, event.step)
        self.writer.close()

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", float(value), step)
        if values:
            self._flush()

    def _images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for tag, picture in pictures.items():
            self.writer.add_image(tag, np.ascontiguousarray(picture[..., ::-1]), step)
        if pictures:
            self._flush()

    def _histogram(self, tag: str, tensor: Tensor, step: int) -> None:
        # In float64, since numpy cannot divide the narrow range of nearly equal float32 values into bins.
        self.writer.add_histogram(tag, tensor.numpy().ravel().astype(np.float64), step)

    def _flush(self) -> None:
        self.writer._get_file_writer().flush()  # VisualDL, private: nothing public flushes


def _remove_records_after(path: Path, step: int) -> None:
    """Drop the records that a run wrote after the checkpoint it is resumed from: the curve must not step back."""
    if not path.exists():
        return
    from google.protobuf.message import DecodeError
    from visualdl.proto.record_pb2 import Record
    from visualdl.reader.record_reader import RecordReader

    kept = []
    for data in RecordReader(str(path)).get_all():
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError:  # the last record of a killed run may be cut
            break
        if all(value.id <= step for value in record.values):
            kept.append(len(data).to_bytes(8, "little") + data)
    temporary = path.with_name("kept.tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)
