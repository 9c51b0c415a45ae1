"""Finds, reads and checks the configuration, and hands it to child processes.

TOML by ``mailstrom.tomlfile``, each value converted on its own by msgspec so that an error names
the file, the table and the key. Unknown keys are errors with the nearest name. Precedence: an
argument, the environment, the file, the default; ``Config.sources`` remembers which it was.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mailstrom.config import checks, durations, places, schema, sizes
from mailstrom.config.names import is_fqdn
from mailstrom.config.places import LONGEST_PATH, default_store, find_file, plain_path
from mailstrom.config.settings import Config, Table
from mailstrom.errors import ConfigError
from mailstrom.printable import printable
from mailstrom.reach import require_entered
from mailstrom.storage.schemes import FILES, path_of, require_known
from mailstrom.tomlfile import tables as read_tables

# variable -> table, key
ENVIRONMENT = {
    "MAILSTROM_STORE": ("", "store"),
    "MAILSTROM_LOG_LEVEL": ("log", "level"),
    "MAILSTROM_LOG_FORMAT": ("log", "format"),
}


OWN_NAME_S = 2.0
"""So long this machine's name with its domain is waited for, where only the DNS may tell it."""


class _Source(NamedTuple):
    """Where raw values come from: named in errors and in ``sources``."""

    name: str
    folder: Path = Path()  # relative paths start here; in the working directory where none is told


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    store: str | os.PathLike[str] | None = None,
    whole: bool = False,
) -> Config:
    """The effective configuration.

    Args:
        path: a file named by the user; else ``MAILSTROM_CONFIG``, ``/etc/mailstrom/mailstrom.toml``
            or ``$XDG_CONFIG_HOME/mailstrom/mailstrom.toml``; none of them is fine.
        environ: also ``MAILSTROM_STORE``, ``MAILSTROM_LOG_LEVEL``, ``MAILSTROM_LOG_FORMAT``.
        store: the spool named by the user; before everything else.
        whole: refuse a file that looks half written; see ``tomlfile.tables``.
    Raises:
        ConfigError: a named file is missing, a file is unreadable or no TOML, a key is unknown, a
            value is out of bounds, or settings contradict each other. Or nothing names a spool, and
            the machine's file is kept from this user.
    """
    file = find_file(path, environ)
    if file is None:
        if not (store or environ.get("MAILSTROM_STORE")):
            require_entered(places.SYSTEM_FILE)
        return _effective({}, _Source("configuration"), environ, store)
    raw = read_tables(file, whole=whole)
    return _effective(raw, _Source(str(file), file.parent), environ, store, str(file))


def from_tables(
    tables: Mapping[str, object],
    *,
    environ: Mapping[str, str] = os.environ,
    store: str | os.PathLike[str] | None = None,
) -> Config:
    """The effective configuration of an application that brings its own; no file is looked for.

    Args:
        tables: what a TOML file would hold: ``{"delivery": {"mode": "relay"}}``; relative paths
            start at the working directory.
        environ, store: as for ``load``.
    Raises:
        ConfigError: as for ``load``.
    """
    source = _Source("the configuration given")
    try:
        raw: dict[str, Any] = {str(name): _as_parsed(value) for name, value in tables.items()}
    except RecursionError:
        raise _nested(source) from None
    return _effective(raw, source, environ, store)


def _as_parsed(value: object) -> object:
    """What an application may write for a value, as the TOML parser would have made it."""
    if isinstance(value, Mapping):
        return {str(name): _as_parsed(inner) for name, inner in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _effective(
    raw: dict[str, Any],
    source: _Source,
    environ: Mapping[str, str],
    store: str | os.PathLike[str] | None,
    origin: str | None = None,
) -> Config:
    """Tables, then the environment, then an argument, then defaults; checked as a whole."""
    sources: dict[str, str] = {}
    try:
        values = _table(Config, raw, "", source, sources)
    except RecursionError:
        raise _nested(source) from None

    for variable, (table, key) in ENVIRONMENT.items():
        text = environ.get(variable)
        if text:
            _override(values, table, key, text, _Source(variable), sources)
    if store:
        # A path object is a path, whatever its first part looks like.
        named = store if isinstance(store, str) else os.path.abspath(store)
        _override(values, "", "store", named, _Source("--store"), sources)

    values.setdefault("store", default_store(environ))
    if "hostname" not in values:
        values["hostname"] = _own_name()
    config = Config(**_built(Config, values), origin=origin, sources=sources)
    return checks.checked(config)


def named_path(
    table: str,
    key: str,
    path: str | os.PathLike[str] | None,
    environ: Mapping[str, str] = os.environ,
) -> str | None:
    """A path that the file in force names, absolute; None where there is no file, or no such key.

    For a command that makes what the configuration names, without which it is not usable yet.

    Raises:
        ConfigError: the file is missing or no TOML, or the key is no path.
    """
    file = find_file(path, environ)
    if file is None:
        return None
    body = read_tables(file).get(table)
    named = body.get(key) if isinstance(body, dict) else None
    source = _Source(str(file), file.parent)
    place = f"{_file(source)}: {_shown(table, key)}"
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"{place}: {_written(named)} does not fit; it takes path")
    return None if named is None else _path(named, place, source)


def to_json(config: Config) -> bytes:
    """The effective configuration as one JSON object; holds file names, never passwords."""
    return msgspec.json.encode(config)


def from_json(data: bytes | str) -> Config:
    """The configuration that ``to_json()`` wrote.

    Raises:
        ConfigError: the data is something else.
    """
    try:
        return msgspec.json.decode(data, type=Config)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"the configuration handed down by the parent process is damaged: {error};"
            " are supervisor and workers of one version?"
        ) from error


def _own_name() -> str:
    name = socket.gethostname()
    if not is_fqdn(name):
        name = _qualified(name)
    return name.lower() if is_fqdn(name) else "localhost"


def _qualified(name: str) -> str:
    """A short name with its domain, if the system finds that out in time.

    It may ask the DNS, and wait half a minute for one that is dead: a supervisor that reloads, or
    ``mailstrom doctor``, must not.
    """
    found: list[str] = []

    def ask() -> None:
        with suppress(OSError, UnicodeError):  # what is no host name, too
            found.append(socket.getfqdn(name))

    asking = threading.Thread(target=ask, name="own name", daemon=True)
    try:
        asking.start()
    except RuntimeError:  # no thread is to be had
        return name
    asking.join(OWN_NAME_S)
    return found[0] if found else name


def _nested(source: _Source) -> ConfigError:
    return ConfigError(f"{_file(source)}: not usable: tables or lists are nested too deeply")


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def _shown(table: str, key: str) -> str:
    key = _name(key)
    return f"[{_name(table)}] {key}" if table else key


def _file(source: _Source) -> str:
    """Where values come from, for an error: a path may hold anything but NUL."""
    return printable(source.name, 2000)


def _name(foreign: str) -> str:
    """A key or table as the file has it, for an error: it may be as long, and hold escapes."""
    return printable(foreign, 100)


def _table(
    cls: type[Table], raw: object, table: str, source: _Source, sources: dict[str, str]
) -> dict[str, Any]:
    """Converted values of one table's keys; nested tables as dicts of the same shape."""
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{_file(source)}: {_name(table)} is a table: write [{_name(table)}] and its keys below"
        )
    known = {key.name: key for key in schema.keys(cls)}
    values: dict[str, Any] = {}
    for name, value in raw.items():
        key = known.get(name)
        if key is None:
            raise ConfigError(_unknown(cls, name, table, source))
        dotted = _dotted(table, name)
        inner = schema.streams(key)
        if key.table is not None:
            values[name] = _table(key.table, value, dotted, source, sources)
        elif inner is not None:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{_file(source)}: {_name(dotted)} is a table: write [{_name(dotted)}.NAME]"
                )
            values[name] = {
                label: inner(**_table(inner, body, f"{dotted}.{label}", source, sources))
                for label, body in value.items()
            }
        else:
            values[name] = _value(key, value, table, source)
            sources[dotted] = source.name
    return values


def _value(key: schema.Key, raw: object, table: str, source: _Source) -> object:
    place = f"{_file(source)}: {_shown(table, key.name)}"
    takes = f"it takes {schema.accepts(key.hint, key.unit)}"
    try:
        value: object = msgspec.convert(_in_units(raw, key.unit), key.hint)
    except msgspec.ValidationError as error:
        listed = f"; write [{_written(raw)}]" if schema.fits_listed(key.hint, raw) else ""
        raise ConfigError(f"{place}: {_written(raw)} does not fit; {takes}{listed}") from error
    except ValueError as error:
        raise ConfigError(f"{place}: {printable(str(error), 600)}; {takes}") from error
    if key.unit == "path" and isinstance(value, str):
        return (_store if key.name == "store" else _path)(value, place, source)
    return value


def _store(name: str, place: str, source: _Source) -> str:
    """A spool's name: a path, absolute, or what a store with a scheme will understand."""
    try:
        if require_known(name) != FILES:
            return name
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    path = path_of(name)
    if not path or "\0" in path:
        raise ConfigError(f"{place}: {name!r} is no path; write a path or sqlite:///path")
    if len(path) > LONGEST_PATH:
        raise ConfigError(
            f"{place}: {_written(path)} has {len(path)} characters, and no spool's name has more"
            f" than {LONGEST_PATH}; name another"
        )
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{place}: {path!r} is not UTF-8, which SQLite needs; rename it"
        ) from None
    return _absolute(path, place, source)


def _path(path: str, place: str, source: _Source) -> str:
    if not path or "\0" in path or "://" in path:
        raise ConfigError(f"{place}: {path!r} is no path")
    return _absolute(path, place, source)


def _absolute(path: str, place: str, source: _Source) -> str:
    try:
        return plain_path(path, source.folder)
    except OSError as error:
        raise ConfigError(
            f"{place}: {path!r} is relative to a working directory that is gone"
            f" ({error.strerror}); write an absolute path"
        ) from error


def _written(raw: object) -> str:
    """A raw value as the file has it, shortened."""
    if isinstance(raw, dict):
        return "a table"
    try:
        text = schema.toml(raw)
    except ValueError:  # Python writes no integer of so many digits
        return "a number of thousands of digits"
    return printable(text if len(text) <= 100 else f"{text[:100]}...", 600)


def _in_units(raw: object, unit: str | None) -> object:
    if unit == "duration":
        return _durations(raw)
    if unit == "size" and isinstance(raw, str):
        return sizes.octets(raw)
    return raw


def _durations(raw: object) -> object:
    if isinstance(raw, list):
        return [_durations(item) for item in raw]
    if isinstance(raw, bool | int | float):
        raise ValueError(f'{raw!r} has no unit: write text with a unit, as "{raw}s"')
    return durations.seconds(raw) if isinstance(raw, str) else raw


def _override(
    values: dict[str, Any],
    table: str,
    name: str,
    text: str,
    source: _Source,
    sources: dict[str, str],
) -> None:
    cls: type[Table] = Config
    target = values
    if table:
        cls = next(k.table for k in schema.keys(Config) if k.name == table and k.table)
        target = values.setdefault(table, {})
    key = next(k for k in schema.keys(cls) if k.name == name)
    target[name] = _value(key, text, table, source)
    sources[_dotted(table, name)] = source.name


def _built(cls: type[Table], values: dict[str, Any]) -> dict[str, Any]:
    """The values with nested tables turned into their structs."""
    inner = {key.name: key.table for key in schema.keys(cls) if key.table}
    return {
        name: table(**_built(table, value)) if (table := inner.get(name)) else value
        for name, value in values.items()
    }


def _unknown(cls: type[Table], name: str, table: str, source: _Source) -> str:
    names = [key.name for key in schema.keys(cls)]
    text = f"{_file(source)}: unknown key {_shown(table, name)}"
    near = get_close_matches(name[:100], names, n=1)
    if near:
        return f"{text}; did you mean {_shown(table, near[0])}?"
    homes = [
        f"[{key.name}] {name}" if key.table else name
        for key in schema.keys(Config)
        if name == key.name or (key.table and name in {k.name for k in schema.keys(key.table)})
    ]
    if homes:
        return f"{text}; did you mean {' or '.join(homes)}?"
    return f"{text}; it takes {', '.join(names)}"
