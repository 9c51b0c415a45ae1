"""What every part of the torture and every group of the hostile world is told.

A part (or group) is a module with ``run(plan)``, a generator of rows; it leaves no process, mount
or file behind, and each wait in it has a deadline. ``tools/trials.py`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
