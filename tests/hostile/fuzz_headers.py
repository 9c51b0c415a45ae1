"""Fuzz targets of headers and addresses: what is rendered reads back to the same, and nothing more.

The judges are the standard library's reader (policy ``default``) of what we rendered, and naive
scanners written here. Refusing is always right; what is taken must be right.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.headerregistry import Address as StdAddress
from email.message import EmailMessage, Message
from typing import Any

from mailstrom.errors import InvalidAddress, InvalidMessage
from mailstrom.message import Prepared, compose, parse_address
from mailstrom.message.address_list import mailboxes, parse_address_list
from mailstrom.message.encoded_word import decode_words, encode_words
from mailstrom.message.header import render_entries
from mailstrom.message.parameters import parse_parameterised
from mailstrom.smtp.commands import mail, parse_path, rcpt
from tests.hostile.fuzz_choices import Choices

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAMES = (
    "Subject", "X-Note", "To", "From", "Cc", "Reply-To", "Sender", "Message-ID", "References",
    "Date", "Content-Type", "Content-Disposition", "List-Unsubscribe", "Bcc", "Comments",
    "Content-Transfer-Encoding", "Received",
)  # fmt: skip
_ADDED = {"date", "message-id", "mime-version", "content-transfer-encoding"}
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def composed(message: Any, *rules: str) -> Prepared | None:
    """Composed to known people; None: refused by a named rule, of these where some are given."""
    try:
        return compose(
            message, sender="s@example.net", recipients=["r@example.org"], now=NOW,
            id_domain_fallback="x.example",
        )  # fmt: skip
    except InvalidMessage as error:
        assert error.rule in (rules or (error.rule,)), f"refused: {error}"
        assert error.value is None or len(error.value) <= 200
        return None


def legal(content: bytes) -> list[tuple[str, bytes]]:
    """The fields of finished content, read naively; no line is one that a server may not get."""
    assert _BARE.search(content) is None, "a bare CR or LF"
    assert b"\0" not in content
    assert content.endswith(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= 998, "a line of more than 998 octets"
    head = content.partition(b"\r\n\r\n")[0]
    fields: list[tuple[str, bytes]] = []
    for line in head.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            assert line.strip(b" \t"), "a blank line inside a field"
            fields[-1] = (fields[-1][0], fields[-1][1] + line)
        else:
            name, colon, value = line.partition(b":")
            assert colon, line
            assert re.fullmatch(rb"[!-9;-~]+", name), line
            fields.append((name.decode().lower(), value))
    return fields


def headers(data: bytes) -> None:
    """A value of any characters becomes one header with that meaning, or is refused."""
    choices = Choices(data)
    name, way = choices.one_of(NAMES), choices.below(4)
    text = _text(choices.rest())
    match way:
        case 0:
            _raw(name, text)
        case 1:
            _objects(name, text)
        case 2:
            _names(text)
        case _:
            _words(text)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _raw(name: str, text: str) -> None:
    """A header set by hand: what it holds is wire text."""
    message: Message[Any, Any] = Message()
    for key, value in (("From", "a@example.net"), (name, text)):
        if key not in message:
            message[key] = value
    message[name + "-X"] = "end"
    message.set_payload("body\n")
    _one_header(composed(message), {key.lower() for key in message}, name, text)


def _objects(name: str, text: str) -> None:
    """A header set as the library's documentation does."""
    message = EmailMessage()
    try:
        for key, value in (("From", "a@example.net"), (name, text)):
            if key not in message:
                message[key] = value
        if name.lower().startswith("content-t"):
            message.set_payload("body\n")
        else:
            message.set_content("body\n")
    except Exception:  # the library's own refusals, and its own faults, are not ours
        return
    _one_header(composed(message), {key.lower() for key in message}, name, text)


def _one_header(prepared: Prepared | None, given: set[str], name: str, text: str) -> None:
    if prepared is None:
        return
    fields = legal(prepared.content)
    names = [key for key, _ in fields]
    assert len(names) == len(set(names)), f"a header twice: {names}"
    extra = set(names) - given - _ADDED
    assert not extra, f"headers nobody set: {extra}"
    assert "bcc" not in names
    assert prepared.recipients == ("r@example.org",)
    if name in ("Subject", "X-Note", "Comments") and "=?" not in text and text.isprintable():
        read = message_from_bytes(prepared.content, policy=policy.default)
        assert str(read[name]).split() == text.split(), (str(read[name]), text)
        assert name != "Subject" or prepared.subject.split() == text[:998].split()


def _names(text: str) -> None:
    """A display name and a file name of any characters."""
    message = EmailMessage()
    try:
        message["From"] = "a@example.net"
        message["To"] = StdAddress(display_name=text, username="who", domain="to.example")
        message.set_content("body\n")
        message.add_attachment(b"x", maintype="a", subtype="b", filename=text)
    except Exception:
        return
    try:
        prepared = compose(message, now=NOW, id_domain_fallback="x.example")
    except InvalidMessage:
        return
    legal(prepared.content)
    assert prepared.recipients == ("who@to.example",), prepared.recipients
    assert prepared.sender == "a@example.net"
    (value,) = (value for key, value in legal(prepared.content) if key == "to")
    (box,) = mailboxes(parse_address_list(value.decode().strip(), header="To"))
    assert box.address.key == "who@to.example"
    assert _squeezed(box.name) == _squeezed(text), (box.name, text)
    read = message_from_bytes(prepared.content, policy=policy.default)
    assert isinstance(read, EmailMessage)
    assert [one.addr_spec for one in read["To"].addresses] == ["who@to.example"]
    assert len(list(read.iter_attachments())) == 1
    if "=?" not in text:  # the library has decoded encoded-words before it comes to us
        assert _file_name(prepared.content) == text


def _file_name(content: bytes) -> str | None:
    (value,) = re.findall(rb"\r\nContent-Disposition:((?:[^\r\n]|\r\n[ \t])*)\r\n", content)
    unfolded = value.replace(b"\r\n", b"").decode()
    return parse_parameterised(unfolded, header="Content-Disposition").get("filename")


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> None:
    """Encoded-words in and out; decoding anything ends."""
    decode_words(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    words = encode_words(text)
    assert all(len(word) <= 75 and word.isascii() for word in words)
    assert decode_words(" ".join(words)) == text


# Addresses


def addresses(data: bytes) -> None:
    """Whoever is read out of any text is the one that all readers find, and reads back the same."""
    choices = Choices(data)
    whole = choices.below(2)
    text = _text(choices.rest())
    if whole:
        _single(text)
    else:
        _several(text)


def _single(text: str) -> None:
    try:
        found = parse_address(text)
    except InvalidAddress:
        return
    local, domain = last_unquoted_at(text)
    assert found.local == local, (found.local, local)
    folded = unicodedata.normalize("NFC", domain.lower())
    if folded.isascii() and not domain.startswith("["):
        assert found.domain == folded, "routed by another domain than the last unquoted @ has"
    _carried(found.key, utf8=found.smtputf8)


def last_unquoted_at(text: str) -> tuple[str, str]:
    """What stands before and behind the last @ outside quotes, by one look at each character."""
    quoted = escaped = False
    last = -1
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "@" and not quoted:
            last = at
    assert last >= 0, text
    return text[:last], text[last + 1 :]


def _carried(key: str, *, utf8: bool) -> None:
    """As a command it is one command, and a server reads the same address out of it."""
    for wire, keyword in (
        (rcpt(key, smtputf8=utf8), "TO"),
        (mail(key, size=1, smtputf8=utf8), "FROM"),
    ):
        assert wire.count(b"\r\n") == 1
        assert wire.count(b"\n") == wire.count(b"\r") == 1
        argument = wire[5:-2].decode()
        assert parse_path(argument, keyword)[0] == key, (argument, key)


def _several(text: str) -> None:
    try:
        entries = parse_address_list(text, header="To")
    except InvalidMessage:
        return
    found = [box.address.key for box in mailboxes(entries)]
    for box in mailboxes(entries):
        _carried(box.address.key, utf8=box.address.smtputf8)
    try:
        wire = render_entries("To", entries).wire
    except InvalidMessage:
        return
    value = wire.decode()[3:-2].replace("\r\n", "").strip()
    again = parse_address_list(value, header="To")
    assert again == entries or _like(again) == _like(entries), (again, entries)
    fields = legal(wire + b"\r\n\r\n")
    assert [key for key, _ in fields] == ["to"]
    if value.isascii() and '"' not in value:
        _library_agrees(wire, found)


def _like(entries: Any) -> list[tuple[str, str]]:
    return [(_squeezed(box.name), box.address.key) for box in mailboxes(entries)]


def _library_agrees(wire: bytes, found: list[str]) -> None:
    read = message_from_bytes(wire + b"\r\n", policy=policy.default)["To"]
    told = [f"{one.username}@{one.domain}" for one in read.addresses]
    assert [one.lower() for one in told] == [one.lower() for one in found], (told, found)
