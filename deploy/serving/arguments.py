"""The arguments of the server, each with what it may be."""
from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable
from typing import NoReturn

import infer


def parse(description: str) -> argparse.Namespace:
    """The arguments of this process; what is wrong about them ends it with exit code 2."""
    parser = Parser(formatter_class=argparse.RawDescriptionHelpFormatter, description=description)
    parser.add_argument("--model_dir", required=True, help="the exported folder, or a .onnx")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too (127.0.0.1)")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8866, help="0: any free one (8866)")
    parser.add_argument("--device", default="CPU", help="CPU, GPU, or GPU:1 for the second card (CPU)")
    parser.add_argument("--run_mode", default="paddle", choices=infer.RUN_MODES)
    parser.add_argument("--engine", default="auto", choices=infer.ENGINES)
    parser.add_argument("--provider", help="of a .onnx: CUDA, Tensorrt, OpenVINO or another that ONNX Runtime has")
    parser.add_argument("--cpu_threads", type=number(int, 1, 1024),
                        help="of all workers together (default: the physical cores)")
    parser.add_argument("--workers", type=number(int, 1, 256), default=1,
                        help="processes behind the port, each with its own model and its own queue (1)")
    parser.add_argument("--max_batch", type=number(int, 1, 1024), default=8,
                        help="images of one size computed together (8)")
    parser.add_argument("--max_batch_megapixels", type=number(float, 0.001, 10_000),
                        help="of a batch of several; larger ones gain nothing on a CPU (1; 100 on a GPU)")
    parser.add_argument("--max_wait_ms", type=number(float, 0, 60_000), default=5.0,
                        help="how long an image waits for others (5)")
    parser.add_argument("--max_queue", type=number(int, 1, 100_000), default=64,
                        help="images at a time; more get a 503 (64)")
    parser.add_argument("--max_images", type=number(int, 1, 10_000), default=16,
                        help="per request, at most --max_queue (16)")
    parser.add_argument("--max_megabytes", type=number(float, 0.001, 10_000), default=20.0, help="per request (20)")
    parser.add_argument("--max_megapixels", type=number(float, 0.001, 10_000), default=50.0, help="per image (50)")
    parser.add_argument("--cors", nargs="+", default=(), metavar="ORIGIN",
                        help="pages of these origins may ask from a browser, as https://example.com; * is any (none)")
    parser.add_argument("--model_name", type=word, help="in /v2/models/NAME (default: the name of the folder)")
    parser.add_argument("--root_path", type=prefix, default="", metavar="/PREFIX",
                        help="what a proxy leaves at the front of the paths (nothing)")
    parser.add_argument("--drain_seconds", type=number(float, 0, 3600), default=0.0,
                        help="go on so long after SIGTERM, not /readyz: until a load balancer has looked away (0)")
    parser.add_argument("--grace_seconds", type=number(float, 0, 3600), default=30.0,
                        help="how long the requests that it has may take at the end; then they are cut off (30)")
    parser.add_argument("--log_all", action="store_true",
                        help="a line in the log for each answer, not only for those of 400 and above")
    parser.add_argument("--inherited", nargs=2, type=int, help=argparse.SUPPRESS)  # of a worker: see `workers`
    args = parser.parse_args()
    if args.workers > 1 and os.name != "posix":
        parser.error("argument --workers: several need a system on which processes share a socket, as Linux and macOS")
    return args


class Parser(argparse.ArgumentParser):
    """argparse with mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}; --help lists what there is\n")


def word(text: str) -> str:
    """A type for argparse: names that can stand in a path."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", text):
        raise argparse.ArgumentTypeError(f"{ascii(text)} is not a name of letters, digits, `.`, `_`, `~` and `-`")
    return text


def prefix(text: str) -> str:
    """A type for argparse: "" or "/a/b", without the slash at the end."""
    if text.strip("/") and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", text):
        raise argparse.ArgumentTypeError(f"{ascii(text)} is not a path as /detector or /a/b")
    return text.rstrip("/")


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """A type for argparse: numbers from low to high."""
    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low} to {high}")
    return read
