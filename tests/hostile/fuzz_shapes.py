"""The worst shapes that somebody can give the readers, each of any length: for time and memory.

A shape is made of a number of repetitions and gives what is to be done; what refuses it in words is
as good as what reads it. Their tables are ``fuzz_shapes_wire`` and ``fuzz_shapes_text``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mailstrom.errors import ConfigError, InvalidMessage
from mailstrom.smtp.reply import BadReply
from mailstrom_workers import dnswire

Done = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One of them.

    Args:
        target: whose reader.
        name: in a few words.
        octets: of one repetition.
        made: of so many repetitions, what is to be done.
        most: repetitions that a bound elsewhere lets through; 0: any number.
    """

    target: str
    name: str
    octets: int
    made: Callable[[int], Done]
    most: int = 0


class Shapes(list[Shape]):
    """A table of them, in the order in which they are written down."""

    def __call__(
        self, target: str, name: str, *, octets: int, most: int = 0
    ) -> Callable[[Callable[[int], Done]], Callable[[int], Done]]:
        """Take a function into the table; the arguments are those of ``Shape``."""

        def take(made: Callable[[int], Done]) -> Callable[[int], Done]:
            self.append(Shape(target=target, name=name, octets=octets, made=made, most=most))
            return made

        return take


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Refused in words is as good as read."""
    with contextlib.suppress(InvalidMessage, ConfigError, BadReply, dnswire.Unreadable):
        yield
