"""Files that are written whole or not at all, and the lines about disks and folders."""
import errno
import os
import signal
import time

import pytest

from ppgfl.cli.exit_code import exit_code
from ppgfl.errors import DataError
from ppgfl.system import atomic_write


def test_a_file_is_written_with_its_folder_and_replaced_whole(tmp_path):
    path = tmp_path / "a" / "ä b.txt"
    atomic_write.write_text(path, "one\n")
    atomic_write.write_text(path, "zwei ü\n")
    assert path.read_bytes() == "zwei ü\n".encode()
    assert os.listdir(path.parent) == [path.name]


def test_rows_become_csv(tmp_path):
    atomic_write.write_csv(tmp_path / "a.csv", [["a", "b"], [1, 'say "x", y']])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n1,"say ""x"", y"\n'


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_file_that_finds_no_room_leaves_the_old_one(tmp_path):
    import resource

    path = tmp_path / "a"
    atomic_write.write_bytes(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            atomic_write.write_bytes(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert atomic_write.explain(caught.value).startswith(f"{path}")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("error", "line"), [
    (OSError(errno.ENOSPC, "x", "/a"), "/a: the disk is full; make room there, or choose another folder"),
    (OSError(errno.ENOSPC, "x"), None),  # of nobody knows what: a traceback says more
    (OSError(errno.ESPIPE, "x", "/a"), None)])
def test_what_a_user_can_mend_is_explained(error, line):
    assert atomic_write.explain(error) == line


@pytest.mark.parametrize(("error", "code", "said"), [
    (DataError("a: is bad"), 2, "error: a: is bad\n"),
    (PermissionError(errno.EACCES, "x", "/a"), 2,
     "error: /a: permission denied; choose another folder, or change its permissions\n")])
def test_the_exit_code_of_a_command(error, code, said, capsys):
    def run():
        raise error

    assert exit_code(run) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_asked_to_stop(number, code, capsys):
    def run():
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except KeyboardInterrupt:  # as C++ does that calls Python
            raise SystemError("returned a result with an exception set") from None

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert exit_code(run, with_paddle=False) == code
    assert capsys.readouterr().err == f"stopped by {number.name}\n"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 1) == 1
