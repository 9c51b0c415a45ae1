"""Which spool a client means: argument, MAILSTROM_STORE, configuration file, default path.

A relative path starts at the file that names it, else at the working directory. A name with a
scheme (``memory:NAME``, or a scheme that an installed package brings) is its store's affair.

The thin client reads a configuration file for one key only (``store``), without the package
``mailstrom.config``, which is the engine's full reading of the same files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mailstrom.client import arguments
from mailstrom.errors import ConfigError, SpoolError
from mailstrom.reach import require_entered, shut
from mailstrom.storage import canonical
from mailstrom.storage.schemes import FILES, path_of, scheme_of

SYSTEM_FILE = "/etc/mailstrom/mailstrom.toml"
SYSTEM_STORE = "/var/lib/mailstrom/spool.db"

LONGEST_PATH = 4096  # characters; what no system takes, no error repeats


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> str | None:
    """An XDG base directory; the specification has relative values ignored.

    None where neither the environment nor the system knows a home directory for this user.
    """
    named = environ.get(variable, "")
    if named.startswith("/"):
        return named
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        home = os.path.expanduser("~")
    return os.path.join(home, below_home) if home.startswith("/") else None


def plain_path(path: str, folder: str = "") -> str:
    """Absolute path with every doubled slash gone; one at the front survives ``os.path`` alone.

    Args:
        path: relative to ``folder`` (to the working directory without one), or absolute.
    """
    found = os.path.abspath(os.path.join(folder, path))
    return "/" + found.lstrip("/") if found.startswith("//") else found


def default_store(environ: Mapping[str, str]) -> str:
    """Where the spool lies when nobody says.

    Raises:
        ConfigError: this user has no home directory.
    """
    if os.geteuid() == 0:
        return SYSTEM_STORE
    folder = _xdg(environ, "XDG_STATE_HOME", ".local/state")
    if folder is None:
        raise ConfigError(
            "this user has no home directory for a spool; name one by argument or MAILSTROM_STORE"
        )
    return plain_path("mailstrom/spool.db", folder)


def configuration_file(
    config: str | os.PathLike[str] | None, environ: Mapping[str, str]
) -> str | None:
    """The configuration file in force, or None.

    Raises:
        ConfigError: a file named by argument or environment does not exist, or lies where this
            user may not look.
        TypeError: ``config`` is no path.
    """
    argument = "" if config is None else arguments.path("config", config)
    named = argument or environ.get("MAILSTROM_CONFIG")
    if named:
        if not os.path.isfile(named):
            shown = arguments.shown(named) if len(named) > LONGEST_PATH else named
            if not shown.isprintable():
                shown = repr(shown)
            if shut(named):
                raise ConfigError(
                    f"{shown}: cannot be reached by this user, who may not enter a directory on its"
                    " way; open that to the user, or name another file"
                )
            there = os.path.exists(named)  # a directory, a pipe
            what = "not a regular file" if there else "no such configuration file"
            raise ConfigError(f"{shown}: {what}; create it or name another")
        return plain_path(named)
    if os.path.lexists(SYSTEM_FILE):
        return SYSTEM_FILE
    home = _xdg(environ, "XDG_CONFIG_HOME", ".config")
    own = None if home is None else os.path.join(home, "mailstrom/mailstrom.toml")
    return own if own is not None and os.path.lexists(own) else None


def locate_store(
    store: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    environ: Mapping[str, str],
) -> str:
    """Absolute path of the spool, or its name with a scheme; the default directory is made.

    Raises:
        ConfigError: the configuration file cannot be read or is kept from this user, or what names
            the store is no path.
        SpoolError: the default directory cannot be made.
        TypeError: an argument is no path.
    """
    if store is not None:
        given = arguments.path("store", store)
        if isinstance(store, str):
            return _name(given, "store")
        return _path(given, "store")  # a path object is a path, whatever its first part looks like
    named = environ.get("MAILSTROM_STORE")
    if named:
        return _name(named, "MAILSTROM_STORE")
    file = configuration_file(config, environ)
    if file is not None:
        named = _store_key(file)
        if named is not None:
            return _name(named, f"{file}: store", os.path.dirname(file))
    else:
        require_entered(SYSTEM_FILE)
    path = default_store(environ)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise SpoolError(
            f"{folder}: the spool's default directory cannot be made ({error.strerror});"
            " name a spool or make the directory"
        ) from error
    return path


def _name(store: str, origin: str, folder: str = "") -> str:
    """The name of a spool as ``mailstrom.storage`` takes it."""
    _require_short(store, origin)
    if scheme_of(store) == FILES:
        return _path(path_of(store), origin, folder)
    try:
        store.encode()  # what is no text is no name of any store
        return canonical(store)
    except (ConfigError, UnicodeEncodeError) as error:
        raise ConfigError(f"{origin}: {error}") from None


def _require_short(name: str, origin: str) -> None:
    if len(name) > LONGEST_PATH:
        raise ConfigError(
            f"{origin}: {arguments.shown(name)} has {len(name)} characters, and no spool's name has"
            f" more than {LONGEST_PATH}; name another"
        )


def _path(path: str, origin: str, folder: str = "") -> str:
    _require_short(path, origin)
    if not path or "\0" in path:
        raise ConfigError(f"{origin}: {path!r} is no path; write a path or sqlite:///path")
    try:
        path.encode()
        return plain_path(path, folder)
    except UnicodeEncodeError:
        raise ConfigError(
            f"{origin}: {path!r} is not UTF-8, which SQLite needs; rename it"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{origin}: {path!r} is relative to a working directory that is gone"
            f" ({error.strerror}); write an absolute path"
        ) from error


def _store_key(file: str) -> str | None:
    from mailstrom.tomlfile import tables

    store = tables(file).get("store")
    if store is not None and not isinstance(store, str):
        raise ConfigError(f"{file}: store must be a path in quotes, not {type(store).__name__}")
    return store
