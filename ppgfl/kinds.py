"""The kinds of values that a config may hold: a type, with the range of its numbers or a word about it.

They stand in the signatures of the classes that a config names and in the tables of `config.keys`, which is where
`config.values` reads what a value must be. To a type checker they are plain `int`, `float`, ...
"""
from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union

from .errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        without: numbers of it that are not allowed, also its ends.
    """

    low: float
    high: float = math.inf
    without: tuple[float, ...] = ()

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and number not in self.without

    def __str__(self) -> str:
        open_low, open_high = self.low in self.without, self.high in self.without
        low = f"more than {self.low:.12g}" if open_low else f"{self.low:.12g} or more"
        if self.high < math.inf:
            high = f"less than {self.high:.12g}" if open_high else f"at most {self.high:.12g}"
            low = f"{low}, {high}" if open_low or open_high else f"{self.low:.12g} to {self.high:.12g}"
        inside = [f"{number:.12g}" for number in self.without if self.low < number < self.high]
        return f"{low}, not {' or '.join(inside)}" if inside else low


@dataclass(frozen=True)
class Length:
    """Lists of `low` to `high` entries."""

    low: int
    high: int

    def __contains__(self, entries: Sequence[Any]) -> bool:
        return self.low <= len(entries) <= self.high

    def __str__(self) -> str:
        return f"{self.low} to {self.high} of them"


# Whole numbers. Upper ends are far beyond what makes sense: what lies above is a slip, and would ask for all memory.
Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
CountOrAll = Annotated[int, Range(-1, without=(0,)), "-1 for all"]
Channels = Annotated[int, Range(1, 4096)]
Pixels = Annotated[int, Range(1, 32768)]
Classes = Annotated[int, Range(1, 100_000)]
Layers = Annotated[int, Range(1, 100)]
Bins = Annotated[int, Range(1, 1000)]
LastBin = Annotated[int, Range(0, 1000)]
Stride = Annotated[int, Range(1, 4096)]
Strides = Annotated[Sequence[Stride], Length(1, 20)]
Workers = Annotated[int, Range(0, 1024)]

# Numbers; whole ones are taken too, infinity and NaN never.
Positive = Annotated[float, Range(0, without=(0,))]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, without=(1,))]
ShareInside = Annotated[float, Range(0, 1, without=(0, 1))]
ShareAboveZero = Annotated[float, Range(0, 1, without=(0,))]

# One number for all levels, or one for each.
CellOffset = Union[Share, Annotated[Sequence[Share], Length(1, 20), "one for each level"]]

# Two numbers, the smaller first; and the colour of pixels that an image lacks, one number or RGB.
Span = Annotated[Sequence[float], Length(2, 2), "the smaller first"]
PositiveSpan = Annotated[Sequence[Positive], Length(2, 2), "the smaller first"]
Colour = Union[float, Annotated[Sequence[float], Length(3, 3), "RGB"]]
Interpolation = Annotated[int, Range(0, 4), "0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos"]

File = Union[str, os.PathLike]  # a path, or where a key says so an address or a name
Automatic = Annotated[None, "automatic"]  # null means something else than off


def per_level(where: str, value: float | Sequence[float], levels: int) -> list[float]:
    """The value of each level. Raises a ConfigError that names the key `where` for a list of another length."""
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ConfigError(f"{where}: {value}; of {len(values)}, but there are {levels} levels; it is one number for "
                          "all, or a list with one for each")
    return values


class Part:
    """The kind of a key that names a class: "Name", or {name: Name, and keys of it}."""


Transforms = Annotated[Sequence[dict[str, Any]], "each must be one transform, as in Decode: {}"]
TransformLists = Annotated[Sequence[Transforms], Length(1, 1000)]
