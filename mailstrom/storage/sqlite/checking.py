"""``store check``: what must hold between rows, asked in SQL, one statement at a time.

Each statement (``checks.sql``) is a read of its own: a check of a large spool pins the WAL no
longer than its longest statement, and at most ``MOST`` sentences of a kind come into Python. A page
that cannot be read is a finding, and the other statements are asked all the same. Pure reading;
knows no lock and no engine (``owners`` says who should be alive, the client looks).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apsw

from mailstrom.storage.client import Owner
from mailstrom.storage.sqlite.rows import checksum, digest, readable, seal_fits
from mailstrom.storage.sqlite.sql import STATEMENTS, run

_STEPS = 10_000  # of SQLite's machine between two looks at the clock
MOST = 100
"""Sentences of a kind; who has more needs no list."""

_RECOVER = (
    "restore a copy ('mailstrom store restore COPY {path}'), or get out what is whole ('mailstrom"
    " store salvage {path} NEW')"
)
_RETRY = "'mailstrom queue retry ID', of a message that waits there, wakes it"
_TOLD = "no mail is at stake, only what is told about it"
_ANEW = "'mailstrom queue hold ID' and then 'mailstrom queue release ID' give it its time again"
_ROOM = "it takes room and nothing else; 'mailstrom store salvage {path} NEW' leaves it out"
_ANSWER = "nobody waits for it, an engine writes it anew when it looks up a domain or sends there"
_LOOK = "an engine ends it at its next look at the clock: start one ('mailstrom serve')"
_MARK = "an engine takes the mark away within a day; the content stays"

_REMEDIES = {
    "check_next_due": _RETRY,
    "check_due": _ANEW,
    "check_suspended": _RETRY,
    "check_text": _ANSWER,
    "check_jump": _LOOK,
    "check_jump_time": _LOOK,
    "check_staged": _MARK,
    "check_unrouted": _RETRY,
    "check_site_gone": _RETRY,
    "check_domain_site": _RETRY,
    "check_owed": _TOLD,
    "check_session": _TOLD,
    "check_purged": _TOLD,
    "check_content_owner": _ROOM,
    "check_attempt_owner": _TOLD,
    "check_event_owner": _TOLD,
    "check_tag_owner": _TOLD,
    "check_hours": _TOLD,
    "check_tally": _TOLD,
    "check_message_tally": _TOLD,
}
"""What to do about what was found, where it is not ``_RECOVER``; where the spool cannot be read, it
is always that."""


class Checked(NamedTuple):
    """What was found, of how many questions, and how many of them were not answered in time."""

    findings: list[str]
    asked: int
    left: int


def check(connection: apsw.Connection, path: str) -> list[str]:
    """Broken invariants, a sentence each with what to do; empty where the spool is sound.

    Args:
        connection: reads only; in no transaction.
        path: the spool's name, for what is to be done.
    """
    return _asked(connection, path, None).findings


def check_for(connection: apsw.Connection, path: str, seconds: float) -> Checked:
    """As ``check``, for so long; SQLite's own check, which reads every page, comes last.

    Args:
        connection: reads only; in no transaction.
        path: the spool's name, for what is to be done.
        seconds: what is not answered by then is left; one question has a fifth of it.
    """
    return _asked(connection, path, seconds)


def _asked(connection: apsw.Connection, path: str, seconds: float | None) -> Checked:
    findings: list[str] = []
    recover = _RECOVER.format(path=path)
    left = 0
    connection.create_scalar_function("digest_of", _digest, 1, deterministic=True)
    connection.create_scalar_function("checksum_of", _checksum, 5, deterministic=True)
    connection.create_scalar_function("sealed", _sealed, 16, deterministic=True)
    connection.create_scalar_function("text_of", _text, 1, deterministic=True)
    began = time.monotonic()
    try:
        statements = {name: sql for name, sql in STATEMENTS.items() if name.startswith("check_")}
        statements["check_seal"] = (
            f"WITH seals AS ({STATEMENTS['seals']}) {STATEMENTS['check_seal']}"
        )
        integrity = {"integrity": f"PRAGMA integrity_check({MOST})"}
        ordered = integrity | statements if seconds is None else statements | integrity
        for name, sql in ordered.items():
            remedy = _REMEDIES.get(name, _RECOVER).format(path=path)
            if seconds is not None:
                until = min(began + seconds, time.monotonic() + seconds / 5)
                connection.set_progress_handler(_over(until), _STEPS)
            try:
                findings += [f"{text}: {remedy}" for text in _sentences(connection, sql)]
            except apsw.InterruptError:
                left += 1
            except (apsw.CorruptError, apsw.IOError, apsw.NotADBError, UnicodeDecodeError) as error:
                asked = name.removeprefix("check_").replace("_", " ")
                where = f"where the check of '{asked}' reads it"
                findings.append(f"the file is damaged {where} ({error}): {recover}")
    finally:
        connection.set_progress_handler(None)
        connection.create_scalar_function("digest_of", None, 1)
        connection.create_scalar_function("checksum_of", None, 5)
        connection.create_scalar_function("sealed", None, 16)
        connection.create_scalar_function("text_of", None, 1)
    return Checked(findings, len(ordered), left)


def _over(until: float) -> Callable[[], bool]:
    """Asked by SQLite between steps: whether the time is over."""
    return lambda: time.monotonic() > until


def owners(connection: apsw.Connection) -> list[Owner]:
    """Engine processes that did not end, with what they hold."""
    return [Owner(*row) for row in run(connection, "owners")]


def _digest(*data: Any) -> bytes:
    return digest(*data)


def _checksum(*row: Any) -> int:
    return checksum(*row)


def _text(*data: Any) -> str | None:
    return readable(*data)


def _sealed(*row: Any) -> bool:
    return seal_fits(row)


def _sentences(connection: apsw.Connection, sql: str) -> Iterator[str]:
    cursor = connection.execute(sql)
    try:
        for number, (text,) in enumerate(cursor):
            if text == "ok":  # of the integrity check
                return
            if number == MOST:
                yield "there are more of this kind"
                return
            yield str(text)
    finally:
        cursor.close(True)
