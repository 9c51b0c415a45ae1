"""Delivery reports: read back by the standard library's parser and by our strict one."""

from __future__ import annotations

import binascii
from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest

from mailstrom.errors import InvalidAddress
from mailstrom.message import parse
from mailstrom.message.report import Report, render_report
from mailstrom.message.report_facts import Fate, Original
from mailstrom.message.report_status import STATUSES, status_of
from mailstrom.message.report_text import MOST_NAMED, MOST_STORIES
from mailstrom.types import Reason

NOW = 1795370000000
HEADER = (
    b"From: Anna <anna@app.example>\r\nTo: bob@example.com\r\nSubject: Invoice\r\n"
    b"Message-ID: <abc@app.example>\r\n\r\n"
)
WHOLE = HEADER + b"Hello\r\n"
ORIGINAL = Original(
    id="0192f0c1-2345-7abc-8def-0123456789ab",
    sender="anna@app.example",
    message_id="<abc@app.example>",
    arrived_ms=NOW - 3_600_000,
    content=WHOLE,
    whole=True,
)
REFUSED = Fate(
    address="bob@example.com",
    action="failed",
    reason="bounced",
    host="mx1.example.com",
    reply_code=550,
    enhanced_code="5.1.1",
    reply_text="no such user",
    tried_ms=NOW - 5000,
    until_ms=NOW + 86_400_000,
)


def rendered(original: Original = ORIGINAL, *fates: Fate) -> Report:
    return render_report(
        original,
        fates or (REFUSED,),
        hostname="mail.app.example",
        author="mailer-daemon@mail.app.example",
        now_ms=NOW,
    )


def parts(report: Report) -> list[Message[Any, Any]]:
    whole = message_from_bytes(report.content)
    assert whole.get_content_type() == "multipart/report"
    found = whole.get_payload()
    assert isinstance(found, list)
    assert whole.defects == []
    assert f"message/{whole.get_param('report-type')}" == found[1].get_content_type()  # RFC 6522
    return found


def blocks(report: Report) -> list[dict[str, str]]:
    """The blocks of the second part: for the message, then for each recipient."""
    part = parts(report)[1]
    found = part.get_payload()
    assert isinstance(found, list)
    for block in found:
        assert len(set(map(str.lower, block.keys()))) == len(block.keys())
    return [{k: v.replace("\r\n", "") for k, v in block.items()} for block in found]


def text_of(report: Report) -> str:
    part = parts(report)[0]
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return " ".join(octets.decode("utf-8").split())


def of_third(report: Report) -> tuple[str, bytes]:
    """Type and octets of the third part, its transfer encoding taken away."""
    boundary = message_from_bytes(report.content).get_boundary()
    assert boundary is not None
    raw = report.content.split(b"\r\n--" + boundary.encode())[3][2:]
    head, _, body = raw.partition(b"\r\n\r\n")
    described = message_from_bytes(head + b"\r\n\r\n")
    described.set_payload(body.decode("latin-1"))
    match described["Content-Transfer-Encoding"]:
        case "quoted-printable":
            body = binascii.a2b_qp(body)
        case "base64":
            body = binascii.a2b_base64(body)
    return described.get_content_type(), body


# --- a plain one --------------------------------------------------------------------------------


def test_a_refused_recipient_is_told_to_a_person_and_to_a_program() -> None:
    report = rendered()
    whole = message_from_bytes(report.content)
    assert whole["From"] == "Mail Delivery System <mailer-daemon@mail.app.example>"
    assert whole["To"] == "anna@app.example"
    assert whole["Subject"] == report.subject == "Undelivered mail: Invoice"
    assert whole["Auto-Submitted"] == "auto-replied"
    assert whole["In-Reply-To"] == whole["References"] == "<abc@app.example>"
    assert whole["Message-ID"] == report.message_id
    assert whole["Date"] == "Sun, 22 Nov 2026 17:53:20 +0000"
    assert (report.eightbit, report.smtputf8) == (False, False)
    parse(report.content)  # by the letter of the standards

    text = text_of(report)
    assert "could not be delivered to one recipient" in text
    assert "mx1.example.com refused it in these words: 550 5.1.1 no such user" in text
    assert "Check the address" in text
    assert "Subject: Invoice" in text
    message, recipient = blocks(report)
    assert message == {
        "Reporting-MTA": "dns; mail.app.example",
        "Arrival-Date": "Sun, 22 Nov 2026 16:53:20 +0000",
        "X-Mailstrom-Id": ORIGINAL.id,
    }
    assert recipient == {
        "Final-Recipient": "rfc822; bob@example.com",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx1.example.com",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
        "Last-Attempt-Date": "Sun, 22 Nov 2026 17:53:15 +0000",
    }
    assert of_third(report) == ("message/rfc822", WHOLE)


def test_what_the_sender_said_of_it_is_given_back() -> None:
    original = ORIGINAL._replace(envelope_id="job 17", came_from="client.example")
    message, recipient = blocks(rendered(original, REFUSED._replace(original="rfc822;b@x.example")))
    assert message["Original-Envelope-Id"] == "job 17"
    assert message["Received-From-MTA"] == "dns; client.example"
    assert recipient["Original-Recipient"] == "rfc822; b@x.example"


def test_a_delay_says_until_when_and_returns_the_header_alone() -> None:
    delayed = REFUSED._replace(
        action="delayed", reason="remote", reply_code=451, enhanced_code="4.3.2", reply_text="later"
    )
    report = rendered(ORIGINAL, delayed)
    assert report.subject == "Delayed mail (still being tried): Invoice"
    [_, recipient] = blocks(report)
    assert (recipient["Action"], recipient["Status"]) == ("delayed", "4.3.2")
    assert recipient["Will-Retry-Until"] == "Mon, 23 Nov 2026 17:53:20 +0000"
    assert "It is tried until 2026-11-23 17:53 UTC." in text_of(report)
    assert of_third(report) == ("text/rfc822-headers", HEADER[:-2])


def test_what_was_never_tried_is_not_said_to_have_been() -> None:
    untried = Fate("b@example.com", "failed", reason="expired", until_ms=NOW)
    report = rendered(ORIGINAL, untried)
    assert "It waited here since 2026-11-22 16:53 UTC, and could not be tried" in text_of(report)
    [_, recipient] = blocks(report)
    assert (recipient["Status"], "Last-Attempt-Date" in recipient) == ("4.4.7", False)
    report = rendered(ORIGINAL, untried._replace(action="delayed", reason=None))
    assert "It was not tried yet. It is tried until 2026-11-22 17:53 UTC." in text_of(report)


def test_a_relayed_message_is_told_of_with_its_header() -> None:
    relayed = REFUSED._replace(
        action="relayed", reason=None, reply_code=250, enhanced_code="2.0.0", reply_text="queued"
    )
    report = rendered(ORIGINAL, relayed)
    [_, recipient] = blocks(report)
    assert (recipient["Action"], recipient["Status"]) == ("relayed", "2.0.0")
    assert report.subject.startswith("Delivered to the next server")
    assert of_third(report)[0] == "text/rfc822-headers"


def test_a_sentence_of_ours_is_not_given_out_as_a_servers_reply() -> None:
    gone = Fate("eve@gone.example", "failed", None, "no_domain", "mx.gone.example", None, "5.1.2",
                "the domain does not exist", NOW)  # fmt: skip
    report = rendered(ORIGINAL, gone)
    [_, recipient] = blocks(report)
    assert recipient["Diagnostic-Code"] == "X-Mailstrom; the domain does not exist"
    assert "Remote-MTA" not in recipient
    assert "There is no mail domain gone.example." in text_of(report)


def test_a_refused_address_literal_is_not_called_a_domain() -> None:
    words = "the address 127.0.0.1 is no destination"
    fate = Fate("b@[127.0.0.1]", "failed", None, "no_domain", None, None, "5.1.2", words, NOW)
    text = text_of(rendered(ORIGINAL, fate))
    assert f"It cannot be sent there: {words}" in text
    assert "There is no mail domain" not in text


@pytest.mark.parametrize("reason", [*Reason, None])
@pytest.mark.parametrize("code", [None, 550])
@pytest.mark.parametrize("action", ["failed", "delayed", "relayed", "delivered"])
def test_every_reason_has_its_words(action: str, code: int | None, reason: Reason | None) -> None:
    fate = REFUSED._replace(action=action, reason=reason, reply_code=code, enhanced_code=None)
    report = rendered(ORIGINAL, fate, fate._replace(host=None, reply_text=None, tried_ms=None))
    text = text_of(report)
    assert "None" not in text
    assert "<bob@example.com>" in text
    assert "{" not in text
    assert len(blocks(report)) == 3
    parse(report.content)


@pytest.mark.parametrize(
    ("message_id", "kept"),
    [
        ("<a.b+c@x.example>", True),
        ("<a@[192.0.2.1]>", True),
        ("<a@b>", True),
        ("", False),
        ("no id", False),
        ("<a@b> <c@d>", False),
        ("<a..b@c.example>", False),
        ("<a@b.:c>", False),
        ("<a@b>\r\nBcc: <eve@example.com>", False),
        ("<ä@b>", False),
        (f"<{'a' * 950}@b>", False),
    ],
)
def test_only_a_message_id_is_referred_to(message_id: str, kept: bool) -> None:
    report = rendered(ORIGINAL._replace(message_id=message_id))
    whole = message_from_bytes(report.content)
    assert (whole["In-Reply-To"], whole["References"]) == (
        (message_id,) * 2 if kept else (None,) * 2
    )
    parse(report.content)


# --- status -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "reason", "enhanced", "status"),
    [
        ("failed", "bounced", "5.7.1", "5.7.1"),
        ("failed", "bounced", None, "5.0.0"),
        ("failed", "bounced", "4.2.2", "5.0.0"),
        ("failed", "bounced", "2.1.5", "5.0.0"),
        ("failed", "bounced", "5.1.1\r\nAction: delivered", "5.0.0"),
        ("failed", "bounced", "5.1.", "5.0.0"),
        # given up after too long: what kept it, or that it took too long; never a 5
        ("failed", "expired", "4.4.1", "4.4.1"),
        ("failed", "expired", None, "4.4.7"),
        ("failed", "expired", "5.7.1", "4.7.1"),
        ("failed", "expired", "2.0.0", "4.4.7"),
        ("failed", "null_mx", None, "5.1.10"),
        ("failed", "no_domain", None, "5.1.2"),
        ("failed", "loop", None, "5.4.6"),
        ("failed", "policy", None, "5.7.1"),
        ("failed", "too_large", None, "5.3.4"),
        ("failed", "unsupported", "5.6.7", "5.6.7"),
        ("failed", "damaged", None, "5.3.0"),
        ("failed", "in_doubt", None, "5.4.2"),
        ("failed", None, None, "5.0.0"),
        ("delayed", "dns", None, "4.4.3"),
        ("delayed", "connect", None, "4.4.1"),
        ("delayed", "tls", None, "4.7.10"),
        ("delayed", "remote", "5.7.1", "4.7.1"),
        ("delayed", "remote", None, "4.0.0"),
        ("delayed", "in_doubt", None, "4.0.0"),
        ("relayed", None, "2.1.5", "2.1.5"),
        ("relayed", None, None, "2.0.0"),
        ("delivered", None, "5.0.0", "2.0.0"),
    ],
)
def test_the_status_fits_the_action(
    action: str, reason: str | None, enhanced: str | None, status: str
) -> None:
    fate = Fate("b@example.com", action, None, reason, None, None, enhanced)
    assert status_of(fate) == status


def test_every_reason_that_fails_or_defers_has_a_status() -> None:
    assert set(Reason) - set(STATUSES) == {Reason.USER, Reason.POISON}  # held: nothing to report


# --- the same report twice ----------------------------------------------------------------------


def test_the_same_facts_make_the_same_report_and_others_another() -> None:
    other = REFUSED._replace(address="carl@example.com")
    assert rendered() == rendered()
    assert rendered(ORIGINAL, REFUSED, other).content.count(b"Final-Recipient") == 2
    ids = {
        rendered(original, *fates).message_id
        for original in (ORIGINAL, ORIGINAL._replace(id="other"))
        for fates in (
            (REFUSED,),
            (other,),
            (REFUSED, other),
            (REFUSED._replace(action="delayed"),),
            (REFUSED._replace(tried_ms=NOW),),  # sent again by a person, failed again
        )
    }
    assert len(ids) == 10
    late = REFUSED._replace(action="delayed", tried_ms=None)
    assert rendered(ORIGINAL, late) == rendered(ORIGINAL, late)
    earlier = ORIGINAL._replace(
        arrived_ms=ORIGINAL.arrived_ms - 3_600_000
    )  # an hour later, that is
    assert rendered(ORIGINAL, late).message_id != rendered(earlier, late).message_id
    swapped = rendered(ORIGINAL, other, REFUSED).message_id
    assert swapped == rendered(ORIGINAL, REFUSED, other).message_id


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        render_report(ORIGINAL, [], hostname="h.example", author="a@h.example", now_ms=NOW)
    with pytest.raises(ValueError, match="no action"):
        rendered(ORIGINAL, REFUSED, REFUSED._replace(action="exploded"))
    with pytest.raises(InvalidAddress):
        rendered(ORIGINAL._replace(sender="a@b\r\nBcc: c@d.example"))


# --- what is returned ---------------------------------------------------------------------------


def test_a_boundary_that_stands_in_the_original_is_not_used() -> None:
    boundary = message_from_bytes(rendered().content).get_boundary()
    assert boundary is not None
    evil = HEADER + f"\r\n--{boundary}--\r\n\r\n--{boundary}\r\n".encode()
    report = rendered(ORIGINAL._replace(content=evil))
    assert message_from_bytes(report.content).get_boundary() != boundary
    assert len(parts(report)) == 3
    assert of_third(report) == ("message/rfc822", evil)


def test_a_header_that_was_handed_over_is_not_given_out_as_the_message() -> None:
    report = rendered(ORIGINAL._replace(content=HEADER, whole=False))
    assert of_third(report) == ("text/rfc822-headers", HEADER[:-2])


def test_nothing_is_returned_where_nothing_is_left() -> None:
    report = rendered(ORIGINAL._replace(content=b"", whole=False))
    assert [part.get_content_type() for part in parts(report)] == [
        "text/plain", "message/delivery-status"
    ]  # fmt: skip
    assert report.subject == "Undelivered mail"


def test_of_a_message_that_had_to_be_encrypted_nothing_is_shown() -> None:
    report = rendered(ORIGINAL._replace(redacted=True))
    assert len(parts(report)) == 2
    assert b"Invoice" not in report.content
    assert b"Hello" not in report.content


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        ("Grüße\r\n".encode("latin-1"), "quoted-printable"),
        ("Grüße = Gruss \t\r\n.\r\n".encode(), "quoted-printable"),
        ("Добрый день, счёт во вложении.\r\n".encode() * 20, "base64"),
        (bytes(range(0x80, 0x100)) * 4 + b"\r\n", "base64"),
    ],
)
def test_an_eight_bit_original_is_returned_octet_by_octet_by_any_way(
    body: bytes, encoding: str
) -> None:
    report = rendered(ORIGINAL._replace(content=HEADER + body))
    assert report.content.isascii()
    assert (report.eightbit, report.smtputf8) == (False, False)
    third = parts(report)[2]
    assert (third.get_content_type(), third["Content-Transfer-Encoding"]) == (
        "message/global", encoding
    )  # fmt: skip
    assert of_third(report) == ("message/global", HEADER + body)
    assert message_from_bytes(report.content)["Content-Transfer-Encoding"] is None
    parse(report.content)


def test_where_the_way_back_has_smtputf8_eight_bits_stay() -> None:
    latin = HEADER + "Grüße\r\n".encode("latin-1")
    report = rendered(ORIGINAL._replace(sender="άννα@app.example", content=latin))
    assert (report.eightbit, report.smtputf8) == (True, True)
    assert of_third(report) == ("message/rfc822", latin)
    assert message_from_bytes(report.content)["Content-Transfer-Encoding"] == "8bit"


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"a\rb\r\n",
        HEADER + b"a\nb\r\n",
        HEADER + b"a\0b\r\n",
        HEADER + b"x" * 1000 + b"\r\n",
    ],
)
def test_a_content_that_no_part_may_hold_is_not_returned_whole(content: bytes) -> None:
    report = rendered(ORIGINAL._replace(content=content))
    assert of_third(report) == ("text/rfc822-headers", HEADER[:-2])
    parse(report.content)


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"\0", b"a" * 1200, b"\r"])
def test_a_header_that_is_none_is_returned_encoded(junk: bytes) -> None:
    header = b"Subject: " + junk + b"\r\nFrom: a@app.example\r\n"
    report = rendered(ORIGINAL._replace(content=header + b"\r\nbody\r\n"))
    assert of_third(report) == ("text/rfc822-headers", header)
    assert report.content.isascii()
    parse(report.content)


def test_a_very_long_header_is_returned_in_part() -> None:
    header = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 500) for n in range(1000))
    report = rendered(ORIGINAL._replace(content=header + b"\r\n", whole=False))
    kind, octets = of_third(report)
    assert kind == "text/rfc822-headers"
    assert octets.endswith(b"y\r\n")
    assert header.startswith(octets)
    assert 60_000 < len(octets) < 70_000


# --- UTF-8 --------------------------------------------------------------------------------------

GREEK = "χρήστης@παράδειγμα.example"
UTF8_HEADER = (
    "From: Anna <anna@app.example>\r\nSubject: Grüße 漢字\r\nMessage-ID: <u@x.example>\r\n\r\n"
).encode()
UTF8_FATE = REFUSED._replace(
    address="χρήστης@xn--hxajbheg2az3al.example",
    original="utf-8;χρήστης+1@παράδειγμα.example",
    reply_text="άγνωστος",
)


def test_where_only_ascii_is_certain_to_pass_the_ascii_forms_are_taken() -> None:
    report = rendered(ORIGINAL._replace(content=UTF8_HEADER + "ß\r\n".encode()), UTF8_FATE)
    assert report.content.isascii()
    assert (report.eightbit, report.smtputf8) == (False, False)
    [_, recipient] = blocks(report)
    local = "".join(f"\\x{{{ord(one):X}}}" for one in "χρήστης")
    assert recipient["Final-Recipient"] == f"utf-8; {local}@xn--hxajbheg2az3al.example"
    assert recipient["Original-Recipient"].startswith(f"utf-8; {local}\\x{{2B}}1@")
    assert "\\x{3AC}" in recipient["Diagnostic-Code"]
    assert of_third(report) == ("message/global", UTF8_HEADER + "ß\r\n".encode())
    assert "άγνωστος" in text_of(report)
    assert "Subject: Grüße 漢字" in text_of(report)
    assert report.subject == "Undelivered mail: Grüße 漢字"


def test_where_the_sender_needs_smtputf8_the_utf8_forms_are_taken() -> None:
    original = ORIGINAL._replace(sender="άννα@app.example", content=UTF8_HEADER + b"x\r\n")
    report = rendered(original, UTF8_FATE)
    assert (report.eightbit, report.smtputf8) == (True, True)
    types = [part.get_content_type() for part in parts(report)]
    assert types == ["text/plain", "message/global-delivery-status", "message/global"]
    status = report.content.partition(b"Content-Description: Delivery report")[2].decode()
    assert "Final-Recipient: utf-8; χρήστης@xn--hxajbheg2az3al.example\r\n" in status
    assert "Original-Recipient: utf-8; χρήστης+1@παράδειγμα.example\r\n" in status
    assert "Diagnostic-Code: smtp; 550 5.1.1 άγνωστος\r\n" in status
    assert of_third(report) == ("message/global", UTF8_HEADER + b"x\r\n")
    parse(report.content)


@pytest.mark.parametrize("sender", ["anna@app.example", "άννα@app.example"])
def test_a_utf8_header_alone_is_returned_as_one(sender: str) -> None:
    original = ORIGINAL._replace(sender=sender, content=UTF8_HEADER, whole=False)
    report = rendered(original)
    assert of_third(report) == ("message/global-headers", UTF8_HEADER[:-2])
    assert report.content.isascii() is (sender == "anna@app.example")


def test_an_ascii_message_of_a_utf8_sender_keeps_the_plain_types() -> None:
    report = rendered(ORIGINAL._replace(sender="άννα@app.example"))
    types = [part.get_content_type() for part in parts(report)]
    assert types == ["text/plain", "message/delivery-status", "message/rfc822"]
    assert report.smtputf8


# --- very many ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alike", [True, False])
def test_of_very_many_the_text_names_some_and_the_status_all(alike: bool) -> None:
    fates = [
        REFUSED._replace(
            address=f"user{n}@example.com",
            reply_text="no such user" if alike else f"no such user as {n} " + "x " * 400,
        )
        for n in range(1000)
    ]
    report = rendered(ORIGINAL, *fates)
    assert len(blocks(report)) == 1001
    text = text_of(report)
    assert "could not be delivered to 1,000 recipients" in text
    named = text.count("<user")
    assert named == (MOST_NAMED if alike else MOST_STORIES)
    assert f"{1000 - named} more" in text
    assert len(text) < 40_000
    assert len(report.content) < 1_000_000


def test_one_long_reply_is_cut_and_folded() -> None:
    report = rendered(ORIGINAL, REFUSED._replace(reply_text="x" * 60_000 + " " + "ab " * 60_000))
    assert max(map(len, report.content.split(b"\r\n"))) <= 998
    [_, recipient] = blocks(report)
    assert recipient["Diagnostic-Code"].endswith("...")
    assert len(report.content) < 10_000
