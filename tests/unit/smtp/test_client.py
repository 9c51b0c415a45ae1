"""The client's dialogue against a scripted peer: every reply at every split, every way to fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.client import (
    ClientDialogue,
    ContentWanted,
    Dialect,
    Envelope,
    Event,
    Fault,
    PeerClosing,
    Pipelining,
    TransactionEnd,
    Unmet,
    UnmetNeed,
    unmet,
)
from mailstrom.smtp.framing import BareLineEnd
from mailstrom.smtp.reply import Reply, ReplyKind
from mailstrom.smtp.states import TABLE, Awaited, Slot
from mailstrom.types import Stage

FULL = Capabilities(
    name="mx", size=1000, pipelining=True, eightbitmime=True, smtputf8=True, limits={}
)
FLIGHT = Dialect(pipelining=Pipelining.FULL)
SERIAL = Dialect(pipelining=Pipelining.NONE)
CONTENT = b"Subject: x\r\n\r\n.dot\r\n"
ON_WIRE = b"Subject: x\r\n\r\n..dot\r\n.\r\n"


def envelope(count: int = 2) -> Envelope:
    recipients = tuple(f"r{number}@example.org" for number in range(count))
    return Envelope(sender="s@example.net", recipients=recipients, size=len(CONTENT))


class Run:
    """A dialogue, what it wrote and what it said; content is given whenever it is asked for."""

    def __init__(self, *, pipelined: bool, split: int = 0) -> None:
        self.dialogue = ClientDialogue(FULL, FLIGHT if pipelined else SERIAL)
        self.split = split
        self.wrote = b""
        self.events: list[Event] = []

    def begin(self, count: int = 2) -> Run:
        self.dialogue.begin(envelope(count))
        self._write()
        return self

    def _write(self) -> None:
        self.wrote += self.dialogue.take_output()

    def say(self, data: bytes) -> Run:
        chunks = [data]
        if self.split:
            chunks = [data[i : i + self.split] for i in range(0, len(data), self.split)]
        for chunk in chunks:
            self.took(self.dialogue.receive(chunk))
        return self

    def took(self, events: list[Event]) -> None:
        self.events += events
        if events and isinstance(events[-1], ContentWanted):
            self.dialogue.content(CONTENT)
            self.dialogue.end_content()
        self._write()

    @property
    def end(self) -> TransactionEnd:
        ends = [event for event in self.events if isinstance(event, TransactionEnd)]
        assert len(ends) == 1
        return ends[0]

    def codes(self) -> tuple[object, ...]:
        end = self.end

        def code(reply: Reply | None) -> int | None:
            return None if reply is None else reply.code

        return code(end.mail), tuple(map(code, end.rcpts)), code(end.data), code(end.dot)


MAIL = b"MAIL FROM:<s@example.net> SIZE=20\r\n"
R0, R1 = b"RCPT TO:<r0@example.org>\r\n", b"RCPT TO:<r1@example.org>\r\n"
DATA = b"DATA\r\n"

either = pytest.mark.parametrize("pipelined", [True, False])


def line(code: int) -> bytes:
    return b"%d text\r\n" % code


# with two recipients
OUTCOMES: dict[str, tuple[list[int], list[int], tuple[object, ...], Stage]] = {
    # name: (pipelined replies, serial replies, codes, stage); who is refused without a 354 is told
    # so behind the reply to RSET, or to QUIT, which ends the session
    "accepted": (
        [250, 250, 250, 354, 250],
        [250, 250, 250, 354, 250],
        (250, (250, 250), 354, 250),
        Stage.DOT,
    ),
    "one refused": (
        [250, 550, 250, 354, 250],
        [250, 550, 250, 354, 250],
        (250, (550, 250), 354, 250),
        Stage.DOT,
    ),
    "mail refused": (
        [550, 503, 503, 503, 250],
        [550, 221],
        (550, (None, None), None, None),
        Stage.MAIL,
    ),
    "mail refused for now, then 354": (
        [450, 503, 503, 354, 554],
        [450, 250],
        (450, (None, None), None, None),
        Stage.MAIL,
    ),
    "all refused": (
        [250, 550, 450, 503, 250],
        [250, 550, 450, 503, 250],
        (250, (550, 450), None, None),
        Stage.RCPT,
    ),
    "data refused": (
        [250, 250, 250, 451, 221],
        [250, 250, 250, 451, 221],
        (250, (250, 250), 451, None),
        Stage.DATA,
    ),
    "content refused": (
        [250, 250, 250, 354, 554],
        [250, 250, 250, 354, 554],
        (250, (250, 250), 354, 554),
        Stage.DOT,
    ),
    "content deferred": (
        [250, 250, 251, 354, 452],
        [250, 250, 251, 354, 452],
        (250, (250, 251), 354, 452),
        Stage.DOT,
    ),
}


@either
@pytest.mark.parametrize("split", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_at_every_split(name: str, pipelined: bool, split: int) -> None:
    flight, serial, expected, stage = OUTCOMES[name]
    run = Run(pipelined=pipelined, split=split).begin()
    if pipelined and not split:
        run.say(b"".join(map(line, flight[:4])))
        for code in flight[4:]:
            run.say(line(code))
    else:
        for code in flight if pipelined else serial:
            run.say(line(code))
    mail, rcpts, data, dot = run.codes()
    assert (mail, rcpts) == expected[:2]
    if expected[2] is not None:
        assert data == expected[2]
    if expected[3] is not None:
        assert dot == expected[3]
    end = run.end
    parts = (flight if pipelined else serial)[-1] == 221
    assert (end.stage, end.fault, end.usable, end.answered) == (stage, None, not parts, True)
    assert end.dot_written == (stage is Stage.DOT)
    assert (ON_WIRE in run.wrote) == (stage is Stage.DOT)
    assert run.dialogue.ready is not parts


def test_a_pipelined_envelope_is_one_flight() -> None:
    run = Run(pipelined=True).begin()
    assert run.wrote == MAIL + R0 + R1 + DATA


def test_without_pipelining_one_command_waits_for_one_reply() -> None:
    run = Run(pipelined=False).begin()
    assert run.wrote == MAIL
    assert run.say(line(250)).wrote == MAIL + R0
    assert run.say(line(250)).wrote == MAIL + R0 + R1
    assert run.say(line(250)).wrote == MAIL + R0 + R1 + DATA


def test_pipelining_must_be_offered() -> None:
    dialogue = ClientDialogue(Capabilities(), FLIGHT)
    dialogue.begin(envelope())
    assert dialogue.take_output() == b"MAIL FROM:<s@example.net>\r\n"


def test_parameters_follow_envelope_and_offer() -> None:
    dialogue = ClientDialogue(FULL, SERIAL)
    dialogue.begin(
        Envelope(sender="", recipients=("é@x.org",), size=7, eightbit=True, smtputf8=True)
    )
    assert dialogue.take_output() == b"MAIL FROM:<> SIZE=7 BODY=8BITMIME SMTPUTF8\r\n"


@pytest.mark.parametrize(
    ("needs", "offered", "lacking"),
    [
        ({"size": 1001}, FULL, Unmet.SIZE),
        ({"size": 1001}, Capabilities(size=0), None),
        ({"size": 1001}, Capabilities(size=None), None),
        ({"size": 1, "eightbit": True}, Capabilities(), Unmet.EIGHTBITMIME),
        ({"size": 1, "smtputf8": True}, Capabilities(eightbitmime=True), Unmet.SMTPUTF8),
        ({"size": 1000, "smtputf8": True, "eightbit": True}, FULL, None),
    ],
)
def test_needs_are_compared_with_the_offer(
    needs: dict[str, int], offered: Capabilities, lacking: Unmet | None
) -> None:
    asked = Envelope(
        sender="",
        recipients=("a@b.c",),
        size=needs["size"],
        eightbit=bool(needs.get("eightbit")),
        smtputf8=bool(needs.get("smtputf8")),
    )
    assert unmet(asked, offered) == lacking
    dialogue = ClientDialogue(offered, FLIGHT)
    if lacking is not None:
        with pytest.raises(UnmetNeed, match=str(lacking)) as told:
            dialogue.begin(asked)
        assert told.value.need is lacking
        assert dialogue.take_output() == b""
        assert dialogue.ready


def test_a_bad_address_writes_nothing_and_costs_nothing() -> None:
    dialogue = ClientDialogue(FULL, FLIGHT)
    with pytest.raises(ValueError, match="address"):
        dialogue.begin(Envelope(sender="", recipients=("a@b.c", "x\r\n@y"), size=1))
    with pytest.raises(ValueError, match="recipient"):
        dialogue.begin(Envelope(sender="", recipients=(), size=1))
    assert dialogue.take_output() == b""
    assert dialogue.ready


# RSET


@either
def test_rset_follows_only_an_unfinished_transaction(pipelined: bool) -> None:
    run = Run(pipelined=pipelined).begin(1)
    for code in [250, 250, 354, 554]:
        run.say(line(code))
    assert run.end.usable
    run.wrote, run.events = b"", []
    run.begin(1)
    assert run.wrote == (b"RSET\r\n" + MAIL + R0 + DATA if pipelined else b"RSET\r\n")
    assert (run.dialogue.awaited, run.dialogue.stage) == (Awaited.RSET, Stage.MAIL)
    for code in [250, 250, 250, 354, 250]:
        run.say(line(code))
    assert run.codes() == (250, (250,), 354, 250)
    run.wrote = b""
    run.begin(1)
    assert run.wrote.startswith(MAIL)


@either
def test_no_rset_where_the_content_was_taken(pipelined: bool) -> None:
    run = Run(pipelined=pipelined).begin(1)
    for code in [250, 250, 354, 250]:
        run.say(line(code))
    run.wrote = b""
    assert run.begin(1).wrote.startswith(MAIL)


@pytest.mark.parametrize(
    ("count", "codes", "marks"),
    [
        # MAIL or the last of several may have been taken: that would pass for a reply to RSET
        (2, [550], b"QUIT\r\n"),
        (2, [450], b"RSET\r\n"),  # a deferral at most
        (1, [250, 450], b"RSET\r\n"),
        (2, [250, 550, 450], DATA),
        (2, [250, 550, 450, 554], b"RSET\r\n"),
        (1, [250, 250, 554], b"RSET\r\n"),
        # nor does RSET prove what another one's refusal may be
        (2, [250, 250, 250, 554], b"QUIT\r\n"),
    ],
)
def test_without_pipelining_data_and_rset_or_quit_show_that_a_refusal_was_in_its_place(
    count: int, codes: list[int], marks: bytes
) -> None:
    run = Run(pipelined=False).begin(count)
    for code in codes:
        run.wrote = b""
        run.say(line(code))
    assert (run.wrote, run.events) == (marks, [])
    assert not run.dialogue.ready  # nothing leaves ahead of a reply here


@either
@pytest.mark.parametrize("code", [451, 554])
def test_rset_where_the_content_was_refused(pipelined: bool, code: int) -> None:
    """Postfix keeps the envelope of what ``smtpd_end_of_data_restrictions`` refuses."""
    run = Run(pipelined=pipelined).begin(1)
    for reply in (250, 250, 354, code):
        run.say(line(reply))
    run.wrote = b""
    assert run.begin(1).wrote.startswith(b"RSET\r\n")


@either
def test_503_to_a_mail_that_is_not_the_first_refuses_nobody(pipelined: bool) -> None:
    run = Run(pipelined=pipelined).begin(1)
    for reply in (250, 250, 354, 250):
        run.say(line(reply))
    run.events = []
    run.begin(1).say(line(503))
    assert (run.end.mail, run.end.fault, run.end.usable) == (None, Fault.GARBAGE, False)
    assert (run.end.answered, run.end.dot_written, run.end.stale) == (False, False, True)


@either
@pytest.mark.parametrize(("code", "fault"), [(450, Fault.GARBAGE), (500, Fault.GARBAGE)])
def test_a_refused_rset_ends_the_session_and_blames_no_message(
    pipelined: bool, code: int, fault: Fault
) -> None:
    run = Run(pipelined=pipelined).begin(1)
    for reply in [250, 250, 354, 451]:
        run.say(line(reply))
    run.events = []
    run.begin(1).say(line(code))
    assert (run.end.mail, run.end.fault, run.end.usable) == (None, fault, False)
    assert run.end.stale
    assert not run.end.answered


@either
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("replies", [[], [250], [250, 250]])
def test_a_fault_at_rset_blames_no_message_and_one_behind_it_may(
    pipelined: bool, fault: Fault, replies: list[int]
) -> None:
    run = Run(pipelined=pipelined).begin(1)
    for reply in [250, 250, 354, 451]:
        run.say(line(reply))
    run.events = []
    run.begin(1)
    for reply in replies:
        run.say(line(reply))
    run.took(run.dialogue.fail(fault))
    assert run.end.stale == (not replies)
    assert run.end.answered == (len(replies) > 1)


# A 354 that must not be followed by content


@pytest.mark.parametrize("dot", [250, 554])
def test_354_without_a_recipient_gets_a_lone_dot(dot: int) -> None:
    run = Run(pipelined=True).begin()
    run.wrote = b""
    run.say(line(250) + line(550) + line(450) + line(354))
    assert run.wrote == b".\r\n"
    assert (run.dialogue.stage, run.events) == (Stage.DOT, [])
    run.say(line(dot))
    end = run.end
    assert run.codes() == (250, (550, 450), 354, dot)
    assert (end.stage, end.fault, end.dot_written, end.usable) == (Stage.RCPT, None, False, True)


@pytest.mark.parametrize("fault", list(Fault))
def test_a_lone_dot_without_answer_leaves_no_doubt(fault: Fault) -> None:
    run = Run(pipelined=True).begin()
    run.say(line(250) + line(550) + line(450) + line(354))
    run.took(run.dialogue.fail(fault))
    end = run.end
    assert (end.stage, end.fault, end.dot_written, end.usable) == (Stage.RCPT, None, False, False)


@either
@pytest.mark.parametrize("code", [200, 250, 334, 355])
def test_content_follows_nothing_but_354(pipelined: bool, code: int) -> None:
    run = Run(pipelined=pipelined).begin()
    for reply in (250, 550, 250, code):
        run.say(line(reply))
    end = run.end
    assert b"Subject" not in run.wrote
    assert (end.stage, end.fault, end.usable) == (Stage.DATA, Fault.GARBAGE, False)
    # out of step: nobody may be failed by a reply that may be another's
    assert (end.mail, end.rcpts) == (None, (None, None))


@either
def test_354_in_reply_to_rcpt_is_garbage(pipelined: bool) -> None:
    run = Run(pipelined=pipelined).begin().say(line(250)).say(line(550)).say(line(354))
    assert (run.end.fault, run.end.rcpts, run.end.usable) == (Fault.GARBAGE, (None, None), False)


# Faults


STEPS = [
    (0, Stage.MAIL),
    (1, Stage.RCPT),
    (2, Stage.RCPT),
    (3, Stage.DATA),
    (4, Stage.DOT),
]


@either
@pytest.mark.parametrize("half", [b"", b"25", b"250-more\r\n250"])
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize(("step", "stage"), STEPS)
def test_a_fault_at_each_step(
    pipelined: bool, fault: Fault, step: int, stage: Stage, half: bytes
) -> None:
    run = Run(pipelined=pipelined).begin()
    for code in [250, 250, 250, 354][:step]:
        run.say(line(code))
    assert run.dialogue.stage is stage
    run.say(half)
    run.took(run.dialogue.fail(fault) if fault is not Fault.CLOSED else run.dialogue.receive_eof())
    end = run.end
    assert (end.stage, end.fault, end.usable) == (stage, fault, False)
    assert end.answered == (step > 0)
    assert (end.dot, end.dot_written) == (None, step == 4)
    assert run.dialogue.fail(Fault.CLOSED) == []
    assert run.dialogue.receive(b"250 late\r\n") == []


@either
@pytest.mark.parametrize(("step", "stage"), STEPS)
@pytest.mark.parametrize("junk", [b"HTTP/1.1 400 Bad\r\n", b"999 x\r\n", b"\x00" * 5000])
def test_garbage_at_each_step(pipelined: bool, step: int, stage: Stage, junk: bytes) -> None:
    run = Run(pipelined=pipelined).begin()
    for code in [250, 250, 250, 354][:step]:
        run.say(line(code))
    run.say(junk)
    assert (run.end.stage, run.end.fault, run.end.usable) == (stage, Fault.GARBAGE, False)
    assert run.end.dot_written == (step == 4)


@either
@pytest.mark.parametrize(("step", "stage"), STEPS)
def test_421_at_each_step_is_kept_for_its_stage(pipelined: bool, step: int, stage: Stage) -> None:
    run = Run(pipelined=pipelined).begin()
    for code in [250, 250, 250, 354][:step]:
        run.say(line(code))
    run.say(line(421))
    mail, rcpts, data, dot = run.codes()
    assert [mail, *rcpts, data, dot][step] == 421  # type: ignore[misc]
    assert (run.end.stage, run.end.fault, run.end.usable) == (stage, None, False)
    assert run.dialogue.receive_eof() == []


@either
def test_a_refusal_followed_by_a_close_stays_the_refusal(pipelined: bool) -> None:
    run = Run(pipelined=pipelined).begin().say(line(554))
    run.took(run.dialogue.receive_eof())
    end = run.end
    assert run.codes() == (554, (None, None), None, None)
    assert (end.stage, end.fault) == (Stage.MAIL, None)
    assert not end.usable
    assert not run.dialogue.ready


def test_a_close_after_some_refusals_keeps_them() -> None:
    run = Run(pipelined=True).begin().say(line(250) + line(550))
    run.took(run.dialogue.receive_eof())
    assert run.codes() == (250, (550, None), None, None)
    assert (run.end.stage, run.end.fault) == (Stage.RCPT, Fault.CLOSED)


# Content


def ready(*, count: int = 1) -> ClientDialogue:
    dialogue = ClientDialogue(FULL, FLIGHT)
    dialogue.begin(envelope(count))
    dialogue.take_output()
    events = dialogue.receive(line(250) * (count + 1) + line(354))
    assert events == [ContentWanted()]
    assert dialogue.stage is Stage.BODY
    return dialogue


def only_end(events: list[Event]) -> TransactionEnd:
    (end,) = events
    assert isinstance(end, TransactionEnd)
    return end


@pytest.mark.parametrize("code", [421, 452, 552])
@pytest.mark.parametrize("ended", [True, False])
def test_an_early_refusal_is_kept_and_leaves_no_doubt(code: int, ended: bool) -> None:
    dialogue = ready()
    dialogue.content(b"half of")
    if ended:
        dialogue.end_content()  # given, but not yet taken for the wire
    end = only_end(dialogue.receive(line(code)))
    assert end.dot is not None
    assert (end.dot.code, end.stage, end.fault) == (code, Stage.BODY, None)
    assert (end.dot_written, end.usable) == (False, False)
    assert dialogue.take_output() == b""
    with pytest.raises(RuntimeError):
        dialogue.content(b"more")
    with pytest.raises(RuntimeError):
        dialogue.end_content()


@pytest.mark.parametrize("code", [250, 354])
def test_an_early_consent_is_never_a_delivery(code: int) -> None:
    dialogue = ready()
    dialogue.content(b"half of")
    end = only_end(dialogue.receive(line(code)))
    assert (end.dot, end.fault, end.dot_written) == (None, Fault.GARBAGE, False)


def test_the_dot_counts_from_the_moment_its_bytes_are_taken() -> None:
    dialogue = ready()
    dialogue.content(CONTENT)
    dialogue.take_output()
    dialogue.end_content()
    assert dialogue.stage is Stage.BODY
    dialogue.take_output()
    assert dialogue.stage is Stage.DOT
    end = only_end(dialogue.fail(Fault.TIMEOUT))
    assert (end.dot_written, end.stage) == (True, Stage.DOT)


def test_a_close_before_the_dot_is_taken_is_not_in_doubt() -> None:
    dialogue = ready()
    dialogue.content(CONTENT)
    dialogue.end_content()
    end = only_end(dialogue.receive_eof())
    assert (end.dot_written, end.stage, end.fault) == (False, Stage.BODY, Fault.CLOSED)
    assert dialogue.take_output() == b""


def test_content_that_could_smuggle_is_refused_before_its_dot() -> None:
    dialogue = ready()
    with pytest.raises(BareLineEnd):
        dialogue.content(b"a\n.\r\nMAIL FROM:<>\r\n")
    with pytest.raises(BareLineEnd):
        ready().content(b"a\rb")
    assert b".\r\n" not in dialogue.take_output()


def test_order_of_calls_is_enforced() -> None:
    dialogue = ClientDialogue(FULL, FLIGHT)
    with pytest.raises(RuntimeError):
        dialogue.content(b"x")
    dialogue.begin(envelope())
    with pytest.raises(RuntimeError):
        dialogue.begin(envelope())
    with pytest.raises(RuntimeError):
        dialogue.end_content()


# Out of step


@either
def test_a_reply_too_many_behind_the_last_one_keeps_the_verdict(pipelined: bool) -> None:
    for extra in (line(250), b"junk\r\n", line(421)):
        run = Run(pipelined=pipelined).begin(1)
        for code in (250, 250, 354):
            run.say(line(code))
        run.say(line(250) + extra)
        assert run.codes() == (250, (250,), 354, 250)
        assert (run.end.fault, run.end.usable) == (None, False)
        assert not run.dialogue.ready


def test_serial_replies_that_run_ahead_are_out_of_step() -> None:
    run = Run(pipelined=False).begin(2).say(line(250) + line(550))
    assert (run.end.fault, run.end.usable) == (Fault.GARBAGE, False)
    assert run.end.rcpts == (None, None)


def test_idle_sessions_end_by_421_close_or_anything_unasked() -> None:
    cases: list[tuple[Callable[[ClientDialogue], list[Event]], int | None, Fault | None]] = [
        (lambda d: d.receive(line(421)), 421, None),
        (lambda d: d.receive(line(250)), 250, Fault.GARBAGE),
        (lambda d: d.receive(b"junk\r\n"), None, Fault.GARBAGE),
        (lambda d: d.receive_eof(), None, Fault.CLOSED),
    ]
    for cause, code, fault in cases:
        dialogue = ClientDialogue(FULL, FLIGHT)
        (event,) = cause(dialogue)
        assert isinstance(event, PeerClosing)
        assert (event.reply.code if event.reply else None, event.fault) == (code, fault)
        assert not dialogue.ready
        with pytest.raises(RuntimeError):
            dialogue.begin(envelope())


def test_half_an_unasked_reply_makes_an_idle_session_unusable() -> None:
    dialogue = ClientDialogue(FULL, FLIGHT)
    assert dialogue.receive(b"42") == []
    assert not dialogue.ready
    (event,) = dialogue.receive(b"1 bye\r\n")
    assert isinstance(event, PeerClosing)


def test_the_table_knows_every_slot_and_digit() -> None:
    assert set(TABLE) == {(slot, kind) for slot in Slot for kind in ReplyKind}


@given(
    pipelined=st.booleans(),
    count=st.integers(1, 4),
    codes=st.lists(st.sampled_from([250, 250, 250, 251, 354, 421, 450, 550, 334]), max_size=12),
    cut=st.integers(0, 5),
    eof=st.booleans(),
)
def test_no_sequence_of_replies_gives_a_false_delivery_or_two_ends(
    pipelined: bool, count: int, codes: list[int], cut: int, eof: bool
) -> None:
    run = Run(pipelined=pipelined, split=cut).begin(count)
    for code in codes:
        if run.dialogue.idle:
            break
        run.say(line(code))
    if not run.dialogue.idle:
        run.took(run.dialogue.receive_eof() if eof else run.dialogue.fail(Fault.TIMEOUT))
    end = run.end
    assert len(end.rcpts) == count
    delivered = end.dot is not None and end.dot.positive and end.stage is Stage.DOT
    if delivered:
        assert ON_WIRE in run.wrote
        assert any(reply is not None and reply.positive for reply in end.rcpts)
        assert codes[count + 1] == 354
    if end.dot_written:
        assert ON_WIRE in run.wrote
        assert end.data is not None
        assert end.data.code == 354
    if end.fault is not None:
        assert not end.usable
