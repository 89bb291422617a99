"""A run in VisualDL: curves, pictures, histograms. A dashboard that fails says so once and never stops training."""
import functools
import os
from pathlib import Path

import numpy as np

from .draw import draw_boxes
from .log import logger

FILE_NAME = "vdlrecords.ppgfl.log"  # a fixed name: VisualDL shows one file per folder, and a resumed run goes on in it


def _never_fails(method):
    @functools.wraps(method)
    def guarded(self, *args, **kwargs):
        if self.writer is None:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever VisualDL raises, training matters more
            logger.warning("VisualDL failed and is switched off for this run: %s: %s", type(error).__name__, error)
            self.writer = None

    return guarded


class Dashboard:
    """Writes to `folder`; does nothing when `folder` is None. `step` counts optimizer steps, `epoch` finished epochs."""

    def __init__(self, folder, *, resume_step=0):
        self.writer = None
        if folder is None:
            return
        self.writer = True  # so that `_open` runs guarded
        self._open(Path(folder), resume_step)

    @_never_fails
    def _open(self, folder, resume_step):
        import contextlib
        import io

        from visualdl import LogWriter

        _forget_after(folder / FILE_NAME, resume_step)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the file exists
            self.writer = LogWriter(logdir=str(folder), file_name=FILE_NAME)
        logger.info("dashboard: visualdl --logdir %s --language en --disable-telemetry", folder)

    @_never_fails
    def scalars(self, values, step):
        """{tag: number}."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, float(value), step)
        self._flush()

    @_never_fails
    def image(self, tag, picture, step):
        """picture: [H, W, 3] uint8 BGR."""
        self.writer.add_image(tag, np.ascontiguousarray(picture[..., ::-1]), step)

    @_never_fails
    def histograms(self, model, step):
        """Weights and gradients of every parameter that learns."""
        for name, parameter in model.named_parameters():
            if not parameter.stop_gradient:
                self.writer.add_histogram(f"weights/{name}", parameter.numpy().ravel(), step)
                if parameter.grad is not None:
                    self.writer.add_histogram(f"gradients/{name}", parameter.grad.numpy().ravel(), step)
        self._flush()

    @_never_fails
    def hyper_parameters(self, values, metrics, step):
        """{name: number or string} and the final {name: number} that belong to it."""
        self.writer.add_hparams(values, list(metrics))
        for name, value in metrics.items():
            self.writer.add_scalar(name, float(value), step)
        self._flush()

    @_never_fails
    def close(self):
        self.writer.close()

    def _flush(self):
        self.writer._get_file_writer().flush()


def training_pictures(batch, normalize, class_names, limit=4):
    """The images of a batch as the network sees them, with the boxes of their positive cells.

    Args:
        batch: a training batch of tensors.
        normalize: the `NormalizeImage` that made it, to undo it.

    Returns: list of [H, W, 3] uint8 BGR.
    """
    from .detections import Detections

    pictures = []
    for i in range(min(limit, len(batch["image"]))):
        image = normalize.undo(batch["image"][i].numpy().transpose(1, 2, 0))[..., ::-1]
        labels, boxes = batch["labels"][i].numpy(), batch["bbox_targets"][i].numpy()
        rows = np.column_stack([labels, np.ones(len(labels)), boxes])[labels < len(class_names)]
        pictures.append(draw_boxes(image, Detections.from_rows(np.unique(rows, axis=0), class_names)))
    return pictures


def _forget_after(path, step):
    """Drop the records that a run wrote after the checkpoint it is resumed from: the curve must not step back."""
    if not path.exists():
        return
    from visualdl.proto.record_pb2 import Record
    from visualdl.reader.record_reader import RecordReader

    kept = []
    for data in RecordReader(str(path)).get_all():
        record = Record()
        try:
            record.ParseFromString(data)
        except Exception:  # the last record of a killed run may be cut
            break
        if all(value.id <= step for value in record.values):
            kept.append(len(data).to_bytes(8, "little") + data)
    temporary = path.with_name("kept.tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)
