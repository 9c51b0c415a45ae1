"""Who is in a simulated story: processes of the engine, and messages that a client sent.

Contract: values with what the oracle asks of them later. Must not know: what befalls them.
"""

from __future__ import annotations

import asyncio

from mailstrom.storage.client import Submission
from mailstrom_workers.presence import Presence
from tests.support.checker import Sent, content_digest
from tests.torture.sim_db import SimulatedDB
from tests.torture.sim_loop import Group, VirtualLoop


class Worker(Group):
    """A simulated engine process.

    Attributes:
        limits: connection limits of the configurations it had.
        zombie: whether its lock fell although it lives.
        killed: whether it was killed.
        spoilt: whether what it had to record met damage.
    """

    def __init__(self, loop: VirtualLoop, kind: str, slot: int, number: int) -> None:
        super().__init__(loop, f"{kind}-{slot}.{number}")
        self.kind, self.slot = kind, slot
        self.presence: Presence | None = None
        self.db: SimulatedDB | None = None
        self.zombie = self.killed = self.spoilt = False
        self.stops: list[tuple[float, float]] = []
        self.main: asyncio.Task[None] | None = None


class Mail:
    """A message that the client tried to send.

    Attributes:
        answered: True: acknowledged; None: nobody knows; False: refused.
        cancelled: recipient -> when ``cancel`` returned 1 for it.
        held: recipient -> when ``hold`` returned 1, until it was released (or the end).
        touched: recipients that a person retried, released or resolved.
    """

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.answered: bool | None = False
        self.cancelled: dict[str, float] = {}
        self.held: dict[str, list[tuple[float, float]]] = {}
        self.touched: set[str] = set()
        self.digest = content_digest(submission.content)

    def sent(self) -> list[Sent]:
        """As the checker counts it."""
        own = self.submission
        return [
            Sent(id=own.id, message_id=own.message_id, recipient=r, digest=self.digest)
            for r in own.recipients
        ]
