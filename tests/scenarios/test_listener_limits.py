"""What a client of the listener may take, and what it is told beyond that."""

from __future__ import annotations

import os

from tests.support.engine import DEADLINE_S
from tests.support.listening import Listening, MakeListening, stored
from tests.support.sockets import eventually
from tests.support.talk import queued


def test_limits_are_told_and_the_session_goes_on(make_listening: MakeListening) -> None:
    listening = make_listening(max_recipients=2, max_size=4096, max_messages_per_minute=3)
    with listening.talk() as talk:
        assert "SIZE 4096" in talk.ehlo()
        codes = [reply.code for reply in talk.envelope("a@x.test", "b@x.test", "c@x.test")]
        assert codes == [250, 250, 250, 452]
        talk.say("RSET")
        assert talk.say("MAIL FROM:<a@b.test> SIZE=5000").code == 552
        too_long = talk.mail("a@x.test", content=b"x" * 70 + b"\r\n" + b"y" * 70 + b"\r\n" * 3000)
        assert (too_long.code, too_long.lines[0][:5]) == (552, "5.3.4")
        queued(talk.mail("a@x.test"))
        assert talk.mail("a@x.test").code == 450
        assert talk.say("NOOP").code == 250
    listening.engine.wait_log("client.refused", reason="too many messages a minute")


def test_connections_are_bounded_in_all_and_of_a_client(make_listening: MakeListening) -> None:
    listening = make_listening(max_connections=3, max_connections_per_client=2)
    with listening.talk(source="127.0.0.1") as one, listening.talk(source="127.0.0.1") as two:
        assert (one.greeting.code, two.greeting.code) == (220, 220)
        with listening.talk(source="127.0.0.1") as refused:
            assert (refused.greeting.code, refused.closed()) == (421, True)
        with listening.talk(source="127.0.0.2") as third:
            assert third.greeting.code == 220
            with listening.talk(source="127.0.0.3") as refused:
                assert refused.greeting.code == 421
        eventually(lambda: listening.talk(source="127.0.0.3").greeting.code == 220, what="a place")


def test_who_is_too_many_is_told_and_few_of_them_are_kept_open(
    make_listening: MakeListening,
) -> None:
    listening = make_listening(max_connections=1)
    (pid,) = listening.engine.live("listener")
    with listening.talk():
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(100):
            assert listening.talk().greeting.code == 421
        assert len(os.listdir(f"/proc/{pid}/fd")) < before + 50
    listening.hang_up()
    eventually(lambda: listening.talk().greeting.code == 220, what="a place")


def test_too_many_errors_end_the_session(make_listening: MakeListening) -> None:
    listening = make_listening(max_errors=3)
    with listening.talk() as talk:
        codes = [talk.say("NONSENSE").code for _ in range(4)]
        assert codes[:3] == [500, 500, 500]
        assert codes[3] == 421
        assert talk.closed()


def test_a_silent_client_is_told_and_closed(make_listening: MakeListening) -> None:
    listening = make_listening(timeout="400ms")
    with listening.talk() as talk:
        reply = talk.reply()
        assert (reply.code, talk.closed()) == (421, True)


def test_content_of_many_at_once_is_bounded(make_listening: MakeListening) -> None:
    # 64 MiB are held at most: two of 25 MiB fit, a third does not.
    listening = make_listening()
    content = (b"x" * 76 + b"\r\n") * (24 * 1024 * 1024 // 78)
    talks = [listening.talk() for _ in range(3)]
    for talk in talks:
        talk.ehlo()
        talk.envelope("a@x.test")
    for talk in talks[:2]:
        assert talk.say("DATA").code == 354
        talk.send(content)
    eventually(
        lambda: _told(listening, len(content)) == 452, DEADLINE_S, what="the budget to be taken"
    )
    for talk in talks[:2]:
        talk.send(b".\r\n")
        queued(talk.reply())
    assert eventually(lambda: _told(listening, len(content)) == 354, DEADLINE_S)
    for talk in talks:
        talk.close()


def test_content_that_announced_nothing_is_told_at_its_end_that_there_is_no_room(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    content = (b"x" * 76 + b"\r\n") * (24 * 1024 * 1024 // 78)
    with listening.talk() as one, listening.talk() as two, listening.talk() as three:
        for talk in (one, two, three):
            talk.ehlo()
        for talk in (one, two):
            talk.envelope("held@x.test")
            assert talk.say("DATA").code == 354
            talk.send(content)
        eventually(lambda: _told(listening, len(content)) == 452, DEADLINE_S, what="the budget")
        refused = three.mail("data@x.test", content=content)
        assert (refused.code, refused.lines[0][:5]) == (452, "4.3.1")
        three.envelope("chunk@x.test")
        three.send(b"BDAT %d\r\n" % len(content) + content)
        assert three.reply().code == 452
        for talk in (one, two):
            talk.close()
        eventually(lambda: _told(listening, len(content)) == 354, DEADLINE_S, what="the room")
        queued(three.mail("after@x.test"))
    (id,) = stored(listening.engine)
    rows = listening.engine.rows("SELECT address FROM recipients WHERE message_id = ?", id)
    assert [row.address for row in rows] == ["after@x.test"]


def _told(listening: Listening, size: int) -> int:
    """What DATA is told for a message of a size."""
    with listening.talk() as talk:
        talk.ehlo()
        assert talk.say(f"MAIL FROM:<a@b.test> SIZE={size}").code == 250
        assert talk.say("RCPT TO:<a@x.test>").code == 250
        return talk.say("DATA").code
