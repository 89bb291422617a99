"""An exception on its way from where a batch is made, a thread or another process, to whoever waits for the batch."""
from __future__ import annotations

import traceback
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import NoReturn

from ..errors import UserError


class WorkerTraceback(Exception):
    """Shown above an exception as its cause: the traceback in the process where it arose."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Failure:
    """What a worker hands over instead of a batch. Not every exception may travel: one that cannot be pickled would
    arrive as another, one that cannot be unpickled breaks the pool, StopIteration, GeneratorExit and SystemExit would
    end the round or the program as if all were well, and a broken pool of somebody else would pass for the loader's.

    Attributes:
        error: the exception, or None for one of these.
        name: its class and message.
        text: its traceback.
    """

    error: Exception | None
    name: str
    text: str

    @classmethod
    def of(cls, error: BaseException, *, to_another_process: bool) -> Failure:
        """Never raises, whatever it is given."""
        name, text = type(error).__name__, ""
        try:
            name = "".join(traceback.format_exception_only(type(error), error)).strip()
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        except Exception:  # of a class that is broken itself
            text = text or name
        ordinary = isinstance(error, Exception) and not isinstance(error, (StopIteration, BrokenProcessPool))
        if not ordinary or (to_another_process and not _travels(error)):
            return cls(None, name, text)
        assert isinstance(error, Exception)
        return cls(error, name, text)

    def raise_again(self) -> NoReturn:
        """Raise the exception as it was, or a RuntimeError that names it."""
        if self.error is None:
            raise RuntimeError(f"while a batch was made: {self.name}") from WorkerTraceback(self.text)
        if isinstance(self.error, UserError) or self.error.__traceback__ is not None:  # of a thread, with its traceback
            raise self.error
        raise self.error from WorkerTraceback(self.text)


def _travels(error: BaseException) -> bool:
    """Whether it arrives as what it is: tried here, in the way of the pool's pipe."""
    try:
        return type(ForkingPickler.loads(ForkingPickler.dumps(error))) is type(error)
    except Exception:
        return False
