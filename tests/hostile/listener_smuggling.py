"""Every way to smuggle (``smuggling.ATTACKS``) through a real listener, in pieces and at once.

Contract. What answers is as the table says, in that order, and nobody evil comes out (``Gate``
looks at the spool afterwards). AUTH is offered under TLS alone, so it is tried there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

from tests.hostile.gate import FRIEND, STRANGER, Gate, codes, until_closed
from tests.hostile.smuggling import ATTACKS, Attack
from tests.hostile.table import Row
from tests.support.talk import Talk
from tests.support.trial import Plan

PIECES = (0, 1, 7)
"""Octets at a time; 0: all at once."""
LONG = 10_000
_QUIT = b"QUIT\r\n"


def run(gate: Gate, plan: Plan, *, fixed: bool) -> Iterator[Row]:
    """All of them; where bare line ends are fixed, those alone that it makes a difference to."""
    for attack in ATTACKS:
        if fixed and not attack.fixed:
            continue
        pieces = _pieces(attack)
        replies = attack.fixed if fixed else attack.replies
        wanted = " ".join(map(str, replies)) + (", closed" if attack.closed else "")
        case = f"{attack.name}{', bare line ends fixed' if fixed else ''}"

        def tried(attack: Attack = attack, pieces: tuple[int, ...] = pieces) -> str:
            seen = {_sent(gate, attack, size) for size in pieces}
            return " or ".join(sorted(seen))

        yield gate.measured(case, wanted, tried, times=len(pieces))


def _pieces(attack: Attack) -> tuple[int, ...]:
    if attack.needs == "starttls":
        return (0,)  # what comes once the reply is out is the handshake's
    if len(attack.sent) > LONG:
        return (0, len(attack.sent) // 50)
    return PIECES


def _sent(gate: Gate, attack: Attack, size: int) -> str:
    """One attempt; the codes that answered it, and whether the server closed by itself."""
    sealed = attack.needs == "auth"
    with gate.talk(STRANGER if sealed else FRIEND) as talk:
        talk.ehlo()
        if sealed:
            talk.starttls()
            talk.ehlo()
        _write(talk, attack.sent, size)
        over = attack.closed or attack.sent.endswith(_QUIT)
        if b"9" * 20 in attack.sent and not attack.closed:
            talk.sock.shutdown(socket.SHUT_WR)  # octets that were announced and never come
        elif not over:
            _write(talk, _QUIT, 0)
        found = codes(gate.heard(until_closed(talk.sock)))
    if not over and found[-1:] == [221]:
        found.pop()
    return " ".join(map(str, found)) + (", closed" if attack.closed else "")


def _write(talk: Talk, data: bytes, size: int) -> None:
    """All of it; that the server wants no more is no error."""
    with suppress(BrokenPipeError, ConnectionResetError):
        for at in range(0, len(data), size or len(data)):
            talk.send(data[at : at + (size or len(data))])
