"""The binding reason, as a table: rows and their cause, in the order an engine would stumble."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mailstrom.causes import Cause
from mailstrom.client.binding import reason
from mailstrom.client.look import NEGATIVE, SIGN_OF_LIFE_MS, Look
from mailstrom.storage.facts import (
    COUNTED,
    ROOM_BYTES,
    Facts,
    LaneFacts,
    RecipientFacts,
    RouteFacts,
    SiteFacts,
    WorkerFacts,
)
from mailstrom.types import RouteResult, Status, from_ms

NOW = 1_700_000_000_000
MINUTE, HOUR = 60_000, 3_600_000
ROUTE = RouteFacts(RouteResult.MX, None, NOW + HOUR, 0, None)
FAILING = RouteFacts(RouteResult.TEMPORARY, "SERVFAIL", NOW + MINUTE, NOW + MINUTE, None)
NULL_MX = RouteFacts(RouteResult.NULL_MX, "null MX", NOW + HOUR, 0, None)
SITE = SiteFacts("mx.x.test", 0, None, None, None, 0, 0, 20, None, canary=False)
SUSPENDED = SITE._replace(
    suspended_until_ms=NOW + MINUTE, suspended_by="worker 1", suspended_reason="connect",
    last_reply="connection refused", failures=3,
)  # fmt: skip
WORKER = WorkerFacts(3, 77, "here", "ready", NOW - 1, "w3.lock", 2)
SILENT = WORKER._replace(heartbeat_ms=NOW - SIGN_OF_LIFE_MS)
LANE = LaneFacts(3, 77, "here", "w3.lock", 45, None, None, None)
SENT = LANE._replace(host="mx1.x.test", address="192.0.2.1", opened_ms=NOW - 5)
LOST = LANE._replace(worker=9, lock="w9.lock")


def recipient(**changes: Any) -> RecipientFacts:
    """Due, routed, nothing in its way but its turn."""
    plain = RecipientFacts(
        message_id="m1", address="a@x.test", domain="x.test", status=Status.QUEUED, reason=None,
        claimed=False, due_ms=NOW - MINUTE, created_ms=NOW - MINUTE, send_ms=NOW - MINUTE,
        expires_ms=NOW + 24 * HOUR, finished_ms=None, attempts=0, in_doubt=False, mx=None,
        reply_code=None, enhanced_code=None, reply_text=None, site=SITE, route=ROUTE, stale=False,
        lane=None, ahead=0,
    )  # fmt: skip
    return plain._replace(**changes)


def look(**changes: Any) -> Look:
    """One worker that works, a spool that is whole."""
    facts = Facts(
        workers=(WORKER,), copied_ms=None, copied_from=None, log_full=False,
        room_bytes=10 * ROOM_BYTES, trouble=None, max_connections=100, recipients=(),
    )  # fmt: skip
    held = changes.pop("held", {"w3.lock"})
    return Look(facts._replace(**changes), held, NOW)


DELIVERED: dict[str, Any] = {"status": Status.DELIVERED, "due_ms": None, "finished_ms": NOW - 1}
FAILED = DELIVERED | {"status": Status.FAILED, "reason": "bounced"}
HELD: dict[str, Any] = {"status": Status.HELD, "due_ms": None}
IN_HAND: dict[str, Any] = {"due_ms": None, "claimed": True, "lane": LANE}
SENDING = IN_HAND | {"status": Status.SENDING, "lane": SENT}
LATER: dict[str, Any] = {"due_ms": NOW + HOUR, "attempts": 1, "status": Status.DEFERRED}
UNROUTED: dict[str, Any] = {"site": None, "route": None}
GONE: dict[str, Any] = {"held": ()}

CASES: list[tuple[Cause, dict[str, Any], dict[str, Any], str]] = [
    (Cause.FINAL_DELIVERED, DELIVERED, {}, "it was delivered at 2023-"),
    (Cause.FINAL_CANCELLED, DELIVERED | {"status": Status.CANCELLED}, {}, "it was cancelled at "),
    (Cause.FINAL_FAILED, FAILED, {}, "'mailstrom queue retry m1 --status failed' tries again"),
    (Cause.FINAL_FAILED, FAILED | {"reason": "damaged"}, {}, "send it anew"),
    (
        Cause.FINAL_FAILED,
        FAILED | {"reason": "null_mx", "attempts": 1, "site": None, "route": NULL_MX},
        {},
        r"by the same answer for x.test \(null_mx\) until 2023-\S+ \(in 1h\)",
    ),
    (Cause.HELD_BY_USER, HELD | {"reason": "user"}, {}, "'mailstrom queue release m1'"),
    (Cause.HELD_POISON, HELD | {"reason": "poison"}, {}, "'mailstrom queue release m1'"),
    (Cause.HELD_IN_DOUBT, HELD | {"reason": "in_doubt"}, {}, "'mailstrom resolve m1 delivered|"),
    (Cause.HELD_BY_USER, HELD | {"reason": "user"}, {"copied_ms": NOW} | GONE, ""),
    (
        Cause.COPIED, LATER, {"copied_ms": NOW - 5, "copied_from": "/a/spool.db"},
        "copy of /a/spool.db: nothing goes out before 'mailstrom store adopt'",
    ),
    (Cause.COPIED, SENDING, {"copied_ms": NOW - 5}, "a copy: nothing goes out"),
    (
        Cause.SENDING, SENDING, {},
        r"worker 3 \(pid 77 on here\) sends it to mx1.x.test \[192.0.2.1\] since 2023-",
    ),
    (Cause.SENDING, SENDING, {"trouble": "a disk error"}, ""),
    (Cause.CLAIMED, IN_HAND, {}, r"has it for a connection to mx.x.test \(lane 45\)"),
    (Cause.CLAIMED, IN_HAND | {"expires_ms": NOW - 1}, {}, ""),
    (Cause.WORKER_LOST, IN_HAND | {"lane": LOST}, {}, "had claimed it.* the janitor .* due again"),
    (Cause.WORKER_LOST, SENDING, GONE, "had it on the wire.* start 'mailstrom serve'.* in doubt"),
    (Cause.EXPIRED, {"expires_ms": NOW}, {}, "its time ended at .*; the engine's janitor fails it"),
    (Cause.EXPIRED, LATER | {"expires_ms": NOW}, {}, ""),
    (Cause.NO_WORKER, LATER | {"expires_ms": NOW}, GONE, "its time ended at .* no engine runs"),
    (
        Cause.SCHEDULED, {"due_ms": NOW + HOUR, "send_ms": NOW + HOUR}, {},
        r"not before 2023-\S+ \(in 1h\), as its sender asked; nothing hastens it",
    ),
    (
        Cause.NOT_DUE,
        LATER | {"mx": "mx1.x.test", "reply_code": 451, "enhanced_code": "4.7.1",
                 "reply_text": "greylisted"},
        {},
        r"next attempt \S+ \(in 1h\) after mx1.x.test said: 451 4.7.1 greylisted; 'mailstrom queue",
    ),
    (Cause.NOT_DUE, LATER | {"reason": "in_doubt", "in_doubt": True}, {}, "it may have been del"),
    (Cause.NOT_DUE, LATER, GONE, "; no engine runs on this spool now"),
    (Cause.NOT_DUE, LATER | {"expires_ms": NOW + 5}, {}, "its time ends before that, at "),
    (Cause.NOT_DUE, LATER | {"site": SUSPENDED}, {}, "next attempt"),  # what lasts longest binds
    (
        Cause.SITE_SUSPENDED, {"site": SUSPENDED}, {},
        r"its site mx.x.test is left alone until \S+ \(in 1m\) since no host would talk, 3 times in"
        " a row: connect; worker 1; connection refused; 'mailstrom queue retry m1' tries at once",
    ),
    (
        Cause.SITE_SUSPENDED, {"site": SUSPENDED, "due_ms": NOW + 5}, GONE,
        "; no engine runs on this spool now; start 'mailstrom serve'; then 'mailstrom queue retry",
    ),
    (
        Cause.SCHEDULED, {"due_ms": NOW + HOUR, "send_ms": NOW + HOUR}, GONE,
        "no engine runs on this spool now; nothing hastens it",
    ),
    (
        Cause.DNS_TEMPORARY, {"site": None, "route": FAILING}, {},
        r"hosts of x.test cannot be looked up \(SERVFAIL\); asked again at \S+ \(in 1m\)",
    ),
    (Cause.DNS_TEMPORARY, {"stale": True, "route": FAILING}, {}, ""),
    (Cause.NO_LANE, {"route": FAILING}, {}, ""),  # an older answer holds
    (Cause.NO_WORKER, {}, {"workers": ()}, "due, and no engine runs on this spool; start"),
    (Cause.NO_WORKER, {}, GONE, r"\(worker 3 \(pid 77 on here\) has ended without a word\)"),
    (Cause.NO_WORKER, UNROUTED, GONE, ""),
    (Cause.WORKER_SILENT, {}, {"workers": (SILENT,)}, "no delivery worker gave a sign of life"),
    (Cause.DRAINING, {}, {"workers": (WORKER._replace(state="draining"),)}, "is draining"),
    (Cause.NO_LANE, {}, {"workers": (SILENT, WORKER)}, ""),
    (Cause.SPOOL_POISONED, UNROUTED, {"trouble": "a disk error"}, "be recorded: a disk"),
    (Cause.ROUTE_PENDING, UNROUTED, {"log_full": True}, "of x.test are to be looked up first"),
    (
        Cause.ROUTE_PENDING, {"site": None, "route": ROUTE._replace(router=3)}, {},
        r"worker 3 \(pid 77 on here\) looks up the mail hosts of x.test now",
    ),
    (
        Cause.ROUTE_PENDING,
        {"site": None, "route": RouteFacts(None, None, 0, NOW + MINUTE, None)},
        {},
        r"looked up first, not before \S+ \(in 1m\)",
    ),
    *(
        (
            Cause.DNS_NEGATIVE,
            {"site": None, "route": NULL_MX._replace(result=result)},
            {},
            r"takes no mail by an answer that holds until \S+ \(in 1h\): null MX",
        )
        for result in sorted(NEGATIVE)
    ),
    (Cause.ROUTE_PENDING, {"site": None, "route": NULL_MX._replace(expires_ms=NOW)}, {}, ""),
    (Cause.LOG_FULL, {"stale": True}, {"log_full": True}, "'mailstrom store check' names it"),
    (Cause.DISK_LOW, {}, {"room_bytes": ROOM_BYTES - (1 << 20)}, "nothing is claimed with 7 MiB"),
    (Cause.NO_LANE, {}, {"room_bytes": None}, ""),
    (Cause.ROUTE_PENDING, {"stale": True}, {}, "holds no more"),
    (
        Cause.SITE_LIMIT, {"site": SITE._replace(lanes=20), "ahead": 7}, {},
        "all 20 connections that mx.x.test may have are in use; 7 others are due there before it",
    ),
    (Cause.SITE_LIMIT, {"site": SITE._replace(lanes=4, cap=4)}, {}, "seen to bear 4 connections"),
    (Cause.SITE_LIMIT, {"site": SITE._replace(lanes=1, canary=True)}, {}, "has taken no message"),
    (
        Cause.SITE_LIMIT, {"site": SITE._replace(lanes=1, canary=True, failures=2)}, {},
        "it failed 2 times in a row",
    ),
    (
        Cause.CONNECTION_LIMIT, {}, {"max_connections": 2},
        r"kept waiting by their hosts: 2 may work \(\[delivery\] max_connections\), 1 workers",
    ),
    (Cause.NO_LANE, {}, {"max_connections": 3}, "no connection to mx.x.test is open yet; it goes"),
    (
        Cause.NO_LANE, {}, {"max_connections": None},
        "workers have 2 open elsewhere, and this spool does not say how many they may have",
    ),
    (Cause.NO_LANE, {"ahead": COUNTED}, {}, "100 or more others are due there before it"),
    (Cause.NO_LANE, {"ahead": 1}, {}, "one other is due there before it"),
    (Cause.NO_LANE, {"ahead": None}, {}, "open yet; it goes out"),
    (Cause.IN_LINE, {"site": SITE._replace(lanes=3)}, {}, "3 of 20 connections to mx.x.test are"),
    (
        Cause.IN_LINE, {"site": SITE._replace(lanes=3, limit=None)}, {},
        "turn: 3 connections to mx.x.test are",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "row", "spool", "words"), CASES)
def test_rows_have_one_binding_reason(
    cause: Cause, row: dict[str, Any], spool: dict[str, Any], words: str
) -> None:
    found = reason(recipient(**row), look(**spool))
    assert found.cause is cause, found
    assert re.search(words, found.sentence), found.sentence
    assert found.at == from_ms(NOW)
    assert found.to_dict()["cause"] == str(cause)
    assert found.detail


def test_every_cause_is_in_the_table() -> None:
    assert {case[0] for case in CASES} == set(Cause)


@pytest.mark.parametrize(
    ("row", "until_ms"),
    [
        ({"site": SUSPENDED}, NOW + MINUTE),
        (LATER | {"site": SUSPENDED}, NOW + HOUR),
        ({"site": None, "route": FAILING}, NOW + MINUTE),
        ({"site": None, "route": NULL_MX}, NOW + HOUR),
        (HELD | {"reason": "user"}, NOW + 24 * HOUR),
        ({}, None),
        (SENDING, None),
        (DELIVERED, None),
    ],
)
def test_until_is_when_the_cause_ends_by_itself(row: dict[str, Any], until_ms: int | None) -> None:
    assert reason(recipient(**row), look()).until == from_ms(until_ms)


def test_what_stands_earlier_in_the_line_hides_what_stands_later() -> None:
    """All troubles at once, taken away one by one: the causes come in the order of the words."""
    troubles: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"copied_ms": NOW}),
        ({"due_ms": NOW + HOUR, "attempts": 1}, {}),
        ({"site": SUSPENDED._replace(lanes=20)}, {}),
        ({}, {"workers": ()}),
        ({}, {"trouble": "a disk error"}),
        ({}, {"log_full": True}),
        ({}, {"room_bytes": 0}),
        ({"stale": True}, {}),
        ({"site": SITE._replace(lanes=20)}, {}),
    ]
    seen = []
    for start in range(len(troubles)):
        row: dict[str, Any] = {}
        spool: dict[str, Any] = {}
        for of_row, of_spool in reversed(troubles[start:]):
            row |= of_row
            spool |= of_spool
        seen.append(reason(recipient(**row), look(**spool)).cause)
    assert seen == [
        Cause.COPIED, Cause.NOT_DUE, Cause.SITE_SUSPENDED, Cause.NO_WORKER, Cause.SPOOL_POISONED,
        Cause.LOG_FULL, Cause.DISK_LOW, Cause.ROUTE_PENDING, Cause.SITE_LIMIT,
    ]  # fmt: skip
    words = list(Cause)
    ordered = [words.index(cause) for cause in seen if cause is not Cause.ROUTE_PENDING]
    assert ordered == sorted(ordered), "but for a stale route, which a claim finds"


def test_a_value_is_frozen_and_says_who() -> None:
    found = reason(recipient(site=SUSPENDED, ahead=3), look())
    assert (found.by, found.site, found.lanes, found.lanes_limit, found.ahead) == (
        "worker 1", "mx.x.test", 0, 20, 3,
    )  # fmt: skip
    with pytest.raises(AttributeError):
        found.cause = Cause.NO_LANE  # type: ignore[misc]
