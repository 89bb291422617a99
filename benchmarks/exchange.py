"""Checkpoints both ways: what one of ppgfl and PaddleDetection has saved, the other resumes, momenta equal by layer.

    python exchange.py [--paddledetection CHECKOUT] [--record] [WORD ...]

An optimizer's state is filed under Paddle's names of the parameters (conv2d_12.w_0), which count layers in the order in
which they are made: they are compared too. PaddleDetection is the release in the peers' environment (see `peers.py`)
unless the folder of a checkout is given: releases up to 2.6.0 make a bottleneck's shortcut first, those since last, as
ppgfl. WORDs choose among the cases. `--record` writes the names that PaddleDetection gives in them to tests/golden.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "golden" / "parameter_names.json"
DEFORMABLE = {"ResNet": {"dcn_v2_stages": [1, 2, 3]}}
CASES = {
    **{name: (name, {}) for name in (
        "gfl_r50_fpn_1x_coco", "gfl_r101vd_fpn_mstrain_2x_coco", "gfl_r34vd_1x_coco", "gfl_r18vd_1x_coco",
        "gflv2_r50_fpn_1x_coco", "gfl_slim_ld_r18vd_1x_coco")},
    "r50, deformable": ("gfl_r50_fpn_1x_coco", DEFORMABLE),
    "r18vd, deformable": ("gfl_r18vd_1x_coco", DEFORMABLE),
    "r50, deformable towers": ("gfl_r50_fpn_1x_coco", {"GFLHead": {"conv_feat": {"use_dcn": True}}}),
    "x50-32x4d, squeeze and excitation, deformable": ("gfl_r50_fpn_1x_coco", {
        "ResNet": {"groups": 32, "base_width": 4, "std_senet": True, "dcn_v2_stages": [2, 3]}}),
    "r2n50, deformable": ("gfl_r50_fpn_1x_coco", {
        "GFL": {"backbone": "Res2Net"},
        "Res2Net": {"variant": "d", "freeze_at": -1, "return_idx": [1, 2, 3], "dcn_v2_stages": [2, 3]}}),
    "r50-a, norms that learn": ("gfl_r50_fpn_1x_coco", {
        "ResNet": {"variant": "a", "freeze_norm": False, "freeze_at": -1, "lr_mult_list": [0.1, 0.2, 0.3, 0.4]},
        "FPN": {"norm_type": "bn"}, "FCOSFeat": {"norm_type": "bn"}}),
}


class Ppgfl:
    """A model and its optimizer in ppgfl."""

    def __init__(self, name, overrides):
        sys.path.insert(0, str(ROOT))
        import ppgfl
        from ppgfl.config.load import merge
        from ppgfl.training.state import new_state

        cfg = merge(ppgfl.load_config(config_file(name), ["use_gpu=false"]), overrides)
        self.state = new_state(cfg, steps_per_epoch=10, total_batch_size=None, seed=0)
        self.model, self.optimizer = self.state.model, self.state.optimizer
        self.model.class_names = ["a class"] * self.model.head.num_classes  # PaddleDetection must pass over them

    def save(self, stem):
        self.state.progress.epoch, self.state.progress.step = 1, 1
        self.state.save(stem.parent, stem.name)

    def load(self, stem):
        self.state.load(stem)
        return self.state.progress.epoch


class PaddleDetection:
    """The same in PaddleDetection."""

    def __init__(self, name, overrides):
        import cv2  # noqa: F401  before paddle: Paddle 2.6 brings a zlib that breaks an OpenCV loaded after it
        from peers import leave_out_lane_detection

        leave_out_lane_detection()
        from ppdet.core.workspace import create, load_config, merge_config

        load_config(str(config_file(name)))
        cfg = merge_config(overrides)
        import paddle

        paddle.set_device("cpu")
        self.model = create(cfg["architecture"])
        self.optimizer = create("OptimizerBuilder")(create("LearningRate")(10), self.model)
        self.ema = None
        if cfg.get("use_ema"):
            from ppdet.optimizer import ModelEMA

            self.ema = ModelEMA(self.model)
            self.ema.update()

    def save(self, stem):
        from ppdet.utils.checkpoint import save_model

        save_model(self.model.state_dict(), self.optimizer, str(stem.parent), stem.name, 1,
                   None if self.ema is None else self.ema.apply())

    def load(self, stem):
        from ppdet.utils.checkpoint import load_weight

        return load_weight(self.model, str(stem), self.optimizer, self.ema)


def config_file(name):
    return ROOT / "configs" / "gfl" / f"{name}.yml"


# --- a process of one of them


def answer(subject, question, name, overrides, folder):
    """Save a checkpoint after one step, with gradients that no two layers share; or resume the other's and go on."""
    import paddle

    one = {"ppgfl": Ppgfl, "paddledet": PaddleDetection}[subject](name, overrides)
    entries = {key: value.name for key, value in one.model.state_dict().items()}
    about = {"names": entries, "learning": {
        key: [value.optimize_attr["learning_rate"], decay_of(value)] for key, value in one.model.named_parameters()
        if not value.stop_gradient}}
    if question == "load":
        other = {"ppgfl": "paddledet", "paddledet": "ppgfl"}[subject]
        about["epoch"] = one.load(Path(folder, other))
        write_momenta(Path(folder, f"{subject}_load.npz"), entries, one.optimizer._accumulators_holder)
    total = paddle.zeros([])
    for i, parameter in enumerate(each for each in one.model.parameters() if not each.stop_gradient):
        total = total + (parameter * (0.01 * i + 0.001)).sum()
    total.backward()
    one.optimizer.step()
    if question == "save":
        write_momenta(Path(folder, f"{subject}_save.npz"), entries, one.optimizer.state_dict())
        one.save(Path(folder, subject))
    Path(folder, f"{subject}_{question}.json").write_text(json.dumps(about))


def decay_of(parameter):
    """The factor of a parameter's own L2Decay, or None where that of the optimizer counts."""
    own = parameter.regularizer
    return None if own is None else getattr(own, "_coeff", getattr(own, "_regularization_coeff", None))


def write_momenta(path, entries, state):
    np.savez(path, **{key: np.asarray(state[f"{name}_velocity_0"]) for key, name in entries.items()
                      if f"{name}_velocity_0" in state})


# --- the comparison


def compare(case, environments):
    """Run a case -> its row, and what PaddleDetection calls the parameters."""
    with tempfile.TemporaryDirectory() as folder:
        for question in ("save", "load"):
            for subject, (python, environment) in environments.items():
                command = [python, __file__, "--answer", subject, question, json.dumps(CASES[case]), folder]
                done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{case}: {subject} cannot {question}: {done.stderr.strip()[-300:]}", file=sys.stderr)
        ours, theirs = (json.loads(Path(folder, f"{who}_save.json").read_text()) for who in environments)
        differing = sum(ours["names"][key] != name for key, name in theirs["names"].items())
        row = [case, len(theirs["names"]), differing, sum(ours["learning"].get(key) != value for key, value
                                                          in theirs["learning"].items())]
        for saver, loader in (("ppgfl", "paddledet"), ("paddledet", "ppgfl")):
            saved, loaded = (read_momenta(Path(folder, name)) for name in (f"{saver}_save.npz", f"{loader}_load.npz"))
            equal = sum(np.array_equal(saved[key], loaded.get(key)) for key in saved)
            went_on = Path(folder, f"{loader}_load.json").is_file()
            row.append(f"{equal} of {len(saved)}{'' if went_on else ', and it stops at the next step'}")
        return row, theirs["names"]


def read_momenta(path):
    return dict(np.load(path)) if path.is_file() else {}


def layers(names):
    """{entry: "conv2d_12.w_0"} -> {"conv2d": [the layer that is number 0, ...]}: all that is in the names."""
    found = {}
    for entry, name in names.items():
        if "." in name:
            kind, _, number = name.partition(".")[0].rpartition("_")
            found.setdefault(kind, {}).setdefault(int(number), entry.rpartition(".")[0])
    return {kind: [by_number[number] for number in sorted(by_number)] for kind, by_number in sorted(found.items())}


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--paddledetection", metavar="CHECKOUT")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    from peers import python_of

    paths = [args.paddledetection] if args.paddledetection else []
    environments = {"ppgfl": (sys.executable, {**os.environ, "PYTHONPATH": str(ROOT)}), "paddledet": (
        python_of("paddledet"), {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})}
    print("| case | parameters | other names | other rates or decays | ppgfl's momenta in PaddleDetection | "
          "PaddleDetection's in ppgfl |\n| --- | --- | --- | --- | --- | --- |")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for case in (case for case in CASES if all(word in case for word in args.words)):
        row, names = compare(case, environments)
        recorded[case] = {"config": CASES[case][0], "overrides": CASES[case][1], "layers": layers(names)}
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    if args.record:
        RECORDED.write_text(json.dumps(recorded, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*sys.argv[2:4], *json.loads(sys.argv[4]), sys.argv[5])
    else:
        main()
