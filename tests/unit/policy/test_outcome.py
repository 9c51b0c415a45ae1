"""The failure policy, cell by cell: stage x cause, last host or not, reused or not."""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom.policy.outcome import (
    Action,
    FaultOf,
    Verdict,
    judge,
    judge_session,
)
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Extension, Fault, TransactionEnd
from mailstrom.types import Judgement, OnDoubt, Reason, Stage

OK = Reply.of(250, ["2.0.0 ok"])
GO = Reply.of(354, ["go ahead"])


def reply(code: int, text: str = "words of the server") -> Reply:
    return Reply.of(code, [text])


def end(
    *,
    mail: Reply | None = None,
    rcpts: tuple[Reply | None, ...] = (None,),
    data: Reply | None = None,
    dot: Reply | None = None,
    stage: Stage = Stage.MAIL,
    fault: Fault | None = None,
    dot_written: bool = False,
    answered: bool | None = None,
    behind: bool = False,
    stale: bool = False,
    stumbled: Extension | None = None,
) -> TransactionEnd:
    seen = any((mail, *rcpts, data, dot))
    return TransactionEnd(
        mail=mail,
        rcpts=rcpts,
        data=data,
        dot=dot,
        stage=stage,
        fault=fault,
        dot_written=dot_written,
        answered=seen if answered is None else answered,
        usable=fault is None,
        behind=behind,
        stale=stale,
        stumbled=stumbled,
    )


def decide(
    ended: TransactionEnd,
    index: int = 0,
    *,
    last_host: bool = True,
    reused: bool = False,
    on_doubt: OnDoubt = OnDoubt.RETRY,
) -> Verdict:
    return judge(ended, index, last_host=last_host, reused=reused, on_doubt=on_doubt)


# What the server said before the stage where it goes wrong.
BEFORE: dict[Stage, dict[str, Any]] = {
    Stage.MAIL: {},
    Stage.RCPT: {"mail": OK},
    Stage.DATA: {"mail": OK, "rcpts": (OK,)},
    Stage.BODY: {"mail": OK, "rcpts": (OK,), "data": GO},
    Stage.DOT: {"mail": OK, "rcpts": (OK,), "data": GO, "dot_written": True},
}
SLOT = {Stage.MAIL: "mail", Stage.DATA: "data", Stage.BODY: "dot", Stage.DOT: "dot"}


def at(stage: Stage, answer: Reply | Fault, *, later: Fault | None = None) -> TransactionEnd:
    """The transaction that goes well until ``stage``; pipelined ones lose more behind it."""
    facts = dict(BEFORE[stage])
    facts["stage"] = stage
    if isinstance(answer, Fault):
        return end(**facts, fault=answer, answered=stage is not Stage.MAIL)
    if stage is Stage.RCPT:
        facts["rcpts"] = (answer,)
    else:
        facts[SLOT[stage]] = answer
    return end(**facts, fault=later)


STAGES = tuple(BEFORE)
FAULTS = (Fault.CLOSED, Fault.TIMEOUT, Fault.GARBAGE)  # the peer's


@pytest.mark.parametrize("later", [None, Fault.CLOSED, Fault.GARBAGE])
@pytest.mark.parametrize("last_host", [True, False])
@pytest.mark.parametrize("code", [500, 521, 550, 554, 571, 599])
@pytest.mark.parametrize("stage", STAGES)
def test_5xx_fails_at_every_stage_and_stays_when_the_server_then_closes(
    stage: Stage, code: int, last_host: bool, later: Fault | None
) -> None:
    verdict = decide(at(stage, reply(code), later=later), last_host=last_host)
    assert verdict.action is Action.FAIL
    assert verdict.judgement is Judgement.FAILED
    assert verdict.reason is Reason.BOUNCED
    assert (verdict.stage, verdict.reply_code) == (stage, code)
    assert verdict.reply_text == "words of the server"
    assert verdict.enhanced_code is None
    assert not verdict.in_doubt


@pytest.mark.parametrize("later", [None, Fault.CLOSED])
@pytest.mark.parametrize("code", [400, 421, 450, 451, 452, 499])
@pytest.mark.parametrize("stage", STAGES)
def test_4xx_and_421_go_to_the_next_host_and_defer_after_the_last(
    stage: Stage, code: int, later: Fault | None
) -> None:
    ended = at(stage, reply(code), later=later)
    there = decide(ended, last_host=False)
    last = decide(ended, last_host=True)
    assert there.action is Action.NEXT_HOST
    assert last.action is Action.DEFER
    for verdict in (there, last):
        assert verdict.judgement is Judgement.DEFERRED
        assert (verdict.reason, verdict.stage) == (Reason.REMOTE, stage)
        assert verdict.reply_code == code
        assert not verdict.in_doubt


@pytest.mark.parametrize("last_host", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY])
def test_a_loss_before_the_dot_is_never_in_doubt(
    stage: Stage, fault: Fault, last_host: bool
) -> None:
    ended = at(stage, fault)
    verdict = decide(ended, last_host=last_host)
    assert not verdict.in_doubt
    assert verdict.reply_code is None
    if stage is Stage.MAIL and fault is Fault.CLOSED:
        assert verdict.action is (Action.SUSPEND if last_host else Action.NEXT_HOST)
        assert verdict.judgement is None
    else:
        assert verdict.action is (Action.DEFER if last_host else Action.NEXT_HOST)
        assert (verdict.judgement, verdict.reason) == (Judgement.DEFERRED, Reason.REMOTE)
        assert verdict.stage is stage


@pytest.mark.parametrize("excused", [True, False])
@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("last_host", [True, False])
@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY])
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.ENDED])
def test_what_we_cut_ourselves_before_the_dot_is_nobodys_fault(
    fault: Fault, stage: Stage, last_host: bool, reused: bool, excused: bool
) -> None:
    ended = at(stage, fault)
    verdict = judge(
        ended, 0, last_host=last_host, reused=reused, on_doubt=OnDoubt.HOLD, excused=excused
    )
    assert (verdict.action, verdict.judgement) == (Action.AGAIN, None)
    assert (verdict.stage, verdict.in_doubt, verdict.reply_code) == (stage, False, None)


def test_a_refusal_stands_though_we_cut_behind_it() -> None:
    no = reply(550)
    ended = end(mail=OK, rcpts=(no, OK, None), stage=Stage.RCPT, fault=Fault.CUT)
    verdicts = [decide(ended, number) for number in range(3)]
    assert [verdict.action for verdict in verdicts] == [Action.FAIL, Action.AGAIN, Action.AGAIN]


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("last_host", [True, False])
@pytest.mark.parametrize("fault", list(Fault))
def test_a_loss_after_the_dot_is_in_doubt_and_never_tries_another_host(
    fault: Fault, last_host: bool, reused: bool
) -> None:
    ended = at(Stage.DOT, fault)
    retry = decide(ended, last_host=last_host, reused=reused)
    held = decide(ended, last_host=last_host, reused=reused, on_doubt=OnDoubt.HOLD)
    assert (retry.action, retry.judgement) == (Action.DEFER, Judgement.DEFERRED)
    assert (held.action, held.judgement) == (Action.HOLD, Judgement.HELD)
    for verdict in (retry, held):
        assert verdict.in_doubt
        assert (verdict.reason, verdict.stage) == (Reason.IN_DOUBT, Stage.DOT)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.CLOSED, "connection closed by the server after the final dot: it may"),
        (Fault.ENDED, "we ended the connection behind a message that was refused whole: it may"),
    ],
)
def test_whoever_ended_the_connection_is_named(fault: Fault, words: str) -> None:
    text = decide(at(Stage.DOT, fault)).reply_text
    assert text == f"{words} have been delivered"


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_content_sent_in_one_flight_and_nothing_answered_is_in_doubt(
    fault: Fault, reused: bool
) -> None:
    ended = end(stage=Stage.MAIL, fault=fault, dot_written=True, answered=False)
    verdict = decide(ended, last_host=False, reused=reused)
    assert verdict.in_doubt
    assert verdict.action is Action.DEFER


# What was sent ahead of its time, or by an extension: the whole space of it


@pytest.mark.parametrize("on_doubt", list(OnDoubt))
@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("last_host", [True, False])
@pytest.mark.parametrize("stumbled", [None, *Extension])
@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("dot_written", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_liberty_that_went_wrong_charges_nobody_where_nothing_was_taken(
    stage: Stage,
    fault: Fault,
    dot_written: bool,
    behind: bool,
    stale: bool,
    stumbled: Extension | None,
    last_host: bool,
    reused: bool,
    on_doubt: OnDoubt,
) -> None:
    answered = stage is not Stage.MAIL
    facts = BEFORE[stage] | {"dot_written": dot_written}
    ended = end(
        **facts, stage=stage, fault=fault, behind=behind, stale=stale, answered=answered,
        stumbled=stumbled,
    )  # fmt: skip
    verdict = decide(ended, last_host=last_host, reused=reused, on_doubt=on_doubt)
    plain = decide(
        end(**facts, stage=stage, fault=fault, answered=answered),
        last_host=last_host,
        reused=reused,
        on_doubt=on_doubt,
    )
    unread = not dot_written and (
        (not answered and (behind or stale or stumbled is not None))
        or (answered and stumbled is Extension.CHUNKING)
        or (answered and stumbled is Extension.PIPELINING and stage is Stage.DOT)
    )
    if unread:
        assert (verdict.action, verdict.judgement) == (Action.AGAIN, None)
        assert not verdict.in_doubt
    else:
        assert verdict == plain
    if dot_written:
        assert verdict.in_doubt


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("stumbled", [None, *Extension])
def test_a_reply_decides_whatever_else_went_wrong(behind: bool, stumbled: Extension | None) -> None:
    for stage, answer in (
        (Stage.MAIL, 550),
        (Stage.RCPT, 550),
        (Stage.DATA, 451),
        (Stage.DOT, 250),
    ):
        facts = dict(BEFORE[stage])
        if stage is Stage.RCPT:
            facts["rcpts"] = (reply(answer),)
        else:
            facts[SLOT[stage]] = reply(answer)
        ended = end(**facts, stage=stage, behind=behind, stumbled=stumbled)
        assert decide(ended).reply_code == answer


def test_one_refused_at_rcpt_keeps_its_refusal_where_its_content_was_never_taken() -> None:
    ended = end(
        mail=OK,
        rcpts=(reply(550, "5.1.1 unknown"), OK),
        stage=Stage.DATA,
        fault=Fault.GARBAGE,
        stumbled=Extension.CHUNKING,
    )
    refused, accepted = decide(ended, 0), decide(ended, 1)
    assert (refused.action, refused.reply_code) == (Action.FAIL, 550)
    assert accepted.action is Action.AGAIN


def test_a_354_to_the_dot_is_garbage_and_in_doubt() -> None:
    verdict = decide(at(Stage.DOT, GO))
    assert verdict.in_doubt
    assert verdict.action is Action.DEFER


@pytest.mark.parametrize("later", [None, *FAULTS])
@pytest.mark.parametrize("code", [200, 250, 251, 299])
def test_2xx_to_the_dot_is_delivered_whatever_happens_next(code: int, later: Fault | None) -> None:
    verdict = decide(at(Stage.DOT, reply(code), later=later))
    assert (verdict.action, verdict.judgement) == (Action.DELIVER, Judgement.DELIVERED)
    assert verdict.reason is None
    assert verdict.reply_code == code


def test_consent_before_the_dot_was_sent_is_no_delivery() -> None:
    verdict = decide(at(Stage.BODY, OK))
    assert verdict.action is Action.DEFER
    assert not verdict.in_doubt


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.DATA])
def test_a_2xx_or_3xx_of_the_wrong_kind_is_a_loss(stage: Stage) -> None:
    wrong = {Stage.MAIL: GO, Stage.DATA: OK}[stage]
    verdict = decide(at(stage, wrong, later=Fault.GARBAGE))
    assert (verdict.action, verdict.reason) == (Action.DEFER, Reason.REMOTE)
    assert not verdict.in_doubt


@pytest.mark.parametrize("last_host", [True, False])
def test_close_before_any_answer_on_a_reused_session_charges_nothing(last_host: bool) -> None:
    verdict = decide(at(Stage.MAIL, Fault.CLOSED), last_host=last_host, reused=True)
    assert verdict.action is Action.AGAIN
    assert verdict.judgement is None


def test_421_to_the_first_command_of_a_reused_session_charges_nothing() -> None:
    ended = at(Stage.MAIL, reply(421, "4.4.2 idle too long"))
    assert decide(ended, reused=True).action is Action.AGAIN
    assert decide(ended, reused=True).judgement is None
    assert decide(ended, reused=False).action is Action.DEFER


@pytest.mark.parametrize("stage", [Stage.RCPT, Stage.DATA])
def test_421_before_the_content_on_a_reused_session_charges_nobody_it_answers(stage: Stage) -> None:
    """It counted errors of the messages before: chasquid ends a session at the third."""
    said = reply(421, "4.5.0 Too many errors")
    told = {"rcpts": (reply(450), said, None)} if stage is Stage.RCPT else {
        "rcpts": (reply(450), OK, OK), "data": said}  # fmt: skip
    ended = end(mail=OK, stage=stage, fault=Fault.CLOSED, **told)
    deferred, *others = (decide(ended, index, reused=True) for index in range(3))
    assert (deferred.action, deferred.reply_code) == (Action.DEFER, 450)
    assert {(one.action, one.judgement, one.reply_code) for one in others} == {
        (Action.AGAIN, None, 421)
    }
    assert {decide(ended, index).action for index in range(3)} == {Action.DEFER}


@pytest.mark.parametrize("fault", [Fault.TIMEOUT, Fault.GARBAGE])
def test_silence_on_a_reused_session_is_the_hosts_trouble(fault: Fault) -> None:
    assert decide(at(Stage.MAIL, fault), reused=True).action is Action.DEFER


def test_552_to_rcpt_counts_as_452() -> None:
    verdict = decide(at(Stage.RCPT, reply(552, "5.2.2 mailbox full")))
    assert (verdict.action, verdict.reason) == (Action.DEFER, Reason.REMOTE)
    assert (verdict.reply_code, verdict.enhanced_code) == (552, "5.2.2")
    assert verdict.fault_of is FaultOf.RECIPIENT


@pytest.mark.parametrize(
    ("stage", "code", "text", "reason"),
    [
        (Stage.MAIL, 552, "too big", Reason.TOO_LARGE),
        (Stage.MAIL, 552, "5.3.4 too big", Reason.TOO_LARGE),
        (Stage.MAIL, 554, "5.3.4 too big", Reason.TOO_LARGE),
        (Stage.MAIL, 552, "5.2.2 over quota", Reason.BOUNCED),
        (Stage.MAIL, 550, "no", Reason.BOUNCED),
        (Stage.DOT, 552, "5.3.4 too big", Reason.TOO_LARGE),
        (Stage.DOT, 552, "storage", Reason.BOUNCED),
        (Stage.RCPT, 550, "5.3.4 too big", Reason.BOUNCED),
    ],
)
def test_too_large_is_told_from_other_refusals(
    stage: Stage, code: int, text: str, reason: Reason
) -> None:
    verdict = decide(at(stage, reply(code, text)))
    assert (verdict.action, verdict.reason) == (Action.FAIL, reason)


@pytest.mark.parametrize(
    "later",
    [
        {"data": GO, "dot": OK, "dot_written": True, "stage": Stage.DOT},
        {"data": GO, "dot_written": True, "stage": Stage.DOT, "fault": Fault.CLOSED},
        {"data": GO, "dot_written": True, "stage": Stage.DOT, "fault": Fault.TIMEOUT},
        {"data": reply(554), "stage": Stage.DATA},
        {"data": reply(421), "stage": Stage.DATA},
        {"stage": Stage.DATA, "fault": Fault.CLOSED},
        {"data": GO, "stage": Stage.BODY, "fault": Fault.GARBAGE},
    ],
)
def test_a_recipient_refused_at_rcpt_keeps_its_own_refusal(later: dict[str, Any]) -> None:
    ended = end(mail=OK, rcpts=(OK, reply(550, "5.1.1 unknown"), reply(450)), **later)
    refused, deferred = decide(ended, 1), decide(ended, 2)
    assert (refused.action, refused.reply_code) == (Action.FAIL, 550)
    assert (refused.stage, refused.enhanced_code) == (Stage.RCPT, "5.1.1")
    assert (deferred.action, deferred.reply_code) == (Action.DEFER, 450)
    assert not refused.in_doubt
    assert not deferred.in_doubt


def test_a_mixed_transaction_delivers_only_the_accepted() -> None:
    ended = end(
        mail=OK,
        rcpts=(OK, reply(550), reply(251)),
        data=GO,
        dot=OK,
        dot_written=True,
        stage=Stage.DOT,
    )
    actions = [decide(ended, i).action for i in range(3)]
    assert actions == [Action.DELIVER, Action.FAIL, Action.DELIVER]


def test_all_refused_with_a_lone_dot_are_each_their_own_refusal() -> None:
    ended = end(mail=OK, rcpts=(reply(550), reply(450)), data=GO, dot=reply(554), stage=Stage.RCPT)
    assert [decide(ended, i).reply_code for i in range(2)] == [550, 450]
    assert [decide(ended, i).action for i in range(2)] == [Action.FAIL, Action.DEFER]


def test_mail_refused_in_one_flight_decides_for_everyone() -> None:
    ended = end(mail=reply(451), rcpts=(reply(503), None), data=reply(503))
    assert [decide(ended, i).reply_code for i in range(2)] == [451, 451]
    assert [decide(ended, i).action for i in range(2)] == [Action.DEFER, Action.DEFER]


def test_421_to_one_recipient_leaves_those_in_doubt_whose_content_is_out() -> None:
    """It may have gone on with them; no host said anything that was not SMTP."""
    rcpts = (OK, reply(550), reply(421, "4.3.2 closing"), None)
    ended = end(mail=OK, rcpts=rcpts, stage=Stage.RCPT, dot_written=True)
    verdicts = [decide(ended, index) for index in range(4)]
    assert [one.in_doubt for one in verdicts] == [True, False, False, True]
    assert [one.reply_code for one in verdicts] == [None, 550, 421, None]
    assert "421 to another recipient" in str(verdicts[0].reply_text)


def test_421_to_one_recipient_is_recorded_for_those_left_unsent() -> None:
    ended = end(mail=OK, rcpts=(OK, reply(421, "4.3.2 closing"), None), stage=Stage.RCPT)
    for index in range(3):
        verdict = decide(ended, index, last_host=False)
        assert (verdict.action, verdict.reply_code) == (Action.NEXT_HOST, 421)
        assert verdict.stage is Stage.RCPT


def test_refused_dot_refuses_everyone_accepted_and_nobody_else() -> None:
    ended = end(
        mail=OK,
        rcpts=(OK, reply(450)),
        data=GO,
        dot=reply(554, "5.7.1 spam"),
        dot_written=True,
        stage=Stage.DOT,
    )
    assert (decide(ended, 0).action, decide(ended, 0).stage) == (Action.FAIL, Stage.DOT)
    assert (decide(ended, 1).action, decide(ended, 1).stage) == (Action.DEFER, Stage.RCPT)


@pytest.mark.parametrize(
    ("stage", "code", "text", "fault"),
    [
        (Stage.RCPT, 550, "5.1.1 unknown", FaultOf.RECIPIENT),
        (Stage.RCPT, 550, "5.1.2 bad domain", FaultOf.DOMAIN),
        (Stage.RCPT, 550, "unknown", FaultOf.RECIPIENT),
        (Stage.RCPT, 550, "5.7.1 denied", FaultOf.SOURCE),
        (Stage.RCPT, 450, "busy", FaultOf.REMOTE),
        (Stage.MAIL, 550, "5.1.8 bad sender", FaultOf.SENDER),
        (Stage.MAIL, 550, "5.7.26 unauthenticated", FaultOf.SENDER),
        (Stage.MAIL, 421, "4.7.28 rate", FaultOf.REMOTE),
        (Stage.RCPT, 450, "4.7.28 rate", FaultOf.RATE),
        (Stage.DOT, 554, "no", FaultOf.CONTENT),
        (Stage.DOT, 554, "5.6.0 bad content", FaultOf.CONTENT),
        (Stage.DOT, 554, "5.9.9 odd", FaultOf.CONTENT),
    ],
)
def test_who_is_to_blame(stage: Stage, code: int, text: str, fault: FaultOf) -> None:
    assert decide(at(stage, reply(code, text))).fault_of is fault


def test_a_greylisting_hint_is_carried_by_a_4xx_only() -> None:
    text = "4.7.1 greylisted, try again in 5 minutes"
    assert decide(at(Stage.RCPT, reply(450, text))).retry_hint_s == 310
    assert decide(at(Stage.RCPT, reply(550, "try again in 5 minutes"))).retry_hint_s is None


CAUSES = ("reply", "closed", "timeout", "garbage", "refused", "unreachable", "tls", "auth", "local")


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize(
    "stage", [Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.STARTTLS, Stage.AUTH]
)
@pytest.mark.parametrize("code", [None, 421, 450, 554])
def test_a_session_that_fails_never_speaks_of_a_recipient(
    stage: Stage, cause: str, code: int | None
) -> None:
    verdict = judge_session(stage, cause, None if code is None else reply(code))
    assert verdict.reason in {Reason.CONNECT, Reason.TLS, Reason.REMOTE, Reason.LOCAL}
    assert stage.value in verdict.text
    assert verdict.reply_code == code
    assert code is None or str(code) in verdict.text


@pytest.mark.parametrize(
    ("stage", "cause", "code", "reason", "fault"),
    [
        (Stage.CONNECT, "refused", None, Reason.CONNECT, FaultOf.REMOTE),
        (Stage.CONNECT, "unreachable", None, Reason.CONNECT, FaultOf.REMOTE),
        (Stage.CONNECT, "timeout", None, Reason.CONNECT, FaultOf.REMOTE),
        (Stage.GREETING, "timeout", None, Reason.REMOTE, FaultOf.REMOTE),
        (Stage.GREETING, "reply", 554, Reason.REMOTE, FaultOf.SOURCE),
        (Stage.GREETING, "reply", 421, Reason.REMOTE, FaultOf.REMOTE),
        (Stage.EHLO, "reply", 550, Reason.REMOTE, FaultOf.SOURCE),
        (Stage.STARTTLS, "reply", 454, Reason.TLS, FaultOf.REMOTE),
        (Stage.STARTTLS, "tls", None, Reason.TLS, FaultOf.REMOTE),
        (Stage.STARTTLS, "closed", None, Reason.TLS, FaultOf.REMOTE),
        (Stage.AUTH, "reply", 535, Reason.LOCAL, FaultOf.LOCAL),
        (Stage.AUTH, "reply", 454, Reason.REMOTE, FaultOf.REMOTE),
        (Stage.AUTH, "auth", None, Reason.LOCAL, FaultOf.LOCAL),
        (Stage.CONNECT, "local", None, Reason.LOCAL, FaultOf.LOCAL),
    ],
)
def test_session_reasons(
    stage: Stage, cause: str, code: int | None, reason: Reason, fault: FaultOf
) -> None:
    verdict = judge_session(stage, cause, None if code is None else reply(code))
    assert (verdict.reason, verdict.fault_of) == (reason, fault)


def test_an_unknown_cause_is_a_bug() -> None:
    with pytest.raises(ValueError, match="boredom"):
        judge_session(Stage.CONNECT, "boredom", None)
