"""DNS that lies, in the short form; and proof that the judges of that group object."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom_workers import dnswire
from tests.hostile import dns_wire
from tests.hostile.dns import run
from tests.hostile.dns_changes import pattern
from tests.hostile.dns_peer import MX, Out, Question, host, message, mx, only, right
from tests.hostile.dns_trouble import DELIVERED, WAITS
from tests.hostile.dns_world import RETRIES, Case, World, flat, raw, world
from tests.support.trial import Plan


@pytest.mark.timeout(300)
def test_every_lie_of_the_dns_ends_as_it_should(tmp_path: Path) -> None:
    rows = list(run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) > 110
    assert sum(row.tried for row in rows) > 9_000


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(Plan(folder=tmp_path_factory.mktemp("judged")), "names") as found:
        yield found


def test_a_verdict_that_was_not_wanted_is_not_clean(judged: World) -> None:
    row = judged.tried(Case(name="denies", wanted=WAITS, says=flat(lambda q: right(q, rcode=3))))
    assert (row.seen, row.clean) == ("failed no_domain, 1 charged", False)


def test_a_host_that_only_lies_name_is_not_met_unseen(judged: World) -> None:
    """As if the lie had been believed: here it is no lie."""
    says = flat(only(MX, lambda q: right(q, mx("mx.evil.test"))))
    row = judged.tried(Case(name="leads to evil", wanted=DELIVERED, says=says))
    assert row.seen == DELIVERED
    assert row.findings == ("a host was contacted that no right answer names",)


def test_a_connection_to_loopback_would_be_seen(judged: World) -> None:
    """This engine may deliver there: the same case as for the one that may not."""
    says = flat(only(MX, lambda q: right(q, mx("localhost"))))
    judged.peer.says("localhost", host("127.0.0.1"))
    row = judged.tried(Case(name="leads to localhost", wanted=WAITS, says=says))
    assert (row.seen, row.clean) == ("deferred connect, 0 charged", False)


def test_a_name_server_that_cannot_do_what_a_case_wants_is_told(judged: World) -> None:
    says = flat(lambda q: (Out(message(q, id=b"", counts=(70_000, 0, 0, 0))),))
    row = judged.tried(Case(name="asks for too much", wanted=WAITS, says=says))
    assert row.findings
    assert "the name server itself" in row.findings[0]


def _questions(count: int) -> list[Question]:
    return [
        Question(wire=b"", name="d.test", kind=MX, tcp=False, port=1, number=n, at=float(n))
        for n in range(count)
    ]


def test_a_storm_of_questions_is_told_and_retries_are_none() -> None:
    assert list(World.storm(_questions(RETRIES + 4), 4.0)) == []
    (told,) = World.storm(_questions(RETRIES + 5), 4.0)
    assert told == "MX of d.test was asked 11 times in 4 s"


@pytest.mark.parametrize("octet", [b"\x1b", b"\r", b"\0", b"\x7f", b"\t"])
def test_a_raw_control_character_in_the_log_is_told(octet: bytes) -> None:
    assert list(raw(b'{"a": "b"}\n')) == []
    assert len(list(raw(b'{"a": "' + octet + b'"}\n'))) == 1


def test_numbers_that_can_be_guessed_are_told() -> None:
    dice = random.Random(1)
    numbers = [dice.randrange(65536) for _ in range(400)]
    assert list(pattern("ids", numbers)) == []
    assert list(pattern("ids", [n % 65536 for n in range(0, 4_000, 10)]))
    assert list(pattern("ids", [number % 500 for number in numbers]))
    assert list(pattern("ids", [4711] * 400))
    assert list(pattern("ids", [7, 8]))


def test_what_is_costly_or_raises_anything_else_is_told(tmp_path: Path) -> None:
    def slow(wire: bytes, asked: bytes) -> object:
        until = time.process_time() + 2 * dns_wire.MOST_S
        while time.process_time() < until:
            dnswire.read(wire, asked)
        return None

    def greedy(wire: bytes, asked: bytes) -> object:
        return bytes(11 << 20)

    def fragile(wire: bytes, asked: bytes) -> object:
        raise KeyError(wire[40])

    (wire, *_) = [
        wire for name, wire in dns_wire._costly().items() if name.startswith("MX records of 2,000")
    ]
    assert dns_wire.reading("hosts", wire).clean
    assert "took" in dns_wire.reading("slow", wire, slow).findings[0]
    assert "11.0 MiB" in dns_wire.reading("greedy", wire, greedy).findings[-1]
    assert dns_wire.reading("fragile", wire, fragile).seen == "KeyError"
    row = dns_wire.damaged(Plan(folder=tmp_path), fragile)
    assert not row.clean
    assert len(row.findings) == 3
