"""gpu_report.md for people and gpu_report.json for programs: the same data."""
from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ... import __version__
from ...system.atomic_write import write_json, write_text
from ...system.text import shown
from .finding import Finding

NAME = "gpu_report"
WORDS = {True: "ok", False: "MISS", None: "skipped"}
COLUMNS = ("what", "precision", "batch", "images/s", "GiB")


@dataclass
class Result:
    """What one way of a part found.

    Attributes:
        log: the end of its output, where it did not come to its end.
    """

    part: int
    title: str
    way: str
    seconds: float
    findings: list[Finding] = field(default_factory=list)
    log: str = ""


def verdict(findings: Iterable[Finding]) -> bool | None:
    """Of several findings: False with a miss among them, None when all are skipped."""
    found = [finding.ok for finding in findings]
    return False if False in found else (True if True in found else None)


def summary(results: Sequence[Result], planned: int, dry: bool) -> str:
    """The first line of the report."""
    found = [finding.ok for result in results for finding in result.findings]
    what = "The kit was tried on a CPU (--dry), which proves nothing about a GPU" if dry else "GPU check"
    parts = len({result.part for result in results})
    done = "" if parts == planned else f" NOT FINISHED: {parts} of {planned} parts."
    seconds = sum(result.seconds for result in results)
    return (f"{what}: {found.count(True)} ok, {found.count(False)} missed, {found.count(None)} skipped, in "
            f"{seconds / 60:.1f} minutes.{done}")


def write(folder: Path, results: Sequence[Result], *, planned: int, dry: bool, machine: str) -> None:
    """Write both files. Raises OSError."""
    date = datetime.datetime.now().isoformat(timespec="seconds")
    head = {"summary": summary(results, planned, dry), "ppgfl": __version__, "date": date, "dry": dry,
            "machine": machine}
    write_json(folder / f"{NAME}.json", {**head, "parts": [asdict(result) for result in results]})
    blocks = [f"# {head['summary']}", f"ppgfl {__version__}, {date}, {machine}", "## Parts", parts_table(results),
              "## Findings", *(_findings(result) for result in results), "## Speed", speed_table(results)]
    write_text(folder / f"{NAME}.md", "\n\n".join(blocks) + "\n")


def parts_table(results: Sequence[Result]) -> str:
    """A Markdown table with a row for each part."""
    rows = []
    for number in dict.fromkeys(result.part for result in results):
        own = [result for result in results if result.part == number]
        found = [finding for result in own for finding in result.findings]
        counts = [sum(finding.ok is state for finding in found) for state in WORDS]
        rows.append([number, own[0].title, WORDS[verdict(found)], *counts, f"{sum(r.seconds for r in own):.0f}"])
    return _table(("part", "what", "verdict", *WORDS.values(), "seconds"), rows)


def speed_table(results: Sequence[Result]) -> str:
    """A Markdown table with a row for each measurement."""
    rows = [[_number(finding.figures[key]) for key in COLUMNS]
            for result in results for finding in result.findings if finding.figures]
    return _table(COLUMNS, rows) if rows else "Nothing was measured."


def line(result: Result, finding: Finding) -> str:
    """A finding as it is printed."""
    way = f" [{result.way}]" if result.way and result.way != finding.what else ""
    return f"{WORDS[finding.ok]:<8}{result.part}  {finding.what}{way}: {shown(finding.text)}"


def _findings(result: Result) -> str:
    title = f"### {result.part} {result.title}" + (f", {result.way}" if result.way else "")
    rows = [[WORDS[finding.ok], finding.what, finding.text] for finding in result.findings]
    log = f"\n\n```text\n{result.log}\n```" if result.log else ""
    return f"{title}, {result.seconds:.0f} s\n\n{_table(('', 'what', 'found'), rows)}{log}"


def _number(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([shown(str(cell)).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
