"""deploy/serving: many clients, hostile requests, and the page in a real browser."""
import asyncio
import base64
import importlib.util
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import ROOT, match, read

from ppgfl.data.coco_classes import COCO_CLASSES
from ppgfl.inference import draw
from ppgfl.inference.runner import load_runner

for package in ("starlette", "h11", "multipart", "prometheus_client", "PIL"):
    pytest.importorskip(package)
httpx = pytest.importorskip("httpx")
COCO_NAMES = list(COCO_CLASSES.values())
SERVER = ROOT / "deploy" / "serving" / "server.py"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SERVER.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- the batcher


def gate_detect(gate, batches):
    def detect(arrays):
        gate.wait(10)
        batches.append(arrays["image"].shape)
        return [np.full((1, 6), image[0, 0, 0]) for image in arrays["image"]]
    return detect


def image_of(value, size):
    return {"image": np.full((1, 3, size, size), value, np.float32), "scale_factor": np.ones((1, 2), np.float32)}


def test_only_images_of_one_size_share_a_batch():
    gate, batches = threading.Event(), []
    batcher = load("batching").Batcher(gate_detect(gate, batches), max_batch=3, max_wait=1.0)
    sizes = [32, 64, 32, 32, 64, 32, 32]
    futures = [batcher.submit(image_of(i, size)) for i, size in enumerate(sizes)]
    gate.set()
    assert [future.result(10)[0, 0] for future in futures] == list(range(7))
    assert [(shape[0], shape[2]) for shape in batches] == [(3, 32), (2, 64), (2, 32)]
    batcher.stop()


def test_large_images_are_not_batched():
    gate, batches = threading.Event(), []
    batcher = load("batching").Batcher(gate_detect(gate, batches), max_batch=8, max_pixels=2 * 64 * 64, max_wait=1.0)
    futures = [batcher.submit(image_of(i, size)) for i, size in enumerate([64, 64, 64, 96, 96, 32, 32, 32])]
    gate.set()
    assert [future.result(10)[0, 0] for future in futures] == list(range(8))
    assert [(shape[0], shape[2]) for shape in batches] == [(2, 64), (1, 64), (1, 96), (1, 96), (3, 32)]
    batcher.stop()


def test_an_image_does_not_wait_for_others_longer_than_asked():
    gate, batches = threading.Event(), []
    gate.set()
    batcher = load("batching").Batcher(gate_detect(gate, batches), max_batch=8, max_wait=0.01)
    assert batcher.submit(image_of(5, 32)).result(5)[0, 0] == 5
    batcher.stop()
    with pytest.raises(RuntimeError, match="stopping"):
        batcher.submit(image_of(5, 32))


def test_a_failure_belongs_to_those_who_asked():
    def detect(arrays):
        if arrays["image"].max() > 1:
            raise ValueError("out of memory")
        return [np.zeros((0, 6))] * len(arrays["image"])

    batcher = load("batching").Batcher(detect, max_batch=1)
    bad, good = batcher.submit(image_of(2, 32)), batcher.submit(image_of(1, 32))
    with pytest.raises(ValueError, match="out of memory"):
        bad.result(5)
    assert good.result(5).shape == (0, 6)
    batcher.stop()


def test_what_waits_is_finished_and_what_was_given_up_is_left_out():
    gate, batches = threading.Event(), []
    batcher = load("batching").Batcher(gate_detect(gate, batches), max_batch=1, max_wait=0)
    first = batcher.submit(image_of(0, 32))
    while not first.running():
        time.sleep(0.001)
    others = [batcher.submit(image_of(i, 32)) for i in (1, 2, 3)]
    assert others[0].cancel()
    gate.set()
    batcher.stop()
    assert [future.result(0)[0, 0] for future in (first, *others[1:])] == [0, 2, 3]
    assert len(batches) == 3


# --- the limits, on a service with a detector of cardboard


def cardboard(**limits):
    load("server")
    gate = threading.Event()
    runner = SimpleNamespace(
        threads=2, class_names=["thing"], description="cardboard",
        prepare=lambda images: {"image": np.zeros((1, 3, 32, 32), np.float32)},
        detect=lambda arrays: gate.wait(10) and [np.array([[0, 0.9, 1, 2, 3, 4]])] * len(arrays["image"]))
    return load("service").Service(runner, **limits), gate


def post(service, *contents, answered=0, then=lambda: None):
    """Requests side by side -> their status codes and bodies; `then` is called once so many are `answered`."""
    async def send():
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            requests = [asyncio.ensure_future(client.post("/predict", content=content)) for content in contents]
            while sum(request.done() for request in requests) < answered:
                await asyncio.sleep(0.01)
            then()
            return await asyncio.gather(*requests)

    return [(answer.status_code, answer.json()) for answer in asyncio.run(send())]


PNG = cv2.imencode(".png", np.zeros((8, 9, 3), np.uint8))[1].tobytes()


def test_more_than_the_queue_holds_is_told_to_come_back():
    service, gate = cardboard(max_queue=3)
    codes = sorted(code for code, _ in post(service, *[PNG] * 8, answered=5, then=gate.set))
    assert codes == [200] * 3 + [503] * 5
    assert service.in_flight == 0
    (code, body), = post(service, PNG)
    assert code == 200
    assert body["results"] == [{"width": 9, "height": 8, "detections": [
        {"label": 0, "name": "thing", "score": 0.9, "box": [1, 2, 3, 4]}]}]


def test_health_tells_whether_images_are_detected_on():
    """After a failure a blank image is tried: it fails as well, or shows that it was the image's fault."""
    service, gate = cardboard()
    gate.set()

    async def ask():
        transport = httpx.ASGITransport(service.app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer, health = await client.post("/predict", content=PNG), await client.get("/health")
            return answer.status_code, health.status_code, health.json()["status"]

    works = service.batcher.detect
    assert asyncio.run(ask()) == (200, 200, "ok")
    service.batcher.detect = lambda arrays: 1 / 0
    assert asyncio.run(ask()) == (500, 503, "failed")
    failures = iter([True, False])
    service.batcher.detect = lambda arrays: 1 / 0 if next(failures) else works(arrays)
    assert asyncio.run(ask()) == (500, 200, "ok")


@pytest.mark.parametrize("name", ["行人", "\ud800", "\x1b\n", "<b>"])
def test_classes_are_answered_whatever_they_are_called(name):
    service, gate = cardboard()
    gate.set()
    service.runner.class_names[0] = name
    (code, body), = post(service, PNG)
    assert code == 200
    assert body["results"][0]["detections"][0]["name"] == name


def test_a_body_that_never_ends_is_cut_off(monkeypatch):
    service, gate = cardboard(max_bytes=1000)
    gate.set()

    async def endless():
        while True:
            yield b"x" * 100

    async def slow():
        yield b"x"
        await asyncio.sleep(60)

    (code, body), = post(service, endless())
    assert (code, body["error"]) == (413, "the request is larger than 1000 bytes")
    monkeypatch.setattr(sys.modules["reading"], "BODY_SECONDS", 0.2)
    (code, body), = post(service, slow())
    assert code == 408
    assert service.in_flight == 0


def png_of_size(width, height):
    """A valid PNG of a few bytes that claims to be huge."""
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_decompression_bomb_is_not_unpacked():
    service, gate = cardboard(max_pixels=1_000_000)
    gate.set()
    for size, expected in (((1001, 1000), 413), ((40_000, 40_000), 415), ((2**31 - 1, 2**31 - 1), 415), ((0, 5), 415)):
        (code, body), = post(service, png_of_size(*size))
        assert code == expected, body
        assert "image 0" in body["error"]


def ask(service, method="POST", **request):
    """One request -> the answer."""
    async def send():
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, "/predict", **request)

    return asyncio.run(send())


def test_what_is_no_image_is_told_what_to_send():
    service, gate = cardboard()
    gate.set()
    encoded = base64.b64encode(PNG).decode()
    for request, code, words in (
            ({"files": {"file": PNG}}, 400, "the form has 'file', but no file named `images`"),
            ({"files": {"a": PNG, "b\x1b": PNG}}, 400, "the form has 'a', 'b"),
            ({"data": {"images": "@photo.jpg"}, "files": {"x": b""}}, 400, "but no file named `images`"),
            ({"content": b""}, 400, "the request is empty"),
            ({"content": encoded.encode()}, 415, "the body is text"),
            ({"data": {"images": "photo.jpg"}}, 415, "the body is text"),
            ({"content": b"{"}, 400, "not valid JSON"),
            ({"content": b'{"a":' * 100_000}, 400, "not valid JSON"),
            ({"json": [encoded]}, 400, "no text `image`"),
            ({"json": {"images": [encoded]}}, 400, "no text `image`"),
            ({"json": {"image": 5}}, 400, "no text `image`"),
            ({"json": {"image": "ä!"}}, 400, "is not base64"),
            ({"json": {"image": encoded[:-1]}}, 400, "is not base64")):
        answer = ask(service, **request)
        assert (answer.status_code, answer.json()["error"].count("curl -F images=@photo.jpg")) == (code, 1), request
        assert words in answer.json()["error"]
    assert ask(service, json={"image": "aGVsbG8="}).status_code == 415  # base64, but of no image
    for threshold in ("x", None, [], 2, -1, 10**400):
        assert ask(service, json={"image": encoded, "threshold": threshold}).status_code == 422, threshold


def test_base64_in_json():
    service, gate = cardboard()
    gate.set()
    encoded = base64.b64encode(PNG).decode()
    for text in (encoded, f"data:image/png;base64,{encoded}", "\n".join(encoded[i:i + 20] for i in range(0, 999, 20))):
        answer = ask(service, json={"image": text, "threshold": 0.8})
        assert (answer.status_code, len(answer.json()["results"][0]["detections"])) == (200, 1)
    answer = ask(service, json={"image": encoded, "threshold": 0.95})
    assert answer.json()["results"] == [{"width": 9, "height": 8, "detections": []}]
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d sends
    assert ask(service, content=json.dumps({"image": encoded}), headers=form).status_code == 200
    assert ask(service, content=PNG, headers=form).status_code == 200


def test_other_pages_are_answered_only_if_told_to():
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type"}
    for cors, allowed in (((), None), (("https://a.example",), "https://a.example"), (("https://b.example",), None),
                          (("*",), "*")):
        service, gate = cardboard(cors=cors)
        gate.set()
        answers = [ask(service, "OPTIONS", headers=asks), ask(service, content=PNG, headers=asks),
                   ask(service, content=b"x", headers=asks)]
        assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [allowed] * 3, cors
        assert [answer.status_code for answer in answers[1:]] == [200, 415]
        assert answers[0].status_code == (200 if allowed else 400 if cors else 405)


# --- the real thing


def start(*arguments):
    """The server as a user starts it -> (process, address)."""
    process = subprocess.Popen([sys.executable, str(SERVER), "--port", "0", *map(str, arguments)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "serving on" in line:
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never blocks on a full pipe
            return process, next(word for word in line.split() if word.startswith("http://"))
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def service(exported):
    process, address = start("--model_dir", exported[0], "--max_queue", 64, "--max_megabytes", 2)
    yield address
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


@pytest.fixture(scope="module")
def photos(small_coco, exported):
    """[(bytes of a file, what the runner finds in it)]."""
    runner = load_runner().Runner(exported[0])
    return [(path.read_bytes(), runner([read(path)])[0]) for path in sorted((small_coco / "val2017").iterdir())]


def rows(result):
    return np.array([[d["label"], d["score"], *d["box"]] for d in result["detections"]]).reshape(-1, 6)


def test_answers_are_the_runners(service, photos):
    for data, wanted in photos:
        answer = httpx.post(f"{service}/predict?threshold=0", content=data)
        assert answer.status_code == 200
        match(rows(answer.json()["results"][0]), wanted, pixels=2e-2, score=1e-4)


def test_several_images_and_a_threshold(service, photos):
    answer = httpx.post(f"{service}/predict", files=[("images", data) for data, _ in photos], data={"threshold": "0.8"})
    results = answer.json()["results"]
    assert len(results) == 5
    for result, (data, wanted) in zip(results, photos):
        match(rows(result), wanted[wanted[:, 1] >= 0.8], pixels=2e-2, score=1e-4)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert (result["height"], result["width"]) == image.shape[:2]


def test_an_onnx_is_served_too(exported, photos):
    process, address = start("--model_dir", exported[0] / "model.onnx")
    try:
        assert "model.onnx in ONNX Runtime" in httpx.get(f"{address}/health").json()["model"]
        answer = httpx.post(f"{address}/predict", files=[("images", data) for data, _ in photos], data={"threshold": 0})
        for result, (_, wanted) in zip(answer.json()["results"], photos):
            match(rows(result), wanted, pixels=2e-2, score=1e-4)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.drill
def test_many_clients_at_once(service, photos):
    def ask(i):
        data, wanted = photos[i % len(photos)]
        answer = httpx.post(f"{service}/predict?threshold=0.5", content=data, timeout=60)
        assert answer.status_code == 200, answer.text
        match(rows(answer.json()["results"][0]), wanted[wanted[:, 1] >= 0.5], pixels=2e-2, score=1e-4)

    with ThreadPoolExecutor(32) as clients:
        list(clients.map(ask, range(160)))
    metrics = httpx.get(f"{service}/metrics").text
    batches, images = (float(next(line.split()[1] for line in metrics.splitlines() if line.startswith(name)))
                       for name in ("ppgfl_batch_images_count", "ppgfl_images_total"))
    assert batches < 0.9 * images  # several were computed together
    assert "ppgfl_images_in_flight 0.0" in metrics


def test_health(service):
    answer = httpx.get(f"{service}/health").json()
    assert answer["status"] == "ok"
    assert answer["classes"] == 80
    assert "model.pdmodel" in answer["model"]


def test_the_open_inference_protocol_has_the_runners_rows(service, photos):
    content = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(photos)],
                           "data": [base64.b64encode(data).decode() for data, _ in photos]}]}
    answer = httpx.post(f"{service}/v2/models/gfl/infer", json=content, timeout=60).json()
    outputs = {out["name"]: np.array(out["data"]).reshape(out["shape"]) for out in answer["outputs"]}
    check_outputs(outputs, [wanted for _, wanted in photos])
    assert answer["model_name"] == "gfl"


def check_outputs(outputs, wanted):
    """The same rows to the last bit that float32 keeps from one batch to another."""
    assert outputs["bbox_num"].tolist() == [len(rows) for rows in wanted]
    found = np.concatenate([outputs["labels"][:, None], outputs["scores"][:, None], outputs["boxes"]], axis=1)
    for rows, one in zip(wanted, np.split(found, np.cumsum(outputs["bbox_num"])[:-1].astype(int))):
        match(one, rows, pixels=1e-2, score=1e-5)
    assert outputs["names"][0] == COCO_NAMES[int(outputs["labels"][0])]


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_runners_rows(service, photos, binary):
    """NVIDIA's own, as its users call it: binary is its default."""
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(service.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("gfl")
    assert client.get_server_metadata()["name"] == "ppgfl"
    model = client.get_model_metadata("gfl", "1")

    files = np.array([data for data, _ in photos], object)
    question = triton.InferInput(model["inputs"][0]["name"], [len(files)], model["inputs"][0]["datatype"])
    if not binary:
        files = np.array([base64.b64encode(data) for data in files], object)
    question.set_data_from_numpy(files, binary_data=binary)
    asked = [triton.InferRequestedOutput(out["name"], binary_data=binary) for out in model["outputs"]]
    for outputs in (None, asked):
        answer = client.infer("gfl", [question], outputs=outputs, request_id="7")
        assert answer.get_response()["id"] == "7"
        found = {out["name"]: answer.as_numpy(out["name"]) for out in model["outputs"]}
        found["names"] = [name.decode() if isinstance(name, bytes) else name for name in found["names"]]
        check_outputs(found, [wanted for _, wanted in photos])

    image = np.ascontiguousarray(cv2.imdecode(np.frombuffer(photos[0][0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    question = triton.InferInput("image", list(image.shape), "UINT8")
    question.set_data_from_numpy(image, binary_data=binary)
    answer = client.infer("gfl", [question], parameters={"threshold": 0.5})
    assert answer.as_numpy("bbox_num").tolist() == [(photos[0][1][:, 1] >= 0.5).sum()]
    np.testing.assert_allclose(answer.as_numpy("scores"), photos[0][1][photos[0][1][:, 1] >= 0.5, 1], atol=1e-5)
    with pytest.raises(triton.InferenceServerException, match="the model is gfl") as error:
        client.infer("other", [question])
    assert error.value.status() == "404"


def raw(address, data):
    """Bytes on the wire -> status code."""
    host, port = address[len("http://"):].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 "), (answer, data[:200])
    return int(answer.split()[1])


def malformed(data):
    """Requests that are no question about an image: (method, path, headers, body)."""
    rng = np.random.default_rng(0)
    form = {"Content-Type": "multipart/form-data; boundary=b"}

    def part(content, disposition=b'form-data; name="images"; filename="a"', count=1):
        return (b"--b\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n") * count + b"--b--\r\n"

    for body in (b"", b"hello", b"\0" * 5000, b"GIF89a" + bytes(100), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                 b"II*\0" + bytes(100), b"PK\x03\x04" + bytes(100), b"v/1\x01" + bytes(100), b"%PDF-1.4", data[:20],
                 b"\x89PNG\r\n\x1a\n", png_of_size(30_000, 30_000), b"../../etc/passwd", b"http://127.0.0.1/x.jpg"):
        yield "POST", "/predict", {}, body
        yield "POST", "/predict", form, part(body)
    for i in range(80):
        yield "POST", "/predict", {}, rng.bytes(int(rng.integers(1, 3000)))
        header = bytearray(data[:int(rng.integers(2, 20))])  # begins as the image does
        yield "POST", "/predict", form if i % 2 else {}, bytes(header) + rng.bytes(50)
    for threshold in ("-1", "2", "nan", "inf", "abc", "", "1e999", "%00"):
        yield "POST", f"/predict?threshold={threshold}", {}, data
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=zzz"):
        yield "POST", "/predict", {"Content-Type": kind}, part(data)
    yield "POST", "/predict", form, part(data, b'form-data; name="other"; filename="a"')
    yield "POST", "/predict", form, part(data, b'form-data; name="images"')
    yield "POST", "/predict", form, part(data)[:50]
    yield "POST", "/predict", form, part(data).replace(b"Content-Disposition", b"\xff\xfe")
    yield "POST", "/predict", form, part(b"x", count=40)
    yield "POST", "/predict", form, part(b"x", b'form-data; name="x"', count=40)
    yield "POST", "/predict", {"Content-Length": str(10**12)}, b""
    yield "POST", "/predict", {}, b"x" * (2 * 2**20 + 1)
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield method, "/predict", {}, b""
    for path in ("/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/server.py", "/page.html", "/docs",
                 "/static/server.py", "//etc/passwd", "/predict/../server.py", "/..%5c..%5cserver.py",
                 "/model.pdiparams", "/predict%00"):
        yield "GET", path, {}, b""
        yield "POST", path, {}, data


def test_two_hundred_malformed_requests_get_a_4xx(service, photos):
    data = photos[0][0]
    requests = list(malformed(data))
    assert len(requests) >= 200
    for method, path, headers, body in requests:
        lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close",
                 *(f"{key}: {value}" for key, value in {"Content-Length": str(len(body)), **headers}.items())]
        code = raw(service, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        assert 400 <= code < 500, (code, method, path, headers, body[:60])
    for wire in (b"GET\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                 b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
                 b"\x16\x03\x01\x02\x00\x01\x00" * 20,
                 b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
        assert 400 <= raw(service, wire) < 500, wire
    test_answers_are_the_runners(service, photos)


@pytest.mark.drill
def test_clients_that_send_nothing_slowly_or_in_part_take_no_place(service, photos):
    """As many as it takes connections: without a limit of time for the header, all others get a 503 for ever."""
    host, port = service[len("http://"):].split(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(4 * 64)]
    for i, connection in enumerate(idle):
        if i % 3:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Long: ")
    assert httpx.get(f"{service}/health").status_code == 503
    start, gone = time.monotonic(), set()
    while len(gone) < len(idle) and time.monotonic() - start < 30:
        for i, connection in enumerate(idle):
            if i % 3 == 2:  # a byte now and then
                try:
                    connection.send(b"x")
                except ConnectionError:
                    gone.add(i)
            elif not select.select([connection], [], [], 0)[0]:
                continue
            else:
                gone.add(i)
        time.sleep(0.2)
    assert len(gone) == len(idle)
    assert time.monotonic() - start > 5  # not at once: a network may be slow
    for connection in idle:
        connection.close()

    for part in (b"", PNG[:20]):  # gone in the midst of a body
        for _ in range(100):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + part)
    start = time.monotonic()
    while "ppgfl_images_in_flight 0.0" not in httpx.get(f"{service}/metrics").text:
        assert time.monotonic() - start < 10
    test_answers_are_the_runners(service, photos)


@pytest.mark.parametrize("what", ["nothing", "step"])
def test_a_folder_that_cannot_be_served_is_one_line(exported, tmp_path, what):
    if what == "step":
        shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)
        (tmp_path / "infer_cfg.yml").write_text("{arch: GFL, label_list: [a], Preprocess: [Permute]}")
    done = subprocess.run([sys.executable, str(SERVER), "--model_dir", str(tmp_path)], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}")
    assert "Traceback" not in done.stderr


def test_arguments_that_make_no_sense_are_one_line(monkeypatch, capsys):
    server = load("server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words in ("--max_batch 0", "--max_batch 1.5", "--port 70000", "--port -1", "--max_queue 0",
                      "--max_images 0", "--max_megabytes nan", "--max_megapixels inf", "--max_wait_ms -1",
                      "--cpu_threads 0", "--max_batch_megapixels 0", "--device TPU", "--colour red",
                      f"--port {taken.getsockname()[1]}", "--host 192.0.2.1"):
            monkeypatch.setattr(sys, "argv", ["server.py", "--model_dir", "none", *words.split()])
            try:
                code = server.main()
            except SystemExit as end:
                code = end.code
            line, = capsys.readouterr().err.splitlines()
            assert (code, line[:7]) == (2, "error: ")
            assert words.split()[0] in line


def test_it_ends_when_asked_to(exported):
    process, _ = start("--model_dir", exported[0])
    process.terminate()
    assert process.wait(30) == 0


# --- the page


def wait_for(browser, words):
    from selenium.webdriver.common.by import By

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = browser.find_element(By.ID, "status").text
        if words in text:
            return text
        time.sleep(0.05)
    raise AssertionError(f"no {words!r} but {text!r}; {browser.get_log('browser')}")


def test_the_page_draws_in_the_style_of_the_pictures(service, browser):
    browser.get(service)
    labels = list(range(80))
    colors = [draw.class_color(label)[::-1] for label in labels]
    assert browser.execute_script("return arguments[0].map(color)", labels) == [list(color) for color in colors]
    inks = ["#000" if draw.text_color(color[::-1]) == (0, 0, 0) else "#fff" for color in colors]
    assert browser.execute_script("return arguments[0].map(color).map(ink)", labels) == inks
    assert browser.execute_script("return shown('行\\u202ea\\x1b\\nb <b>')") == "行\\u202ea\\u001b\\u000ab <b>"
    spots = browser.execute_script(
        "const taken = [];"
        "for (const box of arguments[0]) taken.push(place(box, 80, 17, {width: 400, height: 300}, taken));"
        "return taken.map(t => [t.x, t.y])", [[50, 60, 150, 160], [50, 60, 150, 160], [390, -5, 500, 90]])
    boxes, taken = np.array([[50, 60, 150, 160], [50, 60, 150, 160], [390, -5, 500, 90]]), np.zeros((0, 4), int)
    for box, spot in zip(boxes, spots):
        assert list(draw.place_label(box, (17, 80), (300, 400), taken)) == spot
        taken = np.vstack([taken, [*spot, spot[0] + 80, spot[1] + 17]])


def test_labels_can_be_read_on_every_colour(service, browser):
    """WCAG's contrast of what the browser paints."""
    browser.get(service)
    painted = browser.execute_script("""
        const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        const pixel = style => { context.fillStyle = style; context.fillRect(0, 0, 1, 1);
                                 return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        return Array.from({length: 500}, (_, label) => [pixel(`rgb(${color(label)})`), pixel(ink(color(label)))]);""")
    value = np.array(painted) / 255  # [class, plate and ink, RGB]
    luminance = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    contrast = (luminance.max(axis=1) + 0.05) / (luminance.min(axis=1) + 0.05)
    assert contrast.min() >= 4.5
    assert len(np.unique(value[:80, 0], axis=0)) == 80


def test_the_page_fits_a_phone_and_shows_any_name(browser, tmp_path):
    """Names that look like markup, of 200 letters, and that turn the direction round, without a service."""
    page = SERVER.with_name("page.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.get(f"file://{tmp_path}/page.html")
    names = ["<b>x</b><img src=x onerror=alert(1)>", "n" * 200, "قطة", "\u202egpj.exe", "猫"]
    for width in (390, 1280):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390})
        shown = browser.execute_script("""
            picture = document.createElement("canvas");
            result = {width: 300, height: 150, milliseconds: 1, detections: arguments[0].map((name, label) =>
                ({name, label, score: 0.9, box: [290, 10 * label, 299, 100]}))};
            document.getElementById("result").className = "shown";
            show();
            return [document.documentElement.scrollWidth, document.images.length, document.querySelectorAll("b").length,
                    [...document.querySelectorAll("#rows td:first-child")].map(td => [td.textContent, td.title])];
            """, names)
        assert shown[0] <= width
        assert shown[1:] == [0, 0, [[name.replace("\u202e", "\\u202e")] * 2 for name in names]]


def test_the_page_shows_the_boxes(service, browser, small_coco, photos, tmp_path):
    path = sorted((small_coco / "val2017").iterdir())[0]
    wanted = photos[0][1]
    browser.get(service)
    browser.find_element("id", "file").send_keys(str(path))
    assert f"{(wanted[:, 1] >= 0.5).sum()} detection" in wait_for(browser, " ms")
    assert len(browser.find_elements("css selector", "#rows tr")) == (wanted[:, 1] >= 0.5).sum()

    threshold = round(float(wanted[2, 1] + wanted[3, 1]) / 2, 2)
    browser.execute_script("const s = document.getElementById('threshold'); s.value = arguments[0];"
                           "s.dispatchEvent(new Event('input'))", threshold)
    assert f"{(wanted[:, 1] >= threshold).sum()} detection" in wait_for(browser, " ms")

    blank = cv2.imdecode(np.frombuffer(photos[0][0], np.uint8), cv2.IMREAD_COLOR)
    size = browser.execute_script("const c = document.getElementById('canvas'); return [c.height, c.width]")
    assert max(size) == 1000  # enlarged, in the same proportions
    assert abs(size[0] / size[1] - blank.shape[0] / blank.shape[1]) < 0.01
    drawn = browser.execute_script("const c = document.getElementById('canvas');"
                                   "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)")
    drawn = np.array(drawn, np.uint8).reshape(*size, 4)[..., 2::-1]
    changed = np.abs(drawn.astype(int) - cv2.resize(blank, size[::-1])).max(axis=2) > 100
    assert 0.005 < changed.mean() < 0.5  # boxes were drawn, and the image is below them

    (tmp_path / "note.jpg").write_text("not an image")
    browser.find_element("id", "file").send_keys(str(tmp_path / "note.jpg"))
    wait_for(browser, "not a JPEG, PNG, WEBP, BMP image")
    result = browser.find_element("id", "result")
    assert not result.is_displayed()  # the old one is gone, and stays so
    browser.execute_script("const s = document.getElementById('threshold'); s.value = 0;"
                           "s.dispatchEvent(new Event('input')); window.dispatchEvent(new Event('resize'))")
    wait_for(browser, "not a JPEG, PNG, WEBP, BMP image")
    assert not result.is_displayed()
    browser.find_element("id", "file").send_keys(str(path))
    assert f"{len(wanted)} detection" in wait_for(browser, " ms")
    canvas = browser.find_element("id", "canvas")
    assert canvas.get_attribute("role") == "img"
    assert canvas.get_attribute("aria-label").startswith(f"The image with {len(wanted)} boxes: ")
    box = browser.find_element("id", "list").size
    assert box["height"] <= 0.76 * browser.execute_script("return innerHeight")  # however long the list is
    complaints = [entry for entry in browser.get_log("browser") if "415" not in entry["message"]]
    assert not complaints, json.dumps(complaints, indent=1)
