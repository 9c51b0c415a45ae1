"""Mail that comes in by SMTP: the real engine, with a listener, as its clients see it."""

from __future__ import annotations

import json
import os
import resource
import signal
import smtplib
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailstrom.passwords import hash_password
from mailstrom.testing.script import Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, Engine, Tables, mail
from tests.support.network import Network, dots
from tests.support.sockets import accepts, eventually, free_port
from tests.support.talk import Talk, queued
from tests.torture.launch import with_faults

HASH = hash_password("secret")


class Listening:
    """An engine that listens, and its port."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self.port = port
        self._talks: list[Talk] = []

    def talk(self, **how: Any) -> Talk:
        talk = Talk(self.port, **how)
        self._talks.append(talk)
        return talk

    def hang_up(self) -> None:
        for talk in self._talks:
            talk.close()

    def reload(self, settings: Tables) -> None:
        before = len(self.engine.log("config.reloaded"))
        self.engine.configure(settings)
        self.engine.signal(signal.SIGHUP)
        self.engine.wait_log("config.reloaded", count=before + 1)


MakeListening = Callable[..., Listening]


def _files(folder: Path) -> None:
    """A certificate, its key and a file of users."""
    issued = trustme.CA().issue_cert("mx.test", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "users").write_text(f"joe:{HASH}\n")


@pytest.fixture
def make_listening(make_engine: MakeEngine, tmp_path: Path) -> Iterator[MakeListening]:
    """Start an engine with ``[listener]``; ``tls`` adds a certificate and users."""
    made: list[Listening] = []

    def make(
        *, tls: bool = False, start: bool = True, workers: int = 1, **listener: object
    ) -> Listening:
        port = free_port()
        table: dict[str, object] = {"bind": [f"127.0.0.1:{port}"], **listener}
        if tls:
            _files(tmp_path)
            table |= {name: str(tmp_path / file) for name, file in (
                ("tls_cert", "cert.pem"), ("tls_key", "key.pem"), ("auth_file", "users"),
            )}  # fmt: skip
        engine = make_engine(workers=1, settings={"listener": table})
        if start:
            engine.start()
        made.append(Listening(engine, port))
        return made[-1]

    yield make
    for listening in made:
        listening.hang_up()


def _stored(engine: Engine) -> list[str]:
    """What came by SMTP; reports about it are messages, too."""
    return [row.id for row in engine.rows("SELECT id FROM messages WHERE origin = 'smtp'")]


def _received(network: Network, count: int) -> list[Any]:
    return eventually(
        lambda: len(found := dots(network.servers)) >= count and found,
        DEADLINE_S,
        what=f"{count} messages at the hosts",
    )


# The thin path


def test_mail_by_smtplib_is_a_row_and_is_delivered(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening()
    domain, (host,) = network.site(Script(), keep=True)
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@sender.test", f"b@{domain}", "Grüße"
    message.set_content("Good morning.\n.\nA dot alone.\n")

    with smtplib.SMTP("127.0.0.1", listening.port) as client:
        assert client.send_message(message) == {}

    (row,) = listening.engine.rows("SELECT id, sender, subject FROM messages WHERE origin = 'smtp'")
    assert (row.sender, row.subject) == ("a@sender.test", "Grüße")
    assert str(listening.engine.final(row.id).status) == "delivered"
    (dot,) = host.dots
    assert dot.content is not None
    first = dot.content.split(b"\r\n", 1)[0]
    assert first.startswith(b"Received: from ")
    assert f"id {row.id}".encode() in dot.content
    assert dot.content.endswith(b"\r\n.\r\nA dot alone.\r\n")
    (worker,) = listening.engine.rows("SELECT state, sessions FROM workers WHERE kind = 'listener'")
    assert worker.state == "ready"
    (line,) = listening.engine.wait_log("submission.accepted", message_id=row.id)
    assert (line["client"], line["recipients"]) == ("127.0.0.1", 1)


def test_the_reply_names_the_id_and_every_recipient_once(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening()
    domain, _ = network.site(Script())
    with listening.talk() as talk:
        talk.ehlo()
        id = queued(talk.mail(f"x@{domain}", f"y@{domain.upper()}", f"x@{domain}"))

    status = listening.engine.final(id)
    assert sorted(status.recipients) == [f"x@{domain}", f"y@{domain}"]


def test_many_clients_share_commits_and_every_250_is_a_row(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening()
    domain = network.new_domain()  # nobody asks for it: what counts is the way in
    talks = [listening.talk() for _ in range(20)]
    ids = []
    for talk in talks:
        talk.ehlo()
    for number in range(10):
        for place, talk in enumerate(talks):
            talk.send(
                f"MAIL FROM:<a@sender.test>\r\nRCPT TO:<{place}.{number}@{domain}>\r\n"
                "DATA\r\n".encode()
            )
        for talk in talks:
            assert [talk.reply().code for _ in range(3)] == [250, 250, 354]
        for talk in talks:
            talk.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
        ids += [queued(talk.reply()) for talk in talks]
    for talk in talks:
        talk.close()

    assert len(set(ids)) == 200
    assert set(_stored(listening.engine)) == set(ids)


# Who may send


def test_a_stranger_may_not_send_and_is_told_how_it_could(make_listening: MakeListening) -> None:
    listening = make_listening(tls=True, allow_networks=["192.0.2.0/24"])
    with listening.talk() as talk:
        assert not [line for line in talk.ehlo() if line.startswith("AUTH")]
        assert talk.login("joe", "secret").code in (502, 504, 538)
        mail_reply, refused = talk.envelope("b@example.org")
        assert (mail_reply.code, refused.code) == (250, 530)
        assert "STARTTLS" in refused.text
        assert talk.say("DATA").code in (503, 554)
        talk.say("RSET")
        talk.starttls()
        assert "AUTH LOGIN PLAIN" in talk.ehlo()
        assert talk.envelope("b@example.org")[1].code == 530
        talk.say("RSET")
        assert talk.login("joe", "wrong").code == 535
        assert talk.login("ann", "secret").code == 535
        welcome = talk.login("joe", "secret")
        assert welcome.code == 235, welcome
        queued(talk.mail("b@example.org"))
    listening.engine.wait_log("client.refused", reason="relaying denied")
    log = listening.engine.log_file.read_text()
    assert "secret" not in log


def test_no_way_to_log_in_means_relaying_denied_in_both_roles(
    make_listening: MakeListening,
) -> None:
    for role in ("submission", "relay"):
        listening = make_listening(role=role, allow_networks=["192.0.2.0/24"])
        with listening.talk() as talk:
            talk.ehlo()
            refused = talk.envelope("b@example.org", "c@localhost")[1:]
            assert [(reply.code, reply.lines[0][:5]) for reply in refused] == [(550, "5.7.1")] * 2


def test_login_by_smtplib_under_both_kinds_of_tls(make_listening: MakeListening) -> None:
    port = free_port()
    listening = make_listening(tls=True, allow_networks=[], start=False)
    engine = listening.engine
    table = dict(engine.settings["listener"])
    engine.configure(
        {"listener": table | {"bind": [f"127.0.0.1:{listening.port}", f"127.0.0.1:{port}/tls"]}}
    )
    engine.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    with smtplib.SMTP("127.0.0.1", listening.port) as client:
        client.starttls(context=context)
        client.login("joe", "secret")
        client.send_message(mail("b@example.org"))
    with smtplib.SMTP_SSL("127.0.0.1", port, context=context) as client:
        client.user, client.password = "joe", "secret"
        client.ehlo()
        client.auth("LOGIN", client.auth_login, initial_response_ok=False)
        client.send_message(mail("c@example.org"))

    assert len(_stored(engine)) == 2
    engine.wait_log("submission.accepted", count=2, user="joe")


# Limits


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


def _told(listening: Listening, size: int) -> int:
    """What DATA is told for a message of a size."""
    with listening.talk() as talk:
        talk.ehlo()
        assert talk.say(f"MAIL FROM:<a@b.test> SIZE={size}").code == 250
        assert talk.say("RCPT TO:<a@x.test>").code == 250
        return talk.say("DATA").code


# Content


def test_what_cannot_be_sent_is_refused_with_the_rule(make_listening: MakeListening) -> None:
    listening = make_listening()
    with listening.talk() as talk:
        talk.ehlo()
        for content, words in (
            (b"Subject: x\r\nX-Mailstrom-Send-At: soon\r\n\r\nx\r\n", "X-Mailstrom-Send-At"),
            (b"Received: by x; y\r\n" * 100 + b"\r\nx\r\n", "circles"),
        ):
            reply = talk.mail("a@x.test", content=content)
            assert reply.code == 554, reply
            assert words in reply.text
        bare = talk.mail("a@x.test", content=b"Subject: x\r\n\r\nbare\nline\r\n")
        assert bare.code in (550, 554)
        queued(talk.mail("a@x.test"))
    assert len(_stored(listening.engine)) == 1
    listening.engine.wait_log("submission.refused", count=3)


def test_an_idempotency_key_gives_the_first_id_and_a_conflict_is_permanent(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    head = b"Subject: x\r\nX-Mailstrom-Idempotency-Key: order-1\r\nX-Mailstrom-Tags: a, b\r\n\r\n"
    with listening.talk() as talk:
        talk.ehlo()
        first = queued(talk.mail("a@x.test", content=head + b"same\r\n"))
        assert queued(talk.mail("a@x.test", content=head + b"same\r\n")) == first
        conflict = talk.mail("a@x.test", content=head + b"other\r\n")
    assert (conflict.code, conflict.lines[0][:5]) == (554, "5.6.0")
    assert listening.engine.ms.status(first).tags == ("a", "b")
    raw = listening.engine.ms.raw(first)
    assert b"X-Mailstrom" not in raw


def test_a_large_message_is_stored_whole(network: Network, make_listening: MakeListening) -> None:
    listening = make_listening()
    domain, (host,) = network.site(Script())
    body = (os.urandom(57 * 1000).hex().encode()[:76] + b"\r\n") * 40_000
    with listening.talk() as talk:
        talk.ehlo()
        id = queued(talk.mail(f"a@{domain}", content=b"Subject: big\r\n\r\n" + body))
    assert str(listening.engine.final(id).status) == "delivered"
    (dot,) = host.dots
    assert dot.octets > len(body)


# Ends and beginnings


def test_a_drain_takes_what_is_on_its_way_and_tells_the_idle(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening()
    engine = listening.engine
    idle, begun, writing = (listening.talk() for _ in range(3))
    for talk in (idle, begun, writing):
        talk.ehlo()
    begun.envelope("b@x.test")
    writing.envelope("c@x.test")
    assert writing.say("DATA").code == 354
    writing.send(b"Subject: half\r\n\r\nhalf")

    engine.signal(signal.SIGTERM)
    assert idle.reply().code == 421
    assert begun.reply().code == 421
    eventually(lambda: not accepts("127.0.0.1", listening.port), DEADLINE_S, what="a closed port")
    writing.send(b" and half\r\n.\r\n")
    id = queued(writing.reply())
    assert writing.reply().code == 421
    assert engine.wait_exit() == 0

    assert _stored(engine) == [id]
    order = [line["kind"] for line in engine.log("worker.stopped")]
    assert order[-1] == "janitor"


def test_a_drain_has_an_end_and_nothing_half_is_taken(make_listening: MakeListening) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    engine.configure(dict(engine.settings) | {"delivery": {"drain_timeout": "500ms"}})
    engine.start()
    with listening.talk() as talk:
        talk.ehlo()
        talk.envelope("c@x.test")
        assert talk.say("DATA").code == 354
        talk.send(b"Subject: half\r\n\r\nhalf\r\n")
        engine.signal(signal.SIGTERM)
        assert talk.reply().code == 421
        assert engine.wait_exit() == 0
    assert _stored(engine) == []


def test_who_waits_while_a_listener_is_started_anew_is_served(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    (pid,) = listening.engine.live("listener")
    with listening.talk() as lost:
        lost.ehlo()
        os.kill(pid, signal.SIGKILL)
        assert not lost.sock.recv(1)
    with listening.talk() as talk:  # accepted by the kernel, whoever serves it then
        talk.ehlo()
        queued(talk.mail("a@x.test"))
    (line,) = listening.engine.wait_log("worker.lost", kind="listener")
    assert line["pid"] == pid


def test_a_second_engine_finds_the_address_taken(make_listening: MakeListening) -> None:
    first = make_listening()
    second = make_listening(start=False)
    table = dict(second.engine.settings["listener"]) | {"bind": [f"127.0.0.1:{first.port}"]}
    second.engine.configure({"listener": table})
    second.engine.start(wait=False)

    assert second.engine.wait_exit() == 75
    said = second.engine.log_file.read_text()
    assert f"127.0.0.1:{first.port}" in said
    assert "Traceback" not in said


def test_a_reload_brings_networks_users_and_certificate_for_new_connections(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(tls=True)
    table = dict(listening.engine.settings["listener"])
    with listening.talk() as before:
        before.ehlo()
        first = _certificate(listening.port)
        _files(tmp_path)
        (tmp_path / "users").write_text(f"ann:{HASH}\n")
        listening.reload({"listener": table | {"allow_networks": [], "max_size": 2048}})
        eventually(lambda: _certificate(listening.port) != first, DEADLINE_S, what="the new one")
        with listening.talk() as talk:
            talk.ehlo()
            talk.starttls()
            assert "SIZE 2048" in talk.ehlo()
            assert talk.login("joe", "secret").code == 535
            assert talk.envelope("a@x.test")[1].code == 530
            talk.say("RSET")
            assert talk.login("ann", "secret").code == 235
            queued(talk.mail("a@x.test"))
        queued(before.mail("a@x.test"))  # as it began

    (tmp_path / "users").write_text("broken\n")
    listening.engine.signal(signal.SIGHUP)
    (line,) = listening.engine.wait_log("config.rejected")
    assert "users: line 1" in line["error"]


def _certificate(port: int) -> bytes:
    with Talk(port) as talk:
        talk.ehlo()
        talk.starttls()
        assert isinstance(talk.sock, ssl.SSLSocket)
        found = talk.sock.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_several_processes_share_one_port(make_listening: MakeListening) -> None:
    listening = make_listening(start=False)
    table = dict(listening.engine.settings["listener"])
    listening.engine.configure({"listener": table | {"workers": 3}})
    listening.engine.start()
    assert len(listening.engine.live("listener")) == 3
    for pid in listening.engine.live("listener")[:2]:
        os.kill(pid, signal.SIGSTOP)
    try:
        # Whoever is free accepts; connections that a stopped one took would wait for it.
        with listening.talk() as talk:
            talk.ehlo()
            queued(talk.mail("a@x.test"))
    finally:
        for row in listening.engine.rows("SELECT pid FROM workers WHERE kind = 'listener'"):
            os.kill(row.pid, signal.SIGCONT)


# Parameters, roles, proxies


def test_what_is_asked_by_parameters_is_kept(make_listening: MakeListening) -> None:
    listening = make_listening()
    with listening.talk() as talk:
        talk.ehlo()
        said = "MAIL FROM:<a@b.test> RET=HDRS ENVID=QQ+2B1 HOLDFOR=3600 MT-PRIORITY=4"
        assert talk.say(said).code == 250
        assert (
            talk.say("RCPT TO:<x@y.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;q@y.test").code == 250
        )
        assert talk.say("RCPT TO:<z@y.test>").code == 250
        assert talk.say("DATA").code == 354
        talk.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
        id = queued(talk.reply())
    (row,) = listening.engine.rows(
        "SELECT origin, client, ret, envid, priority, created_ms, send_ms FROM messages"
        " WHERE id = ?",
        id,
    )
    assert (row.origin, row.ret, row.envid, row.priority) == ("smtp", "hdrs", "QQ+1", "high")
    assert row.send_ms - row.created_ms == 3600 * 1000
    assert json.loads(row.client) == {"address": "127.0.0.1", "helo": "client.test"}


def test_relay_adds_received_and_changes_nothing_else(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening(role="relay")
    domain, (host,) = network.site(Script(), keep=True)
    content = b"X-Mailstrom-Tags: a\r\nbcc: x@y.test\r\nsubject:no date\r\n\r\nx\r\n"
    with listening.talk() as talk:
        talk.ehlo()
        queued(talk.mail(f"a@{domain}", content=content))
        assert talk.envelope("postmaster")[1].code == 553
    (dot,) = eventually(lambda: host.dots, DEADLINE_S, what="the message")
    assert dot.content is not None
    assert dot.content.endswith(content)
    assert dot.content.startswith(b"Received: from client.test ([127.0.0.1])")
    assert dot.content.count(b"\r\n") == content.count(b"\r\n") + 4


def test_bare_line_ends_may_be_mended(make_listening: MakeListening) -> None:
    listening = make_listening(bare_newlines="fix")
    with listening.talk() as talk:
        talk.ehlo()
        id = queued(talk.mail("a@x.test", content=b"Subject: x\r\n\r\nbare\nline\n..\nend\r\n"))
    assert listening.engine.ms.raw(id).endswith(b"\r\n\r\nbare\r\nline\r\n.\r\nend\r\n")


def test_a_proxys_word_is_taken_from_proxies_alone(make_listening: MakeListening) -> None:
    listening = make_listening(
        allow_networks=["127.0.0.0/8", "192.0.2.0/24"], proxy_networks=["127.0.0.2"]
    )

    def through(header: bytes, source: str = "127.0.0.2") -> Talk:
        talk = listening.talk(source=source, greeting=False)
        talk.send(header)
        return talk

    second = b"\r\n\r\n\0\r\nQUIT\n"
    addresses = bytes((192, 0, 2, 7, 127, 0, 0, 1)) + bytes((0, 9, 0, 25))
    for header in (
        b"PROXY TCP4 192.0.2.7 127.0.0.1 9 25\r\n",
        second + b"\x21\x11" + len(addresses).to_bytes(2, "big") + addresses,
    ):
        with through(header) as talk:
            assert talk.reply().code == 220
            talk.ehlo()
            id = queued(talk.mail("a@x.test"))
            (row,) = listening.engine.rows("SELECT client FROM messages WHERE id = ?", id)
            assert json.loads(row.client)["address"] == "192.0.2.7"
    for header in (
        b"PROXY TCP4 198.51.100.1 127.0.0.1 9 25\r\n",
        b"PROXY UNKNOWN\r\n",
        second + b"\x20\x00\x00\x00",  # LOCAL: the proxy's own address is in allow_networks
    ):
        with through(header) as talk:
            assert talk.reply().code == 220
            talk.ehlo()
            assert talk.mail("a@x.test").code == 550
    with through(b"EHLO client.test\r\n") as talk:
        assert not talk.sock.recv(1)
    with through(b"", source="127.0.0.3") as talk:
        assert talk.reply().code == 220
        assert talk.say("PROXY TCP4 192.0.2.7 127.0.0.1 9 25").code == 500


def test_implicit_tls_behind_a_proxy(make_listening: MakeListening) -> None:
    listening = make_listening(
        tls=True, implicit_tls=True, allow_networks=[], proxy_networks=["127.0.0.0/8"]
    )
    with listening.talk(greeting=False) as talk:
        talk.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 9 25\r\n")
        talk.seal()
        assert talk.reply().code == 220
        talk.ehlo()
        assert talk.login("joe", "secret").code == 235
        queued(talk.mail("a@x.test"))


# A spool that cannot


def test_a_busy_spool_is_a_reply_to_try_again_and_nothing_stored(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    with _write_lock(listening.engine.store), listening.talk() as talk:
        talk.ehlo()
        reply = talk.mail("a@x.test")
        assert (reply.code, reply.lines[0][:5]) == (451, "4.3.0")
    with listening.talk() as talk:
        talk.ehlo()
        id = queued(talk.mail("b@x.test"))
    assert _stored(listening.engine) == [id]


_LOCKER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def _write_lock(store: Path) -> Iterator[None]:
    """Another process that writes and does not end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _LOCKER, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield
    finally:
        process.communicate()


# Deaths between the last octet and the reply

_STORING = "mailstrom.storage.sqlite.storing:Storing"
_INTAKE = "mailstrom_workers.intake:Intake"
POINTS: dict[str, tuple[dict[str, object], bool | None]] = {
    "received": ({"at": f"{_INTAKE}.put", "when": "before"}, False),
    "handed": ({"at": f"{_INTAKE}.put", "when": "after"}, None),
    "inserting": ({"at": f"{_STORING}._store", "when": "before"}, False),
    "committed": ({"at": f"{_STORING}._store", "when": "after"}, True),
    "syncing": ({"at": f"{_STORING}._durable", "when": "before"}, True),
    "synced": ({"at": f"{_STORING}._durable", "when": "after"}, True),
    "ringing": ({"at": f"{_INTAKE}._ring", "when": "after"}, True),
    "telling": ({"at": f"{_INTAKE}._tell", "when": "before"}, True),
    "answering": (
        {"at": "mailstrom.server.connection:Connection.answer", "when": "before"}, True,
    ),
}  # fmt: skip
"""Point: where it is, and whether the message is there afterwards (None: either)."""


@pytest.mark.parametrize("point", POINTS)
def test_killed_before_the_reply_it_is_whole_or_not_there_and_never_said_to_be_taken(
    point: str, make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    folder = tmp_path / "points"
    folder.mkdir()
    spec, stored = POINTS[point]
    settings = {"folder": str(folder), "points": {point: spec}, "set": {}}
    engine.start(env=with_faults({"torture_points": settings}))
    (pid,) = engine.live("listener")
    with listening.talk() as talk:
        talk.ehlo()
        first = queued(talk.mail("first@x.test"))
        talk.envelope("second@x.test", "third@x.test")
        assert talk.say("DATA").code == 354
        _arm(folder, point)
        talk.send(b"Subject: x\r\nX-Mailstrom-Idempotency-Key: k\r\n\r\nx\r\n.\r\n")
        assert not talk.sock.recv(1)
    engine.wait_log("worker.lost", kind="listener", pid=pid)
    (folder / "armed").unlink()

    there = [id for id in _stored(engine) if id != first]
    assert len(there) == stored if stored is not None else len(there) <= 1
    for id in there:
        assert len(engine.ms.status(id).recipients) == 2
    with listening.talk() as talk:  # the client sends again, and its key makes it one message
        talk.ehlo()
        talk.envelope("second@x.test", "third@x.test")
        talk.say("DATA")
        talk.send(b"Subject: x\r\nX-Mailstrom-Idempotency-Key: k\r\n\r\nx\r\n.\r\n")
        again = queued(talk.reply())
    assert there in ([], [again])


def _arm(folder: Path, point: str) -> None:
    fresh = folder / "armed.new"
    fresh.write_text(json.dumps({"point": point, "hit": 1, "do": "kill", "token": "token"}))
    fresh.replace(folder / "armed")


def test_a_full_disk_is_452_and_all_goes_on_once_there_is_room(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    engine = listening.engine
    (pid,) = engine.live("listener")
    with listening.talk() as talk:
        talk.ehlo()
        first = queued(talk.mail("a@x.test"))
        # No file may grow any more, as on a full disk, for this process alone.
        log = engine.store.with_name(f"{engine.store.name}-wal")
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size, -1))
        large = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 40_000
        refused = talk.mail("a@x.test", content=large)
        assert (refused.code, refused.lines[0][:5]) == (452, "4.3.1")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        second = queued(talk.mail("a@x.test", content=large))
    assert set(_stored(engine)) == {first, second}


def test_a_sync_that_fails_is_never_a_250_for_what_is_not_there(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    fault = {
        "op": "sync", "file": "wal", "n": 4, "token": str(tmp_path / "failed"),
        "module": "mailstrom_workers.listener", "folder": str(engine.folder),
    }  # fmt: skip
    engine.start(env=with_faults({"torture_errors": fault}))
    content = b"Subject: x\r\nX-Mailstrom-Idempotency-Key: %d\r\n\r\nx\r\n"
    taken = []
    with listening.talk() as talk:
        talk.ehlo()
        for number in range(4):
            reply = eventually(
                lambda content=content % number: (
                    found if (found := talk.mail("a@x.test", content=content)).code == 250 else None
                ),
                DEADLINE_S,
                what="the spool to heal",
            )
            taken.append(queued(reply))
    assert (tmp_path / "failed").exists()
    assert sorted(_stored(engine)) == sorted(set(taken))
    assert len(set(taken)) == 4


def test_under_kill_every_250_is_a_row_and_every_key_is_one_message(
    make_listening: MakeListening,
) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    table = dict(engine.settings["listener"])
    engine.configure({"listener": table | {"workers": 2}})
    engine.start()
    done = threading.Event()
    taken: dict[str, str] = {}

    def client(name: int) -> None:
        """Sends one after the other, each until it is told 250, as mail programs do."""
        number = 0
        while not done.is_set():
            try:
                with Talk(listening.port) as talk:
                    talk.ehlo()
                    for _ in range(20):
                        key = f"{name}-{number}"
                        head = f"Subject: x\r\nX-Mailstrom-Idempotency-Key: {key}\r\n\r\nx\r\n"
                        reply = talk.mail(f"{key}@x.test", content=head.encode())
                        if reply.code == 250:
                            taken[key] = queued(reply)
                            number += 1
            except (OSError, EOFError):
                continue

    clients = [threading.Thread(target=client, args=(name,)) for name in range(6)]
    for thread in clients:
        thread.start()
    try:
        for kill in range(6):
            before = len(taken)
            eventually(lambda before=before: len(taken) > before + 20, DEADLINE_S, what="mail")  # type: ignore[misc]
            pids = eventually(lambda: engine.live("listener"), DEADLINE_S, what="a listener")
            with suppress(ProcessLookupError):
                os.kill(pids[kill % len(pids)], signal.SIGKILL)
            engine.wait_log("worker.ready", kind="listener", count=2 + kill + 1)
    finally:
        done.set()
        for thread in clients:
            thread.join(DEADLINE_S)

    rows = engine.rows("SELECT id, idempotency_key AS key FROM messages WHERE origin = 'smtp'")
    by_key = {row.key: row.id for row in rows}
    assert len(by_key) == len(rows)
    assert taken.items() <= by_key.items()
    assert len(by_key) <= len(taken) + len(clients)  # at most one each was not heard of
