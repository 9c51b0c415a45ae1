"""How commands print: JSON lines, aligned tables, CSV.

On a terminal tables are drawn by rich and fit its width, rows that cannot are shown upright; off a
terminal they are plain columns that are never cut. JSON is one object a line. Foreign text is made
safe before it is shown in a table, or as CSV on a terminal; JSON escapes it by itself.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import click

from mailstrom.clock import wall_ms
from mailstrom.printable import printable
from mailstrom.types import from_ms

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


def print_json_array(records: Sequence[Mapping[str, object]]) -> None:
    """One array, an object a line in it."""
    lines = (json.dumps(record, default=_plain, separators=(", ", ": ")) for record in records)
    click.echo("[" + ",\n ".join(lines) + "]")


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
    right: Collection[int] = (),
) -> None:
    """A table of text.

    Args:
        columns: headings.
        rows: as many values each.
        brief: on a terminal leave out columns that are empty throughout, show times short, and
            cut the last column where it must fit.
        right: numbers of the columns that stand to the right.
    """
    if terminal():
        lines = [[cell(value) for value in row] for row in rows]
        if brief:
            names = {columns[place] for place in right}
            columns, lines = _brief(columns, lines)
            right = [place for place, name in enumerate(columns) if name in names]
        _draw(columns, lines, brief, right)
        return
    lines = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        padded = (
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        click.echo("  ".join(padded).rstrip())


def _brief(columns: Sequence[str], rows: list[list[str]]) -> tuple[Sequence[str], list[list[str]]]:
    """What a person reads: no empty columns, times to the second, the day only where it differs."""
    today = str(_plain(from_ms(wall_ms())))[:10]
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]

    def short(text: str) -> str:
        if not _TIME.fullmatch(text):
            return text
        clock = f"{text[11:19]}Z"
        return clock if text.startswith(today) else f"{text[:10]} {clock}"

    return [columns[place] for place in kept], [
        [short(row[place]) for place in kept] for row in rows
    ]


def _draw(
    columns: Sequence[str],
    cells: list[list[str]],
    brief: bool,
    right: Collection[int],
) -> None:
    from rich.console import Console

    from mailstrom.demo.tables import fitting

    console = Console()
    console.print(fitting(columns, cells, console.width, crop=brief, right=right))


def fold(head: str, *texts: str) -> None:
    """``head`` and texts; on a terminal broken at spaces, further lines below where it ends.

    Args:
        texts: already safe to show.
    """
    text = "".join(texts)
    for line in folded(head, text) if terminal() else [f"{head}{text}"]:
        click.echo(line)


def folded(head: str, text: str, indent: int | None = None) -> list[str]:
    """The lines of ``head`` and text on a terminal; a word is never broken, however long.

    Args:
        text: already safe to show.
        indent: of further lines; None is below where ``head`` ends.
    """
    import shutil
    import textwrap

    return textwrap.wrap(
        text,
        max(shutil.get_terminal_size().columns, 40),
        initial_indent=head,
        subsequent_indent=" " * (len(head) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A heading line and a line per row; None is empty, bytes are hexadecimal.

    As RFC 4180, but lines end as in any text file, since shell tools read them. For a program the
    values are exact; on a terminal they are made safe as in a table.
    """
    shown = cell if terminal() else _plain
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [value if isinstance(value, int | float | None) else shown(value) for value in row]
        )
