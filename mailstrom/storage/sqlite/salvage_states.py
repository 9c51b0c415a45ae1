"""What a salvaged recipient is, and what its attempts say: pure decisions over rows.

A row belongs to a message if it fits the checksum over both. A state is one that the new spool can
hold: what was claimed or on the wire is in doubt, what has lost its content is failed, a delivery
that an attempt tells of counts; and attempts agree with their recipient's row, as ``store check``
wants it. No digest covers times: what waits is due at once, or when its sender said, and a time
that nobody can have meant is made anew (``timed``). Knows no file and no database.
"""

from __future__ import annotations

from typing import Any

from mailstrom.storage.sqlite.rows import checksum, domain_of
from mailstrom.types import Judgement, OnDoubt, Reason, Stage

_FINAL = frozenset({"delivered", "failed", "cancelled"})
_WAITING = frozenset({"queued", "deferred"})
_WIRE = frozenset({"claimed", "sending"})
_STATES = _FINAL | _WAITING | _WIRE | {"held"}
_LOST = "it was claimed or on the wire when the spool was damaged; nobody knows how it ended"
TOLD = "recovered from the recipient's own row; the record of the attempt is lost"
_DAMAGED = "the stored content is not what was accepted; it is not delivered"

_DAY_MS = 86_400_000
MAX_AGE_MS = 5 * _DAY_MS
"""Where the spool's own default is lost: as in the schema."""
_LONGEST_MS = 366 * _DAY_MS
"""Nobody asks for mail to be tried longer than this, or sends it later than this."""
_CLOCK_MS = _DAY_MS
"""A clock may have been wrong by this much when the message came."""

STAGES = frozenset(map(str, Stage))
VERDICTS = frozenset(map(str, Judgement))


def proved(message: dict[str, Any], recipients: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of those rows that belong to this message, the newest of each."""
    own: dict[int, dict[str, Any]] = {}
    addresses: set[str] = set()
    for row in recipients:
        whole = (
            row["seq"] not in own
            and row["address"] not in addresses
            and checksum(
                message["id"], message["sender"], row["address"], row["notify"], row["orcpt"]
            )
            == row["checksum"]
            and domain_of(row["address"]) == row["domain"]
            and row["state"] in _STATES
        )
        if whole:
            own[row["seq"]] = {**row, "priority": message["priority"]}
            addresses.add(row["address"])
    return list(own.values())


def timed(message: dict[str, Any], max_age_ms: int, now_ms: int) -> dict[str, Any]:
    """A copy of the message's row whose times can be meant: created, sent, expired, in this order.

    Args:
        max_age_ms: for an expiry that must be made anew.
    """
    created, send, expires = message["created_ms"], message["send_ms"], message["expires_ms"]
    if not 0 < created <= now_ms + _CLOCK_MS:
        created = min(send, now_ms) if 0 < send < expires else now_ms
    if not created <= send <= created + _LONGEST_MS or send >= expires > created:
        send = created
    if not send < expires <= send + _LONGEST_MS:
        expires = max(send, now_ms) + max_age_ms
    return {**message, "created_ms": created, "send_ms": send, "expires_ms": expires}


def _due(row: dict[str, Any], message: dict[str, Any], now_ms: int) -> int:
    """When a recipient that waits is due: now, or, never tried, when its sender said.

    Where the two that say so differ, the later counts if the message was to wait at all.
    """
    send: int = message["send_ms"]
    due = row["due_ms"]
    untried = row["state"] == "queued" and row["last_ms"] is None
    if untried and send > message["created_ms"] and isinstance(due, int):
        return max(now_ms, send, due if due < message["expires_ms"] else 0)
    return max(now_ms, send)


def settled(
    row: dict[str, Any],
    message: dict[str, Any],
    attempts: list[dict[str, Any]],
    damaged: bool,
    now_ms: int,
) -> bool:
    """Make a row one that waits, is held or is final; True where it is in doubt from now on.

    Args:
        message: its row, as ``timed`` made it.
    """
    doubtful = row["state"] in _WIRE
    delivered = next((a for a in attempts if a["verdict"] == "delivered" and not a["late"]), None)
    if row["state"] not in _FINAL and delivered is not None:
        row.update(state="delivered", reason=None, finished_ms=delivered["ended_ms"],
                   last_ms=delivered["ended_ms"])  # fmt: skip
        doubtful = False
    if doubtful:
        held = message["on_doubt"] == OnDoubt.HOLD
        row.update(
            state="held" if held else "deferred",
            reason=str(Reason.IN_DOUBT),
            doubts=row["doubts"] + 1,
            deferrals=row["deferrals"] + 1,
            due_ms=now_ms,
            last_ms=now_ms,
            reply_code=None,
            enhanced_code=None,
            reply_text=_LOST,
        )
        attempts.append(_attempt(row, len(attempts) + 1, str(Reason.IN_DOUBT), 1, _LOST, now_ms))
    if damaged and row["state"] not in _FINAL:
        row.update(state="failed", reason=str(Reason.DAMAGED), finished_ms=now_ms, last_ms=now_ms,
                   reply_code=None, enhanced_code="5.3.0", reply_text=_DAMAGED)  # fmt: skip
        attempts.append(_attempt(row, len(attempts) + 1, str(Reason.DAMAGED), 0, _DAMAGED, now_ms))
    final = row["state"] in _FINAL
    row["due_ms"] = _due(row, message, now_ms) if row["state"] in _WAITING else None
    row["finished_ms"] = min(row["finished_ms"] or now_ms, now_ms) if final else None
    if row["state"] in ("failed", "held") and row["reason"] is None:
        row["reason"] = str(Reason.DAMAGED if row["state"] == "failed" else Reason.USER)
    marks = sum(a["in_doubt"] and not a["late"] for a in attempts)
    if row["in_doubt"] and not marks:  # its attempt is lost; that it was in doubt is not
        attempts.append(_attempt(row, len(attempts) + 1, row["reason"], 1, TOLD, now_ms))
        marks += 1
    if row["state"] == "delivered" and not any(a["verdict"] == "delivered" for a in attempts):
        attempts.append(_attempt(row, len(attempts) + 1, None, 0, TOLD, now_ms))
    row["in_doubt"], row["doubts"] = int(marks > 0), min(max(row["doubts"], 0), marks)
    row["attempts"] = len(attempts)
    row["deferrals"] = min(max(row["deferrals"], 0), len(attempts))
    return doubtful


def _attempt(
    row: dict[str, Any], number: int, reason: str | None, in_doubt: int, text: str, now_ms: int
) -> dict[str, Any]:
    """An attempt that says what the recipient's row says."""
    verdict = row["state"] if row["state"] in VERDICTS else "deferred"
    at_ms = row["last_ms"] or now_ms
    return {
        "seq": None,
        "message": row["message"],
        "recipient": row["seq"],
        "number": number,
        "session": None,
        "worker": None,
        "started_ms": row["opened_ms"] or at_ms,
        "ended_ms": at_ms,
        "stage": str(Stage.BODY if reason == Reason.DAMAGED else Stage.DOT),
        "host": row["mx"],
        "address": None,
        "reply_code": row["reply_code"],
        "enhanced_code": row["enhanced_code"],
        "reply_text": text,
        "verdict": verdict,
        "reason": reason,
        "in_doubt": in_doubt,
        "late": 0,
    }
