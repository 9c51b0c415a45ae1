"""A spool with a known population to be damaged, and what would go on the wire from it.

``Truth`` is what was accepted: each recipient address once, so that an address tells its message.
``deliver`` is an engine without sockets: it routes, claims, checks and reads through the stores as
a worker does and notes what a server would see; the host of each domain is ``mx.DOMAIN``. Nothing
of the product is replaced. Must not know: which fault was brought about.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from mailstrom.errors import SpoolError
from mailstrom.policy.refusal import judge_route
from mailstrom.policy.routing import SMTP_PORT, site_key
from mailstrom.policy.verdict import Action
from mailstrom.storage.base import (
    Attempt,
    Claimed,
    ClaimRequest,
    DueDomain,
    Lane,
    Open,
    Refusal,
    RouteAnswer,
    SessionRow,
    Settlement,
    Work,
)
from mailstrom.storage.client import CHUNK_BYTES, Notice, Submission, Target
from mailstrom.storage.sqlite import schema
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import (
    DELIVERABLE,
    Change,
    Host,
    Judgement,
    OnDoubt,
    Reason,
    Route,
    RouteResult,
    Stage,
)

Asked = tuple[str | None, str | None, str | None, str | None]
"""RET, ENVID, NOTIFY and ORCPT."""

DOMAINS = tuple(f"d{number}.test" for number in range(4))
HOUR_MS = 3_600_000
ROUTE_MS, LATER_MS = 50 * HOUR_MS, 60 * HOUR_MS
ROUNDS = 40  # more than any sound run needs


@dataclass(frozen=True, slots=True)
class Mail:
    """One accepted message."""

    id: str
    sender: str
    content: bytes
    require_tls: bool
    hold: bool
    recipients: tuple[str, ...]
    reports: bool = False

    def notice(self, address: str) -> Notice:
        """What its sender asked to be told of this recipient."""
        return Notice("failure", f"rfc822;first.{address}") if self.reports else Notice()

    def asked(self, address: str) -> Asked:
        """What goes to the next server about it."""
        asked = ("hdrs", f"envid {self.id}") if self.reports else (None, None)
        return (*asked, *self.notice(address))


@dataclass(frozen=True, slots=True)
class Truth:
    """What was accepted, and what had become of it.

    Args:
        mails: by id.
        by_address: id by recipient.
        waiting: addresses that are to be delivered.
    """

    mails: dict[str, Mail]
    by_address: dict[str, str]
    waiting: frozenset[str]
    now_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One recipient of one transaction, as a server sees it."""

    address: str
    sender: str
    content: bytes
    host: str
    require_tls: bool
    hold: bool
    asked: Asked = (None, None, None, None)


@dataclass(slots=True)
class Wire:
    """What a run brought about.

    Args:
        refused: what a store said when it would not go on; None: it went on to the end.
        crashed: an exception that is none of the product's words.
    """

    seen: list[Seen] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    refused: str | None = None
    crashed: str | None = None


def _no_sync(_fd: int) -> None:
    return None


def client_at(path: Path) -> SQLiteClientStore:
    """A client store that waits for no disk."""
    return SQLiteClientStore(str(path), sync=_no_sync)


def worker_at(path: Path) -> SQLiteWorkerStore:
    """An engine's store that waits for no disk."""
    return SQLiteWorkerStore(str(path), sync=_no_sync)


def populate(path: Path, chance: random.Random, messages: int, *, log: bool, name: str) -> Truth:
    """Make the spool: some delivered, deferred, held, cancelled, on the wire, the rest waiting.

    Args:
        log: the second half is in the -wal; else all has reached the database file.
        name: in every id, address and content, so that no mail of two spools is alike; a mixture
            of both finds its way, though, since their domains are the same.
    """
    now_ms = int(time.time() * 1000)
    client, engine = client_at(path), worker_at(path)
    mails: dict[str, Mail] = {}
    try:
        client.statuses([])
        worker = _register(engine, now_ms)
        for number in range(messages):
            if number == messages // 2:
                _turn(engine, worker, Wire(), now_ms, most=2, chance=chance)
                _checkpoint(path)
            long = number in (3, messages - 3)
            mail = Mail(
                id=f"message-{name}-{number}",
                sender=f"sender{number}@{name}.test",
                content=_content(
                    f"{name} {number}", CHUNK_BYTES + 5_000 if long else chance.randrange(90, 900)
                ),
                require_tls=number % 5 == 0,
                hold=number % 7 == 0,
                recipients=tuple(
                    f"r{number}.{each}.{name}@{chance.choice(DOMAINS)}"
                    for each in range(1 + number % 3)
                ),
                reports=number % 2 == 1,
            )
            (stored,) = client.enqueue([_submission(mail, number, now_ms)], now_ms)
            assert stored == mail.id, stored
            mails[mail.id] = mail
        _turn(engine, worker, Wire(), now_ms, most=3, chance=chance, leave=True)
        held = [f"message-{name}-{number}" for number in (1, messages - 1)]
        client.change(Change.HOLD, [Target(id) for id in held], now_ms)
        rows = client.query("SELECT address, status FROM recipients", (), 10.0)
    finally:
        engine.close()
        client.close()
    doubtful = {address for mail in mails.values() if mail.hold for address in mail.recipients}
    if not log:
        _checkpoint(path)
    waiting = frozenset(
        str(address)
        for address, status in rows
        if status in ("queued", "deferred") or (status == "sending" and address not in doubtful)
    )
    owners = {address: mail.id for mail in mails.values() for address in mail.recipients}
    return Truth(mails, owners, waiting, now_ms)


def _content(title: str, size: int) -> bytes:
    head = f"From: a@s.test\r\nSubject: {title}\r\n\r\n".encode()
    line = hashlib.sha256(title.encode()).hexdigest().encode() + b"\r\n"
    return head + (line * (size // len(line) + 1))[: size - size % len(line) + len(line)]


def _submission(mail: Mail, number: int, now_ms: int) -> Submission:
    ret, envid, *_ = mail.asked(mail.recipients[0])
    return Submission(
        id=mail.id, content=mail.content, sender=mail.sender, recipients=mail.recipients,
        subject=f"number {number}", message_id=f"<{number}@s.test>", stream="default", priority=1,
        tags=(f"tag{number % 3}",), metadata={"number": number}, created_ms=now_ms, send_ms=now_ms,
        expires_ms=now_ms + 100 * HOUR_MS, on_doubt=OnDoubt.HOLD if mail.hold else None,
        require_tls=mail.require_tls, eightbit=False, smtputf8=False,
        idempotency=(f"key-{number}", b"hash") if number % 4 == 0 else None,
        origin="smtp" if mail.reports else "library", reports=mail.reports, ret=ret, envid=envid,
        notices=tuple(map(mail.notice, mail.recipients)) if mail.reports else (),
    )  # fmt: skip


def _checkpoint(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


def _register(engine: SQLiteWorkerStore, now_ms: int) -> int:
    return engine.register(
        kind="delivery", pid=os.getpid(), host="torture", boot="boot", lock="none", restarts=0,
        now_ms=now_ms,
    ).seq  # fmt: skip


def deliver(path: Path, truth: Truth, *, later: bool = False) -> Wire:
    """Open the spool as an engine does and deliver until nothing is due or a store refuses.

    Args:
        later: then once more when every route has expired, and every pause that an engine makes.
    """
    wire = Wire()
    now_ms = truth.now_ms + 2 * HOUR_MS
    engine: SQLiteWorkerStore | None = None
    try:
        schema.prepare(str(path), engine=True)
        engine = worker_at(path)
        for row in engine.workers():
            if row.kind == "delivery":
                engine.lapse(row.seq, boot="boot", now_ms=now_ms)
        worker = _register(engine, now_ms)
        for begin_ms in (now_ms, now_ms + LATER_MS)[: 1 + later]:
            for turn in range(ROUNDS):
                if not _turn(engine, worker, wire, begin_ms + turn * 1000):
                    break
    except SpoolError as error:
        wire.refused = str(error)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if str(path) in str(error):
            wire.refused = text
        else:
            wire.crashed = text
    finally:
        if engine is not None:
            engine.close()
    return wire


def _turn(
    engine: SQLiteWorkerStore,
    worker: int,
    wire: Wire,
    now_ms: int,
    *,
    most: int = 500,
    chance: random.Random | None = None,
    leave: bool = False,
) -> bool:
    """Route, lease, claim, check, open, read, settle; False where nothing came of it.

    Args:
        chance: some servers defer.
        leave: end between the open and the verdict, as one that was killed.
    """
    came = False
    for due in engine.due_domains(worker, 1000, now_ms):
        answer = _answer(due, now_ms)
        while any(engine.put_routes(worker, [answer], now_ms)):
            if answer.cached:
                break  # no longer what was taken from the cache, or more than one piece: again
        came = True
    for lane in engine.lease(worker, want=20, limit=20, workers=1, now_ms=now_ms):
        claim = ClaimRequest(lane=lane.token, limit=most, max_bytes=1 << 26)
        rows = engine.exchange(Work(claims=[claim]), now_ms).claimed
        came = came or bool(rows)
        session = f"{lane.token}.{now_ms}"
        work = Work(sessions=[_session(session, lane.token, lane.site, now_ms)])
        whole = [row for row in rows if not row.damaged]
        wire.damaged += [row.address for row in rows if row.damaged]
        work.opens = [
            Open(lane=lane.token, recipients=(r.recipient,), session=session) for r in whole
        ]
        opened = engine.exchange(work, now_ms).opened
        if leave:
            continue
        work = Work()
        for row in rows:
            content = None
            if not row.damaged and row.recipient in opened:
                content = _read(engine, row)
                if content is None:
                    wire.damaged.append(row.address)
            if row.damaged or (row.recipient in opened and content is None):
                work.settlements.append(_settlement(lane.token, row, session, "failed", now_ms))
            elif content is not None:
                hold = row.on_doubt is OnDoubt.HOLD
                asked = (row.ret, row.envid, row.notify, row.orcpt)
                wire.seen.append(
                    Seen(
                        row.address, row.sender, content, _host(lane), row.require_tls, hold, asked
                    )
                )  # fmt: skip
                deferred = chance is not None and chance.random() < 0.3
                state = "deferred" if deferred else "delivered"
                work.settlements.append(_settlement(lane.token, row, session, state, now_ms))
        engine.exchange(work, now_ms)
        engine.release([lane.token], now_ms)
    return came


def _answer(due: DueDomain, now_ms: int) -> RouteAnswer:
    """What a router answers: the cached route where there is one, else what DNS says."""
    found = due.cached
    if found is None:
        host = Host(preference=10, name=f"mx.{due.name}")
        found = Route(domain=due.name, result=RouteResult.MX, hosts=(host,), error=None)
    verdict = judge_route(found.result, found.error)
    refusal = None
    if verdict is not None and verdict.action is Action.FAIL and verdict.reason is not None:
        refusal = Refusal(verdict.reason, verdict.enhanced_code or "5.0.0", "")
    key = site_key(found.hosts, SMTP_PORT) if found.result in DELIVERABLE else None
    return RouteAnswer(
        route=found, site_key=key, provider=None, expires_ms=now_ms + ROUTE_MS, refusal=refusal,
        cached=due.cached is not None,
    )  # fmt: skip


def _host(lane: Lane) -> str:
    """Where a worker of this lane would knock first."""
    if not lane.hosts:
        return ""
    first = min(lane.hosts, key=lambda host: host.preference)
    return first.name if first.port in (None, SMTP_PORT) else f"{first.name}:{first.port}"


def _read(engine: SQLiteWorkerStore, row: Claimed) -> bytes | None:
    if row.body is not None:
        return row.body
    pieces = []
    for number in range(row.chunks):
        piece = engine.chunk(row.content, number)
        if piece is None:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _session(id: str, lane: int, site: int, now_ms: int) -> SessionRow:
    return SessionRow(
        id=id, lane=lane, site=site, host="mx", address="192.0.2.1", source=None, started_ms=now_ms,
        ended_ms=now_ms, messages=1, ehlo=None, tls_wanted="required", tls_reached="required",
        tls_version=None, tls_cipher=None, tls_peer=None, tls_verified=False, end_cause=None,
    )  # fmt: skip


_REASONS = {"delivered": None, "deferred": Reason.REMOTE, "failed": Reason.DAMAGED}


def _settlement(lane: int, row: Claimed, session: str, state: str, now_ms: int) -> Settlement:
    attempt = Attempt(
        session=session, started_ms=now_ms, ended_ms=now_ms, stage=Stage.DOT, host="mx",
        address="192.0.2.1", reply_code=250, enhanced_code=None, reply_text="so it is",
        verdict=Judgement(state), reason=_REASONS[state], in_doubt=False,
    )  # fmt: skip
    return Settlement(
        lane=lane, recipient=row.recipient, state=state, reason=_REASONS[state], attempt=attempt,
        due_ms=now_ms + HOUR_MS if state == "deferred" else None,
    )  # fmt: skip
