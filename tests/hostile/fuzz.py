"""Any octets at all, given to whatever reads foreign octets: no crash, hang, or growth.

The short form replays the corpus of each target and lets hypothesis change its files. The long form
runs libFuzzer under the interpreter (atheris), guided by coverage, each target in a child process
for ``MAILSTROM_FUZZ_MINUTES`` (1.2 unless told); where atheris is not installed hypothesis has that
time. Both try the worst shapes of ``fuzz_shapes``.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.hostile.fuzz_growth import Spent, measured
from tests.hostile.fuzz_targets import CORPUS, TARGETS, TITLES, Target, corpus
from tests.hostile.meter import Meter
from tests.hostile.table import MIB, Row
from tests.support.children import ROOT, command
from tests.support.drawing import drawn_from_the_seed
from tests.support.trial import Plan

MINUTES = float(os.environ.get("MAILSTROM_FUZZ_MINUTES", "1.2"))
EXAMPLES = 400
WANTED = "no finding"
GROWTH = "in proportion"
LONGEST = 4096  # octets of an input
SLOWEST_S, MEMORY_MIB = 10, 600


def run(plan: Plan) -> Iterator[Row]:
    """One row a target: what was tried on it; one more: how what it spends grows."""
    for name in TARGETS:
        guided = plan.long and find_spec("atheris") is not None
        plan.say(f"{name}: {'atheris' if guided else 'hypothesis'}")
        yield fuzzed(name, plan) if guided else searched(name, plan)
    found: dict[str, list[tuple[str, Spent]]] = {}
    for shape, spent in measured(long=plan.long):
        found.setdefault(shape.target, []).append((shape.name, spent))
    for name, shapes in found.items():
        yield grown(name, shapes)


def grown(name: str, shapes: list[tuple[str, Spent]]) -> Row:
    """The row of a target's shapes."""
    findings = tuple(f"{shape}: {text}" for shape, spent in shapes for text in spent.wrong)
    return Row(
        case=f"{TITLES[name]}: the worst shapes, ever longer",
        wanted=GROWTH,
        seen=GROWTH if not findings else "out of proportion",
        tried=len(shapes),
        cpu_s=max(spent.cpu_s for _, spent in shapes),
        memory=max(spent.memory for _, spent in shapes),
        findings=findings,
    )


# By hypothesis


def searched(name: str, plan: Plan) -> Row:
    """Replay a target's corpus, then change its files by lot."""
    meter = Meter()
    target, count, findings = TARGETS[name], 0, list[str]()
    for file in corpus(name):
        count += 1
        findings += _finding(target, file.read_bytes(), file.name)
    until = time.monotonic() + (MINUTES * 60 if plan.long else 0)
    for number in itertools.count(plan.seed):
        if not findings:
            tried, found = _drawn(name, target, number)
            count += tried
            findings += found
        if findings or time.monotonic() >= until:
            break
    return _row(name, "hypothesis", count, meter.seconds, meter.cpu_s, meter.memory, findings)


def _drawn(name: str, target: Target, number: int) -> tuple[int, list[str]]:
    count, last = 0, b""

    @seed(number)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None,
        phases=[Phase.generate, Phase.target, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changed([file.read_bytes() for file in corpus(name)]))
    def search(data: bytes) -> None:
        nonlocal count, last
        count, last = count + 1, data
        target(data)

    try:
        with drawn_from_the_seed():
            search()
    except Exception:  # whatever it is, it is the finding
        return count, _finding(target, last, "drawn") or ["a finding that does not repeat"]
    return count, []


@st.composite
def changed(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file of the corpus with pieces cut out, put in, or taken from another one."""
    lot = random.Random(draw(st.integers(0, 1 << 32)))
    data = bytearray(draw(st.sampled_from(files or [b""])))
    for _ in range(draw(st.integers(0, 5))):
        at = lot.randint(0, len(data))
        match lot.randrange(4):
            case 0:
                del data[at : at + lot.randint(1, 8)]
            case 1:
                data[at:at] = draw(st.binary(max_size=4))
            case 2:
                other = lot.choice(files or [b""])
                start = lot.randint(0, len(other))
                data[at:at] = other[start : start + lot.randint(1, 40)]
            case _:
                data[at : at + 1] = bytes([lot.randrange(256)])
    return bytes(data[:LONGEST])


def _finding(target: Target, data: bytes, where: str) -> list[str]:
    try:
        target(data)
    except Exception as error:  # as above
        return [f"{where}: {type(error).__name__}: {str(error)[:200]}; input {data[:120]!r}"]
    return []


# By atheris


def fuzzed(name: str, plan: Plan, child: Callable[[str, Path], list[str]] | None = None) -> Row:
    """Let libFuzzer search for the time it has; the corpus is not written to.

    Args:
        name: the target.
        plan: where new inputs and findings may lie.
        child: makes another command, in tests.
    """
    folder = plan.folder / name
    folder.mkdir()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(
        (child or _command)(name, folder), cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            output, _ = process.communicate(timeout=MINUTES * 60 + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0] + b"\nERROR: it did not end\n"
        except BaseException:
            process.kill()
            raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count, memory, findings = told(output.decode(errors="replace"), process.returncode)
    for artifact in sorted(folder.glob("found-*")):
        findings.append(f"{artifact.name[:20]}: {artifact.read_bytes()[:200]!r}")
    return _row(name, "atheris", count, time.monotonic() - started, cpu_s, memory, findings)


def _command(name: str, folder: Path) -> list[str]:
    kept = folder / "kept"
    kept.mkdir()
    return command(
        "tests.hostile.fuzz_child", name,
        f"-max_total_time={int(MINUTES * 60)}", f"-timeout={SLOWEST_S}",
        f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/found-",
        "-print_final_stats=1", str(kept), str(CORPUS / name),
    )  # fmt: skip


def told(output: str, code: int) -> tuple[int, int, list[str]]:
    """What libFuzzer said: executions, peak of memory in octets, findings.

    Args:
        output: of the child.
        code: its exit code; anything but 0 is a finding.
    """
    units = re.findall(r"^stat::number_of_executed_units: *(\d+)", output, re.M)
    units = units or re.findall(r"^#(\d+)\t", output, re.M)
    peak = re.findall(r"^stat::peak_rss_mb: *(\d+)", output, re.M)
    findings = []
    if code != 0:
        words = [
            line.strip()
            for line in output.splitlines()
            if "ERROR" in line or re.match(r"\w*(Error|Exception)\b", line)
        ]
        findings.append(f"exit code {code}: {'; '.join(words[:3])[:300]}")
    return int(units[-1]) if units else 0, int(peak[-1]) * MIB if peak else 0, findings


def _row(
    name: str, how: str, count: int, seconds: float, cpu_s: float, memory: int, found: list[str]
) -> Row:
    return Row(
        case=f"{TITLES[name]}, by {how}",
        wanted=WANTED,
        seen=WANTED if not found else "a finding",
        tried=max(count, 1),
        seconds=seconds,
        cpu_s=cpu_s,
        memory=memory,
        findings=tuple(found if count else [*found, "nothing was tried"]),
    )
