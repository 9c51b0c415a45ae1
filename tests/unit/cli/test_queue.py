"""``mailstrom queue``: what is selected, what is changed, what is asked first."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailstrom.types import Reason, Status


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


COLUMNS = "message_id address status reason attempts next_attempt_at mx reply_text"


def waiting(fake: Any, *pairs: tuple[str, str]) -> list[Any]:
    rows = [
        (id, address, "deferred", "remote", 1, None, None, "451 later") for id, address in pairs
    ]
    found: list[Any] = fake.named_rows(COLUMNS, *rows)
    return found


def queries(fake: Any) -> list[tuple[str, list[Any]]]:
    return [call[1:] for call in fake.FakeClient.calls if call[0] == "query"]


def test_queue_list_shows_what_waits(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"))
    done = run("queue", "list")
    assert done.code == 0
    assert done.out.splitlines()[0].split() == COLUMNS.split()
    assert done.out.splitlines()[1].startswith("m1")
    ((sql, parameters),) = queries(fake)
    assert parameters == ["queued", "sending", "deferred", "held", 1001]
    assert "r.status in (?, ?, ?, ?)" in sql


def test_queue_list_filters_travel_as_parameters(run: Any, fake: Any) -> None:
    evil = "x' or 1=1 --"
    run(
        *("queue", "list", "m1", "m2", "--status", "failed", "--domain", "X.Täst"),
        *("--recipient", "A@X.test", "--sender", "", "--limit", "0", "--reason", "bounced"),
        *("--tag", evil, "--stream", "s", "--newer-than", "2030-01-31T08:00:00Z"),
        *("--older-than", "2030-01-31T09:00:00+01:00"),
    )
    ((sql, parameters),) = queries(fake)
    moment = 1_896_076_800_000
    assert parameters == [
        *("m1", "m2", "failed", "bounced", "x.xn--tst-qla", "A@x.test", "", "s", evil),
        *(moment, moment, -1),
    ]
    assert evil not in sql


@pytest.mark.parametrize(
    "arguments",
    [
        ("--recipient", "nobody"),
        ("--domain", "a b"),
        ("--status", "gone"),
        ("--reason", "gone"),
        ("--older-than", "yesterday"),
        ("--newer-than", "-1h"),
    ],
)
def test_a_filter_that_can_match_nothing_is_a_usage_error(
    run: Any, fake: Any, arguments: tuple[str, ...]
) -> None:
    assert run("queue", "list", *arguments).code == 64
    assert fake.FakeClient.calls == []


def test_queue_list_says_when_it_was_cut(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"), ("m2", "b@x.test"), ("m3", "c@x.test"))
    done = run("queue", "list", "--limit", "2", "--json")
    assert [row["message_id"] for row in json_lines(done.out)] == ["m1", "m2"]
    assert "only the first 2" in done.err
    whole = run("queue", "list", "--limit", "3", "--json")
    assert (len(json_lines(whole.out)), whole.err) == (3, "")


def test_queue_list_all_and_ids_show_final_ones_too(run: Any, fake: Any) -> None:
    run("queue", "list", "--all")
    run("queue", "list", "m1")
    assert [parameters for _, parameters in queries(fake)] == [[1001], ["m1", 1001]]


def test_queue_count(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = fake.named_rows("status recipients messages", ("queued", 3, 2))
    done = run("queue", "count")
    assert done.out.splitlines()[1].split() == ["queued", "3", "2"]
    assert done.err == ""
    assert json_lines(run("queue", "count", "--json").out) == [
        {"status": "queued", "recipients": 3, "messages": 2}
    ]


def test_counting_in_a_copy_says_what_it_waits_for(run: Any, fake: Any) -> None:
    fake.FakeClient.copied = True
    assert "'mailstrom store adopt'" in run("queue", "count").err
    fake.FakeClient.messages = {"m1": fake.message("m1", fake.recipient("a@x.test"))}
    assert "'mailstrom store adopt'" in run("status", "m1").err


def changes(fake: Any) -> list[tuple[Any, ...]]:
    return [call for call in fake.FakeClient.calls if call[0] in ("chosen", "apply")]


def words(fake: Any) -> list[str]:
    return [call[0] for call in changes(fake)]


def deferred(fake: Any, id: str, *addresses: str) -> None:
    state = {"status": Status.DEFERRED, "reason": Reason.REMOTE}
    found = [fake.recipient(address, **state) for address in addresses]
    fake.FakeClient.messages[id] = fake.message(id, *found)


@pytest.mark.parametrize(
    ("verb", "done", "filters"),
    [
        ("cancel", "cancelled", {"status": ("queued", "deferred", "held")}),
        ("hold", "held", {"status": ("queued", "deferred")}),
        ("release", "released", {"status": ("held",), "reason": ("user", "poison")}),
        ("retry", "retried", {"status": ("deferred",)}),
    ],
)
def test_a_change_counts_and_acts_through_the_client(
    run: Any, fake: Any, verb: str, done: str, filters: dict[str, Any]
) -> None:
    fake.FakeClient.matching = 3
    answer = run("queue", verb, "--all", "--yes", "--json")
    assert changes(fake) == [("chosen", verb, filters), ("apply", verb)]
    assert json_lines(answer.out) == [{"matched": 3, done: 3, "more": 0, "dry_run": False}]
    assert run("queue", verb, "--all", "--yes").out == f"{done} 3 recipients\n"


def test_every_filter_reaches_the_client(run: Any, fake: Any) -> None:
    fake.FakeClient.matching = 1
    run(
        *("queue", "retry", "m1", "m2", "m1", "--status", "failed", "--reason", "bounced"),
        *("--domain", "X.test", "--recipient", "A@X.test", "--sender", "s@x.test", "--tag", "t"),
        *(
            "--stream",
            "bulk",
            "--older-than",
            "2030-01-31T08:00:00Z",
            "--newer-than",
            "2h",
            "--yes",
        ),
    )
    (_, verb, filters), applied = changes(fake)
    assert applied == ("apply", "retry")
    since = filters.pop("since")
    assert abs(datetime.now(UTC) - timedelta(hours=2) - since) < timedelta(minutes=5)
    assert (verb, filters) == (
        "retry",
        {
            "ids": ("m1", "m2"),
            "status": ("failed",),
            "reason": ("bounced",),
            "domain": ("x.test",),
            "recipient": ("A@x.test",),
            "sender": ("s@x.test",),
            "tag": ("t",),
            "stream": ("bulk",),
            "until": datetime(2030, 1, 31, 8, tzinfo=UTC),
        },
    )


def test_a_change_shows_some_asks_and_no_is_no(run: Any, fake: Any) -> None:
    fake.FakeClient.matching = 7
    deferred(fake, "m1", "a@x.test", "b\x1b@x.test")
    done = run("queue", "cancel", "m1", stdin=b"n\n", person=True)
    assert done.code == 1
    assert "m1  a@x.test  deferred (remote)\nm1  b\\x1b@x.test  deferred (remote)\n" in done.err
    assert "... and 5 more\nCancel 7 recipients? [y/N]" in done.err
    assert words(fake) == ["chosen"]
    done = run("queue", "cancel", "m1", stdin=b"y\n", person=True)
    assert done.out == "cancelled 7 recipients\n"
    assert words(fake) == ["chosen", "chosen", "apply"]
    assert "since then" not in done.err


def test_what_matched_only_later_is_told(run: Any, fake: Any) -> None:
    fake.FakeClient.matching, fake.FakeClient.arrived = 7, 1_002
    done = run("queue", "cancel", "--all", "--yes")
    assert done.out == "cancelled 7 recipients\n"
    later = "mailstrom: 1,002 recipients more matched since then and were left alone\n"
    assert done.err == later
    done = run("queue", "cancel", "--all", "--yes", "--json")
    assert json_lines(done.out)[0]["more"] == 1_002


def test_a_change_that_nobody_can_confirm_is_a_usage_error(run: Any, fake: Any) -> None:
    fake.FakeClient.matching = 1
    done = run("queue", "cancel", "m1", stdin=b"y\n")
    assert done.code == 64
    assert "say --yes" in done.err
    assert words(fake) == ["chosen"]


def test_a_dry_run_changes_nothing(run: Any, fake: Any) -> None:
    fake.FakeClient.matching = 2
    deferred(fake, "m1", "a@x.test")
    done = run("queue", "retry", "m1", "--dry-run")
    assert (done.code, done.out) == (0, "would be retried: 2 recipients\n")
    assert "m1  a@x.test  deferred (remote)\n... and 1 more\n" in done.err
    done = run("queue", "retry", "m1", "--dry-run", "--json", "--yes")
    assert json_lines(done.out) == [{"matched": 2, "retried": 0, "more": 0, "dry_run": True}]
    assert words(fake) == ["chosen", "chosen"]


def test_a_change_that_matches_nothing_exits_1(run: Any, fake: Any) -> None:
    done = run("queue", "retry", "m1", "--yes")
    assert done.code == 1
    assert done.err == (
        "mailstrom: no deferred recipient matches; failed ones are reopened with --status failed\n"
    )
    done = run("queue", "cancel", "m1", "--yes")
    assert done.err == "mailstrom: no queued, deferred or held recipient matches\n"
    assert run("queue", "list").err.startswith("no recipient waits")
    assert run("queue", "list", "m1").err == "no recipient matches\n"


def test_resolving_says_what_was_decided(run: Any, fake: Any) -> None:
    fake.FakeClient.matching = 2
    done = run("resolve", "m1", "delivered", "--recipient", "a@x.test")
    assert (done.code, done.out) == (0, "resolved 2 recipients\n")
    assert ("resolve", "m1", "delivered", "a@x.test") in fake.FakeClient.calls
    assert json_lines(run("resolve", "m1", "retry", "--json").out) == [
        {"id": "m1", "outcome": "retry", "resolved": 2}
    ]
    fake.FakeClient.matching = 0
    done = run("resolve", "m1", "failed")
    assert (done.code, done.err) == (1, "mailstrom: no recipient of m1 is held in doubt\n")
    assert run("resolve", "m1", "lost").code == 64


def test_backup_and_adopt_call_the_client(
    run: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert run("store", "backup", "copy.db").out == "/copy.db\n"
    assert ("backup", "copy.db") in fake.FakeClient.calls
    assert run("store", "adopt", "copy.db").code == 1  # no copy
    fake.FakeClient.copied = True
    assert run("store", "adopt", "copy.db").code == 64  # nobody to ask
    assert ("adopt",) not in fake.FakeClient.calls
    assert run("store", "adopt", "copy.db", "--yes").out == "adopted /fake.db\n"
