"""A process that dies, stands still or fails at a named point: the first that gets there, once.

Armed in every process of an engine (``with_faults({"torture_points": settings})``), or in a client
by ``arm(settings)``. Settings: ``folder``, where what is wanted now is looked up; ``points``, the
table of ``tests.torture.named_points``, name -> where it is; ``set``, constants of the product to
change ("module:NAME" -> value), so that a piece is smaller than a test's mail.

Which point is wanted may change at any time: the file ``armed`` in the folder holds ``point``,
``hit`` (its n-th visit in one process since then), ``do`` (kill, stop, raise) and ``token``.
Whoever gets there first creates the token file (O_EXCL), with its process id and the time, and
dies; what replaces it finds the token and lives.

A point is one of

* ``at`` "module:Name.name", ``when`` before or after: a function (``given`` restricts the calls by
  what is found on a path of arguments, attributes and places in a list);
* ``sql`` a named statement of the product, BEGIN, COMMIT or * (any): just before it is executed;
* ``io`` an operation of the VFS on ``file`` (db, wal), ``when`` before, half (of a write) or after;
* ``os`` names of functions of ``os``: just before any of them.

A named statement with a plus and the name of a parameter, "claim+opened", is only meant where that
was given something.

``inside`` a named statement: it was executed in this transaction. ``within`` "module:Name.name":
that function is being executed in this thread. ``follows`` a named statement: a transaction with it
was committed by this process since the point was armed (executed is not enough: another thread may
sync what was before). ``tells`` a named statement with a parameter: what it was given last by this
process is left in the token, too. A place that does not exist ends the process with status 86.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

import apsw
from torture_hooks import after_import
from torture_vfs import Op, WatchedVFS, fault, watch_sync

Spec = Mapping[str, Any]

_STATEMENTS = "mailstrom.storage.sqlite.sql"
_NAMING = ("sql", "inside", "follows", "tells")  # keys of a spec whose value is a statement
_REPEATED_ROW = re.compile(r"(\([?,]+\))(?:,\1)+")  # one statement, for however many messages
_open, _write, _close, _stat, _kill = os.open, os.write, os.close, os.stat, os.kill
_points: dict[str, Spec] = {}
_parameters: dict[str, set[str]] = {}  # of statements that are meant only where they were given
_folder = ""


class Injected(Exception):
    """A failure that no code expects."""


class _Here(threading.local):
    """What this thread is doing: statements of its transaction, functions that it is within."""

    def __init__(self) -> None:
        self.transaction: set[str] = set()
        self.functions: dict[str, int] = {}


_here = _Here()


class _Wanted:
    """What the folder asks for now, and how often this process has been there since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mark: tuple[int, int] | None = None
        self._told: dict[str, Any] | None = None
        self._hits = 0
        self.committed: set[str] = set()
        self.given: dict[str, Mapping[str, Any]] = {}  # to statements, by "name+parameter"

    def look(self) -> dict[str, Any] | None:
        path = os.path.join(_folder, "armed")
        try:
            found = _stat(path)
        except FileNotFoundError:
            self._mark = self._told = None
            return None
        mark = (found.st_ino, found.st_mtime_ns)
        if mark != self._mark:
            try:
                with open(path, encoding="ascii") as stream:
                    told = json.load(stream)
            except FileNotFoundError:
                return None
            with self._lock:
                self._mark, self._told, self._hits = mark, told, 0
                self.committed, self.given = set(), {}
        return self._told

    def count(self) -> int:
        with self._lock:
            self._hits += 1
            return self._hits


_wanted = _Wanted()


def _reached(name: str, *, op: Op | None = None) -> None:
    """This process is at a point: do what is asked for, if anything is, and nobody did it."""
    told = _wanted.look()
    if told is None or told["point"] != name or not _placed(_points[name]):
        return
    if _wanted.count() != told["hit"]:
        return
    try:
        token = _open(os.path.join(_folder, told["token"]), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    said: dict[str, Any] = {"pid": os.getpid(), "at": time.monotonic(), "point": name}
    if "tells" in _points[name]:
        said["told"] = _wanted.given.get(_points[name]["tells"])
    _write(token, json.dumps(said).encode())
    _close(token)
    if told["do"] == "kill":
        if op is not None and _points[name].get("when") == "half":
            _write_half(op)
        _kill(os.getpid(), signal.SIGKILL)
    elif told["do"] == "stop":
        # To this thread: one to the process may reach another first, and this one runs on a while.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif op is not None:
        raise fault(op.name)
    else:
        raise Injected(f"injected at {name}")


def _write_half(op: Op) -> None:
    """What a death in the middle of a write leaves."""
    assert op.data is not None
    target = _open(op.path, os.O_WRONLY)
    os.pwrite(target, op.data[: len(op.data) // 2], op.offset)


def _placed(spec: Spec) -> bool:
    """Whether this thread is where the point is meant."""
    inside, within, follows = spec.get("inside"), spec.get("within"), spec.get("follows")
    return (
        (inside is None or inside in _here.transaction)
        and (within is None or _here.functions.get(within, 0) > 0)
        and (follows is None or follows in _wanted.committed)
    )


# --- functions ----------------------------------------------------------------------------------


def _given(spec: Spec, values: Mapping[object, Any]) -> bool:
    """Whether a call is one that is meant: something of its arguments or result is (so)."""
    condition = spec.get("given")
    if condition is None:
        return True
    first, *rest = condition["path"]
    found = values.get(first)
    for name in rest:
        if isinstance(name, int):
            found = found[name] if found and len(found) > name else None
        else:
            found = getattr(found, name, None)
    if "is" in condition:
        return str(found) == str(condition["is"])
    if "ends" in condition:
        return str(found).endswith(str(condition["ends"]))
    return bool(found)


def _wrapped(name: str, spec: Spec, function: Callable[..., Any]) -> Callable[..., Any]:
    before = spec.get("when", "before") == "before"

    def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[object, Any]:
        found: dict[object, Any] = dict(enumerate(args))
        found.update(kwargs.items())
        return found

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waiting(*args: Any, **kwargs: Any) -> Any:
            values = arguments(args, kwargs)
            if before and _given(spec, values):
                _reached(name)
            result = await function(*args, **kwargs)
            if not before and _given(spec, {**values, "result": result}):
                _reached(name)
            return result

        return waiting

    @functools.wraps(function)
    def calling(*args: Any, **kwargs: Any) -> Any:
        values = arguments(args, kwargs)
        if before and _given(spec, values):
            _reached(name)
        result = function(*args, **kwargs)
        if not before and _given(spec, {**values, "result": result}):
            _reached(name)
        return result

    return calling


def _within(place: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        depth = _here.functions
        depth[place] = depth.get(place, 0) + 1
        try:
            return function(*args, **kwargs)
        finally:
            depth[place] -= 1

    return counting


def _replace(place: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function of a module, or of a class in it, once the module is loaded."""
    module_name, _, path = place.partition(":")

    def arm_module(module: ModuleType) -> None:
        *owners, last = path.split(".")
        owner: Any = module
        for name in owners:
            owner = getattr(owner, name, None)
        found = None if owner is None else vars(owner).get(last)
        if isinstance(found, classmethod | staticmethod):
            setattr(owner, last, type(found)(change(found.__func__)))
        elif callable(found):
            setattr(owner, last, change(found))
        else:
            _nowhere(f"{place}: there is no such function")

    after_import(module_name, arm_module)


def _nowhere(what: str) -> NoReturn:
    """The table names something that is gone: nobody may take that for a fault survived."""
    print(f"torture_points: {what}", file=sys.stderr)
    traceback.print_stack()
    sys.stderr.flush()
    os._exit(86)


# --- statements, files, system calls ------------------------------------------------------------


def _arm_statements(points: Mapping[str, Spec]) -> None:
    """Names of statements: of all that points mention, so that ``inside`` works for each."""
    names: dict[str, list[str]] = {}  # by text: two statements may have the same
    wanted: dict[str, list[str]] = {}
    for name, spec in points.items():
        if "sql" in spec:
            wanted.setdefault(spec["sql"], []).append(name)

    def learn(module: ModuleType) -> None:
        known: Mapping[str, str] = module.STATEMENTS
        for name, text in known.items():
            names.setdefault(text.strip().rstrip(";").strip(), []).append(name)
        used = {spec[key] for spec in points.values() for key in _NAMING if key in spec}
        missing = used - set(known) - {"BEGIN", "COMMIT", "*"}
        for one in sorted(missing):
            name, _, parameter = one.partition("+")
            if parameter and re.search(rf":{parameter}\b", known.get(name, "")):
                _parameters.setdefault(name, set()).add(parameter)
                missing.remove(one)
        if missing:
            _nowhere(f"there are no statements {sorted(missing)}")

    after_import(_STATEMENTS, learn)

    def trace(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        text = _REPEATED_ROW.sub(r"\1", sql.strip().rstrip(";").strip())
        word = text.split(None, 1)[0].upper() if text else ""
        known = [word] if word in ("BEGIN", "COMMIT") else names.get(text, [])
        if word == "BEGIN" or cursor.connection.get_autocommit():
            _here.transaction.clear()
        known = [*known, *_with_parameters(known, bindings)]
        for name in known:
            for point in wanted.get(name, ()):
                _reached(point)
        _here.transaction.update(known)
        for point in wanted.get("*", ()):
            _reached(point)
        return True

    def done(told: dict[str, Any]) -> None:
        """A statement has ended: with it, it may be, its transaction."""
        ran = _here.transaction
        if told["connection"].get_autocommit() and ("COMMIT" in ran or "BEGIN" not in ran):
            _wanted.committed.update(ran)

    def hook(connection: apsw.Connection) -> None:
        connection.exec_trace = trace
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, done)

    apsw.connection_hooks.append(hook)


def _with_parameters(names: Sequence[str], bindings: object) -> list[str]:
    """Those of these statements that were given something for a parameter, as "name+parameter"."""
    found: list[str] = []
    for name in names:
        for parameter in _parameters.get(name, ()):
            if isinstance(bindings, Mapping) and bindings.get(parameter):
                _wanted.look()
                found.append(f"{name}+{parameter}")
                _wanted.given[found[-1]] = dict(bindings)
    return found


def _arm_files(points: Mapping[str, Spec]) -> None:
    wanted: dict[tuple[str, str, str], list[str]] = {}
    for name, spec in points.items():
        if "io" in spec:
            when = "after" if spec.get("when") == "after" else "before"
            wanted.setdefault((when, spec["io"], spec["file"]), []).append(name)
    if not wanted:
        return

    def watch(when: str) -> Callable[[Op], None]:
        def at(op: Op) -> None:
            for name in wanted.get((when, op.name, op.kind), ()):
                _reached(name, op=op)

        return at

    watch_sync(WatchedVFS(before=watch("before"), after=watch("after")))


def _arm_calls(name: str, spec: Spec) -> None:
    def change(each: str, function: Callable[..., Any]) -> None:
        @functools.wraps(function)
        def calling(*args: Any, **kwargs: Any) -> Any:
            _reached(name)
            return function(*args, **kwargs)

        setattr(os, each, calling)

    for each in spec["os"]:
        change(each, getattr(os, each))


def arm(settings: Mapping[str, Any]) -> None:
    """Put every point of the table in its place."""
    global _folder
    _folder = str(settings["folder"])
    points: Mapping[str, Spec] = settings["points"]
    _points.update(points)
    for place in sorted({spec["within"] for spec in points.values() if "within" in spec}):
        _replace(place, functools.partial(_within, place))
    for name, spec in points.items():
        if "at" in spec:
            _replace(spec["at"], functools.partial(_wrapped, name, spec))
        elif "os" in spec:
            _arm_calls(name, spec)
    _arm_statements(points)
    _arm_files(points)
    for place, value in settings.get("set", {}).items():
        module_name, _, constant = place.partition(":")

        def put(module: ModuleType, constant: str = constant, value: object = value) -> None:
            if not hasattr(module, constant):
                _nowhere(f"{module.__name__}: there is no {constant}")
            setattr(module, constant, value)

        after_import(module_name, put)
