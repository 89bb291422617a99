"""Make the pictures of docs/images anew, from a finished demo: python docs/make_images.py output/demo

It needs selenium and Chromium.
"""
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ppgfl  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHOWN = 6
PORT = 8868


def write_demo(detector, files):
    """Six pictures of what the demo finds, twice as large so that names are legible."""
    pictures = []
    for file in files[:SHOWN]:
        found = detector(str(file))
        image = cv2.resize(cv2.imread(str(file)), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        twice = ppgfl.Detections(2 * found.boxes, found.scores, found.labels, found.names, image=image)
        pictures.append(cv2.copyMakeBorder(twice.draw(0.5), 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    rows = [np.hstack(pictures[i:i + 3]) for i in range(0, SHOWN, 3)]
    cv2.imwrite(str(IMAGES / "demo.jpg"), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 92])


def write_distributions(cfg, file, threshold):
    """What `ppgfl infer --show_distributions` draws for one image."""
    from ppgfl.inference.infer import infer

    with tempfile.TemporaryDirectory() as folder:
        infer(cfg, str(file), output_dir=folder, draw_threshold=threshold, show_distributions=True)
        figure = cv2.imread(str(Path(folder, f"{file.stem}_distributions.png")))
    cv2.imwrite(str(IMAGES / "distributions.png"), figure, [cv2.IMWRITE_PNG_COMPRESSION, 9])


# As they stand in a config; what mixes images is given five.
AUGMENTED = [
    {"Decode": {}}, {"RandomDistort": {}}, {"AugmentHSV": {"is_bgr": False, "hgain": 30, "sgain": 60, "vgain": 60}},
    {"AutoAugment": {"autoaug_type": "v3"}}, {"GridMask": {"prob": 1, "upper_iter": 1}}, {"RandomErasingCrop": {}},
    {"RandomExpand": {"prob": 0}}, {"RandomCrop": {"allow_no_crop": False}},
    {"RandomSizeCrop": {"min_size": 60, "max_size": 120}}, {"RandomScaledCrop": {"target_size": [128, 160]}},
    {"RandomFlip": {"prob": 1}}, {"RandomShift": {"prob": 1}}, {"PadResize": {"target_size": [128, 200]}},
    {"Mixup": {}}, {"Cutmix": {}}, {"Mosaic": {"input_dim": [128, 160], "scale": [0.5, 1.0]}}]


def write_augmented(cfg):
    """A tile for each augmentation of one image, with its boxes and its name."""
    from ppgfl.data.transforms import Decode
    from ppgfl.readers import SAMPLE_TRANSFORMS, _transform

    tiles = []
    for number, entry in enumerate(AUGMENTED):
        rng = np.random.default_rng(3 + number)
        samples = [{**record, "curr_iter": 1} for record in ppgfl.build.build_dataset(cfg, "TrainDataset").records[:5]]
        transform = _transform(cfg, SAMPLE_TRANSFORMS, entry, "the picture")
        if not isinstance(transform, Decode):
            for sample in samples:
                Decode()(sample)
        if hasattr(transform, "mix"):
            samples = [transform.mix(samples[:1 + transform.others], rng)]
        else:
            transform(samples[0], rng)
        image = np.ascontiguousarray(samples[0]["image"].clip(0, 255).astype(np.uint8)[..., ::-1])
        for x1, y1, x2, y2 in samples[0]["gt_bbox"].round().astype(int).tolist():
            cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), (255, 255, 255), 1)
        scale = min(256 / image.shape[1], 204 / image.shape[0])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        tile = np.full((232, 264, 3), 255, np.uint8)
        tile[24:24 + image.shape[0], 4:4 + image.shape[1]] = image
        tiles.append(cv2.putText(tile, *entry, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA))
    rows = [np.hstack(tiles[i:i + 4]) for i in range(0, len(tiles), 4)]
    cv2.imwrite(str(IMAGES / "augmentation.jpg"), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


@contextlib.contextmanager
def browser_of(width, height):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}",
                     "--lang=en"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options)
    try:
        yield browser
    finally:
        browser.quit()


@contextlib.contextmanager
def server_of(*command, address):
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    try:
        wait_for_answer(address)
        yield
    finally:
        process.terminate()


def write_serving(exported, file):
    """The page of the service with one image."""
    address = f"http://127.0.0.1:{PORT}/"
    command = (ROOT / "deploy/serving/server.py", "--model_dir", exported, "--port", PORT)
    with server_of(*command, address=f"{address}health"), browser_of(1000, 950) as browser:
        for _ in range(2):  # the first answer takes longer
            browser.get(address)
            browser.find_element("id", "file").send_keys(str(Path(file).resolve()))
            while " ms" not in browser.find_element("id", "status").text:
                time.sleep(0.2)
        browser.save_screenshot(str(IMAGES / "serving.png"))


def write_report(cfg, folder):
    """The upper part of a report."""
    command = "ppgfl eval -c shapes_gfl --output_eval output/demo"
    ppgfl.evaluate(cfg, output_dir=folder, report_dir=folder, command=command)
    with browser_of(960, 1450) as browser:
        browser.get(f"file://{folder}/report.html")
        browser.save_screenshot(str(IMAGES / "report.png"))


def write_visualdl(log):
    """Curves and pictures of a run, side by side."""
    address, parts = f"http://127.0.0.1:{PORT + 1}/app", []
    command = ("-c", "from visualdl.server.app import main; main()", "--logdir", log, "--port", PORT + 1, "--language",
               "en", "--disable-telemetry")
    with server_of(*command, address=f"{address}/index"), browser_of(1300, 840) as browser:
        for page in ("scalar", "sample/image"):
            browser.get(f"{address}/{page}")
            time.sleep(25)  # its charts come one by one
            part = cv2.imdecode(np.frombuffer(browser.get_screenshot_as_png(), np.uint8), cv2.IMREAD_COLOR)
            parts.append(cv2.resize(part, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(IMAGES / "visualdl.png"), np.hstack(parts))


def wait_for_answer(address):
    for _ in range(60):
        with contextlib.suppress(OSError), urllib.request.urlopen(address):
            return
        time.sleep(1)
    raise TimeoutError(f"{address}: no answer for a minute")


def main(demo):
    os.chdir(Path(demo).resolve().parent.parent)  # what is shown has no path of this machine
    demo = Path("output", Path(demo).name)
    data = demo.parent / "shapes"
    files = sorted((data / "val2017").iterdir())
    cfg = ppgfl.load_config("shapes_gfl", [
        *(f"{name}.dataset_dir={data}" for name in ("TrainDataset", "EvalDataset", "TestDataset")),
        f"weights={demo / 'shapes_gfl' / 'best_model'}", "use_gpu=false"])
    write_augmented(cfg)
    write_distributions(cfg, files[1], 0.5)  # the third box is a covered square, and its left side in doubt
    overrides = [f"TestDataset.dataset_dir={data}", "use_gpu=false"]
    write_demo(ppgfl.Detector("shapes_gfl", cfg["weights"], overrides), files)
    with tempfile.TemporaryDirectory() as folder:
        ppgfl.export(cfg, output_dir=folder)
        write_serving(folder, files[3])
        write_report(cfg, folder)
    write_visualdl(demo / "shapes_gfl" / "vdl")


if __name__ == "__main__":
    main(*sys.argv[1:])
