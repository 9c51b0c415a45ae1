"""Hosts that offer CHUNKING: what is refused, lost or not known at a BDAT, and the ladder.

Contract. Wanted by decisions 0023 and 0035: what was refused before it was taken goes by DATA, at
no charge; what is lost behind the last octet is in doubt; a site that mishandles BDAT is spared it.
The first BDAT of a site leaves alone; ``proved`` trials have a message before that proved it, so
theirs shares its flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mailstrom.testing.script import Act, Rule, Script
from tests.hostile.servers_judge import Trial, family, recipients, settled, words
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import mail
from tests.support.trial import Plan

TAKEN = "delivered, 1 charged"
NOT_NOW = "deferred remote, 1 charged"
BOUNCED = "failed bounced, 1 charged"
DOUBT = "deferred in_doubt in doubt, 1 charged"


class Ended(NamedTuple):
    """All that is compared.

    Args:
        recipients: outcomes of the message's recipients, each once.
        copies: how often the host took it for each of them.
        chunking: what is remembered of the site.
    """

    recipients: set[str]
    copies: int
    chunking: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to treat a BDAT.

    Args:
        case: in words.
        rule: what the host does; None: nothing.
        known: False: it reads the octets as commands.
        first: of a site of which nothing is known.
        proved: of one where a BDAT worked.
        count: recipients of the message.
    """

    case: str
    rule: Mapping[str, object] | None = None
    known: bool = True
    first: Ended | None = None
    proved: Ended | None = None
    count: int = 1


def _both(words: str, copies: int, first: str | None, proved: str | None) -> dict[str, Ended]:
    return {"first": Ended({words}, copies, first), "proved": Ended({words}, copies, proved)}


KEEPS, SPARED = "proved", "mishandled"
CASES = (
    Case(case="554 to BDAT", rule={"code": 554, "enhanced": "5.6.0"},
         **_both(BOUNCED, 0, None, KEEPS)),
    Case(case="452 or 451 to BDAT", rule={"code": 452}, **_both(NOT_NOW, 0, None, KEEPS)),
    Case(case="452 or 451 to BDAT", rule={"code": 451, "enhanced": "4.3.0"}, count=3,
         **_both(NOT_NOW, 0, None, KEEPS)),
    Case(case="421 to BDAT, then FIN", rule={"code": 421, "close": True},
         **_both(NOT_NOW, 0, None, KEEPS)),
    # one reply too many would look the same: nobody is to bounce by another's, and a 250 may follow
    Case(case="554 5.1.1 to a BDAT for three, as if for the last RCPT", count=3,
         rule={"code": 554, "enhanced": "5.1.1"}, **_both(DOUBT, 0, SPARED, SPARED)),
    *(
        Case(case="BDAT offered, and 500 to 504 to it", rule={"code": code}, count=3,
             **_both(TAKEN, 1, SPARED, SPARED))
        for code in (500, 501, 502, 503, 504)
    ),
    Case(case="BDAT offered, and its octets read as commands",
         known=False, first=Ended({TAKEN}, 1, SPARED)),
    Case(case="FIN, RST, half a reply or garbage behind the last octet", rule={"act": Act.CLOSE},
         first=Ended({DOUBT}, 1, SPARED), proved=Ended({DOUBT}, 1, KEEPS)),
    Case(case="FIN, RST, half a reply or garbage behind the last octet", rule={"act": Act.RESET},
         first=Ended({DOUBT}, 1, SPARED), proved=Ended({DOUBT}, 1, KEEPS)),
    Case(case="FIN, RST, half a reply or garbage behind the last octet",
         rule={"act": Act.GARBAGE, "data": "25", "close": True},
         first=Ended({DOUBT}, 1, SPARED), proved=Ended({DOUBT}, 1, KEEPS)),
    Case(case="FIN, RST, half a reply or garbage behind the last octet",
         rule={"act": Act.GARBAGE, "data": "certainly no SMTP\r\n"},
         **_both(DOUBT, 1, SPARED, SPARED)),
    Case(case="silence behind the last octet", rule={"act": Act.SILENCE},
         **_both(DOUBT, 1, SPARED, SPARED)),
    Case(case="250 to BDAT, then FIN", rule={"close": True}, **_both(TAKEN, 1, KEEPS, KEEPS)),
)  # fmt: skip


def run(stand: Stand, plan: Plan) -> Iterator[Row]:
    """A row for each case."""
    by_case: dict[str, list[Case]] = {}
    for case in CASES:
        if not plan.long and (case.rule or {}).get("act") is Act.SILENCE:
            continue  # a row of servers_stages has it, too
        by_case.setdefault(case.case, []).append(case)
    for name, cases in by_case.items():
        yield row(stand, name, cases)


def row(stand: Stand, name: str, cases: list[Case]) -> Row:
    """Cases of one kind, all at once."""
    first = cases[0].first
    assert first is not None
    (told,) = first.recipients
    copies = ", taken once" if told == TAKEN else ""
    spared = "; then no BDAT there" if first.chunking == SPARED else ""
    return family(stand, name, f"{told}{copies}{spared}", lambda: bring(stand, cases))


def bring(stand: Stand, cases: list[Case]) -> Iterator[Trial]:
    """One message to each."""
    placed, messages = [], []
    for case in cases:
        for known in ("first", "proved"):
            wanted: Ended | None = getattr(case, known)
            if wanted is None:
                continue
            rules = [] if case.rule is None else [_rule(case.rule)]
            script = Script(rules=rules, magic=False, chunking=True, bdat_known=case.known)
            domain, (host,) = stand.network.site(script)
            if known == "proved":
                messages.append(mail(f"warm@{domain}"))
            messages.append(mail(*(f"a{number}@{domain}" for number in range(case.count))))
            placed.append((case, known, wanted, domain, host))
    ids = list(stand.engine.ms.send_many(messages))
    settled(stand, ids)
    rows = recipients(stand, ids)
    for case, known, wanted, domain, host in placed:
        own = [f"a{number}@{domain}" for number in range(case.count)]
        copies = {
            sum(address in dot.recipients for dot in host.dots if dot.kept) for address in own
        }
        (site,) = stand.engine.rows(
            "SELECT chunking FROM destinations WHERE site LIKE ?", f"%.{domain}:%"
        )
        seen = Ended({words(rows[address]) for address in own}, max(copies), site.chunking)
        name = f"{case.case} ({case.rule or 'unknown'}), {known}"
        yield Trial(name=name, wanted=wanted, seen=seen if len(copies) == 1 else copies)


def _rule(how: Mapping[str, object]) -> Rule:
    """To the message that is tried, and only to a BDAT."""
    return Rule(stage="bdat", recipient="a*", **how)  # type: ignore[arg-type]
