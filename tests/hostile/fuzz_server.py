"""Fuzz target of the server's dialogue: a client that says anything, in any pieces.

The judge walks over the whole stream with a naive reader (a command ends with its first CRLF,
content with the first CRLF.CRLF, a BDAT with its octets) and compares the dialogue's events with
it, cut and uncut; so no command can come out of content. A small table of its own says what may
follow what.
"""

from __future__ import annotations

import re
from typing import Any

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.dsn import BadValue, decode_orcpt, decode_xtext, encode_orcpt, encode_xtext
from mailstrom.smtp.server import PLAINTEXT_BEHIND_STARTTLS, ServerDialogue
from mailstrom.smtp.server_auth import MECHANISMS
from mailstrom.smtp.server_events import (
    ChunkEnd,
    Closing,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Event,
    Hello,
    MailFrom,
    Opened,
    RcptTo,
    Refused,
    Reset,
)
from mailstrom.smtp.server_order import Phase
from tests.hostile.fuzz_choices import Choices, cut
from tests.hostile.fuzz_replies import naive_content, naive_replies

LINE_LIMIT = 512
MOST = 12288 + 8  # the longest line of AUTH; those of parameters are shorter
OFFERS = (
    Capabilities(name="mx", size=200, pipelining=True, eightbitmime=True, chunking=True,
                 smtputf8=True, enhancedstatuscodes=True),
    Capabilities(name="mx"),
    Capabilities(name="mx", chunking=True, auth=MECHANISMS),
    Capabilities(name="mx", starttls=True, chunking=True),
    Capabilities(name="mx", size=200, eightbitmime=True, smtputf8=True, dsn=True, chunking=True,
                 requiretls=True, future_release=3600, mt_priority=""),
    Capabilities(name="mx", size=0),
)  # fmt: skip
FIXED = OFFERS[5]  # a CR or LF alone in content is made a CRLF
NOW = 1_900_000_000


class _Server:
    """A dialogue with a shell that answers by a rule, and what it told."""

    def __init__(self, offer: Capabilities, whim: int) -> None:
        self.dialogue = ServerDialogue(
            offer, tls=offer.dsn, line_limit=LINE_LIMIT, error_limit=8, recipient_limit=3,
            challenge=lambda: "<1@mx>", clock=lambda: NOW, transaction_limit=9, idle_limit=20,
            bare_newlines="fix" if offer is FIXED else "refuse",
        )  # fmt: skip
        self.whim = whim
        self.events: list[Any] = []
        self.output = b""
        self.asked = 0
        self.envelope: list[str] | None = None  # None: no MAIL was accepted
        self.greeted = self.open = False

    def feed(self, data: bytes, *, most: int = -1) -> None:
        """Take octets in, and so many events out of them; -1: all."""
        dialogue = self.dialogue
        dialogue.feed(data)
        while most != 0 and (event := dialogue.next_event()) is not None:
            most -= 1
            self._allowed(event)
            if isinstance(event, Content) and self.events and isinstance(self.events[-1], Content):
                self.events[-1] = Content(chunk=self.events[-1].chunk + event.chunk)
            else:
                self.events.append(event)
            self._answer(event)
            self.output += dialogue.take_output()
        self.output += dialogue.take_output()
        if most < 0 and dialogue.phase not in (Phase.CLOSED, Phase.HANDSHAKE):
            assert dialogue.buffered <= MOST, f"{dialogue.buffered} octets are held"

    def _answer(self, event: Event) -> None:
        """The defaults, but for every so many questions."""
        if isinstance(event, (Content, Closing)):
            return
        self.asked += 1
        reply = event.default
        if isinstance(event, Credentials) and self.asked % 2:
            reply = type(reply)(235, None, ("welcome",))
            self.dialogue.reply(235, None, "welcome")
        elif self.whim and self.asked % (self.whim + 1) == 0 and not isinstance(event, Refused):
            code = (450, 550, 421, 554)[self.asked % 4]
            reply = type(reply)(code, None, ("no",))
            self.dialogue.reply(code, None, "no")
        self._keep(event, reply)

    def _allowed(self, event: Event) -> None:
        """What may follow what, by RFC 5321 section 4.1.4, on what was answered."""
        match event:
            case MailFrom():
                assert self.greeted, "MAIL before a greeting"
                assert self.envelope is None, "MAIL within a transaction"
                _asked_of_mail(event)
            case RcptTo():
                assert self.envelope is not None, "RCPT without MAIL"
                assert len(self.envelope) < 3
                _asked_of_rcpt(event)
            case DataBegin():
                assert self.envelope, "DATA without a recipient"
            case Content():
                assert self.open or self.envelope, "content without DATA or BDAT"
            case ContentEnd() | ChunkEnd():
                assert self.envelope, "an end of content without a recipient"

    def _keep(self, event: Event, reply: Any) -> None:
        ok = reply.positive
        match event:
            case Hello() if ok:
                self.greeted, self.envelope = True, None
            case MailFrom() if ok:
                self.envelope = []
            case RcptTo() if ok and self.envelope is not None:
                self.envelope.append(event.address)
            case DataBegin():
                self.open = reply.intermediate
            case ContentEnd():
                self.open, self.envelope = False, None
            case ChunkEnd() if not ok:
                self.envelope = None
            case Reset() if ok:
                self.envelope = None


def _asked_of_mail(event: MailFrom) -> None:
    """What is told of parameters is what may be stored, shown and sent on."""
    assert event.ret in (None, "full", "hdrs")
    if event.envid is not None:
        assert event.envid.isascii()
        assert event.envid.isprintable()
        assert decode_xtext(encode_xtext(event.envid)) == event.envid
        assert len(event.params["ENVID"] or "") <= 100
    assert event.hold_for is None or 0 <= event.hold_for <= 3600
    assert event.hold_until_ms is None or event.hold_until_ms <= (NOW + 3600) * 1000
    assert event.hold_for is None or event.hold_until_ms is None
    assert event.mt_priority is None or -9 <= event.mt_priority <= 9
    assert event.size is None or 0 <= event.size < 10**20
    assert event.auth is None or event.auth.isascii()
    assert set(event.params) <= _KEYWORDS


def _asked_of_rcpt(event: RcptTo) -> None:
    assert set(event.params) <= {"NOTIFY", "ORCPT"}
    if event.notify is not None:
        words = event.notify.split(",")
        assert words == ["never"] or set(words) <= {"success", "failure", "delay"}
    if event.orcpt is not None:
        kind, _, address = event.orcpt.partition(";")
        assert kind.isascii()
        assert address
        assert not set(event.orcpt) & set("\r\n\0\x7f\u2028\u2029")
        try:
            wire = encode_orcpt(event.orcpt, smtputf8=True)
        except BadValue:
            assert len(event.params["ORCPT"] or "") > 80  # it grew beyond the bound
        else:
            assert decode_orcpt(wire).partition(";")[2] == address


def server(data: bytes) -> None:
    """Whatever a client says, the events are those of the uncut stream, and in order."""
    choices = Choices(data)
    offer, whim, sizes = choices.one_of(OFFERS), choices.below(8), choices.sizes()
    stream = choices.rest()
    one = _Server(offer, whim)
    one.feed(b"")
    one.feed(stream)
    codes = naive_replies(one.output.replace(b"334 \r\n", b"334\r\n"))
    assert not codes[1], "an answer that is no reply"
    if offer.starttls:
        _starttls(one, offer, whim)
        return
    other = _Server(offer, whim)
    for piece in cut(stream, sizes):
        other.feed(piece)
    other.feed(b"")
    assert _told(other.events) == _told(one.events), "another cut, other events"
    assert other.output == one.output
    late = _Server(offer, whim)
    for number, piece in enumerate(cut(stream, sizes)):
        late.feed(piece, most=number % 3)  # a shell that is busy elsewhere
    late.feed(b"")
    assert _told(late.events) == _told(one.events), "taken late, other events"
    assert late.output == one.output
    if not offer.auth:
        _walk(stream, one.events, offer is FIXED)
        _walk(stream, other.events, offer is FIXED)


def _told(events: list[Any]) -> list[Any]:
    """Without pieces of content that must not be stored: how many were told depends on the cut."""
    kept = []
    for event in events:
        bad = isinstance(event, ContentEnd) and (event.violation or event.oversize)
        bad = bad or isinstance(event, ChunkEnd)  # what it holds is compared with the stream
        if bad and kept and isinstance(kept[-1], Content):
            kept.pop()
        kept.append(event)
    return kept[:-1] if kept and isinstance(kept[-1], Content) else kept  # nor did that one end


def _starttls(one: _Server, offer: Capabilities, whim: int) -> None:
    """What came behind STARTTLS is not read as if it had come through TLS (CVE-2011-0411)."""
    if one.dialogue.phase is not Phase.HANDSHAKE:
        return
    assert one.dialogue.buffered == 0
    one.dialogue.feed(b"MAIL FROM:<evil@example.org>\r\n")
    one.dialogue.tls_started()
    assert one.dialogue.next_event() == Closing(cause=PLAINTEXT_BEHIND_STARTTLS)
    assert one.dialogue.next_event() is None


_BDAT = re.compile(rb"BDAT +([0-9]{1,20})( +LAST)? *", re.IGNORECASE)


def _walk(stream: bytes, events: list[Any], fixed: bool) -> None:
    """The events account for the stream, octet by octet, as a naive reader cuts it."""
    at = 0
    for number, event in enumerate(events):
        if isinstance(event, (Opened, Closing, Content)):
            continue
        if isinstance(event, (ContentEnd, ChunkEnd)):
            at, content = _content(stream, at, events, number, fixed)
            before = events[number - 1]
            got = before.chunk if isinstance(before, Content) else b""
            stored = isinstance(event, ContentEnd) and not (event.violation or event.oversize)
            # of what must not be stored, and of a chunk of it, a beginning at most is told
            assert content == got if stored else content.startswith(got), "not what was sent"
            continue
        end = stream.find(b"\r\n", at)
        assert end >= 0, "a command that is not there"
        line = stream[at:end]
        at = end + 2
        if isinstance(event, Refused) and event.verb == "BDAT" and event.rule != "not-implemented":
            size = _BDAT.fullmatch(line)
            at += int(size[1]) if size is not None else 0
            assert size is not None or event.rule == "chunk-size"
        elif not isinstance(event, Refused):
            verb = type(event).__name__
            assert line[:4].upper() in _VERBS[verb], (line, verb)


_KEYWORDS = {
    "SIZE", "BODY", "SMTPUTF8", "AUTH", "RET", "ENVID", "HOLDFOR", "HOLDUNTIL", "MT-PRIORITY",
    "REQUIRETLS",
}  # fmt: skip
_VERBS = {
    "Hello": (b"EHLO", b"HELO"), "MailFrom": (b"MAIL",), "RcptTo": (b"RCPT",),
    "DataBegin": (b"DATA",), "Reset": (b"RSET",), "Inquiry": (b"NOOP", b"VRFY", b"HELP"),
    "Quit": (b"QUIT",), "StartTls": (b"STAR",),
}  # fmt: skip


def _content(
    stream: bytes, at: int, events: list[Any], number: int, fixed: bool
) -> tuple[int, bytes]:
    """The content that ends here: behind the DATA before it, or in a BDAT of its own line."""
    event = events[number]
    chunked = isinstance(event, ChunkEnd) or event.chunked
    if not chunked:
        content, rest = naive_content([stream[at:]])
        assert rest is not None, "content that has no end"
        last = len(stream) - len(rest)
        if fixed:
            whole = re.sub(rb"\r\n|\r|\n", b"\r\n", b"\r\n" + stream[at : last - 3])
            content = whole.replace(b"\r\n.", b"\r\n")[2:]
        return last, content
    end = stream.find(b"\r\n", at)
    size = _BDAT.fullmatch(stream[at:end])
    assert size is not None, stream[at:end]
    start = end + 2
    last = start + int(size[1])
    assert last <= len(stream), "a chunk that is not whole"
    assert isinstance(event, ContentEnd) == (size[2] is not None)
    return last, stream[start:last]
