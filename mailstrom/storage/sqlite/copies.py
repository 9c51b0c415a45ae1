"""Copies of a spool: made while it is in use, marked, and adopted.

A copy is written under a temporary name beside its target, marked, checked, synced, and only then
given its name, which must be free: whatever goes wrong, nothing is left and nothing overwritten.
The source is read in one snapshot, so that senders and workers neither wait nor make the copy begin
anew; its WAL cannot start again meanwhile. Until it is opened the copy is one file, without a -wal.

A crash may leave the temporary file (``.NAME.copy-*``); it is no spool and may be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Iterator

import apsw

from mailstrom.errors import SpoolCorrupt, SpoolError, SpoolFull, SpoolReadOnly
from mailstrom.storage.sqlite.connection import spool_errors
from mailstrom.storage.sqlite.sql import run

STEP_PAGES = 1_024
"""Pages copied at a time: 4 MiB."""
_COMPANIONS = ("-wal", "-shm", "-journal")
_UNLINKABLE = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""How file systems without hard links say so."""
_KINDS: dict[int, type[SpoolError]] = {
    errno.EACCES: SpoolReadOnly,
    errno.EPERM: SpoolReadOnly,
    errno.EROFS: SpoolReadOnly,
    errno.ENOSPC: SpoolFull,
    errno.EDQUOT: SpoolFull,
}


def marked(connection: apsw.Connection) -> bool:
    """Whether this spool is a copy that nobody adopted yet."""
    return bool(run(connection, "copied"))


def adopt(connection: apsw.Connection) -> bool:
    """Take the mark away; False where there is none."""
    return bool(run(connection, "adopt"))


def backup(source: apsw.Connection, name: str, target: str) -> None:
    """Copy a spool.

    Args:
        source: a connection for this call alone, without a transaction.
        name: the spool's name, for the mark.
        target: path of the copy.

    Raises:
        SpoolError: or a subclass; nothing is left at ``target``.
    """
    for path in (target, *(target + end for end in _COMPANIONS)):
        if os.path.lexists(path):
            raise SpoolError(f"{path}: exists already; a copy needs a name of its own")
    folder = os.path.dirname(os.path.abspath(target))
    temporary = _make(target, folder)
    try:
        with spool_errors(name, f"copying it to {target}"):
            _fill(source, name, temporary)
        with _system_errors(target):
            _sync(temporary)
            _name(temporary, target)
            _sync(folder)
    finally:
        for path in (temporary, *(temporary + end for end in _COMPANIONS)):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _make(target: str, folder: str) -> str:
    """An empty file beside the target, with the modes that a spool has there."""
    with _system_errors(target):
        mode = 0o660 if os.stat(folder).st_mode & stat.S_ISGID else 0o600
        fd, path = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(target)}.copy-")
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    return path


def _fill(source: apsw.Connection, name: str, path: str) -> None:
    """Copy, mark and check; nothing of the copy is open afterwards."""
    copy = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        # Nobody else knows the file: no shared memory, and in the end no WAL.
        copy.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        copy.execute("PRAGMA synchronous = OFF").fetchall()
        with source:  # one snapshot
            run(source, "copied")
            with copy.backup("main", source, "main") as pages:
                while not pages.done:
                    pages.step(STEP_PAGES)
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        for key, value in (("copied_ms", time.time_ns() // 1_000_000), ("copied_from", name)):
            run(copy, "meta_set", {"key": key, "value": value})
        found = [row[0] for row in copy.execute("PRAGMA integrity_check(1)")]
        if found != ["ok"]:
            raise SpoolCorrupt(
                f"{name}: the copy of it is damaged ({found[0]}), so the spool may be, too;"
                " run 'mailstrom store check'"
            )
    finally:
        copy.close()


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _name(temporary: str, target: str) -> None:
    """Give the copy its name unless somebody else took it meanwhile."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _UNLINKABLE:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        _replace(temporary, target)


def _replace(temporary: str, target: str) -> None:
    """Put the copy in the place of the empty file that holds its name."""
    try:
        os.replace(temporary, target)
    except OSError:
        os.unlink(target)
        raise


@contextlib.contextmanager
def _system_errors(target: str) -> Iterator[None]:
    """What the operating system refused, in the words of the store."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, SpoolError)
        raise kind(
            f"{target}: the copy cannot be written ({error.strerror}); nothing is left of it"
        ) from error
