"""50 good sites behind as many hostile ones as there are places, and many times more.

Contract. Each hostile site has one mail, due before the good ones' mail comes, and 200 hosts were
seen to hang by then; where there are more than may hang beside each other, nearly as many as may.
Judged by what happened: all good mail was delivered, no host was given up that had not had its
time, nothing was cut off in doubt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from mailstrom.testing.script import Script
from tests.hostile.neighbours_hosts import Hosts
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import Engine, Tables, mail
from tests.support.network import Network
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

GOOD = 50
ROOM = 2_250
"""So many unproven hosts hang beside each other at 200 places."""
WAIT_S = 120.0
LONG_CASES = ("never answers MAIL", "never answers RCPT", "never answers DATA")
"""In the long form alone."""
SETTINGS: Tables = {
    "delivery": {"drain_timeout": "1s", "connect_timeout": "60s"},
    "sites": {"suspend": ["60s"]},
}
TIMEOUTS = {
    **dict.fromkeys(("greeting", "starttls", "mail", "rcpt", "data"), "300s"),
    "dot": "600s",
}
"""About those of RFC 5321: nobody's time is over while the good mail waits."""


def many(plan: Plan) -> Iterator[Row]:
    """Good sites behind as many hostile ones as there are places, and many times more."""
    yield behind(plan, "never greets", plan.pick(600, 2_000))
    yield behind(plan, "never greets", plan.pick(600, 2_000), known=True)
    yield behind(plan, "never answers the final dot", plan.pick(400, 1_500))
    if plan.long:
        yield behind(plan, "never greets", 4_000)
        for kind in (*LONG_CASES, "stalls in the TLS handshake"):
            yield behind(plan, kind, 1_500)
        yield behind(plan, "stalls in the TLS handshake", 4_000)
        yield behind(plan, "never answers RCPT", 4_000, known=True)


def behind(plan: Plan, kind: str, count: int, *, known: bool = False) -> Row:
    """Good sites whose mail comes when that of many hostile ones is due already."""
    folder = plan.folder / f"{count}-{kind}-{known}".replace(" ", "-")
    folder.mkdir()
    crowded = count > ROOM
    hang = ROOM - 50 if crowded and not known else 200
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
        settings = {**SETTINGS, "timeouts": TIMEOUTS}
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
            eventually(lambda: hosts.held >= hang, WAIT_S, what=f"{hang} hosts that hang")
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
                " AND substr(end_cause, 1, instr(end_cause, ':')) IN ('greeting:', 'starttls:')"
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
