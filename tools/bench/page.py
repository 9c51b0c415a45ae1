"""docs/performance.md and its plots, from what ``tools/bench/run ... --record`` wrote.

Contract. Reads docs/data/bench.jsonl, and docs/data/bench-before.jsonl where an older version was
measured the same way; writes nothing: tools/gendocs does. All sentences about figures are made from
the figures. How each was measured is told by the measuring module's own docstring.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from tools.bench import accept, depth, drain, idle, listener, profile, sites, stalls
from tools.bench.figures import OURS, VALUES, Figure, Row, from_lines, loop_name, ratios, rows
from tools.bench.goals import judged, limit
from tools.bench.plots import Axis, Line, plot

DATA = Path(__file__).resolve().parents[2] / "docs" / "data"
NOTE = "<!-- made by tools/gendocs from docs/data/bench.jsonl; measure anew to change it -->"
PROFILE_ROWS = 20

SECTIONS: dict[str, tuple[str, tuple[str, ...], ModuleType, str | None]] = {
    "Drain": ("drain", ("drain", "connections"), drain, "images/performance-connections.svg"),
    "Across a round trip": ("latency", ("latency",), drain, "images/performance-latency.svg"),
    "End to end": ("e2e", ("e2e",), drain, None),
    "Accepting": ("accept", ("accept",), accept, None),
    "By SMTP": ("listener", ("listener",), listener, None),
    "Depth and memory": ("depth", ("depth", "memory"), depth, "images/performance-depth.svg"),
    "Stalls": ("stalls", ("stalls",), stalls, None),
    "Many sites": ("sites", ("sites",), sites, None),
    "At rest": ("idle", ("idle",), idle, None),
}


def _lines(name: str) -> list[str]:
    file = DATA / name
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _recorded() -> list[Figure]:
    return from_lines(_lines("bench.jsonl"))


def _cells(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _table(found: Sequence[Row]) -> Iterator[str]:
    used = [name for name in VALUES if any(row.median(name) is not None for row in found)]
    counted = any(run.n for row in found for run in row.runs)
    many = ("how many",) if counted else ()
    yield _cells("case", "who", "loop", "runs", *many, *(VALUES[name][0] for name in used))
    yield _cells("---", "---", "---", *("---:" for _ in range(1 + len(many) + len(used))))
    for row in found:
        runs = f"{len(row.runs)}{'~' if row.noisy else ''}"
        if row.left_out:
            runs += f" (-{row.left_out})"
        yield _cells(
            row.key[1], row.key[2], loop_name(row.key[3]), runs,
            *(_counts(row) if counted else ()), *(row.text(one) for one in used),
        )  # fmt: skip


def _counts(row: Row) -> tuple[str]:
    """What a run counted; the most where runs differ."""
    most = max((run.n for run in row.runs), default=0)
    return (f"{most:,}" if most else "",)


def _machine(lines: Sequence[str]) -> Iterator[str]:
    names = ("mailstrom", "python", "sqlite", "uvloop", "system", "processors", "memory")
    said = [json.loads(line) for line in lines]
    yield _cells("what", "which")
    yield _cells("---", "---")
    for name in names:
        yield _cells(name, "; ".join(dict.fromkeys(one["machine"][name] for one in said)))
    yield _cells("measured", f"{min(x['when'] for x in said)} to {max(x['when'] for x in said)}")
    yield _cells("peers", "Postfix of Debian; huey 3.5.4; Django 5.2.19, django-post-office 3.12.0")


def _loops(found: Sequence[Row]) -> list[bool]:
    seen = {row.key[3] for row in found}
    return [loop for loop in (False, True) if loop in seen] or [False]


def _goals(found: Sequence[Row]) -> Iterator[str]:
    loops = _loops(found)
    yield _cells("what", "to reach", *(loop_name(loop) for loop in loops), "reached")
    yield _cells("---", "---", *("---:" for _ in loops), "---")
    by_key = {row.key: row for row in found}
    for goal, numbers in judged(by_key, loops):
        told = [goal.told(by_key, loop) for loop in loops]
        counted = [number for number in numbers if number is not None]
        met = [goal.met(number) for number in counted]
        word = "yes" if met and all(met) else "in part" if any(met) else "no"
        yield _cells(goal.what, goal.text, *told, word)


def _limits(found: Sequence[Row], lines: Sequence[str]) -> Iterator[str]:
    processors = int(json.loads(lines[0])["machine"]["processors"].split(" x ")[0])
    disks = [row for row in found if row.key[2] == "disk" and "fdatasync" in row.key[1]]
    disk = disks[0].median("disk_per_s") if disks else None
    yield _cells("what", "case", "loop", "a second", "what it ran into")
    yield _cells("---", "---", "---", "---:", "---")
    for row in found:
        if row.key[2] != OURS or row.median("rate") is None or row.key[0] == "connections":
            continue
        yield _cells(
            row.key[0], row.key[1], loop_name(row.key[3]), row.text("rate"),
            limit(row, processors, disk),
        )  # fmt: skip


def _method(module: ModuleType) -> str:
    """The contract of a measuring module: its docstring's second paragraph."""
    text = (module.__doc__ or "").split("\n\n")[1]
    text = " ".join(text.split()).removeprefix("Contract. ")
    for name, (heading, _, _) in VALUES.items():  # as the tables call it
        text = text.replace(f"``{name}``", f"``{heading}``")
    return text.replace("``", "`")


def _ratios(found: Sequence[Row]) -> Iterator[str]:
    told = ratios(found)
    if told:
        yield from (_cells("case", "loop", "to", "ratio"), _cells("---", "---", "---", "---:"))
        for (_, case, peer, loop), times in told.items():
            yield _cells(case, loop, peer, f"{times:.2f}")
        yield ""


def _profile(figures: Sequence[Figure], title: str) -> Iterator[str]:
    for loop in (False, True):
        mine = [one for one in figures if one.bench == "profile" and one.uvloop is loop]
        shares = [one for one in mine if "share" in one.values][:PROFILE_ROWS]
        if not shares:
            continue
        rates = [one.values["rate"] for one in mine if "rate" in one.values]
        rate = f", at {rates[0]:,.0f} messages a second" if rates else ""
        yield from ("", f"{title}, {loop_name(loop)}, by {mine[0].who}{rate}:", "")
        yield from (_cells("thread: function", "share"), _cells("---", "---:"))
        for one in shares:
            yield _cells(f"`{one.case}`", f"{one.values['share']:.1%}")


def performance() -> Iterator[str]:
    """docs/performance.md."""
    lines = _lines("bench.jsonl")
    figures = from_lines(lines)
    found = rows(figures)
    yield from ("# Performance", "", NOTE, "")
    yield (
        "Measured by `tools/bench/run ... --record`; every figure below is made from what that"
        " wrote, [one JSON object a run](data/bench.jsonl). `runs` says how often a case was"
        " measured, `how many` with how many messages (domains of routing, recipients of a count)."
        " Engine, senders, sink and harness share the machine's cores, so absolute figures are this"
        " machine's:"
        " the ratios to peers count. Peers are measured in turn with Mailstrom in the same run,"
        " to the same sink (Postfix's `smtp-sink`, which announces PIPELINING and no CHUNKING);"
        " a ratio is the median of the ratios of runs side by side. Figures are medians, with the"
        " lowest and highest run. `~`: only taken beside more than a quarter of a core of other"
        " programs' work; `(-N)`: so many runs do not count for that reason, or failed."
    )
    yield ""
    yield (
        "CPU is that of the queue's own processes, from `/proc`; memory is the highest sum of"
        " their PSS. Without uvloop (`asyncio`) means that it cannot be imported."
    )
    yield from ("", "## Machine", "", *_machine(lines))
    yield from ("", "## What was to be reached", "", *_goals(found))
    yield from ("", "## What limits it", "")
    yield (
        "Judged by the figures: the wire where a rate comes near what round trips allow, the CPU"
        " where all cores are busy, the disk where accepting comes near the pace of its syncs."
    )
    yield from ("", *_limits(found, lines))
    told: set[ModuleType] = set()
    for heading, (_, benches, module, picture) in SECTIONS.items():
        mine = [row for row in found if row.key[0] in benches]
        if not mine:
            continue
        yield from ("", f"## {heading}", "")
        if module not in told:
            yield from (_method(module), "")
            told.add(module)
        if picture and picture in PLOTS and _drawable(picture):
            yield from (f"![{heading}]({picture})", "")
        yield from _ratios(mine)
        for bench in benches:
            some = [row for row in mine if row.key[0] == bench]
            if some:
                yield from (*_table(some), "")
    if any(one.bench == "profile" for one in figures):
        yield from ("", "## Where the CPU goes", "", _method(profile))
        yield from _profile(figures, "Now")
    before = from_lines(_lines("bench-before.jsonl"))
    if before:
        yield from ("", "## Before", "")
        yield ("An older version, measured the same way ([its figures](data/bench-before.jsonl)).")
        others = [row for row in rows(before) if row.key[0] != "profile"]
        if others:
            yield from ("", *_table(others))
        yield from _profile(before, "Then")
    yield ""


def _series(
    bench: str, name: str, keep: Callable[[Row], bool] = lambda row: True
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Points of each contender, by ``at``."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows(_recorded()):
        number = row.median(name)
        if row.key[0] != bench or number is None or not keep(row):
            continue
        at = row.runs[0].at
        if at is not None:
            loop = loop_name(row.key[3])
            found.setdefault(f"{row.key[2]}{f', {loop}' if loop else ''}", []).append((at, number))
    return {who: tuple(sorted(points)) for who, points in found.items()}


def connections_plot() -> Iterator[str]:
    """Drain against connections; the drain's own figure is one of its points."""
    found = _series("connections", "rate")
    for who, points in _series("drain", "rate").items():
        if who in found:
            found[who] = tuple(sorted({*found[who], *points}))
    return plot(
        "Drain of a full queue to one site",
        Axis(name="connections", logarithmic=True),
        Axis(name="messages a second"),
        [Line(name=who, points=points) for who, points in found.items()],
    )


def latency_plot() -> Iterator[str]:
    """Drain against the round trip, and what one round trip a message allows."""
    found = _series("latency", "rate")
    bound = dict(point for points in _series("latency", "bound_rate").values() for point in points)
    lines = [Line(name=who, points=points) for who, points in found.items() if len(points) > 1]
    limit_line = Line(
        name="one round trip a message", points=tuple(sorted(bound.items())), dashed=True
    )
    return plot(
        "Drain over 20 connections, by distance",
        Axis(name="round trip, ms", logarithmic=True),
        Axis(name="messages a second", logarithmic=True),
        [*lines, limit_line],
    )


def depth_plot() -> Iterator[str]:
    """Delivery against what waits behind it."""
    found = _series("depth", "rate", lambda row: row.key[1].endswith("delivery"))
    return plot(
        "Delivery while so many wait",
        Axis(name="recipients queued", logarithmic=True),
        Axis(name="messages a second"),
        [Line(name=who, points=points) for who, points in found.items()],
    )


PLOTS: dict[str, Callable[[], Iterator[str]]] = {
    "images/performance-connections.svg": connections_plot,
    "images/performance-latency.svg": latency_plot,
    "images/performance-depth.svg": depth_plot,
}


def _drawable(picture: str) -> bool:
    try:
        return bool(list(PLOTS[picture]()))
    except ValueError:
        return False


def pages() -> dict[str, Callable[[], Iterator[str]]]:
    """What docs/ gets: the page, and the plots that there are figures for."""
    drawn = {picture: make for picture, make in PLOTS.items() if _drawable(picture)}
    return {"performance.md": performance, **drawn} if _lines("bench.jsonl") else {}
