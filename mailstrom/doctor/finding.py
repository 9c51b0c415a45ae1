"""A finding: what a check found, how bad that is, and what to do about it.

Names of checks are for scripts: once given they stay (``AREA.WORD``). Sentences are for people and
may change. Foreign words (replies, names, commands) are made printable by whoever shows a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is.

    ``problem``: mail is not accepted, not delivered, or at risk. ``warning``: it may become so, or
    some of it waits for a person. ``note``: worth knowing, and well all the same. ``ok``: checked.
    """

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


LEVELS = tuple(Level)
"""Worst first."""

AREAS = (
    "configuration", "spool", "log", "clock", "sharing", "engine", "queue",
    "dns", "hostname", "outgoing", "tls", "listener",
)  # fmt: skip
"""In the order in which one would look: what comes first may explain what comes later."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: its name, ``AREA.WORD``.
        found: a sentence.
        advice: what to do about it, with the very commands; empty where nothing is to be done.
        evidence: the facts it was judged by.
    """

    check: str
    level: Level
    found: str
    advice: str = ""
    evidence: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def area(self) -> str:
        """What it belongs to."""
        return self.check.partition(".")[0]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "check": self.check,
            "level": str(self.level),
            "found": self.found,
            "advice": self.advice,
            "evidence": dict(self.evidence),
        }


def problem(check: str, found: str, advice: str, **evidence: Scalar) -> Finding:
    """Mail is not accepted, not delivered, or at risk."""
    return Finding(check=check, level=Level.PROBLEM, found=found, advice=advice, evidence=evidence)


def warning(check: str, found: str, advice: str, **evidence: Scalar) -> Finding:
    """It may become a problem, or some mail waits for a person."""
    return Finding(check=check, level=Level.WARNING, found=found, advice=advice, evidence=evidence)


def note(check: str, found: str, advice: str = "", **evidence: Scalar) -> Finding:
    """Worth knowing, and well all the same."""
    return Finding(check=check, level=Level.NOTE, found=found, advice=advice, evidence=evidence)


def ok(check: str, found: str, **evidence: Scalar) -> Finding:
    """Checked, and well."""
    return Finding(check=check, level=Level.OK, found=found, evidence=evidence)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first, then by area, then as they were found."""
    return sorted(findings, key=lambda one: (LEVELS.index(one.level), AREAS.index(one.area)))


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each level."""
    amounts = dict.fromkeys(map(str, LEVELS), 0)
    for one in findings:
        amounts[str(one.level)] += 1
    return amounts


def plural(amount: int, what: str, ending: str = "s") -> str:
    """``1 site``, ``2 sites``, ``1,200 sites``."""
    return f"{amount:,} {what}{'' if amount == 1 else ending}"


_STEPS = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1_000, "second"))


def span(ms: int | float) -> str:
    """A length of time in words: ``3 hours``, ``1 minute``; below a second ``850 ms``."""
    left = abs(int(ms))
    for size, unit in _STEPS:
        if left >= size:
            return plural(left // size, unit)
    return f"{left} ms"


def size(octets: int) -> str:
    """A length in one unit: ``512 bytes``, ``4 KiB``, ``1.5 MiB``, ``79 GiB``."""
    amount, unit = float(octets), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "bytes" else f"{amount:.1f} {unit}"
