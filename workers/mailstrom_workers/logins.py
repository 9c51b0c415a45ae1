"""Who logs in at a listener: passwords checked beside the loop, and guessing made slow.

A check takes tens of milliseconds of a processor and 16 MiB, so ``AT_ONCE`` run at a time and
``MOST_WAITING`` wait, of one client ``MOST_OF_CLIENT``; whoever comes beyond them is told to come
again. Who does not exist costs as much as who does. A right password is known for ``KNOWN_S``
without computing (a web application logs in for each message); what is kept of it is a keyed digest
that no other process can use. A failure is told late, later with each, and a client with
``MOST_FAILURES`` of them is not even looked at for ``FORGIVEN_S``, its known users apart: others
may log in from the same address.

Must not know: SMTP, files.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from itertools import islice

from mailstrom.passwords import hash_password, matches

AT_ONCE = 2
MOST_WAITING = 32
MOST_OF_CLIENT = 4
KNOWN_S = 300.0
MOST_KNOWN = 4096
FAILURE_S = 1.0
MOST_FAILURE_S = 5.0
MOST_FAILURES = 20
FORGIVEN_S = 600.0


class Login(Enum):
    """How it ended."""

    RIGHT = "right"
    WRONG = "wrong"
    BUSY = "busy"
    """Too many at once: not checked."""
    BARRED = "barred"
    """Too many failures of this client: not checked."""


Told = Callable[[Login], None]


class Logins:
    """Checks passwords for the connections of one process.

    Args:
        loop: where results are told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="password")
        self._secret = os.urandom(32)
        self._known: dict[bytes, float] = {}  # until when
        self._failures: dict[str, tuple[int, float]] = {}  # how many, and until when they count
        self._waiting: dict[str, int] = {}
        self._nobody = ""  # a hash that no password has

    def check(
        self, users: Mapping[str, str], user: str, password: str, client: str, told: Told
    ) -> None:
        """Find out whether a password is this user's.

        Args:
            users: the hash of each user.
            client: who asks.
            told: called in the loop, later, once.
        """
        hashed = users.get(user)
        digest = self._digest(user, password, hashed or "")
        if hashed is not None and self._known.get(digest, 0.0) > self._loop.time():
            self._loop.call_soon(told, Login.RIGHT)
            return
        if self._count(client) >= MOST_FAILURES:
            self._loop.call_soon(told, Login.BARRED)
            return
        mine = self._waiting.get(client, 0)
        if mine >= MOST_OF_CLIENT or sum(self._waiting.values()) >= MOST_WAITING + AT_ONCE:
            self._loop.call_soon(told, Login.BUSY)
            return
        self._waiting[client] = mine + 1
        against = hashed or self._decoy(users, user)
        future = self._loop.run_in_executor(self._threads, _matches, password, against)
        future.add_done_callback(
            partial(self._checked, client, digest if hashed is not None else None, told)
        )

    def close(self) -> None:
        """Let the threads end; what was not begun is not told."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decoy(self, users: Mapping[str, str], user: str) -> str:
        """What an unknown user's password is compared with: always the same known one's hash.

        By lot, since hashes in one file may differ in cost: who exists shows in none of them.
        """
        if users:
            lot = int.from_bytes(self._digest(user, "", "")[:8])
            return next(islice(users.values(), lot % len(users), None))
        self._nobody = self._nobody or hash_password(os.urandom(16).hex())
        return self._nobody

    def _checked(
        self, client: str, digest: bytes | None, told: Told, future: asyncio.Future[bool]
    ) -> None:
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        if future.cancelled():
            return
        if digest is not None and future.result():
            self._remember(digest)
            told(Login.RIGHT)
            return
        failures = self._count(client) + 1
        self._failures.pop(client, None)
        self._failures[client] = (failures, self._loop.time() + FORGIVEN_S)
        while len(self._failures) > MOST_KNOWN:
            del self._failures[next(iter(self._failures))]
        self._loop.call_later(min(FAILURE_S * failures, MOST_FAILURE_S), told, Login.WRONG)

    def _count(self, client: str) -> int:
        count, until = self._failures.get(client, (0, 0.0))
        return count if until > self._loop.time() else 0

    def _remember(self, digest: bytes) -> None:
        self._known.pop(digest, None)
        self._known[digest] = self._loop.time() + KNOWN_S
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def _digest(self, user: str, password: str, hashed: str) -> bytes:
        parts = "\0".join((user, hashed, password)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(parts, key=self._secret).digest()


def _matches(password: str, hashed: str) -> bool:
    try:
        return matches(password, hashed)
    except (ValueError, MemoryError):  # a library that was taken away, or no memory: not let in
        return False
