"""ppgfl against PaddleDetection, every question in one run, taking turns: writes RESULTS.md, .json, results.png here.

    python benchmarks/compare.py                     # all questions: see `make bench`
    python benchmarks/compare.py step targets        # some of them, printed only
    python benchmarks/compare.py --check             # whether the ratios that matter are still those of RESULTS.json
    python benchmarks/compare.py --smallest          # each question once, on tiny inputs: whether they run at all

Each subject runs in a process of its own, on the same drawn pictures, with the same weights drawn from a seed.
"""
import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from drawn import FEW, draw_coco, write_weights  # noqa: E402
from loader_cases import AUGMENTED  # noqa: E402
from peers import Worker, is_made, python_of  # noqa: E402
from tables import chart, check, in_words, table  # noqa: E402

from ppgfl.cli.benchmark import machine, take_turns  # noqa: E402
from ppgfl.system.runtime import physical_cores  # noqa: E402

PER_IMAGE = ("evaluation", "loader", "targets", "folder")  # seconds of one image instead of a run
MODEL = "gfl_r18vd_1x_coco"
MORE_MODELS = ("gfl_r50_fpn_1x_coco", "gflv2_r50_fpn_1x_coco")
GFLOP = {"gfl_r18vd_1x_coco": 278.1, "gfl_r50_fpn_1x_coco": 352.9, "gflv2_r50_fpn_1x_coco": 353.1}  # 800x1088
IMAGES = 12
SIZES = {"size": (800, 1088), "step": 640, "matrix": 2048, "canvas": (800, 1344)}  # pixels; of the matrices rows
SMALLEST = {"size": (64, 96), "step": 64, "matrix": 64, "canvas": (128, 128), "images": 2, "shrink": True}
CHECKED = ("inference", "step", "loader", "targets", "folder")  # what --check asks
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
    for model in bench.models:
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
              "1,900 candidates": FEW, "500,000 candidates": []}
    for overrides in graphs.values():
        bench.export(MODEL, overrides=overrides)
    return bench.ask("inference", {name: bench.ours(overrides=overrides) for name, overrides in graphs.items()},
                     rounds=10)


def evaluation(bench):
    """Evaluation of 24 images end to end, R18vd, 800 pixels, batch 2, the opening of the model included, and what the
    bare network takes of it: the same batches, prepared before; 1,900 candidates an image; seconds an image"""
    subjects = {"ppgfl": bench.ours(**bench.two_dozen), "bare network": bench.ours(bare=True, **bench.two_dozen),
                **bench.theirs("tuned", **bench.two_dozen)}
    return bench.ask("evaluation", subjects, rounds=2)


def folder(bench):
    """From a folder of 24 photographs to JSON, R18vd exported (model.onnx, model_int8.onnx), 800 pixels, the opening of
    the model included, and what the bare network takes of it: the same images, prepared before; 1,900 candidates an
    image; seconds an image"""
    common = bench.two_dozen
    bench.export(MODEL, onnx=True, int8=str(bench.photographs), overrides=FEW)
    ways = {"float32": {"file": "model.onnx"}, "int8": {"run_mode": "int8"}}
    subjects = {}
    for name, way in ways.items():
        subjects[f"bare network, {name}"] = bench.ours(bare=True, **way, **common)
        subjects[f"infer, {name}"] = bench.ours(**way, **common)
    subjects["infer with pictures, float32"] = bench.ours(pictures=True, **ways["float32"], **common)
    return bench.ask("folder", subjects, rounds=2)


def step(bench):
    """Training step: forward, backward, update, R18vd, 640x640, batch 2. MMDetection makes its targets in the step"""
    return bench.ask("step", {"ppgfl": bench.ours(), **bench.theirs("tuned"), "MMDetection": bench.mmdetection()},
                     rounds=4)


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


def augmentations(bench):
    """The same loader with one augmentation more, or several as PP-YOLO has them; seconds an image"""
    rows = []
    for name, change in list(AUGMENTED.items())[-2 if bench.smallest else 0:]:
        subjects = {"ppgfl": bench.ours(reader=change), **bench.theirs("its defaults", reader=change)}
        rows += bench.ask("loader", subjects, rounds=20, case=name)
    return rows


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
    first_of_onnx = (f"{import_ours}; import numpy as np; ppgfl.Detector({str(bench.onnx_of_demo)!r})"
                     "(np.zeros((128, 160, 3), np.uint8))")
    subjects = {
        "python, nothing": [sys.executable, "-c", "pass"],
        "ppgfl: import ppgfl": [sys.executable, "-c", import_ours],
        "ppgfl: tools/train.py --help": [sys.executable, str(ROOT / "tools" / "train.py"), "--help"],
        "ppgfl: first detection of the demo's model, its graph in the cache": [sys.executable, "-c", first],
        "ppgfl: first detection of the demo's model.onnx": [sys.executable, "-c", first_of_onnx],
    }
    if bench.has("paddledet"):
        subjects["PaddleDetection: import ppdet"] = [python_of("paddledet"), "-c", "import ppdet"]
    times = take_turns({name: lambda command=command: subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bench.environment,
        cwd=bench.scratch) for name, command in subjects.items()}, 1 if bench.smallest else 5)
    return [Row(name, "", taken) for name, taken in times.items()]


HEAD = """# ppgfl against PaddleDetection 2.6.0 and others

Written by `make bench`. {machine}; PaddleDetection on Paddle 2.6.2; MMDetection 3.3 on PyTorch 2.13, with ResNet-18-d.
The product of two matrices of 2048 x 2048 runs here at {rate:.0f} GFLOP/s in Paddle: "share" is of that, and above 1
where a convolution uses wider vectors than the matrix product.
Each subject in a process of its own, taking turns; the first turn is not counted. "Its defaults": the environment as it
is. "Tuned": with {tuned}, which ppgfl sets itself.

![times](results.png)

"""
QUESTIONS = {function.__name__: function for function in (inference, batch, postprocess, folder, evaluation, step,
                                                             distillation, loader, augmentations, targets, growth,
                                                             startup)}


class Bench:
    """Pictures, weights and environments, and the asking.

    Args:
        models: what `inference` asks about.
        smallest: each question once, on tiny inputs, and only of the peers whose environments are there.
    """

    def __init__(self, scratch, models=(MODEL, *MORE_MODELS), smallest=False):
        self.scratch, self.models, self.smallest = scratch, models, smallest
        # None of what this process has set for itself, and modules compiled once, as Python does by default: those of a
        # peer lie compiled in its environment.
        left_out = (*TUNED, "PYTHONDONTWRITEBYTECODE")
        self.environment = {key: value for key, value in os.environ.items() if key not in left_out}
        self.environment["PPGFL_HOME"] = str(scratch / "home")
        self.data = draw_coco(scratch / "data", IMAGES)
        self.photographs = self.data / "val2017"
        self.weights_of_demo, self.onnx_of_demo = scratch / "demo.pdparams", scratch / "demo" / "model.onnx"
        subprocess.run([sys.executable, "-c", SAVE_DEMO % (str(ROOT), str(scratch))], check=True,
                       stderr=subprocess.DEVNULL)

    @functools.cached_property
    def two_dozen(self):
        """Settings: 24 photographs, and of each as many candidates as a trained model gives."""
        return {"data": str(draw_coco(self.scratch / "two_dozen", 24)), "images": 24, "overrides": FEW}

    def has(self, peer):
        return is_made(peer) or not self.smallest

    def ours(self, model=MODEL, **settings):
        """A subject: ppgfl with settings of its own."""
        return sys.executable, "ppgfl", {"model": model, **settings}, {}

    def other(self, subject, model, **settings):
        """ONNX Runtime, which ppgfl's environment has, or OpenVINO."""
        python = sys.executable if subject != "openvino" else self.has("openvino") and python_of("openvino")
        return python, subject, {"model": model, **settings}, {}

    def mmdetection(self, **settings):
        return self.has("mmdet") and python_of("mmdet"), "mmdet", settings, {}

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
        return 2 * (SMALLEST if self.smallest else SIZES)["matrix"]**3 / statistics.median(row.seconds) / 1e9

    def theirs(self, *ways, **settings):
        """{name: subject} of PaddleDetection, with its own environment variables or with ppgfl's."""
        python = self.has("paddledet") and python_of("paddledet")
        return {f"PaddleDetection, {way}": (python, "paddledet", settings, TUNED if way == "tuned" else {})
                for way in ways or ("its defaults", "tuned")}

    def ask(self, question, subjects, *, rounds, case="", gflop=0.0):
        """The rows of a question: every subject in a process of its own, taking turns."""
        common = {"data": str(self.data), "images": IMAGES, "boxes": 0, "scratch": str(self.scratch), "overrides": [],
                  "run_mode": "paddle", "batch": 1, "model": MODEL, "onnx": False, "int8": None, "slim_config": None,
                  "teacher_only": False, "file": "", "bare": False, "pictures": False, "shrink": False,
                  "reader": {}, **SIZES}
        workers = {}
        for name, (python, subject, settings, variables) in subjects.items():
            if not python:
                continue
            settings = {**common, **settings, **(SMALLEST if self.smallest else {})}
            settings["weights"] = str(write_weights(settings["model"], self.scratch))
            workers[name] = Worker(python, subject, question, settings, {**self.environment, **variables})
        answers = {name: [] for name in workers}
        for turn in range((min(rounds, 1) if self.smallest else rounds) + 1):  # the first is not counted
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
import sys; sys.path.insert(0, %r); scratch = %r
import ppgfl, paddle
cfg = ppgfl.load_config("shapes_gfl", ["use_gpu=false", f"weights={scratch}/demo.pdparams"])
paddle.save(ppgfl.build_model(cfg).state_dict(), cfg["weights"])
ppgfl.export(cfg, output_dir=f"{scratch}/demo", onnx=True, format="pdmodel", verify=())
"""


def rows_of(answers):
    """{question: rows} -> what RESULTS.json holds."""
    return [{"question": question, **asdict(row)} for question, rows in answers.items() for row in rows]


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="default: all")
    parser.add_argument("--chart", action="store_true", help="only draw results.png of RESULTS.md anew")
    parser.add_argument("--check", action="store_true", help=f"ask {', '.join(CHECKED)} and compare with RESULTS.json")
    parser.add_argument("--smallest", action="store_true", help="each question once, on tiny inputs; printed only")
    args = parser.parse_args()
    if args.chart:
        chart((HERE / "RESULTS.md").read_text(encoding="utf-8"), HERE / "results.png")
        return 0
    start, answers = time.time(), {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), (MODEL,) if args.check or args.smallest else (MODEL, *MORE_MODELS), args.smallest)
        sections, rate = [], bench.matmul_rate()
        for name in args.questions or (CHECKED if args.check else QUESTIONS):
            answers[name] = QUESTIONS[name](bench)
            about = " ".join(QUESTIONS[name].__doc__.split())
            sections.append(f"## {name}\n\n{about}.\n\n{in_words(answers[name])}.\n\n{table(answers[name], rate)}\n")
            print(f"\n{sections[-1]}", flush=True)
    if args.check:
        before = json.loads((HERE / "RESULTS.json").read_text(encoding="utf-8"))
        found = list(check(before["rows"], rows_of(answers)))
        if before["machine"] != machine():  # ratios change with the width of a processor's vectors
            print(f"RESULTS.json is of {before['machine']}; this is {machine()}")
        print("\n".join(("WORSE  " if worse else "ok     ") + line for worse, line in found))
        print(f"{sum(worse for worse, _ in found)} of {len(found)} ratios are worse, {time.time() - start:.0f} s")
        return int(any(worse for worse, _ in found))
    if not (args.questions or args.smallest):
        about = machine()
        head = HEAD.format(machine=about, rate=rate, tuned=" ".join("=".join(item) for item in TUNED.items()))
        results = head + "\n".join(sections)
        (HERE / "RESULTS.md").write_text(results, encoding="utf-8")
        (HERE / "RESULTS.json").write_text(json.dumps({"machine": about, "rows": rows_of(answers)}, indent=1),
                                           encoding="utf-8")
        chart(results, HERE / "results.png")
        print(f"written: {HERE / 'RESULTS.md'} after {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
