"""``mailstrom why``: what it prints, for whom, and how it ends."""

from __future__ import annotations

import json
from typing import Any

from mailstrom.types import iso_ms
from tests.unit.cli.house import HOUR, House


def test_it_says_why_and_what_would_change_it(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    id = house.send("stuck", "a@x.test")
    spool.route("x.test", now=now)
    spool.suspend(spool.lane(now=now), now + HOUR, since=now, now=now)
    done = run("why", id[-8:])
    assert (done.code, done.err) == (0, "")
    head, why, change = done.out.splitlines()
    assert head == f"{id} a@x.test: deferred, site_suspended"
    assert why.startswith(f"  why:    its site mx.x.test is left alone until {iso_ms(now + HOUR)}")
    assert "connect; worker 1; connection refused" in why
    retry = f"'mailstrom queue retry {id}' tries at once"
    assert change == f"  change: start 'mailstrom serve'; then {retry}"  # nothing lives here
    (record,) = (json.loads(line) for line in run("why", id, "--json").out.splitlines())
    assert record["at"] <= record["until"] == iso_ms(now + HOUR)
    assert (record["cause"], record["by"], record["site"]) == (
        "site_suspended", "worker 1", "mx.x.test",
    )  # fmt: skip


def test_several_may_be_named_and_one_that_names_nothing_is_told(run: Any, house: House) -> None:
    first = house.send("first", "a@x.test", "b@x.test")
    second = house.send("second", "a@x.test")
    done = run("why", "a@X.test", second, "--json")
    records = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert [record["message_id"] for record in records] == [first, second, second]
    done = run("why", "nobody@x.test", "abcdef", second)
    assert done.code == 1
    assert "mailstrom: nothing waits for nobody@x.test\n" in done.err
    assert "mailstrom: no message whose id ends in 'abcdef'" in done.err
    assert done.out.startswith(f"{second} a@x.test: queued, no_worker\n")
    done = run("why", "a b@x.test")
    assert (done.code, done.out) == (64, "")
    assert run("why").code == 64


def test_what_is_cut_off_is_told(run: Any, house: House) -> None:
    id = house.send("many", *(f"u{n}@x.test" for n in range(4)))
    done = run("why", id, "--limit", "3")
    assert done.code == 0
    assert done.out.count("no_worker") == 3
    assert f"{id}: only the first 3 are shown; see --limit" in done.err
    assert run("why", id, "--limit", "4").err == ""
    assert run("why", id, "--limit", "0").code == 64


def test_words_of_hosts_move_no_cursor(run: Any, house: House) -> None:
    house.attempts("later", "slow.test", "deferred", reply_text="no \x1b[2J\u202e\nforged: line")
    done = run("why", house.ids["later"])
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert len(done.out.splitlines()) == 3
    assert "not_due" in done.out
