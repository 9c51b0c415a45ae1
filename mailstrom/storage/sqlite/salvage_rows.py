"""What a damaged spool still holds: rows by their shape, gathered from every page by itself.

A row is known by the number and the kinds of its columns, since the way to it from its table's root
may be lost; the small tables without row numbers by their tree's root, which the pointer map tells.
Rows go into a scratch database that SQLite deletes with its connection (tables ``found.*``, with
``rank``: 0 is the newest image of a page). Nothing is believed here: ``salvage`` asks digests and
checksums. Content stays where it is; only its place is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import apsw

from mailstrom.storage.sqlite.salvage_pages import LEAF, Pages, Value, record, shape
from mailstrom.storage.sqlite.sql import run

MESSAGE = (
    "seq", "id", "sender", "subject", "size", "content", "chunks", "stream", "priority",
    "message_id", "idempotency_key", "metadata", "on_doubt", "require_tls", "eightbit", "smtputf8",
    "created_ms", "send_ms", "expires_ms", "finished_ms", "purged_ms", "digest", "origin", "client",
    "ret", "envid", "reports", "priority_wire", "delay_from_ms", "delays_told",
    "requiretls",
)  # fmt: skip
RECIPIENT = (
    "seq", "message", "address", "domain", "checksum", "priority", "state", "reason", "site",
    "generation", "due_ms", "lane", "session", "opened_ms", "attempts", "deferrals", "in_doubt",
    "doubts", "reopened_ms", "last_ms", "finished_ms", "mx", "reply_code", "enhanced_code",
    "reply_text", "tls", "notify", "orcpt", "wants", "reported",
)  # fmt: skip
ATTEMPT = (
    "seq", "message", "recipient", "number", "session", "worker", "started_ms", "ended_ms", "stage",
    "host", "address", "reply_code", "enhanced_code", "reply_text", "verdict", "reason", "in_doubt",
    "late",
)  # fmt: skip
EVENT = ("id", "at_ms", "type", "message", "recipient", "detail")
CONTENT = ("key", "page", "image", "cell", "size")
UNNAMED = ("id", "chunks", "least", "most")
"""Staged content that no message's row names: its chunks, and within which bounds its size is."""
_NAMED = {
    "tag": ("tag", "message"),
    "tag_message": ("message", "tag"),
    "meta": ("key", "value"),
    "idempotency": ("key", "hash", "id", "expires_ms"),
    "suppression": ("address", "scope", "reason", "created_ms", "expires_ms", "evidence"),
    "named": ("id", "message"),
}
"""Trees without row numbers, known by their root."""
_INDEXES = {"sqlite_autoindex_message_1": "named"}
"""Trees of ``_NAMED`` that the spool calls otherwise."""
ADDRESS = ("message", "address", "recipient")
"""The index over message and address: it lies on other pages than the recipients' rows."""

# Columns by what a value of them may be: the number of a row is no value (N), T text, I integer,
# B bytes; small letters may be NULL.
_SHAPES = {
    "message": (MESSAGE, "NTTTIiITITtTtIIIIIIiibttttiiiii"),
    "recipient": (RECIPIENT, "NITTIITtiIiitiIIIIiiititttttit"),
    "attempt": (ATTEMPT, "NIIItiIITttittTtII"),
    "event": (EVENT, "NITiiT"),
}
REPLACED = ("id", "seq", "message_id", "created_ms", "finished_ms")
"""What is told of a message in a page of the database file that the -wal replaced."""
_OLDER = {"message": (21, 22), "recipient": (26,)}
"""Columns of rows that were stored before there were all of them; what they lack is NULL."""
_CONTENT_DIGEST = 44  # serial type of 16 bytes
_KINDS: dict[str, tuple[type, ...]] = {"T": (str,), "I": (int,), "B": (bytes,), "N": ()}
ROWS_AT_ONCE = 2_000


class Tally(NamedTuple):
    """Pages read, and how many of them were not what a sound spool has."""

    pages: int
    unreadable: int
    unfit_frames: int


def create(scratch: apsw.Connection) -> None:
    """Make the scratch tables; ``found`` is attached."""
    tables = {name: columns for name, (columns, _) in _SHAPES.items()} | _NAMED
    tables |= {
        "content": CONTENT,
        "unnamed": UNNAMED,
        "address": ADDRESS,
        "numbers": ("seq",),
        "replaced": REPLACED,
    }
    for name, columns in tables.items():
        scratch.execute(f"CREATE TABLE found.{name} ({', '.join(columns)}, rank)").fetchall()


def index(scratch: apsw.Connection) -> None:
    """Make gathered rows quick to find by message, and unnamed content by its chunks and size."""
    for name, columns in (("message", "seq, rank"), ("recipient", "message, seq, rank"),
                          ("content", "key, image"), ("attempt", "message, seq, rank"),
                          ("event", "message, id, rank"), ("address", "message, recipient"),
                          ("named", "message")):  # fmt: skip
        scratch.execute(f"CREATE INDEX found.{name}_at ON {name} ({columns})").fetchall()
    for table, column in (("recipient", "seq"), ("address", "recipient")):
        scratch.execute(f"CREATE INDEX found.{table}_number ON {table} ({column})").fetchall()
    run(scratch, "find_unnamed")
    scratch.execute("CREATE INDEX found.unnamed_at ON unnamed (chunks, least)").fetchall()


def gather(pages: Pages, scratch: apsw.Connection) -> Tally:
    """Read every page once; rows go to the scratch tables."""
    roots = _roots(pages)
    waiting: dict[str, list[Sequence[Value]]] = {}
    unreadable = 0
    for page in range(1, pages.count + 1):
        if pages.is_free(page):
            continue
        unreadable += not pages.is_whole(page)
        for rank, image in enumerate(pages.images(page)):
            for table, row in _rows(pages, page, image, rank, roots):
                waiting.setdefault(table, []).append(row)
                if len(waiting[table]) >= ROWS_AT_ONCE:
                    _keep(scratch, table, waiting.pop(table))
    waiting["replaced"] = []
    for row in _replaced(pages):
        waiting["replaced"].append(row)
        if len(waiting["replaced"]) >= ROWS_AT_ONCE:
            _keep(scratch, "replaced", waiting["replaced"])
            waiting["replaced"] = []
    for table, rows in waiting.items():
        _keep(scratch, table, rows)
    return Tally(pages.count + pages.beyond, unreadable + pages.beyond, pages.unfit)


def _keep(scratch: apsw.Connection, table: str, rows: list[Sequence[Value]]) -> None:
    if not rows:
        return
    marks = ", ".join("?" * len(rows[0]))
    scratch.executemany(f"INSERT INTO found.{table} VALUES ({marks})", rows)


def _roots(pages: Pages) -> dict[int, str]:
    """Root page -> name of those trees that are known by it."""
    found: dict[int, str] = {}
    for page in range(1, pages.count + 1):
        image = pages.newest(page)
        if image is None or pages.is_free(page):
            continue
        if image[100 if page == 1 else 0] != LEAF:
            continue
        for cell in pages.cells(page, image):
            kinds = shape(cell.local)
            if kinds is None or len(kinds) != 5:
                continue
            values = record(pages.payload(cell) or b"")
            if values is None or values[0] not in ("table", "index"):
                continue
            name, root = values[1], values[3]
            name = _INDEXES.get(name, name) if isinstance(name, str) else None
            if name in _NAMED and isinstance(root, int):
                found.setdefault(root, name)
        if len(found) == len(_NAMED):
            break
    return found


def _rows(
    pages: Pages, page: int, image: bytes, rank: int, roots: dict[int, str]
) -> Iterator[tuple[str, Sequence[Value]]]:
    leaf = image[100 if page == 1 else 0] == LEAF
    name = None
    if not leaf:
        root = pages.root(page)
        name = None if root is None else roots.get(root)
    for place, cell in enumerate(pages.cells(page, image)):
        if name is not None:
            values = record(pages.payload(cell) or b"")
            if values is not None and len(values) == len(_NAMED[name]):
                yield name, (*values, rank)
            continue
        kinds = shape(cell.local)
        if kinds is None:
            continue
        if not leaf:
            entry = record(pages.payload(cell) or b"") if len(kinds) == len(ADDRESS) else None
            if entry is not None and _fits(entry, "ITI") and "@" in str(entry[1]):
                yield "address", (*entry, rank)
            continue
        if len(kinds) == 3 and kinds[2] == _CONTENT_DIGEST:
            yield "content", (cell.number, page, rank, place, max(0, kinds[1] - 12) // 2, rank)
            continue
        if len(kinds) == 2:  # of SQLite's own table: the greatest number that was given out
            values = record(cell.local)
            if values is not None and values[0] == "message" and isinstance(values[1], int):
                yield "numbers", (values[1], rank)
            continue
        for table, (columns, letters) in _SHAPES.items():
            if len(kinds) not in (len(columns), *_OLDER.get(table, ())):
                continue
            values = record(pages.payload(cell) or b"")
            if values is not None:
                values = (*values, *[None] * (len(columns) - len(values)))
            if values is not None and _fits(values, letters):
                yield table, (cell.number, *values[1:], rank)


def _replaced(pages: Pages) -> Iterator[Sequence[Value]]:
    """Messages in those pages of the database file that the -wal replaced."""
    columns, letters = _SHAPES["message"]
    for image in pages.replaced():
        for cell in pages.cells(0, image) if image[0] == LEAF else ():
            kinds = shape(cell.local)
            if kinds is None or len(kinds) not in (len(columns), *_OLDER["message"]):
                continue
            values = record(pages.payload(cell, replaced=True) or b"")
            if values is not None:
                values = (*values, *[None] * (len(columns) - len(values)))
            if values is not None and _fits(values, letters):
                told = dict(zip(columns, [cell.number, *values[1:]], strict=False))
                yield [*(told[name] for name in REPLACED), 0]


def _fits(values: Sequence[Value], letters: str) -> bool:
    """Whether values may be a row of this table."""
    for value, letter in zip(values, letters, strict=True):
        if value is None:
            if letter.isupper() and letter != "N":
                return False
        elif not isinstance(value, _KINDS[letter.upper()]):
            return False
    return True


def content_of(pages: Pages, page: int, image: int, place: int) -> tuple[bytes, bytes] | None:
    """A chunk and its digest, read again from where ``gather`` saw it."""
    for number, data in enumerate(pages.images(page)):
        if number != image:
            continue
        for seen, cell in enumerate(pages.cells(page, data)):
            if seen == place:
                values = record(pages.payload(cell) or b"")
                if values is None or len(values) != 3:
                    return None
                body, kept = values[1], values[2]
                if isinstance(body, bytes) and isinstance(kept, bytes):
                    return body, kept
    return None
