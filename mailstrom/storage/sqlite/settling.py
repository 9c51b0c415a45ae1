"""Settling: verdicts become states, attempts, events and sums; steps of one transaction.

Every verdict is guarded by its lane's token and the recipient's state. One whose guard no longer
holds is late: it is recorded, and a late delivery still counts where nothing contradicts it.

What ended alike is written by set statements. The attempts come first, with the guard; the states,
events and sums are then made from the attempts just written, which have the newest numbers, side by
side and in the order of the verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from mailstrom.storage.base import Attempt, Settlement
from mailstrom.storage.sqlite import reports
from mailstrom.storage.sqlite.encoding import encoded
from mailstrom.storage.sqlite.sql import run, wrote
from mailstrom.types import Judgement

SUCCESS_MS = 1_000
"""A site's last success is written at most once in this time."""


class AttemptRow(NamedTuple):
    """One attempt to be recorded."""

    recipient: int
    session: str | None
    started_ms: int
    ended_ms: int
    stage: str
    host: str | None
    address: str | None
    code: int | None
    enhanced: str | None
    text: str | None
    verdict: str
    reason: str | None
    in_doubt: int
    late: int
    worker: int | None

    @property
    def alike(self) -> _Alike:
        """What attempts that ended alike have in common."""
        return _Alike(*self[4:9], *self[10:])


class _Alike(NamedTuple):
    """What attempts of one set statement have in common.

    Args:
        host, address: None where each row has its own.
    """

    stage: str
    host: str | None
    address: str | None
    code: int | None
    enhanced: str | None
    verdict: str
    reason: str | None
    in_doubt: int
    late: int
    worker: int | None


class _Site(NamedTuple):
    """A lane's worker and site, as the rows say."""

    worker: int
    site: int
    failures: int
    last_success_ms: int


def rounds(settlements: Sequence[Settlement]) -> list[Sequence[Settlement]]:
    """Settlements in order, cut so that no recipient is twice in a set statement."""
    if len({s.recipient for s in settlements}) == len(settlements):
        return [settlements] if settlements else []
    rounds: list[list[Settlement]] = []
    seen: set[int] = set()
    for settlement in settlements:
        if not rounds or settlement.recipient in seen:
            rounds.append([])
            seen = set()
        seen.add(settlement.recipient)
        rounds[-1].append(settlement)
    return list(rounds)


def settle(connection: apsw.Connection, settlements: Sequence[Settlement], now_ms: int) -> set[int]:
    """Settle recipients, each once; returns those whose guard held, the others are late."""
    sites = _sites(connection, settlements)
    tried: dict[tuple[Any, ...], list[tuple[Settlement, Attempt]]] = {}
    untried: list[Settlement] = []
    for s in settlements:
        a = s.attempt
        if a is None:
            untried.append(s)
            continue
        site = sites.get(s.lane)
        alike = (
            s.state, s.reason, s.charge, a.tls, a.stage, a.reply_code, a.enhanced_code, a.verdict,
            a.reason, a.in_doubt, site and site.worker,
        )  # fmt: skip
        group = tried.get(alike)
        if group is None:
            group = tried[alike] = []
        group.append((s, a))
    settled: set[int] = set()
    written: list[tuple[list[Settlement], _Alike, int]] = []
    for alike, group in tried.items():
        held, same, last = _settle_alike(connection, alike, group)
        if held:
            settled.update([s.recipient for s in held])
            written.append((held, same, last))
    if untried:
        settled |= _settle_untried(connection, untried, now_ms)
    if written:
        _note_deliveries(connection, {s.lane for held, *_ in written for s in held
                                      if s.state == "delivered"}, sites, now_ms)  # fmt: skip
        for held, same, last in written:
            if held[0].state != "claimed":  # the next host may still take it: no event yet
                _tell(connection, same, len(held), last)
        recipients = [s.recipient for held, *_ in written for s in held]
        due = [s.recipient for held, same, _ in written if same.verdict != "delivered"
               for s in held]  # fmt: skip
        _sum_up(connection, recipients, due, now_ms)
    if len(settled) < len(settlements):
        for s in settlements:
            if s.recipient not in settled and s.attempt is not None:
                _settle_late(connection, s, s.attempt, now_ms)
    confirmed = [s.recipient for s in settlements if s.confirmed]
    if confirmed:
        reports.confirmed(connection, confirmed)
    return settled


def _sites(connection: apsw.Connection, settlements: Sequence[Settlement]) -> dict[int, _Site]:
    """Of each lane that is left: its worker and its site."""
    lanes = encoded(list({s.lane for s in settlements if s.attempt is not None}))
    rows = run(connection, "lane_sites", {"lanes": lanes})
    return {row[0]: _Site(*row[1:]) for row in rows}


def _settle_alike(
    connection: apsw.Connection,
    alike: tuple[Any, ...],
    group: list[tuple[Settlement, Attempt]],
) -> tuple[list[Settlement], _Alike, int]:
    """Those whose guard held, in order; what they have in common; the last attempt's number."""
    state, reason, charge, tls, *_ = alike
    first, worker = group[0][1], alike[-1]
    where = first.host, first.address
    shared = {(a.host, a.address) for _, a in group} == {where}
    same = _Alike(
        str(first.stage),
        first.host if shared else None,
        first.address if shared else None,
        first.reply_code,
        first.enhanced_code,
        str(first.verdict),
        None if first.reason is None else str(first.reason),
        int(first.in_doubt),
        0,
        worker,
    )
    rows: list[tuple[Any, ...]] = [
        (s.recipient, s.lane, a.session, a.started_ms, a.ended_ms, a.reply_text) for s, a in group
    ]
    if not shared:
        rows = [(*row, a.host, a.address) for row, (_, a) in zip(rows, group, strict=True)]
    count, last = _attempt(connection, same, rows, state)
    held = [s for s, _ in group]
    if not count:
        return [], same, last
    if count < len(group):
        kept = {row[0] for row in run(connection, "attempted", {"first": last - count + 1})}
        held = [s for s in held if s.recipient in kept]
    deferred = state == "deferred"
    values = {
        "first": last - count + 1,
        "dues": encoded([s.due_ms if deferred else None for s in held]),
        "state": state,
        "reason": None if reason is None else str(reason),
        "charge": int(charge and deferred),
        "in_doubt": same.in_doubt,
        "code": same.code,
        "enhanced": same.enhanced,
        "tls": tls,
    }
    run(connection, "settle", values)
    return held, same, last


def _attempt(
    connection: apsw.Connection, same: _Alike, rows: list[tuple[Any, ...]], state: str | None
) -> tuple[int, int]:
    """Write attempts; how many, and the number of the last one.

    Args:
        rows: recipient, lane, session, start, end, text; host and address where they differ.
        state: what the recipients are about to become, where their guard holds; None: they are
            counted and in their state already.
    """
    values = {
        "rows": encoded(rows),
        "state": state,
        "ahead": int(state is not None),
        "stage": same.stage,
        "host": same.host,
        "address": same.address,
        "code": same.code,
        "enhanced": same.enhanced,
        "verdict": same.verdict,
        "reason": same.reason,
        "in_doubt": same.in_doubt,
        "late": same.late,
        "worker": same.worker,
    }
    return wrote(connection, "attempt", values), connection.last_insert_rowid()


def _settle_untried(
    connection: apsw.Connection, settlements: list[Settlement], now_ms: int
) -> set[int]:
    """Claims that end, or go on, without another attempt: what a host said before stands."""
    rows = [
        (s.recipient, s.lane, s.state, None if s.state == "claimed" else s.due_ms, int(s.charge))
        for s in settlements
    ]
    settled = {row[0] for row in run(connection, "settle_untried", {"rows": encoded(rows)})}
    released = [s for s in settlements if s.recipient in settled and s.state != "claimed"]
    if released:
        text = encoded([s.recipient for s in released])
        run(connection, "lower_next_due", {"recipients": text})
    deferred = [s.recipient for s in released if s.state == "deferred"]
    if deferred:
        text = encoded(deferred)
        for name in ("deferral_events", "count_hour"):
            run(connection, name, {"recipients": text, "now_ms": now_ms})
    return settled


def _note_deliveries(
    connection: apsw.Connection, lanes: set[int], sites: dict[int, _Site], now_ms: int
) -> None:
    """A delivery tells that its site works."""
    served = {sites[lane].site: sites[lane] for lane in lanes if lane in sites}
    news = [
        site
        for site in served.values()
        if site.failures or site.last_success_ms < now_ms - SUCCESS_MS
    ]
    for site in news:
        if site.failures:
            site_event(connection, site.site, "site.resumed", now_ms)
    if news:
        text = encoded([site.site for site in news])
        run(connection, "site_success", {"sites": text, "now_ms": now_ms})


def _settle_late(
    connection: apsw.Connection, settlement: Settlement, attempt: Attempt, now_ms: int
) -> None:
    """Record a fenced worker's verdict; a delivery still counts where nothing contradicts it."""
    run(connection, "count_late", {"recipient": settlement.recipient})
    moved: list[Any] = []
    if attempt.verdict is Judgement.DELIVERED:
        moved = run(
            connection,
            "late_truth",
            {
                "recipient": settlement.recipient,
                "started_ms": attempt.started_ms,
                "ended_ms": attempt.ended_ms,
                "code": attempt.reply_code,
                "enhanced": attempt.enhanced_code,
                "text": attempt.reply_text,
                "mx": attempt.host,
                "tls": attempt.tls,
            },
        )
    worker = run(connection, "lane_worker", {"lane": settlement.lane})
    row = AttemptRow(
        recipient=settlement.recipient,
        session=attempt.session,
        started_ms=attempt.started_ms,
        ended_ms=attempt.ended_ms,
        stage=str(attempt.stage),
        host=attempt.host,
        address=attempt.address,
        code=attempt.reply_code,
        enhanced=attempt.enhanced_code,
        text=attempt.reply_text,
        verdict=str(attempt.verdict),
        reason=None if attempt.reason is None else str(attempt.reason),
        in_doubt=int(attempt.in_doubt),
        late=1,
        worker=worker[0][0] if worker else None,
    )
    quiet = settlement.state == "claimed"
    record(connection, [row], now_ms, counted=bool(moved), quiet=quiet)
    if not moved and not quiet:
        run(connection, "uncounted_event", {"recipient": settlement.recipient})


def record(
    connection: apsw.Connection,
    rows: Sequence[AttemptRow],
    now_ms: int,
    *,
    counted: bool = True,
    quiet: bool = False,
) -> None:
    """Attempts, events, hourly sums, finished messages and due times of changed recipients.

    Args:
        rows: the attempts; their recipients count them already.
        counted: whether the hourly sums count the states that the recipients have now.
        quiet: the next host may still take them: attempts, and no event yet.
    """
    groups: dict[_Alike, list[AttemptRow]] = {}
    for row in rows:
        groups.setdefault(row.alike, []).append(row)
    for same, group in groups.items():
        values = [
            (row.recipient, None, row.session, row.started_ms, row.ended_ms, row.text)
            for row in group
        ]
        count, last = _attempt(connection, same, values, None)
        if count and not quiet:
            _tell(connection, same, count, last)
    if rows:
        due = [row.recipient for row in rows if row.verdict != "delivered"]
        _sum_up(connection, [row.recipient for row in rows], due, now_ms, counted=counted)


def _tell(connection: apsw.Connection, same: _Alike, count: int, last: int) -> None:
    """One event for each attempt just written, with the reply; which attempt it was is told too."""
    detail = {
        "code": same.code,
        "enhanced": same.enhanced,
        "reason": same.reason,
        "in_doubt": same.in_doubt,
        "late": same.late,
    }
    values = {
        "first": last - count + 1,
        "last": last,
        "type": f"recipient.{same.verdict}",
        "head": '{"stage":' + encoded(same.stage) + ',"host":',
        "host": None if same.host is None else encoded(same.host),
        "tail": "," + encoded(detail)[1:-1] + ',"number":',
    }
    run(connection, "recipient_events", values)


def _sum_up(
    connection: apsw.Connection,
    recipients: list[int],
    due: list[int],
    now_ms: int,
    *,
    counted: bool = True,
) -> None:
    """Hourly sums, finished messages, and sites that are due earlier now."""
    values = {"recipients": encoded(recipients), "now_ms": now_ms}
    if counted:
        run(connection, "count_hour", values)
    run(connection, "finish_messages", values)
    if due:
        run(connection, "lower_next_due", {"recipients": encoded(due)})


def site_event(connection: apsw.Connection, site: int, type: str, now_ms: int) -> None:
    """An event about a site, with what its row says now."""
    run(connection, "site_event", {"site": site, "at_ms": now_ms, "type": type})
