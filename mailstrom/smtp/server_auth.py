"""The server's half of AUTH PLAIN and AUTH LOGIN.

Contract: RFC 4954 framing, RFC 4616 for PLAIN, LOGIN as it is found in the field. Answers are
base64 of UTF-8; ``*`` cancels. The exchange ends in ``Credentials`` (which refuse by default) or in
``Refused``. Secrets are kept only for the length of the exchange.

Must not know: who may log in, whether TLS is on, when AUTH is allowed.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from mailstrom.smtp.framing import Line
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_commands import refuse
from mailstrom.smtp.server_events import Credentials, Refused

_PROMPTS = {"PLAIN": ("",), "LOGIN": ("Username:", "Password:")}
MECHANISMS = frozenset(_PROMPTS)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A 334 line to send before the next answer."""

    octets: bytes


class AuthExchange:
    """One AUTH command and the lines that follow it.

    Args:
        mechanism: one of ``MECHANISMS``.
    """

    __slots__ = ("_answers", "mechanism")

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism
        self._answers: list[str] = []

    def begin(self, initial: str) -> Challenge | Credentials | Refused:
        """Start with the initial response: "" for none, ``=`` for an empty one."""
        if not initial:
            return self._challenge()
        return self._take("" if initial == "=" else initial)

    def answer(self, line: Line) -> Challenge | Credentials | Refused:
        """Go on with the client's next line."""
        if line.octets == b"*":
            return refuse("AUTH", "auth-cancelled", 501, "5.5.2", "AUTH cancelled")
        if line.violation is not None:
            return refuse("AUTH", line.violation, 500, "5.5.2", "AUTH line refused")
        return self._take(line.octets.decode("ascii", "replace"))

    def _challenge(self) -> Challenge:
        prompt = _PROMPTS[self.mechanism][len(self._answers)]
        return Challenge(b"334 " + base64.b64encode(prompt.encode()) + b"\r\n")

    def _take(self, text: str) -> Challenge | Credentials | Refused:
        try:
            self._answers.append(base64.b64decode(text, validate=True).decode("utf-8"))
        except (binascii.Error, ValueError):
            return refuse("AUTH", "base64", 501, "5.5.2", "not base64 of UTF-8")
        if len(self._answers) < len(_PROMPTS[self.mechanism]):
            return self._challenge()
        fields = ["", *self._answers] if self.mechanism == "LOGIN" else self._answers[0].split("\0")
        if len(fields) != 3:
            return refuse("AUTH", "plain-fields", 501, "5.5.2", "PLAIN has three fields")
        identity, user, password = fields
        return Credentials(
            mechanism=self.mechanism,
            identity=identity,
            user=user,
            password=password,
            default=Reply(535, "5.7.8", ("credentials refused",)),
        )
