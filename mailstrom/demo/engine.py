"""The engine as a process of its own, configured for the demonstration's servers.

Contract. ``Engine.start()`` writes the configuration and runs ``python -P -m
mailstrom.supervisor`` as anyone would; its log goes to a file. It gets a session of its own, so
that a Ctrl-C at the terminal reaches the demonstration only, which then ends it in order.
``stop()`` always ends it: TERM drains, a second one stops at once, KILL to its process group is
the last word.

Must not know: what is sent, how it is judged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from mailstrom.config.schema import toml
from mailstrom.demo.plan import STREAMS
from mailstrom.printable import printable

WORKERS = 2
# The schedule is short so that a deferral is seen and yet soon over.
_SETTINGS = """\
# The configuration of `mailstrom demo`.
store = {store}
hostname = "mail.sender.example"

[delivery]
workers = {workers}
port = {port}
drain_timeout = "5s"

[dns]
nameservers = [{nameserver}]
allow_loopback = true

[retry]
schedule = ["3s", "5s"]

[sites]
suspend = ["2s"]
"""
_STREAM = """
[stream.{name}]
priority = {priority}
"""
_PATIENCE_S = (15.0, 5.0)
_LOOK_EVERY_S = 0.02
_TAIL_CHARACTERS = 400


class Engine:
    """One supervisor with its workers.

    Args:
        folder: directory of this run; holds spool, configuration and log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "spool.db"
        self.config = folder / "mailstrom.toml"
        self.log = folder / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, port: int, nameserver: str) -> None:
        """Write the configuration and start the supervisor; it is not ready yet.

        Args:
            port: of every MX host.
            nameserver: ``address:port``.

        Raises:
            OSError: a file cannot be written, or no process can be made.
        """
        text = _SETTINGS.format(
            store=toml(str(self.store)),
            workers=WORKERS,
            port=port,
            nameserver=toml(nameserver),
        )
        for name, priority in STREAMS.items():
            text += _STREAM.format(name=name, priority=toml(priority))
        self.config.write_text(text, encoding="utf-8")
        # What the user's environment says about his own spool must not reach this one.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MAILSTROM_")
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "mailstrom.supervisor"),
                    *("--config", str(self.config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """Exit status, negative for a signal, if it ended by itself, else None.

        It is not reaped here: until ``stop()`` its number, and so its group's, is nobody else's.
        """
        if self._process is None:
            return None
        if self._process.returncode is not None:
            return self._process.returncode
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        found = os.waitid(os.P_PID, self._process.pid, how)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def stop(self) -> int:
        """End it and everything of its group, and wait for that; idempotent.

        Returns:
            Its exit status; 0 for a clean drain, and if it was never started.
        """
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            for patience_s in _PATIENCE_S:
                if self._end_within(patience_s):
                    break
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _end_within(self, patience_s: float) -> bool:
        assert self._process is not None
        if self.ended() is None:
            os.kill(self._process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + patience_s
        while self.ended() is None and time.monotonic() < deadline_s:
            time.sleep(_LOOK_EVERY_S)
        return self.ended() is not None

    def tail(self, lines: int = 12) -> list[str]:
        """The last lines of its log, safe to show."""
        try:
            with self.log.open(encoding="utf-8", errors="backslashreplace") as log:
                return [
                    printable(line.rstrip("\n"), _TAIL_CHARACTERS) for line in deque(log, lines)
                ]
        except FileNotFoundError:
            return []
