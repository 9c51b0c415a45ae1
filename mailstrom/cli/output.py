"""How commands print: JSON lines, aligned tables, CSV.

On a terminal tables are drawn by rich and fit its width, rows that cannot are shown upright; off a
terminal they are plain columns that are never cut. JSON is one object a line. Foreign text is made
safe before it is shown in a table; JSON escapes it by itself.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import click

from mailstrom.printable import printable


_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")


def terminal() -> bool:
    """Whether standard output is a person's screen."""
    return sys.stdout.isatty()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def print_json(record: Mapping[str, object]) -> None:
    """One object on one line; bytes as hexadecimal text. ASCII, so nothing moves a cursor."""
    click.echo(json.dumps(record, default=_plain, separators=(", ", ": ")))


def cell(value: object) -> str:
    """A value as a table shows it: one line, no control characters; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return "x'" + value[:32].hex() + ("…'" if len(value) > 32 else "'")
    if isinstance(value, datetime):
        return str(_plain(value))
    return printable(str(value), 2000)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    brief: bool = False,
    fold: bool = False,
) -> None:
    """A table of text.

    Args:
        columns: headings.
        rows: as many values each.
        brief: on a terminal show times short and cut the last column where it must fit.
        fold: on a terminal break cells over lines rather than show the rows upright.
    """
    if terminal():
        show = _brief if brief else cell
        _draw(columns, [[show(value) for value in row] for row in rows], brief, fold)
        return
    lines = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _brief(value: object) -> str:
    """As ``cell``, and times, whether datetime or ISO text, without what a person reads over."""
    text = cell(value)
    return f"{text[:10]} {text[11:19]}Z" if _TIME.fullmatch(text) else text


def _draw(columns: Sequence[str], cells: list[list[str]], brief: bool, fold: bool) -> None:
    from rich.console import Console

    from mailstrom.demo.tables import fitting

    console = Console()
    console.print(fitting(columns, cells, console.width, crop=brief, fold=fold))


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """As RFC 4180, with a heading line, but lines end as they do in text files; None is empty, bytes are hexadecimal."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [value if isinstance(value, int | float | None) else _plain(value) for value in row]
        )
