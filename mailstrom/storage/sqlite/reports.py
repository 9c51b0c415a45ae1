"""Reports to senders: from what is owed (table ``owed``) to messages; steps of one transaction.

Contract. What is to be told is noted by a trigger, in the transaction that makes it true. Here it
becomes a message, by the ``Reporter`` that whoever opened the store brought: of a settlement in
that transaction, of all else in a later one. Report, note and event go together, so nobody is told
twice, or not at all. A report never costs more than itself: what a reporter raises, and what cannot
be read or written, is noted and tried again later (``LATER_MS``), and given up after the last time;
the transaction around it stands. Bounded by ``MOST`` reports and ``MOST_BYTES``; a sweep of the
janitor's makes the rest.

A reporter that does not come back (the process is killed in it) leaves no word. So a sweep says
first, in a transaction of its own, what it begins, and what was begun before is made alone. A
settlement says nothing first: if it dies, its recipients are lost on the wire, and the note of one
that was lost (``recipient.doubts``) counts as begun, which leaves it to the sweep. From the third
time on a report is the plainest: without the original and without anybody's words.

Nothing is reported in a copy that nobody adopted. A report itself owes none, whatever its reporter
says of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import apsw

from mailstrom import interrupts
from mailstrom.storage.client import CHUNK_BYTES
from mailstrom.storage.reporting import ReportedRecipient, Reporter, ReportFacts
from mailstrom.storage.sqlite import contents, copies, inserting
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.rows import checksum
from mailstrom.storage.sqlite.sql import run
from mailstrom.storage.sqlite.submissions import encode

MOST = 8
"""Reports of one transaction: some milliseconds of the lock."""
MOST_BYTES = 256 * 1024
"""With so much of originals read for them no further one is begun."""
MOST_RECIPIENTS = 1_000
"""Recipients of one report; there is another one for the rest."""
LATER_MS = (60_000, 600_000, 3_600_000, 6 * 3_600_000)
"""How long what failed waits for its next try; after the last one it is given up."""
BEGUN_MS = 500
"""What was begun so long ago, and has no end, is made by the next one: one death is no sign."""
PLAIN = 3
"""From this try on a report has nothing in it that somebody else chose, but addresses."""
LONGEST_LIST = 100
"""Addresses in the event that tells of a report."""
_DIED = "whoever began to make it did not live to end it"


class Reporting(NamedTuple):
    """Who makes reports, and how large a content may be that is handed over whole."""

    reporter: Reporter
    original_bytes: int


class Begun(NamedTuple):
    """A report that somebody is about to make, and which try it is."""

    message: int
    kind: str
    tries: int


def make(
    path: str,
    connection: apsw.Connection,
    reporting: Reporting | None,
    recipients: Sequence[int],
    now_ms: int,
) -> None:
    """Make some of the reports that are owed since this transaction.

    Args:
        path: what errors call the spool.
        connection: in a transaction.
        reporting: None: nobody makes reports here, and what is owed stays for others.
        recipients: those that were settled in it.
    """
    if reporting is None or not run(connection, "owed_waits", {"now_ms": now_ms})[0][0]:
        return
    asked = {"recipients": encoded(list(recipients)), "now_ms": now_ms, "most": MOST}
    due = run(connection, "owed_now", asked)
    if due and not copies.marked(connection):
        _make(
            path, connection, reporting, [Begun(message, kind, 1) for message, kind in due], now_ms
        )


def begin(connection: apsw.Connection, now_ms: int) -> tuple[list[Begun], int]:
    """Say which reports are about to be made; returns them, and how many are given up.

    What was begun before, and never ended, is made alone: whoever dies in it takes no other along.
    """
    due = [Begun(*row) for row in run(connection, "owed_due", {"now_ms": now_ms, "most": MOST})]
    if not due or copies.marked(connection):
        return [], 0
    chosen = [one for one in due if not one.tries] or due[:1]
    begun: list[Begun] = []
    for message, kind, tries in chosen:
        if tries > len(LATER_MS):
            recipients = [row[0] for row in run(connection, "owed_of", _named(message, kind))]
            _give_up(connection, message, kind, recipients, _DIED, now_ms, tries)
            continue
        pause_ms = LATER_MS[tries - 2] if tries > 1 else BEGUN_MS
        _set(connection, message, kind, tries + 1, now_ms + pause_ms)
        begun.append(Begun(message, kind, tries + 1))
    return begun, len(chosen) - len(begun)


def finish(
    path: str, connection: apsw.Connection, reporting: Reporting, begun: list[Begun], now_ms: int
) -> int:
    """Make reports that were begun; returns how many notes were dealt with."""
    done = _make(path, connection, reporting, begun, now_ms)
    for message, kind, tries in begun[done:]:
        _set(connection, message, kind, tries - 1, now_ms)
    return done


def _make(
    path: str, connection: apsw.Connection, reporting: Reporting, begun: list[Begun], now_ms: int
) -> int:
    size = 0
    for done, one in enumerate(begun):
        if size >= MOST_BYTES:
            return done
        size += _make_one(path, connection, reporting, one, now_ms)
    return len(begun)


def owe_delays(
    connection: apsw.Connection, thresholds: Sequence[int], limit: int, now_ms: int
) -> int:
    """Note that messages are late; returns how many were looked at.

    Nothing in a copy, nor while a jump of the clock is unshifted: nobody knows how old they are.

    Args:
        thresholds: ages in milliseconds, ascending.
        limit: most messages.
    """
    if copies.marked(connection) or run(connection, "jumps_pending"):
        return 0
    run(connection, "owed_far", {"now_ms": now_ms})
    found: list[int] = []
    for place, age_ms in enumerate(thresholds):
        values = {"place": place, "before_ms": now_ms - age_ms, "most": limit - len(found)}
        found += [row[0] for row in run(connection, "delayed_messages", values)]
    if found:
        messages = encoded(found)
        run(connection, "owe_delays", {"messages": messages})
        told = {"messages": messages, "thresholds": encoded(list(thresholds)), "now_ms": now_ms}
        run(connection, "delay_told", told)
    return len(found)


def confirmed(connection: apsw.Connection, recipients: Sequence[int]) -> None:
    """Of these deliveries the host that took them reports itself."""
    run(connection, "owed_confirmed", {"recipients": encoded(list(recipients))})


def _make_one(
    path: str, connection: apsw.Connection, reporting: Reporting, begun: Begun, now_ms: int
) -> int:
    """Make one report, or note why not; returns how many bytes of the original were read for it."""
    size = 0
    message, kind, tries = begun
    connection.execute("SAVEPOINT report")
    try:
        facts, recipients = _facts(connection, reporting, message, kind, now_ms)
        if facts is not None:
            size = min(facts.size, max(CHUNK_BYTES, len(facts.content)))
            told = _plain(facts) if tries >= PLAIN else facts
            _store(path, connection, reporting, message, kind, told, recipients, now_ms)
        else:  # it is true no more
            recipients = [row[0] for row in run(connection, "owed_of", _named(message, kind))]
        _paid(connection, message, recipients)
        if len(recipients) >= MOST_RECIPIENTS:  # of the others another report tells
            _set(connection, message, kind, tries - 1, now_ms)
    except Exception as error:
        if interrupts.raised(error) or connection.get_autocommit():
            raise  # there is no transaction any more
        connection.execute("ROLLBACK TO report")
        with suppress(apsw.Error):  # then it is due again at once
            _put_off(connection, begun, error, now_ms)
    finally:
        if not connection.get_autocommit():
            connection.execute("RELEASE report")
    return size


def _plain(facts: ReportFacts) -> ReportFacts:
    """The same without the original and without anybody's words."""
    return facts._replace(
        message_id="",
        envid=None,
        client=None,
        content=b"",
        recipients=tuple(
            one._replace(orcpt=None, mx=None, reply_code=None, enhanced_code=None, reply_text=None)
            for one in facts.recipients
        ),
    )


def _set(connection: apsw.Connection, message: int, kind: str, tries: int, due_ms: int) -> None:
    values = {**_named(message, kind), "tries": tries, "due_ms": due_ms}
    run(connection, "owed_set", values)


def _named(message: int, kind: str) -> dict[str, Any]:
    return {"message": message, "kind": kind}


def _facts(
    connection: apsw.Connection, reporting: Reporting, message: int, kind: str, now_ms: int
) -> tuple[ReportFacts | None, list[int]]:
    """What a report tells, and of which recipients; None where there is nothing to tell."""
    named = _named(message, kind)
    rows = run(connection, "report_recipients", {**named, "most": MOST_RECIPIENTS})
    found = run(connection, "report_message", {"message": message})
    if not rows or not found:
        return None, []
    (
        id, sender, message_id, envid, ret, created_ms, expires_ms, client, smtputf8,
        require_tls, requiretls, size, purged_ms,
    ) = found[0]  # fmt: skip
    # Nobody who may be a stranger is written to: the row says no more who the sender was.
    unfit = [row[0] for row in rows if checksum(id, sender, row[1], row[9], row[2]) != row[10]]
    if unfit:
        _give_up(connection, message, kind, unfit, "the row of a recipient is damaged", now_ms)
        rows = [row for row in rows if row[0] not in unfit]
        if not rows:
            return None, []
    content = b""
    if purged_ms is None:
        wanted = kind == "failed" and ret != "hdrs" and not require_tls
        most = reporting.original_bytes if wanted else 0
        content = contents.original(connection, message, most)
    recipients = tuple(
        ReportedRecipient(
            address=address,
            orcpt=orcpt,
            action=kind,
            reason=reason,
            mx=mx,
            reply_code=code,
            enhanced_code=enhanced,
            reply_text=text,
            last_ms=last_ms,
            expires_ms=expires_ms,
        )
        for _, address, orcpt, reason, mx, code, enhanced, text, last_ms, *_ in rows
    )
    facts = ReportFacts(
        id=id,
        sender=sender,
        message_id=message_id,
        envid=envid,
        ret=ret,
        created_ms=created_ms,
        client=None if client is None else json.loads(client),
        smtputf8=bool(smtputf8),
        require_tls=bool(require_tls),
        requiretls=bool(requiretls),
        size=size,
        content=content,
        recipients=recipients,
    )
    return facts, [row[0] for row in rows]


def _store(
    path: str,
    connection: apsw.Connection,
    reporting: Reporting,
    message: int,
    kind: str,
    facts: ReportFacts,
    recipients: list[int],
    now_ms: int,
) -> None:
    """Store the report, where there is to be one, and say so."""
    report = reporting.reporter(facts, now_ms)
    if report is None:
        run(connection, "reported", {"kind": "none", "recipients": encoded(recipients)})
        return
    report = report._replace(origin="report", reports=False)
    row = encode(path, connection, report, now_ms, [])
    if isinstance(row, Exception):
        raise row
    id = row
    if not isinstance(row, str):
        inserting.step(connection, [row])
        id = report.id
    run(connection, "reported", {"kind": kind, "recipients": encoded(recipients)})
    detail: dict[str, object] = {
        "report": id,
        "kind": kind,
        "count": len(recipients),
        "recipients": [one.address for one in facts.recipients[:LONGEST_LIST]],
    }
    _tell(connection, "message.reported", message, detail, now_ms)


def _paid(connection: apsw.Connection, message: int, recipients: list[int]) -> None:
    run(connection, "owed_paid", {"message": message, "recipients": encoded(recipients)})


def _give_up(
    connection: apsw.Connection,
    message: int,
    kind: str,
    recipients: list[int],
    error: str,
    now_ms: int,
    tries: int = 0,
) -> None:
    """There will be no report of these, and why."""
    run(connection, "reported", {"kind": "none", "recipients": encoded(recipients)})
    _paid(connection, message, recipients)
    detail: dict[str, object] = {
        "kind": kind,
        "count": len(recipients),
        "error": error,
        "tries": tries,
        "given_up": True,
    }
    _tell(connection, "message.unreported", message, detail, now_ms)


def _put_off(connection: apsw.Connection, begun: Begun, error: Exception, now_ms: int) -> None:
    """A report could not be made: later again, or never, and why.

    What the spool itself lacks, such as room, is no fault of the report's and counts as no try.
    """
    own = not isinstance(error, apsw.Error) or isinstance(error, apsw.ConstraintError)
    message, kind, tries = begun
    text = f"{type(error).__name__}: {error}"[:500]
    recipients = [row[0] for row in run(connection, "owed_of", _named(message, kind))]
    if not own:
        tries -= 1
    if tries > len(LATER_MS):
        _give_up(connection, message, kind, recipients, text, now_ms, tries)
        return
    _set(connection, message, kind, tries, now_ms + LATER_MS[max(tries, 1) - 1])
    detail: dict[str, object] = {
        "kind": kind,
        "count": len(recipients),
        "error": text,
        "tries": tries,
        "given_up": False,
    }
    _tell(connection, "message.unreported", message, detail, now_ms)


def _tell(
    connection: apsw.Connection, type: str, message: int, detail: dict[str, object], now_ms: int
) -> None:
    values = {"message": message, "type": type, "detail": encoded(detail), "now_ms": now_ms}
    run(connection, "report_event", values)
