"""Clients that are refused, in the log: each once, and a flood of them in a few lines.

The same of a client is told again after ``AGAIN_S``, with a count of what was not told of
meanwhile; of all clients together so many lines a second, ``BURST`` at once.

Must not know: why somebody is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from mailstrom import events

AGAIN_S = 10.0
LINES_A_SECOND = 10.0
BURST = 50.0
MOST_KNOWN = 4096


class Refusals:
    """What is said of clients of one process.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._told: dict[tuple[str, str], tuple[float, int]] = {}  # when, and how often since
        self._lines = BURST
        self._filled_s = monotonic()

    def tell(self, client: str, reason: str, **fields: str | None) -> None:
        """A client was refused something.

        Args:
            fields: of the line, see ``client.refused``.
        """
        now_s = self._monotonic()
        key = (client, reason)
        then_s, untold = self._told.pop(key, (float("-inf"), 0))
        filled = (now_s - self._filled_s) * LINES_A_SECOND
        self._lines, self._filled_s = min(BURST, self._lines + filled), now_s
        if now_s - then_s < AGAIN_S or self._lines < 1:
            self._told[key] = (then_s, untold + 1)
        else:
            self._lines -= 1
            self._told[key] = (now_s, 0)
            events.client_refused(client=client, reason=reason, again=untold or None, **fields)
        while len(self._told) > MOST_KNOWN:
            del self._told[next(iter(self._told))]
