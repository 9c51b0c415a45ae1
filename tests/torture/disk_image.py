"""What a disk may hold after a power cut: a journal of what was asked of it, and images of it.

Contract. A journal is a list of ``Step`` values in the order they were done: writes, truncations
and syncs of files, changes and syncs of their directory. ``Disk`` takes them one after the other;
at any moment ``image`` makes one of the many contents that the disk could show if the power went
now. Pure: no files, no clock; all chance comes from the ``Random`` it is given.

The model is ext4 or xfs with barriers on a drive that keeps its word about flushes:

* What was written to a file before a sync of it *began*, and that sync returned, is there.
* A sync that *fails* drops what was written before it: each sector shows any of its contents, and
  no later sync changes that, until somebody writes that sector again (the whole of it goes then,
  from the page cache) or cuts it off.
* Of what came later each sector of 512 bytes shows, by itself, any of the contents it had since:
  kept, lost, torn within a page, reordered against everything else. A sector is written whole.
* A file that grew shows its old length, its new one (what was lost reads as zeros), or ends with
  the last sector that was kept. A truncation is there or not; what was written behind one that is
  not there is not there either.
* A directory shows every change before a sync of it that returned; of the later ones any prefix,
  or (stricter than those file systems) any selection. A file's own sync says nothing of its name.
* Shared memory (-shm) is gone.

It does not cover drives that lie about flushes, sectors damaged while they are written, or bits
that change by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

SECTOR = 512
MODES = ("random", "few", "most", "none", "all", "prefix", "pages", "last", "zeros", "short")
"""How the unsynced part is chosen; ``last`` keeps what was written last, as a reordering drive."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was asked of the disk.

    Args:
        what: write, truncate, sync, drop (a sync that failed); create (a name for an inode, new or
            not), unlink, rename, sync_names. Within a ``Disk`` also dropped: a piece of a write.
        name: the name changed; for data the name at that time, to read by.
        inode: which file.
        offset: of a write; the new size of a truncation.
        data: of a write.
        to: the new name of a rename.
        since: of a sync or a drop: how many steps had been taken when it began.
    """

    what: str
    name: str = ""
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    to: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class Image:
    """What the disk shows: contents by name, and how much of what was asked is missing."""

    files: dict[str, bytes]
    lost: int
    mode: str


class Disk:
    """A directory of files between the programs and the platter.

    Args:
        files: what is there from the start, by name, all of it durable.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self._taken = 0
        self._data: dict[int, bytearray] = {}
        self._names: dict[str, int] = {}
        self._late: dict[int, list[tuple[int, Step]]] = {}
        self._late_names: list[tuple[int, Step]] = []
        for number, (name, data) in enumerate((files or {}).items(), 1):
            self._names[name] = number
            self._data[number] = bytearray(data)

    def take(self, step: Step) -> None:
        """The next step of the journal."""
        number = self._taken
        self._taken += 1
        match step.what:
            case "write" | "truncate":
                self._late.setdefault(step.inode, []).append((number, step))
            case "sync":
                done, rest = _settled(self._late.pop(step.inode, []), step.since)
                _write_all(self._file(step.inode), done)
                if rest:
                    self._late[step.inode] = rest
            case "drop":
                late = self._late.pop(step.inode, [])
                if late:
                    self._late[step.inode] = [
                        piece for n, one in late for piece in _dropped(n, one, step.since)
                    ]
            case "sync_names":
                for n, one in self._late_names:
                    if n < step.since:
                        _rename(self._names, one)
                self._late_names = [(n, one) for n, one in self._late_names if n >= step.since]
            case _:
                self._late_names.append((number, step))

    def _file(self, inode: int) -> bytearray:
        return self._data.setdefault(inode, bytearray())

    @property
    def unsynced(self) -> int:
        """How many writes, truncations and changes of names the next cut may take away."""
        return sum(map(len, self._late.values())) + len(self._late_names)

    def image(self, random: Random) -> Image:
        """One content that the disk may show if the power goes now."""
        mode = random.choice(MODES)
        mixed = random.random() < 0.3  # each file in a mode of its own
        lost = 0
        chosen: dict[int, bytes] = {}
        cut = random.randint(self._first(), self._taken)
        for inode in {*self._data, *self._late}:
            late = self._late.get(inode)
            if not late:
                chosen[inode] = bytes(self._file(inode))
                continue
            own = random.choice(MODES) if mixed else mode
            data, missing = _chosen(self._file(inode), late, own, cut, random)
            chosen[inode] = data
            lost += missing
        names, missing = self._directory(random, mode)
        files = {name: chosen.get(inode, b"") for name, inode in names.items()}
        return Image(files, lost + missing, mode)

    def _first(self) -> int:
        numbers = [late[0][0] for late in self._late.values()]
        return min([*numbers, *(n for n, _ in self._late_names[:1]), self._taken])

    def _directory(self, random: Random, mode: str) -> tuple[dict[str, int], int]:
        names, late = dict(self._names), self._late_names
        if not late:
            return names, 0
        if mode in ("all", "none"):
            kept = [mode == "all"] * len(late)
        elif random.random() < 0.7:  # in order, as a journalling file system
            many = random.randint(0, len(late))
            kept = [n < many for n in range(len(late))]
        else:
            kept = [random.random() < 0.5 for _ in late]
        for (_, step), stays in zip(late, kept, strict=True):
            if stays:
                _rename(names, step)
        return names, kept.count(False)


def _rename(names: dict[str, int], step: Step) -> None:
    if step.what == "create":
        names[step.name] = step.inode
    elif step.what == "unlink":
        names.pop(step.name, None)
    else:
        names.pop(step.name, None)
        names[step.to] = step.inode


def _dropped(number: int, step: Step, since: int) -> Iterator[tuple[int, Step]]:
    """A write that a failed sync took, sector by sector; anything else as it is."""
    if step.what != "write" or number >= since:
        yield number, step
        return
    at, end = step.offset, step.offset + len(step.data)
    while at < end:
        to = min(end, (at // SECTOR + 1) * SECTOR)
        data = step.data[at - step.offset : to - step.offset]
        yield number, Step("dropped", step.name, step.inode, at, data)
        at = to


def _settled(
    late: Sequence[tuple[int, Step]], since: int
) -> tuple[list[Step], list[tuple[int, Step]]]:
    """What a sync makes durable of these, and what it leaves.

    Of what was dropped: where something was written to the same sector after it, or it was cut off.
    """
    done: list[Step] = []
    rest = [(number, step) for number, step in late if number >= since][::-1]
    written: set[int] = set()
    length: int | None = None
    for number, step in reversed(late):
        if number >= since:
            continue
        if step.what == "dropped":
            cut_off = length is not None and step.offset >= length
            if not cut_off and step.offset // SECTOR not in written:
                rest.append((number, step))
                continue
        elif step.what == "truncate":
            length = step.offset if length is None else min(length, step.offset)
        else:
            end = step.offset + len(step.data)
            written.update(range(step.offset // SECTOR, -(-end // SECTOR)))
        done.append(step)
    return done[::-1], rest[::-1]


def _write_all(file: bytearray, steps: Iterable[Step]) -> None:
    for step in steps:
        if step.what == "truncate":
            del file[step.offset :]
            _lengthen(file, step.offset)
        else:
            _lengthen(file, step.offset)
            file[step.offset : step.offset + len(step.data)] = step.data


def _lengthen(file: bytearray, size: int) -> None:
    if len(file) < size:
        file.extend(bytes(size - len(file)))


def _chosen(
    durable: bytearray, late: Sequence[tuple[int, Step]], mode: str, cut: int, random: Random
) -> tuple[bytes, int]:
    """One content of a file: what is durable, and of each sector one of its later versions."""
    if mode == "none":
        return bytes(durable), len(late)
    file = bytearray(durable)
    if mode == "all":
        _write_all(file, (step for _, step in late))
        return bytes(file), 0
    runs: list[list[tuple[int, Step]]] = [[]]
    for number, step in late:
        if step.what == "truncate":
            runs.append([])
        runs[-1].append((number, step))
    if mode == "prefix":
        stays = sum(run[0][0] < cut for run in runs[1:])
    else:
        stays = random.randint(0, len(runs) - 1)
    lost = sum(map(len, runs[stays + 1 :]))
    for run in runs[: stays + 1]:
        if run and run[0][1].what == "truncate":
            _write_all(file, [run[0][1]])
            run = run[1:]
        lost += _sectors(file, run, mode, cut, random)
    return bytes(file), lost


_KEPT = {"random": 0.5, "few": 0.05, "most": 0.95, "zeros": 0.5, "short": 0.5}


def _sectors(
    file: bytearray, run: Sequence[tuple[int, Step]], mode: str, cut: int, random: Random
) -> int:
    """Show, sector by sector, one of the versions that these writes made; how many are old."""
    if not run:
        return 0
    before, longest = len(file), len(file)
    versions: dict[int, list[tuple[int, int, memoryview]]] = {}
    for number, step in run:
        view, start, end = memoryview(step.data), step.offset, step.offset + len(step.data)
        longest = max(longest, end)
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            low, high = max(start, sector * SECTOR), min(end, (sector + 1) * SECTOR)
            piece = (number, low, view[low - start : high - start])
            versions.setdefault(sector, []).append(piece)
    numbers = [number for number, _ in run]
    page_kept = {number: random.random() < 0.5 for number in numbers}
    from_last = random.choice(numbers)
    lost = 0
    for pieces in versions.values():
        many = len(pieces)
        if mode == "prefix":
            many = sum(n < cut for n, _, _ in pieces)
        elif mode == "pages":
            while many and not page_kept[pieces[many - 1][0]]:
                many -= 1
        elif mode == "last":
            many = many if pieces[-1][0] >= from_last else 0
        elif random.random() >= _KEPT[mode]:
            many = random.randrange(many)
        lost += many < len(pieces)
        for _, low, data in pieces[:many]:
            end = low + len(data)
            _lengthen(file, end)
            file[low:end] = data
    if mode == "short":
        del file[before:]
    elif mode == "zeros":
        _lengthen(file, longest)
    return lost
