"""Writing files so that a kill or a full disk leaves the old file or the new one, never a part of it."""
from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .text import spreadsheet_cell

CAUSES = {
    errno.ENOSPC: "the disk is full; make room there, or choose another folder",
    errno.EDQUOT: "your quota of the disk is used up; make room there, or choose another folder",
    errno.EFBIG: "the file is larger than the system allows; choose another folder, or raise the limit (ulimit -f)",
    errno.EROFS: "the disk cannot be written; choose another folder",
    errno.EACCES: "permission denied; choose another folder, or change its permissions",
    errno.EPERM: "not permitted; choose another folder, or change its permissions",
    errno.ENOENT: "it is not there, or was removed meanwhile; put it back, or choose another path",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    errno.EEXIST: "a file stands where a folder has to be; choose another path",
    errno.EISDIR: "a folder stands where a file has to be; choose another path",
    errno.EIO: "the disk has failed; look at the system's log",
    errno.ENAMETOOLONG: "the name is too long for this disk; choose a shorter path",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n), or set worker_num lower",
}

MAX_NAME_BYTES = 255  # of one name in a path, on nearly all disks


def explain(error: OSError) -> str | None:
    """The line about an OSError that a user can mend: where, what, the mend. None for any other."""
    if error.filename is None or error.errno not in CAUSES:
        return None
    return f"{os.path.abspath(os.fsdecode(error.filename))}: {CAUSES[error.errno]}"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file and make its folder if needed. Raises OSError, with the path, and leaves what was there."""
    write_temporary(path, data)
    os.replace(temporary_of(path), path)


def temporary_of(path: str | os.PathLike[str]) -> Path:
    """Where `write_temporary` writes: `path`.tmp."""
    folder, name = os.path.split(path)
    return Path(folder, with_ending(name, ".tmp"))


def with_ending(name: str, ending: str) -> str:
    """A file's name with an ending behind it; of a name that gets longer than a file system takes, the front and a sum
    of it all."""
    raw = os.fsencode(name)
    if len(raw) + len(ending) <= MAX_NAME_BYTES:
        return name + ending
    front = raw[:MAX_NAME_BYTES - len(ending) - 17].decode("utf-8", "ignore")
    return f"{front}-{hashlib.sha256(raw).hexdigest()[:16]}{ending}"


def write_temporary(path: str | os.PathLike[str], data: bytes, *, sync: bool = False) -> None:
    """Write `temporary_of(path)`: the first half of `write_bytes`, for files that belong together.

    With `sync` it is on the disk when this returns, so that a power cut cannot leave it empty.
    Raises OSError, with the path; nothing of it is left then.
    """
    temporary = temporary_of(path)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""See `write_bytes`; UTF-8. Half a letter, as in a file name that is not UTF-8, becomes \udc80, as JSON has it."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """See `write_bytes`."""
    write_text(path, json.dumps(content, ensure_ascii=False))


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of values, the first of them the header, as `spreadsheet_cell` makes them; see `write_bytes`.

    File names keep their bytes: a file with names that are not UTF-8 is read with errors="surrogateescape".
    """
    lines = []
    for row in rows:
        line = io.StringIO()
        csv.writer(line).writerow(map(spreadsheet_cell, row))  # only with these ends of lines it quotes both \r and \n
        lines.append(line.getvalue()[:-2] + "\n")
    text = "".join(lines)
    try:
        write_bytes(path, text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # half a letter that no byte of a file name stands for
        write_text(path, text)
