"""The recipient's life: what the table must never allow."""

from __future__ import annotations

from collections import deque

import pytest

from mailstrom.policy.lifecycle import FINAL, PUBLIC, TRANSITIONS, State, Verb, after, mermaid
from mailstrom.types import Status

USERS = {Verb.CANCEL, Verb.HOLD, Verb.RETRY, Verb.RELEASE_HOLD}


def reachable(start: State, verbs: set[Verb]) -> set[State]:
    seen, waiting = {start}, deque([start])
    while waiting:
        state = waiting.popleft()
        for verb in verbs:
            reached = after(state, verb)
            if reached is not None and reached not in seen:
                seen.add(reached)
                waiting.append(reached)
    return seen


def test_every_state_and_every_verb_is_used() -> None:
    assert {verb for _, verb in TRANSITIONS} == set(Verb)
    assert reachable(State.QUEUED, set(Verb)) == set(State)


def test_delivered_and_cancelled_are_the_end_and_failed_only_reopens() -> None:
    for verb in Verb:
        assert after(State.DELIVERED, verb) is None
        assert after(State.CANCELLED, verb) is None
        assert after(State.FAILED, verb) in {None, State.QUEUED}
    assert after(State.FAILED, Verb.RETRY) is State.QUEUED


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_nothing_is_stuck_without_a_user(state: State) -> None:
    engine = set(Verb) - USERS - {Verb.RESOLVE_DELIVERED, Verb.RESOLVE_FAILED, Verb.SETTLE_LATE}
    assert reachable(state, engine) & FINAL


def test_the_wire_is_reached_by_claim_and_open_only() -> None:
    assert [key for key, reached in TRANSITIONS.items() if reached is State.SENDING] == [
        (State.CLAIMED, Verb.OPEN)
    ]
    assert {state for (state, verb) in TRANSITIONS if verb is Verb.CLAIM} == {
        State.QUEUED,
        State.DEFERRED,
    }


def test_what_is_on_the_wire_belongs_to_its_worker() -> None:
    for verb in (*USERS, Verb.EXPIRE, Verb.CLAIM, Verb.RELEASE, Verb.ROUTE_FAILED):
        assert after(State.SENDING, verb) is None


def test_a_lapse_loses_nothing_and_an_opened_recipient_is_not_simply_queued() -> None:
    assert after(State.CLAIMED, Verb.LAPSE) is State.QUEUED
    assert after(State.SENDING, Verb.LAPSE) is State.DEFERRED
    assert after(State.SENDING, Verb.LAPSE_HELD) is State.HELD


def test_retry_never_releases_what_is_held() -> None:
    assert after(State.HELD, Verb.RETRY) is None
    assert after(State.HELD, Verb.RELEASE_HOLD) is State.QUEUED


def test_expiry_holds_wherever_nothing_is_on_the_wire() -> None:
    waiting = set(State) - FINAL - {State.SENDING}
    assert {state for (state, verb) in TRANSITIONS if verb is Verb.EXPIRE} == waiting


def test_the_public_word_of_claimed_is_queued_and_all_others_their_own() -> None:
    assert PUBLIC[State.CLAIMED] is Status.QUEUED
    assert all(PUBLIC[state] == state.value for state in State if state is not State.CLAIMED)
    assert all(PUBLIC[state].final == (state in FINAL) for state in State)


def test_the_drawing_has_every_transition() -> None:
    drawing = mermaid()
    assert drawing.startswith("stateDiagram-v2\n    [*] --> queued: enqueue\n")
    for (state, verb), reached in TRANSITIONS.items():
        arrow = next(line for line in drawing.splitlines() if f" {state} --> {reached}:" in line)
        assert verb.value in arrow.partition(": ")[2].split(", ")
    assert "delivered --> [*]" in drawing
    assert drawing == mermaid()
