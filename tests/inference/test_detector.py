"""Images that are read and prepared ahead of the model: their order, and what cannot be read or prepared. An ONNX file
is opened without Paddle."""
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import tiny_config

from ppgfl import DataError, ExportError
from ppgfl.inference import detector
from ppgfl.inference.slicing import Slicing
from ppgfl.system import runtime

COUNT, BROKEN = 12, 7


class Cardboard(SimpleNamespace):
    def __call__(self, images):
        return self.detect(self.prepare(images))


@pytest.fixture
def records(tmp_path):
    """Images of one colour each, which stands for their number; of two slices."""
    for i in range(COUNT):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((32, 48, 3), i, np.uint8))
    return [{"im_id": f"name {i}", "im_file": str(tmp_path / f"{i}.png")} for i in range(COUNT)]


@pytest.fixture
def opened(monkeypatch):
    """`open_detector` of an export that finds one thing for each image, scored by its number."""
    threads = {"prepare": set(), "detect": set()}

    def prepare(images):
        threads["prepare"].add(threading.current_thread().name)
        if opened.refused == images[0][0, 0, 0]:
            raise ExportError("not this one")
        return {"image": np.stack(images)}

    def detect(arrays):
        threads["detect"].add(threading.current_thread())
        return [np.array([[0, image[0, 0, 0], 1, 2, 3, 4]], np.float32) for image in arrays["image"]]

    run = Cardboard(description="cardboard", class_names=["thing"], prepare=prepare, detect=detect)
    monkeypatch.setattr(detector, "make_runner", lambda path, **settings: run)

    def opened(slicing=None, corrupt="error"):
        cfg = tiny_config("gfl_r18vd_1x_coco", f"corrupt_images={corrupt}")
        return detector.open_detector(cfg, exported="none", slicing=slicing).detect_records

    opened.refused, opened.threads = None, threads
    return opened


SLICINGS = [None, Slicing((32, 32), (0.5, 0.5), combine_method="concat")]


@pytest.mark.parametrize("slicing", SLICINGS)
def test_order_and_threads(opened, records, slicing):
    found = list(opened(slicing)(records))
    assert [name for name, _ in found] == [record["im_id"] for record in records]
    for i, (_, rows) in enumerate(found):
        assert (rows[:, 1] == i).all()
        assert sorted(rows[:, 2]) == ([1] if slicing is None else [1, 17])
    assert opened.threads["detect"] == {threading.current_thread()}
    assert all(name.startswith("ahead") for name in opened.threads["prepare"])


@pytest.mark.parametrize("slicing", SLICINGS)
def test_an_image_that_cannot_be_read(opened, records, slicing, caplog):
    with open(records[BROKEN]["im_file"], "wb") as file:
        file.write(b"no image")
    got = []
    with pytest.raises(DataError, match=f"/{BROKEN}.png: not an image"):
        for name, _ in opened(slicing)(records):
            got.append(name)  # noqa: PERF402  those before the error count
    assert got == [record["im_id"] for record in records[:BROKEN]]
    found = list(opened(slicing, "skip")(records))
    assert [name for name, _ in found] == [r["im_id"] for i, r in enumerate(records) if i != BROKEN]
    assert "1 image could not be read and was left out" in caplog.text


@pytest.mark.parametrize("refused", [0, 3, COUNT - 1])
def test_an_image_that_cannot_be_prepared(opened, records, refused):
    opened.refused, got = refused, []
    with pytest.raises(ExportError, match="not this one"):
        for name, _ in opened()(records):
            got.append(name)  # noqa: PERF402
    assert got == [record["im_id"] for record in records[:refused]]


def test_leaving_early_leaves_no_thread(opened, records):
    found = opened()(records)
    next(found)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_onnx_file_needs_no_paddle(exported, records):
    path = str(exported[0] / "model.onnx")
    code = (f"import sys, ppgfl; found = ppgfl.Detector({path!r})({records[0]['im_file']!r}); "
            "assert len(found.names) == len(found.boxes); print('paddle' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True,
                          env=runtime.child_variables())
    assert done.stdout == "False\n"
