"""Submissions into the enqueue view, and what to say of one that is refused.

Contract. All rows go in with one statement, in one step, which is a transaction of its own: between
two steps an application busy with threads would hold the write lock for as long as Python lets it
wait. SQLite takes a step back whole where one of its rows is refused; then, and only then, they are
inserted one by one in a transaction, so that the refused one is found and its neighbours stay. What
is wrong with a submission alone is returned as the exception for it; what is wrong with the spool
is raised, and whoever called ends the transaction that may be open.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import chain

import apsw

from mailstrom.errors import IdempotencyConflict, InvalidMessage
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite import streams
from mailstrom.storage.sqlite.sql import STATEMENTS
from mailstrom.storage.sqlite.submissions import UNFIT, Row, known, refusal

SIZES = (1, 4, 16, 64, 256)
"""Rows of a step: few sizes, so that SQLite keeps each one's program; the rest of it is empty."""
Found = Row | str | Exception
"""A row, or what is known of a submission before it is inserted."""

_ROW = f"({','.join('?' * len(Row._fields))})"
_EMPTY = (None,) * len(Row._fields)
_REFUSED = (apsw.ConstraintError, apsw.TooBigError, *UNFIT)


def insert(
    connection: apsw.Connection,
    submissions: Sequence[Submission],
    found: Sequence[Found],
    atomic: bool,
    failed: Exception | None = None,
) -> list[str | Exception]:
    """Results of all submissions, in order; those that are no rows stay as they are.

    Args:
        failed: what ``step`` raised, where it was tried already.

    Raises:
        Exception: with ``atomic`` the first that was refused.
        apsw.Error: the spool's trouble.
    """
    rows = [row for row in found if isinstance(row, Row)]
    try:
        if failed is not None:
            raise failed
        if len(rows) <= SIZES[-1]:
            step(connection, rows)
        else:
            connection.execute("BEGIN IMMEDIATE")
            for start in range(0, len(rows), SIZES[-1]):
                step(connection, rows[start : start + SIZES[-1]])
            connection.execute("COMMIT")
    except _REFUSED as error:
        return _one_by_one(connection, submissions, found, atomic, error)
    return [
        submission.id if isinstance(row, Row) else row
        for submission, row in zip(submissions, found, strict=True)
    ]


def step(connection: apsw.Connection, rows: Sequence[Row]) -> None:
    """Insert rows, as many as the largest of ``SIZES``, by one statement.

    Without a transaction around it they are committed when this returns, all or none; an exception
    that says that the connection is closed means none. The statement gives no rows, so that it has
    run to its end when the connection has executed it: nothing is fetched, which could fail alone.
    """
    if len(rows) == 1:
        connection.execute(STATEMENTS["enqueue"], rows[0])
        return
    size = SIZES[bisect_left(SIZES, len(rows))]
    values = (*chain.from_iterable(rows), *_EMPTY * (size - len(rows)))
    connection.execute(_sized(STATEMENTS["enqueue"], size), values)


@cache
def _sized(sql: str, size: int) -> str:
    """The statement for so many rows."""
    return sql.replace(_ROW, ",".join([_ROW] * size))


def _one_by_one(
    connection: apsw.Connection,
    submissions: Sequence[Submission],
    found: Sequence[Found],
    atomic: bool,
    error: Exception,
) -> list[str | Exception]:
    """The same after a refusal: whose it was, and the others in."""
    if len(found) == 1:
        result = _refused(connection, submissions[0], error)
        if atomic and isinstance(result, Exception):
            raise result
        return [result]
    if not connection.get_autocommit():
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    results: list[str | Exception] = []
    for submission, row in zip(submissions, found, strict=True):
        result = _insert_one(connection, submission, row) if isinstance(row, Row) else row
        if atomic and isinstance(result, Exception):
            raise result
        results.append(result)
    connection.execute("COMMIT")
    return results


def _insert_one(connection: apsw.Connection, submission: Submission, row: Row) -> str | Exception:
    try:
        step(connection, [row])
    except _REFUSED as error:
        return _refused(connection, submission, error)
    return submission.id


def _refused(
    connection: apsw.Connection, submission: Submission, error: Exception
) -> str | Exception:
    if isinstance(error, apsw.TooBigError):
        return InvalidMessage(f"the message is too large for the spool: {error}", rule="too-large")
    if not isinstance(error, apsw.ConstraintError):
        return refusal(error)
    if submission.idempotency is not None and "idempotency" in str(error):
        return known(connection, submission) or IdempotencyConflict(
            f"idempotency key {submission.idempotency[0]!r} was used for a message that is"
            " gone now; use a new key for new content"
        )
    return streams.refusal(connection, submission, error) or InvalidMessage(
        f"the spool refuses this message: {error}", rule="constraint"
    )
