"""Passes over all sites and domains, in pieces: what a jump of the clock, or another routing, asks.

Contract. A sweep is noted in ``meta`` in the transaction that makes it necessary, with how far it
is. Each piece of it changes at most ``MOST`` rows of a table and moves that mark, in one
transaction of the caller's. So the lock is never held for tens of thousands of rows, and who dies
between two pieces, or finds the lock taken, leaves a sweep that whoever comes next goes on with.
Several may work at one at once. Rows that come meanwhile need none of it, and bear it.

Jumps that come while a sweep is unfinished wait behind it, in their order; two that nobody has
begun are one where that comes to the same. While others wait, a jump leaves alone what bears a
stamp later than both its clocks: one of them has to do with that. Where more than ``MOST_ASKED``
would wait, all cached answers are called off instead: one sweep, and each is looked up anew.

Names are kept in hexadecimal digits: damage may have made them no text. A mark that damage made
unreadable begins anew where a row may be changed twice (``expire``), else the sweep ends.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import apsw

from mailstrom.storage.sqlite.sql import run

MOST = 500
"""Rows of each table in one piece: some milliseconds of the lock."""
MOST_ASKED = 8
"""Jumps that may wait to be worked off."""

_LAST_MS = 253_402_300_799_000  # an answer that this is taken of is good no more
_ANY_MS = 1 << 62

_CLOCK, _ROUTES = "sweep_clock", "sweep_routes"


class Shift(NamedTuple):
    """What a jump of the clock asks of sites and domains, and how far that is.

    Args:
        at_ms: the new clock at the look that saw it; nothing waits for a later time.
        stamped_ms: no later stamp is the old clock's, where the new one is ahead of it.
        amount_ms: so much is what is left of an answer's time to live moved.
        site: the last one that is done.
        domain: as ``site``: its name in digits.
    """

    at_ms: int
    stamped_ms: int
    amount_ms: int
    site: int = 0
    domain: str = ""

    @property
    def begun(self) -> bool:
        """Whether some rows are done."""
        return self.site != 0 or self.domain != ""


def begin_shift(connection: apsw.Connection, asked: Shift) -> None:
    """Note what a jump asks; it is done behind what earlier ones asked."""
    queue = _queue(connection)
    both = _merged(queue[-1], asked) if queue else None
    if both is not None:
        queue[-1] = both
    else:
        queue.append(asked)
    if len(queue) > MOST_ASKED:
        at_ms = min(one.at_ms for one in queue)
        queue = [Shift(at_ms, max(one.stamped_ms for one in queue), -_LAST_MS)]
    _note(connection, _CLOCK, json.dumps(queue))


def _merged(first: Shift, then: Shift) -> Shift | None:
    """One that does what two do, in this order; None where none does in every case.

    A jump back moves all answers, whatever their stamps; none is moved where the amount is 0.
    """
    if first.begun or then.begun or then.amount_ms > 0 or first.amount_ms > 0 > then.amount_ms:
        return None
    stamped_ms = first.stamped_ms
    if first.amount_ms <= 0:
        stamped_ms = max(stamped_ms, then.stamped_ms)
    amount_ms = max(first.amount_ms + then.amount_ms, -_LAST_MS)
    return Shift(min(first.at_ms, then.at_ms), stamped_ms, amount_ms)


def shifting(connection: apsw.Connection) -> bool:
    """Whether ``shift`` has something to do; reads only."""
    return bool(run(connection, "meta_get", {"key": _CLOCK}))


def shift(connection: apsw.Connection) -> bool:
    """A piece of what the first of the jumps asks; whether anything is left."""
    queue = _queue(connection)
    if queue:
        asked = queue.pop(0)
        newest_ms = max(asked.at_ms, asked.stamped_ms) if queue else _ANY_MS
        values = {**asked._asdict(), "newest_ms": newest_ms, "after": asked.site, "most": MOST}
        ((site, sites),) = run(connection, "sites_to", values)
        if sites:
            run(connection, "jump_sites", {**values, "until": site})
        values["after"] = asked.domain
        ((domain, domains),) = run(connection, "domains_to", values)
        if domains:
            run(connection, "jump_domains", {**values, "until": domain})
        if MOST in (sites, domains):
            done = asked._replace(site=site or asked.site, domain=domain or asked.domain)
            queue.insert(0, done)
    if queue:
        _note(connection, _CLOCK, json.dumps(queue))
        return True
    run(connection, "meta_delete", {"key": _CLOCK})
    return False


def begin_expiry(connection: apsw.Connection) -> None:
    """Note that no cached route is good any more, from the first one on."""
    _note(connection, _ROUTES, "")


def expire(connection: apsw.Connection) -> bool:
    """Call a piece of the cached routes off; whether more are left."""
    found = run(connection, "meta_get", {"key": _ROUTES})
    if not found:
        return False
    values = {"after": _digits(found[0][0]), "most": MOST}
    ((domain, domains),) = run(connection, "domains_to", values)
    if domains:
        run(connection, "expire_routes", {**values, "until": domain})
        run(connection, "free_sites", {**values, "until": domain})
    if domains == MOST:
        _note(connection, _ROUTES, domain)
        return True
    run(connection, "meta_delete", {"key": _ROUTES})
    return False


def _note(connection: apsw.Connection, key: str, value: str) -> None:
    run(connection, "meta_set", {"key": key, "value": value})


def _queue(connection: apsw.Connection) -> list[Shift]:
    """What jumps asked, and is not done; nothing where damage made it something else."""
    found = run(connection, "meta_get", {"key": _CLOCK})
    try:
        queue = [Shift(*one) for one in json.loads(str(found[0][0]))] if found else []
    except (ValueError, TypeError):
        return []
    return queue if all(_whole(one) for one in queue) else []


def _whole(one: Shift) -> bool:
    numbers = all(type(number) is int and abs(number) < _ANY_MS for number in one[:-1])
    return numbers and one.domain == _digits(one.domain)


def _digits(text: object) -> str:
    """A name's digits; none, where the row begins, if damage made it something else."""
    try:
        return bytes.fromhex(str(text)).hex().upper()
    except ValueError:
        return ""
