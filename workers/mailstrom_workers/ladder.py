"""What a lane may use of a site's extensions, and what its sessions teach about them.

Servers that mishandle what they offer exist. Who stumbled over something is talked to with less of
it: nothing behind the final dot, then no pipelining at all; no BDAT. The first BDAT that worked is
remembered as well: from then on it may share a flight. What was learnt is a ``Lesson`` for the
site's row, and what is bad of it holds for a time: for days where the server's own words told, for
an hour where it only fell silent or went away, as healthy ones and the networks between do, too.
Then everything is tried again. A flight that was cut short is the server's trouble the first time;
where it is the same message's a second time, it may be the flight.

Must not know: sockets, the store, recipients.
"""

from __future__ import annotations

from dataclasses import replace

from mailstrom.smtp.transaction import Dialect, Extension, Fault, TransactionEnd
from mailstrom.storage.base import Lane, Lesson
from mailstrom.types import Pipelining, Stage

LESSON_MS = 3 * 86_400_000
"""So long a site is spared what it answered out of step."""
SUSPICION_MS = 3_600_000
"""So long it is spared behind what it fell silent, or closed."""
_BEFORE_CONTENT = (Stage.MAIL, Stage.RCPT, Stage.DATA)
_RUNGS = (Pipelining.FULL, Pipelining.TRANSACTION, Pipelining.NONE)


class Ladder:
    """The rung that a lane's sessions stand on.

    Args:
        lane: where its site stood when it was leased.
    """

    def __init__(self, lane: Lane) -> None:
        self._site = lane.site
        self._pipelining = lane.pipelining
        self._chunking = lane.chunking
        self._lessons: list[Lesson] = []

    def dialect(self, most: Dialect) -> Dialect:
        """What a session may use, of ``most``: the configuration's."""
        return replace(
            most,
            pipelining=_lower(most.pipelining, self._pipelining),
            chunk_octets=0 if self._chunking is False else most.chunk_octets,
            chunks_proved=most.chunks_proved or self._chunking is True,
        )

    def learn(self, end: TransactionEnd, used: Dialect, now_ms: int) -> None:
        """Take what the end of a transaction teaches.

        Args:
            end: how it ended.
            used: the dialect of its session.
            now_ms: wall milliseconds.
        """
        until_ms = now_ms + (LESSON_MS if end.fault is Fault.GARBAGE else SUSPICION_MS)
        if end.stumbled is Extension.CHUNKING:
            self._chunking = False
            self._note(Lesson(site=self._site, chunking=False, until_ms=until_ms))
        elif end.stumbled is Extension.PIPELINING:
            # Within a flight of its own, one transaction's envelope is too much already.
            ahead = end.behind or end.stage is Stage.DOT
            full = used.pipelining is Pipelining.FULL
            rung = Pipelining.TRANSACTION if ahead and full else Pipelining.NONE
            self._pipelining = _lower(self._pipelining, rung)
            self._note(Lesson(site=self._site, pipelining=rung, until_ms=until_ms))
        elif self._chunking is None and end.chunked and end.dot is not None and end.dot.positive:
            self._chunking = True
            self._note(Lesson(site=self._site, chunking=True))

    def suspect(self, now_ms: int) -> None:
        """Spare the site flights for an hour: it went away, or fell silent, before a whole one.

        Args:
            now_ms: wall milliseconds.
        """
        self._pipelining = Pipelining.NONE
        until_ms = now_ms + SUSPICION_MS
        self._note(Lesson(site=self._site, pipelining=Pipelining.NONE, until_ms=until_ms))

    def spare_chunks(self, now_ms: int) -> None:
        """No BDAT for an hour: who goes away within an envelope leaves in doubt what left with it.

        Args:
            now_ms: wall milliseconds.
        """
        self._chunking = False
        self._note(Lesson(site=self._site, chunking=False, until_ms=now_ms + SUSPICION_MS))

    def take(self) -> list[Lesson]:
        """What is to be kept with the site; each once."""
        taken, self._lessons = self._lessons, []
        return taken

    def _note(self, lesson: Lesson) -> None:
        self._lessons.append(lesson)


def cut_short(end: TransactionEnd, used: Dialect, *, offered: bool, reused: bool) -> bool:
    """Whether a flight's envelope was met with silence or a close, and nothing else is to blame.

    Args:
        end: how the transaction ended.
        used: the dialect of its session.
        offered: the server offers PIPELINING.
        reused: the session took a message before, or sat idle: servers close such.
    """
    if end.stumbled is not None or end.behind or end.dot_written or end.dot is not None:
        return False
    flown = offered and used.pipelining is not Pipelining.NONE
    lost = end.fault is Fault.TIMEOUT or (
        end.fault is Fault.CLOSED and (end.answered or not reused)
    )
    return flown and lost and end.stage in _BEFORE_CONTENT


def _lower(one: Pipelining, other: Pipelining) -> Pipelining:
    return _RUNGS[max(_RUNGS.index(one), _RUNGS.index(other))]
