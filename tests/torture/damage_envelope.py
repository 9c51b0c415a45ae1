"""Damage aimed at one column of the envelope of a message that waits: what a seal must notice.

Contract. A change to a recipient's or message's row that leaves the row a row: a letter of a text,
a serial type of a number that takes no space. Such a row is read without an error, so nothing but
the checksums of the envelope stands between it and the wire. Knows the order of the columns
(migrations 0001 on), and nothing of what is done about damage.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from mailstrom.storage.sqlite.connection import PAGE_BYTES
from mailstrom.storage.sqlite.salvage_pages import LEAF, Pages, record, shape
from mailstrom.storage.sqlite.salvage_rows import MESSAGE, RECIPIENT
from tests.torture.damage_spool import Truth

COLUMNS = ("address", "orcpt", "sender", "require_tls", "on_doubt", "envid", "content")
_OF_RECIPIENT = ("address", "orcpt")
_PLACE = {
    name: (RECIPIENT if name in _OF_RECIPIENT else MESSAGE).index(name)
    for name in (*COLUMNS, "metadata")
}
_NULL, _BYTE, _ZERO, _ONE = 0, 1, 8, 9
_HOLD = 13 + 2 * len("hold")


def damage(path: Path, chance: random.Random, truth: Truth, column: str) -> None:
    """Change this column of one row that is still to be sent; nothing where none can be."""
    places = sorted(_places(path, truth, column))
    if not places:
        return
    offset, kinds = chance.choice(places)
    with path.open("r+b") as stream:
        stream.seek(offset)
        row = bytearray(stream.read(PAGE_BYTES))
        place = _PLACE[column]
        if column in ("address", "orcpt", "sender", "envid"):
            letter = row[0] + sum(map(_size, kinds[:place]))
            row[letter] = ord(chance.choice("bcdefghijklm"))  # the first letter, never one of these
        elif column == "on_doubt":  # what held a message back becomes a part of its metadata
            row[_header(kinds, _PLACE["metadata"])] += 2 * len("hold")
            row[_header(kinds, place)] = _NULL
        elif column == "require_tls":  # what may not travel in clear may
            row[_header(kinds, place)] = _ZERO
        else:  # the other long message's content: -1 and -2, a byte each
            row[row[0] + sum(map(_size, kinds[:place]))] ^= 1
        stream.seek(offset)
        stream.write(row)


def _places(path: Path, truth: Truth, column: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where rows begin whose column can be changed, and their serial types."""
    of_recipient = column in _OF_RECIPIENT
    columns = len(RECIPIENT if of_recipient else MESSAGE)
    due = {truth.by_address[address] for address in truth.waiting}
    pages = Pages(str(path))
    try:
        for page in range(1, pages.count + 1):
            image = pages.newest(page)
            if image is None or pages.is_free(page) or image[0] != LEAF:
                continue
            for cell in pages.cells(page, image):
                kinds = shape(cell.local) or ()
                if len(kinds) != columns or cell.size != len(cell.local):
                    continue
                values = record(cell.local)
                if values is None:
                    continue
                if not (values[2] in truth.waiting if of_recipient else values[1] in due):
                    continue
                kind = kinds[_PLACE[column]]
                fit = {
                    "require_tls": kind == _ONE,
                    "on_doubt": kind == _HOLD and kinds[_PLACE["metadata"]] + 8 < 128,
                    "content": kind == _BYTE,
                    "orcpt": kind != _NULL,
                    "envid": kind != _NULL,
                }
                if fit.get(column, True):
                    yield (page - 1) * PAGE_BYTES + image.index(cell.local), kinds
    finally:
        pages.close()


def _header(kinds: tuple[int, ...], column: int) -> int:
    """Where a column's serial type stands in a row whose header is shorter than 128 bytes."""
    return 1 + sum(1 if kind < 128 else 2 for kind in kinds[:column])


def _size(kind: int) -> int:
    """Bytes of a value of this serial type."""
    if kind >= 12:
        return (kind - 12) // 2
    return {0: 0, 8: 0, 9: 0, 5: 6, 6: 8, 7: 8}.get(kind, kind)
