"""Named SQL statements, kept in ``.sql`` files so that they can be read as SQL.

A statement starts at a line ``-- name: word`` and ends at the next such line or the file's end.
Names are unique in a dialect; an unknown or doubled name is an error at load, not at run time.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

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
    folder = resources.files("mailstrom.storage").joinpath("sql", dialect)
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not entry.name.endswith(".sql"):
            continue
        for name, text in parse(entry.read_text("utf-8"), entry.name).items():
            if name in found:
                raise ValueError(f"{entry.name}: statement {name!r} stands in another file, too")
            found[name] = text
    return found
