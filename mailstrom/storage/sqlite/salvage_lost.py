"""Recipients and messages that a salvage must leave out: it names them by every trace of them.

Contract. Traces are, from the best: a row of the recipient that does not fit; its entry in the
index over message and address, which lies on other pages; its number in events and attempts; and a
hole in the numbers. Recipients get theirs one after another in the transaction that accepts the
message, and messages likewise, so from the first recipient of a message to the last of the next
message none is missing. Reads the scratch database; decides nothing about what is taken along.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import apsw

from mailstrom.storage.sqlite.rows import checksum
from mailstrom.storage.sqlite.salvage_report import Damaged
from mailstrom.storage.sqlite.sql import run

_BETWEEN = (
    "recipients between this message and the one after it are lost, or were left out by a salvage"
    " before"
)


class Missing(NamedTuple):
    """Recipients of one message that are not taken along.

    Args:
        addresses: as a row or the index names them.
        unnamed: so many more are known by their numbers only.
    """

    addresses: tuple[str, ...]
    unnamed: int


class Traces:
    """What is left of recipients; messages are to be asked in the order of their numbers.

    Args:
        new: the connection with the scratch database.
    """

    def __init__(self, new: apsw.Connection) -> None:
        self._new = new
        self._before: tuple[int, str, str, int] | None = None  # number, id, sender, last recipient

    def missing(
        self, message: dict[str, Any], found: list[dict[str, Any]], taken: list[dict[str, Any]]
    ) -> Missing:
        """Who is missing of a message.

        Args:
            message: its row.
            found: all rows of its recipients.
            taken: those of them that are taken along, under the numbers that they had.
        """
        number = message["seq"]
        seqs, addresses = {row["seq"] for row in taken}, {row["address"] for row in taken}
        lost: dict[str, None] = {}
        named: set[int] = set()
        for row in found:
            own = row["checksum"] == checksum(
                message["id"], message["sender"], row["address"], row["notify"], row["orcpt"]
            )
            if row["address"] not in addresses and (own or row["seq"] not in seqs):
                lost[row["address"]] = None
                named.add(row["seq"])
        numbers = {row["address"]: row["seq"] for row in taken}
        for address, seq in run(self._new, "found_addresses", {"message": number}):
            if address in numbers:
                numbers[address] = seq
            elif seq not in seqs:
                lost[address] = None
                named.add(seq)
                numbers[address] = seq
        told = {seq for (seq,) in run(self._new, "found_told", {"message": number})}
        unnamed = len(told - seqs - named)
        if numbers:
            first, last = min(numbers.values()), max(numbers.values())
            unnamed = max(unnamed, self._hole(first, last, seqs | named))
        return Missing(tuple(lost), unnamed)

    def between(self, message: dict[str, Any], taken: list[dict[str, Any]]) -> Iterator[Damaged]:
        """Recipients between this message and the one before it, of which only a hole is left."""
        numbers = {row["seq"] for row in taken}
        entries = run(self._new, "found_addresses", {"message": message["seq"]})
        numbers |= {seq for _, seq in entries}
        if not numbers:
            return
        if self._before is not None and self._before[0] == message["seq"] - 1:
            _, id, sender, last = self._before
            hole = self._hole(last, min(numbers), {last, min(numbers)})
            if hole:
                yield Damaged(
                    id=id, sender=sender, recipients=(), unnamed=hole, kept=False, why=_BETWEEN
                )
        self._before = message["seq"], message["id"], message["sender"], max(numbers)

    def _hole(self, first: int, last: int, known: set[int]) -> int:
        """How many numbers from first to last nobody has."""
        inside = sum(first <= seq <= last for seq in known)
        if last - first + 1 <= inside:
            return 0
        taken: int = run(self._new, "found_numbers", {"first": first, "last": last})[0][0]
        return max(last - first + 1 - taken, 0)


def lost_messages(new: apsw.Connection) -> Iterator[Damaged]:
    """Messages whose own row is lost, with all that the rest tells of them."""
    for number, id in run(new, "found_lost"):
        rows = run(new, "found_lost_recipients", {"message": number})
        seqs = {seq for _, seq in rows}
        told = {seq for (seq,) in run(new, "found_told", {"message": number})}
        yield Damaged(
            id=id,
            recipients=tuple(dict.fromkeys(address for address, _ in rows)),
            unnamed=len(told - seqs),
            kept=False,
            why=f"the row of its message (number {number}) is lost",
        )
