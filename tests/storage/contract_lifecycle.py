"""Conformance with the table of a recipient's life: legal pairs move, all others change nothing.

Every (state, verb) of ``mailstrom.policy.lifecycle`` is tried. A verb reaches a state in whatever
guise callers have for it: ``release`` of what is on the wire is a ``lapse`` of one lane, giving one
claim back by a settlement is a ``release`` of one recipient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mailstrom.policy.lifecycle import PUBLIC, TRANSITIONS, State, Verb, after
from mailstrom.storage.base import Claimed, Lane, Refusal
from mailstrom.storage.client import ClientStore
from mailstrom.types import OnDoubt, Reason, RouteResult
from tests.storage.spool import DAY, HOUR, T0, Spool, change, settlement

TARGET = "target@example.org"
LATER = T0 + HOUR
LATER_VERBS = {Verb.HOLD, Verb.RELEASE_HOLD, Verb.RESOLVE_DELIVERED, Verb.RESOLVE_FAILED}
"""No method of the Protocols reaches these yet; the test below tells when one does."""

_GUISE = {
    (State.CLAIMED, Verb.SETTLE_AGAIN): Verb.RELEASE,
    (State.SENDING, Verb.RELEASE): Verb.LAPSE,
    (State.CLAIMED, Verb.LAPSE_HELD): Verb.LAPSE,
    # A delivery that is settled without having been opened is taken as a late truth.
    **{
        (state, Verb.SETTLE_DELIVERED): Verb.SETTLE_LATE
        for state in State
        if (state, Verb.SETTLE_DELIVERED) not in TRANSITIONS
    },
}


@dataclass
class Case:
    """A spool with one recipient in a state, and another one that must not move."""

    spool: Spool
    id: str
    lane: Lane
    row: Claimed | None
    recipient: int


def build(spool: Spool, state: State) -> Case:
    """Bring the target into a state by legal steps only."""
    id = spool.send(TARGET, "bystander@example.net", expires_ms=T0 + DAY)
    spool.route("example.org", ttl=2 * HOUR)
    lane = spool.lane()
    (row,) = spool.claim(lane)
    case = Case(spool, id, lane, row, row.recipient)
    if state is State.QUEUED:
        assert spool.settle(lane, row, "queued")
    elif state is State.CANCELLED:
        assert change(spool.client, "cancel", [id], TARGET, T0) == 1
    elif state is not State.CLAIMED:
        assert spool.open(lane, [row]) == {row.recipient}
        if state is not State.SENDING:
            assert spool.settle(lane, row, state.value)
    assert spool.status(id)[TARGET] == PUBLIC[state]
    return case


def _settle(word: str) -> Callable[[Case], None]:
    def step(case: Case) -> None:
        case.spool.exchange(settlements=[settlement(case.lane.token, case.recipient, word)])

    return step


def _late(case: Case) -> None:
    stranger = settlement(case.lane.token + 1_000, case.recipient, "delivered")
    case.spool.exchange(settlements=[stranger])


def _claim(case: Case) -> None:
    case.spool.claim(case.lane, now=LATER)


def _open(case: Case) -> None:
    assert case.row is not None
    case.spool.open(case.lane, [case.row])


def _release(case: Case) -> None:
    case.spool.engine.release([case.lane.token], T0)


def _lapse(on_doubt: OnDoubt) -> Callable[[Case], None]:
    def step(case: Case) -> None:
        case.spool.engine.lapse(case.spool.worker, boot="boot-1", now_ms=T0, on_doubt=on_doubt)

    return step


def _reroute(case: Case) -> None:
    """The route is too old: its domain is to be looked up again, for a companion at least."""
    case.spool.send("companion@example.org", created_ms=T0 + DAY - HOUR, send_ms=T0 + DAY - HOUR)
    case.spool.claim(case.lane, now=T0 + DAY - HOUR)


def _route_failed(case: Case) -> None:
    _reroute(case)
    refusal = Refusal(Reason.NULL_MX, "5.1.10", "takes no mail")
    now = T0 + DAY - HOUR
    case.spool.route("example.org", result=RouteResult.NULL_MX, refusal=refusal, now=now)
    case.spool.claim(case.lane, now=now)  # its stamp is of the generation before
    for due in case.spool.engine.due_domains(case.spool.worker, 9, now):
        if due.name == "example.org":
            answer = case.spool.answer(due.name, result=RouteResult.NULL_MX, refusal=refusal)
            case.spool.engine.put_routes(case.spool.worker, [answer], now)


def _route_deferred(case: Case) -> None:
    _reroute(case)
    yet_to_come = time.time_ns() // 1_000_000 - T0 + 300 * DAY  # views look at the real clock
    case.spool.route(
        "example.org", result=RouteResult.TEMPORARY, now=T0 + DAY - HOUR, ttl=yet_to_come
    )


def _expire(case: Case) -> None:
    change(case.spool.client, "retry", [case.id], "bystander@example.net", T0)
    case.spool.engine.expire(100, T0 + DAY)


def _cancel(case: Case) -> None:
    change(case.spool.client, "cancel", [case.id], TARGET, T0)


def _retry(case: Case) -> None:
    change(case.spool.client, "retry", [case.id], TARGET, T0)


STEPS: dict[Verb, Callable[[Case], None]] = {
    Verb.CLAIM: _claim,
    Verb.OPEN: _open,
    Verb.SETTLE_DELIVERED: _settle("delivered"),
    Verb.SETTLE_DEFERRED: _settle("deferred"),
    Verb.SETTLE_FAILED: _settle("failed"),
    Verb.SETTLE_HELD: _settle("held"),
    Verb.SETTLE_AGAIN: _settle("queued"),
    Verb.SETTLE_ONWARD: _settle("claimed"),
    Verb.SETTLE_LATE: _late,
    Verb.RELEASE: _release,
    Verb.LAPSE: _lapse(OnDoubt.RETRY),
    Verb.LAPSE_HELD: _lapse(OnDoubt.HOLD),
    Verb.ROUTE_DEFERRED: _route_deferred,
    Verb.ROUTE_FAILED: _route_failed,
    Verb.EXPIRE: _expire,
    Verb.CANCEL: _cancel,
    Verb.RETRY: _retry,
}


def expected(state: State, verb: Verb) -> State:
    """Where the table says that the verb leads."""
    return after(state, _GUISE.get((state, verb), verb)) or state


class LifecycleContract:
    """The table, pair by pair."""

    def test_every_verb_of_the_table_is_tried_or_not_yet_offered(self) -> None:
        assert set(STEPS) | LATER_VERBS == set(Verb)
        assert not {"hold", "release", "resolve"} & set(dir(ClientStore))

    @pytest.mark.parametrize("verb", list(STEPS))
    @pytest.mark.parametrize("state", list(State))
    def test_pair(self, spool: Spool, state: State, verb: Verb) -> None:
        case = build(spool, state)
        STEPS[verb](case)
        reached = expected(state, verb)
        found = spool.client.statuses([case.id])[case.id].recipients
        # A claim of what was deferred goes on being shown as that.
        shown = state if (state, verb) == (State.DEFERRED, Verb.CLAIM) else reached
        assert found[TARGET].status == PUBLIC[shown]
        # What a lane holds has no due time, what waits has one: so the two that the views show as
        # queued are told apart.
        waits = reached in {State.QUEUED, State.DEFERRED}
        assert (found[TARGET].next_attempt_at is not None) == waits
        if verb is not Verb.EXPIRE:
            assert found["bystander@example.net"].status == "queued"
        spool.sound()

    def test_what_is_open_is_opened_again_for_its_session_while_its_lane_has_it(
        self, spool: Spool
    ) -> None:
        id, lane, rows = spool.sending("a@example.org", "b@example.org")
        assert spool.open(lane, rows, now=T0 + 10) == {row.recipient for row in rows}
        spool.settle(lane, rows[0], "delivered", now=T0 + 20)
        assert spool.open(lane, rows, now=T0 + 30) == {rows[1].recipient}
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0 + 40)
        assert spool.open(lane, rows, now=T0 + 50) == frozenset()
        assert spool.status(id)["b@example.org"] == "deferred"
        spool.sound()
