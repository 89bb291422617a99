"""What there is to take: the released models and the shipped configs, as tables for the terminal."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config.load import shipped_configs
from ..weights.download import cached_path
from ..weights.zoo import COST, MODELS, SHORT_NAMES


def models() -> str:
    """The released models, those of PaddleDetection first."""
    short = {name: word for word, name in SHORT_NAMES.items()}
    rows = [("name", "model", "epochs", "AP", "parameters", "GFLOPs", "trained by", "--model", "here")]
    rows += [(name, model.title, model.schedule, f"{model.ap:.1f}", f"{COST[model.config][0]:.1f} M",
              str(COST[model.config][1]), model.source, short.get(name, ""),
              "yes" if cached_path(model.weights).is_file() else "") for name, model in MODELS.items()]
    return _table(rows) + ("\n\nAP on COCO val2017, as released; epochs in rounds of twelve; GFLOPs of convolutions "
                           "for an image of 800 x 1344.\nppgfl benchmark measures the speed on this machine. Use one: "
                           "-o weights=NAME for PaddleDetection's, ppgfl zoo NAME for all.")


def configs() -> str:
    """The shipped configs, each with the first sentence of its comment and its AP."""
    rows = [("name", "AP", "what it is")]
    for folder in shipped_configs():
        for path in sorted(folder.rglob("*.yml")):
            if path.parent.name not in ("_base_", "datasets") and path.parent != folder:
                rows.append((path.stem, *_about(path)))
    return _table(rows) + "\n\nUse one by its name: -c NAME. It can also be the _BASE_ of a config of yours."


def _about(path: Path) -> tuple[str, str]:
    """The AP that a config's comment expects, or "", and its first sentence."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines()
             if line.startswith("#")]
    found = [line.split("AP ", 1)[1].split()[0] for line in lines if line.startswith("Expected: AP ")]
    text = " ".join(lines[:next((i for i, line in enumerate(lines) if line.startswith("Expected")), 1)])
    return (found[0] if found and found[0][0].isdigit() else ""), text.split(". ")[0].rstrip(".")


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
