"""One way to open a spool: pragmas set and read back, errors translated, forks guarded.

Rules (measured; see docs/design/decisions): one SQLite copy per process and file (apsw only);
writers begin IMMEDIATE; the -wal file outlives its connections (PERSIST_WAL); the database and
-shm files are never opened and closed by path here, since that drops this process's locks.

Past 400 lines: every way in which a file may turn out not to be a spool is told here, in one place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import stat
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError

import apsw

from mailstrom.errors import (
    NotASpool,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
    SpoolReadOnly,
)
from mailstrom.regular import beginning
from mailstrom.storage.sqlite import frames, locks, names
from mailstrom.storage.sqlite.checkpointer import Checkpointer, is_failed_sync
from mailstrom.storage.sqlite.patience import Patience
from mailstrom.storage.sqlite.poison import poison

APPLICATION_ID = 0x4D535452  # "MSTR"
PAGE_BYTES = frames.PAGE_BYTES
_GROWTH = 64 * 1024  # less than what a small commit may need
CLIENT_CHECKPOINT_FRAMES = 16_384
"""A client checkpoints only when the WAL passes 64 MiB, that is when no engine does."""
PLANS, ENGINE_PLANS = 100, 512
"""After so many executions of others apsw drops a compiled statement, however often it was used: an
exchange for many lanes is some hundred, and to compile anew what it had dropped took a third of the
store's time. 512 is the most that apsw takes. An application's own texts are not kept so long."""

FREE_LOCK_S = 0.002
"""The lock stays free for so long between the pieces of a long verb."""

INTERRUPTED = b"Mailstrom: the restore of this spool was interrupted. The former one is whole: "
"""What a file begins with that holds a spool's place while ``restore`` works; then a file name."""

_SHORTEST = 512  # bytes: SQLite takes a shorter file as empty
_OPEN_FILES = 4  # that an opening needs at once: the spool, its log, its shared memory, one more
_LONGEST_REASON = 500  # characters of SQLite's words, which may repeat a whole statement

MOUNT_TABLE = "/proc/self/mountinfo"
"""What is mounted where (Linux)."""

_MINIMUM = (3, 53, 0)
_INCREMENTAL = 2
_AGAIN_S = 0.005
_NETWORK = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "ceph",
        "fuse.sshfs",
        "9p",
        "glusterfs",
        "fuse.glusterfs",
        "lustre",
        "ncpfs",
    }
)
_OF_THE_KERNEL = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs"})

_inherited: list[object] = []
"""What a child inherited open in spite of ``forks``: kept for ever, never closed there."""

_READS = frozenset({apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_RECURSIVE})
_READ_PRAGMAS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info"})


def abandon(inherited: object) -> None:
    """Keep an inherited connection, or what works on it, out of the garbage collector's reach."""
    _inherited.append(inherited)


def only_reads(
    operation: int, first: str | None, second: str | None, _base: str | None, _inner: str | None
) -> int:
    """SQLite authorizer: a statement that reads, and nothing that could leave a trace.

    Not even BEGIN: an open transaction of a report would hold back every checkpoint.
    """
    allowed = (
        operation in _READS
        or (operation == apsw.SQLITE_FUNCTION and second != "load_extension")
        or (operation == apsw.SQLITE_PRAGMA and first in _READ_PRAGMAS)
    )
    return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY


def _busy_sentence(path: str, doing: str) -> str:
    """Names who has the write lock now: one that stands still is in everybody's way."""
    who = locks.writer(path)
    has = "" if who is None else f" ({who} has it now: if it keeps it, end its transaction or it)"
    return (
        f"{path}: another process held the write lock too long while {doing}{has};"
        " nothing was written, try again"
    )


def _full_sentence(path: str, doing: str, *, after: str = "") -> str:
    return (
        f"{path}: the disk is full, or the spool has reached its limit ({doing}){after}:"
        " free some space, then try again"
    )


def _or_damaged(path: str) -> str:
    """What else a file may be whose first page is not that of a spool."""
    return (
        f" (if it was a spool, its first page is damaged: mailstrom store salvage {path} NEW gets"
        " out what is whole)"
    )


def has_room(path: str) -> bool:
    """Whether the spool's files can grow at all; a full disk is not always told as one."""
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        space = os.statvfs(os.path.dirname(os.path.abspath(path)))
        sizes = [os.stat(f).st_size for f in (path, f"{path}-wal") if os.path.exists(f)]
    except OSError:
        return True  # not a matter of room
    limited = largest != resource.RLIM_INFINITY and max(sizes, default=0) + _GROWTH > largest
    return space.f_bavail > 0 and not limited


def read_only_sentence(path: str, doing: str) -> str:
    """What to say where this user may not write."""
    return (
        f"{path}: cannot be written by this user ({doing}; user id {os.geteuid()}): run as its"
        " owner, or let this user write the spool, its -wal and -shm files and their directory"
    )


def advice(error: OSError) -> str:
    """What to do about an error of the operating system, where that is not plain from its name."""
    if error.errno not in (errno.EMFILE, errno.ENFILE):
        return ""
    return "; close files or connections, or raise the limit of open files (ulimit -n)"


def _why_not_opened(path: str) -> str:
    """Look for the reason, since SQLite keeps it to itself: also whether so many can be open."""
    directory, held, reason = os.path.dirname(os.path.abspath(path)), [], ""
    try:
        for _ in range(_OPEN_FILES):
            held.append(os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        reason = f" ({error.strerror})"
        if advice(error):
            return f"{reason}{advice(error)}"
    finally:
        for fd in held:
            os.close(fd)
    return f"{reason}; does its directory exist, and may this user enter it?"


@contextmanager
def spool_errors(path: str, doing: str) -> Iterator[None]:
    """Translate apsw's exceptions; the text says what was being done to which file.

    A sync of SQLite's own that failed (a checkpoint's, or that of a WAL that begins again) poisons
    the spool as one of ours does.
    """
    try:
        yield
    except apsw.BusyError as error:
        raise SpoolBusy(_busy_sentence(path, doing)) from error
    except apsw.FullError as error:
        raise SpoolFull(_full_sentence(path, doing, after="; nothing was written")) from error
    except apsw.NotADBError as error:
        raise NotASpool(
            f"{path}: this file is not a Mailstrom spool; name another one{_or_damaged(path)}"
        ) from error
    except (apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise SpoolReadOnly(read_only_sentence(path, doing)) from error
    except (apsw.CorruptError, UnicodeDecodeError, JSONDecodeError) as error:
        # the last two: what a row holds was changed on the disk
        raise SpoolCorrupt(
            f"{path}: SQLite found the file damaged ({doing}); stop Mailstrom and put a backup in"
            f" its place: mailstrom store restore COPY {path}; without one, get out what is whole:"
            f" mailstrom store salvage {path} NEW"
        ) from error
    except apsw.CantOpenError as error:
        raise SpoolError(f"{path}: cannot be opened{_why_not_opened(path)}") from error
    except apsw.ConstraintError as error:  # a bug of ours, not the disk's: never tried again
        raise ValueError(f"{path}: {doing} would break an invariant: {error}") from error
    except apsw.Error as error:
        if is_failed_sync(error):
            poison(path, OSError(errno.EIO, str(error)))
        if isinstance(error, apsw.IOError) and not has_room(path):
            raise SpoolFull(_full_sentence(path, doing)) from error
        raise SpoolError(f"{path}: {doing}: {str(error)[:_LONGEST_REASON]}") from error


def refuse_network_file_system(path: str) -> None:
    """Raise if the file's directory is on a network file system (WAL needs shared memory)."""
    point, kind = _mounted(path)
    if kind in _NETWORK:
        raise SpoolError(
            f"{path}: lies on a network file system ({kind} at {point}); a spool needs a local disk"
        )


def _mounted(path: str) -> tuple[str, str]:
    """Where what holds the file's directory is mounted, and its kind; empty if that is unknown."""
    try:
        with open(MOUNT_TABLE, encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return "", ""
    real = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    best, kind = "", ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ")[4]
        if "\\" in point:  # how mountinfo writes blanks in a path
            point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, rest.split(" ")[0]
    return best, kind


def _pragma(connection: apsw.Connection, name: str, value: str | int) -> None:
    connection.execute(f"PRAGMA {name} = {value}").fetchall()
    got = connection.execute(f"PRAGMA {name}").fetchall()[0][0]
    if str(got).lower() != str(value).lower():
        raise SpoolError(f"{connection.filename}: PRAGMA {name} is {got!r}, wanted {value!r}")


def require_sqlite() -> None:
    """Raise if SQLite itself is too old.

    Raises:
        SpoolError: says which version, and what to install.
    """
    version = apsw.sqlite_lib_version()
    if tuple(map(int, version.split("."))) < _MINIMUM:
        raise SpoolError(
            f"SQLite {version} can corrupt a WAL shared by processes; install apsw 3.53 or newer"
        )


def mark_new(connection: apsw.Connection) -> None:
    """What must be said before the first page of a database is written, and is fixed then."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}").fetchall()
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()


def set_pragmas(
    connection: apsw.Connection, own: Mapping[str, int], read_only: bool = False
) -> None:
    """Set and read back the pragmas of a kind of place, then those of every connection.

    Args:
        own: those that differ between a file and memory.
        read_only: only SELECT.
    """
    for name, value in own.items():
        _pragma(connection, name, value)
    _pragma(connection, "temp_store", 2)
    _pragma(connection, "foreign_keys", 0)
    # Else a statement is compiled anew whenever a bound value changes that a plan might depend on:
    # up to ten times what running it costs. Plans are the same, as nothing here is ever analyzed.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    if read_only:
        _pragma(connection, "query_only", 1)


def connect(
    path: str,
    *,
    create: bool = False,
    read_only: bool = False,
    busy_ms: int = 5_000,
    checkpoint_frames: int = CLIENT_CHECKPOINT_FRAMES,
) -> apsw.Connection:
    """Open a connection with the house's pragmas.

    Args:
        path: the database file.
        create: make the file (with the settings that are fixed at creation) if it is missing.
        read_only: only SELECT; still takes part in the WAL.
        busy_ms: how long it waits for a lock; a writer as ``Patience`` does.
        checkpoint_frames: automatic checkpoint threshold; 0 for the engine.

    Raises:
        SpoolError: or a subclass that says what is wrong with the file.
    """
    require_sqlite()
    require_file(path)
    names.require_one(path)  # before SQLite makes a log of this name
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    with spool_errors(path, "opening it"):
        plans = PLANS if checkpoint_frames else ENGINE_PLANS
        connection = apsw.Connection(path, flags=flags, statementcachesize=plans)
        try:
            # First of all: whatever this file turns out to be, closing it must not move a byte.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.set_busy_timeout(busy_ms)
            if create and connection.execute("PRAGMA page_count").fetchall()[0][0] == 0:
                mark_new(connection)
            require_ours(connection, path, create)
            _require_unmoved(connection, path)
            left = names.require_one(path)
            mode = _to_wal_mode(connection, busy_ms)
            if mode != "wal":
                raise SpoolError(f"{path}: SQLite refuses WAL mode here (journal mode is {mode})")
            if left:
                names.sweep(path)
            # The commit itself does not sync; the caller syncs the -wal file after the lock is
            # free (durable.WalSync), which is what makes it durable.
            patience = Patience(busy_ms)
            if not read_only:
                patience.bind(connection)
            own = {"synchronous": 1, "wal_autocheckpoint": checkpoint_frames}
            set_pragmas(connection, own, read_only)
            if checkpoint_frames > 0:
                connection.set_wal_hook(Checkpointer(path, checkpoint_frames, patience.bind))
            keep = array("i", [1])
            connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, keep.buffer_info()[0])
        except BaseException:
            connection.close()
            raise
    return connection


def _to_wal_mode(connection: apsw.Connection, busy_ms: int) -> str:
    """Which journal mode it is in afterwards.

    SQLite does not wait where another process does the same, or writes the first page just now.
    """
    until = time.monotonic() + busy_ms / 1000
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchall()[0][0])
        except apsw.BusyError:
            if time.monotonic() >= until:
                raise
            time.sleep(_AGAIN_S)


def rolled_back(connection: apsw.Connection) -> bool:
    """End a transaction that failed; False where even that fails: then close the connection.

    A connection that stays in its transaction (no memory for the ROLLBACK, say) keeps the write
    lock from everybody, or pins the WAL.
    """
    with contextlib.suppress(apsw.Error, MemoryError):
        if not connection.get_autocommit():
            connection.execute("ROLLBACK")
    return connection.get_autocommit()


def require_file(path: str) -> None:
    """Raise where something else than a database has this name; nothing there is fine.

    Raises:
        NotASpool: says what it is. Or a restore was interrupted: says how to go on.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise NotASpool(f"{path}: is a directory; name a file in it, as {path}/spool.db")
    # /proc/self/mem says that it is one, and empty; SQLite's words then are of a full disk
    unreal = found.st_size == 0 and _mounted(path)[1] in _OF_THE_KERNEL
    if unreal or not stat.S_ISREG(found.st_mode):
        raise NotASpool(f"{path}: is no regular file; a spool is one: name another")
    if not 0 < found.st_size < _SHORTEST:
        return
    former = interrupted(path)
    if former is None:
        raise NotASpool(f"{path}: this file is not a Mailstrom spool; name another one")
    raise NotASpool(
        f"{path}: putting a copy in the place of this spool was interrupted; say it again:"
        f" mailstrom store restore COPY {path} (the former spool is whole: {former})"
    )


def interrupted(path: str) -> str | None:
    """Where the former spool is, if an interrupted restore holds the place of this one."""
    try:
        if not 0 < os.stat(path).st_size < _SHORTEST:
            return None  # only what cannot be a database is opened by its path
        text = beginning(path, _SHORTEST)  # not waited for, if a pipe came in its place
    except OSError:
        return None
    if not text.startswith(INTERRUPTED):
        return None
    name = os.fsdecode(text[len(INTERRUPTED) :].strip())
    return os.path.join(os.path.dirname(path), name)


def _require_unmoved(connection: apsw.Connection, path: str) -> None:
    """Raise if the file was renamed between our opening it and our first lock on it.

    From then on we hold a lock that ``restore`` would see. Without this look a connection to the
    file of yesterday would write into the -wal of the one that has its name now.
    """
    moved = array("i", [0])
    connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, moved.buffer_info()[0])
    if moved[0]:
        raise SpoolBusy(f"{path}: was replaced while it was being opened; nothing done, try again")


@contextmanager
def looking(path: str) -> Iterator[apsw.Connection | None]:
    """A connection that leaves no trace, not even a -wal or -shm file; None where it would not see.

    It sees the database file alone, so it is given where the -wal file holds nothing and no
    rollback journal waits (as where the power went while the spool was created); and only for a
    look at what does not change while somebody else writes.

    Raises:
        SpoolError: or a subclass: the file is none of ours, or damaged.
    """
    try:
        blind = os.stat(path).st_size == 0
        for log in (f"{path}-wal", f"{path}-journal"):
            with contextlib.suppress(FileNotFoundError):
                blind = blind or os.stat(log).st_size > 0
    except OSError:
        blind = True
    if blind:
        yield None
        return
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with spool_errors(path, "looking at it"):
        connection = apsw.Connection(f"file:{quoted}?immutable=1", flags=flags)
        try:
            require_ours(connection, path, create=True)
            yield connection
        finally:
            connection.close()


def require_ours(connection: apsw.Connection, path: str, create: bool = False) -> None:
    """Raise unless what was opened is a spool.

    Args:
        create: an empty database will do: it is about to become one.

    Raises:
        NotASpool: says what it is.
    """
    if not _is_spool(connection, create):
        raise NotASpool(
            f"{path}: is an SQLite database but not a Mailstrom spool; name another file"
            f"{_or_damaged(path)}"
        )
    for name, fixed in (("page_size", PAGE_BYTES), ("auto_vacuum", _INCREMENTAL)):
        found = connection.execute(f"PRAGMA {name}").fetchall()[0][0]
        if found != fixed:
            raise NotASpool(
                f"{path}: was not created by Mailstrom ({name} is {found}, not {fixed});"
                f" name another file{_or_damaged(path)}"
            )


def _is_spool(connection: apsw.Connection, create: bool) -> bool:
    found = connection.execute("PRAGMA application_id").fetchall()[0][0]
    if found == APPLICATION_ID:
        return True
    if not create or found != 0:
        return False
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0] == 0:
        return True
    # Somebody may have made a spool of it between the two looks.
    found = connection.execute("PRAGMA application_id").fetchall()[0][0]
    return bool(found == APPLICATION_ID)
