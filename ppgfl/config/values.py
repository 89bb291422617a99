"""What a value of a config must be: the kind that a signature or a table gives -> whether it fits, and in words.

One rule for each spelling, the same for all keys:
* Text is no number and no yes or no: "3" and "true" in quotes are refused. A whole number is also a number; 3.0 is no
  whole number; true is neither.
* What can be off is off with `null`, `false` or 'None', and with 0 where 0 is no value of its own.
"""
from __future__ import annotations

import ast
import functools
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..kinds import Length, Part, Range

NOTHING = type(None)
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", os.PathLike: "text",
         dict: "a mapping of keys", Part: "a name, or a mapping with a key 'name'", NOTHING: "null"}
PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "a mapping of keys": "mappings",
           WORDS[Part]: "names, or mappings with a key 'name'"}
LONGEST = 80  # characters of a value in a message


def read(where: str, value: Any, kind: Any) -> Any:
    """The value of a key, None where it says off. Raises a ConfigError that names `where` unless it is of that kind."""
    if _can_be_off(kind) and _says_off(value, kind):
        return None
    if not fits(value, kind):
        raise ConfigError(f"{where}: {as_written(value)}; {wanted(value, kind)}")
    return value


def _can_be_off(kind: Any) -> bool:
    return get_origin(kind) is Union and NOTHING in get_args(kind)


def _says_off(value: Any, kind: Any) -> bool:
    if isinstance(value, str):
        return value == "None"
    return value is False or (_is_number(value) and value == 0 and not fits(value, kind))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: a class, a union, an `Annotated` of `kinds`, a Literal, or a sequence of these."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, arguments[0]) and all(value in limit for limit in _limits(kind))
    if origin is Union:
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(each, arguments[0]) for each in value)
    return kind is Any or _is_a(value, origin or kind)


def _limits(kind: Any) -> list[Range | Length]:
    return [each for each in get_args(kind)[1:] if isinstance(each, (Range, Length))]


def _is_a(value: Any, cls: type) -> bool:
    if cls in (int, float):
        return _is_number(value) and (cls is float or isinstance(value, numbers.Integral)) and _is_finite(value)
    if cls in WORDS and cls is not Part:
        return isinstance(value, cls)
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("name"), str))


def _is_finite(value: Any) -> bool:
    """Whether a tensor holds it, which has 64 bits for a whole number."""
    return -2**63 <= int(value) < 2**63 if isinstance(value, numbers.Integral) else math.isfinite(value)


def wanted(value: Any, kind: Any) -> str:
    """What a key of that kind takes, as the end of a message about a value that it does not."""
    words = words_of(kind)
    text = words if words.startswith("allowed") else f"it must be {words}"
    number = _number_in(value) if isinstance(value, str) else None
    return text if number is None else f"{text} (this is text; as a number it is written {number:.12g})"


def _number_in(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def words_of(kind: Any) -> str:
    """A kind in words: "a whole number, 1 or more; or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return "anything"
    if origin is Annotated:
        notes = [f" ({each})" for each in arguments[1:] if isinstance(each, str)]
        return ", ".join([words_of(arguments[0]), *map(str, _limits(kind))]) + "".join(notes)
    if origin is Union:
        kinds = [words_of(each) for each in arguments]
        return "; or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return f"allowed: {', '.join(each if isinstance(each, str) else as_written(each) for each in arguments)}"
    if origin is not None and issubclass(origin, Sequence):
        text = words_of(arguments[0]).replace("allowed: ", "names from ")
        one = next((each for each in PLURALS if text.startswith(each)), text)
        return f"a list of {PLURALS.get(one, one)}{text[len(one):]}"
    return WORDS.get(origin or kind, WORDS[Part])


def as_written(value: Any) -> str:
    """A value as it stands in a config, cut when it is long."""
    for word, constant in (("null", None), ("true", True), ("false", False)):
        if value is constant:
            return word
    text = repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


@functools.cache
def kinds_of(cls: Callable[..., Any]) -> Mapping[str, Any]:
    """{argument: its kind} of a class, from the hints of its signature; of `int | None` also on Python 3.9."""
    parameters = inspect.signature(cls).parameters

    def holder() -> None: ...

    holder.__annotations__ = {name: ast.unparse(_Unions().visit(ast.parse(parameter.annotation, mode="eval")))
                              if isinstance(parameter.annotation, str) else parameter.annotation
                              for name, parameter in parameters.items() if parameter.annotation is not parameter.empty}
    known = {"Union": Union, **vars(sys.modules[cls.__module__])}
    hints = get_type_hints(holder, known, include_extras=True)
    return {name: hints.get(name, Any) for name in parameters}


class _Unions(ast.NodeTransformer):
    """`a | b` -> `Union[a, b]`, which Python 3.9 can make of all types."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        sides = ast.Tuple([self.visit(node.left), self.visit(node.right)], ast.Load())
        return ast.Subscript(ast.Name("Union", ast.Load()), sides, ast.Load())
