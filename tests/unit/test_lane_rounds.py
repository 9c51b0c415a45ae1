"""A host that ends each connection behind recipients it refused: the next one, and how many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mailstrom.policy.rounds import MOST_CLOSES
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Fault, TransactionEnd
from mailstrom.types import Host, Stage
from mailstrom_workers.ladder import SUSPICION_MS
from mailstrom_workers.transactions import Again, Transaction
from tests.unit.lane_rig import HUNG, NEVER, OK, Rig, end, row

CLOSING = Reply(421, "4.5.0", ("4.5.0 too many errors, bye",))


def counting(
    rig: Rig, known: Callable[[int], bool], *, errors: int = 3, word: Reply | None = CLOSING
) -> Callable[[Any], TransactionEnd]:
    """A server that ends a connection with its so-manieth refused recipient.

    Args:
        known: recipients that it takes.
        word: in place of the last refusal; None: it only closes behind that.
    """
    refused: dict[int, int] = {}

    def says(outgoing: Any) -> TransactionEnd:
        numbers = [one.recipient for one in outgoing.of.recipients]
        server = id(next(one for one in reversed(rig.opened) if outgoing in one.wire))
        rcpts: list[Reply | None] = []
        for number in numbers:
            if known(number):
                rcpts.append(OK)
                continue
            refused[server] = refused.get(server, 0) + 1
            if refused[server] == errors:
                rcpts += [NEVER] if word is None else [word]
                rcpts += [None] * (len(numbers) - len(rcpts))
                return end(
                    rcpts=tuple(rcpts), data=None, dot=None, stage=Stage.RCPT, dot_written=False,
                    usable=False, fault=Fault.CLOSED if word is None else None,
                )  # fmt: skip
            rcpts.append(NEVER)
        if OK in rcpts:
            return end(rcpts=tuple(rcpts))
        return end(rcpts=tuple(rcpts), data=None, dot=None, stage=Stage.RCPT, dot_written=False)

    return says


def rig_of(monkeypatch: pytest.MonkeyPatch, count: int, **facts: Any) -> Rig:
    return Rig(monkeypatch, *(row(n, message=1, **facts) for n in range(1, count + 1)))


def charged(rig: Rig) -> list[int]:
    """Recipients with an attempt that was no delivery and no refusal of their own."""
    return [s.recipient for s in rig.store.settled if s.attempt and s.state == "deferred"]


@pytest.mark.parametrize("word", [CLOSING, None])
def test_one_known_among_many_unknown_has_its_mail_at_the_first_attempt(
    monkeypatch: pytest.MonkeyPatch, word: Reply | None
) -> None:
    rig = rig_of(monkeypatch, 10)
    rig.says = counting(rig, lambda n: n == 10, word=word)  # type: ignore[method-assign]
    lane = rig.run()
    assert rig.store.states.pop(10) == "delivered"
    assert set(rig.store.states.values()) == {"failed"}
    assert charged(rig) == []
    assert {one.facts.host for one in rig.opened} == {"mx1.test"}, "no other host is asked"
    assert rig.store.suspended == []
    assert lane.walk.connector.trouble is None
    assert [one.lessons for one in rig.store.work if one.lessons] == [], "no flight is to blame"


def test_who_was_taken_has_it_on_the_next_connection_whoever_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of(monkeypatch, 9)
    rig.says = counting(rig, lambda n: n % 3 == 1)  # type: ignore[method-assign]
    rig.run()
    sent = [tuple(int(one[1:].partition("@")[0]) for one in each) for each in rig.envelopes]
    assert sent == [tuple(range(1, 10)), (1, 4), (6, 7, 8, 9, 5), (7,), (5, 9)]
    assert len(rig.opened) == 3
    assert {n for n, state in rig.store.states.items() if state == "delivered"} == {1, 4, 7}
    assert charged(rig) == []
    assert rig.lanes[0].ctx._held_bytes == 0, "each part counted, and is free"


def test_other_messages_of_the_connection_go_on_and_are_not_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of(monkeypatch, 7)
    rig.store.add(*(row(n) for n in range(11, 31)))
    rig.says = counting(rig, lambda n: n > 6)  # type: ignore[method-assign]
    rig.run()
    assert {n for n, state in rig.store.states.items() if state == "failed"} == set(range(1, 7))
    assert {state for n, state in rig.store.states.items() if n > 6} == {"delivered"}
    assert charged(rig) == []


def test_a_host_that_closed_often_enough_is_left_alone_until_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of(monkeypatch, 60)
    rig.says = counting(rig, lambda n: n in (1, 60))  # type: ignore[method-assign]
    rig.run()
    assert len(rig.opened) == MOST_CLOSES
    assert rig.store.states[1] == "delivered"
    left = [n for n, state in rig.store.states.items() if state == "deferred"]
    assert Counter(rig.store.states.values())["failed"] == 2 * MOST_CLOSES
    assert len(left) == 59 - 2 * MOST_CLOSES
    assert sorted(charged(rig)) == sorted(left), "once each"
    told = [s.attempt for s in rig.store.settled if s.attempt and s.state == "deferred"]
    assert {(one.host, one.reply_code) for one in told} == {("mx1.test", 421)}
    assert rig.store.suspended == [], "it is not the host's fault"


def test_a_host_that_then_lets_nobody_in_is_left_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of(monkeypatch, 5)
    rig.refuses = [None, HUNG]
    rig.says = counting(rig, lambda n: n == 5)  # type: ignore[method-assign]
    rig.run()
    assert [one.facts.host for one in rig.opened] == ["mx1.test", "mx2.test"]
    assert rig.store.states[5] == "delivered"
    assert charged(rig) == []


def test_where_there_is_no_other_the_site_rests_and_nobody_is_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of(monkeypatch, 5)
    rig.hosts = (Host(preference=10, name="mx1.test"),)
    rig.refuses = [None, HUNG]
    rig.says = counting(rig, lambda n: n == 5)  # type: ignore[method-assign]
    rig.run()
    assert {n: rig.store.states[n] for n in (1, 2)} == {1: "failed", 2: "failed"}
    assert {rig.store.states[n] for n in (3, 4, 5)} == {"queued"}
    assert len(rig.store.suspended) == 1
    assert charged(rig) == []


def test_what_left_in_one_flight_is_in_doubt_once_and_the_site_is_spared_bdat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of(monkeypatch, 4)
    rig.script[1] = [
        end(rcpts=(OK, NEVER, CLOSING, None), data=None, dot=None, stage=Stage.RCPT,
            usable=False, chunked=True)
    ]  # fmt: skip
    rig.offers = Capabilities(name="mx", pipelining=True, chunking=True)
    rig.run(chunking=True)
    assert rig.envelopes[1:] == [("r3@example.org",)], "he had a reply of his own: not in doubt"
    doubted = [s.recipient for s in rig.store.settled if s.attempt and s.attempt.in_doubt]
    assert doubted == [1, 4]
    (lesson,) = [one for work in rig.store.work for one in work.lessons]
    assert lesson.chunking is False
    assert 0 < (lesson.until_ms or 0) <= rig.lanes[0].ctx.now_ms() + SUSPICION_MS
    assert [bool(one.policy.dialect.chunk_octets) for one in rig.opened] == [True, False]


def test_a_round_is_no_reconnect_and_no_try() -> None:
    before = Transaction([row(1), row(2)], position=1, hosts_tried=1)
    left = Again(before, [row(2)], uncharged=True, left=True).transaction(1)
    assert (left.position, left.hosts_tried) == (1, 1)
    assert (left.reconnected, left.unanswered) == (False, False)
