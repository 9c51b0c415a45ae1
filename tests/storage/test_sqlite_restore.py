"""A copy in the place of a spool: whole or not at all, at every crash; the former one is kept.

The former spools here keep most of their messages in the -wal, as any spool does when it is closed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import apsw
import pytest

from mailstrom import Mailstrom
from mailstrom.errors import (
    MailstromError,
    NotASpool,
    SchemaMismatch,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
)
from mailstrom.lockfile import LockFile
from mailstrom.storage.sqlite import connection as connections
from mailstrom.storage.sqlite.restore import look, restore

NOW = 1_800_000_000_000
FIRST, LATER = 30, 20  # messages in the copy, and those that the spool got after it was made


def mail(number: int) -> bytes:
    return b"From: a@a.test\r\nTo: u%d@b.test\r\n\r\nx\r\n" % number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed spool with a -wal, and an older copy of it."""
    made = tmp_path / "spools"
    made.mkdir()
    with Mailstrom(made / "spool.db") as ms:
        ms.send_many([mail(number) for number in range(FIRST)])
        ms.backup(tmp_path / "copy.db")
        ms.send_many([mail(number) for number in range(LATER)])
    assert (made / "spool.db-wal").stat().st_size > 100_000
    return made


def facts(path: Path | str) -> tuple[int, bool]:
    """Number of messages and the mark of a copy, of a spool that is sound."""
    with Mailstrom(path) as ms:
        assert ms.check() == []
        (row,) = ms.query("select count(*) as n from messages")
        return row.n, ms.stats().copied


FORMER, RESTORED = (FIRST + LATER, False), (FIRST, True)


def put(folder: Path) -> str | None:
    return restore(str(folder.parent / "copy.db"), str(folder / "spool.db"), NOW)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_the_log_of_the_former_spool_is_not_replayed_over_the_copy(folder: Path) -> None:
    kept = put(folder)

    assert kept == str(folder / "spool.db.replaced-20270115T080000Z")
    assert names(folder) == {
        "spool.db", *(f"{Path(kept).name}{end}" for end in ("", "-wal", "-shm"))
    }  # fmt: skip
    assert facts(folder / "spool.db") == RESTORED
    assert facts(kept) == FORMER
    assert (folder.parent / "copy.db").stat().st_nlink == 1
    assert look(str(folder.parent / "copy.db")) == look(str(folder / "spool.db"))
    assert names(folder.parent) == {"copy.db"}  # nothing was left beside it


def test_the_restored_spool_accepts_and_waits_until_it_is_adopted(folder: Path) -> None:
    put(folder)
    with Mailstrom(folder / "spool.db") as ms:
        id = ms.send(mail(1))
        assert ms.adopt()
        assert ms.status(id).status == "queued"
    assert facts(folder / "spool.db") == (FIRST + 1, False)


def test_the_way_back_is_the_same_way(folder: Path) -> None:
    kept = put(folder)
    assert kept is not None
    again = restore(kept, str(folder / "spool.db"), NOW)
    assert again == f"{kept}-2"
    assert facts(folder / "spool.db") == (FIRST + LATER, True)  # what was in its -wal, too


def test_a_link_to_the_spool_stays_one(folder: Path) -> None:
    link = folder.parent / "link.db"
    link.symlink_to(folder / "spool.db")
    restore(str(folder.parent / "copy.db"), str(link), NOW)
    assert link.is_symlink()
    assert facts(link) == RESTORED


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_new_file_has_the_mode_of_the_former(folder: Path, mode: int) -> None:
    os.chmod(folder / "spool.db", mode)
    put(folder)
    assert stat.S_IMODE((folder / "spool.db").stat().st_mode) == mode


def test_the_new_file_has_the_owner_of_the_former(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(folder / "spool.db", 1234, 2345)
    put(folder)
    found = (folder / "spool.db").stat()
    assert (found.st_uid, found.st_gid) == (1234, 2345)
    stays = {entry.name for entry in (folder / "spool.db-run").iterdir()}
    assert stays == {"turn"}, "of those who sent before; no lock file of root's"


@pytest.mark.parametrize("damage", ["header", "truncated", "other file", "gone", "gone with all"])
def test_whatever_became_of_the_former_spool_the_copy_takes_its_place(
    folder: Path, damage: str
) -> None:
    spool = folder / "spool.db"
    if damage == "header":
        spool.write_bytes(b"\xff" * 8192)
    elif damage == "truncated":
        spool.write_bytes(spool.read_bytes()[:700])
    elif damage == "other file":
        spool.write_text("a note to myself")
    else:
        spool.unlink()
    if damage == "gone with all":
        shutil.rmtree(folder)
        folder.mkdir()
    before = spool.read_bytes() if spool.exists() else None

    kept = put(folder)

    assert facts(spool) == RESTORED
    if damage == "gone with all":
        assert kept is None
        return
    assert kept is not None
    assert Path(f"{kept}-wal").stat().st_size > 100_000
    assert (Path(kept).read_bytes() if before else None) == before


HOLDER = """
import sys
from mailstrom import Mailstrom
ms = Mailstrom(sys.argv[1])
ms.stats()
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_open(path: Path) -> Iterator[None]:
    """Another process that has the spool open and does nothing."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            yield
        finally:
            process.communicate(timeout=30)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_while_anybody_has_it_open_nothing_is_touched(folder: Path) -> None:
    with held_open(folder / "spool.db"):
        before = snapshot(folder)
        with pytest.raises(SpoolBusy, match="a process has it open"):
            put(folder)
        assert snapshot(folder) == before
    put(folder)
    assert facts(folder / "spool.db") == RESTORED


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("supervisor.lock", "a supervisor serves it \\(pid 4711\\)"),
        ("delivery-4711-00000000.lock", "an engine works on it"),
        ("janitor.lock", "an engine works on it"),
    ],
)
def test_while_an_engine_lives_nothing_is_touched(folder: Path, name: str, words: str) -> None:
    lock = LockFile(folder / "spool.db-run" / name)
    assert lock.acquire({"pid": 4711})
    before = snapshot(folder)
    with pytest.raises(SpoolBusy, match=words):
        put(folder)
    assert snapshot(folder) == before
    lock.release()
    put(folder)


def test_a_copy_in_use_is_read_as_it_is_at_that_moment(folder: Path) -> None:
    copy = folder.parent / "copy.db"
    with Mailstrom(copy) as ms:  # its newest message is in its -wal
        ms.send(mail(1))
    with held_open(copy):
        put(folder)
    assert facts(folder / "spool.db") == (FIRST + 1, True)


def test_a_copy_on_a_medium_without_room_for_shared_memory_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mailstrom.storage.sqlite import restore as module

    asked: list[str] = []
    reading = module._reading

    def refuses(name: str, flags: int) -> apsw.Connection:
        asked.append(name)
        if "immutable" not in name:
            raise apsw.CantOpenError("unable to open database file")
        return reading(name, flags)

    monkeypatch.setattr(module, "_reading", refuses)
    put(folder)
    assert facts(folder / "spool.db") == RESTORED
    (folder.parent / "copy.db-wal").write_bytes(b"x")  # then there is more than the file tells
    with pytest.raises(SpoolError, match="cannot be opened"):
        put(folder)


def test_what_is_no_sound_copy_is_refused_and_nothing_is_touched(folder: Path) -> None:
    copy = folder.parent / "copy.db"
    before = snapshot(folder)

    def refused(kind: type[MailstromError], words: str) -> None:
        with pytest.raises(kind, match=words):
            put(folder)
        assert snapshot(folder) == before

    sound = copy.read_bytes()
    copy.write_bytes(sound[: len(sound) // 2])
    refused(SpoolError, "copy.db")
    copy.write_bytes(sound[:8192] + bytes(16384) + sound[24576:])
    refused(SpoolCorrupt, "damaged")
    copy.write_text("a note")
    refused(NotASpool, "not a Mailstrom spool")
    copy.unlink()
    refused(SpoolError, "there is no such file; name a copy")
    database = apsw.Connection(str(copy))
    database.execute("CREATE TABLE other (a)").fetchall()
    database.close()
    refused(NotASpool, "name a copy of one")
    copy.unlink()
    copy.mkdir()
    refused(NotASpool, "is a directory")
    copy.rmdir()
    copy.write_bytes(sound)
    database = apsw.Connection(str(copy))
    database.execute("PRAGMA user_version = 999").fetchall()
    database.close()
    refused(SchemaMismatch, "schema 999 is newer")
    copy.unlink()
    copy.symlink_to(folder / "spool.db")
    refused(SpoolError, "is the spool itself")


def test_without_hard_links_nothing_is_touched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(folder)
    refusal = OSError(errno.EPERM, os.strerror(errno.EPERM))
    monkeypatch.setattr(os, "link", Mock(side_effect=refusal))
    with pytest.raises(SpoolError, match=r"it is as it was; if .* no hard links, move .* by hand"):
        put(folder)
    assert snapshot(folder) == before


CRASH = """
import os, sys
from mailstrom.storage.sqlite import restore
copy, path, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
done = 0
def counted(call):
    def crashing(*args, **options):
        global done
        done += 1
        if done > last:
            os._exit(9)
        return call(*args, **options)
    return crashing
for name in ("link", "replace", "rename", "unlink", "write", "chown"):
    setattr(os, name, counted(getattr(os, name)))
restore.restore(copy, path, 1_800_000_000_000)
"""


_PIPE = shutil.ignore_patterns("turn")
"""Nothing of a spool's: whoever wants the turn makes it."""


def whole(path: Path, copied: Path) -> str:
    """Which spool is usable now, looked at in a copy of the directory."""
    shutil.copytree(path.parent, copied, ignore=_PIPE)
    spool = copied / path.name
    try:
        kept = connections.interrupted(str(spool))
        if kept is None:
            return {FORMER: "former", RESTORED: "restored"}[facts(spool)]
        again = f"restore COPY {spool} (the former spool is whole: {kept})"
        with pytest.raises(NotASpool, match=re.escape(again)):
            Mailstrom(spool)
        assert facts(kept) == FORMER
        return "note"
    finally:
        shutil.rmtree(copied)


def test_each_crash_leaves_one_spool_whole_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(folder, origin, ignore=_PIPE)
    seen: list[str] = []
    for last in range(60):
        shutil.rmtree(folder)
        shutil.copytree(origin, folder)
        code = subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                CRASH,
                tmp_path / "copy.db",
                folder / "spool.db",
                f"{last}",
            ],
            check=False,
        ).returncode
        assert code in (0, 9)
        seen.append(whole(folder / "spool.db", tmp_path / "looked"))
        if code == 0:
            break
        kept = put(folder)
        assert kept is not None
        assert facts(folder / "spool.db") == RESTORED
        if seen[-1] != "restored":
            assert facts(kept) == FORMER
            assert (folder / "spool.db").stat().st_nlink == Path(kept).stat().st_nlink == 1
            others = {name for name in names(folder) if "replaced" in name}
            assert others == {f"{Path(kept).name}{end}" for end in ("", "-wal", "-shm")}
        assert not [name for name in names(folder) if name.startswith(".")]
    assert code == 0
    assert sorted(set(seen), key=["former", "note", "restored"].index) == [
        "former", "note", "restored"
    ]  # fmt: skip
    assert seen == sorted(seen, key=["former", "note", "restored"].index)
    assert seen.count("note") >= 3


def test_who_opens_the_file_just_before_it_is_moved_lets_go_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database would be yesterday's, and the -wal that of the file which has the name now."""
    path = folder / "spool.db"
    require_ours = connections.require_ours

    def moved(connection: apsw.Connection, name: str, create: bool) -> None:
        require_ours(connection, name, create)
        monkeypatch.undo()
        os.rename(path, folder / "moved.db")
        shutil.copyfile(folder.parent / "copy.db", path)

    monkeypatch.setattr(connections, "require_ours", moved)
    with pytest.raises(SpoolBusy, match="was replaced while it was being opened"):
        connections.connect(str(path))


def test_what_is_no_file_is_named_before_sqlite_sees_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotASpool, match="is a directory; name a file in it"):
        Mailstrom(tmp_path)
    unreal = [one for one in map(Path, ("/proc/self/mem", "/proc/self/maps")) if one.exists()]
    for path in (tmp_path / "fifo", Path("/dev/null"), *unreal):
        with pytest.raises(NotASpool, match="is no regular file"):
            Mailstrom(path)


@pytest.mark.timeout(30)
def test_a_pipe_that_comes_in_the_place_of_a_short_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(connections.INTERRUPTED + b"former\n")
    assert connections.interrupted(str(path)) is not None
    looked = os.stat

    def swapped(file: str) -> os.stat_result:
        found = looked(file)
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr(connections.os, "stat", swapped)
    assert connections.interrupted(str(path)) is None
    monkeypatch.undo()
    assert path.is_fifo()
