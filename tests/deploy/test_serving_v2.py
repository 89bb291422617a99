"""deploy/serving/protocol_v2.py: the Open Inference Protocol, on a service with a detector of cardboard.
tests/deploy/test_serving.py asks a real one, with tritonclient too."""
import asyncio
import base64
import importlib
import json
import struct
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import ROOT

for package in ("starlette", "h11", "multipart", "prometheus_client", "PIL"):
    pytest.importorskip(package)
httpx = pytest.importorskip("httpx")
sys.path[:0] = [str(ROOT / "deploy" / name) for name in ("serving", "python")]
PNG = cv2.imencode(".png", np.full((8, 9, 3), (1, 2, 3), np.uint8))[1].tobytes()
ROWS = np.array([[1, 0.9, 1, 2, 3, 4], [0, 0.25, 5, 6, 7, 8.5]], np.float32)
INFER = "/v2/models/toy/infer"


@pytest.fixture
def toy():
    """Finds ROWS in each image but those whose first pixel is blue, where it finds nothing; `seen`: the images."""
    seen = []

    def prepare(images):
        seen.append(images[0])
        blue = np.array_equal(images[0][0, 0], [255, 0, 0])
        return {"image": np.full((1, 3, 32, 32), blue, np.float32)}

    def detect(arrays):
        return [ROWS[:0] if image.any() else ROWS for image in arrays["image"]]

    runner = SimpleNamespace(threads=2, class_names=["行人", "\ud800"], description="toy", prepare=prepare,
                             detect=detect)
    service = importlib.import_module("service").Service(runner, name="toy", max_images=3, max_pixels=1000)
    yield SimpleNamespace(service=service, seen=seen, app=service.app())
    service.batcher.stop()


def ask(toy, method, path, **request):
    async def send():
        transport = httpx.ASGITransport(toy.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def tensor(data, datatype="BYTES", shape=(1,), **parameters):
    return {"name": "image", "datatype": datatype, "shape": list(shape), "data": data,
            **({"parameters": parameters} if parameters else {})}


TEXT = base64.b64encode(PNG).decode()


def test_what_is_served(toy):
    assert ask(toy, "GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    for path, wanted in (("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True}),
                         ("/v2/models/toy/ready", {"name": "toy", "ready": True}),
                         ("/v2/models/toy/versions/1/ready", {"name": "toy", "ready": True})):
        answer = ask(toy, "GET", path)
        assert (answer.status_code, answer.json()) == (200, wanted)
    model = ask(toy, "GET", "/v2/models/toy").json()
    assert model == ask(toy, "GET", "/v2/models/toy/versions/1").json()
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {out["name"]: (out["datatype"], out["shape"]) for out in model["outputs"]} == {
        "boxes": ("FP32", [-1, 4]), "scores": ("FP32", [-1]), "labels": ("INT64", [-1]), "names": ("BYTES", [-1]),
        "bbox_num": ("INT64", [-1])}
    for path in ("/v2/models/other", "/v2/models/toy/versions/2", "/v2/models/toy/versions/2/ready", "/v2/nothing"):
        answer = ask(toy, "GET", path)
        assert (answer.status_code, list(answer.json())[0]) == (404, "error"), path
    assert ask(toy, "POST", "/v2/models/other/infer", json={"inputs": []}).status_code == 404


def test_readiness_is_not_liveness(toy):
    paths = ("/livez", "/v2/health/live", "/readyz", "/v2/health/ready", "/v2/models/toy/ready", "/health")

    def states():
        return [ask(toy, "GET", path).status_code for path in paths]

    assert states() == [200] * 6
    toy.service.in_flight = toy.service.max_queue
    assert states() == [200, 200, 503, 503, 503, 200]
    assert "queue is full" in ask(toy, "GET", "/readyz").json()["reason"]
    toy.service.in_flight = 0
    assert states() == [200] * 6
    toy.service.failed, toy.service.batcher.detect = True, lambda arrays: 1 / 0
    assert states() == [200, 200, 503, 503, 503, 503]
    toy.service.failed, toy.service.draining = False, True
    assert states() == [200, 200, 503, 503, 503, 200]
    toy.service.batcher.stop()
    assert states() == [503] * 6


def test_an_answer_in_json(toy):
    answer = ask(toy, "POST", INFER, json={"id": "a", "inputs": [tensor([TEXT])]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model_name": "toy", "model_version": "1", "id": "a", "outputs": [
            {"name": "boxes", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8.5]},
            {"name": "scores", "datatype": "FP32", "shape": [2], "data": [float(np.float32(0.9)), 0.25]},
            {"name": "labels", "datatype": "INT64", "shape": [2], "data": [1, 0]},
            {"name": "names", "datatype": "BYTES", "shape": [2], "data": ["\ud800", "行人"]},
            {"name": "bbox_num", "datatype": "INT64", "shape": [1], "data": [2]}]}
    answer = ask(toy, "POST", INFER, json={
        "inputs": [tensor([[TEXT], [TEXT]], shape=(2, 1))], "parameters": {"threshold": 0.5},
        "outputs": [{"name": "bbox_num"}, {"name": "scores"}]}).json()
    assert [(out["name"], out["shape"], out["data"]) for out in answer["outputs"]] == [
        ("bbox_num", [2], [1, 1]), ("scores", [2], [float(np.float32(0.9))] * 2)]
    assert "id" not in answer


def test_an_answer_in_binary(toy):
    """One image of three is blue."""
    blue = cv2.imencode(".png", np.full((5, 6, 3), (255, 0, 0), np.uint8))[1].tobytes()
    data = b"".join(struct.pack("<I", len(file)) + file for file in (PNG, blue, PNG))
    question = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3],
                            "parameters": {"binary_data_size": len(data)}}],
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": name} for name in ("names", "boxes", "labels", "bbox_num")]
                + [{"name": "scores", "parameters": {"binary_data": False}}]}
    header = json.dumps(question).encode()
    answer = ask(toy, "POST", INFER, content=header + data, headers={
        "Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"})
    assert answer.status_code == 200, answer.text
    size = int(answer.headers["Inference-Header-Content-Length"])
    outputs, rest, found = json.loads(answer.content[:size])["outputs"], answer.content[size:], {}
    for output in outputs:
        if "data" not in output:
            length = output["parameters"]["binary_data_size"]
            found[output["name"]], rest = rest[:length], rest[length:]
    assert rest == b""
    assert found["names"] == b"".join(
        struct.pack("<I", len(name)) + name for name in (b"\xed\xa0\x80", "行人".encode()) * 2)
    assert np.array_equal(np.frombuffer(found["boxes"], "<f4").reshape(-1, 4), np.vstack([ROWS[:, 2:]] * 2))
    assert struct.unpack("<4q", found["labels"]) == (1, 0, 1, 0)
    assert struct.unpack("<3q", found["bbox_num"]) == (2, 0, 2)
    assert outputs[-1]["data"] == pytest.approx([0.9, 0.25] * 2)


def test_pixels_are_red_first(toy):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        assert ask(toy, "POST", INFER, json={"inputs": [tensor(data, "UINT8", (2, 3, 3))]}).status_code == 200
    header = json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2, 2, 3, 3],
                                     "parameters": {"binary_data_size": 36}}]}).encode()
    answer = ask(toy, "POST", INFER, content=header + pixels.tobytes() + pixels.tobytes(),
                 headers={"Inference-Header-Content-Length": str(len(header))})
    assert answer.json()["outputs"][4]["data"] == [2, 2]
    assert len(toy.seen) == 4
    assert all(np.array_equal(image, pixels[..., ::-1]) and image.flags.c_contiguous for image in toy.seen)


def test_spreads_of_the_sides(toy):
    toy.service.runner.sigma, toy.service.batcher.detect = True, lambda arrays: [np.arange(14.0)[None] * 0 + 0.5]
    toy.app = toy.service.app()
    assert [out["name"] for out in ask(toy, "GET", "/v2/models/toy").json()["outputs"]][-2:] == ["sigma", "top2"]
    outputs = ask(toy, "POST", INFER, json={"inputs": [tensor([TEXT])]}).json()["outputs"]
    assert [(out["name"], out["shape"]) for out in outputs][-2:] == [("sigma", [1, 4]), ("top2", [1, 4])]


WRONG = [
    ({"inputs": []}, 400, "there is one, `image`"),
    ({"inputs": [tensor([TEXT]), tensor([TEXT])]}, 400, "there is one, `image`"),
    ({"inputs": [{**tensor([TEXT]), "name": "x"}]}, 400, "there is one, `image`"),
    ([], 400, "not a JSON object"),
    ({"inputs": [tensor([1.0], "FP32")]}, 400, "datatype 'FP32'"),
    ({"inputs": [tensor([TEXT], shape=(2,))]}, 400, "1 elements; shape [2] has 2"),
    ({"inputs": [tensor([TEXT], shape=(True,))]}, 400, "list of whole numbers"),
    ({"inputs": [tensor([TEXT], shape=(-1,))]}, 400, "list of whole numbers"),
    ({"inputs": [tensor([], shape=(0,))]}, 400, "there is none"),
    ({"inputs": [tensor([TEXT] * 4, shape=(4,))]}, 413, "4 images; at most 3"),
    ({"inputs": [tensor([TEXT], shape=(2**31 - 1,) * 4)]}, 413, "at most 3"),
    ({"inputs": [tensor(["ä"])]}, 400, "not base64"),
    ({"inputs": [tensor([5])]}, 400, "texts"),
    ({"inputs": [tensor("x")]}, 400, "it is a list"),
    ({"inputs": [tensor([[TEXT], TEXT], shape=(2,))]}, 400, "lists and values"),
    ({"inputs": [tensor(["aGVsbG8="])]}, 415, "image 0: not a JPEG"),
    ({"inputs": [tensor([0] * 12, "UINT8", (2, 2, 3))], "outputs": [{"name": "masks"}]}, 400, "'masks' is not there"),
    ({"inputs": [tensor([0] * 11, "UINT8", (2, 2, 3))]}, 400, "11 values; shape [2, 2, 3] has 12"),
    ({"inputs": [tensor([0] * 16, "UINT8", (2, 2, 4))]}, 400, "red first"),
    ({"inputs": [tensor([256] * 12, "UINT8", (2, 2, 3))]}, 400, "from 0 to 255"),
    ({"inputs": [tensor([0.5] * 12, "UINT8", (2, 2, 3))]}, 400, "from 0 to 255"),
    ({"inputs": [tensor([[0], [0, 1]], "UINT8", (1, 1, 3))]}, 200, None),  # any nesting, as the specification says
    ({"inputs": [tensor([0], "UINT8", (100, 11, 3))]}, 413, "11 x 100 pixels; at most 1000"),
    ({"inputs": [tensor([TEXT], binary_data_size=5)]}, 400, "there are 0 bytes"),
    ({"inputs": [tensor([TEXT], shared_memory_region="a")]}, 400, "shared memory is not supported"),
    ({"inputs": [tensor([TEXT])], "parameters": {"threshold": 2}}, 400, "threshold"),
    ({"inputs": [tensor([TEXT])], "parameters": {"threshold": "x"}}, 400, "threshold"),
    ({"inputs": [tensor([TEXT])], "parameters": 5}, 400, "parameters"),
    ({"inputs": [tensor([TEXT])], "id": 5}, 400, "id: it is a text"),
    ({"inputs": [tensor([TEXT])], "outputs": [5]}, 400, "outputs: it is a list"),
    ({"inputs": [tensor([TEXT])], "outputs": [{"name": "scores", "parameters": {"classification": 3}}]}, 400,
     "classification is not supported"),
]


@pytest.mark.parametrize("question,code,words", WRONG)
def test_what_is_wrong_is_said(toy, question, code, words):
    answer = ask(toy, "POST", INFER, json=question)
    assert answer.status_code == code, answer.text
    if words:
        assert words in answer.json()["error"]
    assert toy.service.in_flight == 0


def test_wrong_bodies(toy):
    question = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1],
                                       "parameters": {"binary_data_size": 5}}]}).encode()
    length = str(len(question))
    for body, headers, code, words in (
            (b"{", {}, 400, "not valid JSON"),
            (b"[" * 100_000, {}, 400, "not valid JSON"),
            (question + b"x", {}, 400, "not valid JSON; with binary tensors behind it, Inference-Header"),
            (question, {"Inference-Header-Content-Length": "9999"}, 400, "at most the"),
            (question, {"Inference-Header-Content-Length": "-1"}, 400, "at most the"),
            (question + b"xx", {"Inference-Header-Content-Length": length}, 400, "there are 2 bytes"),
            (question + b"\5\0\0\0x", {"Inference-Header-Content-Length": length}, 400, "in the midst"),
            (b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":[]}]}xx',
             {"Inference-Header-Content-Length": "70"}, 400, "2 bytes behind the JSON belong to no input"),
            (question, {"Content-Encoding": "gzip"}, 415, "compressed")):
        answer = ask(toy, "POST", INFER, content=body, headers=headers)
        assert (answer.status_code, words in answer.json()["error"]) == (code, True), answer.text
    assert ask(toy, "GET", INFER).status_code == 405
