#!/usr/bin/env python3
"""Serve an exported GFL detector, a folder or a .onnx, over HTTP.

    pip install "ppgfl[serve]"        (starlette h11 python-multipart prometheus-client pillow)
    python server.py --model_dir output_inference/gfl_r50_fpn_1x_coco --port 8866
    curl -F images=@photo.jpg -F threshold=0.5 http://127.0.0.1:8866/predict

GET  /         a page to drop images on
POST /predict  multipart form: `images`, one or several files, and `threshold`; or one image as the body, with
               ?threshold=; or JSON, {"image": "<base64>", "threshold": 0.5}; answers JSON
     /v2/...   the Open Inference Protocol (KServe v2), as `tritonclient.http` speaks it
GET  /health   {"status": "ok", ...}; /livez and /readyz for probes
GET  /metrics  Prometheus text

SIGTERM and Ctrl-C end it once the requests under way are answered, with exit code 0; a second one ends it at once.
A mistake in its arguments is one line and exit code 2.
"""
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]

import arguments  # noqa: E402
import connections  # noqa: E402
import infer  # noqa: E402
import workers  # noqa: E402

REQUESTS_PER_CONNECTION = 200  # of several workers: clients of one that died come back from where they went


def main() -> int:
    args = arguments.parse(__doc__)
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
    logging.getLogger("serving").setLevel(logging.INFO)  # not that of all: Paddle 2.6 makes it WARNING when imported
    if args.inherited:
        listener_fd, channel_fd = args.inherited
        return serve(args, socket.socket(fileno=listener_fd), socket.socket(fileno=channel_fd))
    try:
        listener = connections.bind(args.host, args.port)
    except OSError as error:
        return refuse(f"--host {args.host} --port {args.port}: cannot listen there ({error.strerror}); choose others")
    if args.workers == 1:
        return serve(args, listener)
    threads = max(1, (args.cpu_threads or infer.physical_cores()) // args.workers)
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--cpu_threads", str(threads)]
    return workers.supervise(command, args.workers, listener, grace=args.drain_seconds + args.grace_seconds + 5)


def serve(args: argparse.Namespace, listener: socket.socket, channel: socket.socket | None = None) -> int:
    """Open the model and answer until a signal ends it. A worker tells its supervisor through `channel` that it is
    ready, and ends when the supervisor does."""
    try:
        runner = infer.open_runner(args.model_dir, device=args.device, run_mode=args.run_mode,
                                   cpu_threads=args.cpu_threads, engine=args.engine, provider=args.provider)
    except infer.RunnerError as error:
        return refuse(infer.shown(error))
    from service import BLANK, Service  # by now a worker's folder of metrics is set

    try:
        runner([BLANK])  # an export without NMS, or of another model, is refused here, not at the first request
    except Exception as error:  # the libraries raise many kinds
        return refuse(f"{args.model_dir}: it cannot detect on a blank image: {infer.end_of(error)}")
    megapixels = args.max_batch_megapixels or {"CPU": 1, "GPU": 100}[runner.device]
    service = Service(
        runner, name=args.model_name or name_of(args.model_dir), max_batch=args.max_batch,
        max_batch_pixels=int(megapixels * 1e6), max_wait=args.max_wait_ms / 1000, max_queue=args.max_queue,
        max_images=min(args.max_images, args.max_queue), max_bytes=int(args.max_megabytes * 2**20),
        max_pixels=int(args.max_megapixels * 1e6), cors=args.cors, root_path=args.root_path, log_all=args.log_all)
    print(f"running {runner.description}", flush=True)
    server = connections.Server(service.app(), listener, max_connections=4 * args.max_queue,
                                requests_per_connection=REQUESTS_PER_CONNECTION if channel else None)
    loop = asyncio.SelectorEventLoop()
    try:
        loop.run_until_complete(until_ended(server, service, args, channel))
    except OSError as error:
        return refuse(f"--host {args.host} --port {args.port}: cannot listen there ({error.strerror}); choose others")
    finally:
        loop.close()
    return 0


async def until_ended(server: connections.Server, service: Any, args: argparse.Namespace,
                      channel: socket.socket | None) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def end(number: int, frame: Any) -> None:
        if service.draining:
            os._exit(128 + number)
        service.draining = True
        loop.call_soon_threadsafe(ended.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.start()
    if channel:
        workers.report_ready(channel, loop, lambda: service.draining or end(signal.SIGTERM, None))
    else:
        print(f"serving on {connections.url(server.listener)} (Ctrl-C ends it)", flush=True)
    await ended.wait()
    await asyncio.sleep(args.drain_seconds)
    await server.drain(args.grace_seconds)
    await service.close()


def name_of(model: str) -> str:
    """The name of a model for those who ask by name: that of its folder, or of a .onnx that is not called model."""
    path = Path(model).resolve()
    return path.stem if path.is_file() and path.stem not in ("model", "inference") else \
        path.parent.name if path.is_file() else path.name


def refuse(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
