"""The machine fails: full and read-only disks, a small /dev/shm, lost workers, folders that go away, kills."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from helpers import ROOT, no_segment_is_left, read, run_tool, segments

from ppgfl.data.shapes import make_shapes
from ppgfl.training.checkpoints import find_training
from ppgfl.weights.safe_pickle import load

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts, signals, /dev/shm")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=40, size=(64, 96))


@pytest.fixture(scope="module")
def weights(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    done = run_tool("train", "-c", "shapes_gfl_1x", "-o", *settings(shapes), "epoch=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "output" / "shapes_gfl_1x" / "model_final.pdparams"


def settings(data):
    return [*(f"{s}.dataset_dir={data}" for s in ("TrainDataset", "EvalDataset", "TestDataset")), "use_gpu=false",
            "worker_num=2", "FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32",
            "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1", "TrainReader.batch_size=2", "log_iter=1",
            "snapshot_epoch=1"]


def command_of(kind, data, weights, folder):
    """What writes into `folder`: the arguments after python."""
    output = {"train": [], "eval": ["--output_eval", folder], "export_model": ["--output_dir", folder],
              "infer": ["--output_dir", folder, "--infer_dir", data / "val2017", "--save_results", "json"]}[kind]
    more = [f"weights={weights}", "engine=dygraph"]
    if kind == "train":
        more = ["EvalDataset.sample_num=4", "epoch=100", f"save_dir={folder}"]
    flags = ["--eval"] if kind == "train" else []
    return [str(part) for part in (ROOT / "tools" / f"{kind}.py", "-c", "shapes_gfl_1x", *flags, *output, "-o",
                                   *settings(data), *more)]


def mounted(options, place, *command, cwd):
    """Run a command where `place` is a tmpfs of its own -> the process, and the files that it left there: {name:
    size}."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True,
                      check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of his own")
    listed = cwd / "listed"
    script = ('mount -t tmpfs -o "$1" none "$2"; place="$2"; listed="$3"; shift 3; "$@"; code=$?; '
              'find "$place" -type f -printf "%P %s\\n" > "$listed"; exit $code')
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", options, str(place), str(listed),
                           sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    return done, dict(line.rsplit(" ", 1) for line in listed.read_text().splitlines())


# 46 MB: less than a checkpoint takes; 64 kB: not even the first pictures.
@pytest.mark.parametrize(("kind", "size"), [("train", "64k"), ("train", "46m"), ("eval", "8k"), ("infer", "40k"),
                                            ("export_model", "20m")])
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(shapes, weights, tmp_path, kind, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    done, left = mounted(f"size={size}", disk, *command_of(kind, shapes, weights, disk), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {disk}")
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [name for name in left if name.endswith((".tmp", ".pdparams", ".pdiparams"))], left
    assert all(int(size) for size in left.values()), left


@pytest.mark.parametrize("kind", ["train", "eval", "infer", "export_model"])
def test_a_disk_that_cannot_be_written_is_one_line(shapes, weights, tmp_path, kind):
    disk = tmp_path / "disk"
    disk.mkdir()
    done, _ = mounted("ro", disk, *command_of(kind, shapes, weights, disk), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the disk cannot be written; choose another folder" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("options", "words"), [("size=40k", "No space left"), ("ro", "Read-only file system")])
@pytest.mark.parametrize("model", [".", "model.onnx"])
def test_the_runners_of_exports_stop_in_one_line_too(exported, shapes, tmp_path, model, options, words):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [ROOT / "deploy/python/infer.py", "--model_dir", exported[0] / model, "--image_dir", shapes / "val2017",
               "--output_dir", disk]
    done, left = mounted(options, disk, *map(str, command), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {disk}")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert all(name.endswith((".jpg", ".png")) and int(size) for name, size in left.items()), left


def test_a_small_shared_memory_is_done_without(shapes, weights, tmp_path):
    """As in a container; a batch is larger than it."""
    command = command_of("train", shapes, weights, tmp_path)
    command[-2] = "epoch=1"
    done, left = mounted("size=256k", "/dev/shm", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert left == {}


# --- what happens in the midst of training


STARTED = []


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """What a failed test has started does not train on for a hundred epochs."""
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    STARTED.clear()


def start(command, cwd, until=None):
    """The process, once a line of it holds `until`; it leads a group of its own."""
    process = subprocess.Popen([sys.executable, *command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    STARTED.append(process)
    for line in process.stdout if until else ():
        if until in line:
            break
    return process


def nobody_is_left(group):
    """Of a process group, within half a minute: the machine may be busy."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_killed_worker_is_one_line(shapes, weights, tmp_path):
    before = segments()
    process = start(command_of("train", shapes, weights, tmp_path), tmp_path, until="epoch 2/100 [1/4]")
    while process.poll() is None:  # one that has made all of its batches is not missed
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
        for worker in workers.split()[-1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "error: a worker process of the data loader was ended from outside" in errors
    assert "Traceback" not in errors
    assert nobody_is_left(process.pid)
    assert find_training(None, tmp_path / "shapes_gfl_1x")
    assert no_segment_is_left(before)


def test_a_killed_run_takes_its_workers_along(shapes, weights, tmp_path):
    before = segments()
    process = start(command_of("train", shapes, weights, tmp_path), tmp_path, until="[2/4]")
    process.kill()
    process.communicate(timeout=60)
    assert nobody_is_left(process.pid)
    assert no_segment_is_left(before)


def test_workers_end_with_their_epoch(shapes, weights, tmp_path):
    process = start(command_of("train", shapes, weights, tmp_path), tmp_path, until="epoch 4/100 [2/4]")
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    process.kill()
    process.communicate(timeout=60)
    assert len(workers.split()) <= 2


def test_images_that_vanish_are_named_and_the_checkpoints_stay(shapes, weights, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    process = start(command_of("train", data, weights, tmp_path / "runs"), tmp_path, until="epoch 2/100 [1/4]")
    shutil.rmtree(data / "train2017")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith(f"error: {data / 'train2017'}")
    assert errors.count("\n") == 1
    assert find_training(None, tmp_path / "runs" / "shapes_gfl_1x")


def test_a_run_whose_folder_vanishes_makes_it_anew(shapes, weights, tmp_path):
    command = command_of("train", shapes, weights, tmp_path / "runs")
    command[-2] = "epoch=3"
    process = start(command, tmp_path, until="epoch 2/3 [1/4]")
    shutil.rmtree(tmp_path / "runs")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert load(tmp_path / "runs" / "shapes_gfl_1x" / "model_final.pdparams")


# --- signals at random moments


def check_whole(folder):
    """Every file under a name that is used is whole."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if path.suffix in (".pdparams", ".pdopt", ".pdema"):
            assert load(path), path
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in (".png", ".jpg"):
            assert read(path) is not None, path
        elif path.suffix == ".yml":
            assert yaml.safe_load(path.read_text(encoding="utf-8")), path
    for settings_file in folder.glob("export/*/infer_cfg.yml"):
        assert (settings_file.parent / "model.pdiparams").stat().st_size > 10**6


def test_kills_at_random_moments(shapes, weights, tmp_path, rounds=12):
    """SIGKILL, SIGTERM and SIGINT over train, eval, infer and export. PPGFL_KILLS sets the number of rounds."""
    rounds = int(os.environ.get("PPGFL_KILLS", rounds))
    rng = np.random.default_rng(int(os.environ.get("PPGFL_SEED", "0")))
    before, codes = segments(), {}
    for number in range(rounds):
        kind = ("train", "eval", "infer", "export_model")[number % 4]
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        folder = tmp_path / {"export_model": "export"}.get(kind, kind)
        command = command_of(kind, shapes, weights, folder)
        if kind == "train":
            command[3:3] = ["--resume"]
        unfinished = set(tmp_path.rglob("export_*"))  # of exports that SIGKILL has ended
        process = start(command, tmp_path)
        time.sleep(rng.uniform(0.6, 6.0 if kind == "train" else 4.0))
        process.send_signal(sent)
        out, errors = process.communicate(timeout=60)
        what = f"{kind}, {sent.name}: {process.returncode}\n{out[-500:]}\n{errors}"
        assert process.returncode in (0, -sent, 128 + sent), what
        if sent != signal.SIGKILL and process.returncode == 128 + sent:
            assert errors.splitlines()[-1].startswith("stopped by"), what
            assert "Traceback" not in errors, what
            assert set(tmp_path.rglob("export_*")) == unfinished, what
        assert nobody_is_left(process.pid), what
        check_whole(folder)
        codes[kind, sent.name, process.returncode] = codes.get((kind, sent.name, process.returncode), 0) + 1
    print(f"{rounds} rounds: {codes}")
    assert no_segment_is_left(before)
    if (tmp_path / "train" / "shapes_gfl_1x").is_dir() and find_training(None, tmp_path / "train" / "shapes_gfl_1x"):
        command = command_of("train", shapes, weights, tmp_path / "train")
        command[3:3] = ["--resume"]
        process = start(command, tmp_path, until="[1/4]")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143, errors
