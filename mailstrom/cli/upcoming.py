"""``mailstrom queue next``: waiting recipients by the time of their next attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mailstrom.cli.output import print_json, print_table
from mailstrom.cli.selection import Selection
from mailstrom.cli.spool import say_if_copied
from mailstrom.cli.waiting import engine, first_due, next_step

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

COLUMNS = ("message_id", "address", "next_attempt_at", "site", "waits_for")


def show(client: Mailstrom, selection: Selection, limit: int, as_json: bool) -> None:
    """Prints at most ``limit`` recipients, the next one first."""
    condition, parameters = selection.where()
    rows = first_due(client, condition, parameters, limit)
    spool = engine(client)
    lines = [
        (row.message_id, row.address, row.next_attempt_at, row.site, next_step(row, spool))
        for row in rows
    ]
    if as_json:
        for line in lines:
            print_json(dict(zip(COLUMNS, line, strict=True)))
        return
    if spool.copied:
        say_if_copied(client)
    if lines:
        print_table(COLUMNS, lines, brief=True)
    else:
        click.echo("nothing waits to go out", err=True)
