"""Asks a store why recipients wait: whom it concerns, what is known of them, and who lives.

What the rows mean is told in ``binding``. Recipients are looked at in pages, a short read each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mailstrom.causes import Waiting
from mailstrom.client.binding import reason
from mailstrom.client.handle import Handle
from mailstrom.client.look import Look
from mailstrom.clock import wall_ms
from mailstrom.lockfile import is_free
from mailstrom.storage import run_directory
from mailstrom.storage.client import Selection, Target
from mailstrom.storage.facts import Facts
from mailstrom.types import FINAL, Status

PAGE = 500
"""Recipients of one read."""
UNFINISHED = tuple(str(status) for status in Status if status not in FINAL)
_FINISHED = tuple(str(status) for status in Status if status in FINAL - {Status.PARTIAL})


def of_message(client: Handle, id: str, limit: int) -> list[Waiting]:
    """Reasons of a message's recipients, those that are not final first; none: no such message."""
    found: list[Waiting] = []
    for words in (UNFINISHED, _FINISHED):
        if len(found) < limit:
            meant = Selection(ids=(id,), statuses=words)
            found += reasons(client, _targets(client, meant, limit - len(found)))
    return found


def of_address(client: Handle, address: str, limit: int) -> list[Waiting]:
    """Reasons of the unfinished recipients with an address key, oldest message first."""
    meant = Selection(recipients=(address,), statuses=UNFINISHED)
    return reasons(client, _targets(client, meant, limit))


def reasons(client: Handle, targets: Sequence[Target]) -> list[Waiting]:
    """Reasons of these recipients, in their order; unknown ones are left out."""
    found: list[Waiting] = []
    for start in range(0, len(targets), PAGE):
        now_ms = wall_ms()
        facts = client._store.facts(targets[start : start + PAGE], now_ms)
        look = Look(facts, _held(client.path, facts), now_ms)
        found += [reason(fact, look) for fact in facts.recipients]
    return found


def _targets(client: Handle, meant: Selection, limit: int) -> list[Target]:
    return client._store.targets(meant, wall_ms(), change=None, limit=limit)


def _held(path: str, facts: Facts) -> frozenset[str]:
    """Lock files of workers that live: the kernel frees one with its process."""
    named = {one.lock for one in facts.workers}
    named |= {fact.lane.lock for fact in facts.recipients if fact.lane and fact.lane.lock}
    folder = run_directory(path)
    return frozenset(lock for lock in named if not is_free(os.path.join(folder, lock)))
