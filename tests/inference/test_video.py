"""Frames of videos, cameras and streams; their results and the drawn videos."""
import json
import math
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import ROOT

from ppgfl import DataError, Detections, Detector
from ppgfl.inference import infer_video, video

COUNT, RATE = 12, 12.5
OVERRIDES = ["TestReader.sample_transforms.1.Resize.target_size=[64, 96]", "use_gpu=false", "engine=dygraph"]
CODECS = {"mp4v": "mp4", "MJPG": "avi", "VP80": "webm"}


def make_video(path, codec="MJPG", count=COUNT, size=(64, 48)):
    """Each frame is the one before, moved by four pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    first = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), RATE, size)
    for i in range(count):
        writer.write(np.roll(first, 4 * i, axis=1).copy())
    writer.release()
    return str(path)


def frames_of(path):
    """Naively."""
    capture, found = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        found.append(read[1])
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("clip") / "clip.avi")


@pytest.fixture(scope="module")
def detector(r18vd_weights):
    return Detector("gfl_r18vd_1x_coco", weights=r18vd_weights, overrides=OVERRIDES)


@pytest.fixture
def infer(run_here, r18vd_weights, tmp_path):
    def run(*arguments):
        return run_here("infer", "-c", "gfl_r18vd_1x_coco", *arguments, "-o", f"weights={r18vd_weights}", *OVERRIDES,
                        cwd=tmp_path)
    return run


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_gives_what_its_image_gives(detector, tmp_path, codec):
    path = make_video(tmp_path / f"clip.{CODECS[codec]}", codec)
    images, seen = frames_of(path), list(detector.stream(path))
    assert len(seen) == len(images) == COUNT
    for i, (image, (frame, found)) in enumerate(zip(images, seen)):
        np.testing.assert_array_equal(frame, image)
        cv2.imwrite(str(tmp_path / "frame.png"), image)
        alone = detector(tmp_path / "frame.png")
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)
        assert (found.path, found.frame) == (path, i)
        assert abs(found.time - i / RATE) < 0.002
        assert found.above(0.5).to_dict()["frame"] == i


def test_h264_by_pyav(detector, tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with infer_video.video_writer(path, 30000 / 1001) as write:
        for i in range(COUNT):
            write(np.full((48, 64, 3), 20 * i, np.uint8))
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == COUNT == len(list(detector.stream(path)))
    assert math.isclose(capture.get(cv2.CAP_PROP_FPS), 30000 / 1001)
    assert int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") in (b"avc1", b"h264")


def test_sources(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(name, np.full((8, 9, 3), 50, np.uint8))
    os.symlink(clip, "c.avi")

    def seen(*source, **options):
        return [(frame.source, frame.index) for frame in video.frames(*source, **options)]

    assert seen("a.png") == [("a.png", None)]
    assert seen(".") == [(os.path.join(".", name), None) for name in ("a.png", "b.jpg")]
    assert seen("*.*", every=5) == [("a.png", None), ("b.jpg", None), ("c.avi", 0), ("c.avi", 5), ("c.avi", 10)]
    assert seen(["b.jpg", "c.avi"], every=COUNT) == [("b.jpg", None), ("c.avi", 0)]
    array = np.zeros((5, 6, 3), np.uint8)
    assert next(iter(video.frames([array], read=lambda image: image))).image is array
    for source, said in (("*.mov", "none has the name"), ("none.mp4", "no such video"), ("none.png", "no such image")):
        with pytest.raises(DataError, match=said):
            seen(source)
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(DataError, match="not a video that can be read"):
        seen("text.mp4")
    with pytest.raises(DataError, match="every: 0"):
        seen("c.avi", every=0)


def test_a_video_that_was_cut_off(clip, tmp_path, caplog):
    data = Path(clip).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[:len(data) * 6 // 10])
    seen = list(video.frames(cut))
    assert 0 < len(seen) < COUNT
    assert f"{len(seen)} frames were read of the {COUNT} that it promises" in caplog.text


def test_a_frame_that_cannot_be_decoded(clip, caplog, monkeypatch):
    class Damaged(SimpleNamespace):
        def retrieve(self):
            ok, image = self.whole.retrieve()
            return ok and self.whole.get(cv2.CAP_PROP_POS_FRAMES) != 4, image

    whole = cv2.VideoCapture(clip)
    monkeypatch.setattr(video.Video, "_open", lambda self: Damaged(
        whole=whole, get=whole.get, grab=whole.grab, release=whole.release))
    assert [frame.index for frame in video.frames(clip)] == [i for i in range(COUNT) if i != 3]
    assert f"{COUNT - 1} frames were read of the {COUNT} that it promises, 1 could not be decoded" in caplog.text


def test_a_camera(monkeypatch):
    """It has no number of frames, and an index for an address."""
    opened = []

    def open_camera(index):
        opened.append(index)
        return SimpleNamespace(isOpened=lambda: True, get=lambda key: 0.0, grab=lambda: True, release=lambda: None,
                               retrieve=lambda: (True, np.zeros((4, 4, 3), np.uint8)))

    monkeypatch.setattr(cv2, "VideoCapture", open_camera)
    found = video.frames("0")
    assert [next(found).index for _ in range(3)] == [0, 1, 2]
    assert next(found).source == "camera 0"
    found.close()
    assert opened == [0]
    assert video.Video(0).rate == video.RATE


@pytest.fixture
def server(tmp_path, monkeypatch):
    """MJPEG of three frames at /camera, a video at /clip.avi that breaks off the first `breaks` times, images."""
    monkeypatch.setattr(video, "WAIT", 0.01)
    jpeg = cv2.imencode(".jpg", np.full((8, 9, 3), 77, np.uint8))[1].tobytes()
    clip = Path(make_video(tmp_path / "served.avi")).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            length = None
            if self.path == "/camera":
                kind = "multipart/x-mixed-replace; boundary=next"
                content = 3 * (b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                               + jpeg + b"\r\n")
            elif self.path == "/clip.avi":
                kind, content, length = "video/x-msvideo", clip, len(clip)
                if self.server.asked.count(self.path) <= self.server.breaks:
                    content = clip[:len(clip) * 6 // 10]
            else:
                kind, content = ("image/jpeg", jpeg) if "photo" in self.path else ("text/html", b"<p>no</p>")
                length = len(content)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if length:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.breaks = [], 0
    server.url = f"http://user:secret@127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_camera_in_the_network_that_breaks_off(server, caplog):
    seen = []
    with pytest.raises(DataError, match=r"http://\*\*\*@.*/camera: the stream broke off after 9 frames, and 2 "):
        for frame in video.frames(f"{server.url}/camera", reconnects=2):
            seen.append(frame.index)  # noqa: PERF402  those before the error count
    assert seen == list(range(9))
    assert "broke off after 3 frames; reconnecting, attempt 1 of 2" in caplog.text
    assert "secret" not in caplog.text


def test_a_video_in_the_network_that_breaks_off_goes_on_where_it_was(server, clip, caplog):
    server.breaks = 1
    seen = list(video.frames(f"{server.url}/clip.avi"))
    assert [frame.index for frame in seen] == list(range(COUNT))
    assert "reconnecting, attempt 1 of 5" in caplog.text
    for frame, image in zip(seen, frames_of(clip)):
        np.testing.assert_array_equal(frame.image, image)
    server.breaks = 100
    with pytest.raises(DataError, match="1 attempts to reconnect"):
        list(video.frames(f"{server.url}/clip.avi", reconnects=1))


def test_images_that_have_addresses(server, detector, infer, tmp_path, monkeypatch):
    for path in ("/photo.jpg", "/photo?by=type"):
        (frame, found), = detector.stream(server.url + path)
        assert frame.shape == (8, 9, 3)
        assert found.path == f"http://***@127.0.0.1:{server.server_port}{path}"
        assert found.frame is None
    done = infer("--infer_img", f"{server.url}/photo.jpg", "--save_results", "json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output/photo.jpg").is_file()
    assert json.loads((tmp_path / "output/results.json").read_text())[0]["file"].endswith("/photo.jpg")
    done = infer("--infer_img", f"{server.url}/page.jpg")
    assert done.returncode == 2
    assert "/page.jpg: not an image that can be decoded (9 bytes)" in done.stderr.splitlines()[-1]
    assert done.stderr.endswith("the server calls it text/html\n")
    monkeypatch.setattr(video, "MOST_BYTES", 10)
    done = infer("--infer_img", f"{server.url}/photo.jpg")
    assert (done.returncode, "is larger than" in done.stderr) == (2, True)


@pytest.mark.parametrize("has_av", [False, True])
def test_the_command_draws_a_video(infer, clip, tmp_path, monkeypatch, has_av):
    if has_av:
        pytest.importorskip("av")
    monkeypatch.setattr(infer_video, "drawn_ending", lambda: ".mp4" if has_av else ".webm")
    done = infer("--video_file", clip, "--every", 1, "--draw_threshold", 0.1)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} of {COUNT} frames" in done.stderr + done.stdout
    drawn = cv2.VideoCapture(str(tmp_path / "output" / f"clip{infer_video.drawn_ending()}"))
    assert drawn.get(cv2.CAP_PROP_FPS) == RATE
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == COUNT
    assert drawn.read()[1].shape == (48, 64, 3)
    lines = [json.loads(line) for line in (tmp_path / "output/clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(COUNT))
    assert [line["time"] for line in lines] == [round(i / RATE, 3) for i in range(COUNT)]
    assert len(lines[0]["detections"]) == 100
    done = infer("--infer_img", os.path.join(os.path.dirname(clip), "*.avi"), "--every", 5, "--output_dir", "few")
    assert done.returncode == 0, done.stderr
    few = cv2.VideoCapture(str(tmp_path / "few" / f"clip{infer_video.drawn_ending()}"))
    assert (few.get(cv2.CAP_PROP_FRAME_COUNT), few.get(cv2.CAP_PROP_FPS)) == (3, RATE / 5)


def test_odd_sizes_and_names(tmp_path):
    with infer_video.video_writer(tmp_path / "odd.webm", 10) as write:
        write(np.zeros((31, 45, 3), np.uint8))
        write(np.zeros((60, 90, 3), np.uint8))
    assert [frame.shape for frame in frames_of(tmp_path / "odd.webm")] == [(32, 46, 3)] * 2
    names = infer_video.target_names(["a/x.avi", "b/x.mov", 0, "rtsp://u:p@host/live/1?key=9", "http://host"],
                                     tmp_path, ".webm")
    assert [name.name for name in names] == ["x.webm", "x-2.webm", "camera_0.webm", "1.webm", "host.webm"]
    with pytest.raises(DataError, match="would replace its source"):
        infer_video.target_names([tmp_path / "x.webm"], tmp_path, ".webm")


def test_what_a_video_refuses(infer, clip):
    for more, said in ((["--save_results", "csv"], "JSON lines"), (["--every", 0], "--every: 0"),
                       (["--resume"], "of images alone"), (["--draw_threshold", 2], "it is a score")):
        done = infer("--video_file", clip, *more)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]


def test_what_images_refuse(infer, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    for more, said in ((["--every", 5], "of the frames of videos"),
                       (["--sigma", "--save_results", "yolo"], "labels of yolo have no place for it")):
        done = infer("--infer_img", tmp_path / "a.png", "--output_dir", tmp_path / "out", *more)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_an_image_at_standard_input(infer, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 30, 3), 90, np.uint8))
    kept = os.dup(0)
    with open(tmp_path / "a.png", "rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        done = infer("--infer_img", "-", "--save_results", "json")
    finally:
        os.dup2(kept, 0)
    assert done.returncode == 0, done.stderr
    assert read_shape(tmp_path / "output/stdin.png") == (20, 30, 3)
    assert json.loads((tmp_path / "output/results.json").read_text())[0]["file"] == "-"


def read_shape(path):
    return cv2.imread(str(path)).shape


@pytest.mark.parametrize("channels, array", [
    ("RGB", lambda image: image[..., ::-1]), ("BGRA", lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)),
    ("RGBA", lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2RGBA)), ("BGR", lambda image: image)])
def test_channels_of_arrays(detector, clip, channels, array):
    image = frames_of(clip)[0]
    wanted, found = detector(image), detector(array(image), channels=channels)
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    (frame, streamed), = detector.stream([array(image)], channels=channels)
    np.testing.assert_array_equal(frame, image)
    np.testing.assert_array_equal(streamed.scores, wanted.scores)


def test_grey_and_wrong_channels(detector, clip):
    grey = cv2.cvtColor(frames_of(clip)[0], cv2.COLOR_BGR2GRAY)
    wanted = detector(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(detector(array, channels="GRAY").boxes, wanted.boxes)
    with pytest.raises(DataError, match="allowed: BGR, RGB, BGRA, RGBA, GRAY"):
        detector(grey, channels="rgb")
    with pytest.raises(DataError, match=r"as RGBA; give \[H, W, 4\]"):
        detector(frames_of(clip)[0], channels="RGBA")


def test_tracks_and_counts(detector, clip, tmp_path, monkeypatch, capsys):
    """The recipe of docs/video.md: two things that move on, found as they are, are two tracks."""
    pytest.importorskip("supervision")
    pytest.importorskip("trackers")
    if not hasattr(Detections, "to_supervision"):
        pytest.skip("needs Detections.to_supervision")
    recipe = re.search(r"```python\n(import supervision.*?)```", (ROOT / "docs/video.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").symlink_to(clip)

    def stream(source):
        for frame, found in detector.stream(source):
            left = 2.0 * found.frame
            found.boxes = np.array([[left, 5, left + 15, 20], [left, 28, left + 20, 45]], np.float32)
            found.scores, found.labels = np.array([0.9, 0.8], np.float32), np.array([0, 1])
            found.names = ["cat", "dog"]
            yield frame, found

    exec(recipe.group(1), {"detector": SimpleNamespace(stream=stream)})
    assert capsys.readouterr().out.splitlines()[-1] == "{'cat': 1, 'dog': 1} 0 0"
    assert len(frames_of("tracked.mp4")) == COUNT
