"""Mailstrom under measurement: its spool, its engine as a user starts it, and its applications.

Contract. The engine is ``python -m mailstrom.supervisor`` with a configuration file, in the state
it ships in but for the relay or DNS server it is pointed at; it logs at its usual level to a file.
Applications are processes of their own (``programs/sender.py``). Without uvloop is: uvloop cannot
be imported in any of these processes, whatever the product does to choose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mailstrom import Mailstrom
from tests.support.sockets import eventually
from tools.bench.processes import Started
from tools.bench.stations import PROGRAMS, said

READY_S = 60.0
SEND_S = 900.0

# Neither found nor imported, by whichever way the product asks; as if it were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "uvloop" else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if one is PathFinder else one for one in sys.meta_path]
"""


def environ(uvloop: bool | None, home: Path) -> dict[str, str]:
    """Environment of the engine and of applications.

    Args:
        uvloop: False: it cannot be imported; True: it must be there; None: whatever is.
        home: a directory of the run, for what hides it.

    Raises:
        RuntimeError: uvloop is asked for and not installed.
    """
    chosen = dict(os.environ)
    if uvloop and not find_spec("uvloop"):
        raise RuntimeError("uvloop is not installed here; leave --uvloop out or install it")
    if uvloop is False:
        hidden = home / "without"
        hidden.mkdir(exist_ok=True)
        (hidden / "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
        chosen["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(hidden), chosen.get("PYTHONPATH", "")])
        )
    return chosen


def toml(settings: Mapping[str, Mapping[str, object]]) -> str:
    """Settings as a configuration file; the section "" comes first, without a head."""
    lines = []
    for section, keys in sorted(settings.items()):
        if section:
            lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def relay_to(port: int, connections: int = 20) -> dict[str, dict[str, object]]:
    """Settings that send everything to a port of this machine."""
    return {
        "delivery": {"mode": "relay"},
        "relay": {"hosts": [f"127.0.0.1:{port}"], "tls": "none"},
        "sites": {"connections": connections},
    }


class Engine:
    """A supervisor and its workers on a spool, from :meth:`start` to :meth:`stop`.

    Args:
        home: directory of the run.
        store: the spool.
        settings: sections of the configuration; keys here go over ours.
        workers: delivery processes.
        uvloop: see :func:`environ`.
        more: variables of its environment.
    """

    def __init__(
        self,
        home: Path,
        store: Path,
        settings: Mapping[str, Mapping[str, object]],
        *,
        workers: int = 2,
        uvloop: bool | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        merged: dict[str, dict[str, object]] = {
            "": {"store": str(store), "hostname": "out.bench.test"},
            "log": {"level": "info", "format": "json"},
        }
        merged |= {name: dict(keys) for name, keys in settings.items()}
        merged["delivery"] = {"workers": workers, **merged.get("delivery", {})}
        self._config = home / "mailstrom.toml"
        self._config.write_text(toml(merged), encoding="utf-8")
        self._log = home / "engine.log"
        self._environ = {**environ(uvloop, home), **(more or {})}
        self._home = home
        self._started: Started | None = None

    def roots(self) -> list[int]:
        """The supervisor's id, while it runs."""
        return [self._started.pid] if self._started else []

    def start(self) -> None:
        """Starts it, without waiting."""
        self._log.unlink(missing_ok=True)
        self._started = Started(
            [sys.executable, "-P", "-m", "mailstrom.supervisor", "--config", self._config],
            environ=self._environ, cwd=self._home, log=self._log,
        )  # fmt: skip

    def ready(self) -> float:
        """Waits until every worker is ready; seconds that took.

        Raises:
            RuntimeError: it ended instead.
        """
        began = time.monotonic()
        started = self._started
        assert started is not None

        def told() -> bool:
            if started.process.poll() is not None:
                raise RuntimeError(f"the engine ended: {started.words()}")
            with self._log.open("rb") as log:  # among the first lines, whatever follows
                return b'"supervisor.ready"' in log.read(1 << 20)

        eventually(told, READY_S, what="supervisor.ready")
        return time.monotonic() - began

    def words(self) -> str:
        """The end of what it logged, for an error's text."""
        return self._started.words() if self._started else ""

    def stop(self) -> int:
        """Ends it by TERM; its exit status, 0 where it was not running."""
        started, self._started = self._started, None
        return started.stop() if started else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What applications did.

    Args:
        begin: when the first began, monotonic.
        end: when the last was done.
        waits_ms: of every call, sorted.
    """

    begin: float
    end: float
    messages: int
    cpu_s: float
    waits_ms: Sequence[float]

    @property
    def rate(self) -> float:
        """Messages a second, all processes together."""
        return self.messages / max(1e-6, self.end - self.begin)

    def wait_ms(self, share: float) -> float:
        """The wait that so large a share of the calls did not exceed."""
        if not self.waits_ms:
            return 0.0
        return self.waits_ms[min(len(self.waits_ms) - 1, int(share * len(self.waits_ms)))]


class Applications:
    """Processes that hand mail over, all at once, from :meth:`go` to :meth:`join`.

    Args:
        plans: one for each process, see ``programs/sender.py``.
    """

    def __init__(
        self, home: Path, plans: Sequence[Mapping[str, object]], *, uvloop: bool | None = None
    ) -> None:
        chosen = environ(uvloop, home)
        self._started = [
            Started(
                [sys.executable, "-P", PROGRAMS / "sender.py", json.dumps(plan)],
                environ=chosen, cwd=home, piped=True, log=home / "sender.log",
            )
            for plan in plans
        ]  # fmt: skip
        try:
            for one in self._started:
                said(one)
        except BaseException:
            self.close()
            raise

    def go(self) -> None:
        """Lets them begin."""
        for one in self._started:
            assert one.process.stdin is not None
            one.process.stdin.write(b"\n")
            one.process.stdin.flush()

    def join(self) -> list[Handed]:
        """Waits for them; what each did, in the order of the plans."""
        found = []
        try:
            for one in self._started:
                out, _ = one.process.communicate(timeout=SEND_S)
                if one.process.returncode:
                    raise RuntimeError(f"an application failed: {one.words()}")
                told = json.loads(out)
                told["waits_ms"] = sorted(told["waits_ms"])
                found.append(Handed(**told))
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"an application took more than {SEND_S:g} s") from late
        finally:
            self.close()
        return found

    def close(self) -> None:
        """Ends those that are left."""
        for one in self._started:
            one.stop()


def together(parts: Sequence[Handed]) -> Handed:
    """What several did, as one."""
    return Handed(
        begin=min(part.begin for part in parts),
        end=max(part.end for part in parts),
        messages=sum(part.messages for part in parts),
        cpu_s=sum(part.cpu_s for part in parts),
        waits_ms=sorted(wait for part in parts for wait in part.waits_ms),
    )


def hand_over(home: Path, plans: Sequence[Mapping[str, object]]) -> Handed:
    """Runs applications to their end; what they did together."""
    applications = Applications(home, plans)
    applications.go()
    return together(applications.join())


def fill(home: Path, store: Path, messages: int, **plan: object) -> Handed:
    """Puts messages into a spool by ``send_many``, from one process."""
    return hand_over(
        home, [{"store": str(store), "number": 0, "verb": "many", "messages": messages, **plan}]
    )


def undelivered(store: Path) -> int:
    """How many recipients the spool does not say were delivered."""
    with Mailstrom(store, timeout=30) as ms:
        return int(
            ms.query("SELECT count(*) AS n FROM recipients WHERE status != 'delivered'")[0].n
        )
