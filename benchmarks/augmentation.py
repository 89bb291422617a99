"""Augmentations against PaddleDetection's: the same pixels and boxes for the same random numbers, the same distribution
of what comes out, and images per second.

    python augmentation.py CHECKOUT [--samples 200] [--draws 10000] [--record] [WORD ...]

CHECKOUT is the folder of a PaddleDetection. Both run in one process in the peers' environment (see `peers.py`), so that
OpenCV and Pillow are the same. What PaddleDetection draws is written down, and ppgfl gets it again in place of its
generator, which fails where it asks for another kind of number or another range. WORDs choose among the cases.
`--record` writes small cases to tests/golden.
"""
import argparse
import copy
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from peers import leave_out_lane_detection

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "golden")]
RECORDED = ROOT / "tests" / "golden" / "augmentation.json"
PER_BOX = ("gt_class", "gt_score", "is_crowd")
HEIGHT, WIDTH = 480, 640
IMAGES = 100  # of the measurement of speed
OF_SIX_BOXES = 4  # the seed of such a sample


# --- what PaddleDetection draws


class Log:
    """Writes down every number that is drawn from the global generators: [(kind, range, value), ...]."""

    def __init__(self):
        self.drawn = []

    def note(self, kind, limits, value):
        plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        self.drawn.append((kind, limits, plain))
        return value

    def patches(self):
        """(module, name, function) of all that is replaced."""
        real = np.random.RandomState(0)
        self.state = real

        def randint(low, high=None, size=None, dtype=int):
            low, high = (0, low) if high is None else (low, high)
            return self.note("integers", [int(low), int(high)], real.randint(low, high, size, dtype))

        def choice(entries, *_, **__):
            entries = range(entries) if isinstance(entries, int) else entries
            return entries[int(randint(len(entries)))]

        def permutation(entries):
            entries = list(range(entries)) if isinstance(entries, int) else entries
            order = self.note("permutation", None, real.permutation(len(entries)))
            return [entries[i] for i in order]

        def shuffle(entries):
            entries[:] = permutation(entries)

        def uniform(low=0.0, high=1.0, size=None):
            return self.note("uniform", [float(low), float(high)], real.uniform(low, high, size))

        def rand(*size):
            return self.note("random", None, real.rand(*size))

        def normal(loc=0.0, scale=1.0, size=None):
            return self.note("normal", None, real.normal(loc, scale, size))

        def beta(a, b, size=None):
            return self.note("beta", None, real.beta(a, b, size))

        for module, names in ((np.random, {"randint": randint, "choice": choice, "permutation": permutation,
                                           "shuffle": shuffle, "uniform": uniform, "rand": rand, "normal": normal,
                                           "beta": beta}),
                              (random, {"random": rand, "uniform": uniform, "choice": choice,
                                        "randint": lambda low, high: int(randint(low, high + 1))})):
            for name, function in names.items():
                yield module, name, function


class PadWithoutOne:
    """numpy for PaddleDetection's AutoAugment: it pads what it changed in a box with ones, which are added to all other
    pixels then. Here with zeros, so that the rest can be compared."""

    def __getattr__(self, name):
        return getattr(np, name)

    def pad(self, array, widths, mode, constant_values=0):
        return np.pad(array, widths, mode, constant_values=0 if array.ndim == 3 and array.any() else constant_values)


def theirs(transforms, case):
    from replay import CASES
    name, args = CASES[case]
    return getattr(transforms, name)(**copy.deepcopy(args))


def for_them(samples):
    """Samples of ppgfl's as PaddleDetection has them."""
    given = copy.deepcopy(samples)
    for sample in given:
        for key in ("gt_class", "is_crowd"):
            sample[key] = sample[key].reshape(-1, 1).astype(np.int32)
    return given


def run_theirs(transform, samples):
    """What PaddleDetection makes of ppgfl's samples, as a sample of ppgfl's."""
    given = for_them(samples)
    made = transform(given if len(given) > 1 else given[0])
    made = made[0] if isinstance(made, list) else made
    return {**made, **{key: np.asarray(made[key]).reshape(-1) for key in PER_BOX if key in made}}


def in_our_order(case, drawn):
    """AutoAugment: PaddleDetection draws the signs of all policies before it chooses one of them."""
    from replay import CASES

    from ppgfl.data.augment.autoaugment import SIGNED
    from ppgfl.data.augment.policies import POLICIES

    name, args = CASES[case]
    if name != "AutoAugment" or not drawn:
        return drawn
    policies = POLICIES[args["autoaug_type"]]
    signs, first = [], 0
    for policy in policies:
        count = sum(kind.split("_")[0] in SIGNED for kind, _, _ in policy)
        signs.append(drawn[first:first + count])
        first += count
    return [drawn[first], *signs[drawn[first][2]], *drawn[first + 1:]]


def ours(case):
    from replay import CASES

    from ppgfl import load_config
    from ppgfl.readers import BATCH_TRANSFORMS, SAMPLE_TRANSFORMS, _transform

    name, args = CASES[case]
    return _transform(load_config("gfl_r18vd_1x_coco"), {**SAMPLE_TRANSFORMS, **BATCH_TRANSFORMS}, {name: args}, case)


# --- the three comparisons


def parity(case, transforms, log, count):
    """-> samples compared, largest difference of pixels and boxes, what is wrong there in how many, and the first cases
    as they are recorded."""
    from replay import Replay, records, transformed

    from ppgfl.data.transforms import pixels_of

    compared, pixels, boxes, failures, beyond, moved, kept = 0, 0.0, 0.0, 0, 0, 0, []
    other, one = theirs(transforms, case), ours(case)
    for seed in range(count):
        samples = records(case, seed)
        log.drawn.clear()
        log.state.seed(seed)
        try:
            expected = run_theirs(other, samples)
        except Exception:
            failures += 1
            transformed(one, samples, np.random.default_rng(seed))  # which must not fail
            continue
        drawn = in_our_order(case, list(log.drawn))
        replay = Replay(drawn)
        found = transformed(one, samples, replay)
        if replay.beyond:
            beyond += 1
            continue
        assert not replay.drawn or "Random" in case, (case, replay.drawn[:3])
        found["image"] = pixels_of(found)
        assert found["image"].dtype == expected["image"].dtype, (case, found["image"].dtype, expected["image"].dtype)
        assert found["image"].shape == expected["image"].shape, (case, seed, expected["image"].shape)
        pixels = max(pixels, difference(found["image"], expected["image"]))
        assert len(found["gt_bbox"]) == len(expected["gt_bbox"]), (case, seed, drawn)
        if moved_alone(case, samples[0], expected):
            moved += 1
            continue
        boxes = max(boxes, difference(found["gt_bbox"], expected["gt_bbox"]))
        for key in PER_BOX:
            if key in expected and not (key == "is_crowd" and len(expected[key]) != len(expected["gt_bbox"])):
                assert np.allclose(found[key], expected[key]), (case, seed, key)
        compared += 1
        if len(kept) < 3 and len(json.dumps(drawn)) < 4000:
            kept.append({"seed": seed, "drawn": drawn, "dtype": str(expected["image"].dtype),
                         "shape": list(expected["image"].shape), "image": summary(expected["image"]),
                         "boxes": np.round(expected["gt_bbox"].astype(float), 4).tolist(),
                         "classes": [int(each) for each in expected["gt_class"]]})
    wrong = {"fails": failures, "beyond the image": beyond, "boxes moved alone": moved}
    return compared, pixels, boxes, ", ".join(f"{n} {what}" for what, n in wrong.items() if n), kept


def moved_alone(case, sample, expected):
    """Whether PaddleDetection's RandomShift has moved the boxes of an image that it then left as it is."""
    return ("Shift" in case or "Select" in case) and np.array_equal(expected["image"], sample["image"]) and \
        not np.array_equal(expected["gt_bbox"], sample["gt_bbox"])


def difference(a, b):
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if a.size else 0.0


def summary(image):
    flat = image.astype(np.float64).ravel()
    index = np.linspace(0, flat.size - 1, min(48, flat.size)).astype(int)
    return [round(float(value), 4) for value in (flat.mean(), flat.std(), *flat[index])]


def features(sample):
    """Numbers of what came out, whose distributions are compared."""
    boxes = np.asarray(sample["gt_bbox"], np.float64).reshape(-1, 4)
    image = sample["image"]
    # Rounded: where only a few values can come out, the last digit of a float would part them.
    return np.round([*image.shape[:2], image.mean(dtype=np.float64), float(image[:8].mean(dtype=np.float64)),
                     len(boxes), (boxes[:, 2:] - boxes[:, :2]).prod(1).sum(), boxes[:, 0].sum(), boxes[:, 1].sum()], 1)


def distribution(case, transforms, log, draws):
    """The smallest p-value of a two-sample Kolmogorov-Smirnov test over all features, times their number."""
    from replay import records, transformed
    from scipy.stats import ks_2samp

    other, one = theirs(transforms, case), ours(case)
    samples = records(case, OF_SIX_BOXES, (24, 32))
    rng = np.random.default_rng(1)
    log.state.seed(1)
    results = []
    for make in (lambda: run_theirs(other, samples), lambda: transformed(one, samples, rng)):
        rows = []
        for _ in range(draws):
            log.drawn.clear()
            try:
                made = make()
                if moved_alone(case, samples[0], made):
                    made["gt_bbox"] = samples[0]["gt_bbox"]
                rows.append(features(made))
            except Exception:
                assert make.__code__.co_names[0] == "run_theirs" or not rows, case
        results.append(np.array(rows))
    values = [ks_2samp(a, b).pvalue for a, b in zip(*(each.T for each in results))]
    return min(1.0, min(values) * len(values))


def speed(case, transforms, log):
    """Images per second of processor time there and here, by turns and with the same random numbers."""
    from replay import Replay, records, transformed

    other, one = theirs(transforms, case), ours(case)
    samples = records(case, OF_SIX_BOXES, (HEIGHT, WIDTH))
    used, done = [0.0, 0.0], 0
    for seed in range(IMAGES):
        log.drawn.clear()
        log.state.seed(seed)
        given = for_them(samples)
        start = time.process_time()  # of one thread: what else the machine does takes no part
        other(given if len(given) > 1 else given[0])
        middle = time.process_time()
        replay = Replay(in_our_order(case, list(log.drawn)))
        given = copy.deepcopy(samples)
        begin = time.process_time()
        transformed(one, given, replay)
        used[0] += middle - start
        used[1] += time.process_time() - begin
        done += 1
    return [done / each for each in used]


def compare(checkout, words, count, draws, record):
    logging.disable(logging.WARNING)
    sys.path.insert(0, checkout)
    leave_out_lane_detection()
    import cv2
    from ppdet.data import transform as transforms
    from ppdet.data.transform import autoaugment_utils
    from replay import CASES

    autoaugment_utils.np = PadWithoutOne()
    cv2.setNumThreads(1)
    print(f"OpenCV {cv2.__version__}, numpy {np.__version__}\n")
    print("| transform | samples | pixels | boxes | wrong there | p | images/s there | here | times |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if words and RECORDED.is_file() else {}
    for case in (case for case in CASES if not words or any(word in case for word in words)):
        log = Log()
        real = [(module, name, getattr(module, name)) for module, name, _ in Log().patches()]
        for module, name, function in log.patches():
            setattr(module, name, function)
        try:
            compared, pixels, boxes, wrong, kept = parity(case, transforms, log, count)
            p = f"{distribution(case, transforms, log, draws):.2f}" if draws else ""
            there, here = speed(case, transforms, log)
        finally:
            for module, name, function in real:
                setattr(module, name, function)
        recorded[case] = kept
        if record:
            RECORDED.write_text(json.dumps(recorded, separators=(",", ":")).replace('{"seed"', '\n{"seed"') + "\n",
                                encoding="utf-8")
        print(f"| {case} | {compared} | {pixels:.2g} | {boxes:.2g} | {wrong} | {p} | {there:.0f} | "
              f"{here:.0f} | {here / there:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", metavar="CHECKOUT")
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.here:
        compare(args.checkout, args.words, args.samples, args.draws, args.record)
        return
    from peers import python_of

    subprocess.run([python_of("paddledet"), __file__, "--here", *sys.argv[1:]], check=True,
                   env={**os.environ, "PYTHONPATH": os.pathsep.join([args.checkout, str(ROOT)])})


if __name__ == "__main__":
    main()
