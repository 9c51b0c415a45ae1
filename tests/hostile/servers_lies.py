"""Replies that are no answers: consent where none is due, go-ahead in the wrong place, unasked 421.

Contract. Every host here is an ``Odd`` one, which reads everything outside a content as commands.
So in all cases beside the verdict the same is wanted: no line of a message was read as a command,
and a content reached nobody who is not told delivered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.hostile.odd import NORMAL, SERIAL, Answer, Heard, Odd, Say
from tests.hostile.servers_judge import Trial, family, recipients, settled, words
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import mail
from tests.support.trial import Plan

NOT_NOW = "deferred remote, 1 charged"
HOST = "deferred remote, 0 charged"
TAKEN = "delivered, 1 charged"
BOUNCED = "failed bounced, 1 charged"
BYE = "421 4.3.2 closing\r\n"
EVERYTHING = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "dot", "RSET", "QUIT", "other")
BOTH = {"pipelined": NORMAL, "serial": SERIAL}
NO_GO = (200, 211, 220, 250, 251, 300, 334, 350, 353, 355, 399)
"""Replies to DATA that are not the 354."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """One way to lie.

    Args:
        case: what it does.
        answers: in place of the right ones.
        wanted: of each recipient.
        taken: contents that reach their end, other than empty ones for nobody.
        rung: what is remembered of a site that offers PIPELINING.
        normal: ways of offering.
        recipients: of the message.
    """

    case: str
    answers: Mapping[str, Answer]
    wanted: str
    taken: int = 0
    rung: str = "full"
    normal: Mapping[str, Mapping[str, Answer]] = field(default_factory=lambda: BOTH)
    recipients: int = 3


class Ended(NamedTuple):
    """All that is compared of one host."""

    recipients: list[str]
    strays: list[str]
    contents: int
    pipelining: str


def _all(text: str, *but: str) -> dict[str, Answer]:
    return {place: text for place in EVERYTHING if place not in but}


def _then_bye(place: str) -> dict[str, Answer]:
    text = NORMAL[place]
    assert isinstance(text, str)
    return {place: Say(text=text + BYE, then="close")}


def _first_rcpt_bye(heard: Heard, _line: str) -> Say:
    if heard.counts["RCPT"] == 1:
        return Say(text=f"250 2.1.5 ok\r\n{BYE}", then="close")
    return Say(text="250 2.1.5 ok\r\n")


_SERIAL = {"serial": SERIAL}
_NOBODY = {"RCPT": "550 5.1.1 no\r\n", "DATA": "554 5.5.1 nobody\r\n"}
LIES = (
    # without a 354 nothing of a content leaves; a flight that goes wrong so ends pipelining there
    Lie(case="250 to everything", answers=_all("250 ok\r\n", "greeting"), wanted=NOT_NOW,
        normal=_SERIAL),
    Lie(case="250 to every command behind EHLO", answers=_all("250 ok\r\n", "greeting", "EHLO"),
        wanted=NOT_NOW, rung="none"),
    *(
        Lie(case="another 2xx or 3xx in place of the 354", answers={"DATA": f"{code} go on\r\n"},
            wanted=NOT_NOW, rung="none")
        for code in NO_GO
    ),
    Lie(case="354 to RCPT", answers={"RCPT": "354 go on\r\n"}, wanted=NOT_NOW, rung="none"),
    Lie(case="354 to MAIL", answers={"MAIL": "354 go on\r\n"}, wanted=NOT_NOW, rung="none"),
    Lie(case="354 in place of the greeting or of EHLO's reply",
        answers={"greeting": "354 go on\r\n"}, wanted=HOST),
    Lie(case="354 in place of the greeting or of EHLO's reply",
        answers={"EHLO": "354 go on\r\n", "other": "354 go on\r\n"}, wanted=HOST),
    Lie(case="354 to everything", answers=_all("354 go on\r\n"), wanted=HOST),
    # nobody to go to: nothing but the lone dot may follow the 354
    Lie(case="354 although every RCPT was refused", answers={"RCPT": "550 5.1.1 no\r\n"},
        wanted=BOUNCED),
    Lie(case="354 although every RCPT was deferred", answers={"RCPT": "450 4.2.1 no\r\n"},
        wanted=NOT_NOW),
    Lie(case="354 although every RCPT was refused, then 554 to the lone dot",
        answers={"RCPT": "550 5.1.1 no\r\n", "dot": "554 5.5.1 no recipients\r\n"},
        wanted=BOUNCED),
    # 221 to the QUIT behind it shows that no reply was one too many (decision 0035)
    *(
        Lie(case="a 4xx or 5xx to RSET behind recipients that were all refused",
            answers={**_NOBODY, "RSET": f"{code} no\r\n"}, wanted=BOUNCED)
        for code in (450, 500, 502)
    ),
    # a refusal at DATA behind taken recipients is proved by QUIT, or asked for again in lock step
    *(
        Lie(case="554 to DATA behind recipients that were all taken", answers={"DATA": f"554 {no}"},
            wanted=BOUNCED)
        for no in ("5.7.1 no\r\n", "5.1.1 nobody\r\n", "no\r\n")
    ),
    Lie(case="554 to DATA behind taken recipients, and a close", wanted=BOUNCED, rung="none",
        answers={"DATA": Say(text="554 5.7.1 no\r\n", then="close")}),
    Lie(case="554 to DATA behind taken recipients, and a close", wanted=BOUNCED, rung="none",
        answers={"DATA": Say(text=f"554 5.7.1 no\r\n{BYE}", then="close")}),
    Lie(case="554 to DATA behind taken recipients, and another 2xx to QUIT", wanted=NOT_NOW,
        answers={"DATA": "554 5.7.1 no\r\n", "QUIT": "250 2.0.0 bye\r\n"}, rung="none"),
    # else it cannot be told: nobody bounces by it
    *(
        Lie(case="a 5xx to RSET behind refused recipients, and no 221 to QUIT", rung="none",
            answers={**_NOBODY, "RSET": "502 no\r\n", "QUIT": said}, wanted=NOT_NOW)
        for said in ("250 ok\r\n", "502 no\r\n", BYE, Say(then="close"), Say(then="reset"))
    ),
    # 421 that nobody asked for
    Lie(case="an unasked 421 behind the greeting or EHLO's reply", answers=_then_bye("greeting"),
        wanted=HOST),
    Lie(case="an unasked 421 behind the greeting or EHLO's reply", answers=_then_bye("EHLO"),
        wanted=HOST, normal={"pipelined": NORMAL}),
    Lie(case="an unasked 421 behind MAIL's, the first RCPT's or DATA's reply",
        answers=_then_bye("MAIL"), wanted=NOT_NOW),
    Lie(case="an unasked 421 behind MAIL's, the first RCPT's or DATA's reply",
        answers={"RCPT": _first_rcpt_bye}, wanted=NOT_NOW),
    Lie(case="an unasked 421 behind MAIL's, the first RCPT's or DATA's reply",
        answers=_then_bye("DATA"), wanted=NOT_NOW),
    Lie(case="an unasked 421 behind the reply to the content", answers=_then_bye("dot"),
        wanted=TAKEN, taken=1),
    Lie(case="250 to the content, then RST", wanted=TAKEN, taken=1,
        answers={"dot": Say(text="250 2.0.0 taken\r\n", then="reset")}),
)  # fmt: skip


def run(stand: Stand, plan: Plan) -> Iterator[Row]:
    """A row for each case."""
    by_case: dict[str, list[Lie]] = {}
    for lie in LIES:
        by_case.setdefault(lie.case, []).append(lie)
    for case, lies in by_case.items():
        yield row(stand, case, lies)


def row(stand: Stand, case: str, lies: list[Lie]) -> Row:
    """Lies of one kind, all at once."""
    told = f"{lies[0].wanted}; no line of content as a command"
    if any(lie.rung != "full" for lie in lies):
        told += "; from then on without pipelining"
    return family(stand, case, told, lambda: bring(stand, lies))


def bring(stand: Stand, lies: list[Lie]) -> Iterator[Trial]:
    """One message to each."""
    network, placed, messages = stand.network, [], []
    for lie in lies:
        for offer, normal in lie.normal.items():
            odd, domain = Odd(lie.answers, normal), network.new_domain()
            network.route(domain, [network.listen(odd.connect)])
            placed.append((lie, offer, odd, domain))
            names = [f"r{number}@{domain}" for number in range(lie.recipients)]
            messages.append(mail(*names, text="Good morning.\nQUOTH the raven.\n"))
    ids = list(stand.engine.ms.send_many(messages))
    settled(stand, ids)
    rows = recipients(stand, ids)
    for lie, offer, odd, domain in placed:
        seen = Ended(
            recipients=[words(rows[f"r{number}@{domain}"]) for number in range(lie.recipients)],
            strays=odd.strays,
            contents=len([content for _, content in odd.contents if content]),
            pipelining=_rung(stand, domain),
        )
        wanted = Ended(
            recipients=[lie.wanted] * lie.recipients,
            strays=[],
            contents=lie.taken,
            pipelining=lie.rung if offer == "pipelined" else "full",
        )
        yield Trial(name=f"{lie.case}, {offer}", wanted=wanted, seen=seen)


def _rung(stand: Stand, domain: str) -> str:
    sql = "SELECT pipelining FROM destinations WHERE site LIKE ?"
    (found,) = stand.engine.rows(sql, f"%.{domain}:%")
    return str(found.pipelining)
