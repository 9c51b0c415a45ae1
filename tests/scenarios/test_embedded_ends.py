"""An engine inside an application that is killed, or forked: what the next one finds.

The hosts are the witnesses of what was delivered how often; rows and log say what was known of it.
Whatever ends it, the mail that it held is free for the next engine.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

from mailstrom import Mailstrom
from mailstrom.lockfile import is_free
from tests.scenarios.conftest import MakeEngine
from tests.support.embedded import (
    SILENT_ONCE,
    SLOW_ONCE,
    application,
    state_of,
    tables,
)
from tests.support.engine import DEADLINE_S, alive, mail
from tests.support.network import Network
from tests.support.sockets import eventually

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
            network.pass_time()
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
