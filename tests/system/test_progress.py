"""Log lines stand above the progress bar of a terminal, whichever logger they come from, and the bar is there again."""
import io
import logging
import sys

import pytest

from ppgfl.system import log
from ppgfl.system.progress import progress, training_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def instead_of_standard_streams(monkeypatch, screen):
    """Not in a fixture, after which pytest would put in its own."""
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    log.set_up()
    return screen


def lines(screen):
    """What was written, at each point where a line is begun anew."""
    return screen.getvalue().replace("\r", "\n").split("\n")


def training(screen):
    other = logging.getLogger("another_library.part")
    other.propagate = False
    other.addHandler(logging.StreamHandler(sys.stdout))
    other.setLevel(logging.INFO)
    with training_bar(3, "epoch 1") as bar:
        log.logger.info("of ppgfl")
        bar.update(1)
        other.info("of another")
    after = screen.tell()
    other.info("later")
    assert screen.getvalue()[after:] == "later\n"  # the handler writes as before


def evaluation(screen):
    for number in progress(range(3), total=3, what="evaluate"):
        if number == 1:
            log.logger.info("of ppgfl")


@pytest.mark.parametrize("what", [training, evaluation])
def test_lines_do_not_run_into_the_bar(monkeypatch, what):
    terminal = instead_of_standard_streams(monkeypatch, Terminal())
    what(terminal)
    written = lines(terminal)
    said = [line for line in written if "of ppgfl" in line or "of another" in line]
    assert len(said) == (2 if what is training else 1)
    for line in said:
        assert line.endswith("of another") or line.endswith("INFO: of ppgfl")
        assert "/3" not in line
        place = written.index(line)
        assert not written[place - 1].strip()  # the bar is cleared
        assert "/3" in next(text for text in written[place + 1:] if text)  # and drawn again


def test_there_is_no_bar_and_nothing_is_changed_without_a_terminal(monkeypatch):
    stream = instead_of_standard_streams(monkeypatch, io.StringIO())
    with training_bar(3, "epoch 1") as bar:
        bar.update(1)
        log.logger.info("a line")
    assert stream.getvalue().endswith("INFO: a line\n")
    assert stream.getvalue().count("\n") == 1


def test_a_handler_writes_as_before_after_an_error(monkeypatch):
    terminal = instead_of_standard_streams(monkeypatch, Terminal())
    with pytest.raises(KeyError), training_bar(3, "epoch 1"):
        raise KeyError
    assert log.logger.handlers[0].stream is terminal
