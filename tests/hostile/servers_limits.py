"""Hosts with limits, with a memory, or without patience: what a sender finds out at no one's cost.

Contract. Settings are those of ``servers_trains``: one connection a site, retries after a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mailstrom.policy.rounds import MOST_CLOSES
from mailstrom.testing.script import Act, Per, Rule, Script
from tests.hostile.odd import Heard, Odd, Say
from tests.hostile.servers_judge import Trial, ended, family, recipients, settled, words
from tests.hostile.servers_trains import BOUNCED, OFFERS, TAKEN, Came, Train
from tests.hostile.servers_trains import run as trains
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S, mail
from tests.support.sockets import eventually
from tests.support.trial import Plan

RECIPIENTS, MOST = 95, 10
LENGTH, EACH = 20, 3
GREY_S = 1.5


def run(stand: Stand, plan: Plan) -> Iterator[Row]:
    """All rows."""
    yield family(
        stand, "takes ten recipients of a transaction, 452 to the others",
        "all 95 delivered at once, in ten transactions, nobody charged further",
        lambda: _recipients(stand, announced=False),
    )  # fmt: skip
    yield family(
        stand, "takes ten recipients of a transaction, and says so (RCPTMAX)",
        "all 95 delivered at once, in ten transactions, none refused",
        lambda: _recipients(stand, announced=True),
    )  # fmt: skip
    yield family(
        stand, "takes three messages of a connection, 451 to every MAIL behind them",
        "all delivered once; one message finds out, and is charged one attempt",
        lambda: trains(stand, _messages(announced=False)),
    )  # fmt: skip
    yield family(
        stand, "takes three messages of a connection, and says so (MAILMAX)",
        "all delivered once, nobody charged",
        lambda: trains(stand, _messages(announced=True)),
    )  # fmt: skip
    yield family(
        stand, "ends each connection behind so many unknown recipients: 421, FIN",
        "the known have it at the first attempt, the unknown fail, no other host is tried",
        lambda: _impatient(stand),
    )  # fmt: skip
    yield family(
        stand, "the same, where content leaves in one flight with its envelope",
        "in doubt once, then by DATA; the unknown fail",
        lambda: _impatient_to_flights(stand),
    )  # fmt: skip
    yield family(
        stand, "the same, and 30 of 32 are unknown",
        f"closed on {MOST_CLOSES} times in an attempt the rest waits for the next; none in doubt",
        lambda: _much_too_often(stand),
    )  # fmt: skip
    yield family(
        stand, f"greylists for {GREY_S:g} s",
        "delivered by a later attempt, not before that time",
        lambda: _greylisted(stand, plan),
    )  # fmt: skip
    yield family(
        stand, "never answers the dot of the first attempt, a second host behind it",
        "in doubt, then delivered by the same host; the second is never tried",
        lambda: _unanswered(stand),
    )  # fmt: skip
    yield family(
        stand, "no answer to the dot (FIN, RST, half a reply) of mail with on_doubt = hold",
        "held in_doubt in doubt, 1 charged; no other host is tried",
        lambda: _held(stand, plan),
    )  # fmt: skip
    yield family(
        stand, "keeps a refused envelope open across RSET, 503 to the next MAIL",
        "the refused fail, the others are delivered once, nobody else charged",
        lambda: _remembered(stand),
    )  # fmt: skip
    yield family(
        stand, "ends a connection that is idle: FIN, RST, 421",
        "the next message is delivered, nobody charged",
        lambda: _idle(stand),
    )  # fmt: skip


def _recipients(stand: Stand, *, announced: bool) -> Iterator[Trial]:
    placed = []
    for name, offer in OFFERS.items():
        for told in (True, False):
            # who announced it is believed: that is why this one need not refuse
            script = replace(
                offer,
                recipient_limit=RECIPIENTS if announced else MOST,
                limits={"RCPTMAX": MOST} if announced else {},
                enhancedstatuscodes=told,
                magic=False,
            )
            domain, (host,) = stand.network.site(script)
            placed.append((f"{name}{'' if told else ', bare codes'}", domain, host))
    ids = list(
        stand.engine.ms.send_many(
            mail(*(f"r{number}@{domain}" for number in range(RECIPIENTS)))
            for _, domain, _ in placed
        )
    )
    ended(stand, ids)
    rows = recipients(stand, ids)
    for name, domain, host in placed:
        outcomes = {words(rows[f"r{number}@{domain}"]) for number in range(RECIPIENTS)}
        copies = [address for dot in host.dots for address in dot.recipients]
        most = max(len(one.recipients) for one in host.transactions)
        seen = (outcomes, len(host.dots), most, len(copies), len(set(copies)))
        wanted = ({TAKEN}, 10, MOST, RECIPIENTS, RECIPIENTS)
        yield Trial(name=name, wanted=wanted, seen=seen)


def _messages(*, announced: bool) -> Iterator[Train]:
    full = Rule(stage="mail", code=451, enhanced="4.3.0", per=Per.CONNECTION, first=EACH + 1)
    for name, offer in OFFERS.items():
        script = replace(offer, rules=(full,), limits={"MAILMAX": EACH} if announced else {})
        wanted = Came({TAKEN: 2 * LENGTH}, {}, ladder=("full", _chunking(offer)))
        if not announced:
            found_out = {TAKEN: 2 * LENGTH - 2, "delivered, 2 charged": 2}
            wanted = wanted._replace(outcomes=found_out, attempts={"deferred remote mail 451": 2})
        local = [f"m{number}" for number in range(LENGTH)]
        yield Train(name=name, script=script, local=local, wanted=wanted)


NOBODY = Rule(stage="rcpt", code=550, enhanced="5.1.1", recipient="no*")
IMPATIENT = {
    "421 to the third": {"code": 421, "enhanced": "4.5.0", "first": 3},
    "550 to the third and FIN": {"code": 550, "enhanced": "5.1.1", "first": 3},
    "FIN in place of a reply to the third": {"act": Act.CLOSE, "first": 3},
    "RST in place of a reply to the third": {"act": Act.RESET, "first": 3},
}  # fmt: skip


def _ending(offer: Script, how: Mapping[str, Any]) -> Script:
    """It ends each connection with its third unknown recipient."""
    last = Rule(stage="rcpt", recipient="no*", per=Per.CONNECTION, close=True, **how)
    return replace(offer, rules=(last, NOBODY))


def _impatient(stand: Stand) -> Iterator[Trial]:
    placed = []
    for name, offer in OFFERS.items():
        for ends, how in IMPATIENT.items():
            domain, hosts = stand.network.site(_ending(offer, how), Script())
            placed.append((f"{name}, {ends}", domain, hosts))
    local = ("yes0", "no1", "no2", "no3", "yes4", "no5", "no6", "yes7", "no8", "no9", "yes10")
    ids = list(
        stand.engine.ms.send_many(
            mail(*(f"{one}@{domain}" for one in local)) for _, domain, _ in placed
        )
    )
    ended(stand, ids)
    rows = recipients(stand, ids)
    for name, domain, (first, second) in placed:
        outcomes = [words(rows[f"{one}@{domain}"]) for one in local]
        copies = sorted(address for dot in first.dots for address in dot.recipients)
        seen = (outcomes, copies, len(second.connections))
        wanted = (
            [TAKEN if one.startswith("yes") else BOUNCED for one in local],
            sorted(f"{one}@{domain}" for one in local if one.startswith("yes")), 0,
        )  # fmt: skip
        yield Trial(name=name, wanted=wanted, seen=seen)


def _impatient_to_flights(stand: Stand) -> Iterator[Trial]:
    how = IMPATIENT["421 to the third"]
    domain, (host,) = stand.network.site(_ending(Script(chunking=True), how))
    ended(stand, [stand.engine.send(f"proof@{domain}")])
    local = ("no1", "no2", "no3", "yes4", "no5")
    id = stand.engine.ms.send(mail(*(f"{one}@{domain}" for one in local)))
    ended(stand, [id])
    rows = recipients(stand, [id])
    outcomes = [words(rows[f"{one}@{domain}"]) for one in local]
    wanted = [BOUNCED, BOUNCED, BOUNCED, "delivered in doubt, 2 charged",
              "failed bounced in doubt, 2 charged"]  # fmt: skip
    copies = [address for dot in host.dots for address in dot.recipients]
    seen = outcomes, copies.count(f"yes4@{domain}")
    yield Trial(name="421 to the third", wanted=(wanted, 1), seen=seen)


def _much_too_often(stand: Stand) -> Iterator[Trial]:
    how, placed = IMPATIENT["421 to the third"], []
    local = ["yes", *(f"no{number}" for number in range(30)), "yes.too"]
    for name, offer in OFFERS.items():
        domain, (host,) = stand.network.site(_ending(offer, how))
        placed.append((name, domain, host))
    ids = list(
        stand.engine.ms.send_many(
            mail(*(f"{one}@{domain}" for one in local)) for _, domain, _ in placed
        )
    )
    ended(stand, ids)
    rows = recipients(stand, ids)
    settled_first = 2 * MOST_CLOSES
    for name, domain, host in placed:
        seen = Counter(words(rows[f"{one}@{domain}"]) for one in local), len(host.dots)
        wanted = Counter({
            TAKEN: 1, BOUNCED: settled_first, "failed bounced, 2 charged": 30 - settled_first,
            "delivered, 2 charged": 1,
        }), 2  # fmt: skip
        yield Trial(name=name, wanted=wanted, seen=seen)


def _chunking(offer: Script) -> str | None:
    return "proved" if offer.chunking else None


def _greylisted(stand: Stand, plan: Plan) -> Iterator[Trial]:
    placed = []
    texts = ["greylisted, come back"]
    if plan.long:  # ten seconds are added to a time that is named
        texts.append("greylisted, try again in 2 seconds")
    for name, offer in OFFERS.items():
        for text in texts:
            rule = Rule(
                stage="rcpt", code=450, enhanced="4.7.1", text=text, per=Per.RECIPIENT,
                recipient="*", lasting=GREY_S,
            )  # fmt: skip
            domain, (host,) = stand.network.site(replace(offer, rules=(rule,)))
            placed.append((name, text, domain, host))
    ids = list(stand.engine.ms.send_many(mail(f"a@{domain}") for *_, domain, _ in placed))
    ended(stand, ids)
    rows = recipients(stand, ids)
    for (name, text, domain, host), id in zip(placed, ids, strict=True):
        attempts = stand.engine.attempts(id)
        waited_s = (attempts[-1].started_ms - attempts[0].ended_ms) / 1000
        early = waited_s < (2.0 if "2 seconds" in text else GREY_S - 0.1)
        seen = (rows[f"a@{domain}"].status, len(host.dots), "early" if early else "later")
        yield Trial(name=f"{name}: {text}", wanted=("delivered", 1, "later"), seen=seen)


def _unanswered(stand: Stand) -> Iterator[Trial]:
    placed = []
    for name, offer in OFFERS.items():
        rule = Rule(stage="dot", act=Act.SILENCE, last=1)
        domain, hosts = stand.network.site(replace(offer, rules=(rule,)), Script())
        placed.append((name, domain, hosts))
    ids = list(stand.engine.ms.send_many(mail(f"a@{domain}") for _, domain, _ in placed))
    ended(stand, ids)
    rows = recipients(stand, ids)
    for (name, domain, (first, second)), id in zip(placed, ids, strict=True):
        verdicts = [(one.verdict, bool(one.in_doubt)) for one in stand.engine.attempts(id)]
        seen = (words(rows[f"a@{domain}"]), verdicts, len(first.dots), len(second.connections))
        wanted = (
            "delivered in doubt, 2 charged", [("deferred", True), ("delivered", False)], 2, 0,
        )  # fmt: skip
        yield Trial(name=name, wanted=wanted, seen=seen)


def _held(stand: Stand, plan: Plan) -> Iterator[Trial]:
    lost: list[dict[str, object]] = [
        {"act": Act.CLOSE}, {"act": Act.RESET}, {"act": Act.GARBAGE, "data": "25", "close": True},
    ]  # fmt: skip
    if plan.long:
        lost.append({"act": Act.SILENCE})
    placed = []
    for name, offer in OFFERS.items():
        for how in lost:
            rule = Rule(stage="dot", **how)  # type: ignore[arg-type]
            domain, (_, second) = stand.network.site(replace(offer, rules=(rule,)), Script())
            placed.append((f"{name} {how}", domain, second))
    ids = list(
        stand.engine.ms.send_many((mail(f"a@{domain}") for _, domain, _ in placed), on_doubt="hold")
    )
    settled(stand, ids)
    rows = recipients(stand, ids)
    for name, domain, second in placed:
        seen = words(rows[f"a@{domain}"]), len(second.connections)
        yield Trial(name=name, wanted=("held in_doubt in doubt, 1 charged", 0), seen=seen)


def _remembered(stand: Stand) -> Iterator[Trial]:
    """Only a new connection helps: nothing that it says on this one empties the envelope."""

    def begins(heard: Heard, _line: str) -> str:
        if heard.counts.get("open"):
            return "503 5.5.1 nested MAIL\r\n"
        heard.counts["open"] = 1
        return "250 2.1.0 ok\r\n"

    def takes(heard: Heard, _line: str) -> str:
        if any(name.startswith("no") for name in heard.recipients):
            return "554 5.7.1 no\r\n"
        heard.counts["open"] = 0
        return "250 2.0.0 taken\r\n"

    odd, domain = Odd({"MAIL": begins, "dot": takes}), stand.network.new_domain()
    stand.network.route(domain, [stand.network.listen(odd.connect)])
    names = ("yes0", "no1", "yes2", "yes3", "no4", "yes5", "no6", "no7", "yes8")
    ids = list(stand.engine.ms.send_many(mail(f"{name}@{domain}") for name in names))
    ended(stand, ids)
    rows = recipients(stand, ids)
    copies = sorted(name for (name, *_), _ in odd.contents if name.startswith("yes"))
    for name in names:
        address = f"{name}@{domain}"
        taken = name.startswith("yes")
        seen = (words(rows[address]), copies.count(address))
        yield Trial(name=name, wanted=(TAKEN, 1) if taken else (BOUNCED, 0), seen=seen)


def _idle(stand: Stand) -> Iterator[Trial]:
    for name, bye in {
        "FIN": Say(then="close"),
        "RST": Say(then="reset"),
        "421": Say(text="421 4.4.2 idle\r\n", then="close"),
    }.items():
        odd, domain = Odd({"bye": bye}), stand.network.new_domain()
        stand.network.route(domain, [stand.network.listen(odd.connect)])
        first = stand.engine.send(f"a@{domain}")
        ended(stand, [first])
        said = _idle_host(stand, odd, lambda odd=odd: [one.say("bye", "") for one in odd.live])
        second = stand.engine.send(f"b@{domain}")
        ended(stand, [second])
        rows = recipients(stand, [first, second])
        seen = [words(row) for row in rows.values()], len(odd.contents), said
        yield Trial(name=name, wanted=([TAKEN, TAKEN], 2, True), seen=seen)


def _idle_host(stand: Stand, odd: Odd, say: Callable[[], Any]) -> bool:
    """Let it say goodbye to whoever is connected; wait until they are gone."""
    said = bool(stand.network.on_loop(say))
    eventually(lambda: not odd.live, DEADLINE_S, what="the end of its connections")
    return said
