"""What replies show of limits that no server announced: of a transaction, and of a connection."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from mailstrom.policy.limits import (
    LIMIT_S,
    MOST_KEPT,
    MailLimits,
    SessionMails,
    may_follow,
    recipients_taken,
    refuses_session,
)
from mailstrom.policy.outcome import judge
from mailstrom.policy.verdict import Action, Verdict
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Fault, TransactionEnd
from mailstrom.types import OnDoubt, Stage

OK = Reply.of(250, ["2.0.0 ok"])
GO = Reply.of(354, ["go ahead"])


def said(words: str) -> Reply:
    return Reply.of(int(words[:3]), [words[4:]])


TOO_MANY = said("452 4.5.3 too many recipients")


def ended(*rcpts: Reply | None, **facts: Any) -> TransactionEnd:
    return TransactionEnd(
        **{
            "mail": OK, "rcpts": rcpts, "data": GO, "dot": OK, "stage": Stage.DOT, "fault": None,
            "dot_written": True, "answered": True, "usable": True, **facts,
        }
    )  # fmt: skip


def decide(end: TransactionEnd, index: int = 0, **facts: Any) -> Verdict:
    return judge(
        end, index, **{"last_host": True, "reused": True, "on_doubt": OnDoubt.RETRY} | facts
    )


# Recipients of a transaction


@pytest.mark.parametrize("last_host", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        "452 too many recipients", "552 too many recipients", "452 4.5.3 many", "552 5.5.3 many",
        "451 4.5.3 enough", "550 5.5.3 enough", "452 4.3.1 no room", "452 4.0.0 later",
    ],
)  # fmt: skip
def test_who_was_one_too_many_follows_in_another_transaction(words: str, last_host: bool) -> None:
    end = ended(OK, said(words), OK)
    assert may_follow(end, said(words))
    verdicts = [decide(end, n, last_host=last_host) for n in range(3)]
    assert [v.action for v in verdicts] == [
        Action.DELIVER, Action.NEXT_TRANSACTION, Action.DELIVER,
    ]  # fmt: skip
    assert (verdicts[1].judgement, verdicts[1].stage) == (None, Stage.RCPT)
    assert verdicts[1].reply_code == int(words[:3])


@pytest.mark.parametrize(
    "words",
    [
        "452 4.2.2 mailbox full", "552 5.2.2 mailbox full", "452 4.1.1 who", "452 4.7.1 greylisted",
        "452 4.7.28 slow down", "452 4.4.5 congested", "450 busy", "451 4.3.0 later", "550 nobody",
        "421 4.5.3 closing",
    ],
)  # fmt: skip
def test_what_is_said_of_the_recipient_itself_is_its_verdict(words: str) -> None:
    verdict = decide(ended(OK, said(words)), 1)
    assert verdict.action in (Action.DEFER, Action.FAIL)
    assert verdict.judgement is not None


@pytest.mark.parametrize(
    "end",
    [
        ended(TOO_MANY, TOO_MANY),
        ended(said("550 5.1.1 nobody"), TOO_MANY),
        ended(None, TOO_MANY),
        ended(OK, TOO_MANY, dot=None, fault=Fault.CLOSED, usable=False),
        ended(OK, TOO_MANY, dot=None, fault=Fault.TIMEOUT, usable=False),
        ended(OK, TOO_MANY, dot=said("421 4.3.2 closing"), usable=False),
        ended(OK, TOO_MANY, data=said("421 closing"), dot=None, usable=False),
        ended(OK, TOO_MANY, said("421 closing"), dot=None, usable=False),
    ],
)
def test_where_none_was_taken_or_the_server_went_the_reply_counts(end: TransactionEnd) -> None:
    """Each transaction leaves fewer, and a server that goes away is not asked for each of them."""
    verdict = decide(end, 1)
    assert verdict.action is Action.DEFER
    assert verdict.judgement is not None


@pytest.mark.parametrize("dot", ["451 4.3.0 later", "554 5.6.0 spam"])
def test_what_became_of_the_others_content_does_not_matter(dot: str) -> None:
    end = ended(OK, TOO_MANY, dot=said(dot))
    assert decide(end, 1).action is Action.NEXT_TRANSACTION


def test_the_number_is_known_where_all_others_stand_behind_those_taken() -> None:
    bare = said("452 too many recipients")
    nobody = said("550 5.1.1 nobody")
    assert recipients_taken(ended(OK, OK, TOO_MANY)) == 2
    assert recipients_taken(ended(OK, nobody, OK, TOO_MANY, nobody, TOO_MANY)) == 2
    assert recipients_taken(ended(OK, bare, bare)) == 1
    assert recipients_taken(ended(OK, OK, bare)) is None, "its mailbox may be full"
    assert recipients_taken(ended(OK, bare, bare, OK)) is None
    assert recipients_taken(ended(OK, OK, nobody)) is None
    assert recipients_taken(ended(TOO_MANY, TOO_MANY)) is None
    assert recipients_taken(ended(OK, None, TOO_MANY)) is None
    assert recipients_taken(ended(OK, said("452 4.2.2 full"), said("452 4.2.2 full"))) is None


# Messages of a connection


@pytest.mark.parametrize("words", ["451 4.3.0 later", "450 later", "452 4.3.1 no", "451 4.7.1 no"])
def test_a_full_session_is_renewed_for_what_it_refuses_at_mail(words: str) -> None:
    mail = said(words)
    end = ended(None, mail=mail, data=None, dot=None, dot_written=False, stage=Stage.MAIL)
    assert refuses_session(mail)
    again = decide(end, full=True)
    assert (again.action, again.judgement, again.stage) == (Action.AGAIN, None, Stage.MAIL)
    assert decide(end).action is Action.DEFER
    assert decide(end, last_host=False).action is Action.NEXT_HOST


@pytest.mark.parametrize(
    "words", ["451 4.1.8 your domain", "450 4.7.23 spf", "452 4.3.4 too big", "550 5.7.1 no"]
)
def test_what_is_said_of_the_message_is_its_verdict_on_a_full_session_too(words: str) -> None:
    mail = said(words)
    assert not refuses_session(mail)
    end = ended(None, mail=mail, data=None, dot=None, dot_written=False, stage=Stage.MAIL)
    assert decide(end, full=True).judgement is not None
    assert not refuses_session(said("421 closing")), "that has a meaning of its own"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def filled(limits: MailLimits, taken: int, host: str = "mx") -> SessionMails:
    mails = SessionMails(host, limits)
    for _ in range(taken):
        mails.took()
    mails.refused(last=False)
    return mails


def test_a_session_is_full_when_it_took_messages_and_refuses_more_than_one() -> None:
    limits = MailLimits(Clock())
    mails = filled(limits, 3)
    assert not mails.full, "that one may have been meant"
    mails.took()
    mails.refused(last=False)
    assert not mails.full, "not in a row"
    mails.refused(last=False)
    assert mails.full
    never = filled(limits, 0)
    never.refused(last=False)
    assert not never.full, "a new one would take nothing either"


def test_a_session_that_ends_with_a_refusal_as_the_one_before_it_is_full() -> None:
    """Servers, and BDAT flights, end a session with the first one: no second shows it."""
    limits = MailLimits(Clock())

    def ending(taken: int, host: str = "mx") -> bool:
        mails = SessionMails(host, limits)
        for _ in range(taken):
            mails.took()
        mails.refused(last=True)
        return mails.full

    assert [ending(2), ending(3), ending(2), ending(2, "other")] == [False] * 4
    filled(limits, 2)
    assert ending(2)
    assert SessionMails("mx", limits).took()
    assert limits.most("mx") == 2
    assert not ending(0)
    assert not ending(0), "a new one would take nothing either"


def test_a_limit_is_known_when_a_new_session_takes_a_message() -> None:
    limits = MailLimits(Clock())
    mails = filled(limits, 3)
    mails.refused(last=False)
    assert limits.most("mx") == inf
    other = SessionMails("other", limits)
    assert not other.took()
    assert limits.most("mx") == inf
    fresh = SessionMails("mx", limits)
    assert fresh.took(), "and it has the same limit"
    assert not fresh.took()
    assert (limits.most("mx"), limits.most("other")) == (3, inf)


def test_where_a_new_session_refuses_as_well_it_was_the_hour_and_no_limit() -> None:
    limits = MailLimits(Clock())
    filled(limits, 3).refused(last=False)
    filled(limits, 0)
    assert not SessionMails("mx", limits).took()
    assert limits.most("mx") == inf


def test_a_session_that_was_open_before_is_full_at_its_first_refusal_behind_the_limit() -> None:
    limits = MailLimits(Clock())
    filled(limits, 2).refused(last=False)
    SessionMails("mx", limits).took()
    assert not filled(limits, 1).full
    assert filled(limits, 5).full
    SessionMails("mx", limits).took()
    assert limits.most("mx") == 2, "the least that was seen"


def test_a_limit_is_forgotten_after_a_while() -> None:
    clock = Clock()
    limits = MailLimits(clock)
    filled(limits, 1).refused(last=False)
    SessionMails("mx", limits).took()
    clock.now += LIMIT_S - 1
    assert limits.most("mx") == 1
    clock.now += 1
    assert limits.most("mx") == inf


def test_only_so_many_hosts_are_kept() -> None:
    limits = MailLimits(Clock())
    for number in range(MOST_KEPT + 1):
        limits.suspect(f"h{number}", 1)
        limits.decide(f"h{number}", takes=True)
    assert limits.most("h0") == inf
    assert limits.most("h1") == limits.most(f"h{MOST_KEPT}") == 1
