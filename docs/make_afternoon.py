"""Write docs/afternoon.md, and the sizes that both READMEs name, from the source files as they are.

    python docs/make_afternoon.py

A test compares; this needs nothing but Python.
"""
from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ppgfl"
# What one person reads, in this order: part, and for each of its files what is in it.
PARTS = {
    "The network": {
        "model/layers.py": "A convolution with its normalisation and ReLU, as backbone, neck and towers share it, and "
                           "the deformable one.",
        "model/resnet.py": "The backbone: an image becomes the maps of four stages; every name is one of a checkpoint.",
        "model/fpn.py": "The neck: the backbone's maps become levels of one width, coarse ones added to finer ones.",
        "model/head.py": "The head: two towers over each level, the class map, the distributions of the four sides, "
                         "and GFLv2's quality predictor.",
        "model/gfl.py": "The detector on one page: backbone, neck, head, and then the loss or the detections.",
        "model/boxes.py": "Geometry: the centres of cells, distances to boxes and back, IoU and GIoU.",
        "model/decode.py": "Raw maps become boxes in pixels of the original image, and NMS keeps the best.",
        "model/operators.py": "Three operators, written so that Paddle 3 can save them in the format that Paddle 2 "
                              "reads.",
    },
    "The losses": {
        "model/losses.py": "Quality Focal Loss, Distribution Focal Loss and GIoU, and how they are weighted and added "
                           "up.",
    },
    "The targets": {
        "data/targets.py": "ATSS: which cell of which level learns which box; in numpy, since it runs where images are "
                           "loaded.",
    },
    "The training loop": {
        "training/train.py": "A run from its first line to its last, in the order in which things happen.",
        "training/step.py": "One step: mixed precision, several batches, several processes, a teacher.",
        "training/state.py": "Everything that a checkpoint holds, saved and loaded in one place.",
        "training/meter.py": "Times, averages and log lines, and the stop at a loss that is not finite.",
    },
}

HEAD = """# Read this in an afternoon

Written by `python docs/make_afternoon.py` from the code; a test compares.

{sum} lines are the detector and its training:
{parts}.
They are counted as they stand in the files, with comments, docstrings and blank lines.

Begin with the [contract of the data](../ppgfl/data/__init__.py): what a sample and a batch hold, and the letters of
their dimensions. Where an argument comes from is seen in [build.py](../ppgfl/build.py), which makes objects of a
config. The rest of the package reads configs, data and weights, makes optimizers, evaluates, exports and serves the
command line; these files call it by names that say what it does.
"""
SIZES = re.compile(r"(<!-- sizes[^>]*-->\n).*?(<!-- /sizes -->)", re.DOTALL)
SENTENCES = {
    "README.md": """\
The network is {network} lines, the losses {losses}, the targets {targets}, the training loop {loop}: {sum} of about
{package} in the package, comments included. [Read this in an afternoon](docs/afternoon.md) lists them in order.
""",
    "README_cn.md": """\
网络 {network} 行，损失 {losses} 行，目标分配 {targets} 行，训练循环 {loop} 行：合计 {sum} 行，\
整个包约 {package} 行，均含注释。[一个下午读完](docs/afternoon.md)按阅读顺序列出这些文件。
""",
}


def lines_of(path: Path) -> int:
    """All lines of a file, also comments and blank ones."""
    return len(path.read_text(encoding="utf-8").splitlines())


def parts() -> dict[str, dict[str, int]]:
    """{part: {file below ppgfl/: its lines}}. Raises FileNotFoundError for a file that is gone."""
    return {part: {name: lines_of(PACKAGE / name) for name in files} for part, files in PARTS.items()}


def sizes() -> dict[str, str]:
    """What the sentences of the READMEs name; the package to the nearest hundred, since every change moves it."""
    each = [sum(files.values()) for files in parts().values()]
    package = sum(lines_of(path) for path in PACKAGE.rglob("*.py"))
    names = ("network", "losses", "targets", "loop", "sum", "package")
    return {name: f"{number:,}" for name, number in zip(names, (*each, sum(each), round(package, -2)))}


def page() -> str:
    """The text of docs/afternoon.md."""
    each = {part: sum(files.values()) for part, files in parts().items()}
    words = [f"{part[0].lower()}{part[1:]} {lines:,}" for part, lines in each.items()]
    text = HEAD.format(sum=f"{sum(each.values()):,}", parts=f"{', '.join(words[:-1])} and {words[-1]}")
    for part, files in parts().items():
        text += f"\n## {part}\n\n| file | lines | what is in it |\n| --- | ---: | --- |\n"
        for name, lines in files.items():
            text += f"| [{name}](../ppgfl/{name}) | {lines} | {PARTS[part][name]} |\n"
        text += f"| together | {each[part]:,} | |\n" if len(files) > 1 else ""
    return text


def with_sizes(name: str, text: str) -> str:
    """The text of a README with the sentence of sizes between its two marks as it must be."""
    return SIZES.sub(lambda match: match.group(1) + SENTENCES[name].format(**sizes()) + match.group(2), text)


if __name__ == "__main__":
    (ROOT / "docs" / "afternoon.md").write_text(page(), encoding="utf-8")
    for name in SENTENCES:
        path = ROOT / name
        path.write_text(with_sizes(name, path.read_text(encoding="utf-8")), encoding="utf-8")
    print("written: docs/afternoon.md and the sizes in", " and ".join(SENTENCES))
