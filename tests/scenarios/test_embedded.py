"""The engine inside an application: alone, next to a supervisor, killed, forked, failed.

The hosts are the witnesses of what was delivered how often; rows and log say what was known of it.
Processes are ended by the ids that they, or the engine's own rows, name.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mailstrom import ConfigError, Mailstrom
from mailstrom.control import SUPERVISOR_LOCK
from mailstrom.errors import NotASpool, SpoolBusy
from mailstrom.lockfile import LockFile, is_free
from mailstrom.testing.script import Act, Rule, Script
from mailstrom.types import EngineState
from mailstrom_workers.embedded import EmbeddedEngine
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, STAGES, alive, environment, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually

APPLICATION = Path(__file__).with_name("embedded_app.py")
SILENT_ONCE = Script(rules=(Rule(stage="dot", act=Act.SILENCE, last=1),))
SLOW_ONCE = Script(rules=(Rule(stage="dot", delay=1.0, last=1),))

Tables = dict[str, Any]


def tables(network: Network, **more: dict[str, object]) -> Tables:
    """A configuration for this network, as an application writes it."""
    found: Tables = {
        "hostname": "sender.test",
        "delivery": {"port": network.port},
        "dns": {"nameservers": [f"127.0.0.1:{network.dns.port}"], "allow_loopback": True},
        "retry": {"schedule": ["1s"], "jitter": 0.0},
        "sites": {"idle": "200ms", "suspend": ["1s"]},
        "timeouts": dict.fromkeys(STAGES, "20s"),
    }
    for name, table in more.items():
        found[name] = {**found.get(name, {}), **table}
    return found


@pytest.fixture(params=["memory", "file"])
def ms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mailstrom]:
    """A client on a spool of each kind; sound at the end."""
    with Mailstrom("memory:" if request.param == "memory" else tmp_path / "spool.db") as ms:
        yield ms
        ms.stop()
        assert ms.check() == []


@pytest.fixture
def file_ms(tmp_path: Path) -> Iterator[Mailstrom]:
    with Mailstrom(tmp_path / "spool.db") as ms:
        yield ms
        ms.stop()
        assert ms.check() == []


class Records(logging.Handler):
    """What an application's logging was given."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def words(self) -> Counter[str]:
        return Counter(str(record.msg) for record in self.kept)


@contextmanager
def heard(name: str = "mailstrom") -> Iterator[Records]:
    """The records of a logger, for as long as the block lasts."""
    logger, records, level = logging.getLogger(name), Records(), logging.getLogger(name).level
    logger.addHandler(records)
    logger.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)


@contextmanager
def application(store: Path, config: Tables, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process with the engine inside, once it says ready; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(APPLICATION), str(store), json.dumps(config), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=store.parent,
        env=environment(),
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline() == f"ready {process.pid}\n"
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE_S)


def state_of(ms: Mailstrom) -> str:
    return str(ms.worker_status().state)


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

    assert ms.stop()

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


def test_starts_and_ends_leave_no_descriptor_thread_or_lock_behind(
    network: Network, ms: Mailstrom
) -> None:
    domain, _ = network.site(None)

    def once() -> None:
        ms.start(config=tables(network))
        assert ms.wait(ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded
        assert ms.stop()

    def left() -> tuple[int, set[str]]:
        return len(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()}

    once()
    before = left()
    for _ in range(5):
        once()
    eventually(lambda: left() == before, DEADLINE_S, what="nothing left")
    for _ in range(3):
        with pytest.raises(ConfigError):
            ms.start(config={"delivery": {"mode": "relay"}})
    assert left() == before


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


# Failure


def fail_by_replacing(ms: Mailstrom, store: Path) -> None:
    """Take the spool's files away under the engine; it must not go on writing to them."""
    os.rename(store, store.with_suffix(".moved"))
    eventually(lambda: state_of(ms) == "failed", DEADLINE_S, what="the failure")


def test_a_failure_ends_the_whole_engine_and_not_the_application(
    network: Network, tmp_path: Path
) -> None:
    store = tmp_path / "spool.db"
    domain, (host,) = network.site(SILENT_ONCE)
    ms = Mailstrom(store)
    try:
        ms.start(config=tables(network))
        ms.send(mail(f"a@{domain}"))
        eventually(lambda: host.dots, DEADLINE_S, what="the dot")
        locks = list(Path(f"{store}-run").glob("*-*-*.lock"))
        assert len(locks) == 2
        with heard() as records:
            fail_by_replacing(ms, store)
        status = ms.worker_status()
        assert status.state is EngineState.FAILED
        assert "SpoolReplaced" in str(status.error)
        assert not ms.stop(20)
        assert records.words()["engine.failed"] >= 1
        assert all(is_free(lock) for lock in locks)
        assert all(lock.exists() for lock in locks)  # for the janitor that takes back what it held
        eventually(lambda: not host.open, DEADLINE_S, what="the connection's end")
    finally:
        ms.close()

    os.rename(store.with_suffix(".moved"), store)
    with Mailstrom(store) as ms:
        ms.start(config=tables(network))
        (id,) = [row.id for row in ms.query("SELECT id FROM messages")]
        (recipient,) = ms.wait(id, DEADLINE_S).recipients.values()
        assert (str(recipient.status), recipient.in_doubt) == ("delivered", True)
        ms.stop()
        assert ms.check() == []


def test_its_lock_file_deleted_it_fails_rather_than_work_unseen(
    network: Network, file_ms: Mailstrom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom_workers import presence

    monkeypatch.setattr(presence, "ROW_BEAT_S", 0.05)
    file_ms.start(config=tables(network))
    for lock in Path(f"{tmp_path / 'spool.db'}-run").glob("delivery-*.lock"):
        lock.unlink()
    eventually(lambda: state_of(file_ms) == "failed", DEADLINE_S, what="the failure")
    assert "lock file" in str(file_ms.worker_status().error)
    domain, _ = network.site(None)
    file_ms.start(config=tables(network))
    assert file_ms.wait(file_ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded


def test_a_spool_that_cannot_be_used_is_an_error_of_start(tmp_path: Path) -> None:
    store = tmp_path / "spool.db"
    store.write_bytes(b"not a database at all" * 100)
    engine = EmbeddedEngine(str(store), config={"hostname": "sender.test"})

    with pytest.raises(NotASpool):
        engine.start()

    assert engine.status().state is EngineState.STOPPED
    assert engine.stop(0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["spool.db"]


def test_what_fails_after_the_thread_began_is_an_error_of_start_too(
    network: Network, file_ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom_workers import presence

    def refuse(store: str, **options: object) -> NoReturn:
        raise SpoolBusy("held by another writer")

    with monkeypatch.context() as patch:
        patch.setattr(presence, "open_worker_store", refuse)
        with pytest.raises(SpoolBusy, match="held by another writer"):
            file_ms.start(config=tables(network))
    assert not file_ms.worker_status().ok
    domain, _ = network.site(None)
    file_ms.start(config=tables(network))
    assert file_ms.wait(file_ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded


# The janitor's role


def test_next_to_a_supervisor_it_stands_by_and_takes_over_when_that_is_gone(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1).start()
    engine.ms.start(config=tables(network))
    assert not engine.ms.worker_status().janitor
    domain, _ = network.site(None)
    assert engine.final(engine.send(f"a@{domain}")).succeeded

    assert engine.stop() == 0

    eventually(lambda: engine.ms.worker_status().janitor, DEADLINE_S, what="the role")
    assert engine.final(engine.send(f"b@{domain}")).succeeded
    assert engine.ms.stop()


def test_a_killed_janitor_of_a_supervisor_comes_back_by_itself(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1).start()
    engine.ms.start(config=tables(network))
    (pid,) = engine.live("janitor")[:1]

    os.kill(pid, signal.SIGKILL)

    engine.wait_log("worker.ready", kind="janitor", count=2)
    engine.wait_log("claim.lapsed", lost_pid=pid)
    assert not engine.ms.worker_status().janitor
    assert engine.ms.stop()


def test_the_role_is_taken_when_a_living_supervisor_leaves_it_free_for_long(
    network: Network, file_ms: Mailstrom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom_workers import janitor

    monkeypatch.setattr(janitor, "PATIENCE_MS", 500)
    file_ms.stats()
    supervisor = LockFile(Path(f"{tmp_path / 'spool.db'}-run") / SUPERVISOR_LOCK)
    assert supervisor.acquire()
    try:
        file_ms.start(config=tables(network))
        assert not file_ms.worker_status().janitor
        eventually(lambda: file_ms.worker_status().janitor, DEADLINE_S, what="the role")
    finally:
        supervisor.release()


# Next to a supervisor


def test_both_deliver_and_the_connection_limit_holds_over_both(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1, settings={"sites": {"connections": 4}}).start()
    domain, (host,) = network.site(Script(rules=(Rule(stage="dot", delay=0.02),)))
    engine.ms.start(config=tables(network, sites={"connections": 4}))
    names = [f"u{number:03}@{domain}" for number in range(200)]

    ids = engine.ms.send_many(mail(name) for name in names)

    assert all(engine.final(id).succeeded for id in ids)
    assert Counter(a for dot in host.dots for a in dot.recipients) == dict.fromkeys(names, 1)
    (mine,) = engine.ms.worker_status().workers
    shares = engine.rows("SELECT worker, count(*) AS n FROM attempts GROUP BY worker")
    assert {row.worker == mine for row in shares} == {True, False}, shares
    assert host.most_open <= 4
    assert engine.ms.stop()


def test_the_supervisors_configuration_is_the_one_that_clients_are_told(
    network: Network, make_engine: MakeEngine
) -> None:
    streams = {"stream.bulk": {"priority": "low"}}
    engine = make_engine(workers=1, settings={"retry": {"max_age": "3h"}, **streams}).start()
    engine.ms.start(config=tables(network, stream={"other": {"priority": "high"}}))

    id = engine.ms.send(mail("a@later.test"), stream="bulk", send_at=_in_a_day())

    sql = "SELECT priority, expires_ms - send_ms AS age FROM messages WHERE id = ?"
    ((priority, age),) = engine.rows(sql, id)
    assert (str(priority), age) == ("low", 3 * 3_600_000)
    assert engine.ms.cancel(id) == 1
    assert engine.ms.stop()


def _in_a_day() -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(days=1)


# Killed


def test_an_application_killed_next_to_a_supervisor_leaves_one_recipient_in_doubt(
    network: Network, make_engine: MakeEngine
) -> None:
    engine = make_engine(workers=1, settings={"sites": {"connections": 1}})
    domain, (host,) = network.site(SILENT_ONCE)
    names = [f"u{number}@{domain}" for number in range(10)]
    config = tables(network, sites={"connections": 1})
    with application(engine.store, config) as process:
        ids = engine.ms.send_many(mail(name) for name in names)
        eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
        engine.start()  # behind it, so that it is the application that has the only lane

        process.kill()

        assert all(engine.final(id).succeeded for id in ids)
        (lapsed,) = engine.wait_log("claim.lapsed", lost_pid=process.pid, in_doubt=1)
    assert lapsed["recipients"] >= 1
    (stuck,) = host.dots[0].recipients
    doubtful = "SELECT address FROM recipients WHERE in_doubt"
    assert [row.address for row in engine.rows(doubtful)] == [stuck]
    seen = Counter(address for dot in host.dots for address in dot.recipients)
    assert seen == {name: 1 + (name == stuck) for name in names}


def test_an_application_killed_and_started_again_by_itself(
    network: Network, tmp_path: Path
) -> None:
    store = tmp_path / "spool.db"
    domain, (host,) = network.site(SILENT_ONCE)
    names = [f"u{number}@{domain}" for number in range(10)]
    config = tables(network, sites={"connections": 1})
    with Mailstrom(store) as ms:
        ids = ms.send_many(mail(name) for name in names)
        with application(store, config):
            eventually(lambda: host.dots, DEADLINE_S, what="the first dot")
        with application(store, config) as process:
            assert all(ms.wait(id, DEADLINE_S).succeeded for id in ids)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(DEADLINE_S) == 0
        (stuck,) = host.dots[0].recipients
        rows = ms.query("SELECT address FROM recipients WHERE in_doubt")
        assert [row.address for row in rows] == [stuck]
        seen = Counter(address for dot in host.dots for address in dot.recipients)
        assert seen == {name: 1 + (name == stuck) for name in names}
        assert ms.check() == []


def test_a_script_that_ends_without_a_word_finishes_what_is_on_the_wire(
    network: Network, tmp_path: Path
) -> None:
    store = tmp_path / "spool.db"
    domain, (host,) = network.site(SLOW_ONCE)
    with Mailstrom(store) as ms:
        with application(store, tables(network), "--send", f"a@{domain}") as process:
            eventually(lambda: host.dots, DEADLINE_S, what="the dot")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(DEADLINE_S) == 0
        with application(store, tables(network), "--leave") as process:
            assert process.wait(DEADLINE_S) == 0
        (row,) = ms.query("SELECT status, attempts, in_doubt FROM recipients")
        assert tuple(map(str, row)) == ("delivered", "1", "0")
        assert {row.state for row in ms.query("SELECT state FROM workers")} == {"stopped"}


# Forks


def test_a_forked_child_has_no_engine_and_keeps_nothing_of_its_parents(
    network: Network, tmp_path: Path
) -> None:
    store = tmp_path / "spool.db"
    domain, (host,) = network.site(SILENT_ONCE)
    child = 0
    try:
        with (
            Mailstrom(store) as ms,
            application(store, tables(network), "--fork", "--send", f"a@{domain}") as parent,
        ):
            assert parent.stdout is not None
            word, pid, state = parent.stdout.readline().split()
            child = int(pid)
            assert (word, state) == ("child", "stopped")
            eventually(lambda: host.dots, DEADLINE_S, what="the dot")
            (locked,) = Path(f"{store}-run").glob("delivery-*.lock")
            assert not is_free(locked)

            parent.kill()
            parent.wait(DEADLINE_S)

            assert alive(child)
            assert is_free(locked)
            eventually(lambda: not host.open, DEADLINE_S, what="the connection's end")
            ms.start(config=tables(network))
            (id,) = [row.id for row in ms.query("SELECT id FROM messages")]
            assert ms.wait(id, DEADLINE_S).succeeded
            ms.stop()
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_fork_beside_a_busy_engine_harms_neither(network: Network, file_ms: Mailstrom) -> None:
    domain, (host,) = network.site(None)
    file_ms.start(config=tables(network))
    ids = file_ms.send_many(mail(f"u{number:03}@{domain}") for number in range(300))
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if state_of(file_ms) == "stopped" else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert all(file_ms.wait(id, DEADLINE_S).succeeded for id in ids)
    assert len(host.dots) == 300
    assert file_ms.worker_status().ok


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
