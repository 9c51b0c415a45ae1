"""Running a named statement to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apsw

from mailstrom.storage.statements import load

STATEMENTS = load("sqlite")


def run(
    connection: apsw.Connection, name: str, values: Mapping[str, Any] | None = None
) -> list[Any]:
    """All rows of a named statement; the statement is finished when this returns."""
    rows: list[Any] = connection.execute(STATEMENTS[name], values or {}).fetchall()
    return rows


def wrote(connection: apsw.Connection, name: str, values: Mapping[str, Any]) -> int:
    """Run a named statement that gives no rows back; returns how many it changed."""
    connection.execute(STATEMENTS[name], values).fetchall()
    return connection.changes()
