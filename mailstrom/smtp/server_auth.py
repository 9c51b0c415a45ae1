"""The server's half of AUTH: PLAIN, LOGIN, CRAM-MD5 and XOAUTH2.

Contract: RFC 4954 framing, RFC 4616 for PLAIN, RFC 2195 for CRAM-MD5; LOGIN and XOAUTH2 as they are
found in the field. Answers are base64 of UTF-8; ``*`` cancels. The exchange ends in ``Credentials``
(which refuse by default) or in ``Refused``. Secrets are kept only for the length of the exchange.

Must not know: who may log in, whether TLS is on, when AUTH is allowed, where challenges come from.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence

from mailstrom.smtp.inbox import Line
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import Credentials, Refused, refuse

_PROMPTS: dict[str, tuple[str | None, ...]] = {
    "PLAIN": ("",),
    "LOGIN": ("Username:", "Password:"),
    "CRAM-MD5": (None,),  # the server's own challenge
    "XOAUTH2": ("",),
}
MECHANISMS = frozenset(_PROMPTS)

OAUTH_ERROR = b"334 " + base64.b64encode(b'{"status":"401","schemes":"Bearer"}') + b"\r\n"
"""XOAUTH2 tells a refusal as a challenge first; the reply follows the client's empty line."""

_BEARER = "auth=Bearer "
_DIGEST_DIGITS = 32  # MD5, hexadecimal


class Login:
    """AUTH in one session: which mechanism, how far the exchange has come, what is told when.

    Args:
        challenge: makes the challenge of each CRAM-MD5 exchange; None: that mechanism is refused.

    Attributes:
        goes_on: the next line is the client's answer.
    """

    __slots__ = ("_exchange", "_make_challenge", "_withheld", "goes_on")

    def __init__(self, challenge: Callable[[], str] | None) -> None:
        self._make_challenge = challenge
        self._exchange: AuthExchange | None = None
        self._withheld: bytes | None = None  # XOAUTH2: the refusal, told behind the next line
        self.goes_on = False

    def begin(self, argument: str, offered: frozenset[str]) -> bytes | Credentials | Refused:
        """AUTH with its argument; gives what to send before the next line, or the end."""
        name, _, initial = argument.partition(" ")
        mechanism, make = name.upper(), self._make_challenge
        if mechanism not in offered & MECHANISMS or (mechanism == "CRAM-MD5" and make is None):
            return refuse("AUTH", "mechanism", 504, "5.5.4", "mechanism not offered")
        self._exchange = AuthExchange(mechanism, make() if make is not None else "")
        return self._gone_on(self._exchange.begin(initial))

    def answer(self, line: Line) -> bytes | Credentials | Refused:
        """The client's next line."""
        told, self._withheld = self._withheld, None
        if told is not None:
            self.goes_on = False
            return told
        assert self._exchange is not None, "no AUTH was begun"
        return self._gone_on(self._exchange.answer(line))

    def _gone_on(self, result: bytes | Credentials | Refused) -> bytes | Credentials | Refused:
        self.goes_on = isinstance(result, bytes)
        return result

    @property
    def withholds(self) -> bool:
        """Whether a refusal is told as a challenge first."""
        return self._exchange is not None and self._exchange.mechanism == "XOAUTH2"

    def withhold(self, refusal: bytes) -> bytes:
        """Keep the refusal until the client's next line; gives what to send in its place."""
        self._withheld = refusal
        self.goes_on = True
        return OAUTH_ERROR


class _Malformed(Exception):
    """The answers are not what the mechanism wants."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


class AuthExchange:
    """One AUTH command and the lines that follow it.

    Args:
        mechanism: one of ``MECHANISMS``.
        challenge: for CRAM-MD5: text that was never used before (RFC 2195 section 2).
    """

    __slots__ = ("_answers", "_challenge_text", "mechanism")

    def __init__(self, mechanism: str, challenge: str = "") -> None:
        self.mechanism = mechanism
        self._challenge_text = challenge
        self._answers: list[str] = []

    def begin(self, initial: str) -> bytes | Credentials | Refused:
        """Start with the initial response: "" for none, ``=`` for an empty one."""
        if not initial:
            return self._challenge()
        if _PROMPTS[self.mechanism][0] is None:  # RFC 4954 section 4: the server speaks first
            return refuse("AUTH", "initial-response", 501, "5.7.0", "no initial response here")
        return self._take("" if initial == "=" else initial)

    def answer(self, line: Line) -> bytes | Credentials | Refused:
        """Go on with the client's next line."""
        if line.octets == b"*":
            return refuse("AUTH", "auth-cancelled", 501, "5.5.2", "AUTH cancelled")
        if line.violation is not None:
            return refuse("AUTH", line.violation, 500, "5.5.2", "AUTH line refused")
        return self._take(line.octets.decode("ascii", "replace"))

    def _challenge(self) -> bytes:
        """A 334 line to send before the next answer."""
        prompt = _PROMPTS[self.mechanism][len(self._answers)]
        text = self._challenge_text if prompt is None else prompt
        return b"334 " + base64.b64encode(text.encode()) + b"\r\n"

    def _take(self, text: str) -> bytes | Credentials | Refused:
        try:
            self._answers.append(base64.b64decode(text, validate=True).decode("utf-8"))
        except (binascii.Error, ValueError):
            return refuse("AUTH", "base64", 501, "5.5.2", "not base64 of UTF-8")
        if len(self._answers) < len(_PROMPTS[self.mechanism]):
            return self._challenge()
        try:
            identity, user, secret = _FIELDS[self.mechanism](self._answers)
        except _Malformed as error:
            return refuse("AUTH", error.rule, 501, "5.5.2", str(error))
        return Credentials(
            mechanism=self.mechanism,
            identity=identity,
            user=user,
            password=secret,
            challenge=self._challenge_text,
            default=Reply(535, "5.7.8", ("credentials refused",)),
        )


Fields = tuple[str, str, str]
"""Authorization identity, user, and what proves it."""


def _plain(answers: Sequence[str]) -> Fields:
    fields = answers[0].split("\0")
    if len(fields) != 3:
        raise _Malformed("plain-fields", "PLAIN has three fields")
    return fields[0], fields[1], fields[2]


def _login(answers: Sequence[str]) -> Fields:
    return "", answers[0], answers[1]


def _cram_md5(answers: Sequence[str]) -> Fields:
    user, _, digest = answers[0].rpartition(" ")
    if not user or len(digest) != _DIGEST_DIGITS:
        raise _Malformed("cram-fields", "CRAM-MD5 has a user, a space and a digest")
    return "", user, digest


def _xoauth2(answers: Sequence[str]) -> Fields:
    fields = answers[0].split("\x01")
    if len(fields) != 4 or fields[2:] != ["", ""]:
        raise _Malformed("xoauth2-fields", "XOAUTH2 has user=, auth= and two marks at its end")
    user, bearer = fields[:2]
    if not user.startswith("user=") or not bearer.startswith(_BEARER):
        raise _Malformed("xoauth2-fields", "XOAUTH2 has user= and auth=Bearer")
    return "", user.removeprefix("user="), bearer.removeprefix(_BEARER)


_FIELDS = {"PLAIN": _plain, "LOGIN": _login, "CRAM-MD5": _cram_md5, "XOAUTH2": _xoauth2}
