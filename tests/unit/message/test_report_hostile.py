"""Whatever stands in the facts of a report, its shape is the same; and nothing is forged."""

from __future__ import annotations

import os
from email import message_from_bytes
from email.message import Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom.message.report import render_report
from mailstrom.message.report_facts import ACTIONS, Fate, Original
from mailstrom.printable import printable
from tests.hostile.fuzz_reports import judged

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


@LONG
@settings(max_examples=EXAMPLES or 400, deadline=None)
@given(ORIGINALS, st.lists(FATES, min_size=1, max_size=3), st.integers(0, 4_000_000_000_000))
def test_nothing_that_is_told_changes_the_shape(
    original: Original, fates: list[Fate], now_ms: int
) -> None:
    report = render_report(
        original, fates, hostname="mail.app.example", author="md@mail.app.example", now_ms=now_ms
    )
    assert message_from_bytes(report.content).defects == []
    judged(report, original, fates)


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
