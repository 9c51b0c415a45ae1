"""What a measurement leaves: figures, the machine they stand for, medians, ratios, the table.

Contract. Pure but for :func:`machine`, which reads what this machine is. A figure is one run of one
case by one contender; its values are named with their units. Ratios are taken pair by pair (run k
of Mailstrom by run k of the peer) and then the median of them: two contenders of one run saw the
same machine. A run beside foreign load (``NOISY_CORES``) is marked and left out of medians unless
nothing else is there. Must not know: how anything is measured.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import apsw

import mailstrom

NOISY_CORES = 0.25
OURS = "mailstrom"

# name of a value -> (heading, decimals, whether more is better; None: neither)
VALUES: dict[str, tuple[str, int, bool | None]] = {
    "rate": ("a second", 0, True),
    "rate_release_last": ("a second, from release", 0, True),
    "accept_rate": ("accepted a second", 0, True),
    "cpu_s_per_1000": ("CPU s per 1,000", 3, False),
    "p50_ms": ("p50 ms", 2, False),
    "p99_ms": ("p99 ms", 1, False),
    "max_ms": ("worst ms", 1, False),
    "others_p99_ms": ("others' p99 ms", 1, False),
    "connect_p50_ms": ("connect p50 ms", 1, False),
    "wire_p50_ms": ("MAIL p50 ms", 1, False),
    "wire_p99_ms": ("MAIL p99 ms", 1, False),
    "wire_max_ms": ("MAIL worst ms", 1, False),
    "idle_core_percent": ("% of a core", 2, False),
    "seconds": ("seconds", 2, False),
    "bound_s": ("bound, seconds", 2, None),
    "share": ("of the bound", 2, None),
    "first_s": ("start to first s", 2, False),
    "count_ms": ("queue count ms", 0, False),
    "route_us": ("route us a domain", 1, False),
    "stall_p99_ms": ("sender p99 ms", 1, False),
    "stall_max_ms": ("sender worst ms", 1, False),
    "wal_mib": ("WAL MiB", 1, False),
    "purged": ("purged a second", 0, True),
    "pss_mib": ("PSS MiB", 0, False),
    "rss_mib": ("RSS MiB", 0, False),
    "pss_kib_each": ("PSS KiB each", 1, False),
    "import_ms": ("import ms", 1, False),
    "disk_per_s": ("commits a second", 0, True),
    "busy_cores": ("cores busy", 2, None),
    "bound_rate": ("bound a second", 0, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One run.

    Args:
        bench: which measurement, such as ``drain``.
        case: which form of it, such as ``20 connections``.
        who: ``mailstrom``, a peer, or what the machine itself does (``disk``, ``smtp-source``).
        uvloop: whether the engine's loop was uvloop; None where no engine ran.
        run: counted from 1; runs of one number were taken side by side.
        n: messages (or what ``case`` counts).
        at: where the case stands on the axis of its plot, if it has one.
        values: by the names of ``VALUES``.
        foreign_cores: what other programs used of the machine meanwhile, in cores.
        error: why the run failed; "" for one that counts.
    """

    bench: str
    case: str
    who: str = OURS
    uvloop: bool | None = None
    run: int = 1
    n: int = 0
    at: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    foreign_cores: float = 0.0
    error: str = ""

    @property
    def noisy(self) -> bool:
        """Whether other programs had more of the machine than a figure can bear."""
        return self.foreign_cores > NOISY_CORES

    @property
    def key(self) -> tuple[str, str, str, bool | None]:
        """What runs of one row have in common."""
        return (self.bench, self.case, self.who, self.uvloop)


def machine() -> dict[str, str]:
    """What the figures stand for: versions and hardware, as texts."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    uvloop = "not installed"
    if find_spec("uvloop"):
        from importlib.metadata import version

        uvloop = version("uvloop")
    return {
        "mailstrom": mailstrom.__version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "uvloop": uvloop,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": f"{os.cpu_count()} x {model}",
        "memory": f"{pages / 2**30:.0f} GiB",
    }


def as_line(figure: Figure, about: dict[str, str]) -> str:
    """One JSON object: the figure, when it was taken, and on what."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({**asdict(figure), "when": when, "machine": about})


def from_lines(lines: Iterable[str]) -> list[Figure]:
    """Figures as :func:`as_line` wrote them; keys that are not the figure's are left out."""
    names = {one.name for one in fields(Figure)}
    return [
        Figure(**{key: value for key, value in json.loads(line).items() if key in names})
        for line in lines
        if line.strip()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The runs of one case by one contender.

    Args:
        runs: those that count.
        left_out: how many failed, or were taken beside foreign load.
        noisy: whether those that count had foreign load, as there were no others.
        errors: what the failed ones said.
    """

    key: tuple[str, str, str, bool | None]
    runs: tuple[Figure, ...]
    left_out: int
    noisy: bool
    errors: tuple[str, ...]

    def median(self, value: str) -> float | None:
        """Median of a value; None where no run has it."""
        found = [run.values[value] for run in self.runs if value in run.values]
        return statistics.median(found) if found else None

    def worst(self, value: str) -> float | None:
        """The least good of all runs' values; None where no run has it."""
        found = [run.values[value] for run in self.runs if value in run.values]
        if not found:
            return None
        return min(found) if VALUES[value][2] else max(found)

    def text(self, value: str) -> str:
        """``median (lowest to highest)``; "" without."""
        found = [run.values[value] for run in self.runs if value in run.values]
        if not found:
            return ""
        digits = VALUES[value][1]
        middle, low, high = (
            f"{one:,.{digits}f}" for one in (statistics.median(found), min(found), max(found))
        )
        return middle if low == high else f"{middle} ({low} to {high})"


def rows(figures: Iterable[Figure]) -> list[Row]:
    """Figures by case and contender, in the order in which they first came."""
    gathered: dict[tuple[str, str, str, bool | None], list[Figure]] = {}
    for figure in figures:
        gathered.setdefault(figure.key, []).append(figure)
    found = []
    for key, runs in gathered.items():
        whole = [run for run in runs if not run.error]
        quiet = [run for run in whole if not run.noisy]
        counted = quiet or whole
        found.append(
            Row(
                key=key,
                runs=tuple(counted),
                left_out=len(runs) - len(counted),
                noisy=not quiet and bool(whole),
                errors=tuple(run.error for run in runs if run.error),
            )
        )
    return found


def ratio(ours: Sequence[Figure], theirs: Sequence[Figure], value: str) -> float | None:
    """How many times theirs ours is: the median over runs of one number.

    Args:
        ours: runs that count; each is held against theirs of the same number.

    Returns:
        None where no two runs belong together.
    """
    by_run = {run.run: run.values[value] for run in theirs if run.values.get(value)}
    found = [
        run.values[value] / by_run[run.run]
        for run in ours
        if value in run.values and run.run in by_run
    ]
    return statistics.median(found) if found else None


def ratios(found: Sequence[Row], value: str = "rate") -> dict[tuple[str, str, str, str], float]:
    """Ratios of Mailstrom's rows to the peers' of the same case.

    Returns:
        (bench, case, peer, form) -> ratio; the form is ``uvloop`` or ``asyncio``.
    """
    wanted: dict[tuple[str, str, str, str], float] = {}
    for row in found:
        if row.key[2] != OURS:
            continue
        for other in found:
            if other.key[:2] != row.key[:2] or other.key[2] == OURS:
                continue
            times = ratio(row.runs, other.runs, value)
            if times is not None:
                wanted[(*row.key[:2], other.key[2], loop_name(row.key[3]))] = times
    return wanted


def loop_name(uvloop: bool | None) -> str:
    """``uvloop``, ``asyncio``, or "" where no engine ran."""
    return {True: "uvloop", False: "asyncio", None: ""}[uvloop]


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """Lines for a reader: a block a measurement, with the ratios to peers below."""
    found = rows(figures)
    for bench in dict.fromkeys(row.key[0] for row in found):
        mine = [row for row in found if row.key[0] == bench]
        used = [name for name in VALUES if any(row.median(name) is not None for row in mine)]
        grid = [["case", "who", "loop", "runs", *(VALUES[name][0] for name in used)]]
        for row in mine:
            marks = ("~" if row.noisy else "") + (f" -{row.left_out}" if row.left_out else "")
            grid.append(
                [
                    row.key[1],
                    row.key[2],
                    loop_name(row.key[3]),
                    f"{len(row.runs)}{marks}",
                    *(row.text(name) for name in used),
                ]
            )
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        yield f"== {bench}"
        for line in grid:
            yield "  ".join(
                text.ljust(width) for text, width in zip(line, widths, strict=True)
            ).rstrip()
        for (name, case, peer, loop), times in ratios(mine).items():
            yield f"   {name}, {case}: {times:.2f} x {peer}" + (f" ({loop})" if loop else "")
        for row in mine:
            for error in dict.fromkeys(row.errors):
                yield f"   failed: {row.key[1]}, {row.key[2]}: {error}"
        yield ""
    if any(row.noisy for row in found):
        yield "~: only taken beside other programs' load; -N: so many runs do not count"
