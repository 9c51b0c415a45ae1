"""Facts about recipients and what may keep them, read in one snapshot (``ClientStore.facts``).

Every statement seeks (``facts.sql``): what it costs grows with the recipients that are asked about,
not with the queue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import apsw

from mailstrom.storage.client import Target
from mailstrom.storage.facts import (
    COUNTED,
    Facts,
    LaneFacts,
    RecipientFacts,
    RouteFacts,
    SiteFacts,
    WorkerFacts,
)
from mailstrom.storage.sqlite.sql import run
from mailstrom.types import RouteResult, Status

ROUTE_GRACE_MS = 60_000
"""So long after its route expired a domain's rows may still be claimed; the views know it, too."""
PLACED = 500
"""For so many recipients it is counted who is due before them."""


def facts(
    connection: apsw.Connection,
    targets: Sequence[Target],
    now_ms: int,
    *,
    log_full: bool,
    room_bytes: int | None,
    trouble: str | None,
) -> Facts:
    """What is known of these recipients and of the spool.

    Args:
        connection: in a transaction, since this looks several times.
        log_full: whether the write-ahead log is at its limit.
        room_bytes: free space where results go, or None.
        trouble: why nothing can be made durable now, or None.
    """
    rows = _recipients(connection, targets, now_ms)
    sites = _sites(connection, rows)
    seen = [row[17] for row in rows if row[18] is not None and row[6] is not None]
    ahead = _ahead(connection, seen[:PLACED], now_ms)
    copied_ms, copied_from, max_connections = run(connection, "facts_spool")[0]
    return Facts(
        workers=tuple(WorkerFacts(*row) for row in run(connection, "facts_workers")),
        copied_ms=copied_ms,
        copied_from=copied_from,
        log_full=log_full,
        room_bytes=room_bytes,
        trouble=trouble,
        max_connections=max_connections,
        recipients=tuple(_recipient(row, sites, ahead) for row in rows),
    )


def _recipients(connection: apsw.Connection, targets: Sequence[Target], now_ms: int) -> list[Any]:
    wanted = json.dumps([[target.id, target.address] for target in targets])
    values = {"targets": wanted, "now_ms": now_ms, "grace_ms": ROUTE_GRACE_MS}
    return run(connection, "facts_recipients", values)


def _sites(connection: apsw.Connection, rows: Sequence[Any]) -> dict[int, SiteFacts]:
    wanted = json.dumps(sorted({row[18] for row in rows if row[18] is not None}))
    found = run(connection, "facts_sites", {"sites": wanted})
    return {seq: SiteFacts._make([*values, bool(canary)]) for seq, *values, canary in found}


def _ahead(connection: apsw.Connection, recipients: Sequence[int], now_ms: int) -> dict[int, int]:
    values = {"recipients": json.dumps(recipients), "now_ms": now_ms, "most": COUNTED}
    return dict(run(connection, "facts_ahead", values))


def _recipient(row: Any, sites: dict[int, SiteFacts], ahead: dict[int, int]) -> RecipientFacts:
    (
        id, address, domain, status, reason, claimed, due_ms, created_ms, send_ms, expires_ms,
        finished_ms, attempts, in_doubt, mx, code, enhanced, text, seq, site, known, result, error,
        route_expires_ms, retry_ms, router, stale, lane, worker, pid, name, lock, host, at,
        opened_ms,
    ) = row  # fmt: skip
    route = None
    if known:
        found = None if result is None else RouteResult(result)
        route = RouteFacts(found, error, route_expires_ms, retry_ms, router)
    held = None
    if lane is not None:
        held = LaneFacts(worker or 0, pid, name, lock, lane, host, at, opened_ms)
    return RecipientFacts(
        message_id=id,
        address=address,
        domain=domain,
        status=Status(status),
        reason=reason,
        claimed=bool(claimed),
        due_ms=due_ms,
        created_ms=created_ms,
        send_ms=send_ms,
        expires_ms=expires_ms,
        finished_ms=finished_ms,
        attempts=attempts,
        in_doubt=bool(in_doubt),
        mx=mx,
        reply_code=code,
        enhanced_code=enhanced,
        reply_text=text,
        site=sites.get(site),
        route=route,
        stale=bool(stale),
        lane=held,
        ahead=ahead.get(seq),
    )
