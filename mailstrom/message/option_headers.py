"""Options that come as X-Mailstrom- headers: what ``send()`` takes as arguments.

Rules are those of ``mailstrom.options``; a refusal names the header. A value may be folded, be
UTF-8, or be encoded-words (RFC 2047), as clients write what is long or not ASCII. Each may stand
once; a name that is none of them is refused, since a demand such as TLS must not fail by a slip.
Pure: the time comes in as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from mailstrom import options
from mailstrom.errors import InvalidMessage
from mailstrom.message.encoded_word import decode_words
from mailstrom.types import OnDoubt

PREFIX = "x-mailstrom-"
HEADERS = (
    "X-Mailstrom-Idempotency-Key", "X-Mailstrom-Send-At", "X-Mailstrom-Expires-At",
    "X-Mailstrom-Tags", "X-Mailstrom-Stream", "X-Mailstrom-Priority", "X-Mailstrom-Metadata",
    "X-Mailstrom-Require-TLS", "X-Mailstrom-On-Doubt",
)  # fmt: skip
"""All that are read, as they are written in documents."""

LONGEST_SPAN_S = 100 * 366 * 86_400

_NAMES = {header.lower(): header for header in HEADERS}
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SPAN = re.compile(r"\+?([0-9]{1,10})").fullmatch
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
).fullmatch


class Options(NamedTuple):
    """Options of one message; the default of each says that nothing was asked for.

    Args:
        idempotency_key: at most 256 characters.
        send_ms: not before this time; never in the past.
        expires_ms: later than ``send_ms``.
        priority: rank 0 (high) to 2 (low).
    """

    idempotency_key: str | None = None
    send_ms: int | None = None
    expires_ms: int | None = None
    tags: tuple[str, ...] = ()
    stream: str | None = None
    priority: int | None = None
    metadata: Mapping[str, object] = {}
    require_tls: bool = False
    on_doubt: OnDoubt | None = None


NONE = Options()


def read_options(found: Mapping[str, bytes], now_ms: int, *, send_ms: int | None) -> Options:
    """Options out of headers.

    Args:
        found: what stands behind the colon, unfolded, by lower-case name.
        now_ms: the present moment.
        send_ms: not before this time, by a parameter of the envelope (RFC 4865), or None.

    Raises:
        InvalidMessage: a value breaks its rule, or the name is none of ``HEADERS``.
    """
    texts = {key: _text(key, value) for key, value in found.items()}
    get = texts.get
    key, stream, doubt = get(f"{PREFIX}idempotency-key"), get(f"{PREFIX}stream"), None
    priority, tags, metadata = get(f"{PREFIX}priority"), get(f"{PREFIX}tags"), None
    at, until, tls = get(f"{PREFIX}send-at"), get(f"{PREFIX}expires-at"), False
    try:
        if key is not None:
            options.word("idempotency_key", key, options.LONGEST_KEY)
        if stream is not None:
            options.word("stream", stream, options.LONGEST_STREAM)
        rank = None if priority is None else options.rank(priority.lower())
        if f"{PREFIX}on-doubt" in texts:
            doubt = options.doubt(texts[f"{PREFIX}on-doubt"].lower())
        words = () if tags is None else options.tag_list(_list(tags))
        if f"{PREFIX}metadata" in texts:
            metadata = options.flat(_object(texts[f"{PREFIX}metadata"]))
        if f"{PREFIX}require-tls" in texts:
            tls = _flag(texts[f"{PREFIX}require-tls"])
        if at is not None:
            if send_ms is not None:
                raise _refuse("send_at", at, "is said by a parameter of MAIL, too; say it once")
            send_ms = _moment("send_at", at, now_ms)
        if send_ms is not None:
            send_ms = max(send_ms, now_ms)
        expires = None if until is None else _moment("expires_at", until, now_ms)
        if expires is not None and expires <= (send_ms or now_ms):
            raise _refuse("expires_at", until, "lies before the message may be sent")
    except InvalidMessage as error:
        raise _named(error) from None
    return Options(key, send_ms, expires, words, stream, rank, metadata or {}, tls, doubt)


def _text(key: str, value: bytes) -> str:
    header = _NAMES.get(key)
    if header is None:
        from difflib import get_close_matches

        names = {name.removeprefix(PREFIX): header for name, header in _NAMES.items()}
        near = get_close_matches(key.removeprefix(PREFIX)[:80], names, 1)
        advice = f"did you mean {names[near[0]]}?" if near else f"there are {', '.join(HEADERS)}"
        raise InvalidMessage(
            f"header {key[:80]} is no option; {advice}", header=key, value=value, rule="option"
        )
    try:
        return decode_words(value.decode("utf-8")).strip(" \t")
    except UnicodeDecodeError:
        raise InvalidMessage(
            f"header {header}: must be UTF-8 or encoded-words (RFC 2047)",
            header=header,
            value=value,
            rule="option",
        ) from None


def _list(text: str) -> list[str]:
    return [tag for piece in text.split(",") if (tag := piece.strip(" \t"))]


def _flag(text: str) -> bool:
    found = _FLAGS.get(text.lower())
    if found is None:
        raise _refuse("require_tls", text, "must be true or false")
    return found


def _moment(option: str, text: str, now_ms: int) -> int:
    span = _SPAN(text)
    found: datetime | timedelta | None = None
    if span is not None and int(span[1]) <= LONGEST_SPAN_S:
        found = timedelta(seconds=int(span[1]))
    elif _MOMENT(text):
        try:
            found = datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):  # a month 13; before the first year
            found = None
    if found is None:
        raise _refuse(
            option, text, "must be a time of RFC 3339 (2030-01-31T08:00:00Z) or seconds from now"
        )
    ms = options.coming_ms(option, found, now_ms)
    assert ms is not None
    return ms


def _object(text: str) -> Mapping[str, object]:
    import json

    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise _refuse("metadata", text, f"is no JSON ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise _refuse("metadata", text, "must be a JSON object")
    return value


def _refuse(option: str, value: object, text: str) -> InvalidMessage:
    return InvalidMessage(f"{option}: {text}", header=option, value=value, rule="option")


def _named(error: InvalidMessage) -> InvalidMessage:
    """The refusal of an option, told of the header that held it."""
    option = error.header or ""
    header = _NAMES[PREFIX + option.replace("_", "-")]
    said = str(error).removeprefix(f"{option}: ")
    named = InvalidMessage(f"header {header}: {said}", header=header, rule=error.rule)
    named.value = error.value
    return named
