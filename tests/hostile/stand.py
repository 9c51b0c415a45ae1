"""An engine of one worker among hostile hosts, and what each case costs that worker.

Contract. ``Stand`` is a ``Network`` and an ``Engine`` of one worker for all cases of a group: each
case uses a domain of its own, so they share nothing but the process that must bear them.
``measured`` runs one case and makes its row. A case that does not come to its end in time is a row
that is not clean, not an exception: the others are tried all the same.

Must not know: any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.meter import Meter
from tests.hostile.table import Row
from tests.support.engine import Engine, Tables
from tests.support.network import Network


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

    def outcome(self, id: str, address: str) -> str:
        """Where a recipient stands now: status, reason, doubt, attempts that were charged."""
        row = self.engine.rows(
            "SELECT status, reason, in_doubt, attempts FROM recipients"
            " WHERE message_id = ? AND address = ?",
            id, address,
        )[0]  # fmt: skip
        words = [row.status, row.reason or "", "in doubt" if row.in_doubt else ""]
        return f"{' '.join(filter(None, words))}, {row.attempts} charged"


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
