"""An engine inside an application that fails, cannot begin, or is stopped at an odd moment.

The hosts are the witnesses of what was delivered how often; rows and log say what was known of it.
Whatever ends it, the mail that it held is free for the next engine.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mailstrom import Mailstrom
from mailstrom.errors import NotASpool, SpoolBusy
from mailstrom.lockfile import is_free
from mailstrom.storage.base import WorkerStore
from mailstrom.types import EngineState
from mailstrom_workers import presence as presence_module
from mailstrom_workers import router
from mailstrom_workers.context import Context
from mailstrom_workers.embedded import EmbeddedEngine
from mailstrom_workers.engine import Engine
from mailstrom_workers.janitor import Janitor
from tests.support.embedded import (
    SILENT_ONCE,
    heard,
    kept,
    nothing_left_since,
    state_of,
    tables,
)
from tests.support.engine import DEADLINE_S, mail
from tests.support.network import Network
from tests.support.sockets import eventually

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


def warm(network: Network, ms: Mailstrom) -> None:
    """One whole life, after which client and engine have opened what they keep."""
    domain, _ = network.site(None)
    ms.start(config=tables(network))
    assert ms.wait(ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded
    assert ms.stop()


class Broken(Exception):
    """What nobody expects."""


def test_the_janitor_that_finds_the_spool_gone_ends_the_engine_and_keeps_nothing(
    network: Network, tmp_path: Path
) -> None:
    store = tmp_path / "spool.db"
    ms = Mailstrom(store)
    try:
        warm(network, ms)
        before = kept()
        ms.start(config=tables(network))
        locks = list(Path(f"{store}-run").glob("*-*-*.lock"))
        for name in ("spool.db", "spool.db-wal", "spool.db-shm"):
            (tmp_path / name).unlink()

        eventually(lambda: state_of(ms) == "failed", DEADLINE_S, what="the failure")

        assert str(ms.worker_status().error).startswith("SpoolReplaced")
        assert len(locks) == 2
        assert all(is_free(lock) for lock in locks)
        eventually(lambda: nothing_left_since(before), DEADLINE_S, what="nothing left")
    finally:
        ms.close()


def fail(
    ms: Mailstrom,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    when: Callable[[Any], object],
) -> None:
    """Have a method raise once ``when`` is true of its object, until the engine has failed."""
    method = getattr(owner, name)

    def step(self: Any, *arguments: Any) -> Any:
        if when(self):
            raise Broken("unexpected")
        return method(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, step)
        eventually(lambda: state_of(ms) == "failed", DEADLINE_S, what="the failure")
    assert ms.worker_status().error == "Broken: unexpected"
    assert not ms.stop(20)


@pytest.mark.parametrize(
    ("owner", "name"), [(Janitor, "_expire"), (Engine, "_look")], ids=["janitor", "delivery"]
)
def test_a_worker_that_fails_keeps_neither_lock_nor_mail(
    network: Network,
    file_ms: Mailstrom,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
) -> None:
    domain, (host,) = network.site(SILENT_ONCE)
    warm(network, file_ms)
    before = kept()
    config = tables(network, sites={"connections": 1})
    file_ms.start(config=config)
    id = file_ms.send(mail(f"a@{domain}"))
    eventually(lambda: host.dots, DEADLINE_S, what="the dot")
    other = file_ms.send(mail(f"b@{domain}"))  # something to look at

    fail(file_ms, monkeypatch, owner, name, lambda worker: True)

    assert all(is_free(lock) for lock in Path(f"{tmp_path / 'spool.db'}-run").glob("*-*-*.lock"))
    eventually(lambda: nothing_left_since(before), DEADLINE_S, what="nothing left")
    eventually(lambda: not host.open, DEADLINE_S, what="the connection's end")
    file_ms.start(config=config)
    (recipient,) = file_ms.wait(id, DEADLINE_S).recipients.values()
    assert (str(recipient.status), recipient.in_doubt) == ("delivered", True)
    assert file_ms.wait(other, DEADLINE_S).succeeded
    ready = "SELECT count(*) AS n FROM workers WHERE state = 'ready'"
    assert file_ms.query(ready)[0].n == 2, "the failed ones are known to be lost"


def test_a_lookup_that_an_engine_failed_in_is_made_by_the_next(
    network: Network, ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, _ = network.site(None)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as silent:
        silent.bind(("127.0.0.1", 0))
        asked = f"127.0.0.1:{silent.getsockname()[1]}"
        ms.start(config=tables(network, dns={"nameservers": [asked], "timeout": "60s"}))
        id = ms.send(mail(f"a@{domain}"))
        fail(ms, monkeypatch, Engine, "_wait", lambda engine: engine._lookups.tasks)

    ms.start(config=tables(network))

    assert ms.wait(id, DEADLINE_S).succeeded


def test_its_lock_file_deleted_it_fails_rather_than_work_unseen(
    network: Network, file_ms: Mailstrom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_module, "ROW_BEAT_S", 0.05)
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
    def refuse(store: str, **options: object) -> NoReturn:
        raise SpoolBusy("held by another writer")

    with monkeypatch.context() as patch:
        patch.setattr(presence_module, "open_worker_store", refuse)
        with pytest.raises(SpoolBusy, match="held by another writer"):
            file_ms.start(config=tables(network))
    assert not file_ms.worker_status().ok
    domain, _ = network.site(None)
    file_ms.start(config=tables(network))
    assert file_ms.wait(file_ms.send(mail(f"a@{domain}")), DEADLINE_S).succeeded


# Stopped early, or where it cannot begin


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Opening a store says so, and then takes until it is told to go on."""
    opening, on = threading.Event(), threading.Event()
    open_store = presence_module._open

    def slow(*arguments: Any) -> Any:
        opening.set()
        assert on.wait(DEADLINE_S)
        return open_store(*arguments)

    monkeypatch.setattr(presence_module, "_open", slow)
    yield opening, on
    on.set()


def test_stopped_while_it_starts_it_says_so_and_leaves_nothing(
    network: Network,
    ms: Mailstrom,
    slow_disk: tuple[threading.Event, threading.Event],
) -> None:
    opening, on = slow_disk
    with ThreadPoolExecutor(1) as threads:
        threads.submit(ms.stats).result()  # the thread is there
        on.set()
        warm(network, ms)
        on.clear()
        opening.clear()
        before = kept()
        seen = ms.query("SELECT id FROM workers")
        started = threads.submit(ms.start, config=tables(network))
        assert opening.wait(DEADLINE_S)
        assert state_of(ms) == "starting"

        assert ms.stop(0.1) is False

        with pytest.raises(RuntimeError, match="stopped before it was ready"):
            started.result(DEADLINE_S)
        assert state_of(ms) == "stopped"
        on.set()
        eventually(lambda: nothing_left_since(before), DEADLINE_S, what="nothing left")
        assert ms.query("SELECT id FROM workers") == seen
    ms.start(config=tables(network))
    assert ms.worker_status().ok


@pytest.mark.parametrize("name", ["mailstrom", "store"])
def test_without_a_thread_to_be_had_start_says_so_and_may_be_called_again(
    network: Network, ms: Mailstrom, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    warm(network, ms)
    before = kept()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            ms.start(config=tables(network))
    assert state_of(ms) == "stopped"
    eventually(lambda: nothing_left_since(before), DEADLINE_S, what="nothing left")
    ms.start(config=tables(network))
    assert ms.worker_status().ok


def test_an_engine_stopped_before_its_start_never_runs(tmp_path: Path) -> None:
    engine = EmbeddedEngine(str(tmp_path / "spool.db"), config={"hostname": "sender.test"})
    assert engine.status().state is EngineState.STARTING
    assert engine.stop(0.0)
    before = kept()

    with pytest.raises(RuntimeError, match="stopped before it was ready"):
        engine.start()

    assert engine.status().state is EngineState.STOPPED
    assert nothing_left_since(before)
    with pytest.raises(RuntimeError, match="make another"):
        engine.start()


def test_a_log_line_may_stop_the_engine_that_is_being_stopped(
    network: Network, ms: Mailstrom
) -> None:
    answers: list[bool] = []

    class Stops(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "worker.stopped":
                answers.append(ms.stop(20))

    ms.start(config=tables(network))
    logger, handler = logging.getLogger("mailstrom"), Stops()
    with heard():
        logger.addHandler(handler)
        try:
            assert ms.stop(20)
        finally:
            logger.removeHandler(handler)
    assert answers == [False, False], "it cannot wait for itself"
    assert state_of(ms) == "stopped"


def test_a_log_line_of_the_stores_thread_may_stop_the_engine_and_does_not_wait_for_it(
    network: Network, ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_routes = router.use_routes
    answers: list[tuple[bool, str]] = []
    trouble = [SpoolBusy("held by another writer")]

    class Stops(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "engine.failed" and threading.current_thread().name == "store":
                answers.append((ms.stop(20), state_of(ms)))

    async def busy(ctx: Context) -> None:
        def step(store: WorkerStore) -> None:
            if trouble:
                raise trouble.pop()

        await ctx.db.insist(step)
        await use_routes(ctx)

    monkeypatch.setattr(router, "use_routes", busy)
    logger, handler = logging.getLogger("mailstrom"), Stops()
    logger.addHandler(handler)
    try:
        with suppress(RuntimeError):  # stopped before it was ready, or a moment later
            ms.start(config=tables(network))
        eventually(lambda: answers, DEADLINE_S, what="the line")
    finally:
        logger.removeHandler(handler)
    ((stopped, state),) = answers
    assert not stopped
    assert state in ("starting", "ready", "draining")
    assert ms.stop(20)
