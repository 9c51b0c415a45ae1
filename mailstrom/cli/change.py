"""One way for every bulk change: choose, show a few, ask, act, say how many.

The client chooses and acts (``mailstrom.client.choosing``, pages of short transactions): what is
counted, shown and changed are the same recipients, whatever arrives before the answer. A change
that nobody confirms changes nothing: without ``--yes`` somebody must be at the terminal, and
without any filter ``--all`` must be said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import folded, print_json
from mailstrom.cli.selection import Selection
from mailstrom.cli.streams import telling
from mailstrom.printable import printable
from mailstrom.types import Change

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom
    from mailstrom.client.choosing import Chosen

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = 5  # recipients of a preview


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A change as a command.

    Args:
        word: of the command.
        done: what it says afterwards.
        statuses, reasons: whom it touches where the user names none; the client guards the rest.
    """

    change: Change
    word: str
    done: str
    statuses: tuple[str, ...]
    reasons: tuple[str, ...] = ()


VERBS = (
    Verb(
        change=Change.CANCEL,
        word="cancel",
        done="cancelled",
        statuses=("queued", "deferred", "held"),
    ),
    Verb(change=Change.HOLD, word="hold", done="held", statuses=("queued", "deferred")),
    Verb(
        change=Change.RELEASE,
        word="release",
        done="released",
        statuses=("held",),
        reasons=("user", "poison"),
    ),
    Verb(change=Change.RETRY, word="retry", done="retried", statuses=("deferred",)),
)


def change_options(function: F) -> F:
    """Adds ``--yes`` and ``--dry-run``."""
    function = click.option("--yes", is_flag=True, help="Do not ask.")(function)
    return click.option(
        "--dry-run", is_flag=True, help="Say what would be changed, change nothing."
    )(function)


def ask(question: str, *, dry_run: bool = True) -> None:
    """Ends the command unless a person says yes.

    Args:
        dry_run: whether the command has that option, so that it can be offered.

    Raises:
        UsageError: nobody is at the terminal to be asked.
        Abort: the answer was no.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{question} Nobody is at the terminal to answer: say --yes"
            + (", or look with --dry-run" if dry_run else "")
        )
    *before, last = folded("", question) if sys.stderr.isatty() else [question]
    for line in before:
        click.echo(line, err=True)
    click.confirm(last, abort=True, err=True)


def apply(
    client: Mailstrom,
    verb: Verb,
    selection: Selection,
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Carry out one bulk change; the exit code.

    Args:
        selection: with ``found_in`` done; ``named`` or ``everything``.
    """
    meant = selection.limited_to(verb.statuses, verb.reasons)
    chosen = client._chosen(verb.change, shown=SHOWN, **meant.filters())
    if not chosen.count:
        unsaid = verb.word == "retry" and not selection.status
        advice = "; failed ones are reopened with --status failed" if unsaid else ""
        click.echo(f"mailstrom: no {either(meant.status)} recipient matches{advice}", err=True)
        return Exit.FAILED
    if dry_run and as_json:
        print_json({"matched": chosen.count, verb.done: 0, "more": 0, "dry_run": True})
        return Exit.OK
    if dry_run or not yes:
        _preview(client, chosen)
    if dry_run:
        click.echo(f"would be {verb.done}: {recipients(chosen.count)}")
        return Exit.OK
    if not yes:
        ask(f"{verb.word.capitalize()} {recipients(chosen.count)}?")
    changed = chosen.apply()
    done = f"{verb.done} {recipients(changed)}"
    with telling(done):
        if as_json:
            found = {"matched": chosen.count, verb.done: changed, "more": chosen.others}
            print_json({**found, "dry_run": False})
        else:
            click.echo(done)
    if chosen.others:
        click.echo(
            f"mailstrom: {recipients(chosen.others)} more matched since then and"
            f" {'was' if chosen.others == 1 else 'were'} left alone",
            err=True,
        )
    return Exit.OK


def either(words: tuple[str, ...]) -> str:
    """``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def recipients(number: int) -> str:
    """``1 recipient``, ``2 recipients``."""
    return f"{number:,} recipient{'' if number == 1 else 's'}"


def _preview(client: Mailstrom, chosen: Chosen) -> None:
    messages = client.statuses([target.id for target in chosen.first])
    shown = 0
    for id, address, _ in chosen.first:
        row = messages[id].recipients.get(address or "") if id in messages else None
        if row is not None:
            words = f"{row.status} ({row.reason})" if row.reason else row.status
            click.echo(f"{id}  {printable(f'{address}  {words}')}", err=True)
            shown += 1
    if chosen.count > shown:
        click.echo(f"... and {chosen.count - shown:,} more", err=True)
