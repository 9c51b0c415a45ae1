"""What a hostile run tells: one row a case, as in docs/hostile.md.

Pure. ``wanted`` and ``seen`` are the same words where all was well: a case writes down what it
wants before it looks. Where one row stands for many trials of a kind, ``seen`` tells of the worst.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case, tried ``tried`` times.

    Args:
        group: the module that ran it.
        case: what the other side does, in a few words.
        wanted: the outcome by the documented policy.
        seen: the outcome.
        tried: how many times it was really brought about.
        seconds: until the outcome was there; of many trials the longest. None: not measured.
        cpu_s: processor time of the process that had to bear it; of many trials the most.
        memory: octets by which that process grew meanwhile, at its peak; of many trials the most.
        findings: everything else that was wrong, a sentence each.
        seed: what repeats it.
    """

    group: str = ""
    case: str
    wanted: str
    seen: str
    tried: int = 1
    seconds: float | None = None
    cpu_s: float | None = None
    memory: int | None = None
    findings: tuple[str, ...] = field(default=())
    seed: int | None = None

    @property
    def clean(self) -> bool:
        """Whether what was seen is what was wanted, and nothing else was wrong."""
        return self.seen == self.wanted and not self.findings

    @property
    def title(self) -> str:
        """The case."""
        return f"{self.group}: {self.case}"

    def told(self) -> str:
        """What came of it."""
        seen = self.seen if self.seen == self.wanted else f"{self.seen} (wanted: {self.wanted})"
        return f"{seen}; {_seconds(self.seconds)}, {_memory(self.memory)}"


HEADINGS = ("case", "wanted", "seen", "tried", "time", "processor", "memory", "findings")


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table of Markdown, each group under its name."""
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    return "\n".join(f"### {name}\n\n{table(found)}" for name, found in by_group.items())


def table(rows: Iterable[Row]) -> str:
    """The rows of one group as a table of Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- | --- " + "| ---: " * 4 + "| --- |"]
    for row in rows:
        cells = [
            row.case, row.wanted, "as wanted" if row.seen == row.wanted else f"**{row.seen}**",
            f"{row.tried:,}", _seconds(row.seconds), _seconds(row.cpu_s), _memory(row.memory),
            "none" if not row.findings else f"**{len(row.findings)}**: {row.findings[0]}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"


def _memory(octets: int | None) -> str:
    if octets is None:
        return "-"
    return f"{octets / MIB:.1f} MiB"
