"""``mailstrom queue list|count|next|hold|release|retry|cancel``: what waits, and changes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mailstrom.cli.change import VERBS, Verb, apply, change_options
from mailstrom.cli.output import print_json, print_table
from mailstrom.cli.selection import COLUMNS, MOST_ROWS, WAITING, Selection, filters
from mailstrom.cli.spool import json_option, opened, say_if_copied, spool_options


@click.group("queue")
def command() -> None:
    """What waits, and what a person does about it.

    Filters are the same everywhere: message IDs (a unique end of at least six characters will do),
    --status, --reason, --domain, --recipient, --sender, --tag, --stream, --older-than,
    --newer-than. Several kinds narrow, several values of one kind widen.
    """


limit_option = click.option(
    "--limit",
    type=click.IntRange(0, MOST_ROWS),
    metavar="N",
    default=1000,
    show_default=True,
    help="Rows; 0 is all.",
)


@command.command("list")
@filters
@limit_option
@spool_options
@json_option
def list_recipients(
    limit: int, config: str | None, store: str | None, as_json: bool, **chosen: Any
) -> None:
    """Recipients that wait, oldest message first. With --all or --status also others."""
    selection = _in_view(Selection(**chosen))
    with opened(config, store) as client:
        rows = client.query(*selection.found_in(client).rows_sql(limit and limit + 1))
    more = bool(limit) and len(rows) > limit
    rows = rows[:limit] if more else rows
    if as_json:
        for row in rows:
            print_json(row._asdict())
    elif rows:
        print_table(COLUMNS, rows, brief=True)
    elif selection.status == WAITING:
        click.echo("no recipient waits; --all shows also those that are final", err=True)
    else:
        click.echo("no recipient matches", err=True)
    if more:
        click.echo(f"mailstrom: only the first {limit} are shown; see --limit", err=True)


@command.command("count")
@filters
@spool_options
@json_option
def count(config: str | None, store: str | None, as_json: bool, **chosen: Any) -> None:
    """Recipients and messages by status. With --all or --status also those that do not wait."""
    selection = _in_view(Selection(**chosen))
    with opened(config, store) as client:
        rows = client.query(*selection.found_in(client).counts_sql())
        say_if_copied(client)
    if as_json:
        for row in rows:
            print_json(row._asdict())
        return
    print_table(("status", "recipients", "messages"), rows, right=(1, 2))


@command.command("next")
@filters
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=20,
    show_default=True,
    help="Rows.",
)
@spool_options
@json_option
def upcoming(
    limit: int, config: str | None, store: str | None, as_json: bool, **chosen: Any
) -> None:
    """What goes out next, when and where to, and what it waits for."""
    from mailstrom.cli.upcoming import show

    with opened(config, store) as client:
        show(client, Selection(**chosen).found_in(client), limit, as_json)


HELP = {
    "cancel": "Cancel recipients that are queued, deferred or held. None that is on the wire.",
    "hold": "Hold queued and deferred recipients back until they are released.",
    "release": "Let go what a person held, or what was held as poison.\n\n"
    "Those held in doubt are for `mailstrom resolve`.",
    "retry": "Make deferred recipients due now. With --status failed try failed ones again.",
}


def _command(verb: Verb) -> click.Command:
    def run(
        config: str | None,
        store: str | None,
        as_json: bool,
        yes: bool,
        dry_run: bool,
        **chosen: Any,
    ) -> int:
        selection = Selection(**chosen)
        if not selection.named and not selection.everything:
            raise click.UsageError(f"say which recipients to {verb.word}: ids, filters, or --all")
        with opened(config, store) as client:
            found = selection.found_in(client)
            return apply(client, verb, found, yes=yes, dry_run=dry_run, as_json=as_json)

    decorated: Callable[..., int] = run
    for decorate in (json_option, spool_options, change_options, filters):
        decorated = decorate(decorated)
    return click.command(verb.word, help=HELP[verb.word])(decorated)


for _verb in VERBS:
    command.add_command(_command(_verb))


def _in_view(selection: Selection) -> Selection:
    if selection.everything or selection.ids:
        return selection
    return selection.limited_to(WAITING)
