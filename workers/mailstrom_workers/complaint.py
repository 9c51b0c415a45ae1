"""Trouble that lasts: ``engine.failed`` says it at once, and again each minute.

A spool that stays full or damaged is met several times a second. Pure but for the log lines.
"""

from __future__ import annotations

from collections.abc import Callable

from mailstrom import events

AGAIN_S = 60.0


class Complaint:
    """What is said of one place.

    Args:
        where: its name, for the log.
        monotonic: seconds.
    """

    def __init__(self, where: str, monotonic: Callable[[], float]) -> None:
        self._where = where
        self._monotonic = monotonic
        self._text: str | None = None
        self._said_s = 0.0

    def say(self, error: BaseException | str) -> None:
        """Tell of it, unless the same was told within the last minute."""
        text, now_s = str(error), self._monotonic()
        if text == self._text and now_s - self._said_s < AGAIN_S:
            return
        self._text, self._said_s = text, now_s
        events.engine_failed(where=self._where, error=error)

    def over(self) -> None:
        """It went well: the same trouble is news again."""
        self._text = None
