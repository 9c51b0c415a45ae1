"""django-post-office on SQLite: ``send_many`` enqueues, ``send_queued_mail`` in a loop delivers.

Contract. Its best form on this machine: batches of 500 in one call, batches of 2,000 for delivery
with two processes of ten threads, as its documentation advises for many messages. What became of a
batch is saved after the whole batch: a crash sends up to a batch again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tools.bench.peers.venv import interpreter
from tools.bench.processes import Started

STEP_S = 300.0
SCRIPTS = Path(__file__).resolve().parent / "scripts"


class PostOffice:
    """One database and its delivery, for one run."""

    def __init__(self, home: Path, port: int) -> None:
        self._python = interpreter()
        self._home = home
        self._environ = {
            **os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONWARNINGS": "ignore",
            "DJANGO_SETTINGS_MODULE": "post_office_settings",
            "BENCH_HOME": str(home), "BENCH_PORT": str(port),
        }  # fmt: skip
        self._loop: Started | None = None
        self._step("migrate", "-m", "django", "migrate", "-v", "0")

    def _step(self, what: str, *arguments: str) -> str:
        ran = subprocess.run(
            [str(self._python), *arguments],
            env=self._environ, cwd=self._home, text=True, capture_output=True, timeout=STEP_S,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise RuntimeError(f"post-office: {what}: {ran.stderr[-400:]}")
        return ran.stdout

    def fill(self, messages: int) -> float:
        """One process, 500 messages a call."""
        begin, end = self.offer(messages)
        return end - begin

    def deliver(self) -> None:
        """Starts its delivery, over and over."""
        self._loop = Started(
            [self._python, SCRIPTS / "post_office_loop.py"],
            environ=self._environ, cwd=self._home, log=self._home / "delivery.log",
        )  # fmt: skip

    def serve(self) -> None:
        """Starts its delivery, over and over."""
        self.deliver()

    def offer(self, messages: int) -> tuple[float, float]:
        """One process, 500 messages a call."""
        begin, end = json.loads(
            self._step("fill", str(SCRIPTS / "post_office_fill.py"), str(messages))
        )
        return begin, end

    def roots(self) -> Iterable[int]:
        """Its delivery."""
        return [self._loop.pid] if self._loop else []

    def left(self) -> int:
        """Its states are saved a batch late; not asked."""
        return 0

    def words(self) -> str:
        """The end of the delivery's log."""
        return self._loop.words() if self._loop else ""

    def close(self) -> None:
        """Ends its delivery."""
        if self._loop:
            self._loop.stop()
