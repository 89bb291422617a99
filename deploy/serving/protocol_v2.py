"""The Open Inference Protocol (KServe v2) over HTTP, with its extension for binary tensors.

    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

The model takes one input, `image`: BYTES [N], a file (JPEG, PNG, WebP, BMP) each, in JSON as base64; or UINT8 [H, W, 3]
or [N, H, W, 3], red first. Its outputs are the detections of all images, one image after the other, best score first:
`boxes` [M, 4] x1 y1 x2 y2 in pixels of the image, `scores` [M], `labels` [M] and their `names`, and `bbox_num` [N], how
many of them each image has; models that give sigma have `sigma` and `top2` [M, 4] too. The parameter `threshold` leaves
out what is below it (0: nothing is).
"""
from __future__ import annotations

import asyncio
import importlib.metadata
import json
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Union

import infer
import numpy as np
import reading
from middleware import JsonAnswer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HEADER = "Inference-Header-Content-Length"
VERSION = "1"  # of the model
TYPES = {"FP32": "<f4", "INT64": "<i8", "UINT8": "u1"}
OUTPUTS = {"boxes": ("FP32", [-1, 4]), "scores": ("FP32", [-1]), "labels": ("INT64", [-1]), "names": ("BYTES", [-1]),
           "bbox_num": ("INT64", [-1])}
SIGMA = {"sigma": ("FP32", [-1, 4]), "top2": ("FP32", [-1, 4])}
INPUT = {"name": "image", "datatype": "BYTES", "shape": [-1]}
Image = Union[bytes, np.ndarray]


class Question(NamedTuple):
    """A request: its id, the images (files, or [H, W, 3] uint8 BGR), the minimum score, and {output: binary or not}."""

    id: str | None
    images: Sequence[Image]
    threshold: float
    outputs: dict[str, bool]


def wrong(message: str) -> HTTPException:
    return HTTPException(400, message)


# --- requests


def split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a body, and the binary tensors behind it."""
    size = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise wrong(f"{HEADER}: {ascii(header_length)[:40]}; it is the length of the JSON, which has at most the "
                        f"{len(body)} bytes of the body")
        size = int(header_length)
    try:
        content = json.loads(body[:size])
    except (ValueError, RecursionError):
        raise wrong("the request is not valid JSON" + ("" if header_length else f"; with binary tensors behind it, "
                                                       f"{HEADER} says how long the JSON is")) from None
    if not isinstance(content, dict):
        raise wrong("the request is not a JSON object")
    return content, memoryview(body)[size:]


def parameters_of(thing: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = thing.get("parameters", {})
    if not isinstance(parameters, dict):
        raise wrong(f"{what}: parameters: they are an object")
    if any(name.startswith("shared_memory") for name in parameters):
        raise wrong(f"{what}: shared memory is not supported; send the data")
    return parameters


def parse(body: bytes, header_length: str | None, known: Sequence[str], limits: reading.Limits) -> Question:
    """The question in the body of a POST .../infer to a model with the outputs `known`. Raises HTTPException."""
    content, binary = split(body, header_length)
    parameters = parameters_of(content, "the request")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or [thing.get("name") for thing in inputs if isinstance(thing, dict)] != ["image"]:
        raise wrong("inputs: there is one, `image`")
    threshold = parameters.get("threshold", 0.0)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise wrong("parameters: threshold: it is a number from 0 to 1")
    name = content.get("id")
    if name is not None and not isinstance(name, str):
        raise wrong("id: it is a text")
    return Question(name, images_of(inputs[0], binary, limits), threshold, outputs_of(content, parameters, known))


def outputs_of(content: dict[str, Any], parameters: dict[str, Any], known: Sequence[str]) -> dict[str, bool]:
    """{name: whether it is asked for in binary} of the outputs that are asked for, or of all."""
    usual = parameters.get("binary_data_output", False) is True
    asked = content.get("outputs") or [{"name": name} for name in known]
    if not isinstance(asked, list) or not all(isinstance(thing, dict) for thing in asked):
        raise wrong("outputs: it is a list of objects")
    found = {}
    for thing in asked:
        if thing.get("name") not in known:
            raise wrong(f"outputs: {ascii(thing.get('name'))[:60]} is not there; the model has {', '.join(known)}")
        own = parameters_of(thing, f"output {thing['name']}")
        if own.get("classification"):
            raise wrong(f"output {thing['name']}: classification is not supported; `names` has the classes")
        found[thing["name"]] = own.get("binary_data", usual) is True
    return found


def images_of(tensor: dict[str, Any], binary: memoryview, limits: reading.Limits) -> Sequence[Image]:
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    size = parameters_of(tensor, "image").get("binary_data_size")
    if datatype not in ("BYTES", "UINT8"):
        raise wrong(f"image: datatype {ascii(datatype)[:40]}; it is BYTES, files, or UINT8, pixels")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise wrong("image: shape: it is a list of whole numbers")
    if size is not None and size != len(binary):
        raise wrong(f"image: binary_data_size: {ascii(size)[:40]}; there are {len(binary)} bytes behind the JSON")
    if size is None and binary:
        raise wrong(f"{len(binary)} bytes behind the JSON belong to no input: image has no binary_data_size")
    if datatype == "BYTES":
        return files_of(tensor, shape, None if size is None else binary, limits)
    if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
        raise wrong(f"image: shape: {shape}; UINT8 has [H, W, 3] or [N, H, W, 3], red first")
    check_count(shape[0] if len(shape) == 4 else 1, limits)
    reading.check_pixels(shape[-2], shape[-3], 0, limits)
    pixels = np.frombuffer(binary, np.uint8) if size is not None else numbers_of(tensor.get("data"))
    if pixels.size != np.prod(shape, dtype=object):
        raise wrong(f"image: {pixels.size} values; shape {shape} has {np.prod(shape, dtype=object)}")
    return list(np.ascontiguousarray(pixels.reshape(-1, *shape[-3:])[..., ::-1]))


def check_count(count: int, limits: reading.Limits) -> None:
    if count > limits.images:
        raise HTTPException(413, f"image: {count} images; at most {limits.images} are taken at a time")
    if count == 0:
        raise wrong("image: there is none")


def files_of(tensor: dict[str, Any], shape: list[int], binary: memoryview | None,
             limits: reading.Limits) -> list[bytes]:
    """The elements of a BYTES tensor: in binary each is behind its length, four bytes, least significant first."""
    check_count(int(np.prod(shape, dtype=object)), limits)
    files, place = [], 0
    if binary is None:
        data = flat(tensor.get("data"))
        if not all(isinstance(text, str) for text in data):
            raise wrong("image: data: the elements are texts, base64 of the files")
        try:
            files = [reading.from_base64(text) for text in data]
        except ValueError:
            raise wrong("image: data: not base64; send the bytes of files as base64, or as binary data") from None
    while binary is not None and place < len(binary):
        length = int.from_bytes(binary[place:place + 4], "little")
        files.append(bytes(binary[place + 4:place + 4 + length]))
        place += 4 + length
    if binary is not None and place != len(binary):
        raise wrong("image: the binary data ends in the midst of an element")
    if len(files) != np.prod(shape, dtype=object):
        raise wrong(f"image: {len(files)} elements; shape {shape} has {np.prod(shape, dtype=object)}")
    return files


def flat(data: Any) -> list[Any]:
    """Lists of lists in one; the specification allows both."""
    if not isinstance(data, list):
        raise wrong("image: data: it is a list")
    while any(isinstance(one, list) for one in data):
        if not all(isinstance(one, list) for one in data):
            raise wrong("image: data: lists and values in one list")
        data = [item for one in data for item in one]
    return data


def numbers_of(data: Any) -> np.ndarray:
    try:
        values = np.array(flat(data))
    except (ValueError, OverflowError):
        values = np.array([])
    if values.dtype.kind not in "iu" or values.size == 0 or values.min() < 0 or values.max() > 255:
        raise wrong("image: data: UINT8 holds whole numbers from 0 to 255")
    return values.astype(np.uint8)


# --- answers


def tensors(found: Sequence[np.ndarray], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows [M, 6 or 14] of each image -> the outputs by name; `names` is an array of str."""
    rows = np.concatenate([np.asarray(rows, np.float32) for rows in found])
    labels = rows[:, 0].astype(np.int64)
    outputs = {"boxes": rows[:, 2:6], "scores": rows[:, 1], "labels": labels,
               "names": np.array([infer.name_of(int(label), class_names) for label in labels], object),
               "bbox_num": np.array([len(one) for one in found], np.int64)}
    return {**outputs, **({"sigma": rows[:, 6:10], "top2": rows[:, 10:14]} if rows.shape[1] > 6 else {})}


def encode(name: str, values: np.ndarray, datatype: str, binary: bool) -> tuple[dict[str, Any], bytes]:
    """A tensor's description in the JSON of the answer, and its bytes behind that."""
    described = {"name": name, "datatype": datatype, "shape": list(values.shape)}
    if not binary:
        return {**described, "data": values.ravel().tolist()}, b""
    if datatype == "BYTES":
        texts = [text.encode("utf-8", "surrogatepass") for text in values.ravel()]
        data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    else:
        data = np.ascontiguousarray(values, TYPES[datatype]).tobytes()
    return {**described, "parameters": {"binary_data_size": len(data)}}, data


def answer(question: Question, outputs: dict[str, np.ndarray], kinds: dict[str, Any], model: str) -> Response:
    parts = [encode(name, outputs[name], kinds[name][0], binary) for name, binary in question.outputs.items()]
    content = {"model_name": model, "model_version": VERSION, "outputs": [described for described, _ in parts],
               **({} if question.id is None else {"id": question.id})}
    if not any(question.outputs.values()):
        return JsonAnswer(content)
    header = JsonAnswer(content).body
    return Response(bytes(header) + b"".join(data for _, data in parts), media_type="application/octet-stream",
                    headers={HEADER: str(len(header))})


# --- routes


def version() -> str:
    try:
        return importlib.metadata.version("ppgfl")
    except importlib.metadata.PackageNotFoundError:  # the files were copied
        return "unknown"


def routes(service: Any) -> list[Route]:
    """The routes of a `service.Service`."""
    kinds = {**OUTPUTS, **(SIGMA if getattr(service.runner, "sigma", False) else {})}

    async def server(request: Request) -> Response:
        return JsonAnswer({"name": "ppgfl", "version": version(), "extensions": ["binary_tensor_data"]})

    async def server_ready(request: Request) -> Response:
        return await service.readiness(request)

    async def model(request: Request) -> Response:
        check(request)
        return JsonAnswer({
            "name": service.name, "versions": [VERSION], "platform": "ppgfl", "inputs": [INPUT],
            "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in kinds.items()]})

    async def model_ready(request: Request) -> Response:
        check(request)
        reason = await service.why_not_ready()
        return JsonAnswer({"name": service.name, "ready": not reason}, status_code=503 if reason else 200)

    async def ask(request: Request) -> Response:
        check(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "Content-Encoding: compressed requests are not read")
        start = time.perf_counter()
        places = service.enter(1)
        try:
            body = await reading.in_time(request, request.body(), service.limits)
            question = await asyncio.to_thread(parse, body, request.headers.get(HEADER), list(kinds), service.limits)
            places += service.enter(len(question.images) - 1)
            found = [rows[rows[:, 1] >= question.threshold] for _, rows in await service.detect_all(question.images)]
        finally:
            service.leave(places)
        outputs = tensors(found, service.runner.class_names)
        service.count(start, len(found))
        return answer(question, outputs, kinds, service.name)

    def check(request: Request) -> None:
        """Raises HTTPException for a model, or a version of it, that is not served."""
        name, number = request.path_params["name"], request.path_params.get("version", VERSION)
        if (name, number) != (service.name, VERSION):
            raise HTTPException(404, f"{ascii(name)[:100]}, version {ascii(number)[:40]} is not served; the model is "
                                     f"{service.name}, version {VERSION}")

    found: list[tuple[str, Callable[[Request], Awaitable[Response]], str]] = [
        ("", model, "GET"), ("/ready", model_ready, "GET"), ("/infer", ask, "POST")]
    return [Route("/v2", server), Route("/v2/health/live", service.live), Route("/v2/health/ready", server_ready),
            *[Route(f"/v2/models/{{name}}{part}{end}", function, methods=[method])
              for part in ("", "/versions/{version}") for end, function, method in found]]
