"""The SMTP that the hosts of this group speak, and how they come to TLS.

Contract. ``talk`` answers well until the client leaves; ``at`` has functions that are called in
place of an answer, by the word that is answered: a verb, ``greeting``, ``body`` (so many octets of
content were read), ``dot``. One that returns None has done nothing about the answer, which then
follows. ``secured`` makes an act that comes to TLS by STARTTLS or at once, as its ``Setting`` says.

Must not know: what a client ought to do.
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.tls_certificates import Issuer
from tests.hostile.tls_forge import Forge, prepared
from tests.hostile.tls_line import Act, Line

At = Mapping[str, Callable[[Line], bool | None]]
OUTSIDE = ("SIZE 1000", "STARTTLS")
INSIDE = ("PIPELINING", "SIZE 50000000", "8BITMIME", "X-INSIDE")
BODY = 300_000
_REPLIES = {
    "HELO": "250 mx.test",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "RSET": "250 2.0.0 ok",
    "AUTH": "235 2.7.0 welcome",
    "QUIT": "221 2.0.0 bye",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a host is given.

    Args:
        name: its own, as the MX record or the configuration has it.
        implicit: TLS from the first octet.
        issuer: of certificates.
        folder: for key logs.
    """

    name: str
    implicit: bool
    issuer: Issuer
    folder: Path
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def context(self, flaw: str = "", version: str = "") -> ssl.SSLContext:
        """A server's context; see ``Issuer.context``."""
        context = self.issuer.context(self.name, flaw)
        if version:
            one = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
            context.minimum_version = context.maximum_version = one
        return context


Make = Callable[[Setting], Act]


def said(offers: tuple[str, ...]) -> str:
    """A reply to EHLO."""
    lines = ("mx.test", *offers)
    return "".join(f"250{' ' if line is lines[-1] else '-'}{line}\r\n" for line in lines)


def talk(line: Line, offers: tuple[str, ...] = INSIDE, at: At | None = None) -> None:
    """Answer until the client leaves, or says STARTTLS where nothing is ``at`` that.

    Raises:
        Gone: it left.
    """
    at = at or {}

    def answer(word: str, reply: str) -> None:
        done = at[word](line) if word in at else None
        if done is None:
            line.say(f"{reply}\r\n")

    while True:
        verb = line.line().split(" ")[0].upper()
        if verb == "STARTTLS" and verb not in at:
            return
        if verb == "EHLO":
            answer(verb, said(offers).removesuffix("\r\n"))
        elif verb == "DATA":
            answer(verb, "354 go")
            if "body" in at:
                line.content(BODY)
                at["body"](line)
            line.content()
            line.host.contents += 1
            answer("dot", "250 2.0.0 taken")
        else:
            answer(verb, _REPLIES.get(verb, "500 5.5.1 what"))
        if verb == "QUIT":
            line.close()


def greet(line: Line) -> None:
    """Say who is here."""
    line.say("220 mx.test ESMTP\r\n")


def plain(offers: tuple[str, ...], at: At | None = None) -> Make:
    """An act that has no TLS at all."""

    def make(_setting: Setting) -> Act:
        def act(line: Line) -> None:
            greet(line)
            talk(line, offers, at)

        return act

    return make


def asked(line: Line, setting: Setting, outside: tuple[str, ...] = OUTSIDE) -> None:
    """Come to where TLS begins: at once, or behind the 220 to STARTTLS."""
    if not setting.implicit:
        greet(line)
        talk(line, outside)
        line.say("220 2.0.0 go\r\n")


def inside(
    line: Line, setting: Setting, offers: tuple[str, ...] = INSIDE, at: At | None = None
) -> None:
    """Go on under TLS."""
    if setting.implicit:
        done = at["greeting"](line) if at and "greeting" in at else None
        if done is None:
            greet(line)
    talk(line, offers, at)


def secured(
    *,
    flaw: str = "",
    version: str = "",
    outside: tuple[str, ...] = OUTSIDE,
    offers: tuple[str, ...] = INSIDE,
    at: At | None = None,
    change: Callable[[ssl.SSLContext], None] | None = None,
    shake: Callable[[Line, ssl.SSLContext], None] = Line.handshake,
) -> Make:
    """An act with TLS.

    Args:
        flaw: of the certificate.
        version: of TLS, if one must be.
        outside, offers: what EHLO says before TLS and under it.
        at: what is done in place of answers under TLS.
        change: alters the context.
        shake: in place of a handshake.
    """

    def make(setting: Setting) -> Act:
        context = setting.context(flaw, version)
        if change is not None:
            change(context)

        def act(line: Line) -> None:
            asked(line, setting, outside)
            shake(line, context)
            inside(line, setting, offers, at)

        return act

    return make


def forged(version: str, at: Callable[[Forge], At]) -> Make:
    """An act whose records under TLS are made by a ``Forge``."""

    def make(setting: Setting) -> Act:
        def act(line: Line) -> None:
            log = setting.folder / f"{setting.name}-{next(setting.numbers)}.keys"
            context = prepared(setting.context(), version, log)
            asked(line, setting)
            first = bytearray()

            def through(octets: bytes) -> None:
                first.extend(octets)
                line.write(octets)

            line.through = through
            line.handshake(context)
            inside(line, setting, INSIDE, at(Forge(line, log, bytes(first))))

        return act

    return make
