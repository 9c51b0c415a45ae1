"""QUIT behind a refusal that RSET cannot prove: 221 alone says that it stood in its place.

Contract. With two replies too many a recipient's refusal stands in the place of DATA's, and the
consent to another one in that of RSET's. So a refusal of DATA behind several recipients is told
once QUIT got its 221. Where nothing answers QUIT, a flight's envelope is sent again in lock step,
uncharged, and there the refusal stands. Who is refused alone, or by his own reply, pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailstrom.policy.outcome import Action, judge
from mailstrom.smtp.client import Dialect, Extension, Fault, Pipelining, TransactionEnd
from mailstrom.types import OnDoubt
from tests.unit.smtp.driving import BEHIND, QUIT, RSET, Drive, codes, lines, warm

TRANSACTION = Dialect(pipelining=Pipelining.TRANSACTION)
SERIAL = Dialect(pipelining=Pipelining.NONE)
FLIGHTS = pytest.mark.parametrize("dialect", [TRANSACTION, BEHIND], ids=["transaction", "full"])


def verdicts(end: TransactionEnd, *, reused: bool = False) -> set[Action]:
    return {
        judge(end, index, last_host=True, reused=reused, on_doubt=OnDoubt.RETRY).action
        for index in range(len(end.rcpts))
    }


def refused_at_data(dialect: Dialect) -> Drive:
    drive = Drive(dialect).begin(3)
    for one in (250, 250, 250, 250, 554):
        drive.say(lines(one))
    assert (drive.wrote[-6:], drive.ends, drive.dialogue.ready) == (QUIT, [], False)
    return drive


@pytest.mark.parametrize("dialect", [SERIAL, TRANSACTION, BEHIND])
def test_goodbye_proves_a_refused_data(dialect: Dialect) -> None:
    (end,) = refused_at_data(dialect).say(b"221 bye\r\n").ends
    assert codes(end) == (250, (250, 250, 250), 554, None)
    assert (end.fault, end.stumbled, end.usable) == (None, None, False)
    assert verdicts(end) == {Action.FAIL}


@FLIGHTS
@pytest.mark.parametrize("instead", [b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"junk\r\n"])
def test_any_other_answer_is_out_of_step(dialect: Dialect, instead: bytes) -> None:
    (end,) = refused_at_data(dialect).say(instead).ends
    assert codes(end) == (None, (None, None, None), None, None)
    assert (end.fault, end.stumbled) == (Fault.GARBAGE, Extension.PIPELINING)
    assert verdicts(end) == {Action.AGAIN}


# No answer, and what is then blamed
NOTHING: dict[str, tuple[Callable[[Drive], Drive], Extension | None]] = {
    "421": (lambda drive: drive.say(b"421 bye\r\n"), Extension.PIPELINING),
    "close": (lambda drive: drive.took(drive.dialogue.receive_eof()), Extension.PIPELINING),
    "silence": (
        lambda drive: drive.took(drive.dialogue.fail(Fault.TIMEOUT)), Extension.PIPELINING,
    ),
    "our own cut": (lambda drive: drive.took(drive.dialogue.fail(Fault.CUT)), None),
}  # fmt: skip


@FLIGHTS
@pytest.mark.parametrize("nothing", NOTHING)
def test_of_a_flight_no_answer_asks_again_in_lock_step(dialect: Dialect, nothing: str) -> None:
    comes, blamed = NOTHING[nothing]
    (end,) = comes(refused_at_data(dialect)).ends
    assert (verdicts(end), end.stumbled, end.answered) == ({Action.AGAIN}, blamed, False)
    assert end.fault is not Fault.GARBAGE  # an hour of lock step, not days


@pytest.mark.parametrize("nothing", NOTHING)
def test_in_lock_step_no_answer_leaves_the_refusal_standing(nothing: str) -> None:
    (end,) = NOTHING[nothing][0](refused_at_data(SERIAL)).ends
    assert verdicts(end) == {Action.FAIL}


@FLIGHTS
def test_421_with_the_refusal_itself_is_no_goodbye(dialect: Dialect) -> None:
    drive = Drive(dialect).begin(3).say(lines(250, 250, 250, 250, 554) + b"421 bye\r\n")
    (end,) = drive.ends
    assert (verdicts(end), end.stumbled) == ({Action.AGAIN}, Extension.PIPELINING)


@pytest.mark.parametrize("dialect", [SERIAL, TRANSACTION, BEHIND])
def test_mail_answered_three_times_refuses_nobody_by_a_neighbours_reply(dialect: Dialect) -> None:
    drive = Drive(dialect).begin(3)
    # 250 250 250 to MAIL, 250 550 250 to the recipients, 354: one segment each
    for one in (250, 250, 250, 250, 550, 250, 354):
        drive.say(lines(one))
    (end,) = drive.ends
    assert codes(end) == (None, (None, None, None), None, None)
    assert verdicts(end) <= {Action.AGAIN, Action.DEFER}
    assert (verdicts(end) == {Action.AGAIN}) is (dialect is not SERIAL)


@FLIGHTS
@pytest.mark.parametrize(
    ("count", "replies"),
    [
        (1, [b"250 a", b"250 b", b"554 5.7.1 no"]),
        (1, [b"250 a", b"550 no", b"554 nobody"]),
        (2, [b"250 a", b"550 no", b"550 not you", b"503 nobody"]),
        (1, [b"550 no", b"503 no", b"503 no"]),
    ],
    ids=["lone at data", "lone", "all at rcpt", "mail"],
)
def test_what_is_refused_by_its_own_reply_keeps_the_session(
    dialect: Dialect, count: int, replies: list[bytes]
) -> None:
    drive = Drive(dialect).begin(count).say(b"".join(b"%b\r\n" % one for one in replies))
    assert drive.wrote.endswith(RSET)
    (end,) = drive.say(lines(250)).ends
    assert (end.usable, verdicts(end)) == (True, {Action.FAIL})


@FLIGHTS
@pytest.mark.parametrize(
    "replies",
    [
        [b"250 a", b"550 no", b"550 no", b"550 no"],  # the first one's three times, the second's
        [b"250 a", b"550 no", b"551 nor you", b"550 5.1.1 no such user"],
        [b"550 no", b"550 no", b"550 no", b"550 no"],
    ],
)
def test_the_words_of_a_refusal_before_or_of_an_address_prove_nothing_at_data(
    dialect: Dialect, replies: list[bytes]
) -> None:
    drive = Drive(dialect).begin(2).say(b"".join(b"%b\r\n" % one for one in replies))
    assert drive.wrote.endswith(QUIT)
    (end,) = drive.say(b"250 b\r\n").ends
    assert verdicts(end) == {Action.AGAIN}


@pytest.mark.parametrize("bye", [b"221 bye\r\n", b"421 bye\r\n", b""])
def test_goodbye_proves_a_refused_mail_in_lock_step(bye: bytes) -> None:
    drive = Drive(SERIAL).begin(2).say(b"550 not you\r\n")
    assert (drive.wrote[-6:], drive.ends, drive.dialogue.ready) == (QUIT, [], False)
    drive = drive.say(bye) if bye else drive.took(drive.dialogue.receive_eof())
    (end,) = drive.ends
    assert (codes(end)[0], end.usable) == (550, False)
    assert verdicts(end) == {Action.FAIL}


def test_a_mail_refused_for_now_in_lock_step_keeps_its_session() -> None:
    drive = Drive(SERIAL).begin(2).say(b"450 not now\r\n")
    assert drive.wrote.endswith(RSET)
    (end,) = drive.say(b"250 ok\r\n").ends
    assert (codes(end)[0], end.usable) == (450, True)


def test_a_late_refusal_more_of_a_content_bounces_nobody_at_mail_in_lock_step() -> None:
    drive = Drive(SERIAL).begin()
    for one in (250, 250, 354, 250):
        drive.say(lines(one))
    drive.cleared().begin().say(b"550 and yet no\r\n")
    assert drive.wrote.endswith(QUIT)
    (end,) = drive.say(lines(250)).ends  # MAIL's own
    assert codes(end) == (None, (None,), None, None)
    assert verdicts(end, reused=True) == {Action.AGAIN}


def test_a_late_refusal_more_of_a_content_bounces_nobody_behind_it() -> None:
    drive = warm().begin()
    drive.say(lines(250)).say(b"550 and yet no\r\n").say(lines(250))
    taken, innocent = drive.ends
    assert verdicts(taken) == {Action.DELIVER}
    assert verdicts(innocent, reused=True) == {Action.AGAIN}
