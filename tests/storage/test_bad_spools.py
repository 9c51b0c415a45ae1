"""Spools that cannot be used: the named error, what to do, the exit code, and nothing changed.

One table. Each case is a path in a state of its own; the library and three commands meet it as real
processes, and afterwards the database, its ``-wal`` and the directory must be what they were, byte
for byte. ``pytest -s`` prints what each of them said.

Files that may not be written are met as root, too: the processes are started without the
capabilities that let root write everything (``_UNPRIVILEGED``). The full disk is a small tmpfs
where this process may mount one, else a limit on the size of files.

Past 400 lines: one table, and how each of its states is made.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from mailstrom import Mailstrom
from mailstrom.testing.script import Script
from tests.support.engine import Engine, environment
from tests.support.network import Network

MAIL = b"From: a@x.test\r\nTo: b@y.test\r\nSubject: hi\r\n\r\nbody\r\n"
PATIENCE_S = 60.0

# Root without CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER obeys the modes of its files.
_UNPRIVILEGED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in (1, 2, 3):
    if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_LIBRARY = """
import json, sys
from mailstrom import Mailstrom
from mailstrom.errors import MailstromError
try:
    with Mailstrom(sys.argv[1], timeout=0.2) as ms:
        ms._committer._timeout = 30.0  # for its own thread; another's lock is waited for 0.2 s
        print(json.dumps(["sent", ms.send(sys.stdin.buffer.read())]))
except MailstromError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
_HOLDER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A spool as a test finds it.

    Args:
        id: of a message in it, to ask for.
        launcher: arguments before the child's own.
    """

    path: Path
    id: str = "x"
    launcher: tuple[str, ...] = ()


def _spool(folder: Path) -> tuple[Path, str]:
    path = folder / "spool.db"
    with Mailstrom(path) as ms:
        id = ms.send(MAIL)
    return path, id


@contextmanager
def _newer(folder: Path) -> Iterator[Trouble]:
    path, id = _spool(folder)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE meta SET value = 99 WHERE key = 'min_client_version'")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    yield Trouble(path=path, id=id)


@contextmanager
def _foreign_database(folder: Path) -> Iterator[Trouble]:
    path = folder / "spool.db"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE customer (name TEXT); INSERT INTO customer VALUES ('Ann')")
    connection.close()
    yield Trouble(path=path)


@contextmanager
def _foreign_file(folder: Path) -> Iterator[Trouble]:
    path = folder / "spool.db"
    path.write_bytes(b"Dear diary, today I learnt about databases.\n" * 100)
    yield Trouble(path=path)


@contextmanager
def _read_only_file(folder: Path) -> Iterator[Trouble]:
    path, id = _spool(folder)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o444)
    yield Trouble(path=path, id=id, launcher=("-c", _UNPRIVILEGED))


@contextmanager
def _read_only_directory(folder: Path) -> Iterator[Trouble]:
    path, id = _spool(folder)
    for entry in [folder, *folder.iterdir()]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        yield Trouble(path=path, id=id, launcher=("-c", _UNPRIVILEGED))
    finally:
        for entry in [folder, *folder.iterdir()]:
            entry.chmod(0o755)


@contextmanager
def _unwritable_directory(folder: Path) -> Iterator[Trouble]:
    folder.chmod(0o555)
    try:
        yield Trouble(path=folder / "spool.db", launcher=("-c", _UNPRIVILEGED))
    finally:
        folder.chmod(0o755)


@contextmanager
def _full_disk(folder: Path) -> Iterator[Trouble]:
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=4m,mode=0700") == 0
    try:
        path, id = _spool(folder)
        if mounted:
            space = os.statvfs(folder)
            (folder / "ballast").write_bytes(bytes(space.f_bavail * space.f_frsize))
            yield Trouble(path=path, id=id)
        else:
            largest = max(file.stat().st_size for file in folder.iterdir() if file.is_file())
            yield Trouble(path=path, id=id, launcher=("-c", _LIMITED, str(largest)))
    finally:
        if mounted and subprocess.run(["umount", str(folder)], check=False).returncode:
            subprocess.run(["umount", "-l", str(folder)], check=True)  # no other run may meet it
            pytest.fail("somebody still has a file of the full disk open")


@contextmanager
def _garbage_behind_the_header(folder: Path) -> Iterator[Trouble]:
    path, id = _moved_into_database(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(range(1, 256)) * (len(whole) // 255 + 1))
    os.truncate(path, len(whole))
    yield Trouble(path=path, id=id)


@contextmanager
def _garbage_in_the_pages(folder: Path) -> Iterator[Trouble]:
    path, id = _moved_into_database(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + (b"\x55" * 4096) * (len(whole) // 4096 - 1))
    yield Trouble(path=path, id=id)


def _moved_into_database(folder: Path) -> tuple[Path, str]:
    """A spool whose pages are all in the database file and whose -wal is empty."""
    path, id = _spool(folder)
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # the -wal stays, as it does for us
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path, id


@contextmanager
def _held(folder: Path) -> Iterator[Trouble]:
    path, id = _spool(folder)
    with holding(path):
        yield Trouble(path=path, id=id)


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the middle of a write."""
    argv = [sys.executable, "-P", "-c", _HOLDER, str(path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            yield holder
        finally:
            holder.kill()


@contextmanager
def _no_directory(folder: Path) -> Iterator[Trouble]:
    yield Trouble(path=folder / "no" / "such" / "spool.db")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is met, and what everybody says to it.

    Args:
        error: class that the library raises.
        words: what its sentence says.
        codes: exit codes of ``send``, ``status`` and ``serve``; None: it is not refused.
    """

    make: Callable[[Path], object]
    error: str
    words: tuple[str, ...]
    codes: tuple[int, int, int | None]


CASES: dict[str, Case] = {
    "newer schema": Case(
        make=_newer,
        error="SchemaMismatch",
        words=("schema 99 is newer", "upgrade Mailstrom"),
        codes=(78, 78, 78),
    ),
    "foreign database": Case(
        make=_foreign_database,
        error="NotASpool",
        words=("not a Mailstrom spool", "name another"),
        codes=(78, 78, 78),
    ),
    "foreign file": Case(
        make=_foreign_file,
        error="NotASpool",
        words=("not a Mailstrom spool", "name another"),
        codes=(78, 78, 78),
    ),
    "read-only file": Case(
        make=_read_only_file,
        error="SpoolReadOnly",
        words=("cannot be written by this user", "run as its owner"),
        codes=(73, 0, 73),
    ),
    "read-only directory": Case(
        make=_read_only_directory,
        error="SpoolReadOnly",
        words=("cannot be written by this user", "run as its owner"),
        codes=(73, 0, 73),
    ),
    "no spool in a read-only directory": Case(
        make=_unwritable_directory,
        error="SpoolReadOnly",
        words=("cannot be created", "may not write"),
        codes=(73, 1, 73),
    ),
    "full disk": Case(
        make=_full_disk,
        error="SpoolFull",
        words=("disk is full", "nothing was written", "free some space"),
        codes=(75, 0, 75),
    ),
    "garbage behind the header": Case(
        make=_garbage_behind_the_header,
        error="SpoolCorrupt",
        words=("damaged", "mailstrom store restore COPY"),
        codes=(1, 1, 1),
    ),
    "garbage in the pages": Case(
        make=_garbage_in_the_pages,
        error="SpoolCorrupt",
        words=("damaged", "mailstrom store restore COPY"),
        codes=(1, 1, 1),
    ),
    "held by another writer": Case(
        make=_held,
        error="SpoolBusy",
        words=("another process held the write lock", "nothing was written", "try again"),
        codes=(75, 0, None),
    ),
    "missing directory": Case(
        make=_no_directory,
        error="SpoolError",
        words=("does not exist", "make it first"),
        codes=(73, 1, 73),
    ),
}


def _state(folder: Path) -> dict[str, bytes | None]:
    """Everything in a directory: content of files, None for directories.

    Without ``-shm``: it is memory, rebuilt from the ``-wal``, and holds marks of readers.
    """
    return {
        str(entry.relative_to(folder)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(folder.rglob("*"))
        if not entry.name.endswith("-shm")
    }


def _start(trouble: Trouble, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", *trouble.launcher, "-P", *arguments]
    if not trouble.launcher:
        command = [sys.executable, "-P", *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd="/",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "place"
    place.mkdir()
    yield place
    place.chmod(0o755)
    shutil.rmtree(place)


@pytest.mark.parametrize("name", CASES)
def test_a_spool_that_cannot_be_used(name: str, folder: Path) -> None:
    case = CASES[name]
    with case.make(folder) as trouble:  # type: ignore[attr-defined]
        store = ("--store", str(trouble.path))
        cli = ("-m", "mailstrom")
        before = _state(folder)
        started = {
            "library": _start(trouble, "-c", _LIBRARY, str(trouble.path)),
            "send": _start(trouble, *cli, "send", *store),
            "status": _start(trouble, *cli, "status", trouble.id, *store),
        }
        if case.codes[2] is not None:
            started["serve"] = _start(trouble, *cli, "serve", "--workers", "1", *store)
        said: dict[str, tuple[int, str, str]] = {}
        try:
            for who, process in started.items():
                out, err = process.communicate(MAIL, timeout=PATIENCE_S)
                said[who] = (process.returncode, out.decode(), err.decode())
        finally:
            for process in started.values():
                process.kill()
                process.wait()
        after = _state(folder)

    code, out, err = said["library"]
    assert (code, err) == (0, "")
    error, sentence = json.loads(out)
    print(f"\n{name}: {error}: {sentence}")
    for who in ("send", "status", "serve"):
        if who in said:
            print(f"  {who}: exit {said[who][0]}  {said[who][2].strip()}")
    assert error == case.error
    assert str(trouble.path) in sentence
    for words in case.words:
        assert words in sentence
    for who, expected in zip(("send", "status", "serve"), case.codes, strict=True):
        if expected is None:
            continue
        code, out, err = said[who]
        assert code == expected, (who, out, err)
        if expected:
            assert out == ""
            assert err.startswith("mailstrom: ")
            assert err.count("\n") == 1, "one sentence, no traceback"
            assert str(trouble.path) in err
    assert list(after) == list(before)
    for file, content in before.items():
        if name == "full disk" and content is not None and file.endswith("-wal"):
            # Frames of a commit that did not fit may stand behind the last one: nobody reads them.
            assert (after[file] or b"").startswith(content)
        else:
            assert after[file] == content, file


def test_a_commit_that_did_not_fit_is_nowhere_and_the_spool_goes_on(folder: Path) -> None:
    with _full_disk(folder) as trouble:
        process = _start(trouble, "-c", _LIBRARY, str(trouble.path))
        out, _ = process.communicate(MAIL, timeout=PATIENCE_S)
        assert json.loads(out)[0] == "SpoolFull"
        (folder / "ballast").unlink(missing_ok=True)
        with Mailstrom(trouble.path) as ms:
            assert ms.query("SELECT id FROM messages") == [(trouble.id,)]
            second = ms.send(MAIL)
            assert {row[0] for row in ms.query("SELECT id FROM messages")} == {trouble.id, second}
            assert ms.check() == []


def test_an_engine_waits_for_a_writer_that_holds_the_spool(tmp_path: Path) -> None:
    with Network() as network:
        engine = Engine(network, tmp_path, workers=1)
        try:
            domain, (host,) = network.site(Script())
            id = engine.send(f"a@{domain}")
            with holding(engine.store) as holder:
                engine.start(wait=False)
                engine.wait_log("worker.started")
                assert engine.log("supervisor.ready") == []
                assert engine.process is not None
                assert engine.process.poll() is None
                holder.kill()
            engine.wait_log("supervisor.ready")
            assert engine.final(id).succeeded
            assert len(host.dots) == 1
            assert engine.stop() == 0
        finally:
            engine.close()
