"""Checks of the engine, the queue, the configuration and TLS, on facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailstrom.config import load
from mailstrom.doctor import configuration, engine, queue, tls
from mailstrom.doctor.engine import Engine
from mailstrom.storage.examined import Contents, Oldest
from mailstrom_workers.places import bounds
from tests.unit.doctor.facts import ENGINE, NOW, ROWS, config, levels, only, process, suspended

HOUR = 3_600_000

# --- engine ---------------------------------------------------------------------------------------


def judged(found: Engine, rows: Contents = ROWS) -> dict[str, str]:
    return levels(engine.checks(found, rows, NOW))


def test_a_running_engine_is_well() -> None:
    assert set(judged(ENGINE).values()) == {"ok"}


def test_an_engine_inside_an_application_is_well_without_a_supervisor() -> None:
    embedded = replace(ENGINE, supervisor=None, processes=(process(1),))
    assert judged(embedded)["engine.running"] == "ok"


def test_no_engine_is_as_bad_as_what_waits_for_it() -> None:
    none = replace(ENGINE, supervisor=None, janitor=False, processes=())
    assert judged(none)["engine.running"] == "warning"
    later = replace(ROWS, oldest_due_ms=NOW + HOUR)
    assert judged(none, later)["engine.running"] == "warning"
    due = replace(ROWS, oldest_due_ms=NOW - HOUR, waiting={"queued": 3})
    found = only(engine.checks(none, due, NOW), "engine.running")
    assert (found.level, found.evidence["waiting"]) == ("problem", 3)
    assert "due for 1 hour" in found.found


def test_rows_of_the_dead_do_not_make_an_engine_alive() -> None:
    dead = replace(
        ENGINE,
        supervisor=None,
        janitor=False,
        processes=(process(1, held=False), process(2, held=False)),
    )
    found = only(engine.checks(dead, ROWS, NOW), "engine.running")
    assert found.level == "warning"
    assert "2 processes of it died without a word" in found.found


def test_a_supervisor_whose_processes_die_is_told() -> None:
    none = replace(ENGINE, processes=())
    assert judged(none)["engine.running"] == "warning"


def test_fewer_workers_than_wanted() -> None:
    assert judged(replace(ENGINE, wanted=3))["engine.running"] == "warning"
    janitor = replace(ENGINE, processes=(process(3, "janitor"),))
    assert judged(janitor)["engine.running"] == "problem"


def test_one_dead_worker_beside_others_is_named_with_what_it_held() -> None:
    gone = process(2, held=False, lanes=2, recipients=40)
    found = only(
        engine.checks(replace(ENGINE, wanted=1, processes=(process(1), gone)), ROWS, NOW),
        "engine.gone",
    )
    assert found.level == "warning"
    assert "2 lanes and 40 claimed recipients" in found.found


def test_a_worker_that_stands_still_is_a_problem() -> None:
    silent = process(2, heartbeat_ms=NOW - 90_000)
    found = only(
        engine.checks(replace(ENGINE, processes=(process(1), silent)), ROWS, NOW),
        "engine.heartbeat",
    )
    assert (found.level, found.evidence["pid"]) == ("problem", 4002)
    stopped = replace(ENGINE, processes=(process(1), process(2, stopped=True)))
    assert "kill -CONT 4002" in only(engine.checks(stopped, ROWS, NOW), "engine.heartbeat").advice


def test_a_supervisor_that_was_stopped_is_told_though_mail_goes_out() -> None:
    found = only(engine.checks(replace(ENGINE, stopped=3999), ROWS, NOW), "engine.heartbeat")
    assert (found.level, found.evidence["pid"]) == ("warning", 3999)
    assert "kill -CONT 3999" in found.advice


def test_nobody_is_sent_to_start_an_engine_on_a_copy() -> None:
    none = replace(ENGINE, supervisor=None, janitor=False, processes=())
    copy = replace(ROWS, copied_ms=NOW, oldest_due_ms=NOW - HOUR, waiting={"queued": 3})
    found = only(engine.checks(none, copy, NOW), "engine.running")
    assert (found.level, "serve" in found.advice) == ("warning", False)


def test_nobody_with_the_janitors_role_is_a_warning() -> None:
    assert judged(replace(ENGINE, janitor=False))["engine.janitor"] == "warning"


def test_who_may_not_see_the_locks_judges_by_heartbeats_and_claims_nothing_of_the_janitor() -> None:
    blind = replace(
        ENGINE,
        visible=False,
        supervisor=None,
        janitor=False,
        processes=(process(1, held=False), process(2, held=False, heartbeat_ms=NOW - HOUR)),
    )
    told = judged(blind)
    assert told["engine.running"] == "ok"
    assert "engine.janitor" not in told


def test_processes_that_die_often_are_told() -> None:
    assert judged(ENGINE, replace(ROWS, lost_lately=5))["engine.restarts"] == "warning"
    often = replace(ENGINE, processes=(process(1), process(2, restarts=9)))
    assert judged(often)["engine.restarts"] == "warning"
    assert "engine.restarts" not in judged(ENGINE, replace(ROWS, lost_lately=1))


@pytest.mark.parametrize(
    ("connections", "limit", "level"),
    [(200, 464, "ok"), (200, 463, "warning"), (10_000, 14_160, "ok"), (10_000, 14_159, "warning")],
)
def test_descriptors_suffice_for_the_connections(connections: int, limit: int, level: str) -> None:
    most = max(limit, 1024)
    few = replace(
        ENGINE, connections=connections,
        processes=(process(1, most_files=limit), process(2, most_files=most)),
    )  # fmt: skip
    assert judged(few)["engine.descriptors"] == level
    assert bounds(connections, limit).places == connections  # as a worker deals them out
    none = replace(ENGINE, connections=connections, processes=(), files=limit)
    assert judged(none)["engine.descriptors"] == level


def test_an_engine_older_than_what_is_installed_is_noted() -> None:
    assert judged(replace(ENGINE, installed_ms=NOW))["engine.older"] == "note"
    assert "engine.older" not in judged(replace(ENGINE, installed_ms=NOW - 2 * HOUR))


# --- queue ----------------------------------------------------------------------------------------


def asked(rows: Contents, *, running: bool = True, relay: bool = False) -> dict[str, str]:
    return levels(queue.checks(rows, NOW, running=running, relay=relay))


def test_an_empty_queue_is_well() -> None:
    assert set(asked(ROWS).values()) == {"ok"}


@pytest.mark.parametrize(
    ("late_ms", "level"), [(1_000, "ok"), (10 * 60_000, "warning"), (2 * HOUR, "problem")]
)
def test_mail_that_is_due_and_kept_by_nothing(late_ms: int, level: str) -> None:
    rows = replace(ROWS, oldest=Oldest(due_ms=NOW - late_ms, where="mx.far.test:25"))
    assert asked(rows)["queue.moving"] == level
    assert asked(rows, running=False)["queue.moving"] == "ok"  # the engine is the finding then
    copied = replace(rows, copied_ms=NOW)
    assert asked(copied)["queue.moving"] == "ok"


def test_a_slow_site_whose_connections_are_all_in_use_is_no_stuck_queue() -> None:
    oldest = Oldest(due_ms=NOW - 2 * HOUR, where="mx.far.test:25", lanes=20, limit=20)
    found = only(
        queue.checks(replace(ROWS, oldest=oldest), NOW, running=True, relay=False), "queue.moving"
    )
    assert found.level == "warning"
    assert "all 20 connections to it in use" in found.found


@pytest.mark.parametrize(
    ("failures", "waiting", "relay", "level"),
    [
        (1, 9, False, "note"),
        (6, 9, False, "warning"),
        (6, 0, False, "note"),
        (1, 9, True, "problem"),
    ],
)
def test_a_site_that_is_left_alone(failures: int, waiting: int, relay: bool, level: str) -> None:
    site = suspended(failures=failures, waiting=waiting)
    rows = replace(ROWS, suspended_sites=1, suspended=(site,))
    found = only(queue.checks(rows, NOW, running=True, relay=relay), "queue.sites")
    assert found.level == level
    for words in (
        "mx1.far.test and 1 more host",
        "2 minutes more",
        "worker 2",
        "connection refused",
    ):
        assert words in found.found


def test_a_relay_that_is_left_alone_is_called_so_once() -> None:
    site = replace(suspended(failures=1, waiting=9), site="relay smtp.far.test:587")
    rows = replace(ROWS, suspended_sites=1, suspended=(site,))
    found = only(queue.checks(rows, NOW, running=True, relay=True), "queue.sites")
    assert found.found.startswith("the relay smtp.far.test:587 is left alone for ")


def test_many_sites_are_counted_and_a_few_told() -> None:
    rows = replace(ROWS, suspended_sites=400, suspended=tuple(suspended() for _ in range(20)))
    told = [one for one in queue.checks(rows, NOW, running=True, relay=False)
            if one.check == "queue.sites"]  # fmt: skip
    assert len(told) == queue.SHOWN + 1
    assert told[-1].found.startswith("395 more sites")


@pytest.mark.parametrize(
    ("reason", "level", "command"),
    [
        ("in_doubt", "warning", "mailstrom resolve"),
        ("poison", "warning", "mailstrom queue release"),
        ("user", "note", "mailstrom queue release"),
    ],
)
def test_what_is_held_waits_for_a_person(reason: str, level: str, command: str) -> None:
    rows = replace(ROWS, held={reason: 3})
    found = only(queue.checks(rows, NOW, running=True, relay=False), "queue.held")
    assert (found.level, found.evidence["recipients"]) == (level, 3)
    assert command in found.advice


@pytest.mark.parametrize("error", ["ValueError: no", None])
def test_reports_that_could_not_be_made_are_told_and_why(error: str | None) -> None:
    rows = replace(ROWS, unreported=2, unreported_error=error)
    found = only(queue.checks(rows, NOW, running=True, relay=False), "queue.reports")
    assert (found.level, found.evidence["recipients"]) == ("warning", 2)
    assert (error or "no reason") in found.found
    assert "message.unreported" in found.advice
    assert "queue.reports" not in levels(queue.checks(ROWS, NOW, running=True, relay=False))


@pytest.mark.parametrize(("amount", "level"), [(1, "note"), (5, "warning")])
def test_domains_whose_dns_fails(amount: int, level: str) -> None:
    rows = replace(ROWS, failing_domains=amount, failing_domain=("far.test", "SERVFAIL"))
    found = only(queue.checks(rows, NOW, running=True, relay=False), "queue.domains")
    assert found.level == level
    assert "far.test among them: SERVFAIL" in found.found


# --- configuration --------------------------------------------------------------------------------


def test_every_fault_of_the_configuration_is_a_problem() -> None:
    told = [*configuration.checks(None, ("a", "b"))]
    assert [(one.level, one.found) for one in told] == [("problem", "a"), ("problem", "b")]


def test_no_configuration_is_worth_a_word() -> None:
    assert levels(configuration.checks(config(), ())) == {"configuration.file": "note"}


@pytest.mark.parametrize(("mode", "level"), [(0o600, "ok"), (0o640, "ok"), (0o644, "warning")])
def test_a_password_file_is_kept_from_others(mode: int, level: str, tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "m.toml"
    secret.write_text("hunter2\n")
    secret.chmod(mode)
    file.write_text(
        'store = "s.db"\n[delivery]\nmode = "relay"\n'
        '[relay]\nhosts = ["r.test"]\ntls = "required"\nusername = "u"\npassword_file = "secret"\n'
    )
    found = only(configuration.checks(load(str(file)), ()), "configuration.secret")
    assert found.level == level
    if level == "warning":
        assert "chmod 600" in found.advice


def test_a_file_of_users_that_holds_nobody(tmp_path: Path) -> None:
    trustme.CA().issue_cert("mx.example.org").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "both.pem"
    )
    users, file = tmp_path / "users", tmp_path / "m.toml"
    users.write_text("# nobody\n")
    for secret in (users, tmp_path / "both.pem"):
        secret.chmod(0o600)
    file.write_text(
        'store = "s.db"\n[listener]\nbind = ["127.0.0.1:587"]\n'
        'tls_cert = "both.pem"\nauth_file = "users"\n'
    )
    found = only(configuration.checks(load(str(file)), ()), "configuration.listener")
    assert found.level == "warning"
    assert f"{users} holds no user" in found.found
    assert "mailstrom user add" in found.advice


@pytest.mark.parametrize(("mode", "told"), [(0o644, False), (0o666, True)])
def test_a_configuration_that_anybody_may_change(mode: int, told: bool, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('store = "s.db"\n')
    file.chmod(mode)
    assert ("configuration.modes" in levels(configuration.checks(load(str(file)), ()))) is told


# --- TLS ------------------------------------------------------------------------------------------

LIBRARY = tls.Library(name="OpenSSL 3.0", version=(3, 0), newest=True, authorities=100)


def test_a_library_of_today_is_well() -> None:
    assert set(levels(tls.checks(LIBRARY, config())).values()) == {"ok"}


@pytest.mark.parametrize(
    ("changes", "tables", "check", "level"),
    [
        ({"version": (1, 1)}, {}, "tls.library", "warning"),
        ({"newest": False}, {"tls": {"min_version": "1.3"}}, "tls.library", "problem"),
        ({"newest": False}, {}, "tls.library", "ok"),
        ({"authorities": 0}, {}, "tls.authorities", "note"),
        ({"authorities": 0}, {"tls": {"verify": True}}, "tls.authorities", "problem"),
        ({"error": "no such file"}, {}, "tls.authorities", "problem"),
    ],
)
def test_what_tls_lacks(
    changes: dict[str, Any], tables: dict[str, Any], check: str, level: str
) -> None:
    assert levels(tls.checks(replace(LIBRARY, **changes), config(**tables)))[check] == level


def test_a_file_of_no_certificates_is_told(tmp_path: Path) -> None:
    from msgspec.structs import replace as changed

    file = tmp_path / "ca.pem"
    file.write_text("no certificate\n")
    found = config()
    found = changed(found, tls=changed(found.tls, ca_file=str(file)))
    assert tls.look(found).error
    assert tls.look(config()).error is None
