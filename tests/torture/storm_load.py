"""The two ends of a storm, as processes: clients that send, a sink that records.

Contract. A ``Client`` runs ``storm_client`` on a record of its own and may be killed at any moment;
a ``Sink`` answers each final dot after 0 to 5 ms, by the last digit of a recipient's number, and
its record is read as it grows. Only digests and ids are kept. Must not know: the engine, the spool.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import leash
from tests.support.checker import Seen
from tests.support.engine import DEADLINE_S, environment
from tests.support.network import Network
from tests.support.sockets import loopback_addresses

CLIENT = Path(__file__).with_name("storm_client.py")
END_S = 180.0
"""How long an end is waited for."""
_SCRIPT = {
    "magic": False,
    "rules": [
        {"stage": "dot", "delay": digit / 1000 * 5 / 9, "recipient": f"*{digit}@*"}
        for digit in range(10)
    ],
}


class Sink:
    """A sink process and what it recorded so far.

    Attributes:
        seen: every recipient of every content, in order.
        stamps: when each content came, seconds since the epoch.
    """

    def __init__(self, network: Network, record: Path) -> None:
        self.addresses = loopback_addresses(2)
        self.seen: list[Seen] = []
        self.stamps = array("d")
        self._record = record
        self._offset = 0
        argv = [sys.executable, "-P", "-m", "mailstrom.testing.smtp", "--record", str(record)]
        for address in self.addresses:
            argv += ["--bind", f"{address}:{network.port}"]
        argv += ["--script", json.dumps(_SCRIPT)]
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, env=environment(), start_new_session=True
        )
        leash.hold(self.process.pid)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["event"] == "ready"

    def look(self) -> int:
        """Read what is new in the record; how many contents have been seen."""
        with self._record.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            facts = json.loads(line)
            if facts["event"] != "dot":
                continue
            self.stamps.append(facts["at"])
            self.seen += [
                Seen(
                    message_id=facts["message_id"], recipient=recipient,
                    digest=facts["digest"], kept=facts["kept"], at=facts["at"],
                )
                for recipient in facts["recipients"]
            ]  # fmt: skip
        return len(self.stamps)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        leash.let_go(self.process.pid)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client:
    """A client process; ``kill`` ends it and starts it again on its own record."""

    def __init__(self, argv: list[str], record: Path) -> None:
        self._argv = argv
        self.record = record
        self._allowed = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, env=environment(), start_new_session=True
        )
        leash.hold(process.pid)
        self._tell(process)
        return process

    def _tell(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # done with all of them
            process.stdin.write(f"{self._allowed}\n".encode())
            process.stdin.flush()

    def allow(self, number: int) -> None:
        """It may have sent so many messages from now on."""
        self._allowed = number
        self._tell(self.process)

    def kill(self) -> None:
        """SIGKILL, and start it again."""
        self.process.kill()
        self._reap()
        self.process = self._start()

    def _reap(self) -> int:
        code = self.process.wait(DEADLINE_S)
        leash.let_go(self.process.pid)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        return code

    def lines(self) -> Iterator[list[Any]]:
        """What it wrote down so far."""
        if self.record.exists():
            with self.record.open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def finish(self) -> int:
        """Its exit status, once it has sent all it may."""
        self.process.wait(END_S)
        return self._reap()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self._reap()
