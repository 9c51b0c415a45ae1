"""The command line on a real spool: the client, its SQL and its errors are as it expects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom

MAIL = b"From: a@x.test\nTo: b@y.test, c@z.test\nSubject: hi\n\nbody\n"


@pytest.fixture
def spool(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    path = str(tmp_path / "spool.db")
    monkeypatch.setenv("MAILSTROM_STORE", path)
    done = run("store", "init")
    assert (done.code, done.out) == (0, f"{path}\n")
    return path


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("spool")
def test_a_message_from_send_to_cancel(run: Any) -> None:
    id = run("send", stdin=MAIL).out.strip()
    (status,) = rows(run("status", id, "--json").out)
    assert list(status["recipients"]) == ["b@y.test", "c@z.test"]
    listed = rows(run("queue", "list", "--json").out)
    assert [(row["message_id"], row["address"]) for row in listed] == [
        (id, "b@y.test"),
        (id, "c@z.test"),
    ]
    assert run("queue", "cancel", "--domain", "Y.test", "--yes").out == "cancelled 1 recipient\n"
    assert [row["address"] for row in rows(run("queue", "list", "--json").out)] == ["c@z.test"]
    assert rows(run("queue", "count", "--all", "--json").out) == [
        {"status": "cancelled", "recipients": 1, "messages": 1},
        {"status": "queued", "recipients": 1, "messages": 1},
    ]
    again = run("queue", "retry", id, "--status", "cancelled", "--yes")
    assert again.code == 1  # cancelled is final: send it anew instead
    assert again.err == "mailstrom: no cancelled recipient matches\n"
    assert run("queue", "cancel", id, "--yes").out == "cancelled 1 recipient\n"
    assert run("queue", "list").out == ""
    assert run("store", "check").out == "ok\n"


@pytest.mark.usefixtures("spool")
def test_the_same_key_gives_the_same_message(run: Any) -> None:
    first, second = (run("send", "--key", "k", stdin=MAIL).out for _ in range(2))
    assert first == second
    other = run("send", "--key", "k", stdin=MAIL.replace(b"body", b"other"))
    assert (other.code, other.out) == (65, "")


@pytest.mark.usefixtures("spool")
def test_a_bad_message_exits_65_and_stores_nothing(run: Any) -> None:
    assert run("send", stdin=b"From: a@x.test\nSubject: nobody\n\nbody\n").code == 65
    assert rows(run("sql", "--json", "select count(*) as n from messages").out) == [{"n": 0}]


@pytest.mark.usefixtures("spool")
def test_waiting_without_an_engine_runs_out_of_time(run: Any) -> None:
    done = run("send", "--wait=0.01", stdin=MAIL)
    assert done.code == 75
    assert run("status", done.out.strip()).code == 0


@pytest.mark.parametrize("query", ["selec", "select * from nowhere", "delete from messages"])
@pytest.mark.usefixtures("spool")
def test_sql_that_is_wrong_or_would_write_exits_64(run: Any, query: str) -> None:
    done = run("sql", query)
    assert (done.code, done.out) == (64, "")


def test_a_file_that_is_no_spool_exits_78_and_stays_as_it_was(run: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, but someone's file" * 100)
    done = run("store", "check", str(other))
    assert done.code == 78
    assert str(other) in done.err
    assert other.read_bytes() == b"not a database, but someone's file" * 100


def test_a_place_where_nothing_can_be_made_exits_73(run: Any) -> None:
    assert run("store", "init", "/proc/none/spool.db").code == 73


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("store", "backup", "\udcff.db"), 73),
        (("store", "salvage", "SPOOL", "\udcff.db"), 73),
        (("serve", "--store", "\udcff.db"), 78),
        (("config", "check", "--store", "\udcff.db"), 78),
    ],
)
def test_a_name_that_sqlite_cannot_open_is_told(
    run: Any, spool: str, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    Mailstrom(spool).close()
    files = sorted(os.listdir(tmp_path))
    done = run(*(spool if word == "SPOOL" else word for word in arguments))
    assert (done.code, done.out) == (code, "")
    assert "is not UTF-8, which SQLite needs" in done.err
    assert sorted(os.listdir(tmp_path)) == files


def test_a_spools_name_of_thousands_of_characters_is_told_shortly(run: Any) -> None:
    done = run("serve", "--store", "/y" * 3000)
    assert done.code == 78
    assert len(done.err) < 400


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "x"),
        ("queue", "list"),
        ("queue", "count", "--all"),
        ("queue", "retry", "x", "--yes"),
        ("queue", "cancel", "x", "--yes"),
        ("queue", "next"),
        ("queue", "hold", "--all", "--dry-run"),
        ("show", "x"),
        ("resolve", "x", "retry"),
        ("destinations",),
        ("report", "domains"),
        ("tail", "--no-follow"),
        ("store", "backup", "copy.db"),
        ("store", "adopt"),
        ("store", "purge", "--yes"),
        ("sql", "select 1"),
        ("store", "check"),
    ],
)
@pytest.mark.parametrize("by", ["--store", "variable", "configuration", "default"])
def test_asking_never_makes_a_spool(
    run: Any,
    arguments: tuple[str, ...],
    by: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # a user who is not root has a default place below home
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    path = tmp_path / "no such.db"
    named: tuple[str, ...] = ()
    if by == "--store":
        named = ("--store", str(path))
    elif by == "variable":
        monkeypatch.setenv("MAILSTROM_STORE", str(path))
    elif by == "configuration":
        file = tmp_path / "mailstrom.toml"
        file.write_text('store = "no such.db"')
        named = ("--config", str(file))
    else:
        path = tmp_path / ".local/state/mailstrom/spool.db"
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments, *named)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"mailstrom: no spool at {path}; create it with 'mailstrom store")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_file_is_no_spool_yet_for_commands_that_look(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    done = run("queue", "list", "--store", str(path))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"mailstrom: no spool at {path}; create it with 'mailstrom store")
    assert path.stat().st_size == 0
    assert run("store", "init", str(path)).code == 0
    assert run("queue", "list", "--store", str(path)).code == 0


def test_store_init_says_in_json_whether_it_made_the_spool(run: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "spool.db")
    for created in (True, False):
        done = run("store", "init", path, "--json")
        assert rows(done.out) == [{"store": path, "created": created}]


@pytest.mark.parametrize(
    "arguments", [("send",), ("store", "init"), ("queue", "count"), ("status", "x")]
)
def test_a_spool_that_ends_with_this_process_is_refused(
    run: Any, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments, "--store", "memory:here", stdin=MAIL)
    assert (done.code, done.out) == (78, "")
    assert "memory:here" in done.err


def test_a_scheme_that_nobody_installed_exits_78(run: Any) -> None:
    for arguments in (("send",), ("queue", "count")):
        done = run(*arguments, "--store", "nowhere:x", stdin=MAIL)
        assert (done.code, done.out) == (78, "")


def test_a_spool_may_be_named_with_its_scheme(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    (made,) = rows(run("store", "init", f"sqlite://{path}", "--json").out)
    assert made["created"] is True
    assert path.exists()
    assert run("queue", "count", "--store", f"sqlite://{path}").code == 0
    (made,) = rows(run("store", "init", f"sqlite://{path}", "--json").out)
    assert made["created"] is False
