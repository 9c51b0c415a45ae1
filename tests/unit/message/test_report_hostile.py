"""Whatever stands in the facts of a report, its shape is the same; and nothing is forged."""

from __future__ import annotations

import os
import re
from email import message_from_bytes
from email.message import Message
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom.message import parse
from mailstrom.message.report import Report, render_report
from mailstrom.message.report_facts import ACTIONS, Fate, Original
from mailstrom.printable import printable

EXAMPLES = int(os.environ.get("MAILSTROM_PROPERTY_EXAMPLES", "0"))
LONG = pytest.mark.timeout(max(120, EXAMPLES // 4))

NASTY = (
    "\r\n", "\n", "\r", "\0", "\r\n\r\n", "\r\n--", "--\r\n", "\r\nAction: delivered\r\n", ":", ";",
    "=?utf-8?q?a=0D=0AStatus:_2.0.0?=", "=?", "?=", "\r\nBcc: eve@example.com", "<", ">", "\\",
    "Content-Type: text/html\r\n\r\n", "\x1b[2J", "\u202e", "\u2028", "\x85", "\ud800", "é", "漢字",
    "😀", "\"",
    "=_", "rfc822;", "utf-8;", " ", "  ", "\t", "x" * 300, "5.1.1", "%s", "{whom}", "(", ")",
)  # fmt: skip
WILD = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8)), max_size=12).map("".join)
MAYBE = st.none() | WILD
MS = st.none() | st.integers(min_value=0, max_value=4_000_000_000_000)
OCTETS = st.lists(
    st.one_of(
        st.sampled_from([one.encode("utf-8", "surrogatepass") for one in NASTY]),
        st.sampled_from([b"Subject: ", b"From: a@b.example\r\n", b"\xff", b"\x80", b"y" * 1100]),
        st.binary(max_size=10),
    ),
    max_size=14,
).map(b"".join)

FATES = st.builds(
    Fate,
    address=WILD,
    action=st.sampled_from(ACTIONS),
    original=MAYBE,
    reason=MAYBE | st.sampled_from(["bounced", "expired", "too_large", "no_domain", "in_doubt"]),
    host=MAYBE,
    reply_code=st.none() | st.integers(200, 599),
    enhanced_code=MAYBE | st.sampled_from(["5.1.1", "4.2.0", "2.0.0"]),
    reply_text=MAYBE,
    tried_ms=MS,
    until_ms=MS,
)
ORIGINALS = st.builds(
    Original,
    id=WILD,
    sender=st.sampled_from(["anna@app.example", '"a \\"b"@app.example', "άννα@app.example"]),
    message_id=WILD | st.just("<a@b.example>"),
    envelope_id=MAYBE,
    arrived_ms=st.integers(min_value=0, max_value=4_000_000_000_000),
    content=OCTETS,
    whole=st.booleans(),
    came_from=MAYBE,
    redacted=st.booleans(),
)

FIELDS = [
    "Date", "From", "To", "Subject", "Message-ID", "In-Reply-To", "References", "Auto-Submitted",
    "MIME-Version", "Content-Type",
]  # fmt: skip
OF_MESSAGE = [
    "Reporting-MTA", "Original-Envelope-Id", "Received-From-MTA", "Arrival-Date", "X-Mailstrom-Id",
]  # fmt: skip
OF_RECIPIENT = [
    "Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code",
    "Last-Attempt-Date", "Will-Retry-Until",
]  # fmt: skip
THIRD = {
    "message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"
}  # fmt: skip


def in_order(names: list[str], allowed: list[str]) -> bool:
    """Each at most once, none that is not allowed, in this order."""
    return [name for name in allowed if name in names] == names


def pieces(report: Report) -> list[bytes]:
    """The body parts, cut as RFC 2046 section 5.1.1 says."""
    boundary = message_from_bytes(report.content).get_boundary()
    assert boundary is not None
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary.encode()) + rb"(--)?[ \t]*(?=\r\n)")
    found = list(delimiter.finditer(report.content))
    assert [one[1] for one in found] == [None] * (len(found) - 1) + [b"--"]
    assert report.content[found[-1].end() :] == b"\r\n"
    return [report.content[one.end() + 2 : after.start()] for one, after in pairwise(found)]


def fields(octets: bytes) -> list[tuple[str, str]]:
    """Header fields of a block, unfolded; nothing in it is anything else."""
    found: list[tuple[str, str]] = []
    for line in re.sub(rb"\r\n(?=[ \t])", b"", octets).split(b"\r\n")[:-1]:
        name, mark, value = line.partition(b":")
        assert mark
        assert value[:1] == b" "
        found.append((name.decode("ascii"), value[1:].decode("utf-8")))
    return found


@LONG
@settings(max_examples=EXAMPLES or 400, deadline=None)
@given(ORIGINALS, st.lists(FATES, min_size=1, max_size=3), st.integers(0, 4_000_000_000_000))
def test_nothing_that_is_told_changes_the_shape(
    original: Original, fates: list[Fate], now_ms: int
) -> None:
    report = render_report(
        original, fates, hostname="mail.app.example", author="md@mail.app.example", now_ms=now_ms
    )
    octets = report.content
    parse(octets)  # strict: line ends, controls, lengths, grammar of each field
    whole: Message[Any, Any] = message_from_bytes(octets)
    assert whole.defects == []
    assert in_order(list(whole.keys()), FIELDS)
    assert f"\r\nTo: {original.sender}\r\n".encode() in octets
    assert report.smtputf8 is (not original.sender.isascii())
    assert report.eightbit is (not octets.isascii())

    text, status, *third = pieces(report)
    assert text.startswith(b"Content-Type: text/plain; charset=")
    head, _, body = status.partition(b"\r\n\r\n")
    assert re.match(rb"Content-Type: message/(global-)?delivery-status\r\n", head)
    if not report.smtputf8:
        assert status.isascii()
    blocks = [fields(block + b"\r\n") for block in body.removesuffix(b"\r\n").split(b"\r\n\r\n")]
    assert len(blocks) == 1 + len(fates)
    assert in_order([name for name, _ in blocks[0]], OF_MESSAGE)
    for fate, block in zip(fates, blocks[1:], strict=True):
        assert in_order([name for name, _ in block], OF_RECIPIENT)
        known = dict(block)
        assert known["Action"] == fate.action
        assert re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", known["Status"])
        allowed = {"failed": "45", "delayed": "4"}.get(fate.action, "2")
        assert known["Status"][0] in allowed
        for value in known.values():
            assert value.isprintable()
            assert not re.search(r"=\?.*\?=", value)

    assert len(third) <= 1
    for part in third:
        head, _, body = part.partition(b"\r\n\r\n")
        [(_, kind), _, (_, encoding)] = fields(head + b"\r\n")
        assert kind in THIRD
        assert not original.redacted
        if encoding == "8bit":
            assert report.smtputf8 or kind == "message/rfc822"
        if kind in ("message/rfc822", "message/global"):
            assert original.whole
            if encoding in ("7bit", "8bit"):
                assert body == original.content


@LONG
@settings(max_examples=EXAMPLES or 200, deadline=None)
@given(WILD, WILD)
def test_foreign_words_in_the_text_cannot_pass_for_ours(words: str, subject: str) -> None:
    content = b"Subject: " + subject.encode("utf-8", "surrogatepass") + b"\r\n\r\n"
    fate = Fate("b@example.com", "failed", None, "bounced", "mx", 550, None, words, 0, 0)
    report = render_report(
        Original("id", "a@app.example", content=content), [fate],
        hostname="h.example", author="m@h.example", now_ms=0,
    )  # fmt: skip
    [part, *_] = message_from_bytes(report.content).get_payload()
    assert isinstance(part, Message)
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    lines = octets.decode("utf-8").split("\r\n")
    outside = [line for line in lines if line and not line.startswith("    ")]
    assert outside == [
        "This is the mail system of h.example.",
        "Your message could not be delivered to one recipient, and will not be",
        "tried again there.",
        "<b@example.com>",
        "The message:",
    ]
    assert [printable(line, 2000) for line in lines] == lines  # no controls
