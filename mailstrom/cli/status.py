"""``mailstrom status``: a message and each of its recipients."""

from __future__ import annotations

import click

from mailstrom.cli.ids import full_id
from mailstrom.cli.output import cell, print_json, print_table
from mailstrom.cli.spool import json_option, opened, say_if_copied, spool_options
from mailstrom.client.look import reply
from mailstrom.types import MessageStatus

COLUMNS = ("recipient", "status", "reason", "attempts", "next attempt", "mx", "tls", "reply")


@click.command("status")
@click.argument("id")
@spool_options
@json_option
def command(id: str, config: str | None, store: str | None, as_json: bool) -> None:
    """Show where the message ID and each of its recipients stand; exit 1 if there is none.

    `mailstrom show` tells all, with every attempt and why it was not sent yet.
    """
    with opened(config, store) as client:
        status = client.status(full_id(client, id))
        if not status.completed:
            say_if_copied(client)
    if as_json:
        print_json(status.to_dict())
    else:
        show(status)


def show(status: MessageStatus) -> None:
    """The message in lines, its recipients in a table."""
    values = status.to_dict()
    for key in ("id", "status", "sender", "subject", "size", "created_at", "send_at", "expires_at"):
        click.echo(f"{key + ':':<12} {cell(values[key])}".rstrip())
    if status.finished_at is not None:
        click.echo(f"{'finished_at:':<12} {values['finished_at']}")
    if status.tags:
        click.echo(f"{'tags:':<12} {cell(', '.join(status.tags))}")
    click.echo()
    print_table(
        COLUMNS,
        [
            (
                recipient.address,
                f"{recipient.status}{' (in doubt)' if recipient.in_doubt else ''}",
                recipient.reason,
                recipient.attempts,
                None if recipient.status.final else recipient.next_attempt_at,
                recipient.mx,
                recipient.tls,
                reply(recipient.reply_code, recipient.enhanced_code, recipient.reply_text),
            )
            for recipient in status.recipients.values()
        ],
        brief=True,
    )
