"""What came of a salvage: what is taken along, and everything that is not, by name.

Contract: plain values and their text; knows no file and no database. Whoever was accepted is in the
new spool or in ``damaged``: by address where any row or index entry that names it is left, counted
where only its number is. What lay on unreadable pages alone has no name; ``sound`` is False then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_LINE = 600  # characters of addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """Recipients that are not taken along as they were, with what is known of their message.

    Args:
        id: of the message; None where everything that named it is lost.
        recipients: their addresses, as found: a damaged row may show a damaged address.
        unnamed: recipients of it whose addresses are lost.
        kept: whether they are in the new spool, as failed or, if they were finished before, as they
            were.
        why: what is wrong.
    """

    id: str | None
    sender: str | None = None
    subject: str | None = None
    recipients: tuple[str, ...]
    unnamed: int = 0
    kept: bool
    why: str


@dataclass(slots=True, kw_only=True)
class Salvaged:
    """What came of it.

    Args:
        pages: of the damaged spool, as many as it says that it has.
        unreadable: pages that are gone, or are not what the spool says that they are.
        unfit_frames: pieces of the -wal that do not fit their checksum.
        messages, recipients: taken along, those that were kept as failed among them.
        whole: messages that were taken along with their content and every recipient.
        in_doubt: recipients taken along that were claimed or on the wire.
        damaged: what is not whole.
        replaced: messages in the database file that the -wal made nothing of, and that nobody seems
            to have deleted; not taken along.
    """

    pages: int = 0
    unreadable: int = 0
    unfit_frames: int = 0
    messages: int = 0
    whole: int = 0
    recipients: int = 0
    in_doubt: int = 0
    damaged: list[Damaged] = field(default_factory=list)
    replaced: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is known to be damaged or unreadable."""
        return not (self.damaged or self.unreadable or self.unfit_frames or self.replaced)


def lines(salvaged: Salvaged) -> Iterator[str]:
    """The result as a person reads it."""
    known = {one.id for one in salvaged.damaged if one.id is not None}
    damaged = len(known) + sum(one.id is None for one in salvaged.damaged)
    yield (f"messages: {salvaged.whole:,} whole, {damaged:,} damaged; recipients:"
           f" {salvaged.recipients:,} taken along,"
           f" {salvaged.in_doubt:,} of them in doubt")  # fmt: skip
    if salvaged.replaced:
        yield ("the -wal may be another spool's, or an older one:"
               f" {salvaged.replaced:,} messages are only in the database file, and left out: move"
               " the -wal away, salvage the database file alone to another name, and use what is"
               " yours")  # fmt: skip
    if salvaged.unreadable:
        yield (f"{salvaged.unreadable:,} of {salvaged.pages:,} pages cannot be read: what was on"
               " them alone cannot be named")  # fmt: skip
    if salvaged.unfit_frames:
        yield (f"{salvaged.unfit_frames:,} pieces of the -wal do not fit their checksum: what was"
               " in them alone cannot be named")  # fmt: skip
    for one in salvaged.damaged:
        unnamed = [f"{one.unnamed:,} whose address is lost"] if one.unnamed else []
        first, *others = _wrapped([*one.recipients, *unnamed] or ["unknown"])
        yield (f"damaged: {one.id or 'unknown message'} from {one.sender or 'unknown'} to {first}"
               f" ({one.subject or 'no subject'}):"
               f" {one.why}; {'kept as failed' if one.kept else 'left out'}")  # fmt: skip
        for names in others:
            yield f"  and to {names}"


def _wrapped(names: list[str]) -> Iterator[str]:
    """All names, in pieces that nobody who prints lines need cut."""
    piece: list[str] = []
    for name in names:
        if piece and sum(map(len, piece)) + len(name) > _LINE:
            yield ", ".join(piece)
            piece = []
        piece.append(name)
    yield ", ".join(piece)
