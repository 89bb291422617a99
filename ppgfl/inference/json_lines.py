"""Results of very many images, one JSON line each, in shards with which a stopped run can go on."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from ..system import dist
from ..system.atomic_write import write_json, write_text

SHARD = 10_000  # lines of a file
LISTED_WHEN_ON = ("sigma", "calibrated")
SETTINGS = "results-settings.json"  # beside the shards: how their results came about


class JsonLines:
    """Writes results-00000.jsonl, results-00001.jsonl, ... to a folder; of several processes each its own shards.

    Args:
        folder: where to.
        resume: go on with the shards that are there: a line that a kill cut off is dropped.
        shard: lines of a file.
        settings: {name: plain value} of all that a result depends on; those of the shards that are there must be equal.

    Attributes:
        done: the `file` of every line that is there already, below the `folder` of the line if it has one.

    Raises: DataError when there are shards and `resume` is false, or shards of other settings or not of this kind.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool = False, shard: int = SHARD,
                 settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.shard = Path(folder), shard
        self.prefix = "results-" if dist.world_size() == 1 else f"results-{dist.rank()}-"
        self.file: TextIO | None = None
        self.lines = 0
        self.done: set[str] = set()
        shards = sorted(self.folder.glob("results-*.jsonl"))
        if shards and not resume:
            raise DataError(f"{shards[0].absolute()}: results of an earlier run are there; --resume goes on with them, "
                            "or give another --output_dir")
        if shards:
            _check_settings(self.folder / SETTINGS, settings or {})
        for path in shards:
            self.done |= _files_of(path)
        self.number = len([path for path in shards if path.name.startswith(self.prefix)])
        dist.barrier()  # all have looked before the first writes
        if settings and dist.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / SETTINGS, settings)

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


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise DataError where results that are there were made in another way."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [(name, before[name], value) for name, value in settings.items() if before.get(name, value) != value]
        # What is off is not listed, since it was not there in an earlier version.
        changed += [(name, name in before, name in settings) for name in LISTED_WHEN_ON
                    if (name in before) != (name in settings)]
    except (OSError, ValueError, AttributeError):
        return  # of an earlier version, which wrote none
    for name, old, new in changed:
        raise DataError(f"{path.parent}: the results that are there were made with {name} {old}, and now it is {new}; "
                        "resume with the same, or give another --output_dir")


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
