"""TLS: which library, does it offer what the configuration demands, are there authorities?

``look`` asks this process's ssl module and reads the authorities; ``checks`` is pure. No socket.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from mailstrom.config import Config
from mailstrom.config.authorities import authorities
from mailstrom.doctor.finding import Finding, note, ok, problem, warning

_SUPPORTED = (3, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What this process's TLS can do.

    Args:
        authorities: certificates loaded from ``ca_file``, or 1 where the system has some.
        error: why ``ca_file`` could not be loaded.
    """

    name: str
    version: tuple[int, int]
    newest: bool
    authorities: int
    error: str | None = None


def look(config: Config) -> Library:
    """Ask the ssl module, and load the authorities as a session would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    error, count = None, 0
    if config.tls.ca_file is not None:
        try:
            context.load_verify_locations(cadata=authorities(config.tls.ca_file))
            count = len(context.get_ca_certs())
        except (OSError, ValueError) as problem:  # SSLError is one
            error = str(problem)
    else:
        places = ssl.get_default_verify_paths()
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        count = len(context.get_ca_certs())
        if not count and places.capath is not None and os.path.isdir(places.capath):
            count = min(len(os.listdir(places.capath)), 1)
    return Library(
        name=ssl.OPENSSL_VERSION,
        version=ssl.OPENSSL_VERSION_INFO[:2],
        newest=ssl.HAS_TLSv1_3,
        authorities=count,
        error=error,
    )


def checks(library: Library, config: Config) -> Iterator[Finding]:
    """All about TLS."""
    least = config.tls.min_version
    if least == "1.3" and not library.newest:
        yield problem(
            "tls.library",
            f"{library.name} cannot do TLS 1.3, which [tls] min_version demands",
            'Install a newer OpenSSL, or write min_version = "1.2".',
        )
    elif library.version < _SUPPORTED:
        yield warning(
            "tls.library",
            f"{library.name} is no longer maintained",
            "Use a Python that is built with OpenSSL 3 or newer.",
        )
    else:
        yield ok("tls.library", f"{library.name}; TLS {least} or newer is asked for")
    demanded = config.tls.verify or config.dns.tls
    if library.error is not None:
        yield problem(
            "tls.authorities",
            f"[tls] ca_file {config.tls.ca_file} cannot be used ({library.error})",
            "It must be a PEM file of certificates that this user may read.",
        )
    elif not library.authorities:
        yield (problem if demanded else note)(
            "tls.authorities",
            "no certificate authorities are installed"
            + (", and certificates must be verified" if demanded else ""),
            "Install them ('apt install ca-certificates'), or name a file in [tls] ca_file.",
        )
    else:
        where = config.tls.ca_file or "the system's authorities"
        asked = "certificates are verified" if config.tls.verify else (
            "certificates are not verified (opportunistic TLS)")  # fmt: skip
        yield ok("tls.authorities", f"{where} can be loaded; {asked}")
