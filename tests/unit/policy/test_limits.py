"""What replies show of limits that no server announced: of a transaction, and of a connection."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from mailstrom.policy.limits import (
    LIMIT_S,
    MOST_KEPT,
    MOST_REFUSED,
    TRIED_EACH,
    TRIED_FIRST,
    MailLimits,
    SessionMails,
    SessionRecipients,
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
    assert recipients_taken(ended(OK, OK, TOO_MANY)) == (2, True)
    several = ended(OK, nobody, OK, TOO_MANY, nobody, TOO_MANY)
    assert recipients_taken(several) == (2, True)
    assert recipients_taken(ended(OK, bare, bare)) == (1, False)
    assert recipients_taken(ended(OK, OK, bare)) is None, "its mailbox may be full"
    assert recipients_taken(ended(OK, bare, bare, OK)) is None
    assert recipients_taken(ended(OK, OK, nobody)) is None
    assert recipients_taken(ended(TOO_MANY, TOO_MANY)) is None
    assert recipients_taken(ended(OK, None, TOO_MANY)) is None
    assert recipients_taken(ended(OK, said("452 4.2.2 full"), said("452 4.2.2 full"))) is None


BARE = said("452 mailbox is full, or too many recipients")


def test_a_number_that_is_told_counts_at_once() -> None:
    session = SessionRecipients(100)
    session.ended(ended(OK, OK, TOO_MANY), (1, 2, 3))
    assert (session.most, session.suspects) == (2, False)
    session.ended(ended(OK, TOO_MANY), (4, 5))
    session.ended(ended(OK, OK, TOO_MANY), (6, 7, 8))
    assert session.most == 1, "the least"


def test_a_number_that_full_mailboxes_may_have_made_counts_when_one_of_them_is_taken() -> None:
    session = SessionRecipients(100)
    session.ended(ended(OK, OK, BARE, BARE), (1, 2, 3, 4))
    assert (session.most, session.suspects) == (100, True)
    session.ended(ended(OK, OK, OK), (11, 12, 13))
    assert (session.most, session.suspects) == (100, True), "not about them"
    session.ended(ended(OK, BARE), (3, 4))
    assert (session.most, session.suspects) == (2, False)


@pytest.mark.parametrize(
    "then",
    [
        ended(BARE, BARE, data=None, dot=None), ended(said("550 nobody"), BARE, data=None),
        ended(None, None, mail=said("451 later"), data=None), ended(OK, OK),
    ],
)  # fmt: skip
def test_full_mailboxes_make_no_limit(then: TransactionEnd) -> None:
    """They refuse again; nor is it one where more are taken at once."""
    session = SessionRecipients(100)
    session.ended(ended(OK, BARE, BARE), (1, 2, 3))
    session.ended(then, (2, 3))
    session.ended(ended(OK), (2,))
    assert (session.most, session.suspects) == (100, False)


def test_only_so_many_recipients_are_remembered() -> None:
    session = SessionRecipients(100)
    for number in range(0, 2 * MOST_REFUSED, 10):
        session.ended(ended(OK, *[BARE] * 9), range(number, number + 10))
    session.ended(ended(OK), (1,))
    assert session.most == 100
    session.ended(ended(OK), (2 * MOST_REFUSED - 1,))
    assert session.most == 1


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


def opened(limits: MailLimits, host: str = "mx") -> SessionMails:
    return SessionMails(host, limits, limits.moment)


def filled(limits: MailLimits, taken: int, host: str = "mx") -> SessionMails:
    mails = opened(limits, host)
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
        mails = opened(limits, host)
        for _ in range(taken):
            mails.took()
        mails.refused(last=True)
        return mails.full

    assert [ending(2), ending(3), ending(2), ending(2, "other")] == [False] * 4
    filled(limits, 2)
    assert ending(2)
    assert opened(limits).took()
    assert limits.most("mx") == 2
    assert not ending(0)
    assert not ending(0), "a new one would take nothing either"


def test_a_limit_is_known_when_a_new_session_takes_a_message() -> None:
    limits = MailLimits(Clock())
    mails = filled(limits, 3)
    mails.refused(last=False)
    assert limits.most("mx") == inf
    other = opened(limits, "other")
    assert not other.took()
    assert limits.most("mx") == inf
    fresh = opened(limits)
    assert fresh.took(), "and it has the same limit"
    assert not fresh.took()
    assert (limits.most("mx"), limits.most("other")) == (3, inf)


def test_where_a_new_session_refuses_as_well_it_was_the_hour_and_no_limit() -> None:
    limits = MailLimits(Clock())
    filled(limits, 3).refused(last=False)
    filled(limits, 0)
    assert not opened(limits).took()
    assert limits.most("mx") == inf


def test_a_session_that_was_open_before_is_full_at_its_first_refusal_behind_the_limit() -> None:
    limits = MailLimits(Clock())
    filled(limits, 2).refused(last=False)
    opened(limits).took()
    assert not filled(limits, 1).full
    assert filled(limits, 5).full
    opened(limits).took()
    assert limits.most("mx") == 2, "the least that was seen"


def test_a_limit_is_forgotten_after_a_while() -> None:
    clock = Clock()
    limits = MailLimits(clock)
    filled(limits, 1).refused(last=False)
    opened(limits).took()
    clock.now += LIMIT_S - 1
    assert limits.most("mx") == 1
    clock.now += 1
    assert limits.most("mx") == inf


@pytest.mark.parametrize("takes", [True, False])
def test_a_connection_from_before_says_nothing_of_a_suspicion(takes: bool) -> None:
    """It might be of another count, or hour."""
    limits = MailLimits(Clock())
    before = opened(limits)
    filled(limits, 3).refused(last=False)
    if takes:
        assert not before.took()
    else:
        before.refused(last=False)
    assert limits.most("mx") == inf
    assert opened(limits).took()
    assert limits.most("mx") == 3


def learn(limits: MailLimits, most: int) -> None:
    """A session finds a limit, and the next one proves it."""
    filled(limits, most).refused(last=False)
    assert opened(limits).took()
    assert limits.most("mx") == most


def tries(limits: MailLimits, sessions: int) -> list[int]:
    """Which of the next sessions may go further."""
    most = limits.most("mx")
    return [number for number in range(1, sessions + 1) if opened(limits).most > most]


def use_up(mails: SessionMails) -> None:
    for _ in range(int(mails.most)):
        mails.took()


def test_now_and_then_a_session_may_go_one_message_further() -> None:
    limits = MailLimits(Clock())
    learn(limits, 3)
    assert tries(limits, 30) == [TRIED_FIRST + n * TRIED_EACH for n in range(3)]
    assert opened(limits, "other").most == inf


def test_a_limit_that_was_a_moments_trouble_is_forgotten_when_more_is_taken() -> None:
    limits = MailLimits(Clock())
    learn(limits, 3)
    tries(limits, TRIED_FIRST - 1)
    mails = opened(limits)
    assert mails.most == 4
    for _ in range(3):
        mails.took()
    assert limits.most("mx") == 3
    mails.took()
    assert limits.most("mx") == opened(limits).most == inf


def test_a_limit_that_is_found_once_more_rises_by_one() -> None:
    """A host whose limit goes up and down charges a message each time that it is found."""
    limits = MailLimits(Clock())
    learn(limits, 3)
    for _ in range(TRIED_FIRST):
        use_up(opened(limits))
    assert limits.most("mx") == inf
    assert tries(limits, 30) == [], "nothing is known"
    learn(limits, 5)
    for _ in range(TRIED_EACH):
        use_up(opened(limits))
    assert limits.most("mx") == 6


def test_a_limit_that_holds_is_tried_and_charges_nobody() -> None:
    clock = Clock()
    limits = MailLimits(clock)
    learn(limits, 3)
    clock.now += LIMIT_S - 1
    tries(limits, TRIED_FIRST - 1)
    mails = opened(limits)
    for _ in range(3):
        mails.took()
    mails.refused(last=False)
    assert mails.full, "the refusal is no verdict"
    assert opened(limits).took()
    clock.now += LIMIT_S - 1
    assert limits.most("mx") == 3, "found anew"
    assert tries(limits, TRIED_EACH) == [TRIED_EACH - 1], "one of so many, as before"


def test_a_session_that_may_try_shows_nothing_of_a_limit_that_changed_meanwhile() -> None:
    clock = Clock()
    limits = MailLimits(clock)
    learn(limits, 3)
    tries(limits, TRIED_FIRST - 1)
    mails = opened(limits)
    clock.now += LIMIT_S
    use_up(mails)
    assert limits.most("mx") == inf
    learn(limits, 9)
    assert limits.most("mx") == 9


def test_only_so_many_hosts_are_kept() -> None:
    limits = MailLimits(Clock())
    for number in range(MOST_KEPT + 1):
        limits.suspect(f"h{number}", 1)
        limits.decide(f"h{number}", takes=True, moment=limits.moment)
    assert limits.most("h0") == inf
    assert limits.most("h1") == limits.most(f"h{MOST_KEPT}") == 1
