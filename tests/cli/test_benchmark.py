"""Measuring: who runs when, and what the table says."""
import pytest

from ppgfl import ExportError
from ppgfl.cli import commands
from ppgfl.cli.benchmark import table, take_turns


def test_subjects_take_turns_after_one_unmeasured_run():
    calls = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" + "ababab"
    assert [len(taken) for taken in times.values()] == [3, 3]


def test_the_table_has_median_spread_and_ratio():
    text = table({"ours": [0.5, 0.25, 1.0], "theirs": [1.0, 4.0, 1.0]})
    assert text.splitlines()[2:] == ["| ours | 0.5 | 0.25 to 1 | 1.00 |", "| theirs | 1 | 1 to 4 | 2.00 |"]


def test_the_command_on_a_real_export(exported, capsys):
    arguments = ["--model_dir", str(exported[0]), "--size", "64", "96", "--rounds", "2", "--threads", "1"]
    assert commands.main("benchmark", arguments) == 0
    out = capsys.readouterr().out
    assert f"{exported[0].name}, 1 x 64 x 96, 1 threads" in out
    rows = [line for line in out.splitlines() if line.startswith("| model.pdmodel on CPU")]
    assert rows
    assert rows[0].endswith("| 1.00 |")
    assert "| ONNX Runtime" in out


def test_a_folder_without_a_model(tmp_path):
    from ppgfl.cli.benchmark import benchmark

    with pytest.raises(ExportError):
        benchmark(tmp_path)
