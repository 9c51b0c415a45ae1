"""The application's part: a thread that calls the library, as any program would.

Contract. The first messages go one by one with ``send()``; a long run goes on with
``send_many()``, a chunk at a time. What was accepted is noted with its plan in the order of
acceptance. ``stop()`` ends it between two calls. Must not know: servers, the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Self

from mailstrom.client import Mailstrom
from mailstrom.demo.plan import Planned, outgoing

ONE_BY_ONE = 1000
CHUNK = 500


class Sending:
    """Sends a run's messages in a thread, for the time of its block.

    Args:
        client: an open handle on the spool.
        count: how many messages.
        run: a word that no other run has.

    Attributes:
        accepted: (id, plan) of every accepted message; only ever grows.
        recipients: recipients of the accepted messages.
        error: why it ended early, or None.
        done: whether every message was accepted.
    """

    def __init__(self, client: Mailstrom, count: int, run: str) -> None:
        self.accepted: list[tuple[str, Planned]] = []
        self.recipients = 0
        self.error: Exception | None = None
        self.done = False
        self._client = client
        self._messages = outgoing(count, run)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-sending", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End after the call that is under way, and wait for that; idempotent."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for ids, plans in self._calls():
                self.accepted.extend(zip(ids, plans, strict=True))
                self.recipients += sum(len(plan.addresses) for plan in plans)
                if self._stopping.is_set():
                    return
            self.done = True
        except Exception as error:  # shown by whoever watches; a thread has nobody to raise it to
            self.error = error

    def _calls(self) -> Iterator[tuple[list[str], list[Planned]]]:
        for one in islice(self._messages, ONE_BY_ONE):
            yield [self._client.send(one.message, **one.options)], [one.planned]
        while chunk := list(islice(self._messages, CHUNK)):
            ids = self._client.send_many((one.message, one.options) for one in chunk)
            yield ids, [one.planned for one in chunk]
