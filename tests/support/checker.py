"""The checker: what was promised, what arrived and what the spool says must agree.

Contract. A ``History`` is gathered from three independent witnesses and judged by ``check``:

* ``acknowledged``: what ``send()`` returned for (``unanswered``: sends that were begun and got no
  answer, because the client was killed or the outcome was unknown; they may arrive or not);
* ``seen``: what the sink had at the final dot *before* it answered;
* ``spool``: the recipients as the spool shows them after the run.

A pair (Message-ID, recipient) is the unit, so Message-IDs must be unique within a history. Rules:

==================  ==============================================================================
lost                acknowledged, not kept by the sink, and not queued, deferred, held, failed or
                    cancelled in the spool; or ``delivered`` in the spool more often than kept; or
                    not kept and failed without an attempt (in a finished run)
phantom             the sink saw what nobody sent
wrong_bytes         the sink saw other bytes than were sent
doubled_unmarked    the sink kept more copies than the pair has sends plus attempts in doubt
doubled_marked      allowed: kept more than once, each extra copy has an attempt marked in doubt
stuck               a row still ``sending`` or claimed after the run; in a finished run any row
                    that is neither final nor held: nothing else may wait when all is done
==================  ==============================================================================

A copy the sink refused (4xx, 5xx at the dot) is seen and not kept. A copy whose answer got lost is
kept: the receiver owns it (RFC 5321 section 6.1, RFC 1047). Pure: no clock, no files, no database.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields

Pair = tuple[str, str]

WAITING = frozenset({"queued", "deferred"})
SAFE = WAITING | {"held", "failed", "cancelled"}


def content_digest(wire: bytes) -> str:
    """Digest of a message's bytes as they stand on the wire, dots unstuffed.

    The final line end is supplied where missing, as the client must before the final dot (RFC 5321
    section 4.1.1.4).
    """
    terminated = wire if not wire or wire.endswith(b"\r\n") else wire + b"\r\n"
    return hashlib.sha256(terminated).hexdigest()


def recipient_key(address: str) -> str:
    """Address as the unit of a history: local part as given, domain in lower case."""
    local, at, domain = address.rpartition("@")
    return local + at + domain.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One recipient of one ``send()``.

    Args:
        id: what ``send()`` returned; any text of the harness for an unanswered one.
        message_id: the Message-ID header with its angle brackets.
        recipient: envelope address.
        digest: :func:`content_digest` of the bytes that must arrive, or None where unknown.
    """

    id: str
    message_id: str
    recipient: str
    digest: str | None

    @property
    def pair(self) -> Pair:
        """The unit of a history."""
        return (self.message_id, recipient_key(self.recipient))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One recipient of one content that reached the sink's final dot.

    Args:
        kept: whether the sink took it over: False when it answered, or was about to answer, 4xx or
            5xx at the dot.
        at: the sink's time, seconds, for the report only.
    """

    message_id: str
    recipient: str
    digest: str
    kept: bool = True
    at: float = 0.0

    @property
    def pair(self) -> Pair:
        """The unit of a history."""
        return (self.message_id, recipient_key(self.recipient))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recipient as the spool shows it after the run.

    Args:
        attempts: ``in_doubt`` of each attempt, in order.
        claimed: whether a claim is still on the row.
    """

    id: str
    message_id: str
    recipient: str
    status: str
    reason: str | None = None
    in_doubt: bool = False
    attempts: tuple[bool, ...] = ()
    claimed: bool = False

    @property
    def pair(self) -> Pair:
        """The unit of a history."""
        return (self.message_id, recipient_key(self.recipient))


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The three witnesses of a run.

    Args:
        finished: the run was given all the time it needed. False where it was cut: then rows may
            be waiting, and may have expired before their turn.
    """

    acknowledged: tuple[Sent, ...]
    seen: tuple[Seen, ...]
    spool: tuple[Row, ...]
    unanswered: tuple[Sent, ...] = ()
    finished: bool = True

    def __post_init__(self) -> None:
        """Refuse two sends that nobody could tell apart at the sink.

        Raises:
            ValueError: a (Message-ID, recipient) was sent twice.
        """
        counted = Counter(sent.pair for sent in (*self.acknowledged, *self.unanswered))
        twice = [pair for pair, count in counted.items() if count > 1]
        if twice:
            raise ValueError(
                f"{len(twice)} pairs were sent twice, first {twice[0]}: give each send of a "
                "history its own Message-ID"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One pair that breaks a rule, and a sentence saying how."""

    message_id: str
    recipient: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``check`` found; every field but ``doubled_marked`` must be empty."""

    lost: tuple[Finding, ...] = ()
    phantom: tuple[Finding, ...] = ()
    wrong_bytes: tuple[Finding, ...] = ()
    doubled_unmarked: tuple[Finding, ...] = ()
    stuck: tuple[Finding, ...] = ()
    doubled_marked: tuple[Finding, ...] = ()

    @property
    def clean(self) -> bool:
        """Nothing lost, phantom, altered, doubled without a mark, or stuck."""
        return not any(
            getattr(self, rule.name) for rule in fields(self) if rule.name != "doubled_marked"
        )

    def describe(self, limit: int = 10) -> str:
        """One line of counts, then at most ``limit`` findings of each rule that has any."""
        counts = " ".join(f"{rule.name}={len(getattr(self, rule.name))}" for rule in fields(self))
        lines = [counts]
        for rule in fields(self):
            found: tuple[Finding, ...] = getattr(self, rule.name)
            lines += [
                f"  {rule.name}: {one.message_id} to {one.recipient}: {one.text}"
                for one in found[:limit]
            ]
            if len(found) > limit:
                lines.append(f"  {rule.name}: {len(found) - limit} more")
        return "\n".join(lines)


def check(history: History) -> Report:
    """Judge a history by the rules of this module's table."""
    seen: dict[Pair, list[Seen]] = defaultdict(list)
    for one in history.seen:
        seen[one.pair].append(one)
    rows: dict[Pair, list[Row]] = defaultdict(list)
    for row in history.spool:
        rows[row.pair].append(row)
    kept = {pair: sum(copy.kept for copy in copies) for pair, copies in seen.items()}
    unmarked, marked = _doubled(kept, rows)
    return Report(
        lost=tuple(_lost(history, kept, rows)),
        phantom=tuple(_phantom(history, seen)),
        wrong_bytes=tuple(_wrong_bytes(history, seen)),
        doubled_unmarked=tuple(unmarked),
        stuck=tuple(_stuck(history.spool, history.finished)),
        doubled_marked=tuple(marked),
    )


def _finding(pair: Pair, text: str) -> Finding:
    return Finding(message_id=pair[0], recipient=pair[1], text=text)


def _lost(
    history: History, kept: dict[Pair, int], rows: dict[Pair, list[Row]]
) -> Iterable[Finding]:
    by_id = {(row.id, recipient_key(row.recipient)): row for row in history.spool}
    reported = set()
    for sent in history.acknowledged:
        if kept.get(sent.pair):
            continue
        row = by_id.get((sent.id, sent.pair[1]))
        if row is None:
            reported.add(sent.pair)
            yield _finding(sent.pair, f"acknowledged as {sent.id}, not at the sink, no row")
        elif row.status not in SAFE:
            reported.add(sent.pair)
            yield _finding(
                sent.pair, f"acknowledged as {sent.id}, the row says {row.status}, not at the sink"
            )
        elif history.finished and row.status == "failed" and not row.attempts:
            reported.add(sent.pair)
            yield _finding(
                sent.pair, f"acknowledged as {sent.id}, failed ({row.reason}) without an attempt"
            )
    for pair, own in rows.items():
        delivered = sum(row.status == "delivered" for row in own)
        if delivered > kept.get(pair, 0) and pair not in reported:
            yield _finding(
                pair, f"delivered {delivered} times by the spool, {kept.get(pair, 0)} at the sink"
            )


def _phantom(history: History, seen: dict[Pair, list[Seen]]) -> Iterable[Finding]:
    sent = {one.pair for one in (*history.acknowledged, *history.unanswered)}
    for pair, copies in seen.items():
        if pair not in sent:
            yield _finding(pair, f"at the sink {len(copies)} times, sent by nobody")


def _wrong_bytes(history: History, seen: dict[Pair, list[Seen]]) -> Iterable[Finding]:
    for sent in (*history.acknowledged, *history.unanswered):
        for copy in seen.get(sent.pair, ()):
            if sent.digest is not None and copy.digest != sent.digest:
                yield _finding(sent.pair, f"sent {sent.digest}, arrived {copy.digest}")


def _doubled(
    kept: dict[Pair, int], rows: dict[Pair, list[Row]]
) -> tuple[list[Finding], list[Finding]]:
    unmarked: list[Finding] = []
    marked: list[Finding] = []
    for pair, copies in kept.items():
        if copies < 2:
            continue
        marks = sum(sum(row.attempts) for row in rows.get(pair, ()))
        text = f"{copies} copies at the sink, {marks} attempts in doubt"
        (marked if marks >= copies - 1 else unmarked).append(_finding(pair, text))
    return unmarked, marked


def _stuck(spool: Iterable[Row], finished: bool) -> Iterable[Finding]:
    for row in spool:
        if row.status == "sending":
            yield _finding(row.pair, f"still sending as {row.id}")
        elif row.claimed:
            yield _finding(row.pair, f"still claimed as {row.id} ({row.status})")
        elif finished and row.status in WAITING:
            yield _finding(row.pair, f"still {row.status} as {row.id}")
