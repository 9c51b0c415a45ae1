"""One examination: facts from the store, this machine and a worker process, then all checks.

Nothing here waits without an end: the worker that looks at the network is started first, has a time
of its own and is killed beyond it; meanwhile the spool is looked at, and its questions end by the
clock, or, where the disk does not answer, without an answer (``apart``). Whatever cannot be found
out is a finding, never an exception.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import msgspec

from mailstrom import __version__, outside
from mailstrom.clock import wall_ms
from mailstrom.config import Config, to_json
from mailstrom.doctor import (
    clock,
    configuration,
    listener,
    log,
    machine,
    network,
    ports,
    queue,
    sharing,
    spool,
    tls,
)
from mailstrom.doctor import engine as engines
from mailstrom.doctor.apart import apart
from mailstrom.doctor.finding import Finding, Level, counted, note, ordered, problem
from mailstrom.errors import ConfigError
from mailstrom.storage import examine, require_shared, run_directory
from mailstrom.storage.examined import Examined
from mailstrom.supervisor.children import child_environment, working_directory
from mailstrom.types import iso_ms

CHECK_S = 5.0
"""For ``store check``; a larger spool is checked in part."""
NETWORK_S, PATIENCE_S = 9.0, 11.5
"""For the worker's looks, and until it is killed."""
SPOOL_S = 13.0
"""For all about the spool, the engine and the queue."""
AGAIN_S, NO_LATER_S = 2.0, 5.0
"""Before a second look at processes that seem to have gone; and after so long there is none."""
PROBE = "gmail.com"
"""Whose mail hosts are connected to: large, and up whenever the network is."""
_WORKER = "mailstrom_workers.outside"
_LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found.

    Args:
        store: the spool's name; None where nobody knows it.
        file: the configuration file; None without one.
        findings: worst first.
        network: whether the network was looked at.
    """

    at_ms: int
    seconds: float
    store: str | None
    file: str | None
    network: bool
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst."""
        return self.findings[0].level if self.findings else Level.OK

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "version": __version__,
            "at": iso_ms(self.at_ms),
            "seconds": round(self.seconds, 3),
            "store": self.store,
            "configuration": self.file,
            "network": self.network,
            "level": str(self.level),
            "summary": counted(self.findings),
            "findings": [one.to_dict() for one in self.findings],
        }


def examined(
    store: str | None,
    config: Config | None,
    errors: tuple[str, ...] = (),
    *,
    with_network: bool = True,
    probe: str = PROBE,
) -> Examination:
    """Examine an installation.

    Args:
        store: the spool's name; None where nobody knows it.
        config: the configuration in force; None where it is unusable.
        errors: why it is, a sentence each.
        with_network: whether to look at the network.
        probe: the domain whose mail hosts are connected to.
    """
    at_ms, began = wall_ms(), time.monotonic()
    worker = None
    if config is not None and (with_network or config.listener.bind):
        worker = _Worker(config, probe, with_network)
    try:
        findings = [*configuration.checks(config, errors)]
        findings += _bounded(store, config)
        if config is not None:
            findings += tls.checks(tls.look(config), config)
            certificate = listener.look(config)
            findings += listener.checks(certificate, config, at_ms)
            if worker is not None:
                running = engines.supervised(findings)
                findings += worker.findings(config, probe, certificate, running, at_ms)
    finally:
        if worker is not None:
            worker.end()
    if not with_network or config is None:
        why = "as asked for" if not with_network else "without a usable configuration"
        findings.append(note("outgoing.left", f"the network was not looked at, {why}"))
    return Examination(
        at_ms=at_ms,
        seconds=time.monotonic() - began,
        store=store,
        file=None if config is None else config.origin,
        network=with_network and config is not None,
        findings=tuple(ordered(findings)),
    )


def _bounded(store: str | None, config: Config | None) -> list[Finding]:
    """``_of_the_spool``, asked by a process that need not be waited for."""

    def ask() -> bytes:
        try:
            found = [*_of_the_spool(store, config)]
        except Exception as error:  # a fault of ours, or of a store of others
            found = [_unseen(f"{store} could not be looked at ({type(error).__name__}: {error})")]
        return json.dumps([one.to_dict() for one in found]).encode()

    said = apart(ask, SPOOL_S)
    if said:
        return [Finding(**{**one, "level": Level(one["level"])}) for one in json.loads(said)]
    if said is None:
        return [
            _unseen(
                f"a look at {store} did not end within {SPOOL_S:g} s: its disk, or the file server"
                " that it is on, does not answer"
            )
        ]
    return [_unseen(f"{store} could not be looked at: the process that tried it died")]


def _unseen(found: str) -> Finding:
    return problem(
        "spool.busy",
        found,
        "See the kernel's log ('dmesg'), and who else waits there: 'ps -eo pid,stat,wchan,args'"
        " shows D in the second column.",
    )


def _of_the_spool(store: str | None, config: Config | None) -> Iterator[Finding]:
    if store is None:
        yield note(
            "spool.found",
            "the spool was not looked at: without a usable configuration nobody knows which it is",
            "Name it: 'mailstrom doctor --store SPOOL'.",
        )
        return
    began = time.monotonic()
    try:
        require_shared(store)
        seen = examine(store, check_s=CHECK_S)
    except ConfigError as error:
        yield problem(
            "spool.kind", f"the spool cannot be looked at: {error}", "Name another with --store."
        )
        return
    if seen is None:
        yield note(
            "spool.found",
            f"a store of the kind of {store} cannot be looked at from outside",
            "'mailstrom store check' asks it.",
        )
        return
    yield from spool.checks(seen)
    yield from log.checks(seen)
    yield from clock.checks(seen.clock, machine.synchronised())
    if seen.files["database"].error is None:
        yield from sharing.checks(seen)
    yield from _of_the_rows(store, seen, config, began + NO_LATER_S)


def _of_the_rows(
    store: str, seen: Examined, config: Config | None, latest: float
) -> Iterator[Finding]:
    """What the rows say.

    Args:
        latest: a second look is begun no later (monotonic).
    """
    rows = seen.contents
    if rows is None:
        return
    now_ms = seen.clock.wall_ms
    engine = machine.engine(run_directory(store), rows, config)
    found = [*engines.checks(engine, rows, now_ms)]
    if engines.may_pass(engine, found) and time.monotonic() < latest:
        time.sleep(AGAIN_S)
        later = examine(store, check_s=0)
        if later is not None and later.contents is not None:
            rows, now_ms = later.contents, later.clock.wall_ms
            second = machine.engine(run_directory(store), rows, config)
            engine = engines.seen_again(engine, second)
            found = [*engines.checks(engine, rows, now_ms)]
    yield from found
    running = all(one.level is Level.OK for one in found if one.check == "engine.running")
    relay = config is not None and config.delivery.mode == "relay"
    yield from queue.checks(rows, now_ms, running=running, relay=relay)


class _Worker:
    """The process that looks at the network; started at once, heard later.

    Args:
        config: the configuration in force.
        probe: the domain whose mail hosts are connected to.
        with_network: whether it looks beyond the listener's ports.
    """

    def __init__(self, config: Config, probe: str, with_network: bool) -> None:
        self._with_network = with_network
        self._until = time.monotonic() + PATIENCE_S
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        package = _WORKER.partition(".")[0]
        if find_spec(package) is None:
            self._trouble = f"the engine's package {package!r} is not installed"
            return
        asked = outside.Question(
            config=msgspec.Raw(to_json(config)),
            probe=probe,
            seconds=NETWORK_S,
            network=with_network,
        )
        self._question = outside.encode(asked)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=child_environment(dict(os.environ), working_directory()),
            )
            assert self._process.stdin is not None
            self._process.stdin.write(self._question)  # shorter than a pipe takes at once
            self._process.stdin.close()
            self._process.stdin = None
        except OSError as error:
            self._trouble = f"its process cannot be started or talked to ({error})"

    def findings(
        self,
        config: Config,
        probe: str,
        certificate: listener.Certificate | None,
        running: bool | None,
        now_ms: int,
    ) -> Iterator[Finding]:
        """What it found, judged; waits for it, but not for ever.

        Args:
            certificate: the listener's, of its file.
            running: whether an engine has the listener's ports; None: it cannot be told.
        """
        seen = self._heard()
        if seen is None:
            check, what = "listener.looked", "the listener's ports"
            if self._with_network:
                check, what = "outgoing.looked", "the network"
            yield problem(
                check,
                f"{what} could not be looked at: {self._trouble}",
                "Install Mailstrom as a whole ('python -m pip install .' in its checkout), and see"
                " whether other processes can be started.",
            )
            return
        if self._with_network:
            yield from network.checks(seen, config, probe)
        yield from ports.checks(
            seen.ports,
            config,
            running=running,
            file=certificate,
            now_ms=now_ms,
            holder=ports.holder,
        )

    def _heard(self) -> outside.Outside | None:
        if self._process is None or self._trouble:
            return None
        try:
            out, err = self._process.communicate(timeout=max(self._until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self._trouble = f"no answer within {PATIENCE_S:g} s"
            return None
        if self._process.returncode or len(out) > _LONGEST_ANSWER:
            last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no word"]
            self._trouble = f"its process ended with {self._process.returncode}: {last[0]}"
            return None
        try:
            return outside.outside(out)
        except msgspec.DecodeError as error:
            self._trouble = f"its answer cannot be read ({error})"
            return None

    def end(self) -> None:
        """See that nothing of it is left."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
