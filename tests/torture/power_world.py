"""The lives of messages on one spool until the power goes: every verb of clients and engine.

Contract. Each method without arguments is a verb: it does one thing through the real stores and
tells what was promised. Claims, opens and verdicts go through the product's own store service
(``power_engine``), which alone decides what is synced: claims before anything of them is opened, an
open that asks for it before it is sent, results a little later. The far end of the wire is a
counter: a recipient may be taken there at any time after its open returned.

Past 400 lines: one method a verb, and each is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw
from msgspec.structs import replace

from mailstrom.errors import SpoolBusy
from mailstrom.storage.base import (
    Claimed,
    ClaimRequest,
    Open,
    Retention,
    RouteAnswer,
    Settlement,
    Suspension,
    Work,
)
from mailstrom.storage.client import Submission
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import Change, Host, OnDoubt, Reason, Route, RouteResult
from tests.storage.spool import (
    DAY,
    HOUR,
    T0,
    at_once,
    attempt,
    change,
    session_row,
    settlement,
    submission,
)
from tests.torture.power_known import KEPT_MS, EagerPlace, Hand
from tests.torture.power_spool import BUSY_MS, UPKEEP, SpoolInUse

DOMAINS = ("one.example", "two.example", "three.example")
SENDING, WIRE = "enqueue", "claims, opens and verdicts"
CHANGES, CHECKPOINTS = "changes by users", "checkpoints"
_VERBS = {
    "send": 14, "send_many": 5, "send_large": 0.6, "send_again": 2, "change": 12, "look": 2,
    "reopen": 0.6, "route": 6, "lease": 6, "rush": 6, "claim": 9, "open": 12, "take": 9,
    "settle": 9, "sync": 4, "beat": 1, "suspend": 0.5, "release": 2, "die": 1, "expire": 1.5,
    "purge": 1.5, "keep_clock": 1, "checkpoint": 6, "repair": 1, "read": 2, "read_on": 5,
}  # fmt: skip
"""Verbs of a life, and how often."""
_LABELS = {
    **dict.fromkeys(("send", "send_many", "send_large", "send_again", "reopen", "look"), SENDING),
    **dict.fromkeys(
        ("route", "lease", "claim", "rush", "open", "take", "settle", "sync", "beat"), WIRE
    ),
    **dict.fromkeys(("suspend", "release"), WIRE),
    "change": CHANGES,
    **dict.fromkeys(("die", "expire", "purge", "keep_clock"), UPKEEP),
    **dict.fromkeys(("checkpoint", "repair", "read", "read_on"), CHECKPOINTS),
}


class World(SpoolInUse):
    """One spool in use; see ``SpoolInUse`` for its arguments."""

    verbs = _VERBS
    labels_of = _LABELS
    quick = ("checkpoint", "read", "read_on")

    # --- what applications do ---------------------------------------------------------------

    def _client(self) -> SQLiteClientStore:
        return self.random.choice(self.clients)

    def _message(self, size: int = 0) -> Submission:
        self._sent += 1
        id, random = f"{self.name}-{self._sent}", self.random
        domain = random.choice(DOMAINS)
        to = [f"{id}.{n}@{domain}" for n in range(random.choice((1, 1, 1, 2, 3)))]
        head = f"From: a@example.com\r\nMessage-ID: <{id}@example.com>\r\n\r\n".encode()
        return submission(
            *to, id=id, message_id=f"<{id}@example.com>", created_ms=self.now, send_ms=self.now,
            content=head + random.randbytes(size or random.randint(10, 3_000)).hex().encode(),
            priority=random.randrange(3), tags=("t",) if random.random() < 0.2 else (),
            on_doubt=OnDoubt.HOLD if random.random() < 0.25 else None,
            idempotency=(f"key-{id}", id.encode()) if random.random() < 0.4 else None,
        )  # fmt: skip

    def send(self) -> None:
        """One message."""
        self._enqueue([self._message()])

    def send_many(self) -> None:
        """Several in one commit."""
        self._enqueue([self._message() for _ in range(self.random.randint(2, 5))])

    def send_large(self) -> None:
        """Content that is staged ahead, in commits of its own."""
        self._enqueue([self._message(self.random.randint(140_000, 300_000))])

    def _enqueue(self, batch: list[Submission]) -> None:
        client = self._client()
        with self.using(client) as free:
            if not free:
                return
            for one in batch:
                self.tell("begun", one)
            with self.promising():
                results = client.enqueue(batch, self.now)
            assert results == [one.id for one in batch], results
            for one in batch:
                self.tell("acked", one)

    def send_again(self) -> None:
        """What was accepted under a key, once more: the same id comes back."""
        keyed = [one for one in self.known.acked.values() if one.idempotency]
        client = self._client()
        with self.using(client) as free:
            if free and keyed:
                one = self.random.choice(keyed)
                twin = one._replace(id=self._message().id, created_ms=self.now, send_ms=self.now)
                if self.now - one.created_ms < KEPT_MS:
                    with self.promising():
                        results = client.enqueue([twin], self.now)
                    assert results == [one.id], results

    def change(self) -> None:
        """A word of a person about one message, or one address of it."""
        ids = list(self.known.acked)
        client = self._client()
        with self.using(client) as free:
            if not free or not ids:
                return
            word = self.random.choice(list(Change))
            id = self.random.choice(ids[-12:])
            addresses = self.known.acked[id].recipients
            only = self.random.choice((None, *addresses))
            held = client.statuses([id]).get(id)
            if word is Change.RESOLVE_DELIVERED and held is not None:
                for address, one in held.recipients.items():
                    if one.status == "held" and only in (None, address):
                        self.tell("resolved", (id, address))
            with self.promising() as kept:
                kept.append(change(client, word, [id], only, self.now) > 0)

    def look(self) -> None:
        """The cursor of completions, and reading."""
        client = self._client()
        with self.using(client) as free:
            if free:
                client.recent(3)

    def reopen(self) -> None:
        """A client ends, another begins."""
        number = self.random.randrange(len(self.clients))
        client = self.clients[number]
        with self.using(client) as free:
            if free and self._depth == 0:
                client.close()
                place = (
                    EagerPlace(self.path, self.disk_sync) if self.random.random() < 0.5 else None
                )
                self.clients[number] = SQLiteClientStore(
                    self.path, busy_ms=BUSY_MS, sync=self.disk_sync, place=place, boot=self.boot
                )

    # --- what engines do --------------------------------------------------------------------

    @contextmanager
    def _hand(self) -> Iterator[Hand | None]:
        hand = self.random.choice(self.hands)
        with self.using(hand.store) as free:
            yield hand if free else None

    def route(self) -> None:
        """Ask for the domains that are due; two of them lead to one site."""
        with self._hand() as hand:
            if hand is None:
                return
            for due in hand.store.due_domains(hand.seq, 10, self.now):
                mx = self.random.random() < 0.9
                key = "mx.shared.example" if due.name != DOMAINS[0] else "mx.one.example"
                hosts = (Host(preference=1, name=key),) if mx else ()
                kind = RouteResult.MX if mx else RouteResult.TEMPORARY
                route = Route(domain=due.name, result=kind, hosts=hosts)
                answer = RouteAnswer(
                    route=route, site_key=key if mx else None, provider=None,
                    expires_ms=self.now + (HOUR if mx else 1_000),
                )  # fmt: skip
                self.note()
                while any(hand.store.put_routes(hand.seq, [answer], self.now)):
                    self.note()
                self.note()

    def lease(self) -> None:
        """Lanes where something is due."""
        with self._hand() as hand:
            if hand is not None:
                for lane in hand.store.lease(hand.seq, want=2, limit=4, workers=2, now_ms=self.now):
                    hand.lanes[lane.token] = lane

    def claim(self) -> None:
        """Due recipients for every lane; synced before they are handed out, opened ones as well."""
        with self._hand() as hand:
            if hand is None or not hand.lanes:
                return
            work = Work()
            for token, lane in hand.lanes.items():
                ahead = None
                if self.random.random() < 0.5:  # its session waits
                    work.sessions.append(session_row(f"s{token}", lane, started_ms=self.now))
                    ahead = replace(at_once(self.random.randint(1, 3)), session=f"s{token}")
                limit = self.random.randint(1, 6)
                work.claims.append(
                    ClaimRequest(lane=token, limit=limit, max_bytes=1 << 20, ahead=ahead)
                )
            with self.promising():
                done = hand.db.carry(work)
            for token in done.ended:
                hand.lanes.pop(token, None)
            for row in done.claimed:
                assert not row.damaged
                self.tell("claimed", row.lane)
            hand.opened += [row for row in done.claimed if row.recipient in done.opened]
            hand.claimed += [row for row in done.claimed if row.recipient not in done.opened]

    def open(self) -> None:
        """Some claimed recipients go on the wire next, with what has a verdict settled."""
        with self._hand() as hand:
            if hand is None:
                return
            many = self.random.randint(0, 4)
            rows, hand.claimed = hand.claimed[:many], hand.claimed[many:]
            work = Work(settlements=self._verdicts(hand) if self.random.random() < 0.5 else [])
            if rows:
                lane = hand.lanes.get(rows[0].lane)
                if lane is not None:
                    work.sessions = [session_row(f"s{lane.token}", lane, started_ms=self.now)]
            for row in rows:
                work.opens.append(
                    Open(lane=row.lane, recipients=(row.recipient,), session=f"s{row.lane}")
                )
            if work.empty:
                return
            durable = any(row.on_doubt is OnDoubt.HOLD for row in rows)
            try:
                with self.promising() as kept:
                    kept.append(durable)
                    done = hand.db.carry(work, durable=durable)
            except SpoolBusy:
                hand.claimed = rows + hand.claimed
                raise
            self._settled(hand, work.settlements)
            hand.opened += [row for row in rows if row.recipient in done.opened]

    def take(self) -> None:
        """The far end takes what is on the wire; no answer is read yet."""
        with self._hand() as hand:
            for row in list(hand.opened) if hand is not None else ():
                if hand is not None and self.random.random() < 0.6:
                    hand.opened.remove(row)
                    hand.sent.append(row)
                    self.tell("far", (row.message_id, row.address))

    def rush(self) -> None:
        """From the claim to the far end, and nobody was told to sync."""
        for step in (self.claim, self.open, self.take):
            step()
            self.note()

    def settle(self) -> None:
        """Verdicts of what was sent, and of some that the far end refused."""
        with self._hand() as hand:
            if hand is None:
                return
            rows = self._verdicts(hand)
            if rows:
                hand.db.carry(Work(settlements=rows))
                self._settled(hand, rows)

    def _verdicts(self, hand: Hand) -> list[Settlement]:
        rows: list[Settlement] = []
        for row in hand.sent[:6]:
            doubt = self.random.random() < 0.15  # the answer got lost
            word = "delivered" if not doubt else "held" if row.on_doubt else "deferred"
            rows.append(self._verdict(row, word, doubt=doubt))
        for row in hand.opened[:1]:
            word = self.random.choice(("deferred", "failed", "claimed", "queued"))
            rows.append(self._verdict(row, word))
        return rows

    def _verdict(self, row: Claimed, word: str, *, doubt: bool = False) -> Settlement:
        more: dict[str, Any] = {}
        if word != "queued":
            judged = "deferred" if word == "claimed" else word
            more["attempt"] = attempt(
                judged, started_ms=self.now, ended_ms=self.now, session=f"s{row.lane}",
                in_doubt=doubt, **({"reason": Reason.IN_DOUBT} if doubt else {}),
            )  # fmt: skip
        if doubt:
            more["reason"] = Reason.IN_DOUBT
        if word in ("queued", "deferred"):
            more["due_ms"] = self.now + self.random.choice((0, 60_000))
        return settlement(row.lane, row.recipient, word, **more)

    def _settled(self, hand: Hand, rows: list[Settlement]) -> None:
        words = {row.recipient: row.state for row in rows}
        for row in [*hand.sent, *hand.opened]:
            if words.get(row.recipient) == "claimed":
                hand.claimed.append(row)
        hand.sent = [row for row in hand.sent if row.recipient not in words]
        hand.opened = [row for row in hand.opened if row.recipient not in words]

    def sync(self) -> None:
        """No request comes for 50 ms."""
        with self._hand() as hand:
            if hand is not None:
                with self.promising() as kept:
                    kept.append(hand.db.late())

    def beat(self) -> None:
        """A heartbeat."""
        with self._hand() as hand:
            if hand is not None:
                hand.store.beat(hand.seq, state="ready", sessions=1, now_ms=self.now)

    def suspend(self) -> None:
        """A site is left alone for a while."""
        with self._hand() as hand:
            if hand is not None and hand.lanes:
                lane = self.random.choice(list(hand.lanes.values()))
                hand.store.suspend(
                    Suspension(lane.site, self.now + 9_000, self.now, "w", Reason.CONNECT, "no"),
                    self.now,
                )

    def release(self) -> None:
        """A lane ends; what it left open is in doubt."""
        with self._hand() as hand:
            if hand is not None and hand.lanes:
                token = self.random.choice(list(hand.lanes))
                hand.store.release([token], self.now)
                del hand.lanes[token]
                for name in ("claimed", "opened"):
                    kept = [row for row in getattr(hand, name) if row.lane != token]
                    setattr(hand, name, kept)  # what was sent may still be settled, late

    def die(self) -> None:
        """A worker dies and is lapsed in this boot; another takes its place."""
        number = self.random.randrange(len(self.hands))
        hand = self.hands[number]
        with self.using(hand.store) as free, self.using(self.janitor) as ours:
            if free and ours and self._depth == 0:
                assert self.janitor is not None
                self.janitor.lapse(hand.seq, boot=self.boot, now_ms=self.now)
                with self.promising():
                    self.janitor.sync()
                self.note()
                self.hands[number] = self._worker(hand.db)
                self.hands[number].sent = hand.sent  # its verdicts may come late

    # --- what the janitor does --------------------------------------------------------------

    @contextmanager
    def _keeper(self) -> Iterator[SQLiteWorkerStore | None]:
        with self.using(self.janitor) as free:
            yield self.janitor if free else None

    def expire(self) -> None:
        """Time passes, sometimes a lot of it; what is too old fails."""
        with self._keeper() as store:
            if store is not None:
                self.now += self.random.choice((0, 0, 0, 6 * DAY))
                store.expire(100, self.now)

    def purge(self) -> None:
        """Finished messages go, and their pages."""
        with self._keeper() as store, self.using(self.clients[0]) as free:
            if store is not None and free:
                rows = self.clients[0].query(
                    "SELECT id FROM messages WHERE finished_ms IS NOT NULL", (), 5
                )
                self.tell("purging", {str(row[0]) for row in rows})
                keep = Retention(bodies_ms=1_000, attempts_ms=HOUR, events_ms=HOUR)
                store.purge(keep, 20, self.now)

    def keep_clock(self) -> None:
        """The janitor's look at the clocks."""
        with self._keeper() as store:
            if store is not None:
                store.keep_clock(
                    wall_ms=self.now, monotonic_ms=self.now - T0, boot=self.boot, limit=100
                )

    def checkpoint(self) -> None:
        """PASSIVE, then RESTART where nobody is in the way."""
        with self._keeper() as store:
            if store is not None:
                store.checkpoint()

    def repair(self) -> None:
        """The TRUNCATE checkpoint that follows a disk error."""
        with self._keeper() as store:
            if store is not None and self._depth == 0:
                with self.promising() as kept:
                    kept.append(store.repair())
                assert kept[0] or self.reader is not None, "nobody reads, and yet no repair"

    def read(self) -> None:
        """Somebody begins to read, and stays."""
        if self.reader is None:
            self.reader = apsw.Connection(self.path, vfs="unix", flags=apsw.SQLITE_OPEN_READWRITE)
            self.reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        if not self.reader.in_transaction:
            self.reader.execute("BEGIN").fetchall()
            self.reader.execute("SELECT count(*) FROM recipient").fetchall()

    def read_on(self) -> None:
        """The reader has what it wanted."""
        if self.reader is not None and self.reader.in_transaction:
            self.reader.execute("COMMIT").fetchall()

    # --- to the end -------------------------------------------------------------------------

    def drain(self) -> str | None:
        """An engine alone brings everything to its end; what is not, in words."""
        client, (hand, *_) = self.clients[0], self.hands
        for _ in range(60):
            left = client.query(
                "SELECT message_id, address, status FROM recipients"
                " WHERE status NOT IN ('delivered', 'failed', 'cancelled', 'held')", (), 5
            )  # fmt: skip
            if not left:
                return None
            self.now += HOUR
            self.keen = 0.0
            self._drain_once(hand)
        return f"{len(left)} recipients never end, {left[0]} for one"

    def _drain_once(self, hand: Hand) -> None:
        self.route()
        self.note()
        for lane in hand.store.lease(hand.seq, want=9, limit=9, workers=1, now_ms=self.now):
            hand.lanes[lane.token] = lane
        self.note()
        for _ in range(20):
            wanted = [ClaimRequest(lane=token, limit=50, max_bytes=1 << 23) for token in hand.lanes]
            with self.promising() as kept:
                kept.append(bool(wanted))  # without a lane nothing is asked, and nothing synced
                done = hand.db.carry(Work(claims=wanted))
            if not done.claimed:
                break
            for row in done.claimed:
                self.tell("claimed", row.lane)
            rows = [
                Open(lane=row.lane, recipients=(row.recipient,), session="s")
                for row in done.claimed
            ]
            opened = hand.db.carry(Work(opens=rows)).opened
            self.note()
            verdicts = []
            for row in done.claimed:
                if row.recipient in opened:
                    self.tell("far", (row.message_id, row.address))
                    verdicts.append(self._verdict(row, "delivered"))
            hand.db.carry(Work(settlements=verdicts))
            self.note()
        for token in list(hand.lanes):
            hand.store.release([token], self.now)
            del hand.lanes[token]
            self.note()
        hand.store.expire(1_000, self.now)
        self.note()
