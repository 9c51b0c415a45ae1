"""What 49 other sites feel of one hostile one, and 50 good ones of thousands that hang.

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
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.neighbours_hosts import KINDS, Hosts
from tests.hostile.stand import Stand, standing
from tests.hostile.table import Row
from tests.support.engine import Engine, Tables, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

OTHERS = 49
GOOD = 50
LEAST = 0.95
WAIT_S = 120.0
DNS = "is of a domain whose DNS never answers"
REFUSED = "refuses each connection"
HOLE = "does not answer a connection (black hole)"
CASES = (*KINDS, DNS, REFUSED, HOLE)
HOSTILE_MAIL = 40
LARGE = "Good morning.\n" * 100_000
SETTINGS: Tables = {
    "delivery": {"drain_timeout": "1s", "connect_timeout": "60s"},
    "sites": {"suspend": ["60s"]},
}
WANTED = "all others delivered, it waits"


def run(plan: Plan) -> Iterator[Row]:
    """One row for each kind of hostile host, then rows for very many."""
    with standing(plan.folder, SETTINGS) as stand:
        good = [stand.network.site(Script()) for _ in range(OTHERS)]
        for kind in CASES:
            row = beside(stand, kind, [domain for domain, _ in good], each=2)
            yield measured(plan, kind, row) if plan.long and row.clean else row
        yield fallen(stand, [domain for domain, _ in good])
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
        yield mail(f"u{number}@{domain}", text="Good morning.\n" if number > 1 else LARGE)


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


def fallen(stand: Stand, good: Sequence[str]) -> Row:
    """A site that took mail, and so may have all its connections, and then never answers."""

    def attempt() -> str:
        engine = stand.engine
        rule = Rule(stage="dot", act=Act.SILENCE, recipient="u*")
        domain, (host,) = stand.network.site(Script(rules=(rule,)))
        assert engine.final(engine.send(f"a@{domain}")).succeeded
        ids = list(engine.ms.send_many(bad_mail(domain, 60)))
        eventually(lambda: host.open >= 20, WAIT_S, what="20 connections")
        others = list(engine.ms.send_many(mail(f"u@{name}") for name in good))
        return verdict(engine, ids, others)

    title = "one site of 50 takes mail, then never answers the final dot on its 20 connections"
    return stand.measured(title, WANTED, attempt)


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
        good: list[tuple[str, list[SMTPServer]]] = [network.site(Script()) for _ in range(OTHERS)]
        engine = Engine(network, folder, workers=1, settings=SETTINGS)
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


# --- very many that hang --------------------------------------------------------------------


def many(plan: Plan) -> Iterator[Row]:
    """Good sites behind as many hostile ones as there are places, and many times more."""
    yield behind(plan, "never greets", plan.pick(600, 2_000))
    yield behind(plan, "never greets", plan.pick(600, 2_000), known=True)
    yield behind(plan, "never answers the final dot", plan.pick(400, 1_500))
    if plan.long:
        yield behind(plan, "never greets", 4_000)


def behind(plan: Plan, kind: str, count: int, *, known: bool = False) -> Row:
    """Good sites whose mail comes when that of many hostile ones is due already."""
    folder = plan.folder / f"{count}-{kind}-{known}".replace(" ", "-")
    folder.mkdir()
    crowded = count > 2_250  # more than wait beside each other at 200 places
    title = f"{count:,} sites, each {kind}; behind them {GOOD} good ones"
    wanted = f"{GOOD} of {GOOD} delivered, "
    if known:
        title += ", which took mail before"
        wanted += "before all hostile ones had their turn"
    else:
        wanted += "some hosts given up after 10 s" if crowded else "no host given up for them"
    with Network() as network, ExitStack() as stack:
        good = [network.site(Script())[0] for _ in range(GOOD)]
        (address,) = loopback_addresses()
        hosts = stack.enter_context(Hosts(kind, network.port, [address]))
        names = [network.new_domain() for _ in range(count)]

        def route() -> None:
            for name in names:
                network.dns.zone[name] = {"MX": [f"10 mx.{name}."]}
                network.dns.zone[f"mx.{name}"] = {"A": [address]}

        network.on_loop(route)
        settings = {**SETTINGS, "timeouts": {"greeting": "300s", "dot": "600s"}}
        engine = Engine(network, folder, workers=1, settings=settings)
        stack.enter_context(engine)
        stand = Stand(network=network, engine=engine)

        def attempt() -> str:
            if known:
                first = list(engine.ms.send_many(mail(f"a@{domain}") for domain in good))
                eventually(
                    lambda: all(one.succeeded for one in engine.ms.statuses(first).values()),
                    WAIT_S, what="the mail before",
                )  # fmt: skip
            list(engine.ms.send_many(mail(f"a@{name}") for name in names))
            eventually(lambda: hosts.held >= 200, WAIT_S, what="200 hosts that hang")
            ids = list(engine.ms.send_many(mail(f"b@{domain}") for domain in good))

            def delivered() -> int:
                return sum(one.succeeded for one in engine.ms.statuses(ids).values())

            eventually(lambda: delivered() == GOOD, WAIT_S, what="the good mail", interval=0.05)
            said = f"{delivered()} of {GOOD} delivered, "
            if known:
                late = hosts.held >= count
                return said + ("after" if late else "before") + " all hostile ones had their turn"
            waits = engine.rows(
                "SELECT ended_ms - started_ms AS ms FROM sessions WHERE ended_ms IS NOT NULL"
                " AND end_cause LIKE 'greeting:%'"
            )
            if any(row.ms < 10_000 for row in waits):
                return said + "some hosts given up too soon"
            return said + (
                "some hosts given up after 10 s" if waits else "no host given up for them"
            )

        row = stand.measured(title, wanted, attempt)
        if engine.rows("SELECT 1 FROM recipients WHERE in_doubt LIMIT 1"):
            row = replace(row, findings=(*row.findings, "mail was cut off in doubt"))
        engine.kill_all()
        return row
