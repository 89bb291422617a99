"""Write the tables of released models in README.md, README_cn.md and docs/model_zoo.md, between their marks."""
from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppgfl.weights.zoo import MODELS, Model, of_paddle  # noqa: E402

HEADS = {  # page -> the heads of its two tables
    "README.md": (("weights", "model", "AP on val2017"), ("model", "authors", "their test-dev", "MMDetection")),
    "README_cn.md": (("权重", "模型", "val2017 AP"), ("模型", "作者", "作者的 test-dev", "MMDetection")),
    "docs/model_zoo.md": (("weights", "model", "schedule", "AP", "config", "log"),
                          ("model", "schedule", "config", "authors", "their test-dev", "MMDetection"))}
MARKS = re.compile(r"(<!-- (paddle|pytorch) models, written by docs/make_zoo.py -->\n).*?(<!-- /models -->)", re.DOTALL)


def of_paddledetection(page: str) -> str:
    """A row for each of PaddleDetection's models."""
    rows = []
    for model in of_paddle():
        row = [f"[{model.name}]({model.weights})", model.title, str(model.ap)]
        if page.startswith("docs"):
            row[2:] = [model.schedule, row[2], _config("gfl", model.config), f"[log]({model.log})"]
        rows.append(row)
    return _table(HEADS[page][0], rows)


def of_pytorch(page: str) -> str:
    """A row for each network of the others; the AP are links to the files."""
    rows = []
    by_config: dict[str, list[Model]] = {}
    for model in MODELS.values():
        if model.is_of_pytorch:
            by_config.setdefault(model.config, []).append(model)
    for config, models in sorted(by_config.items(), key=lambda pair: (pair[0][:5] == "gflv2", pair[0][:2] == "ld")):
        authors = next((model for model in models if model.source != "MMDetection"), None)
        mmdet = next((model for model in models if model.source == "MMDetection"), None)
        one = models[0]
        row = [f"{one.title}, {one.schedule}"]
        if page.startswith("docs"):
            row = [one.title, one.schedule, _config("gfl_papers", config)]
        rows.append([*row, _file(authors), str(authors.test_dev) if authors else "", _file(mmdet)])
    return _table(HEADS[page][1], rows)


def _config(folder: str, name: str) -> str:
    return f"[{name}](../configs/{folder}/{name}.yml)"


def _file(model: Model | None) -> str:
    return f"[{model.ap}]({model.weights})" if model else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(page: str, text: str) -> str:
    """The text of a page with its tables as they must be."""
    made = {"paddle": of_paddledetection, "pytorch": of_pytorch}
    return MARKS.sub(lambda match: match[1] + made[match[2]](page) + match[3], text)


if __name__ == "__main__":
    for page in HEADS:
        path = ROOT / page
        path.write_text(with_tables(page, path.read_text(encoding="utf-8")), encoding="utf-8")
    print("written: the models in", ", ".join(HEADS))
