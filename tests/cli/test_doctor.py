"""Doctor: green here, and each fault with its mend."""
import shutil
import sys
from collections import namedtuple

import pytest
from helpers import run_ppgfl

from ppgfl.cli import doctor
from ppgfl.system import runtime


def test_this_machine_is_well():
    done = run_ppgfl("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bad" not in [line.split()[0] for line in done.stdout.splitlines() if line]
    for topic in ("paddle", "threads", "engines", "cache", "convolution", "detection"):
        assert f" {topic} " in done.stdout


@pytest.mark.parametrize(("versions", "level", "mend"), [
    (("2.6.2", "2.1.0", "4.11.0"), "bad", "pip install 'numpy<2'"),
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
