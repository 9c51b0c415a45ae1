"""``mailstrom resolve``: a person decides what became of recipients that are held in doubt."""

from __future__ import annotations

import click

from mailstrom.cli.change import recipients
from mailstrom.cli.exits import Exit
from mailstrom.cli.ids import full_id
from mailstrom.cli.output import print_json
from mailstrom.cli.selection import address
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.cli.streams import telling

OUTCOMES = ("delivered", "retry", "failed")


@click.command("resolve")
@click.argument("id")
@click.argument("outcome", type=click.Choice(OUTCOMES), metavar="|".join(OUTCOMES))
@click.option("--recipient", metavar="ADDR", callback=address, help="Only this address.")
@spool_options
@json_option
def command(
    id: str,
    outcome: str,
    recipient: str | None,
    config: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Decide about the recipients of ID that are held because nobody knows if they were delivered.

    delivered: they were. retry: send them (perhaps again). failed: they were not and never will be.
    Exit 1 if no recipient of ID is held in doubt.
    """
    with opened(config, store) as client:
        id = full_id(client, id)
        changed = client.resolve(id, outcome, recipient=recipient)
    done = f"resolved {recipients(changed)}"
    with telling(done):
        if as_json:
            print_json({"id": id, "outcome": outcome, "resolved": changed})
        elif changed:
            click.echo(done)
    if not changed:
        click.echo(
            f"mailstrom: {recipient or 'no recipient'} of {id} is"
            f"{' not' if recipient else ''} held in doubt",
            err=True,
        )
    return Exit.OK if changed else Exit.FAILED
