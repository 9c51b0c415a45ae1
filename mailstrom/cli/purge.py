"""``mailstrom store purge``: the janitor's own deletion, told how long things stay.

In short transactions with the lock free between them, so that senders and the engine go on; killed
half-way it leaves nothing that the next run cannot finish. Only what is final is ever deleted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from mailstrom.cli.change import ask
from mailstrom.cli.exits import Exit
from mailstrom.cli.output import fold, print_json
from mailstrom.cli.spool import opened
from mailstrom.cli.streams import telling
from mailstrom.clock import wall_ms
from mailstrom.errors import SpoolBusy
from mailstrom.types import iso_ms

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom
    from mailstrom.storage.base import Retention, WorkerStore

PAGE = 200  # messages or chunks of a transaction
PAUSE_S = 0.005  # at least so long the lock is free

_OLDER = "select count(*) as n from messages where finished_ms <= ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What there is to delete."""

    now_ms: int
    retention: Retention
    messages: int

    def sentence(self) -> str:
        """For the question and the dry run."""
        kept = self.retention
        gone = iso_ms(self.now_ms - kept.attempts_ms)
        words = f"{_messages(self.messages)} finished before {gone}, with all about them"
        if kept.bodies_ms < kept.attempts_ms:
            words += f"; bodies of those finished before {iso_ms(self.now_ms - kept.bodies_ms)}"
        if kept.events_ms == kept.attempts_ms:
            return f"{words}; events as old"
        return f"{words}; events before {iso_ms(self.now_ms - kept.events_ms)}"


def run(
    path: str | None,
    config: str | None,
    older_than: timedelta | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Count, ask, delete, say; the exit code."""
    from mailstrom.storage import open_worker_store

    with opened(config, path) as client:
        store = open_worker_store(client.path)
        try:
            if store.copied:
                raise click.UsageError(
                    f"{client.path} is a copy: nothing in it is purged before"
                    " 'mailstrom store adopt'"
                )
            plan = _plan(client, store, older_than)
            if dry_run:
                if as_json:
                    print_json({"messages": plan.messages, "purged": 0, "dry_run": True})
                else:
                    fold("would go: ", plan.sentence())
                return Exit.OK
            if not yes:
                ask(f"Delete {plan.sentence()}?")
            _delete(store, plan)
        finally:
            store.close()
        left = client.query(_OLDER, (plan.now_ms - plan.retention.attempts_ms,))[0].n
    purged = plan.messages - left
    if plan.messages and left:
        raise SpoolBusy(
            f"{_messages(left)} stayed: for an hour after the clock jumped nothing is purged; try"
            " again later"
        )
    done = f"purged {_messages(purged)}"
    with telling(done):
        if as_json:
            print_json({"messages": plan.messages, "purged": purged, "dry_run": False})
        else:
            click.echo(done)
    return Exit.OK


def _plan(client: Mailstrom, store: WorkerStore, older_than: timedelta | None) -> _Plan:
    from mailstrom.storage.base import Retention

    if older_than is None:
        retention = store.retention()
    else:
        ms = older_than // timedelta(milliseconds=1)
        retention = Retention(bodies_ms=ms, attempts_ms=ms, events_ms=ms)
    now = wall_ms()
    messages = client.query(_OLDER, (now - retention.attempts_ms,))[0].n
    return _Plan(now_ms=now, retention=retention, messages=messages)


def _delete(store: WorkerStore, plan: _Plan) -> None:
    while store.purge(plan.retention, PAGE, plan.now_ms):
        time.sleep(PAUSE_S)


def _messages(number: int) -> str:
    return f"{number:,} message{'' if number == 1 else 's'}"
