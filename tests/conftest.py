"""Shared by all tests: stand-in weights of the released names and format, and a small data set drawn from a seed."""
import json
import logging
import os
import pickle
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT), str(GOLDEN)]

import ppgfl  # noqa: E402  before paddle, as every program must

# A shell script starts `make test &` with Ctrl-C ignored, and so would be the processes that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

ZOO = ["gfl_r50_fpn_1x_coco", "gfl_r101vd_fpn_mstrain_2x_coco", "gfl_r34vd_1x_coco", "gfl_r18vd_1x_coco",
       "gflv2_r50_fpn_1x_coco"]
# Files that are no image; the last one claims 10^10 pixels.
UNREADABLE = {
    "empty": b"", "text": b"text",
    "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * (100_000).to_bytes(4, "big") + b"\x08\x02\0\0\0" + bytes(500)}
COCO_MINI = ROOT.parent / "shared" / "data" / "coco_mini"


def sample(array, n):
    """The summary that the recorded values hold (tests/golden/README.md)."""
    flat = np.asarray(array, np.float32).ravel()
    index = np.linspace(0, flat.size - 1, min(n, flat.size)).astype(int)
    return np.concatenate([[flat.mean(), flat.std(), np.abs(flat).max()], flat[index]])


def recorded(name):
    return np.load(GOLDEN / "values" / f"{name}.npz")


def tiny_config(name="gfl_r18vd_1x_coco", *overrides):
    """A shipped config with images of about 64 pixels: real layers, small work."""
    sizes = [f"{reader}.sample_transforms.{i}.Resize.target_size=[64, 96]"
             for reader, i in (("TrainReader", 2), ("EvalReader", 1), ("TestReader", 1))]
    return ppgfl.load_config(name, [*sizes, "worker_num=0", "use_gpu=false", *overrides])


@pytest.fixture(scope="session")
def r18vd_weights(tmp_path_factory):
    """A .pdparams file for gfl_r18vd_1x_coco in the released format."""
    import make_weights

    path = tmp_path_factory.mktemp("weights") / "gfl_r18vd_1x_coco.pdparams"
    state = make_weights.make("gfl_r18vd_1x_coco")
    with open(path, "wb") as file:
        pickle.dump({**state, "StructuredToParameterName@@": {name: name for name in state}}, file, protocol=2)
    return path


def draw_image(rng, height, width):
    """Coloured rectangles on noise, [H, W, 3] uint8, and their boxes x y w h."""
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    boxes = []
    for _ in range(3):
        w, h = rng.integers(12, width // 2), rng.integers(12, height // 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        image[y:y + h, x:x + w] = rng.integers(100, 255, 3)
        boxes.append([int(n) for n in (x, y, w, h)])
    return image, boxes


@pytest.fixture(scope="session")
def small_coco(tmp_path_factory):
    """A COCO data set of five images (one without a box) under a path with spaces and non-ASCII characters."""
    root = tmp_path_factory.mktemp("data set ünïcode 数据")
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    rng = np.random.default_rng(7)
    images, annotations = [], []
    for i, (height, width) in enumerate([(60, 90), (90, 60), (64, 64), (50, 100), (70, 80)]):
        picture, boxes = draw_image(rng, height, width)
        name = f"bild_{i}é.jpg"
        cv2.imencode(".jpg", picture)[1].tofile(str(root / "val2017" / name))
        images.append({"id": 10 + i, "file_name": name, "height": height, "width": width})
        for box in boxes if i != 3 else []:
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + i, "bbox": box, "iscrowd": 0,
                                "area": box[2] * box[3], "category_id": int(rng.integers(1, 81))})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(80)]
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def run_tool(name, *arguments, cwd):
    """Run tools/NAME.py as a user does -> the finished process with text output."""
    import subprocess

    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="session")
def exported(r18vd_weights, tmp_path_factory):
    """(folder, result of the check) of the R18vd model, in every format that this Paddle writes and in ONNX."""
    folder = tmp_path_factory.mktemp("export") / "gfl"
    return folder, ppgfl.export(tiny_config(), weights=r18vd_weights, output_dir=folder, onnx=True)


@pytest.fixture(autouse=True)
def quiet_logger():
    """A command that ran in this process leaves no handler behind, which would write to a stream that is closed."""
    logger = logging.getLogger("ppgfl")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """What is kept for the next time goes to a folder of this run."""
    os.environ["PPGFL_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def picture(small_coco):
    return sorted((small_coco / "val2017").iterdir())[1]


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def match(found, wanted, *, pixels=1e-2, score=1e-4):
    """Assert that two arrays of detections [M, 6] are the same, but for the places of equal scores."""
    assert found.shape == wanted.shape
    left = list(range(len(found)))
    for row in wanted:
        best = min(left, key=lambda i: np.abs(found[i] - row).max())
        left.remove(best)
        assert found[best, 0] == row[0]
        np.testing.assert_allclose(found[best, 1], row[1], atol=score)
        np.testing.assert_allclose(found[best, 2:], row[2:], atol=pixels)


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium."""
    import shutil

    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--window-size=1100,900", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver, env={**os.environ, "SE_OFFLINE": "true"})
    with webdriver.Chrome(options=options, service=service) as chrome:
        yield chrome
