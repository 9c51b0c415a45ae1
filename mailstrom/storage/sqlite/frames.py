"""The frames of a -wal file, proved: what a repair may move into the database.

After a failed sync the page cache may have dropped pages and read them again from the disk, where
they never came: then frames are zeros or those of an earlier round, and SQLite, whose index of the
log is in shared memory, would move them all the same. The frames carry a running checksum; here it
is followed from the head to the end that the index names, and compared with the sum that stands
there. What was moved before is moved once more, for that may have been dropped as well.

The index (the -shm file) is read through the descriptor that SQLite has open, never opened: closing
it would drop this process's locks. Whoever asks holds the write lock, so the end stands still.

Source: SQLite's file format, section 4 (the write-ahead log), and walformat, section 2.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

from mailstrom.errors import SpoolError

PAGE_BYTES = 4096
HEAD_BYTES, FRAME_HEAD_BYTES = 32, 24
FRAME_BYTES = FRAME_HEAD_BYTES + PAGE_BYTES

_BATCH = 254  # frames read at a time: about 1 MiB
MAGIC = 0x377F0682  # and one more where the sums are of big-endian words
_HEAD = struct.Struct(">4I8s2I")
_FRAME = struct.Struct(">8s8s2I")
WORDS = (struct.Struct("<2I"), struct.Struct(">2I"))
"""By the lowest bit of the magic number: little-endian, big-endian."""
_INDEX = struct.Struct("=16x2I2I8s56xI")  # end, pages, sums there, salts, moved
_INDEX_BYTES = 136
_MOVED_AT = 96
_CHECKPOINT = 121  # the lock byte of whoever makes a checkpoint
_FLOCK = "hhqqi4x"  # struct flock of Linux, 64 bits
_SET = getattr(fcntl, "F_OFD_SETLK", None)
_FOLDERS = ("/proc/self/fd", "/dev/fd")
_MOST_DESCRIPTORS = 4096  # tried where the system lists none
_MASK = 0xFFFFFFFF


class FramesLost(SpoolError):
    """The log is not what was written, so no repair may move it."""


def index_head(shm: os.stat_result) -> bytes | None:
    """The start of the log's index, by the descriptor that this process has open; None without.

    Args:
        shm: which file it is.
    """
    found = _index(shm)
    return None if found is None else found[1]


def _index(shm: os.stat_result, *, writable: bool = False) -> tuple[int, bytes] | None:
    for fd in _descriptors():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), shm):
                if writable and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                    continue  # somebody else's here, who only reads
                head = os.pread(fd, _INDEX_BYTES, 0)
                return (fd, head) if len(head) == _INDEX_BYTES else None
    return None


def move_again(path: str) -> None:
    """Have the next checkpoint move every frame of the log, those that were moved before as well.

    A checkpoint that a reader or a writer cuts short counts its frames as moved without a sync of
    the database. The sync that a later one makes covers those pages, and where it fails it drops
    them; but what it tries again begins behind them. So the count goes back to zero, as after a
    crash, while nobody makes a checkpoint.

    Args:
        path: the database file; a connection of this process holds its write lock, and the log was
            ``proved``.

    Raises:
        SpoolError: a checkpoint is under way, or the index cannot be reached.
        OSError: the index cannot be written.
    """
    found = _index(os.stat(f"{path}-shm"), writable=True)
    if found is None:
        raise SpoolError(f"{path}-shm: cannot be reached, so nobody can tell what was moved")
    fd, _ = found
    try:
        _lock(fd, fcntl.F_WRLCK)
    except (BlockingIOError, PermissionError) as error:
        raise SpoolError(f"{path}: a checkpoint is under way") from error
    try:
        end, *_, moved = _INDEX.unpack_from(os.pread(fd, _INDEX_BYTES, 0))
        if moved < end:  # that all of it was moved is only said once a sync has succeeded
            os.pwrite(fd, bytes(4), _MOVED_AT)
    finally:
        _lock(fd, fcntl.F_UNLCK)


def _lock(fd: int, kind: int) -> None:
    """A lock of the open description, which SQLite's own locks of this process respect, too."""
    if _SET is not None:
        fcntl.fcntl(fd, _SET, struct.pack(_FLOCK, kind, os.SEEK_SET, _CHECKPOINT, 1, 0))


def proved(path: str, wal: int) -> Iterator[tuple[int, bytes]]:
    """Read the -wal file, and prove each frame of the log, unless the database has all of them.

    One that was moved already is proved, too: its page may be on no disk yet (``move_again``).

    Args:
        path: the database file; a connection of this process holds its write lock.
        wal: a descriptor of the -wal file.

    Yields:
        where in the file, and the bytes there: proved before they are given.

    Raises:
        FramesLost: a frame is not what was written.
        SpoolError: nobody can tell.
        OSError: the file cannot be read.
    """
    try:
        head = index_head(os.stat(f"{path}-shm"))
    except FileNotFoundError:
        head = None
    if head is None:
        raise SpoolError(f"{path}-shm: cannot be read, so nobody can tell which frames are sound")
    end, _, *last, salts, moved = _INDEX.unpack_from(head)
    start = os.pread(wal, HEAD_BYTES, 0)
    proof = _Proof(path, salts) if end > moved else None
    if proof is not None:
        proof.begin(start)
    yield 0, start
    place, number = HEAD_BYTES, 0
    while data := os.pread(wal, _BATCH * FRAME_BYTES, place):
        for offset in range(0, len(data), FRAME_BYTES):
            number += 1
            if proof is not None and number <= end:
                proof.frame(number, data[offset : offset + FRAME_BYTES])
        yield place, data
        place += len(data)
        if len(data) % FRAME_BYTES:  # only the file's end is no whole frame
            break
    if proof is not None and (number < end or proof.sums != tuple(last)):
        raise proof.broken(min(number, end))


def checksum(data: bytes, before: tuple[int, int], words: struct.Struct) -> tuple[int, int]:
    """The running checksum of a log, taken on over more of it.

    Args:
        data: a multiple of 8 bytes.
        before: the sums so far; (0, 0) at the file's head.
        words: two words in the log's byte order; see ``WORDS``.
    """
    first, second = before
    for one, two in words.iter_unpack(data):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second


class _Proof:
    """The running checksum of one round of the log."""

    __slots__ = ("_path", "_salts", "_words", "sums")

    def __init__(self, path: str, salts: bytes) -> None:
        self._path = path
        self._salts = salts
        self._words = WORDS[0]
        self.sums = (0, 0)

    def begin(self, head: bytes) -> None:
        """The file's head."""
        if len(head) < HEAD_BYTES:
            raise self.broken(0)
        magic, _, size, _, salts, *sums = _HEAD.unpack(head)
        self._words = WORDS[magic & 1]
        self._add(head[: HEAD_BYTES - 8])
        sound = (magic & ~1, size, salts) == (MAGIC, PAGE_BYTES, self._salts)
        if not sound or self.sums != tuple(sums):
            raise self.broken(0)

    def frame(self, number: int, data: bytes) -> None:
        """The next frame."""
        if len(data) < FRAME_BYTES:
            raise self.broken(number)
        summed, salts, *sums = _FRAME.unpack_from(data)
        self._add(summed)
        self._add(data[FRAME_HEAD_BYTES:])
        if salts != self._salts or self.sums != tuple(sums):
            raise self.broken(number)

    def _add(self, data: bytes) -> None:
        self.sums = checksum(data, self.sums, self._words)

    def broken(self, number: int) -> FramesLost:
        """What to say where the log is not what was written."""
        return FramesLost(
            f"{self._path}-wal: frame {number} is not what was written: the disk lost what it had"
            " not confirmed, so nothing is moved to the database and nothing can be acknowledged."
            " End every process that has the spool open (the engine and the applications;"
            f" lsof {self._path}), then start them again: what the disk had confirmed is whole,"
            " and the rest is left out then"
        )


def _descriptors() -> Iterator[int]:
    for folder in _FOLDERS:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        yield from map(int, filter(str.isdigit, names))
        return
    yield from range(_MOST_DESCRIPTORS)
