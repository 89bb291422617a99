"""What is installed, told without importing it."""
import subprocess
import sys

import paddle
import pytest
from helpers import ROOT

from ppgfl import ConfigError
from ppgfl.system import installed, runtime


@pytest.fixture(autouse=True)
def nothing_known():
    """As in a new process, before each test and after it."""
    installed.paddle_version.cache_clear()
    installed._version_of.cache_clear()
    yield
    installed.paddle_version.cache_clear()
    installed._version_of.cache_clear()


def has(monkeypatch, **versions):
    """These packages are installed, and Paddle is not imported."""
    def version(package):
        if package in versions:
            return versions[package]
        raise installed.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(installed.metadata, "version", version)
    monkeypatch.delitem(sys.modules, "paddle")


def test_the_package_says_what_paddle_says():
    assert installed.paddle_version() == paddle.__version__
    assert installed.paddle_can_use_gpus() == paddle.is_compiled_with_cuda()


def test_a_cpu_build_is_known_by_its_package_alone(monkeypatch):
    has(monkeypatch, paddlepaddle="9.8")
    monkeypatch.setattr(installed, "import_paddle", lambda: pytest.fail("imported"))
    assert installed.paddle_version() == "9.8"
    assert not installed.paddle_can_use_gpus()
    assert runtime.device() == "cpu" and runtime.select_device(use_gpu=True) == "cpu"


@pytest.mark.parametrize("versions", [{"paddlepaddle-gpu": "9.7"}, {"paddlepaddle-gpu": "9.7", "paddlepaddle": "9.8"},
                                      {}])
def test_any_other_is_asked_itself(versions, monkeypatch):
    has(monkeypatch, **versions)
    imported = []
    monkeypatch.setattr(installed, "import_paddle", lambda: imported.append(1) or sys.modules.update(paddle=paddle))
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    assert installed.paddle_can_use_gpus() and imported
    assert installed.paddle_version() == versions.get("paddlepaddle-gpu", paddle.__version__)


def test_no_paddle_at_all_says_what_to_install(monkeypatch):
    has(monkeypatch)
    monkeypatch.setitem(sys.modules, "paddle", None)
    with pytest.raises(ConfigError, match="Paddle cannot be imported.*pip install"):
        installed.paddle_version()


HANDLED = """
import os, signal, ppgfl
from ppgfl.system import runtime
signal.signal(signal.SIGTERM, lambda *_: print("mine"))
runtime.import_paddle()
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_an_import_of_paddle_leaves_the_handler_of_sigterm():
    done = subprocess.run([sys.executable, "-c", HANDLED], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["mine", "alive"]
