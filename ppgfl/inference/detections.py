"""What was found on one image, and the formats it is written in."""
import json
from dataclasses import dataclass

import numpy as np

from ..data.image import read_image
from ..system import atomic_write


@dataclass
class Detections:
    """The objects found on one image, best score first.

    Attributes:
        boxes: [M, 4] float32 x1 y1 x2 y2 in pixels of the original image; not clipped to it.
        scores: [M] float32, 0 to 1.
        labels: [M] int64 class indices.
        names: their M class names.
        path: the image file, or None when the image was given as an array.
        image: [H, W, 3] uint8 BGR when it was given as an array, else None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list
    path: str = None
    image: np.ndarray = None

    @classmethod
    def from_rows(cls, rows, class_names, path=None, image=None):
        """rows: [M, 6] class, score, x1, y1, x2, y2 of one image, as the model returns them."""
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        labels = rows[:, 0].astype(np.int64)
        return cls(rows[:, 2:], rows[:, 1], labels, [name_of(label, class_names) for label in labels], path, image)

    def __len__(self):
        return len(self.scores)

    def above(self, threshold):
        """The detections that score at least `threshold`."""
        keep = self.scores >= threshold
        names = [name for name, kept in zip(self.names, keep) if kept]
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], names, self.path, self.image)

    def draw(self, threshold=0.5):
        """The image [H, W, 3] uint8 BGR with the boxes that score at least `threshold`."""
        from .draw import draw_boxes

        image = self.image if self.image is not None else read_image(self.path)[..., ::-1]
        return draw_boxes(image, self.above(threshold))

    def to_dict(self):
        """Plain values: {"file", "detections": [{"label", "name", "score", "box": [x1, y1, x2, y2]}]}."""
        return {"file": self.path, "detections": [
            {"label": int(label), "name": name, "score": round(float(score), 5),
             "box": [round(float(n), 2) for n in box]}
            for box, score, label, name in zip(self.boxes, self.scores, self.labels, self.names)]}

    def to_json(self):
        """`to_dict` as a JSON string."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def name_of(label, class_names):
    return class_names[label] if label < len(class_names) else f"class {label}"


def split_batch(output):
    """The model's {"bbox", "bbox_num"}, tensors or arrays -> one array [M, 6] per image."""
    rows = np.asarray(output["bbox"]).reshape(-1, 6)
    return np.split(rows, np.cumsum(np.asarray(output["bbox_num"]))[:-1])


def coco_records(rows, image_id, category_ids):
    """[M, 6] of one image -> COCO results: x, y, width, height in pixels of the original image.

    PaddleDetection: with `upstream_scores` GFLv2's last channel comes out as a class that does not exist; it is left
    out here.
    """
    return [{"image_id": image_id, "category_id": category_ids[int(label)],
             "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)], "score": float(score)}
            for label, score, x1, y1, x2, y2 in rows if label < len(category_ids)]


def write_csv(path, found):
    """One row per detection of a list of `Detections`."""
    rows = [[one.path, row["label"], row["name"], row["score"], *row["box"]]
            for one in found for row in one.to_dict()["detections"]]
    atomic_write.write_csv(path, [["file", "label", "name", "score", "x1", "y1", "x2", "y2"], *rows])
