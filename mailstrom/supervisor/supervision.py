"""The parent's loop: obey signals, hear children, reap, restart, watch, drain, end.

One thread, one ``poll`` over the signal wake-up pipe and the children's pipes. Signal handlers only
count; the kernel's wake-up byte turns the loop, which does the work. Rules:

* A child that dies unasked is started again: at once the first time, then after
  ``policy.restart``'s delay, never twice within ``Timing.start_gap_s`` in one slot. The janitor is
  told the dead process id, so that its claims lapse at once.
* The watchdog judges silence by this process's own monotonic clock. When this loop itself was late
  (stopped, starved, machine asleep) it has no right to judge: every child gets a fresh period.
* First TERM or INT: nothing is accepted any more and listeners drain; deliveries with the last of
  them, or ``Timing.listeners_s`` later; the janitor after the last of all. At the drain timeout
  they cut their connections themselves; what outlives it by ``Timing.grace_s`` is killed; exit 0,
  or 1 where a child was lost on the way. Second: all stop, what they know of the wire written;
  killed after ``Timing.stop_s``; exit 1. Third: killed now.
* HUP: a configuration that may be adopted goes to every child; any other changes nothing. What only
  a restart can change is logged.
* Where its lock file was deleted it takes the name again; where another supervisor was faster it
  drains, says whom it leaves the spool to, and exits 75.

No SMTP, no DNS, no spool: this process must not be able to fail for a reason that lies in a mail.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from mailstrom import __version__, events
from mailstrom.clock import monotonic_ms
from mailstrom.config import Config, restart_needed, to_json, warnings, with_start_kept
from mailstrom.control import ControlError, Drain, Lapse, Reload, Stop, encode_command
from mailstrom.errors import ConfigError
from mailstrom.supervisor.children import Child, Slot, child_environment, spawn, working_directory
from mailstrom.supervisor.instance import Instance
from mailstrom.supervisor.signals import Signals

DELIVERY = "delivery"
LISTENER = "listener"
JANITOR = "janitor"

EXIT_DRAINED = 0
EXIT_STOPPED = 1
EXIT_LOST = 1
EXIT_SUPERSEDED = 75

_CLEAN_EXIT = "exit 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The parent's own patience, in seconds; what users may set is in the configuration.

    Args:
        ready_s: from a child's start to its ready report.
        grace_s: beyond ``[delivery] drain_timeout``, for what is cut then to be written down, and
            the interpreter's end.
        listeners_s: so long deliveries go on while listeners drain: a client that takes its time
            over its content must not take theirs.
        stop_s: from the second TERM to SIGKILL.
        start_gap_s: between two starts in one slot.
        window_s: deaths longer ago are forgotten by the back-off.
        tick_s: the loop turns at least this often.
        same_s: a TERM or INT so soon after the last that counted is no further one.
    """

    ready_s: float = 60.0
    grace_s: float = 5.0
    listeners_s: float = 2.0
    stop_s: float = 2.0
    start_gap_s: float = 1.0
    window_s: float = 600.0
    tick_s: float = 1.0
    same_s: float = 1.0


class _Phase(Enum):
    RUNNING = auto()
    DRAINING = auto()
    STOPPING = auto()


class Supervision:
    """The children of one supervisor and everything that happens to them.

    Args:
        config: the effective configuration.
        workers: number of delivery children.
        store: absolute path of the spool.
        instance: the lock, held.
        commands: argv by kind of child.
        listening: sockets for the listeners, which exist where there are any; closed at the drain.
        reload: loads the configuration anew, given the one in force, which stays if it raises.
        timing: the parent's own patience.
    """

    def __init__(
        self,
        config: Config,
        workers: int,
        *,
        store: str,
        instance: Instance,
        commands: Mapping[str, Sequence[str]],
        listening: Sequence[socket.socket] = (),
        reload: Callable[[Config], Config],
        timing: Timing,
    ) -> None:
        self._config = config
        self._at_start = config
        self._store = store
        self._instance = instance
        self._superseded = False
        self._blind: str | None = None
        self._commands = commands
        self._listening = listening
        self._reload = reload
        self._timing = timing
        self._environment = child_environment(dict(os.environ), working_directory())
        self._signals = Signals(timing.same_s)
        self._phase = _Phase.RUNNING
        self._lost = 0
        self._announced = False
        self._deadline_s = 0.0
        self._deliveries_s: float | None = None  # when deliveries are to drain at the latest
        self._janitor_told = False
        now_s = _now_s()
        self._turned_s = now_s
        self._janitor = Slot(kind=JANITOR, number=0, start_s=now_s)
        self._deliveries = [
            Slot(kind=DELIVERY, number=number, start_s=now_s) for number in range(workers)
        ]
        listeners = config.listener.workers if listening else 0
        self._listeners = [
            Slot(kind=LISTENER, number=number, start_s=now_s) for number in range(listeners)
        ]
        self._slots = [self._janitor, *self._deliveries, *self._listeners]

    def run(self) -> int:
        """Supervise until told to end.

        Returns:
            0 after a drain, 1 where it lost a child, 75 where another supervisor was the reason, 1
            after a stop.
        """
        _warn(self._config)
        with self._signals.installed():
            while True:
                self._obey()
                self._guard()
                self._reap()
                if self._phase is not _Phase.RUNNING and not self._living():
                    break
                self._start_due()
                self._end_due()
                self._hear()
                self._watch()
        code = self._exit_code()
        events.supervisor_stopped(exit_code=code, lost=self._lost, pid=os.getpid())
        return code

    def _exit_code(self) -> int:
        if self._phase is _Phase.STOPPING:
            return EXIT_STOPPED
        if self._superseded:  # whoever starts it again must know that, whatever else went wrong
            return EXIT_SUPERSEDED
        return EXIT_LOST if self._lost else EXIT_DRAINED

    # Signals

    def _obey(self) -> None:
        self._signals.drain_wakeups()
        if self._signals.reloads:
            self._signals.reloads = 0
            if self._phase is _Phase.RUNNING:
                self._adopt()
        if self._signals.ends >= 1 and self._phase is _Phase.RUNNING:
            self._drain()
        if self._signals.ends >= 2 and self._phase is _Phase.DRAINING:
            self._stop()
        if self._signals.ends >= 3:
            self._deadline_s = _now_s()

    def _guard(self) -> None:
        """See that no other supervisor serves this spool, whatever became of the lock file."""
        if self._phase is not _Phase.RUNNING:
            return
        path = self._instance.path
        try:
            standing = self._instance.look()
        except OSError as error:
            text = f"{path}: cannot be locked ({error}): bring its directory back"
            if text != self._blind:  # said once: this is asked at every turn
                self._blind = text
                events.engine_failed(where="lock", error=text, pid=os.getpid())
            return
        self._blind = None
        rival = standing.rival
        if standing.retaken:
            text = f"{path} was deleted or replaced, and is taken again: leave it alone"
            events.engine_failed(where="lock", error=text, pid=os.getpid())
        elif rival is not None:
            text = (
                f"{path} was deleted or replaced, and another supervisor has it now: pid"
                f" {rival.pid} on host {rival.host}; this one drains and leaves the spool to it"
            )
            events.engine_failed(where="lock", error=text, pid=os.getpid())
            self._superseded = True
            self._drain()

    def _drain(self) -> None:
        self._phase = _Phase.DRAINING
        timeout_s = self._config.delivery.drain_timeout
        self._deliveries_s = _now_s() + (self._timing.listeners_s if self._listeners else 0.0)
        self._deadline_s = self._deliveries_s + timeout_s + self._timing.grace_s
        events.supervisor_draining(
            signal=self._signals.first_end, timeout_s=timeout_s, pid=os.getpid()
        )
        for slot in self._slots:
            slot.start_s = None
        for bound in self._listening:
            bound.close()  # once the listeners have closed theirs, who still waits is told
        for slot in self._listeners:
            if slot.child is not None:
                slot.child.send(Drain())
        self._drain_deliveries()

    def _drain_deliveries(self) -> None:
        """Once the listeners have ended, or have taken their time."""
        now_s = _now_s()
        listening = any(slot.child for slot in self._listeners)
        if self._deliveries_s is None or (listening and now_s < self._deliveries_s):
            return
        self._deliveries_s = None
        for slot in self._deliveries:
            if slot.child is not None:
                slot.child.send(Drain())

    def _stop(self) -> None:
        self._phase = _Phase.STOPPING
        for bound in self._listening:
            bound.close()
        self._deliveries_s = None
        self._deadline_s = _now_s() + self._timing.stop_s
        for child in self._living():
            child.send(Stop())

    def _adopt(self) -> None:
        """Take a freshly loaded configuration, whole or not at all."""
        try:
            # What only a restart brings into force may be taken back out of the file.
            config = self._reload(with_start_kept(self._at_start, self._config))
            command = Reload(config=self._values(config))
            encode_command(command)  # raises where it is too long: before any child has it
        except Exception as error:  # a file can be broken in ways that nobody thought of
            known = isinstance(error, ConfigError | ControlError | OSError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            events.config_rejected(error=text, file=self._config.origin)
            return
        for child in self._living():
            child.send(command)
        levels = logging.getLevelNamesMapping()
        before, self._config = self._config, config
        quieter = levels[config.log.level.upper()] > levels[before.log.level.upper()]
        if not quieter:
            events.configure(config.log.level, config.log.format)
        events.config_reloaded(
            file=config.origin, restart_needed=restart_needed(self._at_start, config) or None
        )
        if quieter:  # only now: it must not swallow the line that tells of it
            events.configure(config.log.level, config.log.format)
        _warn(config)

    # Children: end and start

    def _reap(self) -> None:
        for slot in self._slots:
            child = slot.child
            cause = None if child is None else child.reap()
            if child is not None and cause is not None:
                slot.child = None
                if child.killed is not None:
                    cause = f"{cause}: {child.killed}"
                if self._phase is _Phase.RUNNING or cause != _CLEAN_EXIT:
                    self._lose(slot, child.pid, cause)

    def _lose(self, slot: Slot, pid: int, cause: str) -> None:
        self._lost += self._phase is _Phase.DRAINING
        # A stop asks nobody to finish, so an end by force is what was asked for.
        ended = events.worker_stopped if self._phase is _Phase.STOPPING else events.worker_lost
        ended(kind=slot.kind, slot=slot.number, pid=pid, cause=cause)
        if slot is not self._janitor and self._janitor.child is not None and pid:
            self._janitor.child.send(Lapse(pid=pid))
        if self._phase is _Phase.RUNNING:
            delay_s = slot.lost(
                _now_s(),
                self._config.supervisor.restart_backoff,
                window_s=self._timing.window_s,
                gap_s=self._timing.start_gap_s,
            )
            events.worker_restarting(
                kind=slot.kind,
                slot=slot.number,
                delay_s=round(delay_s, 3),
                exits=len(slot.exits_s),
            )

    def _start_due(self) -> None:
        for slot in self._slots:
            now_s = _now_s()
            if slot.start_s is None or slot.start_s > now_s:
                continue
            slot.restarts += slot.started_s is not None
            slot.started_s, slot.start_s = now_s, None
            try:
                slot.child = spawn(
                    self._commands[slot.kind],
                    slot=slot,
                    store=self._store,
                    config=self._values(self._config),
                    environment=self._environment,
                    now_s=now_s,
                    sockets=self._sockets(slot),
                )
            except (OSError, ControlError) as error:
                self._lose(slot, 0, f"could not start: {error}")
                continue
            events.worker_started(
                kind=slot.kind, slot=slot.number, pid=slot.child.pid, restarts=slot.restarts
            )

    def _end_due(self) -> None:
        """While draining or stopping: the janitor's turn, and the end of patience."""
        if self._phase is _Phase.RUNNING:
            return
        if self._phase is _Phase.DRAINING:
            self._drain_deliveries()
        now_s = _now_s()
        janitor = self._janitor.child
        if (
            self._phase is _Phase.DRAINING
            and not self._janitor_told
            and janitor is not None
            and not any(slot.child for slot in self._working)
        ):
            janitor.send(Drain())
            self._janitor_told = True
            self._deadline_s = max(self._deadline_s, now_s + self._timing.grace_s)
        if now_s >= self._deadline_s:
            spared = self._phase is _Phase.DRAINING and not self._janitor_told
            for slot in self._working if spared else self._slots:
                if slot.child is not None and slot.child.killed is None:
                    slot.child.kill(f"killed after the {self._phase.name.lower()} timeout")

    # Children: life

    def _watch(self) -> None:
        # Judged at the time of the last hearing, not now: this process may have been stopped in
        # between, and then what the children said meanwhile is still unread.
        now_s = self._turned_s
        for slot in self._slots:
            child = slot.child
            if child is None or child.killed is not None:
                continue
            reason = child.overdue(
                now_s,
                watchdog_s=self._config.supervisor.watchdog,
                ready_s=self._timing.ready_s,
            )
            if reason is not None:
                silent_s = round(now_s - child.heard_s, 3)
                events.watchdog_killed(
                    kind=slot.kind, pid=child.pid, slot=slot.number, silent_s=silent_s
                )
                child.kill(reason)

    def _hear(self) -> None:
        """Wait for whatever comes first, then take in what the children say."""
        poller = select.poll()
        poller.register(self._signals.wake_fd, select.POLLIN)
        for child in self._living():
            if child.listening:
                poller.register(child.status_fd, select.POLLIN)
            if child.unsent:
                poller.register(child.control_fd, select.POLLOUT)
        patience_s = self._patience_s()
        poller.poll(patience_s * 1000)
        now_s = _now_s()
        late = now_s - self._turned_s > patience_s + self._config.supervisor.watchdog / 2
        self._turned_s = now_s
        for child in self._living():
            if late:
                child.heard_s = now_s
            child.flush()
            if child.listening:
                try:
                    child.hear(now_s)
                except ControlError as error:
                    child.kill(str(error))
        self._announce()

    def _announce(self) -> None:
        if self._announced or self._phase is not _Phase.RUNNING:
            return
        if all(slot.child is not None and slot.child.ready for slot in self._slots):
            self._announced = True
            events.supervisor_ready(
                workers=len(self._deliveries),
                pid=os.getpid(),
                store=self._store,
                version=__version__,
                config=self._config.origin,
            )

    def _patience_s(self) -> float:
        now_s = _now_s()
        tick_s = min(self._timing.tick_s, self._config.supervisor.watchdog / 4)
        starts_s = [slot.start_s - now_s for slot in self._slots if slot.start_s is not None]
        ends_s = [] if self._phase is _Phase.RUNNING else [self._deadline_s - now_s]
        if self._deliveries_s is not None:
            ends_s.append(self._deliveries_s - now_s)
        # What is past is done already: the killed wake us by SIGCHLD, and nothing is worth a spin.
        return min(tick_s, *(wait_s for wait_s in (*starts_s, *ends_s) if wait_s > 0), tick_s)

    @property
    def _working(self) -> list[Slot]:
        """All but the janitor, which has the last word."""
        return [*self._deliveries, *self._listeners]

    def _sockets(self, slot: Slot) -> list[int]:
        return [bound.fileno() for bound in self._listening] if slot.kind == LISTENER else []

    def _living(self) -> list[Child]:
        return [slot.child for slot in self._slots if slot.child is not None]

    def _values(self, config: Config) -> dict[str, object]:
        # A child that is started anew gets the sockets of the start: it has to read them so.
        in_force = with_start_kept(self._at_start, config)
        values: dict[str, object] = json.loads(to_json(in_force))
        # Children stand in another folder, and none may ever be sent to another spool.
        return {**values, "store": self._store}


def _warn(config: Config) -> None:
    """Say what is usable and unwise: who reads the log may never have run 'config check'."""
    for sentence in warnings(config):
        events.config_warned(advice=sentence, file=config.origin)


def _now_s() -> float:
    return monotonic_ms() / 1000
