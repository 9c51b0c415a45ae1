"""``store salvage`` on real files: what it prints, its exit codes, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom import Mailstrom

MAIL = b"From: a@x.test\r\nTo: b@y.test\r\nSubject: hi\r\n\r\nhello\r\n"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool.db"
    with Mailstrom(path) as ms:
        ms.send_many([MAIL.replace(b"hello", b"hello %d" % number) for number in range(5)])
    return path


def damage(spool: Path) -> None:
    """One message's content is not what it was."""
    connection = apsw.Connection(str(spool))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("UPDATE content SET data = x'00' WHERE key = 3 * 4096").fetchall()
    connection.close()


def test_a_sound_spool_is_salvaged_and_adopted(run: Any, spool: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    done = run("store", "salvage", str(spool), str(new))
    assert done.code == 0
    assert done.out.splitlines() == [
        "messages: 5 whole, 0 damaged; recipients: 5 taken along, 0 of them in doubt",
        str(new),
    ]
    assert done.err.splitlines()[1:] == [
        f"mailstrom store restore {new} {spool}",
        f"mailstrom store adopt {spool}",
    ]
    assert run("store", "check", str(new)).out == "ok\n"
    assert run("store", "adopt", str(new), "--yes").code == 0


def test_damaged_messages_are_listed_and_the_exit_code_says_so(
    run: Any, spool: Path, tmp_path: Path
) -> None:
    damage(spool)
    new = tmp_path / "new.db"
    told = run("store", "salvage", str(spool), str(new), "--dry-run")
    assert told.code == 1
    assert "b@y.test" in told.out
    assert "its content is damaged or lost; kept as failed" in told.out
    assert told.out.startswith("messages: 4 whole, 1 damaged; recipients: 5 taken along")
    assert not new.exists()
    done = run("store", "salvage", str(spool), str(new), "--json")
    record = json.loads(done.out)
    assert (done.code, record["messages"], record["whole"], record["dry_run"]) == (1, 5, 4, False)
    assert [one["kept"] for one in record["damaged"]] == [True]
    assert run("status", record["damaged"][0]["id"], "--store", str(new)).code == 0


def test_each_refusal_has_its_exit_code(run: Any, spool: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.db"
    taken.write_bytes(b"")
    assert run("store", "salvage", str(spool), str(taken)).code == 73
    assert run("store", "salvage", str(tmp_path / "none.db"), str(tmp_path / "n.db")).code == 73
    assert run("store", "salvage", "memory:m", str(tmp_path / "n.db")).code == 78
    noise = tmp_path / "noise.db"
    noise.write_bytes(b"\xa5" * 40_960)
    assert run("store", "salvage", str(noise), str(tmp_path / "n.db")).code == 78
    assert run("store", "salvage", str(spool)).code == 64
    assert not (tmp_path / "n.db").exists()


def test_a_damaged_spool_names_this_command(run: Any, spool: Path, tmp_path: Path) -> None:
    with Mailstrom(spool) as ms:
        ms.backup(tmp_path / "one.db")
    broken = tmp_path / "one.db"
    data = broken.read_bytes()
    broken.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    assert (
        f"mailstrom store salvage {broken} NEW" in run("queue", "count", "--store", str(broken)).err
    )
