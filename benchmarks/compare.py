"""ppgfl against PaddleDetection, every question in one run, taking turns: writes RESULTS.md and results.png here.

    python benchmarks/compare.py                     # all questions: see `make bench`
    python benchmarks/compare.py step targets        # some of them, printed only

Each subject runs in a process of its own, on the same drawn pictures, with the same weights drawn from a seed.
"""
import argparse
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "golden")]
from peers import Worker, python_of  # noqa: E402

from ppgfl.cli.benchmark import machine, take_turns  # noqa: E402
from ppgfl.system.runtime import physical_cores  # noqa: E402

PER_IMAGE = ("evaluation", "loader", "targets")  # seconds of one image instead of a run
MODEL = "gfl_r18vd_1x_coco"
MORE_MODELS = ("gfl_r50_fpn_1x_coco", "gflv2_r50_fpn_1x_coco")
GFLOP = {"gfl_r18vd_1x_coco": 278.1, "gfl_r50_fpn_1x_coco": 352.9, "gflv2_r50_fpn_1x_coco": 353.1}  # 800x1088
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
    gflop: float = 0.0  # of a run


def inference(bench):
    """Exported, one 800x1088 image, two threads, float32 where nothing else is said. PaddleDetection's export in the
    fastest setting of Paddle Inference 2.6.2 that gives right boxes. "No NMS": up to decoded boxes and scores"""
    rows = []
    for model in (MODEL, *MORE_MODELS):
        bench.export(model, onnx=True, int8=str(bench.photographs) if model == MODEL else None)
        subjects = {"ppgfl": bench.ours(model), "ppgfl, bfloat16": bench.ours(model, run_mode="bf16")}
        if model == MODEL:
            subjects["ONNX Runtime, int8 by ppgfl"] = bench.other("onnxruntime", model, file="model_int8.onnx")
        subjects["ONNX Runtime"] = bench.other("onnxruntime", model, file="model.onnx")
        subjects["OpenVINO"] = bench.other("openvino", model)
        subjects["OpenVINO, bfloat16"] = bench.other("openvino", model, run_mode="bf16")
        subjects.update(bench.theirs(*(() if model == MODEL else ("tuned",)), model=model))
        if model == MODEL:
            subjects["MMDetection (bare network)"] = bench.mmdetection()
        rows += bench.ask("inference", subjects, rounds=4, case=model, gflop=GFLOP[model])
    return rows


def batch(bench):
    """The same with a batch of 8, R18vd; seconds a batch. Without PaddleDetection, whose export takes 5 GiB for one
    image"""
    bench.export(MODEL, onnx=True)
    return bench.ask("inference", {
        "ppgfl": bench.ours(batch=8), "ONNX Runtime": bench.other("onnxruntime", MODEL, file="model.onnx", batch=8),
        "OpenVINO": bench.other("openvino", MODEL, batch=8)}, rounds=2, gflop=8 * GFLOP[MODEL])


def postprocess(bench):
    """What decoding and NMS take of exported inference, R18vd. These weights give half a million candidates above the
    config's threshold of 0.025; above 0.5 they give 1,900"""
    graphs = {"bare network": ["export.benchmark=true"], "without NMS": ["export.nms=false"],
              "1,900 candidates": ["GFLHead.nms.score_threshold=0.5"], "500,000 candidates": []}
    for overrides in graphs.values():
        bench.export(MODEL, overrides=overrides)
    return bench.ask("inference", {name: bench.ours(overrides=overrides) for name, overrides in graphs.items()},
                     rounds=10)


def evaluation(bench):
    """Evaluation end to end, R18vd, 800 pixels, batch 2; seconds an image"""
    return bench.ask("evaluation", {"ppgfl": bench.ours(images=4), **bench.theirs(images=4)}, rounds=2)


def step(bench):
    """Training step: forward, backward, update, R18vd, 640x640, batch 2. MMDetection makes its targets in the step"""
    return bench.ask("step", {"ppgfl": bench.ours(), "ppgfl, onednn_training": bench.ours(
        overrides=["onednn_training=true"]), **bench.theirs(), "MMDetection": bench.mmdetection()}, rounds=4)


def distillation(bench):
    """Training step of R18vd that learns from R101-vd (LD), beside its two parts, 640x640, batch 2"""
    student = "gfl_slim_ld_r18vd_1x_coco"
    weights = write_weights("gfl_r101vd_fpn_mstrain_2x_coco", bench.scratch)
    taught = {"slim_config": "gfl_ld_distill", "overrides": [f"teacher.pretrain_weights={weights}"]}
    rows = bench.ask("step", {
        "both": bench.ours(student, **taught), "student alone": bench.ours(),
        "teacher's forward alone": bench.ours(student, **taught, teacher_only=True)}, rounds=4)
    both, *parts = (statistics.median(row.seconds) for row in rows)
    return [*rows, Row(f"both take {both / sum(parts):.3f} times the sum of the parts", "", [])]


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
    """How exported inference (R18vd) grows with the area and the batch, and the targets with the boxes: seconds, and
    the exponent that fits them"""
    bench.export(MODEL)
    rows = []
    for name, cases in (("area", {f"{side}x{side}": (side**2, {"size": (side, side)}) for side in (320, 640, 1280)}),
                        ("batch", {f"batch of {n}": (n, {"size": (640, 640), "batch": n}) for n in (1, 2, 4, 8)})):
        found = [bench.ask("inference", {"ppgfl": bench.ours(**settings)}, rounds=3, case=case)[0]
                 for case, (_, settings) in cases.items()]
        rows += found + [fit(name, [x for x, _ in cases.values()], found)]
    boxes = (10, 100, 1000)
    found = [bench.ask("targets", {"ppgfl": bench.ours(boxes=n)}, rounds=5, case=f"{n} boxes")[0] for n in boxes]
    return rows + found + [fit("boxes", boxes, found)]


def fit(name, sizes, rows):
    """A row that says how time and memory grow: the slopes of their logarithms."""
    slopes = [np.polyfit(np.log(sizes), np.log(values), 1)[0] for values in (
        [statistics.median(row.seconds) for row in rows], [row.peak_mib for row in rows])]
    return Row(f"exponent over the {name}: time {slopes[0]:.2f}, memory of the process {slopes[1]:.2f}", "", [])


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
        "PaddleDetection: import ppdet": [python_of("paddledet"), "-c", "import ppdet"],
    }
    times = take_turns({name: lambda command=command: subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bench.environment,
        cwd=bench.scratch) for name, command in subjects.items()}, 5)
    return [Row(name, "", taken) for name, taken in times.items()]


HEAD = """# ppgfl against PaddleDetection 2.6.0 and others

Written by `make bench`. {machine}; PaddleDetection on Paddle 2.6.2; MMDetection 3.3 on PyTorch 2.13, with ResNet-18-d.
The product of two matrices of 2048 x 2048 runs here at {rate:.0f} GFLOP/s in Paddle: "share" is of that, and above 1
where a convolution uses wider vectors than the matrix product.
Each subject in a process of its own, taking turns; the first turn is not counted. "Its defaults": the environment as it
is. "Tuned": with {tuned}, which ppgfl sets itself.

![times](results.png)

"""
QUESTIONS = {function.__name__: function for function in (inference, batch, postprocess, evaluation, step,
                                                             distillation, loader, targets, growth, startup)}


class Bench:
    """Pictures, weights and environments, and the asking."""

    def __init__(self, scratch):
        self.scratch = scratch
        # None of what this process has set for itself.
        self.environment = {key: value for key, value in os.environ.items() if key not in TUNED}
        self.environment["PPGFL_HOME"] = str(scratch / "home")
        self.data = draw_coco(scratch / "data")
        self.photographs = self.data / "val2017"
        self.weights_of_demo = scratch / "demo.pdparams"
        subprocess.run([sys.executable, "-c", SAVE_DEMO % (str(ROOT), str(self.weights_of_demo))], check=True,
                       stderr=subprocess.DEVNULL)

    def ours(self, model=MODEL, **settings):
        """A subject: ppgfl with settings of its own."""
        return sys.executable, "ppgfl", {"model": model, **settings}, {}

    def other(self, subject, model, **settings):
        """ONNX Runtime or OpenVINO, in ppgfl's environment."""
        return sys.executable, subject, {"model": model, **settings}, {}

    def mmdetection(self, **settings):
        return python_of("mmdet"), "mmdet", settings, {}

    def export(self, model, **settings):
        """Write ppgfl's export of a model, unless it is there."""
        folder = self.scratch / "_".join([model, *settings.get("overrides", [])])
        needed = ["model.pdmodel"] + ["model.onnx"] * bool(settings.get("onnx"))
        needed += ["model_int8.onnx"] * bool(settings.get("int8"))
        if not all((folder / name).is_file() for name in needed):
            self.ask("export", {"ppgfl": self.ours(model, **settings)}, rounds=0)

    def matmul_rate(self):
        """GFLOP/s of Paddle's product of matrices."""
        row, = self.ask("matmul", {"ppgfl": self.ours()}, rounds=10)
        return 2 * 2048**3 / statistics.median(row.seconds) / 1e9

    def theirs(self, *ways, **settings):
        """{name: subject} of PaddleDetection, with its own environment variables or with ppgfl's."""
        python = python_of("paddledet")
        return {f"PaddleDetection, {way}": (python, "paddledet", settings, TUNED if way == "tuned" else {})
                for way in ways or ("its defaults", "tuned")}

    def ask(self, question, subjects, *, rounds, case="", gflop=0.0):
        """The rows of a question: every subject in a process of its own, taking turns."""
        common = {"data": str(self.data), "images": IMAGES, "boxes": 0, "scratch": str(self.scratch), "overrides": [],
                  "run_mode": "paddle", "size": (800, 1088), "batch": 1, "model": MODEL, "onnx": False, "int8": None,
                  "slim_config": None, "teacher_only": False}
        workers = {}
        for name, (python, subject, settings, variables) in subjects.items():
            settings = {**common, **settings}
            settings["weights"] = str(write_weights(settings["model"], self.scratch))
            workers[name] = Worker(python, subject, question, settings, {**self.environment, **variables})
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
                    given[-1]["peak_mib"], gflop) for name, given in answers.items() if given]


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


def write_weights(model, folder):
    """Weights drawn from a seed, in a pickle that PaddleDetection's older numpy reads; written once."""
    import make_weights

    path = folder / f"{model}.pdparams"
    if path.exists():
        return path
    data = pickle.dumps(make_weights.make(model), protocol=2)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path


def table(rows, rate):
    """Markdown: the median, the spread, how many times as long as the case's first subject takes, memory, and the rate
    of arithmetic where it is known."""
    head = ["", "seconds", "least to most", "against the first", "peak memory, MiB"]
    head += ["GFLOP/s", "share"] if any(row.gflop for row in rows) else []
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for row in rows:
        cells = [", ".join(part for part in (row.subject, row.case) if part)]
        if row.seconds:
            first = next(other for other in rows if other.case == row.case)
            middle = statistics.median(row.seconds)
            cells += [f"{middle:.4g}", f"{min(row.seconds):.4g} to {max(row.seconds):.4g}",
                      f"{middle / statistics.median(first.seconds):.2f}",
                      f"{row.peak_mib:,.0f}" if row.peak_mib else ""]
            if row.gflop:
                cells += [f"{row.gflop / middle:.0f}", f"{row.gflop / middle / rate:.2f}"]
        lines.append(f"| {' | '.join(cells + [''] * (len(head) - len(cells)))} |")
    return "\n".join(lines)


WAYS = {"its defaults": "as it is installed", "tuned": "with the environment variables that ppgfl sets itself"}
MEANINGS = {"inference": "exported, one image", "evaluation": "evaluation", "step": "training step",
            "loader": "loading of batches", "targets": "targets of an image"}
CASES = {"gfl_r18vd_1x_coco": "R18vd", "gfl_r50_fpn_1x_coco": "R50", "gflv2_r50_fpn_1x_coco": "GFLv2 R50",
         "1 boxes": "1 box"}


def ratios_of(results):
    """{(question, case): {way: PaddleDetection's time over ppgfl's}} of RESULTS.md."""
    ratios, question = {}, ""
    for line in results.splitlines():
        if line.startswith("## "):
            question = line[3:]
        elif line.startswith("| PaddleDetection, "):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            name = cells[0]
            way = next(way for way in WAYS if name.startswith(f"PaddleDetection, {way}"))
            case = re.sub(r"\([^)]*\)", "", name[len(f"PaddleDetection, {way}"):]).strip(", ")
            ratios.setdefault((question, case), {})[way] = float(cells[3])
    return ratios


def chart(results, path):
    """Bars of PaddleDetection's time over ppgfl's, of the text of RESULTS.md."""
    from matplotlib.figure import Figure

    ratios = ratios_of(results)
    figure = Figure(figsize=(9, 0.62 * len(ratios) + 1.8), layout="constrained")
    axes = figure.subplots()
    for offset, (way, meaning), color in zip((-0.2, 0.2), WAYS.items(), ("#9aa5b1", "#1f6feb")):
        places = [place for place, by_way in enumerate(ratios.values()) if way in by_way]
        values = [by_way[way] for by_way in ratios.values() if way in by_way]
        bars = axes.barh([place + offset for place in places], values, 0.36, label=f"PaddleDetection {meaning}",
                         color=color)
        axes.bar_label(bars, [f"{value:.1f} times" for value in values], padding=3, fontsize=9)
    axes.set_yticks(range(len(ratios)), [", ".join(filter(None, (MEANINGS[question], CASES.get(case, case))))
                                         for question, case in ratios])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 1.9 * max(max(by_way.values()) for by_way in ratios.values()))
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1\nequally long", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.set_xlabel("PaddleDetection's time over ppgfl's on the same CPU, logarithmic")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="default: all")
    parser.add_argument("--chart", action="store_true", help="only draw results.png of RESULTS.md anew")
    args = parser.parse_args()
    if args.chart:
        chart((HERE / "RESULTS.md").read_text(encoding="utf-8"), HERE / "results.png")
        return
    start, answers = time.time(), {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        sections, rate = [], bench.matmul_rate()
        for name in args.questions or QUESTIONS:
            answers[name] = QUESTIONS[name](bench)
            about = " ".join(QUESTIONS[name].__doc__.split())
            sections.append(f"## {name}\n\n{about}.\n\n{table(answers[name], rate)}\n")
            print(f"\n{sections[-1]}", flush=True)
    if not args.questions:
        head = HEAD.format(machine=machine(), rate=rate, tuned=" ".join("=".join(item) for item in TUNED.items()))
        results = head + "\n".join(sections)
        (HERE / "RESULTS.md").write_text(results, encoding="utf-8")
        chart(results, HERE / "results.png")
        print(f"written: {HERE / 'RESULTS.md'} after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
