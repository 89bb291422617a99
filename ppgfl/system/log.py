"""Logging. The library only emits records; the command line calls `set_up` once."""
from __future__ import annotations

import copy
import io
import logging
import os
import sys

from .text import Lines, shown

logger = logging.getLogger("ppgfl")


class _Formatter(logging.Formatter):
    """Shows what strangers' files hold as text that does nothing to a terminal, each in one line."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(_in_one_line(value) for value in record.args)
        return shown(super().format(record), keep="\n")


def _in_one_line(value: object) -> object:
    is_text = isinstance(value, (str, os.PathLike, BaseException)) and not isinstance(value, Lines)
    return shown(value) if is_text else value


def set_up(level: int = logging.INFO) -> None:
    """Send ppgfl's records to standard output, one line each. Errors of a command go to standard error instead."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's encoding does not have, too
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter("[%(asctime)s] %(levelname)s: %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
