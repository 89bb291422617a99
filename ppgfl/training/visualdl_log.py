"""A run in VisualDL: curves, pictures, histograms. A dashboard that fails says so once and never stops training."""
from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor

from ..data.dataset import DetectionDataSet
from ..errors import DataError
from ..evaluation.coco import Results
from ..inference.detections import Detections, rows_of_coco
from ..model.gfl import GFL
from ..system.log import logger

FILE_NAME = "vdlrecords.ppgfl.log"  # a fixed name: VisualDL shows one file per folder, and a resumed run goes on in it
PICTURES = 4  # images of the validation set


def _never_fails(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: Dashboard, *args: Any, **kwargs: Any) -> None:
        if self.writer is None:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever VisualDL raises, training matters more
            logger.warning("VisualDL failed and is switched off for this run: %s: %s", type(error).__name__, error)
            self.writer = None

    return guarded


class Dashboard:
    """Writes to `folder`; does nothing when `folder` is None. `step` counts optimizer steps."""

    def __init__(self, folder: Path | None, *, resume_step: int = 0) -> None:
        self.writer: Any = None
        if folder is None:
            return
        self.writer = True  # so that `_open` runs guarded
        self._open(Path(folder), resume_step)

    @_never_fails
    def _open(self, folder: Path, resume_step: int) -> None:
        import io

        from visualdl import LogWriter

        _remove_records_after(folder / FILE_NAME, resume_step)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the file exists
            self.writer = LogWriter(logdir=str(folder), file_name=FILE_NAME)
        logger.info("dashboard: visualdl --logdir %s --language en --disable-telemetry", folder)

    @_never_fails
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """{tag: number}."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, float(value), step)
        if values:
            self._flush()

    @_never_fails
    def images(self, tag: str, pictures: Iterable[tuple[Any, np.ndarray]], step: int) -> None:
        """pictures: an iterable of (name, [H, W, 3] uint8 BGR), made only if there is a dashboard."""
        for name, picture in pictures:
            self.writer.add_image(f"{tag}_{name}", np.ascontiguousarray(picture[..., ::-1]), step)
        self._flush()

    @_never_fails
    def histograms(self, model: GFL, step: int) -> None:
        """Weights and gradients of every parameter that learns."""
        for name, parameter in model.named_parameters():
            if not parameter.stop_gradient:
                self._histogram(f"weights/{name}", parameter, step)
                if parameter.grad is not None:
                    self._histogram(f"gradients/{name}", parameter.grad, step)
        self._flush()

    def _histogram(self, tag: str, tensor: Tensor, step: int) -> None:
        # In float64, since numpy cannot divide the narrow range of nearly equal float32 values into bins.
        self.writer.add_histogram(tag, tensor.numpy().ravel().astype(np.float64), step)

    @_never_fails
    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """{name: number or string} and the final {name: number} that belong to it."""
        self.writer.add_hparams(values, list(metrics))
        for name, value in metrics.items():
            self.writer.add_scalar(name, float(value), step)
        self._flush()

    @_never_fails
    def close(self) -> None:
        self.writer.close()

    def _flush(self) -> None:
        self.writer._get_file_writer().flush()  # VisualDL, private: nothing public flushes


def prediction_pictures(dataset: DetectionDataSet, results: Results,
                        threshold: float = 0.3) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (image id, picture) of a data set's first images with the COCO results on them."""
    for record in dataset.records[:PICTURES]:
        rows = rows_of_coco((r for r in results if r["image_id"] == record["im_id"]), dataset.category_ids)
        found = Detections.from_rows(rows, dataset.class_names, path=record["im_file"])
        with contextlib.suppress(DataError):  # evaluation has said so, and gone on
            yield record["im_id"], found.draw(threshold)


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
