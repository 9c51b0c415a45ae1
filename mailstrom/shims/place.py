"""Where a shim runs: which spool, what this machine is called, who calls.

An address without a domain gets the machine's mail name: ``/etc/mailname`` where there is one, for
that is what Debian has it for; else ``hostname`` of the configuration, else the system's name. A
spool is never made here: nobody would deliver from it.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from typing import NamedTuple

from mailstrom.client.locate import configuration_file, locate_store
from mailstrom.errors import InvalidAddress
from mailstrom.message.address import parse_domain
from mailstrom.shims.sysexits import TEMPORARY, Refusal
from mailstrom.storage import open_client_store, require_shared
from mailstrom.storage.client import ClientStore
from mailstrom.storage.schemes import FILES, scheme_of

MAILNAME = "/etc/mailname"
BUSY_MS = 30_000
"""How long to wait for other writers: many callers have nobody to try again."""

_LONGEST = 4096


class Caller(NamedTuple):
    """Who runs this.

    Args:
        login: as the system names the user; with its number where it does not.
        name: full name, "" where none is known.
    """

    login: str
    name: str


class Place(NamedTuple):
    """What there is.

    Args:
        spool: its path or name.
        hostname: for Received.
        origin: what completes an address without a domain.
    """

    spool: str
    hostname: str
    origin: str


def caller(environ: Mapping[str, str], name: str | None) -> Caller:
    """Who runs this.

    Args:
        environ: NAME is the full name, before what the system knows.
        name: the full name by -F, before both.
    """
    number = os.getuid()
    login, gecos = f"uid{number}", ""
    try:
        entry = pwd.getpwuid(number)
        login = entry.pw_name
        gecos = entry.pw_gecos.partition(",")[0].replace("&", login.capitalize())
    except KeyError:  # a container's user has no entry
        pass
    if name is None:
        name = environ.get("NAME") or gecos
    return Caller(login, name.strip() if name.isprintable() else "")


def place(config: str | None, environ: Mapping[str, str], mailname: str = MAILNAME) -> Place:
    """Find the spool and the names.

    Args:
        config: -C, or None.
        mailname: file with the machine's mail name.

    Raises:
        ConfigError: the configuration cannot be read.
        SpoolError: the default directory cannot be made.
        Refusal: there is no spool.
    """
    spool = locate_store(None, config, environ)
    require_shared(spool)
    if scheme_of(spool) == FILES and not os.path.lexists(spool):
        folder = os.path.dirname(spool)
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            raise PermissionError(f"{folder} cannot be entered")
        raise Refusal(
            TEMPORARY,
            f"there is no spool at {spool}: start the engine that delivers from it (mailstrom"
            " serve), or name its spool in /etc/mailstrom/mailstrom.toml or MAILSTROM_STORE",
        )
    hostname = _configured(config, environ) or os.uname().nodename
    return Place(spool, hostname, _mail_name(mailname) or _domain(hostname) or "localhost")


def opened(spool: str, *, writing: bool = True) -> ClientStore:
    """The spool.

    Raises:
        PermissionError: this user may not write there.
        SpoolError: it cannot be used.
    """
    if writing and scheme_of(spool) == FILES and not os.access(spool, os.R_OK | os.W_OK):
        raise PermissionError(f"{spool} cannot be written by this user")
    return open_client_store(spool, busy_ms=BUSY_MS)


def _configured(config: str | None, environ: Mapping[str, str]) -> str | None:
    file = configuration_file(config, environ)
    if file is None:
        return None
    from mailstrom.tomlfile import tables

    found = tables(file).get("hostname")
    return found if isinstance(found, str) and _domain(found) else None


def _mail_name(file: str) -> str | None:
    try:
        with open(file, "rb") as stream:
            lines = stream.read(_LONGEST).decode("utf-8", "replace").split("\n")
    except OSError:
        return None
    return _domain(lines[0].strip())


def _domain(text: str) -> str | None:
    try:
        return parse_domain(text)
    except InvalidAddress:
        return None
