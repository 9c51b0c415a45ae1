"""A lane between a store and a server that only remember what was asked of them.

Contract: ``Rig`` runs one ``LaneRun`` in virtual time. ``Store`` keeps states by the guards of the
real one (a lane, a state), answers after ``Rig.store_s``, and notes each exchange. ``Server`` takes
a transaction and one behind it, and answers after ``Rig.reply_s`` as the script for its recipient
says. Must not know: what is right.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from math import inf
from typing import Any, Literal, TypeVar, cast

import pytest

from mailstrom.config import from_tables
from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.transaction import Fault, TransactionEnd, Unmet, UnmetNeed, unmet
from mailstrom.storage.base import Ahead, Claimed, Exchange, Lane, Settlement, Work
from mailstrom.types import Host, OnDoubt, Pipelining, Stage
from mailstrom_workers import connector as connector_module
from mailstrom_workers.context import Context, Settings
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.endpoint import SessionFacts, SessionFailure, SessionPolicy, Target
from mailstrom_workers.lane import LaneRun
from mailstrom_workers.machine import Machine
from mailstrom_workers.resolver import Resolver
from mailstrom_workers.session import Outgoing, Source
from tests.torture.sim_loop import VirtualLoop

_T = TypeVar("_T")

OK = Reply(250, "2.0.0", ("2.0.0 fine",))
LATER = Reply(451, "4.3.0", ("4.3.0 not now",))
NEVER = Reply(550, "5.1.1", ("5.1.1 nobody",))


def row(recipient: int, **facts: Any) -> Claimed:
    """A claimed recipient of a message of its own."""
    return Claimed(
        **{
            "lane": 1, "recipient": recipient, "message": recipient, "message_id": f"m{recipient}",
            "address": f"r{recipient}@example.org", "domain": "example.org", "sender": "",
            "size": 9, "content": 1, "chunks": 1, "body": b"A: b\r\n\r\nc\r\n", "damaged": False,
            "stream": "default", "priority": 1, "created_ms": 0, "expires_ms": 1 << 42,
            "attempts": 0, "deferrals": 0, "on_doubt": None, "require_tls": False,
            "eightbit": False, "smtputf8": False,
            **facts,
        }
    )  # fmt: skip


def end(count: int = 1, **facts: Any) -> TransactionEnd:
    """How a transaction ended: by default all is taken."""
    return TransactionEnd(
        **{
            "mail": OK, "rcpts": (OK,) * count, "data": Reply(354, None, ("go",)), "dot": OK,
            "stage": Stage.DOT, "fault": None, "dot_written": True, "answered": True,
            "usable": True, **facts,
        }
    )  # fmt: skip


def refused(reply: Reply, **facts: Any) -> TransactionEnd:
    """The recipient was refused."""
    return end(rcpts=(reply,), data=None, dot=None, stage=Stage.RCPT, dot_written=False, **facts)


def cut(*, answered: bool, dotted: bool, **facts: Any) -> TransactionEnd:
    """The connection was lost."""
    return end(
        mail=OK if answered else None, rcpts=(OK if answered else None,), data=None, dot=None,
        stage=Stage.DOT if dotted else Stage.MAIL, fault=Fault.CLOSED, dot_written=dotted,
        answered=answered, usable=False, **facts,
    )  # fmt: skip


def suiting(rows: Sequence[Claimed], ahead: Ahead) -> set[int]:
    """What of a claim is opened with it: message by message, up to the first that does not suit."""
    opened: set[int] = set()
    for count, (_, group) in enumerate(groupby(rows, key=lambda one: one.message)):
        same = list(group)
        first = same[0]
        if (
            count == ahead.messages
            or len(same) > ahead.recipients
            or (ahead.octets and first.size > ahead.octets)
            or first.on_doubt is OnDoubt.HOLD
            or (first.require_tls and not ahead.encrypted)
            or (first.requiretls and not ahead.requiretls)
            or (first.eightbit and not ahead.eightbit)
            or (first.smtputf8 and not ahead.smtputf8)
        ):
            break
        opened.update(one.recipient for one in same)
    return opened


async def until(done: Callable[[], object]) -> None:
    """Wait for it, in virtual time."""
    for _ in range(1_000_000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


HUNG = SessionFailure(
    stage=Stage.GREETING, cause="timeout", reply=None, text="greeting: no answer in time",
    facts=SessionFacts(host="mx", address="192.0.2.1", port=25, tls_wanted="none"),
)  # fmt: skip
"""What comes of a host whose greeting was not waited for to its end."""


class Store:
    """What is due, and what became of it.

    Attributes:
        states: recipient -> state.
        work: each exchange, in order.
        ahead: recipients opened with each claim.
        durable: of each of them.
        patient: of each of them.
        withdrawn: recipients whose open is refused: a person took them.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.due: deque[Claimed] = deque()
        self.states: dict[int, str] = {}
        self.work: list[Work] = []
        self.ahead: list[set[int]] = []
        self.durable: list[bool] = []
        self.patient: list[bool] = []
        self.hurried = 0
        self.settled: list[Settlement] = []
        self.withdrawn: set[int] = set()
        self.suspended: list[Any] = []
        self.released = 0
        self.chunks: list[bytes | Exception | None] = []
        self.told: dict[int, float] = {}

    def add(self, *rows: Claimed) -> None:
        """More is due."""
        for one in rows:
            self.due.append(one)
            self.states[one.recipient] = "queued"

    def exchange(self, work: Work) -> Exchange:
        """Settle, open, claim, in that order."""
        self.work.append(work)
        settled = set()
        for one in work.settlements:
            assert self.states[one.recipient] in ("claimed", "sending"), one
            self.states[one.recipient] = one.state
            self.told.setdefault(one.recipient, self.rig.loop.time())
            self.settled.append(one)
            settled.add(one.recipient)
        opened = set()
        for each in work.opens:
            for recipient in each.recipients:
                if recipient in self.withdrawn:
                    self.states[recipient] = "cancelled"
                    continue
                assert self.states[recipient] in ("claimed", "sending")
                self.states[recipient] = "sending"
                opened.add(recipient)
        claimed: list[Claimed] = []
        more = set()
        for claim in work.claims:
            messages: dict[int, int] = {}
            given: list[Claimed] = []
            while self.due and len({*messages, self.due[0].message}) <= claim.limit:
                one = self.due[0]
                octets = len(one.body or b"")
                if messages and sum(messages.values()) + octets > claim.max_bytes:
                    break
                self.due.popleft()
                messages[one.message] = octets
                self.states[one.recipient] = "claimed"
                given.append(one)
            ahead = set() if claim.ahead is None else suiting(given, claim.ahead)
            self.ahead.append(ahead)
            self.states.update(dict.fromkeys(ahead, "sending"))
            opened |= ahead
            claimed += given
            if self.due:
                more.add(claim.lane)
        done = frozenset(settled), frozenset(opened), claimed, frozenset[int]()
        return Exchange(*done, more=frozenset(more))

    def failures(self, site: int) -> int:
        """See ``WorkerStore``."""
        return 0

    def suspend(self, suspension: Any, now_ms: int) -> int:
        """See ``WorkerStore``."""
        self.suspended.append(suspension)
        return 1

    def release(self, ended: Sequence[int], now_ms: int, *, on_doubt: OnDoubt) -> int:
        """See ``WorkerStore``."""
        self.released += len(ended)
        held = [r for r, state in self.states.items() if state in ("claimed", "sending")]
        for recipient in held:
            was = self.states[recipient]
            self.states[recipient] = "queued" if was == "claimed" else "in doubt"
        return len(held)

    def chunk(self, content: int, number: int) -> bytes | None:
        """See ``WorkerStore``."""
        found = self.chunks[number]
        if isinstance(found, Exception):
            raise found
        return found


class DB:
    """``DBService`` without its service."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.error: BaseException | None = None

    def post(
        self,
        work: Work,
        done: Callable[..., None],
        *,
        durable: bool = False,
        patient: bool = False,
    ) -> None:
        """See ``DBService.post``."""
        self.rig.store.durable.append(durable or bool(work.claims))
        self.rig.store.patient.append(patient)

        def serve() -> None:
            if self.error is not None:
                done(None, self.error)
                return
            exchange = self.rig.store.exchange(work)
            exchange = exchange._replace(
                locked_s=self.rig.loop.time(), settled=exchange.settled | self.rig.settled_beside
            )
            if self.rig.late_s:
                self.rig.loop.call_later(self.rig.late_s, done, exchange, None)
            else:
                done(exchange, None)

        self.rig.loop.call_later(self.rig.store_s, serve)

    def hurry(self) -> None:
        """See ``DBService.hurry``."""
        self.rig.store.hurried += 1

    async def exchange(self, work: Work, *, durable: bool = False) -> Exchange:
        """See ``DBService.exchange``."""
        if work.empty:
            return Exchange(frozenset(), frozenset(), [])
        future: asyncio.Future[Exchange] = self.rig.loop.create_future()

        def done(exchange: Exchange | None, error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast(Exchange, exchange))

        self.post(work, done, durable=durable)
        return await future

    async def call(self, function: Callable[[Any], _T]) -> _T:
        """See ``DBService.call``."""
        await asyncio.sleep(self.rig.store_s)
        return function(self.rig.store)

    async def insist(self, function: Callable[[Any], _T]) -> _T:
        """See ``DBService.insist``."""
        return await self.call(function)


class Server:
    """A session with a server; ``Rig.says`` gives the end of a transaction, None: silence."""

    def __init__(self, rig: Rig, host: str, policy: SessionPolicy) -> None:
        self.rig, self.policy = rig, policy
        self.facts = SessionFacts(
            host=host,
            address="192.0.2.1",
            port=25,
            tls_wanted="none",
            tls_reached="verified" if policy.verify else rig.tls,
            tls_verified=policy.verify,
        )
        self.capabilities = rig.offers
        self.begun = 0
        self.wrote_s = -inf
        self.domains: set[str] = set()
        self.source: Source | None = None
        self.wire: deque[Outgoing] = deque()
        self.messages = 0
        self.usable, self.quits, self.aborted = True, False, False
        self.end_cause: str | None = None
        self._answering = False

    @property
    def idle(self) -> bool:
        """See ``Session``."""
        return not self.wire

    def feed(self, source: Source | None) -> None:
        """See ``Session``."""
        assert self.idle
        self.source = source
        self.poke()

    def poke(self) -> None:
        """Take one transaction, and one behind it."""
        if self.source is None:
            return
        while self.usable and len(self.wire) < 1 + self.rig.behind:
            outgoing = self.source.next()
            if outgoing is None:
                return
            lacking = unmet(outgoing.envelope, self.capabilities)
            if lacking is not None:
                self.rig.lacking.append(lacking)
                self.source.failed(outgoing, UnmetNeed(lacking))
                continue
            self._heed_limits(outgoing)
            self.rig.begun.append(int(outgoing.envelope.recipients[0][1:].partition("@")[0]))
            self.rig.envelopes.append(outgoing.envelope.recipients)
            self.rig.sessions.append(self)
            self.wire.append(outgoing)
            self._answer()

    def _heed_limits(self, outgoing: Outgoing) -> None:
        """What no session may be given, whoever opened it; told at the end of ``Rig.run``."""
        rows, limits, wrongs = outgoing.of.recipients, self.capabilities, self.rig.wrongs
        self.begun += 1
        if self.begun > (limits.most_transactions or self.begun):
            wrongs.append("more transactions than MAILMAX")
        if len(rows) > (limits.most_recipients or 100):
            wrongs.append("more recipients than RCPTMAX")
        self.domains.update(one.domain for one in rows)
        if len(self.domains) > (limits.most_domains or inf):
            wrongs.append("more domains than RCPTDOMAINMAX")
        if rows[0].require_tls and self.facts.tls_reached == "none":
            wrongs.append("sent in clear")
        if outgoing.of.strict and not (self.facts.tls_verified and self.capabilities.requiretls):
            wrongs.append("REQUIRETLS mail sent without proof, or to who does not offer it")
        if any(self.rig.store.states[one.recipient] != "sending" for one in rows):
            wrongs.append("sent and not opened")

    def _answer(self) -> None:
        if not self._answering and self.wire:
            self._answering = True
            self.rig.loop.call_later(self.rig.reply_s, self._reply)

    def _reply(self) -> None:
        self._answering = False
        if not self.wire:
            return
        outgoing = self.wire[0]
        told = self.rig.says(outgoing)
        if told is None:
            return
        source = self.source
        assert source is not None
        self.wire.popleft()
        if isinstance(told, Exception):
            source.failed(outgoing, told)
            self.poke()
            return
        self.usable = self.usable and told.usable
        self.messages += told.dot_written and told.dot is not None and told.dot.code < 300
        source.ended(outgoing, told)
        if self.usable:
            self._answer()
            self.poke()
        else:
            self.lose()

    def lose(self) -> None:
        """The connection is over: what is left of it was behind."""
        self.usable = False
        while self.wire:
            outgoing = self.wire.popleft()
            assert self.source is not None
            self.source.ended(outgoing, cut(answered=False, dotted=False, behind=True))

    async def quit(self) -> None:
        """See ``Session``."""
        if self.idle and self.usable:
            self.quits = True
            await asyncio.sleep(self.rig.reply_s)
        else:
            self.abort()

    def abort(self) -> None:
        """See ``Session``."""
        self.usable, self.aborted = False, True
        self.rig.loop.call_soon(self.lose)


class Names(Resolver):
    """One address each."""

    async def addresses(self, name: str, *, relay: bool = False) -> Any:  # type: ignore[override]
        """See ``Resolver``."""

        class Found:
            error = None
            text = None
            ips = ("192.0.2.1",)

        return Found()


class Rig:
    """A lane, its store and its servers.

    Attributes:
        greet_s: how long the next servers keep their sessions waiting.
        unproved: host -> how a session fails that asks for proof of its name.
        script: recipient -> ends of its transactions, in order; then all is well.
        begun: recipients, in the order in which they went to a session.
        lacking: needs of what was given to a session that does not meet them.
        wrongs: what else no session may be given; ``run`` fails by them.
        late_s: between the store's answer and its being told.
        settled_beside: what other lanes' parts of each exchange settle.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rows: Claimed, **tables: Any) -> None:
        self.loop = VirtualLoop()
        self.store_s, self.reply_s, self.late_s = 0.004, 0.02, 0.0
        self.settled_beside: frozenset[int] = frozenset()
        self.lacking: list[Unmet] = []
        self.wrongs: list[str] = []
        self.tls: Literal["none", "encrypted"] = "none"
        self.behind = 1
        self.unproved: dict[str, SessionFailure] = {}
        self.offers = Capabilities(name="mx", pipelining=True, eightbitmime=True)
        self.script: dict[int, list[TransactionEnd | Exception | None]] = {}
        self.refuses: list[SessionFailure | Exception | None] = []
        self.greet_s: list[float] = []
        self.begun: list[int] = []
        self.envelopes: list[tuple[str, ...]] = []
        self.sessions: list[Server] = []
        self.opened: list[Server] = []
        self.lanes: list[LaneRun] = []
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.hosts: tuple[Host, ...] = (
            Host(preference=10, name="mx1.test"),
            Host(preference=20, name="mx2.test"),
        )
        self.store = Store(self)
        self.store.add(*rows)
        self.db = DB(self)
        self.config = from_tables({"store": "/tmp/none.db", "sites": {"idle": "50ms"}} | tables)
        monkeypatch.setattr("mailstrom.events._emit", self._heard, raising=False)
        rig = self

        class Opener:
            @staticmethod
            async def open(
                target: Target, policy: SessionPolicy, patience: asyncio.Timeout
            ) -> Server | SessionFailure:
                try:
                    async with patience:
                        await asyncio.sleep(rig.greet_s.pop(0) if rig.greet_s else rig.reply_s)
                except TimeoutError:
                    return HUNG
                if rig.refuses and (failure := rig.refuses.pop(0)) is not None:
                    if isinstance(failure, Exception):
                        raise failure
                    return failure
                if policy.verify and target.host in rig.unproved:
                    return rig.unproved[target.host]
                server = Server(rig, target.host, policy)
                rig.opened.append(server)
                return server

        monkeypatch.setattr(connector_module, "Session", Opener)

    def _heard(self, word: str, fields: dict[str, Any]) -> None:
        self.lines.append((word, fields))

    def says(self, outgoing: Outgoing) -> TransactionEnd | Exception | None:
        """How a transaction ends."""
        own = self.script.get(int(outgoing.envelope.recipients[0][1:].partition("@")[0]))
        if own:
            return own.pop(0)
        return end(len(outgoing.envelope.recipients))

    def lane(self, **facts: Any) -> LaneRun:
        """The lane; on the loop."""
        machine = Machine(wall_ms=lambda: int(self.loop.time() * 1000), random=lambda: 0.5,
                          own_address=lambda address, port: "192.0.2.9")  # fmt: skip
        ctx = Context(
            worker=1, db=cast(DBService, self.db), settings=Settings.of(self.config),
            resolver=Names([("192.0.2.53", 53)], 5.0), machine=machine,
        )  # fmt: skip
        lane = LaneRun(ctx, self.leased(**facts), 1)
        self.lanes.append(lane)
        return lane

    def leased(self, **facts: Any) -> Lane:
        """The lease of a lane."""
        given: dict[str, Any] = {
            "token": 1, "site": 1, "site_key": "s", "hosts": self.hosts, "provider": None,
            "due": len(self.store.due), "pipelining": Pipelining.FULL, "chunking": None,
        }  # fmt: skip
        return Lane(**given | facts)

    def run(
        self, beside: Callable[[LaneRun], Awaitable[None]] | None = None, **facts: Any
    ) -> LaneRun:
        """Run a lane to its end, with something else beside it; raises what it raised."""

        async def main() -> LaneRun:
            lane = self.lane(**facts)
            other = None if beside is None else asyncio.ensure_future(beside(lane))
            try:
                async with asyncio.timeout(3_600):
                    await lane.run()
            finally:
                if other is not None:
                    await other
            assert lane.ctx._held_bytes == 0, "what a lane held of the budget is free"
            assert lane.ctx._streamed_bytes == 0
            assert not self.wrongs
            return lane

        try:
            return self.loop.run_until_complete(main())
        finally:
            self.loop.close()
