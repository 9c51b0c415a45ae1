"""A look at a spool from outside: it sees what is there, whoever uses it, and leaves no trace."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from mailstrom import Mailstrom
from mailstrom.clock import boot_id, wall_ms
from mailstrom.storage import examine, open_worker_store
from mailstrom.storage.examined import Examined, TroubleKind
from tests.support.children import beside
from tests.support.engine import environment

MAIL = b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n"

# A process of its own looks: what this one has open must be another's to it.
_LOOK = """
import dataclasses, json, sys
from mailstrom.storage import examine
found = examine(sys.argv[1], check_s=float(sys.argv[2]))
print(json.dumps(dataclasses.asdict(found)))
"""

# Root without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH obeys the modes of its files.
_UNPRIVILEGED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in (1, 2):
    if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

_READ = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], uri=True)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM message").fetchall()
print("ready", flush=True)
sys.stdin.read()
"""

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

_WRITE = """
import sys
import apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("ready", flush=True)
sys.stdin.read()
"""


def look(path: Path, check_s: float = 0.0) -> dict[str, object]:
    """What another process sees, as plain values."""
    argv = [sys.executable, "-P", "-c", _LOOK, str(path), str(check_s)]
    done = subprocess.run(
        argv, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def seen(path: Path, check_s: float = 5.0) -> Examined:
    found = examine(str(path), check_s=check_s)
    assert found is not None
    return found


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool.db"
    with Mailstrom(path) as ms:
        ms.send(MAIL)
    return path


def traces(path: Path) -> dict[str, object]:
    """Everything about a spool's files but the index, which every reader writes its mark into."""
    return {
        one.name: (one.stat().st_mtime_ns, one.stat().st_size, one.read_bytes())
        for one in sorted(path.parent.rglob("*"))
        if one.is_file() and not one.name.endswith("-shm")
    } | {"names": sorted(one.name for one in path.parent.rglob("*"))}


def test_a_sound_spool_is_told_whole_and_nothing_is_changed(spool: Path) -> None:
    before = traces(spool)
    found = seen(spool)
    assert found.trouble is None
    assert traces(spool) == before
    assert found.check is not None
    assert (found.check.findings, found.check.left) == ((), 0)
    assert found.contents is not None
    assert found.contents.waiting["queued"] == 1
    assert found.contents.oldest is not None
    assert found.contents.oldest.where == "y.test"
    assert found.log is not None
    assert found.log.size == os.stat(f"{spool}-wal").st_size
    assert found.log.frames is not None


def test_a_lone_file_gets_no_log_and_no_index_by_being_looked_at(
    spool: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    with Mailstrom(spool) as ms:
        ms.backup(copy)
    found = seen(copy)
    assert found.trouble is None
    assert found.contents is not None
    assert found.contents.copied_from == str(spool)
    assert [one.name for one in copy.parent.iterdir()] == ["copy.db"]


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_a_file_of_the_spool_that_this_user_may_not_read_is_told_as_that(
    spool: Path, ending: str
) -> None:
    os.chmod(f"{spool}{ending}", 0)
    argv = ["-P", "-c", _UNPRIVILEGED, "-P", "-c", _LOOK, str(spool), "0"]
    done = subprocess.run(
        [sys.executable, *argv], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trouble"]["kind"] == "denied"


def test_an_empty_file_is_no_spool_yet_and_nothing_damaged(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.touch(0o600)
    found = seen(path)
    assert found.trouble is not None
    assert found.trouble.kind is TroubleKind.MISSING
    assert path.stat().st_size == 0
    (tmp_path / "spool.db-wal").write_bytes(b"x" * 4096)
    left = seen(path)
    assert left.trouble is not None
    assert left.trouble.kind is TroubleKind.NOT_A_SPOOL, "something was here"


def test_a_log_without_an_index_is_read_all_the_same(spool: Path) -> None:
    os.unlink(f"{spool}-shm")
    found = seen(spool)
    assert found.trouble is None
    assert found.contents is not None
    assert found.contents.waiting["queued"] == 1


def test_what_is_no_spool_is_told_and_left(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    empty = tmp_path / "empty"
    empty.touch()
    kinds = dict.fromkeys((missing, empty), TroubleKind.MISSING)
    text = tmp_path / "text"
    text.write_text("no database\n" * 100)
    other = tmp_path / "other.db"
    apsw.Connection(str(other)).execute("CREATE TABLE t (x)")
    kinds |= dict.fromkeys((text, other, tmp_path), TroubleKind.NOT_A_SPOOL)
    for path, kind in kinds.items():
        found = seen(path)
        assert found.trouble is not None
        assert (path.name, found.trouble.kind) == (path.name, kind)
        assert str(path) in found.trouble.text
    assert not missing.exists()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty", "other.db", "text"]


def test_another_schema_is_neither_migrated_nor_read(spool: Path) -> None:
    connection = apsw.Connection(str(spool))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    found = seen(spool)
    assert found.trouble is not None
    assert found.trouble.kind is TroubleKind.SCHEMA


def test_damage_is_a_finding_where_rows_can_be_read_and_trouble_where_not(spool: Path) -> None:
    connection = apsw.Connection(str(spool))
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.execute("UPDATE tally SET recipients = recipients + 5 WHERE state = 'held'")
    connection.close()
    found = seen(spool)
    assert found.check is not None
    assert any("held" in sentence for sentence in found.check.findings)
    with open(spool, "r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xa5" * (os.path.getsize(spool) - 4096))
    for name in ("-wal", "-shm"):
        Path(f"{spool}{name}").unlink(missing_ok=True)
    ruined = seen(spool)
    assert ruined.trouble is not None
    assert ruined.trouble.kind is TroubleKind.CORRUPT


def test_a_check_that_is_out_of_time_says_how_much_is_left(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom.storage.sqlite import checking

    monkeypatch.setattr(checking, "_STEPS", 1)
    found = seen(spool, check_s=1e-9)
    assert found.check is not None
    assert found.check.left > found.check.asked // 2
    assert found.check.findings == ()


def test_a_read_transaction_that_stays_is_named(spool: Path) -> None:
    with beside(_READ, f"file:{spool}?mode=ro") as other:
        pid = other.pid
        with Mailstrom(spool) as ms:
            ms.send(MAIL)
            found = seen(spool, check_s=0)
        assert found.log is not None
        [reader] = [one for one in found.log.readers if one.pid == pid]
        assert reader.behind_frames is not None
        assert reader.behind_frames > 0
    assert seen(spool, check_s=0).log.readers == ()  # type: ignore[union-attr]


def test_a_writer_that_commits_nothing_is_named_and_keeps_nobody_from_looking(spool: Path) -> None:
    with beside(_WRITE, str(spool)) as other:
        pid = other.pid
        found = seen(spool)
        assert found.trouble is None
        assert found.check is not None
        assert found.log is not None
        assert f"process {pid} " in (found.log.writer or "")


_POISONED = """
import sys
from mailstrom import Mailstrom
from mailstrom.storage.sqlite import poison
poison._write = lambda path, error: False
ms = Mailstrom(sys.argv[1])
ms.send(b"From: a@x.test\\r\\nTo: b@y.test\\r\\n\\r\\nhello\\r\\n")
poison.poison(ms.path, OSError(5, "input/output error"))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="locks of open descriptions")
def test_a_disk_error_is_told_by_its_flag_and_by_who_cannot_write_one(spool: Path) -> None:
    with beside(_POISONED, str(spool)):
        [sentence] = seen(spool, 0).poisoned
        assert "another process saw a disk error" in sentence
    assert seen(spool, 0).poisoned == ()
    Path(f"{spool}-run/poisoned").write_text("EIO\n")
    [sentence] = seen(spool, 0).poisoned
    assert "a disk error was seen" in sentence


def test_a_spool_that_somebody_has_alone_is_busy_and_not_waited_for(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom.storage.sqlite import examining

    monkeypatch.setattr(examining, "BUSY_MS", 100)
    alone = _WRITE.replace('"BEGIN IMMEDIATE"', '"PRAGMA locking_mode = EXCLUSIVE"').replace(
        'print("ready"', 'connection.execute("BEGIN EXCLUSIVE")\nprint("ready"'
    )
    with beside(alone, str(spool)):
        found = seen(spool)
    assert found.trouble is not None
    assert found.trouble.kind is TroubleKind.BUSY


def test_who_shares_the_spool_and_how(spool: Path) -> None:
    with Mailstrom(spool) as ms:
        ms.stats()
        ms.send(MAIL)
        [ours] = look(spool)["sharers"]  # type: ignore[misc]
    assert (ours["pid"], ours["ours"], ours["copies"], ours["writes"]) == (
        os.getpid(), True, 1, True,
    )  # fmt: skip
    with beside(_READ, f"file:{spool}?mode=ro") as other:
        pid = other.pid
        [reader] = seen(spool, 0).sharers
        assert (reader.pid, reader.ours, reader.copies) == (pid, False, 1)
        assert reader.writes is False
    with beside(_READ, f"file:{spool}") as other:
        pid = other.pid
        [writer] = seen(spool, 0).sharers
        assert (writer.pid, writer.ours, writer.writes) == (pid, False, True)
        assert writer.libraries or "sqlite" in sys.builtin_module_names


def test_two_copies_of_sqlite_in_one_process_are_seen(spool: Path) -> None:
    with beside(_TWICE, str(spool)) as other:
        pid = other.pid
        [both] = seen(spool, 0).sharers
        assert (both.pid, both.ours, both.copies) == (pid, True, 2)


def test_a_version_is_read_from_a_library_that_says_exactly_one(tmp_path: Path) -> None:
    from mailstrom.storage.sqlite.sharers import _version

    for name, text, version in (
        ("one.so", b"x\x003.40.1\x00y", "3.40.1"),
        ("two.so", b"\x003.40.1\x00\x003.41.0\x00", ""),
        ("none.so", b"nothing", ""),
    ):
        (tmp_path / name).write_bytes(text)
        assert _version(os.getpid(), str(tmp_path / name)) == version
    assert _version(os.getpid(), str(tmp_path / "missing.so")) == ""


def test_engine_processes_sites_and_held_mail_are_told(spool: Path) -> None:
    now = wall_ms()
    with contextlib.closing(open_worker_store(str(spool))) as engine:
        worker = engine.register(
            kind="delivery", pid=1, host="h", boot=boot_id(), lock="l", restarts=3, now_ms=now
        )
    with Mailstrom(spool) as ms:
        ms.hold(ms.send(MAIL))
    connection = apsw.Connection(str(spool))
    connection.execute(
        "INSERT INTO site (key, hosts, next_due_ms, suspended_until_ms, suspended_by, failures)"
        " VALUES ('mx.test:25', '[]', 0, ?, 'worker 1', 2)",
        (now + 60_000,),
    )
    connection.execute(
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last, done)"
        " VALUES (?, ?, 5000, 0, 0, 0, 0)",
        (now, now - 5000),
    )
    connection.close()
    found = seen(spool, 0)
    rows = found.contents
    assert rows is not None
    [row] = rows.workers
    assert (row.worker, row.kind, row.restarts) == (worker.seq, "delivery", 3)
    assert rows.held == {"user": 1}
    [site] = rows.suspended
    assert (site.site, site.by, site.failures, site.waiting) == ("mx.test:25", "worker 1", 2, 0)
    assert found.clock.jumps == ((now, 5000),)


def test_a_memory_spool_cannot_be_looked_at_from_outside() -> None:
    assert examine("memory:x", check_s=1) is None


def test_a_directory_is_not_said_to_have_a_second_name(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()  # whose ".." is a link to it
    found = seen(tmp_path)
    assert found.trouble is not None
    assert found.trouble.kind is TroubleKind.NOT_A_SPOOL
    assert found.named is None


def test_a_fifo_in_the_place_of_the_log_is_not_waited_for(spool: Path) -> None:
    Path(f"{spool}-wal").unlink()
    os.mkfifo(f"{spool}-wal")
    found = look(spool)  # a process of its own, which is ended after a minute
    assert found["trouble"] is not None
