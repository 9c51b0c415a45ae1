"""The scripted server does on real sockets what its script says, and records what it saw.

Past 400 lines: a test for each thing that a script can say.
"""

from __future__ import annotations

import base64
import json
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailstrom.testing.records import read_dots
from mailstrom.testing.script import MAGIC, Act, Director, Moment, Per, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.support.checker import content_digest
from tests.support.sockets import eventually, loopback_addresses

MESSAGE = b"Subject: x\r\nMessage-ID: <1@test>\r\n\r\n.dot\r\nlast\r\n"


@contextmanager
def serving(*rules: Rule, **options: object) -> Iterator[SMTPServer]:
    script = options.pop("script", None) or Script(rules=rules)
    server = SMTPServer(script=script, **options)  # type: ignore[arg-type]
    with server.in_thread():
        yield server


@contextmanager
def client(server: SMTPServer) -> Iterator[smtplib.SMTP]:
    connection = smtplib.SMTP(server.host, server.port, timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def send(server: SMTPServer, *recipients: str, message: bytes = MESSAGE) -> object:
    """What smtplib makes of one message: {} or the refused recipients."""
    with client(server) as connection:
        refused = connection.sendmail("a@sender.test", list(recipients), message)
        connection.quit()
        return refused


class Raw:
    """A socket that writes and reads octets as told."""

    def __init__(self, server: SMTPServer) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=20)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, ending: bytes, read: bytes = b"") -> bytes:
        """``read`` and everything behind it up to ``ending``, or to the end of the stream."""
        while not read.endswith(ending):
            piece = self.socket.recv(4096)
            if not piece:
                break
            read += piece
        return read

    def to_the_end(self) -> bytes:
        read = b""
        while piece := self.socket.recv(4096):
            read += piece
        return read

    def begin(self, *lines: str) -> None:
        """Say lines one by one, each reply read."""
        self.until(b"\n")
        for line in lines:
            self.write(line.encode() + b"\r\n")
            reply = self.until(b"\n")
            while reply.splitlines()[-1][3:4] == b"-":
                reply += self.until(b"\n")


ENVELOPE = ("HELO c", "MAIL FROM:<a@sender.test>", "RCPT TO:<b@x.test>")


def test_a_message_is_recorded_as_it_was_sent() -> None:
    with serving(keep_content=True) as server:
        assert send(server, "b@x.test", "c@y.test") == {}
        (dot,) = server.dots
        assert dot.content == MESSAGE
        assert dot.digest == content_digest(MESSAGE)
        assert (dot.message_id, dot.sender) == ("<1@test>", "a@sender.test")
        assert dot.recipients == ("b@x.test", "c@y.test")
        assert dot.kept
        assert server.transactions[0].code == 250
    (connection,) = server.connections
    assert connection.stages == ["ehlo", "mail", "rcpt", "rcpt", "data", "dot", "quit"]
    assert connection.cause == "quit"
    assert connection.closed is not None


def test_the_record_is_taken_before_the_dot_is_answered() -> None:
    seen: list[bool] = []
    with serving(Rule(stage="dot", act=Act.SILENCE)) as server, Raw(server) as raw:
        raw.begin(*ENVELOPE, "DATA")
        server.at_dot = lambda dot: seen.append(dot.kept)
        raw.write(MESSAGE + b".\r\n")
        eventually(lambda: seen, what="the record")
        raw.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            raw.socket.recv(10)
    assert seen == [True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accept", [250, 250]),
        ("anyone", [250, 250]),
        ("refuse", [550, 550]),
        ("full", [552, 552]),
        ("blocked", [554, 554]),
        ("defer", [451, 451]),
        ("defer-once", [450, 250]),
        ("closing", [421, 250]),
        ("refuse-content", [554, 554]),
        ("defer-content-once", [451, 250]),
        ("drop-in-body", [0, 250]),
        ("drop-after-dot", [0, 250]),
        ("reset-after-dot", [0, 250]),
    ],
)
@pytest.mark.parametrize("tag", ["", "+17"])
def test_magic_local_parts(name: str, tag: str, expected: list[int]) -> None:
    codes = []
    with serving() as server:
        for _ in expected:
            try:
                send(server, f"{name}{tag}@x.test")
                codes.append(250)
            except smtplib.SMTPRecipientsRefused as error:
                codes.append(next(iter(error.recipients.values()))[0])
            except smtplib.SMTPServerDisconnected:
                codes.append(0)
            except smtplib.SMTPResponseException as error:
                codes.append(error.smtp_code)
            except ConnectionError:
                codes.append(0)
    assert codes == expected


def test_silent_after_dot_takes_the_message_and_says_nothing() -> None:
    with serving() as server, Raw(server) as raw:
        raw.begin("HELO c", "MAIL FROM:<>", "RCPT TO:<silent-after-dot@x.test>", "DATA")
        raw.write(MESSAGE + b".\r\nNOOP\r\n")
        eventually(lambda: server.dots, what="the dot")
        raw.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            raw.socket.recv(10)
        assert server.dots[0].kept
        assert server.transactions[0].code == 0


def test_every_magic_local_part_acts_on_its_own_recipient_only() -> None:
    assert all(rule.per is Per.RECIPIENT and rule.recipient is None for rule in MAGIC.values())
    assert {"refuse", "defer-once", "slow", "greylist", "drop-after-dot"} <= set(MAGIC)


def test_magic_can_be_switched_off() -> None:
    with serving(script=Script(magic=False)) as server:
        assert send(server, "refuse@x.test") == {}


def test_dropped_and_refused_dots_differ_in_what_was_kept() -> None:
    with serving() as server:
        with pytest.raises(smtplib.SMTPServerDisconnected):
            send(server, "drop-after-dot@x.test")
        with pytest.raises(smtplib.SMTPDataError):
            send(server, "refuse-content@x.test")
        assert [(dot.kept, dot.recipients) for dot in server.dots] == [
            (True, ("drop-after-dot@x.test",)),
            (False, ("refuse-content@x.test",)),
        ]


STAGES = {
    "greeting": 0,
    "helo": 1,
    "mail": 2,
    "rcpt": 3,
    "data": 4,
    "dot": 6,
}


def walk(raw: Raw, stage: str) -> bytes:
    """Say everything up to and including ``stage``; returns what came back last."""
    lines = [b"", *(line.encode() + b"\r\n" for line in (*ENVELOPE, "DATA"))]
    lines.append(MESSAGE + b".\r\n")
    answer = b""
    for line in lines[: min(STAGES[stage], 5) + 1]:
        raw.write(line)
        answer = raw.until(b"\n")
    return answer


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_scripted_reply_at_every_stage(stage: str) -> None:
    rule = Rule(stage=stage, code=471, enhanced="4.1.1", text="one\ntwo")
    with serving(rule) as server, Raw(server) as raw:
        answer = walk(raw, stage)
        assert raw.until(b"471 two\r\n", answer) == b"471-one\r\n471 two\r\n"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_closing_at_every_stage_gives_a_clean_end(stage: str) -> None:
    with serving(Rule(stage=stage, act=Act.CLOSE)) as server, Raw(server) as raw:
        answer = walk(raw, stage)
        assert (answer, raw.to_the_end()) == (b"", b"")


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_reply_may_be_followed_by_a_close(stage: str) -> None:
    with serving(Rule(stage=stage, code=550, text="no", close=True)) as server, Raw(server) as raw:
        answer = walk(raw, stage)
        assert (answer, raw.to_the_end()) == (b"550 no\r\n", b"")


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_garbage_at_every_stage(stage: str) -> None:
    with (
        serving(Rule(stage=stage, act=Act.GARBAGE, data="\x00\xffzz\n")) as server,
        Raw(server) as raw,
    ):
        answer = walk(raw, stage)
        assert answer == b"\x00\xffzz\n"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_garbage_may_be_followed_by_a_close(stage: str) -> None:
    half = Rule(stage=stage, act=Act.GARBAGE, data="25", close=True)
    with serving(half) as server, Raw(server) as raw:
        answer = walk(raw, stage)
        assert answer + raw.to_the_end() == b"25"


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"greeting"}))
def test_reset_at_every_stage(stage: str) -> None:
    with serving(Rule(stage=stage, act=Act.RESET)) as server, Raw(server) as raw:
        with pytest.raises(ConnectionResetError):
            walk(raw, stage)
        eventually(lambda: server.connections[0].cause == "script", what="the reset")


def test_421_closes_behind_it() -> None:
    with (
        serving(Rule(stage="mail", code=421, enhanced="4.3.2", text="bye")) as server,
        Raw(server) as raw,
    ):
        answer = walk(raw, "mail")
        assert (answer, raw.to_the_end()) == (b"421 bye\r\n", b"")


def test_a_delay_holds_the_answer_back_and_nothing_else() -> None:
    with serving(Rule(stage="rcpt", delay=0.05)) as server, Raw(server) as raw:
        raw.begin("EHLO c")
        raw.write(b"MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nRSET\r\n")
        assert raw.until(b"forgotten\r\n").split(b"\r\n") == [
            b"250 2.1.0 sender ok",
            b"250 2.1.5 recipient ok",
            b"250 2.0.0 forgotten",
            b"",
        ]


@pytest.mark.parametrize("after", [0, 5000])
def test_closing_in_the_body(after: int) -> None:
    with serving(Rule(stage="body", act=Act.CLOSE, after=after)) as server, Raw(server) as raw:
        raw.begin(*ENVELOPE, "DATA")
        raw.write(b"x" * (after + 8) + b"\r\n")
        assert raw.to_the_end() == b""
        assert server.dots == []


def test_early_reply_in_the_body_is_the_only_one() -> None:
    rule = Rule(stage="body", code=552, enhanced="5.3.4", text="too much", after=10)
    with serving(rule) as server, Raw(server) as raw:
        raw.begin(*ENVELOPE, "DATA")
        raw.write(b"0123456789\r\n")
        assert raw.until(b"\n") == b"552 5.3.4 too much\r\n"
        raw.write(b"more\r\n.\r\nNOOP\r\n")
        assert raw.until(b"\n") == b"250 ok\r\n"
        assert [dot.kept for dot in server.dots] == [False]


def test_only_some_matches_act() -> None:
    with serving(Rule(stage="rcpt", code=450, first=2, last=3)) as server, client(server) as one:
        one.helo()
        one.mail("a@sender.test")
        assert [one.rcpt(f"{n}@x.test")[0] for n in range(5)] == [250, 450, 450, 250, 250]


def test_rules_are_narrowed_by_recipient_sender_and_address() -> None:
    first, second = loopback_addresses(2)
    director = Director(
        Script(
            rules=[
                Rule(stage="rcpt", code=550, recipient="no*@x.test"),
                Rule(stage="rcpt", code=553, sender="evil@*"),
                Rule(stage="mail", code=451, address=second),
            ]
        )
    )
    with SMTPServer(first, script=director).in_thread() as one, client(one) as session:
        session.helo()
        session.mail("good@x.test")
        assert [session.rcpt(to)[0] for to in ("nobody@X.test", "yes@x.test")] == [550, 250]
        session.rset()
        session.mail("evil@x.test")
        assert session.rcpt("yes@x.test")[0] == 553
    with SMTPServer(second, script=director).in_thread() as two, client(two) as session:
        session.helo()
        assert session.mail("good@x.test")[0] == 451


def test_matches_are_counted_per_connection_or_recipient() -> None:
    def moment(connection: int, recipient: str, now: float = 0.0) -> Moment:
        return Moment(
            stage="rcpt",
            address="127.0.0.1",
            connection=connection,
            transaction=1,
            sender="",
            recipients=[recipient],
            octets=0,
            now=now,
        )

    per_connection = Director(Script(rules=[Rule(stage="rcpt", last=1, per=Per.CONNECTION)]))
    acted = [per_connection.decide(moment(n, "a@x.test")) is not None for n in (1, 1, 2, 1, 2)]
    assert acted == [True, False, True, False, False]
    greylist = Director(Script())
    steps = [(0.0, "greylist@x"), (0.5, "greylist@x"), (0.7, "greylist@y"), (1.0, "greylist@x")]
    acted = [greylist.decide(moment(1, to, now)) is not None for now, to in steps]
    assert acted == [True, True, True, False]


def test_extensions_are_offered_or_hidden() -> None:
    hidden = Script(
        pipelining=False, eightbitmime=False, smtputf8=False, enhancedstatuscodes=False, size=None
    )
    with serving(script=hidden) as server, client(server) as session:
        session.ehlo()
        assert session.esmtp_features == {}
    with serving(script=Script(size=1234)) as server, client(server) as session:
        session.ehlo()
        assert session.esmtp_features["size"] == "1234"
        assert "starttls" not in session.esmtp_features


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_starttls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    with serving(tls=server_context) as server, client(server) as session:
        session.starttls(context=client_context)
        session.ehlo()
        assert "starttls" not in session.esmtp_features
        session.sendmail("a@sender.test", ["b@x.test"], MESSAGE)
        session.quit()
    assert server.connections[0].tls == "TLSv1.3"
    assert server.dots[0].digest == content_digest(MESSAGE)


def test_implicit_tls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    with (
        serving(tls=server_context, implicit_tls=True) as server,
        smtplib.SMTP_SSL(server.host, server.port, context=client_context) as session,
    ):
        session.sendmail("a@sender.test", ["b@x.test"], MESSAGE)
    assert server.connections[0].tls == "TLSv1.3"


def test_failed_handshake_ends_the_connection_and_the_server_goes_on(
    server_context: ssl.SSLContext,
) -> None:
    with serving(tls=server_context) as server:
        with Raw(server) as raw:
            raw.begin("EHLO c", "STARTTLS")
            raw.write(b"MAIL FROM:<evil@x.test>\r\n" * 50)
            raw.socket.settimeout(20)
            with suppress(ConnectionError):
                raw.to_the_end()
        eventually(lambda: server.open == 0, what="the connection's end")
        assert send(server, "b@x.test") == {}
        assert server.connections[0].cause.startswith("handshake")
        assert server.transactions[0].sender == "a@sender.test"


def test_a_wrong_certificate_is_the_clients_to_refuse(server_context: ssl.SSLContext) -> None:
    with (
        serving(tls=server_context) as server,
        client(server) as session,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        session.starttls(context=ssl.create_default_context())


def test_auth_is_needed_where_there_are_users() -> None:
    with serving(script=Script(auth={"u": "p"})) as server, client(server) as session:
        session.ehlo()
        assert session.mail("a@sender.test")[0] == 530
        with pytest.raises(smtplib.SMTPAuthenticationError):
            session.login("u", "wrong")
        session.login("u", "p")
        assert session.mail("a@sender.test")[0] == 250


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_each_mechanism_is_verified(mechanism: str) -> None:
    script = Script(auth={"u": "password"}, mechanisms=(mechanism,))
    with serving(script=script) as server, client(server) as session:
        session.ehlo()
        assert session.esmtp_features["auth"].split() == [mechanism]
        exchange = {
            "PLAIN": session.auth_plain,
            "LOGIN": session.auth_login,
            "CRAM-MD5": session.auth_cram_md5,
        }[mechanism]
        for user, password in (("u", "wrong"), ("v", "password"), ("v", ""), ("u", "")):
            session.user, session.password = user, password
            with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
                session.auth(mechanism, exchange)
            assert refused.value.smtp_code == 535
        session.user, session.password = "u", "password"
        assert session.auth(mechanism, exchange)[0] == 235
        assert session.mail("a@sender.test")[0] == 250
    assert server.connections[0].auth == [(mechanism, user) for user in ("u", "v", "v", "u", "u")]


def test_an_access_token_is_refused_by_a_challenge_and_taken_where_right() -> None:
    def said(user: str, token: str) -> str:
        return base64.b64encode(f"user={user}\x01auth=Bearer {token}\x01\x01".encode()).decode()

    script = Script(auth={"u": "tökén"}, mechanisms=("XOAUTH2",))
    with serving(script=script) as server, client(server) as session:
        session.ehlo()
        for user, token in (("u", "stale"), ("v", "tökén"), ("v", "")):
            code, challenge = session.docmd("AUTH", f"XOAUTH2 {said(user, token)}")
            assert (code, json.loads(base64.b64decode(challenge))["status"]) == (334, "401")
            assert session.docmd("")[0] == 535
        assert session.docmd("AUTH", f"XOAUTH2 {base64.b64encode(b'user=u').decode()}")[0] == 501
        assert session.mail("a@sender.test")[0] == 530
        assert session.docmd("AUTH", f"XOAUTH2 {said('u', 'tökén')}")[0] == 235
        assert session.mail("a@sender.test")[0] == 250


def test_no_challenge_is_made_twice_and_none_is_answered_beforehand() -> None:
    script = Script(auth={"u": "p"}, mechanisms=("CRAM-MD5",))
    with serving(script=script) as server, client(server) as session:
        session.ehlo()
        seen = set()
        for _ in range(3):
            code, challenge = session.docmd("AUTH", "CRAM-MD5")
            assert code == 334
            seen.add(base64.b64decode(challenge))
            assert session.docmd("*")[0] == 501
        assert len(seen) == 3
        assert session.docmd("AUTH", "CRAM-MD5 dTox")[0] == 501


def test_a_script_with_an_unknown_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match="SCRAM"):
        Script.from_json('{"auth": {"u": "p"}, "mechanisms": ["SCRAM"]}')


def test_simultaneous_connections_are_counted() -> None:
    with serving() as server:
        with client(server), client(server), client(server):
            eventually(lambda: server.open == 3, what="three connections")
        eventually(lambda: server.open == 0, what="no connection")
        with client(server):
            eventually(lambda: server.open == 1, what="one connection")
        assert server.most_open == 3


def test_flights_show_what_was_pipelined() -> None:
    with serving() as server:
        with Raw(server) as raw:
            raw.begin("EHLO c")
            raw.write(b"MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
            raw.until(b"354 end data with <CR><LF>.<CR><LF>\r\n")
        assert server.connections[0].flights == [["ehlo"], ["mail", "rcpt", "data"]]


def test_a_lost_connection_ends_a_delay() -> None:
    with serving(Rule(stage="mail", delay=3600.0)) as server:
        with Raw(server) as raw:
            raw.begin("HELO c")
            raw.write(b"MAIL FROM:<>\r\n")
            eventually(lambda: server.transactions, what="MAIL")
        eventually(lambda: server.open == 0, what="the end")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"code": 99}, "reply code 99 is outside 200..599"),
        ({"code": 600}, "reply code 600 is outside 200..599"),
        ({"code": "550"}, "code '550' is no number from 200 to 599"),
        ({"code": 550, "enhanced": "4.1.1"}, "'4.1.1' does not belong to 550"),
        ({"code": 550, "text": "a\rb"}, "holds CR, LF or NUL"),
    ],
)
def test_a_reply_that_cannot_be_said_is_refused_with_its_rule(
    given: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        Rule(stage="rcpt", **given)
    with pytest.raises(ValueError, match=why):
        Script.from_json(json.dumps({"rules": [{"stage": "rcpt", **given}]}))


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([{"stage": "rcpt", "code": 550}], r"'stage': 'rcpt', 'code': 550} is no Rule: write Rule"),
        ((Rule(stage="rcpt"), "rcpt"), r"'rcpt' is no Rule"),
        (Rule(stage="rcpt"), r"rules is one Rule and has to be a sequence"),
    ],
)
def test_rules_that_are_none_are_refused_with_their_script(rules: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Script(rules=rules)


def test_scripts_are_read_from_json() -> None:
    text = json.dumps(
        {"pipelining": False, "rules": [{"stage": "mail", "act": "close", "per": "connection"}]}
    )
    script = Script.from_json(text)
    assert script.pipelining is False
    assert script.rules == (Rule(stage="mail", act=Act.CLOSE, per=Per.CONNECTION),)
    for wrong in ("[]", '{"pipeline": 1}', '{"rules": [{"stage": "x"}]}', "{"):
        with pytest.raises(ValueError, match=r"script|stage|Expecting"):
            Script.from_json(wrong)
    with pytest.raises(ValueError, match="a rule has no when"):
        Script.from_json('{"rules": [{"stage": "mail", "when": 1}]}')


def test_as_a_process_it_records_before_answering_and_ends_on_sigterm(
    tmp_path: Path, authority: trustme.CA, client_context: ssl.SSLContext
) -> None:
    issued = authority.issue_cert("127.0.0.1")
    chain, key, record = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "seen.jsonl"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    rules = '{"rules": [{"stage": "dot", "act": "close", "sender": "drop@*"}]}'
    command = [sys.executable, "-P", "-m", "mailstrom.testing.smtp", "--record", str(record)]
    command += ["--bind", "127.0.0.1:0", "--bind", f"{loopback_addresses()[0]}:0"]
    command += ["--script", rules, "--tls-cert", str(chain), "--tls-key", str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            ready = json.loads(child.stdout.readline())
            assert (ready["event"], ready["pid"], len(ready["bound"])) == ("ready", child.pid, 2)
            host, port = ready["bound"][0]
            with smtplib.SMTP(host, port, timeout=20) as session:
                session.starttls(context=client_context)
                session.sendmail("a@sender.test", ["b@x.test"], MESSAGE)
                assert [dot.digest for dot in read_dots(record)] == [content_digest(MESSAGE)]
                session.sendmail("a@sender.test", ["refuse@x.test", "c@x.test"], MESSAGE)
            host, port = ready["bound"][1]
            with (
                smtplib.SMTP(host, port, timeout=20) as session,
                pytest.raises(smtplib.SMTPServerDisconnected),
            ):
                session.sendmail("drop@sender.test", ["b@x.test"], MESSAGE)
        finally:
            child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    dots = read_dots(record)
    assert [(dot.recipients, dot.kept) for dot in dots] == [
        (("b@x.test",), True),
        (("c@x.test",), True),
        (("b@x.test",), True),
    ]
    events = [json.loads(line)["event"] for line in record.read_text().splitlines()]
    assert events.count("connection.opened") == events.count("connection.closed") == 2


def test_as_a_process_it_refuses_an_unusable_script() -> None:
    ran = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "mailstrom.testing.smtp", "--bind", "127.0.0.1:0"),
            *("--script", '{"rules": [{"stage": "never"}]}'),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2
    assert "no stage 'never'" in ran.stderr


def test_an_unfinished_last_line_of_a_record_is_left_out(tmp_path: Path) -> None:
    record = tmp_path / "seen.jsonl"
    with serving(record=record) as server:
        send(server, "b@x.test")
    whole = record.read_bytes()
    assert len(read_dots(record)) == 1
    record.write_bytes(whole + b'{"event": "dot", "at": 1')
    assert len(read_dots(record)) == 1
