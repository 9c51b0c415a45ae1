"""Commands that tell: ``show``, ``queue next``, ``destinations``, ``report``, ``tail``.

On a real spool in which the engine's store verbs have put mail into every state; no engine runs.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from mailstrom import Mailstrom
from mailstrom.clock import wall_ms
from mailstrom.storage.base import Lesson, Refusal, Work
from mailstrom.types import Pipelining, Reason, RouteResult, iso_ms
from tests.storage.contract_reports import Reports
from tests.storage.spool import HOUR, attempt
from tests.unit.cli.house import ENDED, SECOND, House


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- show ---------------------------------------------------------------------------------------


def test_show_tells_envelope_attempts_and_what_comes_next(run: Any, house: House) -> None:
    reply = "greylisted \x1b[2J\u202e"
    house.attempts("later", "slow.test", "deferred", reply_text=reply)
    done = run("show", house.ids["later"])
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    for words in (
        f"id:          {house.ids['later']}\n",
        "status:      deferred\n",
        "stream:      default, priority normal\n",
        "later@slow.test: deferred (remote), 1 attempt\n",
        f"  next: next attempt {iso_ms(house.now + HOUR)} (in ",
        "dot, mx.slow.test [192.0.2.1]: deferred (remote) (500ms)\n",
        "       451 4.7.1 greylisted \\x1b[2J\\u202e\n",
        "session session-later, worker 1; TLSv1.3 TLS_AES_256_GCM_SHA384 (encrypted, not verified)",
        "1 message; ended: quit\n",
    ):
        assert words in done.out
    (record,) = rows(run("show", house.ids["later"], "--json").out)
    recipient = record["recipients"]["later@slow.test"]
    assert record["priority"] == "normal"
    assert recipient["status"] == "deferred"
    assert recipient["next"].startswith("next attempt ")
    (made,) = recipient["attempts_made"]
    assert (made["stage"], made["verdict"], made["reply_text"]) == ("dot", "deferred", reply)
    assert made["session"]["tls_version"] == "TLSv1.3"
    assert made["session"]["tls_verified"] is False


def test_show_tells_who_handed_a_message_in(run: Any, house: House) -> None:
    smtp = {"address": "192.0.2.7", "helo": "pc\x1b[2J", "user": "ann", "tls": "TLSv1.3 X"}
    given = [
        ("smtp", smtp, "smtp from 192.0.2.7, user ann, called itself pc\\x1b[2J, TLSv1.3 X"),
        ("smtp", {"address": "192.0.2.7"}, "smtp from 192.0.2.7, in clear"),
        ("sendmail", {"user": "www-data"}, "sendmail, user www-data"),
        ("report", None, "report"),
    ]
    for number, (origin, client, words) in enumerate(given):
        id = house.send(f"came-{number}", "a@x.test", origin=origin, client=client)
        assert f"came by:     {words}\n" in run("show", id).out
        (record,) = rows(run("show", id, "--json").out)
        assert (record["origin"], record["client"]) == (origin, client)
    assert "came by:" not in run("show", house.send("mine", "a@x.test")).out


def test_show_tells_what_was_reported_to_whom_and_in_which_report(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    reports = Reports(spool)
    house.send("told", "a@gone.test", "b@gone.test", reports=True, origin="smtp")
    house.send("untold", "c@none.test", reports=True, origin="smtp")
    refusal = Refusal(Reason.NULL_MX, "5.1.10", "accepts no mail")
    spool.route("gone.test", result=RouteResult.NULL_MX, refusal=refusal, now=now)
    reports.raising = ValueError("no \x1b[2J")
    spool.route("none.test", result=RouteResult.NULL_MX, refusal=refusal, now=now)
    ((report,),) = spool.rows("SELECT id FROM messages WHERE origin = 'report'")
    words = f"  told: failed, {iso_ms(now)}, to sender@example.com, in report {report}\n"
    out = run("show", house.ids["told"]).out
    assert out.count(words) == 2
    assert "told: " not in run("show", str(report)).out
    (record,) = rows(run("show", house.ids["told"], "--json").out)
    assert [one["reported"] for one in record["recipients"].values()] == ["failed"] * 2
    (made,) = record["reports"]
    assert (made["id"], made["to"], made["count"]) == (report, "sender@example.com", 2)

    out = run("show", house.ids["untold"]).out
    assert (
        "  told: nobody yet, a report (failed) could not be made: ValueError: no \\x1b[2J\n" in out
    )
    for day in range(1, 9):
        spool.engine.report((), 9, now + day * 24 * HOUR)
    out = run("show", house.ids["untold"]).out
    assert "  told: nobody, no report was made: ValueError: no \\x1b[2J\n" in out


def test_show_prints_the_header_or_the_source_made_safe(run: Any, house: House) -> None:
    content = b"Subject: a\x1bb\r\n\tc\r\n\r\nbody \xff\r\n"
    id = house.send("raw", "a@x.test", content=content)
    assert run("show", id, "--headers").out == "Subject: a\\x1bb\n\tc\n"
    source = run("show", id, "--source").out
    assert source == "Subject: a\\x1bb\n\tc\n\nbody \\udcff\n"
    assert run("show", id, "--raw", "--json").code == 64


def test_show_finds_a_message_by_the_end_of_its_id(run: Any, house: House) -> None:
    first = house.send("first", "a@x.test")
    house.send("second", "a@x.test")
    assert f"id:          {first}\n" in run("show", first[-6:]).out
    assert run("status", first[-8:]).code == 0
    assert run("show", first[-5:]).code == 1  # too short to mean anything
    assert run("show", "ffffff").code == 1
    assert run("show", "' or 1").code == 1


def test_an_ambiguous_end_names_the_candidates(run: Any, house: House) -> None:
    ids = []
    for front in "ab":
        id = f"{front}0000000-0000-7000-8000-000000abcdef"
        house.spool.send("a@x.test", id=id)
        ids.append(id)
    done = run("show", "abcdef")
    assert (done.code, done.out) == (64, "")
    assert sorted(done.err.splitlines()[-2:]) == [f"  {id}" for id in ids]
    assert run("queue", "list", "abcdef").code == 64
    assert run("status", ids[0][-36:]).code == 0


def test_an_unknown_message_exits_1(run: Any, house: House) -> None:
    house.send("some", "a@x.test")
    for arguments in (("show",), ("show", "--raw"), ("status",)):
        done = run(*arguments, "01890a5d-ac96-774b-bcce-b302099a8057")
        assert (done.code, done.out) == (1, "")


# --- why not yet --------------------------------------------------------------------------------


def next_of(run: Any, id: str) -> str:
    (record,) = rows(run("show", id, "--json").out)
    (recipient,) = record["recipients"].values()
    return str(recipient["next"])


def test_what_is_due_without_an_engine_says_so(run: Any, house: House) -> None:
    id = house.send("due", "a@x.test")
    house.spool.engine.retire(house.spool.worker, state="stopped", now_ms=house.now)
    assert next_of(run, id) == "due, and no engine runs on this spool; start 'mailstrom serve'"


def test_what_is_due_beside_a_silent_worker_says_since_when(run: Any, house: House) -> None:
    id = house.send("due", "a@x.test")
    silent = house.now - HOUR
    house.lives()
    house.beats(silent)
    assert f"no delivery worker gave a sign of life since {iso_ms(silent)}" in next_of(run, id)


def test_what_is_due_waits_for_a_route_a_connection_or_its_turn(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    house.lives()
    id = house.send("due", "a@x.test")
    assert "the mail hosts of x.test are to be looked up first" in next_of(run, id)
    spool.route("x.test", now=now)
    spool.engine.tell("max_connections", 5)
    assert next_of(run, id) == (
        "due; no connection to mx.x.test is open yet; it goes out as soon as a worker comes to it"
    )
    lane = spool.lane(now=now)
    assert "one connection finds out about mx.x.test before more are opened" in next_of(run, id)
    rows = spool.claim(lane, now=now)
    who = f"worker {spool.worker} (pid 4711 on machine)"
    assert next_of(run, id).startswith(f"{who} has it for a connection to mx.x.test (lane ")
    spool.open(lane, rows, now=now)
    assert next_of(run, id).startswith(
        f"on the wire, or next on it: {who} sends it to mx.x.test since "
    )


def test_what_may_not_go_yet_says_until_when(run: Any, house: House) -> None:
    later = house.now + HOUR
    id = house.send("later", "a@x.test", send_ms=later)
    assert next_of(run, id).startswith(f"not before {iso_ms(later)} (in 59m")


def test_a_suspended_site_says_since_why(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    id = house.send("stuck", "a@x.test")
    spool.route("x.test", now=now)
    spool.suspend(spool.lane(now=now), now + HOUR, since=now, now=now)
    said = next_of(run, id)
    assert said.startswith(f"its site mx.x.test is left alone until {iso_ms(now + HOUR)}")
    assert "no host would talk: connect; worker 1; connection refused" in said
    assert said.endswith(f"'mailstrom queue retry {id}' tries at once")


def test_dns_that_fails_says_so(run: Any, house: House) -> None:
    id = house.send("lost", "a@x.test")
    house.spool.route("x.test", now=house.now, result=RouteResult.TEMPORARY)
    said = next_of(run, id)
    assert said.startswith("the mail hosts of x.test cannot be looked up (no); asked again at ")
    assert said.endswith(f"'mailstrom queue retry {id}' asks at once")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("delivered", "nothing more, it was delivered at "),
        ("failed", "nothing more, it failed at "),
        ("held", "nobody knows whether it was delivered; ask its reader, "),
    ],
)
def test_what_is_settled_says_what_a_person_can_do(
    run: Any, house: House, state: str, said: str
) -> None:
    house.attempts("done", "x.test", state)
    told = next_of(run, house.ids["done"])
    assert told.startswith(said)
    assert ("mailstrom " in told) == (state != "delivered")


def test_queue_next_is_in_the_order_of_time_and_takes_filters(run: Any, house: House) -> None:
    now = house.now
    house.send("late", "a@x.test", send_ms=now + 2 * HOUR)
    house.send("soon", "a@y.test", send_ms=now + HOUR)
    house.send("due", "a@z.test")
    listed = rows(run("queue", "next", "--json").out)
    assert [row["message_id"] for row in listed] == [house.ids[n] for n in ("due", "soon", "late")]
    assert listed[1]["next_attempt_at"] == iso_ms(now + HOUR)
    assert [row["address"] for row in rows(run("queue", "next", "--limit", "1", "--json").out)] == [
        "a@z.test"
    ]
    assert [
        row["address"] for row in rows(run("queue", "next", "--domain", "x.test", "--json").out)
    ] == ["a@x.test"]
    assert "not before" in run("queue", "next").out
    assert run("queue", "next", "--domain", "q.test") == (0, "", "nothing waits to go out\n")


# --- destinations -------------------------------------------------------------------------------


def test_destinations_shows_where_something_waits_and_why(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    house.attempts("gone", "fine.test", "delivered")
    house.send("stuck", "a@dead.test", "b@dead.test")
    spool.route("dead.test", now=now)
    assert [row["site"] for row in rows(run("destinations", "list", "--json").out)] == [
        "mx.dead.test"
    ]
    spool.suspend(spool.lane(now=now), now + HOUR, since=now, now=now)
    (record,) = rows(run("destinations", "list", "--json").out)
    assert (record["queued"], record["suspended"], record["reason"]) == (2, True, "connect")
    assert record["hosts"] == [{"preference": 10, "host": "mx.dead.test", "port": None}]
    assert record["oldest_due_age_ms"] >= 60 * SECOND
    assert rows(run("destinations", "--json").out)[0]["site"] == record["site"]
    shown = run("destinations").out
    assert "connection refused" in shown
    assert "fine.test" not in shown
    assert len(rows(run("destinations", "list", "--all", "--json").out)) == 2


def test_a_destination_is_named_by_site_host_or_domain(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    house.send("some", "a@x.test")
    spool.route("x.test", site="mx.big.test", now=now)
    for name in ("mx.big.test", "MX.big.test.", "x.test"):
        done = run("destinations", "show", name)
        assert done.code == 0
        assert "site:        mx.big.test\n" in done.out
        assert "\n  x.test (mx, good until " in done.out
        assert rows(run("destinations", "show", name, "--json").out)[0]["queued"] == 1
    done = run("destinations", "show", "nowhere.test")
    assert done.code == 1
    assert "'nowhere.test'" in done.err


def test_a_host_of_several_sites_names_them(run: Any, house: House) -> None:
    sites = ["mx.a.test;mx.big.test", "mx.b.test;mx.big.test"]
    for number, site in enumerate(sites):
        house.send(f"{number}", f"a@x{number}.test")
        house.spool.route(f"x{number}.test", site=site, now=house.now)
    done = run("destinations", "show", "mx.big.test")
    assert (done.code, done.out) == (64, "")
    assert done.err.splitlines()[-2:] == [f"  {site}" for site in sites]


def test_a_relays_domain_is_good_until_no_day(run: Any, house: House) -> None:
    house.send("some", "a@x.test")
    house.spool.route("x.test", now=house.now, result=RouteResult.RELAY)
    assert "\n  x.test (relay)\n" in run("destinations", "show", "x.test").out


def test_a_destination_tells_what_its_hosts_bear(run: Any, house: House) -> None:
    spool, now = house.spool, house.now
    house.send("some", "a@x.test")
    spool.route("x.test", now=now)
    site, until_ms = spool.lane(now=now).site, wall_ms() + HOUR
    lesson = Lesson(site=site, pipelining=Pipelining.TRANSACTION, chunking=True, until_ms=until_ms)
    spool.engine.exchange(Work(lessons=[lesson]), wall_ms())
    shown = run("destinations", "show", "x.test").out
    assert f"pipelining:  transaction until {iso_ms(until_ms)}, as it went wrong\n" in shown
    assert "chunking:    proved\n" in shown
    (record,) = rows(run("destinations", "show", "x.test", "--json").out)
    assert (record["pipelining"], record["chunking"]) == ("transaction", "proved")


# --- report -------------------------------------------------------------------------------------


@pytest.fixture
def busy(house: House) -> House:
    house.attempts("good", "fine.test", "delivered")
    house.attempts("bad", "poor.test", "failed")
    house.attempts("later", "slow.test", "deferred")
    return house


def test_report_summary_sums_outcomes_and_what_waits(run: Any, busy: House) -> None:
    since = busy.now - 30 * HOUR
    told = rows(run("report", "summary", "--json", "--since", iso_ms(since)).out)
    hour = str(iso_ms(since // HOUR * HOUR))
    begin = f"since {hour[:10]} {hour[11:13]}:00Z"  # sums are of whole hours
    outcomes = {(r["when"], r["status"], r["reason"]): r["recipients"] for r in told}
    assert outcomes == {
        (begin, "deferred", "remote"): 1,
        (begin, "delivered", None): 1,
        (begin, "failed", "bounced"): 1,
        ("now", "deferred", None): 1,
    }
    means = {row["status"]: row["mean_ms"] for row in told if row["when"] == begin}
    assert means["delivered"] == ENDED
    assert means["deferred"] is None  # it has no outcome yet
    only = rows(run("report", "summary", "--domain", "FINE.test", "--json").out)
    assert [row["status"] for row in only] == ["delivered"]


@pytest.mark.usefixtures("busy")
def test_report_domains_has_rates_and_what_waits(run: Any) -> None:
    told = {row["domain"]: row for row in rows(run("report", "domains", "--json").out)}
    assert {d: (r["delivered"], r["failed"], r["rate"]) for d, r in told.items()} == {
        "fine.test": (1, 0, 1.0),
        "poor.test": (0, 1, 0.0),
        "slow.test": (0, 0, None),
    }
    assert (told["slow.test"]["waiting"], told["slow.test"]["deferred"]) == (1, 1)
    assert told["slow.test"]["oldest_ms"] >= 60 * SECOND
    assert told["fine.test"]["oldest_ms"] is None
    assert len(rows(run("report", "domains", "--limit", "2", "--json").out)) == 2


@pytest.mark.usefixtures("busy")
def test_report_latency_knows_deliveries_and_attempts(run: Any) -> None:
    told = rows(run("report", "latency", "--json").out)
    (delivery,) = (row for row in told if row["what"] == "delivery")
    assert (delivery["stream_or_host"], delivery["n"]) == ("default", 1)
    assert delivery["p50_ms"] == delivery["max_ms"] == ENDED
    attempts = {row["stream_or_host"]: row for row in told if row["what"] == "attempt"}
    assert {host: row["verdict"] for host, row in attempts.items()} == {
        "mx.fine.test": "delivered",
        "mx.poor.test": "failed",
        "mx.slow.test": "deferred",
    }
    assert {row["p99_ms"] for row in attempts.values()} == {500}
    only = rows(run("report", "latency", "--domain", "fine.test", "--json").out)
    assert [row["stream_or_host"] for row in only] == ["default", "mx.fine.test"]
    assert rows(run("report", "latency", "--stream", "other", "--json").out) == []


@pytest.mark.parametrize(
    ("many", "places"), [(100, (50, 90, 99, 100)), (2, (1, 2, 2, 2)), (10, (5, 9, 10, 10))]
)
def test_percentiles_are_the_values_at_their_places(
    run: Any, house: House, many: int, places: tuple[int, ...]
) -> None:
    spool, now = house.spool, house.now
    for seconds in range(1, many + 1):
        at = now - seconds * SECOND
        house.send(f"m{seconds}", f"m{seconds}@x.test", created_ms=at, send_ms=at)
    spool.route("x.test", now=now)
    lane = spool.lane(now=now)
    claimed = spool.claim(lane, now=now, limit=1000)
    spool.open(lane, claimed, now=now)
    for row in claimed:
        assert spool.settle(
            lane, row, "delivered", attempt=attempt("delivered", ended_ms=now), now=now
        )
    (delivery,) = (
        row for row in rows(run("report", "latency", "--json").out) if row["what"] == "delivery"
    )
    assert [delivery[name] for name in ("n", "p50_ms", "p90_ms", "p99_ms", "max_ms")] == [
        *(many, *(place * SECOND for place in places)),
    ]


@pytest.mark.usefixtures("busy")
def test_reports_come_in_every_format(run: Any) -> None:
    lines = rows(run("report", "latency", "--format", "ndjson").out)
    assert json.loads(run("report", "latency", "--format", "json").out) == lines
    table = list(csv.reader(io.StringIO(run("report", "latency", "--format", "csv").out)))
    assert table[0] == list(lines[0])
    assert [row[1] for row in table[1:]] == [line["stream_or_host"] for line in lines]
    shown = run("report", "domains").out.splitlines()
    assert shown[0].split() == [
        "delivered", "failed", "rate", "waiting", "deferred", "oldest", "domain",
    ]  # fmt: skip
    assert shown[1].split() == ["1", "0", "100.0%", "0", "0", "fine.test"]


def test_a_report_of_nothing_says_so(run: Any, house: House) -> None:
    assert house.spool.worker == 1
    for name in ("summary", "domains", "latency"):
        assert run("report", name) == (0, "", "nothing happened since then\n")
        assert run("report", name, "--format", "json").out == "[]\n"
        assert run("report", name, "--since", "soon").code == 64


def test_a_report_that_takes_too_long_says_what_to_narrow(run: Any, fake: Any) -> None:
    from mailstrom.errors import SpoolBusy

    fake.FakeClient.error = SpoolBusy("the query was stopped after 30 s")
    for name in ("summary", "domains", "latency"):
        done = run("report", name)
        assert done.code == 75
        assert "a later --since" in done.err


# --- tail ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("busy")
def test_tail_prints_what_happened_one_line_each(run: Any) -> None:
    every = rows(run("tail", "--no-follow", "-n", "1000", "--json").out)
    assert [event["id"] for event in every] == sorted(event["id"] for event in every)
    assert [e["type"] for e in every if e["type"].startswith("recipient.")] == [
        "recipient.delivered", "recipient.failed", "recipient.deferred",
    ]  # fmt: skip
    lines = run("tail", "--no-follow", "-n", "1000").out.splitlines()
    assert len(lines) == len(every)
    (failed,) = (line for line in lines if "recipient.failed" in line)
    assert "bad@poor.test" in failed
    assert "host=mx.poor.test" in failed
    assert len(run("tail", "--no-follow", "-n", "3").out.splitlines()) == 3
    assert run("tail", "--no-follow", "-n", "0").out == ""


@pytest.mark.usefixtures("busy")
def test_tail_by_type_takes_words_and_halves_of_words(run: Any) -> None:
    def types(*arguments: str) -> list[str]:
        done = run("tail", "--no-follow", "--json", *arguments)
        assert done.code == 0
        return [event["type"] for event in rows(done.out)]

    assert types("--type", "recipient.failed") == ["recipient.failed"]
    assert types("--type", "failed", "--type", "delivered") == [
        "recipient.delivered",
        "recipient.failed",
    ]
    assert set(types("--type", "message")) == {"message.accepted"}
    assert types("--type", "recipient", "-n", "1") == ["recipient.deferred"]
    done = run("tail", "--type", "recipient.faild")
    assert done.code == 64
    assert "did you mean recipient.failed" in done.err
    done = run("tail", "--type", "nope")
    assert done.code == 64
    assert "did you mean" not in done.err  # nothing is near it
    assert "there are message.accepted, " in done.err


def test_tail_follows_by_the_clients_own_follow(
    run: Any, busy: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[Any] = []

    def follow(self: Mailstrom, after: int | None, *, types: Any) -> Any:
        followed.append((after, types))
        return iter(self.events(after, types=types))

    monkeypatch.setattr(Mailstrom, "follow", follow)
    assert len(run("tail", "-n", "1").out.splitlines()) == 1
    run("tail", "-n", "0", "--type", "recipient.failed")
    run("tail", "--since", iso_ms(busy.now + HOUR))
    (newest,) = busy.stores.client().query("select max(id) from events", (), 5.0)[0]
    assert followed == [(newest - 1, None), (None, ["recipient.failed"]), (newest, None)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("store", "purge", "--dry-run", "--older-than"),
        ("report", "summary", "--since"),
        ("tail", "--no-follow", "--since"),
        ("queue", "list", "--newer-than"),
        ("queue", "cancel", "--dry-run", "--older-than"),
        ("send", "--at"),
        ("send", "--expires"),
        ("send", "--wait"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("age", ["99999999d", "36501d", "999999999d"])
def test_a_span_of_more_than_a_hundred_years_is_a_slip(
    run: Any, house: House, arguments: tuple[str, ...], age: str
) -> None:
    *before, option = arguments
    done = run(*before, f"{option}={age}", stdin=b"From: a@x.test\r\nTo: b@y.test\r\n\r\n")
    assert (done.code, done.out) == (64, "")
    assert f"'{age}' is too long: at most 36500d" in done.err
    assert run("store", "purge", "--dry-run", "--older-than", "36500d").code == 0


def test_tail_since_begins_there(run: Any, house: House) -> None:
    house.attempts("good", "fine.test", "delivered")
    assert run("tail", "--no-follow", "--since", "1d").out != ""
    assert run("tail", "--no-follow", "--since", iso_ms(house.now + HOUR)).out == ""
    assert run("tail", "--no-follow", "--since", "1d", "-n", "1").code == 64
