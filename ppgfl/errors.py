"""The errors a user can mend. Their message is one line: where, what was found, what is allowed, the likely mend.

The command line prints them without a traceback and exits with 2; any other exception is a bug in ppgfl.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable
from signal import Signals
from typing import Any


class UserError(ValueError):
    """Base of the errors below; never raised itself."""


class ConfigError(UserError):
    """A YAML file, an ``-o`` override or a command-line argument that cannot be used."""


class DataError(UserError):
    """An image, an annotation file or a folder that cannot be used."""


class ExportError(UserError):
    """An exported folder that cannot be used, or that predicts something else than its model."""


class TrainingError(UserError):
    """Training cannot go on: a loss is not finite, or there is no memory for a step."""


class Interrupted(KeyboardInterrupt):
    """A command was asked to stop, and did; training with a checkpoint.

    Attributes:
        signal: which one asked.
    """

    def __init__(self, message: str, signal: Signals) -> None:
        super().__init__(message)
        self.signal = signal


class CheckpointError(UserError):
    """A weights file that is absent, damaged, dangerous, or made for another model.

    Attributes:
        report: the ``weights.checkpoint.Report`` of what did not match, or None.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def nearest(word: object, allowed: Iterable[object]) -> str:
    """A hint for an unknown word: the closest allowed one when there is one, and the list.

    >>> nearest("depht", ["depth", "variant"])
    "did you mean 'depth'? Allowed: depth, variant"
    """
    words = sorted(str(a) for a in allowed)
    return f"{suggestion(word, words)}Allowed: {', '.join(words)}"


def suggestion(word: object, allowed: Iterable[object]) -> str:
    """The closest allowed word as a question, or nothing.

    >>> suggestion("depht", ["depth", "variant"])
    "did you mean 'depth'? "
    """
    close = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1)
    return f"did you mean '{close[0]}'? " if close else ""
