"""An exception anywhere in the loader ends train, eval and infer within seconds, with its cause and the right code."""
import json
import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from helpers import ROOT, config, no_segment_is_left, options, segments

import ppgfl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, /dev/shm")

KINDS = ["KeyError", "ValueError", "MemoryError", "ENOSPC", "ENOSPC with a path", "RuntimeError", "cv2.error",
         "StopIteration", "GeneratorExit", "unpicklable", "not to be unpickled", "without text", "SystemExit",
         "KeyboardInterrupt", "RecursionError", "AssertionError", "UnicodeDecodeError", "DataError", "BrokenPipeError",
         "EOFError", "ENOMEM", "BaseException", "TimeoutError", "BrokenProcessPool"]
SHOWN = {"ENOSPC": "OSError", "ENOSPC with a path": "/dev/shm/injected: the disk is full",
         "cv2.error": "error: injected", "unpicklable": "CannotBePickled: injected",
         "not to be unpickled": "CannotBeUnpickled: injected", "without text": "CannotBeShown",
         "DataError": "error: injected", "MemoryError": "injected", "ENOMEM": "injected"}
MENDED = ("DataError", "MemoryError", "ENOMEM", "ENOSPC with a path")  # by the user: a line, and exit code 2
UNREADABLE = {"reading": ("ENOSPC", "BrokenPipeError", "TimeoutError"), "decoding": ("cv2.error",)}  # these too
COMMON = ["reading", "the reader", "decoding", "Decode", "NormalizeImage", "Permute", "PadBatch", "collate", "order",
          "to_device"]
PLACES = {"train": [*COMMON, "RandomFlip", "Gt2GFLTarget"], "eval": COMMON, "infer": COMMON}
MEANT = ("SystemExit", "KeyboardInterrupt", "BrokenProcessPool")  # in the main thread they are what they are
IN_MAIN = ("order", "to_device", "take")
SECONDS = 15.0  # that a command may take to end; one that hangs never does


def cases(commands):
    """Each place of each command with 0 and 2 workers, each with another kind; PPGFL_INJECT=all: with every kind."""
    made, number = [], 0
    for command, arguments in commands.items():
        for workers in (0, 2):
            for place in [*PLACES[command], *(["put", "take"] if workers else [])]:
                kinds = [kind for kind in KINDS if place not in IN_MAIN or kind not in MEANT]
                if os.environ.get("PPGFL_INJECT") != "all":
                    kinds = [kinds[number % len(kinds)]]
                    number += 1
                made += [{"command": command, "workers": workers, "place": place, "kind": kind,
                          "arguments": [*arguments, f"worker_num={workers}"]} for kind in kinds]
    return made


def test_every_exception_at_every_place(shapes, tmp_path):
    weights = tmp_path / "w.pdparams"
    paddle.save(ppgfl.build_model(config(shapes, tmp_path)).state_dict(), str(weights))
    given = ["-c", "shapes_gfl_1x", "-o", *options(shapes, tmp_path / "runs"), f"weights={weights}", "engine=dygraph",
             "EvalReader.batch_size=1"]
    commands = {"train": ["train", *given], "eval": ["eval", "--output_eval", str(tmp_path / "e"), *given],
                "infer": ["infer", "--infer_dir", str(shapes / "val2017"), "--output_dir", str(tmp_path / "i"), *given]}
    todo = tmp_path / "cases.json"
    todo.write_text(json.dumps(cases(commands)))
    before = segments()
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("inject.py")), str(tmp_path)], cwd=ROOT,
                          text=True, stdout=subprocess.PIPE, timeout=7200, check=True)
    ended = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(ended) == len(json.loads(todo.read_text()))
    wrong = {f"{one['command']}, {one['workers']} workers, {one['place']}, {one['kind']}": message
             for one in ended if (message := fault_of(one))}
    print(f"{len(ended)} injections, the slowest ended after {max(one['seconds'] or 0 for one in ended):.1f} s")
    assert not wrong, json.dumps(wrong, indent=1)
    assert no_segment_is_left(before)


def fault_of(one):  # noqa: PLR0911
    """What is wrong with how a command has ended, or None."""
    kind, errors = one["kind"], one["stderr"]
    mended = kind in (*MENDED, *UNREADABLE.get(one["place"], ()))
    if one["seconds"] is None:
        return f"nothing was raised: {one['code']} {errors[-500:]}"
    if one["code"] != (2 if mended else 1):
        return f"exit code {one['code']}: {errors[-500:]}"
    if one["seconds"] > SECONDS:
        return f"ended after {one['seconds']:.1f} s"
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    if mended and (("Traceback" in errors) or not last.startswith("error: ")):
        return f"not one line: {errors[-800:]}"
    if not mended and "Traceback" not in errors:
        return f"no traceback: {errors[-500:]}"
    if SHOWN.get(kind, kind if not mended else "injected") not in (last if mended else errors):
        return f"the cause is not shown: {errors[-800:]}"
    return None
