"""Are all keys of a config known, and do its classes fit the data? Called once per command, before anything is made."""
from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, nearest, suggestion
from ..system.log import logger
from .keys import OTHER_KEYS, SECTIONS, TOP_LEVEL, setting

DATASET_SECTIONS = ("TrainDataset", "EvalDataset", "TestDataset")


def check_config(cfg: Mapping[str, Any], classes: Mapping[str, type]) -> None:
    """Raise a ConfigError that lists every unknown key in a known section; warn of unknown top-level keys.

    Args:
        cfg: the dict of `load_config`.
        classes: {name in a config: its class}, whose arguments are the keys of that section (`build.CLASSES`).
    """
    findings: list[str] = []
    for key, section in cfg.items():
        if key in DATASET_SECTIONS and isinstance(section, dict):
            findings += _unknown_keys(key, section, keys_of(section.get("name"), classes))
        elif key in classes:
            findings += _check_section(key, key, section, classes)
        elif key in SECTIONS:
            findings += _unknown_keys(key, section, list(SECTIONS[key]))
            findings += _check_transforms(key, section, classes)
        elif key not in TOP_LEVEL and key not in DATASET_SECTIONS:
            _warn_once(f"unknown top-level key '{key}' is ignored; "
                       + suggestion(key, [*TOP_LEVEL, *SECTIONS, *DATASET_SECTIONS]))
    if findings:
        raise ConfigError("; ".join(findings))


def check_classes(cfg: Mapping[str, Any], class_names: list[str], source: object) -> None:
    """Raise a ConfigError unless the config has as many classes as `source` lists, and its metric is COCO's."""
    if setting(cfg, "metric") != "COCO":
        raise ConfigError(f"metric: {cfg['metric']!r}; ppgfl evaluates with COCO only")
    expected = setting(cfg, "num_classes")
    if len(class_names) != expected:
        listed = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        raise ConfigError(f"num_classes: {expected}, but {source} lists {len(class_names)} ({listed}); "
                          f"set num_classes to {len(class_names)}, or take the annotations that belong to the model")


def check_order(name: str, sample: list[str], batch: list[str]) -> None:
    """Raise a ConfigError unless the transforms of a reader, by name, are complete and stand in an order that works."""
    for key, kinds, needed in (("sample_transforms", sample, ["Decode", "NormalizeImage", "Permute"]),
                               ("batch_transforms", batch, ["Gt2GFLTarget"] if name == "TrainReader" else [])):
        for kind in needed:
            if kinds.count(kind) != 1:
                raise ConfigError(f"{name}.{key}: {kind} stands there {kinds.count(kind)} times; it must stand there "
                                  f"once (found: {', '.join(kinds) or 'nothing'})")
    if sample[0] != "Decode" or sample[-1] != "Permute":
        raise ConfigError(f"{name}.sample_transforms: {', '.join(sample)}; Decode must be the first and Permute the "
                          "last of them")
    if "PadBatch" in batch and "Gt2GFLTarget" in batch[:batch.index("PadBatch")]:
        raise ConfigError(f"{name}.batch_transforms: {', '.join(batch)}; PadBatch must come before Gt2GFLTarget, whose "
                          "cells are those of the padded image")


def keys_of(name: str | None, classes: Mapping[str, type]) -> list[str] | None:
    """The keys of a class's section; None for a name nobody knows, which whoever makes the object refuses."""
    if name is None or name not in classes:
        return None
    own = [key for key in inspect.signature(classes[name]).parameters if key != "section"]
    return own + list(OTHER_KEYS.get(name, ()))


def _check_section(where: str, name: str, section: Any, classes: Mapping[str, type]) -> list[str]:
    findings = _unknown_keys(where, section, keys_of(name, classes))
    for key, value in section.items() if isinstance(section, dict) else ():
        if isinstance(value, dict) and value.get("name") in classes:
            findings += _check_section(f"{where}.{key}", value["name"], value, classes)
    return findings


def _check_transforms(reader: str, section: Any, classes: Mapping[str, type]) -> list[str]:
    findings: list[str] = []
    for key in ("sample_transforms", "batch_transforms"):
        for i, entry in enumerate((section or {}).get(key) or []):
            for name, args in entry.items() if isinstance(entry, dict) else ():
                if name in classes and args:
                    findings += _check_section(f"{reader}.{key}[{i}].{name}", name, args, classes)
    return findings


def _unknown_keys(where: str, section: Any, known: list[str] | None) -> list[str]:
    if known is None or section is None:
        return []
    if not isinstance(section, dict):
        return [f"{where}: {section!r}; it must be a mapping of keys"]
    return [f"{where}: unknown key '{key}', {nearest(key, known)}" for key in section
            if key not in known and key != "name"]


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
