"""What is special about a spool in memory: its life, its names, its limits, forks and waiting."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom.errors import ConfigError, SpoolBusy, SpoolError, SpoolFull
from mailstrom.storage import canonical, open_client_store, open_worker_store, run_directory
from mailstrom.storage.base import Work
from mailstrom.storage.client import ClientStore
from mailstrom.storage.sqlite import memory
from tests.storage.spool import BODY, T0, Spool, settlement, submission
from tests.storage.test_memory import MemoryStores

RAW = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


@pytest.fixture
def stores() -> Iterator[MemoryStores]:
    found = MemoryStores()
    with found.opened:
        yield found


def count(store: ClientStore) -> object:
    return store.query("SELECT count(*) FROM messages", (), 5.0)[0][0]


# --- names and life ------------------------------------------------------------------------------


def test_a_nameless_spool_is_a_fresh_one_for_each_handle() -> None:
    with Mailstrom("memory:") as one, Mailstrom("memory:") as two:
        assert one.path != two.path
        id = one.send(RAW)
        assert one.status(id).status == "queued"
        assert two.query("SELECT count(*) FROM messages") == [(0,)]


def test_its_path_names_it_to_an_engine_of_the_same_process() -> None:
    with Mailstrom("memory:") as client:
        client.send(RAW)
        engine = open_worker_store(client.path)
        assert engine.next_due_ms(T0) is not None
        engine.close()


def test_a_name_is_shared_within_the_process() -> None:
    with Mailstrom("memory:shared") as one, Mailstrom("MEMORY:shared") as two:
        id = one.send(RAW)
        assert two.raw(id) == one.raw(id)
        with Mailstrom("memory:Shared") as other:
            assert other.query("SELECT count(*) FROM messages") == [(0,)]


def test_it_lives_while_one_handle_is_open_and_no_longer(stores: MemoryStores) -> None:
    first, second = stores.client(), stores.client()
    first.enqueue([submission()], T0)
    first.close()
    assert count(second) == 1
    engine = stores.worker()
    second.close()
    assert engine.next_due_ms(T0) is not None
    engine.close()
    assert count(stores.client()) == 0


def test_a_handle_that_is_dropped_lets_it_go() -> None:
    Mailstrom("memory:dropped").send(RAW)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # its committing thread ends by itself
        gc.collect()
        try:
            memory.existing("memory:dropped")
        except SpoolError:
            return
        time.sleep(0.01)
    pytest.fail("the spool outlived its only handle")


@pytest.mark.parametrize(
    "name", ["memory:a/b", "memory:..", "memory://x", "memory:a b", "memory:ä"]
)
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"memory:NAME"):
        Mailstrom(name)
    with pytest.raises(ConfigError, match=r"memory:NAME"):
        canonical(name)


def test_an_engine_alone_opens_nothing() -> None:
    for ask in (open_worker_store, run_directory):
        with pytest.raises(SpoolError, match="no memory spool of this name is open"):
            ask("memory:nobody")


def test_nothing_is_written_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Mailstrom("memory:here") as client:
        client.send(RAW)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_store_says_so(stores: MemoryStores) -> None:
    client = stores.client()
    engine = stores.worker()
    client.close()
    client.close()
    engine.close()
    for call in (lambda: count(client), lambda: client.enqueue([submission()], T0), engine.verify):
        with pytest.raises(SpoolError, match="closed"):
            call()


# --- the run directory ---------------------------------------------------------------------------


def test_the_run_directory_is_private_and_goes_with_the_spool(stores: MemoryStores) -> None:
    client, other = stores.client(), stores.client()
    folder = Path(run_directory(stores.name))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "delivery.lock").write_text("{}")
    assert run_directory(stores.name) == str(folder)
    other.close()
    assert folder.is_dir()
    client.close()
    assert not folder.exists()


_LEAVES = """
import os, sys
from mailstrom import Mailstrom
from mailstrom.storage import run_directory
client = Mailstrom("memory:kept")
print(run_directory(client.path), flush=True)
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert os.path.isdir(run_directory(client.path)), "the child took it away"
"""


def test_it_is_gone_at_exit_and_a_child_leaves_it_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LEAVES], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not os.path.exists(done.stdout.strip())


# --- forks ---------------------------------------------------------------------------------------


def in_child(body: object) -> str:
    """What a forked child says of itself; it ends without running anything else of ours."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = body()  # type: ignore[operator]
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, str(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    os.waitpid(pid, 0)
    return found


def test_every_call_of_a_forked_child_says_that_nobody_would_deliver(stores: MemoryStores) -> None:
    client, engine = stores.client(), stores.worker()
    client.enqueue([submission()], T0)
    calls = (
        lambda: client.enqueue([submission()], T0),
        lambda: client.statuses([]),
        lambda: count(client),
        client.check,
        client.revision,
        lambda: engine.next_due_ms(T0),
        engine.sync,
        engine.verify,
        lambda: open_worker_store(stores.name),
        lambda: run_directory(stores.name),
    )

    def every() -> str:
        wrong = []
        for place, call in enumerate(calls):
            try:
                wrong.append((place, call()))
            except SpoolError as error:
                if "fork" not in str(error) and "no memory spool" not in str(error):
                    wrong.append((place, error))
        client.close()
        return repr(wrong)

    assert in_child(every) == "[]"
    assert count(client) == 1
    assert engine.next_due_ms(T0) is not None


def test_an_application_s_send_is_refused_in_a_child_and_goes_on_in_the_parent() -> None:
    with Mailstrom("memory:forked") as client:
        client.send(RAW)
        said = in_child(lambda: client.send(RAW))
        assert said.startswith("SpoolError: memory:forked: a memory spool belongs to the process")
        assert "start()" in said
        client.send(RAW)
        assert client.query("SELECT count(*) FROM messages") == [(2,)]


def test_what_a_child_opens_itself_is_a_new_spool() -> None:
    def fresh() -> object:
        with Mailstrom("memory:both") as own:
            own.send(RAW)
            return own.query("SELECT count(*) FROM messages")[0][0]

    with Mailstrom("memory:both") as client:
        client.send(RAW)
        client.send(RAW)
        assert in_child(fresh) == "1"
        assert client.query("SELECT count(*) FROM messages") == [(2,)]


# --- several threads -----------------------------------------------------------------------------


def test_senders_readers_and_an_engine_share_it(stores: MemoryStores) -> None:
    spool = Spool(stores)
    trouble: list[BaseException] = []
    over = threading.Event()

    def guarded(step: object) -> None:
        try:
            step()  # type: ignore[operator]
        except BaseException as error:
            trouble.append(error)

    def send() -> None:
        own = stores.client()
        for _ in range(40):
            assert all(isinstance(one, str) for one in own.enqueue([submission()], T0))

    def read() -> None:
        own = stores.client()
        while not over.is_set():
            own.stats(T0)
            count(own)

    def deliver() -> None:
        own = stores.worker()
        worker = own.register(
            kind="delivery", pid=1, host="h", boot="b", lock="l", restarts=0, now_ms=T0
        ).seq
        while not over.is_set():
            for due in own.due_domains(worker, 10, T0):
                own.put_routes(worker, [spool.answer(due.name)], T0)
            for lane in own.lease(worker, want=2, limit=20, workers=1, now_ms=T0):
                for row in spool.claim(lane):
                    own.exchange(
                        Work(settlements=[settlement(lane.token, row.recipient, "failed")]), T0
                    )
                own.release([lane.token], T0)

    senders = [threading.Thread(target=guarded, args=(send,)) for _ in range(6)]
    others = [threading.Thread(target=guarded, args=(step,)) for step in (read, read, deliver)]
    for thread in (*senders, *others):
        thread.start()
    for thread in senders:
        thread.join(60)
    over.set()
    for thread in others:
        thread.join(60)
    assert trouble == []
    assert count(spool.client) == 240
    spool.sound()


def test_a_query_is_stopped_before_a_commit_that_waits_for_it_would_fail(
    stores: MemoryStores,
) -> None:
    client = open_client_store(stores.name, busy_ms=400)
    stores.opened.callback(client.close)
    endless = (
        "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n)"
        " SELECT count(*) FROM n, messages"
    )
    with pytest.raises(SpoolBusy, match=r"longer than 0\.2 s .*commits wait for it .*backup"):
        client.query(endless, (), 3_600.0)
    with pytest.raises(SpoolBusy, match=r"longer than 0\.01 s and was stopped; narrow it$"):
        client.query(endless, (), 0.01)
    hasty = open_client_store(stores.name, busy_ms=0)
    stores.opened.callback(hasty.close)
    with pytest.raises(SpoolBusy, match=r"longer than 0\.1 s"):
        hasty.query(endless, (), 3_600.0)


@pytest.mark.parametrize("messages", [1, 3], ids=["one statement", "a transaction"])
def test_a_commit_waits_for_a_reader_until_its_time_is_over_and_leaves_nothing(
    stores: MemoryStores, messages: int
) -> None:
    impatient = open_client_store(stores.name, busy_ms=50)
    stores.opened.callback(impatient.close)
    patient = open_client_store(stores.name, busy_ms=60_000)
    stores.opened.callback(patient.close)
    reader = memory.existing(stores.name).connect(read_only=True, busy_ms=50, limit_bytes=1 << 30)
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    with pytest.raises(SpoolBusy, match="nothing was written"):
        impatient.enqueue([submission() for _ in range(messages)], T0)
    done: list[object] = []
    batch = [submission() for _ in range(messages)]
    waiting = threading.Thread(target=lambda: done.extend(patient.enqueue(batch, T0)))
    waiting.start()
    reader.execute("COMMIT").fetchall()
    reader.close()
    waiting.join(60)
    assert done == [one.id for one in batch]
    assert count(impatient) == messages
    impatient.enqueue([submission()], T0)
    assert impatient.check() == []


def test_a_long_report_does_not_fail_a_send() -> None:
    slow = (
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1500000)"
        " SELECT count(*) FROM n, messages"
    )
    with Mailstrom("memory:report", timeout=60) as client:
        client.send(RAW)
        report = threading.Thread(target=lambda: client.query(slow, seconds=60.0))
        report.start()
        for _ in range(5):
            client.send(RAW)
        report.join(60)
        assert client.query("SELECT count(*) FROM messages") == [(6,)]


def test_commits_of_others_are_noticed(stores: MemoryStores) -> None:
    one, two = stores.client(), stores.client()
    before = one.revision()
    assert one.revision() == before
    two.enqueue([submission()], T0)
    assert one.revision() != before


# --- bounds --------------------------------------------------------------------------------------


def test_a_full_spool_takes_no_mail_and_still_takes_results(
    stores: MemoryStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LIMIT_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr(memory, "RESERVE_BYTES", 1024 * 1024)
    spool = Spool(stores)
    id, lane, (row,) = spool.sending("a@example.org")
    bulk = BODY + b"x" * 60_000

    def fill() -> None:
        for _ in range(100):
            spool.client.enqueue([submission(content=bulk)], T0)

    with pytest.raises(SpoolFull, match="nothing was written"):
        fill()
    room = spool.engine.room_bytes()
    assert room is not None
    assert 0 < room < 1024 * 1024 + 70_000
    assert spool.settle(lane, row, "delivered")
    assert spool.status(id) == {"a@example.org": "delivered"}
    spool.sound()


def test_there_is_no_log_and_nothing_to_repair(stores: MemoryStores) -> None:
    spool = Spool(stores)
    spool.send()
    assert spool.engine.log_bytes() == 0
    assert spool.engine.checkpoint().frames == 0
    assert not spool.engine.poisoned
    assert spool.engine.repair()
    spool.send()
    assert spool.engine.next_due_ms(T0) is not None


def test_a_copy_of_it_is_a_spool_in_a_file(stores: MemoryStores, tmp_path: Path) -> None:
    client = stores.client()
    one = submission()
    client.enqueue([one], T0)
    client.backup(str(tmp_path / "copy.db"), T0)
    with Mailstrom(tmp_path / "copy.db") as copy:
        assert copy.raw(one.id) == one.content
        assert copy.check() == []
    kept = open_worker_store(str(tmp_path / "copy.db"))
    assert kept.copied
    kept.close()
    assert client.check() == []
