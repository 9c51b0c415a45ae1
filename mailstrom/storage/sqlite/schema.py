"""Creating and migrating a spool: numbered files, one transaction each, forward only.

``user_version`` is the number of the last migration. ``meta.min_client_version`` tells the oldest
schema a client must know to keep enqueuing: additive migrations leave it alone, so that older
clients go on while a newer engine runs.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from typing import Any

import apsw

from mailstrom.errors import SchemaMismatch, SpoolError, SpoolFull, SpoolReadOnly
from mailstrom.storage.sqlite.connection import (
    APPLICATION_ID,
    advice,
    connect,
    has_room,
    looking,
    read_only_sentence,
    refuse_network_file_system,
    require_file,
    spool_errors,
)
from mailstrom.storage.sqlite.durable import run_directory
from mailstrom.storage.statements import sql_files

VERSION = 7
"""The schema that this Mailstrom writes: the number of the last migration."""
MIN_CLIENT_VERSION = 1
"""The oldest schema version whose clients may still enqueue into the current schema."""

DEFAULTS: dict[str, object] = {
    "min_client_version": MIN_CLIENT_VERSION,
    "retention_bodies_ms": 7 * 86_400_000,
    "retention_attempts_ms": 30 * 86_400_000,
    "retention_events_ms": 30 * 86_400_000,
}


@cache
def migrations() -> dict[int, str]:
    """Number -> SQL, in order, without gaps."""
    files = sql_files("sqlite", "migrations")
    found = {int(name.split("_")[0]): text for name, text in files.items()}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must be numbered without gaps: {sorted(found)}")
    return dict(sorted(found.items()))


def _user_version(connection: apsw.Connection) -> int:
    rows: list[Any] = connection.execute("PRAGMA user_version").fetchall()
    return int(rows[0][0])


def require(connection: apsw.Connection, path: str, *, client: bool) -> None:
    """Raise unless this code may work on the spool's schema.

    Raises:
        SchemaMismatch: too new for this code, or too old for it (an engine migrates it).
    """
    found = _user_version(connection)
    if found == VERSION:
        return
    if found < VERSION:
        raise SchemaMismatch(
            f"{path}: schema {found} is older than this Mailstrom's {VERSION};"
            f" run 'mailstrom store init {path}' to migrate it"
        )
    rows: list[Any] = connection.execute(
        "SELECT value FROM meta WHERE key = 'min_client_version'"
    ).fetchall()
    if client and rows and int(rows[0][0]) <= VERSION:
        return
    raise SchemaMismatch(
        f"{path}: schema {found} is newer than this Mailstrom's {VERSION}; upgrade Mailstrom"
    )


def prepare(path: str, *, busy_ms: int = 10_000, engine: bool = False) -> None:
    """Create the spool if it is missing, migrate it if it is older; make its run directory.

    Raises:
        SpoolError: or a subclass; nothing is half done.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise SpoolError(f"{path}: the directory {folder} does not exist; make it first")
    refuse_network_file_system(path)
    require_file(path)
    try:
        shared = bool(os.stat(folder).st_mode & stat.S_ISGID)
    except OSError as error:
        raise _not_created(path, error) from error
    _make_file(path, shared)
    with looking(path) as connection:
        if connection is not None and _user_version(connection) > VERSION:
            require(connection, path, client=not engine)
    connection = connect(path, create=True, busy_ms=busy_ms)
    try:
        with spool_errors(path, "creating the schema"):
            migrate(connection)
        require(connection, path, client=not engine)
        if engine:
            _require_sound(connection, path)
        _make_run_directory(path, shared)
    finally:
        connection.close()


def migrate(connection: apsw.Connection) -> None:
    """Bring the schema up to ``VERSION``, one transaction a step."""
    while _user_version(connection) < VERSION:
        _migrate_one(connection)


def _require_sound(connection: apsw.Connection, path: str) -> None:
    """Raise where an engine could only start and fail: no right or room to write, or damage.

    Looks at the first page of each table: whoever wants to know all runs ``store check``.
    """
    files = [file for file in (f"{path}-wal", f"{path}-shm") if os.path.exists(file)]
    if connection.readonly("main") or not all(os.access(file, os.W_OK) for file in files):
        raise SpoolReadOnly(read_only_sentence(path, "an engine writes"))
    if not has_room(path):
        raise SpoolFull(
            f"{path}: the disk is full, so an engine could not record what it does;"
            " free some space, then start it again"
        )
    with spool_errors(path, "looking at its tables"):
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        for (name,) in tables.fetchall():
            connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchall()


def _make_file(path: str, shared: bool) -> None:
    """Create the empty file with its mode; -wal and -shm take theirs from it.

    O_EXCL: an existing database is never opened and closed by path (that drops locks).
    """
    mode = 0o660 if shared else 0o600
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    except FileExistsError:
        return
    except OSError as error:
        raise _not_created(path, error) from error
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        raise _not_created(path, error) from error
    finally:
        os.close(fd)


def _make_run_directory(path: str, shared: bool) -> None:
    folder = run_directory(path)
    try:
        os.mkdir(folder)
        os.chmod(folder, 0o2770 if shared else 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise _not_created(folder, error) from error


def _not_created(path: str, error: OSError) -> SpoolError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SpoolReadOnly(
            f"{path}: cannot be created ({error.strerror}): user id {os.geteuid()} may not write"
            " its directory; let it, or name another place"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpoolFull(f"{path}: cannot be created ({error.strerror}); free some space")
    return SpoolError(
        f"{path}: cannot be created ({error.strerror}){advice(error) or '; name another place'}"
    )


def _migrate_one(connection: apsw.Connection) -> None:
    """Apply the next migration in one transaction, unless another process just did."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        number = _user_version(connection) + 1
        if number <= VERSION:
            for statement in _statements(connection, migrations()[number]):
                connection.execute(statement).fetchall()
            if number == 1:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}").fetchall()
                for key, value in DEFAULTS.items():
                    connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
            connection.execute(f"PRAGMA user_version = {number}").fetchall()
        connection.execute("COMMIT")
    except BaseException:
        if not connection.get_autocommit():  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _statements(connection: apsw.Connection, text: str) -> list[str]:
    """Split a file into statements; a trigger's inner semicolons do not end it."""
    statements: list[str] = []
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if line.rstrip().endswith(";") and apsw.complete(piece):
            statements.append(piece)
            piece = ""
    if piece.strip() and not all(
        line.strip().startswith("--") or not line.strip() for line in piece.splitlines()
    ):
        raise ValueError(f"migration ends within a statement: {piece[-60:]!r}")
    return statements
