"""Memory, file handles and shared memory over thousands of steps and images. Minutes: run by `make faults` only."""
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from ppgfl.data.shapes import make_shapes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not os.environ.get("PPGFL_LONG"), reason="minutes; set PPGFL_LONG=1; reads /proc")


def watch(arguments, cwd, until):
    """Run a tool to its end -> its output, and a row per second until it prints `until`: resident MiB and open files
    of the process, and segments in /dev/shm. What follows is the report, with libraries of its own."""
    rows = []
    with open(cwd / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, stdout=log, stderr=log)
        while process.poll() is None and until not in (cwd / "log").read_text(encoding="utf-8"):
            try:
                memory = int(Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
                files = len(os.listdir(f"/proc/{process.pid}/fd"))
            except (IndexError, OSError):
                break  # it is ending
            rows.append((memory, files, len(os.listdir("/dev/shm"))))
            time.sleep(1)
        assert process.wait() == 0, (cwd / "log").read_text()
        assert until in (cwd / "log").read_text()
    return (cwd / "log").read_text(), np.array(rows)


def check_flat(rows, what):
    """After the first third, the warm-up, nothing grows: the last third against the one before."""
    second, last = np.array_split(rows, 3)[1:]
    (memory, files, segments), (later, more, also) = second.mean(axis=0), last.mean(axis=0)
    print(f"{what}: {len(rows)} s, resident {memory:.0f} -> {later:.0f} MiB, open files {files:.1f} -> {more:.1f}, "
          f"/dev/shm {segments:.1f} -> {also:.1f}")
    assert later < 1.02 * memory
    assert more < files + 3
    assert also < segments + 3


def settings(folder):
    return [f"{s}.dataset_dir={folder}" for s in ("TrainDataset", "EvalDataset", "TestDataset")] + [
        "use_gpu=false", "worker_num=2", "FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32",
        "GFLHead.conv_feat.feat_out=32", "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1"]


def test_3000_training_steps(tmp_path):
    folder = make_shapes(tmp_path / "shapes", train=600, val=4, size=(64, 96))
    _, rows = watch([ROOT / "tools" / "train.py", "-c", "shapes_gfl", "-o", *settings(folder), "epoch=10",
                        "snapshot_epoch=5", "TrainReader.batch_size=2"], tmp_path, "epoch 10/10 [300/300]")
    check_flat(rows, "3,000 steps")


def test_5000_evaluated_images(tmp_path):
    folder = make_shapes(tmp_path / "shapes", train=2, val=5000, size=(64, 96))
    watch([ROOT / "tools" / "train.py", "-c", "shapes_gfl", "-o", *settings(folder), "epoch=1",
           "TrainReader.batch_size=2"], tmp_path, "finished")
    text, rows = watch([ROOT / "tools" / "eval.py", "-c", "shapes_gfl", "-o", *settings(folder),
                        "GFLHead.nms.score_threshold=0.0001", "weights=output/shapes_gfl/model_final"], tmp_path,
                       "detections written")
    assert "Average Precision" in text
    number = int(text.split(" detections written")[0].split()[-1])
    assert number > 100_000
    check_flat(rows, f"5,000 images with {number:,} detections")
