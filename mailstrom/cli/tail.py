"""``mailstrom tail``: events as they come, one line each, until interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mailstrom.cli.complete import event_types
from mailstrom.cli.output import print_json, terminal
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.cli.times import ms_of, past
from mailstrom.printable import printable
from mailstrom.types import iso_ms
from mailstrom.words import EVENT_WORDS

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom
    from mailstrom.types import Event

PAGE = 1000
PAUSE_S = 0.25  # between two looks; a look without news is one seek in an index

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

    The words are those of the events view. With --json one object a line; its id grows.
    """
    if since is not None and last is not None:
        raise click.UsageError("--since and -n exclude each other")
    words = _words(types)
    with opened(config, store) as client:
        try:
            after = _start(client, words, since, 10 if last is None else last)
            for event in _events(client, after, words, follow=not no_follow):
                if as_json:
                    print_json(event.to_dict())
                else:
                    click.echo(_line(event))
        except KeyboardInterrupt:
            return


def _words(types: Sequence[str]) -> list[str]:
    """Whole words; one half of a word stands for all that have it."""
    if not types:
        return []
    from difflib import get_close_matches

    found: dict[str, None] = {}
    for text in types:
        matching = [word for word in EVENT_WORDS if text in (word, *word.split("."))]
        if not matching:
            near = get_close_matches(
                text, [*EVENT_WORDS, *(word.partition(".")[2] for word in EVENT_WORDS)], 3
            )
            hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
            raise click.UsageError(f"{text!r} is no type of event{hint}")
        found.update(dict.fromkeys(matching))
    return list(found)


def _start(client: Mailstrom, words: Sequence[str], since: datetime | None, last: int) -> int:
    """The id after which to begin."""
    if since is not None:
        (row,) = client.query("select min(id) as id from events where at_ms >= ?", (ms_of(since),))
        return _newest(client) if row.id is None else int(row.id) - 1
    if last == 0:
        return _newest(client)
    chosen = f"where type in ({', '.join('?' * len(words))})" if words else ""
    rows = client.query(
        f"select id from events {chosen} order by id desc limit 1 offset ?", (*words, last - 1)
    )
    return int(rows[0].id) - 1 if rows else 0


def _newest(client: Mailstrom) -> int:
    (row,) = client.query("select coalesce(max(id), 0) as id from events")
    return int(row.id)


def _events(
    client: Mailstrom, after: int, words: Sequence[str], *, follow: bool
) -> Iterator[Event]:
    while True:
        newest = _newest(client)
        while newest > after:
            page = client.events(after, types=words or None, limit=PAGE)
            yield from page
            # what was there before the look and is not in it is of another type
            after = page[-1].id if len(page) == PAGE else max(newest, *(e.id for e in page), after)
        if not follow:
            return
        time.sleep(PAUSE_S)


def _line(event: Event) -> str:
    at = iso_ms(ms_of(event.at))
    word = event.type.ljust(20)
    if terminal() and "NO_COLOR" not in os.environ:
        colour = _COLOURS.get(event.type.partition(".")[2])
        word = click.style(word, fg=colour) if colour else word
        at = str(at)[11:]
    parts = [part for part in (event.message_id, event.recipient) if part]
    parts += [f"{name}={_value(value)}" for name, value in event.detail.items() if _tells(value)]
    return f"{at}  {word}  {printable(' '.join(parts), 2000)}".rstrip()


def _tells(value: object) -> bool:
    return value not in (None, "", 0, False)


def _value(value: Any) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text
