"""What people may change about recipients; steps of one transaction.

Whose they are is found first, without the lock (``found``): a message never gets another
recipient. They are changed by number, ``MOST`` in a transaction; which of them the change touches
then, the same fragment tells that counts them (``targets``). A recipient on the wire is never
touched; a claimed one counts as waiting and is taken from its lane, whose guard then refuses to
open it; unless it was claimed before the machine was booted: then it may have been on the wire, and
the lapse comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import apsw

from mailstrom.storage.client import Target
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.types import Change

MOST = 1_000
"""Recipients of one transaction: 5 to 10 ms of the lock."""


class _Steps(NamedTuple):
    """A change as named statements, in order, and the event that tells of it."""

    touches: str
    """The fragment that says which recipients."""
    before: tuple[str, ...]
    statement: str
    after: tuple[str, ...]
    event: str | None = None
    detail: str = "{}"


_FINAL = ("count_hour", "finish_messages")
_RESOLVED = '{"by": "resolve"}'
_RESOLVED_FAILED = '{"by": "resolve", "reason": "in_doubt"}'

_CHANGES = {
    Change.CANCEL: _Steps("touches_cancel", (), "cancel", _FINAL, "message.cancelled"),
    Change.HOLD: _Steps("touches_hold", (), "hold", ("count_hour",), "message.held"),
    Change.RELEASE: _Steps("touches_release", (), "release", ("domains_due",), "message.released"),
    Change.RETRY: _Steps(
        "touches_retry",
        ("retry_sites", "retry_domains"),
        "retry",
        ("reopen_messages", "domains_due"),
    ),
    Change.RESOLVE_DELIVERED: _Steps(
        "touches_resolve", (), "resolve_delivered", _FINAL, "recipient.delivered", _RESOLVED
    ),
    Change.RESOLVE_RETRY: _Steps(
        "touches_resolve", (), "release", ("domains_due",), "message.released", _RESOLVED
    ),
    Change.RESOLVE_FAILED: _Steps(
        "touches_resolve", (), "resolve_failed", _FINAL, "recipient.failed", _RESOLVED_FAILED
    ),
}


def touches(change: Change) -> str:
    """The fragment (over ``recipient r``, ``message m``) that says what a change would touch."""
    return STATEMENTS[_CHANGES[change].touches]


def found(connection: apsw.Connection, targets: Sequence[Target]) -> Iterator[list[int]]:
    """The recipients that targets name, in pieces for ``change``."""
    wanted = json.dumps([[target.id, target.address] for target in targets])
    numbers = [row[0] for row in run(connection, "change_targets", {"targets": wanted})]
    return (numbers[start : start + MOST] for start in range(0, len(numbers), MOST))


def change(
    connection: apsw.Connection,
    change: Change,
    some: Sequence[int],
    now_ms: int,
    boot: str | None,
) -> int:
    """Change those of a piece that are in a state for it; returns how many recipients that were.

    Args:
        some: a piece of ``found``.
        boot: of the machine; None where no claim outlives it. Empty: nobody knows, so each one may.
    """
    steps = _CHANGES[change]
    sql = f"{STATEMENTS['change_those']} {touches(change)}"
    asked = {"recipients": json.dumps(some), "now_ms": now_ms, "boot": boot}
    used = {key: value for key, value in asked.items() if f":{key}" in sql}
    recipients = [row[0] for row in connection.execute(sql, used)]
    if not recipients:
        return 0
    values = {"recipients": json.dumps(recipients), "now_ms": now_ms}
    for name in (*steps.before, steps.statement, *steps.after):
        run(connection, name, values)
    if steps.event is not None:
        run(
            connection,
            "change_events",
            {**values, "type": steps.event, "detail": steps.detail},
        )
    return len(recipients)
