"""The pages of a damaged spool as its files hold them, read without SQLite.

SQLite reads a table from its root: one bad page on the way hides all behind it, and one bad byte in
the -wal all that came after. Here every page stands for itself: a leaf says what it is, what it
holds, and nothing else is asked. Format: https://www.sqlite.org/fileformat2.html, sections 1.5
(trees), 1.6 (overflow), 1.8 (pointer map), 2.1 (records), 4 (the -wal).

A page's newest image is that of the last transaction in the -wal which was written whole. A frame
that does not fit its checksum keeps its place, and what it replaced is offered behind it. A -wal
may be another spool's: what the database file holds in its places is offered apart (``replaced``).
Reads two files, writes none; knows no table.

Long, since one format is read here: a page cannot be told without its map, nor a record without its
page.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mailstrom.storage.sqlite.connection import PAGE_BYTES
from mailstrom.storage.sqlite.frames import MAGIC, WORDS, checksum

_LOG_HEADER, _FRAME_HEADER = 32, 24
_FRAME = _FRAME_HEADER + PAGE_BYTES
_FILE_HEADER = 100  # before the tree's own on page 1
_ENTRIES = PAGE_BYTES // 5  # of one page of the pointer map
_FREE, _ROOT = 2, 1
_OVERFLOW = (3, 4)
_LOCKS_PAGE = 0x4000_0000 // PAGE_BYTES + 1  # never used: there lie the locks
_TITLE = b"SQLite format 3\0"
_HEADERS = {0x02: 12, 0x05: 12, 0x0A: 8, 0x0D: 8}  # kind of a tree's page: bytes of its header
_MOST_PAYLOAD = 1024 * 1024
"""Longer than any row of a spool: a length beyond it is damage."""
LEAF, INDEX_LEAF, INDEX_INTERIOR = 0x0D, 0x0A, 0x02
_LOCAL = {LEAF: PAGE_BYTES - 35, INDEX_LEAF: (PAGE_BYTES - 12) * 64 // 255 - 23}
_LEAST = (PAGE_BYTES - 12) * 32 // 255 - 23

Value = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """Where an image of a page lies: in the -wal or the database, and at which byte."""

    log: bool
    offset: int
    fits: bool = True
    """The frame's checksum; the database has none."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a leaf: its row's number (0 in an index) and the record, as yet unread."""

    number: int
    size: int
    local: bytes
    overflow: int


class Pages:
    """The pages of a spool; ``close`` it.

    Args:
        path: the database file; it may be gone if its -wal is there. The caller sees to it that
            nobody has it open, this process neither: to close a descriptor drops its locks.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, path: str) -> None:
        gone = os.path.exists(f"{path}-wal") and not os.path.exists(path)
        self._files = {False: os.open(os.devnull if gone else path, os.O_RDONLY | os.O_CLOEXEC)}
        self._images: dict[int, list[ImagePlace]] = {}
        self._map: tuple[int, bytes | None] = (0, None)  # the last page of the pointer map
        self._freelist: frozenset[int] | None = None
        self.unfit = 0
        """Newest images in the -wal that do not fit their checksum, and ends of transactions."""
        self.beyond = 0
        """Pages that the spool says it has behind the end of its file."""
        try:
            self.count = self._in_file = os.fstat(self._files[False]).st_size // PAGE_BYTES
            try:
                self._files[True] = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                pass
            else:
                self._read_log()
            self._look_around()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    def images(self, page: int) -> Iterator[bytes]:
        """What the page may hold, newest first; mostly one image."""
        if not 1 <= page <= self.count:
            return
        places = self._images.get(page)
        for place in [ImagePlace(False, (page - 1) * PAGE_BYTES)] if places is None else places:
            image = self._read(place.log, PAGE_BYTES, place.offset)
            if len(image) == PAGE_BYTES:
                yield image

    def newest(self, page: int) -> bytes | None:
        """The newest image of the page, or None where there is no such page."""
        return next(self.images(page), None)

    def _own(self, page: int) -> bytes | None:
        """What the database file holds of a page, whatever the -wal says."""
        image = self._read(False, PAGE_BYTES, (page - 1) * PAGE_BYTES) if page > 0 else b""
        return image if len(image) == PAGE_BYTES else None

    @property
    def logged(self) -> bool:
        """Whether there is a -wal that says anything."""
        return bool(self._images)

    def replaced(self) -> Iterator[bytes]:
        """Pages in use of the database file that count for nothing, since the -wal says so."""
        if not self._images:
            return
        free = self._free(self._own, self._own(1) or bytes(PAGE_BYTES)) or frozenset()
        for page in range(1, self._in_file + 1):
            places = self._images.get(page, [])
            read = page <= self.count and not self.is_free(page)
            read = read and (not places or not places[-1].log)
            image = None if read or page in free else self._own(page)
            if image is not None:
                yield image

    def _read(self, log: bool, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._files[log], size, offset)
        except OSError:  # a sector that cannot be read costs its page
            return b""

    # --- the -wal ---------------------------------------------------------------------------

    def _read_log(self) -> None:
        size = os.fstat(self._files[True]).st_size
        frames = (size - _LOG_HEADER) // _FRAME
        if frames <= 0:
            return
        head = self._read(True, _LOG_HEADER, 0)
        words = WORDS[int.from_bytes(head[:4], "big") & 1]
        salt, summed = head[16:24], struct.unpack(">II", head[24:32])
        if checksum(head[:24], (0, 0), words) != summed:  # damaged: the first frame knows
            salt = self._read(True, 8, _LOG_HEADER + 8)
            words = WORDS[int.from_bytes(head[:4], "big") == MAGIC | 1]
        frames_of_now = []  # page, size of the database after a commit or 0, place
        for number in range(frames):
            offset = _LOG_HEADER + number * _FRAME
            start = self._read(True, 16, offset)
            if start[8:] == salt:
                page, commit = struct.unpack(">II", start[:8])
                frames_of_now.append((page, commit, offset))
        before = {_LOG_HEADER: summed}
        while frames_of_now:  # what comes after the last commit never happened
            _, pages, offset = frames_of_now[-1]
            if pages and self._frame_fits(offset, words, before):
                self.count = pages
                break
            self.unfit += pages > 0  # damaged, or torn by a crash: nobody can tell
            frames_of_now.pop()
        for page, _, offset in reversed(frames_of_now):
            known = self._images.setdefault(page, [])
            if known and known[-1].fits:
                continue
            fits = self._frame_fits(offset, words, before)
            self.unfit += not fits
            known.append(ImagePlace(True, offset + _FRAME_HEADER, fits))
        for page, known in self._images.items():
            if not known[-1].fits:
                known.append(ImagePlace(False, (page - 1) * PAGE_BYTES))

    def _frame_fits(
        self, offset: int, words: struct.Struct, first: dict[int, tuple[int, int]]
    ) -> bool:
        """Whether a frame is what its checksum, and that of the frame before it, say."""
        frame = self._read(True, _FRAME, offset)
        before = first.get(offset)
        if before is None:
            stored = self._read(True, 8, offset - _FRAME + 16)
            before = struct.unpack(">II", stored) if len(stored) == 8 else (0, 0)
        if len(frame) < _FRAME:
            return False
        summed = checksum(frame[_FRAME_HEADER:], checksum(frame[:8], before, words), words)
        return summed == struct.unpack(">II", frame[16:24])

    # --- what a page is ---------------------------------------------------------------------

    @staticmethod
    def _map_page(page: int) -> int:
        """The page of the pointer map that tells of a page."""
        return (page - 2) // (_ENTRIES + 1) * (_ENTRIES + 1) + 2

    def _pointer(self, page: int) -> tuple[int, int]:
        """What the pointer map says: the kind of a page, and the page above it."""
        first = self._map_page(page)
        if self._map[0] != first:
            self._map = (first, self.newest(first))
        image = self._map[1]
        if page == first or image is None:
            return 0, 0
        offset = (page - first - 1) * 5
        return image[offset], int.from_bytes(image[offset + 1 : offset + 5], "big")

    def _look_around(self) -> None:
        """Read from the first page how long the file is, and which pages are free."""
        first = self.newest(1) or bytes(PAGE_BYTES)
        if first[:16] != _TITLE or first[24:28] != first[92:96]:
            return
        pages = int.from_bytes(first[28:32], "big")
        self.beyond = max(pages - self.count, 0)
        self._freelist = self._free(self.newest, first)

    @staticmethod
    def _free(read: Callable[[int], bytes | None], first: bytes) -> frozenset[int] | None:
        """The list of free pages that the first page tells of, None where it is not whole."""
        found: set[int] = set()
        trunk, pages = struct.unpack(">II", first[32:40])  # section 1.5
        while trunk:
            image = read(trunk)
            if image is None or trunk in found or len(found) > pages:
                return None
            count = int.from_bytes(image[4:8], "big")
            if count > PAGE_BYTES // 4 - 2:
                return None
            found.add(trunk)
            found.update(struct.unpack(f">{count}I", image[8 : 8 + 4 * count]))
            trunk = int.from_bytes(image[:4], "big")
        return frozenset(found) if len(found) == pages else None

    def is_free(self, page: int) -> bool:
        """Whether the page holds only what was deleted.

        The list of free pages says so; where it is damaged, the pointer map does.
        """
        if self._freelist is not None:
            return page in self._freelist
        return page > 2 and self._pointer(page) == (_FREE, 0)

    def is_whole(self, page: int) -> bool:
        """Whether the newest image of a page in use is what the pointer map says that it is."""
        image = self.newest(page)
        if image is None:
            return False
        if page == 1:
            return image[:16] == _TITLE and _is_tree(image, _FILE_HEADER)
        if page == self._map_page(page):
            pages = range(page + 1, min(page + _ENTRIES, self.count) + 1)
            return all(1 <= self._pointer(each)[0] <= 5 for each in pages if each != _LOCKS_PAGE)
        if page == _LOCKS_PAGE:
            return True
        kind = self._pointer(page)[0]
        if kind in _OVERFLOW:
            return int.from_bytes(image[:4], "big") <= self.count
        return kind not in (_ROOT, 5) or _is_tree(image, 0)

    def root(self, page: int) -> int | None:
        """The root page of the tree that a page belongs to, or None where that is lost."""
        for _ in range(20):  # no tree is so deep
            kind, above = self._pointer(page)
            if kind == _ROOT:
                return page
            if kind != 5 or above < 2:
                return None
            page = above
        return None

    def cells(self, page: int, image: bytes) -> Iterator[Cell]:
        """The entries of a page that holds rows or an index; nothing of any other."""
        start = _FILE_HEADER if page == 1 else 0
        kind = image[start]
        if kind not in (LEAF, INDEX_LEAF, INDEX_INTERIOR):
            return
        first = start + (12 if kind == INDEX_INTERIOR else 8)
        count = int.from_bytes(image[start + 3 : start + 5], "big")
        for place in range(first, min(first + 2 * count, PAGE_BYTES - 1), 2):
            cell = _cell(image, int.from_bytes(image[place : place + 2], "big"), kind)
            if cell is not None:
                yield cell

    def payload(self, cell: Cell, *, replaced: bool = False) -> bytes | None:
        """The whole record of an entry, or None where a page of it is lost.

        Args:
            replaced: it is of a page that ``replaced`` gave: the rest is in the database file, too.
        """
        read = self._own if replaced else self.newest
        pieces, left, page = [cell.local], cell.size - len(cell.local), cell.overflow
        while left > 0:
            image = read(page)
            if image is None:
                return None
            pieces.append(image[4 : 4 + left])
            left -= PAGE_BYTES - 4
            page = int.from_bytes(image[:4], "big")
        return b"".join(pieces)


def _is_tree(image: bytes, start: int) -> bool:
    """Whether a page says of itself what a page of a tree does."""
    kind, count = image[start], int.from_bytes(image[start + 3 : start + 5], "big")
    if kind not in _HEADERS:
        return False
    first = start + _HEADERS[kind]
    places = image[first : first + 2 * count]
    if len(places) < 2 * count:
        return False
    cells = struct.unpack(f">{count}H", places)
    return all(first + 2 * count <= place < PAGE_BYTES for place in cells)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number and the place behind it.

    Raises:
        IndexError: it would go on behind the end.
    """
    value = 0
    for _ in range(8):
        byte = data[place]
        place += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place
    value = value << 8 | data[place]
    return (value - (1 << 64) if value >> 63 else value), place + 1


def _cell(image: bytes, place: int, kind: int) -> Cell | None:
    try:
        size, place = _varint(image, place + (4 if kind == INDEX_INTERIOR else 0))
        number = 0
        if kind == LEAF:
            number, place = _varint(image, place)
    except IndexError:
        return None
    if not 1 <= size <= _MOST_PAYLOAD:
        return None
    most, overflow = _LOCAL[LEAF if kind == LEAF else INDEX_LEAF], 0
    local = size
    if size > most:
        local = _LEAST + (size - _LEAST) % (PAGE_BYTES - 4)
        local = local if local <= most else _LEAST
        overflow = int.from_bytes(image[place + local : place + local + 4], "big")
    if place + local + (4 if overflow else 0) > PAGE_BYTES:
        return None
    return Cell(number, size, image[place : place + local], overflow)


_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def shape(start: bytes) -> tuple[int, ...] | None:
    """The serial types of a record from its start, or None where that is no record."""
    try:
        size, place = _varint(start, 0)
        if not 1 < size <= len(start):
            return None
        kinds = []
        while place < size:
            kind, place = _varint(start, place)
            if kind < 0 or kind in (10, 11):
                return None
            kinds.append(kind)
    except IndexError:
        return None
    return tuple(kinds) if place == size else None


def record(payload: bytes) -> tuple[Value, ...] | None:
    """The values of a record, or None where it is none, to the byte."""
    kinds = shape(payload)
    if kinds is None:
        return None
    place, values = _varint(payload, 0)[0], list[Value]()
    for kind in kinds:
        if kind in (0, 8, 9):
            values.append(None if kind == 0 else kind - 8)
            continue
        size = _INTEGER_BYTES.get(kind, 8 if kind == 7 else (kind - 12) // 2)
        data = payload[place : place + size]
        place += size
        if kind == 7:
            if len(data) < size:
                return None
            values.append(struct.unpack(">d", data)[0])
        elif kind < 7:
            values.append(int.from_bytes(data, "big", signed=True))
        elif kind % 2 == 0:
            values.append(data)
        else:
            try:
                values.append(data.decode("utf-8"))
            except UnicodeDecodeError:
                return None
    return tuple(values) if place == len(payload) else None
