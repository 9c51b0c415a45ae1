"""A spool under test: stores on one spool, and the short words the conformance suite is told in.

Contract. Everything goes through the two Protocols of ``mailstrom.storage.base``; a store that
wants to be tested supplies a ``Stores``. Time is a number here (``T0`` lies in the past, so that
views, which look at the real clock, take every due time as come).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Protocol

from mailstrom.storage.base import (
    Ahead,
    Attempt,
    Claimed,
    ClaimRequest,
    Exchange,
    Lane,
    Open,
    Refusal,
    RouteAnswer,
    SessionRow,
    Settlement,
    Suspension,
    Work,
    WorkerStore,
)
from mailstrom.storage.client import ClientStore, Submission, Target
from mailstrom.types import (
    Change,
    Host,
    Judgement,
    Reason,
    RecipientStatus,
    Route,
    RouteResult,
    Stage,
)

T0 = 1_700_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
BODY = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: test\r\n\r\nbody\r\n"
NO_ROWS = Exchange(frozenset(), frozenset(), [])

_numbers = itertools.count(1)


class Stores(Protocol):
    """Opens stores on one spool; called several times it gives several connections."""

    def client(self) -> ClientStore:
        """A new client store."""
        ...

    def worker(self) -> WorkerStore:
        """A new worker store."""
        ...


def at_once(messages: int, **changes: Any) -> Ahead:
    """Open so many of a claim with it, on session ``s``, which takes everything."""
    takes = {
        "recipients": 100,
        "octets": 0,
        "encrypted": True,
        "eightbit": True,
        "smtputf8": True,
        "requiretls": True,
    }
    return Ahead(session="s", messages=messages, **(takes | changes))


def submission(*recipients: str, **changes: Any) -> Submission:
    """A plausible submission; ``changes`` replace fields."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "id": f"message-{number}",
        "content": BODY,
        "sender": "sender@example.com",
        "recipients": recipients or (f"r{number}@example.org",),
        "subject": "test",
        "message_id": f"<{number}@example.com>",
        "stream": "default",
        "priority": 1,
        "tags": (),
        "metadata": {},
        "created_ms": T0,
        "send_ms": T0,
        "expires_ms": None,
        "on_doubt": None,
        "require_tls": False,
        "eightbit": False,
        "smtputf8": False,
    }
    return Submission(**{**values, **changes})


_REPLIES: dict[str, tuple[int | None, str | None, str]] = {
    "delivered": (250, "2.0.0", "Ok: queued as 4711"),
    "deferred": (451, "4.7.1", "try again later"),
    "failed": (550, "5.1.1", "no such user"),
    "held": (None, None, "connection lost after the final dot"),
}
REASONS = {
    "delivered": None,
    "deferred": Reason.REMOTE,
    "failed": Reason.BOUNCED,
    "held": Reason.IN_DOUBT,
}


def attempt(verdict: str, **changes: Any) -> Attempt:
    """An attempt with this verdict and a reply that goes with it."""
    code, enhanced, text = _REPLIES[verdict]
    values: dict[str, Any] = {
        "session": None,
        "started_ms": T0 + 100,
        "ended_ms": T0 + 200,
        "stage": Stage.DOT,
        "host": "mx1.example.org",
        "address": "192.0.2.1",
        "reply_code": code,
        "enhanced_code": enhanced,
        "reply_text": text,
        "verdict": Judgement(verdict),
        "reason": REASONS[verdict],
        "in_doubt": verdict == "held",
        "tls": "TLSv1.3",
    }
    return Attempt(**{**values, **changes})


def settlement(lane: int, recipient: int, state: str, **changes: Any) -> Settlement:
    """A settlement to ``state``, with an attempt where one belongs to it."""
    verdict = "deferred" if state == "claimed" else state
    values: dict[str, Any] = {"lane": lane, "recipient": recipient, "state": state}
    if state == "queued":
        values |= {"due_ms": T0}
    else:
        values |= {"attempt": attempt(verdict), "reason": REASONS[verdict]}
    if state == "deferred":
        values |= {"due_ms": T0 + 1_000}
    return Settlement(**{**values, **changes})


def session_row(id: str, lane: Lane, **changes: Any) -> SessionRow:
    """An open session of a lane."""
    values: dict[str, Any] = {
        "id": id,
        "lane": lane.token,
        "site": lane.site,
        "host": "mx1.example.org",
        "address": "192.0.2.1",
        "source": None,
        "started_ms": T0,
        "ended_ms": None,
        "messages": 0,
        "ehlo": "PIPELINING",
        "tls_wanted": "opportunistic",
        "tls_reached": "encrypted",
        "tls_version": "TLSv1.3",
        "tls_cipher": "TLS_AES_256_GCM_SHA384",
        "tls_peer": "mx1.example.org",
        "tls_verified": False,
        "end_cause": None,
    }
    return SessionRow(**{**values, **changes})


def change(
    client: ClientStore, word: str, ids: Iterable[str], recipient: str | None, now: int
) -> int:
    """Change one address, or all, of some messages; how many recipients changed."""
    return client.change(Change(word), [Target(id, recipient) for id in ids], now)


class Spool:
    """One client, one engine connection and one registered delivery worker.

    Args:
        stores: opens stores on the spool.
    """

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.client = stores.client()
        self.client.statuses([])  # the spool exists from here on
        self.engine = stores.worker()
        self.worker = self.register()

    def register(self, **changes: Any) -> int:
        """One more live worker."""
        values: dict[str, Any] = {
            "kind": "delivery",
            "pid": 4711,
            "host": "machine",
            "boot": "boot-1",
            "lock": "delivery.lock",
            "restarts": 0,
            "now_ms": T0,
        }
        return self.engine.register(**{**values, **changes}).seq

    # --- sending and asking ---

    def send(self, *recipients: str, **changes: Any) -> str:
        """Store one message; returns its id."""
        (result,) = self.client.enqueue([submission(*recipients, **changes)], T0)
        assert isinstance(result, str), result
        return result

    def status(self, id: str) -> dict[str, str]:
        """Status word by address."""
        found = self.client.statuses([id])[id]
        return {address: str(one.status) for address, one in found.recipients.items()}

    def only(self, id: str) -> RecipientStatus:
        """Status of the message's only recipient."""
        (found,) = self.client.statuses([id])[id].recipients.values()
        return found

    def rows(self, sql: str, *params: object) -> list[tuple[object, ...]]:
        """Rows of a query on the public views."""
        return [tuple(row) for row in self.client.query(sql, params, 10.0)]

    def sound(self) -> None:
        """No invariant is broken."""
        assert self.client.check() == []

    # --- the engine's verbs ---

    def answer(
        self,
        domain: str,
        *,
        result: RouteResult = RouteResult.MX,
        site: str | None = None,
        now: int = T0,
        ttl: int = HOUR,
        refusal: Refusal | None = None,
        cached: bool = False,
    ) -> RouteAnswer:
        """What a resolver would say about a domain; its site is ``mx.<domain>`` unless named."""
        key = site or f"mx.{domain}"
        led = result in (RouteResult.MX, RouteResult.RELAY)
        hosts = (Host(preference=10, name=key),) if led else ()
        route = Route(domain=domain, result=result, hosts=hosts, error=None if hosts else "no")
        return RouteAnswer(
            route=route,
            site_key=key if hosts else None,
            provider=None,
            expires_ms=now + ttl,
            refusal=refusal,
            cached=cached,
        )

    def route(self, domain: str = "example.org", *, now: int = T0, **kind: Any) -> bool:
        """Take the domain and store an answer; other domains taken with it are given back."""
        taken = [due.name for due in self.engine.due_domains(self.worker, 1_000, now)]
        left = False
        for name in taken:
            if name == domain:
                answer = self.answer(domain, now=now, **kind)
                (left,) = self.engine.put_routes(self.worker, [answer], now)
            else:
                self.engine.give_back(self.worker, {name: 0})
        assert domain in taken, f"{domain} was not due for routing, only {taken}"
        return left

    def lease(
        self, *, worker: int | None = None, want: int = 1, limit: int = 20, workers: int = 1,
        now: int = T0, proven: bool = False,
    ) -> list[Lane]:  # fmt: skip
        """Lease lanes for a worker."""
        return self.engine.lease(
            worker or self.worker, want=want, limit=limit, workers=workers, now_ms=now,
            proven=proven,
        )  # fmt: skip

    def lane(self, *, now: int = T0, worker: int | None = None) -> Lane:
        """Exactly one lane."""
        (lane,) = self.lease(now=now, worker=worker)
        return lane

    def exchange(
        self,
        *,
        sessions: Iterable[SessionRow] = (),
        settlements: Iterable[Settlement] = (),
        opens: Iterable[Open] = (),
        claims: Iterable[ClaimRequest] = (),
        now: int = T0,
    ) -> Exchange:
        """One exchange."""
        work = Work(
            sessions=list(sessions),
            settlements=list(settlements),
            opens=list(opens),
            claims=list(claims),
        )
        return self.engine.exchange(work, now)

    def claim(
        self, lane: Lane, *, limit: int = 100, max_bytes: int = 1 << 24, now: int = T0
    ) -> list[Claimed]:
        """Claim for a lane."""
        request = ClaimRequest(lane=lane.token, limit=limit, max_bytes=max_bytes)
        return self.exchange(claims=[request], now=now).claimed

    def open(
        self, lane: Lane, rows: Iterable[Claimed], session: str = "s", *, now: int = T0
    ) -> frozenset[int]:
        """Mark claimed rows as on the wire."""
        wanted = tuple(row.recipient for row in rows)
        request = Open(lane=lane.token, recipients=wanted, session=session)
        return self.exchange(opens=[request], now=now).opened

    def settle(
        self, lane: Lane, row: Claimed, state: str, *, now: int = T0 + 200, **changes: Any
    ) -> bool:
        """Settle one row; whether the guard let it through."""
        done = self.exchange(
            settlements=[settlement(lane.token, row.recipient, state, **changes)], now=now
        )
        return row.recipient in done.settled

    def sending(self, *recipients: str, **changes: Any) -> tuple[str, Lane, list[Claimed]]:
        """A message on the wire: sent, routed, leased, claimed, opened."""
        id = self.send(*recipients, **changes)
        for (domain,) in self.rows(
            "SELECT DISTINCT domain FROM recipients WHERE message_id = ? AND site IS NULL", id
        ):
            self.route(str(domain))
        lane = self.lane()
        rows = self.claim(lane)
        assert self.open(lane, rows) == {row.recipient for row in rows}
        return id, lane, rows

    def suspend(self, lane: Lane, until: int, *, since: int = T0, now: int = T0) -> int:
        """Suspend the lane's site."""
        return self.engine.suspend(
            Suspension(
                site=lane.site,
                until_ms=until,
                since_ms=since,
                by="worker 1",
                reason=Reason.CONNECT,
                text="connection refused",
            ),
            now,
        )
