"""What a service of deploy/serving does under a load that cannot be had here: events, one after the other.

    python benchmarks/queue_simulation.py --rate 0:2,120:20 --seconds 600 --machines 2 --autoscale 16
    python benchmarks/queue_simulation.py --check output_inference/gfl_r18vd_1x_coco --image_dir photos

The second line measures a real service on this machine under `--clients` closed-loop clients, and compares.

What is played: requests of one image; the event loop of each process, which reads and answers one after the other; its
threads that prepare images; its batcher, by the rules of deploy/serving/batching.py; the limit --max_queue; a
balancer; an autoscaler by the mean number of images in flight, and machines that need --start_seconds. What is not:
networks, disks, machines that break, processes that take each other's cores. The times are what you give it.
"""
from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]  # of a prepared image, height and width
RETRY_SECONDS = 1.0  # the service's Retry-After, which closed-loop clients obey
MEAN_SECONDS = 30.0  # that deploy/kubernetes averages the queue over
DOWN_SECONDS = 300.0  # a fleet shrinks to the largest number that was wanted for so long,
DOWN_SHARE, DOWN_EVERY = 0.2, 60.0  # by at most this share in so many seconds
UP_SECONDS, UP_LEAST = 30.0, 4  # it doubles in so many seconds at most, or grows by so many


@dataclass(frozen=True)
class Service:
    """One process, as deploy/serving/server.py is started.

    Args:
        batch_seconds: of a batch of 1, 2, ... images of the first of `sizes`; larger batches go on as the last two do.
            An image of another size takes as much longer as it has more pixels.
        factors: by which these vary, each as likely as the others.
        sizes: of the prepared images, with their shares.
        prepare: seconds of decoding and preparing an image, in one of `threads`.
        loop: seconds of the event loop for a request, half of them to read it and half to answer.
        max_batch, max_batch_pixels, max_wait (seconds), max_queue: the service's.
    """

    batch_seconds: Sequence[float]
    factors: Sequence[float] = (1.0,)
    sizes: Sequence[tuple[Size, float]] = (((800, 1088), 1.0),)
    prepare: float = 0.0
    threads: int = 2
    loop: float = 0.0
    max_batch: int = 8
    max_batch_pixels: int = 1_000_000
    max_wait: float = 0.005
    max_queue: int = 64

    def seconds(self, size: Size, images: int) -> float:
        """Of a batch."""
        known = self.batch_seconds
        last = known[-1] - known[-2] if len(known) > 1 else known[0]
        of_first = known[images - 1] if images <= len(known) else known[-1] + (images - len(known)) * last
        return of_first * math.prod(size) / math.prod(self.sizes[0][0])

    def room(self, size: Size) -> int:
        """Images of a size that a batch holds."""
        return max(1, min(self.max_batch, self.max_batch_pixels // math.prod(size)))


@dataclass
class Request:
    """On its way: when it was sent, and who is told what became of it and when."""

    size: Size
    sent: float
    ended: Callable[[Request, float, bool], None]


@dataclass
class Process:
    """The state of one."""

    in_flight: int = 0
    loop_free: float = 0.0
    decoders: list[float] = field(default_factory=list)  # when each is free
    waiting: list[tuple[Size, float, Request]] = field(default_factory=list)  # with the time of arrival, oldest first
    busy: bool = False


@dataclass(frozen=True)
class Scaling:
    """`target` images in flight for each machine are wanted, as by deploy/kubernetes/autoscale-*.yml."""

    target: float
    least: int = 1
    most: int = 50
    start_seconds: float = 30.0
    every: float = 10.0


class Simulation:
    """A fleet of machines with `workers` processes each.

    Args:
        balance: "random", as a Service of Kubernetes for requests that each have a connection of their own; "two", the
            emptier one of two random ones; "least", the emptiest.

    Attributes:
        answers: [(when it was sent, seconds)]; refused: [when]; batches: images a batch -> how often;
        machines: [(when, ready, starting)].
    """

    def __init__(self, service: Service, *, machines: int = 1, workers: int = 1, scaling: Scaling | None = None,
                 balance: str = "random", seed: int = 0) -> None:
        self.service, self.workers, self.scaling, self.balance = service, workers, scaling, balance
        self.random = random.Random(seed)
        self.now, self.events, self.count = 0.0, [], itertools.count()
        self.processes: list[Process] = []
        self.answers: list[tuple[float, float]] = []
        self.refused: list[float] = []
        self.batches: Counter[int] = Counter()
        self.machines: list[tuple[float, int, int]] = []
        self.starting = 0
        self.machine_seconds, self.in_flight = 0.0, 0
        self.means: deque[tuple[float, float]] = deque()  # (when, sum over time of the images in flight until then)
        self.summed, self.summed_until = 0.0, 0.0
        self.wanted: deque[tuple[float, int]] = deque()
        self.grown: deque[tuple[float, int]] = deque()
        self.shrunk = -math.inf
        self.add(machines)
        if scaling:
            self.at(0.0, self.scale)

    # --- time

    def at(self, time: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (time, next(self.count), what, arguments))

    def run(self, seconds: float) -> None:
        """Until then; requests that are under way are finished."""
        self.end = seconds
        while self.events:
            time, _, what, arguments = heapq.heappop(self.events)
            self.now = time
            what(*arguments)
        self.note()

    # --- clients

    def poisson(self, rates: Sequence[tuple[float, float]]) -> None:
        """Requests a second, [(from when, how many)], each by another client, who does not come back if refused."""
        arrivals = self._arrivals(rates)

        def following() -> None:
            time = next(arrivals)
            if time < self.end:
                self.at(time, arrive)

        def arrive() -> None:
            self.request(lambda request, when, good: None)
            following()

        self.at(0.0, following)

    def _arrivals(self, rates: Sequence[tuple[float, float]]) -> Iterator[float]:
        time, peak = 0.0, max(rate for _, rate in rates)
        while True:  # thinned out
            time += self.random.expovariate(peak)
            rate = rates[bisect.bisect_right([start for start, _ in rates], time) - 1][1]
            if self.random.random() * peak < rate:
                yield time

    def clients(self, number: int, think: float = 0.0) -> None:
        """So many clients that send the next request `think` seconds after the answer."""
        def ended(request: Request, when: float, good: bool) -> None:
            after = when + (think if good else RETRY_SECONDS)
            if after < self.end:
                self.at(after, self.request, ended)

        for _ in range(number):
            self.at(0.0, self.request, ended)

    # --- a request

    def request(self, ended: Callable[[Request, float, bool], None]) -> None:
        sizes = self.service.sizes
        size = sizes[0][0] if len(sizes) == 1 else self.random.choices(*zip(*sizes))[0]
        request, process = Request(size, self.now, ended), self.choose()
        if process.in_flight >= self.service.max_queue:
            self.refused.append(self.now)
            ended(request, self.now, False)
            return
        self.note(1)
        process.in_flight += 1
        process.loop_free = max(self.now, process.loop_free) + self.service.loop / 2
        free = heapq.heappop(process.decoders)
        prepared = max(free, process.loop_free) + self.service.prepare
        heapq.heappush(process.decoders, prepared)
        self.at(prepared, self.submit, process, request)

    def choose(self) -> Process:
        if self.balance == "least":
            return min(self.processes, key=lambda process: process.in_flight)
        if self.balance == "two":
            a, b = self.random.choice(self.processes), self.random.choice(self.processes)
            return a if a.in_flight <= b.in_flight else b
        return self.random.choice(self.processes)

    def submit(self, process: Process, request: Request) -> None:
        process.waiting.append((request.size, self.now, request))
        self.next_batch(process)

    def next_batch(self, process: Process) -> None:
        """`Batcher._next_batch`: images of the oldest one's size, once they are as many as fit or it has waited."""
        if process.busy or not process.waiting:
            return
        size, arrival, _ = process.waiting[0]
        room = self.service.room(size)
        same = [item for item in process.waiting if item[0] == size][:room]
        until = arrival + self.service.max_wait
        if len(same) < room and self.now < until:
            self.at(until, self.next_batch, process)
            return
        taken = {id(item) for item in same}
        process.waiting = [item for item in process.waiting if id(item) not in taken]
        process.busy = True
        self.batches[len(same)] += 1
        seconds = self.service.seconds(size, len(same)) * self.random.choice(self.service.factors)
        self.at(self.now + seconds, self.answer, process, [each for *_, each in same])

    def answer(self, process: Process, requests: list[Request]) -> None:
        process.busy = False
        for request in requests:
            process.loop_free = max(self.now, process.loop_free) + self.service.loop / 2
            self.at(process.loop_free, self.leave, process, request)
        self.next_batch(process)

    def leave(self, process: Process, request: Request) -> None:
        self.note(-1)
        process.in_flight -= 1
        self.answers.append((request.sent, self.now - request.sent))
        request.ended(request, self.now, True)

    # --- the fleet

    def note(self, more: int = 0) -> None:
        """Sums over time, before something changes."""
        passed = self.now - self.summed_until
        self.summed += passed * self.in_flight
        self.machine_seconds += passed * (len(self.processes) // self.workers + self.starting)
        self.summed_until, self.in_flight = self.now, self.in_flight + more

    def add(self, machines: int, started: bool = False) -> None:
        self.note()
        self.starting -= machines if started else 0
        self.processes += [Process(decoders=[self.now] * self.service.threads) for _ in range(machines * self.workers)]
        self.tell()

    def tell(self) -> None:
        self.machines.append((self.now, len(self.processes) // self.workers, self.starting))

    def scale(self) -> None:
        """What a HorizontalPodAutoscaler makes of the mean queue."""
        scaling, ready = self.scaling, len(self.processes) // self.workers
        self.note()
        self.means.append((self.now, self.summed))
        while self.means[0][0] < self.now - MEAN_SECONDS:
            self.means.popleft()
        since, before = self.means[0]
        mean = (self.summed - before) / (self.now - since) if self.now > since else 0.0
        have = ready + self.starting
        want = max(scaling.least, min(scaling.most, math.ceil(mean / scaling.target)))
        self.wanted.append((self.now, want))
        while self.wanted[0][0] < self.now - DOWN_SECONDS:
            self.wanted.popleft()
        while self.grown and self.grown[0][0] <= self.now - UP_SECONDS:
            self.grown.popleft()
        highest = max(number for _, number in self.wanted)
        if want > have:
            lately = sum(number for _, number in self.grown)
            more = min(want - have, max(have - lately, UP_LEAST) - lately)
            if more > 0:
                self.grown.append((self.now, more))
                self.starting += more
                self.tell()
                self.at(self.now + scaling.start_seconds, self.add, more, True)
        elif highest < have and not self.starting and self.now - self.shrunk >= DOWN_EVERY:
            fewer = min(have - highest, max(1, int(have * DOWN_SHARE)))
            self.shrunk = self.now
            del self.processes[:fewer * self.workers]  # which finish what they have
            self.tell()
        if self.now + scaling.every < self.end:
            self.at(self.now + scaling.every, self.scale)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that so many are not above; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def table(simulation: Simulation, every: float) -> Iterator[str]:
    """A line for each period, by when requests were sent, and one for all."""
    names = ("until s", "sent/s", "refused", "p50 s", "p95 s", "p99 s", "machines", "starting")
    yield "".join(f"{name:>9}" for name in names)
    end, changes = simulation.end, [when for when, *_ in simulation.machines]
    periods = [(start * every, min((start + 1) * every, end)) for start in range(math.ceil(end / every))]
    for name, (first, last) in [*((f"{last:.0f}", (first, last)) for first, last in periods), ("all", (0.0, end))]:
        seconds = [taken for sent, taken in simulation.answers if first <= sent < last]
        refused = sum(first <= sent < last for sent in simulation.refused)
        sent = len(seconds) + refused
        _, ready, starting = simulation.machines[max(0, bisect.bisect_left(changes, last) - 1)]
        yield (f"{name:>9}{sent / (last - first):9.1f}{refused / max(sent, 1):9.2%}"
               + "".join(f"{quantile(seconds, share):9.3f}" for share in (0.5, 0.95, 0.99))
               + f"{ready:9}{starting:9}")


def main() -> int:
    from queue_arguments import parse, service_of

    args = parse(__doc__)
    if args.check:
        import queue_check

        return queue_check.compare(args)
    scaling = Scaling(args.autoscale, args.machines, args.max_machines, args.start_seconds) if args.autoscale else None
    simulation = Simulation(service_of(args), machines=args.machines, workers=args.workers, scaling=scaling,
                            balance=args.balance, seed=args.seed)
    if args.clients:
        simulation.clients(args.clients)
    else:
        simulation.poisson(args.rate)
    simulation.run(args.seconds)
    print("\n".join(table(simulation, args.every)))
    answers, hours = len(simulation.answers), simulation.machine_seconds / 3600 * args.cores
    images = sum(size * number for size, number in simulation.batches.items())
    print(f"\n{answers} answers, {images / max(sum(simulation.batches.values()), 1):.2f} images a batch, "
          f"{hours:.2f} core-hours: {1e6 * hours / max(answers, 1):.0f} for a million answers"
          + (f", {1e6 * hours / max(answers, 1) * args.price:.2f} in your money" if args.price else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
