"""The account of a run: what was accepted, what the spool says, what the servers had.

Contract. Three independent witnesses are compared, pair by pair of (Message-ID, recipient):

==================  ==============================================================================
lost                accepted and not in the spool, or delivered there and not kept by a server
unmarked            kept by a server more often than once, without an attempt marked in doubt for
                    each further copy (RFC 1047)
marked              further copies that are so marked; allowed
altered             bytes at a server that are not the message's
phantom             kept by a server though nobody sent it
unplanned           a final status or reason other than the plan's, or kept by a server and failed
unfinished          not final in the spool
==================  ==============================================================================

A copy that the server refused at the dot is not kept. A message counts as delivered when all of
its recipients are, as failed when all are final and one is not delivered. Pure: values in, a value
out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mailstrom.demo.plan import Planned
from mailstrom.testing.records import Dot
from mailstrom.types import Status

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One accepted message.

    Args:
        id: what ``send()`` returned.
        digest: SHA-256 of the bytes for the wire, hexadecimal.
    """

    id: str
    planned: Planned
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A recipient as the spool shows it after the run.

    Args:
        words: the last reply, for people.
        doubts: attempts marked in doubt.
    """

    status: str
    reason: str | None
    words: str
    doubts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The figures, and a sentence for each finding.

    Args:
        accepted, delivered, failed: messages.
        recipients: status -> recipients.
        marked: further copies that are marked as in doubt.
    """

    accepted: int
    delivered: int
    failed: int
    recipients: Mapping[str, int]
    marked: int
    lost: tuple[str, ...]
    unmarked: tuple[str, ...]
    altered: tuple[str, ...]
    phantom: tuple[str, ...]
    unplanned: tuple[str, ...]
    unfinished: tuple[str, ...]

    @property
    def findings(self) -> dict[str, tuple[str, ...]]:
        """What must be empty, by its name."""
        return {
            "lost": self.lost,
            "unmarked duplicates": self.unmarked,
            "altered": self.altered,
            "phantom": self.phantom,
            "unplanned": self.unplanned,
            "unfinished": self.unfinished,
        }

    @property
    def sound(self) -> bool:
        """Whether there is nothing to report."""
        return not any(self.findings.values())

    @property
    def line(self) -> str:
        """The last line of the demonstration."""
        return (
            f"demo: {self.accepted} accepted, {self.delivered} delivered, {self.failed} failed,"
            f" {len(self.lost)} lost, {len(self.unmarked)} unmarked duplicates"
        )


def wire_digest(content: bytes) -> str:
    """SHA-256, hexadecimal, of content as a server sees it.

    The last line end is supplied where it is missing (RFC 5321 section 4.1.1.4).
    """
    ended = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
    return hashlib.sha256(ended).hexdigest()


def audit(
    accepted: Iterable[Accepted], spool: Mapping[Pair, Outcome], dots: Iterable[Dot]
) -> Audit:
    """Compare the witnesses.

    Args:
        accepted: what the library said yes to.
        spool: (message id, address) -> outcome, every recipient of the spool.
        dots: what the servers recorded before they answered.
    """
    messages = tuple(accepted)
    digests: dict[Pair, list[str]] = defaultdict(list)
    kept: Counter[Pair] = Counter()
    for dot in dots:
        for address in dot.recipients:
            digests[dot.message_id, address].append(dot.digest)
            kept[dot.message_id, address] += dot.kept
    found: dict[str, list[str]] = defaultdict(list)
    words: Counter[str] = Counter()
    delivered = failed = marked = 0
    known: set[Pair] = set()
    for one in messages:
        own: list[str] = []
        for address in one.planned.addresses:
            pair = (one.planned.message_id, address)
            known.add(pair)
            row = spool.get((one.id, address))
            own.append("" if row is None else row.status)
            copies = kept[pair]
            for kind, text in _findings(one, row, copies):
                found[kind].append(f"{address} ({one.id}): {text}")
            if any(digest != one.digest for digest in digests.get(pair, ())):
                found["altered"].append(f"{address} ({one.id}): other bytes than were accepted")
            if copies > 1 and row is not None and row.doubts >= copies - 1:
                marked += copies - 1
        words.update(status for status in own if status)
        if all(status == Status.DELIVERED for status in own):
            delivered += 1
        elif all(status and Status(status).final for status in own):
            failed += 1
    for pair in kept.keys() - known:
        found["phantom"].append(f"{pair[1]} ({pair[0]}): at a server, accepted from nobody")
    return Audit(
        accepted=len(messages),
        delivered=delivered,
        failed=failed,
        recipients=dict(words),
        marked=marked,
        lost=tuple(found["lost"]),
        unmarked=tuple(found["unmarked"]),
        altered=tuple(found["altered"]),
        phantom=tuple(found["phantom"]),
        unplanned=tuple(found["unplanned"]),
        unfinished=tuple(found["unfinished"]),
    )


def _findings(one: Accepted, row: Outcome | None, copies: int) -> Iterator[tuple[str, str]]:
    if row is None:
        yield "lost", f"accepted, not in the spool, {copies} copies at a server"
        return
    if row.status == Status.DELIVERED and not copies:
        yield "lost", "delivered says the spool, but no server has it"
    if copies > 1 and row.doubts < copies - 1:
        yield "unmarked", f"{copies} copies at a server, {row.doubts} attempts marked in doubt"
    if not Status(row.status).final:
        yield "unfinished", f"{row.status} ({row.reason or 'no reason'}) {row.words}".rstrip()
        return
    plan = one.planned
    if (row.status, row.reason) != (plan.status, plan.reason):
        expected = plan.status if plan.reason is None else f"{plan.status} ({plan.reason})"
        got = row.status if row.reason is None else f"{row.status} ({row.reason})"
        yield "unplanned", f"planned {expected}, is {got} {row.words}".rstrip()
    elif copies and row.status != Status.DELIVERED:
        yield "unplanned", f"{row.status} says the spool, and a server has it"
