"""Where the CPU of a draining worker goes: one process sampled by py-spy, or counted by cProfile.

Contract. A full queue is drained as in ``drain``; one worker is looked at for a few seconds. With
py-spy (beside the interpreter or in PATH) samples say what share of the process's CPU each function
had itself, by thread; what waits is not sampled. Without, the workers run under cProfile (brought
in by a ``sitecustomize`` of the measurement, the product knows nothing of it), which makes calls
dearer than they are: shares then lean towards small functions.
"""

from __future__ import annotations

import os
import pstats
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tools.bench.engine import WITHOUT, Engine, fill, relay_to
from tools.bench.figures import Figure
from tools.bench.plan import Plan, attempt, folder
from tools.bench.processes import Meter, family
from tools.bench.stations import Sink

MESSAGES = 60_000
WATCH_S = 3.0
RATE = 500
TOP = 30
PATIENCE_S = 60.0

_BY_COUNT = """
import atexit, cProfile, os, threading, time
_profiles = []
def _begin():
    one = cProfile.Profile(time.thread_time)  # what waits costs nothing
    _profiles.append((threading.current_thread().name, one))
    one.enable()
def _end():
    for number, (name, one) in enumerate(_profiles):
        one.disable()
        one.dump_stats(os.path.join(os.environ["BENCH_PROFILE"], f"{os.getpid()}-{number}-{name}"))
_run = threading.Thread.run
def _profiled(self):
    _begin()
    _run(self)
threading.Thread.run = _profiled
_begin()
atexit.register(_end)
"""


def _spy() -> str | None:
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _workers(roots: list[int]) -> list[int]:
    """Delivery workers of an engine, by what they were started as."""
    found = []
    for pid in sorted(family(roots)):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        line = b" ".join(words)
        if pid not in roots and b"mailstrom_workers" in line and b"janitor" not in line:
            found.append(pid)
    return found


def _sampled(spy: str, pid: int, home: Path, seconds: float) -> Counter[str]:
    out = home / "stacks.txt"
    ran = subprocess.run(
        [spy, "record", "-r", str(RATE), "-d", str(max(1, round(seconds))), "-t", "-f", "raw",
         "-o", str(out), "-p", str(pid)],
        capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if not out.exists():
        raise RuntimeError(f"py-spy: {ran.stderr[-300:]}")
    counted: Counter[str] = Counter()
    for line in out.read_text(encoding="utf-8", errors="replace").splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        named = next((frame for frame in frames if frame.startswith("thread ")), "")
        thread = re.search(r'"([^"]+)"', named) or re.search(r"\): *(\S+)", named)
        name = thread[1] if thread else "thread"
        counted[f"{name}: {_function(frames[-1])}"] += int(number)
    return counted


def _function(frame: str) -> str:
    """``function (module)`` without lines and without where it is installed."""
    name, _, where = frame.partition(" (")
    file = where.rstrip(")").rpartition(":")[0] or where.rstrip(")")
    parts = Path(file).with_suffix("").parts
    for top in ("mailstrom_workers", "mailstrom", "site-packages"):
        if top in parts:
            parts = parts[parts.index(top) + (top == "site-packages") :]
            break
    else:
        parts = parts[-2:]
    return f"{name} ({'.'.join(parts)})"


def _counted(home: Path) -> Counter[str]:
    """Own time by function of the busiest process, in microseconds."""
    sums: dict[str, Counter[str]] = {}
    for file in sorted(home.iterdir()):
        pid, _, thread = file.name.split("-", 2)
        # typeshed keeps the table of a Stats to itself
        entries = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
        for (where, _line, name), (_calls, _own_calls, own, _all, _callers) in entries.items():
            label = _function(f"{name} ({where}:0)")
            sums.setdefault(pid, Counter())[f"{thread}: {label}"] += int(1e6 * own)
    return max(sums.values(), key=lambda one: one.total(), default=Counter())


def profile(plan: Plan) -> Iterator[Figure]:
    """The table of each form; the largest shares first."""
    spy = _spy()
    for uvloop in plan.loops:
        how = "py-spy" if spy else "cProfile"
        blank = Figure(bench="profile", case="", who=how, uvloop=uvloop, n=plan.many(MESSAGES))
        found: list[Figure] = []

        def measure(blank: Figure, found: list[Figure] = found) -> Figure:
            used, counted = _watched(plan, blank, spy)
            whole = counted.total() or 1
            for name, number in counted.most_common(TOP):
                found.append(replace(blank, case=name, values={"share": number / whole}))
            return replace(blank, case="(the worker's CPU)", values=used)

        yield attempt(blank, measure)
        yield from found


def _watched(plan: Plan, blank: Figure, spy: str | None) -> tuple[dict[str, float], Counter[str]]:
    with folder() as home:
        fill(home, home / "spool.db", blank.n)
        more = {}
        counts = home / "counts"
        if spy is None:
            (home / "custom").mkdir()
            counts.mkdir()
            text = _BY_COUNT if blank.uvloop else WITHOUT + _BY_COUNT
            (home / "custom" / "sitecustomize.py").write_text(text, encoding="utf-8")
            path = os.pathsep.join(
                filter(None, [str(home / "custom"), os.environ.get("PYTHONPATH", "")])
            )
            more = {"PYTHONPATH": path, "BENCH_PROFILE": str(counts)}
        sink = Sink()
        engine = Engine(
            home, home / "spool.db", relay_to(sink.port),
            workers=plan.workers, uvloop=blank.uvloop if spy else None, more=more,
        )  # fmt: skip
        try:
            engine.start()
            engine.ready()
            sink.wait(min(200, blank.n // 2), PATIENCE_S)
            pid = _workers(engine.roots())[0]
            meter = Meter(lambda: [pid])
            before, seconds = sink.count, plan.long(WATCH_S)
            if spy:
                counted = _sampled(spy, pid, home, seconds)
            else:
                time.sleep(seconds)
            used = meter.stop()
            arrived = sink.count - before
            if spy is None:
                engine.stop()
                counted = _counted(counts)
            values = {"rate": arrived / used.wall_s, "busy_cores": used.cpu_s / used.wall_s}
            return values, counted
        finally:
            engine.stop()
            sink.close()
