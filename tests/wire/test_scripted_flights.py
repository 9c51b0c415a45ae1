"""What the scripted server can do to flights: BDAT, replies too few and too many, commands thrown
away, an envelope left open; octet by octet on a real socket."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer

BODY = b"Message-ID: <1@test>\r\n\r\n.QUIT\r\nQUIT\r\n"
STUFFED = b"Message-ID: <1@test>\r\n\r\n..QUIT\r\nQUIT\r\n.\r\n"
ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n"
BDAT = b"BDAT %d LAST\r\n%b" % (len(BODY), BODY)
BY_DATA = ENVELOPE + b"DATA\r\n" + STUFFED


class Talk:
    """A client that writes octets and reads the codes of replies."""

    def __init__(self, server: SMTPServer) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=20)
        self.replies = self.socket.makefile("rb")
        self.ehlo: list[bytes] = []
        self.codes(1)
        self.write(b"EHLO c.test\r\n")
        self.codes(1)

    def write(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def codes(self, count: int) -> list[int]:
        """Codes of so many replies; 0 stands for the end of the stream."""
        found = []
        for _ in range(count):
            lines = [self.replies.readline()]
            while lines[-1][3:4] == b"-":
                lines.append(self.replies.readline())
            self.ehlo = self.ehlo or (lines if len(lines) > 1 else [])
            found.append(int(lines[-1][:3] or b"0"))
        return found

    def say(self, octets: bytes) -> list[int]:
        """Codes of all replies to this; the server is alive behind it."""
        self.write(octets + b"NOOP\r\nXXXX\r\n")
        found: list[int] = []
        while not found or found[-1] != 500:
            found += self.codes(1)
            assert found[-1], "the server closed"
        return found[:-2]


@contextmanager
def talking(*rules: Rule, **options: object) -> Iterator[tuple[SMTPServer, Talk]]:
    script = Script(rules=rules, **{"chunking": True, **options})  # type: ignore[arg-type]
    server = SMTPServer(script=script)
    with server.in_thread():
        talk = Talk(server)
        try:
            yield server, talk
        finally:
            talk.replies.close()
            talk.socket.close()


def test_bdat_is_recorded_like_data() -> None:
    with talking() as (server, talk):
        assert b"250-CHUNKING\r\n" in talk.ehlo
        assert talk.say(ENVELOPE + BDAT + BY_DATA) == [250, 250, 250, 250, 250, 354, 250]
        first, second = server.dots
        assert (first.digest, first.octets) == (second.digest, second.octets)
        assert first.digest == hashlib.sha256(BODY).hexdigest()
        assert (first.message_id, first.kept) == ("<1@test>", True)
        assert server.connections[0].flights[1][:3] == ["mail", "rcpt", "bdat"]
        assert [transaction.code for transaction in server.transactions] == [250, 250]


def test_content_in_several_chunks_is_one_content() -> None:
    chunks = b"BDAT 5\r\n%bBDAT 0\r\nBDAT %d LAST\r\n%b" % (BODY[:5], len(BODY) - 5, BODY[5:])
    with talking() as (server, talk):
        assert talk.say(ENVELOPE + chunks) == [250] * 5
        (dot,) = server.dots
        assert dot.digest == hashlib.sha256(BODY).hexdigest()


def test_without_chunking_bdat_is_no_command() -> None:
    with talking(chunking=False) as (server, talk):
        assert not any(b"CHUNKING" in line for line in talk.ehlo)
        assert talk.say(ENVELOPE + b"BDAT 6 LAST\r\nRSET\r\n") == [250, 250, 502, 250]
        assert server.dots == []


def test_chunking_may_be_offered_and_unknown() -> None:
    with talking(bdat_known=False) as (server, talk):
        assert sum(b"CHUNKING" in line for line in talk.ehlo) == 1
        assert talk.say(ENVELOPE + b"BDAT 6 LAST\r\nRSET\r\n") == [250, 250, 502, 250]
        assert server.dots == []


def test_limits_are_offered() -> None:
    with talking(limits={"MAILMAX": 5, "RCPTMAX": 20}) as (_, talk):
        assert any(line.strip().endswith(b"LIMITS MAILMAX=5 RCPTMAX=20") for line in talk.ehlo)


def test_a_rule_may_speak_of_bdat_or_of_the_end_of_any_content() -> None:
    rules = (Rule(stage="bdat", first=2, code=451), Rule(stage="dot", first=2, code=554))
    with talking(*rules) as (server, talk):
        assert talk.say(ENVELOPE + BDAT) == [250, 250, 250]
        assert talk.say(BY_DATA) == [250, 250, 354, 554]
        assert talk.say(ENVELOPE + BDAT) == [250, 250, 451]
        assert [dot.kept for dot in server.dots] == [True, False, False]


def test_a_rule_may_speak_of_a_chunk_that_is_not_the_last() -> None:
    with talking(Rule(stage="bdat", code=452)) as (server, talk):
        flight = ENVELOPE + b"BDAT 5\r\n12345" + b"BDAT 4 LAST\r\n6789" + ENVELOPE
        assert talk.say(flight) == [250, 250, 452, 503, 250, 250]
        assert server.dots == []


@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_connection_may_be_dropped_within_the_octets_of_a_bdat(after: int) -> None:
    with talking(Rule(stage="body", after=after, act=Act.CLOSE)) as (server, talk):
        talk.write(ENVELOPE + BDAT[: len(BDAT) - len(BODY) + max(after, 1)])
        assert talk.codes(3) == [250, 250, 0]
        assert server.dots == []


def test_an_answer_before_the_octets_are_whole_comes_behind_those_due() -> None:
    with talking(Rule(stage="body", code=552, after=1)) as (server, talk):
        talk.write(ENVELOPE + BDAT[:-4])
        assert talk.codes(3) == [250, 250, 552]
        talk.write(BDAT[-4:] + b"RSET\r\n")
        assert talk.codes(1) == [250]  # and none for the end
        assert [dot.kept for dot in server.dots] == [False]


@pytest.mark.parametrize(
    ("stage", "times", "codes"),
    [
        ("mail", 0, [250, 250, 250]),
        ("mail", 2, [250] * 5),
        ("rcpt", 0, [250, 250, 250]),
        ("rcpt", 2, [250] * 5),
        ("dot", 0, [250, 250, 250]),
        ("dot", 2, [250] * 5),
        ("dot", 3, [250] * 6),
    ],
)
def test_a_reply_may_be_missing_or_come_again(stage: str, times: int, codes: list[int]) -> None:
    with talking(Rule(stage=stage, last=1, times=times)) as (server, talk):
        assert talk.say(ENVELOPE + BDAT + b"RSET\r\n") == codes
        assert len(server.dots) == 1  # it goes on as if it had been there once
        assert talk.say(ENVELOPE + BDAT) == [250, 250, 250]


def test_what_came_behind_a_command_may_be_thrown_away() -> None:
    with talking(Rule(stage="dot", last=1, deaf=True)) as (server, talk):
        talk.write(ENVELOPE + BDAT + ENVELOPE)
        assert talk.codes(3) == [250, 250, 250]
        assert talk.say(ENVELOPE + BDAT) == [250, 250, 250]
        assert len(server.transactions) == len(server.dots) == 2


def test_an_answer_may_wait_for_what_comes_behind() -> None:
    with talking(Rule(stage="dot", last=1, deaf=True, until="DATA\r\n")) as (server, talk):
        talk.write(ENVELOPE + BDAT)
        assert talk.codes(2) == [250, 250]
        talk.write(ENVELOPE)
        talk.write(b"DATA\r\n")
        assert talk.codes(1) == [250]
        assert talk.say(ENVELOPE + BDAT) == [250, 250, 250]
        assert len(server.transactions) == len(server.dots) == 2
    with talking(Rule(stage="dot", last=1, until="DATA\r\n")) as (_, talk):
        talk.write(ENVELOPE + BDAT + ENVELOPE + b"DATA\r\n")
        assert talk.codes(6) == [250, 250, 250, 250, 250, 354]


def test_a_rule_may_speak_of_commands_behind_content_only() -> None:
    rule = Rule(stage="mail", behind=True, code=503)
    with talking(rule) as (_, talk):
        assert talk.say(ENVELOPE + BDAT + ENVELOPE)[:4] == [250, 250, 250, 503]
        assert talk.say(b"RSET\r\n" + ENVELOPE) == [250, 250, 250]
    with talking(Rule(stage="mail", behind=False, code=503)) as (_, talk):
        assert talk.say(ENVELOPE) == [503, 503]


def test_what_comes_while_an_answer_is_delayed_is_behind() -> None:
    rules = (Rule(stage="dot", delay=2.0), Rule(stage="mail", behind=True, code=451))
    with talking(*rules) as (server, talk):
        talk.write(ENVELOPE + BDAT)
        assert talk.codes(2) == [250, 250]
        talk.write(ENVELOPE)
        assert talk.codes(3) == [250, 451, 503]
        assert len(server.dots) == 1


def test_a_refused_content_may_leave_its_envelope_open() -> None:
    with talking(Rule(stage="dot", last=1, code=451, held=True)) as (server, talk):
        assert talk.say(BY_DATA) == [250, 250, 354, 451]
        assert talk.say(ENVELOPE) == [503, 250]
        assert talk.say(b"RSET\r\n" + BY_DATA) == [250, 250, 250, 354, 250]
        assert [dot.recipients for dot in server.dots] == [("b@y.test",)] * 2


def test_these_rules_are_read_from_json() -> None:
    rule = {"stage": "bdat", "times": 0, "deaf": True, "held": True, "behind": False}
    text = json.dumps({"chunking": True, "bdat_known": False, "rules": [rule]})
    script = Script.from_json(text)
    assert (script.chunking, script.bdat_known) == (True, False)
    assert script.rules == (Rule(stage="bdat", times=0, deaf=True, held=True, behind=False),)
