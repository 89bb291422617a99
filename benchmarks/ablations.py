"""The ablations of configs/ablations on small drawn images: the table of docs/ablations.md.

    python benchmarks/ablations.py FOLDER [--only shapes_gfl_1x,shapes_qfl_alone] [--seeds 0,1,2]

As in the papers the backbone has learnt before, here on other drawn pictures, and all else starts from random weights.
The seed draws the images, the weights and the order. FOLDER gets results.jsonl, which a second run goes on with. One
training takes about a minute on a core.
"""
from __future__ import annotations

import argparse
import json
import logging
import pickle
import statistics
from pathlib import Path
from typing import Any

from small_data import HEIGHT, VALIDATION, WIDTH, read, small_config, source_detector

import ppgfl
from ppgfl.config.load import find_config
from ppgfl.data.shapes import make_shapes

IMAGES, EPOCHS = 200, 12
REFERENCES = ("shapes_gfl_1x", "shapes_gflv2")  # what the others change
NAMES = (REFERENCES[0], "shapes_qfl_alone", "shapes_dfl_alone", "shapes_neither", "shapes_centerness",
         "shapes_iou_branch", "shapes_without_dfl", "shapes_beta_1", "shapes_beta_2_5", "shapes_reg_max_8",
         "shapes_reg_max_24", REFERENCES[1], "shapes_top_1", "shapes_top_8", "shapes_channels_16",
         "shapes_without_mean")


def backbone(folder: Path) -> str:
    """The weights of the backbone alone, of the detector that `small_data` starts from."""
    file = folder / "backbone.pdparams"
    if not file.exists():
        state = pickle.loads(Path(source_detector(folder)).read_bytes())
        kept = {name[len("backbone."):]: value for name, value in state.items() if name.startswith("backbone.")}
        file.write_bytes(pickle.dumps(kept, protocol=2))
    return str(file)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: of each config the mean and the range over the seeds."""
    text = "| config | what it is | AP | AP50 | AP75 |\n| --- | --- | --- | --- | --- |\n"
    for name in NAMES:
        found = [row for row in rows if row["config"] == name]
        what = find_config(name).read_text(encoding="utf-8").splitlines()[0].strip("# .")
        cells = [_cell([100 * row[metric] for row in found]) for metric in ("AP", "AP50", "AP75")]
        text += f"| {name} | {what} | {' | '.join(cells)} |\n"
    return text


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ppgfl").setLevel(logging.WARNING)
    file, weights = args.folder / "results.jsonl", backbone(args.folder)
    for seed in map(int, args.seeds.split(",")):
        data = make_shapes(args.folder / str(seed), train=IMAGES, val=VALIDATION, size=(HEIGHT, WIDTH), seed=seed)
        for name in args.only.split(","):
            if any((row["config"], row["seed"]) == (name, seed) for row in read(file)):
                continue
            cfg = small_config(name, IMAGES, data, args.folder / "runs", weights, EPOCHS)
            result = ppgfl.train(cfg, run_name=f"{name}_{seed}", evaluate=True, seed=seed, scale_lr=False)
            row = {"config": name, "seed": seed, **{key: result[key] for key in ("AP", "AP50", "AP75")}}
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            print(f"seed {seed}, {name}: {100 * row['AP']:.1f}", flush=True)
    print(table(read(file)))


if __name__ == "__main__":
    main()
