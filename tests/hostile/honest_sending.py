"""Sends letters by the real engine and tells where they ended, by its views."""

from __future__ import annotations

import json

from tests.hostile.honest_kinds import FIFTY
from tests.hostile.honest_letters import Letter
from tests.hostile.honest_peers import House
from tests.hostile.stand import Stand


def send(stand: Stand, letters: list[Letter]) -> list[str]:
    """Hand them in; their ids."""
    return [
        stand.engine.ms.send(
            letter.message, sender=letter.sender, recipients=list(letter.recipients),
            require_tls=letter.require_tls,
        )
        for letter in letters
    ]  # fmt: skip


def outcomes(stand: Stand, ids: list[str]) -> set[str]:
    """Where the recipients of messages ended: status, reason, doubt in any attempt."""
    words: set[str] = set()
    for id in ids:
        stand.engine.final(id)
        for row in stand.engine.rows(
            "SELECT status, reason FROM recipients WHERE message_id = ?", id
        ):
            words.add(f"{row.status} {row.reason or ''}".strip())
        if any(row.in_doubt for row in stand.engine.attempts(id)):
            words.add("in doubt")
    return words


def waiting(stand: Stand, ids: list[str]) -> str:
    """Deferred for want of TLS; cancelled, so that nothing goes on trying."""
    told = set()
    for id in ids:
        (row,) = stand.engine.until(
            "SELECT status, reason FROM recipients"
            " WHERE message_id = ? AND status = 'deferred' AND reason IS NOT NULL", id
        )  # fmt: skip
        told.add(f"{row.status} {row.reason}")
        stand.engine.ms.cancel(id)
    return " / ".join(sorted(told))


def sessions(stand: Stand, house: House, ids: list[str]) -> list[str]:
    """What is wrong with the sessions that took these: TLS as offered, the fifty on one."""
    rows = stand.engine.rows(
        "SELECT DISTINCT s.id, s.tls_reached, s.messages, s.tls_peer FROM sessions AS s"
        " JOIN attempts AS a ON a.session_id = s.id"
        " WHERE a.message_id IN (SELECT value FROM json_each(?))",
        json.dumps(ids),
    )
    level = "encrypted" if house.secured else "none"
    wrong = [f"TLS reached: {row.tls_reached}" for row in rows if row.tls_reached != level]
    if len(ids) >= FIFTY and len(rows) > 1:
        wrong.append(f"{len(ids)} letters took {len(rows)} connections")
    return wrong
