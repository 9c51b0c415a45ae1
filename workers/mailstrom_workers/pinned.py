"""The alarm over a write-ahead log that some process keeps from being emptied.

Fed by the janitor with what its checkpoints find. Says ``store.pinned`` once the state has lasted a
moment (a crowd of short readers is no pin), again each minute while it lasts, at once when the
limit is reached, soon when who was named holds it no more and another does, and ``store.unpinned``
at its end. Pure but for the log lines.
"""

from __future__ import annotations

from mailstrom import events
from mailstrom.storage.pinned import Pinned, mebibytes

PATIENCE_MS = 1_000
AGAIN_MS = 60_000
CHANGED_MS = 5_000
"""Who was named was ended, perhaps for that, and another holds the log: so soon it is said anew."""


class PinAlarm:
    """One spool's alarm.

    Args:
        store: its name, for the log.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._since: dict[int, int] = {}  # process -> when it was first seen to hold the log
        self._began_ms: int | None = None
        self._said_ms: int | None = None
        self._said_pid: int | None = None  # who was named then
        self._said_full = False
        self.full = False
        """Whether the log was at its limit when it was looked at last."""

    def look(self, found: Pinned | None, wal_bytes: int, now_ms: int) -> None:
        """Take in what a checkpoint found.

        Args:
            found: who holds the log; None where it is not over its alarm, or was emptied.
            wal_bytes: its length.
            now_ms: monotonic time.
        """
        if found is None:
            self._end(wal_bytes, now_ms)
            return
        if self._began_ms is None:
            self._began_ms = now_ms
        holding = {one.pid for one in found.holders}
        self._since = {pid: since for pid, since in self._since.items() if pid in holding}
        for pid in holding:
            self._since.setdefault(pid, now_ms)
        self.full = wal_bytes >= found.limit_bytes
        if now_ms - self._began_ms < PATIENCE_MS and not self.full:
            return
        news = self.full and not self._said_full
        again_ms = CHANGED_MS if self._changed(found, now_ms) else AGAIN_MS
        if self._said_ms is None or now_ms - self._said_ms >= again_ms or news:
            self._say(found, wal_bytes, now_ms)

    def _changed(self, found: Pinned, now_ms: int) -> bool:
        """Whether who was named holds the log no more, and another has for more than a moment."""
        if not found.sure or self._said_pid is None or self._said_pid in self._since:
            return False
        return any(now_ms - since >= PATIENCE_MS for since in self._since.values())

    def _say(self, found: Pinned, wal_bytes: int, now_ms: int) -> None:
        self._said_ms, self._said_full = now_ms, self._said_full or self.full
        ordered = sorted(found.holders, key=lambda one: self._since[one.pid])
        first = ordered[0] if ordered and (found.sure or len(ordered) == 1) else None
        self._said_pid = None if first is None else first.pid
        rest = [f"{one.pid} ({one.command})" for one in ordered if one is not first]
        who = "that process's read transaction, or the process"
        if first is None:
            who = "the read transaction of the process that holds it (one of others; lsof, fuser)"
        stop = (
            "accepting and claiming have stopped until then"
            if self.full
            else f"at {mebibytes(found.limit_bytes)} accepting and claiming stop"
        )
        events.store_pinned(
            wal_bytes=wal_bytes,
            limit_bytes=found.limit_bytes,
            full=self.full,
            advice=f"end {who}; {stop}",
            holder_pid=None if first is None else first.pid,
            command=None if first is None else first.command,
            held_s=None if first is None else (now_ms - self._since[first.pid]) / 1000,
            others=rest or None,
            store=self._store,
        )

    def _end(self, wal_bytes: int, now_ms: int) -> None:
        if self._said_ms is not None and self._began_ms is not None:
            events.store_unpinned(
                held_s=(now_ms - self._began_ms) / 1000, wal_bytes=wal_bytes, store=self._store
            )
        self._since, self._began_ms, self._said_ms = {}, None, None
        self._said_pid = None
        self._said_full = self.full = False
