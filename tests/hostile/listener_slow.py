"""Clients that take their time: a byte now and then, no byte, replies that they do not read.

Contract. ``TIMEOUT`` bounds each silence; octets that drip do not extend it. Who is late hears 421
where he listens, and is cut. Good clients beside fifty slow ones have all their mail taken.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace

from tests.hostile.gate import Gate, codes, until_closed
from tests.hostile.table import Row
from tests.support.talk import Talk
from tests.support.trial import Plan

TIMEOUT = "5s"

DRIP_S = 0.25
LONGEST_S = 45.0
CUT, TOLD = "cut", "421, cut"
SLOW = "127.77.5.{}"
_ENVELOPE = b"EHLO s.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n"
_HELLO = bytes.fromhex("160301020001" + "0001fc0303") + bytes(500)


def run(gate: Gate, plan: Plan) -> Iterator[Row]:
    """Each kind, all at once; then many of them beside good clients."""
    with ThreadPoolExecutor(len(KINDS)) as threads:
        begun = [
            threads.submit(_timed, act, gate, SLOW.format(number + 1))
            for number, (_, act) in enumerate(KINDS.values())
        ]
        for (name, (wanted, _)), trial in zip(KINDS.items(), begun, strict=True):
            row = gate.measured(name, wanted, lambda trial=trial: trial.result()[0])  # type: ignore[misc]
            yield replace(row, seconds=trial.result()[1] if row.clean else None, cpu_s=None)
    gate.settled()
    yield gate.measured(
        "50 slow clients of all kinds beside good ones", "every good mail is taken",
        lambda: _beside(gate, plan.pick(50, 500)), times=plan.pick(50, 500),
    )  # fmt: skip


def _timed(act: Callable[[Gate, str], str], gate: Gate, source: str) -> tuple[str, float]:
    begun = time.monotonic()
    return act(gate, source), time.monotonic() - begun


def _ended(client: socket.socket, drip: bytes = b"", every: float = DRIP_S) -> str:
    """Drip until the server has had enough; how that was said."""
    came, at, until = b"", 0, time.monotonic() + LONGEST_S
    client.settimeout(every)
    while time.monotonic() < until:
        try:
            data = client.recv(65536)
            if not data:
                return _said(came)
            came += data
        except TimeoutError:
            if at < len(drip):
                with suppress(OSError):
                    client.sendall(drip[at : at + 1])
                at += 1
        except ConnectionError:
            return _said(came)
    return f"still open after {LONGEST_S:g} s"


def _said(came: bytes) -> str:
    return TOLD if codes(came)[-1:] == [421] and b"timeout, closing" in came else (
        CUT if 421 not in codes(came) else repr(came[-60:])
    )  # fmt: skip


def _kind(
    before: bytes, drip: bytes = b"", *, implicit: bool = False, replies: int = 0
) -> Callable[[Gate, str], str]:
    def act(gate: Gate, source: str) -> str:
        with gate.connect(source, implicit=implicit) as client:
            client.sendall(before)
            came = b""
            while len(codes(came)) < replies:
                came += client.recv(65536)
            return _ended(client, drip)

    return act


def _deaf(gate: Gate, source: str) -> str:
    """Commands without end, and not one reply is read."""
    with gate.connect(source) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(LONGEST_S)
        try:
            client.sendall(_ENVELOPE)
            while True:
                client.sendall(b"RCPT TO:<b@y.test>\r\n" * 1000)
        except TimeoutError:
            return f"still open after {LONGEST_S:g} s"
        except ConnectionError:
            return CUT


KINDS: dict[str, tuple[str, Callable[[Gate, str], str]]] = {
    "says nothing": (TOLD, _kind(b"")),
    "a byte now and then of a command": (TOLD, _kind(b"", b"EHLO " + b"x" * 200)),
    "a byte now and then of a second command": (
        TOLD, _kind(b"EHLO s.test\r\n", b"MAIL FROM:<" + b"x" * 200, replies=2),
    ),
    "says nothing behind RCPT": (TOLD, _kind(_ENVELOPE, replies=4)),
    "says nothing behind DATA": (TOLD, _kind(_ENVELOPE + b"DATA\r\n", replies=5)),
    "a byte now and then of a content": (
        TOLD, _kind(_ENVELOPE + b"DATA\r\n", b"Subject: " + b"x" * 200, replies=5),
    ),
    "a content whose end does not come": (
        TOLD, _kind(_ENVELOPE + b"DATA\r\nSubject: x\r\n\r\nx\r\n.\r", replies=5),
    ),
    "a BDAT whose octets do not come": (TOLD, _kind(_ENVELOPE + b"BDAT 1000 LAST\r\nx", replies=4)),
    "a byte now and then of a BDAT": (
        TOLD, _kind(_ENVELOPE + b"BDAT 1000 LAST\r\n", b"x" * 200, replies=4),
    ),
    "an AUTH that is not answered": (CUT, lambda gate, source: _half_login(gate, source)),
    "STARTTLS, and no handshake": (CUT, _kind(b"EHLO s.test\r\nSTARTTLS\r\n", replies=3)),
    "STARTTLS, and a handshake a byte now and then": (
        CUT, lambda gate, source: _slow_hello(gate, source),
    ),
    "TLS from the start, and no handshake": (CUT, _kind(b"", implicit=True)),
    "TLS from the start, and a handshake a byte now and then": (
        CUT, _kind(b"", _HELLO, implicit=True),
    ),
    "TLS from the start, and commands in clear": (CUT, _kind(b"EHLO s.test\r\n", implicit=True)),
    "replies that are not read": (CUT, _deaf),
}  # fmt: skip


def _half_login(gate: Gate, source: str) -> str:
    with gate.talk(source) as talk:
        talk.ehlo()
        talk.starttls()
        talk.ehlo()
        talk.say("AUTH LOGIN")
        talk.sock.settimeout(LONGEST_S)
        with suppress(OSError):
            return _said(until_closed(talk.sock)).replace(TOLD, CUT)
    return CUT


def _slow_hello(gate: Gate, source: str) -> str:
    with gate.talk(source) as talk:
        talk.ehlo()
        talk.say("STARTTLS")
        return _ended(talk.sock, _HELLO)


def _beside(gate: Gate, good: int) -> str:
    """Fifty that hold what they have, as long as it takes; the good ones use what is left."""
    kinds = [b"", b"EHLO s", _ENVELOPE + b"DATA\r\nx", _ENVELOPE + b"BDAT 99 LAST\r\nx"]

    def sends(number: int) -> bool:
        with Talk(gate.port, host=gate.address, source=f"127.77.6.{1 + number % 200}") as talk:
            talk.ehlo()
            reply = talk.mail(f"good-{number}@friends.test")
        gate.heard(f"{reply.code} {reply.text}\r\n".encode())
        return reply.code == 250

    with ExitStack() as held, ThreadPoolExecutor(8) as threads:
        for number in range(50):
            client = held.enter_context(gate.connect(SLOW.format(100 + number)))
            client.sendall(kinds[number % len(kinds)])
        taken = sum(threads.map(sends, range(good)))
    gate.settled()
    return "every good mail is taken" if taken == good else f"{taken} of {good} are taken"
