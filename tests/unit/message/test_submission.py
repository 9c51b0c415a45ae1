"""Mail that comes in by SMTP: what is added, mended, refused, and what stays octet for octet."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.policy import SMTPUTF8 as POLICY
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import RULES, compose, fingerprint
from mailstrom.message.head import HEAD_LIMIT
from mailstrom.message.leaf import too_long_line
from mailstrom.message.option_headers import NONE
from mailstrom.message.submission import Submitted, Trace, enhanced_code, relayed, submitted
from mailstrom.types import from_ms

NOW = 1_800_000_000_000
TRACE = Trace("mx.example.org", "0190abc", NOW, helo="client.example", peer="192.0.2.1")
ANN, BOB = "ann@a.example", "bob@b.example"
FULL = (
    b"From: Ann <ann@a.example>\r\n"
    b"To: bob@b.example\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <1@a.example>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"\r\n"
    b"Hello\r\n.\r\nFrom here\r\n"
)
OURS = re.compile(rb"Received: (?:[^\r\n]|\r\n\t)*\r\n")


def take(content: bytes, **arguments: Any) -> Submitted:
    return submitted(content, ANN, (BOB,), TRACE, **arguments)


def pass_on(content: bytes, **arguments: Any) -> Submitted:
    return relayed(content, ANN, (BOB,), TRACE, **arguments)


def behind_received(content: bytes) -> bytes:
    match = OURS.match(content)
    assert match is not None, content[:200]
    return content[match.end() :]


def fields(content: bytes) -> dict[str, list[str]]:
    head = behind_received(content).partition(b"\r\n\r\n")[0] + b"\r\n"
    found: dict[str, list[str]] = {}
    for line in head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t").split(b"\r\n")[:-1]:
        name, _, value = line.decode("utf-8", "replace").partition(":")
        found.setdefault(name.strip().lower(), []).append(value.strip())
    return found


def body(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[2]


def full(*lines: bytes) -> bytes:
    """A whole header and these lines in it."""
    return FULL.replace(b"\r\n\r\n", b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


def refused_by_a_rule(error: InvalidMessage) -> None:
    assert error.rule in RULES
    assert enhanced_code(error) == ("5.4.6" if error.rule == "loop" else "5.6.0")


@pytest.mark.parametrize("role", [take, pass_on])
def test_of_a_complete_message_nothing_changes_but_the_received_on_top(role: Any) -> None:
    found = role(FULL)
    assert behind_received(found.content) == FULL
    assert found.content.startswith(
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org with ESMTP id 0190abc\r\n"
        b"\tfor <bob@b.example>;\r\n"
        b"\tFri, 15 Jan 2027 08:00:00 +0000\r\n"
    )
    assert found._replace(content=b"") == Submitted(
        content=b"", message_id="<1@a.example>", subject="Grüße", eightbit=False, smtputf8=False,
        options=found.options, idempotency=None, hops=0,
    )  # fmt: skip
    assert found.options == type(found.options)()


class TestAdded:
    def test_from_date_and_message_id_where_they_are_missing(self) -> None:
        found = take(b"Subject: x\r\n\r\nbody\r\n")
        told = fields(found.content)
        assert told["from"] == [ANN]
        assert told["date"] == ["Fri, 15 Jan 2027 08:00:00 +0000"]
        assert told["message-id"] == [found.message_id]
        assert re.fullmatch(r"<[0-9a-f]{32}\.1800000000000@a\.example>", found.message_id)
        assert behind_received(found.content).endswith(b"Subject: x\r\n\r\nbody\r\n")

    def test_the_null_sender_is_the_mailer_daemon(self) -> None:
        told = fields(submitted(b"\r\nx\r\n", "", (BOB,), TRACE).content)
        assert told["from"] == ["MAILER-DAEMON@mx.example.org"]
        assert told["message-id"][0].endswith("@mx.example.org>")

    @pytest.mark.parametrize("value", ["", "  ", "yesterday", "Mon, 32 Jan 2026 00:00:00 +0000"])
    def test_a_date_that_is_none_is_replaced(self, value: str) -> None:
        told = fields(take(f"Date: {value}\r\nFrom: a@b.example\r\n\r\n".encode()).content)
        assert told["date"] == ["Fri, 15 Jan 2027 08:00:00 +0000"]

    def test_an_obsolete_date_stays(self) -> None:
        told = fields(take(b"Date: 1 Jan 26 10:00 EST\r\n\r\n").content)
        assert told["date"] == ["1 Jan 26 10:00 EST"]

    @pytest.mark.parametrize("value", ["", "x", "<a@b> <c@d>", "<grün@b.example>", "<a b@c>"])
    def test_a_message_id_that_is_none_is_replaced(self, value: str) -> None:
        found = take(f"Message-ID: {value}\r\n\r\n".encode())
        assert fields(found.content)["message-id"] == [found.message_id]
        assert found.message_id.endswith("@a.example>")

    def test_mime_version_where_a_content_header_stands(self) -> None:
        told = fields(take(b"Content-Type: text/html\r\n\r\n<p>\r\n").content)
        assert told["mime-version"] == ["1.0"]
        assert "mime-version" not in fields(take(b"Subject: x\r\n\r\n").content)
        once = fields(take(b"Content-Type: text/html\r\nMime-Version: 1.0\r\n\r\n").content)
        assert once["mime-version"] == ["1.0"]

    def test_resent_from_and_resent_date_for_what_is_resent(self) -> None:
        told = fields(take(full(b"Resent-From: c@c.example", b"Resent-To: d@d.example")).content)
        assert told["resent-date"] == ["Fri, 15 Jan 2027 08:00:00 +0000"]
        assert told["resent-to"] == ["d@d.example"]
        assert told["resent-from"] == ["c@c.example"]
        for line in (b"Resent-To: d@d.example", b"Resent-Bcc: d@d.example"):
            told = fields(take(full(line), name="Ann").content)
            assert told["resent-from"] == ["Ann <ann@a.example>"]
            assert told["from"] == ["Ann <ann@a.example>"]
            assert "resent-date" in told
            assert "resent-bcc" not in told
        assert "resent-from" not in fields(take(full()).content)


class TestRemoved:
    @pytest.mark.parametrize(
        "lines",
        [
            b"Bcc: eve@e.example\r\n",
            b"bCC : eve@e.example\r\n",
            b"Bcc:\r\n eve@e.example,\r\n\tmallory@e.example\r\n",
            b"Bcc: a@e.example\r\n \r\n eve@e.example\r\n",
            b"Resent-Bcc: eve@e.example\r\nBcc: eve@e.example\r\n",
            b"Return-Path: <eve@e.example>\r\n",
            b"Content-Length: 5\r\n",
        ],
    )
    def test_blind_copies_and_what_only_a_mailbox_has(self, lines: bytes) -> None:
        content = b"From: a@a.example\r\n" + lines + b"Subject: x\r\n\r\nbody\r\n"
        told = fields(take(content).content)
        resent = {"resent-from", "resent-date"} if b"Resent" in lines else set()
        assert told.keys() == {"date", "from", "message-id", "subject"} | resent
        assert lines in pass_on(content).content  # a relay leaves what is there

    def test_the_first_line_of_a_mailbox_file(self) -> None:
        for first in (b"From ann@a.example Thu Jan  1 00:00:00 2026\r\n", b">From ann\r\n"):
            for role in (take, pass_on):
                assert behind_received(role(first + FULL).content) == FULL


class TestShapes:
    """Content that is hardly a message."""

    def test_empty(self) -> None:
        found = take(b"")
        assert sorted(fields(found.content)) == ["date", "from", "message-id"]
        assert body(found.content) == b""

    @pytest.mark.parametrize(
        ("content", "head", "text"),
        [
            (b"hello\r\nworld\r\n", b"", b"hello\r\nworld\r\n"),
            (b" indented\r\n", b"", b" indented\r\n"),
            (b"Subject: x\r\nhello\r\n", b"Subject: x\r\n", b"hello\r\n"),
            (b"Subject: x\r\n folded\r\nhello", b"Subject: x\r\n folded\r\n", b"hello\r\n"),
            (b"Subject: x\r\n", b"Subject: x\r\n", b""),
            (b"Subject: x", b"Subject: x\r\n", b""),
            (b"\r\nhello", b"", b"hello\r\n"),
        ],
    )
    def test_what_is_no_field_is_body(self, content: bytes, head: bytes, text: bytes) -> None:
        found = take(content).content
        assert found.endswith(head + b"\r\n" + text)
        assert body(found) == text

    @pytest.mark.parametrize("content", [b"hello\r\n", b" indented\r\n", b"From ann\r\n hello\r\n"])
    def test_a_relay_keeps_what_does_not_begin_with_a_field_apart_from_its_own(
        self, content: bytes
    ) -> None:
        rest = behind_received(pass_on(content).content)
        assert rest in (b"\r\n" + content, b"\r\n hello\r\n")

    def test_blank_folds_are_taken_out(self) -> None:
        found = take(full(b"X-Long: a\r\n \t \r\n b"))
        assert b"X-Long: a\r\n b\r\n" in found.content

    def test_controls_in_headers_are_carried(self) -> None:
        content = full(b"X-Screen: \x1b[2J\x07")
        assert behind_received(take(content).content) == content
        assert take(full().replace(b"Subject: ", b"Subject: a\x1b")).subject == "a Grüße"

    @pytest.mark.parametrize("role", [take, pass_on])
    @pytest.mark.parametrize(
        "content", [b"a\nb", b"Subject: a\nb: c\r\n\r\n", b"a\r\r\n\n", b"a\n"]
    )
    def test_an_lf_alone_is_refused(self, role: Any, content: bytes) -> None:
        with pytest.raises(InvalidMessage) as caught:
            role(content)
        assert caught.value.rule == "line-endings"

    @pytest.mark.parametrize("content", [b"a\rb\r\n", b"a\r\r\n", b"a\r", b"\r\n 10%\r 20%\r\n"])
    def test_a_cr_alone_is_encoded_where_mail_begins(self, content: bytes) -> None:
        found = take(content).content
        text = message_from_bytes(found).get_payload(decode=True)
        whole = content if content.endswith(b"\r\n") else content + b"\r\n"
        assert text == whole.removeprefix(b"\r\n")
        with pytest.raises(InvalidMessage) as caught:
            pass_on(content)
        assert caught.value.rule == "line-endings"
        with pytest.raises(InvalidMessage):
            take(b"DKIM-Signature: v=1\r\n\r\n" + content)

    def test_a_name_for_an_author_who_is_missing(self) -> None:
        assert fields(take(b"\r\n", name="Ann Ä").content)["from"] == [
            "=?utf-8?b?QW5uIMOE?= <ann@a.example>"
        ]
        assert fields(take(b"\r\n", name="Doe, Ann").content)["from"] == [
            '"Doe, Ann" <ann@a.example>'
        ]
        assert fields(take(b"\r\n", name="a\r\nBcc: x").content)["from"] == [ANN]
        assert fields(take(FULL, name="Other").content)["from"] == ["Ann <ann@a.example>"]

    @pytest.mark.parametrize("role", [take, pass_on])
    def test_a_header_beyond_a_mebibyte_is_refused(self, role: Any) -> None:
        content = b"X-A: b\r\n" * (HEAD_LIMIT // 8 + 1) + b"\r\n"
        with pytest.raises(InvalidMessage) as caught:
            role(content)
        assert caught.value.rule == "header-too-large"


class TestTwice:
    def test_lists_of_to_and_cc_become_one(self) -> None:
        found = take(
            b"To: a@a.example\r\nCc: c@c.example\r\nTo:b@b.example\r\nTo: d@d.example\r\n\r\n"
        )
        assert b"\r\nTo: a@a.example,\r\n b@b.example,\r\n d@d.example\r\n" in found.content
        assert fields(found.content)["cc"] == ["c@c.example"]

    def test_the_same_once_more_goes(self) -> None:
        told = fields(
            take(full(b"MIME-version: 1.0", b"MIME-Version: 1.0", b"to: bob@b.example")).content
        )
        assert told["mime-version"] == ["1.0"]
        assert told["to"] == ["bob@b.example"]

    def test_of_dates_and_ids_the_first_counts(self) -> None:
        told = fields(
            take(full(b"Date: 2 Jan 2026 10:00 +0000", b"Message-ID: <2@a.example>")).content
        )
        assert told["date"] == ["Thu, 01 Jan 2026 00:00:00 +0000"]
        assert told["message-id"] == ["<1@a.example>"]

    def test_another_subject_is_carried(self) -> None:
        assert len(fields(take(full(b"Subject: other")).content)["subject"]) == 2

    def test_another_author_is_refused(self) -> None:
        with pytest.raises(InvalidMessage) as caught:
            take(full(b"From: eve@e.example"))
        assert caught.value.rule == "from-duplicate"
        assert pass_on(full(b"From: eve@e.example"))

    def test_as_many_as_a_header_holds_are_merged(self) -> None:
        content = b"".join(b"To:%d@x\r\n" % number for number in range(80_000)) + b"\r\n"
        assert take(content).content.count(b"@x,\r\n ") == 79_999


class TestEightBit:
    def test_utf8_headers_become_encoded_words(self) -> None:
        found = take("Subject: Grüße\r\nFrom: Jürgen <j@x.example>\r\n\r\nü\r\n".encode())
        assert not found.content.partition(b"\r\n\r\n")[0].decode("ascii").count("ü")
        parsed = message_from_bytes(found.content, policy=POLICY)
        assert parsed["subject"] == "Grüße"
        assert parsed["from"].addresses[0].display_name == "Jürgen"
        assert (found.eightbit, found.smtputf8, found.subject) == (True, False, "Grüße")

    def test_a_name_in_a_comment_stays_a_name(self) -> None:
        found = take("From: root (Jürgen Müller)\r\nTo: a@b.example\r\n\r\n".encode())
        author = message_from_bytes(found.content, policy=POLICY)["from"].addresses[0]
        assert (author.display_name, author.addr_spec) == ("Jürgen Müller", "root@mx.example.org")
        assert found.content.isascii()
        odd = "To: a@b.example (ü), c@d.example (ä (ö))".encode()
        assert odd + b"\r\n" in take(odd + b"\r\n\r\n").content

    def test_another_charset_is_that_of_the_text(self) -> None:
        content = (
            b"Subject: Gr\xfc\xdfe\r\nContent-Type: text/plain; charset=ISO-8859-1\r\n\r\nx\r\n"
        )
        found = take(content)
        assert found.subject == "Grüße"
        assert found.content.isascii()

    def test_an_unknown_charset_is_called_so(self) -> None:
        found = take(b"Subject: Gr\xfc\xdfe " + b"\xfc" * 100 + b"\r\n\r\n")
        assert b"=?unknown-8bit?q?Gr=FC=DFe=20" in found.content
        assert found.content.isascii()
        assert max(map(len, found.content.split(b"\r\n"))) <= 78

    def test_with_the_parameter_they_stay(self) -> None:
        content = FULL.replace(b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße".encode())
        found = take(content, smtputf8=True)
        assert behind_received(found.content) == content
        assert (found.eightbit, found.smtputf8) == (True, True)

    def test_the_parameter_alone_makes_no_need(self) -> None:
        assert not take(FULL, smtputf8=True).smtputf8
        assert not pass_on(FULL, smtputf8=True).smtputf8
        assert not take(FULL.replace(b"Hello", "Grüße".encode()), smtputf8=True).smtputf8

    def test_an_address_that_needs_it_needs_it(self) -> None:
        assert take("From: jürgen@x.example\r\n\r\n".encode()).smtputf8
        for role in (submitted, relayed):
            assert role(FULL, ANN, ("jürgen@x.example",), TRACE).smtputf8
            assert role(FULL, "jürgen@x.example", (BOB,), TRACE).smtputf8

    def test_a_relay_asks_for_it_where_it_was_asked(self) -> None:
        content = FULL.replace(b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße".encode())
        assert not pass_on(content).smtputf8
        assert pass_on(content, smtputf8=True).smtputf8
        assert pass_on(content).subject == "Grüße"

    def test_a_file_name_in_utf8_is_carried(self) -> None:
        part = "--q\r\nContent-Disposition: attachment; filename=ü\r\n\r\nx\r\n--q--\r\n".encode()
        content = full(b"MIME-Version: 1.0", b"Content-Type: multipart/mixed; boundary=q") + part
        found = take(content)
        assert behind_received(found.content) == content
        assert (found.eightbit, found.smtputf8) == (True, False)
        assert take(content, smtputf8=True).smtputf8

    def test_what_is_signed_stays(self) -> None:
        content = full("X-A: ü".encode(), b"DKIM-Signature: v=1", b"To: more@b.example")
        assert behind_received(take(content).content) == content

    @pytest.mark.parametrize(
        "lines",
        [
            (b"Cc:",),
            (b"Reply-To: ", b"Sender:"),
            (b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=",),
            (b"To:  bob@b.example",),
            (b"Date: Thu, 01 Jan 2026 00:00:00 +0000", b"Message-ID: <1@a.example>"),
            (b"From: Ann <ann@a.example>",),
        ],
    )
    def test_what_is_signed_stays_though_it_is_empty_or_stands_again(
        self, lines: tuple[bytes, ...]
    ) -> None:
        content = full(b"DKIM-Signature: v=1; h=from:from:to:to:cc:subject:subject", *lines)
        assert behind_received(take(content).content) == content


class TestAddresses:
    @pytest.mark.parametrize(
        ("value", "whole"),
        [
            ("root", "root@mx.example.org"),
            ("root (Cron Daemon)", "root@mx.example.org (Cron Daemon)"),
            ("(a (b) \\)) root", "(a (b) \\)) root@mx.example.org"),
            ("Cron <root>", "Cron <root@mx.example.org>"),
            ("root, bob@b.example", "root@mx.example.org, bob@b.example"),
            ("www-data,a.b", "www-data@mx.example.org,a.b@mx.example.org"),
            (
                "All: root, bob;, ann",
                "All: root@mx.example.org, bob@mx.example.org;, ann@mx.example.org",
            ),
            ('"Doe, J" <j@b.example>', '"Doe, J" <j@b.example>'),
            ("undisclosed-recipients:;", "undisclosed-recipients:;"),
            ("John Smith", "John Smith"),
            ("<>", "<>"),
            ('"quoted"', '"quoted"'),
            ("bob@[IPv6:::1]", "bob@[IPv6:::1]"),
            ("a..b", "a..b"),
            ("bob @ b.example, x", "bob @ b.example, x@mx.example.org"),
        ],
    )
    def test_a_local_part_alone_gets_a_domain(self, value: str, whole: str) -> None:
        for name in ("From", "To", "Reply-To", "Resent-To"):
            assert (
                f"\r\n{name}: {whole}\r\n"
                in take(f"{name}: {value}\r\n\r\n".encode()).content.decode()
            )

    def test_of_the_domain_that_is_told(self) -> None:
        assert fields(take(b"From: root\r\n\r\n", domain="a.example").content)["from"] == [
            "root@a.example"
        ]

    def test_folds_stay(self) -> None:
        assert (
            b"\r\nTo: root@mx.example.org,\r\n\tann@mx.example.org\r\n"
            in take(b"To: root,\r\n\tann\r\n\r\n").content
        )

    @given(st.text(alphabet='ab@.,;:<>()"\\ [', max_size=30))
    def test_no_octet_is_lost(self, value: str) -> None:
        told = take(f"To: x{value}\r\n\r\n".encode()).content
        line = re.search(rb"\r\nTo: ([^\r\n]*)\r\n", told)
        assert line is not None
        assert line[1].replace(b"@mx.example.org", b"").decode() == f"x{value}".rstrip() + (
            " " * (len(value) - len(value.rstrip(" ")))
        )


class TestLongLines:
    def test_html_on_one_line_is_quoted_printable(self) -> None:
        text = b"<p>" * 1000 + b"\r\nend\r\n"
        found = take(b"Content-Type: text/html\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + text)
        assert fields(found.content)["content-transfer-encoding"] == ["quoted-printable"]
        assert message_from_bytes(found.content).get_payload(decode=True) == text

    def test_plain_text_without_a_type_too(self) -> None:
        found = take(b"Subject: x\r\n\r\n" + b"word " * 300 + b"\r\n")
        told = fields(found.content)
        assert (told["mime-version"], told["content-transfer-encoding"]) == (
            ["1.0"],
            ["quoted-printable"],
        )

    def test_cron_output_with_nul_arrives(self) -> None:
        found = take(b"Subject: Cron\r\n\r\na\0b\r\n")
        assert message_from_bytes(found.content).get_payload(decode=True) == b"a\0b\r\n"

    def test_base64_on_one_line_is_wrapped(self) -> None:
        found = take(
            b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 500
        )
        assert message_from_bytes(found.content).get_payload(decode=True) == b"ABC" * 500
        assert too_long_line(found.content) is None

    def test_a_part_alone_is_written_anew(self) -> None:
        good = b"Content-Type: text/plain\r\n\r\nshort line \r\n"
        content = (
            b"Content-Type: multipart/mixed; boundary=q\r\n\r\npreamble\r\n--q\r\n" + good
            + b"--q\r\nContent-Type: multipart/alternative; boundary=r\r\n\r\n--r\r\n\r\n"
            + b"y" * 2000 + b"\r\n--r--\r\n\r\n--q--\r\nepilogue\r\n"
        )  # fmt: skip
        found = take(content).content
        assert good in found
        assert b"preamble" in found
        assert found.endswith(b"--r--\r\n\r\n--q--\r\nepilogue\r\n")
        inner = message_from_bytes(found).get_payload(1).get_payload(0)  # type: ignore[union-attr]
        assert inner.get_payload(decode=True) == b"y" * 2000  # type: ignore[union-attr]

    def test_a_nested_message_is_opened(self) -> None:
        found = take(
            b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\n" + b"z" * 1500 + b"\r\n"
        )
        assert too_long_line(found.content) is None
        assert b"Subject: x\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" in found.content

    @pytest.mark.parametrize(
        "head",
        [
            b"DKIM-Signature: v=1\r\n",
            b"Content-Type: multipart/signed; boundary=q\r\n",
            b"Content-Type: multipart/mixed\r\n",
            b"Content-Type: multipart/mixed; boundary=q\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"Content-Transfer-Encoding: x-own\r\n",
            b"X-Token: " + b"x" * 1000 + b"@\r\nReferences: " + b"x" * 1000 + b"\r\n",
        ],
    )
    def test_refused_where_nothing_can_be_done(self, head: bytes) -> None:
        with pytest.raises(InvalidMessage) as caught:
            take(head + b"\r\n" + b"=" * 1000 + b"\r\n")
        assert caught.value.rule == "line-too-long"
        assert enhanced_code(caught.value) == "5.6.0"

    def test_header_lines_are_folded(self) -> None:
        to = b",".join(b"user%d@b.example" % number for number in range(300))
        found = take(b"To: " + to + b"\r\nReferences: " + b" <a@b.example>" * 100 + b"\r\n\r\n")
        assert too_long_line(found.content) is None
        told = fields(found.content)
        assert told["to"][0].replace(" ", "") == to.decode()
        assert told["references"][0].split() == ["<a@b.example>"] * 100

    @pytest.mark.parametrize(
        "content", [b"\r\n" + b"x" * 999, b"X: " + b"x" * 996 + b"\r\n\r\n", b"\r\n\0"]
    )
    def test_a_relay_refuses_what_it_cannot_carry(self, content: bytes) -> None:
        with pytest.raises(InvalidMessage) as caught:
            pass_on(content)
        assert caught.value.rule in ("line-too-long", "nul")

    def test_998_octets_are_no_matter(self) -> None:
        content = FULL + b"x" * 998 + b"\r\n"
        assert behind_received(take(content).content) == content
        assert behind_received(pass_on(content).content) == content


ANYTHING = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"\r\n", b"\r\n\r\n", b"\r\n ", b": ", b"From: ", b"From ", b"To: a@b.ex, root",
                b"Bcc: eve@e.example", b"Subject: ", b"=?utf-8?q?=0D=0Ax?=", b"\xc3\xbc", b"\xfc",
                b"Content-Type: multipart/mixed; boundary=q", b"--q", b"--q--", b"\0", b"x" * 1000,
                b"Content-Transfer-Encoding: base64", b"X-Mailstrom-Tags: a", b"Received: by x",
                b"X-Mailstrom-Metadata: {}", b"Message-ID: <a@b>", b"Date: now", b"<", b"(", b'"',
                b"DKIM-Signature: v=1", b"Content-Type: text/plain; charset=", b"utf-16",
            ]
        ),
    ),
    max_size=30,
).map(b"".join)  # fmt: skip


class TestAnything:
    @given(ANYTHING, st.booleans())
    def test_is_taken_or_refused_by_a_rule(self, content: bytes, smtputf8: bool) -> None:
        content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        try:
            found = take(content, smtputf8=smtputf8)
        except InvalidMessage as error:
            refused_by_a_rule(error)
            return
        whole = found.content
        assert whole.count(b"\r\n") == whole.count(b"\r") == whole.count(b"\n")
        assert whole.endswith(b"\r\n")
        assert too_long_line(whole) is None
        assert b"\0" not in whole
        assert found.eightbit is not whole.isascii()
        told = fields(whole)
        assert len(told["from"]) == len(told["date"]) == 1
        assert not {"bcc", "return-path"} & told.keys()
        assert not [name for name in told if name.startswith("x-mailstrom-")]
        assert found.subject.isprintable()
        # Our own reader finds no more in it, and a second pass changes nothing but what it adds.
        again = take(behind_received(whole), smtputf8=smtputf8)
        assert behind_received(again.content) == behind_received(whole)

    @given(ANYTHING)
    def test_is_relayed_as_it_is_or_refused_by_a_rule(self, content: bytes) -> None:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"").replace(b"\n", b"\r\n")
        try:
            found = pass_on(content)
        except InvalidMessage as error:
            refused_by_a_rule(error)
            return
        rest = behind_received(found.content)
        whole = content if content.endswith(b"\r\n") else content + b"\r\n"
        if whole.startswith((b"From ", b">From ")) and not re.match(rb">?From +:", whole):
            whole = whole.partition(b"\r\n")[2]
        assert rest in (whole, b"\r\n" + whole)

    @given(st.binary(max_size=300))
    def test_a_body_stays_octet_for_octet(self, text: bytes) -> None:
        text = text.replace(b"\r", b"").replace(b"\n", b"\r\n").replace(b"\0", b"0") + b"\r\n"
        for role in (take, pass_on):
            assert role(FULL + text).content.endswith(FULL + text)


def test_options_below_a_received_are_a_strangers_and_go_unread() -> None:
    by_the_way = b"Received: by other.example; Thu, 1 Jan 2026 00:00:00 +0000\r\n"
    asked = b"X-Mailstrom-Stream: news\r\nX-Mailstrom-Nonsense: x\r\n"
    found = take(by_the_way + asked + FULL)
    assert found.options == NONE
    assert behind_received(found.content) == by_the_way + FULL
    found = take(b"X-Mailstrom-Tags: a\r\n" + by_the_way + asked + FULL)
    assert found.options == NONE._replace(tags=("a",))
    assert behind_received(found.content) == by_the_way + FULL
    carried = pass_on(asked + by_the_way + FULL)
    assert carried.options == NONE
    assert behind_received(carried.content) == asked + by_the_way + FULL


class TestOfTheSameMail:
    def test_the_hash_is_that_of_the_library(self) -> None:
        now = from_ms(NOW)
        assert now is not None
        ours = take(b"X-Mailstrom-Idempotency-Key: order-7\r\n" + FULL)
        key, found = ours.idempotency or ("", b"")
        assert key == "order-7"
        assert found == fingerprint(compose(FULL, now=now, id_domain_fallback="x.example"))

    def test_it_does_not_depend_on_what_is_added(self) -> None:
        content = b"X-Mailstrom-Idempotency-Key: k\r\nSubject: x\r\n\r\nbody\r\n"
        one = take(content)
        two = submitted(content, ANN, (BOB,), TRACE._replace(id="2", now_ms=NOW + 9000, peer=""))
        assert one.message_id != two.message_id
        assert one.idempotency == two.idempotency
        other = take(content.replace(b"body", b"other"))
        assert other.idempotency != one.idempotency


def test_a_line_that_completing_would_make_too_long_is_folded_or_stays() -> None:
    names = b",".join(b"user%02d" % number for number in range(140))
    found = take(b"To: " + names + b"\r\n\r\n")
    assert too_long_line(found.content) is None
    assert found.content.count(b"@mx.example.org") == 140
    odd = b"To: root, <a@b> c" + b"," * 970
    assert odd in take(odd + b"\r\n\r\n").content


def test_a_field_that_begins_like_a_signature_is_none() -> None:
    told = fields(take(b"DKIM-Signatures: x\r\nTo: a@b.example\r\nTo: c@d.example\r\n\r\n").content)
    assert told["to"] == ["a@b.example, c@d.example"]
