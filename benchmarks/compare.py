"""ppgfl against PaddleDetection, every question in one run, taking turns: writes RESULTS.md and results.png here.

    python benchmarks/compare.py                     # all questions: see `make bench`
    python benchmarks/compare.py step targets        # some of them, printed only

Each subject runs in a process of its own, on the same drawn pictures, with the same weights drawn from a seed.
"""
import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "golden")]
from peers import Worker, python_of_paddledetection  # noqa: E402

from ppgfl.benchmark import machine, take_turns  # noqa: E402
from ppgfl.runtime import physical_cores  # noqa: E402

PER_IMAGE = ("evaluation", "loader", "targets")  # seconds of one image instead of a run
MODEL = "gfl_r18vd_1x_coco"
IMAGES = 12
# What ppgfl sets before it imports Paddle, for a peer that does not.
TUNED = {"OMP_NUM_THREADS": str(physical_cores()), "MKL_DEBUG_CPU_TYPE": "5"}


@dataclass
class Row:
    """A subject's part in the answer to a question."""

    subject: str
    case: str
    seconds: list
    peak_mib: float = 0.0


def inference(bench):
    """Exported R18vd, one 800x1088 image, two threads, decoding and NMS included; PaddleDetection's export in the
    fastest setting of Paddle Inference 2.6.2 that gives right boxes"""
    return bench.ask("inference", {"ppgfl": bench.ours(), "ppgfl, bfloat16": bench.ours(run_mode="bf16"),
                                   **bench.theirs()}, rounds=4)


def batch(bench):
    """The same with a batch of 8; seconds a batch"""
    return bench.ask("inference", {"ppgfl": bench.ours(batch=8), **bench.theirs("tuned", batch=8)}, rounds=2)


def postprocess(bench):
    """The same without NMS, and without decoding: what they take of the whole"""
    graphs = {"whole": [], "without NMS": ["export.nms=false"], "bare network": ["export.benchmark=true"],
              "whole, score threshold 0.3": ["GFLHead.nms.score_threshold=0.3"]}
    return bench.ask("inference", {name: bench.ours(overrides=overrides) for name, overrides in graphs.items()},
                     rounds=6)


def evaluation(bench):
    """Evaluation end to end, R18vd, 800 pixels, batch 2; seconds an image"""
    return bench.ask("evaluation", {"ppgfl": bench.ours(images=4), **bench.theirs(images=4)}, rounds=2)


def step(bench):
    """Training step: forward, backward, update, R18vd, 640x640, batch 2"""
    return bench.ask("step", {"ppgfl": bench.ours(), **bench.theirs()}, rounds=3)


def targets(bench):
    """Gt2GFLTarget, one image of 800x1344; seconds an image"""
    rows = []
    for boxes in (1, 10, 100, 1000):
        subjects = {"ppgfl": bench.ours(boxes=boxes), **bench.theirs("its defaults", boxes=boxes)}
        rows += bench.ask("targets", subjects, rounds=5, case=f"{boxes} boxes")
    return rows


def loader(bench):
    """Loader with the training transforms and targets, one process; seconds an image"""
    return bench.ask("loader", {"ppgfl": bench.ours(), **bench.theirs("its defaults")}, rounds=20)


def growth(bench):
    """How exported inference grows: with the area, with the batch"""
    rows = []
    for height, width in ((320, 320), (640, 640), (1280, 1280)):
        rows += bench.ask("inference", {"ppgfl": bench.ours(size=(height, width))}, rounds=3, case=f"{height}x{width}")
    for batch in (1, 2, 4):
        rows += bench.ask("inference", {"ppgfl": bench.ours(size=(640, 640), batch=batch)}, rounds=3,
                          case=f"640x640, batch {batch}")
    return rows


def startup(bench):
    """Start-up, each in a new process; seconds"""
    import_ours = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import ppgfl"
    first = (f"{import_ours}; import numpy as np; ppgfl.Detector('shapes_gfl', {str(bench.weights_of_demo)!r}, "
             "['use_gpu=false'])(np.zeros((128, 160, 3), np.uint8))")
    subjects = {
        "python, nothing": [sys.executable, "-c", "pass"],
        "ppgfl: import ppgfl": [sys.executable, "-c", import_ours],
        "ppgfl: tools/train.py --help": [sys.executable, str(ROOT / "tools" / "train.py"), "--help"],
        "ppgfl: first detection of the demo's model, its graph in the cache": [sys.executable, "-c", first],
        "PaddleDetection: import ppdet": [bench.peer, "-c", "import ppdet"],
    }
    times = take_turns({name: lambda command=command: subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bench.environment,
        cwd=bench.scratch) for name, command in subjects.items()}, 5)
    return [Row(name, "", taken) for name, taken in times.items()]


HEAD = """# ppgfl against PaddleDetection 2.6.0

Written by `make bench`. {machine}; PaddleDetection on Paddle 2.6.2.
Each subject in a process of its own, taking turns; the first turn is not counted. "Its defaults": the environment as it
is. "Tuned": with {tuned}, which ppgfl sets itself.

![times](results.png)

"""
QUESTIONS = {function.__name__: function for function in (inference, batch, postprocess, evaluation, step,
                                                             loader, targets, growth, startup)}


class Bench:
    """Pictures, weights and environments, and the asking."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.peer = python_of_paddledetection()
        # None of what this process has set for itself.
        self.environment = {key: value for key, value in os.environ.items() if key not in TUNED}
        self.environment["PPGFL_HOME"] = str(scratch / "home")
        self.data = draw_coco(scratch / "data")
        self.weights = write_weights(MODEL, scratch / f"{MODEL}.pdparams")
        self.weights_of_demo = scratch / "demo.pdparams"
        subprocess.run([sys.executable, "-c", SAVE_DEMO % (str(ROOT), str(self.weights_of_demo))], check=True,
                       stderr=subprocess.DEVNULL)

    def ours(self, **settings):
        """A subject: ppgfl with settings of its own."""
        return sys.executable, "ppgfl", settings, {}

    def theirs(self, *ways, **settings):
        """{name: subject} of PaddleDetection, with its own environment variables or with ppgfl's."""
        return {f"PaddleDetection, {way}": (self.peer, "paddledet", settings, TUNED if way == "tuned" else {})
                for way in ways or ("its defaults", "tuned")}

    def ask(self, question, subjects, *, rounds, case=""):
        """The rows of a question: every subject in a process of its own, taking turns."""
        common = {"data": str(self.data), "images": IMAGES, "boxes": 0, "weights": str(self.weights),
                  "scratch": str(self.scratch), "overrides": [], "run_mode": "paddle", "size": (800, 1088), "batch": 1}
        workers = {name: Worker(python, subject, question, {**common, **settings}, {**self.environment, **variables})
                   for name, (python, subject, settings, variables) in subjects.items()}
        answers = {name: [] for name in workers}
        for turn in range(rounds + 1):  # the first is not counted
            for name, worker in workers.items():
                answer = worker()
                if turn:
                    answers[name].append(answer)
        for worker in workers.values():
            worker.close()
        return [Row(f"{name} ({workers[name].setting})" if workers[name].setting else name, case,
                    [a["seconds"] / (a["images"] if question in PER_IMAGE else 1) for a in given],
                    given[-1]["peak_mib"]) for name, given in answers.items()]


SAVE_DEMO = """
import sys; sys.path.insert(0, %r)
import ppgfl, paddle
paddle.save(ppgfl.build_model(ppgfl.load_config("shapes_gfl")).state_dict(), %r)
"""


def draw_coco(folder):
    """Pictures of the usual size with boxes of the 80 classes, in COCO's layout."""
    import json

    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    images, annotations = [], []
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(parents=True)
    for i in range(IMAGES):
        height, width = (480, 640) if i % 2 else (427, 640)
        noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = cv2.resize(noise, (width, height))
        for _ in range(8):
            w, h = int(rng.integers(20, 300)), int(rng.integers(20, 300))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            picture[y:y + h, x:x + w] = rng.integers(0, 256, 3)
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "bbox": [x, y, w, h], "area": w * h,
                                "iscrowd": 0, "category_id": int(rng.integers(1, 81))})
        for split in ("train2017", "val2017"):
            cv2.imwrite(str(folder / split / f"{i}.jpg"), picture)
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "height": height, "width": width})
    content = json.dumps({"images": images, "annotations": annotations,
                          "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(80)]})
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}2017.json").write_text(content)
    return folder


def write_weights(model, path):
    """Weights drawn from a seed, in a pickle that PaddleDetection's older numpy reads."""
    import make_weights

    data = pickle.dumps(make_weights.make(model), protocol=2)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path


def table(rows):
    """Markdown: the median, the spread, how many times as long as the case's first subject takes, and memory."""
    lines = ["| | seconds | least to most | against the first | peak memory, MiB |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        first = next(other for other in rows if other.case == row.case)
        middle, base = statistics.median(row.seconds), statistics.median(first.seconds)
        name = ", ".join(part for part in (row.subject, row.case) if part)
        lines.append(f"| {name} | {middle:.4g} | {min(row.seconds):.4g} to {max(row.seconds):.4g} | "
                     f"{middle / base:.2f} | {f'{row.peak_mib:,.0f}' if row.peak_mib else ''} |")
    return "\n".join(lines)


def chart(answers, path):
    """Bars of PaddleDetection's time over ppgfl's, on a logarithmic axis."""
    from matplotlib.figure import Figure

    names, ratios = [], []
    for question, rows in answers.items():
        for row in rows:
            if row.subject.startswith("PaddleDetection, "):
                first = next(other for other in rows if other.case == row.case)
                way = row.subject[len("PaddleDetection, "):].split(" (")[0]
                names.append(", ".join(part for part in (question, row.case, way) if part))
                ratios.append(statistics.median(row.seconds) / statistics.median(first.seconds))
    figure = Figure(figsize=(8, 0.4 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, ratios)
    axes.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3)
    axes.axvline(1, color="black")
    axes.set_xscale("log")
    axes.set_xlim(0.8, 1.5 * max(ratios))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.set_title("PaddleDetection's time over ppgfl's, CPU")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="default: all")
    args = parser.parse_args()
    start, answers = time.time(), {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        sections = []
        for name in args.questions or QUESTIONS:
            answers[name] = QUESTIONS[name](bench)
            sections.append(f"## {name}\n\n{' '.join(QUESTIONS[name].__doc__.split())}.\n\n{table(answers[name])}\n")
            print(f"\n{sections[-1]}", flush=True)
    if not args.questions:
        head = HEAD.format(machine=machine(), tuned=" ".join("=".join(item) for item in TUNED.items()))
        (HERE / "RESULTS.md").write_text(head + "\n".join(sections), encoding="utf-8")
        chart(answers, HERE / "results.png")
        print(f"written: {HERE / 'RESULTS.md'} after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
