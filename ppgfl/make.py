"""From a value of a config to an object.

Arguments of an object, strongest first: facts the program knows (channels and strides of the layer below), keys
nested in the parent's section, the top-level section of that name, top-level keys that several sections share
(`num_classes`, `norm_type`, `upstream_scores`, written out at each call), the Python default. A key that no argument
takes is refused here too, for those who build without `check`.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .classes import number_of_classes
from .config.keys import keys_of, known_only, setting, unknown_name
from .config.values import kinds_of, read
from .errors import ConfigError
from .kinds import Part

Config = dict[str, Any]
Table = Mapping[str, Callable[..., Any]]


def make(cfg: Config, table: Table, value: Any, where: str, *, shared: Sequence[str] = (), **facts: Any) -> Any:
    """The object that a value names: "Name", or {name: Name, ...}. Raises ConfigError."""
    name, args = spec(cfg, value, table, where)
    own = {key: value for key, value in args.items() if key in kinds_of(table[name])}
    given = {**shared_keys(cfg, shared), **own, **facts}
    for key, parameter in inspect.signature(table[name]).parameters.items():
        if key not in given and parameter.default is parameter.empty:
            raise ConfigError(f"{where}.{key}: missing; {name} has no default for it")
    return table[name](**given)


def spec(cfg: Config, value: Any, table: Table, where: str) -> tuple[str, Config]:
    """The name that a value gives and its arguments, nested ones over those of the section of that name. Raises
    ConfigError."""
    value = {"name": value} if isinstance(value, str) else value
    nested = dict(read(where, value, Part))
    name = nested.pop("name")
    if name not in table:
        raise ConfigError(unknown_name(where, name, table))
    known = keys_of(name, table[name])
    args = {}
    for place, given in ((name, cfg.get(name, {})), (where, nested)):
        args.update({key: read(f"{place}.{key}", value, known[key])
                     for key, value in known_only(place, given, known).items()})
    return name, args


def shared_keys(cfg: Config, keys: Sequence[str]) -> Config:
    """Those of the shared top-level keys that have a value, in the config or by default. Raises ConfigError."""
    values = {key: number_of_classes(cfg) if key == "num_classes" else setting(cfg, key) for key in keys}
    if values.get("num_classes", 0) is None:
        raise ConfigError("num_classes: null takes the number from the annotation file of TrainDataset, or from the "
                          "weights, and neither is there; set num_classes")
    return {key: value for key, value in values.items() if value is not None}
