"""A client whose writing thread can be kept busy, its batches counted, its patience shortened."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from mailstrom import Mailstrom
from mailstrom.client.commit import Request


def counted(ms: Mailstrom) -> list[int]:
    """Sizes of the batches that this client stores from now on."""
    sizes: list[int] = []
    real = ms._store.enqueue

    def enqueue(submissions: Sequence[Any], now_ms: int, **options: Any) -> Any:
        sizes.append(len(submissions))
        return real(submissions, now_ms, **options)

    ms._store.enqueue = enqueue  # type: ignore[method-assign]
    return sizes


class Gate:
    """Keeps a client's writing thread busy until it is opened, whatever the client's patience."""

    def __init__(self, ms: Mailstrom) -> None:
        self.open = threading.Event()
        self._entered = threading.Event()
        self._request = Request(call=self._hold)
        ms._committer.submit(self._request)
        assert self._entered.wait(30)

    def _hold(self) -> None:
        self._entered.set()
        assert self.open.wait(30)

    def let_go(self) -> None:
        """Let the others write."""
        self.open.set()
        assert self._request.done.acquire(timeout=30)
        self._request.outcome()


def impatient(ms: Mailstrom, seconds: float) -> None:
    """From now on this client waits no longer than that for its turn to write.

    Not from its opening on: what a test only prepares must not fail on a machine that stands still.
    """
    ms._timeout = ms._committer._timeout = seconds


def begun(ms: Mailstrom, entered: threading.Event) -> None:
    """A request's patience begins when the writing thread is at it, as ``entered`` tells."""
    submit = ms._committer.submit

    def submitted(request: Request) -> None:
        submit(request)
        assert entered.wait(30)

    ms._committer.submit = submitted  # type: ignore[method-assign]
