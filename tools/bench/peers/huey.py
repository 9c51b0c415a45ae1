"""huey on SQLite, as its documentation has it: a call enqueues, a consumer's workers call smtplib.

Contract. ``SqliteHuey`` with its defaults (WAL, synchronous FULL); two worker processes, or as many
threads as there may be connections where these are to be kept busy across a round trip. Each worker
keeps its connection, its best form. A task is taken off the queue before it runs: a crash loses it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tools.bench.peers.venv import interpreter
from tools.bench.processes import Started

FILL_S = 300.0
SCRIPTS = Path(__file__).resolve().parent / "scripts"


class Huey:
    """One queue and its consumer, for one run.

    Args:
        threads: worker threads; 0 means two processes.
    """

    def __init__(self, home: Path, port: int, *, threads: int = 0) -> None:
        self._python = interpreter()
        self._home = home
        self._threads = threads
        self._environ = {
            **os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONWARNINGS": "ignore",
            "BENCH_HOME": str(home), "BENCH_PORT": str(port),
        }  # fmt: skip
        self._consumer: Started | None = None

    def fill(self, messages: int) -> float:
        """One process, one message a call."""
        begin, end = self.offer(messages)
        return end - begin

    def deliver(self) -> None:
        """Starts the consumer."""
        kind = ["2", "-k", "process"]
        if self._threads:
            kind = [str(self._threads), "-k", "thread"]
        self._consumer = Started(
            [self._python.parent / "huey_consumer", "huey_app.queue", "-w", *kind, "-q"],
            environ=self._environ, cwd=self._home, log=self._home / "consumer.log",
        )  # fmt: skip

    def serve(self) -> None:
        """Starts the consumer."""
        self.deliver()

    def offer(self, messages: int) -> tuple[float, float]:
        """One process, one message a call."""
        ran = subprocess.run(
            [str(self._python), str(SCRIPTS / "huey_app.py"), str(messages)],
            env=self._environ, cwd=self._home, text=True, capture_output=True, timeout=FILL_S,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise RuntimeError(f"huey: {ran.stderr[-400:]}")
        begin, end = json.loads(ran.stdout)
        return begin, end

    def roots(self) -> Iterable[int]:
        """The consumer."""
        return [self._consumer.pid] if self._consumer else []

    def left(self) -> int:
        """It keeps no account of what was sent."""
        return 0

    def words(self) -> str:
        """The end of the consumer's log."""
        return self._consumer.words() if self._consumer else ""

    def close(self) -> None:
        """Ends the consumer."""
        if self._consumer:
            self._consumer.stop()
