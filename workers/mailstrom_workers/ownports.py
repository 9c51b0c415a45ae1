"""Our own listener, as a client meets it: for ``mailstrom doctor``.

Each port of ``[listener] bind`` is connected to: its greeting, EHLO, STARTTLS and EHLO again, QUIT;
each within its own time, all at once. Where this machine stands in ``proxy_networks`` the PROXY
header that names nobody comes first. No message is sent, no password. What it means is not known
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Sequence

from msgspec import structs

from mailstrom.config import Bind, Config, binds, networks
from mailstrom.outside import Port
from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import Capabilities
from mailstrom_workers.terms import Networks

PORT_S = 4.0
MOST_PORTS = 16
_LINES, _OCTETS = 40, 4096
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_NAMELESS = b"PROXY UNKNOWN\r\n"


async def look(config: Config) -> list[Port]:
    """All ports of the listener; empty where nothing listens."""
    ports = binds(config.listener)[:MOST_PORTS]
    return list(await asyncio.gather(*(_met(one, config) for one in ports)))


async def _met(bind: Bind, config: Config) -> Port:
    loop = asyncio.get_running_loop()
    began = loop.time()
    talk = _Talk(bind, config)
    error: str | None = None
    try:
        async with asyncio.timeout(PORT_S):
            await talk.hold()
    except TimeoutError:
        error = f"no answer within {PORT_S:g} s"
    except OSError as failure:  # ssl.SSLError is one, whose numbers are its own
        known = failure.errno and not isinstance(failure, ssl.SSLError)
        error = os.strerror(failure.errno) if known and failure.errno else str(failure)
    except (EOFError, ValueError) as failure:
        error = str(failure)
    finally:
        talk.close()
    return structs.replace(talk.port, error=error, ms=(loop.time() - began) * 1000)


class _Talk:
    """One session; ``port`` says how far it went."""

    def __init__(self, bind: Bind, config: Config) -> None:
        self.port = Port(bind=f"{bind}/tls" if bind.implicit_tls else str(bind), stage="connect")
        self._bind = bind
        self._config = config
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    def _note(self, **found: object) -> None:
        self.port = structs.replace(self.port, **found)

    async def hold(self) -> None:
        """From the connection to QUIT.

        Raises:
            OSError, EOFError, ValueError: it went no further.
        """
        address = _HERE.get(self._bind.address, self._bind.address)
        self._reader, writer = await asyncio.open_connection(
            address, self._bind.port, limit=_OCTETS
        )
        self._writer = writer
        self._note(stage="greeting", connected=True)
        own = str(writer.get_extra_info("sockname")[0])
        if own in Networks(networks(self._config.listener.proxy_networks)):
            writer.write(_NAMELESS)
        if self._bind.implicit_tls:
            self._note(stage="starttls")
            await self._seal(writer)
            self._note(stage="greeting")
        lines = await self._reply()
        self._note(banner="\n".join(lines))
        if not lines[0].startswith("220"):
            raise ValueError(f"it takes no connection: {lines[0]}")
        offered = await self._greet(writer)
        if offered.starttls:
            self._note(stage="starttls")
            writer.write(commands.STARTTLS)
            said = await self._reply()
            if not said[0].startswith("220"):
                raise ValueError(f"it refuses STARTTLS: {said[0]}")
            await self._seal(writer)
            offered = await self._greet(writer)
        self._note(auth=sorted(offered.auth), stage="done")
        writer.write(commands.QUIT)
        await writer.drain()
        with contextlib.suppress(OSError, EOFError, ValueError):  # all was said
            await self._reply()

    async def _greet(self, writer: asyncio.StreamWriter) -> Capabilities:
        self._note(stage="ehlo")
        writer.write(commands.ehlo(self._config.hostname))
        lines = await self._reply()
        if not lines[0].startswith("250"):
            raise ValueError(f"it refuses EHLO: {lines[0]}")
        return Capabilities.parse([line[4:] for line in lines])

    async def _seal(self, writer: asyncio.StreamWriter) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # what it is for is what is to be found out
        context.verify_mode = ssl.CERT_NONE
        await writer.start_tls(context, server_hostname=self._config.hostname)
        sealed = writer.get_extra_info("ssl_object")
        shown = sealed.getpeercert(binary_form=True)
        pem = ssl.DER_cert_to_PEM_cert(shown) if shown else None
        self._note(tls=sealed.version(), certificate=pem)

    async def _reply(self) -> Sequence[str]:
        lines: list[str] = []
        while len(lines) < _LINES:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise EOFError("the connection was closed")
            lines.append(line.rstrip(b"\r\n").decode("utf-8", "backslashreplace"))
            if line[3:4] != b"-":
                return lines
        raise ValueError("its reply has no end")

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
