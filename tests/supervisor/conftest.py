"""Real supervisor processes for tests, observed through their log lines and the children's traces.

Every wait has a condition and a deadline; a deadline that passes shows what was seen instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support import leash

HERE = Path(__file__).parent
FAKECHILD = HERE.parent / "support" / "fakechild.py"
DEADLINE_S = 30.0
PATIENT = {"grace_s": 600.0, "stop_s": 600.0}
PASSING_S = 3600.0
"""Patience ends when a test puts the supervisor's clock forward, not where a machine is slow."""

Line = dict[str, Any]


class Supervised:
    """A running supervisor: its log lines, its children's trace, its end."""

    def __init__(
        self, argv: list[str], *, folder: Path, trace: Path, cwd: Path, environment: dict[str, str]
    ) -> None:
        self.trace = trace
        self.stderr_file = folder / "stderr.txt"
        self._lines: list[Line] = []
        self._changed = threading.Condition()
        self._closed = False
        with self.stderr_file.open("ab") as stderr:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )
        leash.hold(self.pid)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                with self._changed:
                    self._lines.append(json.loads(raw))
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()

    def lines(self, event: str, **fields: object) -> list[Line]:
        """Log lines so far with this event and these fields."""
        with self._changed:
            return [line for line in self._lines if _matches(line, {"event": event, **fields})]

    def wait(self, event: str, *, count: int = 1, **fields: object) -> list[Line]:
        """Wait until that many such lines were logged."""
        deadline = time.monotonic() + DEADLINE_S
        with self._changed:
            while True:
                found = [ln for ln in self._lines if _matches(ln, {"event": event, **fields})]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    raise AssertionError(
                        f"{len(found)} of {count} x {event} {fields}\nlog: {self._lines}\n"
                        f"stderr: {self.stderr}"
                    )
                self._changed.wait(left)

    def traced(self, saw: str, **fields: object) -> list[Line]:
        """What children met so far, of this sort."""
        if not self.trace.exists():
            return []
        whole = self.trace.read_bytes().rpartition(b"\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if _matches(line, {"saw": saw, **fields})]

    def wait_traced(self, saw: str, *, count: int = 1, **fields: object) -> list[Line]:
        """Wait until that many children's notes of this sort exist."""

        def probe() -> list[Line] | None:
            over = self.process.poll() is not None
            found = self.traced(saw, **fields)
            assert len(found) >= count or not over, f"ended early: {self.stderr}"
            return found if len(found) >= count else None

        found: list[Line] = eventually(
            probe, what=lambda: f"{count} x {saw} {fields}\nlog: {self._lines}"
        )
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        """Its exit code; also waits until nobody, orphans included, holds its log open."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert not self._reader.is_alive(), "a child outlived its supervisor"
        return code

    def end(self) -> None:
        """Leave nothing behind: orphans end at the end of file, or with their group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
        leash.let_go(self.pid)
        self._reader.join(DEADLINE_S)


def _matches(line: Line, fields: dict[str, object]) -> bool:
    return all(line.get(name) == value for name, value in fields.items())


def eventually(probe: Callable[[], Any], *, what: Callable[[], str]) -> Any:
    """The first true answer of ``probe``, asked again and again until a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"never came: {what()}"
        time.sleep(0.01)
    return answer


class Stage:
    """Builds configurations and starts supervisors with scripted children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "spool.db"
        self.trace = folder / "trace.jsonl"
        self.config = folder / "mailstrom.toml"
        self.clock = folder / "clock"
        self._started: list[Supervised] = []
        self.write_config()

    def write_config(
        self, *, watchdog: str = "20s", drain_timeout: str = "20s", backoff: str = '["0ms"]'
    ) -> None:
        self.config.write_text(
            f'store = "{self.store}"\nhostname = "mx.example.org"\n'
            f'[delivery]\ndrain_timeout = "{drain_timeout}"\n'
            f'[supervisor]\nwatchdog = "{watchdog}"\nrestart_backoff = {backoff}\n'
            '[log]\nlevel = "debug"\nformat = "json"\n'
        )

    def fakechild(self, act: str) -> list[str]:
        return [sys.executable, "-P", str(FAKECHILD), "--act", act, "--trace", str(self.trace)]

    def start(
        self,
        *,
        delivery: str = "well",
        janitor: str = "well",
        listener: str = "well",
        workers: int = 1,
        **timing: float,
    ) -> Supervised:
        script = {
            "workers": workers,
            "commands": {
                "delivery": [delivery] if "/" in delivery else self.fakechild(delivery),
                "janitor": self.fakechild(janitor),
                "listener": self.fakechild(listener),
            },
            "timing": {"start_gap_s": 0.02, "same_s": 0.0, "tick_s": 0.05, **PATIENT, **timing},
            "clock": str(self.clock),
        }
        runner = str(HERE / "serve_fake.py")
        return self.run(
            [sys.executable, "-P", runner, str(self.config), json.dumps(script)], cwd=self.folder
        )

    def run(self, argv: list[str], *, cwd: Path, **environment: str) -> Supervised:
        supervised = Supervised(
            argv,
            folder=self.folder,
            trace=self.trace,
            cwd=cwd,
            environment={**inherited_environment(), **environment},
        )
        self._started.append(supervised)
        return supervised

    def import_path(self, folder: Path) -> str:
        """A ``PYTHONPATH`` on which ``folder`` is first."""
        rest = inherited_environment().get("PYTHONPATH")
        return os.pathsep.join([str(folder), rest] if rest else [str(folder)])

    def pass_time(self, seconds: float = PASSING_S) -> None:
        """Put the supervisor's clock forward; it looks at least every tick."""
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self.clock)

    def end(self) -> None:
        for supervised in self._started:
            supervised.end()


def inherited_environment() -> dict[str, str]:
    """Ours, with paths that hold in any folder and nothing that configures Mailstrom."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAILSTROM_")}
    if "PYTHONPATH" in environment:
        entries = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(e) for e in entries if e)
    return environment


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.end()
