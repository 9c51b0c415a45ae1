"""One submission into the enqueue view, and what to say of one that is refused.

Contract. A step of somebody else's transaction: one statement, which SQLite takes back whole where
it is refused, so that its neighbours stay. What is wrong with the submission alone is returned as
the exception for it; what is wrong with the spool is raised. Begins and ends no transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from mailstrom.errors import IdempotencyConflict, InvalidMessage
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite import streams
from mailstrom.storage.sqlite.sql import run
from mailstrom.storage.sqlite.submissions import UNFIT, known, refusal

Row = dict[str, Any] | str | Exception
"""Bindings of one submission, or what is known of it before it is inserted."""


def insert(
    connection: apsw.Connection,
    submissions: Sequence[Submission],
    rows: Sequence[Row],
    atomic: bool,
) -> list[str | Exception]:
    """Results of all submissions, in order; those that are no bindings stay as they are.

    Raises:
        Exception: with ``atomic`` the first that was refused.
        apsw.Error: the spool's trouble.
    """
    results: list[str | Exception] = []
    for submission, row in zip(submissions, rows, strict=True):
        if not isinstance(row, dict):
            results.append(row)
            continue
        result = _insert_one(connection, submission, row)
        if atomic and isinstance(result, Exception):
            raise result
        results.append(result)
    return results


def _insert_one(
    connection: apsw.Connection, submission: Submission, row: dict[str, Any]
) -> str | Exception:
    try:
        run(connection, "enqueue", row)
    except apsw.ConstraintError as error:
        return _refused(connection, submission, error)
    except apsw.TooBigError as error:
        return InvalidMessage(f"the message is too large for the spool: {error}", rule="too-large")
    except UNFIT as error:
        return refusal(error)
    return submission.id


def _refused(
    connection: apsw.Connection, submission: Submission, error: Exception
) -> str | Exception:
    if submission.idempotency is not None and "idempotency" in str(error):
        return known(connection, submission) or IdempotencyConflict(
            f"idempotency key {submission.idempotency[0]!r} was used for a message that is"
            " gone now; use a new key for new content"
        )
    return streams.refusal(connection, submission, error) or InvalidMessage(
        f"the spool refuses this message: {error}", rule="constraint"
    )
