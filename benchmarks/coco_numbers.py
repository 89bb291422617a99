"""COCO's twelve numbers of drawn results, as many as those of val2017: by faster-coco-eval, which ppgfl takes, and by
pycocotools.

    python benchmarks/coco_numbers.py [--images 5000] [--detections 100]

Prints seconds and the memory that each takes beside the results, each in a process of its own, and the largest
difference between their numbers.
"""
import argparse
import contextlib
import io
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES, OBJECTS = 80, 7  # objects of an image, on average; two of a hundred are crowds


def draw(images, detections):
    """(objects, results) of COCO's format: each object is found twice, roughly; the other results lie anywhere."""
    rng = np.random.default_rng(0)
    objects, results = [], []
    for image in range(images):
        count = int(rng.poisson(OBJECTS))
        boxes = boxes_at(rng, count)
        classes = rng.integers(0, CLASSES, count)
        near = np.repeat(boxes, 2, axis=0)
        near += rng.normal(0, 0.1, near.shape) * near[:, [2, 3, 2, 3]]
        near[:, 2:] = np.abs(near[:, 2:]) + 1
        found = np.concatenate([near, boxes_at(rng, max(0, detections - len(near)))])
        labels = np.concatenate([np.repeat(classes, 2), rng.integers(0, CLASSES, len(found) - len(near))])
        scores = rng.random(len(found)).round(3)  # many are equal
        for kind, some, their in ((objects, boxes, classes), (results, found, labels)):
            kind += [{"id": len(kind) + i, "image_id": image, "category_id": int(label), "bbox": box.tolist(),
                      "area": float(box[2] * box[3]), "iscrowd": int(kind is objects and rng.random() < 0.02)}
                     for i, (box, label) in enumerate(zip(some, their), start=1)]
        for result, score in zip(results[-len(found):], scores):
            result["score"] = float(score)
    return objects, results


def boxes_at(rng, count):
    """[count, 4] x, y, width, height."""
    return np.c_[rng.uniform(0, 500, (count, 2)), np.exp(rng.uniform(2, 6, (count, 2)))]


def index(images, entries):
    coco = COCO()
    coco.dataset = {"images": [{"id": i} for i in range(images)], "categories": [{"id": i} for i in range(CLASSES)],
                    "annotations": entries}
    coco.createIndex()
    return coco


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(make, images, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (index(images, entries) for entries in draw(images, detections))
        before, start = peak_mib(), time.perf_counter()
        evaluator = make(truth, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return time.perf_counter() - start, peak_mib() - before, np.array(evaluator.stats[:12])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image (100)")
    args = parser.parse_args()
    start_new, numbers = multiprocessing.get_context("spawn"), []
    for make in (COCOeval_faster, COCOeval):
        with ProcessPoolExecutor(1, mp_context=start_new) as process:
            seconds, mib, stats = process.submit(measure, make, args.images, args.detections).result()
        numbers.append(stats)
        print(f"{make.__module__.split('.')[0]}: {seconds:.1f} s, {mib:.0f} MiB, AP {stats[0]:.6f}", flush=True)
    print(f"largest difference of the twelve numbers: {np.abs(numbers[0] - numbers[1]).max():.1e}")


if __name__ == "__main__":
    main()
