"""``mailstrom why``: what keeps a message's recipients, or all that wait under an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.ids import full_id
from mailstrom.cli.output import cell, fold, print_json
from mailstrom.cli.selection import characters
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.errors import InvalidAddress, MessageNotFound
from mailstrom.printable import printable

if TYPE_CHECKING:
    from mailstrom.causes import Waiting
    from mailstrom.client import Mailstrom


@click.command("why")
@click.argument("names", nargs=-1, required=True, metavar="ID|ADDRESS...", callback=characters)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=100,
    show_default=True,
    help="Recipients of each.",
)
@spool_options
@json_option
def command(
    names: tuple[str, ...], limit: int, config: str | None, store: str | None, as_json: bool
) -> int:
    """Tell why mail was not sent by now, and what would change it.

    For an ID all recipients of the message, those that are not final first; it may be a unique end
    of at least six characters. For an ADDRESS all unfinished recipients with it, oldest message
    first. As of now: a moment later it may be another reason. Exit 1 where one of them names
    nothing.
    """
    missing = False
    with opened(config, store) as client:
        for name in names:
            try:
                found = _ask(client, name, limit + 1)
            except MessageNotFound as error:
                click.echo(f"mailstrom: {printable(str(error))}", err=True)
                missing = True
                continue
            if not found:
                click.echo(f"mailstrom: nothing waits for {printable(name)}", err=True)
                missing = True
            for one in found[:limit]:
                _tell(one, as_json)
            if len(found) > limit:
                told = f"only the first {limit} are shown; see --limit"
                click.echo(f"mailstrom: {printable(name)}: {told}", err=True)
    return Exit.FAILED if missing else Exit.OK


def _ask(client: Mailstrom, name: str, limit: int) -> list[Waiting]:
    if "@" not in name:
        return client.why(full_id(client, name), limit=limit)
    try:
        return client.why(name, limit=limit)
    except InvalidAddress as error:
        raise click.UsageError(str(error)) from error


def _tell(one: Waiting, as_json: bool) -> None:
    if as_json:
        print_json(one.to_dict())
        return
    head = f"{one.message_id} {one.address}: {one.status}, {one.cause}"
    click.echo(cell(head))
    fold("  why:    ", cell(one.detail))
    if one.change:
        fold("  change: ", cell(one.change))
