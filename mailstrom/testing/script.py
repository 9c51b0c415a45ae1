"""What a scripted SMTP server does and when, as data.

Contract. A ``Script`` is what EHLO offers plus a list of ``Rule``; the first rule that fits
decides, else a magic local part does, else the server behaves. A rule names a stage:

    greeting ehlo helo starttls auth mail rcpt data bdat body dot rset quit

and an act: ``reply`` (a code, or the normal reply, after ``delay`` seconds, closing behind it where
``close`` is set), ``close`` (FIN, no reply), ``reset`` (RST, no reply), ``silence`` (no reply,
keeps reading), ``stall`` (no reply, stops reading), ``garbage`` (``data`` in place of the reply,
then silence, or a close where ``close`` is set). ``bdat`` is the end of any BDAT's octets, ``dot``
the end of the content however it came: behind a ``BDAT n LAST`` both are asked, ``bdat`` first. A
rule may be narrowed to recipients, a sender, a local address, to commands that came ``behind`` a
content that was not answered yet, to some of its matches (``first`` .. ``last``, counted per
``per``), to ``lasting`` seconds from the first match, and for ``body`` to the moment when ``after``
octets of content have come. A reply may be missing or come again (``times``), and what came behind
the command before its answer may be thrown away (``deaf``), and be waited for (``until``); a
refused content may leave its envelope open (``held``).

Magic local parts (``NAME@...`` and ``NAME+anything@...``): the table ``MAGIC``.

Must not know: sockets, clocks (``now`` is given), how a dialogue answers.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import render_reply
from mailstrom.smtp.server_auth import MECHANISMS

_BEFORE_MAIL = ("greeting", "ehlo", "helo", "starttls", "auth")
STAGES = frozenset((*_BEFORE_MAIL, "mail", "rcpt", "data", "bdat", "body", "dot", "rset", "quit"))


class Act(StrEnum):
    """What a server does at a stage."""

    REPLY = "reply"
    CLOSE = "close"
    RESET = "reset"
    SILENCE = "silence"
    STALL = "stall"
    GARBAGE = "garbage"


class Per(StrEnum):
    """What a rule's matches are counted for."""

    SERVER = "server"
    CONNECTION = "connection"
    RECIPIENT = "recipient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One exception from good behaviour.

    Args:
        stage: one of ``STAGES``.
        act: what to do.
        code: of the reply; None is the normal reply.
        enhanced: enhanced status code of the reply.
        text: of the reply; LF separates lines.
        delay: seconds before the act.
        close: close (FIN) behind the reply, or behind the garbage.
        times: how often the reply is written: 0 is a missing one, 2 a doubled one. The server
            goes on as if it had been written once.
        deaf: throw away what came behind the command before its answer, unread.
        until: wait, however long, until what came behind the command ends so, written as Latin-1;
            the delay begins then.
        held: a refused content leaves its envelope open, and the next MAIL is answered 503 (so
            does Postfix where ``smtpd_end_of_data_restrictions`` refuses).
        data: for ``garbage``: written as Latin-1.
        after: for ``body``: octets of content that must have come.
        recipient: shell pattern for an address; at ``rcpt`` the one named, later any accepted one.
        sender: shell pattern for the transaction's sender.
        address: the local address this server listens on.
        first, last: which matches act, from 1; ``last`` None is all that follow.
        per: what the matches are counted for.
        lasting: seconds from the first counted match after which the rule no longer acts.
        behind: True: only commands that came while a content before them was unanswered; False:
            only others.
        kept: whether a content whose dot gets no reply counts as taken over.
    """

    stage: str
    act: Act = Act.REPLY
    code: int | None = None
    enhanced: str | None = None
    text: str = ""
    delay: float = 0.0
    close: bool = False
    times: int = 1
    deaf: bool = False
    until: str = ""
    held: bool = False
    data: str = ""
    after: int = 0
    recipient: str | None = None
    sender: str | None = None
    address: str | None = None
    first: int = 1
    last: int | None = None
    per: Per = Per.SERVER
    lasting: float | None = None
    behind: bool | None = None
    kept: bool = True

    def __post_init__(self) -> None:
        """Refuse a stage or an act that does not exist, too much to wait for, an impossible reply.

        Raises:
            ValueError: names the stage or act and the possible ones, or what no reply can say.
        """
        if len(self.until) > 64:
            raise ValueError(f"until has {len(self.until)} characters; 64 are enough")
        if self.stage not in STAGES:
            raise ValueError(f"no stage {self.stage!r}; one of {' '.join(sorted(STAGES))}")
        object.__setattr__(self, "act", Act(self.act))
        object.__setattr__(self, "per", Per(self.per))
        if self.code is not None:
            if type(self.code) is not int:
                raise ValueError(f"code {self.code!r} is no number from 200 to 599")
            render_reply(self.code, self.enhanced, *self.text.split("\n"))


# What happens to each address the first time; from then on it is accepted.
_ONCE: Mapping[str, Rule] = {
    "defer-once": Rule(stage="rcpt", code=450, enhanced="4.2.1", text="mailbox busy, try again"),
    "closing": Rule(stage="rcpt", code=421, enhanced="4.3.2", text="closing, try again"),
    "defer-content-once": Rule(
        stage="dot", code=451, enhanced="4.3.0", text="cannot store now, try again"
    ),
    "drop-in-body": Rule(stage="body", act=Act.CLOSE),
    "drop-after-dot": Rule(stage="dot", act=Act.CLOSE),
    "reset-after-dot": Rule(stage="dot", act=Act.RESET),
    "silent-after-dot": Rule(stage="dot", act=Act.SILENCE),
}
_ALWAYS: Mapping[str, Rule] = {
    "refuse": Rule(stage="rcpt", code=550, enhanced="5.1.1", text="no such user here"),
    "full": Rule(stage="rcpt", code=552, enhanced="5.2.2", text="mailbox full"),
    "blocked": Rule(stage="rcpt", code=554, enhanced="5.7.1", text="refused by policy"),
    "defer": Rule(stage="rcpt", code=451, enhanced="4.3.0", text="try again later"),
    "greylist": Rule(
        stage="rcpt",
        code=451,
        enhanced="4.7.1",
        text="greylisted, try again in 1 second",
        lasting=1.0,
    ),
    "slow": Rule(stage="dot", delay=2.0),
    "refuse-content": Rule(stage="dot", code=554, enhanced="5.7.1", text="content refused"),
}

#: Local parts with a behaviour of their own; ``accept`` and every other name is simply accepted.
MAGIC: Mapping[str, Rule] = {
    **{name: replace(rule, per=Per.RECIPIENT) for name, rule in _ALWAYS.items()},
    **{name: replace(rule, per=Per.RECIPIENT, last=1) for name, rule in _ONCE.items()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How one server behaves.

    Args:
        rules: exceptions, the first that fits decides.
        magic: whether the local parts of ``MAGIC`` work.
        pipelining, eightbitmime, smtputf8, enhancedstatuscodes: offered by EHLO.
        chunking: BDAT is offered; with ``bdat_known`` False it is no command here all the same, and
            the octets behind it are read as commands, as behind a proxy that lets EHLO replies
            pass.
        dsn, mt_priority: offered by EHLO; what a client asks for is kept, and nothing reported.
        requiretls: offered by EHLO under TLS (RFC 8689).
        limits: offered by EHLO (RFC 9422), not enforced.
        starttls: offered where the server has a certificate.
        size: None: SIZE is not offered; 0: offered without a limit.
        auth: user -> password (with XOAUTH2 the access token); AUTH is offered if there is any,
            and then needed before MAIL.
        mechanisms: offered by AUTH: PLAIN, LOGIN, CRAM-MD5, XOAUTH2; every exchange is verified.
        auth_in_clear: offer AUTH before TLS too.
        recipient_limit: recipients of one transaction, more get 452.
        connection_limit: connections open at once, a further one is greeted with 421; 0: no limit.
    """

    rules: Sequence[Rule] = ()
    magic: bool = True
    pipelining: bool = True
    eightbitmime: bool = True
    smtputf8: bool = True
    enhancedstatuscodes: bool = True
    chunking: bool = False
    bdat_known: bool = True
    dsn: bool = False
    mt_priority: bool = False
    requiretls: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)
    starttls: bool = True
    size: int | None = 50 * 1024 * 1024
    auth: Mapping[str, str] = field(default_factory=dict)
    mechanisms: Sequence[str] = ("PLAIN", "LOGIN")
    auth_in_clear: bool = True
    recipient_limit: int = 1000
    connection_limit: int = 0

    def __post_init__(self) -> None:
        """Refuse a mechanism that does not exist, and rules that are none.

        Raises:
            TypeError: names what is no ``Rule``.
            ValueError: names the mechanism and the possible ones.
        """
        if isinstance(self.rules, Rule):
            raise TypeError("rules is one Rule and has to be a sequence: write (Rule(...),)")
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    f"{rule!r:.80} is no Rule: write Rule(stage=...), or Script.from_json() for"
                    " rules that are data"
                )
        unknown = set(self.mechanisms) - MECHANISMS
        if unknown:
            known = " ".join(sorted(MECHANISMS))
            raise ValueError(f"no mechanism {', '.join(sorted(unknown))}; one of {known}")

    @classmethod
    def from_json(cls, text: str) -> Script:
        """Script from a JSON object with this class's fields; ``rules`` is a list of objects.

        Raises:
            ValueError: not JSON, an unknown field, or a rule that does not exist.
        """
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("a script is a JSON object with the fields of Script")
        unknown = set(given) - {one.name for one in fields(cls)}
        if unknown:
            raise ValueError(f"a script has no {', '.join(sorted(unknown))}")
        rules = tuple(_rule(one) for one in given.pop("rules", ()))
        return cls(rules=rules, **given)

    def offer(self, name: str, *, tls_possible: bool, tls: bool) -> Capabilities:
        """What EHLO says, before TLS and under it.

        Args:
            name: the server's own name.
            tls_possible: whether the server has a certificate.
            tls: whether TLS is on.
        """
        offers_auth = bool(self.auth) and (tls or self.auth_in_clear)
        return Capabilities(
            name=name,
            size=self.size,
            pipelining=self.pipelining,
            eightbitmime=self.eightbitmime,
            smtputf8=self.smtputf8,
            starttls=self.starttls and tls_possible and not tls,
            enhancedstatuscodes=self.enhancedstatuscodes,
            chunking=self.chunking and self.bdat_known,
            dsn=self.dsn,
            mt_priority="" if self.mt_priority else None,
            requiretls=self.requiretls,
            limits=self.limits,
            auth=frozenset(self.mechanisms) if offers_auth else frozenset(),
        )


def _rule(given: Mapping[str, object]) -> Rule:
    unknown = set(given) - {one.name for one in fields(Rule)}
    if unknown:
        raise ValueError(f"a rule has no {', '.join(sorted(unknown))}")
    return Rule(**given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a connection stands when the script is asked.

    Args:
        address: the local address.
        connection: number of the connection.
        transaction: number of the transaction, over all connections.
        recipients: the one named at ``rcpt``; later the accepted ones.
        octets: content seen so far.
        behind: the command came while a content before it was unanswered.
        now: seconds of a monotonic clock.
    """

    stage: str
    address: str
    connection: int
    transaction: int
    sender: str
    recipients: Sequence[str]
    octets: int
    now: float
    behind: bool = False


class _Counted:
    """A rule with its compiled patterns and the matches it has had."""

    __slots__ = ("bodies", "matches", "recipient", "rule", "sender", "started")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.recipient = _pattern(rule.recipient)
        self.sender = _pattern(rule.sender)
        self.matches: dict[object, int] = {}
        self.bodies: set[int] = set()  # transactions whose body was matched already
        self.started: dict[object, float] = {}

    def acts(self, moment: Moment) -> bool:
        """Whether the rule fits and this match is one that acts; the match is counted."""
        rule = self.rule
        if rule.address is not None and rule.address != moment.address:
            return False
        if self.sender is not None and not self.sender.match(moment.sender):
            return False
        if rule.behind is not None and rule.behind is not moment.behind:
            return False
        if self.recipient is None:
            return self.counts(moment, "")
        for address in moment.recipients:
            if self.recipient.match(address):
                return self.counts(moment, address)
        return False

    def counts(self, moment: Moment, recipient: str) -> bool:
        """Count a match by this recipient; whether it is one that acts."""
        rule = self.rule
        if rule.stage == "body":
            # Asked at every piece of content, counted once a transaction.
            if moment.octets < rule.after or moment.transaction in self.bodies:
                return False
            self.bodies.add(moment.transaction)
        key = {Per.SERVER: 0, Per.CONNECTION: moment.connection, Per.RECIPIENT: recipient}[rule.per]
        number = self.matches[key] = self.matches.get(key, 0) + 1
        started = self.started.setdefault(key, moment.now)
        in_time = rule.lasting is None or moment.now - started < rule.lasting
        return in_time and number >= rule.first and (rule.last is None or number <= rule.last)


def _pattern(glob: str | None) -> re.Pattern[str] | None:
    return None if glob is None else re.compile(fnmatch.translate(glob), re.IGNORECASE)


class Director:
    """A script being played: remembers what has already happened.

    Args:
        script: the script; one director may serve many connections.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self._rules: dict[str, list[_Counted]] = {}
        for rule in script.rules:
            self._rules.setdefault(rule.stage, []).append(_Counted(rule))
        # By stage, then by local part: every recipient asks, so this is no search.
        self._magic: dict[str, dict[str, _Counted]] = {}
        for name, rule in MAGIC.items() if script.magic else ():
            self._magic.setdefault(rule.stage, {})[name] = _Counted(rule)

    def scripted(self, stage: str) -> bool:
        """Whether any rule is about this stage."""
        return stage in self._rules or stage in self._magic

    def decide(self, moment: Moment) -> Rule | None:
        """The rule for this moment, or None to behave; each match is counted."""
        for counted in self._rules.get(moment.stage, ()):
            if counted.acts(moment):
                return counted.rule
        magic = self._magic.get(moment.stage)
        if magic is not None:
            for address in moment.recipients:
                name = address.rpartition("@")[0].partition("+")[0].lower()
                found = magic.get(name)
                if found is not None and found.counts(moment, address):
                    return found.rule
        return None
