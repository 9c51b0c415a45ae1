"""``mailstrom tail``: events as they come, one line each, until interrupted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mailstrom.cli.complete import event_types
from mailstrom.cli.output import folded, print_json, terminal
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.cli.times import ms_of, past
from mailstrom.printable import printable
from mailstrom.types import iso_ms
from mailstrom.words import EVENT_WORDS

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom
    from mailstrom.types import Event

PAGE = 1000
INDENT = 4  # of a line's second part on a terminal
NEAR = 0.75  # how alike a word must be to one that is offered instead

_BEFORE = (
    "select coalesce((select min(id) - 1 from events where at_ms >= ?),"
    " (select max(id) from events), 0) as id"
)

# part of a word behind the dot -> colour on a terminal
_COLOURS = {
    "delivered": "green",
    "failed": "red",
    "lost": "red",
    "rejected": "red",
    "deferred": "yellow",
    "held": "yellow",
    "suspended": "yellow",
    "lapsed": "yellow",
}


@click.command("tail")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="T",
    shell_complete=event_types,
    help="Only these: a word as recipient.failed, or one half of it; repeatable.",
)
@click.option("--since", metavar="AGE", callback=past, help="From then on: 10m, or an ISO time.")
@click.option(
    "-n",
    "last",
    type=click.IntRange(0, 100_000),
    metavar="N",
    help="Begin with the last N; 10 unless --since is given.",
)
@click.option("--no-follow", is_flag=True, help="End with what is there.")
@spool_options
@json_option
def command(
    types: tuple[str, ...],
    since: datetime | None,
    last: int | None,
    no_follow: bool,
    config: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Print events as they come, one line each, until Ctrl-C.

    The words are those of the events view. On a terminal lines are broken to its width. With --json
    one object a line; its id grows.
    """
    if since is not None and last is not None:
        raise click.UsageError("--since and -n exclude each other")
    words = _words(types)
    with opened(config, store) as client:
        try:
            after = _start(client, words, since, 10 if last is None else last)
            events = (
                _there(client, after, words) if no_follow else client.follow(after, types=words)
            )
            for event in events:
                if as_json:
                    print_json(event.to_dict())
                else:
                    click.echo("\n".join(_lines(event)))
        except KeyboardInterrupt:
            return


def _words(types: Sequence[str]) -> list[str] | None:
    """Whole words; one half of a word stands for all that have it. None is all."""
    if not types:
        return None
    from difflib import get_close_matches

    found: dict[str, None] = {}
    for text in types:
        matching = [word for word in EVENT_WORDS if text in (word, *word.split("."))]
        if not matching:
            halves = [word.partition(".")[2] for word in EVENT_WORDS]
            near = get_close_matches(text, [*EVENT_WORDS, *halves], 3, NEAR)
            hint = (
                f"did you mean {', '.join(dict.fromkeys(near))}?"
                if near
                else f"there are {', '.join(EVENT_WORDS)}"
            )
            raise click.UsageError(f"{printable(text, 80)!r} is no type of event; {hint}")
        found.update(dict.fromkeys(matching))
    return list(found)


def _start(
    client: Mailstrom, words: Sequence[str] | None, since: datetime | None, last: int
) -> int | None:
    """The id after which to begin; None is what happens from now on."""
    if since is not None:
        (row,) = client.query(_BEFORE, (ms_of(since),))
        return int(row.id)
    if last == 0:
        return None
    chosen = f"where type in ({', '.join('?' * len(words))})" if words else ""
    rows = client.query(
        f"select id from events {chosen} order by id desc limit 1 offset ?",
        (*(words or ()), last - 1),
    )
    return int(rows[0].id) - 1 if rows else 0


def _there(client: Mailstrom, after: int | None, words: Sequence[str] | None) -> Iterator[Event]:
    """What is there by now and no more."""
    while after is not None:
        page = client.events(after, types=words, limit=PAGE)
        yield from page
        after = page[-1].id if len(page) == PAGE else None


def _lines(event: Event) -> list[str]:
    at = str(iso_ms(ms_of(event.at)))
    parts = [part for part in (event.message_id, event.recipient) if part]
    parts += [f"{name}={_value(value)}" for name, value in event.detail.items() if _tells(value)]
    text = printable(" ".join(parts), 2000)
    if not terminal():
        return [f"{at}  {event.type:<20}  {text}".rstrip()]
    first, *more = folded(f"{at[11:]}  {event.type:<20}  ", text, INDENT)
    colour = _COLOURS.get(event.type.partition(".")[2])
    if colour and "NO_COLOR" not in os.environ:
        first = first.replace(event.type, click.style(event.type, fg=colour), 1)
    return [first.rstrip(), *more]


def _tells(value: object) -> bool:
    return value not in (None, "", 0, False)


def _value(value: Any) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text
