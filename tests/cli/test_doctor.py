"""Doctor: green here, and each fault with its mend."""
import re
import shutil
import sys
from collections import namedtuple

import paddle
import pytest
from helpers import run_ppgfl

from ppgfl.cli import doctor, doctor_gpu
from ppgfl.cli.exit_code import exit_code
from ppgfl.system import gpu, runtime


def test_this_machine_is_well():
    done = run_ppgfl("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bad" not in [line.split()[0] for line in done.stdout.splitlines() if line]
    for topic in ("paddle", "threads", "engines", "cache", "convolution", "detection"):
        assert f" {topic} " in done.stdout


@pytest.mark.parametrize(("versions", "level", "mend"), [
    (("2.6.2", "2.1.0", "4.12.0"), None, None),
    (("3.3.1", "1.26.4", "4.12.0"), "warn", "'opencv-python<4.12'"),
    (("2.5.2", "1.26.4", "4.9.0"), "bad", "pip install -U paddlepaddle"),
    (("2.6.2", "1.26.4", "4.11.0"), None, None),
    (("3.4.0", "2.4.6", "5.0.0-pre"), None, None),
])
def test_versions_that_do_not_go_together(versions, level, mend):
    found = [row for row in doctor.bad_pairs(*versions) if row[0] != "ok"]
    assert [row[0] for row in found] == ([level] if level else [])
    assert not mend or mend in found[0][2]


def test_without_paddle(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "paddle", None)
    assert doctor.examine() is False
    out = capsys.readouterr().out
    assert "bad   paddle" in out
    assert "pip install paddlepaddle" in out
    assert "nothing runs without Paddle" in out


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PPGFL_HOME", str(tmp_path / "file"))
    assert [(row[0], row[1]) for row in doctor.folders()][1] == ("bad", "cache")
    assert "set PPGFL_HOME" in list(doctor.folders())[1][2]


def test_little_room(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(64 << 20, 0, 64 << 20))
    assert all(row[0] == "warn" for row in doctor.folders())


@pytest.mark.parametrize(("threads", "level"), [(1, "warn"), (4, "ok"), (9, "warn")])
def test_threads(monkeypatch, threads, level):
    monkeypatch.setattr(runtime, "cpu_threads", lambda: threads)
    monkeypatch.setattr(runtime, "physical_cores", lambda: 4)
    assert {row[1]: row[0] for row in doctor.device()}["threads"] == level


# --- NVIDIA GPUs, without one: the functions of ppgfl/system/gpu.py answer in the place of a card


@pytest.fixture
def card(monkeypatch):
    """A machine with an A100, a driver and all libraries, and the build of PyPI. -> a function that changes answers."""
    def answer(**answers):
        for name, value in answers.items():
            monkeypatch.setattr(gpu, name, lambda *a, value=value: value)

    answer(cards=1, name="A100", capability=(8, 0), kernels=gpu.PYPI_KERNELS, built_for=("11.8", "8.6.0"),
           drivers=[("535.104.05", 40000, 40960)], cudnn=8600, nccl=21703, tensorrt=8503)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return answer


def findings():
    return {topic: (level, text) for level, topic, text in doctor_gpu.cards()}


def test_a_card_that_is_well(card):
    found = findings()
    assert {level for level, _ in found.values()} == {"ok"}
    assert found["gpu:0"][1] == "A100, compute capability 8.0"
    assert found["driver"][1] == "535.104.05"
    assert "40000 of 40960 MiB" in found["GPU memory"][1]
    assert (found["cuDNN"][1], found["NCCL"][1], found["TensorRT"][1]) == ("8600", "21703", "8503")
    assert "NVIDIA_TF32_OVERRIDE=0" in found["TF32"][1]


@pytest.mark.parametrize(("answers", "topic", "level", "mend"), [
    ({"cards": 0}, "device", "warn", "CUDA_VISIBLE_DEVICES"),
    ({"capability": (9, 0)}, "gpu:0", "bad", "packages/stable/cu126"),
    ({"capability": (12, 0)}, "gpu:0", "bad", "packages/stable/cu126"),
    ({"capability": (6, 0)}, "gpu:0", "bad", "packages/stable/cu126"),
    ({"capability": (8, 9)}, "gpu:0", "ok", "8.9"),  # the kernels for 8.6 run on it
    ({"capability": (9, 0), "kernels": ()}, "gpu:0", "ok", "9.0"),  # another build, whose kernels are not known
    ({"drivers": []}, "driver", "warn", "nvidia-smi"),
    ({"drivers": [("440.33.01", 9000, 16000)]}, "driver", "bad", "450.80.02"),
    ({"drivers": [("535.1", 300, 16000)]}, "GPU memory", "warn", "other programs"),
    ({"cudnn": None}, "cuDNN", "warn", "pip install 'nvidia-cudnn-cu11<9'"),
    ({"cudnn": 90100}, "cuDNN", "bad", "not version 8"),
    ({"cudnn": 90100, "built_for": ("12.6", "9.5.1")}, "cuDNN", "ok", "90100"),
    ({"nccl": None, "cards": 2}, "NCCL", "warn", "pip install nvidia-nccl-cu11"),
    ({"nccl": None}, "NCCL", "ok", "several GPUs"),
    ({"tensorrt": None}, "TensorRT", "ok", "--run_mode trt_"),
])
def test_each_fault_of_a_gpu_has_its_mend(card, answers, topic, level, mend):
    card(**answers)
    assert findings()[topic][0] == level
    assert mend in findings()[topic][1]


def test_tf32_is_seen_to_be_off(card, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert findings()["TF32"] == ("ok", "off (NVIDIA_TF32_OVERRIDE=0)")


def test_a_card_that_cannot_be_asked_is_a_finding(card, monkeypatch):
    def fail(i):
        raise RuntimeError("Error Message Summary:\nExternalError: CUDA error(35), CUDA driver version is insufficient")
    monkeypatch.setattr(gpu, "capability", fail)
    level, text = findings()["gpu:0"]
    assert level == "bad"
    assert "newer driver" in text


FAILURES = [
    ("(PreconditionNotMet) Cannot load cudnn shared library. Cannot invoke method cudnnGetVersion.",
     "nvidia-cudnn-cu11"),
    ("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate 2GB", "stop them"),
    ("CUDA error(209), no kernel image is available for execution on the device.", "packages/stable/cu126"),
    ("The third-party dynamic library (libcublas.so) that Paddle depends on is not configured", "LD_LIBRARY_PATH"),
    ("something that nobody has seen", "another version of Paddle"),
]


@pytest.mark.parametrize(("message", "mend"), FAILURES)
def test_a_kernel_that_fails_is_one_line(monkeypatch, message, mend):
    def broken(*args, **kwargs):
        line = "-" * 22
        raise RuntimeError(f"C++ Traceback\n{line}\nError Message Summary:\n{line}\n{message}")
    monkeypatch.setattr(paddle.nn.functional, "conv2d", broken)
    (level, topic, text), = doctor.self_test()
    assert (level, topic) == ("bad", "convolution")
    assert mend in text
    assert "\n" not in text
    assert "Traceback" not in text


def test_every_card_runs_a_kernel_and_the_device_comes_back(card, monkeypatch):
    chosen = []
    card(cards=2, synchronize=None)
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    monkeypatch.setattr(doctor, "_convolution", lambda: ("ok", "fast"))
    monkeypatch.setattr(doctor, "_detection", lambda: ("ok", "fine"))
    assert [row[1] for row in doctor.self_test()] == ["convolution gpu:0", "detection gpu:0", "convolution gpu:1",
                                                      "detection gpu:1"]
    assert chosen == ["gpu:0", "gpu:0", "gpu:1", "gpu:1", "cpu"]


@pytest.mark.parametrize(("message", "mend"), [
    ("No module named 'setuptools'", "pip install setuptools"),
    ("libcudart.so.11.0: cannot open shared object file: No such file or directory", "build's CUDA"),
    ("libcudnn.so.8: cannot open shared object file: No such file or directory", "nvidia-cudnn-cu11"),
    ("libcuda.so.1: cannot open shared object file: No such file or directory", "driver"),
    ("No module named 'paddle'", "pip install paddlepaddle"),
])
def test_every_command_says_what_paddle_lacks(monkeypatch, capsys, message, mend):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "paddle":
                missing = re.fullmatch("No module named '(.+)'", message)
                raise ModuleNotFoundError(message, name=missing[1]) if missing else ImportError(message)

    monkeypatch.delitem(sys.modules, "paddle")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert exit_code(lambda: 0) == 2
    error, = capsys.readouterr().err.splitlines()
    assert error.startswith("error: Paddle cannot be imported")
    assert mend in error
    assert doctor.examine() is False
    assert mend in capsys.readouterr().out
