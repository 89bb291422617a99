"""Which Paddle, told without importing it; its import; the device."""
import os
import subprocess
import sys
from importlib import metadata

import paddle
import pytest
from helpers import ROOT

from ppgfl import ConfigError
from ppgfl.system import framework, runtime


@pytest.fixture(autouse=True)
def nothing_known():
    """As in a new process, before each test and after it."""
    framework.version.cache_clear()
    runtime.version_of.cache_clear()
    yield
    framework.version.cache_clear()
    runtime.version_of.cache_clear()


def has(monkeypatch, **versions):
    """These packages are installed, and Paddle is not imported."""
    def version(package):
        if package in versions:
            return versions[package]
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.delitem(sys.modules, "paddle")


def test_the_package_says_what_paddle_says():
    assert framework.version() == paddle.__version__
    assert framework.can_use_gpus() == paddle.is_compiled_with_cuda()


def test_a_cpu_build_is_known_by_its_package_alone(monkeypatch):
    has(monkeypatch, paddlepaddle="9.8")
    monkeypatch.setattr(framework, "import_paddle", lambda: pytest.fail("imported"))
    assert framework.version() == "9.8"
    assert not framework.can_use_gpus()
    assert framework.device() == "cpu" and framework.select_device(use_gpu=True) == "cpu"


@pytest.mark.parametrize("versions", [{"paddlepaddle-gpu": "9.7"}, {"paddlepaddle-gpu": "9.7", "paddlepaddle": "9.8"},
                                      {}])
def test_any_other_is_asked_itself(versions, monkeypatch):
    has(monkeypatch, **versions)
    imported = []
    monkeypatch.setattr(framework, "import_paddle", lambda: imported.append(1) or sys.modules.update(paddle=paddle))
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    assert framework.can_use_gpus() and imported
    assert framework.version() == versions.get("paddlepaddle-gpu", paddle.__version__)


def test_no_paddle_at_all_says_what_to_install(monkeypatch):
    has(monkeypatch)
    monkeypatch.setitem(sys.modules, "paddle", None)
    with pytest.raises(ConfigError, match="Paddle cannot be imported.*pip install"):
        framework.version()


HANDLED = """
import os, signal, ppgfl
from ppgfl.system import framework, runtime
signal.signal(signal.SIGTERM, lambda *_: print("mine"))
framework.import_paddle()
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_an_import_of_paddle_leaves_the_handler_of_sigterm():
    done = subprocess.run([sys.executable, "-c", HANDLED], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["mine", "alive"]


def test_an_import_of_paddle_that_fails_shows_what_it_wrote(tmp_path):
    (tmp_path / "paddle.py").write_text("import sys\nsys.stderr.write('libcudnn.so: cannot open\\n')\n"
                                        "sys.stderr.write('PLEASE USE OMP_NUM_THREADS WISELY.\\n')\n"
                                        "raise ImportError('no libcudnn')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", "import ppgfl; ppgfl.build_model"], capture_output=True, text=True,
                          env=environment, timeout=60, check=False)
    assert done.returncode == 1
    assert "libcudnn.so: cannot open" in done.stderr
    assert "ImportError: no libcudnn" in done.stderr
    assert "WISELY" not in done.stderr  # advice that does not apply


def test_warnings_are_seen_after_paddle_was_imported():
    # Paddle gives the root logger a handler, which then writes to what stderr was during the import.
    done = subprocess.run([sys.executable, "-c", "import ppgfl; from ppgfl.system.log import logger; ppgfl.train; "
                           "logger.warning('switched off')"], check=False, capture_output=True, text=True)
    assert done.stderr.count("switched off") == 1
