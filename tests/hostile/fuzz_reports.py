"""Fuzz target of delivery reports: whatever their facts hold, their shape and their truth stay.

The judge cuts a report by its boundary and its blank lines, as RFC 2046 and RFC 3464 say and by no
reader of ours: so many parts, so many blocks, these fields in this order and no other, nothing of
the facts outside of the place that is theirs.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from itertools import pairwise

from mailstrom.message import parse
from mailstrom.message.report import Report, render_report
from mailstrom.message.report_facts import ACTIONS, Fate, Original
from tests.hostile.fuzz_choices import Choices

FIELDS = [
    "Date", "From", "To", "Subject", "Message-ID", "In-Reply-To", "References", "Auto-Submitted",
    "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
]  # fmt: skip
OF_MESSAGE = [
    "Reporting-MTA", "Original-Envelope-Id", "Received-From-MTA", "Arrival-Date", "X-Mailstrom-Id",
]  # fmt: skip
OF_RECIPIENT = [
    "Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code",
    "Last-Attempt-Date", "Will-Retry-Until",
]  # fmt: skip
THIRD = {b"message/rfc822", b"text/rfc822-headers", b"message/global", b"message/global-headers"}
CLASSES = {"failed": "45", "delayed": "4", "relayed": "2", "delivered": "2"}

_BOUNDARY = re.compile(rb'\r\nContent-Type: multipart/report;[^"]*boundary="([^"]+)"\r\n')
_SENDERS = ("anna@app.example", '"a \\"b"@app.example', "άννα@app.example")
_REASONS = (None, "bounced", "expired", "no_domain", "too_large", "in_doubt")


def reports(data: bytes) -> None:
    """Facts of any octets make a report of this shape."""
    choices = Choices(data)
    fates = [_fate(choices) for _ in range(1 + choices.below(3))]
    original = Original(
        id=_text(choices) or "",
        sender=choices.one_of(_SENDERS),
        message_id=_text(choices) or "",
        envelope_id=_text(choices),
        arrived_ms=choices.below(256) * 10**10,
        came_from=_text(choices),
        redacted=choices.below(8) == 1,
        whole=choices.below(2) == 1,
        content=choices.rest(),
    )
    asked = {"hostname": "mail.app.example", "author": "md@mail.app.example"}
    report = render_report(original, fates, **asked, now_ms=10**12)
    judged(report, original, fates)
    again = render_report(original, fates, **asked, now_ms=10**12)
    assert again == report, "another report of the same facts"


def _fate(choices: Choices) -> Fate:
    return Fate(
        address=_text(choices) or "",
        action=choices.one_of(ACTIONS),
        original=_text(choices),
        reason=choices.one_of(_REASONS),
        host=_text(choices),
        reply_code=choices.one_of((None, 250, 451, 550)),
        enhanced_code=_text(choices),
        reply_text=_text(choices),
        tried_ms=choices.one_of((None, 0, 10**12)),
        until_ms=choices.one_of((None, 2 * 10**12)),
    )


def _text(choices: Choices) -> str | None:
    if choices.below(4) == 0:
        return None
    return choices.octets().decode("utf-8", "surrogateescape")


def judged(report: Report, original: Original, fates: Sequence[Fate]) -> None:
    """Raise where a report is not what these facts have to make."""
    octets = report.content
    parse(octets)  # strict: line ends, controls, lengths, grammar of each field
    head = octets[: octets.index(b"\r\n\r\n") + 2]
    assert in_order([name for name, _ in fields(head)], FIELDS), head
    assert f"\r\nTo: {original.sender}\r\n".encode() in head
    assert report.smtputf8 is (not original.sender.isascii())
    assert report.eightbit is (not octets.isascii())
    assert report.smtputf8 or octets.isascii(), "a host may know neither 8BITMIME nor SMTPUTF8"

    eight = not octets[len(head) :].isascii()
    assert (b"\r\nContent-Transfer-Encoding: 8bit\r\n" in head) is eight, "called 7-bit"
    text, status, *third = parts(octets)
    assert text.startswith(b"Content-Type: text/plain; charset=")
    assert text.isascii()
    _judge_status(status, report, fates)
    assert len(third) <= 1
    for part in third:
        _judge_third(part, report, original)


def _judge_status(status: bytes, report: Report, fates: Sequence[Fate]) -> None:
    head, _, body = status.partition(b"\r\n\r\n")
    kind = re.match(rb"Content-Type: message/((?:global-)?delivery-status)\r\n", head)
    assert kind is not None
    whole = report.content[: report.content.index(b"\r\n\r\n")]
    assert b" report-type=" + kind[1] + b";" in whole
    assert report.smtputf8 or status.isascii()
    blocks = [fields(one + b"\r\n") for one in body.removesuffix(b"\r\n").split(b"\r\n\r\n")]
    assert len(blocks) == 1 + len(fates), "a block too many, or too few"
    assert in_order([name for name, _ in blocks[0]], OF_MESSAGE), blocks[0]
    for fate, block in zip(fates, blocks[1:], strict=True):
        assert in_order([name for name, _ in block], OF_RECIPIENT), block
        known = dict(block)
        assert known["Action"] == fate.action
        assert re.fullmatch(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", known["Status"])
        assert known["Status"][0] in CLASSES[fate.action]
        for value in known.values():
            assert value.isprintable()
            assert not re.search(r"=\?.*\?=", value), "an encoded-word, and what is inside of it"


def _judge_third(part: bytes, report: Report, original: Original) -> None:
    head, _, body = part.partition(b"\r\n\r\n")
    [(_, kind), _, (_, encoding)] = fields(head + b"\r\n")
    assert kind.encode() in THIRD
    assert not original.redacted
    if encoding == "8bit":
        assert report.smtputf8
    if kind in ("message/rfc822", "message/global"):
        assert original.whole
        assert kind == "message/global" or encoding in ("7bit", "8bit")  # RFC 2046 section 5.2.1
        if encoding == "quoted-printable":
            body = binascii.a2b_qp(body)
        elif encoding == "base64":
            body = binascii.a2b_base64(body)
        assert body == original.content, "another content"


def parts(octets: bytes) -> list[bytes]:
    """The body parts, cut as RFC 2046 section 5.1.1 says."""
    found = _BOUNDARY.search(octets)
    assert found is not None
    delimiter = re.compile(rb"\r\n--" + re.escape(found[1]) + rb"(--)?[ \t]*(?=\r\n)")
    ends = list(delimiter.finditer(octets))
    assert [one[1] for one in ends] == [None] * (len(ends) - 1) + [b"--"], "a part was forged"
    assert octets[ends[-1].end() :] == b"\r\n"
    return [octets[one.end() + 2 : after.start()] for one, after in pairwise(ends)]


def fields(octets: bytes) -> list[tuple[str, str]]:
    """Header fields of a block, unfolded; nothing in it is anything else."""
    found: list[tuple[str, str]] = []
    for line in re.sub(rb"\r\n(?=[ \t])", b"", octets).split(b"\r\n")[:-1]:
        name, mark, value = line.partition(b":")
        assert mark, line
        assert value[:1] == b" ", line
        found.append((name.decode("ascii"), value[1:].decode("utf-8")))
    return found


def in_order(names: list[str], allowed: list[str]) -> bool:
    """Each at most once, none that is not allowed, in this order."""
    return [name for name in allowed if name in names] == names
