"""What strangers' names may do to a terminal, a log, a file: nothing."""
import csv
import json

import pytest

from ppgfl.cli.exit_code import exit_code
from ppgfl.errors import DataError
from ppgfl.system import atomic_write, log
from ppgfl.system.text import Lines, shown, spreadsheet_cell, without_password


@pytest.mark.parametrize(("text", "seen"), [
    ("行人 Ünïcode مشاة 🚲 می‌خواهم", "行人 Ünïcode مشاة 🚲 می‌خواهم"),
    ("\x1b[31mred\x1b[0m\x07\x7f\x9b", r"\x1b[31mred\x1b[0m\x07\x7f\x9b"),
    ("a\nb\rc\td\u2028e\u2029", r"a\nb\rc\td\u2028e\u2029"),
    ("\u202egpj.exe\u2066\u200f\ufeff\u200b", r"\u202egpj.exe\u2066\u200f\ufeff\u200b"),
    ("half \ud800 file \udcff", r"half \ud800 file \udcff"),
    ("C:\\new\\folder <b>$x$</b> %s", "C:\\new\\folder <b>$x$</b> %s"), ("", "")])
def test_what_acts_is_escaped_and_what_is_text_stays(text, seen):
    assert shown(text) == seen
    assert shown(shown(text)) == seen


def test_long_text_is_cut_only_where_asked():
    assert shown("x" * 3000) == "x" * 3000
    assert shown("x" * 3000, limit=5) == "xxxx…"
    assert shown("12345", limit=5) == "12345"


@pytest.mark.parametrize(("text", "seen"), [
    ("http://user:S3CRET@host:80/w.pdparams: no", "http://***@host:80/w.pdparams: no"),
    ("https://token@h/w", "https://***@h/w"), ("http://u:p@ss:w@h/w and ftp://a:b@h", "http://***@h/w and ftp://***@h"),
    ("http://h/w@v1?mail=a@b", "http://h/w@v1?mail=a@b"), ("mail a@b, see http://h", "mail a@b, see http://h")])
def test_addresses_lose_user_and_password(text, seen):
    assert without_password(text) == seen
    assert shown(text) == seen


def logged(capsys, message, *args):
    """What is printed for a record, without the time."""
    log.set_up()
    log.logger.info(message, *args)
    return capsys.readouterr().out.split("] ", 1)[1]


def test_a_log_line_is_one_line(capsys, tmp_path):
    assert logged(capsys, "class %s: %.2f", "\x1b[2J\nerror: fake", 0.5) == "INFO: class \\x1b[2J\\nerror: fake: 0.50\n"
    assert logged(capsys, "in %s, %s", tmp_path / "a\nb", DataError("x\ny")) == f"INFO: in {tmp_path}/a\\nb, x\\ny\n"
    assert logged(capsys, "a\nb %s", ["\n"]) == "INFO: a\nb ['\\n']\n"
    assert logged(capsys, "table:\n%s", Lines("1\n2\x07")) == "INFO: table:\n1\n2\\x07\n"
    assert logged(capsys, "100% \x1b") == "INFO: 100% \\x1b\n"


def test_an_error_is_one_line(capsys):
    def run():
        raise DataError("http://a:b@h/\x1b[31m\n.png: bad \u202e")

    assert exit_code(run, with_paddle=False) == 2
    assert capsys.readouterr().err == "error: http://***@h/\\x1b[31m\\n.png: bad \\u202e\n"


@pytest.mark.parametrize(("value", "cell"), [
    ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"),
    ("\r=1", "'\r=1"),
    ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"), ("-1", "-1"), ("+1.5e-3", "+1.5e-3"), (-0.25, -0.25), (7, 7),
    (float("-inf"), float("-inf")), ("a=b", "a=b"), ("", ""), ("'=1", "'=1"), (None, None)])
def test_a_cell_is_never_a_formula(value, cell):
    assert spreadsheet_cell(value) == cell


def test_csv_files_are_guarded_and_read_back(tmp_path):
    atomic_write.write_csv(tmp_path / "a.csv", [["class", "AP"], ["=1+1", -1.0], ['x,"\n', "\ud800"]])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["class", "AP"], ["'=1+1", "-1.0"], ['x,"\n', "\\ud800"]]


@pytest.mark.parametrize("name", ["\ud800", "a\udcffb.png", "行人", "\ud83d\ude00", "\x00\u2028"])
def test_json_holds_any_text(tmp_path, name):
    atomic_write.write_json(tmp_path / "a.json", {"name": name, name: 1})
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [read["name"].encode("utf-16", "surrogatepass")] == [name.encode("utf-16", "surrogatepass")]
