"""``mailstrom queue``: what is selected, what is changed, what is asked first."""

from __future__ import annotations

import json
from typing import Any


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
        *("queue", "list", "m1", "m2", "--status", "failed", "--domain", "X.test"),
        *("--recipient", evil, "--sender", "s@x.test", "--limit", "0"),
    )
    ((sql, parameters),) = queries(fake)
    assert parameters == ["m1", "m2", "failed", "x.test", evil, "s@x.test", -1]
    assert evil not in sql


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
    assert run("queue", "count").out.splitlines()[1].split() == ["queued", "3", "2"]
    assert json_lines(run("queue", "count", "--json").out) == [
        {"status": "queued", "recipients": 3, "messages": 2}
    ]


def changes(fake: Any) -> list[tuple[Any, ...]]:
    return [call for call in fake.FakeClient.calls if call[0] in {"cancel", "retry"}]


def test_cancelling_whole_messages_calls_the_client_once_each(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"), ("m1", "b@x.test"), ("m2", "a@x.test"))
    done = run("queue", "cancel", "--all", "--yes", "--json")
    assert changes(fake) == [("cancel", "m1", None), ("cancel", "m2", None)]
    assert queries(fake)[0][1] == ["queued", "deferred", "held", -1]
    assert json_lines(done.out) == [{"matched": 3, "cancelled": 2}]


def test_retrying_a_message_never_reopens_its_failed_recipients(run: Any, fake: Any) -> None:
    # the client's retry(id) would: so only the deferred ones are named to it
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"), ("m1", "b@x.test"))
    done = run("queue", "retry", "m1", "--yes", "--json")
    assert queries(fake)[0][1] == ["m1", "deferred", -1]
    assert changes(fake) == [("retry", "m1", "a@x.test"), ("retry", "m1", "b@x.test")]
    assert json_lines(done.out) == [{"matched": 2, "retried": 2}]


def test_a_change_of_some_recipients_touches_only_those(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"), ("m2", "b@x.test"))
    done = run("queue", "cancel", "--domain", "x.test", "--yes")
    assert changes(fake) == [("cancel", "m1", "a@x.test"), ("cancel", "m2", "b@x.test")]
    assert done.out == "cancelled 2 recipients\n"


def test_a_change_asks_and_no_is_no(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"))
    done = run("queue", "cancel", "m1", stdin=b"n\n")
    assert done.code == 1
    assert "cancel 1 recipient?" in done.err
    assert changes(fake) == []
    assert run("queue", "cancel", "m1").code == 1  # nobody there to answer
    assert changes(fake) == []
    assert run("queue", "cancel", "m1", stdin=b"y\n").code == 0
    assert changes(fake) == [("cancel", "m1", None)]


def test_a_dry_run_changes_nothing(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = waiting(fake, ("m1", "a@x.test"))
    done = run("queue", "retry", "m1", "--dry-run", "--json")
    assert done.code == 0
    assert json_lines(done.out)[0]["address"] == "a@x.test"
    assert changes(fake) == []


def test_a_change_that_matches_nothing_exits_1(run: Any, fake: Any) -> None:
    done = run("queue", "retry", "m1", "--yes")
    assert done.code == 1
    assert done.err == "mailstrom: no deferred recipient matches\n"
    done = run("queue", "cancel", "m1", "--yes")
    assert done.err == "mailstrom: no queued, deferred or held recipient matches\n"
    assert run("queue", "list").err.startswith("no recipient waits")
    assert run("queue", "list", "m1").err == "no recipient matches\n"
