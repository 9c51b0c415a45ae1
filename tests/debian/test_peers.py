"""Debian's programs start, take mail and tell what they took, without any of our own engine."""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import apsw
import pytest
import trustme

from tests.support import debian
from tests.support.chasquid import ChasquidServer
from tests.support.exim import EximServer
from tests.support.kept import without_added
from tests.support.opensmtpd import OpenSMTPDServer
from tests.support.postfix import PostfixServer, SmtpSink
from tests.support.sockets import eventually, loopback_addresses

pytestmark = pytest.mark.debian

CONTENT = (
    b"From: a@sender.test\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\nMessage-ID: <%d@test>\r\n\r\n"
    b".leading dot\r\n\r\nX-Client-Addr: not a record\r\nlast line\r\n"
)


def test_smtp_sink_counts_and_keeps_the_bytes() -> None:
    with SmtpSink(loopback_addresses()[0]) as sink:
        with smtplib.SMTP(sink.address, sink.port) as client:
            for number in range(3):
                client.sendmail("a@sender.test", ["b@x.test", "c@y.test"], CONTENT % number)
        assert sink.count() == 3
        received = sink.received()
    assert [one.message_id for one in received] == ["<0@test>", "<1@test>", "<2@test>"]
    assert [one.content for one in received] == [CONTENT % number for number in range(3)]
    assert {one.recipients for one in received} == {("b@x.test", "c@y.test")}
    assert {one.sender for one in received} == {"a@sender.test"}


def test_smtp_sink_has_written_a_message_before_its_dot_is_answered() -> None:
    with SmtpSink() as sink, smtplib.SMTP(sink.address, sink.port) as client:
        assert sink.count() == 0
        client.sendmail("a@sender.test", ["b@x.test"], CONTENT % 1)
        assert sink.count() == 1


def test_smtp_sink_takes_options() -> None:
    with SmtpSink(options=("-f", "RCPT")) as sink, smtplib.SMTP(sink.address, sink.port) as client:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("a@sender.test", ["b@x.test"], CONTENT % 1)
        assert sink.received() == []


def test_smtp_sink_is_gone_after_its_context() -> None:
    with SmtpSink() as sink:
        address, directory = (sink.address, sink.port), sink.directory
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5).close()


def test_postfix_delivers_what_it_took_byte_for_byte() -> None:
    with PostfixServer(loopback_addresses()[0], domains=("a.test", "b.test")) as server:
        with smtplib.SMTP(server.address, server.port) as client:
            client.ehlo()
            assert not client.has_extn("starttls")
            client.sendmail("a@sender.test", ["one@a.test", "two@b.test"], CONTENT % 7)
        received = eventually(lambda: len(server.received()) == 2 and server.received())
        assert "status=sent" in server.log()
    assert sorted(one.recipients for one in received) == [("one@a.test",), ("two@b.test",)]
    assert {one.content for one in received} == {CONTENT % 7}
    assert {one.sender for one in received} == {"a@sender.test"}
    assert {one.message_id for one in received} == {"<7@test>"}


def test_postfix_refuses_what_it_is_told_to() -> None:
    refuse = {"no@a.test": "550 5.1.1 no such user", "later@a.test": "450 4.2.1 try later"}
    with (
        PostfixServer(domains=("a.test",), refuse=refuse) as server,
        smtplib.SMTP(server.address, server.port) as client,
    ):
        recipients = ["no@a.test", "later@a.test", "elsewhere@b.test", "yes@a.test"]
        refused = client.sendmail("a@sender.test", recipients, CONTENT % 1)
    assert {address: code for address, (code, _) in refused.items()} == {
        "no@a.test": 550,
        "later@a.test": 450,
        "elsewhere@b.test": 554,
    }


def test_exim_keeps_what_it_took_byte_for_byte_and_refuses_what_it_is_told_to() -> None:
    with (
        EximServer(
            domains=("a.test", "b.test"),
            refuse_senders={"never@sender.test": "550 5.7.1 not from you"},
            refuse={"no@a.test": "550 5.1.1 no such user", "later@a.test": "450 4.2.1 try later"},
            refuse_content={"later@sender.test": "451 4.3.0 not now"},
        ) as server,
        smtplib.SMTP(server.address, server.port) as client,
    ):
        client.ehlo()
        assert client.has_extn("chunking")
        taken = ["one@a.test", "two@b.test"]
        refused = client.sendmail(
            "a@sender.test", [*taken, "no@a.test", "later@a.test", "x@c.test"], CONTENT % 7
        )
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail("never@sender.test", taken, CONTENT % 8)
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("later@sender.test", taken, CONTENT % 9)
        (received,) = server.received()
        assert " <= a@sender.test " in server.log()
    codes = {address: code for address, (code, _) in refused.items()}
    assert codes == {"no@a.test": 550, "later@a.test": 450, "x@c.test": 550}
    assert (received.sender, received.recipients) == ("a@sender.test", tuple(taken))
    assert (received.content, received.message_id) == (CONTENT % 7, "<7@test>")


def test_opensmtpd_hands_on_byte_for_byte_and_refuses_what_it_is_told_to() -> None:
    refuse = {"no@a.test": "550 5.1.1 no such user", "later@a.test": "450 4.2.1 try later"}
    with OpenSMTPDServer(loopback_addresses()[0], domains=("a.test",), refuse=refuse) as server:
        with smtplib.SMTP(server.address, server.port) as client:
            client.ehlo()
            assert not client.has_extn("pipelining")
            recipients = ["one@a.test", "no@a.test", "later@a.test", "two@a.test", "x@b.test"]
            refused = client.sendmail("a@sender.test", recipients, CONTENT % 7)
            client.sendmail("", ["one@a.test"], CONTENT % 8)
        received = eventually(lambda: len(found := server.received()) == 3 and found)
        assert "result=Ok" in server.log()
    codes = {address: code for address, (code, _) in refused.items()}
    assert codes == {"no@a.test": 550, "later@a.test": 450, "x@b.test": 550}
    assert sorted((one.sender, *one.recipients, one.content) for one in received) == [
        ("", "one@a.test", CONTENT % 8),
        ("a@sender.test", "one@a.test", CONTENT % 7),
        ("a@sender.test", "two@a.test", CONTENT % 7),
    ]


def test_chasquid_hands_on_byte_for_byte_over_starttls_and_refuses_what_it_is_told_to() -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("mx.chasquid.test")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.check_hostname = False
    with ChasquidServer(
        loopback_addresses()[0],
        domains=("a.test",),
        tls=(chain, issued.private_key_pem.bytes()),
        users=("one", "two"),
        refuse_content=("later@sender.test",),
    ) as server:
        with smtplib.SMTP(server.address, server.port) as client:
            client.starttls(context=context)
            taken = ["one@a.test", "two@a.test"]
            refused = client.sendmail("a@sender.test", [*taken, "no@a.test"], CONTENT % 7)
            client.sendmail("", ["one@a.test"], CONTENT % 8)
            with pytest.raises(smtplib.SMTPDataError):
                client.sendmail("later@sender.test", taken, CONTENT % 9)
        received = eventually(lambda: len(found := server.received()) == 3 and found)
        assert " queued ip=" in server.log()
    assert {address: code for address, (code, _) in refused.items()} == {"no@a.test": 550}
    assert sorted((one.sender, *one.recipients, one.content) for one in received) == [
        ("", "one@a.test", CONTENT % 8),
        ("a@sender.test", "one@a.test", CONTENT % 7),
        ("a@sender.test", "two@a.test", CONTENT % 7),
    ]


def test_what_a_server_adds_in_front_is_known_or_an_error() -> None:
    added = ("Return-Path", "Received")
    stored = b"Return-Path: <a@b>\nReceived: by x\n\tfor y\nReceived: ours\n\n.\n"
    assert without_added(stored, added) == b"Received: ours\r\n\r\n.\r\n"
    with pytest.raises(ValueError, match="no Return-Path in front"):
        without_added(stored[1:], added)


def test_postfix_speaks_starttls_with_the_certificate_given() -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("mx.postfix.test")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    # smtplib compares the certificate with the name it connected to, and there is no DNS here.
    context.check_hostname = False
    with (
        PostfixServer(tls=(chain, issued.private_key_pem.bytes())) as server,
        smtplib.SMTP(server.address, server.port) as client,
    ):
        client.starttls(context=context)
        client.sendmail("a@sender.test", ["b@postfix.test"], CONTENT % 1)
        assert isinstance(client.sock, ssl.SSLSocket)
        names = client.sock.getpeercert() or {}
        eventually(lambda: len(server.received()) == 1, what="one delivery")
    assert ("DNS", "mx.postfix.test") in names["subjectAltName"]


def test_sqlite3_reads_only(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    made = apsw.Connection(str(database))
    made.execute("CREATE TABLE t(a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'é'), (2, NULL)")
    made.close()
    rows = debian.sqlite3_readonly(database, "SELECT a, b FROM t ORDER BY a")
    assert rows == [{"a": 1, "b": "é"}, {"a": 2, "b": None}]
    assert debian.sqlite3_readonly(database, "SELECT 1 WHERE 0") == []
    with pytest.raises(RuntimeError, match="readonly"):
        debian.sqlite3_readonly(database, "DELETE FROM t")


def test_strace_shows_system_calls_in_order(tmp_path: Path) -> None:
    code = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY);"
        "os.write(fd, b'x'); os.fdatasync(fd)"
    )
    target = tmp_path / "synced"
    ran = debian.strace([sys.executable, "-I", "-c", code, str(target)], calls="write,fdatasync")
    assert ran.returncode == 0
    named = [line.split(maxsplit=1)[1] for line in ran.calls if str(target) in line]
    assert [call.split("(")[0] for call in named] == ["write", "fdatasync"]


def test_missing_package_skips_by_name_or_fails_where_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MAILSTROM_REQUIRE_DEBIAN", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Debian package postfix is missing: because"):
        debian.unavailable("postfix", "because")
    monkeypatch.setenv("MAILSTROM_REQUIRE_DEBIAN", "1")
    with pytest.raises(pytest.fail.Exception, match="Debian package postfix is missing: because"):
        debian.unavailable("postfix", "because")


def test_unpacked_programs_find_all_their_libraries() -> None:
    tree = debian.postfix()
    shown = subprocess.run(
        [tree.program("usr/sbin/postconf"), "-dh", "mail_version"],
        env=tree.environ(MAIL_CONFIG="/nonexistent"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split(".")[0].isdigit()
