"""One reply too many before a BDAT, by a server with enhanced codes: no recipient gets another's.

What comes before the BDAT left is another command's. So is, of several recipients, a refusal in its
place that speaks of an address; by DATA a 354 marks the place, and such a refusal stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import ClientDialogue, Dialect, Envelope, Extension, Fault
from mailstrom.smtp.transaction import TransactionEnd
from mailstrom.types import Stage

OFFERED = Capabilities(pipelining=True, chunking=True, enhancedstatuscodes=True)
BODY = b"Subject: x\r\n\r\nhi\r\n"


def _begun(dialect: Dialect, recipients: Sequence[str]) -> ClientDialogue:
    dialogue = ClientDialogue(OFFERED, dialect)
    dialogue.begin(Envelope(sender="s@x.test", recipients=tuple(recipients), size=len(BODY)), BODY)
    dialogue.take_output()
    return dialogue


def _say(dialogue: ClientDialogue, *replies: str) -> TransactionEnd:
    """One by one; what is to be written leaves in between."""
    for one in replies:
        events = dialogue.receive(one.encode() + b"\r\n")
        dialogue.take_output()
    (end,) = events
    assert isinstance(end, TransactionEnd)
    return end


@pytest.mark.parametrize("proved", [False, True])
@pytest.mark.parametrize("more", ["", "250 2.1.5 third\r\n"])
def test_one_reply_too_many_refuses_nobody_else(more: str, proved: bool) -> None:
    recipients = ("good@x.test", "bad@x.test", "third@x.test")[: 3 if more else 2]
    dialogue = _begun(Dialect(chunk_octets=1 << 20, chunks_proved=proved), recipients)
    replies = "250 2.1.0 s\r\n" * 2 + "250 2.1.5 good\r\n550 5.1.1 bad\r\n" + more
    (end,) = dialogue.receive(replies.encode())
    assert isinstance(end, TransactionEnd)
    assert (end.fault, end.stumbled) == (Fault.GARBAGE, Extension.CHUNKING)
    assert (set(end.rcpts), end.dot, end.usable) == ({None}, None, False)
    assert end.dot_written is proved


TWO = ("good@x.test", "bad@x.test")
SHIFTED = ("250 2.1.0 s", "250 2.1.0 s", "250 2.1.5 good")


@pytest.mark.parametrize("proved", [False, True])
@pytest.mark.parametrize("refusal", ["550 5.1.1 bad", "450 4.1.1 bad"])
def test_a_refusal_of_an_address_in_the_place_of_a_bdats_is_nobodys(
    refusal: str, proved: bool
) -> None:
    dialogue = _begun(Dialect(chunk_octets=1 << 20, chunks_proved=proved), TWO)
    end = _say(dialogue, *SHIFTED, refusal)
    assert (end.fault, end.stumbled) == (Fault.GARBAGE, Extension.CHUNKING)
    assert (set(end.rcpts), end.dot, end.dot_written) == ({None}, None, True)
    assert (end.usable, dialogue.ready) == (False, False)


@pytest.mark.parametrize("recipients", [1, 2])
def test_by_data_it_stands(recipients: int) -> None:
    taken = ("250 2.1.0 s", *("250 2.1.5 r",) * recipients, "354 go")
    end = _say(_begun(Dialect(), TWO[:recipients]), *taken, "550 5.1.1 nobody")
    assert end.dot is not None
    assert (end.dot.code, end.fault, end.usable) == (550, None, True)


@pytest.mark.parametrize(
    ("recipients", "refusal"), [(1, "550 5.1.1 nobody"), (2, "550 5.7.1 spam"), (2, "550 spam")]
)
def test_a_lone_recipients_or_one_that_speaks_of_no_address_stands(
    recipients: int, refusal: str
) -> None:
    dialogue = _begun(Dialect(chunk_octets=1 << 20, chunks_proved=True), TWO[:recipients])
    end = _say(dialogue, "250 2.1.0 s", *("250 2.1.5 r",) * recipients, refusal)
    assert end.dot is not None
    assert (end.dot.code, end.fault, end.stage, end.usable) == (550, None, Stage.DOT, True)


def test_a_refusal_that_came_twice_refuses_nobody_else() -> None:
    dialogue = _begun(Dialect(chunk_octets=1 << 20, chunks_proved=True), (*TWO[::-1], TWO[0]))
    replies = ("250 2.1.0 s", "550 5.1.1 bad", "550 5.1.1 bad", "250 2.1.5 good")
    end = _say(dialogue, *replies, "250 2.1.5 good")
    assert (set(end.rcpts), end.dot, end.fault) == ({None}, None, Fault.GARBAGE)


def test_421_before_a_bdat_left_is_the_servers_goodbye() -> None:
    dialogue = _begun(Dialect(chunk_octets=1 << 20), TWO)
    (end,) = dialogue.receive(
        b"250 2.1.0 s\r\n250 2.1.5 good\r\n550 5.1.1 bad\r\n421 4.3.0 bye\r\n"
    )
    assert isinstance(end, TransactionEnd)
    assert end.dot is not None
    assert end.rcpts[1] is not None
    assert (end.dot.code, end.rcpts[1].code, end.fault) == (421, 550, None)
    assert (end.dot_written, end.usable) == (False, False)
