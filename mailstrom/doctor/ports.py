"""The listener's ports: does each answer, with what; and where no engine runs, who has them?

``checks`` is pure. ``holder`` looks into Linux's /proc, where every user sees which ports are
listened on, and whoever may look at a process, whose they are; elsewhere it knows nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

from mailstrom.config import Bind, Config, binds
from mailstrom.doctor.finding import Finding, ok, problem, warning
from mailstrom.doctor.listener import Certificate, is_for, read
from mailstrom.outside import Port
from mailstrom.types import iso_ms

_PROC = "/proc"
_LISTENS = "0A"
_ANY = (bytes(4), bytes(16))


def checks(
    ports: Sequence[Port],
    config: Config,
    *,
    running: bool | None,
    file: Certificate | None,
    now_ms: int,
    holder: Callable[[Bind], str | None],
) -> Iterator[Finding]:
    """All about the listener's ports.

    Args:
        ports: what a worker process met there.
        running: whether an engine has them; None: it cannot be told.
        file: the certificate of the configuration.
        holder: who listens on an address, for a sentence.
    """
    for port, bind in zip(ports, binds(config.listener), strict=False):
        if running is False:
            yield from _taken(port, holder(bind))
        elif port.stage == "done":
            yield _answers(port, config)
            yield from _shown(port, file, now_ms)
        elif (port.banner or "").startswith("421"):
            yield warning(
                "listener.port",
                f"{port.bind} turns clients away now: {port.banner}",
                "See 'client.refused' in the engine's log: [listener] max_connections, and its"
                " limit for one client, count connections of a process.",
                bind=port.bind,
            )
        else:
            yield _silent(port, running)


def _taken(port: Port, holder: str | None) -> Iterator[Finding]:
    if holder is None and not port.connected:
        return
    by = holder or "something that this user may not look at"
    yield problem(
        "listener.port",
        f"{port.bind} is taken by {by}: the engine, which does not run, could not listen there",
        "Stop it, or write another port into [listener] bind, before you start the engine.",
        bind=port.bind,
        holder=holder,
    )


def _silent(port: Port, running: bool | None) -> Finding:
    how = {"connect": "cannot be connected to", "starttls": "cannot begin TLS"}.get(
        port.stage, f"does not answer as it should (at {port.stage})"
    )
    evidence = {"bind": port.bind, "stage": port.stage, "error": port.error}
    if running is None:
        return warning(
            "listener.port",
            f"{port.bind} {how}: {port.error}; whether an engine runs cannot be told",
            "Ask again as root, or as the engine's user.",
            **evidence,
        )
    return problem(
        "listener.port",
        f"{port.bind} {how}, though an engine runs: {port.error}",
        "Restart the engine ('systemctl restart mailstrom'): a change of [listener] bind needs"
        " that. If it stays so, read its log, and see whether a firewall stands before it.",
        **evidence,
    )


def _answers(port: Port, config: Config) -> Finding:
    offers = "no TLS"
    if port.tls is not None:
        how = "TLS from the start" if port.bind.endswith("/tls") else "STARTTLS"
        offers = f"{how} ({port.tls}"
        if port.certificate is not None:
            shown = read(port.certificate.encode())
            name = config.hostname
            match = f"for {name}" if is_for(shown, name) else f"not for {name}"
            offers += f", a certificate {match} until {iso_ms(shown.until_ms)}"
        offers += ")"
    auth = f"AUTH {' '.join(port.auth)}" if port.auth else "no AUTH"
    return ok(
        "listener.port",
        f"{port.bind} answers in {port.ms:.0f} ms and offers {offers} and {auth}",
        bind=port.bind,
        ms=round(port.ms, 1),
        tls=port.tls,
        auth=" ".join(port.auth),
    )


def _shown(port: Port, file: Certificate | None, now_ms: int) -> Iterator[Finding]:
    """A certificate that was renewed and is not offered yet."""
    if port.certificate is None or file is None or file.error is not None:
        return
    shown = read(port.certificate.encode())
    if shown.serial == file.serial:
        return
    over = shown.until_ms < now_ms
    yield (problem if over else warning)(
        "listener.shown",
        f"{port.bind} shows a certificate that {'ended' if over else 'ends'} at"
        f" {iso_ms(shown.until_ms)}, and the file has another, until {iso_ms(file.until_ms)}",
        "'systemctl reload mailstrom': the listener reads it then.",
        bind=port.bind,
    )


def holder(bind: Bind) -> str | None:
    """Who listens on an address, for a sentence; None: nobody, or nobody tells."""
    sockets = {node for found, node in _listening(bind.port) if _meet(found, bind.address)}
    if not sockets:
        return None
    for pid in filter(str.isdigit, os.listdir(_PROC)):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            for number in os.listdir(f"{_PROC}/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"{_PROC}/{pid}/fd/{number}") in sockets:
                        return f"process {pid} ({_command(pid)})"
    return "a process that this user may not look at"


def _listening(port: int) -> Iterator[tuple[bytes, str]]:
    """Addresses that somebody listens on at a port, each with the name of its socket."""
    for table in ("tcp", "tcp6"):
        try:
            with open(f"{_PROC}/net/{table}", encoding="ascii", errors="replace") as stream:
                lines = stream.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            address, _, number = words[1].partition(":")
            if words[3] == _LISTENS and int(number, 16) == port:
                yield _octets(address), f"socket:[{words[9]}]"


def _octets(text: str) -> bytes:
    """An address as the kernel writes it: words of 32 bits, in this machine's order."""
    raw = bytes.fromhex(text)
    words = (raw[at : at + 4] for at in range(0, len(raw), 4))
    return b"".join(int.from_bytes(word, "big").to_bytes(4, _ORDER) for word in words)


_ORDER = sys.byteorder


def _meet(found: bytes, address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    wanted = socket.inet_pton(family, address.partition("%")[0])
    if found == wanted:
        return True
    if len(found) == len(wanted):
        return found in _ANY or wanted in _ANY
    return found == bytes(16)  # :: may have all of IPv4, too


def _command(pid: str) -> str:
    try:
        with open(f"{_PROC}/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip() or "unknown"
    except OSError:
        return "unknown"
