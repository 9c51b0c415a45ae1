"""Options of a message, whoever gives them: checked before anything is written.

``send()`` has them as arguments, the listener and ``mailstrom-sendmail`` as X-Mailstrom- headers. A
refusal names the option. Pure: the time comes in as an argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from mailstrom.errors import InvalidMessage
from mailstrom.types import PRIORITY_RANK, OnDoubt, Priority

LONGEST_KEY = 256
LONGEST_STREAM = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029\ud800-\udfff]")
_MOST_TAGS = 50
_TOLD_OF = ("success", "failure", "delay")
_NEVER = "never"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_LAST_MS = 253_402_300_799_000


def _refuse(option: str, value: object, text: str, rule: str) -> InvalidMessage:
    return InvalidMessage(f"{option}: {text}", header=option, value=value, rule=rule)


def word(option: str, value: object, most: int) -> str:
    """A non-empty text of at most ``most`` characters without control characters."""
    if not isinstance(value, str) or not value or len(value) > most:
        raise _refuse(option, value, f"must be text of 1 to {most} characters", "option")
    if _CONTROL.search(value):
        raise _refuse(option, value, "holds a control character", "option-control")
    return value


def rank(priority: object) -> int | None:
    """The order of claims for a priority word, or None for the stream's."""
    if priority is None:
        return None
    try:
        return PRIORITY_RANK[Priority(str(priority))]
    except ValueError:
        words = ", ".join(Priority)
        raise _refuse("priority", priority, f"must be one of {words}", "option") from None


def doubt(on_doubt: object) -> OnDoubt | None:
    """The policy for a recipient in doubt, or None for the engine's."""
    if on_doubt is None:
        return None
    try:
        return OnDoubt(str(on_doubt))
    except ValueError:
        raise _refuse("on_doubt", on_doubt, "must be 'retry' or 'hold'", "option") from None


def notices(notify: object) -> str:
    """What the sender is told of, as the spool keeps it."""
    if notify == _NEVER:
        return _NEVER
    words = [] if isinstance(notify, str) or not isinstance(notify, Iterable) else list(notify)
    if not words or not all(isinstance(word, str) and word in _TOLD_OF for word in words):
        text = f"must be {_NEVER!r}, or a list of {', '.join(map(repr, _TOLD_OF))}"
        raise _refuse("notify", notify, text, "option")
    return ",".join(word for word in _TOLD_OF if word in words)


def tag_list(tags: Iterable[str]) -> tuple[str, ...]:
    """Distinct tags in the order given."""
    if isinstance(tags, str | bytes):
        raise _refuse("tags", tags, "must be a list of texts, not one text", "option")
    found = tuple(dict.fromkeys(word("tags", tag, 128) for tag in tags))
    if len(found) > _MOST_TAGS:
        raise _refuse("tags", len(found), f"at most {_MOST_TAGS} are kept", "option")
    return found


def flat(metadata: Mapping[str, object] | None) -> dict[str, object]:
    """A flat dict of text keys and plain values."""
    found: dict[str, object] = {}
    if metadata is not None and not isinstance(metadata, Mapping):
        raise _refuse("metadata", metadata, "must be a dict", "option")
    for key, value in (metadata or {}).items():
        word("metadata", key, 128)
        if isinstance(value, str):
            if _CONTROL.search(value):
                raise _refuse(
                    "metadata", value, f"{key!r} holds a control character", "option-control"
                )
        elif not isinstance(value, bool | int | float) or not _finite(value):
            raise _refuse(
                "metadata", value, f"{key!r} must be text, a finite number or bool", "option"
            )
        found[key] = value
    return found


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float, which no reader of JSON could keep
        return False


def flag(option: str, value: object) -> bool:
    """True or False and nothing that merely counts as one: "no" would be true."""
    if not isinstance(value, bool):
        raise _refuse(option, value, "must be True or False", "option")
    return value


def coming_ms(option: str, value: datetime | timedelta | None, now_ms: int) -> int | None:
    """Milliseconds of an aware datetime or of now plus a timedelta."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        found = now_ms + value // _MS
    elif isinstance(value, datetime):
        if value.utcoffset() is None:
            raise _refuse(option, value, "has no time zone; use datetime.now(UTC)", "option")
        found = (value - _EPOCH) // _MS
    else:
        raise _refuse(option, value, "must be a datetime or a timedelta", "option")
    if not 0 <= found <= _LAST_MS:
        raise _refuse(option, value, "lies outside the years 1970 to 9999", "option")
    return found
