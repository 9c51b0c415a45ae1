"""Arguments of the client's methods: checked before anything happens, named in the error.

A wrong type is a ``TypeError``, a value that no call could use a ``ValueError``: both are mistakes
of the calling program. What belongs to a message (``options``) is an ``InvalidMessage`` instead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mailstrom.errors import InvalidMessage

LONGEST_TIMEOUT_S = 86_400.0
"""A day: more than anybody waits for a lock, and fits what SQLite and the threads can count."""

_BINDABLE = (str, int, float, bytes, bytearray, memoryview)
_MOST_SHOWN = 80  # characters of a value that an error repeats
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def shown(value: str) -> str:
    """A caller's text as an error quotes it: on one line, and cut where it is long."""
    return repr(value if len(value) <= _MOST_SHOWN else f"{value[: _MOST_SHOWN - 1]}…")


def text(name: str, value: object) -> str:
    """A ``str``.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be text (str), not {_kind(value)}")
    return value


def path(name: str, value: object) -> str:
    """A path as text.

    Args:
        value: ``str`` or a path object that stands for one.

    Raises:
        TypeError: anything else; bytes, too.
    """
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise TypeError(f"{name}: must be a path (str or os.PathLike), not {_kind(value)}")
    return found


def seconds(name: str, value: object, most: float = math.inf) -> float:
    """More than 0 seconds, at most ``most``.

    Raises:
        TypeError: no number; True and False are none.
        ValueError: 0, negative, not a number, or more than ``most``.
    """
    found = number(name, value)
    if not 0 < found <= most:
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise ValueError(f"{name}: must be more than 0{limit} seconds, not {found:g}")
    return found


def number(name: str, value: object) -> float:
    """A number of seconds, of whatever sign; infinity is one.

    Raises:
        TypeError: no number; True and False are none.
        ValueError: NaN, which no deadline ever passes.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: must be a number of seconds, not {_kind(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf if value > 0 else -math.inf
    if math.isnan(found):
        raise ValueError(f"{name}: must be a number of seconds, not NaN")
    return found


def count(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least ``least`` that fits 64 bits.

    Raises:
        TypeError: no ``int``; True and False are none.
        ValueError: out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: must be a whole number, not {_kind(value)}")
    if value < least or not _fits(value):
        given = f"{value:d}" if _fits(value) else "a number of more"
        raise ValueError(f"{name}: must be {least} or more and fit 64 bits, not {given}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False and nothing that merely counts as one.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: must be True or False, not {_kind(value)}")
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """A list of texts without repetitions, in the order given.

    Raises:
        TypeError: one text, nothing to iterate over, or something else among them.
    """
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: must be a list of texts, not {_kind(value)}")
    return tuple(dict.fromkeys(text(f"an item of {name}", one) for one in value))


def settled(value: Any) -> Any:
    """An iterable argument as a list of its own, a mapping as a dict; all else as it is.

    For what is looked at in another thread: a generator runs in its owner's, and what the owner
    changes afterwards is no matter.
    """
    if isinstance(value, Mapping):
        return dict(value)
    one = isinstance(value, str | bytes | bytearray | memoryview)
    return list(value) if isinstance(value, Iterable) and not one else value


def words(name: str, value: object) -> tuple[str, ...] | None:
    """One word, or a list of them without repetitions; None stays None.

    Raises:
        TypeError: anything else.
        ValueError: a lone surrogate, which is no character.
    """
    if value is None:
        return None
    found = (value,) if isinstance(value, str) else texts(name, value)
    for word in found:
        if not _encodable(word):
            raise ValueError(f"{name}: holds a lone surrogate, which is no character")
    return tuple(str(word) for word in found)  # plain, where members of an enumeration were given


def known(name: str, value: object, vocabulary: Collection[str]) -> tuple[str, ...] | None:
    """Like ``words``, all of them from a vocabulary.

    Raises:
        TypeError: neither a word nor a list of words.
        ValueError: an unknown word; names those that are near it, or all.
    """
    found = words(name, value)
    for word in found or ():
        if word not in vocabulary:
            from difflib import get_close_matches

            near = get_close_matches(word, vocabulary, 4) or sorted(vocabulary)
            raise ValueError(f"{name}: {shown(word)} is no such word; there are {', '.join(near)}")
    return found


def past_ms(name: str, value: object, now_ms: int) -> int | None:
    """Milliseconds of an aware datetime, or of a timedelta back from now; None stays None.

    Raises:
        TypeError: anything else.
        ValueError: a datetime without time zone, or a negative timedelta.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise ValueError(f"{name}: a timedelta counts back from now; {value} is negative")
        return max(0, now_ms - value // _MS)
    if not isinstance(value, datetime):
        raise TypeError(f"{name}: must be a datetime or a timedelta, not {_kind(value)}")
    if value.utcoffset() is None:
        raise ValueError(f"{name}: has no time zone; use datetime.now(UTC)")
    return max(0, (value - _EPOCH) // _MS)


def statement(sql: object) -> str:
    """SQL as SQLite can take it.

    Raises:
        TypeError: no text.
        ValueError: NUL or a lone surrogate, which have no place in a statement.
    """
    found = text("sql", sql)
    if "\0" in found or not _encodable(found):
        raise ValueError("sql: holds NUL or a lone surrogate; pass values in params")
    return found


def bindings(params: object) -> tuple[object, ...] | dict[str, object]:
    """Values for the ``?`` or the ``:names`` of a statement.

    Returns:
        A tuple or a dict of its own.

    Raises:
        TypeError: neither a sequence nor a mapping, or a value of a kind that SQLite lacks.
        ValueError: an integer over 64 bits, or text with a lone surrogate.
    """
    if isinstance(params, Mapping):
        for name, value in params.items():
            _bindable(f"params[{shown(text('a name in params', name))}]", value)
        return dict(params)
    if not isinstance(params, Sequence) or isinstance(params, _BINDABLE):
        raise TypeError(f"params: must be a list, tuple or dict of values, not {_kind(params)}")
    for place, value in enumerate(params):
        _bindable(f"params[{place}]", value)
    return tuple(params)


def tags(value: object) -> Iterable[str]:
    """Something to take tags from; what is in it is looked at by ``options``.

    Raises:
        InvalidMessage: nothing to iterate over.
    """
    if not isinstance(value, Iterable):
        raise InvalidMessage(
            f"tags: must be a list of texts, not {_kind(value)}",
            header="tags",
            value=value,
            rule="option",
        )
    return value


def messages(value: object) -> Iterable[object]:
    """A stream of messages.

    Raises:
        TypeError: nothing to iterate over, or one message: its parts would be taken for messages.
    """
    one = isinstance(value, str | bytes | bytearray | memoryview) or hasattr(value, "get_payload")
    if one or not isinstance(value, Iterable):
        raise TypeError(
            f"messages: must be an iterable of messages, not {_kind(value)}"
            + ("; send() takes a single one" if one else "")
        )
    return value


def item(place: int, value: object) -> tuple[object, Mapping[str, object]]:
    """One item of ``messages``: a message alone, or a pair of it and its own options.

    Args:
        place: which one, from 0, for the error.

    Raises:
        TypeError: a tuple that is no such pair.
    """
    if not isinstance(value, tuple):
        return value, {}
    if len(value) == 2:
        message, own = value
        if isinstance(own, Mapping) and all(isinstance(name, str) for name in own):
            return message, own
    raise TypeError(
        f"messages[{place}]: a tuple must be a pair (message, options), the options a dict"
        " of keyword arguments of send()"
    )


def _bindable(where: str, value: object) -> None:
    if value is not None and not isinstance(value, _BINDABLE):
        raise TypeError(f"{where}: must be text, a number, bytes or None, not {_kind(value)}")
    if isinstance(value, int) and not _fits(value):
        raise ValueError(f"{where}: SQLite's integers have 64 bits; pass text or a float")
    if isinstance(value, str) and not _encodable(value):
        raise ValueError(f"{where}: holds a lone surrogate, which is no character")


def _fits(value: int) -> bool:
    # Compared, since a range looks through all its members for an instance of a subclass of int.
    return -(1 << 63) <= value < 1 << 63


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
