"""What a server decides, stage by stage: one short method for each of the dialogue's questions.

Contract. Each answers at once with a ``Reply``, with None for the dialogue's own, or with
``LATER``: then nothing more is read from the dialogue until ``Connection.answer()`` is called. By
default all is accepted and content is kept until ``content()`` takes it; content that must not be
taken, or that could not be kept, never reaches ``on_message``.

Must not know: transports, deadlines, the order of commands.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, cast

from mailstrom.server.sessions import log
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_content import keep
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Hello,
    Inquiry,
    MailFrom,
    Opened,
    Question,
    Quit,
    RcptTo,
    Refused,
    Reset,
    StartTls,
)


class Later(Enum):
    """The type of ``LATER``."""

    LATER = "later"


LATER: Final = Later.LATER
"""The answer comes by ``Connection.answer()``."""

Answer = Reply | Later | None

_FAILED = Reply(451, "4.3.0", ("local error, try again later",))
_CLOSED = Reply(421, "4.3.0", _FAILED.lines)


class Stages:
    """The methods that subclasses of a connection replace, each called once for its event.

    Attributes:
        peer: address and port of the client; ``on_preface`` may put another.
    """

    __slots__ = ("_pieces", "_spoiled", "peer")

    def __init__(self) -> None:
        self.peer: tuple[str, int] = ("", 0)
        self._pieces: list[bytes | bytearray] | None = None
        self._spoiled = False  # the content cannot be had, whatever else comes of it

    def on_preface(self, data: bytes) -> bytes | None:
        """Octets that come before the session: those of them that belong to it, None: not all yet.

        A handshake may begin right behind. What cannot be read is cut with ``abort()``.
        """
        return data

    def on_connect(self, event: Opened) -> Answer:
        """A client is there; a refusal is its greeting."""

    def on_hello(self, event: Hello) -> Answer:
        """EHLO or HELO."""

    def on_starttls(self, event: StartTls) -> Answer:
        """STARTTLS; the handshake follows a 220."""

    def on_secured(self) -> None:
        """TLS is on; ``tls_version`` says which."""

    def on_login(self, event: Credentials) -> Answer:
        """AUTH; only a 235 lets the user in."""

    def on_mail(self, event: MailFrom) -> Answer:
        """MAIL."""

    def on_rcpt(self, event: RcptTo) -> Answer:
        """RCPT."""

    def on_data(self, event: DataBegin) -> Answer:
        """DATA, with a recipient at least."""

    def on_content(self, chunk: bytes) -> None:
        """A piece of content that may be taken; by default it is kept for ``content()``."""
        pieces = self._pieces
        if pieces is None:
            self._pieces = [chunk]
        else:
            keep(pieces, chunk)

    def on_chunk(self, event: ChunkEnd) -> Answer:
        """A BDAT that is not the last has come."""

    def on_message(self, event: ContentEnd) -> Answer:
        """The content is whole and may be taken: who says 250 has it (RFC 5321 section 6.1)."""

    def on_unusable(self, event: ContentEnd) -> Answer:
        """The content is over and must not be taken; ``event.default`` refuses it."""

    def on_reset(self, event: Reset) -> Answer:
        """RSET."""

    def on_inquiry(self, event: Inquiry) -> Answer:
        """NOOP, VRFY, HELP."""

    def on_quit(self, event: Quit) -> Answer:
        """QUIT."""

    def on_refused(self, event: Refused) -> Answer:
        """A line that the dialogue refuses."""

    def on_error(self, event: Question | Content, error: Exception) -> Reply:
        """A method raised, or answered what cannot be said; the client may try again."""
        name = type(event).__name__
        log.error("%s of %s was not answered: %r", name, self.peer[0], error, exc_info=error)
        return _CLOSED if type(event) is Opened else _FAILED

    def on_closed(self) -> None:
        """It is over; ``cause`` says why. Called once."""

    def content(self) -> bytes:
        """The content that ``on_content`` kept, joined; it is kept no more."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:
            return b""
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def ask(self, event: Question) -> Answer:
        """What to answer: asks the method of the event."""
        if type(event) is ContentEnd:
            if not event.default.positive:
                return self.on_unusable(event)
            return _FAILED if self._spoiled else self.on_message(event)
        return cast(Answer, getattr(self, _METHODS[type(event)])(event))


_METHODS: dict[type, str] = {
    Opened: "on_connect",
    Hello: "on_hello",
    StartTls: "on_starttls",
    Credentials: "on_login",
    MailFrom: "on_mail",
    RcptTo: "on_rcpt",
    DataBegin: "on_data",
    ChunkEnd: "on_chunk",
    ContentEnd: "on_message",
    Reset: "on_reset",
    Inquiry: "on_inquiry",
    Quit: "on_quit",
    Refused: "on_refused",
}
