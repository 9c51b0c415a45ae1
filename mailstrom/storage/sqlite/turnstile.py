"""Writers of many processes, one after the other in front of SQLite's write lock.

SQLite has no queue: whoever finds the lock taken sleeps, longer each time, and asks again. A crowd
of processes spends its time asking, and the unlucky wait for hundreds of milliseconds. So whoever
writes takes the turn first, in the order in which they came, and finds the lock free.

The turn is a lock (``flock``) of a FIFO in the run directory, which the kernel frees when its
holder ends. Who finds it taken sleeps on that FIFO; who leaves writes a byte to it, which wakes one
sleeper, the first that came (EPOLLEXCLUSIVE). A sleeper looks again by itself now and then, since
the one that was woken may have been stopped, and holders that have met nobody lately write nothing.

Contract. The turn is advice. What it stands before is right without it, and nobody waits for it
longer than ``STILL_S`` while nothing moves: its holder may be stopped, or be kept from running by
other threads of its process. Where it fails (no FIFO, a wait in vain), the step is simply taken,
and for ``ASIDE_S`` the process does without. A process whose threads keep the interpreter busy
would hold the turn for as long as they let it wait, so it does without, too. A signal handler that
comes in the midst, and another thread, find the turn in use and take their step without it. A
system without epoll has no turn.

One object for each spool and process (``turn_of``). A forked child has none of its parent's.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
import weakref
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from mailstrom import interrupts
from mailstrom.storage.sqlite.poison import run_directory

_T = TypeVar("_T")
_P = ParamSpec("_P")

STILL_S, LONGEST_S = 0.1, 0.5
"""So long the turn is waited for: while nobody rings, and at the most. A crowd of 32 comes round in
some 10 ms."""
ASIDE_S, MOST_ASIDE_S = 1.0, 32.0
"""So long a process does without the turn, where it was in vain or would keep others waiting; twice
as long each time until it has it again."""
STARVED_S = 0.004
"""A lock asked for without waiting is answered in a microsecond. Where that takes so long, other
threads had the interpreter (they are asked to let go after 5 ms)."""
_FIRST_S, _LOOK_S = 0.002, 0.016
"""A sleeper looks by itself: soon where it has met nobody lately, for then nobody knows of it."""
_RINGS = 64
"""So many leaves in a row wake somebody after the turn was found taken."""
_BYTES = 4096

_EXCLUSIVE = getattr(select, "EPOLLEXCLUSIVE", 0)
_TAKE, _LEAVE = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
_lock = fcntl.flock
_turns: weakref.WeakValueDictionary[str, Turnstile] = weakref.WeakValueDictionary()


class Turn(Protocol):
    """Takes a step, in order with others where there are others."""

    def __call__(self, step: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
        """What ``step`` returns or raises."""
        ...


def at_once(step: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
    """The ``Turn`` where only this process writes."""
    return step(*args, **named)


def turn_path(path: str) -> str:
    """The FIFO of a spool."""
    return os.path.join(run_directory(path), "turn")


def turn_of(path: str) -> Turn:
    """The turn of a spool, for all who write it from this process.

    Args:
        path: the database file.
    """
    if not _EXCLUSIVE:
        return at_once
    while True:
        found = _turns.get(path)
        if found is None:
            found = _turns[path] = Turnstile(path)
        found.users.append(path)
        if _turns.get(path) is found:
            return found
        found.users.pop()  # ``part`` was just about to close it


def part(turn: Turn) -> None:
    """One who had it by ``turn_of`` is done with it; the last one closes it.

    An error that somebody keeps has frames that know the turn: it would stay open with them.
    """
    if isinstance(turn, Turnstile) and turn.users:
        turn.users.pop()
        if not (turn.users or turn.used):
            turn.end()


def _raised_behind(error: BaseException) -> bool:
    """Whether a signal handler raised it behind a system's call, which has no frame of its own."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def leave(path: str) -> None:
    """What the turn was for is done, though the step goes on: let the next one go."""
    turn = _turns.get(path)
    if turn is not None:
        turn.leave()


class Turnstile:
    """``Turn`` of one spool in one process; opens nothing until it is used.

    Args:
        path: the database file.

    Attributes:
        users: one entry for each who has it by ``turn_of``.
    """

    __slots__ = (
        "__weakref__",
        "_aside_s",
        "_aside_until_s",
        "_fd",
        "_path",
        "_poll",
        "_rings",
        "_used",
        "users",
    )

    def __init__(self, path: str) -> None:
        self.users: list[str] = []
        self._path = path
        self._fd = -1
        self._poll: select.epoll | None = None
        self._used = False
        self._rings = 0
        self._aside_s, self._aside_until_s = ASIDE_S, 0.0

    def __call__(self, step: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
        """See ``Turn``; a signal handler may raise or fork behind any call in it."""
        if self._used or (self._aside_until_s and self._aside()):
            return step(*args, **named)
        ours = False
        try:
            self._used = True
            ours = self._take()
            return step(*args, **named)
        finally:
            # Handlers run behind a call: until the lock is free there is one, and that frees it.
            self._used = False
            if self._fd >= 0:
                _lock(self._fd, _LEAVE)
                if ours and self._rings:
                    self._ring()

    def leave(self) -> None:
        """See the function of this name; nothing where the turn is not ours."""
        if self._used and self._fd >= 0:
            _lock(self._fd, _LEAVE)
            self._ring()

    def _aside(self) -> bool:
        if time.monotonic() < self._aside_until_s:
            return True
        self._aside_until_s = 0.0
        return False

    def _step_aside(self) -> None:
        self._aside_until_s = time.monotonic() + self._aside_s
        self._aside_s = min(2 * self._aside_s, MOST_ASIDE_S)

    def _take(self) -> bool:
        """Take the turn; False: go without."""
        if self._fd < 0 and not self._opened():
            self._step_aside()
            return False
        asked_s = time.monotonic()
        try:
            _lock(self._fd, _TAKE)
        except (OSError, ValueError) as error:
            if _raised_behind(error):
                raise
            if isinstance(error, BlockingIOError):
                return self._waited()
            self._step_aside()  # a fork in a signal handler closed it; no locks to be had
            return False
        return self._ours(asked_s)

    def _ours(self, asked_s: float) -> bool:
        """The lock is taken, but whoever got it so late leaves it at once."""
        if time.monotonic() - asked_s < STARVED_S:
            self._aside_s = ASIDE_S
            return True
        self._step_aside()
        if self._fd >= 0:
            _lock(self._fd, _LEAVE)
            self._ring()
        return False

    def _waited(self) -> bool:
        """Sleep until the turn is ours; False where that takes too long."""
        now_s = time.monotonic()
        still_until_s, until_s = now_s + STILL_S, now_s + LONGEST_S
        look_s = _LOOK_S if self._rings else _FIRST_S
        self._rings, fd = _RINGS, self._fd
        try:
            poll = self._poll
            if poll is None:
                poll = self._poll = select.epoll()
        except OSError as error:  # no descriptors left
            if _raised_behind(error):
                raise
            self._step_aside()
            return False
        try:
            # Anew for each wait: so the sleepers are woken in the order in which they came.
            poll.register(fd, select.EPOLLIN | _EXCLUSIVE)
            rung_ns = self._rung_ns()
            while now_s < until_s:
                if poll.poll(min(look_s, until_s - now_s)):
                    try:
                        os.read(self._fd, _BYTES)
                    except BlockingIOError as error:  # another sleeper heard it, too
                        if _raised_behind(error):
                            raise
                look_s = _LOOK_S
                asked_s = time.monotonic()
                try:
                    _lock(self._fd, _TAKE)
                except BlockingIOError as error:
                    if _raised_behind(error):
                        raise
                    now_s = time.monotonic()
                    if now_s >= still_until_s:
                        was_ns, rung_ns = rung_ns, self._rung_ns()
                        if rung_ns == was_ns:
                            break
                        still_until_s = now_s + STILL_S
                else:
                    return self._ours(asked_s)
            else:
                return False  # they move, if slowly: the next time may be better
        except (OSError, ValueError) as error:  # a fork closed them; it is no FIFO
            if interrupts.raised(error):
                raise
        finally:
            try:
                poll.unregister(fd)
            except (OSError, ValueError) as error:
                if _raised_behind(error):
                    raise
        self._step_aside()
        return False

    def _rung_ns(self) -> int:
        """When somebody rang last: whoever writes to a FIFO sets its time."""
        return os.fstat(self._fd).st_mtime_ns

    def _ring(self) -> None:
        """Wake the first sleeper."""
        self._rings = max(0, self._rings - 1)  # ``leave`` rings whoever may be there
        try:
            os.write(self._fd, b".")
        except OSError as error:  # as many rings as a pipe holds wait to be heard
            if _raised_behind(error):
                raise

    def _opened(self) -> bool:
        """Open the FIFO, made by whoever needs it first; False where it cannot be had."""
        name = turn_path(self._path)
        try:
            try:
                os.mkfifo(name, 0o660)
            except FileExistsError:
                pass
            else:
                folder = os.stat(os.path.dirname(name))
                os.chmod(name, folder.st_mode & 0o660)  # whatever our umask
                if os.geteuid() == 0 and folder.st_uid != 0:
                    os.chown(name, folder.st_uid, folder.st_gid)
            # For reading, too: then it neither waits for a reader nor fails without one.
            self._fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if interrupts.raised(error):
                raise
            return False
        return True

    @property
    def used(self) -> bool:
        """Whether somebody takes a step with it."""
        return self._used

    def end(self) -> None:
        """Close it unless somebody got it by ``turn_of`` meanwhile; who comes now gets another."""
        if _turns.get(self._path) is self:
            _turns.pop(self._path, None)
        if not self.users:
            self.close()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._fd >= 0:  # where the interpreter ends, this module's names are gone
            close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Close what there is; in a forked child, too, where it is the parent's."""
        fd, self._fd = self._fd, -1
        poll, self._poll = self._poll, None
        self._used = False
        if fd >= 0:
            os.close(fd)
        if poll is not None:
            poll.close()


def _forked() -> None:
    for turn in list(_turns.values()):
        turn.close()


os.register_at_fork(after_in_child=_forked)
