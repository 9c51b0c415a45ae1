"""A crowd of processes around one spool: started, watched, ended, and what they knew compared.

Contract. ``Crowd`` starts processes of ``contention_client.py`` over the spool of an ``Engine``
and reads what they wrote down. It watches the -wal file: past ``CEILING`` bytes it ends every
writer and says so. ``verdict`` compares what was acknowledged, what the sink saw and what the spool
says, by the checker; what was refused must be nowhere. Processes are ended by their own handles.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mailstrom.storage.sqlite.wal import LIMIT_BYTES
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.support import leash
from tests.support.checker import History, Report, Sent, check
from tests.support.engine import DEADLINE_S, Engine, Tables, environment
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.witnesses import seen_by_server, spool_rows
from tests.torture.table import Row

CLIENT = Path(__file__).with_name("contention_client.py")
CEILING = LIMIT_BYTES + (64 << 20)
"""No case lets a -wal file grow past this."""
LONGEST_S = 900.0
SETTINGS: Tables = {
    "sites": {"idle": "500ms", "connections": 8},
    "log": {"format": "json", "level": "info"},
}


class Watch(threading.Thread):
    """The length of a -wal file, sampled; ``largest`` is the longest seen."""

    def __init__(self, store: Path, stop: Path) -> None:
        super().__init__(name="wal watch", daemon=True)
        self._wal = f"{store}-wal"
        self._end_writers = stop
        self._over = threading.Event()
        self.largest = 0
        self.ceiling = False

    def now(self) -> int:
        """Its length at this moment."""
        try:
            return os.stat(self._wal).st_size
        except FileNotFoundError:
            return 0

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.largest = max(self.largest, self.now())
            if self.largest > CEILING:
                self.ceiling = True
                self._end_writers.touch()

    def end(self) -> None:
        """No more samples."""
        self.largest = max(self.largest, self.now())
        self._over.set()
        self.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the senders wrote down.

    Args:
        accepted: with ids.
        begun: and never answered.
        refused: error, seconds and text by Message-ID.
        seconds: how long each accepted ``send()`` took, sorted.
    """

    accepted: tuple[Sent, ...]
    begun: tuple[Sent, ...]
    refused: Mapping[str, tuple[str, float, str]]
    seconds: Sequence[float]

    def figures(self) -> str:
        """Median, 99th percentile and longest of ``send()``."""
        if not self.seconds:
            return "nothing accepted"
        at = len(self.seconds) - 1
        p50, p99 = self.seconds[at // 2], self.seconds[at * 99 // 100]
        return (
            f"send() p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.0f} ms, max {self.seconds[-1]:.2f} s"
        )


class Crowd:
    """Processes around one spool; a context manager that leaves none behind.

    Args:
        network: DNS and the sink.
        folder: an empty directory.
        settings: of the engine, over ``SETTINGS``.
        seed: of what is sent.
    """

    def __init__(
        self, network: Network, folder: Path, *, settings: Tables | None = None, seed: int = 1
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.seed = folder, seed
        tables = {name: dict(table) for name, table in SETTINGS.items()}
        for name, table in (settings or {}).items():
            tables[name] = {**tables.get(name, {}), **table}
        self.engine = Engine(network, folder, workers=2, settings=tables)
        self.engine.ms.stats()  # the spool exists from here on
        self.sink: SMTPServer
        self.domain, (self.sink,) = network.site(Script())
        self.stop, self.go = folder / "stop", folder / "go"
        self.watch = Watch(self.engine.store, self.stop)
        self.findings: list[str] = []
        self._records: list[Path] = []
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        """Watch the log from here on."""
        self.watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything."""
        with contextlib.ExitStack() as ending:  # each of them, whatever becomes of the others
            ending.callback(self.engine.close)
            if error is not None:
                ending.callback(lambda: error.add_note(self.engine.describe()))
            ending.callback(self.watch.end)
            for process in self._processes:
                ending.callback(_end, process)

    def started(self, process: subprocess.Popen[Any]) -> None:
        """Note a process that leads a session of its own, to be ended with the crowd."""
        leash.hold(process.pid)
        self._processes.append(process)

    def start(
        self, mode: str, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """A process of this mode; ``ready`` waits for its word."""
        number = len(self._processes)
        record = self.folder / f"record{number}.jsonl"
        if mode in ("send", "serve", "fork"):
            self._records.append(record)
        told = {"record": str(record), "seed": f"{self.seed}.{number}", "domain": self.domain,
                "stop": str(self.stop), **options}  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-P", str(CLIENT), mode, str(self.engine.store), json.dumps(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.folder,
            env=dict(env) if env is not None else environment(), start_new_session=True,
        )  # fmt: skip
        self.started(process)
        return process

    def ready(self, *processes: subprocess.Popen[str]) -> None:
        """Wait until these have said so; one that fails to start is a finding."""
        for process in processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "ready\n", f"a process of the crowd said {line!r}"

    def ended(self, *processes: subprocess.Popen[str]) -> list[str]:
        """Wait for their end; what they printed. A bad exit is a finding."""
        printed = []
        for process in processes:
            text, _ = process.communicate(timeout=LONGEST_S)
            printed.append(text.strip())
            if process.returncode != 0:
                self.findings.append(
                    f"a process of the crowd ended with {process.returncode}: {text}"
                )
        return printed

    def told(self) -> Told:
        """What the senders wrote down so far."""
        begun: dict[str, Sent] = {}
        accepted: dict[str, Sent] = {}
        refused: dict[str, tuple[str, float, str]] = {}
        seconds: list[float] = []
        for record in self._records:
            if not record.exists():
                continue
            for line in record.read_text().splitlines():
                what, message_id, *rest = json.loads(line)
                if what == "begun":
                    begun[message_id] = Sent(
                        id=message_id, message_id=message_id, recipient=rest[0], digest=rest[1]
                    )
                elif what == "accepted":
                    one = begun.pop(message_id)
                    accepted[message_id] = Sent(
                        id=rest[0],
                        message_id=message_id,
                        recipient=one.recipient,
                        digest=one.digest,
                    )
                    seconds.append(rest[1])
                else:
                    if rest[0] != "OutcomeUnknown":
                        del begun[message_id]
                    refused[message_id] = (rest[0], rest[1], rest[2])
        return Told(
            accepted=tuple(accepted.values()), begun=tuple(begun.values()), refused=refused,
            seconds=sorted(seconds),
        )  # fmt: skip

    def settle(self) -> None:
        """Wait until the engine has finished every message."""
        sql = "SELECT count(*) FROM messages WHERE finished_ms IS NULL"
        done = [-1, 0]

        def over() -> bool:
            left = self.engine.rows(sql)[0][0]
            if left != done[0]:  # as long as it goes on, it is waited for
                done[:] = [left, 0]
            done[1] += 1
            assert done[1] < 600, f"{left} messages stay unfinished"
            return bool(left == 0)

        eventually(over, LONGEST_S, what="the end of the queue", interval=0.1)

    def verdict(
        self,
        fault: str,
        *,
        tried: int,
        finished: bool,
        recovery_s: float | None = None,
        unit: str = "fault",
    ) -> Row:
        """The row of this case, judged by the checker, ``check`` and what was refused.

        Args:
            finished: an engine worked until nothing waited.
            unit: what ``tried`` counts.
        """
        told, query = self.told(), self.engine.ms.query
        rows = spool_rows(query)
        report = check(
            History(
                acknowledged=told.accepted,
                unanswered=told.begun,
                spool=rows,
                finished=finished,
                seen=seen_by_server(self.sink.dots),
            )
        )  # fmt: skip
        stored = {row.message_id for row in rows}
        for message_id, (error, _, text) in told.refused.items():
            if message_id in stored and error != "OutcomeUnknown":
                self.findings.append(f"{message_id} was refused ({error}: {text}) and is stored")
        self.findings += _others(report)
        self.findings += [f"store check: {text}" for text in self.engine.ms.check()]
        if self.watch.ceiling:
            self.findings.append(f"the -wal file grew to {self.watch.largest} bytes")
        if tried == 0:
            self.findings.append("nothing was brought about")
        return Row(
            part="contention", fault=fault, tried=tried, messages=len(told.accepted),
            lost=len(report.lost), silent=len(report.doubled_unmarked),
            marked=len(report.doubled_marked), worst_recovery_s=recovery_s,
            findings=tuple(self.findings), seed=self.seed, unit=unit,
        )  # fmt: skip


def _end(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to it and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    leash.let_go(process.pid)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _others(report: Report) -> list[str]:
    found = [*report.phantom, *report.wrong_bytes, *report.stuck]
    return [f"{one.message_id} to {one.recipient}: {one.text}" for one in found]
