"""What a session is given to send, and who gives it.

Contract: one value and one protocol, between whoever has transactions and the pump that runs them.

Must not know: how a transaction is run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from msgspec import Struct

from mailstrom.smtp.transaction import Envelope, TransactionEnd


class Outgoing(Struct, kw_only=True, eq=False):
    """A transaction to be run.

    Args:
        envelope: who to whom; ask ``smtp.client.unmet`` first.
        body: the whole content, CRLF line ends, not stuffed; None: ``chunks`` are asked, or it is
            written. With ``chunks`` it may be put down on the way (``Session.put_down``).
        chunks: gives it piece by piece, asked only after a 354, and where there is no body.
        of: what the source knows it by.
    """

    envelope: Envelope
    body: bytes | None = None
    chunks: Callable[[], AsyncIterator[bytes]] | None = None
    of: Any = None


class Source(Protocol):
    """Who has transactions for a session; called inside the loop's callbacks, never re-entered."""

    def next(self) -> Outgoing | None:
        """What may be sent now; after None the session waits for ``Session.poke``."""

    def ended(self, outgoing: Outgoing, end: TransactionEnd) -> None:
        """One is over; in the order in which they were given."""

    def failed(self, outgoing: Outgoing, error: Exception) -> None:
        """It cannot be sent: ``UnmetNeed`` for what the server does not offer, ``ValueError`` for
        what cannot be put on the wire, or what ``chunks`` raised; not an octet behind that was
        sent. ``ended`` does not follow. The session is over where content had begun to leave, and
        as it was where nothing had."""

    def lost(self) -> None:
        """The session is over, and no transaction was on it; see ``Session.closing``."""
