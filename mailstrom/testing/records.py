"""What a test server saw, as values and as lines of a file.

Contract. A ``Dot`` is written down when the end of a content was read and *before* anything is
answered, so that it is a witness independent of what the client came to believe. Lines are JSON,
one event each, appended with one write to a file opened for appending: a killed server leaves whole
lines, and several servers may share a file.

Must not know: sockets, scripts.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

HEAD_LIMIT = 65536
_MESSAGE_ID = re.compile(rb"(?im)^message-id:[ \t]*(?:\r\n[ \t]+)?([^\r\n]*)")


@dataclass(slots=True, kw_only=True)
class Connection:
    """One connection, written on while it lives.

    Args:
        number: from 1, in the order of acceptance.
        address, port: local.
        peer: the client's address.
        opened, closed: seconds since the epoch; ``closed`` is None while it is open.
        tls: protocol version, or None in clear.
        auth: mechanism and user of each finished AUTH exchange, right or wrong.
        cause: why it ended.
        flights: the stages that arrived with each read, for example ``["mail", "rcpt", "data"]``;
            a BDAT stands as ``bdat`` where its last octet came.
        transactions: contents that reached their end.
    """

    number: int
    address: str
    port: int
    peer: str
    opened: float
    closed: float | None = None
    tls: str | None = None
    hello: str = ""
    auth: list[tuple[str, str]] = field(default_factory=list)
    cause: str = ""
    flights: list[list[str]] = field(default_factory=list)
    transactions: int = 0

    @property
    def stages(self) -> list[str]:
        """All stages of the connection in order."""
        return [stage for flight in self.flights for stage in flight]


@dataclass(slots=True, kw_only=True)
class Transaction:
    """MAIL and what followed it.

    Args:
        recipients: every address named, with the code it was answered (0 for no reply).
        dot: the content, if its end was reached.
        code: of the reply to the dot; 0 for none.
        params: of MAIL, by upper-case keyword, as they were written.
        asked: the parameters of RCPT, likewise, for each of the recipients.
    """

    connection: int
    sender: str
    params: Mapping[str, str | None] = field(default_factory=dict)
    asked: list[Mapping[str, str | None]] = field(default_factory=list)
    recipients: list[tuple[str, int]] = field(default_factory=list)
    dot: Dot | None = None
    code: int = 0

    @property
    def accepted(self) -> tuple[str, ...]:
        """Addresses answered with 2xx."""
        return tuple(address for address, code in self.recipients if code // 100 == 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One content at its final dot, before the answer.

    Args:
        at: seconds since the epoch.
        message_id: Message-ID header as it stands, "" without one.
        recipients: accepted ones.
        digest: SHA-256 of the content with dots unstuffed, hexadecimal.
        octets: length of the same.
        kept: whether the server takes the message over: its reply is 2xx, or it means to say
            nothing after having taken it.
        content: the bytes, where the server keeps them.
    """

    at: float
    connection: int
    sender: str
    recipients: tuple[str, ...]
    message_id: str
    digest: str
    octets: int
    kept: bool
    content: bytes | None = None


def message_id(head: bytes) -> str:
    """The Message-ID of a content, or "": only the header section is looked at."""
    found = _MESSAGE_ID.search(head.partition(b"\r\n\r\n")[0])
    return found[1].strip().decode("utf-8", "backslashreplace") if found else ""


class Journal:
    """The record file; without a path it swallows everything.

    Args:
        path: appended to, created if missing.
    """

    def __init__(self, path: Path | None) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = None if path is None else os.open(path, flags, 0o644)

    def write(self, event: str, **facts: object) -> None:
        """Append one line: ``event``, ``at`` (seconds since the epoch) and the facts."""
        if self._descriptor is not None:
            line = json.dumps({"event": event, "at": time.time(), **facts}) + "\n"
            os.write(self._descriptor, line.encode())

    def dot(self, dot: Dot) -> None:
        """Append a ``dot`` line; the content itself is not written."""
        if self._descriptor is not None:
            facts: Mapping[str, object] = asdict(dot)
            self.write("dot", **{k: v for k, v in facts.items() if k != "content"})

    def close(self) -> None:
        """Close the file; later writes are swallowed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def read_dots(path: Path) -> list[Dot]:
    """The contents recorded in a file, in order; an unfinished last line is left out."""
    dots: list[Dot] = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        facts = json.loads(line)
        if facts.pop("event") == "dot":
            facts["recipients"] = tuple(facts["recipients"])
            dots.append(Dot(**facts))
    return dots
