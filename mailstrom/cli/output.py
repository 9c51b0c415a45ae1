"""How commands print: JSON lines, aligned tables, CSV.

On a terminal tables are drawn by rich and fit its width; off a terminal they are plain columns
that are never cut. JSON is one object a line. Foreign text is made safe before it is shown in a
table; JSON escapes it by itself.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import click

from mailstrom.printable import printable


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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table of text.

    Args:
        columns: headings.
        rows: as many values each.
        title: shown above it on a terminal only.
    """
    cells = [[cell(value) for value in row] for row in rows]
    if terminal():
        _draw(columns, cells, title)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _draw(columns: Sequence[str], cells: list[list[str]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in cells:
        table.add_row(*(Text(text) for text in line))  # Text: no markup in foreign words
    Console().print(table)


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """RFC 4180 with a heading line; None is empty, bytes are hexadecimal."""
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [value if isinstance(value, int | float | None) else _plain(value) for value in row]
        )
