"""Trains of messages over reused connections that their host breaks off, refuses or limits.

Contract. ``train`` sends messages to one domain, waits for the end of all and compares: each
recipient's outcome, each attempt that was not a delivery, and what the host had at the dot: every
content with the recipients of its own message and of no other, once for each that was delivered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.servers_judge import Trial, ended, recipients, words
from tests.hostile.stand import Stand
from tests.support.engine import Tables, mail

SETTINGS: Tables = {
    "delivery": {"max_connections": 400},
    "sites": {"connections": 1, "idle": "1s"},
    "timeouts": {"dot": "4s", "rset": "3s", "quit": "1s"},
}
"""One connection a site, so that it is reused; what is deferred goes again after a second."""
OFFERS = {
    "pipelined": Script(),
    "serial": Script(pipelining=False),
    "BDAT": Script(chunking=True),
}
TAKEN = "delivered, 1 charged"
BOUNCED = "failed bounced, 1 charged"


class Came(NamedTuple):
    """What came of a train.

    Args:
        outcomes: how many recipients ended in which words.
        attempts: how many attempts were no deliveries, by what they were.
        witnessed: what the host objects to.
        suspended: how often the site was suspended.
        ladder: what is remembered of PIPELINING and of CHUNKING.
    """

    outcomes: dict[str, int]
    attempts: dict[str, int]
    witnessed: str = ""
    suspended: int = 0
    ladder: tuple[str, str | None] = ("full", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Messages for one domain.

    Args:
        name: of the trial.
        script: of the host.
        local: a local part for each message.
        wanted: what is to come of it.
        finds: what more the host is asked, behind the train.
    """

    name: str
    script: Script
    local: Sequence[str]
    wanted: Came
    finds: Callable[[SMTPServer], str] = field(default=lambda _host: "")


def run(stand: Stand, trains: Iterable[Train]) -> Iterator[Trial]:
    """All of them at once, each at a domain and a host of its own."""
    placed = []
    for train in trains:
        domain, (host,) = stand.network.site(train.script)
        placed.append((train, domain, host))
    ids: list[str] = []
    for train, domain, _ in placed:
        ids += stand.engine.ms.send_many(
            mail(f"{local}@{domain}", f"{local}.too@{domain}") for local in train.local
        )
    ended(stand, ids)
    found = recipients(stand, ids)
    for train, domain, host in placed:
        own = {address: row for address, row in found.items() if address.endswith(f"@{domain}")}
        delivered = {address for address, row in own.items() if row.status == "delivered"}
        seen = Came(
            outcomes=dict(Counter(map(words, own.values()))),
            attempts=_attempts(stand, domain),
            witnessed=witnessed(host, delivered, doubted=_doubted(stand, domain))
            or train.finds(host),
            suspended=_suspended(stand, domain),
            ladder=_ladder(stand, domain),
        )
        yield Trial(name=train.name, wanted=train.wanted, seen=seen)


def witnessed(host: SMTPServer, delivered: set[str], *, doubted: set[str]) -> str:
    """What a host objects to: recipients of one message in another's, copies, losses."""
    copies: Counter[str] = Counter()
    for transaction in host.transactions:
        heads = {name.partition("@")[0].partition(".")[0] for name, _ in transaction.recipients}
        if len(heads) > 1 and transaction.dot is not None:  # who refuses RSET adds them up
            return f"recipients of several messages in one transaction: {sorted(heads)}"
        if transaction.dot is not None and transaction.dot.kept:
            copies.update(transaction.dot.recipients)
    for address in sorted(copies.keys() | delivered):
        most = 2 if address in doubted else 1
        if not (address in delivered) <= copies[address] <= most:
            return f"{address}: {copies[address]} copies"
    return ""


def _attempts(stand: Stand, domain: str) -> dict[str, int]:
    rows = stand.engine.rows(
        "SELECT verdict, reason, stage, reply_code FROM attempts"
        " WHERE recipient LIKE ? AND verdict <> 'delivered'",
        f"%@{domain}",
    )
    said = (f"{row.verdict} {row.reason} {row.stage} {row.reply_code or ''}" for row in rows)
    return dict(Counter(text.strip() for text in said))


def _doubted(stand: Stand, domain: str) -> set[str]:
    rows = stand.engine.rows(
        "SELECT recipient FROM attempts WHERE recipient LIKE ? AND in_doubt", f"%@{domain}"
    )
    return {row.recipient for row in rows}


def _suspended(stand: Stand, domain: str) -> int:
    rows = stand.engine.rows(
        "SELECT 1 FROM events WHERE type = 'site.suspended' AND detail LIKE ?", f"%.{domain}:%"
    )
    return len(rows)


def _ladder(stand: Stand, domain: str) -> tuple[str, str | None]:
    sql = "SELECT pipelining, chunking FROM destinations WHERE site LIKE ?"
    (found,) = stand.engine.rows(sql, f"%.{domain}:%")
    return found.pipelining, found.chunking
