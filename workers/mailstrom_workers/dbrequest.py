"""What is asked of a store's service, what the service waits for, and how whoever asked is told.

Contract. A ``Request`` is made on the loop and served where the core runs (``dbcore``), which may
be another thread; ``done`` is called on the loop. A ``Wait`` is what the core yields to whoever
drives it, and what comes back is a request, ``LATE``, or None: the end. Must not know: what is
served when, and in which transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from mailstrom.storage.base import Exchange, Work, WorkerStore

_T = TypeVar("_T")

Crash = Callable[[str, BaseException], NoReturn]
"""Ends the worker without unwinding into the spool: where, and what happened. What it held lapses,
which is always safe."""
Done = Callable[[Any, BaseException | None], None]
"""Takes a result, or the error there is instead; called on the loop."""
Later = Callable[[Callable[[], None]], None]
"""Runs something on the loop; nothing where that is gone, since nobody waits any more."""


class StoreEnded(Exception):
    """The store's service has ended before this was done; the worker is over."""


OVER = "the store's service has ended"


class Request:
    """One thing asked of the store, and who waits for it.

    Args:
        done: is told what came of it.
        call: a verb to be run, or
        work: work for a shared transaction.
        durable: told only once the disk has it.
        insisted: tried until the spool takes it.
        patient: may wait for what others ask meanwhile.
    """

    __slots__ = ("call", "done", "durable", "insisted", "patient", "work")

    def __init__(
        self,
        done: Done,
        call: Callable[[WorkerStore], Any] | None = None,
        work: Work | None = None,
        *,
        durable: bool = False,
        insisted: bool = False,
        patient: bool = False,
    ) -> None:
        self.done = done
        self.call = call
        self.work = work
        self.durable = durable
        self.insisted = insisted
        self.patient = patient


class Wait(NamedTuple):
    """What the driver of ``DBService.life`` is to wait for.

    Args:
        seconds: at most so long; None is without end.
        request: for the next request, which it sends (None: it closes); else it is a mere pause,
            and it sends nothing. ``Late`` is sent where none came in time.
    """

    seconds: float | None
    request: bool


class Late:
    """No request came in time."""


LATE = Late()
Steps = Generator[Wait, Request | Late | None, _T]
"""What the core does, step by step."""


def nobody(_result: Any, _error: BaseException | None) -> None:
    """Nobody waits."""


NOTHING = Request(nobody)
"""Makes the core see that it is watched, or waited for."""


def settle(future: asyncio.Future[Any]) -> Done:
    """Whoever awaits a future, as somebody to be told."""

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return settle


class Answers:
    """Tells whoever asked, from wherever the core runs.

    Args:
        loop: of those who asked; hears of the bugs of those who cannot take an answer.
        later: runs something on it.
    """

    __slots__ = ("_later", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, later: Later) -> None:
        self._loop = loop
        self._later = later

    def tell(self, done: Done, result: Any = None, *, error: BaseException | None = None) -> None:
        """One who asked."""
        self._later(lambda: done(result, error))

    def tell_all(self, told: Sequence[tuple[Done, Exchange]]) -> None:
        """What became of a transaction's work, all by one call on the loop."""

        def tell() -> None:
            for done, exchange in told:
                try:
                    done(exchange, None)
                except Exception as error:  # a bug of one must not keep the others waiting
                    text = "what an exchange did could not be taken"
                    self._loop.call_exception_handler({"message": text, "exception": error})

        self._later(tell)
