"""Stories of bounces by SMTP alone: a client hands mail in, and finds the report in its mailbox."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from mailstrom.message import parse
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import sound
from tests.support.engine import DEADLINE_S, Engine
from tests.support.network import Network
from tests.support.sockets import eventually, free_port

CONTENT = (
    b"From: anna@sender.test\r\nTo: b@sender.test\r\nSubject: by hand\r\n\r\nGood morning.\r\n"
)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path, port: int) -> Iterator[Engine]:
    listener = {"bind": [f"127.0.0.1:{port}"], "workers": 1}
    with sound(Engine(network, folder, workers=1, settings={"listener": listener})) as engine:
        yield engine.start()


@pytest.fixture(scope="module")
def home(network: Network) -> tuple[str, SMTPServer]:
    """A domain whose mailboxes keep what comes: where senders live."""
    domain, (host,) = network.site(Script(), keep=True)
    return domain, host


def handed_in(
    port: int, sender: str, recipients: dict[str, list[str]], *mail: str, content: bytes
) -> str:
    """The id that the listener said behind the dot; recipients with their parameters."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.sender.test") as client:
        client.ehlo()
        client.command_encoding = "utf-8"
        assert client.mail(sender, list(mail))[0] == 250
        for address, parameters in recipients.items():
            assert client.rcpt(address, parameters)[0] == 250
        code, text = client.data(content)
    assert code == 250, text
    return text.decode().rpartition(" ")[2]


def come(host: SMTPServer, address: str) -> Message[Any, Any]:
    """The one mail for an address."""

    def probe() -> bytes | None:
        found = [
            one.dot.content
            for one in list(host.transactions)
            if one.dot is not None and address in one.accepted
        ]
        assert len(found) < 2
        return found[0] if found else None

    octets = eventually(probe, DEADLINE_S, what=f"mail for {address}")
    parse(octets)
    return message_from_bytes(octets)


def test_who_speaks_all_of_rfc_3461_gets_all_of_it_back(
    engine: Engine, network: Network, port: int, home: tuple[str, SMTPServer]
) -> None:
    domain, (host,) = network.site(Script())
    sender = f"anna@{home[0]}"
    asked = {
        f"refuse@{domain}": ["NOTIFY=FAILURE,DELAY", f"ORCPT=rfc822;Bob+2BCo@{domain}"],
        f"refuse+quiet@{domain}": ["NOTIFY=NEVER"],
        f"b@{domain}": ["NOTIFY=SUCCESS"],
    }

    id = handed_in(port, sender, asked, "RET=FULL", "ENVID=QQ+3D17", content=CONTENT)
    engine.final(id)
    made = engine.until("SELECT id FROM messages WHERE origin = 'report'", count=2)

    found = [
        message_from_bytes(engine.ms.raw(row.id) or b"") for row in made
    ]  # fmt: skip
    actions = {str(one["Message-ID"]).partition(".")[0]: one for one in found}
    assert actions.keys() == {"<failed", "<relayed"}
    status = actions["<failed"].get_payload(1)
    assert isinstance(status, Message)
    message, recipient = status.get_payload()
    assert isinstance(message, Message)
    assert isinstance(recipient, Message)
    assert message["Original-Envelope-Id"] == "QQ=17"
    assert message["Received-From-MTA"] == "dns; client.sender.test"
    assert message["X-Mailstrom-Id"] == id
    assert recipient["Original-Recipient"] == f"rfc822; Bob+Co@{domain}"
    assert recipient["Final-Recipient"] == f"rfc822; refuse@{domain}"
    returned = actions["<failed"].get_payload(2)
    assert isinstance(returned, Message)
    inner = returned.get_payload(0)
    assert isinstance(inner, Message)
    assert inner["Subject"] == "by hand"
    assert id in str(inner["Received"])
    assert len(host.dots) == 1
    for row in made:
        assert engine.final(row.id).succeeded


@pytest.mark.parametrize(
    ("local", "parameters"),
    [
        ('"an na"', []),
        ("=?x", []),
        ("a" * 64, []),
        ("o'brien+x=y", []),
        ("άννα", ["SMTPUTF8", "BODY=8BITMIME"]),
    ],
)
def test_whatever_sender_is_taken_is_told(
    engine: Engine,
    network: Network,
    port: int,
    home: tuple[str, SMTPServer],
    local: str,
    parameters: list[str],
) -> None:
    domain, _ = network.site(Script())
    sender = f"{local}@{home[0]}"

    id = handed_in(port, sender, {f"refuse@{domain}": []}, *parameters, content=CONTENT)
    engine.final(id)

    report = come(home[1], sender)
    assert report.get_content_type() == "multipart/report"
    assert engine.rows("SELECT 1 FROM events WHERE type = 'message.unreported'") == []


def test_the_null_sender_is_taken_and_not_told(engine: Engine, network: Network, port: int) -> None:
    domain, _ = network.site(Script())
    id = handed_in(port, "", {f"refuse@{domain}": []}, content=CONTENT)
    assert engine.final(id).status == "failed"
    sql = "SELECT 1 FROM messages WHERE json_extract(metadata, '$.report_of') = ?"
    assert engine.rows(sql, id) == []
