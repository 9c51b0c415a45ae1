"""The engine inside an application, alone on its spool: delivery, configuration, log, copies.

The hosts are the witnesses of what was delivered how often.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mailstrom import ConfigError, Mailstrom
from mailstrom.testing.script import Rule, Script
from tests.support.embedded import (
    MUTE_ONCE,
    SILENT_ONCE,
    SLOW_ONCE,
    Tables,
    heard,
    kept,
    nothing_left_since,
    state_of,
    tables,
)
from tests.support.engine import DEADLINE_S, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually

# Alone


def test_two_hundred_messages_are_delivered_once_each(network: Network, ms: Mailstrom) -> None:
    domain, hosts = network.site(None, None)
    names = [f"u{number:03}@{domain}" for number in range(200)]
    ms.start(config=tables(network))
    ids = ms.send_many(mail(name) for name in names)

    assert all(ms.wait(id, DEADLINE_S).succeeded for id in ids)

    assert ms.stop()
    seen = Counter(address for dot in dots(hosts) for address in dot.recipients)
    assert seen == dict.fromkeys(names, 1)


def test_what_was_sent_before_the_start_goes_out_by_several_workers(
    network: Network, ms: Mailstrom
) -> None:
    domain, hosts = network.site(None)
    ids = ms.send_many(mail(f"u{number}@{domain}") for number in range(40))

    ms.start(workers=3, config=tables(network))

    assert all(ms.wait(id, DEADLINE_S).succeeded for id in ids)
    assert len(ms.worker_status().workers) == 3
    assert len(dots(hosts)) == 40


def test_status_follows_its_life_and_it_can_start_again(network: Network, ms: Mailstrom) -> None:
    domain, _ = network.site(None)
    assert state_of(ms) == "stopped"
    for _ in range(2):
        ms.start(config=tables(network))
        status = ms.worker_status()
        assert status.ok
        assert status.janitor
        (row,) = ms.query("SELECT id, pid, state FROM workers WHERE kind='delivery' AND id > 0"
                          " ORDER BY id DESC LIMIT 1")  # fmt: skip
        assert (status.workers, row.pid, row.state) == ((row.id,), os.getpid(), "ready")
        assert ms.wait(ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded
        with pytest.raises(RuntimeError, match="already"):
            ms.start(config=tables(network))
        assert ms.stop()
        assert state_of(ms) == "stopped"
        assert ms.worker_status().workers == ()
    rows = ms.query("SELECT DISTINCT state FROM workers")
    assert [row.state for row in rows] == ["stopped"]


def test_stop_finishes_what_is_on_the_wire_and_gives_back_the_rest(
    network: Network, ms: Mailstrom
) -> None:
    domain, (host,) = network.site(SLOW_ONCE)
    ids = ms.send_many(mail(f"u{number}@{domain}") for number in range(10))
    ms.start(config=tables(network, sites={"connections": 1}))
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")

    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(ms.stop)
        eventually(lambda: state_of(ms) == "draining", DEADLINE_S, what="the drain")
        network.pass_time()
        assert stopped.result()

    words = Counter(str(status.status) for status in ms.statuses(ids).values())
    assert words == {"delivered": 1, "queued": 9}
    assert ms.query("SELECT count(*) AS n FROM recipients WHERE in_doubt")[0].n == 0


def test_cut_off_what_was_on_the_wire_is_in_doubt_and_nothing_else(
    network: Network, ms: Mailstrom
) -> None:
    domain, (host,) = network.site(SILENT_ONCE)
    ids = ms.send_many(mail(f"u{number}@{domain}") for number in range(10))
    ms.start(config=tables(network, sites={"connections": 1}))
    eventually(lambda: host.dots, DEADLINE_S, what="the first dot")

    assert not ms.stop(0.1)

    (stuck,) = host.dots[0].recipients
    doubtful = "SELECT address FROM recipients WHERE in_doubt"
    assert [row.address for row in ms.query(doubtful)] == [stuck]
    assert state_of(ms) == "stopped"
    ms.start(config=tables(network))
    assert all(ms.wait(id, DEADLINE_S).succeeded for id in ids)
    seen = Counter(address for dot in host.dots for address in dot.recipients)
    assert seen == {f"u{n}@{domain}": 1 + (f"u{n}@{domain}" == stuck) for n in range(10)}


def test_cut_off_what_had_no_dot_is_in_the_queue_again_and_nobody_is_charged(
    network: Network, ms: Mailstrom
) -> None:
    domain, (host,) = network.site(MUTE_ONCE)
    ids = ms.send_many(mail(f"u{number}@{domain}") for number in range(10))
    ms.start(config=tables(network, sites={"connections": 1}))
    eventually(lambda: host.transactions, DEADLINE_S, what="the first MAIL")

    assert not ms.stop(0.1)

    rows = ms.query("SELECT status, attempts, in_doubt FROM recipients")
    assert {(row.status, row.attempts, row.in_doubt) for row in rows} == {("queued", 0, 0)}
    assert state_of(ms) == "stopped"
    ms.start(config=tables(network))
    assert all(ms.wait(id, DEADLINE_S).succeeded for id in ids)
    assert len(host.dots) == 10


def test_starts_and_ends_leave_no_descriptor_thread_or_lock_behind(
    network: Network, ms: Mailstrom
) -> None:
    domain, (host,) = network.site(None)

    def once() -> None:
        ms.start(config=tables(network))
        assert ms.wait(ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded
        assert ms.stop()
        # the host's end of the connection is held by this process as well
        eventually(lambda: not host.open, DEADLINE_S, what="the connection's end")

    once()
    before = kept()
    for _ in range(5):
        once()
    eventually(lambda: nothing_left_since(before), DEADLINE_S, what="nothing left")
    for _ in range(3):
        with pytest.raises(ConfigError):
            ms.start(config={"delivery": {"mode": "relay"}})
    assert nothing_left_since(before)


# Configuration

BAD: dict[str, tuple[Tables, str]] = {
    "unknown key": ({"delivery": {"prot": 25}}, r"the configuration given: .*did you mean.* port"),
    "no unit": ({"retry": {"max_age": 5}}, r"\[retry\] max_age"),
    "relay without hosts": ({"delivery": {"mode": "relay"}}, r"\[relay\] hosts"),
    "another store": ({"store": "/elsewhere/spool.db"}, "was started for"),
}


@pytest.mark.parametrize(("given", "text"), BAD.values(), ids=BAD.keys())
def test_a_bad_configuration_is_refused_before_anything_runs(
    file_ms: Mailstrom, given: Tables, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        file_ms.start(config=given)

    assert state_of(file_ms) == "stopped"
    assert file_ms.query("SELECT id FROM workers") == []


def test_a_named_file_that_is_missing_is_refused(file_ms: Mailstrom, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        file_ms.start(config=tmp_path / "none.toml")


def test_a_file_may_name_this_store(network: Network, file_ms: Mailstrom, tmp_path: Path) -> None:
    domain, _ = network.site(None)
    file = tmp_path / "mailstrom.toml"
    file.write_text(
        f'store = "spool.db"\nhostname = "sender.test"\n[delivery]\nport = {network.port}\n'
        f'[dns]\nnameservers = ["127.0.0.1:{network.dns.port}"]\nallow_loopback = true\n'
    )
    file_ms.start(config=file)
    assert file_ms.wait(file_ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded


def test_a_relay_takes_everything(network: Network, ms: Mailstrom) -> None:
    relay = network.host()
    config = tables(network, relay={"hosts": [f"{relay.host}:{network.port}"]})
    config["delivery"]["mode"] = "relay"
    ms.start(config=config)
    assert ms.wait(ms.send(mail("a@nowhere.invalid")), DEADLINE_S).succeeded
    assert len(relay.dots) == 1


def test_streams_hold_from_the_start(network: Network, ms: Mailstrom) -> None:
    domain, _ = network.site(None)
    config = tables(network, stream={"bulk": {"priority": "low", "max_age": "2h"}})
    ms.start(config=config)

    id = ms.send(mail(f"a@{domain}"), stream="bulk")

    (row,) = ms.query("SELECT priority, expires_ms - send_ms AS age FROM messages WHERE id = ?",
                      (id,))  # fmt: skip
    assert (str(row.priority), row.age) == ("low", 2 * 3_600_000)


# Log


def test_nothing_is_printed_and_logging_gets_the_words(
    network: Network, ms: Mailstrom, capfd: pytest.CaptureFixture[str]
) -> None:
    domain, _ = network.site(None)
    nowhere, _ = network.site()
    network.zone(nowhere, None)
    with heard() as records:
        ms.start(config=tables(network))
        id = ms.send(mail(f"a@{domain}"))
        ms.wait(id, DEADLINE_S)
        ms.stop()
    (delivered,) = [r for r in records.kept if r.msg == "recipient.delivered"]
    assert delivered.levelname == "INFO"
    assert delivered.getMessage() == "recipient.delivered"
    told = delivered.__dict__
    assert (told["message_id"], told["recipient"]) == (id, f"a@{domain}")
    assert told["kind"] == "delivery"
    assert told["fields"]["host"] == f"mx1.{domain}"
    assert records.words()["worker.ready"] == 2

    ms.start(config=tables(network))
    assert not ms.wait(ms.send(mail(f"a@{nowhere}")), DEADLINE_S).succeeded  # a warning
    ms.stop()
    assert capfd.readouterr() == ("", "")


def test_a_site_that_works_again_is_logged_once(network: Network, ms: Mailstrom) -> None:
    refusing = Rule(stage="greeting", code=421, text="not now", last=1)
    domain, _ = network.site(Script(rules=(refusing,)))
    with heard() as records:
        ms.start(config=tables(network))
        ids = ms.send_many(mail(f"u{number}@{domain}") for number in range(5))
        assert all(ms.wait(id, DEADLINE_S).succeeded for id in ids)
        ms.stop()
    words = [str(r.msg) for r in records.kept if str(r.msg).startswith("site.")]
    assert words == ["site.suspended", "site.resumed"]
    (line,) = [r.__dict__["fields"] for r in records.kept if r.msg == "site.resumed"]
    assert line["host"] == f"mx1.{domain}"
    stored = [event.type for event in ms.events() if event.type.startswith("site.")]
    assert stored == words


# A log of its own


def test_a_second_user_of_structlog_is_neither_disturbed_nor_disturbing(
    network: Network, ms: Mailstrom, capfd: pytest.CaptureFixture[str]
) -> None:
    import structlog

    lines: list[Any] = []

    def keep(logger: object, method: str, fields: Any) -> Any:
        lines.append(dict(fields))
        raise structlog.DropEvent

    domain, _ = network.site(None)
    structlog.configure(processors=[keep])
    try:
        with heard() as records:
            ms.start(config=tables(network))
            structlog.get_logger().info("mine")
            assert ms.wait(ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded
            ms.stop()
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in lines] == ["mine"]
    assert records.words()["recipient.delivered"] == 1
    assert capfd.readouterr() == ("", "")


# Copies


def test_a_copy_waits_until_it_is_adopted(network: Network, tmp_path: Path) -> None:
    domain, (host,) = network.site(None)
    copy = tmp_path / "copy.db"
    with Mailstrom(tmp_path / "spool.db") as original:
        id = original.send(mail(f"a@{domain}"))
        original.backup(copy)
    with Mailstrom(copy) as ms, heard() as records:
        ms.start(config=tables(network))
        eventually(lambda: records.words()["store.copied"], DEADLINE_S, what="the warning")
        (line,) = [r.__dict__ for r in records.kept if r.msg == "store.copied"]
        assert "mailstrom store adopt" in line["fields"]["advice"]
        rounds = _janitor_rounds(ms)
        assert rounds > 3
        assert not host.dots
        assert str(ms.status(id).status) == "queued"

        assert ms.adopt()

        assert ms.wait(id, DEADLINE_S).succeeded
        ms.stop()
        assert records.words()["store.copied"] == 1


def _janitor_rounds(ms: Mailstrom) -> int:
    """Let the engine look around for a while: it is what is under test that must not act."""
    passed = threading.Event()
    turns = 0
    while not passed.wait(0.25) and turns < 5:
        turns += 1
        assert ms.worker_status().ok
    return turns
