"""Results of many images in one Parquet file, for pandas, Spark, DuckDB and the like."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..system import dist
from ..system.atomic_write import temporary_of
from ..system.log import logger
from .detections import SPREADS

SIDES = ("x1", "y1", "x2", "y2")
ROWS = 50_000  # that are kept in memory, and written together


class ParquetFile:
    """Writes results.parquet (of several processes results-RANK.parquet each), which is there when `close` returns: a
    row for each detection with file, label, name, score, x1, y1, x2, y2, and for an image without any one row that has
    only its file. The metadata of the file count both: "images" and "detections".

    Args:
        folder: where to.
        sigma: also the columns sigma_x1, ..., sigma_y2 and top2_x1, ..., top2_y2.

    Raises: ConfigError without the package pyarrow.
    """

    done: frozenset[str] = frozenset()  # of an earlier run, as `JsonLines` has them

    def __init__(self, folder: str | os.PathLike[str], sigma: bool = False) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(f"--save_results parquet: {error}; pip install \"ppgfl[parquet]\"") from error
        name = "results.parquet" if dist.world_size() == 1 else f"results-{dist.rank()}.parquet"
        self.path, self.arrow = Path(folder, name), pyarrow
        text, real = pyarrow.string(), pyarrow.float32()
        self.schema = pyarrow.schema([("file", text), ("label", pyarrow.int32()), ("name", text), ("score", real),
                                      *((side, real) for side in SIDES),
                                      *((f"{key}_{side}", real) for key in SPREADS if sigma for side in SIDES)])
        self.writer: Any = None
        self.rows: list[dict[str, Any]] = []
        self.images = self.detections = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Add what `Detections.to_dict` gives. Raises OSError, with the path."""
        file, found = _text(record["file"]), record["detections"]
        self.images, self.detections = self.images + 1, self.detections + len(found)
        self.rows += [{"file": file, "label": one["label"], "name": _text(one["name"]), "score": one["score"],
                       **dict(zip(SIDES, one["box"])),
                       **{f"{key}_{side}": number for key in SPREADS if key in one for side, number in
                          zip(SIDES, one[key])}} for one in found] or [{"file": file}]
        if len(self.rows) >= ROWS:
            self._flush()

    def close(self) -> None:
        """Raises OSError, with the path."""
        self._flush()
        counts = {"images": str(self.images), "detections": str(self.detections)}
        self.writer.add_key_value_metadata(counts)
        self.writer.close()
        os.replace(temporary_of(self.path), self.path)
        logger.info("%d detections on %d images in %s", self.detections, self.images, self.path.resolve())

    def _flush(self) -> None:
        temporary = temporary_of(self.path)
        try:
            if self.writer is None:
                temporary.parent.mkdir(parents=True, exist_ok=True)
                self.writer = self.arrow.parquet.ParquetWriter(temporary, self.schema)
            self.writer.write_table(self.arrow.Table.from_pylist(self.rows, self.schema))
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error
        self.rows = []


def _text(name: str | None) -> str | None:
    r"""As it is written to JSON: half a letter, as in a name that is not UTF-8, becomes \udc80."""
    return None if name is None else name.encode("utf-8", "backslashreplace").decode()
