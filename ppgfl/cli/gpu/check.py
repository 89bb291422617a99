"""The door of the kit: its parts, each in a process of its own, and the report."""
from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...errors import ConfigError
from ...system import framework, log, runtime
from .. import doctor
from ..benchmark import machine
from . import exports, report, speed, training, values
from .finding import Finding, Place
from .report import Result

FOUND = "findings.jsonl"  # what a process has found so far
Check = Callable[[Place], Iterator[Finding]]
# cuBLAS and cuDNN read it once, when they start.
TF32_OFF = {"NVIDIA_TF32_OVERRIDE": "0"}
# Kernels that repeat a sum in the same order, where cuDNN has them.
REPEATABLE = {"FLAGS_cudnn_deterministic": "1", **TF32_OFF}


@dataclass(frozen=True)
class Part:
    """A part of the kit.

    Attributes:
        title: in the report.
        checks: one after the other, in one process for each way.
        ways: of running it, as the checks know them.
        dry_ways: those of a dry run.
        variables: that its processes get, beside those of a way in `WAYS`.
        minutes: after which one of its processes is taken to hang.
    """

    title: str
    checks: Sequence[Check]
    ways: Sequence[str] = ("",)
    dry_ways: Sequence[str] = ("",)
    variables: Mapping[str, str] = field(default_factory=dict)
    minutes: float = 10


WAYS: Mapping[str, Mapping[str, str]] = {values.OFF: TF32_OFF}
BOTH = (values.OFF, values.ON)
PARTS = (
    Part("card, driver, libraries", [values.card], variables=TF32_OFF),
    Part("raw maps and NMS", [values.maps], BOTH, BOTH[:1]),
    Part("training steps", [values.steps, training.accumulated], BOTH, BOTH[:1]),
    Part("mixed precision and resume", [training.precision], variables=REPEATABLE),
    Part("several cards", [training.cards], variables=TF32_OFF),
    Part("exports", [exports.exports], variables=TF32_OFF, minutes=20),
    Part("demo", [training.run_demo]),
    Part("speed and memory", [speed.speed], speed.WAYS, speed.DRY_WAYS),
)


def run(parts: str | None = None, *, dry: bool = False, output_dir: str | os.PathLike[str] = ".") -> bool:
    """Run the parts, print each finding, and write gpu_report.md and gpu_report.json.

    Args:
        parts: their numbers, as "0,1,5"; None: all.
        dry: try the kit itself on the CPU, with small models.
        output_dir: where the report is written, and nothing else.

    Returns: whether nothing was missed.
    Raises: ConfigError: an unknown part, no Paddle, or no GPU and not `dry`; OSError.
    """
    numbers = chosen(parts)
    device = "cpu" if dry else _gpu()
    place, about = Path(output_dir), (f"{'' if dry else values.card_name()}, {machine()}").lstrip(", ")
    results: list[Result] = []

    def write() -> None:
        report.write(place, results, planned=len(numbers), dry=dry, machine=about)

    write()  # a folder that cannot be written is known now
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        for number in numbers:
            part = PARTS[number]
            for way in part.dry_ways if dry else part.ways:
                print(f"\n{number}  {part.title}{f', {way}' if way else ''}", flush=True)
                results.append(run_one(number, Place(device, Path(folder).resolve(), way)))
                for finding in results[-1].findings:
                    print(report.line(results[-1], finding), flush=True)
                write()
    print(f"\n{report.parts_table(results)}\n\n{report.speed_table(results)}\n\n"
          f"{report.summary(results, len(numbers), dry)}\n{place.absolute() / report.NAME}.md and .json")
    return report.verdict(finding for result in results for finding in result.findings) is not False


def chosen(parts: str | None) -> list[int]:
    """"0,1,5" -> the numbers of the parts, in order. Raises ConfigError."""
    if parts is None:
        return list(range(len(PARTS)))
    words = [word.strip() for word in parts.split(",")]
    unknown = [word for word in words if word not in map(str, range(len(PARTS)))]
    if unknown:
        raise ConfigError(f"--parts: {unknown[0]!r}; allowed: 0 to {len(PARTS) - 1}, as in --parts 0,1,5")
    return sorted(set(map(int, words)))


def _gpu() -> str:
    """"gpu". Raises ConfigError where there is none."""
    for level, _, text in doctor.software():
        if level == doctor.BAD:
            raise ConfigError(f"doctor: {text}")
    import paddle

    if not paddle.is_compiled_with_cuda():
        raise ConfigError("--gpu: this paddlepaddle is a CPU build; pip install paddlepaddle-gpu in its place, or add "
                          "--dry to try the kit on the CPU")
    if not paddle.device.cuda.device_count():
        raise ConfigError("--gpu: no GPU is visible; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or add --dry to try "
                          "the kit on the CPU")
    return "gpu"


def run_one(number: int, place: Place) -> Result:
    """One way of a part in a process of its own. Whatever becomes of it is a finding."""
    part, start = PARTS[number], time.perf_counter()
    result = Result(number, part.title, place.way, 0.0)
    found, output = place.folder / FOUND, place.folder / "output.log"
    found.write_text("", encoding="utf-8")
    code = in_its_own_process(number, place, output)
    result.findings = [Finding(**json.loads(line)) for line in found.read_text(encoding="utf-8").split("\n")[:-1]]
    lines = [line for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code != 0 or not result.findings:
        how = f"took more than {part.minutes:g} minutes" if code is None else f"ended with exit code {code}"
        result.findings.append(Finding(False, "comes to its end", f"{how}: {lines[-1] if lines else 'no output'}"))
        result.log = "\n".join(lines[-30:])
    result.seconds = round(time.perf_counter() - start, 1)
    return result


def in_its_own_process(number: int, place: Place, output: Path) -> int | None:
    """Run `child` so, with its output in a file -> its exit code, or None after the time that the part has."""
    part = PARTS[number]
    variables = runtime.child_variables(**part.variables, **WAYS.get(place.way, {}),
                                            PPGFL_HOME=str(place.folder / "home"))
    code = "import sys; from ppgfl.cli.gpu import check; check.child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(number), place.device, str(place.folder), place.way]
    with open(output, "wb") as file:
        process = subprocess.Popen(command, cwd=place.folder, env=variables, stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(60 * part.minutes)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not, and those that it started: Paddle's launcher ends its own when it is asked to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(20)


def child(number: str, device: str, folder: str, way: str) -> None:
    """The checks of a part, whose findings are written as they come."""
    log.set_up(logging.INFO)
    framework.import_paddle()
    framework.select_device(device == "gpu")
    with open(Path(folder) / FOUND, "w", encoding="utf-8") as file:
        for check in PARTS[int(number)].checks:
            for finding in check(Place(device, Path(folder), way)):
                file.write(json.dumps(asdict(finding)) + "\n")
                file.flush()
