#!/usr/bin/env python3
"""Serve an exported GFL detector, a folder or a .onnx, over HTTP.

    pip install "ppgfl[serve]"        (starlette uvicorn python-multipart prometheus-client pillow)
    python server.py --model_dir output_inference/gfl_r50_fpn_1x_coco --port 8866
    curl -F images=@photo.jpg -F threshold=0.5 http://127.0.0.1:8866/predict

GET  /         a page to drop images on
POST /predict  multipart form: `images`, one or several files, and `threshold`; or one image as the body, with
               ?threshold=; or JSON, {"image": "<base64>", "threshold": 0.5}; answers JSON
GET  /health   {"status": "ok", ...}
GET  /metrics  Prometheus text

SIGTERM and Ctrl-C end it once the requests under way are answered, with exit code 0 or that of the signal, 143 or 130.
A mistake in its arguments is one line and exit code 2.
"""
from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))  # a second guard behind `decode`; read by OpenCV once

import arguments  # noqa: E402
import cv2  # noqa: E402
import infer  # noqa: E402
import numpy as np  # noqa: E402
import uvicorn  # noqa: E402
from batching import Batcher  # noqa: E402
from PIL import Image  # noqa: E402
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.datastructures import UploadFile  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.middleware.cors import CORSMiddleware  # noqa: E402
from starlette.requests import ClientDisconnect, Request  # noqa: E402
from starlette.responses import HTMLResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: E402

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
HEADER_SECONDS = 10.0  # a client that takes longer to say what it wants is cut off,
BODY_SECONDS = 30.0  # and one that takes longer to send it
SEND = ("send a form with the files as `images` (curl -F images=@photo.jpg), one file as the body "
        "(curl --data-binary @photo.jpg), or JSON, {\"image\": \"<base64 of the file>\"}")
BLANK = np.zeros((64, 64, 3), np.uint8)
DRAIN_SECONDS = 2.0  # how long the rest of a refused request is read
# ASGI's
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class JsonAnswer(Response):
    """JSON in ASCII, so that it holds whatever a class is called, also halves of letters."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Service:
    """The state behind the routes.

    Args:
        runner: of `infer.open_runner`.
        max_batch, max_batch_pixels, max_wait: see `Batcher`.
        max_queue: images that are read, waiting or computed at a time; more get a 503.
        max_images: per request.
        max_bytes: of a request.
        max_pixels: of an image.
        cors: origins whose pages may ask from a browser, as https://example.com; "*" is any.
    """

    def __init__(self, runner: infer.BaseRunner, *, max_batch: int = 8, max_batch_pixels: int = 1_000_000,
                 max_wait: float = 0.005, max_queue: int = 64, max_images: int = 16, max_bytes: int = 20 * 2**20,
                 max_pixels: int = 50_000_000, cors: Sequence[str] = ()) -> None:
        self.runner = runner
        self.max_queue, self.max_images = max_queue, max_images
        self.max_bytes, self.max_pixels, self.cors = max_bytes, max_pixels, cors
        self.in_flight = 0
        self.failed = False  # whether the last failure has not been followed by a good answer yet
        self.page = (HERE / "page.html").read_text(encoding="utf-8")
        self.registry = CollectorRegistry()
        self.answers = Counter("ppgfl_requests", "Answers of /predict by status.", ["status"], registry=self.registry)
        self.images = Counter("ppgfl_images", "Images that were detected on.", registry=self.registry)
        self.seconds = Histogram("ppgfl_request_seconds", "Seconds of a /predict that was answered with 200.",
                                 registry=self.registry)
        batches = Histogram("ppgfl_batch_images", "Images per batch.", buckets=range(1, max_batch + 1),
                            registry=self.registry)
        Gauge("ppgfl_images_in_flight", "Images being read, waiting or computed.",
              registry=self.registry).set_function(lambda: self.in_flight)
        self.batcher = Batcher(runner.detect, max_batch=max_batch, max_pixels=max_batch_pixels, max_wait=max_wait,
                               observe=batches.observe)
        self.decoders = ThreadPoolExecutor(runner.threads, thread_name_prefix="decoder")

    def app(self) -> App:
        routes = [Route("/", self.show_page), Route("/predict", self.predict, methods=["POST"]),
                  Route("/health", self.health), Route("/metrics", self.metrics)]
        handlers: dict[Any, Any] = {HTTPException: self.refuse, Exception: self.fail}
        app: App = Starlette(routes=routes, lifespan=self.lifespan, exception_handlers=handlers)
        if self.cors:
            app = CORSMiddleware(app, allow_origins=self.cors, allow_methods=["GET", "POST"], allow_headers=["*"])
        return self.guarded(app)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.batcher.stop)
        self.decoders.shutdown()

    # --- routes

    async def show_page(self, request: Request) -> Response:
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; " \
                 "connect-src 'self'"
        return HTMLResponse(self.page, headers={"Content-Security-Policy": policy})

    async def health(self, request: Request) -> Response:
        """Whether images are detected on. Where the last request failed, a blank image is tried, so that it is known
        whether that goes on."""
        alive = self.batcher.thread.is_alive()
        if alive and self.failed:
            try:
                await asyncio.wrap_future(self.batcher.submit(self.runner.prepare([BLANK])))
                self.failed = False
            except Exception:  # of whatever kind, as in `fail`
                alive = False
        return JsonAnswer({"status": "ok" if alive else "failed", "model": self.runner.description,
                           "classes": len(self.runner.class_names)}, status_code=200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def predict(self, request: Request) -> Response:
        start = time.perf_counter()
        places = self.enter(1)
        try:
            files, threshold = await self.read(request)
            places += self.enter(len(files) - 1)
            answers = await asyncio.gather(*[self.detect(data, number) for number, data in enumerate(files)],
                                           return_exceptions=True)
            for answer in answers:  # of several that are wrong the first
                if isinstance(answer, BaseException):
                    raise answer
        finally:
            self.in_flight -= places
        seconds = time.perf_counter() - start
        self.failed = False
        self.answers.labels("200").inc()
        self.images.inc(len(files))
        self.seconds.observe(seconds)
        return JsonAnswer({
            "milliseconds": round(1000 * seconds, 1),
            "results": [self.describe(shape, rows[rows[:, 1] >= threshold]) for shape, rows in answers]})

    async def detect(self, data: bytes, number: int) -> tuple[tuple[int, int], np.ndarray]:
        """The bytes of an image -> its height and width, and what was found. Other images of the request, and of other
        requests, are decoded and prepared meanwhile."""
        shape, arrays = await asyncio.get_running_loop().run_in_executor(self.decoders, self.prepare, data, number)
        return shape, await asyncio.wrap_future(self.batcher.submit(arrays))

    def enter(self, places: int) -> int:
        """Take places in the queue, or refuse. Returns their number."""
        if self.in_flight + places > self.max_queue:
            raise HTTPException(503, f"{self.in_flight} images are being worked on; try again in a second",
                                {"Retry-After": "1"})
        self.in_flight += places
        return places

    def prepare(self, data: bytes, number: int) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
        """Bytes -> ((height, width), prepared arrays); the image itself is dropped, since it may be large."""
        image = self.decode(data, number)
        return image.shape[:2], self.runner.prepare([image])

    def describe(self, shape: tuple[int, int], rows: np.ndarray) -> dict[str, Any]:
        return {"width": shape[1], "height": shape[0], "detections": [
            {"label": int(row[0]), "name": infer.name_of(int(row[0]), self.runner.class_names),
             "score": round(float(row[1]), 5), "box": [round(float(n), 2) for n in row[2:]]} for row in rows]}

    # --- requests from strangers

    async def read(self, request: Request) -> tuple[list[bytes], float]:
        """(the bytes of each file, threshold) of a request; a 4xx for all that is not right about it."""
        if request.headers.get("content-length", "0").isdecimal():
            self.check_size(int(request.headers.get("content-length", "0")))
        try:
            files, threshold = await asyncio.wait_for(self.read_body(request), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {BODY_SECONDS:.0f} seconds") from None
        except ClientDisconnect:  # nobody reads the answer, but it is counted, and not a traceback in the log
            raise HTTPException(400, "the connection ended in the midst of the request") from None
        try:
            threshold = float(threshold)
        except (TypeError, ValueError, OverflowError):
            threshold = -1.0
        if not 0 <= threshold <= 1:
            raise HTTPException(422, "threshold: it is a number from 0 to 1")
        if not files:
            raise HTTPException(400, f"the request is empty: {SEND}")
        return files, threshold

    async def read_body(self, request: Request) -> tuple[list[bytes], Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            body, threshold = await request.body(), request.query_params.get("threshold", "0.5")
            if kind == "application/json" or body.lstrip()[:1] == b"{":
                return unpack_json(body, threshold)
            if body.isascii() and 0 not in body and body:
                raise HTTPException(415, f"the body is text, not an image: {SEND}")
            return [body] if body else [], threshold
        async with request.form(max_files=self.max_images, max_fields=16) as form:
            files = [await value.read() for name, value in form.multi_items()
                     if name == "images" and isinstance(value, UploadFile)]
            if not files:
                names = ", ".join(sorted({ascii(name)[:40] for name in form})[:5]) or "nothing"
                raise HTTPException(400, f"the form has {names}, but no file named `images`: {SEND}")
            return files, form.get("threshold", request.query_params.get("threshold", "0.5"))

    def guarded(self, app: App) -> App:
        """The app behind a guard: a body is cut off with a 413 where it exceeds the limit, whatever its headers
        promised; and what is left of a refused one is read for a while, since a connection that is closed on unread
        bytes takes the answer with it."""
        async def guard(scope: Message, receive: Receive, send: Send) -> None:
            total, ended = 0, scope["type"] != "http"

            async def counted() -> Message:
                nonlocal total, ended
                message = await receive()
                ended = not message.get("more_body", False)
                total += len(message.get("body", b""))
                self.check_size(total)
                return message

            async def drain() -> None:
                nonlocal total, ended
                while not ended and total < 8 * self.max_bytes:
                    message = await receive()
                    ended = not message.get("more_body", False)
                    total += len(message.get("body", b""))

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start" and message["status"] >= 400:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(drain(), DRAIN_SECONDS)
                await send(message)

            await app(scope, counted if scope["type"] == "http" else receive, answer)

        return guard

    def check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise HTTPException(413, f"the request is larger than {self.max_bytes} bytes")

    def decode(self, data: bytes, number: int) -> np.ndarray:
        """Bytes -> [H, W, 3] uint8 BGR; the size is read from the header before anything is unpacked."""
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                width, height = header.size
        except Exception as error:  # Pillow raises many kinds, also for a decompression bomb
            raise HTTPException(415, f"image {number}: not a {', '.join(FORMATS)} image that can be read") from error
        if width * height > self.max_pixels:
            raise HTTPException(413, f"image {number}: {width} x {height} pixels; at most {self.max_pixels} are taken")
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            image = None
        if image is None:
            raise HTTPException(415, f"image {number}: damaged, it cannot be decoded")
        return image

    async def refuse(self, request: Request, error: HTTPException) -> Response:
        if request.url.path == "/predict":
            self.answers.labels(str(error.status_code)).inc()
        # What was not read of the request must not be taken for the next one.
        headers = {**(error.headers or {}), "Connection": "close"}
        return JsonAnswer({"error": error.detail}, status_code=error.status_code, headers=headers)

    async def fail(self, request: Request, error: Exception) -> Response:
        self.failed = True
        self.answers.labels("500").inc()
        return JsonAnswer({"error": "the detector failed; the log of the service says why"}, status_code=500)


def unpack_json(body: bytes, threshold: Any) -> tuple[list[bytes], Any]:
    """([the bytes of the image], threshold) of {"image": "<base64>", "threshold": 0.5}; "data:...;base64," may lead."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body is not valid JSON: {SEND}") from None
    if not isinstance(content, dict) or not isinstance(content.get("image"), str):
        raise HTTPException(400, f"the JSON has no text `image`: {SEND}")
    try:
        text = "".join(content["image"].rpartition(",")[2].split())  # base64 is often broken into lines
        return [base64.b64decode(text, validate=True)], content.get("threshold", threshold)
    except ValueError:
        raise HTTPException(400, f"`image` of the JSON is not base64: {SEND}") from None


class Connection(H11Protocol):
    """uvicorn's connection, which by itself waits for the header of a request for ever: some hundred clients that send
    none, or a byte now and then, would take all the places (`limit_concurrency`) of those who want something."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._look, (True, None))

    def _look(self, before: tuple[bool, Any]) -> None:
        """Again and again; two looks that find no request under way, and no new one since, end the connection."""
        waiting = self.cycle is None or self.cycle.response_complete
        now = (waiting, self.cycle)
        if waiting and now == before or self.transport.is_closing():
            self.transport.abort()
        else:
            self.loop.call_later(HEADER_SECONDS, self._look, now)


def check_address(host: str, port: int) -> None:
    """Raises OSError where it cannot be listened at, now rather than after the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host, port), family=family).close()


def main() -> int:
    args = arguments.parse(__doc__)
    try:
        check_address(args.host, args.port)
    except OSError as error:
        print(f"error: --host {args.host} --port {args.port}: cannot listen there ({error.strerror}); choose others",
              file=sys.stderr)
        return 2
    try:
        runner = infer.open_runner(args.model_dir, device=args.device, run_mode=args.run_mode,
                                   cpu_threads=args.cpu_threads, engine=args.engine, provider=args.provider)
    except infer.RunnerError as error:
        print(f"error: {infer.shown(error)}", file=sys.stderr)
        return 2
    try:
        runner([BLANK])  # an export without NMS, or of another model, is refused here, not at the first request
    except Exception as error:  # the libraries raise many kinds
        print(f"error: {args.model_dir}: it cannot detect on a blank image: {infer.end_of(error)}", file=sys.stderr)
        return 2
    megapixels = args.max_batch_megapixels or {"CPU": 1, "GPU": 100}[runner.device]
    service = Service(
        runner, max_batch=args.max_batch, max_batch_pixels=int(megapixels * 1e6), max_wait=args.max_wait_ms / 1000,
        max_queue=args.max_queue, max_images=min(args.max_images, args.max_queue),
        max_bytes=int(args.max_megabytes * 2**20), max_pixels=int(args.max_megapixels * 1e6), cors=args.cors)
    print(f"running {runner.description}", flush=True)
    uvicorn.run(service.app(), http=Connection, ws="none", host=args.host, port=args.port, access_log=False,
                timeout_keep_alive=10, limit_concurrency=4 * args.max_queue, timeout_graceful_shutdown=30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
