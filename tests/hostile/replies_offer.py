"""EHLO replies that lie: extensions offered and broken, or not offered to mail that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tests.hostile.rawhost import OFFER, UNKNOWN, Act, Connection, Manners, close, silence, then
from tests.hostile.replies_stage import (
    BOUNCED,
    DELIVERED,
    DOUBT,
    HOST,
    LATER,
    Sent,
    Trial,
    judged,
    wait,
)
from tests.hostile.replies_words import ESCAPES
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.trial import Plan

TOO_LARGE = "failed too_large, 1 charged"
UNSUPPORTED = "failed unsupported, 1 charged"
UTF8 = "gr\u00fc\u00dfe"
EIGHT_BIT = (
    b"From: a@sender.test\r\nTo: b@rcpt.test\r\nSubject: hello\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\nSch\xc3\xb6nen Gru\xc3\x9f.\r\n"
)
CHUNKING = (*OFFER, "CHUNKING")

GARBLED: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"250\r\n", DELIVERED),
    "a space": (b"250 \r\n", DELIVERED),
    "empty lines": (b"250-\r\n250-\r\n250 \r\n", DELIVERED),
    "keywords and no name": (b"250-PIPELINING\r\n250 SIZE\r\n", DELIVERED),
    "keywords in lower case": (b"250-mx.test\r\n250-pipelining\r\n250 size 1000000\r\n", DELIVERED),
    "ESC in keywords": (
        b"250-mx.test" + ESCAPES + b"\r\n250-" + ESCAPES + b"\r\n250 X\r\n", DELIVERED,
    ),
    "UTF-8 garbage": (b"250-\xff\xfe\r\n250-\xc3\x28 \xff\r\n250 X-\xe2\x80\xae\r\n", DELIVERED),
    "90 unknown keywords": (
        b"250-mx.test\r\n" + b"".join(b"250-X%d A=B\r\n" % n for n in range(89)) + b"250 Y\r\n",
        DELIVERED,
    ),
    "10,000 lines": (b"250-X A=B\r\n" * 10_000 + b"250 Y\r\n", HOST),
    "a keyword of 64 kB": (b"250-mx.test\r\n250 " + b"K" * 65536 + b"\r\n", HOST),
    "10,000 parameters": (b"250-mx.test\r\n250 AUTH " + b"X " * 10_000 + b"\r\n", HOST),
    "1,900 mechanisms": (b"250-mx.test\r\n250 AUTH " + b"X1 Y " * 800 + b"\r\n", DELIVERED),
}  # fmt: skip
LIMITS = (
    "RCPTMAX=0", "RCPTMAX=-1", "RCPTMAX=1", "RCPTMAX=10000000000000000000000", "RCPTMAX=abc",
    "RCPTMAX=", "MAILMAX=0", "MAILMAX=1", "RCPTDOMAINMAX=0", "RCPTDOMAINMAX=1 MAILMAX=1 RCPTMAX=1",
    "RCPTMAX=\u0661", "=5", "X" * 500 + "=1", "RCPTMAX=1 RCPTMAX=1000",
)  # fmt: skip
SIZES = {
    "SIZE 10": TOO_LARGE, "SIZE 0": DELIVERED, "SIZE": DELIVERED, "SIZE -5": DELIVERED,
    "SIZE abc": DELIVERED, "SIZE 1000000 5": DELIVERED, "SIZE " + "9" * 30: DELIVERED,
    "SIZE " + "9" * 4000: DELIVERED, "SIZE 1e3": DELIVERED, "SIZE \u0661": DELIVERED,
}  # fmt: skip


def _lockstep(rung: str) -> Callable[[Stand, Sent], str | None]:
    """The site stands on this rung; the next attempt goes well, one command at a time."""

    def look(stand: Stand, sent: Sent) -> str | None:
        return _then(stand, sent, rung, DELIVERED.replace("1 charged", "2 charged"))

    return look


def _then(stand: Stand, sent: Sent, rung: str, wanted: str) -> str | None:
    (row,) = stand.engine.rows(
        "SELECT d.pipelining FROM destinations d JOIN domains o ON o.site = d.site"
        " WHERE o.name = ?", sent.domain,
    )  # fmt: skip
    if row.pipelining != rung:
        return f"the site stands on {row.pipelining}, not {rung}"
    again = _again(stand, sent)
    return None if again == wanted else f"the next attempt: {again}"


def _again(stand: Stand, sent: Sent) -> str:
    """Another attempt, now; its outcome."""
    sql = "SELECT count(*) AS n FROM attempts WHERE message_id = ?"
    before = stand.engine.rows(sql, sent.id)[0].n
    connections = sent.host.connections
    # what waits an hour is due now: for the recipient, for its site
    stand.engine.ms.retry(sent.id)
    stand.engine.tamper("UPDATE site SET suspended_until_ms = 0")
    stand.engine.until(
        "SELECT 1 WHERE (SELECT count(*) FROM attempts WHERE message_id = ?) > ?"
        " OR (SELECT status FROM recipients WHERE message_id = ?) = 'delivered'",
        sent.id, before, sent.id,
    )  # fmt: skip
    assert sent.host.connections > connections
    return wait(stand, sent)


async def _one_at_a_time(connection: Connection, after: Act) -> None:
    """Answers MAIL where nothing came with it."""
    if connection.ahead:
        await connection.perform(after)
    else:
        await connection.write(b"250 2.1.0 ok\r\n")


def _fussy(after: Act) -> Act:
    async def act(connection: Connection) -> None:
        await _one_at_a_time(connection, after)

    return act


def _cut_short(stand: Stand, sent: Sent) -> str | None:
    """Twice is enough: then it goes well, one command at a time."""
    _again(stand, sent)
    row = stand.engine.rows("SELECT attempts FROM recipients WHERE message_id = ?", sent.id)[0]
    return _then(stand, sent, "none", f"delivered, {row.attempts + 1} charged")


def _told_utf8(_stand: Stand, sent: Sent) -> str | None:
    spoken = [line for line in sent.host.commands if not line.isascii()]
    return f"{spoken[0]!r} was said" if spoken else None


def trials() -> Mapping[tuple[str, str], list[Trial]]:
    """By case and what is wanted."""
    ok = b"250 2.1.0 ok\r\n"
    return {
        ("an EHLO reply garbled", "delivered with what is offered; too long: host trouble"): [
            Trial(name=name, manners=Manners(says={"ehlo": octets}), wanted=wanted)
            for name, (octets, wanted) in GARBLED.items()
        ],
        ("LIMITS of absurd values", "delivered, what is no limit ignored"): [
            Trial(
                name=limit[:40], manners=Manners(offer=(*OFFER, f"LIMITS {limit}")),
                wanted=DELIVERED,
            )
            for limit in LIMITS
        ],
        ("SIZE too small, or none", "failed too_large where it is a number, else delivered"): [
            Trial(
                name=size[:40], manners=Manners(offer=("PIPELINING", "8BITMIME", size)),
                wanted=wanted,
            )
            for size, wanted in SIZES.items()
        ],
        ("SIZE large enough, and refused all the same", "failed too_large"): [
            Trial(
                name=f"{words.decode()} at {stage}",
                manners=Manners(says={
                    "rcpt": b"503 5.5.1 no\r\n", "data": b"503 5.5.1 no\r\n",
                    stage: words + b"\r\n",
                } if stage == "mail" else {stage: words + b"\r\n"}),
                wanted=TOO_LARGE,
            )
            for stage, words in (
                ("mail", b"552 too big"), ("mail", b"552 5.3.4 too big"),
                ("data", b"552 5.3.4 too big"), ("dot", b"552 5.3.4 too big"),
                ("dot", b"554 5.3.4 too big"),
            )
        ],
        ("SMTPUTF8 not offered to such an address", "failed unsupported, nothing said"): [
            Trial(
                name=" ".join(offer) or "nothing", manners=Manners(offer=offer), local=UTF8,
                wanted=UNSUPPORTED, also=_told_utf8,
            )
            for offer in (("PIPELINING", "8BITMIME", "SIZE"), ("8BITMIME",), ())
        ],
        ("SMTPUTF8 offered, a close on it", "as any close: at MAIL uncharged, then deferred"): [
            Trial(
                name="at MAIL", local=UTF8, wanted=HOST,
                manners=Manners(says={"mail": close}, offer=("8BITMIME", "SMTPUTF8")),
            ),
            Trial(
                name="at RCPT", local=UTF8, wanted=LATER,
                manners=Manners(says={"rcpt": close}, offer=("8BITMIME", "SMTPUTF8")),
            ),
        ],
        ("SIZE= refused, which SIZE stood for", "failed bounced"): [
            Trial(
                name=words.decode(), wanted=BOUNCED,
                manners=Manners(says={
                    "mail": words + b"\r\n", "rcpt": b"503 5.5.1 no\r\n",
                    "data": b"503 5.5.1 no\r\n",
                }),
            )
            for words in (b"555 5.5.4 SIZE= unknown", b"501 5.5.2 syntax")
        ],
        ("8BITMIME not offered to such content", "failed unsupported, nothing said"): [
            Trial(
                name=" ".join(offer) or "nothing", manners=Manners(offer=offer), raw=EIGHT_BIT,
                wanted=UNSUPPORTED,
            )
            for offer in (("PIPELINING", "SMTPUTF8", "SIZE"), ("SIZE",), ())
        ],
        ("SMTPUTF8, 8BITMIME offered and refused", "failed bounced"): [
            Trial(
                name="SMTPUTF8 at RCPT", local=UTF8, wanted=BOUNCED,
                manners=Manners(says={"rcpt": b"553 5.6.7 no UTF-8\r\n"}),
            ),
            Trial(
                name="SMTPUTF8 at MAIL", local=UTF8, wanted=BOUNCED,
                manners=Manners(says={
                    "mail": b"555 5.5.4 no SMTPUTF8\r\n", "rcpt": b"503 5.5.1 no\r\n",
                    "data": b"503 5.5.1 no\r\n",
                }),
            ),
            Trial(
                name="SMTPUTF8 at the dot", local=UTF8, wanted=BOUNCED,
                manners=Manners(says={"dot": b"554 5.6.9 no UTF-8 in a header\r\n"}),
            ),
            Trial(
                name="8BITMIME at MAIL", raw=EIGHT_BIT, wanted=BOUNCED,
                manners=Manners(says={
                    "mail": b"555 5.5.4 no BODY\r\n", "rcpt": b"503 5.5.1 no\r\n",
                    "data": b"503 5.5.1 no\r\n",
                }),
            ),
        ],
        ("PIPELINING offered, a flight read by its head only", "deferred; then in lock step"): [
            Trial(name="deaf", manners=Manners(deaf=True), wanted=LATER, also=_lockstep("none"))
        ],
        ("PIPELINING offered, a flight closed on", "twice in vain; then in lock step"): [
            Trial(
                name="unanswered", manners=Manners(says={"mail": _fussy(close)}), wanted=HOST,
                also=_cut_short,
            ),
            Trial(
                name="answered once", manners=Manners(says={"mail": _fussy(then(ok, close))}),
                wanted=LATER, also=_cut_short,
            ),
        ],
        ("PIPELINING offered, silence at a flight", "twice in vain; then in lock step"): [
            Trial(
                name="unanswered", manners=Manners(says={"mail": _fussy(silence)}), wanted=LATER,
                also=_cut_short,
            ),
        ],
        ("PIPELINING offered, RCPT refused as out of sync", "deferred; then in lock step"): [
            Trial(
                name="improper pipelining",
                manners=Manners(says={"rcpt": _fussy(b"503 5.5.0 improper pipelining\r\n")}),
                wanted=LATER, also=_lockstep("none"),
            )
        ],
        ("PIPELINING offered, a flight refused as out of sync", "delivered in lock step"): [
            Trial(
                name=words.decode(),
                manners=Manners(says={"mail": _fussy(then(words + b"\r\n", close))}),
                wanted=DELIVERED,
            )
            for words in (b"503 5.5.0 improper pipelining", b"554 SMTP synchronization error")
        ],
        ("CHUNKING offered, BDAT unknown", "delivered by DATA"): [
            Trial(
                name="500", manners=Manners(says={"bdat": UNKNOWN}, offer=CHUNKING),
                wanted=DELIVERED,
            ),
            Trial(
                name="502", manners=Manners(says={"bdat": b"502 5.5.1 no\r\n"}, offer=CHUNKING),
                wanted=DELIVERED,
            ),
            Trial(
                name="503", manners=Manners(says={"bdat": b"503 5.5.1 no\r\n"}, offer=CHUNKING),
                wanted=DELIVERED,
            ),
        ],
        ("CHUNKING offered, BDAT unanswered", "in doubt; the next by DATA"): [
            Trial(
                name=name, manners=Manners(says={"bdat": act}, offer=CHUNKING), wanted=DOUBT,
                also=_by_data,
            )
            for name, act in (("close", close), ("garbage", b"what?\r\n"), ("silence", silence))
        ],
    }  # fmt: skip


def _by_data(stand: Stand, sent: Sent) -> str | None:
    again = _again(stand, sent)
    if not any(line.startswith(b"DATA") for line in sent.host.commands):
        return "no DATA was tried"
    return None if again.startswith("delivered") else f"the next attempt: {again}"


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Each case as a row."""
    for (case, wanted), some in trials().items():
        if plan.long:
            yield judged(stand, case, wanted, some)
        elif case != "PIPELINING offered, silence at a flight":
            short = [trial for trial in some if trial.name != "silence"]
            yield judged(stand, case, wanted, short[:6])
