"""Cases of DNS: answers that change between two attempts, and hosts behind them that are dead.

Each is a story: what is said first, what happens, what is said then. Routes are made old by hand
(``Engine.age_route``), as time would.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from mailstrom.testing.script import Rule, Script
from tests.hostile.dns_peer import MX, Question, Say, host, mx, nowhere, only, right
from tests.hostile.dns_trouble import DELIVERED, NO_DOMAIN
from tests.hostile.dns_world import World
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually, loopback_addresses

BUSY = Script(rules=(Rule(stage="rcpt", code=450),))
STATUS = "SELECT status, reason, attempts FROM recipients WHERE message_id = ?"


def rows(world: World) -> Iterator[Row]:
    """All stories."""
    stories: dict[str, tuple[str, Callable[[World], str]]] = {
        "the address changes from A to B": ("delivered by B; A met 0 times more", _a_to_b),
        "exists, then NXDOMAIN, then exists": (f"{NO_DOMAIN}; then {DELIVERED}", _comes_and_goes),
        "exists, then SERVFAIL, then exists": ("waits; then delivered", _trouble_between),
        "another answer each time: A, trouble, B": ("delivered; no other host met", _flapping),
        "one host of three is a black hole": (DELIVERED, _hole_first),
        "all three hosts are black holes": ("deferred connect, 0 charged", _holes),
        "equal hosts, one a black hole, 12 messages": ("12 delivered", _hole_among_equals),
    }
    for name, (wanted, story) in stories.items():
        yield world.judged(name, wanted, lambda story=story: story(world))  # type: ignore[misc]


def _leads(*names: str) -> Say:
    """To these hosts, best first."""
    return only(MX, lambda q: right(q, *[mx(name, n) for n, name in enumerate(names)]))


def _tried(world: World, id: str, attempts: int = 1) -> None:
    """Wait until it was refused so often."""
    world.stand.engine.until(f"{STATUS} AND attempts >= ?", id, attempts)


def _a_to_b(world: World) -> str:
    engine, domain = world.stand.engine, world.domain()
    first, second = world.server(BUSY), world.server()
    world.peer.says(domain, _leads(world.well(f"a.{domain}", server=first)))
    id = engine.send(f"a@{domain}")
    _tried(world, id)
    world.peer.says(domain, _leads(world.well(f"b.{domain}", server=second)))
    engine.age_route(domain)
    resolved = "SELECT 1 FROM domains WHERE name = ? AND hosts LIKE '%b.%'"
    engine.until(resolved, domain)
    met = len(first.connections)  # from now on the current answer does not name it
    engine.final(id)
    by = "B" if second.dots else "nobody"
    return f"delivered by {by}; A met {len(first.connections) - met} times more"


def _comes_and_goes(world: World) -> str:
    engine, domain = world.stand.engine, world.domain()
    busy = world.server(BUSY)
    world.peer.says(domain, _leads(world.well(f"a.{domain}", server=busy)))
    id = engine.send(f"a@{domain}")
    _tried(world, id)
    world.peer.says(domain, nowhere)
    engine.age_route(domain)
    engine.final(id)
    (row,) = engine.rows(STATUS, id)
    # what was refused by a host was charged; the denial is one more
    seen = f"{row.status} {row.reason}, {row.attempts - len(busy.transactions)} charged"
    world.peer.says(domain, _leads(world.well(f"b.{domain}")))
    engine.age_route(domain)
    return f"{seen}; then {world.sent(f'b@{domain}')}"


def _trouble_between(world: World) -> str:
    engine, domain = world.stand.engine, world.domain()
    world.peer.says(domain, _leads(world.well(f"a.{domain}", server=world.server(BUSY))))
    id = engine.send(f"a@{domain}")
    _tried(world, id)
    world.peer.says(domain, lambda question: right(question, rcode=2))
    engine.age_route(domain)
    engine.until("SELECT 1 FROM domains WHERE name = ? AND result = 'temporary'", domain)
    (row,) = engine.rows(STATUS, id)
    seen = "waits" if row.status in ("queued", "deferred", "sending") else row.status
    world.peer.says(domain, _leads(world.well(f"b.{domain}")))
    engine.age_route(domain)
    return f"{seen}; then {engine.final(id).status}"


def _flapping(world: World) -> str:
    """Three answers in turn, one a lookup; only who is named by the last one may be met."""
    engine, domain = world.stand.engine, world.domain()
    first, second = world.server(BUSY), world.server(BUSY)
    world.well(f"a.{domain}", server=first)
    world.well(f"b.{domain}", server=second)
    turn = 0
    said: list[str] = []

    def flap(question: Question) -> object:
        nonlocal turn
        turn += 1
        said.append(("a", "trouble", "b")[turn % 3])
        if said[-1] == "trouble":
            return right(question, rcode=2)
        return right(question, mx(f"{said[-1]}.{domain}"))

    world.peer.says(domain, only(MX, flap))  # type: ignore[arg-type]
    hosts = {"a": first, "b": second}
    id = engine.send(f"a@{domain}")
    attempts: Counter[str] = Counter()
    looked = wrong = 0
    for _ in range(6):
        eventually(lambda looked=looked: turn > looked, DEADLINE_S, what="a lookup")  # type: ignore[misc]
        named, met = said[looked], {one: len(hosts[one].connections) for one in hosts}
        if named == "trouble":
            engine.until("SELECT 1 FROM domains WHERE name = ? AND result = 'temporary'", domain)
        else:
            attempts[named] += 1
            sql = "SELECT 1 FROM attempts WHERE message_id = ? AND host = ?"
            engine.until(sql, id, f"{named}.{domain}", count=attempts[named])
        wrong += sum(len(hosts[one].connections) - met[one] for one in hosts if one != named)
        looked = turn
        engine.age_route(domain)
    world.peer.says(domain, _leads(world.well(f"end.{domain}")))
    engine.age_route(domain)
    status = engine.final(id).status
    return f"{status}; {wrong or 'no'} other host met"


@contextmanager
def _black_holes(world: World, count: int) -> Iterator[list[str]]:
    """Addresses whose queue of connections is full: a connect gets no answer."""
    addresses = loopback_addresses(count)
    port = world.stand.network.port
    held: list[socket.socket] = []
    try:
        for one in addresses:
            held.append(socket.create_server((one, port), backlog=0))
            for _ in range(4):
                waiting = socket.socket()
                waiting.setblocking(False)
                waiting.connect_ex((one, port))
                held.append(waiting)
        yield addresses
    finally:
        for one_held in held:
            one_held.close()


def _named(world: World, domain: str, addresses: list[str]) -> list[str]:
    names = [f"h{number}.{domain}" for number in range(len(addresses))]
    for name, one in zip(names, addresses, strict=True):
        world.peer.says(name, host(one))
    return names


def _hole_first(world: World) -> str:
    domain = world.domain()
    with _black_holes(world, 1) as (hole,):
        alive = [world.server().host for _ in range(2)]
        world.peer.says(domain, _leads(*_named(world, domain, [hole, *alive])))
        return world.sent(f"a@{domain}")


def _holes(world: World) -> str:
    domain = world.domain()
    with _black_holes(world, 3) as holes:
        world.peer.says(domain, _leads(*_named(world, domain, holes)))
        return world.sent(f"a@{domain}")


def _hole_among_equals(world: World) -> str:
    engine, domain = world.stand.engine, world.domain()
    with _black_holes(world, 1) as (hole,):
        names = _named(world, domain, [hole, world.server().host, world.server().host])
        equal = only(MX, lambda q: right(q, *[mx(name, 5) for name in names]))
        world.peer.says(domain, equal)
        ids = [engine.send(f"u{number}@{domain}") for number in range(12)]
        return f"{sum(engine.final(id).succeeded for id in ids)} delivered"


def guessable(world: World) -> Row:
    """Whether ids and ports of all questions of a world follow a pattern."""
    asked = [question for question in list(world.peer.asked) if not question.tcp]
    numbers = [int.from_bytes(question.id, "big") for question in asked]
    ports = [question.port for question in asked]
    found = [*pattern("ids", numbers), *pattern("ports", ports)]
    row = Row(
        case="ids and ports of all questions", wanted="no pattern", seen="no pattern",
        tried=len(asked), findings=tuple(found),
    )  # fmt: skip
    return row if not found else replace(row, seen="a pattern")


def pattern(what: str, numbers: list[int]) -> Iterator[str]:
    """What is wrong with numbers that should be random, each of at least 15 bits."""
    count = len(numbers)
    if count < 50:
        yield f"only {count} {what}: nothing can be said"
        return
    again = count - len(set(numbers))
    if again > 3 + count * count / 2**14:  # four times what chance would do
        yield f"{again} of {count} {what} came again"
    steps = [(b - a) % 65536 for a, b in pairwise(numbers)]
    for step in set(steps):
        if steps.count(step) > 3 + count / 50:
            yield f"{what} go by steps of {step}"
    if max(numbers) - min(numbers) < 8192:
        yield f"{what} are within {max(numbers) - min(numbers)}"
