"""Mail on its way into the spool: handed in on the event loop, committed with all that waits.

One thread writes (``Committer``): what is handed in while it commits and syncs is its next batch,
whichever connection it came by. Whoever handed in is told in the loop, all of a batch in one call.

Told is an id once the message is durable, and only then. Else an error: ``SpoolBusy`` where no turn
came in ``TURN_S`` (it was not written, nor will be), ``OutcomeUnknown`` where nobody can say; that
one is asked for ``ASK_S`` long before it is told, and is then as good as not stored for the client,
who sends again (the same mail may come twice).

Must not know: SMTP, connections, what an error is called there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from mailstrom.client.commit import Committer, Request
from mailstrom.errors import OutcomeUnknown, SpoolBusy, SpoolError
from mailstrom.storage.client import ClientStore, Submission

TURN_S = 30.0
"""So long a message waits for its turn; a client waits ten minutes for the reply to its dot."""
SYNC_S = 120.0
"""So long one is waited for that was begun and has no outcome: the disk does not answer."""
ASK_S = 10.0
AGAIN_S = 1.0
LOOK_S = 1.0

Outcome = str | Exception
Told = Callable[[Outcome], None]


class _Handed(Request):
    """A message that was handed in."""

    __slots__ = ("over", "since_s", "told")

    def __init__(
        self, submission: Submission, told: Told, since_s: float, over: deque[_Handed]
    ) -> None:
        super().__init__(submission=submission, key=submission.id)
        self.told = told
        self.since_s = since_s
        self.over = over

    def end(self) -> None:
        """In the writing thread; the loop is woken behind the last of the batch."""
        self.done.release()
        self.over.append(self)


def _plain(error: BaseException) -> SpoolError:
    """What ends a thread is no end of the loop's."""
    return SpoolError(f"the writing thread was told to end ({error!r})")


class Intake:
    """What is being stored for the connections of one process.

    Args:
        store: the client's half of a store, for this alone.
        loop: where outcomes are told.
        now_ms: the wall clock.
    """

    def __init__(
        self,
        store: ClientStore,
        loop: asyncio.AbstractEventLoop,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._loop = loop
        self._now_ms = now_ms
        self._committer = Committer(store, TURN_S, now_ms, self._ring)
        self._over: deque[_Handed] = deque()
        self._rung = False
        self._waiting: dict[_Handed, None] = {}  # in the order in which they came
        self._asking: set[asyncio.Task[None]] = set()
        self._look_at: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    @property
    def waiting(self) -> int:
        """Messages that nobody was told of yet."""
        return len(self._waiting) + len(self._asking)

    def put(self, submission: Submission, told: Told) -> None:
        """Have a message stored.

        Args:
            told: called in the loop, once, with the id under which it is durably stored, or with
                the error.

        Raises:
            SpoolError: nothing was written, nor will be.
        """
        handed = _Handed(submission, told, self._loop.time(), self._over)
        self._waiting[handed] = None
        try:
            self._committer.submit(handed)
        except BaseException:
            del self._waiting[handed]
            raise
        if self._look_at is None:
            self._look_at = self._loop.call_later(LOOK_S, self._look)

    async def empty(self) -> None:
        """Return once everybody was told."""
        while self.waiting:
            self._emptied = asyncio.Event()
            await self._emptied.wait()

    async def close(self) -> None:
        """Close the store; nothing may be handed in any more."""
        closed = asyncio.Event()

        def ended() -> None:
            self._loop.call_soon_threadsafe(closed.set)

        request = Request(call=self._store.close, finished=ended)
        self._committer.submit(request)
        self._committer.stop()
        await closed.wait()

    # In the writing thread

    def _ring(self) -> None:
        if self._over and not self._rung:
            self._rung = True
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop is gone, and nobody waits any more
                return

    # In the loop

    def _tell(self) -> None:
        self._rung = False  # before: what ends from here on rings again
        over = self._over
        while over:
            handed = over.popleft()
            if handed not in self._waiting:
                continue  # it took too long: told already
            del self._waiting[handed]
            error = handed.error
            if isinstance(error, OutcomeUnknown):
                self._ask(handed, error)
            elif error is None:
                self._say(handed, str(handed.result))
            else:
                self._say(handed, error if isinstance(error, Exception) else _plain(error))
        self._note_empty()

    def _look(self) -> None:
        """Tell those who have waited for too long."""
        self._look_at = None
        now_s = self._loop.time()
        late: list[tuple[_Handed, Exception]] = []
        for handed in self._waiting:
            waited_s = now_s - handed.since_s
            if waited_s < TURN_S:
                break  # so have all behind it
            if handed.withdraw():
                late.append((handed, SpoolBusy(f"no turn to write within {TURN_S:g} s")))
            elif waited_s >= SYNC_S:
                late.append((handed, handed.unknown()))
        for handed, error in late:
            del self._waiting[handed]
            self._say(handed, error)
        if self._waiting:
            self._look_at = self._loop.call_later(LOOK_S, self._look)
        self._note_empty()

    def _ask(self, handed: _Handed, error: OutcomeUnknown) -> None:
        task = self._loop.create_task(self._asked(handed, error))
        self._asking.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._note_empty()

    async def _asked(self, handed: _Handed, error: OutcomeUnknown) -> None:
        """Whether it is there after all, once the spool confirms what it holds."""
        outcome: Outcome = error
        until_s = self._loop.time() + ASK_S
        while self._loop.time() < until_s:
            await asyncio.sleep(AGAIN_S)
            answered = asyncio.Event()
            request = Request(
                call=partial(self._there, handed.key),
                finished=partial(self._loop.call_soon_threadsafe, answered.set),
            )
            try:
                self._committer.submit(request)
            except SpoolError:
                break
            try:
                async with asyncio.timeout_at(until_s):
                    await answered.wait()
            except TimeoutError:
                request.withdraw()
                break
            if request.error is None:
                outcome = handed.key if request.result else SpoolError("it was not stored")
                break
        self._say(handed, outcome)

    def _there(self, id: str) -> bool:
        """In the writing thread. Storing nothing raises as long as nothing can be confirmed."""
        self._store.enqueue((), self._now_ms())
        return id in self._store.statuses([id])

    def _say(self, handed: _Handed, outcome: Outcome) -> None:
        """Tell one; what goes wrong there must not keep the others from hearing."""
        try:
            handed.told(outcome)
        except Exception as error:
            told = {"message": "an outcome could not be told", "exception": error}
            self._loop.call_exception_handler(told)

    def _note_empty(self) -> None:
        if self._emptied is not None and not self.waiting:
            self._emptied.set()
