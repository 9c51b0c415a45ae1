"""Mail hosts that behave as a seed says: our own server dialogue, with chance at every reply.

Contract: every command is answered well, refused (4xx, 5xx, 421), met with nonsense, a reset before
or behind the reply, or silence, with the odds of the host's mood. At the final dot what the host
took over is noted before anything is answered, so that a lost reply is a copy that exists.

Must not know: the client, the spool.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from mailstrom.smtp import server_events as ev
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.server import ServerDialogue
from tests.support.checker import Seen, content_digest
from tests.torture.sim_net import Wire

_ID = re.compile(rb"^Message-ID: (\S+)", re.M)
_MAIL = re.compile(rb"^M(?:AIL FROM:|A?I?L? ?F?R?O?M?\Z)", re.M)
"""A MAIL, or the head of the last one: of what is thrown away the rest is never heard as one."""
_STAGES: dict[type, str] = {
    ev.Opened: "greeting",
    ev.Hello: "ehlo",
    ev.MailFrom: "mail",
    ev.RcptTo: "rcpt",
    ev.DataBegin: "data",
    ev.ContentEnd: "dot",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mood:
    """The odds of a host, of each reply unless said otherwise.

    Args:
        refuse: of each connection; ``silent``: that it is never made.
        later, never: 4xx and 5xx.
        closing: 421.
        reset_before, reset_behind: the connection is cut before, or behind, the reply; at the dot
            the message may be taken in both.
        hang: never another reply.
        garbage: a line that is no reply.
        dot: all of them count so many times at the dot.
        slow_s: longest time until a reply.
        connections: more at once get 421.
    """

    refuse: float = 0.0
    silent: float = 0.0
    later: float = 0.0
    never: float = 0.0
    closing: float = 0.0
    reset_before: float = 0.0
    reset_behind: float = 0.0
    hang: float = 0.0
    garbage: float = 0.0
    dot: float = 1.0
    slow_s: float = 0.01
    connections: int = 100


CALM = Mood()


def moody(rng: random.Random) -> Mood:
    """A mood: mostly a few troubles at once, sometimes none."""
    worst = rng.choice((0.0, 0.02, 0.05, 0.1, 0.2))
    names = (
        "refuse", "silent", "later", "never", "closing", "reset_before", "reset_behind", "hang",
        "garbage",
    )  # fmt: skip
    odds = {name: worst * rng.random() for name in names if rng.random() < 0.5}
    if "hang" in odds:
        odds["hang"] *= 0.5
    return Mood(
        **odds,
        dot=rng.choice((1.0, 1.0, 3.0)),
        slow_s=rng.choice((0.002, 0.01, 0.1)),
        connections=rng.choice((1, 2, 100)),
    )


@dataclass(slots=True, kw_only=True)
class Dot:
    """A final dot that a host saw.

    Args:
        mail_s: when the client wrote this transaction's MAIL.
        answer: how many octets the client must have heard to have heard the answer; None: there
            was none.
    """

    seen: Seen
    wire: Wire
    mail_s: float
    answer: int | None = None

    @property
    def heard(self) -> bool:
        """Whether the client heard the answer."""
        return self.answer is not None and self.wire.heard(self.answer)


class MailHost:
    """A host at an address.

    Attributes:
        dots: every copy that reached its final dot; shared by all hosts.
        faults: how many replies did not come as they should, by kind.
    """

    def __init__(
        self,
        name: str,
        rng: random.Random,
        dots: list[Dot],
        faults: dict[str, int],
        trace: Callable[[str], None],
    ) -> None:
        self.name, self.rng, self.dots, self.faults, self.trace = name, rng, dots, faults, trace
        self.mood = CALM
        self.present = 0
        limits = {n: rng.choice((1, 2, 5)) for n in ("MAILMAX", "RCPTMAX") if rng.random() < 0.15}
        self.offers = Capabilities(
            name=name,
            pipelining=rng.random() < 0.7,
            eightbitmime=True,
            chunking=rng.random() < 0.3,
            enhancedstatuscodes=rng.random() < 0.5,
            limits=limits,
        )
        self.deaf = rng.random() < 0.15
        """Throws away what came along with a content: it offers what it cannot do."""

    def admit(self) -> str:
        """See ``sim_net.Host``."""
        for kind, odds in (("silent", self.mood.silent), ("refuse", self.mood.refuse)):
            if odds and self.rng.random() < odds:
                self.count(f"connect {kind}")
                return "refused" if kind == "refuse" else kind
        return "yes"

    def serve(self, wire: Wire) -> Conversation:
        """See ``sim_net.Host``."""
        return Conversation(self, wire)

    def count(self, fault: str) -> None:
        """One more fault."""
        self.faults[fault] = self.faults.get(fault, 0) + 1


class Conversation:
    """One connection, the host's side."""

    def __init__(self, host: MailHost, wire: Wire) -> None:
        self.host, self.wire = host, wire
        self._dialogue = ServerDialogue(host.offers, recipient_limit=100, error_limit=0)
        self._busy = self._over = self._hung = False
        self._mails = 0
        self._mail_s = 0.0
        self._recipients: list[str] = []
        self._content = bytearray()
        self._heard = bytearray()
        self._taken: list[Dot] = []
        host.present += 1
        self._pump()

    def received(self, data: bytes) -> None:
        """See ``sim_net.Server``."""
        if not self._over:
            self._heard += data
            self._dialogue.feed(data)
            self._pump()

    def ended(self) -> None:
        """See ``sim_net.Server``."""
        self._close(None, lose=True)

    def _pump(self) -> None:
        while not (self._busy or self._over or self._hung):
            event = self._dialogue.next_event()
            if event is None:
                return
            if isinstance(event, ev.Closing):
                self._flush()
                self._close(None, lose=False)
                return
            if isinstance(event, ev.Content):
                self._content += event.chunk
                continue
            self._busy = True
            wait_s = self.host.mood.slow_s * self.host.rng.random()
            self.wire.network.loop.call_later(
                wait_s, self._answer, event, context=self.wire.network.context
            )

    def _chance(self, stage: str) -> str:
        mood = self.host.mood
        times = mood.dot if stage == "dot" else 1.0
        if stage == "greeting" and self.host.present > mood.connections:
            return "closing"
        drawn = self.host.rng.random()
        for kind in ("later", "never", "closing", "reset_before", "reset_behind", "hang"):
            drawn -= getattr(mood, kind) * times
            if drawn < 0:
                return kind
        if stage != "greeting" and drawn < mood.garbage * times:
            return "garbage"
        return "well"

    def _answer(self, event: ev.Question) -> None:
        self._busy = False
        if self._over:
            return
        stage = _STAGES.get(type(event), "other")
        if isinstance(event, ev.Refused) and event.verb == "BDAT" and self.wire.unread is None:
            self.wire.unread = self.wire.down.sent
        kind = "well" if stage == "other" else self._chance(stage)
        if isinstance(event, ev.MailFrom):
            self._mail_s = self.wire.mails[self._mails]
            self._mails += 1
            self._recipients.clear()
        if kind != "well":
            self.host.count(f"{stage} {kind}")
        self.host.trace(f"{self.host.name} {stage} {kind}")
        default = event.default
        accepts = kind in ("well", "reset_behind", "garbage")
        if isinstance(event, ev.ContentEnd):
            accepts = accepts or (kind in ("reset_before", "hang") and self.host.rng.random() < 0.5)
            self._take(accepts and default.positive)
            if self.host.deaf and self._dialogue.discard():
                self.host.count("dot deaf")
                self._mails = len(_MAIL.findall(self._heard))
        if isinstance(event, ev.RcptTo) and accepts and default.positive:
            self._recipients.append(event.address)
        if kind == "hang":
            self._hung = self.wire.up.blocked = True
            return
        if kind == "reset_before":
            self._close(ConnectionResetError(104, "reset by peer"), lose=False)
            return
        if kind == "garbage":
            self.wire.garbage = self.wire.down.sent
            self.wire.down.send(b"what do you want?\r\n")
            self._close(None, lose=False)
            return
        code, enhanced = default.code, default.enhanced
        if kind in ("later", "never", "closing"):
            code = {"later": 451, "never": 554, "closing": 421}[kind]
            enhanced = {"later": "4.3.0", "never": "5.0.0", "closing": "4.3.2"}[kind]
            self._dialogue.reply(code, enhanced, "as the seed says")
        else:
            self._dialogue.reply(code, enhanced)
        self._flush()
        if isinstance(event, ev.ContentEnd):
            for dot in self._taken:
                dot.answer = self.wire.down.sent
        if kind == "reset_behind":
            lose = self.host.rng.random() < 0.5
            self._close(ConnectionResetError(104, "reset by peer"), lose=lose)
            return
        self._pump()

    def _take(self, kept: bool) -> None:
        content, self._content = bytes(self._content), bytearray()
        found = _ID.search(content)
        message_id = "" if found is None else found[1].decode()
        at = self.wire.network.loop.time()
        self._taken.clear()
        for recipient in self._recipients:
            seen = Seen(
                message_id=message_id,
                recipient=recipient,
                digest=content_digest(content),
                kept=kept,
                at=at,
            )
            self._taken.append(Dot(seen=seen, wire=self.wire, mail_s=self._mail_s))
            self.host.trace(f"{self.host.name} dot {message_id} {recipient} {kept}")
        self.host.dots += self._taken

    def _flush(self) -> None:
        output = self._dialogue.take_output()
        if output:
            self.wire.down.send(output)

    def _close(self, error: Exception | None, *, lose: bool) -> None:
        if not self._over:
            self._over = True
            self.host.present -= 1
            self.wire.down.end(error, lose=lose)
