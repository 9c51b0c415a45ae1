"""Damage to a stopped spool: bytes, pages, truncation, a -wal that is gone or another spool's.

Contract. Each trial damages a fresh copy of a spool with a known population, has it delivered
without sockets (``damage_spool``) and salvaged, and judges both:

* nothing goes on the wire but what was accepted, as it was accepted, to its own host: sender,
  bytes, no weaker TLS demand (a stream may have added one after the digest was made, so one that
  damage added cannot be told from it); a phantom, a mixture or a second delivery is a finding;
* two things are known and counted, each in a row of its own: mail that a damaged route led to
  another host, and whole mail of the spool whose -wal it was;
* a store that does not go on says so with the file's name; what it passes over in silence is a
  finding, unless ``store check`` tells of it;
* the salvaged spool passes ``store check``, every content in it is what was accepted, no recipient
  waits past its message's expiry, and of the messages that lay on no damaged page at least 99 % are
  in it, over all trials of a kind;
* every recipient that was accepted is in the salvaged spool, or the report names it; where the page
  of its row and that of its index entry are both damaged, the report must say that something is.

What a -wal held behind damage, or after it was cut, is gone for SQLite, as after a power cut of a
lying disk: there the old state is sent again, which no store can know. The row counts such doubles
as ``marked`` 0 and no finding; the salvaged spool, a marked copy, takes the frames behind damage.

The judges are in ``damage_judge``. Long, since trials and faults share the map of what lay on which
page.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mailstrom.storage.sqlite.connection import PAGE_BYTES
from mailstrom.storage.sqlite.salvage_pages import (
    INDEX_INTERIOR,
    INDEX_LEAF,
    LEAF,
    Pages,
    record,
    shape,
)
from mailstrom.storage.sqlite.salvage_rows import MESSAGE, RECIPIENT
from tests.support.trial import Plan
from tests.torture.damage_envelope import COLUMNS, damage
from tests.torture.damage_judge import MOST_FINDINGS, judge, misled, salvaged, strangers, told
from tests.torture.damage_routes import flip, mislead, misname, route_pages
from tests.torture.damage_spool import Truth, deliver, populate
from tests.torture.table import Row

MESSAGES = 40
NAMES = ("here", "there")
_FRAME = PAGE_BYTES + 24
RECOVERED = 0.99


@dataclass(slots=True)
class Base:
    """The sound spool that trials copy: its files, what is in it, and on which pages it lies."""

    folder: Path
    truth: Truth
    images: dict[int, bytes]
    pages_of: dict[str, frozenset[int]]
    traces: dict[str, tuple[frozenset[int], frozenset[int]]]
    """Of each address the pages of its row, and that of its entry in the index."""
    routes: dict[int, bool]
    """Pages that hold routes: whether of a table, or of an index."""


Fault = Callable[[Path, random.Random, Base, Base], None]


def flip_byte(path: Path, chance: random.Random, base: Base, _other: Base) -> None:
    """One byte of the database gets another value."""
    _flip(path, _some_page(path, chance, base) + chance.randrange(PAGE_BYTES), chance)


def flip_log_byte(path: Path, chance: random.Random, _base: Base, _other: Base) -> None:
    """One byte of the -wal gets another value."""
    _flip(_log(path), chance.randrange(_log(path).stat().st_size), chance)


def zero_page(path: Path, chance: random.Random, base: Base, _other: Base) -> None:
    """One page is zeroes."""
    _change(path, _some_page(path, chance, base), bytes(PAGE_BYTES))


def garble_page(path: Path, chance: random.Random, base: Base, _other: Base) -> None:
    """One page is noise."""
    _change(path, _some_page(path, chance, base), chance.randbytes(PAGE_BYTES))


def stray_page(path: Path, chance: random.Random, base: Base, _other: Base) -> None:
    """One page was written over another: each is whole, one is in the wrong place."""
    whole = path.read_bytes()
    source = chance.randrange(len(whole) // PAGE_BYTES) * PAGE_BYTES
    _change(path, _some_page(path, chance, base), whole[source : source + PAGE_BYTES])


def truncate(path: Path, chance: random.Random, _base: Base, _other: Base) -> None:
    """The database ends early."""
    os.truncate(path, chance.randrange(1, path.stat().st_size))


def truncate_log(path: Path, chance: random.Random, _base: Base, _other: Base) -> None:
    """The -wal ends early."""
    os.truncate(_log(path), chance.randrange(_log(path).stat().st_size))


def delete_log(path: Path, _chance: random.Random, _base: Base, _other: Base) -> None:
    """The -wal is gone."""
    _log(path).unlink()


def _route(damaged: Callable[[Path, random.Random, Mapping[int, bool]], None]) -> Fault:
    """Damage to where mail goes."""

    def fault(path: Path, chance: random.Random, base: Base, _other: Base) -> None:
        damaged(path, chance, base.routes)

    return fault


def swap_log(path: Path, _chance: random.Random, _base: Base, other: Base) -> None:
    """The -wal is another spool's."""
    shutil.copyfile(_log(other.folder / "spool.db"), _log(path))


def _envelope(column: str) -> Fault:
    """One column of what a server is told of a message that waits."""

    def fault(path: Path, chance: random.Random, base: Base, _other: Base) -> None:
        damage(path, chance, base.truth, column)

    return fault


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of damage.

    Args:
        share: of a hundred trials.
        old: of a spool with a -wal, of which SQLite may rightly show an older state: what it had
            delivered is sent again.
        foreign: another spool's mail, whole, is known to be found.
        later: it is delivered for days: until routes expire, and what is only put off comes.
        silent: what is lost leaves no trace: an older sound spool is left.
    """

    fault: Fault
    share: int
    old: bool = False
    foreign: bool = False
    later: bool = False
    silent: bool = False


KINDS: dict[str, Kind] = {
    "a byte of the database": Kind(flip_byte, 40),
    "a byte of the -wal": Kind(flip_log_byte, 14, old=True),
    "a page of zeroes": Kind(zero_page, 10),
    "a page of noise": Kind(garble_page, 10),
    "a page in another's place": Kind(stray_page, 10),
    "a database cut short": Kind(truncate, 6),
    "a -wal cut short": Kind(truncate_log, 5, old=True, silent=True),
    "no -wal": Kind(delete_log, 2, old=True, silent=True),
    "a byte of the route tables": Kind(_route(flip), 16, later=True),
    "a letter of a site's host": Kind(_route(misname), 2, later=True),
    "a domain's site": Kind(_route(mislead), 2, later=True),
    **{f"the envelope's {column}": Kind(_envelope(column), 4) for column in COLUMNS},
    "another spool's -wal": Kind(swap_log, 3, old=True, foreign=True, silent=True),
}


def run(plan: Plan) -> Iterator[Row]:
    """Every kind of damage; a row each."""
    trials = plan.pick(150, 2_000)
    bases = {
        log: [
            base_at(plan.folder / f"base{n}{log}", plan.seed * 4 + n + 2 * log, log=log, name=name)
            for n, name in enumerate(NAMES)
        ]
        for log in (False, True)
    }
    known = _Known()
    for name, kind in KINDS.items():
        yield _row(plan, name, kind, bases[kind.old], max(3, trials * kind.share // 100), known)
    yield from known.rows(plan)


def base_at(folder: Path, seed: int, *, log: bool, name: str = NAMES[0]) -> Base:
    """A sound spool of its own; ``log``: half of it is in the -wal."""
    folder.mkdir()
    path = folder / "spool.db"
    truth = populate(path, random.Random(seed), MESSAGES, log=log, name=name)
    shutil.rmtree(f"{path}-run", ignore_errors=True)
    path.with_name("spool.db-shm").unlink(missing_ok=True)
    images, pages_of, traces = _map(path, truth)
    routes = route_pages(path)
    path.with_name("spool.db-shm").unlink(missing_ok=True)
    return Base(folder, truth, images, pages_of, traces, routes)


@dataclass(slots=True)
class _Count:
    tried: int = 0
    messages: int = 0
    sound: int = 0
    recovered: int = 0
    refused: int = 0
    damaged: int = 0
    findings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Known:
    """What went wrong as docs/known-issues.md says: recipients that it met, and those at stake."""

    misled: int = 0
    routed: int = 0
    strangers: int = 0
    swapped: int = 0

    def rows(self, plan: Plan) -> Iterator[Row]:
        """What came of it, in the table's words; no fault of their own."""
        for fault, met, messages in (
            ("damaged routes led to a wrong host (known)", self.misled, self.routed),
            ("mail of the spool whose -wal it was (known)", self.strangers, self.swapped),
        ):
            yield Row(part="disk", fault=f"damage: {fault}", tried=met, messages=messages,
                      seed=plan.seed, unit="recipient")  # fmt: skip


def _row(plan: Plan, name: str, kind: Kind, bases: list[Base], trials: int, known: _Known) -> Row:
    count = _Count()
    for number in range(trials):
        seed = f"{plan.seed}:{name}:{number}"
        chance = random.Random(seed)
        base, other = bases if number % 2 == 0 else reversed(bases)
        folder = plan.folder / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base.folder, folder)
        path = folder / "spool.db"
        kind.fault(path, chance, base, other)
        changed = _changed(path, base)
        if changed is None:
            continue  # the same byte, page or file as before: nothing was brought about
        count.tried += 1
        found = _trial(path, kind, base, other, changed, count, known)
        count.findings += [f"seed {seed}: {text}" for text in found]
        if len(count.findings) >= MOST_FINDINGS:
            break
    if count.sound and count.recovered < RECOVERED * count.sound:
        count.findings.append(f"only {count.recovered} of {count.sound} undamaged were recovered")
    plan.say(f"{name}: {count.tried} tried, {count.refused} refused, {count.damaged} set aside,"
             f" {count.recovered} of {count.sound} undamaged recovered")  # fmt: skip
    return Row(
        part="disk",
        fault=f"damage: {name}",
        tried=count.tried,
        messages=count.messages,
        findings=tuple(count.findings),
        seed=plan.seed,
    )


def _trial(
    path: Path,
    kind: Kind,
    base: Base,
    other: Base,
    changed: frozenset[int],
    count: _Count,
    known: _Known,
) -> list[str]:
    truth, foreign = base.truth, other.truth if kind.foreign else None
    count.messages += len(truth.by_address)
    sound = {id for id, pages in base.pages_of.items() if not pages & changed}
    before = {file: file.read_bytes() for file in (path, _log(path)) if file.exists()}
    traceless = {
        address
        for address, (row, entry) in base.traces.items()
        if row & changed and entry <= changed
    }
    found, kept = salvaged(path, truth, foreign, traceless, silent=kind.silent)
    found += [
        f"salvage wrote to {file.name}" for file, was in before.items() if file.read_bytes() != was
    ]
    count.sound += len(sound)
    count.recovered += len(sound & kept)
    wire = deliver(path, truth, later=kind.later)
    count.refused += wire.refused is not None
    count.damaged += len(set(wire.damaged))
    routes = not changed.isdisjoint(base.routes)
    found += judge(wire, truth, foreign, path, repeats=kind.old, routes=routes)
    if routes:
        known.routed += len(wire.seen)
        known.misled += len(misled(wire))
    known.strangers += strangers(wire, foreign)
    known.swapped += len(wire.seen) if kind.foreign else 0
    if kind.foreign and wire.refused is None and not told(path):
        found.append("another spool's -wal, and store check knows nothing")
    if wire.refused is None and wire.crashed is None and not kind.old:
        seen = {one.address for one in wire.seen} | set(wire.damaged)
        missed = truth.waiting - seen
        if missed and not told(path):
            found.append(f"{len(missed)} recipients are passed over, store check knows nothing")
    return found


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _some_page(path: Path, chance: random.Random, base: Base) -> int:
    """Where a page lies that is in use: half of the time one with rows."""
    rows = [page for page, image in base.images.items() if image[0] == LEAF]
    pages = path.stat().st_size // PAGE_BYTES
    rows = [page for page in rows if page <= pages]
    page = chance.choice(rows) if rows and chance.random() < 0.5 else chance.randrange(pages) + 1
    return (page - 1) * PAGE_BYTES


def _flip(path: Path, offset: int, chance: random.Random) -> None:
    with path.open("rb") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0] ^ chance.randrange(1, 256)
    _change(path, offset, bytes([byte]))


def _change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def _changed(path: Path, base: Base) -> frozenset[int] | None:
    """Pages whose newest image is not the one that it was; None where no file changed."""
    names = ("spool.db", "spool.db-wal")
    here, there = path.parent, base.folder
    same = [_bytes(here / name) == _bytes(there / name) for name in names]
    if all(same):
        return None
    pages = Pages(str(path))
    try:
        return frozenset(p for p, image in base.images.items() if pages.newest(p) != image)
    finally:
        pages.close()


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _map(
    path: Path, truth: Truth
) -> tuple[
    dict[int, bytes],
    dict[str, frozenset[int]],
    dict[str, tuple[frozenset[int], frozenset[int]]],
]:
    """Every page of a sound spool, the pages that each message's rows and content lie on, and those
    that each recipient's row and index entry lie on.
    """
    pages = Pages(str(path))
    images: dict[int, bytes] = {}
    by_number: dict[int, set[int]] = {}
    ids: dict[int, str] = {}
    contents: dict[int, int] = {}
    chunks: dict[int, set[int]] = {}
    rows: dict[str, frozenset[int]] = {}
    entries: dict[str, frozenset[int]] = {}
    try:
        for page in range(1, pages.count + 1):
            image = pages.newest(page)
            assert image is not None
            images[page] = image
            if pages.is_free(page):
                continue
            if image[0] in (INDEX_LEAF, INDEX_INTERIOR):
                for cell in pages.cells(page, image):
                    entry = record(pages.payload(cell) or b"") or ()
                    if len(entry) == 3 and entry[1] in truth.by_address:
                        entries[str(entry[1])] = frozenset((page,))
            if image[0] != LEAF:
                continue
            for cell in pages.cells(page, image):
                kinds = shape(cell.local) or ()
                own, left, over = {page}, cell.size - len(cell.local), cell.overflow
                while left > 0:
                    own.add(over)
                    left -= PAGE_BYTES - 4
                    over = int.from_bytes((pages.newest(over) or bytes(4))[:4], "big")
                if len(kinds) == 3 and kinds[2] == 44:
                    chunks.setdefault(cell.number >> 12, set()).update(own)
                elif len(kinds) in (len(MESSAGE), len(RECIPIENT)):
                    values = record(pages.payload(cell) or b"")
                    assert values is not None
                    is_message = isinstance(values[1], str)  # its id; a recipient's is a number
                    number = cell.number if is_message else values[1]
                    assert isinstance(number, int)
                    if not is_message:
                        rows[str(values[2])] = frozenset(own)
                    by_number.setdefault(number, set()).update(own)
                    if is_message:
                        ids[number] = str(values[1])
                        content = values[5]
                        contents[number] = content if isinstance(content, int) else number
    finally:
        pages.close()
    assert set(ids.values()) == set(truth.mails)
    assert set(rows) == set(entries) == set(truth.by_address)
    return (
        images,
        {id: frozenset(by_number[n] | chunks[contents[n]]) for n, id in ids.items()},
        {address: (rows[address], entries[address]) for address in rows},
    )
