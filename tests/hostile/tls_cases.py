"""What the hosts of this group do: by case, a number of variants that must come to the same.

Contract. ``CASES`` has a ``Case`` for each line of ``tls_table.EXPECTED``; a variant makes the act
of one host from its ``Setting``. What they do during a session is in ``tls_sessions``.

Must not know: what a client ought to do.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.hostile import tls_sessions
from tests.hostile.tls_line import Act, Gone, Line, records
from tests.hostile.tls_shaking import FLAWED, broken, dripping, instead, then
from tests.hostile.tls_talk import (
    INSIDE,
    OUTSIDE,
    At,
    Make,
    Setting,
    asked,
    greet,
    inside,
    plain,
    said,
    secured,
    talk,
)

EVIL = "X-EVIL"
"""Told before TLS alone; must be known nowhere."""
GO = b"220 2.0.0 go\r\n"
SLOW = ("stalls", "silence")
"""Variants that last as long as a stage is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A line of the table.

    Args:
        variants: by name, how one host acts.
        text: of the message.
        turns: messages, one after the other.
        window: of the host's sockets.
    """

    variants: Mapping[str, Make]
    text: str = "Good morning.\n"
    turns: int = 1
    window: int | None = None


# What STARTTLS is answered


def _answers(end: Callable[[Line], bool | None]) -> Make:
    return plain(OUTSIDE, {"STARTTLS": end})


def _saying(text: str) -> Callable[[Line], bool | None]:
    def answer(line: Line) -> bool:
        line.say(text)
        return True

    return answer


def _ending(text: str, how: str) -> Callable[[Line], bool | None]:
    def answer(line: Line) -> None:
        line.say(text)
        if how == "reset":
            line.reset()
        raise Gone

    return answer


def _silence(line: Line) -> None:
    line.listen()


def _twice(setting: Setting) -> Act:
    """Its EHLO reply comes twice: heard at once it answers nothing, later it answers STARTTLS."""

    def act(line: Line) -> None:
        greet(line)
        line.line()
        line.say(said(OUTSIDE) * 2)
        if line.line() == "STARTTLS":
            line.say(GO)
            line.handshake(setting.context())
        talk(line)

    return act


def _early(setting: Setting) -> Act:
    """The 220 comes along with the reply to EHLO, and once more in its place."""

    def act(line: Line) -> None:
        greet(line)
        line.line()
        line.say(said(OUTSIDE).encode() + b"220 early\r\n")
        line.line()
        line.say(GO)
        line.handshake(setting.context())
        talk(line)

    return act


# Octets in clear behind the 220

PAYLOADS = {
    "a reply": b"250 ok\r\n",
    "replies": b"250-mx.test\r\n250-X-EVIL\r\n250-SIZE 1\r\n250 AUTH PLAIN\r\n250 ok\r\n250 ok\r\n",
    "half a reply": b"250-X-EVIL\r\n250-SIZ",
    "a digit": b"2",
    "the end of a line": b"\r\n",
    "another 220": b"220 go\r\n",
    "a refusal": b"554 5.7.0 no\r\n",
    "a 421": b"421 4.3.2 closing\r\n",
    "a change of its mind": b"454 4.7.0 no TLS now\r\n",
    "8 kB": b"250-X-EVIL\r\n" * 700,
}


def _injected(pieces: list[bytes]) -> Make:
    """The 220 and what is behind it, in these segments."""

    def make(setting: Setting) -> Act:
        context = setting.context()

        def act(line: Line) -> None:
            greet(line)
            talk(line, OUTSIDE)
            for piece in pieces:
                line.write(piece)
            line.handshake(context)
            talk(line)

        return act

    return make


def _splits() -> dict[str, Make]:
    whole = GO + PAYLOADS["replies"][:24]
    return {f"at {at}": _injected([whole[:at], whole[at:]]) for at in range(1, len(whole))} | {
        "everywhere": _injected([bytes((octet,)) for octet in whole])
    }


def _amid(number: int, octets: bytes) -> Make:
    """These octets in clear before the server's record of this number."""

    def shake(line: Line, context: ssl.SSLContext) -> None:
        passed = 0

        def through(sealed: bytes) -> None:
            nonlocal passed
            for record in records(sealed):
                if passed == number:
                    line.write(octets)
                passed += 1
                line.write(record)

        line.through = through
        line.handshake(context)
        line.through = line.write

    return secured(shake=shake)


# Under TLS, before MAIL


def _at_ehlo(answer: Callable[[Line], bool | None]) -> Make:
    return secured(at={"EHLO": answer})


_HELO: At = {"EHLO": _saying("502 5.5.1 what\r\n")}


# Handshakes


def _limited(lowest: ssl.TLSVersion, highest: ssl.TLSVersion, ciphers: str = "") -> Make:
    def change(context: ssl.SSLContext) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old, which is the point
            context.minimum_version, context.maximum_version = lowest, highest
        if ciphers:
            context.set_ciphers(ciphers)

    return secured(change=change)


def _group(name: str) -> Make:
    def change(context: ssl.SSLContext) -> None:
        context.set_ecdh_curve(name)

    return secured(change=change)


def _demanding(setting: Setting, version: str) -> Act:
    def change(context: ssl.SSLContext) -> None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(setting.issuer.roots)

    return secured(version=version, change=change)(setting)


def _faults(version: str, number: int) -> dict[str, Make]:
    return {
        f"{how} at {at}": secured(version=version, shake=broken(how, at))
        for at in range(number)
        for how in FLAWED
    }


def _strange(raw: str) -> Make:
    def make(setting: Setting) -> Act:
        context = setting.issuer.strange(setting.name, raw)

        def act(line: Line) -> None:
            asked(line, setting)
            line.handshake(context)
            inside(line, setting)

        return act

    return make


def _resuming(setting: Setting) -> Act:
    """Whoever comes back with a ticket is cut off."""
    context = setting.context()

    def act(line: Line) -> None:
        asked(line, setting)
        line.handshake(context)
        assert line.tls is not None
        if line.tls.session_reused:
            line.reset()
        inside(line, setting)

    return act


HELLO_OF_16_MB = b"\x16\x03\x03\x00\x04\x02\xff\xff\xff" + b"\x16\x03\x03\x40\x00" + bytes(16384)
GARBAGE = {
    "an SMTP reply": instead(b"500 5.5.1 what?\r\n"),
    "another 220": instead(GO),
    "HTTP": instead(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "zeros": instead(bytes(1000)),
    "a record of 64 kB": instead(b"\x16\x03\x03\xff\xff" + bytes(65535)),
    "a record of nothing": instead(b"\x16\x03\x03\x00\x00", times=1000),
    "a record of a type that is none": instead(b"\x63\x03\x03\x00\x10" + bytes(16)),
    "a hello of 16 MB": instead(HELLO_OF_16_MB),
    "its own hello": lambda line, _context: line.write(line.receive()),
    "warnings": instead(b"\x15\x03\x03\x00\x02\x01\x70", times=1000),
    "changes of the cipher": instead(b"\x14\x03\x03\x00\x01\x01", times=1000),
    "data": instead(b"\x17\x03\x03\x00\x20" + bytes(32)),
}
_TEXTS = ("500 what?\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "220 go\r\n" * 50, "\0" * 100)
_V = ssl.TLSVersion

RECORDS = {"1.2": 7, "1.3": 6}
"""Records of the server until a client is done with its handshake; a test counts them."""

CASES: dict[str, Case] = {
    "refused by a reply": Case(
        variants={
            text[:3]: _answers(_saying(text))
            for text in (
                "454 4.7.0 not now\r\n",
                "500 5.5.1 what\r\n",
                "501 5.5.4 no\r\n",
                "502 5.5.1 no\r\n",
                "503 5.5.1 not now\r\n",
                "530 5.7.0 no\r\n",
                "554 5.7.0-no\r\n",
            )
        }
    ),
    "421, close or reset in answer": Case(
        variants={
            "421": _answers(_ending("421 4.3.2 closing\r\n", "close")),
            "close": _answers(_ending("", "close")),
            "reset": _answers(_ending("", "reset")),
            "half a reply": _answers(_ending("220-go\r\n22", "close")),
        }
    ),
    "answered by what is no answer": Case(
        variants={
            "250": _answers(_saying("250 2.0.0 ok\r\n")),
            "235": _answers(_saying("235 2.7.0 ok\r\n")),
            "354": _answers(_saying("354 go on\r\n")),
            "junk": _answers(_saying("what is this\r\n")),
            "code 000": _answers(_saying("000 what\r\n")),
            "code 999": _answers(_saying("999 what\r\n")),
            "another code behind": _answers(_saying("454-no\r\n220 go\r\n")),
        }
    ),
    "answered by silence": Case(variants={"silence": _answers(_silence)}),
    "its EHLO reply comes twice": Case(variants={"twice": _twice}),
    "220, then no TLS": Case(
        variants={text[:10]: secured(shake=instead(text.encode())) for text in _TEXTS}
        | {
            "close": secured(shake=lambda line, _: line.close()),
            "reset": secured(shake=lambda line, _: line.reset()),
            "silence": secured(shake=lambda line, _: line.listen()),
        }
    ),
    "not offered": Case(
        variants={
            "X's": plain(("SIZE 1000", "XXXXXXXX")),
            "left out": plain(INSIDE),
            "as a parameter": plain(("X-TLS STARTTLS",)),
            "a longer word": plain(("STARTTLSX",)),
            "no EHLO": plain((), {"EHLO": _saying("502 5.5.1 what\r\n")}),
        }
    ),
    "offered in other letters": Case(
        variants={
            "small": secured(outside=("starttls",)),
            "mixed": secured(outside=("StartTLS", "SIZE")),
            "with a parameter": secured(outside=("STARTTLS required",)),
        }
    ),
    "replies in clear behind the 220": Case(
        variants={name: _injected([GO + octets]) for name, octets in PAYLOADS.items()}
        | {"before its time": _early}
    ),
    "the 220 and what is behind it, split": Case(variants=_splits()),
    "replies in clear within the handshake": Case(
        variants={
            f"before record {number}": _amid(number, b"250 ok\r\n")
            for number in range(RECORDS["1.3"])
        }
    ),
    "SIZE, AUTH and more before TLS alone": Case(
        variants={
            "too small a SIZE": secured(outside=("SIZE 1000", "STARTTLS", EVIL)),
            "everything": secured(
                outside=("PIPELINING", "CHUNKING", "AUTH PLAIN", "STARTTLS", EVIL), offers=()
            ),
        },
        text="Good morning.\n" * 200,
    ),
    "too small a SIZE under TLS alone": Case(
        variants={
            "1000": secured(outside=("SIZE", "STARTTLS"), offers=("SIZE 1000",)),
        },
        text="Good morning.\n" * 200,
    ),
    "EHLO under TLS refused, HELO taken": Case(variants={"502": secured(at=_HELO)}),
    "EHLO under TLS comes to nothing": Case(
        variants={
            "421": _at_ehlo(_ending("421 4.3.2 closing\r\n", "close")),
            "451": _at_ehlo(_saying("451 4.3.0 not now\r\n")),
            "close": _at_ehlo(_ending("", "close")),
            "junk": _at_ehlo(_saying("what is this\r\n")),
            "silence": _at_ehlo(_silence),
            "without end": _at_ehlo(tls_sessions.endless_lines),
        }
    ),
    "STARTTLS offered again under TLS": Case(
        variants={"again": secured(offers=(*INSIDE, "STARTTLS"))}
    ),
    "a true certificate": Case(variants={"true": secured()}),
    "a certificate that proves nothing": Case(
        variants={
            flaw: secured(flaw=flaw)
            for flaw in (
                "expired",
                "not yet valid",
                "another name",
                "signed by itself",
                "of an unknown authority",
                "weak",
                "not for servers",
                "a link is missing",
            )
        }
    ),
    "a long chain, 64 kB of names": Case(
        variants={
            flaw: secured(flaw=flaw)
            for flaw in ("a chain of a hundred", "a hundred strangers behind it", "64 kB of names")
        }
    ),
    "a certificate of 200 kB": Case(variants={"200 kB": secured(flaw="200 kB")}),
    "a name of control characters": Case(variants={"control": secured(flaw="control characters")}),
    "a certificate that cannot be read": Case(
        variants={raw: _strange(raw) for raw in ("version 9", "a name of no known kind")}
    ),
    "TLS 1.0 and 1.1 alone, no common cipher": Case(
        variants={
            "1.0": _limited(_V.TLSv1, _V.TLSv1),
            "1.1": _limited(_V.TLSv1, _V.TLSv1_1),
            "no common cipher": _limited(_V.TLSv1_2, _V.TLSv1_2, "AECDH-AES128-SHA:@SECLEVEL=0"),
        }
    ),
    "TLS 1.2 alone, TLS 1.3 alone": Case(
        variants={version: secured(version=version) for version in ("1.2", "1.3")}
    ),
    "a fault at each record, TLS 1.3": Case(variants=_faults("1.3", RECORDS["1.3"])),
    "a fault at each record, TLS 1.2": Case(variants=_faults("1.2", RECORDS["1.2"])),
    "garbage for a hello": Case(
        variants={name: secured(shake=shake) for name, shake in GARBAGE.items()}
    ),
    "octet by octet": Case(
        variants={version: secured(version=version, shake=dripping) for version in ("1.2", "1.3")}
    ),
    "another group is asked for": Case(variants={"P-384": _group("secp384r1")}),
    "our certificate is demanded, TLS 1.2": Case(
        variants={"demanded": lambda setting: _demanding(setting, "1.2")}
    ),
    "our certificate is demanded, TLS 1.3": Case(
        variants={"demanded": lambda setting: _demanding(setting, "1.3")}
    ),
    "closes behind the handshake": Case(
        variants={
            "close": secured(shake=then(lambda line: None)),
            "notice and close": secured(shake=then(Line.notify)),
            "reset": secured(shake=then(Line.reset)),
        }
    ),
    "breaks off within the body": Case(
        variants=tls_sessions.breaking("body"), text=tls_sessions.BIG, window=65536
    ),
    "shuts its window within the body": Case(
        variants={
            f"TLS {version}": secured(version=version, at={"body": Line.shut})
            for version in ("1.2", "1.3")
        },
        text=tls_sessions.BIG,
        window=65536,
    ),
    "a 5xx within the body, then a close": Case(
        variants=tls_sessions.REFUSING, text=tls_sessions.BIG, window=65536
    ),
    "a 5xx within the body, then a reset": Case(
        variants=tls_sessions.RESETTING, text=tls_sessions.BIG, window=65536
    ),
    "the 250 in one piece with a bad record": Case(variants=tls_sessions.IN_ONE),
    "breaks off behind the dot": Case(variants=tls_sessions.breaking("dot")),
    "breaks off behind the 250": Case(variants=tls_sessions.breaking("taken")),
    "a 250 in clear behind the dot": Case(variants=tls_sessions.FALSE),
    "many tickets, key updates, other records": Case(variants=tls_sessions.FLOODS),
    "a broken ticket, unknown or absurd records": Case(variants=tls_sessions.ABSURD),
    "renegotiation demanded, and not done": Case(variants=tls_sessions.RENEGOTIATING),
    "records without end instead of a reply": Case(variants=tls_sessions.ENDLESS),
    "breaks off with whoever resumes a session": Case(variants={"resumed": _resuming}, turns=3),
}


# A relay that wants credentials: they are never in clear

_AUTHS = ("AUTH PLAIN LOGIN",)


def _auth(answer: Callable[[Line], bool | None]) -> Make:
    return secured(offers=(*INSIDE, *_AUTHS), at={"AUTH": answer})


AUTH_CASES: dict[str, Case] = {
    "credentials taken": Case(variants={"taken": secured(offers=_AUTHS)}),
    "stripped, and AUTH offered in clear": Case(
        variants={
            "left out": plain(_AUTHS),
            "X's": plain(("XXXXXXXX", *_AUTHS)),
        }
    ),
    "STARTTLS refused, and AUTH offered in clear": Case(
        variants={
            text[:3]: plain((*OUTSIDE, *_AUTHS), {"STARTTLS": _saying(text)})
            for text in ("454 4.7.0 not now\r\n", "502 5.5.1 no\r\n", "250 2.0.0 ok\r\n")
        }
    ),
    "AUTH offered before TLS alone": Case(variants={"alone": secured(outside=(*OUTSIDE, *_AUTHS))}),
    "AUTH refused under TLS": Case(
        variants={
            text[:3]: _auth(_saying(text))
            for text in ("535 5.7.8 no\r\n", "454 4.7.0 not now\r\n", "530 5.7.0 encrypt\r\n")
        }
    ),
    "AUTH breaks off": Case(
        variants={
            "421": _auth(_ending("421 4.3.2 closing\r\n", "close")),
            "close": _auth(_ending("", "close")),
            "reset": _auth(_ending("", "reset")),
            "junk": _auth(_saying("what is this\r\n")),
            "silence": _auth(_silence),
            "half a prompt": _auth(_ending("334 VXNl", "close")),
        }
    ),
    "the certificate proves nothing": Case(
        variants={flaw: secured(flaw=flaw, offers=_AUTHS) for flaw in ("another name", "expired")}
    ),
}
