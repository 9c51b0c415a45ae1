"""Named SQL statements, kept in ``.sql`` files so that they can be read as SQL.

A statement starts at a line ``-- name: word`` and ends at the next such line or the file's end.
Names are unique in a dialect; an unknown or doubled name is an error at load, not at run time.
"""

from __future__ import annotations

import os
import re
from functools import cache

_NAME = re.compile(r"^-- name: ([a-z_]+)[ \t]*$", re.MULTILINE)


def parse(text: str, origin: str) -> dict[str, str]:
    """Statements of one file by name.

    Raises:
        ValueError: a name twice, or SQL before the first name.
    """
    pieces = _NAME.split(text)
    if any(line and not line.startswith("--") for line in map(str.strip, pieces[0].splitlines())):
        raise ValueError(f"{origin}: SQL before the first '-- name:' line")
    statements: dict[str, str] = {}
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if name in statements:
            raise ValueError(f"{origin}: statement {name!r} is there twice")
        statements[name] = body.strip().rstrip(";")
    return statements


@cache
def load(dialect: str) -> dict[str, str]:
    """All statements of a dialect (a folder beside this file, ``sql/<dialect>``)."""
    found: dict[str, str] = {}
    for file, content in sql_files(dialect).items():
        for name, text in parse(content, file).items():
            if name in found:
                raise ValueError(f"{file}: statement {name!r} stands in another file, too")
            found[name] = text
    return found


def sql_files(*folder: str) -> dict[str, str]:
    """Name -> text of the ``.sql`` files in a folder below ``sql``, sorted by name.

    By plain files: importlib.resources would cost every client's start more than its spool.
    """
    place = os.path.join(os.path.dirname(__file__), "sql", *folder)
    found = {}
    for name in sorted(os.listdir(place)):
        if name.endswith(".sql"):
            with open(os.path.join(place, name), encoding="utf-8") as stream:
                found[name] = stream.read()
    return found
