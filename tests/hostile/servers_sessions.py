"""Hosts that end, limit or forget to end their sessions, while messages are in hand for them.

Contract. Each row sends trains of messages (``servers_trains``) by DATA with pipelining, without,
and by BDAT. What ends a session is never charged to the message behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mailstrom.testing.script import Act, Per, Rule
from tests.hostile.servers_judge import family
from tests.hostile.servers_trains import BOUNCED, OFFERS, TAKEN, Came, Train
from tests.hostile.servers_trains import run as trains
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.trial import Plan

LENGTH = 12
GOOD = tuple(f"m{number}" for number in range(LENGTH))
MIXED = tuple(f"{'no' if number % 3 == 1 else 'yes'}{number}" for number in range(LENGTH))
DOUBTED = "delivered in doubt, 2 charged"

CLOSING = {"code": 421, "text": "closing", "close": True}
ENDINGS = {
    "421 to MAIL": Rule(stage="mail", per=Per.CONNECTION, first=4, **CLOSING),
    "FIN in place of MAIL's reply": Rule(
        stage="mail", act=Act.CLOSE, per=Per.CONNECTION, first=4
    ),
    "RST in place of MAIL's reply": Rule(
        stage="mail", act=Act.RESET, per=Per.CONNECTION, first=4
    ),
    "an unasked 421 behind the reply to content": Rule(
        stage="dot", act=Act.GARBAGE, data="250 2.0.0 taken\r\n421 4.3.2 closing\r\n", close=True,
        per=Per.CONNECTION, first=3,
    ),
    "250 to content, then FIN": Rule(stage="dot", close=True, per=Per.CONNECTION, first=3),
}  # fmt: skip
FLIGHT_LOST = {"FIN in place of MAIL's reply", "RST in place of MAIL's reply",
               "250 to content, then FIN"}  # fmt: skip
QUITS = {
    "silence": {"act": Act.SILENCE},
    "354": {"code": 354},
    "421": {"code": 421},
    "554": {"code": 554},
    "RST": {"act": Act.RESET},
    "FIN": {"act": Act.CLOSE},
}
STANDS = {"421, then FIN,", "FIN", "RST", "silence"}
"""Behind these a refusal without a 354 stands (decision 0035)."""
ASKED = {"450", "554"}
"""Behind these QUIT shows it, where no flight left with the RSET: so not in flights any more."""
RSETS = {
    "220": {"code": 220},
    "354": {"code": 354},
    "450": {"code": 450},
    "554": {"code": 554},
    "421, then FIN,": CLOSING,
    "FIN": {"act": Act.CLOSE},
    "RST": {"act": Act.RESET},
    "garbage": {"act": Act.GARBAGE, "data": "certainly no SMTP\r\n"},
    "silence": {"act": Act.SILENCE},
}


def run(stand: Stand, plan: Plan) -> Iterator[Row]:
    """All rows."""
    for name, rule in ENDINGS.items():
        case = f"{name}, after each third message of a connection"
        wanted = "all delivered once, nobody charged"
        lost = name in FLIGHT_LOST
        if lost:
            wanted += "; of flights by BDAT one in doubt, then none by BDAT"
        yield family(
            stand, case, wanted,
            lambda rule=rule, lost=lost: trains(stand, _offered(rule, flight_lost=lost)),
        )  # fmt: skip
    for name, how in QUITS.items():
        rule = Rule(stage="quit", **how)
        yield family(
            stand, f"{name} in reply to QUIT", "all delivered once, nobody charged",
            lambda rule=rule: trains(stand, _offered(rule)),
        )  # fmt: skip
    refused = Rule(stage="dot", code=554, enhanced="5.7.1", recipient="no*")
    nobody = Rule(stage="rcpt", code=550, enhanced="5.1.1", recipient="no*")
    for name, how in RSETS.items():
        rule = Rule(stage="rset", **how)
        yield family(
            stand, f"{name} in reply to RSET behind a refused content",
            "the refused fail, the others are delivered once, nobody else charged",
            lambda rule=rule: trains(stand, _after_refusal(rule, refused)),
        )  # fmt: skip
        if name in STANDS | ASKED and (plan.long or name != "silence"):
            yield family(
                stand, f"{name} in reply to RSET behind recipients that were all refused",
                "the refused fail, the others are delivered once, nobody else charged",
                lambda rule=rule: trains(stand, _after_refusal(rule, nobody)),
            )  # fmt: skip


def _offered(rule: Rule, *, flight_lost: bool = False) -> Iterator[Train]:
    """
    Args:
        flight_lost: a FIN or RST may come where a flight with its content is out.
    """
    for name, offer in OFFERS.items():
        wanted = Came({TAKEN: 2 * LENGTH}, {})
        if offer.chunking and flight_lost:
            doubted = {TAKEN: 2 * LENGTH - 2, DOUBTED: 2}
            wanted = Came(doubted, {"deferred in_doubt dot": 2}, ladder=("full", "mishandled"))
        elif offer.chunking:
            wanted = wanted._replace(ladder=("full", "proved"))
        yield Train(name=name, script=replace(offer, rules=(rule,)), local=GOOD, wanted=wanted)


def _after_refusal(rule: Rule, refused: Rule) -> Iterator[Train]:
    # each silence is waited for
    local = MIXED[:4] if rule.act is Act.SILENCE else MIXED
    in_flight = rule.code in (450, 554) and refused.stage == "rcpt"  # the next left with the RSET
    bad = 2 * sum(name.startswith("no") for name in local)
    for name, offer in OFFERS.items():
        yield Train(
            name=name,
            script=replace(offer, rules=(refused, rule)),
            local=local,
            wanted=Came(
                {TAKEN: 2 * len(local) - bad, BOUNCED: bad},
                {f"failed bounced {refused.stage} {refused.code}": bad},
                ladder=(
                    "none" if in_flight and name == "pipelined" else "full",
                    "proved" if offer.chunking else None,
                ),
            ),
        )
