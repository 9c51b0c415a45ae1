"""Looks at a run until it is over: takes snapshots, shows them, notices when it cannot end.

Contract. ``watch`` returns None once every accepted recipient is final, else one sentence that says
why it gave up. It reads the spool through the library like any other reader, and looks less often
where a look costs more. ``Interruption`` turns the signals that end a program into a flag, so that
nothing is torn off half-way.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from mailstrom.client import Mailstrom
from mailstrom.demo.display import Display, Snapshot
from mailstrom.demo.sending import Sending

LOOK_EVERY_S = 0.2
STALLED_S = 45.0
"""A run in which nothing changes for so long does not end; the longest planned wait is seconds."""
_RATE_OVER_S = 2.0
_LOOK_SHARE = 4  # at most a fourth of the time is spent on looking

_COUNTS = "SELECT domain, status, count(*) AS recipients FROM recipients GROUP BY domain, status"


class Interruption:
    """Notes SIGINT, SIGTERM and SIGHUP for the time of its block, instead of ending the process.

    In a thread other than the main one, where Python takes no signals, it does nothing.

    Attributes:
        name: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Self:
        """Begin to note."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before.append((number, signal.signal(number, self._note)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before:
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name


class Rate:
    """How fast a count grows, over the last moments."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def note(self, at_s: float, count: int) -> float:
        """Add a point.

        Args:
            at_s: seconds of a monotonic clock.
            count: the count then.

        Returns:
            Growth a second since about two seconds ago.
        """
        points = self._points
        points.append((at_s, count))
        while len(points) > 2 and at_s - points[1][0] >= _RATE_OVER_S:
            points.popleft()
        first_s, first = points[0]
        return (count - first) / (at_s - first_s) if at_s > first_s else 0.0


def watch(
    client: Mailstrom,
    sending: Sending,
    messages: int,
    display: Display,
    *,
    ended: Callable[[], int | None],
    connections: Callable[[], int],
    interruption: Interruption,
) -> str | None:
    """Watch until every recipient is final, or until that cannot be expected any more.

    Args:
        client: a handle on the spool.
        messages: how many are to be sent.
        display: shows each snapshot.
        ended: exit status of the engine if it ended by itself.
        connections: SMTP connections open now.

    Returns:
        None at the end, else why it was given up.

    Raises:
        SpoolError: the spool cannot be read.
    """
    start_s = changed_s = time.monotonic()
    rate = Rate()
    last: tuple[int, dict[tuple[str, str], int]] | None = None
    while True:
        look_s = time.monotonic()
        # In this order: what was accepted before the look is part of it.
        done, accepted, recipients = sending.done, len(sending.accepted), sending.recipients
        counts = {(row.domain, row.status): row.recipients for row in client.query(_COUNTS)}
        snapshot = Snapshot(
            elapsed_s=look_s - start_s,
            messages=messages,
            accepted=accepted,
            counts=counts,
            per_s=0.0,
            connections=connections(),
        )
        display.show(_rated(snapshot, rate, look_s))
        if last != (accepted, counts):
            last, changed_s = (accepted, counts), look_s
        trouble = _trouble(sending, ended(), interruption, look_s - changed_s)
        if trouble is not None:
            return trouble
        if done and snapshot.final >= recipients:
            return None
        time.sleep(max(LOOK_EVERY_S, (time.monotonic() - look_s) * (_LOOK_SHARE - 1)))


def _rated(snapshot: Snapshot, rate: Rate, at_s: float) -> Snapshot:
    return Snapshot(
        elapsed_s=snapshot.elapsed_s,
        messages=snapshot.messages,
        accepted=snapshot.accepted,
        counts=snapshot.counts,
        per_s=rate.note(at_s, snapshot.final),
        connections=snapshot.connections,
    )


def _trouble(
    sending: Sending, status: int | None, interruption: Interruption, still_s: float
) -> str | None:
    if interruption.name is not None:
        return f"told to end by {interruption.name}"
    if sending.error is not None:
        return f"sending failed: {type(sending.error).__name__}: {sending.error}"
    if status is not None:
        return f"the supervisor ended by itself with status {status}"
    if still_s > STALLED_S:
        return f"nothing has changed for {STALLED_S:.0f} s and not every recipient is final"
    return None
