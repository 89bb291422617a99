"""Run a command with an exception put into its loader, many times: each in a fork of this process, which has imported
everything and computed nothing, so that it costs a second and still ends as the command does.

    python inject.py FOLDER      # with cases.json: [{"arguments": [...], "place": name, "kind": name}, ...]

Prints each as a line of JSON, with "code", "seconds" from the exception to the end, "stderr".
"""
import json
import os
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Lock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np

from ppgfl import DataError, cli
from ppgfl.data import batch, loader, shared_memory, targets, transforms
from ppgfl.evaluation import evaluate  # noqa: F401
from ppgfl.inference import infer  # noqa: F401
from ppgfl.training import train  # noqa: F401

LIMIT = 60.0  # seconds, after which a command that hangs is killed


class CannotBePickled(Exception):
    def __init__(self):
        super().__init__("injected")
        self.lock = Lock()


class CannotBeUnpickled(Exception):
    def __init__(self, one, two):
        super().__init__("injected")


class CannotBeShown(Exception):
    def __str__(self):
        raise RuntimeError("no text")


KINDS = {
    "KeyError": lambda: KeyError("injected"), "ValueError": lambda: ValueError("injected"),
    "MemoryError": lambda: MemoryError("injected"), "ENOSPC": lambda: OSError(28, "injected"),
    "ENOSPC with a path": lambda: OSError(28, "injected", "/dev/shm/injected"),
    "RuntimeError": lambda: RuntimeError("injected"),
    "cv2.error": lambda: cv2.error("injected"), "StopIteration": lambda: StopIteration("injected"),
    "GeneratorExit": lambda: GeneratorExit("injected"), "unpicklable": CannotBePickled,
    "not to be unpickled": lambda: CannotBeUnpickled(1, 2), "without text": CannotBeShown,
    "SystemExit": lambda: SystemExit(0), "KeyboardInterrupt": lambda: KeyboardInterrupt("injected"),
    "RecursionError": lambda: RecursionError("injected"), "AssertionError": lambda: AssertionError("injected"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "injected"),
    "DataError": lambda: DataError("injected"), "BrokenPipeError": lambda: BrokenPipeError(32, "injected"),
    "EOFError": lambda: EOFError("injected"), "ENOMEM": lambda: OSError(12, "injected"),
    "BaseException": lambda: BaseException("injected"), "TimeoutError": lambda: TimeoutError("injected"),
    "BrokenProcessPool": lambda: BrokenProcessPool("injected"),
}
PLACES = {
    "reading": (np, "fromfile"), "the reader": (transforms, "read_image"), "decoding": (cv2, "imdecode"),
    "Decode": (transforms.Decode, "__call__"), "RandomFlip": (transforms.RandomFlip, "__call__"),
    "NormalizeImage": (transforms.NormalizeImage, "__call__"), "Permute": (transforms.Permute, "__call__"),
    "PadBatch": (batch.PadBatch, "__call__"), "Gt2GFLTarget": (targets.Gt2GFLTarget, "__call__"),
    "collate": (batch, "collate"), "order": (loader.Batches, "indices"),
    "put": (shared_memory.SharedBatch, "put"), "take": (shared_memory.SharedBatch, "take"),
    "to_device": (loader, "to_device"),
}


def inject(place, kind, raised):
    """Let a place of the loader raise, and write down when it did for the first time."""
    def broken(*args, **kwargs):
        if not os.path.exists(raised):
            Path(raised).write_text(str(time.time()))
        raise KINDS[kind]()

    owner, name = PLACES[place]
    setattr(owner, name, broken)


def run(case, folder):
    out, raised = folder / "stderr", folder / "raised"
    for path in (out, raised):
        path.unlink(missing_ok=True)
    process = os.fork()
    if not process:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(out if stream == 2 else os.devnull, os.O_WRONLY | os.O_CREAT), stream)
        inject(case["place"], case["kind"], raised)
        sys.exit(cli.entry(case["arguments"]))
    deadline = time.time() + LIMIT
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.time() > deadline:
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.02)
    seconds = time.time() - float(raised.read_text()) if raised.exists() else None
    return {**case, "code": os.waitstatus_to_exitcode(ended[1]), "seconds": seconds, "stderr": out.read_text()}


def main():
    folder = Path(sys.argv[1])
    for case in json.loads((folder / "cases.json").read_text()):
        print(json.dumps(run(case, folder)), flush=True)


if __name__ == "__main__":
    main()
