"""What a run of the clients tells: a row for a client, a server and a case; as in docs/clients.md.

Pure. ``wanted`` is written down before anybody looks; a case that a client has no way to ask for is
no row but a word of its own, ``cannot``, with the reason, so that the table has no hole that nobody
meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

CANNOT = "cannot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case by one client.

    Args:
        client: the module that ran it.
        program: name and version, as it says itself.
        server: which of ours it spoke to.
        case: what it was asked to do.
        wanted: what must come of it, or ``CANNOT``.
        seen: what came of it; of ``CANNOT`` the same.
        why: of ``CANNOT``: what the client lacks.
        tried: messages.
        findings: everything else that was wrong, a sentence each.
        seed: what repeats it.
    """

    client: str = ""
    program: str = ""
    server: str
    case: str
    wanted: str
    seen: str
    why: str = ""
    tried: int = 1
    findings: tuple[str, ...] = field(default=())
    seed: int | None = None

    @property
    def clean(self) -> bool:
        """Whether what was seen is what was wanted, and nothing else was wrong."""
        return self.seen == self.wanted and not self.findings

    @property
    def title(self) -> str:
        """The case."""
        return f"{self.client} to {self.server}: {self.case}"

    def told(self) -> str:
        """What came of it."""
        return self.seen if self.seen == self.wanted else f"{self.seen} (wanted: {self.wanted})"


def markdown(rows: Iterable[Row]) -> str:
    """The rows as tables of Markdown: cases down, clients across, one for each server."""
    by_server: dict[str, list[Row]] = {}
    for row in rows:
        by_server.setdefault(row.server, []).append(row)
    return "\n".join(f"### {server}\n\n{table(found)}" for server, found in by_server.items())


def table(rows: Sequence[Row]) -> str:
    """The rows of one server."""
    clients = list(dict.fromkeys(row.client for row in rows))
    wanted = {row.case: row.wanted for row in rows if row.wanted != CANNOT}
    by_place = {(row.case, row.client): row for row in rows}
    lines = [
        _cells("case", "wanted", *clients),
        _cells(*("---" for _ in range(2 + len(clients)))),
    ]
    for case, words in wanted.items():
        cells = (_cell(by_place.get((case, client))) for client in clients)
        lines.append(_cells(case, words, *cells))
    return "\n".join(lines) + "\n"


def reasons(rows: Iterable[Row]) -> str:
    """What clients cannot do, and why, as a table of Markdown."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.wanted == CANNOT and row.case not in found.setdefault((row.client, row.why), []):
            found[row.client, row.why].append(row.case)
    lines = [_cells("client", "cannot", "why"), _cells("---", "---", "---")]
    lines += [_cells(client, ", ".join(cases), why) for (client, why), cases in found.items()]
    return "\n".join(lines) + "\n"


def programs(rows: Iterable[Row]) -> str:
    """Which versions were tried, and with how many messages, as a table of Markdown."""
    tried: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.wanted != CANNOT:
            key = (row.client, row.program)
            tried[key] = tried.get(key, 0) + row.tried
    lines = [_cells("client", "program", "messages"), "| --- | --- | ---: |"]
    lines += [_cells(client, program, f"{n:,}") for (client, program), n in tried.items()]
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.wanted == CANNOT:
        return "-"
    return "yes" if row.clean else f"**{row.seen}**" if row.seen != row.wanted else "**no**"


def _cells(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
