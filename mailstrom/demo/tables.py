"""Rows on a terminal: as a table where each fits its line, else upright, one value a line.

Contract. Nothing that a person may want to copy (an id, an address, a host) is ever broken over
two lines of a table. Where a table allows it, its last column is cropped, with an ellipsis, for
the rest to fit. Cells come as safe text. Serves the command line as well as the demonstration;
knows rich and nothing of mail.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2
LEAST = 16  # cells of a cropped last column that still say something


def fitting(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    crop: bool = False,
    right: Collection[int] = (),
) -> Table:
    """The rows as a table, or upright where a row is too wide for that.

    Args:
        columns: headings.
        rows: as many cells each.
        width: of the terminal, in cells.
        crop: whether the last column may be cut; upright rows leave out empty cells then, too.
        right: numbers of the columns that stand to the right.
    """
    natural = [
        max(cell_len(text) for text in column) for column in zip(columns, *rows, strict=True)
    ]
    room = width - sum(natural[:-1]) - GAP * (len(columns) - 1)
    if room < (min(natural[-1], LEAST) if crop else natural[-1]):
        return upright(columns, rows, sparse=crop)
    # the box puts one cell between columns by itself
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        last = number == len(columns) - 1
        table.add_column(
            name,
            justify="right" if number in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=min(room, natural[number]) if last else natural[number],
        )
    for row in rows:
        table.add_row(*map(Text, row))  # Text: no markup in foreign words
    return table


def upright(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, sparse: bool = False
) -> Table:
    """One name and value a line, an empty line between rows; long values go on below themselves.

    Args:
        sparse: leave out empty cells.
    """
    table = Table(box=None, show_header=False, padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, row in enumerate(rows):
        if number:
            table.add_row()
        for name, text in zip(columns, row, strict=True):
            if text or not sparse:
                table.add_row(Text(name), Text(text))
    return table
