"""The command line of queue_simulation.py; the service's own options have its names."""
from __future__ import annotations

import argparse

from queue_simulation import Service, Size


def parse(description: str | None) -> argparse.Namespace:
    """The arguments of this process; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=description)
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rate", type=rates, default=[(0.0, 10.0)], metavar="N|T:N,...",
                      help="requests a second; 0:5,60:50 is 5, and 50 from the second 60 on (10)")
    load.add_argument("--clients", type=positive(int), help="instead: clients that send the next one after the answer")
    parser.add_argument("--seconds", type=positive(float), default=60.0, help="that are played (60)")
    parser.add_argument("--every", type=positive(float), default=30.0, help="seconds of a line (30)")
    parser.add_argument("--batch_seconds", type=numbers, default=[0.2325], metavar="S,...",
                        help="seconds of a batch of 1, 2, ... images (0.2325: int8 R18vd, 800x1088, two cores)")
    parser.add_argument("--sizes", type=sizes, default=[((800, 1088), 1.0)], metavar="HxW[:SHARE],...",
                        help="prepared images (800x1088)")
    parser.add_argument("--prepare_ms", type=float, default=0.0, help="to decode and prepare an image, in a thread (0)")
    parser.add_argument("--loop_ms", type=float, default=0.0, help="of the event loop for a request (0)")
    parser.add_argument("--cpu_threads", type=positive(int), default=2, help="that prepare images (2)")
    parser.add_argument("--max_batch", type=positive(int), default=8)
    parser.add_argument("--max_batch_megapixels", type=positive(float), default=1.0)
    parser.add_argument("--max_wait_ms", type=float, default=5.0)
    parser.add_argument("--max_queue", type=positive(int), default=64)
    parser.add_argument("--machines", type=positive(int), default=1, help="at first, and at least (1)")
    parser.add_argument("--workers", type=positive(int), default=1, help="processes of a machine (1)")
    parser.add_argument("--balance", choices=("random", "two", "least"), default="random")
    parser.add_argument("--autoscale", type=positive(float), metavar="N",
                        help="images in flight that a machine should have")
    parser.add_argument("--max_machines", type=positive(int), default=50)
    parser.add_argument("--start_seconds", type=float, default=30.0, help="until a new machine answers (30)")
    parser.add_argument("--cores", type=positive(float), default=2.0, help="of a machine (2)")
    parser.add_argument("--price", type=float, help="of a core-hour; put yours in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", metavar="MODEL_DIR", help="measure a real service on this machine, and compare")
    parser.add_argument("--image_dir", help="for --check")
    args = parser.parse_args()
    if args.check and not args.image_dir:
        parser.error("--check needs --image_dir")
    return args


def service_of(args: argparse.Namespace) -> Service:
    """What the arguments say of one process."""
    return Service(args.batch_seconds, (1.0,), args.sizes, args.prepare_ms / 1000, args.cpu_threads,
                   args.loop_ms / 1000, args.max_batch, int(args.max_batch_megapixels * 1e6),
                   args.max_wait_ms / 1000, args.max_queue)


def positive(kind: type) -> type:
    """A type for argparse: numbers above 0."""
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value
    return read  # type: ignore[return-value]


def numbers(text: str) -> list[float]:
    return [positive(float)(part) for part in text.split(",")]


def rates(text: str) -> list[tuple[float, float]]:
    """N, or T:N,...; the first from the second 0 on."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    found = [(float(time or 0), float(rate)) for time, _, rate in pairs]
    if found[0][0] or sorted(found) != found or max(rate for _, rate in found) <= 0 or min(r for _, r in found) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not N or 0:N,T:N,... with rising times")
    return found


def sizes(text: str) -> list[tuple[Size, float]]:
    found = []
    for part in text.split(","):
        size, _, share = part.partition(":")
        height, _, width = size.partition("x")
        found.append(((positive(int)(height), positive(int)(width)), positive(float)(share or "1")))
    return found
