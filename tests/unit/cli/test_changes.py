"""Commands that change a real spool: queue changes, resolve; backup, adopt, purge."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom
from mailstrom.storage import open_worker_store
from mailstrom.types import Reason
from tests.unit.cli.house import House

HOUR = 3_600_000


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def words(run: Any, *filters: str) -> dict[str, str]:
    """Status by address."""
    listed = rows(run("queue", "list", "--all", "--json", *filters).out)
    return {row["address"]: row["status"] for row in listed}


@pytest.fixture
def mixed(house: House) -> House:
    """Messages that differ in every filter."""
    hour_ago = house.now - HOUR
    house.send("plain", "a@x.test", "b@y.test")
    house.send("bulk", "c@x.test", stream="bulk", tags=("news", "may"), sender="s@x.test")
    house.send("old", "d@z.test", created_ms=hour_ago, send_ms=hour_ago, sender="")
    return house


FILTERS = {
    ("--domain", "X.test"): "a c",
    ("--domain", "x.test", "--domain", "z.test"): "a c d",
    ("--domain", "x.test", "--stream", "bulk"): "c",
    ("--recipient", "b@Y.test"): "b",
    ("--tag", "may"): "c",
    ("--stream", "default"): "a b d",
    ("--sender", ""): "d",
    ("--older-than", "30m"): "d",
    ("--newer-than", "30m"): "a b c",
    ("--all",): "a b c d",
}


@pytest.mark.parametrize("filters", FILTERS, ids=" ".join)
def test_every_verb_and_listing_means_the_same_by_a_filter(
    run: Any, mixed: House, filters: tuple[str, ...]
) -> None:
    chosen = FILTERS[filters].split()
    assert [address[0] for address in sorted(words(run, *filters))] == chosen
    (counted,) = rows(run("queue", "hold", *filters, "--dry-run", "--json").out)
    assert counted == {"matched": len(chosen), "held": 0, "more": 0, "dry_run": True}
    assert set(words(run).values()) == {"queued"}
    held = f"held {len(chosen)} recipient{'' if len(chosen) == 1 else 's'}\n"
    assert run("queue", "hold", *filters, "--yes").out == held
    now = {address[0] for address, status in words(run).items() if status == "held"}
    assert sorted(now) == chosen
    assert run("queue", "release", "--all", "--yes").out == held.replace("held", "released")
    assert set(words(run).values()) == {"queued"}
    assert run("store", "check").out == "ok\n"


def test_messages_are_named_by_their_ends(run: Any, mixed: House) -> None:
    end = mixed.ids["plain"][-8:]
    assert sorted(words(run, end)) == ["a@x.test", "b@y.test"]
    assert run("queue", "cancel", end, "--domain", "x.test", "--yes").code == 0
    assert words(run, end) == {"a@x.test": "cancelled", "b@y.test": "queued"}
    assert run("queue", "cancel", "ffffffff", "--yes").code == 1


def test_a_change_of_more_than_a_page_takes_all(run: Any, house: House) -> None:
    for number in range(13):
        house.send(f"m{number}", *(f"r{number}-{n}@x.test" for n in range(100)))
    assert run("queue", "hold", "--domain", "x.test", "--yes").out == "held 1,300 recipients\n"
    assert rows(run("queue", "count", "--json").out) == [
        {"status": "held", "recipients": 1300, "messages": 13}
    ]


def test_a_preview_shows_the_recipients_that_would_be_changed(run: Any, house: House) -> None:
    for number in range(8):
        house.send(f"held{number}", f"held{number}@x.test")
    assert run("queue", "hold", "--all", "--yes").code == 0
    house.send("waits", "waits@x.test")
    done = run("queue", "hold", "--status", "queued", "--status", "held", "--dry-run")
    assert done.out == "would be held: 1 recipient\n"
    assert done.err == f"{house.ids['waits']}  waits@x.test  queued\n"
    done = run("queue", "cancel", "--all", "--dry-run")
    lines = done.err.splitlines()
    assert lines[0] == f"{house.ids['held0']}  held0@x.test  held (user)"
    assert (len(lines), lines[-1]) == (6, "... and 4 more")


def test_retry_reopens_failed_ones_only_when_they_are_named(run: Any, house: House) -> None:
    house.attempts("bad", "poor.test", "failed")
    house.attempts("later", "slow.test", "deferred")
    assert run("queue", "retry", "--all", "--yes").out == "retried 1 recipient\n"
    assert words(run)["bad@poor.test"] == "failed"
    done = run("queue", "retry", "--status", "failed", "--reason", "bounced", "--yes")
    assert done.out == "retried 1 recipient\n"
    assert words(run)["bad@poor.test"] in {"queued", "deferred"}


def test_release_lets_nothing_go_that_is_held_in_doubt(run: Any, house: House) -> None:
    house.attempts("doubt", "x.test", "held")
    assert run("queue", "release", "--all", "--yes").code == 1
    assert run("queue", "release", "--reason", str(Reason.IN_DOUBT), "--yes").code == 1
    assert words(run) == {"doubt@x.test": "held"}


@pytest.mark.parametrize(
    ("outcome", "status"), [("delivered", "delivered"), ("retry", "queued"), ("failed", "failed")]
)
def test_resolve_decides_what_is_held_in_doubt(
    run: Any, house: House, outcome: str, status: str
) -> None:
    house.attempts("doubt", "x.test", "held")
    id = house.ids["doubt"]
    assert run("resolve", id[-8:], outcome, "--recipient", "other@x.test").code == 1
    assert run("resolve", id[-8:], outcome).out == "resolved 1 recipient\n"
    found = words(run)["doubt@x.test"]
    assert found == status or (outcome == "retry" and found == "deferred")
    assert run("resolve", id[-8:], outcome).code == 1
    assert run("resolve", "01890a5d-ac96-774b-bcce-b302099a8057", outcome).code == 1
    assert run("resolve", id, outcome, "--recipient", "no address").code == 64


# --- the spool as a whole -----------------------------------------------------------------------


def test_a_copy_waits_for_adoption_and_says_so(run: Any, mixed: House, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    assert run("store", "backup", copy).out == f"{copy}\n"
    assert run("store", "backup", copy).code == 73  # never over another file
    assert "is a copy" in run("queue", "count", "--store", copy).err
    assert "is a copy" in run("status", mixed.ids["old"], "--store", copy).err
    (record,) = rows(run("show", mixed.ids["old"], "--json", "--store", copy).out)
    assert "'mailstrom store adopt'" in record["recipients"]["d@z.test"]["next"]
    assert "is a copy" in run("queue", "next", "--store", copy).err
    assert run("store", "purge", copy, "--yes").code == 64
    asked = run("store", "adopt", copy, stdin=b"n\n", person=True)
    assert asked.code == 1
    assert "4 recipients wait in" in asked.err
    assert run("store", "adopt", copy, stdin=b"y\n", person=True).out == f"adopted {copy}\n"
    assert run("store", "adopt", copy, "--yes").code == 1
    assert run("queue", "count", "--store", copy).err == ""
    assert rows(run("store", "adopt", "--yes", "--json").out)[0]["adopted"] is False


def test_purge_deletes_what_finished_long_ago_and_nothing_that_waits(
    run: Any, house: House
) -> None:
    house.attempts("done", "x.test", "delivered")
    house.send("waits", "a@y.test")
    done = run("store", "purge", "--older-than", "1h", "--dry-run", "--json")
    assert rows(done.out) == [{"messages": 0, "purged": 0, "dry_run": True}]
    done = run("store", "purge", "--older-than", "0s", "--dry-run")
    assert done.out.startswith("would go: 1 message finished before ")
    assert run("store", "purge", "--older-than", "0s").code == 64  # nobody to ask
    assert run("show", house.ids["done"]).code == 0
    assert run("store", "purge", "--older-than", "0s", "--yes").out == "purged 1 message\n"
    assert run("show", house.ids["done"]).code == 1
    assert run("show", house.ids["waits"]).code == 0
    assert run("store", "check").out == "ok\n"
    assert run("store", "purge", "--older-than", "forever").code == 64


def test_purge_without_an_age_keeps_to_the_spools_retention(run: Any, house: House) -> None:
    house.attempts("done", "x.test", "delivered")
    done = run("store", "purge", "--yes", "--json")
    assert rows(done.out) == [{"messages": 0, "purged": 0, "dry_run": False}]
    said = run("store", "purge", "--dry-run").out
    assert "bodies of those finished before" in said
    assert run("show", house.ids["done"], "--headers").code == 0


def test_purge_after_a_jump_of_the_clock_says_why_nothing_goes(run: Any, house: House) -> None:
    house.attempts("done", "x.test", "delivered")
    store = open_worker_store(os.environ["MAILSTROM_STORE"])
    for wall, monotonic in ((house.now - 20 * HOUR, 0), (house.now, 1_000)):
        store.keep_clock(wall_ms=wall, monotonic_ms=monotonic, boot="b", limit=1_000)
    store.close()
    done = run("store", "purge", "--older-than", "0s", "--yes")
    assert (done.code, done.out) == (75, "")
    assert "clock" in done.err


def test_send_takes_the_streams_policy_where_nothing_is_said(run: Any, house: House) -> None:
    from mailstrom.storage.base import StreamPolicy

    house.spool.engine.use_streams([StreamPolicy(name="bulk", priority=2)])
    mail = b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n"
    bulk = run("send", "--stream", "bulk", "--meta", "order=7", stdin=mail).out.strip()
    urgent = run("send", "--stream", "bulk", "--priority", "high", stdin=mail).out.strip()
    with Mailstrom(os.environ["MAILSTROM_STORE"]) as ms:
        found = dict(ms.query("select id, priority from messages where stream = 'bulk'"))
        assert found == {bulk: "low", urgent: "high"}
        assert ms.status(bulk).metadata == {"order": "7"}
