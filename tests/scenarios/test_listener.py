"""Mail that comes in by SMTP: the real engine, with a listener, as its clients see it."""

from __future__ import annotations

import json
import os
import smtplib
import ssl
from email.message import EmailMessage

from mailstrom.testing.script import Script
from tests.support.engine import DEADLINE_S, mail
from tests.support.listening import MakeListening, stored
from tests.support.network import Network
from tests.support.sockets import eventually, free_port
from tests.support.talk import Talk, queued

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
    assert set(stored(listening.engine)) == set(ids)


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

    assert len(stored(engine)) == 2
    engine.wait_log("submission.accepted", count=2, user="joe")


# Content


def test_what_cannot_be_sent_is_refused_with_the_rule(make_listening: MakeListening) -> None:
    listening = make_listening()
    with listening.talk() as talk:
        talk.ehlo()
        for content, words in (
            (b"Subject: x\r\nX-Mailstrom-Send-At: soon\r\n\r\nx\r\n", "X-Mailstrom-Send-At"),
            (b"Received: by x; y\r\n" * 100 + b"\r\nx\r\n", "circles"),
            (b"X-Mailstrom-Stream: \r\n\r\n" + b"large\r\n" * 50_000, "X-Mailstrom-Stream"),
        ):
            reply = talk.mail("a@x.test", content=content)
            assert reply.code == 554, reply
            assert words in reply.text
        bare = talk.mail("a@x.test", content=b"Subject: x\r\n\r\nbare\nline\r\n")
        assert bare.code in (550, 554)
        queued(talk.mail("a@x.test"))
    assert len(stored(listening.engine)) == 1
    listening.engine.wait_log("submission.refused", count=4)


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


def test_others_are_served_while_a_large_message_is_mended(make_listening: MakeListening) -> None:
    """Four mebibytes of NUL are encoded octet by octet; one processor's worth of a second."""
    listening = make_listening()
    with listening.talk() as talk, listening.talk() as other:
        talk.ehlo()
        other.ehlo()
        assert talk.envelope("a@x.test")[-1].code == 250
        assert talk.say("DATA").code == 354
        talk.send(b"Subject: nothing\r\n\r\n" + b"\0" * (4 << 20) + b"\r\n.\r\n")
        queued(other.mail("b@x.test"))
        queued(talk.reply())
    assert len(stored(listening.engine)) == 2


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


def test_submission_completes_what_has_no_domain(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening(role="submission")
    with listening.talk() as talk:
        talk.ehlo()
        named = ("root", "postmaster", '"a b@c"')
        assert [reply.code for reply in talk.envelope(*named, sender="cron")] == [250] * 4
        assert talk.say("DATA").code == 354
        talk.send(b"Subject: hi\r\n\r\nx\r\n.\r\n")
        id = queued(talk.reply())
    (row,) = listening.engine.rows("SELECT sender FROM messages WHERE id = ?", id)
    assert row.sender == "cron@sender.test"
    rows = listening.engine.rows("SELECT address FROM recipients WHERE message_id = ?", id)
    assert {row.address for row in rows} == {f"{name}@sender.test" for name in named}


def test_relay_adds_received_and_changes_nothing_else(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening(role="relay")
    domain, (host,) = network.site(Script(), keep=True)
    content = b"X-Mailstrom-Tags: a\r\nbcc: x@y.test\r\nsubject:no date\r\n\r\nx\r\n"
    with listening.talk() as talk:
        talk.ehlo()
        queued(talk.mail(f"a@{domain}", content=content))
        for sender, recipient in (("root", f"x@{domain}"), ("", "root"), ("", '"a b"')):
            said = [reply.code for reply in talk.envelope(recipient, sender=sender)]
            assert 501 in said, said
            talk.say("RSET")
        id = queued(talk.mail("PostMaster", content=content))
        (row,) = listening.engine.rows("SELECT address FROM recipients WHERE message_id = ?", id)
        assert row.address == "PostMaster@sender.test"
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


def test_a_proxy_that_sends_no_header_is_named_in_the_log(make_listening: MakeListening) -> None:
    listening = make_listening(proxy_networks=["127.0.0.2"], timeout="1s")
    with listening.talk(source="127.0.0.2", greeting=False) as talk:
        assert not talk.sock.recv(1)  # it waits for a greeting, and hears none
    listening.engine.wait_log("client.refused", client="127.0.0.2", reason="no proxy header came")


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
