"""Whose consent a reply is, as far as its words tell."""

from __future__ import annotations

import pytest

from mailstrom.smtp.client import Extension, Fault
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.wording import Wording
from tests.unit.smtp.driving import BDAT, BEHIND, Drive, codes


def said(text: str) -> Reply:
    return Reply.of(250, [text])


@pytest.mark.parametrize("proved", [True, False])
@pytest.mark.parametrize(
    ("to_mail", "to_content", "marked", "not_so"),
    [
        # behind a 354 nothing but the MAIL behind it may stand there
        ("2.1.0 ok", "2.1.5 taken", True, False),
        ("2.1.0 ok", "2.1.0 ok", True, True),
        ("2.1.5 ok", "2.1.5 taken", True, True),
        ("ok", "2.1.5 taken", True, False),
        # the place of a BDAT's reply is marked by nothing: it may be a RCPT's
        ("2.1.0 ok", "2.1.5 taken", False, True),
        ("2.1.0 ok", "2.1.0 ok", False, True),
        ("ok", "2.1.5 taken", False, True),
        # a code that is of no address is of neither
        ("2.0.0 ok", "2.0.0 ok", True, False),
        ("2.1.0 ok", "2.0.0 taken", False, False),
        ("2.1.0 ok", "2.6.0 taken", True, False),
    ],
)
def test_an_enhanced_code_tells_of_an_envelope(
    to_mail: str, to_content: str, marked: bool, not_so: bool, proved: bool
) -> None:
    wording = Wording()
    wording.to_mail(said(to_mail))
    assert wording.of_an_envelope(said(to_content), proved, marked=marked) is not_so


@pytest.mark.parametrize("marked", [True, False])
def test_without_a_code_the_words_tell_where_the_server_has_different_ones(marked: bool) -> None:
    wording = Wording()
    wording.to_mail(said("sender ok"))
    wording.to_envelope(said("recipient ok"))
    for text in ("sender ok", "recipient ok"):
        assert not wording.of_an_envelope(said(text), False, marked=marked), "it may have no others"
        assert wording.of_an_envelope(said(text), True, marked=marked)
    wording.to_content(said("queued"))
    assert wording.apart
    assert wording.of_an_envelope(said("sender ok"), False, marked=marked)
    assert not wording.of_an_envelope(said("queued as 2"), True, marked=marked)
    wording.to_content(said("sender ok"))
    assert not wording.of_an_envelope(said("sender ok"), True, marked=marked), "it says so of both"


ENVELOPE = b"250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n"
TAKEN = b"250 2.1.5 taken\r\n"


def test_content_behind_a_354_may_be_taken_in_a_rcpts_code() -> None:
    """Some servers do; with the next envelope on its way behind it."""
    drive = Drive(BEHIND).begin().say(ENVELOPE + b"354 go\r\n").begin()
    drive.say(TAKEN + ENVELOPE + b"354 go\r\n").begin().say(TAKEN)
    assert [codes(end)[3] for end in drive.ends] == [250, 250]
    assert [(end.fault, end.stumbled, end.usable) for end in drive.ends] == [(None, None, True)] * 2


def test_a_mails_code_in_the_place_of_content_is_believed_of_mail_alone() -> None:
    drive = Drive(BEHIND).begin().say(ENVELOPE + b"354 go\r\n").begin().say(ENVELOPE)
    first = drive.ends[0]
    assert (first.fault, first.dot, first.dot_written) == (Fault.GARBAGE, None, True)
    assert first.stumbled is Extension.PIPELINING


def test_a_bdat_that_is_taken_in_a_rcpts_code_is_a_doubt_and_spared() -> None:
    drive = Drive(BDAT).begin().say(ENVELOPE + TAKEN)
    (end,) = drive.ends
    assert (end.fault, end.dot, end.dot_written) == (Fault.GARBAGE, None, True)
    assert (end.stumbled, end.usable) == (Extension.CHUNKING, False)
