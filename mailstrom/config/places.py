"""Where the configuration and the spool live when nobody says so.

Follows the XDG base directory rules: a relative ``XDG_*`` value is ignored. The thin client finds
the same places on its own (it may not load this package); a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mailstrom.errors import ConfigError
from mailstrom.printable import printable
from mailstrom.reach import shut

SYSTEM_FILE = Path("/etc/mailstrom/mailstrom.toml")
SYSTEM_STORE = Path("/var/lib/mailstrom/spool.db")

LONGEST_PATH = 4096  # characters; what no system takes, no error repeats


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    named = environ.get(variable, "")
    if named.startswith("/"):
        return Path(named)
    home = environ.get("HOME", "")
    return (Path(home) if home.startswith("/") else Path.home()) / below_home


def plain_path(path: str | os.PathLike[str], folder: str | os.PathLike[str] = "") -> str:
    """Absolute path with every doubled slash gone; one at the front survives ``os.path`` alone.

    Args:
        path: relative to ``folder`` (to the working directory without one), or absolute.
    """
    found = os.path.abspath(os.path.join(folder, path))
    return "/" + found.lstrip("/") if found.startswith("//") else found


def default_store(environ: Mapping[str, str] = os.environ) -> str:
    """The spool of this user: ``/var/lib/mailstrom`` as root, else under ``$XDG_STATE_HOME``."""
    if os.geteuid() == 0:
        return str(SYSTEM_STORE)
    return plain_path("mailstrom/spool.db", _xdg(environ, "XDG_STATE_HOME", ".local/state"))


def find_file(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file in force, absolute, or None where there is none.

    Args:
        path: named by the user (``--config``); before everything else.
        environ: ``MAILSTROM_CONFIG`` names a file too.
    Raises:
        ConfigError: a named file is missing, or lies where this user may not look. Default places
            may be empty.
    """
    for named, by in ((path, "--config"), (environ.get("MAILSTROM_CONFIG"), "MAILSTROM_CONFIG")):
        if named:
            place = plain_path(named)
            if not os.path.isfile(place):  # false, too, where the name is too long for a file
                shown = printable(place if len(place) <= LONGEST_PATH else f"{place[:80]}…", 5000)
                if shut(place):
                    raise ConfigError(
                        f"{shown}: cannot be reached by this user, who may not enter a directory on"
                        f" its way (named by {by}); open that to the user, or name another file"
                    )
                there = os.path.exists(place)  # a directory, a pipe
                what = "not a regular file" if there else "no such configuration file"
                raise ConfigError(f"{shown}: {what} (named by {by}); create it or name another")
            return Path(place)
    for file in (
        SYSTEM_FILE,
        _xdg(environ, "XDG_CONFIG_HOME", ".config") / "mailstrom/mailstrom.toml",
    ):
        # lexists() is False, too, below a directory that we may not enter (require_entered)
        if os.path.lexists(file):
            return file
    return None
