"""Many sites: 2,000 with one message each far away, and 100 of which one never answers.

Contract. Sites are told apart by DNS (our server) and by address; the proxy listens on every one of
them and keeps the round trip. ``bound_s``: with one message a site every message needs a connection
of its own, of which two workers may have 400 at once; the message has arrived after five round
trips (two to connect and be greeted, EHLO, the envelope, the content). A dead site accepts
connections and never says a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tools.bench.engine import Engine, fill
from tools.bench.figures import Figure
from tools.bench.plan import Plan, attempt, folder
from tools.bench.processes import Meter
from tools.bench.stations import Delay, Names, Sink

SITES = 2_000
RTT_MS = 100.0
PER_WORKER = 200
ROUND_TRIPS = 5  # connect and greeting 2, EHLO 1, envelope 1, content 1
BESIDE = 100
BESIDE_EACH = 150
BESIDE_RTT_MS = 20.0
LIMIT_S = 120.0


def _zone(sites: int) -> tuple[dict[str, object], list[str]]:
    """A zone with so many domains ``dN.test``, each of one host at an address of its own."""
    addresses = [f"127.90.{n // 250}.{n % 250 + 1}" for n in range(sites)]
    zone: dict[str, object] = {}
    for n, address in enumerate(addresses):
        zone[f"d{n}.test"] = {"MX": [f"10 mx.d{n}.test."]}
        zone[f"mx.d{n}.test"] = {"A": [address]}
    return zone, addresses


def _run(
    plan: Plan, blank: Figure, *, sites: int, each: int, rtt_ms: float, dead: int
) -> tuple[Figure, float]:
    """One run; the figure, and seconds from the first connection to the last arrival."""
    with folder() as home:
        zone, addresses = _zone(sites)
        sink = Sink()
        closing: list[Callable[[], object]] = [sink.close]
        try:
            proxy = Delay(sink.port, rtt_ms, addresses=addresses, silent=addresses[:dead])
            closing.append(proxy.close)
            names = Names(zone, home)
            closing.append(names.close)
            engine = Engine(
                home, home / "spool.db",
                {"delivery": {"mode": "mx", "port": proxy.port, "max_connections": PER_WORKER,
                              "drain_timeout": "500ms"},
                 "dns": {"nameservers": [f"127.0.0.1:{names.port}"], "allow_loopback": True}},
                workers=plan.workers, uvloop=blank.uvloop,
            )  # fmt: skip
            closing.append(engine.stop)
            fill(home, home / "spool.db", sites * each, domains=sites)
            began = time.monotonic()
            engine.start()
            meter = Meter(engine.roots)
            wanted = (sites - dead) * each
            if not sink.wait(wanted, LIMIT_S):
                raise RuntimeError(f"{sink.count} of {wanted} arrived; {engine.words()}")
            used = meter.stop()
            # the first message has taken as many round trips as any
            seconds = sink.at(wanted) - sink.at(1) + ROUND_TRIPS * rtt_ms / 1000
            values = {
                "seconds": seconds,
                "rate": sink.rate(1, wanted),
                "first_s": sink.at(1) - began,
                "cpu_s_per_1000": 1000 * used.cpu_s / wanted,
                "busy_cores": used.busy_cores,
            }
            return replace(
                blank, n=wanted, values=values, foreign_cores=used.foreign_cores
            ), seconds
        finally:
            for close in reversed(closing):
                close()


def sites(plan: Plan) -> Iterator[Figure]:
    """Both forms; the second with and without the dead one, in turn."""
    number = SITES if plan.scale == 1 else 20
    beside = BESIDE if plan.scale == 1 else 10
    each = plan.many(BESIDE_EACH)

    def far(blank: Figure) -> Figure:
        figure, seconds = _run(plan, blank, sites=number, each=1, rtt_ms=RTT_MS, dead=0)
        waves = number / (plan.workers * PER_WORKER)
        bound = max(1.0, waves) * ROUND_TRIPS * RTT_MS / 1000
        return replace(figure, values={**figure.values, "bound_s": bound, "share": bound / seconds})

    for run in range(1, plan.runs + 1):
        for uvloop in plan.loops:
            case = f"{number:,} sites, one message each, {RTT_MS:g} ms"
            yield attempt(Figure(bench="sites", case=case, uvloop=uvloop, run=run), far)
        for dead in (0, 1):
            case = f"{beside - dead} sites" + (f" beside {dead} that never answers" if dead else "")
            blank = Figure(bench="sites", case=case, uvloop=plan.fastest, run=run)
            yield attempt(
                blank,
                lambda blank, dead=dead: _run(  # type: ignore[misc]
                    plan, blank, sites=beside, each=each, rtt_ms=BESIDE_RTT_MS, dead=dead
                )[0],
            )
