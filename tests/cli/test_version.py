"""`ppgfl --version`: one line, at once."""
import re
import sys

import pytest
from helpers import ROOT

import ppgfl
from ppgfl import cli


def test_it_prints_one_line_and_needs_no_paddle(capsys, monkeypatch):
    monkeypatch.setattr(ppgfl.system.framework, "import_paddle", lambda: pytest.fail("imports Paddle"))
    monkeypatch.setattr(sys, "argv", ["ppgfl", "--version"])
    assert cli.entry() == 0
    assert capsys.readouterr().out == f"ppgfl {ppgfl.__version__}\n"


def test_the_help_names_it(capsys):
    cli.entry(["--help"])
    assert "ppgfl --version" in capsys.readouterr().out


def test_the_changelog_has_a_section_for_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?([^\] \n]+)", changes, re.MULTILINE)
    assert versions[0] == "Unreleased", "what comes next is described before it is released"
    assert versions[1] == ppgfl.__version__, "the newest release is the version that the package says it has"
