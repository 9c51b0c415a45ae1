"""``mailstrom-sendmail -bs``: SMTP on standard input and output, for programs that speak it so.

The dialogue is the server's own, so the rules are those of the listener in its submission role; the
client is the user who runs this, and may send to anybody. One message after the other; 250 is said
once it is durable. The end of input in the middle of a message leaves nothing behind.
"""

from __future__ import annotations

from mailstrom.errors import InvalidMessage, MailstromError, SpoolFull
from mailstrom.message.submission import enhanced_code, protocol
from mailstrom.printable import printable
from mailstrom.shims.handing import LARGEST, addresses, sender_of, stored
from mailstrom.shims.place import Caller, Place, opened
from mailstrom.shims.standard import read_input, write_output
from mailstrom.shims.sysexits import OK, Refusal
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_content import keep
from mailstrom.smtp.server_events import (
    Closing,
    Content,
    ContentEnd,
    Hello,
    MailFrom,
    RcptTo,
    Reset,
)
from mailstrom.storage.client import ClientStore, Notice

_ERROR_LIMIT = 100


def serve(place: Place, who: Caller) -> int:
    """Take messages until QUIT or the end of input.

    Raises:
        MailstromError: the spool cannot be used.
    """
    return _Session(place, who, opened(place.spool)).run()


class _Session:
    """One client's session."""

    def __init__(self, place: Place, who: Caller, store: ClientStore) -> None:
        self._place = place
        self._who = who
        self._store = store
        offered = Capabilities(
            name=place.hostname,
            size=LARGEST,
            pipelining=True,
            eightbitmime=True,
            smtputf8=True,
            chunking=True,
            enhancedstatuscodes=True,
            dsn=True,
        )
        self._dialogue = ServerDialogue(offered, bare_local_parts=True, error_limit=_ERROR_LIMIT)
        self._helo = ""
        self._mail: MailFrom | None = None
        self._sender = ""
        self._recipients: dict[str, Notice] = {}
        self._pieces: list[bytes | bytearray] = []

    def run(self) -> int:
        while True:
            ended = self._step()
            write_output(self._dialogue.take_output())
            if ended:
                return OK
            octets = read_input()
            if not octets:
                return OK
            self._dialogue.feed(octets)

    def _step(self) -> bool:
        """Answer what came; whether the session is over."""
        while (event := self._dialogue.next_event()) is not None:
            match event:
                case Closing():
                    return True
                case Content():
                    keep(self._pieces, event.chunk)
                case Hello():
                    self._helo = event.name
                    self._forget()
                case MailFrom():
                    self._forget()
                    self._begin(event)
                case RcptTo():
                    self._recipient(event)
                case Reset():
                    self._forget()
                case ContentEnd():
                    if event.default.positive:
                        self._take()
                    self._forget()
        return False

    def _forget(self) -> None:
        self._mail, self._sender = None, ""
        self._recipients, self._pieces = {}, []

    def _begin(self, event: MailFrom) -> None:
        try:
            self._sender = sender_of(event.address, self._place.origin)
            self._mail = event
        except (InvalidMessage, Refusal) as error:
            self._dialogue.reply(501, "5.1.7", _line(error))

    def _recipient(self, event: RcptTo) -> None:
        try:
            (key,) = addresses(event.address, self._place.origin, "RCPT")
        except (InvalidMessage, ValueError) as error:
            self._dialogue.reply(501, "5.1.3", _line(error))
            return
        self._recipients.setdefault(key, Notice(event.notify, event.orcpt))

    def _take(self) -> None:
        mail = self._mail
        assert mail is not None
        asked = any(notice != Notice() for notice in self._recipients.values())
        try:
            id = stored(
                self._store,
                b"".join(self._pieces),
                self._sender,
                list(self._recipients),
                self._place,
                {"user": self._who.login, "helo": printable(self._helo, 255)},
                name=self._who.name,
                protocol=protocol(extended=self._dialogue.extended, smtputf8=mail.smtputf8),
                helo=self._helo,
                smtputf8=mail.smtputf8,
                notices=list(self._recipients.values()) if asked else (),
                ret=mail.ret,
                envid=mail.envid,
            )
        except InvalidMessage as error:
            self._dialogue.reply(554, enhanced_code(error), _line(error))
        except SpoolFull as error:
            self._dialogue.reply(452, "4.3.1", _line(error))
        except MailstromError as error:
            self._dialogue.reply(451, "4.3.0", _line(error))
        else:
            self._dialogue.reply(250, "2.0.0", f"Ok: queued as {id}")


def _line(error: Exception) -> str:
    """An error as the text of a reply: ASCII, one line."""
    return printable(str(error), 400).encode("ascii", "replace").decode("ascii")
