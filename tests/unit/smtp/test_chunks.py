"""Content by BDAT (RFC 3030): first alone, then in one flight with its envelope, then several."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailstrom.policy.outcome import Action, judge
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Event,
    Extension,
    Fault,
    Pipelining,
)
from mailstrom.smtp.framing import BareLineEnd
from mailstrom.types import OnDoubt, Stage
from tests.unit.smtp.driving import (
    BDAT,
    DATA,
    DEEP,
    FIRST_BDAT,
    OFFER,
    RSET,
    Drive,
    bdat,
    body,
    code,
    codes,
    dotted,
    lines,
    mail,
    rcpts,
)

SERIAL = Dialect(pipelining=Pipelining.NONE, chunk_octets=1000, chunks_proved=True)


def flight(number: int, count: int = 1, *, reset: bool = False) -> bytes:
    return RSET * reset + mail(number) + rcpts(number, count) + bdat(number)


def test_the_first_bdat_waits_for_a_recipient_and_proves_the_rest() -> None:
    drive = Drive(FIRST_BDAT).begin(2)
    assert drive.wrote == mail(0) + rcpts(0, 2)
    drive.cleared().say(lines(250, 550))
    assert drive.wrote == b""
    drive.say(lines(250))
    assert drive.wrote == bdat(0)
    assert drive.dialogue.stage is Stage.DOT
    drive.say(lines(250))
    (end,) = drive.ends
    assert codes(end) == (250, (550, 250), None, 250)
    assert (end.chunked, end.dot_written, end.usable) == (True, True, True)
    assert drive.cleared().begin().wrote == flight(1)


def test_one_flight_and_one_round_trip_for_a_message() -> None:
    drive = Drive(BDAT)
    for number in range(3):
        assert drive.cleared().begin().wrote == flight(number)
        assert not drive.dialogue.ready  # one at a time, unless the depth says more
        drive.say(lines(250, 250, 250))
        (end,) = drive.ends
        assert codes(end) == (250, (250,), None, 250)
        assert (end.stage, end.behind, end.chunked) == (Stage.DOT, False, True)


def test_without_pipelining_a_bdat_follows_the_last_recipients_reply() -> None:
    drive = Drive(SERIAL).begin(2)
    for expected in (mail(0), rcpts(0), rcpts(0, 2).removeprefix(rcpts(0)), bdat(0)):
        assert drive.wrote == expected
        drive.cleared().say(lines(250))
    (end,) = drive.ends
    assert (codes(end), end.usable) == ((250, (250, 250), None, 250), True)


@pytest.mark.parametrize(
    ("dialect", "offer"),
    [
        (BDAT, Capabilities(size=0, pipelining=True)),
        (Dialect(chunk_octets=len(body(0)) - 1, chunks_proved=True), OFFER),
        (Dialect(), OFFER),
    ],
)
def test_data_is_used_where_bdat_is_not_offered_too_large_or_not_wanted(
    dialect: Dialect, offer: Capabilities
) -> None:
    assert Drive(dialect, offer=offer).begin().wrote == mail(0) + rcpts(0) + DATA


def test_streamed_content_goes_by_data() -> None:
    assert Drive(BDAT).begin(streamed=True).wrote == mail(0) + rcpts(0) + DATA


@pytest.mark.parametrize("heard", [0, 1, 2])
@pytest.mark.parametrize("dialect", [FIRST_BDAT, SERIAL], ids=["pipelined", "serial"])
def test_content_of_a_bdat_that_has_not_left_is_put_down_and_goes_by_data(
    dialect: Dialect, heard: int
) -> None:
    drive = Drive(dialect).begin(2)
    for _ in range(heard):
        drive.say(lines(250))
    drive.dialogue.put_down()
    kept = [group.octets for one in drive.dialogue._pipeline.running for group in one.groups]
    assert not any(body(0) in octets for octets in kept)
    for _ in range(heard, 3):
        drive.say(lines(250))
    assert drive.wrote == mail(0) + rcpts(0, 2) + DATA
    drive.say(lines(354))
    assert drive.events.pop() == ContentWanted()
    drive.dialogue.content(body(0))
    drive.dialogue.end_content()
    drive.take()
    (end,) = drive.say(lines(250)).ends
    assert (codes(end)[3], end.chunked, end.usable) == (250, False, True)
    assert drive.wrote == mail(0) + rcpts(0, 2) + DATA + dotted(0)


def test_of_a_bdat_that_left_nothing_is_put_down() -> None:
    drive = Drive(BDAT).begin()
    drive.dialogue.put_down()
    (end,) = drive.say(lines(250, 250, 250)).ends
    assert (drive.wrote, codes(end)[3], end.chunked) == (flight(0), 250, True)


def test_what_a_bdat_carries_is_not_stuffed_and_not_smuggled() -> None:
    drive = Drive(BDAT)
    for content in (b"a\nb\r\n", b"a\rb\r\n", b"a\r"):
        envelope = Envelope(sender="", recipients=("a@b.c",), size=len(content))
        with pytest.raises(BareLineEnd):
            drive.dialogue.begin(envelope, content)
    assert drive.dialogue.take_output() == b""
    assert drive.dialogue.ready
    drive.dialogue.begin(Envelope(sender="", recipients=("a@b.c",), size=6), b".\r\na\r\n")
    assert drive.dialogue.take_output().endswith(b"BDAT 6 LAST\r\n.\r\na\r\n")


# Refusals: (replies to the flight of two recipients, codes, stage, usable)

REFUSED: dict[str, tuple[list[int], object, Stage, bool]] = {
    "content": ([250, 250, 250, 554], (250, (250, 250), None, 554), Stage.DOT, True),
    "content for now": ([250, 250, 250, 452], (250, (250, 250), None, 452), Stage.DOT, True),
    "one recipient": ([250, 550, 250, 250], (250, (550, 250), None, 250), Stage.DOT, True),
    "all recipients": ([250, 550, 450, 554], (250, (550, 450), None, None), Stage.RCPT, False),
    "all, and 503": ([250, 550, 450, 503], (250, (550, 450), None, None), Stage.RCPT, False),
    "all, but 250": ([250, 550, 450, 250], (250, (550, 450), None, 250), Stage.RCPT, False),
    "sender": ([550, 503, 503, 503], (550, (None, None), None, None), Stage.MAIL, False),
}


@pytest.mark.parametrize("split", [0, 1, 3, 10])
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_in_a_flight(name: str, split: int) -> None:
    replies, expected, stage, usable = REFUSED[name]
    (end,) = Drive(BDAT).begin(2).say(lines(*replies), split=split).ends
    assert codes(end) == expected
    assert (end.stage, end.fault, end.usable, end.stumbled) == (stage, None, usable, None)


def test_the_first_bdat_is_never_sent_to_nobody() -> None:
    drive = Drive(FIRST_BDAT).begin(2).say(lines(250, 550, 450))
    assert drive.wrote == mail(0) + rcpts(0, 2) + DATA  # the place of the last is not marked yet
    assert drive.cleared().say(lines(503)).wrote == RSET
    (end,) = drive.say(lines(250)).ends
    assert codes(end)[:2] == (250, (550, 450))
    assert (end.stage, end.usable, end.dot_written) == (Stage.RCPT, True, False)
    assert drive.cleared().begin().wrote == mail(1) + rcpts(1)
    (end,) = Drive(FIRST_BDAT).begin().say(lines(250, 550)).say(lines(250)).ends
    assert (codes(end), end.usable) == ((250, (550,), None, None), True)


def test_nobody_is_refused_by_the_double_of_anothers_before_a_bdat() -> None:
    drive = Drive(FIRST_BDAT).begin(2).say(lines(250, 550, 550))
    (end,) = drive.say(lines(250)).ends  # to the second recipient
    assert (codes(end), end.fault) == ((None, (None, None), None, None), Fault.GARBAGE)
    assert (end.dot_written, end.usable) == (False, False)


@pytest.mark.parametrize("dialect", [BDAT, FIRST_BDAT])
def test_silence_at_a_bdat_for_several_may_be_a_reply_that_is_missing(dialect: Dialect) -> None:
    proved = dialect is BDAT
    drive = Drive(dialect).begin(2)
    drive.say(lines(*([250, 550, 250] if proved else [250, 550])))
    drive.took(drive.dialogue.fail(Fault.TIMEOUT))
    (end,) = drive.ends
    assert codes(end) == (None, (None, None), None, None)
    assert (end.fault, end.stumbled, end.dot_written) == (
        Fault.TIMEOUT,
        Extension.CHUNKING,
        proved,
    )


def test_an_envelope_follows_a_failed_bdat_behind_a_reset_and_its_content_later() -> None:
    drive = Drive(BDAT).begin().say(lines(250, 250, 452))
    assert drive.cleared().begin().wrote == RSET + mail(1) + rcpts(1)
    drive.cleared().say(lines(250, 250, 250))
    assert drive.wrote == bdat(1)
    drive.cleared().say(lines(250)).begin()
    assert drive.wrote == flight(2), "one flight again"


def test_who_is_refused_behind_a_refused_content_leaves_the_next_its_bdat() -> None:
    drive = Drive(BDAT).begin().say(lines(250, 250, 452)).begin()
    assert drive.cleared().say(lines(250, 250, 550)).wrote == RSET
    assert drive.dialogue.ready, "while that RSET is on the way"
    assert drive.cleared().begin().wrote == mail(2) + rcpts(2), "no DATA"
    drive.say(lines(250))  # to RSET: the refusal is told
    assert codes(drive.ends[0])[1] == (550,)
    drive.cleared().say(lines(250, 250))
    assert drive.wrote == bdat(2)


@pytest.mark.parametrize(
    "ends",
    [
        lambda drive: drive.took(drive.dialogue.receive_eof()),
        lambda drive: drive.took(drive.dialogue.fail(Fault.TIMEOUT)),
        lambda drive: drive.say(lines(450)),
        lambda drive: drive.say(lines(421)),
    ],
    ids=["close", "silence", "450", "421"],
)
def test_who_ends_a_session_behind_a_refused_bdat_leaves_nobody_in_doubt(
    ends: Callable[[Drive], Drive],
) -> None:
    """Servers that close behind what they refused are common."""
    drive = Drive(BDAT).begin().say(lines(250, 250, 554)).begin()
    (_, end) = ends(drive).ends
    assert (end.dot_written, end.stumbled) == (False, None), "no BDAT left"
    verdict = judge(end, 0, last_host=True, reused=True, on_doubt=OnDoubt.RETRY)
    assert verdict.action is Action.AGAIN


@pytest.mark.parametrize("dialect", [BDAT, FIRST_BDAT, SERIAL])
@pytest.mark.parametrize("unknown", [500, 501, 502, 503, 504])
def test_an_unknown_bdat_refuses_nobody_and_is_not_tried_again(
    dialect: Dialect, unknown: int
) -> None:
    drive = Drive(dialect).begin()
    for one in (250, 250, unknown):
        drive.say(lines(one))
    (end,) = drive.ends
    assert codes(end) == (250, (250,), None, None)
    assert (end.fault, end.stumbled) == (Fault.GARBAGE, Extension.CHUNKING)
    assert (end.dot_written, end.usable) == (False, False)


@pytest.mark.parametrize("junk", [lines(354), b"no reply\r\n"])
def test_garbage_for_a_bdat_leaves_it_in_doubt(junk: bytes) -> None:
    (end,) = Drive(BDAT).begin().say(lines(250, 250) + junk).ends
    assert (end.dot, end.fault, end.dot_written) == (None, Fault.GARBAGE, True)


@pytest.mark.parametrize("extra", range(3))
def test_a_reply_too_many_with_that_to_a_bdat_makes_it_doubtful(extra: int) -> None:
    replies = [250, 250, 250]
    drive = Drive(BDAT).begin().say(lines(*replies[: extra + 1], *replies[extra:]))
    (end,) = drive.ends
    assert (end.dot, end.dot_written, end.fault) == (None, True, Fault.GARBAGE)
    assert (end.usable, end.stumbled) == (False, Extension.CHUNKING)


@pytest.mark.parametrize("words", [b"250 OK\r\n", b"250 Accepted\r\n"])
def test_where_a_bdat_worked_its_first_consent_in_a_session_has_words_of_its_own(
    words: bytes,
) -> None:
    drive = Drive(BDAT).begin().say(b"250 OK\r\n250 Accepted\r\n").say(words)
    (end,) = drive.ends  # one reply too many came before
    assert (end.dot, end.dot_written, end.fault) == (None, True, Fault.GARBAGE)
    assert (end.usable, end.stumbled) == (False, Extension.CHUNKING)


def test_a_421_behind_the_reply_to_a_bdat_is_no_garbage() -> None:
    (end,) = Drive(BDAT).begin().say(lines(250, 250, 250, 421)).ends
    assert (codes(end)[3], end.fault, end.usable) == (250, None, False)


# (replies, whose stage then)
PLACES: list[tuple[list[int], Stage]] = [
    ([], Stage.MAIL),
    ([250], Stage.RCPT),
    ([250, 250], Stage.RCPT),
    ([250, 550, 250], Stage.DOT),
]


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize(("before", "stage"), PLACES)
def test_a_loss_anywhere_in_a_flight_is_in_doubt(
    before: list[int], stage: Stage, fault: Fault
) -> None:
    drive = Drive(BDAT).begin(2).say(lines(*before))
    drive.took(drive.dialogue.fail(fault))
    (end,) = drive.ends
    assert (end.stage, end.fault, end.dot_written) == (stage, fault, True)
    assert (end.dot, end.usable) == (None, False)


@pytest.mark.parametrize(("before", "stage"), PLACES)
def test_a_loss_before_the_last_octet_was_taken_is_not(before: list[int], stage: Stage) -> None:
    drive = Drive(FIRST_BDAT).begin(2)
    if len(before) == 3:
        assert drive.dialogue.receive(lines(*before)) == []
        stage = Stage.BODY
    else:
        drive.say(lines(*before))
    drive.took(drive.dialogue.receive_eof())
    (end,) = drive.ends
    assert (end.stage, end.dot_written) == (stage, False)
    assert drive.dialogue.take_output() == b""


# A close: what it teaches. A server may close at each BDAT, or behind each message

TAUGHT = [  # dialect, messages taken before, replies to the next, whether CHUNKING is to blame
    (FIRST_BDAT, 0, [250, 250], True),
    (FIRST_BDAT, 0, [250], False),
    (FIRST_BDAT, 0, [], False),
    (FIRST_BDAT, 1, [250, 250], False),
    (FIRST_BDAT, 1, [], True),
    (BDAT, 0, [250, 250], True),  # it worked at this site once, and may no more
    (BDAT, 0, [250], False),
    (BDAT, 0, [], False),
    (BDAT, 1, [250, 250], False),
    (BDAT, 1, [250], False),
    (BDAT, 1, [], True),
    (SERIAL, 0, [250, 250], True),
    (SERIAL, 1, [250, 250], False),
]


@pytest.mark.parametrize(("dialect", "before", "replies", "blamed"), TAUGHT)
def test_a_close_at_a_bdat_that_none_answered_before_spares_the_site_bdat(
    dialect: Dialect, before: int, replies: list[int], blamed: bool
) -> None:
    drive = Drive(dialect)
    for _ in range(before):
        drive.begin()
        for one in (250, 250, 250):
            drive.say(lines(one))
        assert [code(end.dot) for end in drive.ends] == [250]
        drive.cleared()
    drive.begin()
    for one in replies:
        drive.say(lines(one))
    out = bdat(before) in drive.wrote
    (end,) = drive.took(drive.dialogue.receive_eof()).ends
    assert end.stumbled is (Extension.CHUNKING if blamed else None)
    # in doubt where the last octet was handed over, whatever it teaches
    assert (end.fault, end.dot, end.dot_written) == (Fault.CLOSED, None, out)


@pytest.mark.parametrize("verdict", [452, 554])
def test_a_bdat_that_was_refused_was_answered_too(verdict: int) -> None:
    drive = Drive(BDAT).begin().say(lines(250, 250, verdict)).cleared()
    drive.begin().say(lines(250, 250, 250))
    (end,) = drive.took(drive.dialogue.receive_eof()).ends
    assert (end.stumbled, end.dot_written) == (None, True)


def test_a_first_bdat_with_another_envelope_behind_it_is_to_blame_before_that() -> None:
    drive = Drive(Dialect(chunk_octets=1000, depth=2)).begin().say(lines(250, 250)).begin()
    first, second = drive.took(drive.dialogue.receive_eof()).ends
    assert (first.stumbled, second.stumbled) == (Extension.CHUNKING, None)
    assert (second.behind, second.dot_written) == (True, False)


def test_a_bdat_cut_by_ourselves_teaches_nothing() -> None:
    for fault in (Fault.CLOSED, Fault.CUT):
        drive = Drive(FIRST_BDAT).begin().say(lines(250, 250))
        (end,) = drive.took(drive.dialogue.fail(fault)).ends
        assert (end.stumbled, end.dot_written) == (None, True)


# Several in flight


def test_depth_keeps_so_many_in_flight_each_behind_a_reset() -> None:
    drive = Drive(DEEP)
    for number in range(3):
        assert drive.dialogue.ready
        assert drive.cleared().begin().wrote == flight(number, reset=number > 0)
    assert not drive.dialogue.ready
    drive.say(lines(250, 250, 250))
    assert drive.dialogue.ready
    assert drive.cleared().begin().wrote == flight(3, reset=True)
    drive.say(lines(*[250] * 12))
    assert [(codes(end), end.behind) for end in drive.ends] == [
        ((250, (250,), None, 250), True)
    ] * 3
    assert drive.cleared().begin().wrote == flight(4)


@pytest.mark.parametrize("split", [0, 1, 4])
def test_each_in_flight_has_its_own_end(split: int) -> None:
    drive = Drive(DEEP).begin().begin(2).begin()
    drive.say(lines(250, 250, 452, 250, 250, 550, 250, 250, 250, 450, 503, 503), split=split)
    assert [codes(end) for end in drive.ends] == [
        (250, (250,), None, 452),
        (250, (550, 250), None, 250),
        (450, (None,), None, None),
    ]
    assert [end.usable for end in drive.ends][-1] is False


def test_all_refused_in_a_flight_leaves_those_behind_it_in_doubt() -> None:
    drive = Drive(DEEP).begin().begin().begin()
    drive.say(lines(250, 250, 250)).say(lines(250, 250, 550, 554))
    first, second, third = drive.ends
    assert (codes(first)[3], first.usable) == (250, True)
    assert (codes(second), second.stage) == ((250, (550,), None, None), Stage.RCPT)
    # the server closed nothing
    assert (third.stage, third.fault, third.dot_written) == (Stage.DOT, Fault.ENDED, True)
    assert not third.answered
    assert [second.usable, third.usable] == [False, False]


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        (lambda d: d.receive(lines(421)), Fault.CLOSED),
        (lambda d: d.receive_eof(), Fault.CLOSED),
        (lambda d: d.fail(Fault.CUT), Fault.CUT),
        (lambda d: d.fail(Fault.TIMEOUT), Fault.TIMEOUT),
    ],
)
def test_what_ends_the_session_behind_a_refusal_is_told_to_those_behind(
    how: Callable[[ClientDialogue], list[Event]], fault: Fault
) -> None:
    drive = Drive(DEEP).begin().begin().say(lines(250, 550))
    drive.took(how(drive.dialogue))
    first, second = drive.ends
    assert (codes(first)[:2], first.stage) == ((250, (550,)), Stage.RCPT)
    assert (second.fault, second.stage, second.dot_written) == (fault, Stage.DOT, True)


@pytest.mark.parametrize("fault", list(Fault))
def test_a_loss_ends_all_in_flight_and_each_may_have_been_taken(fault: Fault) -> None:
    drive = Drive(DEEP).begin().begin().begin().say(lines(250, 250, 250, 250, 250))
    drive.took(drive.dialogue.fail(fault))
    first, second, third = drive.ends
    assert codes(first)[3] == 250
    assert [(end.fault, end.dot_written, end.dot) for end in (second, third)] == [
        (fault, True, None)
    ] * 2
    assert (second.answered, third.answered) == (True, False)


def test_a_refused_reset_takes_no_message_for_refused() -> None:
    drive = Drive(DEEP).begin().begin().say(lines(250, 250, 250)).say(lines(503))
    first, second = drive.ends
    assert codes(first)[3] == 250
    assert (second.mail, second.answered, second.dot_written) == (None, False, True)
    assert (second.fault, second.stumbled) == (Fault.GARBAGE, Extension.PIPELINING)


def test_with_data_depth_counts_nothing() -> None:
    drive = Drive(Dialect(depth=8)).begin().say(lines(250, 250, 354)).begin()
    assert not drive.dialogue.ready


def test_behind_an_unanswered_dot_the_depth_holds_for_a_bdat_too() -> None:
    drive = Drive(BDAT).begin(streamed=True)
    (wanted,) = drive.dialogue.receive(lines(250, 250, 354))
    assert wanted is not None
    drive.dialogue.content(body(0))
    drive.dialogue.end_content()
    drive.begin()
    assert drive.wrote.endswith(dotted(0) + mail(1) + rcpts(1) + DATA)
    deep = Drive(DEEP).begin(streamed=True)
    deep.dialogue.receive(lines(250, 250, 354))
    deep.dialogue.content(body(0))
    deep.dialogue.end_content()
    deep.begin()
    assert deep.wrote.endswith(dotted(0) + flight(1))
