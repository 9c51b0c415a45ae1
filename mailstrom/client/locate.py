"""Which spool a client means: argument, MAILSTROM_STORE, configuration file, default path.

The thin client reads a configuration file for one key only (``store``), with tomllib alone; the
engine's full reading of the same files is ``mailstrom.config``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mailstrom.errors import ConfigError

SYSTEM_FILE = "/etc/mailstrom/mailstrom.toml"


def default_store(environ: Mapping[str, str]) -> str:
    """Where the spool lies when nobody says."""
    if os.geteuid() == 0:
        return "/var/lib/mailstrom/spool.db"
    state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "mailstrom", "spool.db")


def configuration_file(config: str | None, environ: Mapping[str, str]) -> str | None:
    """The configuration file in force, or None.

    Raises:
        ConfigError: a file named by argument or environment does not exist.
    """
    named = config or environ.get("MAILSTROM_CONFIG")
    if named:
        if not os.path.isfile(named):
            raise ConfigError(f"{named}: configuration file not found; check the path")
        return named
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for candidate in (SYSTEM_FILE, os.path.join(home, "mailstrom", "mailstrom.toml")):
        if os.path.isfile(candidate):
            return candidate
    return None


def locate_store(
    store: str | os.PathLike[str] | None, config: str | None, environ: Mapping[str, str]
) -> str:
    """Absolute path of the spool; default directories are made.

    Raises:
        ConfigError: the configuration file cannot be read, or names a store that is no path.
    """
    if store is not None:
        return _path(os.fspath(store))
    if environ.get("MAILSTROM_STORE"):
        return _path(environ["MAILSTROM_STORE"])
    file = configuration_file(config, environ)
    if file is not None:
        named = _store_key(file)
        if named is not None:
            return os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(file)), named))
    path = default_store(environ)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path


def _path(store: str) -> str:
    if store.startswith("sqlite:///"):
        store = store.removeprefix("sqlite://")
    elif "://" in store:
        raise ConfigError(f"{store}: unknown kind of store; write a path or sqlite:///path")
    return os.path.abspath(store)


def _store_key(file: str) -> str | None:
    import tomllib

    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    store = table.get("store")
    if store is not None and not isinstance(store, str):
        raise ConfigError(f"{file}: store must be a path in quotes, not {store!r}")
    return store
