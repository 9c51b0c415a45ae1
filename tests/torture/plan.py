"""What every part is told: how much, from which seed, where.

A part is a module of this folder with ``run(plan)``, a generator of ``table.Row``; it leaves no
process, mount or file behind, and each wait in it has a deadline. ``PARTS`` is their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.torture.table import Row

PARTS = (
    "named_kills",
    "random_kills",
    "power",
    "errors",
    "full_disk",
    "damage",
    "contention",
    "clocks",
    "simulation",
    "machine",
)


def _silent(_line: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run of one part.

    Args:
        folder: an empty directory for it.
        seed: what repeats it; each case derives its own from it.
        long: the long form, by hand; else the short one of the test suite.
        say: takes a line of progress.
    """

    folder: Path
    seed: int = 1
    long: bool = False
    say: Callable[[str], None] = _silent

    def pick(self, short: int, long: int) -> int:
        """How many, by the form."""
        return long if self.long else short


def part(name: str) -> Callable[[Plan], Iterator[Row]]:
    """The function that runs a part."""
    run: Callable[[Plan], Iterator[Row]] = import_module(f"tests.torture.{name}").run
    return run
