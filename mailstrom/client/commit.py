"""Who writes: a lone caller by itself, several through one thread, where they share a commit.

A message sent while nobody else writes is stored on the caller's own thread, by the store's
``Prompt``: a hop to another thread and back costs as much as the insertion. Whoever comes meanwhile
queues for the writing thread, which takes the whole queue as one batch when its turn comes.

The *turn* says who writes now. It gives order, and whoever has it alone uses the prompt; it
protects nothing else, since the thread has a connection of its own and SQLite's lock does the rest.
So the thread waits for it ``TURN_S`` at the most: a ``send()`` in a signal handler that interrupted
a call with the turn goes through the thread, and needs nothing of the interrupted code
(``SimpleQueue.put`` is reentrant; each caller waits on a lock of its own). It is an object in a
queue: taken in one step, given back in one step, and where a handler raises between the step and
the name it gets, it ceases to exist, which the thread sees, and makes a new one.

A batch forms by itself while the disk syncs. A caller that may not wait (an event loop) submits its
request and is called when it has ended.

Why ``_thread`` and not ``threading.Thread``: starting the latter takes a lock of the threading
module that the interrupted code may hold.

Longer than a file should be: both ways of writing are safe only as seen beside each other.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from mailstrom import interrupts
from mailstrom.errors import OutcomeUnknown, SpoolBusy, SpoolError
from mailstrom.storage.client import ClientStore, Prompt, PromptStore, Submission

GATHER_MESSAGES = 256
"""As many as the store inserts in one step."""
GATHER_BYTES = 4 * 1024 * 1024
TURN_S = 0.02
"""So long the thread waits for a call that has the turn; then both write, one after the other."""
SYNC_GRACE_S = 60.0
"""How much longer than its timeout a caller waits for a disk that has begun and not answered."""
STORED = "the message may or may not be stored"
CHANGED = "what was asked may or may not have been done"
_FORKED = "this process was forked while it was written"

Result = TypeVar("Result")


class Request:
    """Something to write, and its outcome.

    Args:
        submission: a message to store, alone or with others in one commit; or
        call: a writing function of the store.
        key: the id to ask for where the outcome stays unknown.
        doubt: what may or may not be, in that error.
        finished: called in the writing thread once there is an outcome.
        begun: ``Committer.begin`` from before the messages were made, or None.
    """

    __slots__ = (
        "begun", "call", "done", "doubt", "error", "finished", "key", "line", "nested", "result",
        "submission", "taken",
    )  # fmt: skip

    def __init__(
        self,
        *,
        submission: Submission | None = None,
        call: Callable[[], Any] | None = None,
        key: str = "",
        doubt: str = STORED,
        finished: Callable[[], object] | None = None,
        begun: Line | None = None,
    ) -> None:
        self.begun = begun
        self.submission = submission
        self.call = call
        self.key = key
        self.doubt = doubt
        self.finished = finished
        self.line: Line | None = None
        self.nested = False  # asked for on a thread that has the turn
        self.result: Any = None
        self.error: BaseException | None = None
        self.taken = _thread.allocate_lock()  # whoever gets it decides: run, or give up
        self.done = _thread.allocate_lock()
        self.done.acquire()

    def withdraw(self) -> bool:
        """Whether nobody runs it, now or later; what it holds is let go, though it stays queued."""
        if not self.taken.acquire(blocking=False):
            return False
        self.submission = self.call = self.finished = None
        return True

    def end(self) -> None:
        """There is an outcome: tell who waits for it."""
        self.done.release()
        if self.finished is not None:
            with contextlib.suppress(Exception):  # the other callers' outcomes are still to be told
                self.finished()

    def outcome(self) -> Any:
        """What it returned; its exception is raised here."""
        if self.error is not None:
            raise self.error
        return self.result

    def unknown(self, why: str = "the disk has not answered") -> OutcomeUnknown:
        """The error of one that was begun and had no outcome in time."""
        ask = f", ask status({self.key!r}) later" if self.key else ""
        return OutcomeUnknown(f"{why}; {self.doubt}{ask}", key=self.key)


class _Turn:
    """Whoever has it writes; there is one of a line."""

    __slots__ = ("__weakref__",)


class Line:
    """A queue, the thread that serves it, and the turn; a forked child begins a new one."""

    __slots__ = (
        "busy",
        "holder",
        "lent",
        "mine",
        "pid",
        "prompt",
        "queue",
        "serving",
        "started",
        "turns",
    )

    def __init__(self) -> None:
        self.queue: SimpleQueue[Request | None] = SimpleQueue()
        self.serving = _thread.allocate_lock()
        self.started = False
        self.busy = False  # the thread has something to write
        self.mine: _Turn | None = None  # the thread's, while it writes
        self.pid = os.getpid()
        self.prompt: Prompt | None = None
        self.holder = 0  # the thread that took the turn last, for a prompt call
        turn = _Turn()
        self.lent = weakref.ref(turn)
        self.turns: SimpleQueue[_Turn] = SimpleQueue()
        self.turns.put(turn)

    def quiet(self) -> bool:
        """Whether nobody waits for the thread, nor it for the turn, who would come too late."""
        if self.started:
            return not self.busy and self.queue.empty()
        return True  # what is queued was withdrawn for want of a thread, or has just one

    def taken(self, timeout: float) -> _Turn | None:
        """The turn, for the thread; None: a call has it still. What was lost is made anew."""
        if self.lent() is not None:
            try:
                return self.turns.get(timeout=timeout)
            except Empty:
                return None
        turn = _Turn()
        self.lent = weakref.ref(turn)
        return turn

    @property
    def nested(self) -> bool:
        """Whether this thread has the turn: it was interrupted by a signal handler since."""
        mine = self.holder == _thread.get_ident()
        return mine and self.turns.empty() and self.lent() is not None


class Committer:
    """Runs everything that writes, one batch at a time.

    Args:
        store: the client's half of a store; only the thread writes through it.
        timeout: seconds a call waits for its turn before SpoolBusy.
        now_ms: the wall clock.
        told: called in the writing thread once for all that was written in one go, behind each
            one's ``finished``.
    """

    def __init__(
        self,
        store: ClientStore,
        timeout: float,
        now_ms: Callable[[], int],
        told: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._told = told
        self._timeout = timeout
        self._now_ms = now_ms
        self._prompt = store.prompt if isinstance(store, PromptStore) else None
        self._stopped = False
        self._line = Line()

    def forked(self) -> None:
        """In a forked child: the parent's thread and its callers do not exist here."""
        line, self._line = self._line, Line()
        if line.prompt is not None:
            line.prompt.forked(used=line.turns.empty())

    def begin(self) -> Line:
        """What ``enqueue`` of a message that is made from now on knows this process by."""
        return self._line

    def enqueue(self, submission: Submission, begun: Line | None = None) -> str:
        """Store one message durably: here, or sharing the commit with whoever calls now.

        Stored here, it waits for the disk as long as the disk takes.

        Args:
            begun: ``begin()`` from before it was made: a child that was forked since by a signal
                handler, and came back from that, has the id of a message of its parent's.

        Raises:
            SpoolBusy, SpoolError, OutcomeUnknown, InvalidMessage, IdempotencyConflict
        """
        line = begun or self._line
        result = None
        if self._prompt is not None and not self._stopped and line.quiet():
            result = self._store_here(line, self._prompt, submission)
        if result is None:
            result = self._run(Request(submission=submission, key=submission.id, begun=line))
        assert isinstance(result, str)
        return result

    def _store_here(
        self, line: Line, prompt: Callable[[int], Prompt], submission: Submission
    ) -> str | None:
        """Store it on this thread; None: somebody else writes, or it cannot be done here.

        Each step is one that a signal handler may follow with an exception: the turn goes back, or
        was never taken.
        """
        try:
            turn = line.turns.get_nowait()
        except Empty:
            return None
        try:
            line.holder = _thread.get_ident()
            if line.prompt is None:
                line.prompt = prompt(line.pid)
            result = line.prompt.store(submission, self._now_ms())
        finally:
            line.turns.put(turn)
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, function: Callable[[], Result], key: str = "", doubt: str = CHANGED) -> Result:
        """Run a writing function of the store in its turn; its exception is raised here."""
        found: Result = self._run(Request(call=function, key=key, doubt=doubt))
        return found

    def close(self) -> None:
        """Close the store after what is queued; later calls raise SpoolError."""
        nested = self._line.nested
        try:
            self.call(lambda: self._close(nested))
        finally:
            self.stop()

    def _close(self, nested: bool) -> None:
        """In the writing thread, which may or may not have the turn.

        Args:
            nested: whoever closes has the turn below, and goes on with it afterwards, if ever.
        """
        line = self._line
        try:
            self._store.close()
        finally:
            if line.prompt is not None:
                line.prompt.end(used=True)  # nobody begins one any more
                turn = line.mine or (None if nested else line.taken(self._timeout))
                if turn is not None:
                    line.prompt.end(used=False)

    def stop(self) -> None:
        """Let the thread end after what is queued; later calls raise SpoolError."""
        self._stopped = True  # before the end is queued: see submit
        # Even where no thread is known of: one that is just being started finds it.
        self._line.queue.put(None)

    def busy(self, timeout: float) -> SpoolBusy:
        """The error of one withdrawn after ``timeout`` seconds; names who is in its way."""
        who = self._store.writer()
        has = "" if who is None else f" ({who} has the write lock now)"
        return SpoolBusy(
            f"no turn to write within {timeout:g} s{has}; nothing was written, try again"
        )

    def submit(self, request: Request) -> None:
        """Queue a request and return at once; it is run unless it is withdrawn first.

        Raises:
            SpoolError: the client is closed, or no thread could be started; nothing was written.
            OutcomeUnknown: it was made before this process was forked: it is the parent's to write.
        """
        line = request.line = self._line
        if request.begun is not None and request.begun is not line:
            raise request.unknown(_FORKED)
        line.queue.put(request)
        # Looked at after the request is queued: not stopped means that it stands before the end
        # of the queue, so it will be served.
        if self._stopped and request.withdraw():
            raise SpoolError("this client is closed; open a new one")
        if not line.started:
            self._start(line, request)

    def wait(self, request: Request) -> Any:
        """The result of a request that was submitted; its exception is raised here.

        Raises:
            SpoolBusy: no turn in time; nothing was written.
            OutcomeUnknown: no answer in time, or this is a child of the process that writes it.
        """
        if request.line is self._line:
            return self._waited(request)
        if not request.done.acquire(blocking=False):
            raise request.unknown(_FORKED)
        return request.outcome()

    def _run(self, request: Request) -> Any:
        request.nested = self._line.nested
        self.submit(request)
        return self._waited(request)

    def _waited(self, request: Request) -> Any:
        if not request.done.acquire(timeout=self._timeout):
            if request.withdraw():
                raise self.busy(self._timeout)
            if not request.done.acquire(timeout=self._timeout + SYNC_GRACE_S):
                raise request.unknown()
        return request.outcome()

    def _start(self, line: Line, request: Request) -> None:
        """Start the thread; without one the request is withdrawn, so that nobody runs it later.

        Two callers may both start one; the second finds the serving lock taken and ends. Noted is
        only a thread that was started: neither an error nor a signal handler that raises leaves a
        client that waits for a thread which does not exist.
        """
        try:
            _thread.start_new_thread(self._serve, (line,))
        except Exception as error:  # RuntimeError, or MemoryError: the process has its limit
            if interrupts.raised(error):
                raise
            # Where it cannot be withdrawn, another caller's thread has it: then it will be done.
            if not line.started and request.withdraw():
                raise SpoolError(
                    f"no thread could be started to write with ({error}); nothing was written:"
                    " try again with fewer threads, or raise the limit of processes (ulimit -u)"
                ) from error
        else:
            line.started = True

    def _serve(self, line: Line) -> None:
        queue, serving = line.queue, line.serving
        if not serving.acquire(blocking=False):
            return
        while True:
            line.busy = False
            request = queue.get()
            line.busy = True
            if line is not self._line:
                # A handler forked in the middle of submit and the child came back there: what is
                # in the inherited queue is the parent's to store.
                return
            if request is None:
                queue.put(None)  # for a second thread that comes too late to find this one
                serving.release()
                return
            line.mine = None if request.nested else line.taken(TURN_S)
            self._write(queue, request)
            if self._told is not None:
                self._told()
            if line.mine is not None:
                line.turns.put(line.mine)
                line.mine = None

    def _write(self, queue: SimpleQueue[Request | None], request: Request) -> None:
        """Do what is asked for, and what can be done with it; the turn is the thread's."""
        if not request.taken.acquire(blocking=False):
            return
        if request.call is not None:
            _answer(request)
            return
        batch, after = self._gather(queue, request)
        self._commit(batch)
        if after is not None:
            _answer(after)

    def _gather(
        self, queue: SimpleQueue[Request | None], first: Request
    ) -> tuple[list[Request], Request | None]:
        """What else waits to be stored right now; a different call ends the batch."""
        batch = [first]
        size = len(first.submission.content) if first.submission else 0
        while len(batch) < GATHER_MESSAGES and size < GATHER_BYTES:
            try:
                request = queue.get_nowait()
            except Empty:
                break
            if request is None:
                queue.put(None)
                break
            if not request.taken.acquire(blocking=False):
                continue
            if request.submission is None:
                return batch, request
            batch.append(request)
            size += len(request.submission.content)
        return batch, None

    def _commit(self, batch: Sequence[Request]) -> None:
        submissions = [r.submission for r in batch if r.submission is not None]
        try:
            results = self._store.enqueue(submissions, self._now_ms())
        except OutcomeUnknown as error:
            for request in batch:
                request.error = OutcomeUnknown(str(error), key=request.key)
        except BaseException as error:  # goes to every caller of the batch
            for request in batch:
                request.error = _copy(error)
        else:
            for request, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    request.error = result
                else:
                    request.result = result
        for request in batch:
            request.end()


def _copy(error: BaseException) -> BaseException:
    """The same error for another thread: a raised exception is written to (its traceback)."""
    try:
        copy = type(error)(*error.args)
    except TypeError:
        return error
    copy.__cause__ = error.__cause__
    return copy


def _answer(request: Request) -> None:
    assert request.call is not None
    try:
        request.result = request.call()
    except BaseException as error:  # belongs to the caller, not to this thread
        request.error = error
    request.end()
