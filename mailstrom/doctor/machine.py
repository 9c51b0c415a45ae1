"""What this machine says: is its clock kept right, which engine processes live, what may they open?

Looks and judges nothing. Linux tells most of it; elsewhere less is known, and None says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Sequence

import mailstrom
from mailstrom import descriptors
from mailstrom.config import Config, worker_count
from mailstrom.control import JANITOR_LOCK, SUPERVISOR_LOCK
from mailstrom.doctor.engine import Engine, Process
from mailstrom.lockfile import holder, is_free
from mailstrom.storage.examined import Contents, ProcessFacts

_TIMEX_BYTES = 1024  # more than struct timex has on any system
_STATUS_AT = 5 * ctypes.sizeof(ctypes.c_long)
_UNSYNCHRONISED = 0x0040  # STA_UNSYNC of <sys/timex.h>


def synchronised() -> bool | None:
    """Whether the kernel takes its clock for synchronised (adjtimex); None where it says nothing.

    ``struct timex`` begins with modes (padded to a long), offset, freq, maxerror and esterror, then
    the status; with modes 0 the call changes nothing.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = (ctypes.c_char * _TIMEX_BYTES)()
    if adjtimex(ctypes.byref(timex)) < 0:
        return None
    status = ctypes.c_int.from_buffer(timex, _STATUS_AT).value
    return not status & _UNSYNCHRONISED


def engine(run: str, rows: Contents, config: Config | None) -> Engine:
    """What the system says of the engine of a spool.

    Args:
        run: the spool's run directory.
        config: the configuration in force, if it is usable.
    """
    visible = _visible(run, [SUPERVISOR_LOCK, JANITOR_LOCK, *(row.lock for row in rows.workers)])
    supervisor = _supervisor(run) if visible else None
    return Engine(
        visible=visible,
        supervisor=None if supervisor is None else _named(supervisor),
        stopped=None if supervisor is None else _stopped_here(supervisor),
        janitor=visible and not is_free(os.path.join(run, JANITOR_LOCK)),
        processes=tuple(_process(run, row, visible) for row in rows.workers),
        wanted=None if config is None else worker_count(config),
        listeners=config.listener.workers if config is not None and config.listener.bind else 0,
        connections=None if config is None else config.delivery.max_connections,
        files=descriptors.reachable(),
        installed_ms=_installed_ms(),
    )


def _visible(run: str, names: Sequence[str]) -> bool:
    """Whether this user may ask these lock files; one that is not there may be asked."""

    def may(path: str, mode: int) -> bool:
        return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)

    paths = [os.path.join(run, name) for name in names]
    return may(run, os.X_OK) and all(may(path, os.R_OK) for path in paths if os.path.lexists(path))


def _supervisor(run: str) -> dict[str, object] | None:
    """What the supervisor says of itself; None: there is none."""
    path = os.path.join(run, SUPERVISOR_LOCK)
    return None if is_free(path) else holder(path)


def _named(supervisor: dict[str, object]) -> str:
    return f"pid {supervisor.get('pid', 'unknown')} on {supervisor.get('host', 'unknown')}"


def _stopped_here(supervisor: dict[str, object]) -> int | None:
    pid = supervisor.get("pid")
    here = supervisor.get("host") == socket.gethostname()
    return pid if here and isinstance(pid, int) and _stopped(pid) else None


def _process(run: str, row: ProcessFacts, visible: bool) -> Process:
    held = visible and not is_free(os.path.join(run, row.lock))
    if not held or row.host != socket.gethostname():
        return Process(row=row, held=held)
    return Process(
        row=row,
        held=held,
        stopped=_stopped(row.pid),
        files=_open_files(row.pid),
        most_files=_most_files(row.pid),
    )


def _stopped(pid: int) -> bool:
    with (
        contextlib.suppress(OSError, IndexError),
        open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream,
    ):
        return stream.read().rpartition(")")[2].split()[0] in "Tt"
    return False


def _open_files(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _most_files(pid: int) -> int | None:
    with (
        contextlib.suppress(OSError, IndexError, ValueError),
        open(f"/proc/{pid}/limits", encoding="ascii") as stream,
    ):
        for line in stream:
            if line.startswith("Max open files"):
                return int(line.split()[3])
    return None


def _installed_ms() -> int:
    try:
        return int(os.stat(mailstrom.__file__).st_mtime * 1000)
    except OSError:
        return 0
