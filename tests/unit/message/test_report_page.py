"""The report that docs/howto/bounces.md shows is the one that these facts make."""

from __future__ import annotations

from mailstrom.message.report import render_report
from mailstrom.message.report_facts import Fate, Original
from tests.docs.blocks import ALL

NOW = 1795370000000


def example() -> str:
    original = Original(
        id="019ab3c4-0d20-7c3e-9b1f-5a1d2c3b4e5f",
        sender="anna@app.example",
        message_id="<abc@app.example>",
        envelope_id="job-17",
        arrived_ms=NOW - 4000,
        content=(
            b"From: Anna <anna@app.example>\r\nTo: bob@example.com, eve@gone.example\r\n"
            b"Subject: Your invoice\r\nMessage-ID: <abc@app.example>\r\n"
            b"Date: Sun, 22 Nov 2026 17:53:15 +0000\r\n\r\nPlease find it attached.\r\n"
        ),
        whole=True,
        came_from="app.example",
    )
    bob = Fate(
        address="bob@example.com",
        action="failed",
        original="rfc822;robert@example.com",
        reason="bounced",
        host="mx1.example.com",
        reply_code=550,
        enhanced_code="5.1.1",
        reply_text="<bob@example.com>: Recipient address rejected: User unknown",
        tried_ms=NOW - 1000,
    )
    eve = Fate(
        address="eve@gone.example",
        action="failed",
        reason="no_domain",
        enhanced_code="5.1.2",
        reply_text="the domain does not exist",
        tried_ms=NOW - 2000,
    )
    report = render_report(
        original,
        (bob, eve),
        hostname="mail.app.example",
        author="mailer-daemon@mail.app.example",
        now_ms=NOW,
    )
    return report.content.decode("ascii").replace("\r\n", "\n")


def test_the_page_shows_a_report_as_it_is() -> None:
    [shown] = [
        block.text
        for block in ALL
        if block.page == "docs/howto/bounces.md" and "multipart/report" in block.text
    ]
    assert shown == example()
