"""Mixed replies to RCPT: random patterns, and what becomes of each recipient by the policy.

Contract. A pattern gives each recipient one reply: 250, or a refusal that names him. ``by_policy``
says what that makes of each, without looking at the engine:

* a 5xx is his end; but 552 counts as 452 (RFC 5321 section 4.5.3.1.10);
* a 4xx, 552 too, defers him, or sends him to the next host, which takes all;
* a 421 closes: whoever had no refusal of his own before it shares it; but where the content left in
  one flight with the envelope he is in doubt, and goes to no other host, since only a refusal of
  his own proves that a server which says 421 to one recipient did not go on with the others;
* a loss is as a 421, but nobody has its words, nor a code;
* where a 421 or a close came behind somebody's 5xx, those without an answer of their own are asked
  for again on another connection: who was taken has it there, then the others, and last the one in
  whose place it closed, by these same rules;
* 452 and 552 beside others who were taken are asked once more in a transaction of their own, and
  get the same reply there.

Witnesses: the verdict with the very words of that reply, and what the hosts had at the dot: who is
delivered once, nobody else ever, and nobody is named again once he was taken.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mailstrom.testing.records import Transaction
from mailstrom.testing.script import Act, Per, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.servers_judge import Trial, ended, family, recipients, settled, words
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import mail
from tests.support.trial import Plan

CODES = (450, 452, 550, 551, 552, 553, 554)
ENHANCED = {450: "4.2.1", 452: "4.5.3", 550: "5.1.1", 551: "5.1.6", 552: "5.2.2", 553: "5.1.3",
            554: "5.7.1"}  # fmt: skip
FLIGHT = "BDAT in one flight"
MODES = {
    "pipelined": Script(),
    "serial": Script(pipelining=False),
    "BDAT": Script(chunking=True),
    FLIGHT: Script(chunking=True),
}
BATCH = 100
MANY = 100


class Fate(NamedTuple):
    """What a recipient comes to.

    Args:
        status: of the recipient.
        code: of the reply that is kept with him.
        by: in whose name that reply was given; -1: nobody's, it was to the content.
    """

    status: str
    code: int
    by: int


LOST = 0
"""In the place of a code: the connection ends."""
LOSSES: Sequence[Mapping[str, object]] = (
    {"act": Act.CLOSE},
    {"act": Act.RESET},
    {"act": Act.GARBAGE, "data": "25", "close": True},
    {"act": Act.GARBAGE, "data": "certainly no SMTP\r\n"},
)


def pattern(dice: random.Random, *, lost: bool = False) -> list[int]:
    """A code for each recipient; ``lost``: one of them gets none."""
    count = MANY if dice.random() < 0.04 else dice.randint(1, 12)
    taken = 0.0 if dice.random() < 0.1 else 0.5
    codes = [250 if dice.random() < taken else dice.choice(CODES) for _ in range(count)]
    if lost:
        codes[dice.randrange(count)] = LOST
    elif dice.random() < 0.2:
        codes[dice.randrange(count)] = 421
    return codes


def by_policy(
    codes: Sequence[int], *, second: bool, flight: bool, closes: bool = True
) -> list[Fate]:
    """What becomes of each.

    Args:
        second: there is another host, which takes everybody.
        flight: the content left with the envelope.
        closes: where there is no code the connection is closed; else garbage comes.
    """
    fates: dict[int, Fate] = {}
    asked = list(range(len(codes)))
    while asked:
        asked, told = _asked(codes, asked, second=second, flight=flight, closes=closes)
        fates.update(told)
        flight = False  # who closed so is spared BDAT
    return [fates[number] for number in range(len(codes))]


def _asked(
    codes: Sequence[int], asked: list[int], *, second: bool, flight: bool, closes: bool
) -> tuple[list[int], dict[int, Fate]]:
    """Who is to be asked once more, and what becomes of the others."""
    place = next((n for n, one in enumerate(asked) if codes[one] in (421, LOST)), len(asked))
    cut = place < len(asked)
    fates: dict[int, Fate] = {}
    for n, number in enumerate(asked):
        code = codes[number]
        own = n <= place and code not in (250, LOST)
        if own and code >= 500 and code != 552:
            fates[number] = Fate("failed", code, number)
        elif flight and not own and cut:
            fates[number] = Fate("in doubt", 0, -1)
        elif second or (code == 250 and not cut):
            fates[number] = Fate("delivered", 250, -1)
        elif own:
            fates[number] = Fate("deferred", code, number)
        else:
            fates[number] = Fate("deferred", codes[asked[place]], asked[place])
    refused = any(fates[number].status == "failed" for number in asked[:place])
    if not (cut and refused and (closes or codes[asked[place]] == 421)):
        return [], fates
    left = [n for n in [*asked[place + 1 :], asked[place]] if fates[n].status != "in doubt"]
    for number in left:
        del fates[number]
    if not flight:  # a transaction of their own
        taken = [number for number in asked[:place] if codes[number] == 250]
        fates.update(dict.fromkeys(taken, Fate("delivered", 250, -1)))
    return left, fates


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One pattern at its hosts."""

    codes: list[int]
    domain: str
    hosts: list[SMTPServer]

    def address(self, number: int) -> str:
        """Of a recipient."""
        return f"u{number}@{self.domain}"


def first_verdicts(stand: Stand, plan: Plan, each: int) -> Iterator[Row]:
    """One row for each way of sending, with one host and with a second one."""
    for mode in MODES:
        for second in (False, True):
            case = f"each RCPT answered at random, {mode}" + (", a second host" if second else "")
            wanted = "each by his own reply; whoever is taken, once"
            if second:
                wanted = "refused for good by his own reply; all others at the second host"
            if mode == FLIGHT:
                wanted += "; beside another's 421 in doubt"
            dice = random.Random(f"{plan.seed} {case}")
            yield family(stand, case, wanted, _first(stand, mode, second, dice, each))


def broken_off(stand: Stand, plan: Plan, each: int) -> Iterator[Row]:
    """The same, where the connection ends at one of them, without a reply of its own."""
    for mode in MODES:
        case = f"FIN, RST, half a reply or garbage at one of mixed replies to RCPT, {mode}"
        wanted = (
            "each by his own reply; behind one for good the others are asked again, else deferred"
        )
        if mode == FLIGHT:
            wanted = "each by his own reply before it; the others in doubt"
        dice = random.Random(f"{plan.seed} {case}")
        yield family(stand, case, wanted, _first(stand, mode, False, dice, each, lost=True))


def to_the_end(stand: Stand, plan: Plan, each: int) -> Iterator[Row]:
    """The same, where what is temporary is over the next time."""
    for mode in MODES:
        case = f"each RCPT answered at random once, then taken, {mode}"
        wanted = "refused for good by his own reply; all others taken in the end, once each"
        dice = random.Random(f"{plan.seed} {case}")
        yield family(stand, case, wanted, _ends(stand, mode, dice, each))


def _first(
    stand: Stand, mode: str, second: bool, dice: random.Random, each: int, *, lost: bool = False
) -> Any:
    def bring() -> Iterator[Trial]:
        for start in range(0, each, BATCH):
            tried = [_place(stand, mode, pattern(dice, lost=lost), second=second)
                     for _ in range(min(BATCH, each - start))]  # fmt: skip
            ids = _send(stand, mode, tried)
            settled(stand, ids)
            rows = recipients(stand, ids)
            for one in tried:
                fates = by_policy(
                    one.codes, second=second, flight=mode == FLIGHT, closes=_loss(one.codes)[1]
                )
                yield judged(one, fates, rows, again=False)

    return bring


def _ends(stand: Stand, mode: str, dice: random.Random, each: int) -> Any:
    def bring() -> Iterator[Trial]:
        for start in range(0, each, BATCH):
            tried = [_place(stand, mode, pattern(dice), once=True)
                     for _ in range(min(BATCH, each - start))]  # fmt: skip
            ids = _send(stand, mode, tried)
            ended(stand, ids)
            rows = recipients(stand, ids)
            for one in tried:
                # whom a 421 kept from a reply for good gets it the next time
                fates = [
                    Fate("failed", code, number)
                    if code >= 500 and code != 552
                    else Fate("delivered", 250, -1)
                    for number, code in enumerate(one.codes)
                ]
                yield judged(one, fates, rows, again=True, doubted=mode == FLIGHT)

    return bring


def _place(
    stand: Stand, mode: str, codes: list[int], *, second: bool = False, once: bool = False
) -> Tried:
    rules = [
        Rule(
            stage="rcpt",
            recipient=f"u{number}@*",
            **_loss(codes)[0],  # type: ignore[arg-type]
        )
        if code == LOST
        else Rule(
            stage="rcpt",
            code=code,
            enhanced=ENHANCED.get(code) if number % 2 else None,
            text=f"for u{number}.",
            recipient=f"u{number}@*",
            close=code == 421,
            last=1 if once and (code < 500 or code == 552) else None,
            per=Per.RECIPIENT,
        )
        for number, code in enumerate(codes)
        if code != 250
    ]
    how = MODES[mode]
    first = Script(rules=rules, magic=False, pipelining=how.pipelining, chunking=how.chunking)
    domain, hosts = stand.network.site(*([first, how] if second else [first]))
    return Tried(codes=codes, domain=domain, hosts=hosts)


def _loss(codes: Sequence[int]) -> tuple[Mapping[str, object], bool]:
    """How the connection is lost, where one of them has no code; whether by a close."""
    how = LOSSES[len(codes) % len(LOSSES)]
    return how, how["act"] is not Act.GARBAGE or "close" in how


def _send(stand: Stand, mode: str, tried: Iterable[Tried]) -> list[str]:
    messages = []
    for one in tried:
        if mode == FLIGHT:  # it must have worked there before
            messages.append(mail(f"warm@{one.domain}"))
        messages.append(mail(*(one.address(number) for number in range(len(one.codes)))))
    return list(stand.engine.ms.send_many(messages))


def judged(
    tried: Tried,
    fates: Sequence[Fate],
    rows: dict[str, Any],
    *,
    again: bool,
    doubted: bool = False,
) -> Trial:
    """Compare all that is known of a pattern with what is wanted of it.

    Args:
        again: more than one attempt was made: how many is not compared.
        doubted: who was in doubt beside a 421 shows that to the end.
    """
    seen = [told(rows[tried.address(number)]) for number in range(len(fates))]
    if doubted and 421 in tried.codes:
        seen = [(*one[:-1], False) for one in seen]
    wanted = [_wanted(fate) for fate in fates]
    name = f"{tried.domain} {tried.codes}"
    wrong = [n for n, (one, other) in enumerate(zip(seen, wanted, strict=True)) if one != other]
    if wrong:
        number = wrong[0]
        return Trial(name=f"u{number} of {name}", wanted=wanted[number], seen=seen[number])
    charged = [n for n in range(len(fates)) if not again and _charged(tried, rows, n) != 1]
    if charged:
        number = charged[0]
        row = rows[tried.address(number)]
        return Trial(name=f"u{number} of {name}", wanted="1 charged", seen=words(row))
    return Trial(name=name, wanted="as wanted", seen=witnessed(tried, fates) or "as wanted")


def _charged(tried: Tried, rows: dict[str, Any], number: int) -> int:
    if len(tried.hosts) > 1:
        return 1  # each host that answered may have charged him
    return int(rows[tried.address(number)].attempts)


def told(row: Any) -> tuple[object, ...]:
    """A recipient's row, as ``_wanted`` puts it: the refusal names whom it was given to."""
    if row.reason == "in_doubt" or (row.status == "deferred" and row.reply_code is None):
        return (row.status, row.reason, row.reply_code, "", bool(row.in_doubt))
    by = row.reply_text.rpartition("for ")[2] if row.status != "delivered" else ""
    return (row.status, row.reason, row.reply_code, by, bool(row.in_doubt))


def _wanted(fate: Fate) -> tuple[object, ...]:
    if fate.status == "in doubt":
        return ("deferred", "in_doubt", None, "", True)
    if fate.code == LOST:
        return ("deferred", "remote", None, "", False)
    reason = {"delivered": None, "failed": "bounced", "deferred": "remote"}[fate.status]
    by = "" if fate.status == "delivered" else f"u{fate.by}."
    return (fate.status, reason, fate.code, by, False)


def witnessed(tried: Tried, fates: Sequence[Fate]) -> str:
    """What the hosts object to, or nothing."""
    taken = Counter(name for host in tried.hosts for name in _taken(host.transactions))
    for number, fate in enumerate(fates):
        copies = taken[tried.address(number)]
        if copies != (fate.status == "delivered"):
            return f"u{number} is {fate.status}, and the hosts took {copies} copies for him"
    for host in tried.hosts:
        done: set[str] = set()
        for transaction in host.transactions:
            named = {name for name, _ in transaction.recipients}
            if done & named:
                return f"{sorted(done & named)[0]} is named again, though he was taken"
            done.update(_taken([transaction]))
    return ""


def _taken(transactions: Iterable[Transaction]) -> Iterator[str]:
    for transaction in transactions:
        if transaction.dot is not None and transaction.dot.kept:
            yield from transaction.dot.recipients
