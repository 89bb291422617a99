"""VOC's mAP beside PaddleDetection's: its VOCDataSet reads the same files, its VOCMetric takes the same detections.

    python voc_map.py CONFIG [KEY=VALUE ...] --results bbox.json
    python voc_map.py --record

CONFIG has an EvalDataset of VOCDataSet, and bbox.json is what `ppgfl eval` with that config has written. Both programs
compute both types of AP, also of each class. PaddleDetection is the release in the peers' environment (see `peers.py`).
`--record` writes what its DetectionMAP makes of the drawn cases of tests/golden/cases.py.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
TYPES = ("11point", "integral")
DATASET_KEYS = ("dataset_dir", "image_dir", "anno_path", "label_list", "allow_empty")
CASES = range(6)


# --- PaddleDetection's process


def answer(job_file):
    """Print [[mAP, {class: AP}] for each of TYPES]; a class without detections is not among PaddleDetection's."""
    import cv2  # noqa: F401  before paddle: Paddle 2.6 brings a zlib that breaks an OpenCV loaded after it
    from ppdet.data.source.voc import VOCDataSet
    from ppdet.metrics import VOCMetric

    job = json.loads(Path(job_file).read_text())
    dataset = VOCDataSet(**job["dataset"], data_fields=["image", "gt_bbox", "gt_class", "difficult"])
    dataset.parse_dataset()
    answers = []
    for map_type in TYPES:
        metric = VOCMetric(dataset.get_label_list(), class_num=job["classes"], map_type=map_type)
        for record in dataset.roidbs:
            rows = np.array(job["rows"].get(os.path.abspath(record["im_file"]), []), np.float32).reshape(-1, 6)
            truth = {key: record[key][None] for key in ("gt_bbox", "gt_class", "difficult")}
            metric.update(truth, {"bbox": rows, "bbox_num": np.array([len(rows)])})
        metric.accumulate()
        answers.append(numbers_of(metric.detection_map, list(metric.catid2name.values())))
    print("@@" + json.dumps(answers))


def record():
    """Write tests/golden/values/voc_map.npz."""
    import cv2  # noqa: F401
    from ppdet.metrics.map_utils import DetectionMAP

    sys.path.append(str(GOLDEN))
    import cases

    values = {}
    for seed in CASES:
        case = cases.voc(seed)
        for map_type in TYPES:
            counted = DetectionMAP(case["classes"], map_type=map_type, catid2name=dict(enumerate("abcdefgh")))
            for truth, found in case["images"]:
                counted.update(found[:, 2:], found[:, 1], found[:, 0], truth[:, 1:5], truth[:, 0], truth[:, 5])
            counted.accumulate()
            mean, per_class = numbers_of(counted, range(case["classes"]))
            values[f"case{seed}_{map_type}"] = [mean] + [per_class.get(i, 0.0 if counted.class_gt_counts[i] else -1.0)
                                                         for i in range(case["classes"])]
    np.savez_compressed(GOLDEN / "values" / "voc_map.npz", **values)


def numbers_of(counted, names):
    """The mAP and {class: AP} of a DetectionMAP. It names results by their place among the classes with an object, and
    has none of a class without a detection: here each gets the name of its own class."""
    known = [name for name, count, found in zip(names, counted.class_gt_counts, counted.class_score_poss)
             if count and found]
    return counted.get_map(), dict(zip(known, (result["ap"] for result in counted.eval_results)))


# --- ppgfl, and the comparison


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("config", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    from peers import python_of

    if args.record:
        subprocess.run([python_of("paddledet"), __file__, "--answer", "record"], check=True)
        return
    sys.path.insert(0, str(ROOT))
    import ppgfl
    from ppgfl import build
    from ppgfl.evaluation import coco, metric

    cfg = ppgfl.load_config(args.config, args.overrides)
    dataset = build.build_dataset(cfg, "EvalDataset")
    results = coco.read_results(args.results, dataset)
    ours = [metric.measure({**cfg, "metric": "VOC", "map_type": map_type}, dataset, results) for map_type in TYPES]
    rows = defaultdict(list)
    file_of = {image["id"]: os.path.abspath(file) for image, file in zip(dataset.annotations.images, dataset.files)}
    for one in results:
        x, y, width, height = one["bbox"]
        rows[file_of[one["image_id"]]].append([dataset.category_ids.index(one["category_id"]), one["score"], x, y,
                                               x + width, y + height])
    job = {"rows": rows, "classes": len(dataset.class_names),
           "dataset": {key: cfg["EvalDataset"][key] for key in DATASET_KEYS if key in cfg["EvalDataset"]}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.json").write_text(json.dumps(job))
        done = subprocess.run([python_of("paddledet"), __file__, "--answer", f"{folder}/job.json"], check=True,
                              capture_output=True, text=True)
    theirs = json.loads(done.stdout.rpartition("@@")[2])
    print("| type | mAP of ppgfl | of PaddleDetection | difference | largest of a class |\n" + "| --- " * 5 + "|")
    for map_type, one, (value, per_class) in zip(TYPES, ours, theirs):
        worst = max((abs(ap - one.per_class[name]) for name, ap in per_class.items()), default=0.0)
        print(f"| {map_type} | {one.metrics['mAP']:.8f} | {value:.8f} | {abs(one.metrics['mAP'] - value):.1e} | "
              f"{worst:.1e} of {len(per_class)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        record() if sys.argv[2] == "record" else answer(sys.argv[2])
    else:
        main()
