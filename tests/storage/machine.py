"""Any order of verbs over several connections: no row is lost, stuck, or in two hands.

A plain model keeps what each recipient's state must be; after every step the spool's own checker
finds nothing and the counts agree. At the end an engine alone must bring everything to an end.

Store-independent: a store's test module derives a class that names its ``stores`` and its case
(``SpoolMachine.TestCase``), as ``test_sqlite_machine`` does.

Past 400 lines: one model and its rules, none of which can be read without the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailstrom.storage.base import (
    Claimed,
    ClaimRequest,
    Lane,
    Open,
    RouteAnswer,
    Suspension,
    Work,
)
from mailstrom.storage.client import Selection
from mailstrom.types import Change, Host, OnDoubt, Reason, Route, RouteResult
from tests.storage.spool import DAY, HOUR, T0, Stores, attempt, change, settlement, submission

DOMAINS = ("one.example", "two.example")
WORDS = ("delivered", "deferred", "failed", "held", "claimed", "queued")


FINAL = {"delivered", "failed", "cancelled"}
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
    state: str = "waiting"
    reason: str | None = None
    """Why it is held."""
    lane: int | None = None
    seq: int | None = None

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

    @initialize()
    def start(self) -> None:
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
        self.policy = 0

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

    # --- what applications do ---

    @rule(
        who=st.integers(0, 1),
        names=st.sets(st.sampled_from("abcd"), min_size=1),
        domain=st.sampled_from(DOMAINS),
        later=st.sampled_from([0, 0, 0, HOUR]),
        priority=st.integers(0, 2),
        on_doubt=st.sampled_from([None, OnDoubt.HOLD]),
    )
    def send(
        self,
        who: int,
        names: set[str],
        domain: str,
        later: int,
        priority: int,
        on_doubt: OnDoubt | None,
    ) -> None:
        addresses = [f"{name}@{domain}" for name in sorted(names)]
        one = submission(
            *addresses,
            created_ms=self.now,
            send_ms=self.now + later,
            expires_ms=self.now + later + 5 * HOUR,
            priority=priority,
            on_doubt=on_doubt,
        )
        assert self.clients[who].enqueue([one], self.now) == [one.id]
        self.expires[one.id] = self.now + later + 5 * HOUR
        for address in addresses:
            self.rows[one.id, address] = Row(one.id, address, self.now + later)

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
            row.state = "waiting"
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
            engine.put_route(
                self.workers[who],
                RouteAnswer(
                    route=route,
                    site_key="mx.shared.example" if deliverable else None,
                    provider=None,
                    expires_ms=self.now + HOUR,
                ),
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
    @rule(data=st.data(), limit=st.integers(1, 3))
    def claim(self, data: st.DataObject, limit: int) -> None:
        token = data.draw(st.sampled_from(list(self.lanes)))
        request = ClaimRequest(lane=token, limit=limit, max_bytes=1 << 20)
        done = self.engines[self.lanes[token][1]].exchange(Work(claims=[request]), self.now)
        for row in done.claimed:
            self._take(row, token)

    def _take(self, row: Claimed, token: int) -> None:
        known = self.rows[row.message_id, row.address]
        assert known.state == "waiting", f"{row.address} was {known.state}"
        assert known.send_ms <= self.now
        known.state, known.lane, known.seq = "claimed", token, row.recipient

    @precondition(lambda self: any(r.seq for r in self.rows.values()))
    @rule(data=st.data(), hurry=st.booleans())
    def open(self, data: st.DataObject, hurry: bool) -> None:
        row = data.draw(st.sampled_from([r for r in self.rows.values() if r.seq]))
        token = row.lane or data.draw(st.sampled_from([*self.lanes, *self.ended, 999]))
        assert row.seq is not None
        request = Open(lane=token, recipients=(row.seq,), session="s")
        opened = self.engines[int(hurry)].exchange(Work(opens=[request]), self.now).opened
        assert (row.seq in opened) == (row.state == "claimed" and row.lane == token)
        if opened:
            row.state = "sending"

    @precondition(lambda self: any(r.seq for r in self.rows.values()))
    @rule(data=st.data(), word=st.sampled_from(WORDS), stale=st.booleans())
    def settle(self, data: st.DataObject, word: str, stale: bool) -> None:
        row = data.draw(st.sampled_from([r for r in self.rows.values() if r.seq]))
        assert row.seq is not None
        token = row.lane if row.lane and not stale else (self.ended or [999])[-1]
        changes = {} if word == "queued" else {
            "attempt": attempt(
                "deferred" if word == "claimed" else word,
                started_ms=self.now,
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
        if mine:
            row.state = {"queued": "waiting", "deferred": "waiting"}.get(word, word)
            row.lane = token if word == "claimed" else None
            row.reason = "in_doubt" if word == "held" else None
        elif word == "delivered" and row.state in {"waiting", "held", "claimed"}:
            row.state, row.lane = "delivered", None

    def _free(self, tokens: set[int]) -> None:
        holding = {(row.id, row.address): row for row in self.rows.values() if row.lane in tokens}
        for row in holding.values():
            held, reason = self._public(row)
            row.state, row.lane = "held" if held else "waiting", None
            row.reason = reason if held else None
        for token in tokens:
            self.ended.append(token)
            del self.lanes[token]

    def _public(self, row: Row) -> tuple[bool, str]:
        """Whether the store holds it, and its reason."""
        found = self.clients[0].statuses([row.id])[row.id].recipients[row.address]
        if row.state == "claimed":
            assert found.status in {"queued", "deferred"}, "nothing was sent, so nothing is held"
        else:
            assert found.in_doubt
        return found.status == "held", str(found.reason)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(list(self.lanes)))
        held = sum(row.lane == token for row in self.rows.values())
        assert self.engines[self.lanes[token][1]].release(token, self.now) == held
        self._free({token})

    @rule(who=st.integers(0, 1), dies=st.booleans())
    def replace_worker(self, who: int, dies: bool) -> None:
        worker = self.workers[who]
        tokens = {token for token, (_, owner) in self.lanes.items() if owner == who}
        if dies:
            self.engines[1 - who].lapse(worker, boot="b", now_ms=self.now)
        else:
            self.engines[who].retire(worker, state="stopped", now_ms=self.now)
        self._free(tokens)
        assert self.engines[who].lease(worker, want=1, limit=9, workers=1, now_ms=self.now) == []
        self.workers[who] = self._register(who)

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

    @rule(who=st.integers(0, 1))
    def checkpoint(self, who: int) -> None:
        self.engines[who].checkpoint()

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
    def counts_agree(self) -> None:
        if not hasattr(self, "policy"):
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
        self._free(set(self.lanes))
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
        assert {row.state for row in self.rows.values()} <= {
            "delivered", "failed", "cancelled", "held"
        }  # fmt: skip
        assert self.clients[0].check() == []

    def _deliver(self, token: int) -> None:
        engine = self.engines[0]
        request = ClaimRequest(lane=token, limit=50, max_bytes=1 << 20)
        for row in engine.exchange(Work(claims=[request]), self.now).claimed:
            self._take(row, token)
            only = Open(lane=token, recipients=(row.recipient,), session="s")
            assert engine.exchange(Work(opens=[only]), self.now).opened
            done = settlement(token, row.recipient, "delivered")
            assert engine.exchange(Work(settlements=[done]), self.now).settled
            self.rows[row.message_id, row.address].state = "delivered"


MACHINE_SETTINGS = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
