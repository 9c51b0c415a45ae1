"""Damage confined to the route tables: where mail goes, and when it is looked at again.

Contract. One byte of the pages of the tables ``site`` and ``domain`` or of their indexes, mostly in
an entry. No digest covers them: which host a message is offered to may be wrong. Finds the pages by
the schema that the file itself holds; knows nothing of what is done about damage.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import apsw

from mailstrom.storage.sqlite.connection import PAGE_BYTES
from mailstrom.storage.sqlite.salvage_pages import INDEX_LEAF, LEAF, Cell, Pages, shape

_IN_ENTRIES, _IN_TABLES = 0.9, 0.6
_TABLES = ("site", "domain")
_SITE = 2
"""Its column in ``domain``, whose rows are entries of an index by name."""


def route_pages(path: Path) -> dict[int, bool]:
    """The pages of a sound spool that hold routes: whether of a table, or of an index.

    The -wal is read, nothing is written.
    """
    connection = apsw.Connection(f"file:{path}?mode=ro", flags=apsw.SQLITE_OPEN_URI | 1)
    try:
        sql = "SELECT rootpage, type = 'table' FROM sqlite_schema WHERE tbl_name IN (?, ?)"
        roots = {int(page): bool(table) for page, table in connection.execute(sql, _TABLES)}
    finally:
        connection.close()
    pages = Pages(str(path))
    try:
        used = [page for page in range(1, pages.count + 1) if not pages.is_free(page)]
        found = {page: pages.root(page) for page in used}
    finally:
        pages.close()
    return {page: roots[root] for page, root in found.items() if root in roots}


def flip(path: Path, chance: random.Random, routes: Mapping[int, bool]) -> None:
    """Change one bit, or more of them, in one byte of one of these pages.

    Args:
        routes: as ``route_pages`` says.
    """
    table = chance.random() < _IN_TABLES
    page = chance.choice([page for page, one in sorted(routes.items()) if one is table])
    image, cells = _cells(path, page)
    place = chance.randrange(PAGE_BYTES)
    if cells and chance.random() < _IN_ENTRIES:
        cell = chance.choice(cells)
        place = image.index(cell.local) + chance.randrange(len(cell.local))
    other = chance.choice((1 << chance.randrange(8), chance.randrange(1, 256)))
    _write(path, page, place, image[place] ^ other)


def misname(path: Path, chance: random.Random, routes: Mapping[int, bool]) -> None:
    """Change one letter of a site's host, so that it stays the name of one."""
    page, image, cells = _table(path, routes, LEAF)
    row = chance.choice(cells).local
    letter = image.index(row) + row.rindex(b'"mx.') + 1
    _write(path, page, letter + chance.choice((0, 1, 3)), ord(chance.choice("bcefghijkl")))


def mislead(path: Path, chance: random.Random, routes: Mapping[int, bool]) -> None:
    """Let a domain lead to the site of another one; nothing where no number stands in a byte."""
    page, image, cells = _table(path, routes, INDEX_LEAF)
    fit = [cell.local for cell in cells if (shape(cell.local) or ())[_SITE] == 1]
    if fit:
        row = chance.choice(fit)
        kinds = shape(row) or ()
        texts = [(kind - 13) // 2 for kind in kinds[:_SITE]]  # its name, the kind of its route
        place = image.index(row) + row[0] + sum(texts)
        _write(
            path,
            page,
            place,
            chance.choice([each for each in (1, 2, 3, 4) if each != image[place]]),
        )


def _table(path: Path, routes: Mapping[int, bool], kind: int) -> tuple[int, bytes, list[Cell]]:
    """The page of the one table whose leaves are of this kind."""
    for page in (page for page, table in sorted(routes.items()) if table):
        image, cells = _cells(path, page)
        if image[0] == kind:
            return page, image, cells
    raise AssertionError(f"no page of kind {kind} among {routes}")


def _cells(path: Path, page: int) -> tuple[bytes, list[Cell]]:
    pages = Pages(str(path))
    try:
        image = pages.newest(page)
        assert image is not None
        return image, list(pages.cells(page, image))
    finally:
        pages.close()


def _write(path: Path, page: int, place: int, byte: int) -> None:
    with path.open("r+b") as stream:
        stream.seek((page - 1) * PAGE_BYTES + place)
        stream.write(bytes([byte]))
