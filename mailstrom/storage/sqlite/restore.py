"""Putting a copy of a spool in the place of the spool.

A spool is up to three files, and the -wal stays when everybody has closed it: the last messages are
in there. A copy that is merely renamed over the database would get them replayed on top, which
undoes the restore or mixes two databases. So all three change place together, while nobody can have
the spool open, and each moment in between is one that a power cut may choose:

1. The copy is read into a file beside the spool, marked, checked, synced. The copy itself stays.
2. Database and -wal get second names, ``NAME.replaced-TIME`` and ``-wal``: the former spool, whole.
3. One rename puts a note in the place of the database. Our connections refuse it, and say that the
   restore is to be said again; SQLite can create nothing there that would cost the -wal.
4. The first names of -wal and -shm go.
5. One rename puts the new file in the place of the note.

Until 3 the spool is as it was; from 3 the former one is usable under its new name; from 5 the copy
is usable. Said again after a crash, the command goes on with 4.

Nobody has the spool open: the supervisor's lock is ours meanwhile, every other lock file in the run
directory is free, and the bytes that each connection of SQLite holds a lock on (file format,
section 1.7, the lock-byte page) could be locked by us. Who opens the file in just that moment waits
for our lock, and then sees that it was moved (``connection``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import apsw

from mailstrom import lockfile
from mailstrom.control import SUPERVISOR_LOCK
from mailstrom.errors import NotASpool, SchemaMismatch, SpoolBusy, SpoolError, SpoolFull
from mailstrom.lockfile import LockFile
from mailstrom.storage.sqlite import backups, schema
from mailstrom.storage.sqlite.connection import (
    APPLICATION_ID,
    INTERRUPTED,
    interrupted,
    refuse_network_file_system,
    require_file,
    spool_errors,
)
from mailstrom.storage.sqlite.durable import run_directory
from mailstrom.storage.sqlite.sql import run

_LOCKS_FROM = 0x4000_0000  # the lock-byte page: pending, reserved, 510 shared bytes
_LOCKS = 512
_LOG, _SHARED_MEMORY = "-wal", "-shm"
_UNTOUCHED = "it is as it was"
_LOOKS, _LOOK_S = 20, 0.05
_NO_LINKS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EMLINK})


def look(copy: str) -> int | None:
    """When a copy was made (milliseconds), or None for a spool without the mark of a copy.

    Raises:
        SpoolError: or a subclass: it is no spool that can be put in a place.
    """
    connection = _opened(copy)
    try:
        with spool_errors(copy, "looking at it"):
            found = run(connection, "copied")
        return int(found[0][0]) if found else None
    finally:
        connection.close()


def restore(copy: str, path: str, now_ms: int) -> str | None:
    """Put a copy in the place of a spool; what is in it waits until it is adopted.

    This process must not have the spool open: to look whether others have would drop its locks.

    Args:
        copy: a spool's file; it stays as it is. What is not marked as a copy is marked as one made
            now.
        path: the spool's file, or where it was.
        now_ms: the time, for the names of what is put aside, too.

    Returns:
        The path under which the former spool is kept, or None where there was none.

    Raises:
        SpoolBusy: a process has the spool open.
        NotASpool, SpoolCorrupt, SchemaMismatch: the copy is none, damaged, or of a newer version.
        SpoolError: or another subclass: not done; the text says where things stand.
    """
    path = os.path.realpath(path)
    copy = os.path.realpath(copy)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise SpoolError(f"{path}: the directory {folder} does not exist; make it first")
    refuse_network_file_system(path)
    if _same(copy, path):
        raise SpoolError(f"{copy}: is the spool itself; name a copy of it")
    made_ms = look(copy)
    with alone(path), locked(path), _staged(path) as staged:
        backups.backup(lambda: _opened(copy), copy, staged, now_ms if made_ms is None else made_ms)
        with told(f"{path}: could not be replaced", _UNTOUCHED):
            _dress(staged, path)
        return _swap(staged, path, now_ms)


def _opened(copy: str) -> apsw.Connection:
    """A connection that only reads, and leaves no trace where the copy was never opened before."""
    if not os.path.exists(copy):
        raise SpoolError(f"{copy}: there is no such file; name a copy of a spool")
    require_file(copy)
    quoted = copy.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with spool_errors(copy, "reading it"):
        try:
            connection = _reading(f"file:{quoted}", flags)
        except (apsw.CantOpenError, apsw.ReadOnlyError):
            # A medium that cannot be written has no place for SQLite's -shm; nobody changes it.
            if os.path.exists(copy + _LOG) and os.stat(copy + _LOG).st_size:
                raise
            connection = _reading(f"file:{quoted}?immutable=1", flags)
    try:
        _require_spool(connection, copy)
    except BaseException:
        connection.close()
        raise
    return connection


def _reading(name: str, flags: int) -> apsw.Connection:
    connection = apsw.Connection(name, flags=flags)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(5_000)
        connection.execute("PRAGMA application_id").fetchall()  # the file is opened only now
    except BaseException:
        connection.close()
        raise
    return connection


def _require_spool(connection: apsw.Connection, copy: str) -> None:
    found = connection.execute("PRAGMA application_id").fetchall()[0][0]
    if found != APPLICATION_ID:
        raise NotASpool(f"{copy}: this file is not a Mailstrom spool; name a copy of one")
    rows: list[Any] = connection.execute("PRAGMA user_version").fetchall()
    version = rows[0][0]
    if version > schema.VERSION:
        raise SchemaMismatch(
            f"{copy}: schema {version} is newer than this Mailstrom's {schema.VERSION}; upgrade"
            " Mailstrom"
        )


def _taken(lock: LockFile) -> bool:
    """Take a lock that others hold for moments when they ask whether it is free."""
    for _ in range(_LOOKS):
        if lock.acquire({"pid": os.getpid(), "host": socket.gethostname()}):
            return True
        time.sleep(_LOOK_S)
    return False


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Keeps supervisors away, and raises where any process of an engine lives.

    Raises:
        SpoolBusy: one does.
    """
    folder = run_directory(path)
    if not os.path.isdir(folder):  # no engine ever was here
        yield
        return
    with told(f"{folder}: cannot be looked into", "so nobody knows who uses the spool"):
        names = os.listdir(folder)
        lock = LockFile(os.path.join(folder, SUPERVISOR_LOCK))
        ours = _taken(lock)
    if not ours:
        holder = lockfile.holder(lock.path).get("pid", "unknown")
        raise SpoolBusy(f"{path}: a supervisor serves it (pid {holder}); stop that first")
    try:
        for name in sorted(names):
            held = os.path.join(folder, name)
            if name.endswith(".lock") and name != SUPERVISOR_LOCK and not lockfile.is_free(held):
                raise SpoolBusy(
                    f"{path}: an engine works on it (its lock is {held}); stop the supervisor, or"
                    " the application that called start(), first"
                )
        yield
    finally:
        # One that we made might be another user's than the engine's.
        lock.release(delete=SUPERVISOR_LOCK not in names)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds SQLite's exclusive lock on the database, damaged or not; on nothing where none is.

    Raises:
        SpoolBusy: a connection is open.
    """
    if not os.path.lexists(path):
        yield
        return
    with told(f"{path}: cannot be opened for writing", "run this as its owner"):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKS, _LOCKS_FROM)
        except (BlockingIOError, PermissionError) as error:
            raise SpoolBusy(
                f"{path}: a process has it open (an application, a report); stop all of them, then"
                " try again"
            ) from error
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _staged(path: str) -> Iterator[str]:
    """Name of the new file before it has its place; nothing has that name afterwards."""
    folder, name = os.path.split(path)
    staged = os.path.join(folder, f".{name}.restored")
    _remove(staged)  # of one that was killed
    try:
        yield staged
    finally:
        _remove(staged)


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _dress(staged: str, path: str) -> None:
    """Owner and mode of the file it replaces; a spool that is gone had those of its directory."""
    former = interrupted(path) or path
    known = os.path.exists(former)
    model = os.stat(former if known else os.path.dirname(path))
    with contextlib.suppress(PermissionError):  # not root: our own user and group, as for any file
        os.chown(staged, model.st_uid, model.st_gid)
    if known:
        os.chmod(staged, stat.S_IMODE(model.st_mode))


def _swap(staged: str, path: str, now_ms: int) -> str | None:
    """Steps 2 to 5 of the head; the path of the former spool."""
    folder = os.path.dirname(path)
    kept = interrupted(path)
    if kept is None:
        kept = _free_name(path, now_ms)
        with told(f"{path}: could not be replaced", _UNTOUCHED):
            _second_names(path, kept)
            _put_note(path, kept)
    with told(
        f"{path}: putting the copy in its place was interrupted",
        f"say it again (the former spool is whole: {kept})",
    ):
        for end in (_LOG, _SHARED_MEMORY):
            _move(path + end, kept + end)
        _sync(folder)
        os.replace(staged, path)
        _sync(folder)
    return kept if os.path.exists(kept) or os.path.exists(kept + _LOG) else None


def _second_names(path: str, kept: str) -> None:
    """Step 2. What a crash left here before is undone first: two names are one file too many."""
    folder, name = os.path.split(path)
    for each in os.listdir(folder):
        if each.startswith(f"{name}.replaced-"):
            for mine in (path, path + _LOG):
                if _same(os.path.join(folder, each), mine):
                    _remove(os.path.join(folder, each))
    for end in ("", _LOG):
        with contextlib.suppress(FileNotFoundError):
            os.link(path + end, kept + end)
    _sync(folder)


def _put_note(path: str, kept: str) -> None:
    """Step 3."""
    folder, name = os.path.split(path)
    note = os.path.join(folder, f".{name}.note")
    _remove(note)
    fd = os.open(note, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, INTERRUPTED + os.fsencode(os.path.basename(kept)) + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(note, path)
    _sync(folder)


def _move(path: str, kept: str) -> None:
    """Step 4 for one file: it has its second name already, or gets it now."""
    if not os.path.lexists(path):
        return
    if _same(path, kept):
        os.unlink(path)  # a rename between two names of one file does nothing
        return
    while os.path.lexists(kept):  # somebody else's, made while the note lay there
        kept += "~"
    os.rename(path, kept)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def _free_name(path: str, now_ms: int) -> str:
    when = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    kept, number = f"{path}.replaced-{when}", 1
    while any(os.path.lexists(kept + end) for end in ("", _LOG, _SHARED_MEMORY)):
        number += 1
        kept = f"{path}.replaced-{when}-{number}"
    return kept


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def told(what: str, advice: str) -> Iterator[None]:
    """What the operating system refused, with its words between ours."""
    try:
        yield
    except OSError as error:
        if advice is _UNTOUCHED and error.errno in _NO_LINKS:
            advice += "; if its file system has no hard links, move its files by hand"
        kind = SpoolFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SpoolError
        raise kind(f"{what} ({error.strerror or error}); {advice}") from error
