"""The engine: does it run, is each of its processes alive, and may each open what it needs?

Pure. Life is judged by locks, as everywhere: a process whose lock is free has ended, whatever its
row says. The heartbeat in a row is written every five seconds; one that is held by a lock and stays
out belongs to a process that stands still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mailstrom.doctor.finding import (
    Finding,
    Level,
    Scalar,
    note,
    ok,
    plural,
    problem,
    span,
    warning,
)
from mailstrom.storage.examined import Contents, ProcessFacts

BEAT_MS = 30_000
OWN_FILES, MOST_LOOKUP_FILES = 64, 4096
"""Descriptors of a worker beside those for connections, and as many for lookups, up to so many."""
OFTEN = 5
_START = "Start it: 'mailstrom serve', or 'systemctl start mailstrom' where it is a service."
_LOG = "Read why in the engine's log ('worker.lost', 'engine.failed')."


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """An engine process: its row, and what the system says of it.

    Args:
        held: whether its lock is held: it lives.
        stopped: whether it was stopped by a signal.
        files, most_files: descriptors that it has open and may have; None where nobody tells.
    """

    row: ProcessFacts
    held: bool
    stopped: bool = False
    files: int | None = None
    most_files: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What the system says of an engine.

    Args:
        visible: whether its locks may be looked at by this user.
        supervisor: who holds the supervisor's lock, for a sentence; None: nobody.
        stopped: pid of a supervisor that was stopped by a signal; None: it was not, for all we see.
        janitor: whether somebody has the janitor's role.
        wanted: delivery workers of the configuration; None where it cannot be read.
        connections: that a worker may have open.
        files: descriptors that a worker of this user would have; None: without a limit.
        listeners: processes that are to take mail by SMTP.
        installed_ms: when this Mailstrom was installed; 0: unknown.
    """

    visible: bool
    supervisor: str | None
    janitor: bool
    processes: tuple[Process, ...]
    wanted: int | None
    connections: int | None
    files: int | None
    listeners: int = 0
    installed_ms: int = 0
    stopped: int | None = None


def checks(engine: Engine, rows: Contents, now_ms: int) -> Iterator[Finding]:
    """All about the engine."""
    alive = [one for one in engine.processes if _lives(one, engine, now_ms)]
    delivering = [one for one in alive if one.row.kind == "delivery"]
    if not alive:
        yield _none_runs(engine, rows, now_ms)
    else:
        yield from _running(engine, alive, delivering)
        yield from _listening(engine, alive)
        yield from _gone(engine, now_ms)
        yield from _silent(alive, now_ms)
        yield from _supervisor(engine)
        yield from _older(engine, alive)
    if rows.lost_lately >= OFTEN or any(one.row.restarts >= OFTEN for one in alive):
        most = max((one.row.restarts for one in alive), default=0)
        yield warning(
            "engine.restarts",
            f"{plural(rows.lost_lately, 'process', 'es')} of the engine died within a day"
            f" (restarts of one place: up to {most})",
            f"{_LOG} 'signal 9' is often the kernel's memory killer: 'dmesg | grep -i oom'.",
            lost=rows.lost_lately,
            restarts=most,
        )
    yield from _descriptors(engine, delivering)


def may_pass(engine: Engine, found: Sequence[Finding]) -> bool:
    """Whether a second look is worth its while: a restart looks like this, too, for a moment.

    Rows and locks are not looked at in the same instant: a process that ended in between has a row
    that says ready and a free lock, and its successor no row yet.
    """
    passing = {"engine.gone", "engine.janitor"}
    if engine.supervisor is not None:
        passing.add("engine.running")
    return any(one.check in passing and one.level is not Level.OK for one in found)


def seen_again(first: Engine, second: Engine) -> Engine:
    """The second look, without processes that had not ended at the first and have ended since."""
    ended = {one.row.worker for one in first.processes if not one.held}
    left = [one for one in second.processes if one.held or one.row.worker in ended]
    return replace(second, processes=tuple(left))


def _lives(one: Process, engine: Engine, now_ms: int) -> bool:
    if engine.visible:
        return one.held
    return now_ms - one.row.heartbeat_ms < BEAT_MS


def _none_runs(engine: Engine, rows: Contents, now_ms: int) -> Finding:
    waiting = rows.unsent
    evidence: dict[str, Scalar] = {
        "waiting": waiting,
        "left_behind": len(engine.processes),
        **_supervised(engine),
    }
    if engine.supervisor is not None:
        return warning(
            "engine.running",
            f"the supervisor runs ({engine.supervisor}) and none of its processes does",
            f"{_LOG} It starts them again with growing pauses.",
            **evidence,
        )
    if rows.copied_ms is not None:
        return warning(
            "engine.running",
            "no engine runs, and none would send from this copy",
            "See the finding about the copy; an engine is of use once it is adopted.",
            **evidence,
        )
    died = ""
    if engine.processes:
        died = f"; {plural(len(engine.processes), 'process', 'es')} of it died without a word"
    if rows.oldest_due_ms is not None and rows.oldest_due_ms <= now_ms:
        return problem(
            "engine.running",
            f"no engine runs{died}, and mail has been due for {span(now_ms - rows.oldest_due_ms)}"
            f" ({plural(waiting, 'recipient')} waiting)",
            _START,
            due_ms=rows.oldest_due_ms,
            **evidence,
        )
    return warning(
        "engine.running", f"no engine runs{died}; nothing is due yet", _START, **evidence
    )


def _supervised(engine: Engine) -> dict[str, Scalar]:
    """Whether there is a supervisor, where that can be seen."""
    return {"supervised": engine.supervisor is not None} if engine.visible else {}


def supervised(found: Sequence[Finding]) -> bool | None:
    """Whether an engine runs that has the listener's ports; None: it cannot be told."""
    for one in found:
        if one.check == "engine.running":
            told = one.evidence.get("supervised")
            return None if told is None else bool(told)
    return None


def _running(
    engine: Engine, alive: Sequence[Process], delivering: Sequence[Process]
) -> Iterator[Finding]:
    evidence: dict[str, Scalar] = {
        "delivery": len(delivering),
        "processes": len(alive),
        "wanted": engine.wanted,
        **_supervised(engine),
    }
    by = f"supervisor {engine.supervisor}" if engine.supervisor else "an engine in an application"
    wanted = engine.wanted or 0
    if engine.supervisor is not None and len(delivering) < wanted:
        yield (problem if not delivering else warning)(
            "engine.running",
            f"{len(delivering)} of {wanted} delivery workers run under {by}",
            f"{_LOG} A change of [delivery] workers needs a restart of the engine.",
            **evidence,
        )
    elif not delivering:
        yield problem("engine.running", "no delivery worker runs", f"{_LOG} {_START}", **evidence)
    else:
        sessions = sum(one.row.sessions for one in delivering)
        yield ok(
            "engine.running",
            f"{plural(len(delivering), 'delivery worker')} with"
            f" {plural(sessions, 'connection')} ({by})",
            **evidence,
        )
    if engine.visible and not engine.janitor:
        yield warning(
            "engine.janitor",
            "nobody has the janitor's role: claims of the dead do not lapse, nothing expires, the"
            " log is not emptied",
            f"It is taken within seconds; if it stays so, restart the engine. {_LOG}",
        )
    elif engine.visible:
        yield ok("engine.janitor", "somebody has the janitor's role")


def _listening(engine: Engine, alive: Sequence[Process]) -> Iterator[Finding]:
    """Who is ready has the addresses: the supervisor bound them before it began."""
    listening = [one for one in alive if one.row.kind == "listener"]
    evidence: dict[str, Scalar] = {"listeners": len(listening), "wanted": engine.listeners}
    if engine.supervisor is None or not (listening or engine.listeners):
        return
    if len(listening) < engine.listeners:
        yield (warning if listening else problem)(
            "engine.listeners",
            f"{len(listening)} of {engine.listeners} listeners run: mail that comes by SMTP"
            f" {'waits longer' if listening else 'is not taken'}",
            f"{_LOG} A change of [listener] bind or workers needs a restart of the engine.",
            **evidence,
        )
    else:
        sessions = sum(one.row.sessions for one in listening)
        yield ok(
            "engine.listeners",
            f"{plural(len(listening), 'listener')} with {plural(sessions, 'connection')}",
            **evidence,
        )


def _gone(engine: Engine, now_ms: int) -> Iterator[Finding]:
    gone = [one for one in engine.processes if not _lives(one, engine, now_ms)]
    for one in gone:
        row = one.row
        yield warning(
            "engine.gone",
            f"{row.kind} worker {row.worker} (pid {row.pid} on {row.host}) is gone, with"
            f" {plural(row.lanes, 'lane')} and {plural(row.recipients, 'claimed recipient')}",
            "The janitor takes them back within seconds; if this stays, restart the engine."
            f" {_LOG}",
            worker=row.worker,
            pid=row.pid,
        )


def _silent(alive: Sequence[Process], now_ms: int) -> Iterator[Finding]:
    for one in alive:
        row, silent_ms = one.row, now_ms - one.row.heartbeat_ms
        if silent_ms <= BEAT_MS and not one.stopped:
            continue
        who = f"{row.kind} worker {row.worker} (pid {row.pid} on {row.host})"
        lets_go = (
            f"It was stopped by a signal: 'kill -CONT {row.pid}' lets it go on."
            if one.stopped
            else "It lives and stands still: a disk that hangs, or a machine that swaps"
            f" ('cat /proc/{row.pid}/stack' as root tells)."
        )
        silence = f"gave no sign of life for {span(silent_ms)}"
        if one.stopped:
            silence = f"stands still; its last sign of life came {span(silent_ms)} ago"
        yield problem(
            "engine.heartbeat",
            f"{who} {silence}",
            f"{lets_go} The supervisor's watchdog ends it after [supervisor] watchdog.",
            worker=row.worker,
            pid=row.pid,
            silent_ms=silent_ms,
            stopped=one.stopped,
        )


def _supervisor(engine: Engine) -> Iterator[Finding]:
    if engine.stopped is not None:
        yield warning(
            "engine.heartbeat",
            f"the supervisor ({engine.supervisor}) stands still: mail goes out, and nobody replaces"
            " a worker that dies",
            f"It was stopped by a signal: 'kill -CONT {engine.stopped}' lets it go on.",
            pid=engine.stopped,
            stopped=True,
        )


def _older(engine: Engine, alive: Sequence[Process]) -> Iterator[Finding]:
    oldest_ms = min(one.row.started_ms for one in alive)
    if 0 < oldest_ms < engine.installed_ms:
        yield note(
            "engine.older",
            "the engine was started before this Mailstrom was installed, and runs what was there"
            " before",
            "Restart it: 'systemctl restart mailstrom', or TERM and 'mailstrom serve'.",
            started_ms=oldest_ms,
        )


def _descriptors(engine: Engine, delivering: Sequence[Process]) -> Iterator[Finding]:
    if engine.connections is None:
        return
    connections = engine.connections
    needed = connections + min(connections, MOST_LOOKUP_FILES) + OWN_FILES
    limits = [one.most_files for one in delivering if one.most_files is not None]
    least = min(limits, default=engine.files)
    if least is None:
        return
    whose = "a delivery worker" if limits else "a process of this user"
    used = max((one.files for one in delivering if one.files is not None), default=None)
    evidence: dict[str, Scalar] = {"limit": least, "needed": needed, "open": used}
    if least < needed:
        yield warning(
            "engine.descriptors",
            f"{whose} may open {least:,} files, and {engine.connections:,} connections"
            f" ([delivery] max_connections) need {needed:,}",
            f"Raise the limit ('LimitNOFILE={needed * 2}' in the unit, 'ulimit -n {needed * 2}' in"
            " a shell), or lower max_connections.",
            **evidence,
        )
    else:
        yield ok(
            "engine.descriptors",
            f"{whose} may open {least:,} files; with {needed:,} its {engine.connections:,}"
            " connections can all work",
            **evidence,
        )
