"""The sink: what it keeps, how it is waited for, what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import IO

import pytest
import trustme

from mailstrom.server import Client, Mail
from mailstrom.testing import Rule, Script, Sink
from mailstrom.testing.script import MAGIC, Director
from mailstrom.testing.show import shown
from tests.support.sockets import eventually, free_port


def message(subject: str = "Hi", text: str = "Hello\n") -> EmailMessage:
    made = EmailMessage()
    made["From"] = "Shop <shop@example.org>"
    made["To"] = "alice@example.com"
    made["Subject"] = subject
    made.set_content(text)
    return made


def send(sink: Sink, *recipients: str, made: EmailMessage | None = None) -> None:
    with smtplib.SMTP(sink.host, sink.port, timeout=20) as client:
        client.send_message(
            made or message(), "shop@example.org", recipients or ["alice@example.com"]
        )


def test_what_came_is_here_when_the_client_was_told() -> None:
    with Sink() as sink:
        send(sink, "alice@example.com", "bob@example.com")
        (mail,) = sink.messages
        assert (mail.sender, mail.recipients) == (
            "shop@example.org",
            ("alice@example.com", "bob@example.com"),
        )
        assert mail.message()["Subject"] == "Hi"
        assert mail.message().get_content() == "Hello\n"
        assert mail.content.endswith(b"\r\nHello\r\n")
        sink.clear()
        assert sink.messages == []
    assert sink.address == f"127.0.0.1:{sink.port}"


def test_it_runs_again_and_keeps_what_came_before() -> None:
    sink = Sink()
    for count in (1, 2):
        with sink:
            send(sink)
        assert len(sink.messages) == count


def test_waiting_ends_with_the_mails_or_says_what_came() -> None:
    with Sink() as sink:
        sender = threading.Timer(0.05, lambda: [send(sink) for _ in range(3)])
        sender.start()
        assert len(sink.wait(3, timeout=30)) == 3
        sender.join()
        with pytest.raises(TimeoutError, match=r"3 of 4 mails came within 0.01 s: Hi to alice@"):
            sink.wait(4, timeout=0.01)
        sink.clear()
        with pytest.raises(TimeoutError, match=r"0 of 1 mails came within 0.01 s$"):
            sink.wait(timeout=0.01)


def test_in_a_loop() -> None:
    async def body() -> None:
        async with Sink() as sink:
            arriving = asyncio.create_task(sink.arrived(2, timeout=30))
            for _ in range(2):
                await asyncio.to_thread(send, sink)
            assert len(await arriving) == 2
            with pytest.raises(RuntimeError, match=r"await arrived\(\)"):
                sink.wait()
        with Sink() as other:
            await asyncio.to_thread(send, other)
            assert len(other.wait()) == 1, "another loop's"

    asyncio.run(body())


def test_addresses_behave_and_only_what_was_taken_is_kept() -> None:
    with Sink() as sink:
        for name in MAGIC:
            with contextlib.suppress(smtplib.SMTPException, ConnectionError):
                if name not in ("silent-after-dot", "slow"):
                    send(sink, f"{name}@example.com")
        assert [mail.recipients[0].partition("@")[0] for mail in sink.messages] == [
            "drop-after-dot",
            "reset-after-dot",
        ], "who answers nothing has it"
        send(sink, "accept@example.com", "bob@example.com")
        assert sink.messages[-1].recipients == ("accept@example.com", "bob@example.com")


def test_a_script_and_users() -> None:
    script = Script(rules=[Rule(stage="data", code=451, text="no", last=1)])
    with Sink(script=script, auth={"u": "secret"}) as sink:
        with smtplib.SMTP(sink.host, sink.port, timeout=20) as client:
            with pytest.raises(smtplib.SMTPSenderRefused):
                client.send_message(message())
            client.login("u", "secret")
            with pytest.raises(smtplib.SMTPDataError):
                client.send_message(message())
            client.rset()
            client.send_message(message())
        (mail,) = sink.messages
        assert mail.user == "u"
    with pytest.raises(ValueError, match="script of the director"):
        Sink(script=Director(Script()), auth={"u": "secret"})


def test_memory_is_bounded() -> None:
    with Sink(keep=2) as sink:
        for number in range(5):
            send(sink, made=message(str(number)))
        assert [mail.message()["Subject"] for mail in sink.messages] == ["3", "4"]
        assert max(map(len, (sink.connections, sink.transactions, sink.dots))) == 2
        assert not any(connection.flights for connection in sink.connections)


# --- for people ---------------------------------------------------------------------------------


def mail(content: bytes, sender: str = "a@x.test") -> Mail:
    return Mail(
        client=Client(address="127.0.0.1", port=1, tls="TLSv1.3", user="u"),
        sender=sender,
        recipients=("b@y.test",),
        parameters={},
        recipient_parameters=({},),
        content=content,
    )


def test_a_mail_is_shown_as_people_read_it() -> None:
    made = message("Grüße", "Hallo\n\nWelt\n")
    made.add_attachment(b"12345", maintype="application", subtype="pdf", filename="bill.pdf")
    content = bytes(made).replace(b"\n", b"\r\n")
    assert list(shown(mail(content), 7)) == [
        "--- 7: a@x.test -> b@y.test",
        f"    127.0.0.1, user u, TLSv1.3, {len(content)} octets",
        "From: Shop <shop@example.org>",
        "To: alice@example.com",
        "Subject: Grüße",
        "",
        "Hallo",
        "",
        "Welt",
        "[application/pdf bill.pdf, 5 octets]",
        "",
    ]
    report = (
        b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\n\r\nfailed\r\n"
        b"--x\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; a\r\n"
        b"--x\r\nContent-Type: message/rfc822\r\n\r\nSubject: z\r\n\r\nbody\r\n--x--\r\n"
    )
    assert list(shown(mail(report), 8))[2:] == [
        "",
        "failed",
        "[message/delivery-status -]",
        "[message/rfc822 -]",
        "",
    ]
    came = list(shown(mail(b"A: b\r\n\r\n.x\r\n", ""), 1, raw=True))
    assert came[0] == "--- 1: <> -> b@y.test"
    assert came[2:] == ["A: b", "", ".x", ""]


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: \x1b[2J\r\n\r\n\x1b[31mred\x07\r\n",
        b"Content-Type: text/plain; charset=nobody\r\n\r\n\xff\x1b[2J\r\n",
        b"Content-Type: multipart/mixed\r\n\r\nno parts\x1b\r\n",
        b"Content-Transfer-Encoding: base64\r\n\r\n!!!\x9b\r\n",
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_nothing_in_a_mail_reaches_the_terminal_raw(content: bytes) -> None:
    for raw in (False, True):
        for line in shown(mail(content), 1, raw=raw):
            assert line == "" or line.isprintable(), line


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    issued = trustme.CA().issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return chain, key


@contextlib.contextmanager
def program(output: IO[str], *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", "mailstrom.testing.sink", *options]
    with subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def test_as_a_program_it_prints_what_comes(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    port = free_port()
    printed = tmp_path / "printed"
    chain, key = certificate
    options = ["--port", str(port), "--user", "u:secret"]
    options += ["--tls-cert", str(chain), "--tls-key", str(key)]
    with printed.open("w") as output, program(output, *options) as process:
        eventually(lambda: "listening on" in printed.read_text(), what="the server")
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.starttls()
            client.login("u", "secret")
            client.send_message(message())
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("a@x.test", ["refuse@y.test"], "x")
        eventually(lambda: "Hello" in printed.read_text(), what="the mail")
    assert process.returncode == 0
    lines = printed.read_text().splitlines()
    assert lines[0] == f"listening on 127.0.0.1:{port}; end with Ctrl-C"
    assert lines[2] == "--- 1: shop@example.org -> alice@example.com"
    assert "user u, TLSv1.3" in lines[3]
    assert lines[4:] == [
        "From: Shop <shop@example.org>",
        "To: alice@example.com",
        "Subject: Hi",
        "",
        "Hello",
        "",
    ]


def test_as_a_program_it_says_what_is_wrong(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    with (
        Sink() as sink,
        printed.open("w") as output,
        program(output, "--port", str(sink.port)) as process,
    ):
        assert process.wait(30) == 2
    assert printed.read_text().startswith("mailstrom.testing.sink: ")
    with printed.open("w") as output, program(output, "--port", "65536") as process:
        assert process.wait(30) == 2
    assert printed.read_text() == (
        "mailstrom.testing.sink: port 65536 is none: pass 0 for a free one, or 1 to 65535\n"
    )
