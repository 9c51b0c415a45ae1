"""Engines under limits of the system, and engines whose log goes where nobody wants it.

Contract. ``Narrow`` starts supervisor and workers with few descriptors. ``Told`` starts them with a
standard output of the caller's, or with none; it is ready when the spool says so. ``limit`` changes
a limit of a running worker. Every wait has a deadline.
"""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

from tests.support import leash
from tests.support.engine import DEADLINE_S, Engine, Tables, environment
from tests.support.network import Network
from tests.support.sockets import eventually


class Narrow(Engine):
    """An engine whose processes may have so many descriptors."""

    files = 64

    def command(self) -> list[str]:
        """See ``Engine``."""
        return ["sh", "-c", f'ulimit -n {self.files}; exec "$0" "$@"', *super().command()]


class Told(Engine):
    """An engine that is observed by its spool alone."""

    def begin(self, output: int | None) -> None:
        """Start, and wait until the workers are ready.

        Args:
            output: descriptor for standard output and error; None: both are closed.
        """
        command = self.command()
        if output is None:
            command = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self.folder,
            env=environment(),
            start_new_session=True,
        )
        leash.hold(self.process.pid)
        self._past.append(self.process)
        eventually(self._is_ready, DEADLINE_S, what="workers that are ready")

    def _is_ready(self) -> bool:
        rows = self.rows("SELECT kind FROM workers WHERE state = 'ready'")
        return len(rows) == self.workers + 1


def told(network: Network, folder: Path, settings: Tables) -> Told:
    """An engine of one worker, not started."""
    folder.mkdir()
    return Told(network, folder, workers=1, settings=settings)


def limit(pid: int, kind: int, most: int) -> int:
    """Set a soft limit of another process; what it was."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (most, hard))
    return soft


def address_space(pid: int) -> int:
    """Octets of addresses that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def first_free(pid: int) -> int:
    """The lowest descriptor that a process does not have: with this limit it gets none."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)
