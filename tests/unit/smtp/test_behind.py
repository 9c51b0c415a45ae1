"""The next envelope behind the dot (RFC 2920 section 3.1): each transaction has its own end."""

from __future__ import annotations

import pytest

from mailstrom.smtp.client import Awaited, Dialect, Extension, Fault, Pipelining, TransactionEnd
from mailstrom.types import Stage
from tests.unit.smtp.driving import (
    BEHIND,
    DATA,
    QUIT,
    RSET,
    Drive,
    codes,
    dotted,
    lines,
    mail,
    rcpts,
    warm,
)


def two(count: int = 2) -> Drive:
    """Transaction 0 has its dot out, 1 stands behind it with ``count`` recipients."""
    drive = warm().begin(count)
    assert drive.wrote == mail(1) + rcpts(1, count) + DATA
    return drive.cleared()


def test_a_warm_session_takes_one_write_and_one_round_trip_for_a_message() -> None:
    drive = warm()
    for number in range(1, 5):
        assert drive.dialogue.ready
        drive.begin()
        assert not drive.dialogue.ready  # one envelope behind one dot
        assert drive.cleared().wrote == b""
        drive.say(lines(250, 250, 250, 354))
        (end,) = drive.ends
        assert codes(end) == (250, (250,), 354, 250)
        assert (end.stage, end.usable, end.dot_written) == (Stage.DOT, True, True)
        assert end.behind == (number > 1)
        assert drive.wrote == dotted(number)


def test_content_dot_and_next_envelope_are_one_write() -> None:
    drive = Drive().begin()
    drive.cleared()
    assert drive.dialogue.receive(lines(250, 250, 354)) == []
    drive.begin()
    assert drive.wrote == dotted(0) + mail(1) + rcpts(1) + DATA


def test_nothing_stands_behind_content_that_is_not_whole() -> None:
    drive = Drive().begin(streamed=True)
    assert not drive.dialogue.ready
    drive.say(lines(250, 250, 354))
    assert not drive.dialogue.ready
    drive.dialogue.content(b"a\r\n")
    assert not drive.dialogue.ready
    with pytest.raises(RuntimeError):
        drive.begin()
    drive.begun = 0
    drive.dialogue.end_content()
    assert drive.dialogue.ready


@pytest.mark.parametrize("rung", [Pipelining.TRANSACTION, Pipelining.NONE])
def test_lower_rungs_of_the_ladder_wait_for_the_dot(rung: Pipelining) -> None:
    drive = Drive(Dialect(pipelining=rung)).begin()
    for one in (250, 250, 354):
        drive.say(lines(one))
    assert drive.wrote.endswith(dotted(0))
    assert not drive.dialogue.ready
    drive.say(lines(250))
    assert drive.dialogue.ready


# Every reply at every split: (replies, codes of 0, codes of 1, what is written for 1)

OUTCOMES: dict[str, tuple[list[int], object, object, bytes]] = {
    "both accepted": (
        [250, 250, 250, 250, 354, 250],
        (250, (250,), 354, 250),
        (250, (250, 250), 354, 250),
        dotted(1),
    ),
    "content refused, the next accepted": (
        [554, 250, 250, 250, 354, 250],
        (250, (250,), 354, 554),
        (250, (250, 250), 354, 250),
        dotted(1),
    ),
    "content deferred, the next in part": (
        [452, 250, 550, 250, 354, 250],
        (250, (250,), 354, 452),
        (250, (550, 250), 354, 250),
        dotted(1),
    ),
    "the next sender refused": (
        [250, 550, 503, 503, 503, 250],
        (250, (250,), 354, 250),
        (550, (None, None), None, None),
        RSET,
    ),
    "the next sender refused for now, and a 354": (
        [250, 450, 503, 503, 354, 554],
        (250, (250,), 354, 250),
        (450, (None, None), None, None),
        b".\r\n",
    ),
    "the next recipients refused": (
        [250, 250, 550, 450, 554, 250],
        (250, (250,), 354, 250),
        (250, (550, 450), None, None),
        RSET,
    ),
    "the next recipients refused, and a 354": (
        [250, 250, 550, 450, 354, 250],
        (250, (250,), 354, 250),
        (250, (550, 450), 354, 250),
        b".\r\n",
    ),
    "the next DATA refused": (
        [250, 250, 250, 250, 451, 221],
        (250, (250,), 354, 250),
        (250, (250, 250), 451, None),
        QUIT,
    ),
    "both contents refused": (
        [554, 250, 250, 250, 354, 554],
        (250, (250,), 354, 554),
        (250, (250, 250), 354, 554),
        dotted(1),
    ),
}


@pytest.mark.parametrize("split", [0, 1, 2, 5, 11])
@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_at_every_split(name: str, split: int) -> None:
    replies, first, second, written = OUTCOMES[name]
    drive = two()
    drive.say(lines(*replies[:-1]), split=split)
    assert drive.wrote == written  # before the last reply, which answers it
    drive.say(lines(replies[-1]), split=split)
    one, other = drive.ends
    assert (one.behind, other.behind) == (False, True)
    assert codes(one) == first
    # what follows a refusal of all may be kept, and decides nothing
    assert codes(other)[:2] == second[:2]  # type: ignore[index]
    parts = written == QUIT
    assert (one.fault, other.fault, other.stumbled) == (None, None, None)
    assert other.usable is not parts
    assert (other.stage is Stage.DOT) == (written == dotted(1))
    assert other.dot_written == (written == dotted(1))
    assert drive.dialogue.ready is not parts


PLACES = [  # replies before, whose stage then, who has ended
    ([], Stage.DOT, 0),
    ([250], Stage.MAIL, 1),
    ([250, 250], Stage.RCPT, 1),
    ([250, 250, 250], Stage.RCPT, 1),
    ([250, 250, 250, 250], Stage.DATA, 1),
    ([250, 250, 250, 250, 354], Stage.DOT, 1),
]


@pytest.mark.parametrize("half", [b"", b"2", b"250-more\r\n250"])
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize(("before", "stage", "over"), PLACES)
def test_a_fault_at_each_place_ends_each_on_its_own(
    before: list[int], stage: Stage, over: int, fault: Fault, half: bytes
) -> None:
    drive = two().say(lines(*before)).say(half)
    assert drive.dialogue.stage is stage
    assert len(drive.ends) == over
    peer = fault is Fault.CLOSED
    drive.took(drive.dialogue.receive_eof() if peer else drive.dialogue.fail(fault))
    ends = drive.ends
    assert len(ends) == 2
    first, second = ends
    if over:
        assert (codes(first)[3], first.fault, first.usable) == (250, None, True)
    else:
        assert (first.stage, first.fault, first.dot_written) == (Stage.DOT, fault, True)
        # even by a close: it repeats for ever; what we cut ourselves does not
        assert (first.stumbled is Extension.PIPELINING) == (fault not in (Fault.CUT, Fault.ENDED))
        assert (second.fault, second.stage, second.stumbled) == (fault, Stage.MAIL, None)
    assert second.answered == (len(before) > 1)
    assert second.dot_written == (stage is Stage.DOT and over == 1)
    assert (second.fault, second.usable, second.behind) == (fault, False, True)
    if over:
        assert second.stage is stage
        odd = fault in (Fault.TIMEOUT, Fault.GARBAGE)
        unread = len(before) == 1 and odd
        # silence behind an answer of the flight: the rest of it may have been thrown away
        flight = odd and stage is not Stage.DOT
        assert (second.stumbled is Extension.PIPELINING) == (unread or flight)
    assert drive.dialogue.receive(lines(250)) == []
    assert drive.dialogue.fail(Fault.CLOSED) == []


def test_what_we_cut_ourselves_teaches_nothing_of_the_server() -> None:
    for fault in (Fault.CLOSED, Fault.CUT):
        drive = two()
        drive.took(drive.dialogue.fail(fault))
        assert [end.stumbled for end in drive.ends] == [None, None]


def test_a_dot_with_nothing_behind_it_teaches_nothing() -> None:
    for fault in Fault:
        drive = warm()
        drive.took(drive.dialogue.fail(fault))
        assert [(end.stumbled, end.dot_written) for end in drive.ends] == [(None, True)]
    drive = warm()
    drive.took(drive.dialogue.receive_eof())
    assert [end.stumbled for end in drive.ends] == [None]


@pytest.mark.parametrize(("before", "stage", "over"), PLACES)
def test_421_at_each_place(before: list[int], stage: Stage, over: int) -> None:
    drive = two().say(lines(*before)).say(lines(421))
    first, second = drive.ends
    if over:
        mail_code, rcpt_codes, data, dot = codes(second)
        answers = [mail_code, *rcpt_codes, data, dot]  # type: ignore[misc]
        assert answers[len(before) - 1] == 421
        assert (second.stage, second.fault, second.usable) == (stage, None, False)
    else:
        assert codes(first) == (250, (250,), 354, 421)
        assert (first.stage, first.fault, first.usable) == (Stage.DOT, None, False)
        assert (second.answered, second.fault) == (False, Fault.CLOSED)
        assert (second.stage, second.dot_written, second.behind) == (Stage.MAIL, False, True)
    assert (first.stumbled, second.stumbled) == (None, None)
    assert not drive.dialogue.ready


ODD = {
    "503": b"503 5.5.1 bad sequence\r\n",
    "improper pipelining": b"554 5.5.0 improper use of SMTP command Pipelining\r\n",
    "out of sync": b"550-no\r\n550 SMTP synchronization error\r\n",
    "half a MAIL": b"500 5.5.1 command not recognized\r\n",
    "half a RCPT": b"502 5.5.1 not implemented\r\n",
    "a 354": lines(354),
    "no SMTP": b"HTTP/1.1 400 Bad Request\r\n",
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_answers_to_a_mail_behind_a_content_charge_nobody(odd: str) -> None:
    drive = two().say(lines(250)).say(ODD[odd])
    first, second = drive.ends
    assert (codes(first)[3], first.usable) == (250, True)
    assert codes(second) == (None, (None, None), None, None)
    assert (second.fault, second.stumbled) == (Fault.GARBAGE, Extension.PIPELINING)
    assert second.answered == (odd == "a 354")
    assert (second.usable, second.dot_written) == (False, False)


@pytest.mark.parametrize("odd", ["503", "improper pipelining", "out of sync"])
def test_the_same_words_for_the_content_before_refuse_nobody(odd: str) -> None:
    first, second = two().say(ODD[odd]).ends
    assert (first.dot, first.fault, first.stage) == (None, Fault.GARBAGE, Stage.DOT)
    assert (first.dot_written, first.stumbled) == (False, Extension.PIPELINING)
    assert (second.answered, second.dot_written, second.behind) == (False, False, True)


@pytest.mark.parametrize("odd", ["503", "improper pipelining", "out of sync"])
def test_the_same_words_where_nothing_was_sent_ahead_are_a_refusal(odd: str) -> None:
    serial = Drive(Dialect(pipelining=Pipelining.NONE))
    (end,) = serial.begin().say(ODD[odd]).say(lines(221)).ends
    assert (end.stage, end.fault, end.stumbled) == (Stage.MAIL, None, None)
    (end,) = warm().say(ODD[odd]).ends
    assert (end.stage, end.fault, end.stumbled) == (Stage.DOT, None, None)


def test_a_bare_503_to_the_mail_of_a_flight_of_its_own_is_a_refusal() -> None:
    (end,) = Drive().begin().say(ODD["503"] + lines(503, 503)).say(lines(250)).ends
    assert (end.stage, end.fault, end.stumbled) == (Stage.MAIL, None, None)


@pytest.mark.parametrize(("before", "stage"), [(0, Stage.MAIL), (1, Stage.RCPT), (2, Stage.DATA)])
@pytest.mark.parametrize("odd", ["improper pipelining", "out of sync"])
def test_who_offers_pipelining_and_calls_a_flight_improper_refuses_nobody(
    odd: str, before: int, stage: Stage
) -> None:
    (end,) = Drive().begin().say(lines(*[250] * before) + ODD[odd]).ends
    assert (end.stage, end.fault, end.stumbled) == (stage, Fault.GARBAGE, Extension.PIPELINING)
    assert (end.answered, end.dot_written, end.usable) == (before > 0, False, False)


def test_a_refusal_in_other_words_is_the_senders() -> None:
    first, second = two().say(lines(250, 550, 503, 503, 503)).say(lines(250)).ends
    assert (codes(first)[3], codes(second)[0]) == (250, 550)
    assert (second.stage, second.stumbled, second.usable) == (Stage.MAIL, None, True)


@pytest.mark.parametrize("code", [421, 452, 554])
def test_an_early_verdict_on_content_spares_what_stands_behind(code: int) -> None:
    drive = Drive().begin()
    assert drive.dialogue.receive(lines(250, 250, 354)) == []
    drive.begin(take=False)
    drive.say(lines(code))
    first, second = drive.ends
    assert (codes(first)[3], first.stage, first.dot_written) == (code, Stage.BODY, False)
    whose = Fault.CLOSED if code == 421 else Fault.ENDED  # by a 421 the server ends it
    assert (second.answered, second.dot_written, second.fault) == (False, False, whose)
    assert dotted(0) not in drive.wrote


def test_an_early_consent_is_no_delivery_whatever_stands_behind() -> None:
    drive = Drive().begin()
    assert drive.dialogue.receive(lines(250, 250, 354)) == []
    drive.begin(take=False).say(lines(250))
    assert [(end.dot, end.dot_written) for end in drive.ends] == [(None, False)] * 2


@pytest.mark.parametrize("extra", range(6))
def test_a_doubled_reply_never_makes_a_delivery(extra: int) -> None:
    replies = [250, 250, 250, 250, 354, 250]
    drive = two().say(lines(*replies[: extra + 1], *replies[extra:]))
    if len(drive.ends) < 2:
        drive.took(drive.dialogue.fail(Fault.TIMEOUT))
    first, second = drive.ends
    assert codes(first)[3] == 250
    assert _not_taken(second) or dotted(1) in drive.wrote
    assert not second.usable


@pytest.mark.parametrize("gap", range(6))
def test_a_missing_reply_never_makes_a_delivery(gap: int) -> None:
    replies = [250, 250, 250, 250, 354, 250]
    del replies[gap]
    drive = two()
    for one in replies:
        drive.say(lines(one))
    drive.took(drive.dialogue.fail(Fault.TIMEOUT))
    second = drive.ends[1]
    assert _not_taken(second) or second.dot_written
    assert second.dot_written == (dotted(1) in drive.wrote)
    assert not second.usable


def _not_taken(end: TransactionEnd) -> bool:
    return end.dot is None and not end.dot_written


def test_commands_behind_are_overdue_only_once_the_content_is_answered() -> None:
    drive = two()
    assert drive.dialogue.awaited is Awaited.DOT
    drive.say(lines(250))
    assert drive.dialogue.awaited is Awaited.BEHIND
    drive.say(lines(250))
    assert drive.dialogue.awaited is Awaited.RCPT


def test_no_reset_goes_behind_a_dot() -> None:
    drive = warm(BEHIND).begin()
    assert b"RSET" not in drive.wrote


@pytest.mark.parametrize("behind", [True, False])
def test_a_dot_that_never_left_leaves_no_doubt(behind: bool) -> None:
    """Of what stands at the end: with something behind it, it may have left before that."""
    drive = two() if behind else warm()
    drive.dialogue.call_back()
    drive.took(drive.dialogue.fail(Fault.TIMEOUT))
    assert (drive.ends[0].fault, drive.ends[0].dot_written) == (Fault.TIMEOUT, behind)
