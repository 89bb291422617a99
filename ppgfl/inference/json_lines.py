"""Results of very many images, one JSON line each, in shards with which a stopped run can go on."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from ..system import dist
from ..system.atomic_write import write_text

SHARD = 10_000  # lines of a file


class JsonLines:
    """Writes results-00000.jsonl, results-00001.jsonl, ... to a folder; of several processes each its own shards.

    Args:
        folder: where to.
        resume: go on with the shards that are there: a line that a kill cut off is dropped.
        shard: lines of a file.

    Attributes:
        done: the `file` of every line that is there already, below the `folder` of the line if it has one.

    Raises: DataError when there are shards and `resume` is false, or a shard that is not of this kind.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool = False, shard: int = SHARD) -> None:
        self.folder, self.shard = Path(folder), shard
        self.prefix = "results-" if dist.world_size() == 1 else f"results-{dist.rank()}-"
        self.file: TextIO | None = None
        self.lines = 0
        self.done: set[str] = set()
        shards = sorted(self.folder.glob("results-*.jsonl"))
        if shards and not resume:
            raise DataError(f"{shards[0].absolute()}: results of an earlier run are there; --resume goes on with them, "
                            "or give another --output_dir")
        for path in shards:
            self.done |= _files_of(path)
        self.number = len([path for path in shards if path.name.startswith(self.prefix)])
        dist.barrier()  # all have looked before the first writes

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a dict with the key `file`; it is with the system when this returns. Raises OSError, with the path."""
        if self.file is None or self.lines == self.shard:
            self.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.prefix}{self.number:05d}.jsonl"
            self.file = path.open("x", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  (`close`)
            self.number, self.lines = self.number + 1, 0
        try:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.file.name) from error
        self.lines += 1

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _files_of(path: Path) -> set[str]:
    """The images that a shard lists; a last line that was cut off is removed from the file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    whole, newline, cut = text.rpartition("\n")
    if cut:
        write_text(path, whole + newline)
    try:
        records = [json.loads(line) for line in whole.split("\n") if line]
        return {os.path.join(record.get("folder", ""), record["file"]) for record in records}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a file of results ({error}); move it away") from error
