"""Make the pictures of docs/images that show detections, from a finished demo: python docs/make_images.py output/demo

Writes demo.jpg, and where selenium and Chromium are installed serving.png; report.png and visualdl.png are screenshots
made by hand.
"""
import contextlib
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


def write_serving(exported, file):
    """The page of the service with one image."""
    from selenium import webdriver

    server = subprocess.Popen([sys.executable, str(ROOT / "deploy/serving/server.py"), "--model_dir", str(exported),
                               "--port", str(PORT)])
    wait_for_answer(f"http://127.0.0.1:{PORT}/health")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,950"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options)
    try:
        for _ in range(2):  # the first answer takes longer
            browser.get(f"http://127.0.0.1:{PORT}/")
            browser.find_element("id", "file").send_keys(str(file))
            while " ms" not in browser.find_element("id", "status").text:
                time.sleep(0.2)
        browser.save_screenshot(str(IMAGES / "serving.png"))
    finally:
        browser.quit()
        server.terminate()


def wait_for_answer(address):
    for _ in range(60):
        with contextlib.suppress(OSError), urllib.request.urlopen(address):
            return
        time.sleep(1)
    raise TimeoutError(f"{address}: no answer for a minute")


def main(demo):
    weights = Path(demo).resolve() / "shapes_gfl" / "best_model"
    data = Path(demo).resolve().parent / "shapes"
    files = sorted((data / "val2017").iterdir())
    overrides = [f"TestDataset.dataset_dir={data}", "use_gpu=false"]
    write_demo(ppgfl.Detector("shapes_gfl", str(weights), overrides), files)
    with tempfile.TemporaryDirectory() as folder:
        cfg = ppgfl.load_config("shapes_gfl", [*overrides, f"weights={weights}"])
        ppgfl.export(cfg, output_dir=folder)
        write_serving(folder, files[3])


if __name__ == "__main__":
    main(*sys.argv[1:])
