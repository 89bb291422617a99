"""Fixtures: stand-in weights of the released names and format, small data sets drawn from a seed, servers."""
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from filelock import FileLock
from helpers import MANY, ROOT, TEACHER, Handler, draw_image, tiny_config, whole

import ppgfl
from ppgfl import cli
from ppgfl.data.shapes import make_shapes
from ppgfl.weights import download

# A shell script starts `make test &` with Ctrl-C ignored, and so would be the processes that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)


KEPT = 3  # folders of one name: of two Paddles, and of the code before


@pytest.fixture(scope="session")
def kept(request):
    """A call, name, make, key -> the folder that `make(folder)` has filled in this run, in another process that runs
    now, or in an earlier run with an equal key: pytest's cache keeps it. Nobody may change what is in it."""
    cache = request.config.cache.mkdir("ppgfl")

    def folder_of(name, make, key):
        folder = cache / f"{name}_{hashlib.sha256(key).hexdigest()[:16]}"
        with FileLock(cache / f"{name}.lock"):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                    make(Path(unfinished, "new"))
                    os.rename(Path(unfinished, "new"), folder)
            os.utime(folder)
            for old in sorted(cache.glob(f"{name}_*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old)
        return folder

    return folder_of


def content(*patterns):
    """The bytes of all files of the project that match, as a key."""
    return b"".join(path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


@pytest.fixture(scope="session")
def r18vd_weights(kept):
    """A .pdparams file for gfl_r18vd_1x_coco in the released format, but for the protocol: pickle reads the released 2
    ten times as slowly (tests/weights/test_checkpoint.py reads both)."""
    import make_weights

    def make(folder):
        folder.mkdir()
        state = make_weights.make("gfl_r18vd_1x_coco")
        with open(folder / "gfl_r18vd_1x_coco.pdparams", "wb") as file:
            pickle.dump({**state, "StructuredToParameterName@@": {name: name for name in state}}, file, protocol=4)

    key = content("tests/conftest.py", "tests/golden/*.py", "tests/golden/manifest.json") + np.__version__.encode()
    return kept("weights", make, key) / "gfl_r18vd_1x_coco.pdparams"


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
def exported(kept, r18vd_weights):
    """(folder, result of the check) of the R18vd model, in every format that this Paddle writes and in ONNX."""
    import paddle

    def make(folder):
        result = ppgfl.export(tiny_config(), weights=r18vd_weights, output_dir=folder / "gfl", onnx=True)
        (folder / "result.json").write_text(json.dumps(result))

    versions = f"{paddle.__version__} {np.__version__} {cv2.__version__}".encode()
    folder = kept("export", make, versions + r18vd_weights.read_bytes() + content(
        "ppgfl/**/*.py", "configs/**/*.yml", "deploy/*/*.py", "tests/helpers.py", "tests/conftest.py"))
    return folder / "gfl", json.loads((folder / "result.json").read_text())


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
def run_here(monkeypatch, capfd):
    """A call like `helpers.run_tool`, tool, arguments -> what would be left of its process, but in this one: a
    hundredth of the time. A tool named "ppgfl" is the command of that name."""

    def run(tool, *arguments, cwd):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        arguments = [str(argument) for argument in arguments]
        try:
            code = cli.entry(arguments) if tool == "ppgfl" else cli.main(tool, arguments)
        except SystemExit as done:  # of the parser
            code = done.code
        return SimpleNamespace(returncode=code, **dict(zip(("stdout", "stderr"), capfd.readouterr())))

    return run


@pytest.fixture
def picture(small_coco):
    return sorted((small_coco / "val2017").iterdir())[1]


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium."""
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
def many(small_coco, tmp_path):
    """A folder of MANY images."""
    folder = tmp_path / "many"
    folder.mkdir()
    sources = sorted((small_coco / "val2017").iterdir())
    for i in range(MANY):
        (folder / f"{i:03d}.jpg").write_bytes(sources[i % 5].read_bytes())
    return folder


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory):
    """Of the demo's teacher, made as small as TEACHER says."""
    import paddle

    path = tmp_path_factory.mktemp("teacher") / "teacher.pdparams"
    paddle.seed(7)
    model = ppgfl.build_model(ppgfl.load_config("shapes_gfl_teacher", TEACHER))
    with paddle.no_grad():
        model.head.gfl_head_reg.weight.set_value(paddle.randn(model.head.gfl_head_reg.weight.shape) * 0.1)
    paddle.save(model.state_dict(), str(path))
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with .behave and .requests {path: number of requests}; the cache is a fresh folder."""
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behave, server.requests = whole, {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
