"""What a death leaves in doubt, told to the recipient: no more than was open, and no less.

Contract. Two witnesses say what was open when a process died: the disk, read while the process
stood still before its death; and what a claim was given that opened its first messages, which the
dying process left behind. ``inexact`` compares them with the attempts that are marked in the end.
Every rule is about one death; scenes in which somebody else dies as well have none here.

Must not know: how a scene is played, how an engine recovers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

from tests.torture.named_points import Point

Pairs = frozenset[tuple[str, str]]
"""Recipients of messages: id and address."""

_OPEN = (
    "SELECT m.id, r.address FROM recipient r JOIN message m ON m.seq = r.message"
    " JOIN lane l ON l.token = r.lane JOIN worker w ON w.seq = l.worker"
    " WHERE r.state = 'sending' AND w.pid = ?"
)
_NAMED = (
    "SELECT m.id, r.address FROM recipient r JOIN message m ON m.seq = r.message"
    " WHERE r.seq IN (SELECT value FROM json_each(?))"
)


def _pairs(store: Path, sql: str, value: object) -> Pairs:
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(connection):
        connection.set_busy_timeout(10_000)
        return frozenset((str(id), str(one)) for id, one in connection.execute(sql, (value,)))


def open_on_disk(store: Path, pid: int) -> Pairs:
    """What a process has open, as the spool says; it must not move meanwhile."""
    return _pairs(store, _OPEN, pid)


def opened_by(store: Path, given: Mapping[str, Any] | None) -> Pairs:
    """What the claim opened that was given this: the first ``opened`` of its recipients.

    Args:
        given: the values of the statement ``claim``; None: there was none.
    """
    if given is None:
        return frozenset()
    recipients = json.loads(given["recipients"])
    return _pairs(store, _NAMED, json.dumps(recipients[: int(given["opened"])]))


def inexact(
    point: Point,
    doubted: Pairs,
    *,
    sent: Sequence[tuple[str, str]],
    late: str,
    opened: Pairs,
    stood: Pairs | None,
    first: bool,
) -> list[str]:
    """What is in doubt and was not open, or was open and is not in doubt.

    Args:
        point: where the process died.
        doubted: the recipients with an attempt in doubt.
        sent: all recipients of the case, in order.
        late: the message whose dot was answered last, or not at all, before the rest was claimed.
        opened: what the last claim opened; or what was open when the engine was told to end.
        stood: what was open while the process stood before its death; None: it did not.
        first: whether the claim was the first behind that message, so that nothing else was open.
    """
    found: list[str] = []
    told = f"in doubt is {sorted(doubted)}"
    if stood is not None and doubted != stood:
        found.append(f"{told}, and open was {sorted(stood)}")
    messages = list(dict.fromkeys(id for id, _ in sent))
    marked = {id for id, _ in doubted}
    if point.doubt in ("open", "claimed", "wire") and len(marked) < point.least:
        found.append(f"{told}, and at least {point.least} messages were open")
    if point.doubt == "claimed":
        if not opened:
            found.append("no claim opened anything")
        whole = {pair for pair in sent if pair[0] in {id for id, _ in opened}}
        if opened != whole:
            found.append(f"a claim opened a part of a message: {sorted(opened)} of {sorted(whole)}")
        if not opened <= doubted or (first and opened != doubted):
            found.append(f"{told}, and the claim had opened {sorted(opened)}")
    elif point.doubt == "wire":
        # a session has one message at its dot, and at most one behind that
        wire = messages[messages.index(late) :][:2]
        ahead = {id for id, _ in opened}.difference(wire)
        if late not in marked or not marked <= set(wire) or not ahead:
            found.append(f"{told}, and given back was {sorted(ahead)}, beside {wire} on the wire")
    elif point.doubt == "none" and late and first and not marked <= {late}:
        # its answer may be settled in the exchange that did not come to its end
        found.append(f"{told}, and nothing but {late} had been opened")
    return found
