"""An extension of griffe, which reads the docstrings for the site: what a function returns and raises stands in their
prose, so that it becomes paragraphs; arguments and attributes become lists."""
from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

# "Returns: text", the text going on in indented lines, or all of it in them.
SECTION = re.compile(r"^(Returns|Raises|Yields):(?:[ ]+(\S.*))?((?:\n[ ]+\S.*)*)", re.MULTILINE)
ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)  # of several things that are returned or raised


def as_markdown(docstring: str) -> str:
    """A docstring -> the same with Returns and Raises as paragraphs that begin in bold."""
    def paragraph(match: re.Match[str]) -> str:
        name, first, rest = match.groups()
        rest = textwrap.dedent(rest.strip("\n"))
        if first is None:
            rest = ENTRY.sub(r"\n* `\1`: ", rest)
        return f"\n**{name}:** {first or ''}\n{rest}\n"

    return SECTION.sub(paragraph, docstring)


class Docstrings(griffe.Extension):
    """Hands every docstring through `as_markdown`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
