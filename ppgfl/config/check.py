"""Are all keys of a config known?"""
import functools
import inspect

from ..errors import ConfigError, nearest
from ..system.log import logger
from .keys import OTHER_KEYS, SECTIONS, TOP_LEVEL

DATASET_SECTIONS = ["TrainDataset", "EvalDataset", "TestDataset"]


def check_config(cfg, classes):
    """Raise a ConfigError that lists every unknown key in a known section; warn of unknown top-level keys."""
    errors = []
    for key, section in cfg.items():
        if key in DATASET_SECTIONS and isinstance(section, dict):
            _check_keys(key, section, _valid_keys(section.get("name"), classes), errors)
        elif key in classes:
            _check_section(key, key, section, classes, errors)
        elif key in SECTIONS:
            _check_keys(key, section, SECTIONS[key], errors)
            _check_transforms(key, section, classes, errors)
        elif key not in TOP_LEVEL and key not in DATASET_SECTIONS:
            _warn_once(f"unknown top-level key '{key}' is ignored; "
                       + nearest(key, [*TOP_LEVEL, *SECTIONS, *DATASET_SECTIONS]).split("Allowed")[0])
    if errors:
        raise ConfigError("; ".join(errors))


def _check_section(where, name, section, classes, errors):
    _check_keys(where, section, _valid_keys(name, classes), errors)
    for key, value in section.items() if isinstance(section, dict) else ():
        if isinstance(value, dict) and value.get("name") in classes:
            _check_section(f"{where}.{key}", value["name"], value, classes, errors)


def _check_transforms(reader, section, classes, errors):
    for key in ("sample_transforms", "batch_transforms"):
        for i, entry in enumerate((section or {}).get(key) or []):
            for name, args in entry.items() if isinstance(entry, dict) else ():
                if name in classes and args:
                    _check_section(f"{reader}.{key}[{i}].{name}", name, args, classes, errors)


def _check_keys(where, section, valid, errors):
    if valid is None or section is None:
        return
    if not isinstance(section, dict):
        errors.append(f"{where}: {section!r}; it must be a mapping of keys")
        return
    errors += [f"{where}: unknown key '{key}', {nearest(key, valid)}" for key in section
               if key not in valid and key != "name"]


def _valid_keys(name, classes):
    """The keys of a section, None for a class nobody knows (`_spec` says so when it is built)."""
    if name not in classes:
        return None
    own = [key for key in inspect.signature(classes[name]).parameters if key != "section"]
    return own + list(OTHER_KEYS.get(name, ()))


@functools.cache
def _warn_once(message):
    logger.warning(message)
