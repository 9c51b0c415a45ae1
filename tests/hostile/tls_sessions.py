"""What the hosts of this group do once TLS is on and a session runs.

Contract. Tables of variants for ``tls_cases``; each does its worst at one place of a session that
goes well until then.

Must not know: what a client ought to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.hostile.tls_forge import (
    ALERT,
    BROKEN_TICKET,
    DATA,
    HANDSHAKE,
    HELLO_REQUEST,
    INTERNAL_ERROR,
    KEY_UPDATE,
    KEY_UPDATE_ASKED,
    Forge,
    ticket,
)
from tests.hostile.tls_line import MARK, Gone, Line
from tests.hostile.tls_talk import At, Make, forged, secured

BIG = f"{MARK} {'x' * 60}\n" * 100_000
"""About 8 MB: more than the buffers on the way can take unread."""
MANY = 2_000
_REFUSED = "554 5.7.1 refused\r\n"
_TAKEN = "250 2.0.0 taken\r\n"


def endless_lines(line: Line) -> bool:
    """A reply that does not end."""
    while True:
        line.say("250-" + "x" * 500 + "\r\n")


# Ends


def _fin(line: Line) -> None:
    raise Gone


def _notice(line: Line) -> None:
    line.notify()
    raise Gone


def _in_clear(line: Line) -> None:
    line.write(b"451 4.3.0 not now\r\n")
    line.listen()


def _half(line: Line) -> None:
    """Half a record of the reply."""
    line.through = lambda octets: line.write(octets[: len(octets) // 2])
    line.say(_TAKEN)
    raise Gone


def _forged_end(line: Line, forge: Forge, how: str) -> None:
    if how == "alert":
        line.write(forge.sealed(ALERT, INTERNAL_ERROR))
        raise Gone
    if how == "damaged":
        line.write(forge.damaged(_TAKEN.encode()))
    elif how == "half":
        record = forge.sealed(DATA, _TAKEN.encode())
        line.write(record[: len(record) // 2])
        raise Gone
    elif how == "again":
        record = forge.sealed(DATA, b"250-2.0.0 hm\r\n")
        line.write(record + record)
    line.listen()


_ENDS: dict[str, Callable[[Line], None]] = {
    "closes": _fin,
    "notice and close": _notice,
    "resets": Line.reset,
    "in clear": _in_clear,
    "half a record": _half,
}
_FORGED_ENDS = ("alert", "damaged", "again")


def breaking(where: str) -> dict[str, Make]:
    """Every way to break off: within the ``body``, behind the ``dot``, or the 250 (``taken``)."""
    ends = dict(_ENDS)
    if where == "body":
        del ends["half a record"]
    elif where == "taken":  # what comes in one piece with the 250 is another case
        del ends["half a record"], ends["in clear"]

    def plainly(end: Callable[[Line], None]) -> At:
        def act(line: Line) -> None:
            if where == "taken":
                line.say(_TAKEN)
            end(line)

        return {"body" if where == "body" else "dot": act}

    def forging(how: str, version: str) -> Make:
        def at(forge: Forge) -> At:
            def act(line: Line) -> None:
                _forged_end(line, forge, how)

            return {"body" if where == "body" else "dot": act}

        return forged(version, at)

    return {
        f"{name}, TLS {version}": secured(version=version, at=plainly(end))
        for name, end in ends.items()
        for version in ("1.2", "1.3")
    } | {
        f"{how}, TLS {version}": forging(how, version)
        for how in (_FORGED_ENDS if where != "taken" else ())
        for version in ("1.2", "1.3")
    }


def _in_one(end: Callable[[Forge], bytes], version: str) -> Make:
    def at(forge: Forge) -> At:
        def act(line: Line) -> None:
            line.write(forge.sealed(DATA, _TAKEN.encode()) + end(forge))
            line.listen()

        return {"dot": act}

    return forged(version, at)


IN_ONE = {
    f"{name}, TLS {version}": _in_one(end, version)
    for name, end in {
        "an alert": lambda forge: forge.sealed(ALERT, INTERNAL_ERROR),
        "a damaged record": lambda forge: forge.damaged(b"what"),
        "an SMTP reply in clear": lambda _forge: b"451 4.3.0 not now\r\n",
    }.items()
    for version in ("1.2", "1.3")
}


def _refusing(end: Callable[[Line], None]) -> Make:
    def act(line: Line) -> None:
        line.say(_REFUSED)
        end(line)

    return secured(at={"body": act})


REFUSING = {
    "closes": _refusing(_fin),
    "notice and close": _refusing(_notice),
}
RESETTING = {"resets": _refusing(Line.reset)}


def _false(line: Line) -> None:
    """Who stands in between says in clear what the host did not say."""
    line.write(_TAKEN.encode())
    line.listen()


FALSE = {version: secured(version=version, at={"dot": _false}) for version in ("1.2", "1.3")}


# Records instead of a reply, or before it


def _before(word: str, make: Callable[[Forge], Iterator[bytes]], version: str = "1.3") -> Make:
    def at(forge: Forge) -> At:
        def act(line: Line) -> None:
            for record in make(forge):
                line.write(record)

        return {word: act}

    return forged(version, at)


def _tickets(forge: Forge) -> Iterator[bytes]:
    for _ in range(MANY):
        yield forge.sealed(HANDSHAKE, ticket())


def _great_tickets(forge: Forge) -> Iterator[bytes]:
    for _ in range(MANY // 20):
        yield forge.sealed(HANDSHAKE, ticket(15_000))


def _updates(forge: Forge) -> Iterator[bytes]:
    for _ in range(MANY):
        yield forge.turned()


def _updates_asked(forge: Forge) -> Iterator[bytes]:
    for _ in range(MANY):
        yield forge.turned(KEY_UPDATE_ASKED)


def _empty(forge: Forge) -> Iterator[bytes]:
    for _ in range(20):
        yield forge.sealed(DATA, b"")


def _in_two(forge: Forge) -> Iterator[bytes]:
    """A handshake message over two records."""
    whole = ticket()
    yield forge.sealed(HANDSHAKE, whole[:7])
    yield forge.sealed(HANDSHAKE, whole[7:])


FLOODS = {
    "tickets": _before("MAIL", _tickets),
    "great tickets": _before("MAIL", _great_tickets),
    "key updates": _before("MAIL", _updates),
    "key updates, ours asked for": _before("MAIL", _updates_asked),
    "key updates behind the dot": _before("dot", _updates),
    "empty records": _before("MAIL", _empty),
    "a ticket in two": _before("MAIL", _in_two),
}


def _one(kind: int, octets: bytes) -> Callable[[Forge], Iterator[bytes]]:
    def make(forge: Forge) -> Iterator[bytes]:
        yield forge.sealed(kind, octets)

    return make


def _raw(octets: bytes) -> Callable[[Forge], Iterator[bytes]]:
    def make(_forge: Forge) -> Iterator[bytes]:
        yield octets

    return make


def _half_an_update(forge: Forge) -> Iterator[bytes]:
    """An update, and behind it a record under the key of before."""
    yield forge.sealed(HANDSHAKE, KEY_UPDATE)
    yield forge.sealed(DATA, b"250 2.1.0 ok\r\n")


ABSURD = {
    "a broken ticket": _before("MAIL", _one(HANDSHAKE, BROKEN_TICKET)),
    "a key update of no kind": _before("MAIL", _one(HANDSHAKE, b"\x18\x00\x00\x01\x07")),
    "a key update not kept": _before("MAIL", _half_an_update),
    "another hello": _before("MAIL", _one(HANDSHAKE, b"\x02\x00\x00\x02\x03\x03")),
    "a message of no kind": _before("MAIL", _one(HANDSHAKE, b"\x77\x00\x00\x01\x00")),
    "a message of 16 MB": _before("MAIL", _one(HANDSHAKE, b"\x04\xff\xff\xff" + bytes(9000))),
    "a demand for our certificate": _before(
        "MAIL", _one(HANDSHAKE, b"\x0d\x00\x00\x0b\x00\x00\x08\x00\x0d\x00\x04\x00\x02\x08\x04")
    ),
    "a type that is none": _before("MAIL", _one(99, b"what")),
    "a record of 64 kB": _before("MAIL", _raw(b"\x17\x03\x03\xff\xff" + bytes(65535))),
    "a record of nothing": _before("MAIL", _raw(b"\x17\x03\x03\x00\x00")),
    "SSL 2": _before("MAIL", _raw(b"\x80\x2e\x01\x00\x02" + bytes(50))),
}


def _requests(number: int) -> Callable[[Forge], Iterator[bytes]]:
    def make(forge: Forge) -> Iterator[bytes]:
        for _ in range(number):
            yield forge.sealed(HANDSHAKE, HELLO_REQUEST)

    return make


RENEGOTIATING = {
    "once": _before("MAIL", _requests(1), "1.2"),
    "often": _before("MAIL", _requests(MANY), "1.2"),
}
FLOODS["a demand to renegotiate behind the dot"] = _before("dot", _requests(1), "1.2")


def _for_ever(make: Callable[[Forge], Iterator[bytes]], *, deaf: bool = False) -> Make:
    version = "1.2" if deaf else "1.3"

    def at(forge: Forge) -> At:
        def act(line: Line) -> None:
            while True:
                for record in make(forge):
                    line.write(record)

        return {"MAIL": act}

    return forged(version, at)


def _rough_empty(forge: Forge) -> Iterator[bytes]:
    yield forge.sealed(DATA, b"")


ENDLESS = {
    "tickets": _for_ever(_tickets),
    "key updates": _for_ever(_updates),
    "demands to renegotiate, deaf": _for_ever(_requests(MANY), deaf=True),
}
