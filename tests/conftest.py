"""Fixtures: stand-in weights of the released names and format, small data sets drawn from a seed, servers."""
import json
import logging
import os
import pickle
import signal
import threading
from http.server import ThreadingHTTPServer
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import Handler, draw_image, tiny_config, whole

import ppgfl
from ppgfl.data.shapes import make_shapes
from ppgfl.weights import download

# A shell script starts `make test &` with Ctrl-C ignored, and so would be the processes that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def r18vd_weights(tmp_path_factory):
    """A .pdparams file for gfl_r18vd_1x_coco in the released format."""
    import make_weights

    path = tmp_path_factory.mktemp("weights") / "gfl_r18vd_1x_coco.pdparams"
    state = make_weights.make("gfl_r18vd_1x_coco")
    with open(path, "wb") as file:
        pickle.dump({**state, "StructuredToParameterName@@": {name: name for name in state}}, file, protocol=2)
    return path


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


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=4, size=(64, 96))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with .behave and .requests {path: number of requests}; the cache is a fresh folder."""
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda seconds: None))  # between attempts
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behave, server.requests = whole, {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
