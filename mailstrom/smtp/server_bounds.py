"""How much one session may ask of a server: octets of a line, recipients, transactions, faults.

Contract: RFC 5321 section 4.5.3.1 (lines of 512 octets and what the offer adds; 100 recipients at
least), RFC 4954 section 4 (lines of AUTH). What is one too many is answered 452 where the client
may go on with another transaction, 421 where the session is over. Errors are counted here and
nowhere else: whatever is answered 4xx or 5xx, by the dialogue itself or by its shell.

Must not know: commands, replies but these, clocks (how fast something comes is the shell's).
"""

from __future__ import annotations

from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import (
    Credentials,
    Hello,
    Inquiry,
    Opened,
    Question,
    Refused,
    Reset,
    refuse,
)
from mailstrom.smtp.server_offer import Offer, longest, most

LINE_LIMIT = 512  # RFC 5321 section 4.5.3.1.4; what is offered adds to it
RECIPIENT_LIMIT = 1000  # RFC 5321 section 4.5.3.1.8 asks for 100 at least
ERROR_LIMIT = 20
LOGIN_LIMIT = 3
IDLE_LIMIT = 1000

# No errors of the client, which sends the rest in another transaction, or session.
RECIPIENT_LIMIT_REACHED = "recipient-limit"
TRANSACTION_LIMIT_REACHED = "transaction-limit"
_NO_ERRORS = (RECIPIENT_LIMIT_REACHED, TRANSACTION_LIMIT_REACHED)
_IDLE = frozenset({Inquiry, Reset, Hello})


class Bounds:
    """What one session was allowed, and what it has used of it.

    Args:
        recipients: of one transaction.
        transactions: of the session; 0: no limit.
        errors: what was refused since the last message that was taken; 0: no limit.
        logins: refused credentials of the session; 0: no limit.
        idle: commands that lead to no message, since the last message that was taken.
        line: octets of a command line.
    """

    __slots__ = (
        "_errors",
        "_idle",
        "_line",
        "_logins",
        "_recipients",
        "_transactions",
        "errors",
        "idle",
        "logins",
    )

    def __init__(
        self, *, recipients: int, transactions: int, errors: int, logins: int, idle: int, line: int
    ) -> None:
        self._recipients = recipients
        self._transactions = transactions
        self._errors = errors
        self._logins = logins
        self._idle = idle
        self._line = line
        self.errors = self.logins = self.idle = 0

    def too_long(self, octets: bytes, told: tuple[Offer, ...]) -> bool:
        """Whether a line is longer than it may be, by what is offered before STARTTLS or behind it.

        Args:
            octets: of the line, without its CRLF.
            told: all offers of the session.
        """
        length = len(octets) + 2
        if length <= self._line:
            return False
        return length > most(octets[:5].upper(), told, self._line)

    def longest(self, told: tuple[Offer, ...]) -> int:
        """Octets that any line may have."""
        return longest(told, self._line)

    def another_transaction(self, begun: int) -> Refused | None:
        """The refusal of a MAIL behind so many of the session, or None."""
        if not 0 < self._transactions <= begun:
            return None
        text = f"no more than {self._transactions} transactions in one session"
        return refuse("MAIL", TRANSACTION_LIMIT_REACHED, 421, "4.7.0", text)

    def another_recipient(self, accepted: int) -> Refused | None:
        """The refusal of a RCPT behind so many of the transaction, or None."""
        if accepted < self._recipients:
            return None
        text = f"no more than {self._recipients} recipients at once"
        return refuse("RCPT", RECIPIENT_LIMIT_REACHED, 452, "4.5.3", text)

    def judged(self, question: Question, reply: Reply) -> Reply:
        """The reply, or 421 in its place where it is one error too many.

        The greeting is none, nor is what may be said again in another transaction or session.
        """
        kind = type(question)
        error = reply.code >= 400 and kind is not Opened
        if type(question) is Refused:
            error = question.rule not in _NO_ERRORS
        elif kind in _IDLE:
            self.idle += 1
            error = error or self.idle > self._idle
        if not error:
            return reply
        self.errors += 1
        self.logins += kind is Credentials
        if 0 < self._errors < self.errors or 0 < self._logins < self.logins:
            return Reply(421, "4.7.0", ("too many errors", *reply.lines))
        return reply

    def taken(self) -> None:
        """A message was: what was wrong before is forgiven."""
        self.errors = self.idle = 0
