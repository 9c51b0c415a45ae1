"""When a lane asks the store: one exchange under way at a time, and together what comes together.

What is stirred while the loop hears several things is asked once, behind all of them; what is
stirred while an exchange is under way is asked as soon as that is answered. An exchange that
nothing on the wire waits for may wait for those of others (it is *patient*), until it is hurried.
Nothing raises into the store's service, which calls here: an error is the owner's to know.

Must not know: what is asked for, and what it is for.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from mailstrom.storage.base import Exchange, Work
from mailstrom_workers.dbservice import DBService


class Wanted(NamedTuple):
    """One exchange to be made.

    Args:
        work: what is asked.
        durable: whether its answer must be on the disk first.
        patient: whether it may wait for others.
    """

    work: Work
    durable: bool
    patient: bool


class Owner(Protocol):
    """Whose exchanges they are."""

    def wants(self) -> Wanted | None:
        """What is wanted now; it is asked for. None: nothing."""

    def came(self, exchange: Exchange) -> None:
        """The answer; what is wanted behind it is asked for at once."""

    def fail(self, error: Exception) -> None:
        """An exchange failed, or one of the calls above."""

    def turned(self) -> None:
        """A turn is over: perhaps nothing is under way any more."""


class Exchanges:
    """The exchanges of one lane with the store.

    Args:
        db: the store's service.
        owner: who wants them.

    Attributes:
        asking: one is under way.
    """

    def __init__(self, db: DBService, owner: Owner) -> None:
        self._db = db
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.asking = False
        self._turning = False  # a turn is to come
        self._patient = False  # the one under way may wait for others

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way, or may be soon."""
        return self.asking or self._turning

    def stir(self) -> None:
        """A turn, once all that is told together has been heard."""
        if not (self._turning or self.asking):
            self._turning = True
            self._loop.call_soon(self._turned)

    def turn(self) -> None:
        """Ask for what is wanted now, unless an exchange is under way: then behind that.

        Raises:
            StoreEnded: the store's service has ended.
        """
        if self.asking:
            return
        wanted = self._owner.wants()
        if wanted is None:
            return
        work, durable, self._patient = wanted
        self._db.post(work, self._came, durable=durable, patient=self._patient)
        self.asking = True

    def hurry(self) -> None:
        """What is under way is waited for now."""
        if self._patient:
            self._patient = False
            self._db.hurry()

    def _turned(self) -> None:
        self._turning = False
        try:
            self.turn()
        except Exception as error:
            self._owner.fail(error)
        self._owner.turned()

    def _came(self, exchange: Exchange | None, error: BaseException | None) -> None:
        """The answer; called by the store's service, on the loop."""
        self.asking = self._patient = False
        try:
            if exchange is None:
                assert error is not None
                raise error
            self._owner.came(exchange)
            self.turn()
        except Exception as problem:
            self._owner.fail(problem)
        self._owner.turned()
