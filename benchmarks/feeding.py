"""Whether a fast device is kept busy: images a second with a stand-in that takes a fixed time for each batch, against
what the slower of the two sides allows, the device or the threads that prepare images. It needs no card, no weights.

    python benchmarks/feeding.py --image_dir photos
    python benchmarks/feeding.py --prepare_ms 14      # preparation is a stand-in too, for a machine that others use

The stand-in sleeps, which leaves the processor to the preparation as a GPU does, and finds one thing in each image.
What a GPU would do of the preparation, looking up normalised values, is not done.
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
from unittest import mock

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "deploy/serving")]

import ppgfl  # noqa: E402
from ppgfl.build import build_loader, build_reader  # noqa: E402
from ppgfl.data import device as to_device  # noqa: E402
from ppgfl.data import image, loader, transforms  # noqa: E402
from ppgfl.inference import detector, runner  # noqa: E402
from ppgfl.inference import infer as infer_module  # noqa: E402
from ppgfl.system import framework, runtime  # noqa: E402

SIZE = [800, 1333]  # of the prepared images
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}
ROW = np.array([[0, 0.9, 10, 20, 50, 60]], np.float32)
deploy = runner.load_runner()


class Device:
    """The stand-in: `latency` seconds for a batch, one at a time."""

    def __init__(self, latency):
        self.latency, self.lock = latency, threading.Lock()

    def __call__(self, image):
        with self.lock:
            time.sleep(self.latency)
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
        self.model_file, self.class_names = path, ["thing"]
        self.preprocess = [{"type": "Resize", "target_size": SIZE}, {"type": "NormalizeImage", **NORMALIZE},
                           {"type": "Permute"}]
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
    """Inside, whatever prepares or writes does it in so many threads, for a device that looks up by itself."""
    changes = [(deploy, "helpers", lambda device, cores: count), (loader, "MAX_THREADS", count),
               (runtime, "physical_cores", lambda: count), (framework, "on_gpu", lambda: True),
               (to_device, "normalized", lambda image, *_: image)]
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        yield


@contextlib.contextmanager
def reading_takes(seconds):
    """Inside, an image is a small one that takes so long to read."""
    def read(path):
        time.sleep(seconds)
        return np.zeros((64, 96, 3), np.uint8)

    with mock.patch.object(deploy, "read_image", read), mock.patch.object(image, "read_image", read), \
            mock.patch.object(transforms, "read_image", read), mock.patch.dict(globals(), SIZE=[64, 96]):
        yield


# --- the five ways; each returns (images a second, images in flight at most or None)


def of_runner(files, latency, threads, folder):
    run = StandIn("none").use(Device(latency))
    args = SimpleNamespace(output_dir=str(folder), batch_size=1, threshold=0.95, save_results=True, device="GPU",
                           cpu_threads=threads, slice_infer=False)
    start = time.perf_counter()
    with contextlib.redirect_stdout(None):
        deploy.detect_files(run, files, args, lambda: None)
    return len(files) / (time.perf_counter() - start), run.counted.most


def of_infer(files, latency, threads, folder):
    """`ppgfl infer` without pictures: its Loader in threads, a model."""
    cfg, model = config(), Model(Device(latency))
    with mock.patch.object(infer_module, "open_detector", lambda cfg, **_: detector.open_detector(cfg, model=model)):
        start = time.perf_counter()
        infer_module.infer(cfg, files, output_dir=folder, pictures=False, save_results="json")
    return len(files) / (time.perf_counter() - start), None


def of_evaluate(files, latency, threads, folder):
    """The images of an evaluation through an exported model."""
    run = StandIn("none").use(Device(latency))
    with mock.patch.object(detector, "make_runner", lambda path, **settings: run):
        detect = detector.open_detector(config(), exported="none")
    start = time.perf_counter()
    found = list(detect.detect_records([{"im_id": i, "im_file": file} for i, file in enumerate(files)]))
    seconds = time.perf_counter() - start
    assert [i for i, _ in found] == list(range(len(files)))
    return len(files) / seconds, run.counted.most


def of_service(files, latency, threads, folder):
    """32 clients at a time, without the network."""
    import server  # noqa: F401  it says where deploy/python is
    from service import Service

    run = StandIn("none", cpu_threads=threads).use(Device(latency))
    service = Service(run, max_batch=1, max_queue=64)
    service.decode = lambda file, number: deploy.read_image(file)  # as the others do it
    service.decoders = ThreadPoolExecutor(threads)

    async def all_of_them():
        semaphore = asyncio.Semaphore(32)

        async def ask(file):
            async with semaphore:
                return await service.detect(file, 0)

        return await asyncio.gather(*[ask(file) for file in files])

    start = time.perf_counter()
    asyncio.run(all_of_them())
    seconds = time.perf_counter() - start
    service.batcher.stop()
    service.decoders.shutdown()
    return len(files) / seconds, run.counted.most


def of_train(files, latency, threads, folder):
    """The training loader with that many worker processes, batches of 2, and the stand-in as the step."""
    batches, device = train_batches(files, threads), Device(latency)
    start = time.perf_counter()
    for batch in batches.epoch():
        device(batch["image"])
    return 2 * len(batches) / (time.perf_counter() - start), None


def train_batches(files, workers):
    box = np.array([[10, 20, 50, 60]], np.float32)
    records = [{"im_id": i, "im_file": file, "gt_bbox": box, "gt_class": np.zeros(1, np.int64),
                "is_crowd": np.zeros(1, np.int64)} for i, file in enumerate(files)]
    return build_loader(config(f"worker_num={workers}", "TrainReader.batch_size=2"), "TrainReader", records)


def config(*more):
    readers = [f"{reader}.sample_transforms.{i}.Resize.target_size={SIZE}"
               for reader, i in (("TrainReader", 2), ("EvalReader", 1), ("TestReader", 1))]
    return ppgfl.load_config("gfl_r18vd_1x_coco", ["worker_num=0", "use_gpu=false", "engine=dygraph", *readers, *more])


WAYS = {"runner": of_runner, "infer": of_infer, "evaluate": of_evaluate, "service": of_service, "train": of_train}


# --- what the host alone can do


def bound(way, files, threads):
    """Images a second that the threads prepare when nobody else does anything."""
    prepare = StandIn("none").use(Device(0)).prepare
    if way == "infer":
        prepare = to_device.for_device(build_reader(config(), "TestReader"))
    if way == "train":
        batches = train_batches(files, threads)
        start = time.perf_counter()
        for _ in batches.epoch():
            pass
        return 2 * len(batches) / (time.perf_counter() - start)

    def one(file):
        image = deploy.read_image(file)
        prepare([image])
        if way == "runner":  # it writes pictures as well
            deploy.encode("a.jpg", image)

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, files))
    return len(files) / (time.perf_counter() - start)


def device_alone(latency, batches=50):
    """Batches a second of the stand-in when nobody else does anything."""
    device, image = Device(latency), np.zeros((1, 3, 2, 2))
    start = time.perf_counter()
    for _ in range(batches):
        device(image)
    return batches / (time.perf_counter() - start)


def measure(way, files, latency, threads, folder, rounds=1):
    """-> images a second, those that the slower side allows, both the best of the rounds, and images in flight at most
    or None."""
    with threads_are(threads):
        hosts, rates, devices = [], [], []
        for i in range(rounds):  # by turns: others may use the machine too
            hosts.append(bound(way, files, threads))
            devices.append(device_alone(latency) * (2 if way == "train" else 1))
            rates.append(WAYS[way](files, latency, threads, Path(folder, f"{way}_{threads}_{latency}_{i}")))
    return max(rate for rate, _ in rates), min(max(hosts), max(devices)), rates[0][1]


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image_dir")
    images.add_argument("--prepare_ms", type=float, help="what preparing an image takes, without any")
    parser.add_argument("--images", type=int, default=100, help="at a time, of the folder and again of it (100)")
    parser.add_argument("--rounds", type=int, default=1, help="of which the best counts (1)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    logging.getLogger("ppgfl").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    files = deploy.find_images(args.image_dir or str(ROOT / "docs/images"))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if args.prepare_ms:
            stack.enter_context(reading_takes(args.prepare_ms / 1000))
        files = [link(file, Path(folder, f"{i:04d}{Path(file).suffix}"))
                 for i, file in enumerate((files * args.images)[:args.images])]
        print("| way | threads | ms a batch | images/s | the slower side allows | share | in flight |")
        print("|---" * 7 + "|")
        for way in args.ways:
            for threads in (1, 2):
                for latency in (0.005, 0.010):
                    rate, allowed, most = measure(way, files, latency, threads, folder, args.rounds)
                    print(f"| {way} | {threads} | {1000 * latency:.0f} | {rate:.1f} | {allowed:.1f} | "
                          f"{rate / allowed:.2f} | {most or ''} |", flush=True)


def link(file, path):
    path.symlink_to(Path(file).resolve())
    return str(path)


if __name__ == "__main__":
    main()
