"""Runs a client through all cases at a server, and says what came of each.

Contract. What a client says of its own success, what the server took and what was on the wire are
three witnesses; a case is as wanted where they agree with it. The content must be what was sent,
octet for octet, below the Received fields that each server on the way has put on top (RFC 5321
section 4.4). Only a client that hands mail on, and tries again later, may say so later.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from tests.clients.cases import CASES, REFUSED, TAKEN, Case
from tests.clients.station import STATIONS, Station, Taken
from tests.clients.table import CANNOT, Row
from tests.support.trial import Plan

HELD_S = 0.1
_RECEIVED = re.compile(rb"Received:[^\r]*\r\n(?:[ \t][^\r]*\r\n)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a client came to believe.

    Args:
        ok: all was handed over.
        words: what it wrote.
    """

    ok: bool
    words: str = ""


class Client(Protocol):
    """A program, ready to send."""

    program: str
    """Name and version, as it says itself."""

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """Hand these messages over, in one session where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is known of a client before it runs.

    Args:
        name: of its module.
        open: makes one for a station, with a directory of its own.
        cannot: case, or an extension that it asks for -> what the client lacks.
        adds: Received fields that it puts on top.
        sealed: it speaks TLS alone: what is to be done in clear it does under STARTTLS, where
            nobody sees the wire.
    """

    name: str
    open: Callable[[Station, Path], contextlib.AbstractContextManager[Client]]
    cannot: Mapping[str, str] = field(default_factory=dict)
    adds: int = 0
    sealed: bool = False

    def done(self, case: Case) -> Case:
        """A case as it is done by this client."""
        return replace(case, tls="starttls", wire=()) if self.sealed and not case.tls else case

    def lacks(self, case: Case) -> str | None:
        """Why it cannot be asked for a case; None: it can."""
        return next(
            (self.cannot[what] for what in (case.name, *sorted(case.asks)) if what in self.cannot),
            None,
        )


def run(kind: Kind, plan: Plan) -> Iterator[Row]:
    """Every case at every server."""
    for number, standing in enumerate(STATIONS):
        folder = plan.folder / str(number)
        folder.mkdir()
        folder.chmod(0o755)  # mail servers give up root
        with standing.open(folder) as station, kind.open(station, folder) as client:
            for case in CASES:
                yield tried(kind, client, station, case)


def tried(kind: Kind, client: Client, station: Station, case: Case) -> Row:
    """One case."""
    keeper = station.keeper
    case = kind.done(case)
    why = kind.lacks(case)
    missing = {case.name, *case.asks} & keeper.lacks.keys()
    if why is None and missing:
        why = "; ".join(keeper.lacks[what] for what in sorted(missing))
    if why is not None:
        return Row(
            client=kind.name, program=client.program, server=keeper.name, case=case.name,
            wanted=CANNOT, seen=CANNOT, why=why, tried=0,
        )  # fmt: skip
    line = station.line(case)
    before = len(line.said)
    line.hold = HELD_S if "PIPELINING" in case.asks else 0.0
    contents = [case.content(kind.name, number) for number in range(case.messages)]
    said = client.send(case, contents)
    found = _mine(keeper.taken(), case, kind.name)
    findings = list(_wire(case, line.said[before:]))
    if case.taken:
        findings += _arrived(kind, case, contents, found, keeper.adds)
    return Row(
        client=kind.name, program=client.program, server=keeper.name, case=case.name,
        wanted=case.wanted, seen=_seen(case, said, found), tried=case.messages,
        findings=tuple(findings),
    )  # fmt: skip


def _mine(taken: list[Taken], case: Case, client: str) -> dict[str, list[Taken]]:
    found: dict[str, list[Taken]] = {}
    for number in range(case.messages):
        id = case.message_id(client, number)
        found[id] = [one for one in taken if one.mail.message_id == id]
    return found


def _seen(case: Case, said: Said, found: Mapping[str, list[Taken]]) -> str:
    counts = [len(some) for some in found.values()]
    if said.ok and all(count == 1 for count in counts):
        return TAKEN
    if not said.ok and not any(counts):
        return REFUSED if not case.taken else f"nothing is taken: {said.words.strip()[-200:]}"
    believed = "success" if said.ok else "failure"
    return f"the client says {believed}, {sum(counts)} of {case.messages} are taken"


def _wire(case: Case, said: list[list[bytes]]) -> Iterator[str]:
    if not said:
        yield "no connection was made"
        return
    if case.messages > 1 and len(said) != 1:
        yield f"{len(said)} connections for {case.messages} messages"
    first = said[0][0] if said[0] else b""
    if case.tls == "implicit" and not first.startswith(b"\x16\x03"):
        yield f"no TLS from the start, but {first[:40]!r}"
    pieces = b"\n".join(piece for one in said for piece in one)
    for pattern in case.wire:
        if not re.search(pattern, pieces):
            yield f"not on the wire: {pattern.decode()}"


def _arrived(
    kind: Kind, case: Case, contents: list[bytes], found: Mapping[str, list[Taken]], adds: int
) -> Iterator[str]:
    for content, taken in zip(contents, found.values(), strict=True):
        for one in taken:
            mail = one.mail
            if mail.sender != case.sender:
                yield f"sender {mail.sender!r}"
            if sorted(mail.recipients) != sorted(case.addresses):
                yield f"recipients {mail.recipients!r}"
            if one.tls is not bool(case.tls):
                yield "encrypted" if one.tls else "in clear"
            if bool(one.user) is not bool(case.auth):
                yield f"user {one.user!r}"
            yield from differs(content, mail.content, kind.adds + adds)


def differs(sent: bytes, kept: bytes, added: int) -> Iterator[str]:
    """What of a content is not as it was sent, below so many Received fields."""
    for _ in range(added):
        field = _RECEIVED.match(kept)
        if field is None:
            yield f"no Received field on top of {kept[:60]!r}"
            return
        kept = kept[field.end() :]
    if kept == sent:
        return
    at = next((n for n, (a, b) in enumerate(zip(sent, kept, strict=False)) if a != b), None)
    if at is None:
        at = min(len(sent), len(kept))
    yield f"content differs at octet {at}: sent {sent[at : at + 60]!r}, kept {kept[at : at + 60]!r}"
