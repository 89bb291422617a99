"""What the subjects of `compare.py` are asked on: drawn pictures, and weights drawn from a seed."""
import json
import pickle
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "golden"))
import make_weights  # noqa: E402

FEW = ["GFLHead.nms.score_threshold=0.5"]  # candidates of these weights: 1,900 an image instead of half a million


def draw_coco(folder, count):
    """So many pictures of the usual size with boxes of the 80 classes, in COCO's layout."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(parents=True)
    for i in range(count):
        height, width = (480, 640) if i % 2 else (427, 640)
        noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = cv2.resize(noise, (width, height))
        for _ in range(8):
            w, h = int(rng.integers(20, 300)), int(rng.integers(20, 300))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            picture[y:y + h, x:x + w] = rng.integers(0, 256, 3)
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "bbox": [x, y, w, h], "area": w * h,
                                "iscrowd": 0, "category_id": int(rng.integers(1, 81))})
        for split in ("train2017", "val2017"):
            cv2.imwrite(str(folder / split / f"{i}.jpg"), picture)
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "height": height, "width": width})
    content = json.dumps({"images": images, "annotations": annotations,
                          "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(80)]})
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}2017.json").write_text(content)
    return folder


def write_weights(model, folder):
    """Weights drawn from a seed, in a pickle that PaddleDetection's older numpy reads; written once."""
    path = folder / f"{model}.pdparams"
    if path.exists():
        return path
    data = pickle.dumps(make_weights.make(model), protocol=2)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path
