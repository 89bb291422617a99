"""VisualDL's page of a real training run, in a real browser."""
import socket
import subprocess
import sys
import time

import pytest
from helpers import config

from ppgfl import train


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def page(shapes, tmp_path):
    """The address of VisualDL, started as the log line says, on a run of one epoch."""
    train(config(shapes, tmp_path, "epoch=1"), evaluate=True, use_vdl=True)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "visualdl.server.app", "--logdir", str(tmp_path / "run" / "vdl"), "--language", "en",
         "--disable-telemetry", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/app"
    process.kill()
    process.wait()


def wait_until(found, what):
    """The result of `found`, as soon as it is true."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        time.sleep(0.2)
    raise AssertionError(f"no {what} within a minute")


COLOURS_OF_CHARTS = """
return Array.from(document.querySelectorAll("canvas")).map(canvas => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(data.buffer)).size;
});
"""


@pytest.mark.drill
def test_visualdl_shows_curves_and_images(browser, page):
    def shows(*words):
        text = browser.find_element("tag name", "body").text
        return all(word in text for word in words)

    browser.get(f"{page}/scalar")
    wait_until(lambda: shows("eval\n12", "train\n6"), "list of 12 curves of the evaluation and 6 of training")
    wait_until(lambda: len([n for n in browser.execute_script(COLOURS_OF_CHARTS) if n > 5]) >= 3, "charts with curves")
    browser.get(f"{page}/sample/image")
    wait_until(lambda: shows("eval/image_1", "report\n5"), "list of images with the five pictures of the report")
    widths = "return Array.from(document.images).map(image => image.naturalWidth)"
    wait_until(lambda: len([n for n in browser.execute_script(widths) if n > 50]) >= 2, "pictures")
