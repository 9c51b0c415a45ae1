"""Messages given as bytes: checked, converted to CRLF, otherwise left alone.

The header block is read line by line; the body is only searched (octet counts and jumps).
Refused by name: NUL, mixed or bare line ends, lines over 998 octets, malformed or blank-folded
header lines, control characters in headers, header octets that are not UTF-8, a missing blank line.
All else stays byte-identical (RFC 5322 section 2.1, RFC 6532 section 3.2). Knows no envelope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from mailstrom.errors import InvalidMessage
from mailstrom.message.grammar import CONTROL
from mailstrom.message.header import Field
from mailstrom.message.leaf import CRLF, too_long_line

_FIELD = re.compile(rb"([!-9;-~]{1,200}+):[^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+\r\n")
_BLANK_FOLD = re.compile(rb"\r\n[ \t]+\r\n")
_STARTS = re.compile(rb"^([!-9;-~]{1,200}):", re.MULTILINE)
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NAME = re.compile("[!-9;-~]{1,200}").fullmatch
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\r\n"


class Plain(NamedTuple):
    """A finished message that was checked.

    Args:
        values: of its fields by their keys; none where one stands more than once.
        content: all of it with CRLF line ends, the last line ended.
        body_at: where in ``content`` the body begins.
        read: the fields, where they had to be read one by one.
    """

    values: Mapping[str, str]
    content: bytes
    body_at: int
    read: tuple[Field, ...] = ()

    def fields(self) -> tuple[Field, ...]:
        """The fields of its header, in order; most messages can do without."""
        return self.read or _fields(self.content[: self.body_at - 2])


def read_plain(content: bytes) -> Plain:
    """Check a finished message.

    Args:
        content: the whole message with CRLF or LF line ends throughout.

    Returns:
        The same with CRLF line ends, and its fields.

    Raises:
        InvalidMessage: by a named rule (module docstring).
    """
    if b"\0" in content:
        raise _refusal(
            "the message contains a NUL octet",
            "encode the part as base64",
            "nul",
            position=content.find(b"\0"),
        )
    pairs = content.count(CRLF)
    if pairs != content.count(b"\n") or pairs != content.count(b"\r"):
        if b"\r" not in content:
            converted = content.replace(b"\n", CRLF)
            try:
                return _read_lines(converted)
            except InvalidMessage as error:
                if error.position is not None:  # as the caller counts
                    error.position -= converted.count(CRLF, 0, error.position)
                raise
        bare = _BARE.search(content)
        raise _refusal(
            "the message mixes line ends (CRLF, bare CR or bare LF)",
            "use CRLF or LF throughout, and encode parts that hold others",
            "line-endings",
            None if bare is None else content[max(0, bare.start() - 40) : bare.end() + 40],
            None if bare is None else bare.start(),
        )
    return _read_lines(content)


def _read_lines(content: bytes) -> Plain:
    """The same for content with CRLF alone."""
    if not content.endswith(CRLF):
        content += CRLF
    split = content.find(b"\r\n\r\n")
    if split < 0 and not content.startswith(CRLF):
        raise _refusal(
            "the message has no blank line after its headers",
            "write header lines, an empty line, then the body",
            "blank-line-missing",
            position=len(content),
        )
    long = too_long_line(content)
    if long is not None:
        raise _refusal(
            "the message has a line of more than 998 octets",
            "fold the header or encode the body as quoted-printable or base64",
            "line-too-long",
            content[long : long + 80],
            long,
            _name_at(content, long) if 0 <= long < split else None,
        )
    if content.startswith(CRLF):
        return Plain({}, content, 2)
    head = content[: split + 2]
    values = _values(head)
    return Plain(values, content, split + 4, () if values else _fields(head))


def unfolded(field: Field | str) -> str:
    """Value of a field, or that value itself, as one line of text (RFC 5322 section 2.2.3)."""
    if isinstance(field, str):
        return field
    value = field.wire[len(field.key) + 1 : -2]
    if CRLF in value:
        value = value.replace(CRLF, b"")
    return value.decode("utf-8").strip(" \t")


@lru_cache(maxsize=128)
def _key(name: str) -> str:
    """The lower-case name of a field; ValueError where that is no name (RFC 5322 section 2.2)."""
    if _NAME(name) is None:
        raise ValueError(name)
    return name.lower()


def _values(head: bytes) -> dict[str, str]:
    """See ``Plain.values``; of a header that gives none the lines are still to be checked."""
    if head.translate(None, _PRINTABLE):
        _check_characters(head)
    values: dict[str, str] = {}
    text = head[:-2].decode("utf-8")
    lines = text.split("\r\n")
    folds = 0
    try:
        if "\r\n " in text or "\r\n\t" in text:
            folds = _unfold(lines, values)
        else:
            for line in lines:
                name, value = line.split(":", 1)
                values[_key(name)] = value.strip(" \t")
    except ValueError:  # no header line
        values.clear()
    whole = bool(values) and len(values) + folds == len(lines)
    if folds or not whole:
        _check_characters(head)
    return values if whole else {}


def _unfold(lines: list[str], values: dict[str, str]) -> int:
    """Values of fields of which some are folded; returns the number of continuations."""
    key = ""
    folds = 0
    # Joined at their end: thousands of folds of one field would copy its value each time.
    pieces: list[str] = []
    for line in lines:
        if line[0] in " \t" and key:
            pieces.append(line)
            folds += 1
        else:
            name, value = line.split(":", 1)
            if key:
                values[key] = "".join(pieces).strip(" \t")
            key = _key(name)
            pieces = [value]
    if key:
        values[key] = "".join(pieces).strip(" \t")
    return folds


def _fields(head: bytes) -> tuple[Field, ...]:
    found: list[Field] = []
    at = 0
    while at < len(head):
        field = _FIELD.match(head, at)
        if field is None:
            line = head[at : head.find(CRLF, at)]
            raise _refusal(
                f"header line {line[:80]!r} is not 'Name: value' nor a continuation of one",
                "write one field a line, names without spaces, continuations indented",
                "header-syntax",
                line,
                at,
            )
        found.append(Field(field[1].decode("ascii").lower(), field[0]))
        at = field.end()
    return tuple(found)


def _check_characters(head: bytes) -> None:
    blank = _BLANK_FOLD.search(head)
    if blank is not None:
        raise _refusal(
            "a header is folded with a blank line, which some readers take for its end",
            "remove the white space line",
            "header-blank-fold",
            head[max(0, blank.start() - 60) : blank.end()],
            blank.start() + 2,
            _name_at(head, blank.start()),
        )
    control = _CONTROL.search(head)
    if control is None and not head.isascii():
        try:
            text = head.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _refusal(
                "a header holds octets that are not UTF-8",
                "use encoded-words (RFC 2047) or UTF-8",
                "header-undecodable",
                head[max(0, error.start - 40) : error.start + 10],
                error.start,
                _name_at(head, error.start),
            ) from None
        foreign = CONTROL.search(text.replace(CRLF.decode(), "  "))
        if foreign is None:
            return
        start = len(text[: foreign.start()].encode("utf-8"))
    elif control is None:
        return
    else:
        start = control.start()
    raise _refusal(
        "a header holds a control character or a foreign line separator",
        "remove it or use encoded-words (RFC 2047)",
        "header-control",
        head[max(0, start - 40) : start + 10],
        start,
        _name_at(head, start),
    )


def _name_at(head: bytes, offset: int) -> str | None:
    """Name of the field that an offset lies in, as it is written."""
    names = [
        match[1] for match in _STARTS.finditer(head, 0, offset + 200) if match.start() <= offset
    ]
    return names[-1].decode("ascii") if names else None


def _refusal(
    what: str,
    fix: str,
    rule: str,
    value: object = None,
    position: int | None = None,
    header: str | None = None,
) -> InvalidMessage:
    return InvalidMessage(
        f"{what}; {fix}", header=header, value=value, rule=rule, position=position
    )
