"""A client whose writing thread can be kept busy, and its batches counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from mailstrom import Mailstrom


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
    """Keeps a client's writing thread busy until it is opened."""

    def __init__(self, ms: Mailstrom) -> None:
        self.open = threading.Event()
        self._entered = threading.Event()
        self._thread = threading.Thread(target=ms._committer.call, args=(self._hold,))
        self._thread.start()
        assert self._entered.wait(30)

    def _hold(self) -> None:
        self._entered.set()
        assert self.open.wait(30)

    def let_go(self) -> None:
        """Let the others write."""
        self.open.set()
        self._thread.join(30)
