"""Text of strangers (class names, file names, addresses), safe to show in a terminal, a log, a picture, a table."""
from __future__ import annotations

import itertools
import re
import unicodedata

# Control characters, marks that turn the direction of a line or are not seen, halves of a letter, ends of lines.
ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji are spelled with them
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)", re.ASCII)


class Lines(str):
    """Text of several lines, which a log shows as such; what else is logged stays in one line."""


def shown(text: object, *, limit: int | None = None, keep: str = "") -> str:
    r"""Text with all that would act on a terminal or a page written as its escape, and no password of an address.

    Args:
        limit: cut to so many characters, the last of them an ellipsis.
        keep: control characters that stay, as "\n".

    >>> shown("\x1b[31mred\n")
    '\\x1b[31mred\\n'
    """
    line = without_password(str(text))
    if not line.isprintable():
        line = "".join(escape(letter) if unicodedata.category(letter) in ESCAPED and letter not in keep + JOINERS
                       else letter for letter in line)
    return line if limit is None or len(line) <= limit else line[:limit - 1] + "…"


def cut(text: str, width: int) -> str:
    """Text of at most so many letters, of which wide ones count twice; what is cut ends in an ellipsis."""
    ends = list(itertools.accumulate(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text))
    return text if not ends or ends[-1] <= width else text[:sum(end < width for end in ends)] + "…"


def escape(letter: str) -> str:
    r"""As Python writes it: \n, \x1b, \u202e, \ud800."""
    return letter.encode("unicode_escape").decode("ascii")


def without_password(text: str) -> str:
    """Addresses in a text with *** in place of their user and password."""
    return re.sub(r"(://)[^/\s]*@", r"\1***@", text) if "@" in text else text


def spreadsheet_cell(value: object) -> object:
    """A value of a CSV file; text that a spreadsheet would compute as a formula has a quote in front."""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not NUMBER.fullmatch(text) else value
