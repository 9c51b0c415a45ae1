"""Facts of a healthy installation, for tests to make sick in one place each."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mailstrom.config import Config, from_tables
from mailstrom.doctor.engine import Engine, Process
from mailstrom.doctor.finding import Finding
from mailstrom.storage.examined import (
    CheckFacts,
    ClockFacts,
    Contents,
    Examined,
    FileFacts,
    LogFacts,
    ProcessFacts,
    RoomFacts,
    SuspendedSite,
)

NOW = 1_900_000_000_000
MIB = 1 << 20
GIB = 1 << 30


def config(**tables: Any) -> Config:
    return from_tables({"store": "/s/spool.db", "hostname": "mail.example.org", **tables})


def file(name: str, mode: int = 0o600, **changes: Any) -> FileFacts:
    kind = stat.S_IFDIR if mode & 0o100 else stat.S_IFREG
    values = {"size": 4096, "uid": 1000, "gid": 1000, "readable": True, "writable": True}
    return FileFacts(path=f"/s/{name}", mode=kind | mode, **{**values, **changes})


FILES = {
    "database": file("spool.db"),
    "log": file("spool.db-wal"),
    "index": file("spool.db-shm"),
    "directory": file("", 0o700),
    "run": file("spool.db-run", 0o700),
}
LOG = LogFacts(size=MIB, alarm_bytes=64 * MIB, limit_bytes=GIB, frames=100, moved=50)
CLOCK = ClockFacts(
    wall_ms=NOW,
    monotonic_ms=50_000,
    boot="this",
    row_wall_ms=NOW - 10_000,
    row_monotonic_ms=40_000,
    row_boot="this",
    newest_ms=NOW - 1000,
)
ROWS = Contents(
    schema=6,
    copied_ms=None,
    copied_from=None,
    waiting={"queued": 0, "sending": 0, "deferred": 0, "held": 0},
    held={},
    oldest_due_ms=None,
    oldest=None,
    suspended_sites=0,
    suspended=(),
    failing_domains=0,
    failing_domain=None,
    last_success_ms=NOW - 5_000,
    workers=(),
    lost_lately=0,
)
SEEN = Examined(
    path="/s/spool.db",
    version="3.54.1",
    files=FILES,
    room=RoomFacts(free_bytes=50 * GIB, total_bytes=100 * GIB, free_files=1_000_000),
    clock=CLOCK,
    log=LOG,
    contents=ROWS,
    check=CheckFacts(findings=(), asked=39, left=0),
)


def row(worker: int = 1, kind: str = "delivery", **changes: Any) -> ProcessFacts:
    values: dict[str, Any] = {
        "pid": 4000 + worker,
        "host": "here",
        "boot": "this",
        "lock": f"{kind}-{worker}.lock",
        "state": "ready",
        "started_ms": NOW - 3_600_000,
        "heartbeat_ms": NOW - 2_000,
        "sessions": 3,
        "restarts": 0,
        "lanes": 0,
        "recipients": 0,
    }
    return ProcessFacts(worker=worker, kind=kind, **{**values, **changes})


def process(worker: int = 1, kind: str = "delivery", **changes: Any) -> Process:
    own = {name: changes.pop(name) for name in ("held", "stopped", "most_files") if name in changes}
    values: dict[str, Any] = {"held": True, "files": 40, "most_files": 1024, **own}
    return Process(row=row(worker, kind, **changes), **values)


ENGINE = Engine(
    visible=True,
    supervisor="pid 3999 on here",
    janitor=True,
    processes=(process(1), process(2), process(3, "janitor")),
    wanted=2,
    connections=200,
    files=1024,
)


def suspended(**changes: Any) -> SuspendedSite:
    values: dict[str, Any] = {
        "site": "mx1.far.test:25;mx2.far.test:25",
        "until_ms": NOW + 120_000,
        "by": "worker 2",
        "reason": "connect",
        "last_reply": "connection refused",
        "failures": 1,
        "last_success_ms": NOW - 7_200_000,
        "waiting": 12,
    }
    return SuspendedSite(**{**values, **changes})


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    """Check -> its worst level."""
    order = ["ok", "note", "warning", "problem"]
    told: dict[str, str] = {}
    for one in findings:
        told[one.check] = max(told.get(one.check, "ok"), str(one.level), key=order.index)
    return told


def only(findings: Iterable[Finding], check: str) -> Finding:
    """The one finding of a check."""
    [found] = [one for one in findings if one.check == check]
    return found


def sick(**changes: Any) -> Examined:
    return replace(SEEN, **changes)
