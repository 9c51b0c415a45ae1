"""Any order of verbs over several connections: no row is lost, stuck, or in two hands.

A plain model keeps what each recipient's state must be; after every step the spool's own checker
finds nothing and the counts agree. At the end an engine alone must bring everything to an end.

Store-independent: a store's test module derives a class that names its ``stores`` and its case
(``SpoolMachine.TestCase``), as ``test_sqlite_machine`` does.

Past 400 lines: one model and its rules, none of which can be read without the others.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailstrom.errors import IdempotencyConflict
from mailstrom.storage.base import (
    Claimed,
    ClaimRequest,
    Lane,
    Open,
    Retention,
    RouteAnswer,
    StreamPolicy,
    Suspension,
    Work,
)
from mailstrom.storage.client import Notice, Selection
from mailstrom.storage.reporting import ReportFacts
from mailstrom.types import Change, Host, OnDoubt, Reason, Route, RouteResult
from tests.storage.contract_clock import YEAR
from tests.storage.files import SQLiteStores
from tests.storage.spool import (
    DAY,
    HOUR,
    T0,
    Stores,
    at_once,
    attempt,
    change,
    settlement,
    submission,
)

DOMAINS = ("one.example", "two.example")
WORDS = ("delivered", "deferred", "failed", "held", "claimed", "queued")


NOTIFY = ("", "never", "failure", "success,delay", "failure,delay")
"""What senders ask for; empty: nothing, which means failure and delay."""
FINAL = {"delivered", "failed", "cancelled"}
NOTHING = Retention(bodies_ms=0, attempts_ms=0, events_ms=0)
"""Finished mail goes at once."""
POISON = 5
"""Lost so often in a row, a recipient is held."""
DEATHS = tuple(
    product(
        ("lapse", "retire", "release", "boot"),
        (None, OnDoubt.RETRY, OnDoubt.HOLD),
        (OnDoubt.RETRY, OnDoubt.HOLD),
    )
)
"""How a lane ends, the message's own policy of doubt, and that of the worker."""
BULK = StreamPolicy(name="bulk", priority=2, max_age_ms=3 * HOUR, on_doubt=OnDoubt.HOLD)
MOVED = {
    "cancel": "cancelled",
    "hold": "held",
    "release": "waiting",
    "resolve-delivered": "delivered",
    "resolve-retry": "waiting",
    "resolve-failed": "failed",
}
"""What a change makes of a recipient, but for ``retry``."""


@dataclass
class Row:
    """What the model knows of a recipient."""

    id: str
    address: str
    send_ms: int
    created_ms: int = T0
    on_doubt: OnDoubt | None = None
    state: str = "waiting"
    reason: str | None = None
    """Why it is held."""
    lane: int | None = None
    seq: int | None = None
    attempts: int = 0
    in_doubt: bool = False
    doubts: int = 0
    """Losses on the wire in a row."""
    reopened_ms: int = 0
    notify: str | None = None
    """Of what its sender wants to hear; None: of nothing."""
    failures: int = 0
    """How often it became failed."""
    was: str = "waiting"
    """Its state at the last look."""

    def lose(self, default: OnDoubt) -> None:
        """Its lane ended while it was on the wire."""
        self.attempts, self.in_doubt, self.doubts = self.attempts + 1, True, self.doubts + 1
        hold = (self.on_doubt or default) is OnDoubt.HOLD
        self.state = "held" if hold or self.doubts >= POISON else "waiting"
        self.reason = None if self.state == "waiting" else "in_doubt" if hold else "poison"
        self.lane = None

    def touched(self, word: str) -> bool:
        """Whether a change other than ``retry`` touches it now."""
        match word:
            case "cancel":
                return self.state in {"waiting", "claimed", "held"}
            case "hold":
                return self.state in {"waiting", "claimed"}
            case "release":
                return self.state == "held" and self.reason in {"user", "poison"}
        return self.state == "held" and self.reason == "in_doubt"


class SpoolMachine(RuleBasedStateMachine):
    """Two clients and two engine connections on one spool."""

    stores: ClassVar[Callable[[], AbstractContextManager[Stores]]]
    """Opens stores on a fresh spool; it is gone when the context ends."""
    tells_clocks: ClassVar[bool] = True
    """Whether it shifts what a clock that jumped has stamped."""
    makes_copies: ClassVar[bool] = True
    has_views: ClassVar[bool] = True
    makes_reports: ClassVar[bool] = True

    @initialize(turn=st.integers(0, len(DEATHS) - 1))
    def start(self, turn: int) -> None:
        """``turn``: which of ``DEATHS`` comes first; the others follow in order."""
        self.opened = ExitStack()
        stores = self.opened.enter_context(type(self).stores())
        self.clients = [stores.client() for _ in range(2)]
        self.engines = [stores.worker() for _ in range(2)]
        self.now = T0
        self.rows: dict[tuple[str, str], Row] = {}
        self.expires: dict[str, int] = {}
        self.finished: set[str] = set()
        self.untold: set[str] = set()
        self.lanes: dict[int, tuple[Lane, int]] = {}
        self.ended: list[int] = []
        self.workers = [self._register(n) for n in range(2)]
        self.engines[0].use_streams([BULK])
        self.begun = T0 - HOUR
        self.keys: dict[str, tuple[str, int]] = {}
        self.engines[0].keep_clock(wall_ms=T0, monotonic_ms=T0 - self.begun, boot="b", limit=1_000)
        self.policy = 0
        self.losses: Counter[str] = Counter()
        self.turn = turn
        self.sent = 0
        self.died: set[tuple[str, OnDoubt | None, OnDoubt]] = set()
        """Of ``DEATHS``, those that found a recipient on the wire."""
        self.told: Counter[tuple[str, str, str]] = Counter()
        """How often who was told of which recipient's what: message, address, action."""
        self.news: list[tuple[str, str, str]] = []
        """The same, of this step alone."""
        self.failed: set[str] = set()
        """Messages of which a report could not be made once."""
        self.engines[0].use_reporter(self._reporter)

    def _reporter(self, facts: ReportFacts, now_ms: int) -> None:
        """Makes no report, which is on record, too; the first time, of each message, it fails."""
        if facts.id not in self.failed:
            self.failed.add(facts.id)
            raise RuntimeError("not now")
        assert facts.recipients
        self.news += [(facts.id, one.address, one.action) for one in facts.recipients]

    def _register(self, number: int) -> int:
        row = self.engines[number].register(
            kind="delivery", pid=number, host="h", boot="b", lock="l", restarts=0, now_ms=self.now
        )
        return row.seq

    def teardown(self) -> None:
        if not hasattr(self, "opened"):
            return
        with self.opened:
            if hasattr(self, "policy"):
                self._finish()

    def _id(self) -> str:
        """Of this machine's own count, so that a seed gives the same ids again."""
        self.sent += 1
        return f"message-{self.sent:06}"

    # --- what applications do ---

    @rule(
        who=st.integers(0, 1),
        names=st.sets(st.sampled_from("abcd"), min_size=1),
        domain=st.sampled_from(DOMAINS),
        later=st.sampled_from([0, 0, 0, HOUR]),
        priority=st.integers(0, 2),
        on_doubt=st.sampled_from([None, OnDoubt.RETRY, OnDoubt.HOLD]),
        bulk=st.booleans(),
        notify=st.sampled_from([None, None, *NOTIFY]),
    )
    def send(
        self,
        who: int,
        names: set[str],
        domain: str,
        later: int,
        priority: int,
        on_doubt: OnDoubt | None,
        bulk: bool,
        notify: str | None = None,
    ) -> None:
        addresses = [f"{name}@{domain}" for name in sorted(names)]
        one = submission(
            *addresses,
            id=self._id(),
            created_ms=self.now,
            send_ms=self.now + later,
            expires_ms=None if bulk else self.now + later + 5 * HOUR,
            priority=None if bulk else priority,
            stream="bulk" if bulk else "default",
            on_doubt=on_doubt,
            reports=notify is not None,
            notices=tuple(Notice(notify or None) for _ in addresses) if notify else (),
        )
        assert self.clients[who].enqueue([one], self.now) == [one.id]
        self.expires[one.id] = self.now + later + (3 if bulk else 5) * HOUR
        for address in addresses:
            self.rows[one.id, address] = Row(
                one.id, address, self.now + later, self.now,
                on_doubt or (BULK.on_doubt if bulk else None), notify=notify,
            )  # fmt: skip

    @rule(who=st.integers(0, 1), key=st.sampled_from("xy"), other=st.booleans())
    def send_once(self, who: int, key: str, other: bool) -> None:
        """The same key again: the first id, or a refusal where the payload is another one."""
        address = f"{key}@{DOMAINS[0]}"
        one = submission(
            address, id=self._id(), created_ms=self.now, send_ms=self.now,
            expires_ms=self.now + 5 * HOUR,
            idempotency=(key, b"2" if other else b"1"),
        )  # fmt: skip
        (result,) = self.clients[who].enqueue([one], self.now)
        kept = self.keys.get(key)
        if kept is not None and kept[1] > self.now:
            if other != (kept[0][0] == "2"):
                assert isinstance(result, IdempotencyConflict)
            else:
                assert result == kept[0][1:]
            return
        assert result == one.id
        self.keys[key] = (f"{2 if other else 1}{one.id}", self.now + DAY)
        self.expires[one.id] = self.now + 5 * HOUR
        self.rows[one.id, address] = Row(one.id, address, self.now, self.now)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), who=st.integers(0, 1), word=st.sampled_from(list(MOVED)))
    def change(self, data: st.DataObject, who: int, word: str) -> None:
        row = data.draw(st.sampled_from(list(self.rows.values())))
        touched = row.touched(word)
        assert change(self.clients[who], word, [row.id], row.address, self.now) == touched
        if touched:
            row.state, row.lane = MOVED[word], None
            row.reason = "user" if word == "hold" else None

    @precondition(lambda self: self.rows)
    @rule(who=st.integers(0, 1), word=st.sampled_from(["cancel", "hold", "release"]))
    def change_page(self, who: int, word: str) -> None:
        """Two of those that it would touch, wherever they are."""
        wanted = [key for key, row in self.rows.items() if row.touched(word)]
        page = self.clients[who].targets(Selection(), T0, change=Change(word), limit=2)
        assert len(page) == min(2, len(wanted))
        assert {(target.id, target.address) for target in page} <= set(wanted)
        assert self.clients[who].change(Change(word), page, self.now) == len(page)
        for target in page:
            row = self.rows[target.id, str(target.address)]
            row.state, row.lane = MOVED[word], None
            row.reason = "user" if word == "hold" else None

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), who=st.integers(0, 1))
    def retry(self, data: st.DataObject, who: int) -> None:
        row = data.draw(st.sampled_from(list(self.rows.values())))
        changed = change(self.clients[who], "retry", [row.id], row.address, self.now)
        if row.state == "failed":
            assert changed == 1
            row.state, row.doubts, row.reopened_ms = "waiting", 0, self.now
            self.expires[row.id] = max(self.expires[row.id], self.now + DAY)
        else:
            assert changed == (row.state == "waiting" and row.send_ms <= self.now)

    @rule(who=st.integers(0, 1), limit=st.integers(1, 9))
    def recent(self, who: int, limit: int) -> None:
        found = self.clients[who].recent(limit)
        told = [one.id for one in found if one.completed]
        assert len(told) == len(set(told)) == min(limit, len(self.untold))
        assert set(told) <= self.untold
        self.untold -= set(told)
        rest = [id for id in self.expires if id not in self.finished]
        assert [one.id for one in found][len(told) :] == rest[: limit - len(told)]

    # --- what engines do ---

    @rule(who=st.integers(0, 1), result=st.sampled_from(["mx", "mx", "mx", "temporary"]))
    def route(self, who: int, result: str) -> None:
        engine = self.engines[who]
        for due in engine.due_domains(self.workers[who], 10, self.now):
            deliverable = result == "mx"
            host = Host(preference=1, name="mx.shared.example")
            route = Route(
                domain=due.name,
                result=RouteResult(result),
                hosts=(host,) if deliverable else (),
            )
            engine.put_routes(
                self.workers[who],
                [
                    RouteAnswer(
                        route=route,
                        site_key="mx.shared.example" if deliverable else None,
                        provider=None,
                        expires_ms=self.now + HOUR,
                    )
                ],
                self.now,
            )

    @rule(who=st.integers(0, 1))
    def lease(self, who: int) -> None:
        found = self.engines[who].lease(
            self.workers[who], want=2, limit=3, workers=2, now_ms=self.now
        )
        for lane in found:
            assert lane.token not in self.lanes
            assert lane.token not in self.ended
            self.lanes[lane.token] = (lane, who)
        assert len(self.lanes) <= 3

    @precondition(lambda self: self.lanes)
    @rule(
        data=st.data(), limit=st.integers(1, 3), most=st.sampled_from([None, None, 1, 2]),
        ahead=st.integers(0, 2),
    )  # fmt: skip
    def claim(self, data: st.DataObject, limit: int, most: int | None, ahead: int) -> None:
        """``most``: the limit of lanes was lowered meanwhile; ``ahead``: so many are opened."""
        token = data.draw(st.sampled_from(list(self.lanes)))
        request = ClaimRequest(
            lane=token, limit=limit, max_bytes=1 << 20, limit_lanes=most,
            ahead=at_once(ahead) if ahead else None,
        )  # fmt: skip
        done = self.engines[self.lanes[token][1]].exchange(Work(claims=[request]), self.now)
        site = self.lanes[token][0].site
        older = sum(t < token for t, (lane, _) in self.lanes.items() if lane.site == site)
        if most is not None and older >= most:
            assert done.ended == {token}
            assert done.claimed == []
        for row in done.claimed:
            self._take(row, token)
        open_now = [row.recipient in done.opened for row in done.claimed]
        assert open_now == sorted(open_now, reverse=True), "the first of them"
        messages = {
            row.message for row, is_open in zip(done.claimed, open_now, strict=True) if is_open
        }
        assert len(messages) <= ahead
        for row, is_open in zip(done.claimed, open_now, strict=True):
            assert is_open == (row.message in messages), "a message whole, or not at all"
            if is_open:
                assert row.on_doubt is not OnDoubt.HOLD
                self.rows[row.message_id, row.address].state = "sending"

    def _take(self, row: Claimed, token: int) -> None:
        known = self.rows[row.message_id, row.address]
        assert known.state == "waiting", f"{row.address} was {known.state}"
        assert known.send_ms <= self.now or known.attempts, "due by the clock before a jump"
        known.state, known.lane, known.seq = "claimed", token, row.recipient

    @precondition(lambda self: any(r.seq for r in self.rows.values()))
    @rule(data=st.data(), hurry=st.booleans())
    def open(self, data: st.DataObject, hurry: bool) -> None:
        row = data.draw(st.sampled_from([r for r in self.rows.values() if r.seq]))
        token = row.lane or data.draw(st.sampled_from([*self.lanes, *self.ended, 999]))
        assert row.seq is not None
        request = Open(lane=token, recipients=(row.seq,), session="s")
        opened = self.engines[int(hurry)].exchange(Work(opens=[request]), self.now).opened
        # A session may open again what it has open: all here is of one session.
        mine = row.state in {"claimed", "sending"} and row.lane == token
        assert (row.seq in opened) == mine
        if opened:
            row.state = "sending"

    @precondition(lambda self: any(r.seq for r in self.rows.values()))
    @rule(data=st.data(), word=st.sampled_from(WORDS), stale=st.booleans(), took=st.integers(0, 3))
    def settle(self, data: st.DataObject, word: str, stale: bool, took: int) -> None:
        row = data.draw(st.sampled_from([r for r in self.rows.values() if r.seq]))
        assert row.seq is not None
        token = row.lane if row.lane and not stale else (self.ended or [999])[-1]
        changes = {} if word == "queued" else {
            "attempt": attempt(
                "deferred" if word == "claimed" else word,
                started_ms=self.now - took * HOUR,
                ended_ms=self.now,
            )
        }  # fmt: skip
        if word in {"queued", "deferred"}:
            changes["due_ms"] = self.now + HOUR  # type: ignore[assignment]
        one = settlement(token, row.seq, word, **changes)
        done = self.engines[0].exchange(Work(settlements=[one]), self.now)
        mine = row.lane == token and (
            row.state == "sending" or (row.state == "claimed" and word not in {"delivered", "held"})
        )
        assert (row.seq in done.settled) == mine
        row.attempts += word != "queued"
        if mine:
            row.in_doubt |= word == "held"
            row.doubts = row.doubts if word in {"held", "queued"} else 0
            row.state = {"queued": "waiting", "deferred": "waiting"}.get(word, word)
            row.lane = token if word == "claimed" else None
            row.reason = "in_doubt" if word == "held" else None
        elif (
            word == "delivered"
            and row.state in {"waiting", "held", "claimed"}
            and row.reopened_ms <= self.now - took * HOUR
        ):
            row.state, row.lane = "delivered", None

    def _free(
        self,
        tokens: set[int],
        *,
        by: str,
        booted: bool = False,
        on_doubt: OnDoubt = OnDoubt.RETRY,
    ) -> None:
        """Lanes end; what they had on the wire is in doubt, after a boot all that they held."""
        for row in self.rows.values():
            if row.lane not in tokens:
                continue
            if row.state == "sending" or booted:
                self.losses[f"{row.state}, {by}"] += 1
                row.lose(on_doubt)
                self.losses["held"] += row.reason == "in_doubt"
            else:
                row.state, row.lane = "waiting", None
        for token in tokens:
            self.ended.append(token)
            del self.lanes[token]

    @precondition(lambda self: self.lanes)
    @rule(data=st.data(), on_doubt=st.sampled_from(OnDoubt))
    def release(self, data: st.DataObject, on_doubt: OnDoubt) -> None:
        token = data.draw(st.sampled_from(list(self.lanes)))
        held = sum(row.lane == token for row in self.rows.values())
        engine = self.engines[self.lanes[token][1]]
        assert engine.release([token], self.now, on_doubt=on_doubt) == held
        self._free({token}, by="release", on_doubt=on_doubt)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data(), times=st.integers(1, POISON))
    def lose(self, data: st.DataObject, times: int) -> None:
        """What is due goes on the wire and is lost there, again and again."""
        for _ in range(times):
            if not self.lanes:
                return
            token = data.draw(st.sampled_from(list(self.lanes)))
            engine = self.engines[self.lanes[token][1]]
            request = ClaimRequest(lane=token, limit=2, max_bytes=1 << 20)
            for row in engine.exchange(Work(claims=[request]), self.now).claimed:
                self._take(row, token)
                only = Open(lane=token, recipients=(row.recipient,), session="s")
                if engine.exchange(Work(opens=[only]), self.now).opened:
                    self.rows[row.message_id, row.address].state = "sending"
            engine.release([token], self.now)
            self._free({token}, by="release")
            self.time_passes(0, 1)
            self.route(0, "mx")
            self.lease(0)

    @rule(
        who=st.integers(0, 1), end=st.sampled_from(["lapse", "boot", "nobody knows", "retire"]),
        on_doubt=st.sampled_from(OnDoubt),
    )  # fmt: skip
    def replace_worker(self, who: int, end: str, on_doubt: OnDoubt) -> None:
        worker, engine = self.workers[who], self.engines[who]
        tokens = {token for token, (_, owner) in self.lanes.items() if owner == who}
        if end == "retire":
            engine.retire(worker, state="stopped", now_ms=self.now, on_doubt=on_doubt)
        else:
            boot = {"lapse": "b", "boot": "c", "nobody knows": ""}[end]
            other = self.engines[1 - who]
            lapsed = other.lapse(worker, boot=boot, now_ms=self.now, on_doubt=on_doubt)
            held = sum(row.lane in tokens for row in self.rows.values())
            assert lapsed.released + lapsed.in_doubt == held
            assert lapsed.lanes == len(tokens)
        self._free(tokens, by=end, booted=end in {"boot", "nobody knows"}, on_doubt=on_doubt)
        assert self.engines[who].lease(worker, want=1, limit=9, workers=1, now_ms=self.now) == []
        self.workers[who] = self._register(who)

    @rule(who=st.integers(0, 1), opened=st.integers(1, 3))
    def die_on_the_wire(self, who: int, opened: int) -> None:
        """Fresh mail is claimed, some of it opened; then the next of ``DEATHS`` comes."""
        end, own, on_doubt = DEATHS[self.turn % len(DEATHS)]
        self.turn += 1
        self.send(who, {"a", "b", "c"}, DOMAINS[who], 0, 0, own, False)
        self.route(who, "mx")
        self.lease(who)
        mine = [token for token, (_, owner) in self.lanes.items() if owner == who]
        for token in mine:
            request = ClaimRequest(lane=token, limit=3, max_bytes=1 << 20)
            rows = self.engines[who].exchange(Work(claims=[request]), self.now).claimed
            for row in rows:
                self._take(row, token)
            ones = tuple(row.recipient for row in rows[:opened])
            work = Work(opens=[Open(lane=token, recipients=ones, session="s")] if ones else [])
            assert self.engines[who].exchange(work, self.now).opened == set(ones)
            for row in rows[:opened]:
                known = self.rows[row.message_id, row.address]
                known.state = "sending"
                if known.on_doubt is own:
                    self.died.add((end, own, on_doubt))
        if end != "release":
            self.replace_worker(who, end, on_doubt)
            return
        for token in mine:
            held = sum(row.lane == token for row in self.rows.values())
            assert self.engines[who].release([token], self.now, on_doubt=on_doubt) == held
            self._free({token}, by=end, on_doubt=on_doubt)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data())
    def suspend(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(list(self.lanes)))
        lane, who = self.lanes[token]
        until = self.now + HOUR
        self.engines[who].suspend(
            Suspension(lane.site, until, self.now, "w", Reason.CONNECT, "refused"), self.now
        )

    @rule(who=st.integers(0, 1))
    def change_policy(self, who: int) -> None:
        self.policy += 1
        assert self.engines[who].use_routes(f"policy {self.policy}", self.now)

    @rule(who=st.integers(0, 1), hours=st.integers(1, 3))
    def time_passes(self, who: int, hours: int) -> None:
        self.now += hours * HOUR
        self.engines[who].expire(1_000, self.now)
        for row in self.rows.values():
            if row.state in {"waiting", "claimed", "held"} and self.expires[row.id] <= self.now:
                row.state, row.lane = "failed", None

    @precondition(lambda self: self.tells_clocks)
    @rule(who=st.integers(0, 1), amount=st.sampled_from([-YEAR, -DAY, -HOUR, HOUR, DAY, YEAR]))
    def clock_jumps(self, who: int, amount: int) -> None:
        """Expiry goes with the clock, and a send time of the user's own stays."""
        self._look(who)
        self.begun += amount
        self.now += amount
        self._look(who)
        at = self.now
        for id, expires in self.expires.items():
            row = next(row for row in self.rows.values() if row.id == id)
            own = row.send_ms > row.created_ms
            if id in self.finished:
                continue
            if amount > 0:
                self.expires[id] = expires + min(amount, max(0, at - row.send_ms))
            elif not (own and row.send_ms > at):
                self.expires[id] = min(expires + amount, at + expires - row.send_ms)
            for row in self.rows.values():
                if row.id == id and not own:
                    row.send_ms = min(row.send_ms, at)

    def _look(self, who: int) -> None:
        look = {"wall_ms": self.now, "monotonic_ms": self.now - self.begun, "boot": "b"}
        while self.engines[who].keep_clock(**look, limit=3):
            pass

    @rule(who=st.integers(0, 1))
    def purge(self, who: int) -> None:
        """Only what is finished goes, and all of it but for a clock that jumped.

        A key whose time is over goes, too: a clock that is put back later does not bring it back.
        """
        while self.engines[who].purge(NOTHING, 3, self.now):
            self.keys = {key: kept for key, kept in self.keys.items() if kept[1] > self.now}
        left = self.clients[0].statuses(list(self.expires))
        for id in set(self.expires) - set(left):
            assert id in self.finished
            del self.expires[id]
            self.finished.discard(id)
            self.untold.discard(id)
        self.rows = {key: row for key, row in self.rows.items() if row.id in self.expires}

    @rule(delays=st.sampled_from([(), (HOUR,), (4 * HOUR, 2 * HOUR)]), limit=st.integers(1, 5))
    def report(self, delays: tuple[int, ...], limit: int) -> None:
        for _ in range(100):
            if not self.engines[0].report(delays, limit, self.now):
                return
        raise AssertionError("it never ends")

    @rule(who=st.integers(0, 1))
    def checkpoint(self, who: int) -> None:
        self.engines[who].checkpoint()

    @rule(who=st.integers(0, 1))
    def repair(self, who: int) -> None:
        assert self.engines[who].repair()

    # A copy's check asks the real clock, as its own is forgotten: the model's must not be ahead.
    @precondition(
        lambda self: self.makes_copies and self.rows and self.now + YEAR < 1000 * time.time()
    )
    @rule(who=st.integers(0, 1))
    def copy(self, who: int) -> None:
        """A copy says what the spool says, moves nothing, and is sound, adopted or not."""
        with tempfile.TemporaryDirectory() as folder:
            target = f"{folder}/copy.db"
            self.clients[who].backup(target, self.now)
            stores = SQLiteStores(Path(target))
            with stores.opened:
                client, engine = stores.client(), stores.worker()
                ids = list(self.expires)
                assert client.statuses(ids) == self.clients[who].statuses(ids)
                later = self.now + YEAR
                assert engine.expire(100, later) == engine.purge(NOTHING, 9, later) == 0
                assert engine.due_sites(later) == []
                assert client.check() == []
                assert client.adopt(later)
                assert client.check() == []

    # --- what must always hold ---

    @invariant()
    def the_spool_is_sound(self) -> None:
        if hasattr(self, "policy"):
            assert self.clients[0].check() == []

    @invariant()
    def completions_are_counted(self) -> None:
        if not hasattr(self, "policy"):
            return
        open_ids = {row.id for row in self.rows.values() if row.state not in FINAL}
        finished = set(self.expires) - open_ids
        self.untold = (self.untold & finished) | (finished - self.finished)
        self.finished = finished

    @invariant()
    def each_recipient_is_what_the_model_says(self) -> None:
        if not hasattr(self, "policy"):
            return
        found = self.clients[1].statuses(list(self.expires))
        for (id, address), row in self.rows.items():
            one = found[id].recipients[address]
            word = "waiting" if one.status in {"queued", "deferred"} else str(one.status)
            state = "waiting" if row.state == "claimed" else row.state
            told = (word, one.attempts, one.in_doubt)
            assert told == (state, row.attempts, row.in_doubt), address
            if state == "held":
                assert one.reason == row.reason, address

    @invariant()
    def who_is_told_hears_the_truth(self) -> None:
        """And no more often than it came true, of what he asked for alone."""
        if not hasattr(self, "policy"):
            return
        self.told.update(self.news)
        news, self.news = self.news, []
        before = {key: row.was for key, row in self.rows.items()}
        for row in self.rows.values():
            row.failures += row.state == "failed" != row.was
            row.was = row.state
        for id, address, action in news:
            row = self.rows[id, address]
            assert row.notify is not None
            if action == "failed":
                assert row.state == "failed"
                assert "failure" in (row.notify or "failure")
            elif action == "relayed":
                assert row.state == "delivered"
                assert "success" in row.notify
            else:
                assert action == "delayed"
                # A step may have ended it since: it was told in the midst of that.
                assert {row.state, before[id, address]} & {"waiting", "claimed", "sending"}
                assert "delay" in (row.notify or "delay")
        for row in self.rows.values():
            assert self.told[row.id, row.address, "failed"] <= row.failures

    def _all_are_told(self) -> None:
        """Whoever wants to hear of a failure has heard of it, and nobody else."""
        for _ in range(10):
            self.now += DAY
            self.report((), 100)
        self.who_is_told_hears_the_truth()
        for row in self.rows.values():
            if row.state == "failed" and row.notify is not None:
                wants = "failure" in (row.notify or "failure")
                assert (self.told[row.id, row.address, "failed"] > 0) == wants

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "policy") or not self.has_views:
            return
        found: Counter[str] = Counter()
        for status, due, count in self.clients[1].query(
            "SELECT status, next_attempt_ms IS NOT NULL, count(*) FROM recipients GROUP BY 1, 2",
            (),
            10,
        ):
            word = str(status)
            if word in {"queued", "deferred"}:
                word = "waiting" if due else "claimed"
            found[word] += int(str(count))
        assert found == Counter(row.state for row in self.rows.values())

    def _finish(self) -> None:
        """An engine alone, with everybody else dead, ends whatever is not held."""
        for worker in self.workers:
            self.engines[0].lapse(worker, boot="b", now_ms=self.now)
        self._free(set(self.lanes), by="lapse")
        self.workers[0] = self._register(0)
        for _ in range(40):
            self.now += HOUR
            self.route(0, "mx")
            self.lease(0)
            for token in list(self.lanes):
                self._deliver(token)
            self.time_passes(0, 0)  # what was not delivered in time fails
            waiting = [row for row in self.rows.values() if row.state == "waiting"]
            if not waiting:
                break
            if all(row.send_ms > self.now for row in waiting):  # as their senders wanted
                self.now = min(row.send_ms for row in waiting)
        assert {row.state for row in self.rows.values()} <= {
            "delivered", "failed", "cancelled", "held"
        }  # fmt: skip
        assert self.clients[0].check() == []
        if self.makes_reports:
            self._all_are_told()
        assert self.clients[0].check() == []
        events = self.clients[0].events(0, (), 100_000)
        ids = [event.id for event in events]
        assert ids == sorted(set(ids))
        accepted = {event.message_id: event.id for event in events
                    if event.type == "message.accepted"}  # fmt: skip
        for event in events:
            if event.message_id in accepted:
                assert event.id >= accepted[event.message_id], "nothing before it was accepted"

    def _deliver(self, token: int) -> None:
        engine = self.engines[0]
        request = ClaimRequest(lane=token, limit=50, max_bytes=1 << 20)
        for row in engine.exchange(Work(claims=[request]), self.now).claimed:
            self._take(row, token)
            only = Open(lane=token, recipients=(row.recipient,), session="s")
            assert engine.exchange(Work(opens=[only]), self.now).opened
            done = settlement(token, row.recipient, "delivered")
            assert engine.exchange(Work(settlements=[done]), self.now).settled
            known = self.rows[row.message_id, row.address]
            known.state, known.lane, known.attempts = "delivered", None, known.attempts + 1


MACHINE_SETTINGS = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
