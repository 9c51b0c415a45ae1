"""What the connections of one listener share.

Must not know: what a client is told.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from mailstrom.server.sessions import Sessions
from mailstrom_workers.allowance import Connections, Pace
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.intake import Intake
from mailstrom_workers.logins import Logins
from mailstrom_workers.refusals import Refusals
from mailstrom_workers.terms import Terms


@dataclass(slots=True, kw_only=True)
class Front:
    """What the connections of one process share.

    Args:
        terms: for connections that begin now.
        descriptors: connections for which this process has room.
        composing: makes large messages.
        held: octets of content in memory.
    """

    terms: Terms
    sessions: Sessions
    intake: Intake
    logins: Logins
    composing: Executor
    now_ms: Callable[[], int]
    trouble: Complaint
    refusals: Refusals
    descriptors: int
    connections: Connections = field(default_factory=Connections)
    pace: Pace = field(default_factory=Pace)
    held: int = 0
