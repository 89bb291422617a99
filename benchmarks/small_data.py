"""Which recipe suits a few images: trainings on 50, 200 and 1,000 drawn images, each change by itself.

    python benchmarks/small_data.py FOLDER [--images 50,200] [--epochs 50] [--only 0,3] [--seeds 0,1,2] [--from_nothing]

As `train --data` starts from a detector of other objects, these start from one that has learnt other pictures: the
colours inverted, upside down, and all shapes one class. The seed draws the images and the order. FOLDER gets
results.jsonl, which a second run goes on with, and the table is printed. One training takes one to three minutes on a
core; all of them take two hours.
"""
from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2

import ppgfl
from ppgfl.data.shapes import make_shapes

Config = dict[str, Any]
HEIGHT, WIDTH = 64, 80
EPOCHS = {50: 50, 200: 12, 1000: 4}  # images: rounds through them
SOURCE, VALIDATION = 1000, 200  # images
NORMALIZE = [{"NormalizeImage": {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
             {"Permute": {}}]
DISTORT = {"RandomDistort": {}}
EXPAND = {"RandomExpand": {"ratio": 2.0, "fill_value": [123.675, 116.28, 103.53]}}
CROP = {"RandomCrop": {}}
FLIP = {"RandomFlip": {"prob": 0.5}}


def resize(least: float, most: float) -> Config:
    """The image at a size drawn between these shares of its own."""
    sizes = [[round(least * HEIGHT), round(least * WIDTH)], [round(most * HEIGHT), round(most * WIDTH)]]
    return {"RandomResize": {"target_size": sizes, "keep_ratio": True, "random_range": True, "random_size": False}}


MOSAIC = {"Mosaic": {"input_dim": [HEIGHT, WIDTH], "degrees": [0, 0], "translate": [0, 0], "scale": [0.5, 1.5],
                     "shear": [0, 0], "enable_mixup": False}}
ALL = [DISTORT, EXPAND, CROP, resize(1, 1)]

# A recipe is what it changes of the first one with a cosine and EMA: transforms before the flip, and keywords.
RECIPES: dict[str, tuple[list[Config], dict[str, Any]]] = {
    "1x as it is: 12 epochs, steps": ([], {"decay": "steps", "ema": False, "epochs": 12}),
    "1x, more epochs": ([], {"decay": "steps", "ema": False}),
    "cosine, EMA": ([], {}),
    "EMA, sizes 0.5 to 1": ([resize(0.5, 1)], {}),
    "EMA, sizes 0.75 to 1.25": ([resize(0.75, 1.25)], {}),
    "EMA, colours, expand, crop": (ALL, {}),
    "EMA, mosaic": ([MOSAIC], {"mosaic": 0.75}),
    "EMA, twice the epochs": ([], {"longer": 2}),
    "EMA, a quarter of the rate": ([], {"rate": 0.005}),
    "cosine without EMA": ([], {"ema": False}),
    "steps without EMA, sizes 0.75 to 1.25": ([resize(0.75, 1.25)], {"decay": "steps", "ema": False}),
    "cosine without EMA, sizes 0.75 to 1.25": ([resize(0.75, 1.25)], {"ema": False}),
}


def other_pictures(folder: Path) -> Path:
    """Drawn images that are inverted and upside down, their objects of one class."""
    if folder.exists():
        return folder
    data = make_shapes(folder.with_name("drawing"), train=SOURCE, val=VALIDATION, size=(HEIGHT, WIDTH), seed=99)
    for path in data.glob("*2017/*.png"):
        cv2.imwrite(str(path), 255 - cv2.imread(str(path))[::-1])
    for path in data.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 1, "name": "thing"}]
        for one in content["annotations"]:
            x, y, width, height = one["bbox"]
            one.update(category_id=1, bbox=[x, HEIGHT - y - height, width, height])
        path.write_text(json.dumps(content))
    return data.rename(folder)


def source_detector(folder: Path) -> str:
    """The weights that the trainings start from; made by the first one."""
    weights = folder / "runs" / "source" / "model_final.pdparams"
    if not weights.exists():
        cfg = small_config("shapes_gfl_1x", SOURCE, other_pictures(folder / "other"), folder / "runs", None, epochs=8)
        cfg["num_classes"] = 1
        result = ppgfl.train(cfg, run_name="source", evaluate=True, scale_lr=False)
        print(f"the detector to start from: {100 * result['AP']:.1f} on pictures of its kind", flush=True)
    return str(weights)


def config_of(recipe: str, images: int, rounds: int, data: Path, folder: Path, weights: str | None) -> Config:
    """A small detector on `images` drawn images, `rounds` times through them, by a recipe."""
    before, options = RECIPES[recipe]
    epochs = options.get("epochs", rounds * options.get("longer", 1))
    cfg = small_config("shapes_gfl_1x", images, data, folder, weights, epochs, options.get("rate", 0.02))
    if options.get("decay") == "steps":
        cfg["LearningRate"]["schedulers"][0] = {"name": "PiecewiseDecay", "gamma": 0.1,
                                                "milestones": [epochs * 2 // 3, epochs * 11 // 12]}
    cfg["use_ema"] = options.get("ema", True)
    cfg["TrainReader"]["sample_transforms"] = [{"Decode": {}}, *before, FLIP, *NORMALIZE]
    if "mosaic" in options:
        cfg["TrainReader"]["mosaic_epoch"] = int(options["mosaic"] * epochs)
    return cfg


def small_config(name: str, images: int, data: Path, folder: Path, weights: str | None, epochs: int,
                 rate: float = 0.02) -> Config:
    """A config of configs/demo for images of this size, with a cosine and EMA: its backbone lacks the last stage, which
    is a third less time, and enough for such images."""
    steps = images // 8 * epochs
    cfg = ppgfl.load_config(name)
    cfg.update({
        "save_dir": str(folder), "pretrain_weights": weights, "epoch": epochs, "snapshot_epoch": epochs,
        "log_iter": 10 ** 6, "use_ema": True, "ema_decay": 0.9998, "ema_decay_type": "threshold",
        "LearningRate": {"base_lr": rate, "total_batch_size": 8, "schedulers": [
            {"name": "CosineDecay", "max_epochs": epochs},
            {"name": "LinearWarmup", "start_factor": 0.1, "steps": max(1, min(500, steps // 10))}]}})
    for key, split in (("TrainDataset", "train"), ("EvalDataset", "val"), ("TestDataset", "val")):
        cfg[key] = {**cfg[key], "dataset_dir": str(data), "anno_path": f"annotations/instances_{split}2017.json"}
    cfg["ResNet"].update({"num_stages": 3, "return_idx": [1, 2]})
    cfg["FPN"]["extra_stage"] = 1
    return cfg


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the mean and the range of AP over the seeds, per number of images and of rounds through them."""
    columns = sorted({(row["images"], row["epochs"]) for row in rows})
    text = "| recipe | " + " | ".join(f"{images} images, {epochs} epochs" for images, epochs in columns) + " |\n"
    text += "| --- " * (1 + len(columns)) + "|\n"
    for recipe in RECIPES:
        cells = []
        for column in columns:
            found = [100 * row["AP"] for row in rows
                     if (row["recipe"], row["images"], row["epochs"]) == (recipe, *column)]
            cells.append(f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})" if found else "")
        text += f"| {recipe} | {' | '.join(cells)} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", default="50,200,1000")
    parser.add_argument("--epochs", type=int, help="rounds through the images, instead of 50, 12 and 4")
    parser.add_argument("--only", help="recipes, by their place in the table, as 0,3")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--from_nothing", action="store_true", help="start from random weights")
    args = parser.parse_args()
    names = list(RECIPES)
    chosen = [names[int(place)] for place in args.only.split(",")] if args.only else names
    file = args.folder / "results.jsonl"
    args.folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ppgfl").setLevel(logging.WARNING)
    weights = None if args.from_nothing else source_detector(args.folder)
    for images in map(int, args.images.split(",")):
        epochs = args.epochs or EPOCHS[images]
        for seed in map(int, args.seeds.split(",")):
            data = make_shapes(args.folder / f"{images}_{seed}", train=images, val=VALIDATION, size=(HEIGHT, WIDTH),
                               seed=seed)
            for recipe in chosen:
                rows = read(file)
                key = {"recipe": recipe, "images": images, "epochs": epochs, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                begun = time.time()
                name = f"{images}_{epochs}_{seed}_{names.index(recipe)}"
                cfg = config_of(recipe, images, epochs, data, args.folder / "runs", weights)
                result = ppgfl.train(cfg, run_name=name, evaluate=True, seed=seed, scale_lr=False)
                row = {**key, "AP": result["AP"], "seconds": round(time.time() - begun, 1)}
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(f"{images} images, seed {seed}, {recipe}: {100 * result['AP']:.1f}", flush=True)
    print(table(read(file)))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
