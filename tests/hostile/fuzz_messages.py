"""Fuzz targets of whole messages as octets: the strict reader, what is sent, the payload hash."""

from __future__ import annotations

from mailstrom.errors import InvalidMessage
from mailstrom.message import RULES, fingerprint, parse
from mailstrom.message.mime import has_utf8_fields, split_parts
from tests.hostile.fuzz_choices import Choices
from tests.hostile.fuzz_headers import composed, legal

_ADDED = {"date", "message-id", "mime-version"}
_REMOVED = {"bcc", "resent-bcc", "return-path"}


def messages(data: bytes) -> None:
    """A message as octets is refused by name, or leaves with its own headers and its own body."""
    strict(data)
    prepared = composed(data)
    if prepared is None:
        return
    whole = data if b"\r" in data else data.replace(b"\n", b"\r\n")
    given = legal(whole if whole.endswith(b"\r\n") else whole + b"\r\n")
    leaves = legal(prepared.content)
    left = [key for key, _ in leaves]
    kept = [key for key, _ in given if key not in _REMOVED]
    if "resent-date" not in kept:  # it stands with its block
        left = [key for key in left if key != "resent-date"]
    added = left[: len(left) - len(kept)]
    assert left[len(added) :] == kept, (left, kept)
    assert set(added) <= _ADDED, added
    body = whole.partition(b"\r\n\r\n")[2]
    assert prepared.content.partition(b"\r\n\r\n")[2].startswith(body), "another body"
    assert prepared.subject.isprintable() or not set(prepared.subject) & set("\r\n\0\x1b")
    assert len(fingerprint(prepared)) == 32
    assert fingerprint(prepared) == fingerprint(prepared)


def strict(data: bytes) -> None:
    """The strict reader gives the octets back, or names the octet that is wrong."""
    try:
        found = parse(data)
    except InvalidMessage as error:
        assert error.rule in RULES, error.rule
        assert error.position is not None
        assert 0 <= error.position <= len(data)
        return
    assert found.render() == data
    assert found.date.tzinfo is not None
    assert [one.key for one in found.fields] == [key for key, _ in legal(data + b"\r\n")]
    # what the letter of RFC 5322 allows is sent, but for what MIME or the envelope does not
    composed(data, "duplicate-header", "blank-line-missing", "date-syntax")


def mime(data: bytes) -> None:
    """Frames of multiparts in any octets: what is cut is what stood there."""
    choices = Choices(data)
    boundary = choices.octets(70).decode("utf-8", "replace")
    body = choices.rest()
    parts, closed = split_parts(body, boundary)
    assert sum(map(len, parts)) <= len(body)
    assert all(part in body for part in parts)
    delimiter = b"\r\n--" + boundary.encode()
    for part in parts:
        for line in part.split(b"\r\n")[1:]:
            assert line.rstrip(b" \t") not in (delimiter[2:], delimiter[2:] + b"--"), line
    assert not closed or delimiter + b"--" in b"\r\n" + body
    has_utf8_fields(f'multipart/mixed; boundary="{boundary}"', body)
