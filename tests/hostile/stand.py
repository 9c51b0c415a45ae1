"""An engine of one worker among hostile hosts, and what each case costs that worker.

Contract. ``Stand`` is a ``Network`` and an ``Engine`` of one worker for all cases of a group: each
case uses a domain of its own, so they share nothing but the process that must bear them.
``measured`` runs one case and makes its row. A case that does not come to its end in time is a row
that is not clean, not an exception: the others are tried all the same.

Must not know: any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.meter import Meter
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S, Engine, Tables
from tests.support.network import Network
from tests.support.sockets import eventually

LET_GO = "connections and lookups of the worker, when all cases are over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where cases are tried.

    Args:
        network: the hosts and the DNS.
        engine: running, with one worker.
    """

    network: Network
    engine: Engine

    def measured(self, case: str, wanted: str, tried: Callable[[], str]) -> Row:
        """Try a case.

        Args:
            case: what the other side does.
            wanted: the outcome by the documented policy.
            tried: brings it about, waits for the outcome and tells it in the words of ``wanted``.
        """
        (pid,) = self.engine.live()
        meter = Meter(pid)
        findings: tuple[str, ...] = ()
        try:
            seen = tried()
        except (AssertionError, TimeoutError) as error:
            seen, findings = "no outcome", (str(error).splitlines()[0],)
        seconds = meter.seconds
        if self.engine.live() != [pid]:
            return Row(
                case=case, wanted=wanted, seen=seen, seconds=seconds,
                findings=(*findings, "the worker did not survive it"),
            )  # fmt: skip
        return Row(
            case=case, wanted=wanted, seen=seen, seconds=seconds, cpu_s=meter.cpu_s,
            memory=meter.memory, findings=findings,
        )  # fmt: skip

    def let_go(self) -> Row:
        """Whether every socket that hosts and name servers were given is closed in the end."""
        (pid,) = self.engine.live()
        left = 0

        def none() -> bool:
            nonlocal left
            left = sockets(pid)
            return left == 0

        def tried() -> str:
            with suppress(AssertionError):
                eventually(none, DEADLINE_S, what="an end of all connections", interval=0.05)
            return f"{left or 'none'} open"

        return self.measured(LET_GO, "none open", tried)

    def outcome(self, id: str, address: str) -> str:
        """Where a recipient stands now: status, reason, doubt, attempts that were charged."""
        row = self.engine.rows(
            "SELECT status, reason, in_doubt, attempts FROM recipients"
            " WHERE message_id = ? AND address = ?",
            id, address,
        )[0]  # fmt: skip
        words = [row.status, row.reason or "", "in doubt" if row.in_doubt else ""]
        return f"{' '.join(filter(None, words))}, {row.attempts} charged"


def sockets(pid: int) -> int:
    """Sockets of the Internet that a process has open."""
    inodes = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        inodes.update(f"socket:[{line.split()[9]}]" for line in lines)
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(f"/proc/{pid}/fd/{name}") in inodes
    return found


@contextmanager
def standing(folder: Path, settings: Tables | None = None) -> Iterator[Stand]:
    """A stand whose engine runs; ended afterwards, its spool checked.

    Args:
        folder: an empty directory.
        settings: tables of the configuration, over those of ``tests.support.engine``.

    Raises:
        AssertionError: the spool is not sound afterwards.
    """
    with Network() as network:
        engine = Engine(network, folder, workers=1, settings=settings)
        with engine:
            yield Stand(network=network, engine=engine)
            assert engine.stop() == 0
            assert engine.ms.check() == []
