"""Are all keys of a config known, can they take their values, and do its classes fit the data? Called once per command,
before anything is made."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import ConfigError, nearest, suggestion
from ..kinds import TransformLists, Transforms
from ..system.log import logger
from .keys import (
    IGNORED,
    INPUTS,
    OWN,
    SECTIONS,
    TOP_LEVEL,
    keys_of,
    optimizer_section,
    read_keys,
    setting,
    unknown_name,
)
from .values import as_written, kinds_of, read

DATASET_SECTIONS = ("TrainDataset", "EvalDataset", "TestDataset")
READERS = ("TrainReader", "EvalReader", "TestReader")
AFTER_PERMUTE = ("PadBatch", "Gt2GFLTarget")
# What does not look at the values of pixels may come after NormalizeImage; and a user's own, who knows.
AFTER_NORMALIZE = ("Permute", "RandomFlip", "Resize", "RandomResize", "RandomShortSideResize", "BatchRandomResize",
                   "RandomSizeCrop", "RandomCrop", "RandomShift", "OwnTransform", *AFTER_PERMUTE)


def check_config(cfg: Mapping[str, Any], classes: Mapping[str, type]) -> None:
    """Raise a ConfigError that lists every unknown key and every value that its key cannot take; warn of keys of
    PaddleDetection without an effect here.

    Args:
        cfg: the dict of `load_config`.
        classes: {name in a config: its class}, whose arguments are the keys of that section (`build.CLASSES`).
    """
    warn_of_ignored(cfg)
    findings = list(_of_config(cfg, classes, ""))
    if findings:
        raise ConfigError("; ".join(findings))


def _of_config(cfg: Mapping[str, Any], classes: Mapping[str, type], prefix: str) -> Iterator[str]:
    for key, value in cfg.items():
        where = f"{prefix}{key}"
        if key in DATASET_SECTIONS:
            yield from _of_dataset(where, key, value, classes)
        elif key in classes:
            yield from _of_class(where, key, value, classes)
        elif key in SECTIONS:
            yield from _of_section(where, key, value, classes)
        elif key == "teacher" and isinstance(value, dict):
            yield from _of_config(value, classes, f"{where}.")
        elif key in TOP_LEVEL:
            yield from _of_value(where, value, TOP_LEVEL[key].kind, classes)
        elif key not in IGNORED and not str(key).startswith(OWN):
            known = [*TOP_LEVEL, *SECTIONS, *DATASET_SECTIONS, *classes]
            yield (f"{where}: unknown key; {suggestion(key, known)}docs/configs.md lists all of them, and a key of "
                   f"your own begins with {' or '.join(OWN)}")


def warn_of_ignored(cfg: Mapping[str, Any], prefix: str = "") -> None:
    """A line about each key of PaddleDetection that is on and has no effect here."""
    for key, value in cfg.items():
        if key in IGNORED and value not in (None, False, 0, "", [], -1):
            _warn_once(f"{prefix}{key}: has no effect; in PaddleDetection it {IGNORED[key]}")
        elif key == "teacher" and isinstance(value, dict):
            warn_of_ignored(value, f"{prefix}{key}.")


def _of_dataset(where: str, name: str, section: Any, classes: Mapping[str, type]) -> Iterator[str]:
    if section is None:
        return
    if not isinstance(section, dict):
        yield f"{where}: {as_written(section)}; it must be a mapping of keys"
        return
    kind = section.get("name")
    if not isinstance(kind, str) or kind not in classes:
        yield unknown_name(f"{where}.name", kind, [each for each in classes if "section" in kinds_of(classes[each])])
    elif kind == "ImageFolder" and name != "TestDataset":
        yield (f"{where}.name: ImageFolder; it must be COCODataSet, VOCDataSet or YOLODataSet, whose files say what is "
               "on the images")
    else:
        yield from _of_class(where, kind, section, classes)


def _of_section(where: str, name: str, section: Any, classes: Mapping[str, type]) -> Iterator[str]:
    if name.endswith("Reader") and section is None:
        return
    findings = list(_of_keys(where, section, {key: known.kind for key, known in SECTIONS[name].items()}, classes))
    yield from findings
    if not isinstance(section, dict):
        return
    if name == "OptimizerBuilder" and not findings:
        yield from _error_of(lambda: optimizer_section({name: section}))
    if isinstance(section.get("inputs_def"), dict):
        yield from _error_of(lambda: read_keys(f"{where}.inputs_def", section["inputs_def"], INPUTS))
    for key in ("sample_transforms", "batch_transforms"):
        yield from _of_transforms(f"{where}.{key}", section.get(key), classes)


def _of_transforms(where: str, entries: Any, classes: Mapping[str, type]) -> Iterator[str]:
    """Findings about a list of transforms, or a list of such lists."""
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, list):
            yield from _of_transforms(f"{where}[{i}]", entry, classes)
        for kind, args in entry.items() if isinstance(entry, dict) else ():
            place = f"{where}[{i}].{kind}"
            yield from _of_class(place, kind, {} if args is None else args, classes)
            if kind in classes and isinstance(args, dict):
                for key, value in args.items():
                    if kinds_of(classes[kind]).get(key) in (Transforms, TransformLists):
                        yield from _of_transforms(f"{place}.{key}", value, classes)


def _of_class(where: str, name: str, section: Any, classes: Mapping[str, type]) -> Iterator[str]:
    """Findings about the keys of a class; none for a name nobody knows, which whoever makes the object refuses."""
    if name in classes:
        yield from _of_keys(where, section, {"name": str, **keys_of(name, classes[name])}, classes)


def _of_keys(where: str, section: Any, known: Mapping[str, Any], classes: Mapping[str, type]) -> Iterator[str]:
    if not isinstance(section, dict):
        yield f"{where}: {as_written(section)}; it must be a mapping of keys"
        return
    for key, value in section.items():
        if key in known:
            yield from _of_value(f"{where}.{key}", value, known[key], classes)
        elif value is not None or key not in _words(classes):
            yield f"{where}: unknown key '{key}', {nearest(key, known)}"


def _of_value(where: str, value: Any, kind: Any, classes: Mapping[str, type]) -> Iterator[str]:
    error = next(_error_of(lambda: read(where, value, kind)), None)
    if error:
        yield error
        return
    parts = [(where, value)] if isinstance(value, dict) else [
        (f"{where}[{i}]", each) for i, each in enumerate(value if isinstance(value, list) else [])]
    for place, part in parts:
        if isinstance(part, dict) and isinstance(part.get("name"), str):
            yield from _of_class(place, part["name"], part, classes)


def _error_of(reading: Callable[[], Any]) -> Iterator[str]:
    """The message of the ConfigError that a call raises, if it does."""
    try:
        reading()
    except ConfigError as error:
        yield str(error)


def _words(classes: Mapping[str, type]) -> set[str]:
    """Every key of every class: one that `null` takes away may be that of another class than the section's."""
    return {key for name, cls in classes.items() for key in keys_of(name, cls)}


def check_classes(cfg: Mapping[str, Any], class_names: list[str], source: object) -> None:
    """Raise a ConfigError unless the config has as many classes as `source` lists; null: as many as there are."""
    expected = setting(cfg, "num_classes")
    if expected not in (None, len(class_names)):
        listed = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        raise ConfigError(f"num_classes: {expected}, but {source} lists {len(class_names)} ({listed}); "
                          f"set num_classes to {len(class_names)}, or take the annotations that belong to the model")


def check_order(name: str, sample: list[str], batch: list[str]) -> None:
    """Raise a ConfigError unless the transforms of a reader, by name, are complete and stand in an order that works."""
    where = f"{name}.sample_transforms"
    for kind, kinds, key in (("Decode", sample, "sample"), ("NormalizeImage", sample + batch, "sample"),
                             ("Permute", sample + batch, "sample"),
                             *([("Gt2GFLTarget", batch, "batch")] if name == "TrainReader" else [])):
        if kinds.count(kind) != 1:
            both = " there or in batch_transforms" if kind in ("NormalizeImage", "Permute") else ""
            raise ConfigError(f"{name}.{key}_transforms: {kind} stands there {kinds.count(kind)} times; it must stand "
                              f"once{both} (found: {', '.join(kinds) or 'nothing'})")
    if sample[0] != "Decode" or "Permute" in sample[:-1]:
        raise ConfigError(f"{where}: {', '.join(sample)}; Decode must be the first and Permute the last of them")
    steps = sample + batch
    after = steps[steps.index("Permute") + 1:]
    for kind in steps[:-len(after)] if after else steps:
        if kind in AFTER_PERMUTE:
            raise ConfigError(f"{name}.batch_transforms: {', '.join(batch)}; {kind} must come after Permute")
    wrong = [kind for kind in after if kind not in AFTER_PERMUTE]
    if wrong:
        raise ConfigError(f"{name}.batch_transforms: {', '.join(batch)}; {wrong[0]} must come before Permute")
    wrong = [kind for kind in steps[steps.index("NormalizeImage") + 1:] if kind not in AFTER_NORMALIZE]
    if wrong:
        raise ConfigError(f"{where}: {', '.join(steps)}; {wrong[0]} works on the pixels' values and must come before "
                          "NormalizeImage")
    if "PadBatch" in batch and "Gt2GFLTarget" in batch[:batch.index("PadBatch")]:
        raise ConfigError(f"{name}.batch_transforms: {', '.join(batch)}; PadBatch must come before Gt2GFLTarget, whose "
                          "cells are those of the padded image")


def check_mixing(name: str, keys: Mapping[str, Any], sample: list[str], mixers: list[str]) -> None:
    """Raise a ConfigError unless each of Mixup, Cutmix and Mosaic has the number of its epochs, and those a transform.
    A line says where that number is missing, so that nothing is mixed."""
    for kind in mixers:
        key = f"{kind.lower()}_epoch"
        if kind not in sample and keys[key] != -1:
            raise ConfigError(f"{name}.{key}: {keys[key]}; there is no {kind} among the sample_transforms, add it "
                              "behind Decode or set -1")
        if sample.count(kind) > 1:
            raise ConfigError(f"{name}.sample_transforms: {kind} stands there {sample.count(kind)} times; once is "
                              "allowed")
        if kind in sample and keys[key] == -1:
            _warn_once(f"{name}.{key}: -1, so that {kind} never mixes; set it to the number of epochs, 0 for all")


# --- the transforms of readers


def transforms_in(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all transforms of all readers, also of those inside of others."""
    for name in READERS:
        for key in ("sample_transforms", "batch_transforms"):
            if isinstance(cfg.get(name), dict):
                yield from _names(cfg[name].get(key))


def _names(entries: Any) -> Iterator[str]:
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, list):
            yield from _names(entry)
        for kind, args in entry.items() if isinstance(entry, dict) else ():
            yield kind
            for value in args.values() if isinstance(args, dict) else ():
                yield from _names(value)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
