"""The engine's reporter: what a store knows becomes a message that it can store."""

from __future__ import annotations

from collections.abc import Mapping
from email import message_from_bytes
from typing import Any

import pytest

from mailstrom.config import Config, from_tables
from mailstrom.storage.client import Notice, Submission
from mailstrom.storage.reporting import ReportedRecipient, ReportFacts
from mailstrom.types import OnDoubt
from mailstrom_workers import reporting

NOW = 1795370000000
CONTENT = b"Subject: hello\r\n\r\nbody\r\n"


def config(**reports: object) -> Config:
    tables = {"hostname": "mail.example.org", "reports": reports}
    return from_tables(tables, environ={"HOME": "/nowhere"})


def made(settings: Config, **changes: Any) -> Submission | None:
    recipient = ReportedRecipient(
        address="b@example.com",
        orcpt="rfc822;o@example.com",
        action="failed",
        reason="bounced",
        mx="mx.example.com",
        reply_code=550,
        enhanced_code="5.1.1",
        reply_text="no",
        last_ms=NOW,
        expires_ms=NOW,
    )
    facts = ReportFacts(
        id="abc",
        sender="anna@app.example",
        message_id="<m@app.example>",
        envid=None,
        ret=None,
        created_ms=NOW,
        client=None,
        smtputf8=False,
        require_tls=False,
        size=len(CONTENT),
        content=CONTENT,
        recipients=(recipient,),
    )
    return reporting.reporter(settings)(facts._replace(**changes), NOW)


def test_a_report_is_mail_that_makes_no_report_and_waits_for_nobody() -> None:
    report = made(config())
    assert report is not None
    assert (report.sender, report.recipients) == ("", ("anna@app.example",))
    assert (report.origin, report.reports) == ("report", False)
    assert report.notices == (Notice(notify="never"),)
    assert (report.stream, report.on_doubt) == ("bounces", OnDoubt.RETRY)
    assert (report.created_ms, report.send_ms, report.expires_ms) == (NOW, NOW, None)
    assert report.metadata == {"report_of": "abc", "action": "failed"}
    whole = message_from_bytes(report.content)
    assert whole["Message-ID"] == report.message_id
    assert whole["Subject"] == report.subject == "Undelivered mail: hello"
    assert whole["From"] == "Mail Delivery System <mailer-daemon@mail.example.org>"


def test_nobody_is_told_where_it_is_turned_off_or_there_is_nobody() -> None:
    assert made(config(send=False)) is None
    assert made(config(), sender="") is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, b"message/rfc822"),
        ({"ret": "full"}, b"message/rfc822"),
        ({"ret": "hdrs"}, b"text/rfc822-headers"),
        ({"size": 10**6}, b"text/rfc822-headers"),
    ],
)
def test_a_part_of_a_message_is_never_taken_for_it(
    changes: Mapping[str, object], kind: bytes
) -> None:
    report = made(config(), **changes)
    assert report is not None
    assert b"Content-Type: " + kind in report.content


def test_what_had_to_be_encrypted_is_not_shown() -> None:
    report = made(config(), require_tls=True)
    assert report is not None
    assert b"hello" not in report.content
    assert report.subject == "Undelivered mail"
    assert not report.require_tls


def test_a_report_of_requiretls_mail_has_the_header_and_travels_as_that_did() -> None:
    report = made(config(), require_tls=True, requiretls=True, ret="full")
    assert report is not None
    assert (report.requiretls, report.require_tls) == (True, True)
    assert b"Content-Type: text/rfc822-headers" in report.content
    assert b"message/rfc822" not in report.content
    ordinary = made(config())
    assert ordinary is not None
    assert (ordinary.requiretls, ordinary.require_tls) == (False, False)


@pytest.mark.parametrize("client", [None, {}, {"helo": None}, {"helo": 7}, {"helo": "a b\r\n"}])
def test_who_handed_it_in_is_told_only_by_a_name(client: Mapping[str, object] | None) -> None:
    report = made(config(), client=client)
    assert report is not None
    assert b"Received-From-MTA" not in report.content
    named = made(config(), client={"helo": "[192.0.2.1]"})
    assert named is not None
    assert b"Received-From-MTA: dns; [192.0.2.1]\r\n" in named.content


def test_two_configurations_make_the_same_reports_or_not() -> None:
    assert reporting.same(config(), config())
    assert not reporting.same(config(), config(sender="a@example.org"))
    other = from_tables({"hostname": "other.example.org"}, environ={"HOME": "/nowhere"})
    assert not reporting.same(config(), other)
