"""What several tests use: places, small configs and data, commands as a user runs them."""
import csv
import json
import os
import pickle
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT), str(GOLDEN)]

from cases import sample  # noqa: E402, F401  for the tests

import ppgfl  # noqa: E402  before paddle, as every program must

ZOO = ["gfl_r50_fpn_1x_coco", "gfl_r101vd_fpn_mstrain_2x_coco", "gfl_r34vd_1x_coco", "gfl_r18vd_1x_coco",
       "gflv2_r50_fpn_1x_coco"]
# Files that are no image; the last one claims 10^10 pixels.
UNREADABLE = {
    "empty": b"", "text": b"text",
    "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * (100_000).to_bytes(4, "big") + b"\x08\x02\0\0\0" + bytes(500)}
COCO_MINI = ROOT.parent / "shared" / "data" / "coco_mini"
LOSSES = ("loss", "loss_qfl", "loss_bbox", "loss_dfl")
LD_LOSSES = ["loss_ld", "loss_ld_vlr", "loss_kd"]
MANY = 150  # images: long enough to be killed amid
CONTENT = pickle.dumps({"w": np.arange(50_000, dtype=np.float32)}, protocol=2)  # of the `server`


def recorded(name):
    return np.load(GOLDEN / "values" / f"{name}.npz")


def tiny_config(name="gfl_r18vd_1x_coco", *overrides):
    """A shipped config with images of about 64 pixels: real layers, small work. It runs in dygraph, where the first
    detection takes a second; the static graph, which is the default on a CPU, is made for eight: give engine=auto."""
    sizes = [f"{reader}.sample_transforms.{i}.Resize.target_size=[64, 96]"
             for reader, i in (("TrainReader", 2), ("EvalReader", 1), ("TestReader", 1))]
    return ppgfl.load_config(name, [*sizes, "worker_num=0", "use_gpu=false", "engine=dygraph", *overrides])


def draw_image(rng, height, width):
    """Coloured rectangles on noise, [H, W, 3] uint8, and their boxes x y w h."""
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    boxes = []
    for _ in range(3):
        w, h = rng.integers(12, width // 2), rng.integers(12, height // 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        image[y:y + h, x:x + w] = rng.integers(100, 255, 3)
        boxes.append([int(n) for n in (x, y, w, h)])
    return image, boxes


def run_tool(name, *arguments, cwd):
    """Run tools/NAME.py as a user does -> the finished process with text output. Two seconds go by before it does
    anything: what needs no process of its own is tried with the fixture `run_here`."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def match(found, wanted, *, pixels=1e-2, score=1e-4):
    """Assert that two arrays of detections [M, 6] are the same, but for the places of equal scores."""
    assert found.shape == wanted.shape
    left = list(range(len(found)))
    for row in wanted:
        best = min(left, key=lambda i: np.abs(found[i] - row).max())
        left.remove(best)
        assert found[best, 0] == row[0]
        np.testing.assert_allclose(found[best, 1], row[1], atol=score)
        np.testing.assert_allclose(found[best, 2:], row[2:], atol=pixels)


SHORT = ["ResNet.num_stages=3", "ResNet.return_idx=[1, 2]", "FPN.extra_stage=1"]  # a quarter of ResNet18's parameters


def options(shapes, folder, *more):
    """Overrides for a short training run of a small network."""
    return [f"{s}.dataset_dir={shapes}" for s in ("TrainDataset", "EvalDataset", "TestDataset")] + [
        f"save_dir={folder}", "TrainReader.batch_size=2", "epoch=2", "snapshot_epoch=1", "log_iter=2", "use_gpu=false",
        "LearningRate.base_lr=0.005", *SHORT, "FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32",
        "GFLHead.conv_feat.feat_out=32", "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1", *more]


TEACHER = ["ResNet.depth=18", "FPN.out_channel=32", "GFLHead.conv_feat.feat_in=32", "GFLHead.conv_feat.feat_out=32",
           "GFLHead.feat_in_chan=32", "GFLHead.conv_feat.num_convs=1"]


def config(shapes, folder, *more, name="shapes_gfl_1x"):
    return ppgfl.load_config(name, options(shapes, folder, *more))


def rows(folder):
    with open(folder / "run" / "results.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same(a, b):
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return np.array_equal(a, b)


def rows_of(folder):
    with open(folder / "results.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def launch(script, *arguments, cwd, timeout=240):
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo",
               "--log_dir", str(cwd / "log"), str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def infer_many(folder, weights, *more):
    """Arguments of `infer` for a folder of images, with results in shards below out."""
    return ["-c", "gfl_r18vd_1x_coco", "-o", f"weights={weights}", "use_gpu=false", "worker_num=0",
            "TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "--infer_dir", str(folder), "--save_results",
            "jsonl", "--no_pictures", "--output_dir", "out", *more]


def lines_of(folder):
    """Of all shards, in order."""
    return [json.loads(line) for path in sorted(folder.glob("results-*.jsonl"))
            for line in path.read_text(encoding="utf-8").split("\n") if line]


def start_fetch(url):
    """A process that downloads a file and prints where it is."""
    code = "import sys; from ppgfl.weights import download; print(download.fetch(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def image(path, height=50, width=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, np.zeros((height, width, 3), np.uint8))[1].tofile(str(path))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


SPELLINGS = ["plain", "two words", " blank in front", "bild é", "数据", "🙂", "a,b;c", 'say "x"', "it's", "back\\slash",
             "#7", "~home", "-o", "=1+1", "100%", "a=b", "line\nbreak", "return\rhere", "tab\there", "\x1b[31m",
             "$HOME", "*", "[1]", "..two", "a.jpg", "x.tmp", "\u2028", "e\u0301", "\u202egnp", "end "]
BYTES = [b"caf\xe9", b"\xff\xfe", b"\xb0\xa1\xc4", b"a\x80\xf0b"]  # Latin-1, no encoding, GBK, a letter's first byte
ENDINGS = [".png", ".jpg", ".JPG", ".jpeg", ".bmp", ".WebP", ".tif", ".tiff"]


def files_of_all_names(folder, count=200, seed=0):
    """Write images of 9 x 8 pixels below a folder, under names of all spellings, bytes and lengths, as links and in
    sub-folders -> the names, relative to it, that a walk should find."""
    rng = np.random.default_rng(seed)
    data, names = cv2.imencode(".png", np.full((8, 9, 3), 99, np.uint8))[1].tobytes(), []
    for name in ("target", "sub"):
        (folder / name).mkdir(parents=True)
    (folder / "target" / "one.png").write_bytes(data)
    folders = ["", "sub", "clip.jpg", os.fsdecode(b"\xe9\xe8")]  # the third: a folder with the name of an image
    for number in range(count - 1):
        spelled = os.fsencode(SPELLINGS[number % len(SPELLINGS)]) if rng.random() < 0.7 else BYTES[number % len(BYTES)]
        ending = str(rng.choice(ENDINGS)).encode()
        if rng.random() < 0.3:
            spelled = (spelled + "数".encode() * 90)[:255 - len(ending) - 3] + b"%03d" % number  # cut amid a letter
        else:
            spelled += b"" if number < len(SPELLINGS) else b"%d" % number
        name = os.path.join(str(rng.choice(folders)), os.fsdecode(spelled.lstrip(b".") + ending))
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if rng.random() < 0.3:
            path.symlink_to(folder / "target" / "one.png")
        else:
            path.write_bytes(data)
        names.append(name)
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "sub")
    (folder / ".hidden.png").write_bytes(data)
    return [*names, os.path.join("target", "one.png")]


def voc_object(name, *box):
    numbers = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><bndbox>{numbers}</bndbox></object>"


def coco_as_voc(source, folder, split, *, difficult=lambda annotation: 0, more=1):
    """Write what instances_SPLIT.json of `source` lists as VOC's files: SPLIT.txt, label_list.txt, SPLIT/*.xml in
    `folder`, beside links to the images. Their boxes are (x, y) to (x + width, y + height), as `VOCDataSet` reads them;
    the images are said to have a row and a column `more`, since it cuts boxes at width - 1."""
    content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    (folder / split).mkdir(parents=True)
    lines = []
    for one in content["images"]:
        image = folder / split / one["file_name"]
        image.symlink_to(source / split / one["file_name"])
        objects = [voc_object(names[a["category_id"]], a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2],
                              a["bbox"][1] + a["bbox"][3]).replace("<bndbox>", f"<difficult>{difficult(a)}</difficult>"
                                                                   "<bndbox>")
                   for a in content["annotations"] if a["image_id"] == one["id"] and not a["iscrowd"]]
        image.with_suffix(".xml").write_text(
            f"<annotation><size><width>{one['width'] + more}</width><height>{one['height'] + more}</height></size>"
            f"{''.join(objects)}</annotation>")
        lines.append(f"{split}/{image.name} {split}/{image.stem}.xml")
    (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (folder / "label_list.txt").write_text("\n".join(names.values()) + "\n")
    return folder


def coco_as_yolo(source, folder, splits):
    """Write what instances_SPLIT.json of `source` lists as YOLO's files: data.yaml, images/SPLIT, labels/SPLIT."""
    for split in splits:
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        places = {category["id"]: i for i, category in enumerate(content["categories"])}
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for one in content["images"]:
            (folder / "images" / split / one["file_name"]).symlink_to(source / split / one["file_name"])
            lines = []
            for a in content["annotations"]:
                if a["image_id"] == one["id"] and not a["iscrowd"]:
                    (x, y, w, h), (width, height) = a["bbox"], (one["width"], one["height"])
                    numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                    lines.append(" ".join([str(places[a["category_id"]]), *(f"{n:.12g}" for n in numbers)]))
            (folder / "labels" / split / one["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    names = json.dumps([category["name"] for category in content["categories"]])
    paths = dict(zip(("train", "val"), splits))
    (folder / "data.yaml").write_text("path: .\n" + "".join(
        f"{key}: images/{split}\n" for key, split in paths.items()) + f"names: {names}\n")
    return folder


def run_ppgfl(*arguments, cwd=ROOT):
    code = "import sys; from ppgfl.cli import entry; sys.exit(entry())"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=120, check=False)


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.behave(path, number of the request for it)` says: status, promised length, bytes, seconds."""

    def do_GET(self):
        count = self.server.requests.setdefault(self.path, 0) + 1
        self.server.requests[self.path] = count
        status, length, content, seconds = self.server.behave(self.path, count)
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        for start in range(0, len(content), 1 << 14):
            self.wfile.write(content[start:start + (1 << 14)])
            time.sleep(seconds)
        self.close_connection = True

    def log_message(self, *args):
        pass


def whole(path, count):
    return 200, len(CONTENT), CONTENT, 0


def segments():
    return set(os.listdir("/dev/shm"))


def no_segment_is_left(before):
    """Of processes that have ended. What others on this machine use meanwhile goes within a minute."""
    new = segments() - before
    for _ in range(600):
        if not new & segments():
            return True
        time.sleep(0.1)
    return False
