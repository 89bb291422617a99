"""Whether a fast device is kept busy: images a second with a stand-in for it that takes a fixed time for each batch, against
what the slower of the two sides allows, that device or the threads that prepare images. No card and no weights are needed.

    python benchmarks/feeding.py --image_dir photos

The stand-in sleeps, which leaves the processor to the preparation as a GPU does, and finds one thing in each image.
"""
import argparse
import asyncio
import contextlib
import logging
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "deploy/serving")]

import ppgfl  # noqa: E402
from ppgfl.build import build_loader  # noqa: E402
from ppgfl.data import loader  # noqa: E402
from ppgfl.inference import detector, runner  # noqa: E402
from ppgfl.inference import infer as infer_module  # noqa: E402

PREPROCESS = [{"type": "Resize", "target_size": [800, 1333], "keep_ratio": True, "interp": 1},
              {"type": "NormalizeImage", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True},
              {"type": "Permute"}, {"type": "PadStride", "stride": 32}]
ROW = np.array([[0, 0.9, 10, 20, 50, 60]], np.float32)
deploy = runner.load_runner()


class Device:
    """The stand-in: `latency` seconds for a batch, and a count of what it was given."""

    def __init__(self, latency):
        self.latency, self.seen, self.lock = latency, [], threading.Lock()

    def __call__(self, image):
        with self.lock:
            time.sleep(self.latency)
            self.seen += [int(one.shape[-1]) for one in image]
        return [np.tile(ROW, (len(image), 1)), np.ones(len(image), np.int32)]


class Counted:
    """Images that are prepared and not detected on yet, at most."""

    def __init__(self, device):
        self.device, self.now, self.most, self.lock = device, 0, 0, threading.Lock()

    def add(self, count):
        with self.lock:
            self.now += count
            self.most = max(self.most, self.now)


class StandIn(deploy.BaseRunner):
    """A runner of deploy/python/infer.py, whose model is a `Device`."""

    def load(self, path, run_mode, engine, provider):
        self.model_file, self.class_names, self.preprocess = path, ["thing"], PREPROCESS
        self.inputs, self.engine, self.description = ["image"], "stand-in", "a stand-in"

    def use(self, device):
        self.device_of, self.counted = device, Counted(device)
        return self

    def prepare(self, images):
        self.counted.add(len(images))
        return super().prepare(images)

    def run(self, arrays):
        outputs = self.device_of(arrays["image"])
        self.counted.add(-len(arrays["image"]))
        return outputs


class Model:
    """What `open_detector` takes as a model, with a `Device` in it."""

    class_names = None

    def __init__(self, device):
        self.device = device

    def eval(self):
        pass

    def __call__(self, batch):
        rows, counts = self.device(batch["image"])
        return {"bbox": rows, "bbox_num": counts}


@contextlib.contextmanager
def threads_are(count):
    """Inside, whatever prepares or writes does it in so many threads."""
    before = deploy.helpers, loader.MAX_THREADS, runner.runtime.physical_cores
    deploy.helpers = lambda device, cores: count
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        deploy.helpers, loader.MAX_THREADS, runner.runtime.physical_cores = before


# --- the five ways; each returns (images a second, images in flight at most or None)


def of_runner(files, latency, threads, folder):
    run = StandIn("none").use(Device(latency))
    args = SimpleNamespace(output_dir=str(folder), batch_size=1, threshold=0.95, save_results=True, device="GPU",
                           cpu_threads=threads)
    start = time.perf_counter()
    with contextlib.redirect_stdout(None):
        deploy.detect_files(run, files, args, lambda: None)
    return len(files) / (time.perf_counter() - start), run.counted.most


def of_infer(files, latency, threads, folder):
    """`ppgfl infer` without pictures: its Loader in threads, a model."""
    cfg = config(threads)
    model = Model(Device(latency))
    opened = infer_module.open_detector
    infer_module.open_detector = lambda cfg, **_: detector.open_detector(cfg, model=model)
    start = time.perf_counter()
    try:
        ppgfl.inference.infer.infer(cfg, files, output_dir=folder, pictures=False, save_results="json")
    finally:
        infer_module.open_detector = opened
    return len(files) / (time.perf_counter() - start), None


def of_evaluate(files, latency, threads, folder):
    """The images of an evaluation through an exported model."""
    run = StandIn("none").use(Device(latency))
    make, detector.make_runner = detector.make_runner, lambda path, **settings: run
    try:
        detect = detector.open_detector(config(threads), exported="none")
    finally:
        detector.make_runner = make
    start = time.perf_counter()
    found = list(detect.detect_records([{"im_id": i, "im_file": file} for i, file in enumerate(files)]))
    seconds = time.perf_counter() - start
    assert [i for i, _ in found] == list(range(len(files)))
    return len(files) / seconds, run.counted.most


def of_service(files, latency, threads, folder):
    """32 clients at a time, without the network."""
    import server

    run = StandIn("none", cpu_threads=threads).use(Device(latency))
    service = server.Service(run, max_batch=1, max_queue=64)
    contents, semaphore = [Path(file).read_bytes() for file in files], asyncio.Semaphore(32)

    async def ask(data):
        async with semaphore:
            return await service.detect(data, 0)

    async def all_of_them():
        return await asyncio.gather(*[ask(data) for data in contents])

    start = time.perf_counter()
    asyncio.run(all_of_them())
    seconds = time.perf_counter() - start
    service.batcher.stop()
    return len(files) / seconds, run.counted.most


def of_train(files, latency, threads, folder):
    """The training loader with that many worker processes, batches of 2, and the stand-in as the step."""
    cfg = config(threads, f"worker_num={threads}", "TrainReader.batch_size=2")
    device, records = Device(latency), train_records(files)
    batches = build_loader(cfg, "TrainReader", records)
    start = time.perf_counter()
    for batch in batches.epoch():
        device(batch["image"])
    return 2 * len(batches) / (time.perf_counter() - start), None


WAYS = {"runner": of_runner, "infer": of_infer, "evaluate": of_evaluate, "service": of_service, "train": of_train}


# --- what the host alone can do


def bound(way, files, threads):
    """Images a second that the threads prepare when nobody else does anything."""
    cfg = config(threads)
    prepare = StandIn("none").use(Device(0)).prepare
    if way == "train":
        batches = build_loader({**cfg, "worker_num": threads, "TrainReader": {**cfg["TrainReader"], "batch_size": 2}},
                               "TrainReader", train_records(files))
        start = time.perf_counter()
        for _ in batches.epoch():
            pass
        return 2 * len(batches) / (time.perf_counter() - start)

    def one(file):
        image = deploy.read_image(file)
        arrays = prepare([image])
        if way == "runner":  # it draws and writes as well, in as many threads
            deploy.encode("a.jpg", image)
        return arrays["image"].shape

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, files))
    return len(files) / (time.perf_counter() - start)


def config(threads, *more):
    loader.MAX_THREADS = threads
    return ppgfl.load_config("gfl_r18vd_1x_coco", ["worker_num=0", "use_gpu=false", "engine=dygraph", *more])


def train_records(files):
    box = np.array([[10, 20, 50, 60]], np.float32)
    return [{"im_id": i, "im_file": file, "gt_bbox": box, "gt_class": np.zeros(1, np.int64),
             "is_crowd": np.zeros(1, np.int64)} for i, file in enumerate(files)]


def measure(way, files, latency, threads, folder):
    """-> images a second, those that the slower side allows, images in flight at most or None."""
    with threads_are(threads):
        host = bound(way, files, threads)
        rate, most = WAYS[way](files, latency, threads, Path(folder, f"{way}_{threads}_{latency}"))
        host = max(host, bound(way, files, threads))  # before and after: others use the machine too
    return rate, min(host, (2 if way == "train" else 1) / latency), most


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--image_dir", required=True)
    parser.add_argument("--images", type=int, default=100, help="at a time, of the folder and again of it (100)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    logging.disable(logging.INFO)
    files = deploy.find_images(args.image_dir)
    with tempfile.TemporaryDirectory() as folder:
        files = [link(file, Path(folder, f"{i:04d}{Path(file).suffix}"))
                 for i, file in enumerate((files * args.images)[:args.images])]
        print("| way | threads | ms a batch | images/s | the slower side allows | share | in flight |\n" + "|---" * 7 + "|")
        for way in args.ways:
            for threads in (1, 2):
                for latency in (0.005, 0.010):
                    rate, allowed, most = measure(way, files, latency, threads, folder)
                    print(f"| {way} | {threads} | {1000 * latency:.0f} | {rate:.1f} | {allowed:.1f} | {rate / allowed:.2f} "
                          f"| {most or ''} |", flush=True)


def link(file, path):
    path.symlink_to(Path(file).resolve())
    return str(path)


if __name__ == "__main__":
    main()
