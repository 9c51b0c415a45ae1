"""Forked children send as if they had never met their parent, and leave it unharmed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailstrom import Mailstrom, OutcomeUnknown, SpoolError
from mailstrom.storage.sqlite import forks
from tests.support.engine import environment

SEND = b"From: a@example.com\r\nTo: b@example.org\r\n\r\nbody\r\n"


def in_child(step: Callable[[], object]) -> int:
    """Fork, run a step, end at once; the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = 0 if step() else 2
    finally:
        os._exit(code)


def ended_well(pids: list[int]) -> bool:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


def locks_of(pid: int) -> set[str]:
    """Kind of each POSIX lock that a process holds, with the bytes it covers."""
    lines = Path("/proc/locks").read_text().splitlines()
    parts = [line.split() for line in lines]
    return {f"{p[3]} {p[6]}-{p[7]}" for p in parts if p[1] == "POSIX" and int(p[4]) == pid}


def test_a_child_sends_and_reads_and_the_parent_goes_on(client: Mailstrom) -> None:
    first = client.send(SEND)
    pids = [in_child(lambda: client.status(client.send(SEND)).id) for _ in range(4)]
    assert client.send(SEND)
    assert ended_well(pids)
    assert client.status(first).id == first
    assert client.query("SELECT count(*) FROM messages") == [(6,)]
    assert client.check() == []


def test_a_child_of_a_child_sends_too(client: Mailstrom) -> None:
    client.send(SEND)

    def generation() -> bool:
        client.send(SEND)
        return ended_well([in_child(lambda: client.send(SEND))])

    assert ended_well([in_child(generation)])
    assert client.query("SELECT count(*) FROM messages") == [(3,)]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux's /proc/locks")
def test_a_child_holds_the_locks_that_its_connections_rely_on(client: Mailstrom) -> None:
    """SQLite would take them for held if it had inherited the parent's connections."""
    id = client.send(SEND)
    client.status(id)
    wanted = {"READ 128-128", "READ 1073741826-1073742335"}  # the -shm's user, the file's reader
    assert wanted <= locks_of(os.getpid())

    def step() -> bool:
        client.send(SEND)
        client.status(id)
        return wanted <= locks_of(os.getpid())

    assert ended_well([in_child(step)])
    assert not wanted & locks_of(os.getpid()), "let go for the fork"
    client.send(SEND)
    assert wanted <= locks_of(os.getpid()), "and taken again"


def test_children_forked_in_the_midst_of_sending_threads(client: Mailstrom) -> None:
    """No thread of the parent is inside SQLite when the child begins: it can neither deadlock on a
    lock that no thread will free nor find the write lock taken by nobody."""
    stop = threading.Event()
    sent: list[int] = []
    failed: list[BaseException] = []

    def send() -> None:
        count = 0
        try:
            while not stop.is_set():
                client.send(SEND)
                client.query("SELECT count(*) FROM messages")
                count += 1
        except BaseException as error:
            failed.append(error)
        sent.append(count)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    children = 25
    try:
        for _ in range(children):
            assert ended_well([in_child(lambda: client.status(client.send(SEND)).id)])
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failed == []
    assert client.query("SELECT count(*) FROM messages") == [(sum(sent) + children,)]
    assert client.check() == []


def test_a_child_that_closes_or_ends_in_order_does_not_disturb_the_parent(
    path: str, client: Mailstrom
) -> None:
    id = client.send(SEND)

    def step() -> bool:
        client.send(SEND)
        client.close()
        return True

    assert ended_well([in_child(step)])
    assert client.status(id).id == id
    assert client.send(SEND)
    assert os.path.exists(f"{path}-wal")


def test_a_closed_client_stays_closed_in_a_child(path: str) -> None:
    client = Mailstrom(path)
    client.send(SEND)
    client.close()

    def step() -> bool:
        try:
            client.send(SEND)
        except SpoolError:
            return True
        return False

    assert ended_well([in_child(step)])


def test_a_fork_in_the_middle_of_a_call_leaves_a_child_that_refuses(client: Mailstrom) -> None:
    """A signal handler may fork while this thread reads: then the child must not touch the file."""
    id = client.send(SEND)

    def step() -> bool:
        for verb in (lambda: client.status(id), lambda: client.send(SEND)):
            try:
                verb()
            except SpoolError as error:
                if "spawn" in str(error):
                    continue
            return False
        return True

    with client._store._reader():  # as if interrupted within
        pid = in_child(step)
    assert ended_well([pid])
    assert client.status(id).id == id
    assert client.send(SEND)


def test_a_child_that_goes_on_with_its_parents_stream_is_told_whose_the_messages_are(
    client: Mailstrom,
) -> None:
    """A generator forks, and both come back from it: what it gave before is the parent's."""
    pids = list[int]()

    def messages(fork_at: int) -> Iterator[bytes]:
        for number in range(20):
            if number == fork_at:
                pids.append(os.fork())
            yield SEND

    told = None
    try:
        ids = client.send_many(messages(10))
    except OutcomeUnknown as error:
        told = error
    if pids == [0]:  # the child
        known = told is not None and "forked" in str(told) and client.status(client.send(SEND))
        os._exit(0 if known else 1)
    assert told is None
    assert ended_well(pids)
    assert len(set(ids)) == 20
    assert client.query("SELECT count(*) FROM messages") == [(21,)], "none of them twice"


def test_a_child_of_a_stream_that_has_given_nothing_yet_sends_its_own(client: Mailstrom) -> None:
    pids = list[int]()

    def messages() -> Iterator[bytes]:
        pids.append(os.fork())
        yield from [SEND] * 5

    ids = client.send_many(messages())
    if pids == [0]:
        os._exit(0 if len(ids) == 5 else 1)
    assert ended_well(pids)
    assert client.query("SELECT count(*) FROM messages") == [(10,)]


def test_nothing_of_a_fork_is_left_behind(client: Mailstrom) -> None:
    client.send(SEND)
    gc.collect()  # what earlier tests left to the collector
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(10):
        assert ended_well([in_child(lambda: client.send(SEND))])
        client.send(SEND)
    assert forks._inside == {}
    assert forks._forking == set()
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) <= descriptors


_shared: Mailstrom | None = None


def _with_inherited(results: object) -> None:
    assert _shared is not None
    results.put([_shared.send(SEND) for _ in range(5)])  # type: ignore[attr-defined]


# A spawned child imports the program by its path, as an application's does.
PROGRAM = """
import multiprocessing, sys
from mailstrom import Mailstrom

MAIL = b"From: a@x.test\\r\\nTo: b@y.test\\r\\n\\r\\nhi\\r\\n"

def work(path, count, results):
    with Mailstrom(path) as client:
        results.put([client.send(MAIL) for _ in range(count)])

if __name__ == "__main__":
    path, method = sys.argv[1:]
    with Mailstrom(path) as client:
        client.send(MAIL)
        context = multiprocessing.get_context(method)
        results = context.Queue()
        process = context.Process(target=work, args=(path, 5, results))
        process.start()
        ids = results.get(timeout=30)
        process.join(30)
        assert process.exitcode == 0, process.exitcode
        print(*ids, client.send(MAIL))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(client: Mailstrom, path: str, method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), path, method],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    ids = done.stdout.split()
    assert len(set(ids)) == 6
    assert {client.status(id).id for id in ids} == set(ids)


def test_a_process_that_inherits_the_client_sends_too(client: Mailstrom) -> None:
    global _shared
    client.send(SEND)
    _shared = client
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
        results = context.Queue()
        process = context.Process(target=_with_inherited, args=(results,))
        process.start()
    ids = results.get(timeout=30)
    process.join(30)
    results.close()
    results.join_thread()
    _shared = None
    assert process.exitcode == 0
    assert {client.status(id).id for id in ids} == set(ids)
