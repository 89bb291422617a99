#!/usr/bin/env python3
"""Run a GFL detector from one ONNX file. One file to copy: it needs numpy, OpenCV and ONNX Runtime, and no Paddle.

    python infer.py --model model.onnx --image_dir photos --output_dir output
    python infer.py --model model.onnx --image_file photo.jpg --run_benchmark

The file holds its class names, how images are prepared and the settings of the NMS as metadata.
"""
import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# A small file can claim far more pixels than an image of 16,384 x 16,384; OpenCV looks at this with its first image.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))


class RunnerError(ValueError):
    """A file that cannot be used; the message is one line with the mend."""


class Runner:
    """A detector from `model.onnx`.

    Args:
        path: a file that `tools/export_model.py --onnx` of ppgfl wrote, with or without the NMS inside.
        threads: of the CPU; 0: ONNX Runtime decides.
        providers: of ONNX Runtime, as ["CUDAExecutionProvider", "CPUExecutionProvider"].

    Attributes:
        class_names: by class index.
        description: the file, and what runs it.
        nms: score_threshold, nms_top_k, keep_top_k, nms_threshold.
    """

    def __init__(self, path, threads=0, providers=("CPUExecutionProvider",)):
        if not Path(path).is_file():
            raise RunnerError(f"{Path(path).absolute()}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # ONNX Runtime raises kinds of its own
            raise RunnerError(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())[-300:]}") from error
        about = self.session.get_modelmeta().custom_metadata_map
        missing = [key for key in ("class_names", "preprocess", "nms") if key not in about]
        if missing:
            raise RunnerError(f"{path}: has no {', '.join(missing)} in its metadata; write it with "
                             "tools/export_model.py --onnx")
        self.class_names, self.nms = json.loads(about["class_names"]), json.loads(about["nms"])
        self.steps = {step["type"]: step for step in json.loads(about["preprocess"])}
        self.description = f"{Path(path).name} in ONNX Runtime {onnxruntime.__version__}"
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, images):
        """Images [H, W, 3] uint8 BGR of any sizes -> per image [M, 6] class, score, x1, y1, x2, y2 in its own pixels,
        best score first."""
        return [self.detect(image) for image in images]

    def detect(self, image):
        """`__call__` of one image."""
        arrays = self.prepare(image)
        takes, made = self.session.get_inputs()[0].shape, arrays["image"].shape
        if any(isinstance(n, int) and n != m for n, m in zip(takes, made)):
            raise RunnerError(f"the model takes images of {takes}, its preparation makes {list(made)}; export it with "
                             "keep_ratio: false in Resize, or with image_shape: [3, -1, -1]")
        first, second = self.session.run(None, arrays)
        if self.outputs == ["boxes", "scores"]:
            return suppress(first[0], second[0], **self.nms)
        return first

    def prepare(self, image):
        """-> {"image": [1, 3, H, W] float32, "scale_factor": [1, 2]}; H and W are multiples of the stride."""
        height, width = new_height, new_width = image.shape[:2]
        image = np.ascontiguousarray(image[..., ::-1])
        if "Resize" in self.steps:
            rule = self.steps["Resize"]
            new_height, new_width = target = rule["target_size"]
            if rule["keep_ratio"]:
                ratio = min(min(target) / min(height, width), max(target) / max(height, width))
                new_height, new_width = (max(1, int(ratio * side + 0.5)) for side in (height, width))
            image = cv2.resize(image, (new_width, new_height), interpolation=rule.get("interp", 1))
        image = image.astype(np.float32)
        if "NormalizeImage" in self.steps:
            colors = self.steps["NormalizeImage"]
            if colors.get("is_scale", True):
                image *= np.float32(1 / 255)
            if colors.get("norm_type", "mean_std") == "mean_std":
                image = (image - np.float32(colors["mean"])) / np.float32(colors["std"])
        stride = self.steps.get("PadStride", {}).get("stride", 32)
        padded = np.zeros((1, 3, -(-new_height // stride) * stride, -(-new_width // stride) * stride), np.float32)
        padded[0, :, :new_height, :new_width] = image.transpose(2, 0, 1)
        return {"image": padded, "scale_factor": np.float32([[new_height / height, new_width / width]])}


def suppress(boxes, scores, *, score_threshold, nms_top_k, keep_top_k, nms_threshold):
    """Per-class NMS: boxes [A, 4], scores [A, C] -> [M, 6] class, score, x1, y1, x2, y2, best score first."""
    if 0 < nms_top_k < len(scores):  # only the best cells of a class enter
        scores = np.where(scores >= np.partition(scores, -nms_top_k, axis=0)[-nms_top_k], scores, -1)
    cells, labels = np.nonzero(scores > score_threshold)
    order = np.argsort(-scores[cells, labels], kind="stable")
    cells, labels = cells[order], labels[order]
    kept, alive = [], np.ones(len(cells), bool)
    for i in range(len(cells)):
        if len(kept) == keep_top_k:
            break
        if alive[i]:
            kept.append(i)
            rivals = np.flatnonzero((labels == labels[i]) & alive)
            alive[rivals] = overlap(boxes[cells[i]], boxes[cells[rivals]]) <= nms_threshold
    cells, labels = cells[kept], labels[kept]
    return np.column_stack([labels, scores[cells, labels], boxes[cells]]).astype(np.float32)


def overlap(box, boxes):
    """IoU of one box [4] with boxes [M, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = sides.clip(0).prod(axis=1)
    return common / np.maximum((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common, 1e-9)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model", required=True, help="model.onnx")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image_file")
    images.add_argument("--image_dir", help="searched recursively")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: ONNX Runtime decides)")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score drawn and saved (0.5)")
    parser.add_argument("--output_dir", default="output", help="pictures and results.json go here (output)")
    parser.add_argument("--run_benchmark", action="store_true", help="print milliseconds per image, write nothing")
    args = parser.parse_args()
    ctrl_c = CtrlC()
    try:
        runner = Runner(args.model, args.threads)
        files = find_images(Path(args.image_file or args.image_dir))
        if args.run_benchmark:
            benchmark(runner, files[0], ctrl_c)
        else:
            detect(runner, files, args.threshold, Path(args.output_dir), ctrl_c)
    except RunnerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; mend that, or choose another path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 130
    return 0


class CtrlC:
    """The first Ctrl-C waits for the next `obey`: in the midst of a C++ library it may turn up as another error. The
    second acts at once. Where the parent ignores it, as a shell script does for what it starts with `&`, it stays
    ignored."""

    def __init__(self):
        self.pressed = False
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, self._press)

    def _press(self, *_):
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def obey(self):
        if self.pressed:
            raise KeyboardInterrupt


def find_images(path):
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else []
    if not files:
        raise RunnerError(f"{path.absolute()}: no image there")
    return files


def read_image(path):
    """[H, W, 3] uint8 BGR; also from paths that OpenCV cannot open by itself on Windows."""
    data, image = np.fromfile(path, np.uint8), None
    with contextlib.suppress(cv2.error):  # as of more pixels than allowed, or of an empty file
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise RunnerError(f"{path}: not an image that OpenCV can read")
    return image


def detect(runner, files, threshold, folder, ctrl_c):
    results = []
    for number, path in enumerate(files):
        ctrl_c.obey()
        image = read_image(path)
        rows = runner.detect(image)
        rows = rows[rows[:, 1] >= threshold]
        for label, score, *box in rows:
            x1, y1, x2, y2 = (int(n) for n in np.clip(np.round(box), -10_000, 100_000))
            cv2.rectangle(image, (x1, y1), (x2, y2), (60, 200, 60), 2)
            cv2.putText(image, f"{runner.class_names[int(label)]} {score:.2f}", (max(0, x1), max(12, y1 - 4)),
                        cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 200, 60), 1, cv2.LINE_AA)
        # Numbered, since two folders may hold pictures of one name.
        write(folder / f"{number:06d}_{path.stem}.jpg", cv2.imencode(".jpg", image)[1])
        results.append({"file": str(path), "detections": [
            {"label": int(row[0]), "name": runner.class_names[int(row[0])], "score": round(float(row[1]), 5),
             "box": [round(float(n), 2) for n in row[2:]]} for row in rows]})
    write(folder / "results.json", json.dumps(results, ensure_ascii=False).encode("utf-8"))
    print(f"{len(files)} pictures and results.json in {folder.resolve()}")


def write(path, data):
    """Write all of a file, or raise OSError with the path and leave what was there."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def benchmark(runner, path, ctrl_c, seconds=10.0):
    image, times = read_image(path), []
    runner.detect(image)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        ctrl_c.obey()
        start = time.perf_counter()
        runner.detect(image)
        times.append(time.perf_counter() - start)
    print(f"{1000 * np.median(times):.1f} ms per image (median of {len(times)}), {1 / np.median(times):.2f} images/s")


if __name__ == "__main__":
    sys.exit(main())
