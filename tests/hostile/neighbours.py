"""What 49 other sites feel of one hostile one, and the other mail of a relay that falls silent.

Contract. The hostile site's mail is queued first, and its host was seen to be tried before the
others' mail is sent. The short form judges by what happened: all mail of the others was delivered
while the hostile site's waits, none of it cut off with doubt. The long form measures, too: the time
from the first to the last arrival at the others, with the hostile site and without it, in turns;
the case tells the median of the ratios, and less than ``LEAST`` is a finding.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from email.message import EmailMessage
from pathlib import Path

from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.neighbours_hosts import KINDS, Hosts
from tests.hostile.neighbours_many import LONG_CASES, SETTINGS, many
from tests.hostile.stand import Stand, standing
from tests.hostile.table import Row
from tests.support.engine import Engine, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

OTHERS = 49
LEAST = 0.95
ANSWER_S, CONNECTIONS = 0.2, 3
"""So late the others answer a content where their speed is measured, on so many connections each:
these bound it then, as in the world, and one run is like the next. Where the processor does, which
fifty servers share here, they differ by a fifth.
"""
WAIT_S = 120.0
DNS = "is of a domain whose DNS never answers"
REFUSED = "refuses each connection"
HOLE = "does not answer a connection (black hole)"
CASES = (*KINDS, DNS, REFUSED, HOLE)
HOSTILE_MAIL = 40
RELAYED = 12
BAD = "bad@sender.test"
LARGE = "Good morning.\n" * 100_000
WANTED = "all others delivered, it waits"


def run(plan: Plan) -> Iterator[Row]:
    """One row for each kind of hostile host, then rows for very many."""
    with standing(plan.folder, SETTINGS) as stand:
        good = [stand.network.site(Script()) for _ in range(OTHERS)]
        for kind in CASES:
            if kind in LONG_CASES and not plan.long:
                continue
            row = beside(stand, kind, [domain for domain, _ in good], each=2)
            yield measured(plan, kind, row) if plan.long and row.clean else row
        for stage in plan.pick(("rcpt", "dot"), ("mail", "rcpt", "data", "dot")):
            yield fallen(stand, [domain for domain, _ in good], stage)
    for stage in plan.pick(("rcpt",), ("mail", "rcpt", "data", "dot")):
        yield relayed(plan, stage)
    yield from many(plan)


# --- one hostile site -----------------------------------------------------------------------


def hostile(network: Network, kind: str, stack: ExitStack) -> tuple[str, Hosts | None]:
    """A domain whose only host is of this kind."""
    domain = network.new_domain()
    if kind == DNS:
        network.zone(domain, "TIMEOUT")
        return domain, None
    if kind in (REFUSED, HOLE):
        network.route(domain, [network.nobody() if kind == REFUSED else network.deaf()])
        return domain, None
    (address,) = loopback_addresses()
    hosts = stack.enter_context(Hosts(kind, network.port, [address]))
    network.route(domain, [address])
    return domain, hosts


def bad_mail(domain: str, count: int = HOSTILE_MAIL) -> Iterator[EmailMessage]:
    """The hostile site's; the first ones so large that no window takes them."""
    for number in range(count):
        text = "Good morning.\n" if number > 1 else LARGE
        yield mail(f"u{number}@{domain}", sender=BAD, text=text)


def tried(network: Network, domain: str, hosts: Hosts | None) -> None:
    """Wait until the hostile side was asked for something."""
    eventually(
        lambda: network.asked(domain, "MX") if hosts is None else hosts.held,
        WAIT_S,
        what=f"a try at {domain}",
    )


def beside(stand: Stand, kind: str, good: Sequence[str], each: int) -> Row:
    """Whether all others have their mail while the hostile one has not."""

    def attempt() -> str:
        with ExitStack() as stack:
            domain, hosts = hostile(stand.network, kind, stack)
            ids = list(stand.engine.ms.send_many(bad_mail(domain)))
            tried(stand.network, domain, hosts)
            others = list(
                stand.engine.ms.send_many(
                    mail(f"u{number}@{name}") for number in range(each) for name in good
                )
            )
            return verdict(stand.engine, ids, others)

    return stand.measured(f"one site of 50 {kind}", WANTED, attempt)


TOLD = {"mail": "MAIL", "rcpt": "RCPT", "data": "DATA", "dot": "the final dot"}


def fallen(stand: Stand, good: Sequence[str], stage: str) -> Row:
    """A site that took mail, and so may have all its connections, and then never answers."""

    def attempt() -> str:
        engine = stand.engine
        domain, (host,) = stand.network.site(Script(rules=(mute(stage),)))
        assert engine.final(engine.send(f"a@{domain}")).succeeded
        ids = list(engine.ms.send_many(bad_mail(domain, 60)))
        eventually(lambda: host.open >= 20, WAIT_S, what="20 connections")
        others = list(engine.ms.send_many(mail(f"u@{name}") for name in good))
        return verdict(engine, ids, others)

    title = f"one site of 50 takes mail, then never answers {TOLD[stage]} on its 20 connections"
    return stand.measured(title, WANTED, attempt)


def mute(stage: str) -> Rule:
    """No answer there, to mail of one sender."""
    return Rule(stage=stage, act=Act.SILENCE, sender=BAD)


def relayed(plan: Plan, stage: str) -> Row:
    """A relay that never answers about some mail, on more connections than have a place."""
    folder = plan.folder / f"relay-{stage}"
    folder.mkdir()
    with Network() as network:
        host = network.host(Script(rules=(mute(stage),)))
        tables = {
            **SETTINGS,
            "delivery": {**SETTINGS["delivery"], "mode": "relay", "max_connections": RELAYED // 2},
            "relay": {"hosts": [f"{host.host}:{network.port}"], "tls": "none"},
        }
        with Engine(network, folder, workers=1, settings=tables) as engine:

            def attempt() -> str:
                assert engine.final(engine.send("a@first.test")).succeeded
                ids = list(engine.ms.send_many(bad_mail("mute.test", RELAYED)))
                eventually(lambda: host.open >= RELAYED, WAIT_S, what="as many that hang")
                others = [mail(f"u@d{number}.test") for number in range(2 * OTHERS)]
                return verdict(engine, ids, list(engine.ms.send_many(others)))

            title = (
                f"a relay never answers {TOLD[stage]} on {RELAYED} connections,"
                f" where {RELAYED // 2} have a place"
            )
            row = Stand(network=network, engine=engine).measured(title, WANTED, attempt)
            engine.kill_all()
            return row


def verdict(engine: Engine, ids: Sequence[str], others: Sequence[str]) -> str:
    """What came of the others, and what of the hostile one by then."""

    def delivered() -> int:
        found = engine.ms.statuses(others)
        return sum(one.succeeded for one in found.values())

    try:
        eventually(lambda: delivered() == len(others), WAIT_S, what="all others", interval=0.05)
        said = "all others delivered"
    except AssertionError:
        said = f"{delivered()} of {len(others)} others delivered"
    own = [one for status in engine.ms.statuses(ids).values() for one in status.recipients.values()]
    if any(one.in_doubt for one in own):
        return f"{said}, it is in doubt"
    over = {str(one.status) for one in own} & {"delivered", "failed", "cancelled"}
    return f"{said}, {'it is ' + over.pop() if over else 'it waits'}"


def measured(plan: Plan, kind: str, row: Row) -> Row:
    """The others' speed with the hostile site as a part of that without it."""
    ratios, spent = [], []
    for number in range(plan.pick(1, 5)):
        alone = arrivals(plan.folder / f"{CASES.index(kind)}-{number}-alone", None)
        with_it = arrivals(plan.folder / f"{CASES.index(kind)}-{number}-with", kind)
        plan.say(f"{kind}: {alone:.2f} s alone, {with_it:.2f} s beside it")
        ratios.append(alone / with_it)
        spent.append(with_it)
    ratio = statistics.median(ratios)
    low = () if ratio >= LEAST else (f"the others had {ratio:.0%} of their speed",)
    return Row(
        case=f"{row.case}; the others have {min(ratio, 1):.0%} of their speed",
        wanted=f"{WANTED}; at least 95 %", seen=f"{row.seen}; at least 95 %",
        tried=2 * len(ratios), seconds=statistics.median(spent), cpu_s=row.cpu_s,
        memory=row.memory, findings=low,
    )  # fmt: skip


def arrivals(folder: Path, kind: str | None, each: int = 80) -> float:
    """Seconds from the first to the last arrival at the others."""
    folder.mkdir()
    with Network() as network, ExitStack() as stack:
        script = Script(rules=(Rule(stage="dot", delay=ANSWER_S),))
        good: list[tuple[str, list[SMTPServer]]] = [network.site(script) for _ in range(OTHERS)]
        settings = {**SETTINGS, "sites": {**SETTINGS["sites"], "connections": CONNECTIONS}}
        engine = Engine(network, folder, workers=1, settings=settings)
        bad = None if kind is None else hostile(network, kind, stack)
        if bad is not None:
            list(engine.ms.send_many(bad_mail(bad[0])))
        list(
            engine.ms.send_many(
                mail(f"u{number}@{name}") for number in range(each) for name, _ in good
            )
        )
        with engine:
            if bad is not None:
                tried(network, *bad)
            hosts = [host for _, servers in good for host in servers]
            eventually(
                lambda: sum(len(host.dots) for host in hosts) >= each * OTHERS, WAIT_S,
                what="all others", interval=0.05,
            )  # fmt: skip
            times = [dot.at for dot in dots(hosts)]
            engine.kill_all()
    return max(times) - min(times)
