"""The real engine under test: supervisor, workers and janitor as processes over a spool of its own.

Contract. ``Engine`` writes a configuration for a ``Network``, starts ``python -m
mailstrom.supervisor`` in a temporary folder outside the checkout, and observes it the way its users
do: log lines, views, exit codes. Every wait has a condition and a deadline. When a test fails,
``describe()`` says what the spool holds and what the log said last.

A test may end processes of its own engine by their ids, never others. ``tamper`` is the only way
round the public interface: damage, or time that has passed, is written by another process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mailstrom import Mailstrom
from mailstrom.clock import wall_ms
from mailstrom.types import MessageStatus
from tests.support import leash
from tests.support.network import Network
from tests.support.sockets import eventually

DEADLINE_S = 45.0
LOG_TAIL = 30
PEERS, NAMES = "60s", "20s"
"""How long hosts, and name servers, are waited for: a host that holds its answer back holds it for
longer than any test waits, and neither is lost because this machine stands still."""
STAGES = ("greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot")
_RUNNING: list[Engine] = []

Tables = Mapping[str, Mapping[str, object]]
Line = dict[str, Any]

# What suits most tests: short waits for retries, long ones for peers, nothing left to chance.
_DEFAULTS: Tables = {
    "delivery": {"drain_timeout": "20s"},
    "retry": {"schedule": ["1s"], "jitter": 0.0},
    "sites": {"idle": "200ms", "suspend": ["1s"]},
    "supervisor": {"restart_backoff": ["0ms"], "watchdog": "30s"},
    "timeouts": dict.fromkeys(STAGES, PEERS),
    "log": {"format": "json", "level": "info"},
}

_TAMPER = """
import json, sys, apsw
path, sql, params = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
connection = apsw.Connection(path)
connection.set_busy_timeout(10000)
connection.execute(sql, params)
print(connection.changes())
connection.close()
"""


def running() -> tuple[Engine, ...]:
    """Engines that were started and not closed: what a failing test should tell about."""
    return tuple(_RUNNING)


def mail(
    *recipients: str,
    sender: str = "a@sender.test",
    subject: str = "news",
    text: str = "Good morning.\n",
) -> EmailMessage:
    """A small plain message."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, ", ".join(recipients), subject
    message.set_content(text)
    return message


def environment() -> dict[str, str]:
    """Ours, with paths that hold in any folder and nothing that configures Mailstrom."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("MAILSTROM_")}
    if "PYTHONPATH" in found:
        entries = found["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Engine:
    """A supervisor over one spool; start it, end it and start it again.

    Args:
        network: whom it asks and delivers to.
        folder: for spool, configuration and log.
        workers: delivery processes.
        settings: tables of the configuration, over the defaults of this module.

    Attributes:
        ms: the client on its spool.
        process: the last supervisor started, or None.
    """

    def __init__(
        self, network: Network, folder: Path, *, workers: int = 2, settings: Tables | None = None
    ) -> None:
        self.network = network
        self.folder = folder
        self.store = folder / "spool.db"
        self.config = folder / "mailstrom.toml"
        self.log_file = folder / "log.jsonl"
        self.workers = workers
        self.settings: Tables = settings or {}
        self.process: subprocess.Popen[bytes] | None = None
        self._past: list[subprocess.Popen[bytes]] = []
        self.configure(self.settings)
        self.ms = Mailstrom(self.store)
        _RUNNING.append(self)

    # Life

    def configure(self, settings: Tables) -> None:
        """Write the configuration file: these tables over the defaults."""
        tables: dict[str, dict[str, object]] = {name: dict(t) for name, t in _DEFAULTS.items()}
        tables["delivery"] |= {"port": self.network.port, "workers": self.workers}
        tables["dns"] = {
            "nameservers": [f"127.0.0.1:{self.network.dns.port}"],
            "allow_loopback": True,
            "timeout": NAMES,
        }
        for name, table in settings.items():
            tables.setdefault(name, {}).update(table)
        top = {"store": str(self.store), "hostname": "sender.test", **tables.pop("", {})}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in top.items()]
        for name, table in tables.items():
            lines.append(f"[{name}]\n")
            lines += [f"{key} = {json.dumps(value)}\n" for key, value in table.items()]
        # Replaced whole: a supervisor told to reload must never read half a file.
        fresh = self.config.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self.config)

    def start(
        self, *, cwd: Path | None = None, wait: bool = True, env: Mapping[str, str] | None = None
    ) -> Self:
        """Start a supervisor and wait until it says that every worker is ready.

        Args:
            cwd: where, instead of the engine's own folder.
            wait: False returns at once.
            env: its whole environment, instead of ``environment()``; one with faults in it, say.
        """
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd or self.folder,
                env=dict(env) if env is not None else environment(),
                start_new_session=True,
            )
        leash.hold(self.process.pid)
        self._past.append(self.process)
        if wait:
            self.wait_log("supervisor.ready", pid=self.process.pid)
        return self

    def command(self) -> list[str]:
        """The command line of a supervisor, as a user types it."""
        return [sys.executable, "-m", "mailstrom.supervisor", "--config", str(self.config)]

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        """The supervisor's exit code."""
        assert self.process is not None
        return self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """End the supervisor by TERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def kill_all(self) -> None:
        """SIGKILL to the supervisor and all its children at once."""
        for process in self._past:
            # the group is this supervisor's own session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE_S)
            leash.let_go(process.pid)

    def close(self) -> None:
        """End everything, drained where it still runs, and close the client."""
        if self in _RUNNING:
            _RUNNING.remove(self)
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            self.kill_all()
            self.ms.close()

    def __enter__(self) -> Self:
        """Start; what cannot start leaves no process behind."""
        try:
            return self.start()
        except BaseException as error:
            error.add_note(self.describe())
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything; an error learns what the spool and the log said."""
        if error is not None:
            error.add_note(self.describe())
        self.close()

    # Log

    def log(self, event: str | None = None, **fields: object) -> list[Line]:
        """Log lines so far with this event and these fields."""
        wanted = fields if event is None else {"event": event, **fields}
        return [
            line
            for line in self._lines()
            if all(line.get(name) == value for name, value in wanted.items())
        ]

    def _lines(self) -> Iterator[Line]:
        if not self.log_file.exists():
            return
        for raw in self.log_file.read_bytes().splitlines():
            try:
                line = json.loads(raw)
            except ValueError:  # a traceback, or a line that is being written
                line = None
            # What is left of a line after it was cut may be JSON, too.
            yield line if isinstance(line, dict) else {
                "event": "text", "text": raw.decode(errors="replace")
            }  # fmt: skip

    def wait_log(self, event: str, *, count: int = 1, **fields: object) -> list[Line]:
        """Wait until that many such lines were logged; fails at once if the supervisor ended."""

        def probe() -> list[Line] | None:
            over = self.process is not None and self.process.poll() is not None
            found = self.log(event, **fields)
            assert len(found) >= count or not over, f"the supervisor ended without {event}"
            return found if len(found) >= count else None

        return eventually(probe, DEADLINE_S, what=f"{count} x {event} {fields}")

    # Spool

    def send(self, *recipients: str, text: str = "Good morning.\n", **options: Any) -> str:
        """Send a small message to these addresses; options are those of ``Mailstrom.send``."""
        return self.ms.send(mail(*recipients, text=text), **options)

    def final(self, id: str) -> MessageStatus:
        """Wait until a message is final."""
        return self.ms.wait(id, DEADLINE_S)

    def rows(self, sql: str, *params: object) -> list[Any]:
        """Rows of a query on the views."""
        return self.ms.query(sql, params)

    def until(self, sql: str, *params: object, count: int = 1) -> list[Any]:
        """Wait until a query on the views has at least ``count`` rows."""
        return eventually(
            lambda: len(found := self.rows(sql, *params)) >= count and found,
            DEADLINE_S,
            what=f"{count} rows of {sql} {params}",
        )

    def attempts(self, id: str) -> list[Any]:
        """A message's attempts in order."""
        return self.rows("SELECT * FROM attempts WHERE message_id = ? ORDER BY id", id)

    def live(self, kind: str = "delivery") -> list[int]:
        """Process ids of the engine's living processes of a kind, by their rows."""
        rows = self.rows(
            "SELECT pid FROM workers WHERE kind = ? AND state NOT IN ('stopped', 'lost')", kind
        )
        return [row.pid for row in rows if alive(row.pid)]

    def pid_at(self, host: str) -> int:
        """The process that has a session open with a host; waits until there is one."""
        sql = (
            "SELECT w.pid FROM sessions AS s JOIN workers AS w ON w.id = s.worker"
            " WHERE s.host = ? AND s.ended_ms IS NULL ORDER BY s.started_ms DESC"
        )
        return int(self.until(sql, host)[0].pid)

    def tamper(self, sql: str, *params: object) -> int:
        """Change tables from another process, as a fault or the passing of time would.

        Returns:
            rows changed.
        """
        argv = [sys.executable, "-P", "-c", _TAMPER, str(self.store), sql, json.dumps(params)]
        ran = subprocess.run(
            argv, env=environment(), capture_output=True, text=True, check=True, timeout=DEADLINE_S
        )
        return int(ran.stdout)

    def age_route(self, domain: str) -> None:
        """Make what is known about a domain older than its TTL; nobody waits for that."""
        sql = "UPDATE domain SET expires_ms = 1, usable_ms = 1, retry_ms = 1 WHERE name = ?"
        assert self.tamper(sql, domain) == 1, f"{domain} is not in the shared cache"

    def expire_soon(self, *ids: str) -> None:
        """Move the end of these messages' time to half a second from now."""
        for id in ids:
            sql = "UPDATE message SET expires_ms = ? WHERE id = ?"
            assert self.tamper(sql, wall_ms() + 500, id) == 1, f"{id} is not there"

    # Reports

    def describe(self) -> str:
        """What the spool holds and what the log said last."""
        parts = [f"-- engine in {self.folder}"]
        for title, sql in _SHOWN.items():
            try:
                rows: Sequence[Any] = self.rows(sql)
            except Exception as error:  # the report of a failure must not hide it
                parts.append(f"{title}: {error!r}")
                continue
            parts.append(f"{title} (last {len(rows)}):")
            parts += [f"  {row}" for row in rows]
        lines = [_short(line) for line in self._lines()][-LOG_TAIL:]
        parts.append("log (last lines):")
        parts += [f"  {line}" for line in lines]
        return "\n".join(parts)


_UNTOLD = frozenset({"level", "message_id", "session_id", "worker_kind", "site"})


def _short(line: Line) -> str:
    told = " ".join(f"{name}={value}" for name, value in line.items() if name not in _UNTOLD)
    return told[:300]


_SHOWN = {
    "recipients": "SELECT message_id, address, status, reason, attempts, in_doubt, reply_code,"
    " reply_text FROM recipients ORDER BY message_id DESC LIMIT 12",
    "attempts": "SELECT recipient, number, stage, host, verdict, reason, in_doubt, reply_code,"
    " reply_text FROM attempts ORDER BY id DESC LIMIT 12",
    "sessions": "SELECT worker, host, messages, tls_reached, end_cause FROM sessions"
    " ORDER BY started_ms DESC LIMIT 8",
    "destinations": "SELECT site, queued, deferred, lanes, suspended_until_at, reason, last_reply"
    " FROM destinations LIMIT 8",
    "workers": "SELECT id, kind, pid, state, restarts FROM workers ORDER BY id DESC LIMIT 8",
}
