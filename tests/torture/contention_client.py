"""One process of a crowd around a spool: writers, forking applications, readers, checkpointers.

Usage: ``python -P contention_client.py MODE STORE OPTIONS`` with OPTIONS a JSON object. Whoever
sends appends to ``record`` a line before each ``send()``, ``["begun", message_id, recipient,
digest]``, and one after it: ``["accepted", message_id, id, seconds]`` or ``["refused", message_id,
error, seconds, text]``; each with one write, so that forked children share the file. Processes that
wait print a word when they are ready, and go on when ``go`` exists (a path); ``stop`` ends a loop.
Imports nothing of ``tests``: it runs by path. Foreign readers use the standard library's SQLite,
and open the spool with nothing else.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Options = dict[str, Any]


class Sender:
    """Sends and writes down.

    Args:
        options: ``record``, ``seed``, ``domain``, ``timeout``, ``size`` (bytes of a body).
    """

    def __init__(self, store: str, options: Options) -> None:
        from mailstrom import Mailstrom

        self.options = options
        self.ms = Mailstrom(store, timeout=float(options.get("timeout", 30.0)))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.record = os.open(options["record"], flags, 0o644)

    def note(self, *facts: object) -> None:
        """One line."""
        os.write(self.record, (json.dumps(facts) + "\n").encode())

    def compose(self, name: str) -> tuple[bytes, str, str]:
        """Bytes as they must arrive, Message-ID, recipient; content that no page can share."""
        message_id = f"<{self.options['seed']}.{name}@crowd.test>"
        recipient = f"u{name}@{self.options['domain']}"
        dice = random.Random(f"{self.options['seed']} {name}")
        size = int(self.options.get("size", 1000))
        lines = [
            "From: crowd@sender.test",
            f"To: {recipient}",
            f"Subject: {name}",
            f"Message-ID: {message_id}",
            "Date: Fri, 20 Nov 2026 12:00:00 +0000",
            "",
            *(f"{dice.getrandbits(280):070x}" for _ in range(size // 72)),
            "",
        ]
        return "\r\n".join(lines).encode(), message_id, recipient

    def send(self, *names: str) -> bool:
        """One call: ``send``, or ``send_many`` of several; whether it was accepted."""
        from mailstrom.errors import MailstromError

        composed = [self.compose(name) for name in names]
        for raw, message_id, recipient in composed:
            self.note("begun", message_id, recipient, hashlib.sha256(raw).hexdigest())
        started = time.monotonic()
        try:
            if len(composed) == 1:
                ids = [self.ms.send(composed[0][0])]
            else:
                ids = list(self.ms.send_many([raw for raw, _, _ in composed]))
        except MailstromError as error:
            took = time.monotonic() - started
            for _, message_id, _ in composed:
                self.note("refused", message_id, type(error).__name__, took, str(error))
            return False
        took = time.monotonic() - started
        for (_, message_id, _), id in zip(composed, ids, strict=True):
            self.note("accepted", message_id, id, took)
        return True


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)


def _ready(options: Options) -> None:
    print("ready", flush=True)
    if "go" in options:
        _wait_for(options["go"])


def send(store: str, options: Options) -> int:
    """``count`` calls of ``many`` messages, or until ``stop``; ``busy`` threads compute beside.

    So many refused calls as ``again`` says do not count: each is made up for by another.
    """
    sender, over = Sender(store, options), threading.Event()
    count, many = int(options.get("count", 1 << 40)), int(options.get("many", 1))
    again, number = int(options.get("again", 0)), 0
    stop, pause_s = options.get("stop"), float(options.get("pause", 0.0))

    def compute() -> None:
        number = 1
        while not over.is_set():
            number = number * 6364136223846793005 % (1 << 64) + 1

    for _ in range(int(options.get("busy", 0))):
        threading.Thread(target=compute, daemon=True).start()
    _ready(options)
    while number < count:
        if stop is not None and os.path.exists(stop):
            break
        if not sender.send(*(f"{number}-{part}" for part in range(many))):
            time.sleep(0.05)
            if again:
                again, count = again - 1, count + 1
        number += 1
        if pause_s:
            time.sleep(pause_s)
    over.set()
    return 0


def serve(store: str, options: Options) -> int:
    """Each line of standard input is a name: one message; a word when it is done."""
    sender = Sender(store, options)
    print("ready", flush=True)
    for line in sys.stdin:
        print("accepted" if sender.send(line.strip()) else "refused", flush=True)
    return 0


def same(store: str, options: Options) -> int:
    """Each line of standard input is a key: the same message by everybody; prints its id."""
    from mailstrom import Mailstrom

    with Mailstrom(store, timeout=60.0) as ms:
        print("ready", flush=True)
        for line in sys.stdin:
            key = line.strip()
            raw = f"From: a@sender.test\r\nTo: b@{options['domain']}\r\nSubject: {key}\r\n\r\n.\r\n"
            print(ms.send(raw.encode(), idempotency_key=key), flush=True)
    return 0


def fork(store: str, options: Options) -> int:
    """An application that forks with the spool open, in one of three ways, sending all along."""
    sender, children = Sender(store, options), int(options["children"])
    each, kind = int(options["each"]), options["kind"]
    assert sender.send("before")
    over = threading.Event()

    def load(thread: int) -> None:
        number = 0
        while not over.is_set():
            sender.send(f"load-{thread}-{number}")
            number += 1

    threads = [threading.Thread(target=load, args=(n,)) for n in range(int(options["threads"]))]
    for thread in threads:
        thread.start()

    def child(number: int) -> None:
        sent = sum(sender.send(f"child-{number}-{part}") for part in range(each))
        os._exit(0 if sent == each else 1)

    ended: list[int] = []
    if kind == "multiprocessing":
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=child, args=(n,)) for n in range(children)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        ended = [process.exitcode or 0 for process in processes]
    else:
        pids = []
        for number in range(children):
            pid = os.fork()
            if pid == 0:
                child(number)
            pids.append(pid)
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    over.set()
    for thread in threads:
        thread.join()
    sent = sender.send("after")
    print(json.dumps(ended), flush=True)
    return 0 if sent and not any(ended) else 1


def query(store: str, options: Options) -> int:
    """A report through our own client, again and again until ``stop``."""
    from mailstrom import Mailstrom

    rounds = 0
    with Mailstrom(store) as ms:
        ms.query("SELECT 1")
        print("ready", flush=True)
        while not os.path.exists(options["stop"]):
            ms.query("SELECT status, count(*), max(address) FROM recipients GROUP BY status")
            ms.query("SELECT * FROM attempts ORDER BY id DESC LIMIT 100")
            rounds += 1
    print(rounds, flush=True)
    return 0


def read(store: str, options: Options) -> int:
    """A foreign reader that holds a snapshot, renewed each ``hold`` seconds if told, until killed.

    With ``replicate`` it is like a log shipper: between two snapshots it checkpoints by itself.
    """
    flags = "rw" if options.get("replicate") else "ro"
    connection = sqlite3.connect(f"file:{store}?mode={flags}", uri=True, isolation_level=None)
    second = sqlite3.connect(f"file:{store}?mode={flags}", uri=True, isolation_level=None)
    second.execute("PRAGMA busy_timeout = 1000")
    told = False
    while True:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM message").fetchall()
        if not told:
            print("ready", flush=True)
            told = True
        if "hold" not in options:
            signal.pause()
        time.sleep(float(options["hold"]))
        if options.get("replicate"):
            second.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.execute("ROLLBACK")


def dashboard(store: str, options: Options) -> int:
    """A foreign reader, one short query after another, each ``hold`` seconds long, until killed."""
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True, isolation_level=None)
    connection.create_function("nap", 0, lambda: time.sleep(float(options["hold"])))
    connection.execute("SELECT count(*) FROM message").fetchall()
    print("ready", flush=True)
    while True:
        connection.execute("SELECT count(*), nap() FROM message").fetchall()


def checkpoint(store: str, options: Options) -> int:
    """Checkpoints of every kind, one after the other, until ``stop``; prints how many finished.

    ``enough`` is made when so many have finished as ``least`` says.
    """
    import apsw

    from mailstrom.storage import open_worker_store
    from mailstrom.storage.sqlite.connection import connect

    dice, done, least = random.Random(options["seed"]), 0, int(options["least"])
    kinds = (apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_FULL,
             apsw.SQLITE_CHECKPOINT_RESTART, apsw.SQLITE_CHECKPOINT_TRUNCATE)  # fmt: skip
    engine = open_worker_store(store)
    connection = connect(store, busy_ms=20, checkpoint_frames=0)
    print("ready", flush=True)
    while not os.path.exists(options["stop"]):
        try:
            if dice.random() < 0.3:
                done += engine.checkpoint().frames > 0
            else:
                frames, moved = connection.wal_checkpoint(mode=dice.choice(kinds))
                done += frames >= 0 and moved >= 0
        except apsw.BusyError:
            time.sleep(0.001)
        if done >= least and not os.path.exists(options["enough"]):
            open(options["enough"], "w").close()
    connection.close()
    engine.close()
    print(done, flush=True)
    return 0


MODES: dict[str, Callable[[str, Options], int]] = {
    "send": send, "serve": serve, "same": same, "fork": fork, "query": query, "read": read,
    "dashboard": dashboard, "checkpoint": checkpoint,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(MODES[sys.argv[1]](sys.argv[2], json.loads(sys.argv[3])))
