"""The server's dialogue: bytes in, events out, the client's grammar read from the other side.

Contract. The shell feeds bytes, pulls events one at a time, and may answer each; asking for the
next event lets the event's default reply stand. So one command is open at a time, whatever was
pipelined (RFC 2920), and a shell may take as long as it needs, for example until a message is on
disk. What may follow what is the table ``server_order.ORDER``. Strict where laxness is a hole:
commands end with CRLF, content ends with CRLF.CRLF only or with the last octet of a BDAT (RFC 3030;
one whose size cannot be read closes), nothing buffered survives STARTTLS (554, closed; RFC 3207
section 4.2, CVE-2011-0411). Bounded are lines (512 octets and the room of what is offered; longer
ones, controls and what is not UTF-8 are 500 5.5.2 and the session goes on), recipients, content,
transactions, what is refused, and commands that lead to no message.
Enhanced codes (RFC 2034) go out only where they were offered. Any split of the bytes gives the
same events.

Must not know: sockets, TLS, clocks, who may relay, where a message is stored.

Longer than a file should be: one state, and one short method for each command that changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.commands import BadCommand, parse_command
from mailstrom.smtp.framing import ALONE
from mailstrom.smtp.inbox import LINE_TOO_LONG, Inbox, Line, LineReader
from mailstrom.smtp.reply import Reply, render_reply
from mailstrom.smtp.server_auth import Login
from mailstrom.smtp.server_bounds import (
    ERROR_LIMIT,
    IDLE_LIMIT,
    LINE_LIMIT,
    LOGIN_LIMIT,
    RECIPIENT_LIMIT,
    Bounds,
)
from mailstrom.smtp.server_commands import NOTHING_OFFERED, read_hello, read_mail, read_rcpt
from mailstrom.smtp.server_content import ChunkReader, DataReader, read_size
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Closing,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Event,
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
    refuse,
)
from mailstrom.smtp.server_offer import greeted, offer
from mailstrom.smtp.server_order import (
    BAD_SEQUENCE,
    FOREIGN,
    INQUIRIES,
    KNOWN_ELSEWHERE,
    NO_LINES,
    ORDER,
    VERBS,
    Phase,
)

PLAINTEXT_BEHIND_STARTTLS = "plaintext-behind-starttls"
# Where its octets end, and commands begin again, cannot be known.
CHUNK_SIZE = "chunk-size"

_GO_AHEAD = Reply(354, None, ("end data with <CR><LF>.<CR><LF>",))
_FORGOTTEN = Reply(250, "2.0.0", ("forgotten",))
_GOODBYE = Reply(221, "2.0.0", ("goodbye",))
_UNASKED = "nothing may be sent behind STARTTLS before its reply"
# Answers that this side may change though they are no refusals.
_JUDGED = frozenset({StartTls, Inquiry, Reset, Hello})
_OPTIONAL = frozenset({"BDAT", "AUTH"})  # commands that are there only where they are offered


class ServerDialogue:
    """One session, server side.

    Args:
        capabilities: what EHLO offers, and the server's name. REQUIRETLS is offered under TLS
            alone, FUTURERELEASE with a ``clock`` alone.
        secured: the same once TLS is on; None: the same without STARTTLS.
        tls: whether the connection is encrypted from the start.
        recipient_limit: accepted recipients of one transaction; more get 452 4.5.3.
        transaction_limit: accepted MAILs of one session, a further one gets 421; 0: no limit.
        announce: offer LIMITS (RFC 9422) with these two.
        error_limit: what was answered 4xx or 5xx since the last message that was taken, by the
            dialogue or by the shell; one more ends the session with 421; 0: no limit.
        login_limit: the same of credentials alone, of the whole session.
        idle_limit: commands that lead to no message (NOOP, VRFY, HELP, RSET, EHLO, HELO) since the
            last message that was taken; further ones count as errors.
        line_limit: octets of a command line, CRLF included; MAIL, RCPT and AUTH may be longer by
            what is offered.
        bare_newlines: a CR or LF alone in content: ``refuse`` it, or ``fix`` it to CRLF. What ends
            content is the same.
        bare_local_parts: a local part alone is an address, which the shell completes; else it is
            501, but for RCPT of ``postmaster`` (RFC 5321 section 4.5.1).
        challenge: makes the challenge of each CRAM-MD5 exchange, never the same twice (RFC 2195
            section 2); without it that mechanism is refused.
        clock: the time in seconds since 1970, asked for FUTURERELEASE.
    """

    __slots__ = (
        "_accepted_phase",
        "_bare",
        "_bounds",
        "_chunks",
        "_clock",
        "_closing",
        "_closing_told",
        "_data",
        "_enhanced",
        "_fix",
        "_inbox",
        "_login",
        "_offer",
        "_output",
        "_question",
        "_reader",
        "_refused_recipients",
        "_secured",
        "_smtputf8",
        "_told",
        "authenticated",
        "extended",
        "phase",
        "recipients",
        "tls",
        "transactions",
    )

    def __init__(
        self,
        capabilities: Capabilities,
        *,
        secured: Capabilities | None = None,
        tls: bool = False,
        recipient_limit: int = RECIPIENT_LIMIT,
        transaction_limit: int = 0,
        announce: bool = False,
        error_limit: int = ERROR_LIMIT,
        login_limit: int = LOGIN_LIMIT,
        idle_limit: int = IDLE_LIMIT,
        line_limit: int = LINE_LIMIT,
        bare_newlines: Literal["refuse", "fix"] = "refuse",
        bare_local_parts: bool = False,
        challenge: Callable[[], str] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        announced = (recipient_limit, transaction_limit) if announce else None
        clocked = clock is not None
        self._secured = offer(
            secured or capabilities, tls=True, clocked=clocked, announced=announced
        )
        self._offer = self._secured
        if not tls:
            self._offer = offer(capabilities, tls=False, clocked=clocked, announced=announced)
        self.tls = tls
        self.phase = Phase.CONNECTED
        self.extended = self._enhanced = False
        self.authenticated = False
        self.recipients = 0  # accepted in the open transaction
        self.transactions = 0  # accepted in the session
        self._bounds = Bounds(
            recipients=recipient_limit,
            transactions=transaction_limit,
            errors=error_limit,
            logins=login_limit,
            idle=idle_limit,
            line=line_limit,
        )
        self._fix = bare_newlines == "fix"
        self._bare = bare_local_parts
        self._clock = clock
        self._told = (self._offer, self._secured)
        self._reader = LineReader(self._bounds.longest(self._told))
        self._inbox = Inbox()
        self._output: list[bytes] = []
        self._question: Question | None = None
        self._accepted_phase = Phase.GREETED
        self._data = DataReader()
        self._chunks = ChunkReader()
        self._smtputf8 = False
        self._refused_recipients = False
        self._login = Login(challenge)
        self._closing: str | None = None
        self._closing_told = False

    @property
    def capabilities(self) -> Capabilities:
        """What EHLO offers at this moment."""
        return self._offer.capabilities

    # Bytes

    def feed(self, data: bytes) -> None:
        """Take bytes from the client; then pull :meth:`next_event` until it gives None."""
        self._inbox.feed(data)

    @property
    def buffered(self) -> int:
        """Octets taken and not yet looked at: a shell stops reading while this is large."""
        return len(self._inbox)

    def take_output(self) -> bytes:
        """Bytes to write now, each once."""
        output = self._output
        if not output:
            return b""
        taken = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return taken

    # Events

    def next_event(self) -> Event | None:
        """The next event, or None while more bytes (or a handshake) are needed.

        A question still open is answered with its default first.
        """
        if self._question is not None:
            self._settle(self._question, self._question.default)
        if self._closing is not None:
            if self._closing_told:
                return None
            self._closing_told = True
            self.phase = Phase.CLOSED
            return Closing(cause=self._closing)
        event = self._step()
        if event is not None and type(event) is not Content:
            self._question = event  # type: ignore[assignment]  # every other one is a question
        return event

    def reply(self, code: int, enhanced: str | None = None, *lines: str) -> None:
        """Answer the open question instead of its default.

        Args:
            code: decides what happens: a 2xx (354 for DATA) accepts; 421 closes.
            enhanced: enhanced status code, sent only where it was offered.
            lines: text; none: the default's, if the code is the default's too.

        Raises:
            RuntimeError: no question is open.
            ValueError: the reply cannot be rendered.
        """
        if self._question is None:
            raise RuntimeError("no question is open: pull next_event() first, answer once")
        default = self._question.default
        texts = lines or (default.lines if code == default.code else ())
        self._settle(self._question, Reply(code, enhanced, texts))

    def answer(self, reply: Reply) -> None:
        """Answer the open question with this; see ``reply``.

        Raises:
            RuntimeError: no question is open.
            ValueError: the reply cannot be rendered.
        """
        if self._question is None:
            raise RuntimeError("no question is open: pull next_event() first, answer once")
        self._settle(self._question, reply)

    def withhold(self) -> None:
        """Send nothing for the open question and go on as if it had been refused.

        For a shell that writes something else itself, or lets the client wait.

        Raises:
            RuntimeError: no question is open.
        """
        if self._question is None:
            raise RuntimeError("no question is open: pull next_event() first, answer once")
        self._apply(self._question, Reply(550, None, ()))

    def discard(self) -> int:
        """Throw away what was taken and not looked at, as servers do that do not read ahead.

        Returns:
            how many octets that were.
        """
        self._reader.forget()
        return self._inbox.clear()

    def tls_started(self) -> None:
        """The handshake succeeded: forget everything said before it (RFC 3207 section 4.2).

        Raises:
            RuntimeError: no handshake was due.
        """
        if self.phase is not Phase.HANDSHAKE:
            raise RuntimeError("tls_started() belongs behind a StartTls event answered with 220")
        if self._inbox:
            self._closing = PLAINTEXT_BEHIND_STARTTLS
            return
        self.tls = True
        self._offer = self._secured
        self.extended = self._enhanced = self.authenticated = False
        self.phase = Phase.GREETED

    # Reading

    def _step(self) -> Question | Content | None:
        if self.phase in NO_LINES:
            return self._step_between_lines()
        while (line := self._reader.take(self._inbox)) is not None:
            event = self._read_auth(line) if self.phase is Phase.AUTH else self._read_command(line)
            if event is not None:
                return event
        return None

    def _step_between_lines(self) -> Question | Content | None:
        match self.phase:
            case Phase.CONTENT:
                return self._data.take(self._inbox, self.capabilities.size or 0)
            case Phase.CHUNK:
                return self._read_chunk()
            case Phase.CONNECTED:
                self._accepted_phase = Phase.GREETED
                greeting = f"{self.capabilities.name} ESMTP"
                return Opened(default=Reply(220, None, (greeting,)))
        return None  # until the handshake is over, or for ever

    def _read_command(self, line: Line) -> Question | Content | None:
        rule = line.violation
        octets = line.octets
        if rule is None and self._bounds.too_long(octets, self._told):
            rule = LINE_TOO_LONG
        if rule is not None:
            broken = ALONE.get(rule)
            text = f"command has {broken}; lines end in CRLF" if broken else "command line too long"
            return refuse("", rule, 500, "5.5.2", text)
        try:
            command = parse_command(octets)
        except BadCommand as error:
            return refuse("", error.rule, 500, "5.5.2", error.text)
        verb = command.verb
        after = ORDER.get((self.phase, verb))
        if after is None or verb in _OPTIONAL:
            if verb not in VERBS or not self._there(verb):
                return self._no_command(verb)
            if verb == "BDAT":
                return self._bdat(command.argument, in_order=after is not None)
            if after is None:
                return self._out_of_order(verb)
        self._accepted_phase = after
        return self._understand(verb, command.argument)

    def _there(self, verb: str) -> bool:
        """Whether a verb that there may be is one of this server's."""
        if verb == "BDAT":
            return self.capabilities.chunking
        return verb != "AUTH" or bool(self.capabilities.auth)

    def _no_command(self, verb: str) -> Refused:
        if verb == "AUTH" and self._secured.capabilities.auth and not self.tls:
            text = "AUTH needs TLS: STARTTLS first"
            return refuse(verb, "auth-in-clear", 538, "5.7.11", text)  # RFC 4954 section 6
        if verb in FOREIGN:
            return refuse(verb, "foreign-protocol", 421, "4.7.0", "this is a mail server")
        known = verb in VERBS or verb in KNOWN_ELSEWHERE
        code, rule = (502, "not-implemented") if known else (500, "unknown-command")
        return refuse(verb, rule, code, "5.5.1", "command not implemented")

    def _out_of_order(self, verb: str) -> Refused:
        if verb in ("DATA", "BDAT") and self._refused_recipients:
            # RFC 2920 section 3.1: pipelined DATA behind recipients that were all refused
            return refuse(verb, "no-recipients", 554, "5.5.1", "no valid recipients")
        text = BAD_SEQUENCE.get(verb, "not possible here; only QUIT is")
        return refuse(verb, "bad-sequence", 503, "5.5.1", text)

    def _understand(self, verb: str, argument: str) -> Question | None:
        match verb:
            case "MAIL":
                return self._mail(argument)
            case "RCPT":
                return self._rcpt(argument)
            case "EHLO":
                return read_hello(verb, argument, greeted(self._offer, self._clock))
            case "HELO":
                return read_hello(verb, argument, (self.capabilities.name,))
            case "AUTH":
                return self._auth(argument)
            case "HELP":
                return Inquiry(verb=verb, argument=argument, default=self._offer.help)
            case "NOOP" | "VRFY":
                return Inquiry(verb=verb, argument=argument, default=INQUIRIES[verb])
        if argument:
            return refuse(verb, "argument", 501, "5.5.4", f"{verb} takes no argument")
        match verb:
            case "DATA":
                return DataBegin(default=_GO_AHEAD)
            case "STARTTLS":
                return self._starttls()
            case "RSET":
                return Reset(default=_FORGOTTEN)
        return Quit(default=_GOODBYE)

    def _starttls(self) -> Question:
        if not self.capabilities.starttls:
            code, rule = (503, "tls-already") if self.tls else (502, "not-offered")
            return refuse("STARTTLS", rule, code, "5.5.1", "STARTTLS is not offered")
        if self._plaintext_waits():
            return refuse("STARTTLS", PLAINTEXT_BEHIND_STARTTLS, 554, "5.5.1", _UNASKED)
        return StartTls(default=Reply(220, "2.0.0", ("ready to start TLS",)))

    def _mail(self, argument: str) -> Question:
        refusal = self._bounds.another_transaction(self.transactions)
        if refusal is not None:
            return refusal
        usable = self._offer.capabilities if self.extended else NOTHING_OFFERED
        return read_mail(argument, usable, self._clock, bare=self._bare)

    def _rcpt(self, argument: str) -> Question:
        refusal = self._bounds.another_recipient(self.recipients)
        if refusal is not None:
            return refusal
        usable = self._offer.capabilities if self.extended else NOTHING_OFFERED
        return read_rcpt(argument, usable, smtputf8=self._smtputf8, bare=self._bare)

    def _auth(self, argument: str) -> Question | None:
        if self.authenticated:
            return refuse("AUTH", "auth-already", 503, "5.5.1", "already authenticated")
        return self._exchanged(self._login.begin(argument, self.capabilities.auth))

    def _read_auth(self, line: Line) -> Question | None:
        return self._exchanged(self._login.answer(line))

    def _exchanged(self, result: bytes | Credentials | Refused) -> Question | None:
        self.phase = self._accepted_phase = Phase.AUTH if self._login.goes_on else Phase.READY
        if isinstance(result, bytes):
            self._output.append(result)
            return None
        return result

    def _bdat(self, argument: str, *, in_order: bool) -> Question | Content | None:
        size = read_size(argument)
        if size is None:
            return refuse(
                "BDAT", CHUNK_SIZE, 501, "5.5.4", "BDAT takes a size, and LAST or nothing"
            )
        refusal = None if in_order else self._out_of_order("BDAT")
        if self.phase is Phase.RCPT:
            self._chunks = ChunkReader(fix=self._fix)
        self._chunks.begin(*size, refusal)
        self._accepted_phase = self.phase if refusal is not None else Phase.CHUNKS
        self.phase = Phase.CHUNK
        return self._read_chunk()  # None: everything that had come was taken

    def _read_chunk(self) -> Question | Content | None:
        event = self._chunks.take(self._inbox, self.capabilities.size or 0)
        if isinstance(event, Refused):
            self.phase = self._accepted_phase
        return event

    # Answering

    def _settle(self, question: Question, reply: Reply) -> None:
        kind = type(question)
        octets = self._rendered(kind, reply)  # what cannot be said is said by another: not counted
        if reply.code >= 400 or kind in _JUDGED:
            judged = self._judged(question, reply)
            if judged is not reply:
                reply, octets = judged, self._rendered(kind, judged)
        self._output.append(octets)
        self._apply(question, reply)
        if kind is Credentials and reply.code >= 500 and self._login.withholds:
            self._output[-1] = self._login.withhold(self._output[-1])
            self.phase = Phase.AUTH

    def _rendered(self, kind: type, reply: Reply) -> bytes:
        code, enhanced = reply.code, reply.enhanced
        if enhanced is not None and (
            not self._enhanced or 300 <= code < 400 or kind is Opened or kind is Hello
        ):
            enhanced = None
        return render_reply(code, enhanced, *reply.lines)

    def _judged(self, question: Question, reply: Reply) -> Reply:
        """The reply, or what is to be said in its place."""
        if type(question) is StartTls and reply.positive and self._plaintext_waits():
            self._closing = PLAINTEXT_BEHIND_STARTTLS
            return Reply(554, "5.5.1", (_UNASKED,))
        return self._bounds.judged(question, reply)

    def _apply(self, question: Question, reply: Reply) -> None:
        self._question = None
        kind, code = type(question), reply.code
        accepted = 300 <= code < 400 if kind is DataBegin else code < 300
        if accepted and kind is not Refused and kind is not ContentEnd:
            self.phase = self._accepted_phase
        answered = _ANSWERED.get(kind)
        if answered is not None:
            answered(self, question, accepted)
        if code == 421:
            self._closing = self._closing or "421"

    def _opened(self, _question: Opened, accepted: bool) -> None:
        if not accepted:
            self.phase = Phase.REFUSED

    def _greeted(self, question: Hello, accepted: bool) -> None:
        if accepted:
            self.extended = question.extended
            self._enhanced = self.extended and self.capabilities.enhancedstatuscodes
            self._forget()

    def _logged_in(self, _question: Credentials, accepted: bool) -> None:
        self.authenticated = accepted

    def _begun(self, question: MailFrom, accepted: bool) -> None:
        if accepted:
            self._forget()
            self.transactions += 1
            self._smtputf8 = question.smtputf8

    def _named(self, _question: RcptTo, accepted: bool) -> None:
        if accepted:
            self.recipients += 1
        else:
            self._refused_recipients = True

    def _content_begun(self, _question: DataBegin, accepted: bool) -> None:
        if accepted:
            self._data = DataReader(fix=self._fix)

    def _content_ended(self, question: ContentEnd | ChunkEnd, accepted: bool) -> None:
        if self.phase is Phase.CHUNKS:
            return
        self.phase = Phase.READY
        self._forget()
        if accepted and type(question) is ContentEnd:
            self._bounds.taken()

    def _reset(self, _question: Reset, accepted: bool) -> None:
        if accepted:
            self._forget()

    def _left(self, _question: Quit, _accepted: bool) -> None:
        self._closing = "quit"

    def _refused(self, question: Refused, _accepted: bool) -> None:
        if question.rule in (PLAINTEXT_BEHIND_STARTTLS, CHUNK_SIZE):
            self._closing = question.rule

    def _forget(self) -> None:
        """Forget the transaction's envelope."""
        self.recipients = 0
        self._refused_recipients = False

    def _plaintext_waits(self) -> bool:
        """Whether anything stands behind STARTTLS; it is thrown away."""
        return self.discard() > 0


_ANSWERED: dict[type, Callable[[ServerDialogue, Any, bool], None]] = {
    Opened: ServerDialogue._opened,
    Hello: ServerDialogue._greeted,
    Credentials: ServerDialogue._logged_in,
    MailFrom: ServerDialogue._begun,
    RcptTo: ServerDialogue._named,
    DataBegin: ServerDialogue._content_begun,
    ContentEnd: ServerDialogue._content_ended,
    ChunkEnd: ServerDialogue._content_ended,
    Reset: ServerDialogue._reset,
    Quit: ServerDialogue._left,
    Refused: ServerDialogue._refused,
}
"""What an answer changes."""
