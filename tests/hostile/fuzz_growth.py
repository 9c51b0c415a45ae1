"""Whether what a reader spends grows as its input does: steps, memory and, in the long form, time.

Contract. Each shape is tried at a size and at four times that; steps (calls, by the interpreter's
own count) and the peak of memory are the same on every machine, so they are judged in the short
form. What works inside C without a call is seen by time alone: processor time at two great sizes,
with a wide margin and three tries, in the long form. Everything runs in a child whose processor
time the kernel bounds: what hangs is killed, told as a finding, and the shapes behind it are tried.

``python -P -m tests.hostile.fuzz_growth FORM FIRST`` is the child: a line of JSON for each shape.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from tests.hostile import fuzz_shapes_text, fuzz_shapes_wire
from tests.hostile.fuzz_shapes import Done, Shape, refused
from tests.support import children

SHAPES: tuple[Shape, ...] = (*fuzz_shapes_wire.shape, *fuzz_shapes_text.shape)
TIMES = 4
SMALL, GREAT = 1 << 12, 1 << 18
MARGIN = 1.7
SLACK_STEPS, SLACK_OCTETS, SLACK_S = 2_000, 1 << 18, 0.05
MOST_PER_OCTET = 500
"""Octets of memory for one of input: a record of DNS that points to a long name makes that name."""
HANG_S = 60
TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one shape came to: processor seconds and memory of the greatest size, what was wrong."""

    cpu_s: float
    memory: int
    wrong: tuple[str, ...]


def tried(shape: Shape, *, long: bool) -> Spent:
    """Try a shape at its sizes."""
    small = _repeated(shape, SMALL)
    few, many = _done(shape, small), _done(shape, small * TIMES)
    wrong: list[str] = []
    steps = _steps(few), _steps(many)
    if steps[1] > TIMES * MARGIN * steps[0] + SLACK_STEPS:
        wrong.append(f"{steps[0]} steps, then {steps[1]} for {TIMES} times the input")
    peaks = _peak(few), _peak(many)
    if peaks[1] > TIMES * MARGIN * peaks[0] + SLACK_OCTETS:
        wrong.append(f"{peaks[0]} octets, then {peaks[1]} for {TIMES} times the input")
    if peaks[1] > MOST_PER_OCTET * small * TIMES * shape.octets + SLACK_OCTETS:
        wrong.append(f"{peaks[1]} octets for {small * TIMES * shape.octets} of input")
    great = _repeated(shape, GREAT)
    if not long:
        return Spent(cpu_s=_cpu_s(_done(shape, great)), memory=peaks[1], wrong=tuple(wrong))
    small_s, great_s, text = 0.0, 0.0, ""
    for _ in range(TRIES):  # a machine may stand still once
        small_s, great_s = _cpu_s(_done(shape, great // TIMES)), _cpu_s(_done(shape, great * TIMES))
        if great_s <= TIMES**2 * MARGIN**2 * small_s + SLACK_S:
            break
        text = f"{small_s:.3f} s, then {great_s:.3f} s for {TIMES**2} times the input"
    else:
        wrong.append(text)
    return Spent(cpu_s=great_s, memory=peaks[1], wrong=tuple(wrong))


def _repeated(shape: Shape, octets: int) -> int:
    count = max(octets // shape.octets, 4)
    return min(count, shape.most // TIMES) if shape.most else count


def _done(shape: Shape, count: int) -> Done:
    return shape.made(min(count, shape.most) if shape.most else count)


def _steps(done: Done) -> int:
    counted = 0

    def count(_frame: FrameType, _event: str, _arg: object) -> None:
        nonlocal counted
        counted += 1

    sys.setprofile(count)
    try:
        with refused():
            done()
    finally:
        sys.setprofile(None)
    return counted


def _peak(done: Done) -> int:
    tracemalloc.start()
    try:
        with refused():
            done()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _cpu_s(done: Done) -> float:
    started = time.process_time()
    with refused():
        done()
    return time.process_time() - started


def measured(
    shapes: Sequence[Shape] = SHAPES, *, long: bool, command: Sequence[str] = ()
) -> Iterator[tuple[Shape, Spent]]:
    """Each shape and what it came to, from children.

    Args:
        shapes: as the child has them.
        long: see the module.
        command: of another child, in tests.
    """
    first = 0
    while first < len(shapes):
        form = "long" if long else "short"
        whole = [*(command or children.command("tests.hostile.fuzz_growth")), form]
        child = subprocess.run(
            [*whole, str(first)], cwd=children.ROOT, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=HANG_S * 20, check=False,
        )  # fmt: skip
        for line in child.stdout.splitlines():
            told = json.loads(line)
            yield shapes[first], Spent(**{**told, "wrong": tuple(told["wrong"])})
            first += 1
        if first < len(shapes) and child.returncode != 0:  # this one ended it
            last = (child.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
            wrong = f"killed with code {child.returncode}: {last}"[:300]
            yield shapes[first], Spent(cpu_s=HANG_S, memory=0, wrong=(wrong,))
            first += 1


def main(shapes: Sequence[Shape] = SHAPES) -> None:
    """The child."""
    form, first = sys.argv[1], int(sys.argv[2])
    for shape in shapes[first:]:
        spent = int(time.process_time())
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (spent + HANG_S, hard))
        found = tried(shape, long=form == "long")
        line = {"cpu_s": round(found.cpu_s, 4), "memory": found.memory, "wrong": found.wrong}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
