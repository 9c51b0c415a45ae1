"""Honest servers from Debian: mixed mail through each by the real engine, byte for byte the same.

A row is one kind of mail through one server. Wanted is delivery, each recipient once, of just the
octets that were handed in; where a server cannot take a kind (no SMTPUTF8, no quoted local parts)
the documented verdict. A complaint in the server's own log is a finding, whatever came of the mail.
Then what each refuses: recipients, contents, sizes, TLS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain

from mailstrom.errors import InvalidMessage
from tests.hostile import honest_peers as peers
from tests.hostile.honest_judge import differences, missing
from tests.hostile.honest_letters import FIFTY, LARGE_KIND, NUL, Letter, exceeding, mixed, to
from tests.hostile.honest_peers import House
from tests.hostile.stand import Stand, standing
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

SAME = "delivered, the same octets"
Start = Callable[[str, int, str, peers.TLS | None], House]
OTHERS, REFUSED = "one", peers.UNKNOWN


def run(plan: Plan) -> Iterator[Row]:
    """All kinds through all servers; the long form has two set-ups of Postfix and Exim."""
    # one connection a server; idle longer than any pause of ours, or no longer than need be
    sites = {"connections": 1, "idle": "5s" if plan.long else "1s"}
    with standing(plan.folder, {"sites": sites}) as stand, ExitStack() as opened:
        yield refused_at_send(stand)
        for house in _houses(stand, plan, opened):
            yield from _all_of(stand, house, plan)
        yield from handshakes_that_fail(stand, opened)


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


def through(stand: Stand, house: House, kind: str, letters: list[Letter]) -> Row:
    """Send letters of a kind through a server and judge what came of them."""
    wanted = house.exceptions.get(kind, SAME)
    findings: list[str] = []
    logged = len(house.log())

    def tried() -> str:
        ids = _send(stand, letters)
        if wanted == peers.NO_TLS:
            return _waiting(stand, ids)
        words = _outcomes(stand, ids)
        if words != {"delivered"}:
            return " / ".join(sorted(words))
        eventually(
            lambda: not any(missing(letter, house.received()) for letter in letters),
            DEADLINE_S,
            what=f"every letter at {house.name}",
        )
        received = house.received()
        for id, letter in zip(ids, letters, strict=True):
            findings.extend(differences(letter, stand.engine.ms.raw(id), received))
        if findings:
            return "delivered, not as it was sent"
        findings.extend(_sessions(stand, house, ids))
        return SAME

    row = stand.measured(f"{house.name}: {kind}", wanted, tried)
    complaints = house.complaints(house.log()[logged:], refusing=wanted != SAME)
    return replace(row, tried=len(letters), findings=(*row.findings, *findings, *complaints))


def _send(stand: Stand, letters: list[Letter]) -> list[str]:
    return [
        stand.engine.ms.send(
            letter.message, sender=letter.sender, recipients=list(letter.recipients),
            require_tls=letter.require_tls,
        )
        for letter in letters
    ]  # fmt: skip


def _outcomes(stand: Stand, ids: list[str]) -> set[str]:
    """Where the recipients of messages ended: status, reason, doubt in any attempt."""
    words: set[str] = set()
    for id in ids:
        stand.engine.final(id)
        for row in stand.engine.rows(
            "SELECT status, reason FROM recipients WHERE message_id = ?", id
        ):
            words.add(f"{row.status} {row.reason or ''}".strip())
        if any(row.in_doubt for row in stand.engine.attempts(id)):
            words.add("in doubt")
    return words


def _waiting(stand: Stand, ids: list[str]) -> str:
    """Deferred for want of TLS; cancelled, so that nothing goes on trying."""
    told = set()
    for id in ids:
        (row,) = stand.engine.until(
            "SELECT status, reason FROM recipients"
            " WHERE message_id = ? AND status = 'deferred' AND reason IS NOT NULL", id
        )  # fmt: skip
        told.add(f"{row.status} {row.reason}")
        stand.engine.ms.cancel(id)
    return " / ".join(sorted(told))


def _sessions(stand: Stand, house: House, ids: list[str]) -> list[str]:
    """What is wrong with the sessions that took these: TLS as offered, the fifty on one."""
    rows = stand.engine.rows(
        "SELECT DISTINCT s.id, s.tls_reached, s.messages, s.tls_peer FROM sessions AS s"
        " JOIN attempts AS a ON a.session_id = s.id"
        " WHERE a.message_id IN (SELECT value FROM json_each(?))",
        json.dumps(ids),
    )
    level = "encrypted" if house.secured else "none"
    wrong = [f"TLS reached: {row.tls_reached}" for row in rows if row.tls_reached != level]
    if len(ids) >= FIFTY and len(rows) > 1:
        wrong.append(f"{len(ids)} letters took {len(rows)} connections")
    return wrong


def refused_at_send(stand: Stand) -> Row:
    """A NUL never gets as far as a server."""

    def tried() -> str:
        try:
            stand.engine.ms.send(NUL, recipients=["one@nul.test"])
        except InvalidMessage as error:
            return f"refused at send: {error.rule}"
        return "accepted"

    return stand.measured("none of them: a NUL octet", "refused at send: nul", tried)


def some_refused(stand: Stand, house: House) -> Row:
    """One recipient each is refused for good, for now, and taken."""
    codes = house.refuses
    words = {5: "failed", 4: "deferred"}
    wanted = ", ".join(["one: delivered 250", *(
        f"{name}: {words[code // 100]} {code}" for name, code in codes.items()
    )])  # fmt: skip
    letter = to(house.domain, "refused", "one", *codes)

    def tried() -> str:
        (id,) = _send(stand, [letter])
        rows = stand.engine.until(
            "SELECT recipient, verdict, reply_code, in_doubt FROM attempts"
            " WHERE message_id = ? GROUP BY recipient HAVING id = min(id) ORDER BY id", id,
            count=len(letter.recipients),
        )  # fmt: skip
        stand.engine.ms.cancel(id)
        told = {
            row.recipient.partition("@")[0]: f"{row.verdict} {row.reply_code}"
            f"{' in doubt' if row.in_doubt else ''}" for row in rows
        }  # fmt: skip
        return ", ".join(f"{name}: {told[name]}" for name in ("one", *codes))

    return _refusing(stand, house, "some recipients refused", wanted, tried)


def lone_refused(stand: Stand, house: House) -> Row:
    """Messages whose only recipient is unknown, between others: no connection is lost over them."""
    names = ("one", "no", "one", "no0", "no1", "one")
    letters = [to(house.domain, f"lone{n}", name) for n, name in enumerate(names)]
    wanted = "3 delivered, 3 failed bounced"

    def tried() -> str:
        ids = _send(stand, letters)
        words: Counter[str] = Counter()
        for id in ids:
            words.update(_outcomes(stand, [id]))
        return ", ".join(f"{words[word]} {word}" for word in sorted(words))

    row = _refusing(stand, house, "lone recipients refused between others", wanted, tried)
    return replace(row, tried=len(letters))


def many_refused(stand: Stand, house: House) -> Row:
    """Nine of ten are unknown: those fail and one has it, however often a server loses patience."""
    names = [*(f"no{number}" for number in range(REFUSED)), OTHERS]
    letter = to(house.domain, "unknown", *names)

    def tried() -> str:
        (id,) = _send(stand, [letter])
        stand.engine.final(id)
        found = stand.engine.rows("SELECT * FROM recipients WHERE message_id = ?", id)
        words = Counter(f"{row.status} {row.reason or ''}".strip() for row in found)
        if any(row.in_doubt for row in stand.engine.attempts(id)):
            words["in doubt"] += 1
        return ", ".join(f"{words[word]} {word}" for word in sorted(words))

    wanted = f"1 delivered, {REFUSED} failed bounced"
    return _refusing(stand, house, f"{REFUSED} of {REFUSED + 1} recipients unknown", wanted, tried)


def too_large(stand: Stand, house: House) -> Row:
    """Over the limit, announced or not: for good, and nothing of it in doubt."""
    letter = exceeding(house.domain, peers.LIMIT)

    def tried() -> str:
        return " / ".join(sorted(_outcomes(stand, _send(stand, [letter]))))

    return _refusing(stand, house, "larger than its limit", "failed too_large", tried)


def content_refused_for_now(stand: Stand, house: House, sender: str) -> Row:
    """A 4xx behind the content: later, and nothing is in doubt."""
    letter = to(house.domain, "later", "one", sender=sender)

    def tried() -> str:
        (id,) = _send(stand, [letter])
        row = stand.engine.until("SELECT * FROM attempts WHERE message_id = ?", id)[0]
        stand.engine.ms.cancel(id)
        return (
            f"{row.verdict} {row.reply_code // 100}xx at {row.stage}"
            f"{', in doubt' if row.in_doubt else ''}"
        )

    return _refusing(stand, house, "content refused for now", "deferred 4xx at dot", tried)


def _refusing(stand: Stand, house: House, case: str, wanted: str, tried: Callable[[], str]) -> Row:
    logged = len(house.log())
    row = stand.measured(f"{house.name}: {case}", wanted, tried)
    complaints = house.complaints(house.log()[logged:], refusing=True)
    return replace(row, findings=(*row.findings, *complaints))


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
        (id,) = _send(stand, [letter])
        if not broken:
            return " / ".join(sorted(_outcomes(stand, [id])))
        (row,) = stand.engine.until(
            "SELECT r.status, r.reason, r.attempts FROM recipients AS r JOIN destinations AS d"
            " ON d.site = r.site WHERE r.message_id = ? AND d.suspended_until_ms IS NOT NULL", id
        )  # fmt: skip
        stand.engine.ms.cancel(id)
        return f"{row.status} {row.reason}, {row.attempts} charged, site suspended"

    yield stand.measured(f"{house.name}: offered, and every handshake fails", wanted, tried)
