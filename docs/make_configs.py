"""Write docs/configs.md from the code: signatures and docstrings of the classes, and the tables of config.keys.

    python docs/make_configs.py
"""
from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from ppgfl import build  # noqa: E402
from ppgfl.config import keys, values  # noqa: E402

HEAD = """# Configs, key by key

Written by `python docs/make_configs.py` from the code; a test compares.

A config is YAML in PaddleDetection's format. What `_BASE_` lists, files or shipped configs by
name, is merged in order, then the file itself: mappings key by key, everything else is replaced.
`-o section.key=value` changes one key on the command line; a number steps into a list
(`-o TrainReader.sample_transforms.1.RandomFlip.prob=0`). `!Name {a: 1}` is `{name: Name, a: 1}`.
A key that is not listed here stops the program with the nearest one that is; top-level keys that
begin with `_` or `x-` are your own. YAML's anchors and `<<` work. A part of the model is named in its
parent's section and takes its keys from there, else from the section of its own name, else from the top level
(`num_classes`, `norm_type`), else the default below.

A value that its key cannot take stops the program too, before anything is made, with one line that says what it may be.
The rules are the same for all keys:

* Text is no number and no yes or no: `"3"` and `"true"` in quotes are refused. A whole number is a number too; `3.0` is
  no whole number, and `true` is neither.
* What can be off (null is among its values) is off with `null`, `false` or `None`, and with 0 where 0 is no value of
  its own. Where a key cannot be off, `null` is refused, so that nobody gets a default unawares.
* Where a file or `-o` chooses another `OptimizerBuilder.optimizer.type` than the one that is inherited, arguments that
  the new one does not take stay behind, and so does the `regularizer` where it is AdamW; a log line says so. Elsewhere,
  `null` takes away an inherited key that belongs to another class.
"""
GROUPS = (
    ("The model", (build.BACKBONES, build.NECKS, build.HEADS, build.TOWERS, build.QUALITY_PREDICTORS)),
    ("Losses", (build.LOSSES,)),
    ("Detections", (build.NMS,)),
    ("Data sets: `TrainDataset`, `EvalDataset`, `TestDataset`", (build.DATASETS,)),
    ("Transforms of an image: `sample_transforms`", (build.SAMPLE_TRANSFORMS,)),
    ("Transforms of a batch: `batch_transforms`", (build.BATCH_TRANSFORMS,)),
    ("Learning rate: `LearningRate.schedulers`", (build.DECAYS, build.WARMUPS)),
)
# Arguments that are no keys: the program knows them.
FACTS = {"FPN": ["in_channels"], **{name: ["section"] for name in build.DATASETS}}


def page() -> str:
    """The text of docs/configs.md."""
    parts = [HEAD, "## Top level\n", _of_keys(keys.TOP_LEVEL)]
    readers = ["TrainReader", "EvalReader", "TestReader"]
    for names in (["GFL"], readers, ["LearningRate"], ["OptimizerBuilder"], ["export"]):
        parts += [f"## {', '.join(f'`{name}`' for name in names)}\n",
                  _of_keys(keys.SECTIONS[names[0]])]
        if names == ["OptimizerBuilder"]:
            parts += [text for kind, known in keys.OPTIMIZERS.items()
                      for text in (f"Keys of `optimizer` with `type: {kind}`:\n", _of_keys(known))]
            parts += ["Keys of `regularizer`:\n", _of_keys(keys.REGULARIZER)]
    for title, tables in GROUPS:
        parts.append(f"## {title}\n")
        for name, cls in ((name, cls) for table in tables for name, cls in table.items()):
            parts.append(_of_class(name, cls))
    parts += ["## Top-level keys of PaddleDetection without an effect\n", "A line says so where one of them is on.\n",
              _table(["key", "in PaddleDetection it"], keys.IGNORED.items())]
    return "\n".join(parts)


def _of_keys(known: Mapping[str, keys.Key]) -> str:
    """The table of {name: `keys.Key`}; without a default where a key that is left out is as if it were null."""
    return _table(["key", "default", "value", "meaning"], [
        (name, "" if key.default in (None, "") else f"`{_yaml(key.default)}`", _words(key.kind), key.meaning)
        for name, key in known.items()])


def _words(kind: Any) -> str:
    """What a value may be; nothing for keys that nobody reads."""
    return "" if kind is Any else values.words_of(kind).replace("allowed: ", "")


def _of_class(name: str, cls: type) -> str:
    summary, meanings = describe(cls)
    rows, kinds = [], values.kinds_of(cls)
    for key, parameter in inspect.signature(cls).parameters.items():
        if key not in FACTS.get(name, ()):
            default = "" if parameter.default is parameter.empty else f"`{_yaml(parameter.default)}`"
            rows.append((key, default, _words(kinds[key]), meanings[key]))
    rows += [(key, "", _words(known.kind), known.meaning) for key, known in keys.OTHER_KEYS.get(name, {}).items()
             if key not in dict.fromkeys(row[0] for row in rows)]
    table = _table(["key", "default", "value", "meaning"], rows) if rows else "No keys.\n"
    return f"### {name}\n\n{summary}\n\n{table}"


def describe(cls: type) -> tuple[str, dict[str, str]]:
    """A class's docstring -> its first paragraph, and {argument: meaning} of its Args or Attributes."""
    text = inspect.getdoc(cls)
    summary = " ".join(text.split("\n\n")[0].split())
    meanings = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:    .+\n?)+)", text, re.MULTILINE):
        for entry in re.split(r"^    (?=\S)", section, flags=re.MULTILINE)[1:]:
            names, _, meaning = entry.partition(": ")
            for name in names.split(", "):
                meanings.setdefault(name, re.sub(r"(?<!\.)\.$", "", " ".join(meaning.split())))
    return summary, meanings


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(each)}' for key, each in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "''"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += ["| " + " | ".join([f"`{key}`", *(cell.replace("|", "\\|") for cell in cells)]) + " |"
              for key, *cells in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "configs.md").write_text(page(), encoding="utf-8")
    print(f"written: {HERE / 'configs.md'}")
