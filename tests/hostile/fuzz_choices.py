"""What a fuzz target reads out of its input: choices first, then the foreign octets, cut in pieces.

Pure, and the same in a fuzzer, in hypothesis and in a replay: a file of the corpus is all there is
to a case. Where the input is at its end every choice is the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Reads an input from its beginning.

    Args:
        data: the input.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """Nothing is left."""
        return self._at >= len(self._data)

    def below(self, bound: int) -> int:
        """A number from 0, less than the bound, which is at most 256."""
        if self.over:
            return 0
        self._at += 1
        return self._data[self._at - 1] % bound

    def one_of(self, offered: Sequence[T]) -> T:
        """One of these."""
        return offered[self.below(len(offered))]

    def octets(self, most: int = 255) -> bytes:
        """Some octets, their number first."""
        size = self.below(most + 1)
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        left, self._at = self._data[self._at :], len(self._data)
        return left

    def sizes(self) -> tuple[int, ...]:
        """How a stream is cut: up to seven sizes, taken in turn; none: octet by octet."""
        return tuple(self.below(256) + 1 for _ in range(self.below(8)))


def cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The stream in pieces; octet by octet (the first 2,000) where no sizes are given."""
    pieces: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        if sizes:
            size = sizes[turn % len(sizes)]
            turn += 1
        else:
            size = 1 if at < 2000 else len(stream)
        pieces.append(stream[at : at + size])
        at += size
    return pieces
