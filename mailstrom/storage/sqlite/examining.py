"""A look at a spool from outside, for ``mailstrom doctor``: facts, whatever state it is in.

Contract. Nothing is written, created or migrated, and nobody waits: the connection is opened for
reading alone, and each statement ends when its time is over. (SQLite itself may have to make the
log's index anew, as for any reader.) Where the rows cannot be read, that is a fact, too
(``Trouble``), and the files are looked at all the same. What the facts mean is not known here.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from mailstrom.clock import boot_id, monotonic_ms, wall_ms
from mailstrom.errors import (
    NotASpool,
    SchemaMismatch,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
    SpoolReadOnly,
)
from mailstrom.reach import shut
from mailstrom.storage.examined import (
    CheckFacts,
    ClockFacts,
    Contents,
    Examined,
    FileFacts,
    LogFacts,
    Oldest,
    ProcessFacts,
    RoomFacts,
    SuspendedSite,
    Trouble,
    TroubleKind,
)
from mailstrom.storage.sqlite import asking, checking, examining_log, forks, names, poison, wal
from mailstrom.storage.sqlite.connection import (
    refuse_network_file_system,
    require_file,
    require_ours,
    require_sqlite,
    spool_errors,
)
from mailstrom.storage.sqlite.durable import run_directory
from mailstrom.storage.sqlite.schema import require
from mailstrom.storage.sqlite.sharers import sharers
from mailstrom.storage.sqlite.sql import STATEMENTS, run

BUSY_MS = 2_000
ROWS_S = 3.0
"""For all questions to the rows."""
MOST_SITES = 20
LATELY_MS = 86_400_000
_STEPS = 10_000  # of SQLite's machine, some milliseconds, between two looks at the clock

_KINDS: tuple[tuple[type[SpoolError], TroubleKind], ...] = (
    (NotASpool, TroubleKind.NOT_A_SPOOL),
    (SchemaMismatch, TroubleKind.SCHEMA),
    (SpoolCorrupt, TroubleKind.CORRUPT),
    (SpoolBusy, TroubleKind.BUSY),
    (SpoolReadOnly, TroubleKind.DENIED),
)
_WORKER = (
    "worker", "kind", "pid", "host", "boot", "lock", "state", "started_ms", "heartbeat_ms",
    "sessions", "restarts", "lanes", "recipients",
)  # fmt: skip


def examine(path: str, *, check_s: float) -> Examined:
    """Look at a spool in a file.

    Args:
        path: the database file.
        check_s: how long ``store check`` may take; 0 leaves it out.
    """
    files = _files(path)
    values: dict[str, Any] = {
        "path": path,
        "version": apsw.sqlite_lib_version(),
        "files": files,
        "room": _room(path),
        "clock": _clock(),
        "poisoned": (*poison.finding(path), *_poisoned_by_a_lock(path)),
    }
    try:
        with _opened(path, files) as connection:
            values |= _rows(connection, path, check_s)
    except SpoolError as error:
        kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), TroubleKind.OTHER)
        database = files["database"]
        if database.error is not None:
            kind = TroubleKind.DENIED if shut(path) else TroubleKind.MISSING
        elif kind is TroubleKind.NOT_A_SPOOL and _blank(files):
            kind = TroubleKind.MISSING
        elif any(
            one.error is None and not one.readable
            for one in (database, files["log"], files["index"])
        ):
            kind = TroubleKind.DENIED
        values["trouble"] = Trouble(kind=kind, text=str(error))
    if values.get("log") is None:
        values["log"] = _log_unread(files)
    values["sharers"], values["hidden"] = sharers(path)
    if _perhaps_a_spool(values.get("trouble")):
        try:
            names.require_one(path)
        except SpoolError as error:
            values["named"] = str(error)
    return Examined(**values)


def _perhaps_a_spool(trouble: Trouble | None) -> bool:
    """Whether its names say anything: a directory has several, and a hidden file none to ask."""
    unknown = (TroubleKind.MISSING, TroubleKind.NOT_A_SPOOL, TroubleKind.DENIED)
    return trouble is None or trouble.kind not in unknown


def _blank(files: dict[str, FileFacts]) -> bool:
    """Whether there is only an empty file, of which whoever sends first makes a spool."""
    database = files["database"]
    alone = files["log"].error is not None
    return alone and database.size == 0 and stat.S_ISREG(database.mode)


# --- files ----------------------------------------------------------------------------------------


def _files(path: str) -> dict[str, FileFacts]:
    places = {
        "database": path,
        "log": f"{path}-wal",
        "index": f"{path}-shm",
        "directory": os.path.dirname(os.path.abspath(path)),
        "run": run_directory(path),
    }
    return {name: _facts(place) for name, place in places.items()}


def _facts(path: str) -> FileFacts:
    try:
        found = os.stat(path)
    except OSError as error:
        return FileFacts(path=path, error=error.strerror or str(error))
    effective = os.access in os.supports_effective_ids
    return FileFacts(
        path=path,
        size=found.st_size,
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        readable=os.access(path, os.R_OK, effective_ids=effective),
        writable=os.access(path, os.W_OK, effective_ids=effective),
    )


def _room(path: str) -> RoomFacts | None:
    try:
        space = os.statvfs(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return None
    network = None
    try:
        refuse_network_file_system(path)
    except SpoolError as error:
        network = str(error)
    return RoomFacts(
        free_bytes=space.f_bavail * space.f_frsize,
        total_bytes=space.f_blocks * space.f_frsize,
        free_files=space.f_favail if space.f_files else None,
        network=network,
    )


def _poisoned_by_a_lock(path: str) -> list[str]:
    """A sentence where a process saw a disk error and cannot write its flag.

    The -wal file is opened by its path, which loses nobody's lock: SQLite has none on it. Nor is it
    waited for, should it be a FIFO.
    """
    try:
        fd = os.open(f"{path}-wal", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        poison.check_others(path, fd)
    except SpoolError as error:
        return [str(error)]
    except OSError:
        return []
    finally:
        os.close(fd)
    return []


def _clock() -> ClockFacts:
    return ClockFacts(wall_ms=wall_ms(), monotonic_ms=monotonic_ms(), boot=boot_id())


def _log_unread(files: dict[str, FileFacts]) -> LogFacts | None:
    log = files["log"]
    if log.error is not None:
        return None
    limit = wal.LIMIT_BYTES
    return LogFacts(size=log.size, alarm_bytes=wal.alarm_bytes(limit), limit_bytes=limit)


# --- the connection -------------------------------------------------------------------------------


@contextmanager
def _opened(path: str, files: dict[str, FileFacts]) -> Iterator[apsw.Connection]:
    """A connection that reads and leaves nothing behind.

    A file without an index beside it is nobody's, so it is read by itself where its log is empty.
    """
    require_sqlite()
    if files["database"].error is not None:
        raise SpoolError(f"{path}: {files['database'].error}")
    require_file(path)
    alone = files["index"].error is not None or files["log"].error is not None
    empty = files["log"].error is not None or files["log"].size == 0
    if alone and os.path.exists(f"{path}-journal"):
        raise SpoolBusy(f"{path}: is being created, or was when the power went; try again")
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    how = "immutable=1" if alone and empty else "mode=ro"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with forks.inside(), spool_errors(path, "looking at it"):
        connection = apsw.Connection(f"file:{quoted}?{how}", flags=flags)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.set_busy_timeout(BUSY_MS)
            require_ours(connection, path)
            require(connection, path, client=False)
            yield connection
        finally:
            connection.close()


@contextmanager
def _until(connection: apsw.Connection, deadline: float) -> Iterator[None]:
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None)


def _rows(connection: apsw.Connection, path: str, check_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + ROWS_S
    with _until(connection, deadline):
        try:
            clock, contents = _clock_told(connection), _contents(connection)
        except apsw.InterruptError as error:
            raise SpoolBusy(
                f"{path}: its rows could not be read within {ROWS_S:g} s; is the disk slow, or the"
                " machine busy? try again"
            ) from error
    log = examining_log.log(connection, path)
    check = None
    if check_s > 0:
        told = checking.check_for(connection, path, check_s)
        check = CheckFacts(findings=tuple(told.findings), asked=told.asked, left=told.left)
    return {"clock": clock, "contents": contents, "log": log, "check": check}


# --- rows -----------------------------------------------------------------------------------------


def _clock_told(connection: apsw.Connection) -> ClockFacts:
    told = run(connection, "clock_get")
    jumps = tuple((int(at), int(amount)) for at, amount in run(connection, "examine_jumps"))
    newest = run(connection, "newest_created")
    values: dict[str, Any] = {"jumps": jumps, "newest_ms": newest[0][0] if newest else None}
    if told:
        boot = told[0][2]
        values |= {
            "row_wall_ms": told[0][0],
            "row_monotonic_ms": told[0][1],
            "row_boot": boot.decode("utf-8", "replace") if isinstance(boot, bytes) else "",
        }
    return ClockFacts(wall_ms=wall_ms(), monotonic_ms=monotonic_ms(), boot=boot_id(), **values)


def _contents(connection: apsw.Connection) -> Contents:
    now = {"now_ms": wall_ms()}
    stats = asking.stats(connection, now["now_ms"], log_full=False)
    copied = run(connection, "copied")
    copied_from = run(connection, "examine_copied_from")
    failing, name = run(connection, "examine_failing", now)[0]
    failure = run(connection, "examine_failure", {"name": name}) if failing else []
    held = run(connection, "examine_held") if stats.waiting.get("held") else []
    lately = {"since_ms": now["now_ms"] - LATELY_MS}
    ((unreported, why),) = run(connection, "examine_unreported")
    oldest = stats.oldest_due_at
    return Contents(
        schema=int(_pragma(connection, "user_version")),
        copied_ms=copied[0][0] if copied else None,
        copied_from=copied_from[0][0] if copied_from else None,
        waiting=dict(stats.waiting),
        held={str(reason): amount for reason, amount in held},
        oldest_due_ms=None if oldest is None else round(oldest.timestamp() * 1000),
        oldest=_oldest(connection, now["now_ms"]),
        suspended_sites=stats.suspended_sites,
        suspended=tuple(
            SuspendedSite(
                site=row[0],
                until_ms=row[1],
                by=row[2],
                reason=row[3],
                last_reply=row[4],
                failures=row[5],
                last_success_ms=row[6],
                waiting=row[7],
            )
            for row in run(connection, "examine_suspended", {**now, "most": MOST_SITES})
        ),
        failing_domains=int(failing),
        failing_domain=(str(failure[0][0]), str(failure[0][1])) if failure else None,
        last_success_ms=int(run(connection, "examine_success")[0][0]),
        workers=tuple(
            ProcessFacts(**dict(zip(_WORKER, row, strict=True)))
            for row in run(connection, "examine_workers")
        ),
        lost_lately=int(run(connection, "examine_lost", lately)[0][0]),
        unreported=int(unreported),
        unreported_error=None if why is None else str(why),
    )


def _pragma(connection: apsw.Connection, name: str) -> Any:
    """What one pragma says."""
    return connection.execute(f"PRAGMA {name}").fetchall()[0][0]


def _oldest(connection: apsw.Connection, now_ms: int) -> Oldest | None:
    """What has been due longest though neither its site nor its domain is left alone."""
    oldest: Oldest | None = None
    for name in ("examine_oldest_sites", "examine_oldest_domains"):
        cursor = connection.execute(STATEMENTS[name], {"now_ms": now_ms})
        for earliest_ms, due_ms, where, lanes, limit in cursor:
            due = due_ms is not None and due_ms <= now_ms
            if due and (oldest is None or due_ms < oldest.due_ms):
                oldest = Oldest(due_ms=due_ms, where=where, lanes=lanes, limit=limit)
            if oldest is not None and earliest_ms >= oldest.due_ms:
                break
        cursor.close(True)
    return oldest
