"""Preparation goes on while the model runs, in every way to it: benchmarks/feeding.py on a small scale. Not how fast is
asked, but what is under way at once."""
import importlib.util
import threading
import time

import numpy as np
import pytest
from helpers import ROOT

COUNT = 24  # images


@pytest.fixture(scope="module")
def feeding():
    spec = importlib.util.spec_from_file_location("feeding", ROOT / "benchmarks" / "feeding.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i:02d}.jpg" for i in range(COUNT)]
    for path in paths:
        path.touch()
    return list(map(str, paths))


class Observed:
    """Which images have been read when the device begins and ends with each batch."""

    def __init__(self, feeding, monkeypatch):
        self.begun = self.read = self.done = self.most = self.overlaps = 0
        self.seen, self.lock = [], threading.Lock()
        real = feeding.Device.__call__

        def device(stand_in, image):
            before, until = self.read, time.monotonic() + 0.5
            ahead = before > self.done + len(image)  # some are ready that no batch has taken
            # A busy machine may need more than the latency.
            while not ahead and self.read <= before < COUNT and time.monotonic() < until:
                time.sleep(0.002)
            result = real(stand_in, image)
            with self.lock:
                self.overlaps += ahead or self.read > before
                self.done += len(image)
                self.seen += [int(np.asarray(one)[0, 0, 0]) for one in image]
            return result

        def read(path):
            with self.lock:
                self.begun += 1
                self.most = max(self.most, self.begun - self.done)
            time.sleep(0.01)
            with self.lock:
                self.read += 1
            return np.full((64, 96, 3), int(path[-6:-4]), np.uint8)

        monkeypatch.setattr(feeding.Device, "__call__", device)
        for place in (feeding.deploy, feeding.image, feeding.transforms):
            monkeypatch.setattr(place, "read_image", read)
        monkeypatch.setattr(feeding, "SIZE", [64, 96])
        monkeypatch.setattr(feeding, "NORMALIZE", {"is_scale": False, "norm_type": "none"})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["runner", "infer", "evaluate", "service"])
def test_images_are_prepared_while_the_model_runs(feeding, files, tmp_path, monkeypatch, way, threads):
    seen = Observed(feeding, monkeypatch)
    with feeding.threads_are(threads):
        feeding.WAYS[way](files, 0.01, threads, tmp_path / "out")
    assert sorted(seen.seen) == list(range(COUNT))
    assert seen.overlaps > COUNT // 4  # one after the other there would be none
    if way != "service":
        assert seen.seen == list(range(COUNT))
        # Read ahead, prepared ahead, at the model, and one being read by each thread.
        assert seen.most <= 4 * threads + 1 + threads


def test_the_table_is_printed(feeding, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["feeding.py", "--prepare_ms", "1", "--images", "4", "--ways", "runner", "train"])
    feeding.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 4
    assert all(line.count("|") == 8 for line in lines)
