"""What a torture run counts: one row a kind of fault, as in docs/reliability.md.

Pure. ``lost`` and ``silent`` (a recipient delivered twice and not marked in doubt) must be 0 in
every row; ``clean`` says so, together with whatever else the part found wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of fault, tried ``tried`` times.

    Args:
        part: the module that ran it.
        fault: what was done, in a few words.
        tried: how many were really brought about; one that did not happen does not count.
        unit: what ``tried`` counts: fault, image (of a disk after a power cut), story, step, send
            or checkpoint.
        messages: acknowledged recipients that were at stake, all together.
        lost: acknowledged, and afterwards neither delivered, failed, held, cancelled nor waiting.
        silent: delivered more than once without a mark.
        marked: attempts in doubt, which the fault explains.
        worst_recovery_s: longest time from a fault until work went on (None: not measured).
        findings: everything else that was wrong, a sentence each; phantoms, wrong bytes, stuck
            rows, ``store check``, acknowledgements that should not have been.
        seed: what repeats it.
    """

    part: str
    fault: str
    tried: int
    messages: int = 0
    lost: int = 0
    silent: int = 0
    marked: int = 0
    worst_recovery_s: float | None = None
    findings: tuple[str, ...] = field(default=())
    seed: int | None = None
    unit: str = "fault"

    @property
    def clean(self) -> bool:
        """Nothing lost, doubled in silence, or otherwise wrong."""
        return not (self.lost or self.silent or self.findings)

    @property
    def title(self) -> str:
        """What was done."""
        return f"{self.part}: {self.fault}"

    def told(self) -> str:
        """What came of it."""
        return f"{self.tried:,} tried, {self.lost} lost, {self.silent} silent, {self.marked} marked"


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows of one step of the crash table each ("W3: router: killed"), one for each kind of death.

    So are walks of the clock drawn by chance. Other rows stay as they are, in their order.
    """
    found: list[Row] = []
    places: dict[str, int] = {}
    for row in rows:
        step, _, rest = row.fault.partition(": ")
        kind = ""
        if row.part == "named_kills" and rest:
            kind = f"at each named step: {rest.rpartition(': ')[2]}"
        elif row.part == "clocks" and " ms" in rest:  # drawn by chance
            kind = "jumps by chance, from two minutes to ten years, both ways, back and forth"
        if not kind:
            found.append(row)
            continue
        if kind not in places:
            places[kind] = len(found)
            told = tuple(f"{step}: {text}" for text in row.findings)
            found.append(replace(row, fault=kind, findings=told))
            continue
        whole = found[places[kind]]
        times = [one.worst_recovery_s for one in (whole, row) if one.worst_recovery_s is not None]
        found[places[kind]] = replace(
            whole, tried=whole.tried + row.tried, messages=whole.messages + row.messages,
            lost=whole.lost + row.lost, silent=whole.silent + row.silent,
            marked=whole.marked + row.marked, worst_recovery_s=max(times, default=None),
            findings=(*whole.findings, *(f"{step}: {text}" for text in row.findings)),
        )  # fmt: skip
    return found


HEADINGS = (
    "part", "fault", "tried", "recipients", "lost", "silent duplicates", "marked in doubt",
    "worst recovery", "findings",
)  # fmt: skip


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table of Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- " * 2 + "| ---: " * 6 + "| --- |"]
    for row in rows:
        recovery = "-" if row.worst_recovery_s is None else f"{row.worst_recovery_s:.2f} s"
        cells = [
            row.part, row.fault, _many(row.tried, row.unit), f"{row.messages:,}", str(row.lost),
            str(row.silent), f"{row.marked:,}", recovery,
            "none" if not row.findings else f"**{len(row.findings)}**: {row.findings[0]}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _many(count: int, unit: str) -> str:
    plural = "stories" if unit == "story" else f"{unit}s"
    return f"{count:,} {unit if count == 1 else plural}"
