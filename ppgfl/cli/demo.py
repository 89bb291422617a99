"""Training from start to end without any input, as a user would do it command by command."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.shapes import make_shapes
from ..system.atomic_write import write_text
from ..training.run_folder import read_metrics

CONFIG = "shapes_gfl"
LEAST_AP = 0.6
TEACHER, STUDENT, SLIM_CONFIG = "shapes_gfl_teacher", "shapes_gfl_student", "shapes_distill_ld"


def run(main: Callable[..., int]) -> int:
    """Draw a data set below ./output, train, evaluate, detect; print each command as a user would type it.

    Args:
        main: `cli.main`.

    Returns: the exit code: 0; 1 when the AP is below what this demo reaches; that of a command that failed.
    """
    start = time.time()
    data = make_shapes("output/shapes", train=240, val=60)
    print(f"300 drawn pictures in {data}; training takes two to five minutes on two CPU cores")
    output = next_free(Path("output/demo"))
    weights = f"weights={output}/shapes_gfl/best_model"
    for command, *arguments in (
            ("train", "-c", CONFIG, "--eval", "--use_vdl", "-o", f"save_dir={output}"),
            ("eval", "-c", CONFIG, "-o", weights, "--output_eval", str(output)),
            ("infer", "-c", CONFIG, "-o", weights, "--infer_dir", f"{data}/val2017", "--output_dir",
             f"{output}/pictures", "--draw_threshold", "0.4", "--save_results", "json")):
        print(f"\n$ ppgfl {command} {' '.join(arguments)}", flush=True)
        code = main(command, arguments, prog=f"ppgfl {command}")
        if code:
            return code
    best = read_metrics(output / "shapes_gfl")["best"]
    print(f"\nAP {best:.3f} after {time.time() - start:.0f} s. Have a look at:\n"
          f"  {output}/pictures                  detections on 60 pictures\n"
          f"  {output}/shapes_gfl/report/report.html   curves, confusion, worst and best images on one page\n"
          f"  {output}/shapes_gfl/curves.png     losses and AP over the epochs\n"
          f"  visualdl --logdir {output}/shapes_gfl/vdl --language en --disable-telemetry")
    if best < LEAST_AP:
        print(f"AP is below the {LEAST_AP} that this demo reaches: something is wrong", file=sys.stderr)
        return 1
    return 0


def run_distillation(main: Callable[..., int], seeds: Sequence[int] = (0, 1, 2)) -> int:
    """Train a teacher, then a small student with and without it, once for each seed, and compare.

    Returns: the exit code: 0; 1 when some student without the teacher is as good as one with it; that of a command
        that failed.
    """
    start = time.time()
    make_shapes("output/shapes", train=240, val=60)
    output = next_free(Path("output/distill"))
    print(f"one teacher and {2 * len(seeds)} students, into {output}: about 20 minutes on two CPU cores")
    weights = f"teacher.pretrain_weights={output}/{TEACHER}/best_model"
    runs = [(TEACHER, output, ["-o", f"save_dir={output}"])]
    for seed in seeds:
        folder = output / f"seed{seed}"
        common = ["--seed", str(seed), "-o", f"save_dir={folder}"]
        runs += [(STUDENT, folder, common), (f"{STUDENT}_ld", folder, ["--slim_config", SLIM_CONFIG, *common, weights])]
    found: dict[str, list[float]] = {}
    for name, folder, arguments in runs:
        arguments = ["-c", name, "--eval", *arguments]
        print(f"\n$ ppgfl train {' '.join(arguments)}", flush=True)
        code = main("train", arguments, prog="ppgfl train")
        if code:
            return code
        found.setdefault(name, []).append(read_metrics(folder / name)["AP"])
    text = "| | AP of each seed | mean | spread |\n| --- | --- | --- | --- |\n" + "".join(
        f"| {name} | {', '.join(f'{ap:.3f}' for ap in aps)} | {sum(aps) / len(aps):.3f} | {max(aps) - min(aps):.3f} |\n"
        for name, aps in found.items())
    write_text(output / "distillation.md", text)
    print(f"\n{text}\nThis table is in {output}/distillation.md, after {time.time() - start:.0f} s")
    if min(found[f"{STUDENT}_ld"]) <= max(found[STUDENT]):
        print("a student without the teacher is as good as one with it: something is wrong", file=sys.stderr)
        return 1
    return 0


def next_free(folder: Path) -> Path:
    """The folder itself, or with a number after it: an earlier demo is kept."""
    candidates = [folder, *(folder.with_name(f"{folder.name}_{i}") for i in range(2, 1000))]
    return next(path for path in candidates if not path.exists())
