"""A name server that says whatever bytes a case wants, by UDP and TCP, and notes who asked what.

Contract. ``Peer`` answers each question by the ``Say`` of its name, of the nearest name above it
that has one, or by NXDOMAIN. A ``Say`` gets the question and gives acts in order: ``Out`` (bytes,
from our port or from elsewhere), ``Wait``, ``Close``; without any it is silent. By TCP an ``Out``
is framed unless it is ``raw``. Bytes are made by hand (``message``, ``record``, ``spelled``): no
library may refuse to write what no server should. All runs on one loop in a thread of its own.

Must not know: any case, the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from tests.support.sockets import free_port, loopback_addresses

A, NS, CNAME, SOA, MX, TXT, AAAA = 1, 2, 5, 6, 15, 16, 28
KINDS = {A: "A", CNAME: "CNAME", MX: "MX", AAAA: "AAAA"}
QR, TC, RD, RA = 0x8000, 0x0200, 0x0100, 0x0080
NXDOMAIN = 3
ASKED = b"\xc0\x0c"
"""A pointer to the question's name."""
TCP_S = 60.0
_PACED = 64  # datagrams that a receiver's buffer takes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question as it came.

    Args:
        wire: its bytes; ``id`` is their first two.
        port: whence.
        number: how many of this name and kind came, with this one.
        at: seconds, monotonic.
    """

    wire: bytes
    name: str
    kind: int
    tcp: bool
    port: int
    number: int
    at: float

    @property
    def id(self) -> bytes:
        """Its number, two octets."""
        return self.wire[:2]

    @property
    def section(self) -> bytes:
        """Its question, to be sent back."""
        return self.wire[12:]


@dataclass(frozen=True, slots=True)
class Out:
    """Send this; ``elsewhere`` from another port, or ``stranger`` from another address, by UDP."""

    data: bytes
    elsewhere: bool = False
    stranger: bool = False
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection; with ``reset`` by RST."""

    reset: bool = False


Act = Out | Wait | Close
Say = Callable[[Question], Iterable[Act]]


def spelled(*labels: bytes | str) -> bytes:
    """A name on the wire, whatever its labels hold; a text is split at its dots."""
    octets = b""
    for label in labels:
        parts = [label] if isinstance(label, bytes) else [one.encode() for one in label.split(".")]
        octets += b"".join(bytes([len(part)]) + part for part in parts)
    return octets + b"\0"


def record(kind: int, data: bytes, *, owner: bytes = ASKED, ttl: int = 60) -> bytes:
    """A record of any owner, on the wire."""
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def mx(name: bytes | str, preference: int = 10, *, ttl: int = 60, owner: bytes = ASKED) -> bytes:
    """An MX record; a text is a name."""
    exchange = name if isinstance(name, bytes) else spelled(name)
    return record(MX, struct.pack("!H", preference) + exchange, ttl=ttl, owner=owner)


def address(ip: str, *, ttl: int = 60, owner: bytes = ASKED) -> bytes:
    """An A or AAAA record."""
    if ":" in ip:
        return record(AAAA, socket.inet_pton(socket.AF_INET6, ip), ttl=ttl, owner=owner)
    return record(A, socket.inet_aton(ip), ttl=ttl, owner=owner)


def soa(ttl: int = 60, minimum: int = 60, zone: bytes = b"\0") -> bytes:
    """An SOA record for a denial."""
    numbers = struct.pack("!IIIII", 1, 3600, 600, 86400, minimum)
    return record(
        SOA, spelled("ns.invalid") + spelled("root.invalid") + numbers, owner=zone, ttl=ttl
    )


def message(
    question: Question,
    *answers: bytes,
    rcode: int = 0,
    flags: int = QR | RD | RA,
    authority: Sequence[bytes] = (),
    additional: Sequence[bytes] = (),
    id: bytes | None = None,
    section: bytes | None = None,
    counts: tuple[int, int, int, int] | None = None,
) -> bytes:
    """An answer, right unless told otherwise."""
    said = counts or (1, len(answers), len(authority), len(additional))
    head = (question.id if id is None else id) + struct.pack("!HHHHH", flags | rcode, *said)
    body = question.section if section is None else section
    return head + body + b"".join([*answers, *authority, *additional])


def right(question: Question, *answers: bytes, **options: object) -> Iterator[Act]:
    """A right answer: by TCP where it does not fit a datagram."""
    wire = message(question, *answers, **options)  # type: ignore[arg-type]
    if not question.tcp and len(wire) > 512:
        wire = message(question, flags=QR | RD | RA | TC)
    yield Out(wire)


def by_tcp(say: Say) -> Say:
    """Cut off by UDP, so that only what is said by TCP counts."""

    def cut(question: Question) -> Iterable[Act]:
        if question.tcp:
            return say(question)
        return (Out(message(question, flags=QR | RD | RA | TC)),)

    return cut


def host(*ips: str, ttl: int = 60) -> Say:
    """A name with these addresses."""

    def say(question: Question) -> Iterator[Act]:
        mine = [ip for ip in ips if (":" in ip) is (question.kind == AAAA)]
        if question.kind not in (A, AAAA) or not mine:
            return right(question, authority=[soa()])
        return right(question, *[address(ip, ttl=ttl) for ip in mine])

    return say


def only(kind: int, say: Say) -> Say:
    """Said of one kind; of others there are none."""
    return lambda q: say(q) if q.kind == kind else right(q, authority=[soa()])


def nowhere(question: Question) -> Iterator[Act]:
    """NXDOMAIN."""
    return right(question, rcode=NXDOMAIN, authority=[soa()])


class Peer:
    """The server; a context manager.

    Attributes:
        asked: every question, in order.
        mistakes: what went wrong here: no fault of who asked.
        at: its address and port.
    """

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.mistakes: list[str] = []
        self._says: dict[str, Say] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dns peer", daemon=True)
        self.host, self._stranger = loopback_addresses(2)
        self.port = free_port(self.host)
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()

    @property
    def at(self) -> str:
        """As a configuration names it."""
        return f"{self.host}:{self.port}"

    def says(self, name: str, say: Say) -> None:
        """What is said of a name from now on, and of names below it without words of their own."""
        self._says[name.lower()] = say

    def count(self, name: str, kind: int | None = None) -> int:
        """How often a name was asked for."""
        kinds = (A, AAAA, MX) if kind is None else (kind,)
        return sum(self._counts[name, one] for one in kinds)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        peer = self

        class Datagrams(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                peer._begin(peer._datagram(data, addr))

        self._udp, _ = await self._loop.create_datagram_endpoint(
            Datagrams, local_addr=(self.host, self.port)
        )
        self._tcp = await asyncio.start_server(self._stream, self.host, self.port, backlog=512)

    async def _close(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for task in list(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    def _begin(self, step: object) -> None:
        task = self._loop.create_task(step)  # type: ignore[arg-type]
        self._busy.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.mistakes.append(repr(task.exception()))

    def _note(self, wire: bytes, port: int, *, tcp: bool) -> Question:
        labels, at = [], 12
        while size := wire[at]:
            labels.append(wire[at + 1 : at + 1 + size].decode("ascii"))
            at += 1 + size
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from("!H", wire, at + 1)
        self._counts[name, kind] += 1
        question = Question(
            wire=wire, name=name, kind=kind, tcp=tcp, port=port,
            number=self._counts[name, kind], at=time.monotonic(),
        )  # fmt: skip
        self.asked.append(question)
        return question

    def _said(self, question: Question) -> Iterable[Act]:
        name = question.name
        while name:
            if (say := self._says.get(name)) is not None:
                return say(question)
            name = name.partition(".")[2]
        return nowhere(question)

    async def _datagram(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._udp is not None
        with contextlib.ExitStack() as opened:
            others: dict[bool, socket.socket] = {}
            for sent, act in enumerate(self._said(self._note(data, addr[1], tcp=False)), 1):
                if isinstance(act, Wait):
                    await asyncio.sleep(act.seconds)
                elif isinstance(act, Out) and (act.elsewhere or act.stranger):
                    if act.stranger not in others:
                        made = opened.enter_context(
                            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                        )
                        made.bind((self._stranger if act.stranger else self.host, 0))
                        others[act.stranger] = made
                    others[act.stranger].sendto(act.data, addr)
                elif isinstance(act, Out) and not self._udp.is_closing():
                    self._udp.sendto(act.data, addr)
                if sent % _PACED == 0:
                    await asyncio.sleep(0.005)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._busy.add(me)
        try:
            async with asyncio.timeout(TCP_S):
                while True:
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(size)
                    port = writer.get_extra_info("peername")[1]
                    for act in self._said(self._note(wire, port, tcp=True)):
                        if isinstance(act, Wait):
                            await asyncio.sleep(act.seconds)
                        elif isinstance(act, Close):
                            if act.reset:
                                linger = struct.pack("ii", 1, 0)
                                writer.get_extra_info("socket").setsockopt(
                                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                                )
                            return
                        else:
                            framed = len(act.data).to_bytes(2, "big") + act.data
                            writer.write(act.data if act.raw else framed)
                            await writer.drain()
        except (asyncio.IncompleteReadError, OSError, TimeoutError, asyncio.CancelledError):
            pass  # the other side went away, or the server closes
        except Exception as mistake:
            self.mistakes.append(repr(mistake))
        finally:
            self._busy.discard(me)
            writer.close()
