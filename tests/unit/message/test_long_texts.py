"""Texts within a field have a bound, and up to it they are written and read back whole."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage, Message
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom import InvalidMessage, Mailstrom
from mailstrom.message import compose
from mailstrom.message.address_list import Mailbox, parse_address_list
from mailstrom.message.grammar import TEXT_LIMIT, quoted_string
from mailstrom.message.grammar import quote as quoted
from mailstrom.message.parameters import (
    Parameterised,
    parse_parameterised,
    render_parameterised,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TEXTS = st.text(
    st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=300
)


def wire(message: Message) -> bytes:
    return compose(
        message, sender="", recipients=["c@d.example"], now=NOW, id_domain_fallback="x.example"
    ).content


def attached(name: str) -> Message:
    message = Message()
    message["From"] = "a@b.example"
    message["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(name)}"
    message.set_payload("x")
    return message


def addressed(name: str, *, header: str = "To") -> Message:
    message = Message()
    message["From"] = "a@b.example"
    message[header] = f"{quoted(name)} <c@d.example>"
    message.set_payload("x")
    return message


@pytest.mark.parametrize("letter", ["a", "ä", "€", "\U0001f600"])
def test_a_file_name_of_the_limit_arrives_and_a_longer_one_is_refused(letter: str) -> None:
    name = letter * (TEXT_LIMIT // len(letter.encode()))
    content = wire(attached(name))
    assert max(map(len, content.split(b"\r\n"))) <= 78
    read = message_from_bytes(content, policy=policy.compat32).get_filename()
    assert read == name
    with pytest.raises(InvalidMessage, match="65,536 octets in parameter filename") as refused:
        wire(attached(name + letter))
    assert (refused.value.rule, refused.value.header) == (
        "parameter-too-long",
        "Content-Disposition",
    )


@pytest.mark.parametrize("letter", ["a", "ä", "€"])
@pytest.mark.parametrize("header", ["To", "Cc", "Reply-To"])
def test_a_display_name_of_the_limit_arrives_and_a_longer_one_is_refused(
    letter: str, header: str
) -> None:
    name = letter * (TEXT_LIMIT // len(letter.encode()))
    content = wire(addressed(name, header=header)).replace(b"\r\n ", b" ")
    field = next(line for line in content.split(b"\r\n") if line.startswith(header.encode()))
    (entry,) = parse_address_list(field.partition(b":")[2].decode(), header=header)
    assert isinstance(entry, Mailbox)
    assert entry.name == name
    with pytest.raises(InvalidMessage, match="display name of more than 65,536 octets") as refused:
        wire(addressed(name + letter, header=header))
    assert (refused.value.rule, refused.value.header) == ("display-name-too-long", header)


def test_a_name_that_is_written_in_very_much_is_not_read_to_its_end() -> None:
    with pytest.raises(InvalidMessage) as refused:
        parse_address_list('""' * 200_000 + "<c@d.example>", header="To")
    assert refused.value.rule == "display-name-too-long"


def test_nothing_is_written_of_a_message_with_too_long_a_text(tmp_path: Path) -> None:
    made = EmailMessage()
    made["From"], made["To"] = "a@b.example", "c@d.example"
    made.set_content("x")
    made.add_attachment(b"x", maintype="a", subtype="b", filename="f" * (TEXT_LIMIT + 1))
    with Mailstrom(tmp_path / "spool.db") as ms:
        for message in (made, addressed("ä" * TEXT_LIMIT)):
            with pytest.raises(InvalidMessage):
                ms.send(message)
        assert ms.query("SELECT count(*) FROM messages")[0][0] == 0


@given(text=TEXTS)
def test_pieces_are_cut_between_characters_and_read_back(text: str) -> None:
    value = Parameterised(value="attachment", parameters=(("filename", "é" * 80 + text),))
    pieces = render_parameterised(value, header="X")
    for piece in pieces[1:]:
        escaped = piece.rstrip(";").partition("=")[2].removeprefix("utf-8''")
        assert len(escaped) <= 50
        _whole_characters(escaped)
    assert parse_parameterised(" ".join(pieces), header="X") == value


def _whole_characters(escaped: str) -> None:
    octets, at = bytearray(), 0
    while at < len(escaped):
        step = 3 if escaped[at] == "%" else 1
        octets += bytes.fromhex(escaped[at + 1 : at + 3]) if step == 3 else escaped[at].encode()
        at += step
    octets.decode("utf-8")


@given(text=st.text(st.sampled_from('a"\\ '), max_size=30))
def test_a_quoted_string_is_unescaped_pair_by_pair(text: str) -> None:
    assert quoted_string(quoted(text) + "x", 0) == (text, len(quoted(text)))
    odd = '"' + "".join("\\" + char for char in text) + '"'
    assert quoted_string(odd, 0) == (text, len(odd))
