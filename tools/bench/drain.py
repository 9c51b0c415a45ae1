"""``drain`` (a full queue), ``latency`` (across a round trip), ``e2e`` (from call to sink).

Contract. All to one destination, 1 KiB bodies, one recipient each. ``rate`` of drain and latency is
from the first arrival at the sink to the last: starting up is ``rate_release_last``'s. CPU is the
contender's alone, from the first arrival until 0.2 s after the last, when results are written.
``rate`` of e2e is from the first call to the last arrival. A contender that still holds messages
afterwards, or whose count does not come, has no figure but an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from tests.support.sockets import eventually
from tools.bench.figures import Figure
from tools.bench.peers.contender import CALLERS, Contender, Ours
from tools.bench.peers.huey import Huey
from tools.bench.peers.post_office import PostOffice
from tools.bench.peers.postfix import Postfix
from tools.bench.plan import Plan, attempt, folder
from tools.bench.processes import Meter
from tools.bench.stations import Delay, Sink

CONNECTIONS = 20
SWEEP = (1, 2, 5, 10, 50, 100)
RTT_MS = 50.0
ROUND_TRIPS = (10.0, 100.0, 200.0)
LIMIT_S = 180.0
AFTERWARDS_S = 0.2
SETTLED_S = 20.0

# messages of a run: (drain, e2e, latency), as many as a few seconds need
SIZES = {
    "mailstrom": (40_000, 12_000, 2_000),
    "postfix": (8_000, 5_000, 600),
    "huey": (5_000, 4_000, 400),
    "post-office": (6_000, 5_000, 400),
}
Maker = Callable[[Path, int], Contender]


def contenders(
    plan: Plan,
    *,
    connections: int = CONNECTIONS,
    far: bool = False,
    verb: str = "send",
    callers: int = CALLERS,
) -> Iterator[tuple[str, bool | None, Maker]]:
    """Who is measured in turn, ours first.

    Args:
        far: whether there is a round trip to be filled.
        verb: what applications call, of ours.
        callers: threads of each that call it.

    Yields:
        name, uvloop, and what makes one for a directory and a port.
    """

    def ours(uvloop: bool) -> Maker:
        return lambda home, port: Ours(
            home, port, connections=connections, workers=plan.workers, uvloop=uvloop, verb=verb,
            callers=callers,
        )  # fmt: skip

    for uvloop in plan.loops:
        yield "mailstrom", uvloop, ours(uvloop)
    peers: dict[str, Maker] = {
        "postfix": lambda home, port: Postfix(home, port, connections=connections),
        "huey": lambda home, port: Huey(home, port, threads=connections if far else 0),
        "post-office": PostOffice,
    }
    for name in plan.peers:
        yield name, None, peers[name]


def _drained(make: Maker, messages: int, rtt_ms: float, blank: Figure) -> Figure:
    with folder() as home:
        sink = Sink()
        proxy = Delay(sink.port, rtt_ms) if rtt_ms else None
        queue = make(home, proxy.port if proxy else sink.port)
        try:
            seconds = queue.fill(messages)
            early = sink.count
            if early:
                raise RuntimeError(f"{early} messages left before delivery was let go")
            released = time.monotonic()
            queue.deliver()
            if not sink.wait(1, LIMIT_S):
                raise RuntimeError(f"nothing arrived; {queue.words()}")
            meter = Meter(queue.roots, memory=True)
            counted = sink.count
            whole = sink.wait(messages, LIMIT_S)
            time.sleep(AFTERWARDS_S)
            used = meter.stop()
            if not whole:
                raise RuntimeError(f"{sink.count} of {messages} arrived; {queue.words()}")
            eventually(lambda: not queue.left(), SETTLED_S, what="every message recorded as sent")
            values = {
                "rate": sink.rate(1, messages),
                "rate_release_last": messages / (sink.at(messages) - released),
                "accept_rate": messages / seconds,
                "pss_mib": used.pss_mib,
                "busy_cores": used.busy_cores,
            }
            if messages > counted:
                values["cpu_s_per_1000"] = 1000 * used.cpu_s / (messages - counted)
            return replace(blank, values=values, foreign_cores=used.foreign_cores)
        finally:
            queue.close()
            if proxy:
                proxy.close()
            sink.close()


def drain(plan: Plan) -> Iterator[Figure]:
    """A full queue to one site over 20 connections; then Mailstrom over fewer and more."""
    case = f"{CONNECTIONS} connections"
    for run in range(1, plan.runs + 1):
        for name, uvloop, make in contenders(plan):
            n = plan.many(SIZES[name][0])
            blank = Figure(
                bench="drain", case=case, who=name, uvloop=uvloop, run=run, n=n, at=CONNECTIONS
            )
            yield attempt(blank, lambda blank, make=make, n=n: _drained(make, n, 0.0, blank))  # type: ignore[misc]


def connections(plan: Plan) -> Iterator[Figure]:
    """The same over fewer and over more connections, beside Postfix where that is asked for."""
    some = replace(plan, peers=tuple(peer for peer in plan.peers if peer == "postfix"))
    sweep = SWEEP if plan.scale == 1 else SWEEP[1:2]
    for run, number in product(range(1, plan.runs + 1), sweep):
        for name, uvloop, make in contenders(some, connections=number):
            n = plan.many(SIZES[name][0] // 4 if number == 1 else SIZES[name][0] // 2)
            blank = Figure(
                bench="connections", case=f"{number}", who=name,
                uvloop=uvloop, run=run, n=n, at=number,
            )  # fmt: skip
            yield attempt(blank, lambda blank, make=make, n=n: _drained(make, n, 0.0, blank))  # type: ignore[misc]


def _far(plan: Plan, rtt_ms: float, run: int, share: float) -> Iterator[Figure]:
    for name, uvloop, make in contenders(plan, far=True):
        n = plan.many(int(SIZES[name][2] * share))
        blank = Figure(
            bench="latency", case=f"{rtt_ms:g} ms, {CONNECTIONS} connections", who=name,
            uvloop=uvloop, run=run, n=n, at=rtt_ms,
        )  # fmt: skip

        def measure(blank: Figure, make: Maker = make, n: int = n) -> Figure:
            figure = _drained(make, n, rtt_ms, blank)
            bound = {"bound_rate": CONNECTIONS / (rtt_ms / 1000)}  # one round trip a message
            return replace(figure, values={**figure.values, **bound})

        yield attempt(blank, measure)


def latency(plan: Plan) -> Iterator[Figure]:
    """A full queue across 50 ms of round trip, 20 connections; then across other distances."""
    for run in range(1, plan.runs + 1):
        yield from _far(plan, RTT_MS, run, 1)
    if plan.scale == 1:
        some = replace(
            plan, peers=tuple(peer for peer in plan.peers if peer == "postfix"),
            loops=(plan.fastest,),
        )  # fmt: skip
        for run, rtt_ms in product(range(1, plan.runs + 1), ROUND_TRIPS):
            yield from _far(some, rtt_ms, run, RTT_MS / rtt_ms)


def through(make: Maker, messages: int, blank: Figure) -> Figure:
    """Messages that are offered while delivery goes on, from the first call to the last arrival."""
    with folder() as home:
        sink = Sink()
        queue = make(home, sink.port)
        try:
            queue.serve()
            meter = Meter(queue.roots, memory=True)
            begin, end = queue.offer(messages)
            whole = sink.wait(messages, LIMIT_S)
            time.sleep(AFTERWARDS_S)
            used = meter.stop()
            if not whole:
                raise RuntimeError(f"{sink.count} of {messages} arrived; {queue.words()}")
            eventually(lambda: not queue.left(), SETTLED_S, what="every message recorded as sent")
            values = {
                "rate": messages / (sink.at(messages) - begin),
                "accept_rate": messages / (end - begin),
                "cpu_s_per_1000": 1000 * used.cpu_s / messages,
                "pss_mib": used.pss_mib,
                "busy_cores": used.busy_cores,
            }
            return replace(blank, values=values, foreign_cores=used.foreign_cores)
        finally:
            queue.close()
            sink.close()


def e2e(plan: Plan) -> Iterator[Figure]:
    """From the first call of four applications to the last arrival, delivery going on meanwhile.

    They have five threads each, so that 20 hand over at once, as over Postfix's 20 sessions; then
    four processes of one thread, which is more than they can share a commit with.
    """
    alone = replace(plan, peers=(), loops=(plan.fastest,))
    forms: Sequence[tuple[str, str, int, Plan]] = (
        ("ready bytes", "send", CALLERS, plan),
        ("ready bytes, one thread a process", "send", 1, alone),
        ("an EmailMessage built per call", "email", CALLERS, alone),
    )
    for run in range(1, plan.runs + 1):
        for case, verb, callers, whom in forms:
            for name, uvloop, make in contenders(whom, verb=verb, callers=callers):
                n = plan.many(SIZES[name][1] // (1 if verb == "send" else 2))
                blank = Figure(bench="e2e", case=case, who=name, uvloop=uvloop, run=run, n=n)
                yield attempt(blank, lambda blank, make=make, n=n: through(make, n, blank))  # type: ignore[misc]
