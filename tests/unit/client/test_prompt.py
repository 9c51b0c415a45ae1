"""A lone caller stores by itself: interrupted at every place where a signal handler may run.

``at_each_place`` runs a call again and again and does something at its first, second, third ...
place: where a function of ours begins, and where one of C has just returned. There, and where a
loop goes back, CPython looks for signals; a profile function is called at the same places, and what
it raises comes out of the same instruction.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mailstrom import Mailstrom, OutcomeUnknown, SpoolBusy, SpoolError
from mailstrom.storage.sqlite import forks, poison, prompt
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.prompt import SQLitePrompt

MAIL = b"From: a@example.com\r\nTo: b@example.org\r\n\r\nbody\r\n"
OURS = (f"mailstrom{os.sep}client{os.sep}", f"mailstrom{os.sep}storage{os.sep}")


def at_place(number: int, act: Callable[[], None], call: Callable[[], Any]) -> tuple[bool, Any]:
    """``call()`` with ``act()`` at one place; whether it has so many, and what it returned."""
    left = number + 1

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and any(o in frame.f_code.co_filename for o in OURS):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                act()

    sys.setprofile(look)
    try:
        found = call()
    finally:
        sys.setprofile(None)
    return left <= 0, found


def at_each_place(act: Callable[[], None], call: Callable[[], Any]) -> Iterator[Any]:
    """What ``call`` returned with ``act`` at each of its places."""
    number = 0
    reached = True
    while reached:
        reached, found = at_place(number, act, call)
        if reached:
            yield found
        number += 1


def stored(client: Mailstrom) -> list[str]:
    return sorted(row[0] for row in client.query("SELECT id FROM messages"))


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of syncs tell nothing here; what they are for is tried elsewhere."""
    monkeypatch.setattr(os, "fdatasync", os.fstat)


@pytest.fixture
def sent(client: Mailstrom) -> list[str]:
    """Ids of a client that has sent: all is loaded and connected."""
    return [client.send(MAIL)]


@pytest.fixture
def handler() -> Iterator[Callable[[BaseException], Callable[[], None]]]:
    """Makes what a signal handler does that raises; it is installed meanwhile."""
    before = signal.getsignal(signal.SIGUSR1)
    chosen: list[BaseException] = []

    def handle(number: int, frame: object) -> None:
        raise chosen[0]

    def raising(error: BaseException) -> Callable[[], None]:
        chosen[:] = [error]
        signal.signal(signal.SIGUSR1, handle)
        return lambda: handle(signal.SIGUSR1, None)

    yield raising
    signal.signal(signal.SIGUSR1, before)


def test_a_lone_caller_needs_no_thread(client: Mailstrom, sent: list[str]) -> None:
    sent += [client.send(MAIL) for _ in range(3)]
    assert not client._committer._line.started
    assert stored(client) == sorted(sent)


def test_a_lone_caller_is_told_of_a_busy_spool_in_time(path: str) -> None:
    with Mailstrom(path, timeout=0.1) as client:
        id = client.send(MAIL)
        other = connect(path)
        other.execute("BEGIN IMMEDIATE").fetchall()
        with pytest.raises(SpoolBusy, match="nothing was written"):
            client.send(MAIL)
        other.execute("ROLLBACK").fetchall()
        other.close()
        assert client.send(MAIL) > id
        assert not client._committer._line.started
        assert len(stored(client)) == 2


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), TimeoutError("an alarm"), ValueError("theirs"), SpoolBusy("a nested")],
    ids=repr,
)
def test_what_a_handler_raises_comes_out_and_the_client_is_as_before(
    client: Mailstrom,
    sent: list[str],
    path: str,
    handler: Callable[[BaseException], Callable[[], None]],
    error: BaseException,
) -> None:
    act, line = handler(error), client._committer._line
    raised = 0

    def send() -> None:
        nonlocal raised
        try:
            sent.append(client.send(MAIL))
        except type(error) as caught:
            raised += caught is error

    for _ in at_each_place(act, send):
        error.__traceback__ = None
        assert (forks._inside, forks.yielding) == ({}, {})
        assert not os.path.lexists(poison.poison_path(path))
        sent.append(client.send(MAIL))
        turn = line.taken(30)
        assert turn is not None, "the next caller finds the turn free"
        line.turns.put(turn)
        del turn
        assert not client._store._sync.check()  # type: ignore[func-returns-value]
    assert raised > 50
    assert len(sent) == len(set(sent))
    assert set(sent) <= set(stored(client)), "what was answered is there"
    assert len(stored(client)) <= len(sent) + raised
    assert client.check() == []
    before = len(stored(client))
    client.send(MAIL)
    assert len(stored(client)) == before + 1


def test_a_handler_that_sends_at_any_place(client: Mailstrom, sent: list[str]) -> None:
    def send() -> None:
        sent.append(client.send(MAIL))

    def nested() -> None:
        send()
        client.status(sent[-1])

    places = sum(1 for _ in at_each_place(nested, send))
    assert places > 50
    assert stored(client) == sorted(sent)
    assert len(sent) == 2 * places + 2  # the first of all, and one with nothing at its place
    assert client.check() == []


def test_a_handler_that_closes_at_any_place(path: str) -> None:
    ids: list[str] = []
    refusals: list[str] = []
    number, reached = 0, True
    while reached:
        with Mailstrom(path, timeout=5) as client:
            ids.append(client.send(MAIL))
            try:
                reached, id = at_place(number, client.close, lambda c=client: c.send(MAIL))
                ids.append(id)
            except SpoolError as error:
                refusals.append(str(error))
        number += 7
    assert all("closed" in text for text in refusals)
    with Mailstrom(path) as client:
        assert stored(client) == sorted(ids)
        assert client.check() == []


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_handler_that_forks_at_any_place_and_whose_child_sends(
    client: Mailstrom, sent: list[str]
) -> None:
    children = 0

    def fork() -> None:
        nonlocal children
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if client.status(client.send(MAIL)).id else 2
            os._exit(code)
        assert ended(pid) == 0
        children += 1

    for id in at_each_place(fork, lambda: client.send(MAIL)):
        sent.append(id)
        assert (forks._inside, forks.yielding, forks._forking) == ({}, {}, set())
    assert children > 20
    assert set(sent) <= set(stored(client))
    assert len(stored(client)) == len(sent) + children + 1  # one with nothing at its place
    assert client.check() == []


def test_a_child_that_returns_into_the_interrupted_call_stores_nothing_twice(
    client: Mailstrom, sent: list[str]
) -> None:
    """It is told the id of what its parent had stored, or that it cannot know."""
    me = os.getpid()
    pids: list[int] = []
    told: list[str] = []

    def fork() -> None:
        pids.append(os.fork())

    def send() -> str:
        code = 1
        try:
            id = client.send(MAIL)
            code = 0
        except OutcomeUnknown as error:
            id, code = error.key, 2
        finally:
            if os.getpid() != me:  # whatever it was: the child ends here
                if code == 0 and client.status(id).id != id:
                    code = 3
                os._exit(code)
        assert code == 0
        return id

    for id in at_each_place(fork, send):
        sent.append(id)
        told.append({0: "stored", 2: "unknown"}[ended(pids[-1])])
        assert stored(client).count(id) == 1
    assert set(told) == {"stored", "unknown"}
    assert len(stored(client)) <= len(sent) + told.count("stored") + 1
    assert client.check() == []


def test_two_threads_are_never_in_it_together(
    client: Mailstrom, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, within, most = SQLitePrompt.store, 0, 0
    counting = threading.Lock()

    def counted(self: SQLitePrompt, *given: Any) -> Any:
        nonlocal within, most
        with counting:
            within += 1
            most = max(most, within)
        try:
            return real(self, *given)
        finally:
            with counting:
                within -= 1

    monkeypatch.setattr(SQLitePrompt, "store", counted)
    threads = [
        threading.Thread(target=lambda: sent.extend(client.send(MAIL) for _ in range(40)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert stored(client) == sorted(sent)
    assert len(sent) == 241


SCRIPT = """
import signal, sys
from mailstrom import Mailstrom

class Interrupt(Exception):
    pass

client = Mailstrom(sys.argv[1], timeout=30)
message = b"From: a@example.com\\r\\nTo: b@example.org\\r\\n\\r\\nbody\\r\\n"
client.send(message)
ids, interrupts = [], 0

def interrupted(number, frame):
    global interrupts
    interrupts += 1
    raise Interrupt

signal.signal(signal.SIGALRM, interrupted)
def loop():
    while interrupts < 600:
        try:
            # As soon as one is there the next comes: it falls somewhere into this call.
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + interrupts % 30 * 0.00002)
            ids.append(client.send(message))
        except Interrupt:
            pass
while True:
    try:
        loop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        break
    except Interrupt:
        pass
last = client.send(message)
stored = {row[0] for row in client.query("SELECT id FROM messages")}
assert {*ids, last} <= stored
assert len(stored) <= len(ids) + interrupts + 2
assert client.check() == []
client.close()
print(interrupts)
"""


@pytest.mark.timeout(120)
def test_hundreds_of_alarms_that_raise(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", SCRIPT, str(tmp_path / "spool.db")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 600
    assert "Exception ignored" not in ran.stderr


def test_whoever_sends_alone_keeps_the_log_short(
    client: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "LOOK_EACH", 2)
    monkeypatch.setattr(prompt, "CLIENT_CHECKPOINT_FRAMES", 30)
    for _ in range(60):  # some ten frames each
        client.send(MAIL)
    # It was made with 123 frames; these would be six hundred more.
    assert os.stat(f"{client.path}-wal").st_size < 200 * 4120
    assert client._committer._line.prompt is not None, "it was stored on this thread"
