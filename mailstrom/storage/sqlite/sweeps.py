"""Passes over all sites and domains, in pieces: what a jump of the clock, or another routing, asks.

Contract. A sweep is noted in ``meta`` in the transaction that makes it necessary, with how far it
is. Each piece of it changes at most ``MOST`` rows of a table and moves that mark, in one
transaction of the caller's. So the lock is never held for tens of thousands of rows, and who dies
between two pieces, or finds the lock taken, leaves a sweep that whoever comes next goes on with.
Several may work at one at once. Rows that come meanwhile need none of it, and bear it.

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


def begin_shift(connection: apsw.Connection, asked: Shift) -> None:
    """Note what a jump asks; what an earlier one asked and is not done yet is ended first."""
    while shift(connection):
        pass
    _note(connection, _CLOCK, json.dumps(asked))


def shifting(connection: apsw.Connection) -> bool:
    """Whether ``shift`` has something to do; reads only."""
    return bool(run(connection, "meta_get", {"key": _CLOCK}))


def shift(connection: apsw.Connection) -> bool:
    """A piece of what the last jump asks; whether more of it is left."""
    found = run(connection, "meta_get", {"key": _CLOCK})
    if not found:
        return False
    asked = _read(found[0][0])
    if asked is not None:
        values = {**asked._asdict(), "after": asked.site, "most": MOST}
        ((site, sites),) = run(connection, "sites_to", values)
        if sites:
            run(connection, "jump_sites", {**values, "until": site})
        values["after"] = asked.domain
        ((domain, domains),) = run(connection, "domains_to", values)
        if domains:
            run(connection, "jump_domains", {**values, "until": domain})
        if MOST in (sites, domains):
            done = asked._replace(site=site or asked.site, domain=domain or asked.domain)
            _note(connection, _CLOCK, json.dumps(done))
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
    if domains == MOST:
        _note(connection, _ROUTES, domain)
        return True
    run(connection, "meta_delete", {"key": _ROUTES})
    return False


def _note(connection: apsw.Connection, key: str, value: str) -> None:
    run(connection, "meta_set", {"key": key, "value": value})


def _read(text: object) -> Shift | None:
    """What ``begin_shift`` wrote; None where damage made it something else."""
    try:
        found = Shift(*json.loads(str(text)))
    except (ValueError, TypeError):
        return None
    whole = all(type(number) is int and abs(number) < 1 << 62 for number in found[:-1])
    return found if whole and found.domain == _digits(found.domain) else None


def _digits(text: object) -> str:
    """A name's digits; none, where the row begins, if damage made it something else."""
    try:
        return bytes.fromhex(str(text)).hex().upper()
    except ValueError:
        return ""
