"""``mailstrom queue list|count|retry|cancel``: what waits, and what a person does about it.

Changes say what they are about to do and ask, unless ``--yes``; ``--dry-run`` only shows. Without
any filter a change needs ``--all``, so that a forgotten word never empties a queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json, print_table
from mailstrom.cli.selection import COLUMNS, WAITING, Selection, filters
from mailstrom.cli.spool import json_option, opened, spool_options

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

# verb -> statuses it acts on where the user names none; a sending recipient is never touched
CANCELLABLE = ("queued", "deferred", "held")
RETRYABLE = ("deferred",)
SHOWN = 20  # lines of a change's preview

change_options: tuple[Callable[[Any], Any], ...] = (
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option("--dry-run", is_flag=True, help="Show what would be changed, change nothing."),
)


@click.group("queue")
def command() -> None:
    """List, count, retry or cancel recipients.

    Filters: message IDS, --status, --domain, --recipient, --sender; several kinds narrow, several
    values of one kind widen.
    """


@command.command("list")
@filters
@click.option(
    "--limit", type=click.IntRange(0), default=1000, show_default=True, help="Rows; 0 is all."
)
@spool_options
@json_option
def list_recipients(
    limit: int, config: str | None, store: str | None, as_json: bool, **chosen: Any
) -> None:
    """Recipients that wait, oldest message first; with --all or --status also others."""
    selection = _in_view(Selection(**chosen))
    with opened(config, store) as client:
        rows = client.query(*selection.rows_sql(limit and limit + 1))
    more = bool(limit) and len(rows) > limit
    rows = rows[:limit] if more else rows
    if as_json:
        for row in rows:
            print_json(row._asdict())
    elif rows:
        print_table(COLUMNS, rows, brief=True)
    elif selection.statuses == WAITING:
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
    """Recipients and messages by status; with --all or --status also those that do not wait."""
    selection = _in_view(Selection(**chosen))
    with opened(config, store) as client:
        rows = client.query(*selection.counts_sql())
    if as_json:
        for row in rows:
            print_json(row._asdict())
        return
    print_table(("status", "recipients", "messages"), rows)


@command.command("retry")
@filters
@spool_options
@json_option
def retry(**given: Any) -> int:
    """Make deferred recipients due now; with --status failed also final ones are tried again."""
    return _change("retry", "retried", RETRYABLE, **given)


@command.command("cancel")
@filters
@spool_options
@json_option
def cancel(**given: Any) -> int:
    """Cancel recipients that are queued, deferred or held; one on the wire is not touched."""
    return _change("cancel", "cancelled", CANCELLABLE, **given)


for _command in (retry, cancel):
    for _option in change_options:
        _option(_command)


def _in_view(selection: Selection) -> Selection:
    if selection.everything or selection.ids:
        return selection
    return selection.limited_to(WAITING)


def _change(
    verb: str,
    done: str,
    eligible: tuple[str, ...],
    *,
    config: str | None,
    store: str | None,
    as_json: bool,
    yes: bool,
    dry_run: bool,
    **chosen: Any,
) -> int:
    selection = Selection(**chosen)
    if not selection.named and not selection.everything:
        raise click.UsageError(f"say which recipients to {verb}: ids, filters, or --all")
    with opened(config, store) as client:
        rows = client.query(*selection.limited_to(eligible).rows_sql(0))
        if not rows:
            words = _either(selection.statuses or eligible)
            click.echo(f"mailstrom: no {words} recipient matches", err=True)
            return Exit.FAILED
        if dry_run or not yes:
            _preview(rows, as_json and dry_run)
        if dry_run:
            return Exit.OK
        if not yes:
            click.confirm(f"{verb} {_recipients(len(rows))}?", abort=True, err=True)
        changed = _apply(client, verb, rows, whole=verb == "cancel" and selection.whole_messages)
    if as_json:
        print_json({"matched": len(rows), done: changed})
    else:
        click.echo(f"{done} {_recipients(changed)}")
    return Exit.OK


def _either(words: tuple[str, ...]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _recipients(number: int) -> str:
    return f"{number} recipient{'' if number == 1 else 's'}"


def _preview(rows: list[Any], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_json(row._asdict())
        return
    for row in rows[:SHOWN]:
        click.echo(f"{row.message_id}  {row.address}  {row.status}", err=True)
    if len(rows) > SHOWN:
        click.echo(f"... and {len(rows) - SHOWN} more", err=True)


def _apply(client: Mailstrom, verb: str, rows: list[Any], *, whole: bool) -> int:
    """Calls the client once per message where whole messages were chosen, else per recipient.

    Cancelling a message leaves alone what is not in ``CANCELLABLE``, but retrying one would reopen
    its failed recipients too: those are for ``--status failed`` only.
    """
    change = client.cancel if verb == "cancel" else client.retry
    if whole:
        return sum(change(id) for id in dict.fromkeys(row.message_id for row in rows))
    return sum(change(row.message_id, recipient=row.address) for row in rows)
