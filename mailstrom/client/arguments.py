"""Arguments of the client's methods: checked before anything happens, named in the error.

A wrong type is a ``TypeError``, a value that no call could use a ``ValueError``: both are mistakes
of the calling program. What belongs to a message (``options``) is an ``InvalidMessage`` instead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

from mailstrom.errors import InvalidMessage

LONGEST_TIMEOUT_S = 86_400.0
"""A day: more than anybody waits for a lock, and fits what SQLite and the threads can count."""

_BINDABLE = (str, int, float, bytes, bytearray, memoryview)
_INTEGERS = range(-(1 << 63), 1 << 63)


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
            _bindable(f"params[{text('a name in params', name)!r}]", value)
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
    if isinstance(value, int) and value not in _INTEGERS:
        raise ValueError(f"{where}: SQLite's integers have 64 bits; pass text or a float")
    if isinstance(value, str) and not _encodable(value):
        raise ValueError(f"{where}: holds a lone surrogate, which is no character")


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
