"""Detectors that several threads share, that are pickled, and that live on in a forked process."""
import copy
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import draw_image, tiny_config

from ppgfl import Detector, open_detector
from ppgfl.inference.runner import load_runner, make_runner
from ppgfl.inference.slicing import Slicing

SIZES = [(64, 96), (96, 64), (40, 120), (64, 64), (50, 30)]
KINDS = ["openvino", "onednn", "native", "json", "onnx", "dygraph", "static", "sliced"]
CALLS = int(os.environ.get("PPGFL_CALLS", "8"))  # of each thread; the drill makes at least 24, `make faults` 60


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    return [draw_image(rng, *size)[0] for size in SIZES for _ in range(2)]


def opened(kind, exported, weights):
    """A `Detector`, from weights or from an export."""
    folder = exported[0]
    if kind in ("dygraph", "static"):
        sizes = ["TestReader.sample_transforms.1.Resize.target_size=[64, 96]", f"engine={kind}", "use_gpu=false"]
        return Detector("gfl_r18vd_1x_coco", weights, sizes)
    if kind == "sliced":
        return Detector(folder, slicing=Slicing((48, 48)))
    if kind == "json" and not (folder / "model.json").is_file():
        pytest.skip("this Paddle writes no .json")
    path = folder / {"json": "model.json", "onnx": "model.onnx"}.get(kind, "model.pdmodel")
    return Detector(path, runner={"engine": kind if kind in ("onednn", "openvino", "native") else "auto"})


def rows(found):
    return np.column_stack([found.labels, found.scores, found.boxes])


def wrong_answers(detector, images, calls, threads):
    """How many of the calls from several threads gave another answer than a call alone."""
    wanted = [rows(detector(image)) for image in images]
    assert sum(map(len, wanted)) > len(images)

    def work(thread):
        order = np.random.default_rng(thread).integers(0, len(images), calls)
        return sum(not np.array_equal(rows(detector(images[i])), wanted[i]) for i in order)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))


@pytest.mark.parametrize("kind", [kind if kind in ("openvino", "onnx", "dygraph") else
                                  pytest.param(kind, marks=pytest.mark.drill) for kind in KINDS])
def test_threads_that_share_a_detector_get_their_own_answers(exported, r18vd_weights, images, kind):
    assert wrong_answers(opened(kind, exported, r18vd_weights), images, CALLS, 4) == 0


@pytest.mark.drill
@pytest.mark.parametrize("kind", KINDS)
def test_many_calls_from_six_threads(exported, r18vd_weights, images, kind):
    assert wrong_answers(opened(kind, exported, r18vd_weights), images, max(CALLS, 24), 6) == 0


@pytest.mark.parametrize("kind", ["openvino", "onnx", "dygraph", "static"])
def test_a_pickled_detector_opens_its_model_anew(exported, r18vd_weights, images, kind):
    detector = opened(kind, exported, r18vd_weights)
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(rows(again(images[0])), rows(detector(images[0])))
    found = pickle.loads(pickle.dumps(detector(images[0])))
    np.testing.assert_array_equal(found.boxes, detector(images[0]).boxes)


def test_what_runs_an_export_can_be_pickled(exported, images):
    model = make_runner(exported[0] / "model.onnx", cpu_threads=1)
    again = pickle.loads(pickle.dumps(model))
    assert again.description == model.description
    np.testing.assert_array_equal(again(images[:1])[0], model(images[:1])[0])


def test_what_cannot_be_pickled_says_what_to_do(exported):
    detector = open_detector(tiny_config(), exported=exported[0] / "model.onnx")
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied; call open_detector in each process"):
            attempt(detector)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("kind", ["openvino", "onednn", "native", "json", "onnx", "dygraph", "static"])
def test_a_detector_lives_on_in_a_forked_process(exported, r18vd_weights, images, kind):
    detector = opened(kind, exported, r18vd_weights)
    wanted = rows(detector(images[0]))
    child = os.fork()
    if not child:
        signal.alarm(60)  # a child that hangs ends, and fails
        same = np.array_equal(rows(detector(images[0])), wanted)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(rows(detector(images[0])), wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_makes_its_own_and_keeps_its_parents():
    made, ended = [], []

    class Session:
        def __init__(self):
            made.append(self)

        def __del__(self):
            ended.append(self)

    sessions = load_runner().PerProcess(Session)
    parents = sessions.get()
    assert sessions.get() is parents and len(made) == 1
    child = os.fork()
    if not child:
        made.clear()
        del parents
        own = sessions.get()
        os._exit(0 if made == [own] and sessions.get() is own and not ended else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_finds_the_lock_free():
    lock = load_runner().ProcessLock()
    lock.__enter__()  # and another thread of the parent would leave it
    lock.process -= 1  # as after a fork
    with lock:
        assert lock.lock.locked()
    assert not lock.lock.locked()
