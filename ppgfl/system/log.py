"""Logging. The library only emits records; the command line calls `set_up` once."""
import logging
import sys

logger = logging.getLogger("ppgfl")


def set_up(level: int = logging.INFO) -> None:
    """Send ppgfl's records to standard output, one line each. Errors of a command go to standard error instead."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s: %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
