"""``mailstrom queue next``: waiting recipients by the time of their next attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mailstrom.cli.output import print_json, print_table
from mailstrom.cli.selection import Selection
from mailstrom.cli.spool import say_if_copied
from mailstrom.client.reasons import reasons
from mailstrom.storage.client import Target

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

COLUMNS = ("message_id", "address", "next_attempt_at", "site", "waits_for")

_NEAREST = """
select r.message_id, r.address, r.next_attempt_at, r.site
  from messages m join recipients r on r.message_id = m.id
 where {condition} and r.status in ('queued', 'deferred')
 order by r.next_attempt_ms, m.id limit ?
"""


def show(client: Mailstrom, selection: Selection, limit: int, as_json: bool) -> None:
    """Prints at most ``limit`` recipients, the next one first."""
    condition, parameters = selection.where()
    rows: list[Any] = client.query(_NEAREST.format(condition=condition), (*parameters, limit))
    targets = [Target(row.message_id, row.address) for row in rows]
    why = {(one.message_id, one.address): one.sentence for one in reasons(client, targets)}
    lines = [(*row, why.get((row.message_id, row.address))) for row in rows]
    if as_json:
        for line in lines:
            print_json(dict(zip(COLUMNS, line, strict=True)))
        return
    say_if_copied(client)
    if lines:
        print_table(COLUMNS, lines, brief=True)
    else:
        click.echo("nothing waits to go out", err=True)
