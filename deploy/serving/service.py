"""The routes of the service, and the state behind them."""
from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Union

import infer
import numpy as np
import protocol_v2
import reading
from batching import Batcher
from connections import App
from middleware import JsonAnswer, guarded, numbered, prefixed, refused
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

BLANK = np.zeros((64, 64, 3), np.uint8)
LIVE = ("/livez", "/v2/health/live")  # are answered whatever the load: who fails them is ended
Image = Union[bytes, np.ndarray]  # a file, or [H, W, 3] uint8 BGR


class Service:
    """The state behind the routes.

    Args:
        runner: of `infer.open_runner`.
        name: of the model, for /v2.
        max_batch, max_batch_pixels, max_wait: see `Batcher`.
        max_queue: images that are read, waiting or computed at a time; more get a 503.
        max_images: per request.
        max_bytes: of a request.
        max_pixels: of an image.
        cors: origins whose pages may ask from a browser, as https://example.com; "*" is any.
        root_path: a prefix that a proxy leaves in the paths, as "/detector".
        log_all: a line in the log for each answer, not only for those of 400 and above.
    """

    def __init__(self, runner: infer.BaseRunner, *, name: str = "gfl", max_batch: int = 8,
                 max_batch_pixels: int = 1_000_000, max_wait: float = 0.005, max_queue: int = 64, max_images: int = 16,
                 max_bytes: int = 20 * 2**20, max_pixels: int = 50_000_000, cors: Sequence[str] = (),
                 root_path: str = "", log_all: bool = False) -> None:
        self.runner, self.name, self.max_queue = runner, name, max_queue
        self.limits = reading.Limits(max_images, max_bytes, max_pixels)
        self.cors, self.root_path, self.log_all = cors, root_path, log_all
        self.in_flight = 0
        self.failed = False  # whether the last failure has not been followed by a good answer yet
        self.draining = False  # whether it is about to end
        page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        self.page = page.replace("<head>", f'<head>\n<base href="{root_path}/">', 1) if root_path else page
        self.registry = CollectorRegistry()
        self.answers = Counter("ppgfl_requests", "Answers of /predict and /v2/models/.../infer by status.", ["status"],
                               registry=self.registry)
        self.images = Counter("ppgfl_images", "Images that were detected on.", registry=self.registry)
        self.seconds = Histogram("ppgfl_request_seconds", "Seconds of a request that was answered with 200.",
                                 registry=self.registry)
        batches = Histogram("ppgfl_batch_images", "Images per batch.", buckets=range(1, max_batch + 1),
                            registry=self.registry)
        self.gauge = Gauge("ppgfl_images_in_flight", "Images being read, waiting or computed.",
                           multiprocess_mode="livesum", registry=self.registry)
        self.batcher = Batcher(runner.detect, max_batch=max_batch, max_pixels=max_batch_pixels, max_wait=max_wait,
                               observe=batches.observe)
        self.decoders = ThreadPoolExecutor(runner.threads, thread_name_prefix="decoder")

    def app(self) -> App:
        routes = [Route("/", self.show_page), Route("/predict", self.predict, methods=["POST"]),
                  Route("/health", self.health), Route("/livez", self.live), Route("/readyz", self.readiness),
                  Route("/metrics", self.metrics), *protocol_v2.routes(self)]
        handlers: dict[Any, Any] = {HTTPException: self.refuse, Exception: self.fail}
        starlette = Starlette(routes=routes, exception_handlers=handlers)
        starlette.router.redirect_slashes = False  # to where, behind a prefix, it could not know
        app: App = starlette
        if self.cors:
            app = CORSMiddleware(app, allow_origins=self.cors, allow_methods=["GET", "POST"], allow_headers=["*"],
                                 expose_headers=["X-Request-Id"])
        app = numbered(guarded(app, self.limits.bytes), log_all=self.log_all, when_crowded=LIVE)
        return prefixed(app, self.root_path)

    async def close(self) -> None:
        """Finish what was asked."""
        await asyncio.to_thread(self.batcher.stop)
        self.decoders.shutdown()

    # --- routes

    async def show_page(self, request: Request) -> Response:
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; " \
                 "connect-src 'self'"
        return HTMLResponse(self.page, headers={"Content-Security-Policy": policy})

    async def works(self) -> bool:
        """Whether images are detected on. Where the last request failed, a blank image is tried, so that it is known
        whether that goes on."""
        if self.batcher.thread.is_alive() and self.failed:
            try:
                await asyncio.wrap_future(self.batcher.submit(self.runner.prepare([BLANK])))
                self.failed = False
            except Exception:  # of whatever kind, as in `fail`
                return False
        return self.batcher.thread.is_alive()

    async def why_not_ready(self) -> str:
        """Why it should be asked nothing now, or ""."""
        if self.draining:
            return "the service is about to end"
        if self.in_flight >= self.max_queue:
            return f"the queue is full: {self.in_flight} images are being worked on"
        return "" if await self.works() else "the detector fails; the log of the service says why"

    async def health(self, request: Request) -> Response:
        alive = await self.works()
        return JsonAnswer({"status": "ok" if alive else "failed", "model": self.runner.description,
                           "classes": len(self.runner.class_names)}, status_code=200 if alive else 503)

    async def live(self, request: Request) -> Response:
        """Whether the process should be left alone: it answers, and its thread that detects is there."""
        alive = self.batcher.thread.is_alive()
        return JsonAnswer({"live": alive}, status_code=200 if alive else 503)

    async def readiness(self, request: Request) -> Response:
        reason = await self.why_not_ready()
        return JsonAnswer({"ready": not reason, **({"reason": reason} if reason else {})},
                          status_code=503 if reason else 200)

    async def metrics(self, request: Request) -> Response:
        """Of all workers, where there are several."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            MultiProcessCollector(registry := CollectorRegistry())
        text = await asyncio.to_thread(generate_latest, registry)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def predict(self, request: Request) -> Response:
        start = time.perf_counter()
        places = self.enter(1)
        try:
            files, threshold = await reading.read(request, self.limits)
            places += self.enter(len(files) - 1)
            answers = await self.detect_all(files)
        finally:
            self.leave(places)
        seconds = self.count(start, len(files))
        return JsonAnswer({
            "milliseconds": round(1000 * seconds, 1),
            "results": [self.describe(shape, rows[rows[:, 1] >= threshold]) for shape, rows in answers]})

    # --- images

    async def detect_all(self, images: Sequence[Image]) -> list[tuple[tuple[int, int], np.ndarray]]:
        """For each image its height and width, and what was found, [M, 6 or 14]. Other images of the request, and of
        other requests, are decoded and prepared meanwhile."""
        answers = await asyncio.gather(*[self.detect(image, number) for number, image in enumerate(images)],
                                       return_exceptions=True)
        for answer in answers:  # of several that are wrong the first
            if isinstance(answer, BaseException):
                raise answer
        return answers

    async def detect(self, image: Image, number: int) -> tuple[tuple[int, int], np.ndarray]:
        shape, arrays = await asyncio.get_running_loop().run_in_executor(self.decoders, self.prepare, image, number)
        return shape, await asyncio.wrap_future(self.batcher.submit(arrays))

    def prepare(self, image: Image, number: int) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
        """((height, width), prepared arrays); the image itself is dropped, since it may be large."""
        pixels = self.decode(image, number)
        return pixels.shape[:2], self.runner.prepare([pixels])

    def decode(self, image: Image, number: int) -> np.ndarray:
        return reading.decode(image, number, self.limits) if isinstance(image, bytes) else image

    def enter(self, places: int) -> int:
        """Take places in the queue, or refuse. Returns their number."""
        if self.in_flight + places > self.max_queue:
            raise HTTPException(503, f"{self.in_flight} images are being worked on; try again in a second",
                                {"Retry-After": "1"})
        self.leave(-places)
        return places

    def leave(self, places: int) -> None:
        self.in_flight -= places
        self.gauge.set(self.in_flight)

    def count(self, start: float, images: int) -> float:
        """Note that a request was answered. Returns the seconds that it took."""
        seconds = time.perf_counter() - start
        self.failed = False
        self.answers.labels("200").inc()
        self.images.inc(images)
        self.seconds.observe(seconds)
        return seconds

    def describe(self, shape: tuple[int, int], rows: np.ndarray) -> dict[str, Any]:
        return {"width": shape[1], "height": shape[0], "detections": [
            {"label": int(row[0]), "name": infer.name_of(int(row[0]), self.runner.class_names),
             "score": round(float(row[1]), 5), "box": [round(float(n), 2) for n in row[2:6]]} for row in rows]}

    # --- errors

    async def refuse(self, request: Request, error: HTTPException) -> Response:
        if request.scope["path"] == "/predict" or request.scope["path"].endswith("/infer"):
            self.answers.labels(str(error.status_code)).inc()
        return refused(request.scope, error)

    async def fail(self, request: Request, error: Exception) -> Response:
        self.failed = True
        self.answers.labels("500").inc()
        return refused(request.scope, HTTPException(500, "the detector failed; the log of the service says why"))
