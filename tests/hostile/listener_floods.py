"""Clients that want all of it: connections, commands, errors, recipients, logins.

Contract. Who goes beyond a limit hears so and is let go; a client beside it, from another address,
has its mail taken all the while. Limits are those of ``listener.SMALL``, and the listener's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace

from tests.hostile.gate import FRIEND, Gate, codes, until_closed
from tests.hostile.table import MIB, Row
from tests.support.trial import Plan

OTHER = "127.77.9.9"
MOST_MEMORY = 96 * MIB
_ENVELOPE = b"EHLO f.test\r\nMAIL FROM:<a@x.test>\r\n"


def run(gate: Gate, plan: Plan) -> Iterator[Row]:
    """Each flood, with a good client beside it."""
    times = plan.pick(300, 3_000)
    yield _row(gate, f"{times} connections of one address, held", "40 stay, others hear 421", times,
               lambda: _held(gate, times, lambda _: FRIEND, 40))  # fmt: skip
    yield _row(gate, f"{times} connections of as many addresses, held", "60 stay, others hear 421",
               times, lambda: _held(gate, times, _address, 60), good=False)  # fmt: skip
    yield _row(gate, f"{times} connections one behind the other, nothing said", "all are greeted",
               times, lambda: _hasty(gate, times))  # fmt: skip
    for name, wanted, octets in (
        ("100,000 NOOPs in one go", "421, closed", b"EHLO f.test\r\n" + b"NOOP\r\n" * 100_000),
        ("100,000 RSETs in one go", "421, closed", b"EHLO f.test\r\n" + b"RSET\r\n" * 100_000),
        ("100,000 EHLOs in one go", "421, closed", b"EHLO f.test\r\n" * 100_000),
        ("100,000 VRFYs in one go", "421, closed", b"EHLO f.test\r\n" + b"VRFY a\r\n" * 100_000),
        ("100,000 HELPs in one go", "421, closed", b"EHLO f.test\r\n" + b"HELP\r\n" * 100_000),
        ("100,000 commands that are none", "421, closed", b"X\r\n" * 100_000),
        ("100,000 empty lines", "421, closed", b"\r\n" * 100_000),
        ("10 MB without a line end", "421 or 500, closed", b"x" * 10_000_000 + b"\r\nQUIT\r\n"),
        ("100,000 transactions that are given up", "421, closed",
         _ENVELOPE + b"RSET\r\nMAIL FROM:<a@x.test>\r\n" * 100_000),
        ("100,000 recipients", "452 4.5.3 beyond 10, 421 or all answered",
         _ENVELOPE + b"RCPT TO:<b@y.test>\r\n" * 100_000 + b"RSET\r\nQUIT\r\n"),
        ("100,000 recipients that are refused", "421, closed",
         _ENVELOPE + b"RCPT TO:<b@>\r\n" * 100_000 + b"QUIT\r\n"),
    ):  # fmt: skip
        yield _row(
            gate,
            name,
            wanted,
            1,
            lambda octets=octets, wanted=wanted: _poured(gate, octets, wanted),
        )  # type: ignore[misc]
    yield _row(gate, "55 logins at once from as many addresses", "454 or 535", 55,
               lambda: _logins(gate, 55))  # fmt: skip


def _address(number: int) -> str:
    return f"127.77.{100 + number // 250}.{1 + number % 250}"


def _row(gate: Gate, case: str, wanted: str, times: int, tried: Callable[[], str], *,
         good: bool = True) -> Row:  # fmt: skip
    refused: list[str] = []

    def beside() -> str:
        found = tried()
        if good and not gate.good("beside"):
            refused.append("a good client was refused behind it")
        return found

    row = gate.measured(case, wanted, beside, times=times)
    grown = [] if (row.memory or 0) <= MOST_MEMORY else [f"it grew by {row.memory} octets"]
    return replace(row, findings=(*row.findings, *refused, *grown))


def _held(gate: Gate, times: int, source: Callable[[int], str], most: int) -> str:
    """So many at once; who is greeted stays until all are there."""
    greeted = refused = 0
    with ExitStack() as held:
        for number in range(times):
            client = held.enter_context(gate.connect(source(number)))
            greeting = client.recv(1000)
            greeted += greeting.startswith(b"220")
            refused += greeting.startswith(b"421")
        good = source(0) == source(1) and _other(gate)
    if good is False and source(0) == source(1):
        return "another address is refused"
    gate.settled()
    if (greeted, refused) == (most, times - most):
        return f"{most} stay, others hear 421"
    return f"{greeted} stay, {refused} hear 421"


def _other(gate: Gate) -> bool:
    with gate.talk(OTHER) as talk:
        talk.ehlo()
        reply = talk.mail("b@friends.test")
    gate.heard(f"{reply.code} {reply.text}\r\n".encode())
    return reply.code == 250


def _hasty(gate: Gate, times: int) -> str:
    found = []
    for _ in range(times):
        with gate.connect() as client:
            found.append(client.recv(1000)[:3].decode())
    gate.settled()
    left = sorted(set(found) - {"220"})
    return "all are greeted" if not left else f"some hear {left}"


def _poured(gate: Gate, octets: bytes, wanted: str) -> str:
    """All at once, from one thread, while another reads what comes."""
    with gate.connect() as client, ThreadPoolExecutor(1) as thread:
        reading = thread.submit(until_closed, client)
        with suppress(OSError):
            client.sendall(octets)
        came = reading.result()
    gate.heard(came)
    found = codes(came)
    last = found[-1] if found else 0
    if wanted.startswith("452"):
        answered = len(found) >= 100_000
        told = b"\r\n452 4.5.3 " in came and found.count(250) <= 13
        good = told and (last == 421 or answered)
        return wanted if good else f"{len(found)} replies, {found.count(250)} x 250, last {last}"
    if wanted.startswith("421 or 500"):
        return wanted if last in (421, 221) and set(found[1:-1]) <= {500} else f"{found[:5]} {last}"
    return "421, closed" if last == 421 else f"{len(found)} replies, the last {last}"


def _logins(gate: Gate, times: int) -> str:
    """Each costs 16 MiB and a tenth of a second: it has its turn, or is told to come again."""

    def guess(number: int) -> int:
        with gate.talk(_address(number)) as talk:
            if talk.greeting.code != 220:
                return talk.greeting.code
            talk.ehlo()
            talk.starttls()
            talk.ehlo()
            return talk.login("root", "guess").code

    with ThreadPoolExecutor(50) as threads:
        found = set(threads.map(guess, range(times)))
    gate.settled()
    return "454 or 535" if found <= {454, 535} and found else str(sorted(found))
