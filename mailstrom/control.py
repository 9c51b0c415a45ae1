"""What a supervisor and its children say to each other: one JSON object per line, both ways.

Commands go down the child's standard input, the first one always ``Hello``; end of file there
means that the supervisor is gone. Reports come up a status pipe whose descriptor ``Hello`` names.
Lines are bounded, so that a broken peer cannot fill our memory. This module holds the words and
their form on the pipe; it reads and writes no descriptor, knows no clock, process or configuration
class, and is imported by both sides, which are strangers to each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mailstrom.errors import MailstromError

SUPERVISOR_LOCK = "supervisor.lock"
"""The file in a spool's run directory that its supervisor holds locked."""

JANITOR_LOCK = "janitor.lock"
"""The file there that whoever has the janitor's role holds locked."""

COMMAND_LIMIT = 1 << 20
"""Longest command line in bytes, newline included; a whole configuration must fit."""

REPORT_LIMIT = 4096
"""Longest report line in bytes, newline included."""


class ControlError(MailstromError, ValueError):
    """A line on a control or status pipe breaks the protocol: the other side is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first line a child reads: who it is and what it runs with.

    Args:
        kind: ``"delivery"``, ``"listener"`` or ``"janitor"``.
        slot: number of the place it fills among its kind, from 0; survives restarts.
        restarts: how often this slot was started before.
        supervisor_pid: process id of the parent.
        status_fd: descriptor to write reports to.
        store: path of the spool.
        config: the effective configuration, as JSON values.
        sockets: descriptors that listen, in the order of ``[listener] bind``.
    """

    kind: str
    slot: int
    restarts: int
    supervisor_pid: int
    status_fd: int
    store: str
    config: dict[str, object]
    sockets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Claim nothing more, finish what is on the wire, release the rest, report, end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End at once; whatever is on the wire may become in doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Go on with this configuration (JSON values); no transaction is lost over it."""

    config: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse:
    """To the janitor: the engine process ``pid`` died, so lapse what it held, now."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The child works; ``worker`` is the number of its row."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The child's event loop turned at ``monotonic_ms`` (its own reading, since boot)."""

    monotonic_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Nothing is on the wire or claimed any more; the child is about to end."""


Command = Hello | Drain | Stop | Reload | Lapse
Report = Ready | Beat | Drained


def encode_command(command: Command) -> bytes:
    """One line for the child's standard input, newline included.

    Raises:
        ControlError: the line would be longer than ``COMMAND_LIMIT`` (a huge configuration).
    """
    match command:
        case Hello():
            fields = {name: getattr(command, name) for name in Hello.__slots__}
            return _line({"hello": fields}, COMMAND_LIMIT)
        case Drain():
            return _line({"command": "drain"}, COMMAND_LIMIT)
        case Stop():
            return _line({"command": "stop"}, COMMAND_LIMIT)
        case Reload():
            return _line({"command": "reload", "config": command.config}, COMMAND_LIMIT)
        case Lapse():
            return _line({"command": "lapse", "pid": command.pid}, COMMAND_LIMIT)


def decode_command(line: bytes) -> Command:
    """The command on one line, with or without its newline.

    Raises:
        ControlError: no JSON object, an unknown command, or a field missing or of a wrong type.
    """
    fields = _object(line, COMMAND_LIMIT)
    if "hello" in fields:
        hello = _field(fields, "hello", dict)
        return Hello(
            kind=_field(hello, "kind", str),
            slot=_field(hello, "slot", int),
            restarts=_field(hello, "restarts", int),
            supervisor_pid=_field(hello, "supervisor_pid", int),
            status_fd=_field(hello, "status_fd", int),
            store=_field(hello, "store", str),
            config=_field(hello, "config", dict),
            sockets=_descriptors(hello),
        )
    word = _field(fields, "command", str)
    build = _COMMANDS.get(word)
    if build is None:
        known = ", ".join(sorted(_COMMANDS))
        raise ControlError(f"unknown command {word[:80]!r} on the control pipe; known: {known}")
    return build(fields)


def encode_report(report: Report) -> bytes:
    """One line for the status pipe, newline included; far below PIPE_BUF, so writes are whole."""
    match report:
        case Ready():
            return _line({"ready": report.worker}, REPORT_LIMIT)
        case Beat():
            return _line({"beat": report.monotonic_ms}, REPORT_LIMIT)
        case Drained():
            return _line({"drained": True}, REPORT_LIMIT)


def decode_report(line: bytes) -> Report:
    """The report on one line, with or without its newline.

    Raises:
        ControlError: no JSON object, an unknown report, or a value of a wrong type.
    """
    fields = _object(line, REPORT_LIMIT)
    if "beat" in fields:
        return Beat(monotonic_ms=_field(fields, "beat", int))
    if "ready" in fields:
        return Ready(worker=_field(fields, "ready", int))
    if fields.get("drained") is True:
        return Drained()
    raise ControlError(
        f"unknown report {line[:80]!r} on the status pipe; known: beat, ready, drained"
    )


class LineBuffer:
    """Cuts a byte stream into lines, however its reads were split.

    Args:
        limit: longest line in bytes, newline included.
    """

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without newlines; an unfinished rest is kept.

        Raises:
            ControlError: a line, finished or not, is longer than the limit.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        longest = max(map(len, (*lines, self._rest)))
        if longest >= self._limit:
            raise ControlError(
                f"a line of {longest} bytes or more on a control pipe; the limit is {self._limit}"
            )
        return lines


def _descriptors(hello: dict[str, object]) -> tuple[int, ...]:
    found = hello.get("sockets", [])
    if not isinstance(found, list) or not all(type(fd) is int and fd >= 0 for fd in found):
        raise ControlError(
            f"field 'sockets' on a control pipe is no list of descriptors: {found!r:.80}"
        )
    return tuple(found)


_T = TypeVar("_T")

_COMMANDS: Mapping[str, Callable[[dict[str, object]], Command]] = {
    "drain": lambda fields: Drain(),
    "stop": lambda fields: Stop(),
    "reload": lambda fields: Reload(config=_field(fields, "config", dict)),
    "lapse": lambda fields: Lapse(pid=_field(fields, "pid", int)),
}


def _line(fields: dict[str, object], limit: int) -> bytes:
    # ASCII output: a newline inside a value is always escaped, so a line is a whole object.
    line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > limit:
        raise ControlError(f"a line of {len(line)} bytes for a control pipe; the limit is {limit}")
    return line


def _object(line: bytes, limit: int) -> dict[str, object]:
    if len(line) > limit:
        raise ControlError(f"a line of {len(line)} bytes on a control pipe; the limit is {limit}")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"no JSON on a control pipe: {line[:80]!r} ({error})") from error
    if not isinstance(fields, dict):
        raise ControlError(f"no JSON object on a control pipe: {line[:80]!r}")
    return fields


def _field(fields: dict[str, object], name: str, kind: type[_T]) -> _T:
    value = fields.get(name)
    # bool is an int to isinstance; a flag in place of a number is a broken peer.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ControlError(
            f"field {name!r} on a control pipe should be {kind.__name__}, not {value!r:.80}"
        )
    return value
