"""Honest servers from Debian: mixed mail through each by the real engine, byte for byte the same.

A row is one kind of mail through one server. Wanted is delivery, each recipient once, of just the
octets that were handed in; where a server cannot take a kind (no SMTPUTF8, no quoted local parts)
the documented verdict. A complaint in the server's own log is a finding, whatever came of the mail.
Then what each refuses: recipients, contents, sizes, TLS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain

from tests.hostile import honest_peers as peers
from tests.hostile.honest_judge import differences, filed, missing
from tests.hostile.honest_kinds import LARGE_KIND, mixed
from tests.hostile.honest_letters import Letter, to
from tests.hostile.honest_peers import House
from tests.hostile.honest_refusals import (
    OTHERS,
    content_refused_for_now,
    lone_refused,
    many_refused,
    refused_at_send,
    some_refused,
    too_large,
)
from tests.hostile.honest_sending import outcomes, send, sessions, waiting
from tests.hostile.stand import Stand, standing
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S
from tests.support.postfix import Received
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

SAME = "delivered, the same octets"
Start = Callable[[str, int, str, peers.TLS | None], House]


def run(plan: Plan) -> Iterator[Row]:
    """All kinds through all servers; the long form has two set-ups of Postfix and Exim."""
    # one connection a server; idle longer than any pause of ours, or no longer than need be
    sites = {"connections": 1, "idle": "5s" if plan.long else "1s"}
    with standing(plan.folder, {"sites": sites}) as stand, ExitStack() as opened:
        yield refused_at_send(stand)
        for house in _houses(stand, plan, opened):
            yield from _all_of(stand, house, plan)
        yield from handshakes_that_fail(stand, opened)
        if plan.long:
            yield few_a_connection(stand, opened)


def _all_of(stand: Stand, house: House, plan: Plan) -> Iterator[Row]:
    mail = mixed(house.domain, plan.seed, long=plan.long)
    for kind, letters in mail.items():
        yield through(stand, house, kind, letters)
    yield some_refused(stand, house)
    if plan.long or house.bears == "full":  # the first flight of several costs half a minute
        yield lone_refused(stand, house)
    yield many_refused(stand, house)
    yield too_large(stand, house)
    if house.later is not None:
        yield content_refused_for_now(stand, house, house.later)
    if plan.long:
        yield borne(stand, house)
    yield said_by_its_log(stand, house, mail)
    house.server.close()


def _started(stand: Stand, opened: ExitStack, start: Start, *, secured: bool = True) -> House:
    """A server for a domain of its own, closed with the others."""
    network = stand.network
    domain, address = network.new_domain(), loopback_addresses()[0]
    network.route(domain, [address])
    issued = network.authority.issue_cert(f"mx1.{domain}")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    tls = (chain, issued.private_key_pem.bytes()) if secured else None
    house = start(address, network.port, domain, tls)
    opened.callback(house.server.close)
    return house


def _houses(stand: Stand, plan: Plan, opened: ExitStack) -> Iterator[House]:
    """One server after the other."""

    def chasquid(address: str, port: int, domain: str, tls: peers.TLS | None) -> House:
        assert tls is not None
        letters = chain.from_iterable(mixed(domain, plan.seed, long=plan.long).values())
        names = {one.rpartition("@")[0] for letter in letters for one in letter.recipients}
        known = tuple(sorted(name for name in {*names, OTHERS} if '"' not in name))
        return peers.chasquid(address, port, domain, tls, known)

    yield _started(stand, opened, peers.postfix)
    yield _started(stand, opened, peers.exim)
    yield _started(stand, opened, chasquid)
    yield _started(stand, opened, peers.opensmtpd, secured=False)
    if plan.long:
        yield _started(stand, opened, peers.postfix, secured=False)
        yield _started(stand, opened, peers.exim, secured=False)


def through(
    stand: Stand, house: House, kind: str, letters: list[Letter], *, refusing: bool = False
) -> Row:
    """Send letters of a kind through a server and judge what came of them.

    Args:
        refusing: it may refuse commands on the way.
    """
    wanted = house.exceptions.get(kind, SAME)
    findings: list[str] = []
    logged = len(house.log())

    def all_there() -> dict[str, list[Received]] | None:
        there = filed(house.received())
        return (
            None if any(missing(one, there.get(one.message_id, ())) for one in letters) else there
        )

    def tried() -> str:
        ids = send(stand, letters)
        if wanted == peers.NO_TLS:
            return waiting(stand, ids)
        words = outcomes(stand, ids)
        if words != {"delivered"}:
            return " / ".join(sorted(words))
        there = eventually(all_there, DEADLINE_S, what=f"every letter at {house.name}")
        for id, letter in zip(ids, letters, strict=True):
            findings.extend(differences(letter, stand.engine.ms.raw(id), there[letter.message_id]))
        if findings:
            return "delivered, not as it was sent"
        findings.extend(sessions(stand, house, ids))
        return SAME

    row = stand.measured(f"{house.name}: {kind}", wanted, tried)
    complaints = house.complaints(house.log()[logged:], refusing=refusing or wanted != SAME)
    return replace(row, tried=len(letters), findings=(*row.findings, *findings, *complaints))


def borne(stand: Stand, house: House) -> Row:
    """Where the ladder stands after several messages were to be sent at once."""

    def tried() -> str:
        (row,) = stand.engine.rows(
            "SELECT d.pipelining FROM destinations AS d JOIN domains AS n ON n.site = d.site"
            " WHERE n.name = ?", house.domain
        )  # fmt: skip
        return f"pipelining {row.pipelining}"

    wanted = f"pipelining {house.bears}"
    return stand.measured(f"{house.name}: what it bears, by the ladder", wanted, tried)


def said_by_its_log(stand: Stand, house: House, mail: dict[str, list[Letter]]) -> Row:
    """Once the last session ended: how contents came, and what it has to complain of.

    Where it offers CHUNKING, by BDAT: but for those above ``[delivery] chunking_max_size``.
    """
    sent, large = sum(map(len, mail.values())), len(mail[LARGE_KIND])
    wanted = f"BDAT, DATA for {large}" if house.chunked else "DATA"
    wanted += ", no complaint"
    complaints: list[str] = []

    def tried() -> str:
        eventually(
            lambda: (
                not stand.engine.rows(
                    "SELECT 1 FROM sessions WHERE host = ? AND ended_ms IS NULL",
                    f"mx1.{house.domain}",
                )
            ),
            DEADLINE_S,
            what="the end of the sessions",
        )
        house.server.stop()
        log = house.log()
        complaints.extend(house.complaints(log, refusing=True))
        data, bdat = house.framing(log)
        assert data + bdat >= sent // 2, f"its log tells of {data + bdat} contents"
        told = (f"BDAT, DATA for {data}" if data else "BDAT") if bdat else "DATA"
        return f"{told}, {'complaints' if complaints else 'no complaint'}"

    row = stand.measured(f"{house.name}: its log, of all of it", wanted, tried)
    return replace(row, tried=sent, findings=(*row.findings, *complaints))


def handshakes_that_fail(stand: Stand, opened: ExitStack) -> Iterator[Row]:
    """Debian 12's OpenSMTPD offers STARTTLS and cannot do it (its OpenSSL is too new for it)."""
    house = _started(stand, opened, peers.opensmtpd)
    letter = to(house.domain, "handshake", OTHERS)
    broken = "OpenSMTPD 6.8.0p2" in house.server.log()
    wanted = "deferred tls, 0 charged, site suspended" if broken else "delivered"

    def tried() -> str:
        (id,) = send(stand, [letter])
        if not broken:
            return " / ".join(sorted(outcomes(stand, [id])))
        (row,) = stand.engine.until(
            "SELECT r.status, r.reason, r.attempts FROM recipients AS r JOIN destinations AS d"
            " ON d.site = r.site WHERE r.message_id = ?"
            " AND r.status = 'deferred' AND d.suspended_until_ms IS NOT NULL", id
        )  # fmt: skip
        stand.engine.ms.cancel(id)
        return f"{row.status} {row.reason}, {row.attempts} charged, site suspended"

    yield stand.measured(f"{house.name}: offered, and every handshake fails", wanted, tried)


def few_a_connection(stand: Stand, opened: ExitStack) -> Row:
    """A limit that OpenSMTPD does not announce (100 unless it is set): found out, then kept."""

    def limited(address: str, port: int, domain: str, tls: peers.TLS | None) -> House:
        return peers.opensmtpd(address, port, domain, tls, mails=20)

    house = _started(stand, opened, limited, secured=False)
    letters = [to(house.domain, f"limit{number}", OTHERS) for number in range(45)]
    case = "20 messages a connection, not announced"
    return through(stand, house, case, letters, refusing=True)
