"""Faults between the last octet of a message and the reply: nothing is said that is not so."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.engine import DEADLINE_S
from tests.support.listening import MakeListening, stored
from tests.support.sockets import eventually
from tests.support.talk import Talk, queued
from tests.torture.launch import with_faults

# A spool that cannot


def test_a_busy_spool_is_a_reply_to_try_again_and_nothing_stored(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    with _write_lock(listening.engine.store), listening.talk() as talk:
        talk.ehlo()
        reply = talk.mail("a@x.test")
        assert (reply.code, reply.lines[0][:5]) == (451, "4.3.0")
    with listening.talk() as talk:
        talk.ehlo()
        id = queued(talk.mail("b@x.test"))
    assert stored(listening.engine) == [id]


_LOCKER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(20_000)  # the engine writes, too
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def _write_lock(store: Path) -> Iterator[None]:
    """Another process that writes and does not end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _LOCKER, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield
    finally:
        process.communicate()


# Deaths between the last octet and the reply

_STORING = "mailstrom.storage.sqlite.storing:Storing"
_INTAKE = "mailstrom_workers.intake:Intake"
POINTS: dict[str, tuple[dict[str, object], bool | None]] = {
    "received": ({"at": f"{_INTAKE}.put", "when": "before"}, False),
    "handed": ({"at": f"{_INTAKE}.put", "when": "after"}, None),
    "inserting": ({"at": f"{_STORING}._store", "when": "before"}, False),
    "committed": ({"at": f"{_STORING}._store", "when": "after"}, True),
    "syncing": ({"at": f"{_STORING}._durable", "when": "before"}, True),
    "synced": ({"at": f"{_STORING}._durable", "when": "after"}, True),
    "ringing": ({"at": f"{_INTAKE}._ring", "when": "before"}, True),
    "telling": ({"at": f"{_INTAKE}._tell", "when": "before"}, True),
    "answering": (
        {"at": "mailstrom.server.connection:Connection.answer", "when": "before"}, True,
    ),
}  # fmt: skip
"""Point: where it is, and whether the message is there afterwards (None: either)."""


@pytest.mark.parametrize("point", POINTS)
def test_killed_before_the_reply_it_is_whole_or_not_there_and_never_said_to_be_taken(
    point: str, make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    folder = tmp_path / "points"
    folder.mkdir()
    spec, expected = POINTS[point]
    settings = {"folder": str(folder), "points": {point: spec}, "set": {}}
    engine.start(env=with_faults({"torture_points": settings}))
    (pid,) = engine.live("listener")
    with listening.talk() as talk:
        talk.ehlo()
        first = queued(talk.mail("first@x.test"))
        talk.envelope("second@x.test", "third@x.test")
        assert talk.say("DATA").code == 354
        _arm(folder, point)
        talk.send(b"Subject: x\r\nX-Mailstrom-Idempotency-Key: k\r\n\r\nx\r\n.\r\n")
        assert not talk.sock.recv(1)
    engine.wait_log("worker.lost", kind="listener", pid=pid)
    (folder / "armed").unlink()

    there = [id for id in stored(engine) if id != first]
    assert len(there) <= 1 if expected is None else len(there) == expected
    for id in there:
        assert len(engine.ms.status(id).recipients) == 2
    with listening.talk() as talk:  # the client sends again, and its key makes it one message
        talk.ehlo()
        talk.envelope("second@x.test", "third@x.test")
        talk.say("DATA")
        talk.send(b"Subject: x\r\nX-Mailstrom-Idempotency-Key: k\r\n\r\nx\r\n.\r\n")
        again = queued(talk.reply())
    assert there in ([], [again])


def _arm(folder: Path, point: str) -> None:
    fresh = folder / "armed.new"
    fresh.write_text(json.dumps({"point": point, "hit": 1, "do": "kill", "token": "token"}))
    fresh.replace(folder / "armed")


def test_a_full_disk_is_452_and_all_goes_on_once_there_is_room(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    engine = listening.engine
    (pid,) = engine.live("listener")
    with listening.talk() as talk:
        talk.ehlo()
        first = queued(talk.mail("a@x.test"))
        # No file may grow any more, as on a full disk, for this process alone.
        log = engine.store.with_name(f"{engine.store.name}-wal")
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size, -1))
        large = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 40_000
        refused = talk.mail("a@x.test", content=large)
        assert (refused.code, refused.lines[0][:5]) == (452, "4.3.1")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        second = queued(talk.mail("a@x.test", content=large))
    assert set(stored(engine)) == {first, second}


def test_a_sync_that_fails_is_never_a_250_for_what_is_not_there(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    fault = {
        "op": "sync", "file": "wal", "n": 4, "token": str(tmp_path / "failed"),
        "module": "mailstrom_workers.listener", "folder": str(engine.folder),
    }  # fmt: skip
    engine.start(env=with_faults({"torture_errors": fault}))
    content = b"Subject: x\r\nX-Mailstrom-Idempotency-Key: %d\r\n\r\nx\r\n"
    taken = []
    with listening.talk() as talk:
        talk.ehlo()
        for number in range(4):
            reply = eventually(
                lambda content=content % number: (
                    found if (found := talk.mail("a@x.test", content=content)).code == 250 else None
                ),
                DEADLINE_S,
                what="the spool to heal",
            )
            taken.append(queued(reply))
    assert (tmp_path / "failed").exists()
    assert sorted(stored(engine)) == sorted(set(taken))
    assert len(set(taken)) == 4


def test_under_kill_every_250_is_a_row_and_every_key_is_one_message(
    make_listening: MakeListening,
) -> None:
    listening = make_listening(workers=2)
    engine = listening.engine
    done = threading.Event()
    taken: dict[str, str] = {}

    def client(name: int) -> None:
        """Sends one after the other, each until it is told 250, as mail programs do."""
        number = 0
        while not done.is_set():
            try:
                with Talk(listening.port) as talk:
                    talk.ehlo()
                    for _ in range(20):
                        key = f"{name}-{number}"
                        head = f"Subject: x\r\nX-Mailstrom-Idempotency-Key: {key}\r\n\r\nx\r\n"
                        reply = talk.mail(f"{key}@x.test", content=head.encode())
                        if reply.code == 250:
                            taken[key] = queued(reply)
                            number += 1
            except (OSError, EOFError):
                continue

    clients = [threading.Thread(target=client, args=(name,)) for name in range(6)]
    for thread in clients:
        thread.start()
    try:
        for kill in range(6):
            before = len(taken)
            eventually(lambda before=before: len(taken) > before + 20, DEADLINE_S, what="mail")  # type: ignore[misc]
            pids = eventually(lambda: engine.live("listener"), DEADLINE_S, what="a listener")
            with suppress(ProcessLookupError):
                os.kill(pids[kill % len(pids)], signal.SIGKILL)
            engine.wait_log("worker.ready", kind="listener", count=2 + kill + 1)
    finally:
        done.set()
        for thread in clients:
            thread.join(DEADLINE_S)

    rows = engine.rows("SELECT id, idempotency_key AS key FROM messages WHERE origin = 'smtp'")
    by_key = {row.key: row.id for row in rows}
    assert len(by_key) == len(rows)
    assert taken.items() <= by_key.items()
    assert len(by_key) <= len(taken) + len(clients)  # at most one each was not heard of
