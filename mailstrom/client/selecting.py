"""The filters of ``find()`` and ``change_all()``: checked, normalised, and made a ``Selection``.

Addresses and domains become what ``send()`` stored them as. A filter that was given as an empty
list matches nothing; one that was not given (None) does not restrict.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypedDict

from mailstrom.client import arguments
from mailstrom.client.rooms import message_room
from mailstrom.storage.client import Selection
from mailstrom.types import Reason, Status


class Filters(TypedDict, total=False):
    """Keyword arguments of ``find()`` that say which messages are meant."""

    status: str | Iterable[str] | None
    reason: str | Iterable[str] | None
    recipient: str | Iterable[str] | None
    domain: str | Iterable[str] | None
    sender: str | Iterable[str] | None
    tag: str | Iterable[str] | None
    stream: str | Iterable[str] | None
    since: datetime | timedelta | None
    until: datetime | timedelta | None


def selection(filters: Filters, now_ms: int, timeout: float) -> Selection | None:
    """What the filters mean.

    Args:
        timeout: seconds to wait for the message room, which addresses need.

    Returns:
        None where nothing can match.

    Raises:
        TypeError, ValueError: names the filter; for addresses and domains an InvalidAddress.
    """
    given: dict[str, tuple[str, ...] | None] = {
        "statuses": arguments.known("status", filters.get("status"), tuple(Status)),
        "reasons": arguments.known("reason", filters.get("reason"), tuple(Reason)),
        "recipients": arguments.words("recipient", filters.get("recipient")),
        "domains": arguments.words("domain", filters.get("domain")),
        "senders": arguments.words("sender", filters.get("sender")),
        "tags": arguments.words("tag", filters.get("tag")),
        "streams": arguments.words("stream", filters.get("stream")),
    }
    since = arguments.past_ms("since", filters.get("since"), now_ms)
    until = arguments.past_ms("until", filters.get("until"), now_ms)
    for field, argument in (
        ("recipients", "recipient"), ("senders", "sender"), ("domains", "domain")
    ):  # fmt: skip
        values = given[field]
        if values:
            normal = {_normal(argument, value, timeout): None for value in values}
            given[field] = tuple(normal)
    if () in given.values():
        return None
    restricting: dict[str, Any] = {name: value for name, value in given.items() if value}
    return Selection(since_ms=since, until_ms=until, **restricting)


def address_key(argument: str, value: str, timeout: float) -> str:
    """An address as ``send()`` keeps it.

    Raises:
        InvalidAddress: it is none.
    """
    key: str = message_room(timeout).parse_address(value, header=argument).key
    return key


def _normal(argument: str, value: str, timeout: float) -> str:
    if argument == "domain":
        domain: str = message_room(timeout).address.parse_domain(value, header="domain")
        return domain
    if argument == "sender" and not value:
        return ""
    return address_key(argument, value, timeout)
