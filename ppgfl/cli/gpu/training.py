"""Parts 2 to 4 and 6: accumulation, mixed precision, resume, several cards, the demo: training as a user starts it, on
drawn pictures."""
from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle

from ... import load_config
from ...data.shapes import make_shapes
from ...training.checkpoints import SUFFIXES
from ...training.run_folder import read_metrics
from ...training.train import train
from ...weights.safe_pickle import load as load_pickle
from .. import demo
from .finding import Finding, Place, skipped, within

Rows = list[dict[str, float]]  # of results.csv

LEVELS = (None, "O1", "O2")
# Shares of the sum of losses of one of 20 steps, from that of float32; docs/gpu.md says where they come from.
AMP_LIMITS = {"O1": 0.01, "O2": 0.05}
ACCUMULATE_LIMIT = 1e-3
CARDS_LIMIT = 5e-3  # the order of sums, over ten steps; two processes on a CPU agree within 1e-4
DEMO_AP = 0.6
# A high prior: PaddleDetection's normaliser of the box losses is the mean over processes but at least 1 in each.
COMPARED = ["GFLHead.prior_prob=0.3", "epoch=5", "snapshot_epoch=5", "log_iter=1",
            "LearningRate.base_lr=0.005"]
TINY = ["ResNet.num_stages=3", "ResNet.return_idx=[1, 2]", "FPN.extra_stage=1", "FPN.out_channel=32",
        "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32", "GFLHead.feat_in_chan=32",
        "GFLHead.conv_feat.num_convs=1"]  # for --dry: a quarter of ResNet18's parameters


def options(place: Place, name: str, pictures: int, *more: str) -> list[str]:
    """Overrides for a training on so many drawn pictures, into the folder `name`."""
    size = (64, 96) if place.dry else (128, 160)
    data = make_shapes(place.folder / f"shapes{pictures}", train=pictures, val=4, size=size)
    return [*(f"{section}.dataset_dir={data}" for section in ("TrainDataset", "EvalDataset", "TestDataset")),
            f"save_dir={place.folder / name}", "worker_num=0", f"use_gpu={place.device == 'gpu'}".lower(),
            *(TINY if place.dry else []), *more]


def losses_of(folder: Path) -> Rows:
    """Of each epoch: the losses and the AP in its results.csv."""
    with open(folder / "results.csv", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value and (key.startswith("loss") or key == "AP")}
                for row in csv.DictReader(file)]


def apart(rows: Rows, others: Rows) -> float:
    """The largest difference of a loss, over the sum of losses of that step; infinite where a step or a loss is missing
    or not finite."""
    if len(rows) != len(others) or not rows:
        return float("inf")
    found = [abs(row.get(key, float("inf")) - value) / other["loss"]
             for row, other in zip(rows, others) for key, value in other.items() if key.startswith("loss")]
    return max(found) if all(map(math.isfinite, found)) else float("inf")


# --- part 2, beside the recorded steps: accumulation


def accumulated(place: Place) -> Iterator[Finding]:
    """Each picture twice and two batches a step are the steps of a data set with each picture once."""
    pictures, steps, rows = 2, 3 if place.dry else 6, []
    for count in (1, 2):
        overrides = options(place, f"accumulate{count}", pictures, f"epoch={steps}", f"snapshot_epoch={steps}",
                            f"TrainReader.batch_size={pictures}", "TrainReader.shuffle=false",
                            "TrainReader.sample_transforms.1.RandomFlip.prob=0", "LearningRate.base_lr=0.01",
                            "LearningRate.schedulers=[{name: CosineDecay, max_epochs: 100}]")
        if count == 2:
            overrides.append(f"TrainDataset.anno_path={_twice(place.folder / f'shapes{pictures}')}")
        rows.append(losses_of(Path(train(load_config("shapes_gfl_1x", overrides), accumulate=count,
                                         scale_lr=False)["folder"])))
    yield within(f"accumulate: losses of {steps} steps", apart(rows[1], rows[0]), ACCUMULATE_LIMIT, " of a loss")


def _twice(data: Path) -> Path:
    """An annotation file that lists each training picture of a data set twice: all, then all again."""
    content = json.loads((data / "annotations/instances_train2017.json").read_text(encoding="utf-8"))
    more = 1_000_000
    content["images"] += [{**image, "id": image["id"] + more} for image in content["images"]]
    content["annotations"] += [{**box, "id": box["id"] + more, "image_id": box["image_id"] + more}
                               for box in content["annotations"]]
    path = data.absolute() / "annotations/twice.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# --- part 3: mixed precision and resume


def precision(place: Place) -> Iterator[Finding]:
    """Twenty steps in float32, O1 and O2: their losses, and whether a resume in their middle changes anything."""
    steps = 4 if place.dry else 20
    for config in ("shapes_gfl_1x",) if place.dry else ("shapes_gfl_1x", "shapes_gflv2"):
        plain: Rows = []
        for level in LEVELS:
            what = f"{config}, {level or 'float32'}"
            rows = run(place, config, "whole", level, steps)
            plain = plain or rows
            if level and place.dry:
                yield skipped(f"{what}: precision", "--dry: --amp has no effect on a CPU; the comparison is tried")
            if level:
                yield within(f"{what}: losses of {steps} steps", apart(rows, plain), AMP_LIMITS[level], " of a loss")
            yield resumed(place, config, level, steps)


def run(place: Place, config: str, name: str, level: str | None, steps: int, resume: Path | None = None) -> Rows:
    """Train `steps` epochs of one step, with a checkpoint in the middle -> the losses of each step."""
    pictures = 2 if place.dry else 8
    overrides = options(place, f"{config}_{level}", pictures, f"epoch={steps}", f"snapshot_epoch={steps // 2}",
                        f"LearningRate.schedulers.0.max_epochs={steps}", "LearningRate.base_lr=0.005",
                        f"TrainReader.batch_size={pictures}")
    folder = Path(train(load_config(config, overrides), run_name=name, amp=level,
                        resume=None if resume is None else str(resume))["folder"])
    return losses_of(folder)


def resumed(place: Place, config: str, level: str | None, steps: int) -> Finding:
    """Go on from the checkpoint in the middle. Where the card repeats a run bit for bit, so must a resume; where it
    does not, a resume may be no further off than a few times what a second run is."""
    folder = place.folder / f"{config}_{level}"
    run(place, config, "again", level, steps)
    run(place, config, "resumed", level, steps, resume=folder / "whole" / str(steps // 2 - 1))
    again, found = (files_apart(folder / "whole", folder / name) for name in ("again", "resumed"))
    card = "a second run is the same bit for bit" if again == 0 else f"a second run is {again:.2g} off"
    return Finding(found <= 3 * again, f"{config}, {level or 'float32'}: resume",
                   f"{found:.2g} of the largest value off, at most {3 * again:.2g}: {card}")


def files_apart(folder: Path, other: Path) -> float:
    """The largest difference between the last checkpoints of two runs, weights, optimizer and moving average, over the
    largest value of its array; infinite where they hold different things."""
    return max(arrays_apart(*(_arrays(each / f"model_final{suffix}") for each in (folder, other)))
               for suffix in SUFFIXES)


def arrays_apart(arrays: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> float:
    if set(arrays) != set(others) or not arrays:
        return float("inf")
    found = [0.0]
    for key, array in arrays.items():
        other = others[key]
        if array.shape != other.shape or not (np.isfinite(array).all() and np.isfinite(other).all()):
            return float("inf")
        if array.size:
            found.append(float(np.abs(array - other).max() / max(np.abs(other).max(), 1e-30)))
    return max(found)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of numbers in a checkpoint that this run has written, by their place in it."""
    found = {}

    def walk(value: object, where: str) -> None:
        if isinstance(value, Mapping):
            for key, each in value.items():
                walk(each, f"{where}/{key}")
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fi":
            found[where] = value.astype(np.float64)

    walk(load_pickle(path), "")
    return found


# --- part 4: several cards


def cards(place: Place) -> Iterator[Finding]:
    """Two cards against one with twice the batch: losses, and the AP of an evaluation that both share."""
    count = 0 if place.dry else paddle.device.cuda.device_count()
    if count == 1:
        yield skipped("two cards", "this machine has one")
        return
    yield from two_against_one(place, "frozen", "statistics that are frozen", ["ResNet.freeze_norm=true"])
    if place.dry:
        yield skipped("sync_bn", "--dry: it works on GPUs only")
    else:
        yield from two_against_one(place, "sync_bn", "sync_bn", ["norm_type=sync_bn"])


def two_against_one(place: Place, name: str, what: str, overrides: Sequence[str]) -> Iterator[Finding]:
    launcher = ["-m", "paddle.distributed.launch", "--log_dir", str(place.folder / "launch"),
                *(["--nproc_per_node", "2", "--backend", "gloo"] if place.dry else ["--gpus", "0,1"])]
    pictures = 8 if place.dry else 16
    rows = {}
    for cards_used, words in ((1, []), (2, launcher)):
        command(place, words, "train", "-c", "shapes_gfl_1x", "--eval", "-o", *options(
            place, f"{name}{cards_used}", pictures, *COMPARED, *overrides,
            f"TrainReader.batch_size={pictures // 2 // cards_used}"))
        rows[cards_used] = losses_of(place.folder / f"{name}{cards_used}" / "shapes_gfl_1x")
    yield within(f"two cards, {what}: losses of ten steps", apart(rows[2], rows[1]), CARDS_LIMIT, " of a loss")
    yield within(f"two cards, {what}: AP", abs(rows[2][-1]["AP"] - rows[1][-1]["AP"]), 1e-3, " off")


def command(place: Place, before: Sequence[str], *words: str) -> None:
    """Run `ppgfl WORDS` in a process of its own. Raises RuntimeError with its last line when it fails."""
    done = _ppgfl(place, before, *words)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise RuntimeError(f"ppgfl {words[0]} ended with exit code {done.returncode}: {lines[-1] if lines else ''}")


def _ppgfl(place: Place, before: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
    script = place.folder / "ppgfl_command.py"
    script.write_text("import sys\n\nfrom ppgfl.cli import entry\n\nsys.exit(entry())\n", encoding="utf-8")
    done = subprocess.run([sys.executable, *before, str(script), *words], cwd=place.folder, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sys.stdout.write(done.stdout)
    return done


# --- part 6: the demo


def run_demo(place: Place) -> Iterator[Finding]:
    """`ppgfl demo`, which trains, evaluates and detects."""
    code, ap = trained(place)
    limit = 0.0 if place.dry else DEMO_AP
    allowed = (0, 1) if place.dry else (0,)  # 1: too low an AP, as of one epoch
    yield Finding(code in allowed, "ppgfl demo", f"exit code {code}")
    yield Finding(ap >= limit, "AP of the demo", f"{ap:.3f}, at least {limit}")


def trained(place: Place) -> tuple[int, float]:
    """Exit code and AP of the demo below the folder, which is run if no part before has: its weights are used too."""
    run_folder, code_file = place.folder / "output/demo/shapes_gfl", place.folder / "demo_code"
    if not code_file.exists():
        if place.dry:
            make_shapes("output/shapes", train=8, val=3)  # the demo keeps what is there
        code_file.write_text(str(demo.run(_main_of(place))), encoding="utf-8")
    return int(code_file.read_text(encoding="utf-8")), read_metrics(run_folder)["best"]


def _main_of(place: Place) -> Callable[..., int]:
    """What the demo runs its commands with: in processes of their own; in a dry run with one epoch on the CPU."""
    def main(name: str, words: Sequence[str], prog: str) -> int:
        more = ["epoch=1", "engine=dygraph"] if place.dry else []
        return _ppgfl(place, [], name, *words, "-o", f"use_gpu={place.device == 'gpu'}".lower(), *more).returncode

    return main
