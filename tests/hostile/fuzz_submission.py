"""Fuzz target of mail that is handed in: what leaves is whole, hides nothing, and stays itself.

The judge reads the lines of what came out by itself. A relay's mail is compared with what came in,
octet for octet; submitted mail, handed in once more, has to stay as it is but for Received.
"""

from __future__ import annotations

from mailstrom.errors import InvalidMessage
from mailstrom.message import RULES
from mailstrom.message.submission import Submitted, Trace, enhanced_code, relayed, submitted
from tests.hostile.fuzz_choices import Choices

SENDER, RECIPIENTS = "ann@a.example", ("bob@b.example",)
TRACE = Trace("mx.example.org", "0190", 1_800_000_000_000, "c.example", "192.0.2.1")
_HIDDEN = ("bcc", "resent-bcc", "return-path", "content-length")


def submission(data: bytes) -> None:
    """Any content, in either role."""
    choices = Choices(data)
    utf8, fold, relay = choices.below(2) == 1, choices.below(2) == 1, choices.below(4) == 0
    content = choices.rest()
    if fold:  # else a lone line end ends nearly all of them
        content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    try:
        found = (relayed if relay else submitted)(content, SENDER, RECIPIENTS, TRACE, smtputf8=utf8)
    except InvalidMessage as error:
        assert error.rule in RULES, error.rule
        assert enhanced_code(error) in ("5.6.0", "5.4.6")
        return
    rest = _judged(found)
    if relay:
        whole = content if content.endswith(b"\r\n") else content + b"\r\n"
        behind = whole.partition(b"\r\n")[2]  # a mailbox file's first line is not the message's
        assert rest in (whole, b"\r\n" + whole, behind, b"\r\n" + behind), "another content"
        return
    keys = _keys(rest)
    for key in ("from", "date", "message-id"):  # under a signature what stands twice stays
        assert keys.count(key) == 1 or (key in keys and "dkim-signature" in keys), keys
    assert not [key for key in keys if key in _HIDDEN or key.startswith("x-mailstrom-")], keys
    if not rest.partition(b"\r\n\r\n")[0].isascii():
        return  # what of one field could not be mended may be mended beside others
    again = submitted(rest, SENDER, RECIPIENTS, TRACE, smtputf8=utf8)
    # Where an @ stands in quotes an address may be completed only once lists are joined.
    own = b"@mx.example.org"
    assert _judged(again).replace(own, b"") == rest.replace(own, b""), "mended again"
    assert (again.message_id, again.subject) == (found.message_id, found.subject)
    assert (again.eightbit, again.smtputf8) == (found.eightbit, found.smtputf8)


def _judged(found: Submitted) -> bytes:
    """What stands behind our Received, of a content that any session can carry."""
    content = found.content
    assert content.endswith(b"\r\n")
    lines = content.split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert not [line for line in lines if set(line) & set(b"\r\n\0")]
    assert found.eightbit is (not content.isascii())
    assert found.subject.isprintable() or not set(found.subject) & set("\r\n\0\x1b")
    assert lines[0].startswith(b"Received: from c.example ([192.0.2.1])")
    folds = 1
    while lines[folds].startswith(b"\t"):
        folds += 1
    return b"\r\n".join(lines[folds:])


def _keys(content: bytes) -> list[str]:
    """Names of the fields up to the first line that is none."""
    found: list[str] = []
    for line in content.split(b"\r\n"):
        if line[:1] in (b" ", b"\t") and found:
            continue
        name, colon, _ = line.partition(b":")
        name = name.rstrip(b" \t")
        if not colon or not name or any(octet < 33 or octet > 126 for octet in name):
            break
        found.append(name.decode("ascii").lower())
    return found
