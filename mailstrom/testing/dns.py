"""An authoritative DNS server for tests and the demo: UDP and TCP on loopback, zone as a dict.

It answers as a recursive resolver would for the zone it holds (CNAME chains followed, SOA in the
authority section of NODATA and NXDOMAIN) and misbehaves on request. The zone is plain data and may
be changed while the server runs; every question is counted.

Zone: ``{name: entry}``; names without the final dot. An entry is a fault word for all types, or
``{type: answer}`` with an optional ``"TTL"`` in seconds and ``"ANY"`` for types not listed. An
answer is a list of record texts (``["10 mx1.example.test"]``), a fault word, or
``{"values": [...], "fault": word, "ttl": s, "delay": s}``. Names in records are absolute.

================  =====================================================================
fault word        what happens
================  =====================================================================
NODATA            no record of this type, SOA in authority
NXDOMAIN          no such name, SOA in authority
SERVFAIL REFUSED  that rcode (also FORMERR, NOTIMP)
TIMEOUT           no answer at all; TCP: the connection stays open, silent
TRUNCATE          UDP: empty with TC set; TCP: the values
TRUNCATE_DEAD     UDP: empty with TC set; TCP: closed without an answer
TRUNCATE_EMPTY    UDP and TCP: empty with TC set
TRUNCATE_PART     UDP and TCP: the first of the values, with TC set
GARBAGE           bytes that are no DNS message
WRONG_ID          the values under another id
WRONG_QUESTION    the values of this name as the answer to another question
================  =====================================================================

Runs in process (``async with DNSServer(zone) as server``) or by itself:
``python -P -m mailstrom.testing.dns --bind 127.0.0.1:5353 --zone FILE.json`` prints one JSON line
when ready, reads the file again at SIGHUP and ends at SIGTERM. RFC 1034, 1035, 2308. For tests:
no zone transfer, no DNSSEC, no EDNS options. Past 400 lines: a server, its command line and the
table above are read together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

HELP = """\
The zone is one JSON object of names, for example:

  {
    "example.test":     {"MX": ["10 mx1.example.test"]},
    "mx1.example.test": {"A": ["127.0.0.2"], "TTL": 60},
    "broken.test":      "SERVFAIL",
    "slow.test":        {"MX": {"values": ["10 mx1.example.test"], "delay": 2}}
  }

Fault words instead of an answer: NODATA NXDOMAIN SERVFAIL REFUSED FORMERR NOTIMP TIMEOUT TRUNCATE
TRUNCATE_DEAD TRUNCATE_EMPTY TRUNCATE_PART GARBAGE WRONG_ID WRONG_QUESTION. One JSON line is
printed when the server is ready; SIGTERM ends it."""

Answer = str | Sequence[str] | Mapping[str, object]
Entry = str | Mapping[str, object]
Zone = MutableMapping[str, Entry]

MAX_LINKS = 100
TCP_IDLE_S = 30.0
_RCODES = frozenset({"SERVFAIL", "REFUSED", "FORMERR", "NOTIMP"})
_FAULTS = _RCODES | {
    "NODATA", "NXDOMAIN", "TIMEOUT", "TRUNCATE", "TRUNCATE_DEAD", "TRUNCATE_EMPTY", "TRUNCATE_PART",
    "GARBAGE", "WRONG_ID", "WRONG_QUESTION",
}  # fmt: skip


class DNSServer:
    """The server; an async context manager.

    Args:
        zone: see the module; the caller may change it at any time.
        host: loopback address to bind.
        port: 0 picks a free one, the same for UDP and TCP.
        ttl_s: TTL of records that name none.
        negative_ttl_s: TTL and minimum of the SOA (RFC 2308).
        tls: with a context the TCP side speaks DNS over TLS (RFC 7858).

    Raises:
        OSError: no port is free.
        DNSException, ValueError, TypeError: when leaving, if the zone held a mistake.

    Attributes:
        queries: how often each (name, type) was asked.
        tcp_queries: how many of them came by TCP.
    """

    def __init__(
        self,
        zone: Zone,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ttl_s: int = 300,
        negative_ttl_s: int = 60,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.zone = zone
        self.host = host
        self.port = port
        self.ttl_s = ttl_s
        self.negative_ttl_s = negative_ttl_s
        self.queries: Counter[tuple[str, str]] = Counter()
        self.tcp_queries = 0
        self._tls = tls
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._mistake: Exception | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            udp, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(self.host, self.port)
            )
            number = int(udp.get_extra_info("sockname")[1])
            try:
                self._tcp = await asyncio.start_server(
                    self._serve_tcp, self.host, number, ssl=self._tls
                )
            except OSError:
                udp.close()
                if self.port:
                    raise
                continue  # somebody has the TCP port of that number: take another pair
            self._udp = udp
            self.port = number
            return self
        raise OSError(f"no port on {self.host} is free for both UDP and TCP")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for pending in list(self._pending):
            pending.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        if self._tcp is not None:
            await self._tcp.wait_closed()
        if self._mistake is not None and error is None:
            raise self._mistake

    @property
    def total(self) -> int:
        """Questions asked so far."""
        return self.queries.total()

    async def asked(self, count: int) -> None:
        """Wait until at least ``count`` questions came."""
        while self.total < count:
            self._news.clear()
            await self._news.wait()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Run on a loop in a thread of its own, for callers without a loop.

        Raises:
            OSError: as when entered; and what leaving raises.
        """
        loop = asyncio.new_event_loop()
        runner = threading.Thread(target=loop.run_forever, name=f"dns-{self.host}", daemon=True)
        runner.start()
        try:
            asyncio.run_coroutine_threadsafe(self.__aenter__(), loop).result()
            try:
                yield self
            finally:
                asyncio.run_coroutine_threadsafe(self.__aexit__(None, None, None), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            runner.join()
            loop.close()

    def answer_later(self, wire: bytes, transport: asyncio.DatagramTransport, peer: object) -> None:
        """Answer one datagram; it may take its time."""
        answer = asyncio.get_running_loop().create_task(self._serve_udp(wire, transport, peer))
        self._pending.add(answer)
        answer.add_done_callback(self._pending.discard)

    async def _serve_udp(
        self, wire: bytes, transport: asyncio.DatagramTransport, peer: object
    ) -> None:
        answer = await self._answer(wire, tcp=False)
        if answer is not None and not transport.is_closing():
            transport.sendto(answer, cast("tuple[str, int]", peer))

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = cast("asyncio.Task[None]", asyncio.current_task())
        self._pending.add(serving)
        try:
            async with asyncio.timeout(TCP_IDLE_S):
                while True:
                    size = int.from_bytes(await reader.readexactly(2))
                    wire = await reader.readexactly(size)
                    self.tcp_queries += 1
                    answer = await self._answer(wire, tcp=True)
                    if answer == b"":
                        return
                    if answer is not None:
                        writer.write(len(answer).to_bytes(2) + answer)
                        await writer.drain()
        except (asyncio.IncompleteReadError, OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client went away, or the server is closing
        finally:
            self._pending.discard(serving)
            writer.close()

    async def _answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        # None: silence. Empty: close (TCP).
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        name = _text(question.name)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.queries[name, kind] += 1
        self._news.set()
        try:
            return await self._respond(query, name, kind, tcp=tcp)
        except (dns.exception.DNSException, ValueError, TypeError) as mistake:
            # A mistake in the zone: silence now, and the owner hears of it when it closes us.
            self._mistake = mistake
            return None

    async def _respond(
        self, query: dns.message.Message, name: str, kind: str, *, tcp: bool
    ) -> bytes | None:
        values, fault, ttl_s, delay_s = self._look(name, kind)
        if delay_s:
            await asyncio.sleep(delay_s)
        if fault == "TIMEOUT":
            return None
        if fault == "GARBAGE":
            return query.id.to_bytes(2) + b"\xff" * 40
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        if fault in _RCODES:
            response.set_rcode(dns.rcode.from_text(fault))
        elif fault in ("TRUNCATE", "TRUNCATE_DEAD") and not tcp:
            response.flags |= dns.flags.TC
        elif fault == "TRUNCATE_DEAD":
            return b""
        elif fault in ("TRUNCATE_EMPTY", "TRUNCATE_PART"):
            response.flags |= dns.flags.TC
            if fault == "TRUNCATE_PART":
                self._fill(response, name, kind, values[:1], ttl_s)
        elif fault in ("NXDOMAIN", "NODATA"):
            self._deny(response, fault)
        else:
            self._fill(response, name, kind, values, ttl_s)
        if fault == "WRONG_ID":
            response.id ^= 1
        if fault == "WRONG_QUESTION":
            other = dns.name.from_text("other", origin=query.question[0].name)
            response.question = [
                dns.rrset.RRset(other, dns.rdataclass.IN, query.question[0].rdtype)
            ]
        limit = 65_535 if tcp else max(query.payload, 512)  # RFC 1035 section 4.2.1, RFC 6891
        return response.to_wire(max_size=limit, prefer_truncation=True)

    def _fill(
        self, response: dns.message.Message, name: str, kind: str, values: Sequence[str], ttl_s: int
    ) -> None:
        for _ in range(MAX_LINKS):
            if values:
                response.answer.append(_rrset(name, ttl_s, kind, values))
                return
            alias, _, alias_ttl_s, _ = self._look(name, "CNAME")
            if not alias or kind == "CNAME":
                break
            response.answer.append(_rrset(name, alias_ttl_s, "CNAME", alias))
            if any(_text(rrset.name) == alias[0].rstrip(".").lower() for rrset in response.answer):
                return  # a loop: said once, as it stands in the zone
            name = alias[0].rstrip(".").lower()
            values, fault, ttl_s, _ = self._look(name, kind)
            if fault in _RCODES:
                response.set_rcode(dns.rcode.from_text(fault))
                return
        else:
            return
        self._deny(response, "NODATA" if self._exists(name) else "NXDOMAIN")

    def _deny(self, response: dns.message.Message, word: str) -> None:
        if word == "NXDOMAIN":
            response.set_rcode(dns.rcode.NXDOMAIN)
        numbers = f"1 3600 600 86400 {self.negative_ttl_s}"
        soa = f"ns.invalid. hostmaster.invalid. {numbers}"
        response.authority.append(_rrset("", self.negative_ttl_s, "SOA", [soa]))

    def _exists(self, name: str) -> bool:
        # A name above a name of the zone exists too (empty non-terminal, RFC 8020).
        return not name or any(
            known == name or known.endswith(f".{name}") for known in map(_key, self.zone)
        )

    def _look(self, name: str, kind: str) -> tuple[Sequence[str], str | None, int, float]:
        entry = next((e for n, e in self.zone.items() if _key(n) == name), None)
        if entry is None:
            return (), None, self.ttl_s, 0.0
        if isinstance(entry, str):
            return (), _fault(entry), self.ttl_s, 0.0
        ttl_s = int(cast(int, entry.get("TTL", self.ttl_s)))
        answer = cast("Answer", entry.get(kind, entry.get("ANY", ())))
        if isinstance(answer, str):
            return (), _fault(answer), ttl_s, 0.0
        if not isinstance(answer, Mapping):
            return answer, None, ttl_s, 0.0
        values = cast("Sequence[str]", answer.get("values", ()))
        fault = cast("str | None", answer.get("fault"))
        delay_s = float(cast(float, answer.get("delay", 0.0)))
        ttl_s = int(cast(int, answer.get("ttl", ttl_s)))
        return values, None if fault is None else _fault(fault), ttl_s, delay_s


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DNSServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self._transport is not None:
            self._server.answer_later(data, self._transport, addr)


def _fault(word: str) -> str:
    if word not in _FAULTS:
        raise ValueError(f"unknown DNS fault {word!r} in the zone: one of {sorted(_FAULTS)}")
    return word


def _key(name: str) -> str:
    return name.rstrip(".").lower()


def _text(name: dns.name.Name) -> str:
    return _key(name.to_text())  # the root: empty


def _rrset(name: str, ttl_s: int, kind: str, values: Sequence[str]) -> dns.rrset.RRset:
    owner = dns.name.from_text(f"{name}.")
    return dns.rrset.from_text_list(
        owner, ttl_s, dns.rdataclass.IN, kind, list(values), origin=dns.name.root, relativize=False
    )


def _load(path: Path) -> Zone:
    zone = json.loads(path.read_text())
    if not isinstance(zone, dict):
        raise ValueError(f"{path}: a zone file is one JSON object of names")
    return zone


async def _run(host: str, port: int, path: Path, tls: ssl.SSLContext | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with DNSServer(_load(path), host=host, port=port, tls=tls) as server:

        def reload() -> None:
            # A file half written must not end the server; the old zone goes on.
            with contextlib.suppress(OSError, ValueError):
                server.zone = _load(path)

        loop.add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        bound = [[server.host, server.port]]
        print(json.dumps({"event": "ready", "pid": os.getpid(), "bound": bound}), flush=True)
        await stopping.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server as a process until SIGTERM or SIGINT.

    Returns:
        0 after a clean end; argparse exits with 2 on bad usage.
    """
    parser = argparse.ArgumentParser(
        prog="python -P -m mailstrom.testing.dns",
        description="DNS server for tests: answers for the zone in a file, over UDP and TCP.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="port 0, the default, takes a free one",
    )
    parser.add_argument(
        "--zone", required=True, type=Path, metavar="FILE.json", help="read again at SIGHUP"
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="certificate chain: TCP speaks DNS over TLS"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM")
    options = parser.parse_args(argv)
    tls: ssl.SSLContext | None = None
    if options.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.tls_cert, options.tls_key)
    host, _, port = str(options.bind).rpartition(":")
    asyncio.run(_run(host.strip("[]"), int(port), options.zone, tls))
    return 0


if __name__ == "__main__":
    sys.exit(main())
