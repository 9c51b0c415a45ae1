"""RSET behind a refusal: what stands in the place of its reply, and the innocent that left with it.

Contract. Who is refused without a 354 is told once RSET got its 250; the next flight leaves with
that RSET. Each recipient is judged here, as the engine would: the innocent are sent again, at no
charge, whatever becomes of the RSET.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from mailstrom.policy.outcome import Action, judge
from mailstrom.smtp.client import Awaited, Dialect, Fault, Pipelining, TransactionEnd
from mailstrom.types import OnDoubt, Stage
from tests.unit.smtp.driving import (
    BEHIND,
    DATA,
    QUIT,
    RSET,
    Drive,
    code,
    codes,
    dotted,
    lines,
    mail,
    rcpts,
)

TRANSACTION = Dialect(pipelining=Pipelining.TRANSACTION)
SERIAL = Dialect(pipelining=Pipelining.NONE)

REFUSALS = {
    "mail": [550, 503, 503],
    "rcpt": [250, 550, 554],
    "data": [250, 250, 554],
}


def says(reply: bytes) -> Callable[[Drive], Drive]:
    return lambda drive: drive.say(reply)


# What comes in the place of RSET's reply, and whether the refusal stands
INSTEAD: dict[str, tuple[Callable[[Drive], Drive], bool]] = {
    "502": (says(b"502 no\r\n"), False),
    "450": (says(b"450 slow down\r\n"), False),
    "354": (says(b"354 go\r\n"), False),
    "garbage": (says(b"HTTP/1.1\r\n"), False),
    # none of these is a reply too many: all that was refused stood in its place
    "silence": (lambda drive: drive.took(drive.dialogue.fail(Fault.TIMEOUT)), True),
    "421": (says(b"421 bye\r\n"), True),
    "close": (lambda drive: drive.took(drive.dialogue.receive_eof()), True),
    "our own cut": (lambda drive: drive.took(drive.dialogue.fail(Fault.CUT)), True),
}


ASKED = ("502", "450")
"""What refuses RSET: then QUIT is asked, where nothing else is on the wire."""


def refused(dialect: Dialect, refusal: str, *, reused: bool = False) -> Drive:
    """A message is refused, and its RSET has no answer yet."""
    drive = Drive(dialect)
    if reused:
        drive.begin()
        for one in (250, 250, 354, 250):
            drive.say(lines(one))
        drive.cleared()
    drive.begin()
    if dialect is not SERIAL:
        return drive.say(lines(*REFUSALS[refusal]))
    for one in REFUSALS[refusal]:
        if not drive.wrote.endswith(RSET):
            drive.say(lines(one))
    return drive


def verdict(end: TransactionEnd, *, reused: bool) -> Action:
    return judge(end, 0, last_host=True, reused=reused, on_doubt=OnDoubt.RETRY).action


@pytest.mark.parametrize("dialect", [TRANSACTION, BEHIND], ids=["transaction", "full"])
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("instead", INSTEAD)
def test_the_innocent_behind_a_reset_is_sent_again_uncharged(
    dialect: Dialect, refusal: str, instead: str
) -> None:
    drive = Drive(dialect).begin().say(lines(*REFUSALS[refusal]))
    assert drive.begin().cleared().wrote == b""
    comes, stands = INSTEAD[instead]
    refused, innocent = comes(drive).ends
    assert verdict(refused, reused=False) is (Action.FAIL if stands else Action.AGAIN)
    assert verdict(innocent, reused=True) is Action.AGAIN
    assert codes(innocent) == (None, (None,), None, None)
    assert (innocent.stale, innocent.behind, innocent.answered) == (True, False, False)
    assert (refused.usable, innocent.usable, innocent.dot_written) == (False, False, False)


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("refusal", ["rcpt", "data"])  # behind MAIL it is QUIT (test_parting)
@pytest.mark.parametrize("instead", INSTEAD)
def test_without_pipelining_a_reset_proves_a_refusal_too(
    refusal: str, instead: str, reused: bool
) -> None:
    drive = Drive(SERIAL)
    if reused:
        drive.begin()
        for one in (250, 250, 354, 250):
            drive.say(lines(one))
        assert [code(end.dot) for end in drive.ends] == [250]
        drive.cleared()
    drive.begin()
    for one in REFUSALS[refusal]:
        if not drive.wrote.endswith(RSET):
            drive.say(lines(one))
    assert (drive.wrote[-len(RSET) :], drive.ends, drive.dialogue.ready) == (RSET, [], False)
    comes, stands = INSTEAD[instead]
    comes(drive)
    if instead in ASKED:
        assert drive.wrote.endswith(RSET + QUIT)
        assert (drive.ends, drive.dialogue.ready) == ([], False)
        drive.say(b"250 that was for RSET\r\n")
    (refused,) = drive.ends
    # What came too many may be from the message before; the first one's own is charged, and waits.
    unsure = Action.AGAIN if reused else Action.DEFER
    assert verdict(refused, reused=reused) is (Action.FAIL if stands else unsure)


@pytest.mark.parametrize("reset", [b"450 slow down\r\n", b"502 5.5.1 no RSET here\r\n"])
@pytest.mark.parametrize(
    ("dialect", "refusal"),
    [
        *((dialect, refusal) for dialect in (TRANSACTION, BEHIND) for refusal in REFUSALS),
        (SERIAL, "rcpt"),
        (SERIAL, "data"),
    ],
)
def test_221_to_quit_proves_a_refusal_where_the_server_refuses_rset(
    dialect: Dialect, refusal: str, reset: bytes
) -> None:
    drive = refused(dialect, refusal).say(reset)
    assert drive.wrote.endswith(RSET + QUIT)
    assert (drive.ends, drive.dialogue.ready) == ([], False)
    assert drive.dialogue.awaited is Awaited.RSET
    drive.say(b"221 2.0.0 bye\r\n")
    (end,) = drive.ends
    assert verdict(end, reused=False) is Action.FAIL
    assert (end.usable, end.fault, end.disbelieved) == (False, None, ())


OTHERS: dict[str, Callable[[Drive], Drive]] = {
    **{name: comes for name, (comes, _) in INSTEAD.items()},
    "250": says(b"250 that was for RSET\r\n"),
    "250, then 221": says(b"250 that was for RSET\r\n221 bye\r\n"),
    "222": says(b"222 ?\r\n"),
}


@pytest.mark.parametrize("instead", OTHERS)
@pytest.mark.parametrize("reused", [False, True])
def test_whatever_else_comes_in_its_place_undoes_it_and_the_words_are_told(
    reused: bool, instead: str
) -> None:
    drive = refused(SERIAL, "rcpt", reused=reused).say(b"554 5.5.1 no RSET here\r\n")
    (end,) = OTHERS[instead](drive).ends
    told = judge(end, 0, last_host=True, reused=reused, on_doubt=OnDoubt.RETRY)
    again = reused or instead == "our own cut"
    assert told.action is (Action.AGAIN if again else Action.DEFER)
    assert (told.reply_code, told.in_doubt, end.usable) == (None, False, False)
    if not again or reused:
        assert told.reply_text is not None
        assert re.search(
            r'^the server said "550 text \d+", then "554 5.5.1 no RSET here" to RSET: the first may'
            r" have been meant for another command$",
            told.reply_text,
        )


def test_where_rset_was_refused_together_with_another_reply_it_is_undone_at_once() -> None:
    drive = refused(SERIAL, "rcpt").say(b"554 no\r\n250 ok\r\n")
    (end,) = drive.ends
    assert verdict(end, reused=False) is Action.DEFER
    assert (drive.wrote.endswith(RSET), code(end.reset)) == (True, 554)


def test_words_that_are_not_believed_are_each_recipients_own() -> None:
    drive = Drive(SERIAL).begin(2)
    drive.say(b"250 ok\r\n").say(b"550 not one\r\n").say(b"551 not two\r\n")
    drive.say(b"503 nobody\r\n").say(b"HTTP/1.1\r\n")
    (end,) = drive.ends
    assert [code(one) for one in end.disbelieved] == [550, 551]
    assert end.reset is None
    told = judge(end, 1, last_host=True, reused=False, on_doubt=OnDoubt.RETRY).reply_text
    assert told is not None
    assert told == (
        'the server\'s answer was not SMTP at data; before that it said "551 not two", which may'
        " have been meant for another command"
    )


@pytest.mark.parametrize(
    ("dialect", "stands"), [(SERIAL, True), (TRANSACTION, False), (BEHIND, False)]
)
def test_silence_at_data_leaves_refusals_only_where_each_reply_was_waited_for(
    dialect: Dialect, stands: bool
) -> None:
    drive = Drive(dialect).begin(2)
    for one in (250, 550, 550):
        drive.say(lines(one))
    assert drive.wrote.endswith(DATA)
    (end,) = drive.took(drive.dialogue.fail(Fault.TIMEOUT)).ends
    assert (verdict(end, reused=False) is Action.FAIL) == stands


@pytest.mark.parametrize("dialect", [TRANSACTION, BEHIND], ids=["transaction", "full"])
def test_what_leaves_with_a_reset_is_not_behind_a_content(dialect: Dialect) -> None:
    drive = Drive(dialect).begin().say(lines(250, 550, 554)).cleared().begin()
    assert drive.wrote == mail(1) + rcpts(1) + DATA
    assert drive.dialogue.awaited is Awaited.RSET
    drive.say(lines(250))
    assert drive.dialogue.awaited is Awaited.MAIL  # its own time, not that of commands behind
    drive.say(lines(250, 250, 354)).say(lines(250))
    refused, taken = drive.ends
    assert (codes(refused)[:2], refused.stage) == ((250, (550,)), Stage.RCPT)
    assert codes(taken) == (250, (250,), 354, 250)
    assert (taken.behind, taken.usable) == (False, True)
    assert drive.wrote.endswith(dotted(1))


def test_a_late_second_reply_to_content_bounces_nobody_without_pipelining() -> None:
    """The next message has three recipients; only the last of them is refused."""
    drive = Drive(SERIAL).begin()
    for one in (250, 250, 354, 250):
        drive.say(lines(one))
    drive.cleared().begin(3)
    for one in (250, 250, 250, 250, 550):  # the first is that too many, and all are one late
        drive.say(lines(one))
    assert (drive.wrote[-len(DATA + QUIT) :], drive.ends) == (DATA + QUIT, [])
    (end,) = drive.say(lines(354)).ends
    assert codes(end) == (None, (None, None, None), None, None)
    assert (end.usable, end.answered, end.dot_written) == (False, False, False)
    for index in range(3):
        said = judge(end, index, last_host=True, reused=True, on_doubt=OnDoubt.RETRY)
        assert said.action is Action.AGAIN


def test_a_late_second_reply_that_data_gets_charges_nobody_without_pipelining() -> None:
    drive = Drive(SERIAL).begin()
    for one in (250, 250, 354, 250):
        drive.say(lines(one))
    drive.cleared().begin()
    for one in (250, 250, 250):
        drive.say(lines(one))
    (end,) = drive.ends
    assert (end.fault, end.usable, end.stumbled) == (Fault.GARBAGE, False, None)
    assert verdict(end, reused=True) is Action.AGAIN


def test_a_second_250_in_the_place_of_that_to_reset_is_found_out_by_the_next_flight() -> None:
    drive = Drive(TRANSACTION).begin().say(lines(250, 550, 554)).begin()
    (refused,) = drive.say(lines(250)).ends
    assert verdict(refused, reused=False) is Action.FAIL
    drive.cleared().say(lines(250, 250, 250, 354))  # RSET's own, and all that follow one late
    (innocent,) = drive.ends
    assert (innocent.dot_written, innocent.rcpts, innocent.usable) == (False, (None,), False)
    assert verdict(innocent, reused=True) is Action.AGAIN
