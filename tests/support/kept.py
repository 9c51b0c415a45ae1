"""What a peer's delivery wrote into files: mail behind fields that the server put in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.postfix import Received


class Kept:
    """A folder of files that a peer's delivery wrote: sender, recipient, then the stored content.

    Args:
        folder: the files that are whole end in ``.mail``.
        added: header fields that the peer puts in front of a content of this sender, in order.
    """

    def __init__(self, folder: Path, added: Callable[[str], Sequence[str]]) -> None:
        self._folder = folder
        self._added = added
        self._read: dict[Path, Received] = {}

    def received(self) -> list[Received]:
        """What there is so far, one entry a file."""
        for file in self._folder.glob(".*.mail"):
            if file not in self._read:
                first, second, content = file.read_bytes().split(b"\n", 2)
                sender = first.decode("utf-8", "surrogateescape").strip("<>")
                self._read[file] = Received(
                    sender=sender,
                    recipients=(second.decode("utf-8", "surrogateescape"),),
                    content=without_added(content, self._added(sender)),
                )
        return list(self._read.values())


def without_added(stored: bytes, added: Sequence[str]) -> bytes:
    """A content as on the wire, of one stored with LF behind fields that the server put in front.

    Raises:
        ValueError: it does not begin with just these.
    """
    lines = stored.split(b"\n")
    at = 0
    for name in added:
        if not lines[at].startswith(name.encode() + b":"):
            raise ValueError(f"no {name} in front, but {lines[at][:200]!r}")
        at += 1
        while lines[at].startswith((b"\t", b" ")):
            at += 1
    return b"\r\n".join(lines[at:])
