"""Mails that were accepted and wait for the program: bounded, in order, in memory.

Contract. ``put`` waits for room no longer than it is told to; whoever waits first has room first.
``get`` gives mails in the order in which they came in; where it is closed it gives what is there
and then nothing. In one loop.

Must not know: SMTP.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mailstrom.server.mail import Mail


class Waiting:
    """The mails.

    Args:
        most: how many may wait.
        most_octets: of their contents together; one mail may always wait.
    """

    def __init__(self, most: int, most_octets: int) -> None:
        self._closed = True
        self._hurried = False
        self._most = most
        self._most_octets = most_octets
        self._octets = 0
        self._mails: deque[Mail] = deque()
        self._givers: deque[tuple[Mail, asyncio.Future[bool]]] = deque()
        self._takers: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._mails)

    def put_at_once(self, mail: Mail) -> bool:
        """Take a mail if there is room for it; whether it was taken."""
        if self._closed or self._givers or not self._has_room(mail):
            return False
        self._take(mail)
        return True

    async def put(self, mail: Mail, seconds: float) -> bool:
        """Take a mail as soon as there is room; whether there was, within so many seconds."""
        if self.put_at_once(mail):
            return True
        if self._closed or self._hurried:
            return False
        room: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        giver = (mail, room)
        self._givers.append(giver)
        try:
            await asyncio.wait([room], timeout=seconds)
        finally:
            if giver in self._givers:
                self._givers.remove(giver)
        return room.done() and room.result()

    async def get(self) -> Mail | None:
        """The next mail; None: there will be none."""
        while not self._mails:
            if self._closed:
                return None
            taker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.add(taker)
            try:
                await taker
            finally:
                self._takers.discard(taker)
        mail = self._mails.popleft()
        self._octets -= len(mail.content)
        while self._givers and self._has_room(self._givers[0][0]):
            given, room = self._givers.popleft()
            self._take(given)
            if not room.done():  # else who waited is gone
                room.set_result(True)
        return mail

    def open(self) -> None:
        """Mails come; what was left from before comes first."""
        self._closed = self._hurried = False

    def hurry(self) -> None:
        """Nobody waits for room any more."""
        self._hurried = True
        while self._givers:
            room = self._givers.popleft()[1]
            if not room.done():
                room.set_result(False)

    def close(self) -> None:
        """No more mails; what is here may still be taken."""
        self.hurry()
        self._closed = True
        self._wake()

    def _has_room(self, mail: Mail) -> bool:
        if not self._mails:
            return True
        octets = self._octets + len(mail.content)
        return len(self._mails) < self._most and octets <= self._most_octets

    def _take(self, mail: Mail) -> None:
        self._mails.append(mail)
        self._octets += len(mail.content)
        self._wake()

    def _wake(self) -> None:
        for taker in self._takers:
            if not taker.done():
                taker.set_result(None)
