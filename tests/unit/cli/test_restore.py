"""``store restore`` on real files: asks, keeps the former spool, says how to go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom
from mailstrom.lockfile import LockFile

MAIL = b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool.db"
    with Mailstrom(path) as ms:
        ms.send(MAIL)
        ms.backup(tmp_path / "copy.db")
        ms.send(MAIL)
    return path


def messages(path: Path | str) -> int:
    with Mailstrom(path) as ms:
        (row,) = ms.query("select count(*) as n from messages")
        return int(row.n)


def test_it_asks_and_keeps_what_was_there(run: Any, spool: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    asked = run("store", "restore", str(copy), str(spool), stdin=b"n\n", person=True)
    assert asked.code == 1
    assert f"Put the copy {copy} (made 20" in asked.err
    assert f"in the place of {spool}?" in asked.err
    assert messages(spool) == 2
    assert run("store", "restore", str(copy), str(spool)).code == 64  # nobody to ask
    assert messages(spool) == 2

    done = run("store", "restore", str(copy), str(spool), stdin=b"y\n", person=True)
    assert done.code == 0
    first, second = done.out.splitlines()
    assert first == f"restored {spool}"
    assert second.startswith(f"the former spool is {spool}.replaced-")
    assert f"mailstrom store adopt {spool}" in done.err
    assert messages(spool) == 1
    assert messages(second.removeprefix("the former spool is ")) == 2
    assert run("store", "adopt", str(spool), "--yes").code == 0


def test_it_finds_the_spool_as_all_commands_do(
    run: Any, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILSTROM_STORE", str(spool))
    monkeypatch.chdir(tmp_path)
    done = run("store", "restore", "copy.db", "--yes", "--json")
    record = json.loads(done.out)
    assert record["store"] == str(spool)
    assert record["copy"] == str(tmp_path / "copy.db")
    assert messages(record["kept"]) == 2
    spool.unlink()
    assert json.loads(run("store", "restore", "copy.db", "--yes", "--json").out)["kept"] is None


def test_each_refusal_has_its_exit_code_and_leaves_the_spool(
    run: Any, spool: Path, tmp_path: Path
) -> None:
    copy = str(tmp_path / "copy.db")
    lock = LockFile(f"{spool}-run/supervisor.lock")
    assert lock.acquire({"pid": 4711})
    busy = run("store", "restore", copy, str(spool), "--yes")
    assert (busy.code, "pid 4711" in busy.err) == (75, True)
    lock.release()
    assert run("store", "restore", str(tmp_path / "none.db"), str(spool), "--yes").code == 73
    assert run("store", "restore", str(tmp_path), str(spool), "--yes").code == 78
    assert run("store", "restore", copy, "memory:m", "--yes").code == 78
    assert run("store", "restore").code == 64
    assert messages(spool) == 2


def test_a_damaged_spool_says_this_command(run: Any, spool: Path, tmp_path: Path) -> None:
    broken = tmp_path / "copy.db"  # in one file, unlike the spool itself
    data = broken.read_bytes()
    broken.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    damaged = run("queue", "count", "--store", str(broken))
    assert damaged.code == 1
    assert f"mailstrom store restore COPY {broken}" in damaged.err
