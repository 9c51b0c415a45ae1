"""A server that ends its connection behind recipients it refused: who is left, and how often."""

from __future__ import annotations

import pytest

from mailstrom.policy.outcome import judge
from mailstrom.policy.rounds import MOST_ATTEMPTS, MOST_CLOSES, Rounds, closed_behind_refusals
from mailstrom.policy.verdict import Action, Turn, Verdict
from mailstrom.smtp.transaction import Extension, Fault, TransactionEnd
from mailstrom.types import Judgement, OnDoubt, Reason, Stage
from tests.unit.policy.test_limits import GO, OK, ended, said

NO, GREY, FULL = said("550 5.1.1 nobody"), said("450 4.7.1 later"), said("552 5.2.2 mailbox full")
CLOSING = said("421 4.5.0 too many errors")
BEFORE = {"data": None, "dot": None, "stage": Stage.RCPT, "dot_written": False, "usable": False}
CLOSED = {**BEFORE, "fault": Fault.CLOSED}


def verdicts(
    end: TransactionEnd, *, left: Action | None = Action.NEXT_SESSION, last_host: bool = True
) -> list[Verdict]:
    return [
        judge(end, n, last_host=last_host, reused=True, on_doubt=OnDoubt.RETRY, left=left)
        for n in range(len(end.rcpts))
    ]


@pytest.mark.parametrize(
    "end",
    [
        ended(OK, NO, CLOSING, None, **BEFORE),
        ended(NO, CLOSING, **BEFORE),
        ended(NO, OK, **BEFORE | {"data": CLOSING, "stage": Stage.DATA}),
        ended(OK, NO, None, None, **CLOSED),
        ended(NO, OK, **CLOSED | {"stage": Stage.DATA}),
        ended(OK, NO, CLOSING, **BEFORE | {"dot_written": True}),
    ],
)
@pytest.mark.parametrize("last_host", [True, False])
def test_who_is_left_goes_on_another_connection_uncharged(
    end: TransactionEnd, last_host: bool
) -> None:
    assert closed_behind_refusals(end)
    told = verdicts(end, last_host=last_host)
    for verdict, reply in zip(told, end.rcpts, strict=True):
        if reply is NO:
            assert (verdict.action, verdict.reply_code) == (Action.FAIL, 550)
        elif end.dot_written and reply is not CLOSING:
            assert (verdict.action, verdict.in_doubt) == (Action.DEFER, True)
        else:
            assert (verdict.action, verdict.judgement) == (Action.NEXT_SESSION, None)
            first = end.rcpts.index(reply)
            turn = Turn.TAKEN if reply is OK else Turn.UNASKED
            if reply is CLOSING or (reply is None and CLOSING not in end.rcpts):
                turn = Turn.CLOSED_ON if told[first] is verdict else Turn.UNASKED
            assert (verdict.turn, verdict.in_doubt) == (turn, False)


@pytest.mark.parametrize(
    "end",
    [
        ended(OK, CLOSING, None, **BEFORE),  # nobody is settled: this could go on for ever
        ended(OK, GREY, CLOSING, **BEFORE),
        ended(OK, FULL, CLOSING, **BEFORE),
        ended(NO, NO, **CLOSED),  # nobody is left
        ended(NO, GREY, **CLOSED),
        ended(OK, NO, None, **BEFORE, mail=said("421 closing")),
        ended(OK, NO, None, **CLOSED | {"fault": Fault.TIMEOUT}),  # it did not end it
        ended(OK, NO, None, **CLOSED | {"fault": Fault.GARBAGE}),
        ended(OK, NO, **CLOSED | {"fault": Fault.CUT}),
        ended(OK, NO, **CLOSED | {"data": GO, "stage": Stage.BODY}),  # it is about the content
        ended(OK, NO, **CLOSED | {"data": GO, "stage": Stage.DOT, "dot_written": True}),
        ended(OK, NO, **BEFORE | {"data": GO, "dot": CLOSING, "stage": Stage.DOT}),
        ended(OK, NO),
    ],
)
def test_where_nobody_is_settled_or_the_content_was_begun_it_is_as_ever(
    end: TransactionEnd,
) -> None:
    assert not closed_behind_refusals(end)
    assert all(one.action is not Action.NEXT_SESSION for one in verdicts(end, left=None))


def test_too_often_they_are_deferred_by_the_servers_words_and_no_other_host_is_asked() -> None:
    end = ended(NO, CLOSING, None, OK, GREY, **BEFORE)
    told = verdicts(end, left=Action.DEFER, last_host=False)
    assert [one.action for one in told] == [
        Action.FAIL, Action.DEFER, Action.DEFER, Action.DEFER, Action.NEXT_HOST,
    ]  # fmt: skip
    for verdict in told[1:4]:
        assert (verdict.judgement, verdict.reason) == (Judgement.DEFERRED, Reason.REMOTE)
        assert (verdict.reply_code, verdict.reply_text) == (421, "too many errors")
        assert not verdict.in_doubt
    (_, lost) = verdicts(ended(NO, None, **CLOSED), left=Action.DEFER, last_host=False)
    assert (lost.action, lost.reply_text) == (
        Action.DEFER, "connection closed by the server at rcpt",
    )  # fmt: skip


def test_a_liberty_that_was_mishandled_is_no_verdict_either() -> None:
    end = ended(NO, OK, **CLOSED, chunked=True, stumbled=Extension.CHUNKING)
    told = verdicts(end)
    assert [one.action for one in told] == [Action.FAIL, Action.NEXT_SESSION]


def test_an_attempt_has_so_many_rounds_and_the_next_one_as_many() -> None:
    rounds = Rounds()
    for attempt in range(2):
        follows = [rounds.closed(("site", 7, attempt)) for _ in range(MOST_CLOSES + 3)]
        assert follows == [True] * (MOST_CLOSES - 1) + [False] * 4
    assert rounds.closed(("other", 7, 0))


def test_what_is_remembered_is_bounded_and_an_attempt_under_way_is_not_forgotten() -> None:
    rounds = Rounds()
    for _ in range(MOST_CLOSES):
        rounds.closed("first")
    for number in range(2 * MOST_ATTEMPTS):
        rounds.closed(number)
        if not number % (MOST_ATTEMPTS // 2):
            assert not rounds.closed("first")
    assert len(rounds._closes) == MOST_ATTEMPTS
