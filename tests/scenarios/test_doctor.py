"""``mailstrom doctor`` on real installations, well and sick: each in its own way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from mailstrom import Mailstrom
from mailstrom.clock import boot_id, monotonic_ms, wall_ms
from mailstrom.testing.script import Rule, Script
from tests.docs.blocks import ALL
from tests.scenarios.conftest import MakeEngine
from tests.support.children import beside
from tests.support.engine import Engine, environment, mail
from tests.support.network import Network
from tests.support.sockets import eventually, free_port

DEADLINE_S = 90
"""For a command that takes 15 seconds at most where the machine is its own."""


class Told(NamedTuple):
    """What doctor said.

    Args:
        code: its exit code.
        levels: check -> its worst level.
        found: check -> findings of that level.
    """

    code: int
    record: dict[str, Any]
    levels: dict[str, str]
    found: dict[str, list[dict[str, Any]]]

    @property
    def worse(self) -> dict[str, str]:
        """What is a warning or a problem."""
        return {c: level for c, level in self.levels.items() if level in ("warning", "problem")}


def doctor(engine: Engine, *options: str, network: bool = False) -> Told:
    """Ask about an engine's installation."""
    argv = [sys.executable, "-P", "-m", "mailstrom", "doctor", "--json"]
    argv += ["--config", str(engine.config), *([] if network else ["--no-network"]), *options]
    done = subprocess.run(
        argv, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, cwd="/"
    )
    assert done.stderr == ""
    record = json.loads(done.stdout)
    levels: dict[str, str] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for one in record["findings"]:  # the worst come first
        if levels.setdefault(one["check"], one["level"]) == one["level"]:
            found.setdefault(one["check"], []).append(one)
    return Told(done.returncode, record, levels, found)


def names(network: Network, ptr: str = "sender.test.") -> None:
    """The records of a sender whose name and address agree."""
    network.zone("sender.test", {"A": ["127.0.0.1"]})
    network.zone("1.0.0.127.in-addr.arpa", {"PTR": [ptr]})


def test_a_healthy_installation_is_well_and_left_alone(
    network: Network, make_engine: MakeEngine
) -> None:
    names(network)
    domain, _ = network.site(Script())
    engine = make_engine().start()
    assert engine.final(engine.send(f"a@{domain}")).succeeded
    told = doctor(engine, "--probe", domain, network=True)
    assert told.worse == {}
    assert told.code == 0
    areas = {check.partition(".")[0] for check in told.levels}
    assert areas == {
        "configuration", "spool", "log", "clock", "sharing", "engine", "queue", "dns", "hostname",
        "outgoing", "tls",
    }  # fmt: skip
    assert told.found["engine.running"][0]["evidence"]["delivery"] == 2
    assert engine.final(engine.send(f"b@{domain}")).succeeded


def test_a_stopped_engine_is_told_by_what_waits(network: Network, make_engine: MakeEngine) -> None:
    engine = make_engine().start()
    assert engine.stop() == 0
    idle = doctor(engine)
    assert (idle.code, idle.levels["engine.running"]) == (1, "warning")
    engine.send("a@nowhere.test")
    due = doctor(engine)
    assert (due.code, due.levels["engine.running"]) == (1, "problem")
    assert "mailstrom serve" in due.found["engine.running"][0]["advice"]


def test_an_engine_that_was_killed_leaves_rows_that_deceive_nobody(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine().start()
    engine.kill_all()
    told = doctor(engine)
    assert told.levels["engine.running"] in ("warning", "problem")
    assert told.found["engine.running"][0]["evidence"]["left_behind"] == 3


def test_a_worker_that_stands_still_is_found(make_engine: MakeEngine) -> None:
    engine = make_engine().start()
    pid = engine.live()[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        told = doctor(engine)
    finally:
        os.kill(pid, signal.SIGCONT)
    [found] = told.found["engine.heartbeat"]
    assert (found["level"], found["evidence"]["pid"]) == ("problem", pid)
    assert f"kill -CONT {pid}" in found["advice"]


def test_a_supervisor_that_stands_still_is_found(make_engine: MakeEngine) -> None:
    engine = make_engine().start()
    assert engine.process is not None
    engine.signal(signal.SIGSTOP)
    try:
        told = doctor(engine)
    finally:
        engine.signal(signal.SIGCONT)
    [found] = told.found["engine.heartbeat"]
    assert (found["level"], told.code) == ("warning", 1)
    assert f"kill -CONT {engine.process.pid}" in found["advice"]


def test_a_killed_worker_under_a_supervisor_that_waits_to_start_it_again(
    make_engine: MakeEngine,
) -> None:
    settings = {"supervisor": {"restart_backoff": ["1h"]}}
    engine = make_engine(workers=1, settings=settings).start()
    for lost in (1, 2):  # the first restart is at once
        [pid] = eventually(engine.live, DEADLINE_S, what="a delivery worker")
        os.kill(pid, signal.SIGKILL)
        engine.wait_log("worker.lost", count=lost)
        ready = "SELECT 1 FROM workers WHERE kind = 'delivery' AND state = 'ready'"
        if lost == 1:
            engine.until(f"{ready} AND pid <> ?", pid)
    told = doctor(engine)
    assert (told.code, told.levels["engine.running"]) == (1, "problem")
    assert "0 of 1 delivery workers run" in told.found["engine.running"][0]["found"]


_READER = """
import sqlite3, sys
connection = sqlite3.connect("file:" + sys.argv[1] + "?mode=ro", uri=True)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM message").fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_reader_is_named_before_and_after_the_log_is_long(make_engine: MakeEngine) -> None:
    engine = make_engine(settings={"spool": {"wal_limit": "16MiB"}}).start()
    with beside(_READER, str(engine.store)) as other:
        pid = other.pid
        early = doctor(engine)
        [reader] = early.found["log.reader"]
        assert (reader["level"], reader["evidence"]["pid"]) == ("note", pid)
        assert early.levels["log.length"] == "ok"
        body = "word " * 200_000
        while os.stat(f"{engine.store}-wal").st_size < 5 << 20:
            engine.send("later@nowhere.test", text=body, send_at=timedelta(days=90))
        late = eventually(
            lambda: (found := doctor(engine)).levels["log.length"] != "ok" and found,
            DEADLINE_S,
            what="the log is over its alarm",
        )
        assert late.levels["log.length"] == "warning"
        assert f"process {pid} " in late.found["log.length"][0]["found"]


_WRITER = _READER.replace('"?mode=ro"', '""')
_TWICE = """
import sqlite3, sys
from mailstrom import Mailstrom
ms = Mailstrom(sys.argv[1])
ms.stats()
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM message").fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


def test_other_copies_of_sqlite_are_told(tmp_path: Path) -> None:
    file, store = tmp_path / "m.toml", tmp_path / "s.db"
    file.write_text(f'store = "{store}"\n')
    with Mailstrom(store) as ms:
        ms.stats()
        engine = type("Installation", (), {"config": file})()
        with beside(_WRITER, str(store)) as other:
            pid = other.pid
            found = doctor(engine).found["sharing.writer"][0]
            assert (found["level"], found["evidence"]["pid"]) == ("warning", pid)
        with beside(_TWICE, str(store)) as other:
            pid = other.pid
            found = doctor(engine).found["sharing.copies"][0]
            assert (found["level"], found["evidence"]["pid"]) == ("problem", pid)


def test_a_site_that_nobody_reaches(network: Network, make_engine: MakeEngine) -> None:
    names(network)
    domain = network.new_domain()
    network.route(domain, [network.nobody()])
    engine = make_engine(settings={"sites": {"suspend": ["1h"]}}).start()
    engine.send(f"a@{domain}")
    engine.until("SELECT 1 FROM destinations WHERE suspended_until_ms IS NOT NULL")
    told = doctor(engine, "--probe", domain, network=True)
    [site] = told.found["queue.sites"]
    assert site["level"] == "note"
    assert f"mx1.{domain}" in site["found"]
    assert "connection refused" in site["found"]
    [port] = told.found["outgoing.port"]
    assert (port["level"], told.code) == ("problem", 1)
    assert "seems to be closed" in port["found"]


def test_a_relay_that_refuses_is_a_problem_wherever_one_looks(
    network: Network, make_engine: MakeEngine
) -> None:
    busy = network.host(Script(rules=(Rule(stage="greeting", code=421, text="closed \x1b[2J"),)))
    relay = {"hosts": [f"{busy.host}:{network.port}"], "tls": "none"}
    engine = make_engine(
        settings={"delivery": {"mode": "relay"}, "relay": relay, "sites": {"suspend": ["1h"]}}
    ).start()
    engine.send("a@anywhere.test")
    engine.until("SELECT 1 FROM destinations WHERE suspended_until_ms IS NOT NULL")
    told = doctor(engine, network=True)
    assert told.levels["queue.sites"] == "problem"
    [outgoing] = told.found["outgoing.relay"]
    assert outgoing["level"] == "problem"
    assert outgoing["evidence"]["stage"] == "greeting"


def test_a_wrong_ptr_record(network: Network, make_engine: MakeEngine) -> None:
    names(network, "somebody.else.test.")
    domain, _ = network.site(Script())
    engine = make_engine()
    try:
        [found] = doctor(engine, "--probe", domain, network=True).found["hostname.reverse"]
    finally:
        names(network)
    assert found["level"] == "warning"
    assert found["evidence"]["names"] == "somebody.else.test"


def test_a_password_that_others_may_read(make_engine: MakeEngine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    secret.chmod(0o644)
    relay = {"hosts": ["127.0.0.1:1"], "username": "joe", "password_file": str(secret)}
    engine = make_engine(settings={"delivery": {"mode": "relay"}, "relay": relay})
    told = doctor(engine)
    [found] = told.found["configuration.secret"]
    assert (found["level"], told.code) == ("warning", 1)
    assert "chmod 600" in found["advice"]
    assert "open sesame" not in json.dumps(told.record)


def test_a_clock_that_was_moved_since_an_engine_looked(make_engine: MakeEngine) -> None:
    engine = make_engine().start()
    engine.until("SELECT 1 FROM workers WHERE state = 'ready'")
    assert engine.stop() == 0
    at = wall_ms() - 9_000_000  # 2.5 hours: said in whole ones
    sql = (
        "INSERT INTO clock (one, wall_ms, monotonic_ms, boot, last) VALUES (1, ?1, ?2, ?3, 0)"
        " ON CONFLICT (one) DO UPDATE SET wall_ms = ?1, monotonic_ms = ?2, boot = ?3"
    )
    engine.tamper(sql, at, monotonic_ms(), boot_id())
    [found] = doctor(engine).found["clock.jump"]
    assert found["level"] == "warning"
    assert "2 hours ahead" in found["found"]
    engine.tamper("DELETE FROM clock")


def test_mail_held_in_doubt_and_broken_invariants(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.send("a@nowhere.test")
    sql = "UPDATE recipient SET state = 'held', reason = 'in_doubt', due_ms = NULL, in_doubt = 1"
    assert engine.tamper(sql) == 1
    told = doctor(engine)
    [held] = told.found["queue.held"]
    assert (held["level"], held["evidence"]["recipients"]) == ("warning", 1)
    assert engine.tamper("UPDATE tally SET recipients = recipients + 3 WHERE state = 'held'") == 1
    broken = doctor(engine)
    assert (broken.levels["spool.sound"], broken.code) == ("problem", 1)
    assert engine.tamper("UPDATE tally SET recipients = recipients - 3 WHERE state = 'held'") == 1
    assert engine.tamper("UPDATE recipient SET reason = 'user', in_doubt = 0") == 1


def test_a_copy_is_told(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    engine.send("a@nowhere.test")
    engine.ms.backup(tmp_path / "copy.db")
    told = doctor(engine, "--store", str(tmp_path / "copy.db"))
    [found] = told.found["spool.copy"]
    assert (found["level"], found["evidence"]["waiting"]) == ("warning", 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], timeout=30
    )
    if mounted.returncode:
        pytest.skip("this root may not mount")
    try:
        store, file = small / "s.db", tmp_path / "m.toml"
        file.write_text(f'store = "{store}"\n')
        Mailstrom(store).close()
        engine = type("Installation", (), {"config": file})()
        assert doctor(engine).levels["spool.room"] == "warning"
        (small / "filler").write_bytes(b"x" * (6 << 20))
        told = doctor(engine)
        assert (told.levels["spool.room"], told.code) == ("problem", 1)
    finally:
        subprocess.run(["umount", str(small)], timeout=30, check=True)


# --- the page -------------------------------------------------------------------------------------

BY_MACHINE = {"clock.sync", "spool.room", "tls.library", "tls.authorities", "engine.descriptors"}
"""What another machine than the page's may say otherwise."""


def told_in_order(text: str) -> list[tuple[str, str, str]]:
    """(level, check, words) as they are printed, in order; what differs by place and time left out.

    Numbers, lengths of time, sizes, hosts, addresses and paths stand for any others.
    """
    told: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if head := re.match(r"(PROBLEM|WARNING|NOTE|OK) +([a-z]+\.[a-z]+) *(.*)", line):
            told.append((head[1].lower(), head[2], head[3]))
        elif told and line.startswith("  "):
            level, check, words = told.pop()
            told.append((level, check, f"{words} {line.strip()}".strip()))
    return [(*one, alike(words)) for *one, words in told if one[1] not in BY_MACHINE]  # type: ignore[misc]


def alike(words: str) -> str:
    """Words without what differs by place and time."""
    for pattern, kind in (
        (r" by SQLite [\d.]+, which can corrupt a log that several processes write", ""),
        (r"(?<![\w/])/[^\s,;()']+", "PATH"),
        (r"\b[\w-]+(\.[\w-]+)+\b", "NAME"),
        (r"\bprocess(es)?\b", "process"),
        (r"\b\d[\d,.]*", "N"),
        (r"\bN (ms|seconds?|minutes?|hours?|days?)\b", "SPAN"),
        (r"\bN (bytes|[KMGT]iB)\b", "SIZE"),
        (r"\bpid N on [\w-]+", "PID"),
        (r"^Site NAME:N", "Site NAME"),  # port 25 is not said
    ):
        words = re.sub(pattern, kind, words)
    return words


def shown(number: int) -> list[tuple[str, str, str]]:
    """What the page's first or second sample tells, in order."""
    texts = [b.text for b in ALL if b.page == "docs/howto/doctor.md" and b.kind == "text"]
    return told_in_order(texts[number])


def printed(engine: Engine, *options: str) -> list[tuple[str, str, str]]:
    """What people read of an engine's installation, in order."""
    argv = [sys.executable, "-P", "-m", "mailstrom", "doctor", "--config", str(engine.config)]
    done = subprocess.run(
        [*argv, *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd="/",
    )
    assert done.stderr == ""
    return told_in_order(done.stdout)


def test_the_pages_samples_are_what_doctor_says(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    names(network)
    domain, _ = network.site(Script())
    dead = network.new_domain()
    network.route(dead, [network.nobody()])
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(days=90)
    issued = trustme.CA().issue_cert("sender.test", not_after=until)
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    listener = {
        "bind": [f"127.0.0.1:{free_port()}"],
        "tls_cert": str(tmp_path / "cert.pem"),
        "tls_key": str(tmp_path / "key.pem"),
    }
    engine = make_engine(settings={"sites": {"suspend": ["1h"]}, "listener": listener}).start()
    assert engine.final(engine.send(f"a@{domain}")).succeeded
    assert printed(engine, "--probe", domain) == shown(0)

    engine.send(f"a@{dead}")
    engine.until("SELECT 1 FROM destinations WHERE suspended_until_ms IS NOT NULL")
    with beside(_WRITER, str(engine.store)):
        assert engine.stop() == 0
        engine.send(f"a@{domain}")
        engine.store.chmod(0o644)
        names(network, "vps-7.hosting.test.")
        try:
            sick = printed(engine, "--probe", dead)
        finally:
            names(network)
    assert sick == shown(1)


def left(folder: Path) -> dict[str, object]:
    """All in a folder; of the log's index, which has every reader's mark, its being there."""
    told: dict[str, object] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        found = path.lstat()
        told[path.name] = (found.st_ino, found.st_mode, found.st_uid, found.st_gid)
        if path.is_file() and not path.name.endswith("-shm"):
            told[f"inside {path.name}"] = (found.st_mtime_ns, path.read_bytes())
    return told


def test_nothing_is_left_behind_by_looks_at_a_sick_installation(make_engine: MakeEngine) -> None:
    engine = make_engine().start()
    engine.send("a@nowhere.test")
    engine.kill_all()
    Path(f"{engine.store}-run/poisoned").write_text("EIO\n")
    engine.ms.close()
    engine.ms = Mailstrom(engine.store)  # opens nothing yet
    before = left(engine.folder)
    for _ in range(2):
        told = doctor(engine, network=True)
        assert told.code == 1
        assert told.levels["spool.disk"] == "problem"
    after = left(engine.folder)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == []
    Path(f"{engine.store}-run/poisoned").unlink()


def test_writers_and_checkpoints_go_on_while_it_looks(tmp_path: Path) -> None:
    store, file = tmp_path / "spool.db", tmp_path / "m.toml"
    file.write_text(f'store = "{store}"\n')
    with Mailstrom(store) as ms:
        ms.send_many(mail("a@nowhere.test") for _ in range(2_000))
        argv = [sys.executable, "-P", "-m", "mailstrom", "doctor", "--json", "--no-network"]
        for _ in range(3):
            with subprocess.Popen(
                [*argv, "--config", str(file)], env=environment(), stdout=subprocess.PIPE, cwd="/"
            ) as looking:
                sent = 0
                while looking.poll() is None:
                    ms.send(mail("b@nowhere.test"))
                    sent += 1
                assert looking.stdout is not None
                record = json.loads(looking.stdout.read())
            assert sent > 0
            checks = {one["check"]: one["level"] for one in record["findings"]}
            assert checks["spool.sound"] == "ok"
            assert "log.writer" not in checks
        assert ms.check() == []
