"""Strangers who want to send through it, and guesses of a password.

Contract. A stranger's recipient is refused whatever it looks like and whatever was said before it:
550 where nobody could log in, 530 where a login would help. An address that only pretends to be
another's (PROXY from whoever is no proxy, XCLIENT, a greeting) changes nothing.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.hostile.gate import FRIEND, PASSWORD, PROXY, STRANGER, USER, Gate
from tests.hostile.table import Row
from tests.support.talk import Talk
from tests.support.trial import Plan

TLS_FIRST = "530 5.7.0 must issue STARTTLS first, then log in"
LOGIN_FIRST = "530 5.7.0 authentication required"
TOGETHER = 6
SENDER = "<a@x.test>"
VICTIM = "victim@elsewhere.test"
RECIPIENTS = {
    "another's domain": VICTIM,
    "percent hack": "victim%elsewhere.test@mx.test",
    "percent hack at our address": "victim%elsewhere.test@[127.0.0.1]",
    "bang path": "elsewhere.test!victim@mx.test",
    "quoted local part with an address in it": '"victim@elsewhere.test"@mx.test',
    "quoted percent hack": '"victim%elsewhere.test"@mx.test',
    "source route": "@mx.test:victim@elsewhere.test",
    "source route of several": "@mx.test,@sender.test:victim@elsewhere.test",
    "address literal": "victim@[127.0.0.1]",
    "IPv6 literal": "victim@[IPv6:::1]",
    "our own name": "root@sender.test",
    "postmaster": "postmaster",
    "no domain": "victim",
    "a pipe": "|/bin/sh",
    "a file": "/etc/passwd",
}
MALFORMED = {
    "two at signs": "victim@elsewhere.test@mx.test",
    "a comment": "victim(x)@elsewhere.test",
    "a list": "victim@elsewhere.test,root@mx.test",
}


def _text(talk: Talk, line: str) -> str:
    reply = talk.say(line)
    return f"{reply.code} {reply.text}"


def _stranger(
    gate: Gate, before: Callable[[Talk], None], recipient: str = VICTIM, *, mail: str = SENDER
) -> str:
    with gate.talk(STRANGER) as talk:
        before(talk)
        talk.say(f"MAIL FROM:{mail}")
        found = _text(talk, f"RCPT TO:<{recipient}>")
        after = talk.say("DATA")
    return found if after.code in (503, 554, 530) else f"{found}, then {after.code} to DATA"


def run(gate: Gate, plan: Plan) -> Iterator[Row]:
    """Recipients, pretences, logins."""
    for name, recipient in RECIPIENTS.items():
        yield gate.measured(
            f"a stranger's recipient: {name}", TLS_FIRST,
            lambda recipient=recipient: _stranger(gate, Talk.ehlo, recipient),  # type: ignore[misc]
        )  # fmt: skip
    for name, recipient in MALFORMED.items():
        yield gate.measured(
            f"a stranger's recipient: {name}", "501 5.5.4",
            lambda recipient=recipient: _stranger(gate, Talk.ehlo, recipient)[:9],  # type: ignore[misc]
        )  # fmt: skip
    for name, (wanted, before, mail) in _PRETENCES.items():
        yield gate.measured(
            f"a stranger {name}", wanted,
            lambda before=before, mail=mail: _stranger(gate, before, mail=mail),  # type: ignore[misc]
        )  # fmt: skip
    for name, (head, wanted, source) in _PROXIES.items():
        yield gate.measured(
            f"PROXY: {name}", wanted,
            lambda head=head, source=source: _proxied(gate, head, source),  # type: ignore[misc]
        )  # fmt: skip
    yield from _logins(gate, plan)


def _says(*lines: str) -> Callable[[Talk], None]:
    def say(talk: Talk) -> None:
        for line in lines:
            talk.say(line)

    return say


def _sealed(talk: Talk) -> None:
    talk.ehlo()
    talk.starttls()
    talk.ehlo()


def _failed_login(talk: Talk) -> None:
    _sealed(talk)
    assert talk.login(USER, "wrong").code == 535


def _half_login(talk: Talk) -> None:
    _sealed(talk)
    assert talk.say("AUTH LOGIN").code == 334
    assert talk.say(base64.b64encode(USER.encode()).decode()).code == 334
    assert talk.say("*").code == 501


def _other_identity(talk: Talk) -> None:
    _sealed(talk)
    told = base64.b64encode(f"root\0{USER}\0{PASSWORD}".encode()).decode()
    assert talk.say(f"AUTH PLAIN {told}").code == 535


def _login_forgotten(talk: Talk) -> None:
    """A login before STARTTLS is none behind it: there is none before."""
    talk.ehlo()
    assert talk.login(USER, PASSWORD).code in (502, 503, 504, 530, 538)


_PRETENCES: dict[str, tuple[str, Callable[[Talk], None], str]] = {
    "who says HELO": ("530 must issue STARTTLS first, then log in", _says("HELO x.test"), SENDER),
    "who calls itself localhost": (TLS_FIRST, _says("EHLO localhost"), SENDER),
    "who calls itself by a friend's address": (TLS_FIRST, _says(f"EHLO [{FRIEND}]"), SENDER),
    "with a sender of our own name": (TLS_FIRST, Talk.ehlo, "<root@sender.test>"),
    "with the null sender": (TLS_FIRST, Talk.ehlo, "<>"),
    "who says XCLIENT": (TLS_FIRST, _says("EHLO x", f"XCLIENT ADDR={FRIEND}"), SENDER),
    "who says XFORWARD": (TLS_FIRST, _says("EHLO x", f"XFORWARD ADDR={FRIEND}"), SENDER),
    "who says PROXY inside a session": (
        TLS_FIRST, _says("EHLO x", f"PROXY TCP4 {FRIEND} 127.0.0.1 1 25"), SENDER
    ),
    "with AUTH= in MAIL, where it is not offered": (
        "503 5.5.1 MAIL first", Talk.ehlo, f"{SENDER} AUTH=joe+40mx.test",
    ),
    "under TLS": (LOGIN_FIRST, _sealed, SENDER),
    "under TLS, with AUTH= in MAIL": (LOGIN_FIRST, _sealed, f"{SENDER} AUTH=joe+40mx.test"),
    "behind a refused login": (LOGIN_FIRST, _failed_login, SENDER),
    "behind half a login": (LOGIN_FIRST, _half_login, SENDER),
    "with a user's password, as another": (LOGIN_FIRST, _other_identity, SENDER),
    "who logs in in clear": (TLS_FIRST, _login_forgotten, SENDER),
}  # fmt: skip


def _v2(command: int, family: int, addresses: bytes) -> bytes:
    head = b"\r\n\r\n\0\r\nQUIT\n" + bytes((0x20 | command, family))
    return head + len(addresses).to_bytes(2, "big") + addresses


def _four(source: str) -> bytes:
    octets = bytes(map(int, source.split(".")))
    return octets + b"\x7f\0\0\x01" + b"\x30\x39\0\x19"


_V1 = "PROXY TCP4 {} 127.0.0.1 12345 25\r\n"
CUT = "cut before a greeting"
_PROXIES: dict[str, tuple[bytes, str, str]] = {
    "a stranger who is no proxy says he is a friend, v1": (
        _V1.format(FRIEND).encode(), TLS_FIRST, STRANGER,
    ),
    "a stranger who is no proxy says he is a friend, v2": (
        _v2(1, 0x11, _four(FRIEND)), TLS_FIRST, STRANGER,
    ),
    "the proxy brings a stranger, v1": (_V1.format(STRANGER).encode(), TLS_FIRST, PROXY),
    "the proxy brings a stranger, v2": (_v2(1, 0x11, _four(STRANGER)), TLS_FIRST, PROXY),
    "the proxy brings a friend, v1": (_V1.format(FRIEND).encode(), "250 2.1.5 recipient ok", PROXY),
    "the proxy brings a friend, v2": (
        _v2(1, 0x11, _four(FRIEND)), "250 2.1.5 recipient ok", PROXY,
    ),
    "the proxy brings nobody: UNKNOWN": (b"PROXY UNKNOWN\r\n", TLS_FIRST, PROXY),
    "the proxy brings nobody: LOCAL": (_v2(0, 0, b""), TLS_FIRST, PROXY),
    "the proxy brings this machine's own address": (
        _V1.format("127.0.0.1").encode(), TLS_FIRST, PROXY,
    ),
    "the proxy says nothing of whom it brings": (b"EHLO x.test\r\n", CUT, PROXY),
    "a header of a name": (b"PROXY TCP4 localhost 127.0.0.1 1 25\r\n", CUT, PROXY),
    "a header with an octal address": (b"PROXY TCP4 0177.0.0.1 127.0.0.1 1 25\r\n", CUT, PROXY),
    "a header without an end": (b"PROXY TCP4 " + b"1" * 200, CUT, PROXY),
    "a header of 64 KiB": (_v2(1, 0x11, bytes(65535)), CUT, PROXY),
    "two headers, the second a friend's": (
        _V1.format(STRANGER).encode() + _V1.format(FRIEND).encode(), TLS_FIRST, PROXY,
    ),
    "a header cut short by a command": (
        b"PROXY TCP4 127.77.0.1\r\nMAIL FROM:<a@x.test>\r\n", CUT, PROXY,
    ),
}  # fmt: skip


def _proxied(gate: Gate, head: bytes, source: str) -> str:
    with gate.talk(source, greeting=False) as talk:
        try:
            talk.send(head)
            greeting = talk.reply()
        except (EOFError, ConnectionError):
            return CUT
        assert greeting.code == 220, greeting
        # a header that nobody reads is refused lines, each with its reply
        talk.send(b"\r\nNOOP\r\n")
        while talk.reply().code != 250:
            continue
        talk.ehlo()
        talk.say("MAIL FROM:<a@x.test>")
        return _text(talk, f"RCPT TO:<{VICTIM}>")


def _logins(gate: Gate, plan: Plan) -> Iterator[Row]:
    def offered(source: str) -> str:
        with gate.talk(source) as talk:
            clear = any(line.startswith("AUTH") for line in talk.ehlo())
            refused = talk.login(USER, PASSWORD)
            talk.starttls()
            sealed = any(line.startswith("AUTH") for line in talk.ehlo())
        return f"in clear: {'offered' if clear else 'not offered'}, {refused.code}; under TLS: " + (
            "offered" if sealed else "not offered"
        )

    yield gate.measured(
        "AUTH in clear, with the right password", "in clear: not offered, 538; under TLS: offered",
        lambda: offered(STRANGER),
    )  # fmt: skip
    yield gate.measured(
        "a password is guessed over one connection",
        "535 535 535 421, closed",
        lambda: _guessed(gate),
    )
    yield gate.measured(
        "a password is guessed over many connections", "535, then 421, to the right one, too",
        lambda: _guessed_by_many(gate, plan.pick(40, 200)), times=plan.pick(40, 200),
    )  # fmt: skip
    yield gate.measured(
        "a user logs in meanwhile from elsewhere", "235 2.7.0 welcome", lambda: _logs_in(gate)
    )


def _guessed(gate: Gate) -> str:
    with gate.talk("127.66.1.1") as talk:
        _sealed(talk)
        found = []
        try:
            for number in range(10):
                found.append(talk.login(USER, f"guess {number}").code)
        except (EOFError, ConnectionError, ssl.SSLError):
            return f"{' '.join(map(str, found))}, closed"
    return " ".join(map(str, found))


def _guessed_by_many(gate: Gate, times: int) -> str:
    """All at once, as whoever guesses does; who is told to come again comes again."""

    def guess(number: int) -> int:
        while True:
            with gate.talk("127.66.1.2") as talk:
                _sealed(talk)
                code = talk.login("root", f"guess {number}").code
            if code != 454:
                return code

    with ThreadPoolExecutor(TOGETHER) as threads:
        found = set(threads.map(guess, range(times)))
    with gate.talk("127.66.1.2") as talk:
        _sealed(talk)
        code = talk.login(USER, PASSWORD).code
    if found <= {535, 421} and code == 421:
        return "535, then 421, to the right one, too"
    return f"{sorted(found)}, {code} to the right one"


def _logs_in(gate: Gate) -> str:
    with gate.talk("127.66.1.3") as talk:
        _sealed(talk)
        reply = talk.login(USER, PASSWORD)
        return f"{reply.code} {reply.text}"
