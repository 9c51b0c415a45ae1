"""How much one session may ask of a server: octets of a line, recipients, transactions, faults.

Contract: RFC 5321 section 4.5.3.1 (lines of 512 octets and what the offer adds; 100 recipients at
least), RFC 4954 section 4 (lines of AUTH). What is one too many is answered 452 where the client
may go on with another transaction, 421 where the session is over.

Must not know: commands, replies but these, clocks (how fast something comes is the shell's).
"""

from __future__ import annotations

from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import Refused, refuse
from mailstrom.smtp.server_offer import Offer

LINE_LIMIT = 512  # RFC 5321 section 4.5.3.1.4; what is offered adds to it
AUTH_LINE_LIMIT = 12288  # RFC 4954 section 4
RECIPIENT_LIMIT = 1000  # RFC 5321 section 4.5.3.1.8 asks for 100 at least
ERROR_LIMIT = 20
IDLE_LIMIT = 1000

# No errors of the client, which sends the rest in another transaction, or session.
RECIPIENT_LIMIT_REACHED = "recipient-limit"
TRANSACTION_LIMIT_REACHED = "transaction-limit"


class Bounds:
    """What one session was allowed, and what it has used of it.

    Args:
        recipients: of one transaction.
        transactions: of the session; 0: no limit.
        errors: refused commands and credentials.
        idle: commands that lead to no message, since the last message that was taken.
        line: octets of a command line.
    """

    __slots__ = ("_errors", "_idle", "_line", "_recipients", "_transactions", "errors", "idle")

    def __init__(
        self, *, recipients: int, transactions: int, errors: int, idle: int, line: int
    ) -> None:
        self._recipients = recipients
        self._transactions = transactions
        self._errors = errors
        self._idle = idle
        self._line = line
        self.errors = self.idle = 0

    def too_long(self, octets: bytes, told: tuple[Offer, ...]) -> bool:
        """Whether a line is longer than it may be, by what is offered before STARTTLS or behind it.

        Args:
            octets: of the line, without its CRLF.
            told: all offers of the session.
        """
        length = len(octets) + 2
        if length <= self._line:
            return False
        return length > self._most(octets[:5].upper(), told)

    def longest(self, told: tuple[Offer, ...]) -> int:
        """Octets that any line may have."""
        return max(self._most(verb, told) for verb in (b"MAIL ", b"RCPT ", b"AUTH "))

    def _most(self, verb: bytes, told: tuple[Offer, ...]) -> int:
        if verb == b"MAIL ":
            return self._line + max(one.mail_room for one in told)
        if verb == b"RCPT ":
            return self._line + max(one.rcpt_room for one in told)
        if verb == b"AUTH " and any(one.capabilities.auth for one in told):
            return max(self._line, AUTH_LINE_LIMIT)
        return self._line

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

    def refused(self, refusal: Refused, reply: Reply) -> Reply:
        """The reply to what the dialogue refuses: one error more, unless a limit was reached."""
        if refusal.rule in (RECIPIENT_LIMIT_REACHED, TRANSACTION_LIMIT_REACHED):
            return reply
        return self.counted(reply)

    def counted(self, reply: Reply) -> Reply:
        """The reply to an error: 421 where there were too many."""
        self.errors += 1
        if self.errors > self._errors:
            return Reply(421, "4.7.0", ("too many errors", *reply.lines))
        return reply

    def idled(self, reply: Reply) -> Reply:
        """The reply to what leads to no message."""
        self.idle += 1
        return self.counted(reply) if self.idle > self._idle else reply
