"""The frames of a -wal file, proved: what a repair may move into the database.

After a failed sync the page cache may have dropped pages and read them again from the disk, where
they never came: then frames are zeros or those of an earlier round, and SQLite, whose index of the
log is in shared memory, would move them all the same. The frames carry a running checksum; here it
is followed from the head to the end that the index names, and compared with the sum that stands
there. What was moved before is moved once more, for that may have been dropped as well.

That takes some 35 ms for a MiB, and nobody waits for it: it is done before the write lock is taken
(``prove``), and what came of it is kept (``Known``) with a hash of the bytes. Under the lock, where
the end stands still, the same bytes from the same sums are known by their hash (``proved``).

The index (the -shm file) is read through the descriptor that SQLite has open, never opened: closing
it would drop this process's locks.

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
_MOST_NEW = 8 * _BATCH  # frames that are followed under the write lock: some 0.3 s
_PASSES = 3  # each follows what was written during the one before
MAGIC = 0x377F0682  # and one more where the sums are of big-endian words
_HEAD = struct.Struct(">4I8s2I")
_FRAME = struct.Struct(">8s8s2I")
WORDS = (struct.Struct("<2I"), struct.Struct(">2I"))
"""By the lowest bit of the magic number: little-endian, big-endian."""
_INDEX = struct.Struct("=16x2I2I8s56xI")  # end, pages, sums there, salts, moved
_INDEX_BYTES = 136
_HEADER_BYTES = 48  # of the index; there are two, and a commit writes the second one first
_MOVED_AT = 96
_CHECKPOINT = 121  # the lock byte of whoever makes a checkpoint
FLOCK = struct.Struct("hhqqi4x")
"""struct flock of Linux, 64 bits: type, whence, start, length, process."""
_SET = getattr(fcntl, "F_OFD_SETLK", None)
_FOLDERS = ("/proc/self/fd", "/dev/fd")
_MOST_DESCRIPTORS = 4096  # tried where the system lists none
_MASK = 0xFFFFFFFF


class FramesLost(SpoolError):
    """The log is not what was written, so no repair may move it."""


class Known:
    """What was proved of one round of the log, so that the same bytes need no second proof."""

    __slots__ = ("_head", "_proved")

    def __init__(self) -> None:
        self._head = b""
        self._proved: dict[int, tuple[tuple[int, int], bytes, tuple[int, int]]] = {}

    def begin(self, head: bytes) -> None:
        """Forget all, unless this is the round's: salts and byte order are in the head."""
        if head != self._head:
            self._head = head
            self._proved.clear()

    def after(self, number: int, before: tuple[int, int], digest: bytes) -> tuple[int, int] | None:
        """The sums behind these bytes, the frames from ``number`` on; None where nobody knows."""
        sums, known, after = self._proved.get(number, (before, b"", before))
        return after if (sums, known) == (before, digest) else None

    def note(
        self, number: int, before: tuple[int, int], digest: bytes, after: tuple[int, int]
    ) -> None:
        """They were proved."""
        self._proved[number] = before, digest, after


def index_head(shm: os.stat_result) -> bytes | None:
    """The start of the log's index, by the descriptor that this process has open; None without.

    Args:
        shm: which file it is.
    """
    found = _index(shm)
    return None if found is None else found[1]


def index_descriptor(shm: os.stat_result) -> int | None:
    """The descriptor by which this process has the log's index open; it is never to be closed."""
    found = _index(shm)
    return None if found is None else found[0]


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
    crash, while nobody makes a checkpoint: SQLite's lock for that is taken.

    Where the system has no lock of an open description (Linux has), only the house's rule holds: in
    a poisoned spool nothing but the repair begins a checkpoint. One that began before the flag and
    still runs is not waited for there: it may write its count over the zero, and what was moved
    before it is then not moved again.

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
    """A lock of the open description, which SQLite's own locks of this process respect, too.

    Nothing where the system has none: one of the process would be taken from SQLite by its end.
    """
    if _SET is not None:
        fcntl.fcntl(fd, _SET, FLOCK.pack(kind, os.SEEK_SET, _CHECKPOINT, 1, 0))


def prove(path: str, wal: int, known: Known) -> None:
    """Prove what is in the log now, ahead of the write lock, for ``proved`` under it.

    Args:
        path: the database file; a connection of this process has it open.
        wal: a descriptor of the -wal file.
        known: what was proved before; it gets what is proved now.

    Raises:
        FramesLost, SpoolError: as ``proved``; or the log began again meanwhile: it is not to be
            relied on without the lock.
        OSError: the file cannot be read.
    """
    last = None
    for _ in range(_PASSES):
        head = _head(path)
        if head[:_HEADER_BYTES] != head[_HEADER_BYTES : 2 * _HEADER_BYTES]:
            raise SpoolError(f"{path}-shm: is just being written")
        end = _INDEX.unpack_from(head)[0]
        if end == last:
            return
        last = end
        for _ in _followed(path, wal, head, known, end):
            pass


def proved(path: str, wal: int, known: Known) -> Iterator[tuple[int, bytes]]:
    """Read the -wal file, and prove each frame of the log, unless the database has all of them.

    One that was moved already is proved, too: its page may be on no disk yet (``move_again``).

    Args:
        path: the database file; a connection of this process holds its write lock.
        wal: a descriptor of the -wal file.
        known: what ``prove`` found; it gets what is proved now.

    Yields:
        where in the file, and the bytes there: proved before they are given.

    Raises:
        FramesLost: a frame is not what was written.
        SpoolError: nobody can tell, or more was written since ``prove`` than may be proved while
            everybody waits for the lock.
        OSError: the file cannot be read.
    """
    yield from _followed(path, wal, _head(path), known, _MOST_NEW)


def _head(path: str) -> bytes:
    try:
        head = index_head(os.stat(f"{path}-shm"))
    except FileNotFoundError:
        head = None
    if head is None:
        raise SpoolError(f"{path}-shm: cannot be read, so nobody can tell which frames are sound")
    return head


def _followed(
    path: str, wal: int, head: bytes, known: Known, most: int
) -> Iterator[tuple[int, bytes]]:
    """See ``proved``; ``head`` is the index's, ``most`` how many frames are not known yet."""
    end, _, *last, salts, moved = _INDEX.unpack_from(head)
    start = os.pread(wal, HEAD_BYTES, 0)
    proof = _Proof(path, salts, known, most) if end > moved else None
    if proof is not None:
        proof.begin(start)
    yield 0, start
    place, number = HEAD_BYTES, 0
    while data := os.pread(wal, _BATCH * FRAME_BYTES, place):
        if proof is not None and number < end:
            proof.frames(number + 1, data[: (end - number) * FRAME_BYTES])
        yield place, data
        number += -(-len(data) // FRAME_BYTES)
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

    __slots__ = ("_known", "_most", "_path", "_salts", "_words", "sums")

    def __init__(self, path: str, salts: bytes, known: Known, most: int) -> None:
        self._path = path
        self._salts = salts
        self._known = known
        self._most = most
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
        self._known.begin(head)

    def frames(self, first: int, data: bytes) -> None:
        """The next frames, of which the first has this number."""
        from hashlib import blake2b  # only a repair's: it loads OpenSSL into every client otherwise

        before, digest = self.sums, blake2b(data).digest()
        after = self._known.after(first, before, digest)
        if after is not None:
            self.sums = after
            return
        for number, place in enumerate(range(0, len(data), FRAME_BYTES), first):
            self._most -= 1
            if self._most < 0:
                raise SpoolError(f"{self._path}-wal: has grown by too much to be proved now")
            self._frame(number, data[place : place + FRAME_BYTES])
        self._known.note(first, before, digest, self.sums)

    def _frame(self, number: int, data: bytes) -> None:
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
